"""Log backends: what they are given, and that none of them stops a run."""

import json
import sys
import time
import types

import pytest
import torch
from conftest import read_events

import compare_architectures
from reporting.backends import Backends
from training.meters import EnergyMeter
from training.world import World


class Fake:
    """Stands in for the modules wandb and trackio; fails, or hangs, where it is told to."""

    def __init__(self, fails: str) -> None:
        self.fails, self.logged, self.settings = fails, [], []

    def _maybe_fail(self, where: str) -> None:
        if self.fails == where:
            raise RuntimeError(f"{where} failed")
        if self.fails == f"hang in {where}":
            time.sleep(30)

    def init(self, **settings: object) -> "Fake":
        self._maybe_fail("init")
        self.settings.append(settings)
        return self

    def log(self, item: dict, step: int) -> None:
        self._maybe_fail("log")
        self.logged.append((step, item))

    def finish(self) -> None:
        self._maybe_fail("finish")


@pytest.mark.parametrize("name", ["wandb", "trackio"])
@pytest.mark.parametrize("fails", ["nothing", "init", "log", "finish", "hang in init", "hang in log"])
def test_a_backend_never_stops_a_run(run, tmp_path, monkeypatch, fails, name):
    fake = Fake(fails)
    monkeypatch.setitem(sys.modules, name, fake)
    monkeypatch.setattr(Backends.close, "__defaults__", (0.5,))
    assert run("a", f"--{name}_log") == 0
    assert read_events(tmp_path / "a")[-1]["reason"] == "done"
    if fails == "nothing":
        at_end = [item for step, item in fake.logged if step == 6]
        assert ["train/loss" in item for item in at_end] == [True, False] and "eval/val_loss" in at_end[1]
        assert (
            fake.settings[0]["project"] == "nanofoundry" and str(tmp_path / "a") in fake.settings[0]["name"]
        )


@pytest.mark.parametrize(
    "name, module", [("wandb", "wandb"), ("trackio", "trackio"), ("tensorboard", "torch.utils.tensorboard")]
)
def test_an_absent_backend_is_said(run, monkeypatch, caplog, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    assert run("a", f"--{name}_log") == 0
    assert f"pip install {name}" in caplog.text


def test_tensorboard(run, tmp_path):
    """Read back with its own reader: every logged loss at its step, before and after a resume."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run("a", "--tensorboard_log", "--max_iters=4") == 0
    assert run("a", "--tensorboard_log") == 0
    reader = EventAccumulator(str(tmp_path / "a" / "tensorboard"))
    reader.Reload()
    found = {(e.step, round(e.value, 4)) for e in reader.Scalars("train/loss")}
    assert (
        found == {(e["step"], round(e["loss"], 4)) for e in read_events(tmp_path / "a", "train")}
        and len(found) == 6
    )
    assert "eval/val_loss" in reader.Tags()["scalars"] and "train/mfu" not in reader.Tags()["scalars"]


def test_tensorboard_forgets_what_a_resume_takes_back(tmp_path):
    """From step 5 on to 9, then from 5 again: each step once, as the second session had it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    from training.config import TrainConfig

    config = TrainConfig(tensorboard_log=True, out_dir=str(tmp_path))
    for start_step, loss in ((0, 1.0), (5, 2.0)):
        backends = Backends(config, {}, "id", start_step)
        for step in range(start_step + 1, 10):
            backends.write("train", step, loss=loss)
        backends.close()
    reader = EventAccumulator(str(tmp_path / "tensorboard"))
    reader.Reload()
    assert [(e.step, e.value) for e in reader.Scalars("train/loss")] == [
        (step, 1.0 if step <= 5 else 2.0) for step in range(1, 10)
    ]


def test_only_the_first_rank_logs(monkeypatch):
    from training.config import TrainConfig

    fake = Fake("nothing")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    for rank in (1, 0):
        backends = Backends(TrainConfig(wandb_log=True), {}, "id", rank=rank)
        backends.write("train", 1, loss=2.0, mfu=None)
        backends.close()
        assert [item for _, item in fake.logged] == ([] if rank else [{"step": 1, "train/loss": 2.0}])


def test_energy_adds_up_over_sessions(run, tmp_path, monkeypatch, capsys):
    """A device that reports 10 J more at every reading; the second session begins at its counter's own
    number."""
    counts = iter(range(5000, 10**6, 10))
    monkeypatch.setattr("training.meters.energy_counter", lambda device: lambda: float(next(counts)))
    assert run("a", "--max_iters=3") == 0
    assert run("a") == 0
    logged = [e["energy_j"] for e in read_events(tmp_path / "a", "train")]
    assert logged == [10, 20, 30, 50, 60, 70]  # 40 is in the checkpoint of step 3
    assert compare_architectures.main([str(tmp_path / "a"), f"--out={tmp_path / 'comparison'}"]) == 0
    (row,) = json.loads((tmp_path / "comparison" / "comparison.json").read_text())["runs"]
    assert row["energy_j"] == 70


def test_a_cpu_reports_no_energy(run, tmp_path):
    assert run("a") == 0
    assert all("energy_j" not in e for e in read_events(tmp_path / "a", "train"))


class NVML(types.ModuleType):
    """Stands in for pynvml on a machine with one GPU."""

    class NVMLError(Exception):
        pass

    def __init__(self, fails: str) -> None:
        self.fails, self.mj = fails, 0

    def nvmlInit(self) -> None:
        if self.fails == "init":
            raise self.NVMLError("Driver Not Loaded")

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:
        return uuid

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: str) -> int:
        assert handle == "GPU-1234"
        if self.fails == "reading":
            raise self.NVMLError("Not Supported")
        self.mj += 2500
        return self.mj


@pytest.mark.parametrize("fails, expected", [("", 2.5), ("init", None), ("reading", None), ("import", None)])
def test_nvidia_gpus_report_energy(monkeypatch, fails, expected):
    monkeypatch.setitem(sys.modules, "pynvml", None if fails == "import" else NVML(fails))
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda device: types.SimpleNamespace(uuid="1234")
    )
    meter = EnergyMeter(torch.device("cuda", 0), World())
    assert meter() == expected
