"""Runs of train.py in a process group that is already there: on_ranks starts a world once for many."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import train
from training.config import load_config
from training.optim import learning_rate_at
from training.world import StopSignals, World


def train_once(world: World, flags: Sequence[str], schedule: Callable = learning_rate_at) -> int:
    """train.py's run in a process group that is already there. The exit code. `schedule` is how a test
    has its say at a step."""
    model_config, config = load_config(flags)
    return train.train(model_config, config, world, torch.device("cpu"), StopSignals(), flags, schedule)


def train_all(world: World, jobs: Sequence[Sequence[str]], codes: Path | None = None) -> None:
    """The runs one after another; their exit codes are a line of the file."""
    for flags in jobs:
        code = train_once(world, flags)
        if codes is not None and world.rank == 0:
            with open(codes, "a") as f:
                f.write(f"{code}\n")
