"""Runs that commit 2738213 wrote, stopped at step 8 of 16 (fixtures/earlier): today's code resumes from their
checkpoints with the losses that the earlier code had, finds their models, and compares their logs."""

import json
import logging
import shutil
import signal
from pathlib import Path

import pytest
import torch
from conftest import read_events
from safetensors.torch import load_file

import compare_architectures
import train
from inference.models import find_model
from training.state import RunState

EARLIER = Path(__file__).parents[1] / "fixtures" / "earlier"
EXPECTED = json.loads((EARLIER / "expected.json").read_text())
# Where another CPU or torch rounds the last bits differently. Measured between instruction sets: 2e-7 for AdamW;
# 9e-5 for Muon, which orthogonalizes in bfloat16
REL = {"gpt2": 1e-6, "qwen3": 3e-4}
# Evaluations of that version took other windows (training/measure.py), so its figures of them are not today's
NUMBERS = {"train": ("step", "loss", "grad_norm")}


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    """The working directory is a copy of the fixture, whose paths are relative."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    folder = shutil.copytree(EARLIER, tmp_path / "earlier")
    monkeypatch.chdir(folder)
    yield folder
    for number, handler in handlers.items():
        signal.signal(number, handler)
    logging.getLogger("nanofoundry").handlers.clear()


def numbers(out_dir: Path, after: int = 0, until: int = 16) -> dict[str, list[dict]]:
    """What the logs say of the steps in (after, until]."""
    return {
        kind: [{k: e[k] for k in keys} for e in read_events(out_dir, kind) if after < e["step"] <= until]
        for kind, keys in NUMBERS.items()
    }


def close_to(events: dict[str, list[dict]], rel: float) -> dict[str, list]:
    return {kind: [pytest.approx(e, rel=rel) for e in of_kind] for kind, of_kind in events.items()}


def expected(name: str) -> dict[str, list[dict]]:
    """What the earlier code logged of steps 9 to 16 without a stop."""
    found = {kind: EXPECTED["runs"][name][kind] for kind in NUMBERS}
    assert [e["step"] for e in found["train"]] == [*range(9, 17)]
    return found


def flags_of(name: str) -> list[str]:
    return EXPECTED["runs"][name]["command"][1:]


@pytest.mark.parametrize("bfloat16", [True, False])
@pytest.mark.parametrize("name", EXPECTED["runs"])
def test_it_resumes_as_the_code_that_wrote_it_would_have(earlier, monkeypatch, capsys, name, bfloat16):
    """Whether or not a run that began here would compute Muon's products in another way."""
    written = numbers(earlier / name)  # by the earlier code: steps 1 to 8
    monkeypatch.setattr("training.optim.has_bfloat16", lambda device: bfloat16)
    assert train.main(flags_of(name)) == 0
    assert "evaluations differ from the checkpoint's in held-out data and" in capsys.readouterr().out
    assert [e["start_step"] for e in read_events(earlier / name, "run_start")] == [0, 8]
    resumed = numbers(earlier / name, after=8)
    assert resumed == close_to(expected(name), rel=REL[name])

    monkeypatch.setattr("training.optim.has_bfloat16", lambda device: True)
    assert train.main([*flags_of(name), "--out_dir=whole"]) == 0
    first, second = numbers(earlier / "whole", until=8), numbers(earlier / "whole", after=8)
    assert first == close_to(written, rel=REL[name])
    assert second == close_to(expected(name), rel=REL[name])
    # Where the first half is equal to the last bit, this machine rounds as the one that wrote the fixture, and so
    # must the second half. Elsewhere the stored weights are not those that this machine makes.
    if first == written:
        assert resumed == second == expected(name)
        evaluated = [
            [e["val_loss"] for e in read_events(earlier / at, "eval")[-2:]] for at in (name, "whole")
        ]
        assert evaluated[0] == evaluated[1]


def test_muon_in_fp32_stays_close_and_stays_what_it_is(earlier, monkeypatch):
    monkeypatch.setattr("training.optim.has_bfloat16", lambda device: False)
    assert train.main([*flags_of("qwen3"), "--out_dir=whole"]) == 0
    assert numbers(earlier / "whole", until=8) == close_to(numbers(earlier / "qwen3"), rel=REL["qwen3"])
    assert numbers(earlier / "whole", after=8) == close_to(expected("qwen3"), rel=REL["qwen3"])

    newest = earlier / "whole" / "checkpoints" / "step_00000016"
    assert RunState.read(newest).muon_products == "float32"
    shutil.rmtree(newest)
    monkeypatch.setattr("training.optim.has_bfloat16", lambda device: True)  # as on another CPU
    assert train.main([*flags_of("qwen3"), "--out_dir=whole"]) == 0
    twice = numbers(earlier / "whole", after=8)["train"]
    assert len(twice) == 16 and twice[:8] == twice[8:]


@pytest.mark.parametrize("name", EXPECTED["runs"])
def test_its_model_is_found(earlier, name):
    found = find_model(out_dir=name)
    assert found.path == Path(name) / "checkpoints" / "step_00000008"
    assert found.is_run and found.eot_id == 0
    stored = load_file(found.path / "model.safetensors")
    state = found.load(torch.device("cpu"), torch.float32).state_dict()
    assert stored and all(torch.equal(state[key], stored[key]) for key in stored)


def test_their_logs_compare(earlier):
    pytest.importorskip("matplotlib")
    assert compare_architectures.main(["gpt2", "qwen3", "--out=compared"]) == 0
    report = json.loads((earlier / "compared" / "comparison.json").read_text())
    assert {run["out_dir"]: run["tokens"] for run in report["runs"]} == {"gpt2": 8 * 64, "qwen3": 8 * 64}
