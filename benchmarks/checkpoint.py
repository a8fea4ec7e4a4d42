"""Saving and loading about 500 MB of weights and AdamW state: ours, beside torch.save and torch's own DCP,
on 1 and 2 ranks.

    python benchmarks/checkpoint.py                      # writes benchmarks/results/checkpoint.json; about 3 minutes
    python benchmarks/checkpoint.py --state_mb=90 --rounds=2 --write=False     # a smoke test

The state is sharded by FSDP where there are 2 ranks; torch.save writes there what a rank holds into a file
of its own, which no other number of ranks could read. Rows, each a median over `rounds`, taken in turn:

    save      until everything is on the disk, ms. Each side ends with an fsync of each of its files and of their folder: ours
              and DCP (FileSystemWriter, sync_files=True) sync their files themselves, the rest is done here. Beforehand the
              disk is idle (os.sync), and each save goes to a new folder, the one before having been deleted.
    blocked   how long the training stands still, ms: all of it, or with an asynchronous save until the copy is taken
    load      into the tensors of a model and its optimizers, ms, from the page cache. `ours, verified` includes the digests
              that train.py takes before it opens anything (find_checkpoint); torch and DCP have none.

`ours, no digest` is ours with a hash that does nothing: what the digests cost. What was loaded is compared
with what was saved."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.tensor import DTensor

from base.fields import knob
from base.files import fsync
from benchmarks import records
from benchmarks.records import write_result
from hardware.device import keep_freed_memory
from model_builder import ConfigurableGPT
from model_config import get_preset_config
from training import checkpoint
from training.config import TrainConfig
from training.keeping import Checkpoints
from training.optim import allocate_state, build_optimizers
from training.parallel import build_strategy
from training.saving import save_checkpoint
from training.state import RunState
from training.world import World, on_ranks


@dataclass(kw_only=True)
class BenchmarkConfig:
    state_mb: float = knob(500.0, "size of weights and optimizer state", bounds="(0, inf)")
    rounds: int = knob(5, "after one that does not count", bounds="[1, inf)")
    folder: str | None = knob(
        None, "on the disk to be measured; None: the system's place for temporary files"
    )
    write: bool = knob(True, "store the result under benchmarks/results/")


CPU = torch.device("cpu")
SHAPE = {"n_embd": 512, "n_head": 8, "num_key_value_heads": 4, "head_dim": 64, "d_ff": 1536,
         "vocab_size": 8192, "weight_tying": True, "block_size": 64}  # fmt: skip


class NoDigest:
    """A hash that does nothing."""

    def update(self, part: bytes) -> None:
        pass

    def hexdigest(self) -> str:
        return ""


class Subject:
    """A model and its optimizers in one world, sharded by FSDP where there are several ranks, with known
    numbers in every tensor that a checkpoint holds."""

    def __init__(self, world: World, config: TrainConfig, state_mb: float) -> None:
        self.world = world
        self.strategy = build_strategy(config, world, CPU, torch.float32)
        # 12 bytes a parameter, 3.15 M parameters a layer
        layers = max(1, round((state_mb * 1e6 / 12 - 512 * 8192) / 3.15e6))
        with torch.device("meta"):
            self.model = ConfigurableGPT(get_preset_config("qwen3", **SHAPE, n_layer=layers))
        self.strategy.wrap(self.model, seed=1)
        self.optimizers = build_optimizers(self.model, config, CPU)
        allocate_state(self.optimizers)
        for n, t in enumerate(self.local.values()):
            t.normal_(generator=torch.Generator().manual_seed(1000 * n + (world.rank if t.dim() else 0)))
        self.truth = {name: t.clone() for name, t in self.local.items()}

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """What a checkpoint holds; DTensors where they are sharded."""
        return self.strategy.tensors(self.model, self.optimizers)

    @property
    def local(self) -> dict[str, torch.Tensor]:
        """The same, as far as this rank holds it."""
        tensors = {name: t.detach() for name, t in self.tensors.items()}
        return {name: t.to_local() if isinstance(t, DTensor) else t for name, t in tensors.items()}

    def clear(self) -> None:
        for t in self.local.values():
            t.zero_()

    def check(self, side: str) -> None:
        now = self.local
        same = all(torch.equal(now[name], self.truth[name]) for name in self.truth)
        assert same, f"{side} loads something else than was saved"


# save(folder, step) returns what waits for the end of an asynchronous save, or None
Save = Callable[[Path, int], Callable[[], object] | None]
Load = Callable[[Path, int], None]


@dataclass(frozen=True)
class Side:
    save: Save
    loads: dict[str, Load] = field(default_factory=dict)  # of what it has saved, by name


def ours(subject: Subject, root: Path, config: TrainConfig) -> dict[str, Side]:
    world, state = subject.world, RunState()
    checkpoints = Checkpoints(root / "ours, async", world, config, None)

    def save(path: Path, step: int) -> None:
        save_checkpoint(path, subject.tensors, replace(state, step=step), {}, world)

    def save_without_digest(path: Path, step: int) -> None:
        save_checkpoint(path, subject.tensors, replace(state, step=step), {}, world, digest=NoDigest)

    def save_async(path: Path, step: int) -> Callable[[], object]:
        checkpoints.save(subject.tensors, replace(state, step=step), {}, wait=False)

        def wait() -> None:
            while not (done := checkpoints.events()):
                time.sleep(0.001)
            assert "path" in done[0], done

        return wait

    def load(path: Path, step: int) -> None:
        folder = checkpoint.checkpoint_path(path, step)
        checkpoint.load_weights(folder, subject.model)
        checkpoint.load_optimizers(folder, subject.model, subject.optimizers)

    def load_verified(path: Path, step: int) -> None:
        checkpoint.find_checkpoint(path, step, world)
        load(path, step)

    return {
        "ours": Side(save, {"ours": load, "ours, verified": load_verified}),
        "ours, no digest": Side(save_without_digest),
        "ours, async": Side(save_async),
    }


def torchs(subject: Subject) -> Side:
    """torch.save of what this rank holds, in a file of its own."""
    rank = subject.world.rank

    def save(path: Path, step: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        with open(path / f"{rank}.pt", "wb") as f:
            torch.save(subject.local, f)
            f.flush()
            os.fsync(f.fileno())
        fsync(path)

    def load(path: Path, step: int) -> None:
        local = subject.local
        for name, t in torch.load(path / f"{rank}.pt", weights_only=True).items():
            local[name].copy_(t)

    return Side(save, {"torch.save": load})


def dcps(subject: Subject) -> dict[str, Side]:
    """torch's distributed checkpoints, with its own writer and reader."""
    alone = subject.world.size == 1
    group = None if alone else torch.distributed.new_group(backend="gloo")

    def save(path: Path, step: int) -> None:
        dcp.save(subject.tensors, storage_writer=dcp.FileSystemWriter(path), no_dist=alone)
        fsync(path)

    def save_async(path: Path, step: int) -> Callable[[], object]:
        writer = dcp.FileSystemWriter(path)
        future: Future = dcp.async_save(
            subject.tensors, storage_writer=writer, process_group=group, no_dist=alone
        )
        return lambda: (future.result(), fsync(path))

    def load(path: Path, step: int) -> None:
        dcp.load(subject.tensors, storage_reader=dcp.FileSystemReader(path), no_dist=alone)

    return {"plain DCP": Side(save, {"plain DCP": load}), "plain DCP, async": Side(save_async)}


