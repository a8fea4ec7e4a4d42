"""What must match where a run resumes, and what is only said."""

import json
import math
from dataclasses import asdict

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from base.errors import InputError
from base.files import write_json
from model_config import ModelArchitectureConfig
from training.config import TrainConfig
from training.optim import StepGuard
from training.state import RECORDS, RunState, check_resumable, take_up


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


DATA = {"dataset": "d", "fingerprint": "f" * 64}
MEASURED = {
    "split": "a" * 64,
    "windows": 9,
    "block_size": 16,
    "document_masking": False,
    "dtype": "float32",
    "bytes": 99,
}


def test_losses_of_another_measurement_are_forgotten(state):
    """And what differs is named, whether or not there was a best."""
    best = {"step": 2, "val_loss": 1.0}
    state.best, state.val_loss, state.measurement = best, 1.5, MEASURED
    assert take_up(state, DATA, dict(MEASURED), "float32") == []
    assert (state.best, state.val_loss, state.data) == (best, 1.5, DATA)
    [note] = take_up(state, DATA, MEASURED | {"bytes": 98}, "float32")
    assert "bytes of text are counted in another way" in note and state.best == best
    [note] = take_up(state, DATA, MEASURED | {"split": "b" * 64, "windows": 8}, "float32")
    assert (
        "in held-out data and evaluated windows: the best so far (1.0000 at step 2) is not compared" in note
    )
    assert (state.best, state.val_loss) == (None, None)
    [note] = take_up(state, DATA, MEASURED | {"split": "c" * 64}, "float32")
    assert "in held-out data and evaluated windows: the best so far is not compared" in note


def test_an_earlier_version_recorded_no_measurement(state):
    assert take_up(state, DATA, MEASURED, "float32") == [] and state.measurement == MEASURED
    state.best, state.measurement = {"step": 2, "val_loss": 1.0}, None
    [note] = take_up(state, DATA, MEASURED, "float32")
    assert "1.0000 at step 2" in note and state.best is None


def test_the_type_of_the_matmuls_is_said_where_the_device_chose_it(state):
    assert take_up(state, DATA, MEASURED, "bfloat16") == []
    assert take_up(state, DATA, MEASURED, "float32") == ["matmuls were in bfloat16 and are now in float32"]
    assert take_up(state, DATA, MEASURED, "float16")[1] == "the scale of float16's gradients starts anew"


@pytest.mark.parametrize("key, value", [
    ("best", {"step": "3", "val_loss": 1.0}),
    ("best", {"val_loss": 1.0}),
    ("best", {"step": 3, "val_loss": None}),
    ("best", {"step": 3, "val_loss": float("nan")}),
    ("best", {}),
    ("trained_s", 10**400),
    ("best", {"step": -3, "val_loss": 1.0}),
    ("guard", {"mean_norm": "high"}),
    ("guard", {"bad_in_a_row": [1]}),
    ("grad_scaler", {"scale": None}),
    ("grad_scaler", {"scale": 65536.0}),
    ("data", {"dataset": 3}),
    ("data", {"dataset": "d", "fingerprint": None}),
    ("data", {"dataset": 5}),
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


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
PLACES = [
    *[(key,) for key in RunState().to_json()],
    *[(name, key) for name, keys in RECORDS.items() for key in keys],
]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(place=st.sampled_from(PLACES), value=ANY)
def test_a_state_of_any_contents_is_read_or_refused(tmp_path, place, value):
    whole = RunState(
        step=3,
        best={"step": 3, "val_loss": 1.0},
        guard=StepGuard(TrainConfig(), torch.device("cpu")).state(),
        grad_scaler=torch.amp.GradScaler("cpu").state_dict(),
        data={"dataset": "d", "fingerprint": "f" * 64},
    ).to_json()
    *path, last = place
    record = whole
    for key in path:
        record = record[key]
    record[last] = value
    (tmp_path / "state.json").write_text(json.dumps(whole))
    try:
        state = RunState.read(tmp_path)
    except InputError as error:
        assert "\n" not in str(error)
        return
    take_up(state, DATA, MEASURED, "float32")
    StepGuard(TrainConfig(), torch.device("cpu"), state.guard)
    torch.amp.GradScaler("cpu", enabled=bool(state.grad_scaler)).load_state_dict(state.grad_scaler)
    assert state.step >= 0 and (state.best is None or math.isfinite(state.best["val_loss"]))
