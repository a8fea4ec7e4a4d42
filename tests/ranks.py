"""A world of gloo ranks on this machine, started once for many runs of train.py."""

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.multiprocessing

import train
from training.config import load_config
from training.dist import StopSignals, World


def spawn(size: int, work: Callable[..., None], *args: object) -> None:
    """work(world, *args) in each of `size` processes, connected. An exception in one of them is raised here."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    torch.multiprocessing.spawn(_rank, (size, port, work, args), nprocs=size, daemon=True)


def _rank(rank: int, size: int, port: int, work: Callable[..., None], args: tuple) -> None:
    env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({k: str(v) for k, v in env.items()})
    torch.set_num_threads(1)
    world = World.from_environment()
    with world.connected(torch.device("cpu"), timeout_s=60):
        work(world, *args)
    os._exit(0)  # as dist.exit_with does, and for its reason


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
