"""What runs left behind, and how a test has its say in one."""

import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import read_events
from safetensors.torch import load_file

from training import checkpoint
from training.config import TrainConfig
from training.optim import learning_rate_at


def weights(out_dir: Path, step: int) -> dict[str, torch.Tensor]:
    path = checkpoint.checkpoint_path(out_dir, step)
    return load_file(path / "model.safetensors") | load_file(path / "optimizer.safetensors")


def losses(out_dir: Path) -> dict[tuple[str, int], tuple[float, float]]:
    found = {("train", e["step"]): (e["loss"], e["grad_norm"]) for e in read_events(out_dir, "train")}
    return found | {
        ("eval", e["step"]): (e["train_loss"], e["val_loss"]) for e in read_events(out_dir, "eval")
    }


def read_complete(out_dir: Path) -> list[str]:
    return [line for f in out_dir.glob("run_*.jsonl") for line in f.read_text().splitlines()]


def exit_code(run, *args) -> int:
    with pytest.raises(SystemExit) as stopped:
        run(*args)
    return stopped.value.code


def signal_after(steps: int, number: int = signal.SIGTERM) -> Callable[[int, TrainConfig], float]:
    """A schedule with which the signal arrives within the optimizer step that leads to step `steps`."""

    def schedule(step: int, config: TrainConfig) -> float:
        if step == steps - 1:
            signal.raise_signal(number)
        return learning_rate_at(step, config)

    return schedule