def elapsed_ms(world: World, call: Callable[[], object]) -> float:
    """Until all ranks are through."""
    world.barrier()
    start = time.perf_counter()
    call()
    world.barrier()
    return (time.perf_counter() - start) * 1e3


def save_ms(world: World, save: Save, path: Path, step: int) -> tuple[float, float]:
    """(until it is on the disk, until the training resumes)."""
    blocked = 0.0

    def whole() -> None:
        nonlocal blocked
        start = time.perf_counter()
        wait = save(path, step)
        blocked = (time.perf_counter() - start) * 1e3
        if wait is not None:
            wait()

    os.sync()
    return elapsed_ms(world, whole), blocked


def measure(world: World, c: BenchmarkConfig, folder: str) -> dict[str, Any]:
    """Medians of one world: {save, blocked or load: {side: ms}}, and the size of the state as "mb"."""
    keep_freed_memory()  # as train.py
    config = TrainConfig(use_fsdp=True, async_checkpoint=True, always_save_checkpoint=True)
    subject, root = Subject(world, config, c.state_mb), Path(folder, f"of_{world.size}")
    mine, theirs = ours(subject, root, config), dcps(subject)
    order = ("ours", "ours, no digest", "torch.save", "plain DCP", "ours, async", "plain DCP, async")
    sides = mine | theirs | {"torch.save": torchs(subject)}
    taken: dict[str, dict[str, list[float]]] = {"save": {}, "blocked": {}, "load": {}}
    for step in range(c.rounds + 1):
        for name in order:
            path = root / name
            whole, blocked = save_ms(world, sides[name].save, path, step)
            taken["save"].setdefault(name, []).append(whole)
            taken["blocked"].setdefault(name, []).append(blocked)
            for way, load in sides[name].loads.items():
                subject.clear()
                taken["load"].setdefault(way, []).append(elapsed_ms(world, partial(load, path, step)))
                subject.check(way)
            world.barrier()
            if world.rank == 0:
                shutil.rmtree(path)
            world.barrier()
    medians = {
        what: {name: statistics.median(ms[1:]) for name, ms in of_sides.items()}
        for what, of_sides in taken.items()
    }
    held_mb = torch.tensor(sum(t.nbytes for t in subject.local.values()) / 1e6)
    return medians | {"mb": world.sum(held_mb).item()}


def main(argv: Sequence[str]) -> int:
    return records.run(argv, __doc__, BenchmarkConfig, bench)


def bench(c: BenchmarkConfig, argv: Sequence[str]) -> None:
    load_average = round(os.getloadavg()[0], 1)
    rows = {}
    with tempfile.TemporaryDirectory(dir=c.folder) as folder:
        for size in (1, 2):
            rows[f"{size} rank{'s' * (size > 1)}"] = row = on_ranks(size, measure, c, folder)[0]
            print(f"{size} rank{'s' * (size > 1)}, {row['mb']:.0f} MB, medians in ms:")
            for side, ms in row["save"].items():
                print(f"  save {side:18} {ms:7.0f}, training blocked for {row['blocked'][side]:7.0f}")
            for side, ms in row["load"].items():
                print(f"  load {side:18} {ms:7.0f}", flush=True)
    if c.write:
        torch.set_num_threads(1)
        fields = {"unit": "ms, median; fsync on every side", "config": asdict(c), "results": rows}
        # of the minute before: what else the machine was doing
        write_result(
            "checkpoint", "checkpoint.py", argv, torch.device("cpu"), **fields, load_average=load_average
        )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
