"""What must match where a run resumes, and what is only said."""

from dataclasses import asdict

import pytest

from base.errors import InputError
from base.files import write_json
from model_config import ModelArchitectureConfig
from training.config import TrainConfig
from training.state import RunState, check_resumable


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
