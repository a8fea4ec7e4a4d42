"""What must match where a run resumes, and what is only said."""

from dataclasses import asdict

import pytest

from base.errors import InputError
from base.files import write_json
from model_config import ModelArchitectureConfig
from training.config import TrainConfig
from training.state import RunState, begin_anew, check_resumable


@pytest.fixture
def resolved():
    return {"model": asdict(ModelArchitectureConfig()), "train": asdict(TrainConfig())}


@pytest.fixture
def state():
    return RunState(step=3, data={"dataset": "d", "fingerprint": "f" * 64})


def test_the_same_configuration_needs_no_words(tmp_path, state, resolved):
    assert check_resumable(tmp_path, state, resolved, resolved, "f" * 64) == []


def test_a_field_of_a_later_versions_model_is_refused_by_name(tmp_path, state, resolved):
    later = resolved | {"model": resolved["model"] | {"sliding_window": 512}}
    with pytest.raises(InputError, match="another version, whose models have sliding_window"):
        check_resumable(tmp_path, state, later, resolved, "f" * 64)


def test_a_field_of_a_later_versions_training_is_said(tmp_path, state, resolved):
    later = resolved | {"train": resolved["train"] | {"colour": "red"}}
    [note] = check_resumable(tmp_path, state, later, resolved, "f" * 64)
    assert "colour is not known here" in note


@pytest.mark.parametrize("key", ["origin", "muon_products"])
def test_a_word_of_no_meaning_is_refused(tmp_path, state, key):
    write_json(tmp_path / "state.json", state.to_json() | {key: "float17"})
    with pytest.raises(InputError, match=f"{key}='float17' is not known"):
        RunState.read(tmp_path)


def changed(resolved, **train):
    return resolved | {"train": asdict(TrainConfig(**train))}


def test_every_number_that_changes_is_in_one_note(tmp_path, state, resolved):
    now = {
        "model": asdict(ModelArchitectureConfig(dropout=0.25)),
        "train": asdict(TrainConfig(eval_interval=7, max_iters=9, beta2=0.5, out_dir="b", compile=False)),
    }
    [note] = check_resumable(tmp_path, state, resolved, now, "f" * 64)
    assert note == (
        "changed since the checkpoint: dropout=0.0 there, 0.25 here, max_iters=600000 there, 9 here, "
        "beta2=0.95 there, 0.5 here"
    )


def test_the_learning_rate_before_and_after(tmp_path, state, resolved):
    """A linear decay that is extended when it is nearly over: 1e-2 * (1 - 8/10), and 1e-2 * (1 - 8/16)."""
    linear = dict(lr_schedule="linear", learning_rate=1e-2, min_lr=0.0, warmup_iters=0)
    before, after = (changed(resolved, max_iters=n, **linear) for n in (10, 16))
    state.step = 8
    [note] = check_resumable(tmp_path, state, before, after, "f" * 64)
    assert note.endswith(
        "max_iters=10 there, 16 here, learning rate of the next step 0.002 there, 0.005 here"
    )
    wrong = before | {"train": before["train"] | {"beta1": 2.0}}  # what no longer holds has no rate
    [note] = check_resumable(tmp_path, state, wrong, after, "f" * 64)
    assert "learning rate of" not in note


def test_other_data_is_refused_by_name(tmp_path, state, resolved):
    other = changed(resolved, dataset="novels")
    with pytest.raises(InputError) as error:
        check_resumable(tmp_path, state, resolved, other, "e" * 64)
    there, here = "data='python_stdlib, fingerprint ffffffffffff'", "'novels, fingerprint eeeeeeeeeeee'"
    assert f"{there} there, {here} here; use its settings, another --out_dir" in str(error.value)
    # The same data in another place are the same data
    assert check_resumable(tmp_path, state, resolved, other, "f" * 64) == [
        "changed since the checkpoint: dataset='python_stdlib' there, 'novels' here"
    ]


def test_another_validation_split_begins_the_best_anew(state):
    data = {"dataset": "d", "fingerprint": "f" * 64, "val_fingerprint": "a" * 64}
    state.best, state.val_loss = {"step": 2, "val_loss": 1.0}, 1.5
    assert begin_anew(state, data, "float32") == []  # an earlier version did not record it
    assert (state.best, state.val_loss, state.data) == ({"step": 2, "val_loss": 1.0}, 1.5, data)
    assert begin_anew(state, data, "float32") == [] and state.best is not None
    [note] = begin_anew(state, data | {"val_fingerprint": "b" * 64}, "float32")
    assert "fingerprint aaaaaaaaaaaa there, bbbbbbbbbbbb here" in note and "the best begins anew" in note
    assert (state.best, state.val_loss) == (None, None)


def test_the_type_of_the_matmuls_is_said_where_the_device_chose_it(state):
    data = {"dataset": "d", "fingerprint": "f" * 64, "val_fingerprint": "a" * 64}
    assert begin_anew(state, data, "bfloat16") == []
    assert begin_anew(state, data, "float32") == ["matmuls were in bfloat16 and are now in float32"]
    assert begin_anew(state, data, "float16")[1] == "the scale of float16's gradients begins anew"


@pytest.mark.parametrize("key, value", [
    ("best", {"step": "3", "val_loss": 1.0}),
    ("best", {"val_loss": 1.0}),
    ("best", {"step": 3, "val_loss": None}),
    ("best", {"step": -3, "val_loss": 1.0}),
    ("guard", {"mean_norm": "high"}),
    ("guard", {"bad_in_a_row": [1]}),
    ("grad_scaler", {"scale": None}),
    ("grad_scaler", {"scale": 65536.0}),
    ("data", {"dataset": 3}),
    ("data", {"dataset": "d", "fingerprint": None}),
    ("data", {"dataset": "d", "val_fingerprint": 5}),
    ("data", {"dataset": "d", "tokenizer": "gpt2"}),
    ("data", {"dataset": "d", "eot_id": "0"}),
    ("data", {"dataset": "d", "bytes_per_token": "4"}),
    ("step", -1),
    ("step", 2**70),
    ("tokens", -1),
])  # fmt: skip
def test_contents_of_another_type_are_refused(tmp_path, state, key, value):
    write_json(tmp_path / "state.json", state.to_json() | {key: value})
    with pytest.raises(InputError, match=rf"state\.json: '?{key}"):
        RunState.read(tmp_path)
