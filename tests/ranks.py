"""Runs of train.py in a process group that is already there: dist.on_ranks starts a world once for many."""

from collections.abc import Sequence
from pathlib import Path

import torch

import train
from training.config import load_config
from training.world import StopSignals, World


def train_once(world: World, flags: Sequence[str]) -> int:
    """train.py's run in a process group that is already there. The exit code."""
    model_config, config = load_config(flags)
    derived = train.derived_figures(model_config, config)
    return train.train(model_config, config, derived, world, torch.device("cpu"), StopSignals(), flags)


def train_all(world: World, jobs: Sequence[Sequence[str]], codes: Path | None = None) -> None:
    """The runs one after another; their exit codes are a line of the file."""
    for flags in jobs:
        code = train_once(world, flags)
        if codes is not None and world.rank == 0:
            with open(codes, "a") as f:
                f.write(f"{code}\n")
