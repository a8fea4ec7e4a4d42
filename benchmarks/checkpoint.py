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
from dataclasses import asdict, dataclass, replace
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
    state_mb: float = knob(500.0, "size of weights and optimizer state")
    rounds: int = knob(5, "after one that does not count", bounds="[1, inf)")
    folder: str | None = knob(
        None, "on the disk to be measured; None: the system's place for temporary files"
    )
    write: bool = knob(True, "store the result under benchmarks/results/")


class NoDigest:
    """A hash that does nothing."""

    def update(self, part: bytes) -> None:
        pass

    def hexdigest(self) -> str:
        return ""


def measure(world: World, c: BenchmarkConfig, folder: str) -> dict[str, Any]:
    """Medians of one world: {save or load: {side: ms}}."""
    keep_freed_memory()  # as train.py
    device, root = torch.device("cpu"), Path(folder, f"of_{world.size}")
    alone = world.size == 1
    config = TrainConfig(use_fsdp=True, async_checkpoint=True, always_save_checkpoint=True)
    strategy = build_strategy(config, world, device, torch.float32)
    shape = {
        "n_embd": 512,
        "n_head": 8,
        "num_key_value_heads": 4,
        "head_dim": 64,
        "d_ff": 1536,
        "vocab_size": 8192,
    }
    layers = max(
        1, round((c.state_mb * 1e6 / 12 - 512 * 8192) / 3.15e6)
    )  # 12 bytes a parameter, 3.15 M parameters a layer
    with torch.device("meta"):
        model = ConfigurableGPT(
            get_preset_config("qwen3", **shape, n_layer=layers, weight_tying=True, block_size=64)
        )
    strategy.wrap(model, seed=1)
    optimizers = build_optimizers(model, config, torch.device("cpu"))
    allocate_state(optimizers)
    tensors = strategy.tensors(model, optimizers)
    local = {
        name: t.to_local() if isinstance(t, DTensor) else t
        for name, t in ((n, t.detach()) for n, t in tensors.items())
    }
    for n, t in enumerate(local.values()):
        t.normal_(generator=torch.Generator().manual_seed(1000 * n + (world.rank if t.dim() else 0)))
    truth = {name: t.clone() for name, t in local.items()}
    state = RunState()
    checkpoints = Checkpoints(root / "ours, async", world, config, None, None)
    group = None if alone else torch.distributed.new_group(backend="gloo")

    # Each returns what waits for the end of an asynchronous save
    def ours(path: Path, step: int) -> None:
        save_checkpoint(path, tensors, replace(state, step=step), {}, world)

    def ours_without_digest(path: Path, step: int) -> None:
        save_checkpoint(path, tensors, replace(state, step=step), {}, world, digest=NoDigest)

    def ours_async(path: Path, step: int) -> Callable[[], object]:
        checkpoints.save(tensors, replace(state, step=step), {}, wait=False)

        def wait() -> None:
            while not (done := checkpoints.events()):
                time.sleep(0.001)
            assert "path" in done[0], done

        return wait

    def torch_save(path: Path, step: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        with open(path / f"{world.rank}.pt", "wb") as f:
            torch.save(local, f)
            f.flush()
            os.fsync(f.fileno())
        fsync(path)

    def plain_dcp(path: Path, step: int) -> None:
        dcp.save(tensors, storage_writer=dcp.FileSystemWriter(path), no_dist=alone)
        fsync(path)

    def plain_dcp_async(path: Path, step: int) -> Callable[[], object]:
        future: Future = dcp.async_save(
            tensors, storage_writer=dcp.FileSystemWriter(path), process_group=group, no_dist=alone
        )
        return lambda: (future.result(), fsync(path))

    def load_ours(path: Path, step: int) -> None:
        checkpoint.load_weights(checkpoint.checkpoint_path(path, step), model)
        checkpoint.load_optimizers(checkpoint.checkpoint_path(path, step), model, optimizers)

    def load_ours_verified(path: Path, step: int) -> None:
        checkpoint.find_checkpoint(path, step, world)
        load_ours(path, step)

    def load_torch(path: Path, step: int) -> None:
        for name, t in torch.load(path / f"{world.rank}.pt", weights_only=True).items():
            local[name].copy_(t)

    def load_dcp(path: Path, step: int) -> None:
        dcp.load(tensors, storage_reader=dcp.FileSystemReader(path), no_dist=alone)

    saves = {
        "ours": ours,
        "ours, no digest": ours_without_digest,
        "torch.save": torch_save,
        "plain DCP": plain_dcp,
    }
    saves |= {"ours, async": ours_async, "plain DCP, async": plain_dcp_async}
    loads = {"ours": {"ours": load_ours, "ours, verified": load_ours_verified}}
    loads |= {"torch.save": {"torch.save": load_torch}, "plain DCP": {"plain DCP": load_dcp}}

    taken: dict[str, dict[str, list[float]]] = {"save": {}, "blocked": {}, "load": {}}
    for step in range(c.rounds + 1):
        for side, save in saves.items():
            path = root / side
            os.sync()
            world.barrier()
            start = time.perf_counter()
            wait = save(path, step)
            blocked = time.perf_counter() - start
            if wait is not None:
                wait()
            world.barrier()
            taken["save"].setdefault(side, []).append((time.perf_counter() - start) * 1e3)
            taken["blocked"].setdefault(side, []).append(blocked * 1e3)
            for name, load in loads.get(side, {}).items():
                for t in local.values():
                    t.zero_()
                world.barrier()
                start = time.perf_counter()
                load(path, step)
                world.barrier()
                taken["load"].setdefault(name, []).append((time.perf_counter() - start) * 1e3)
                now = {
                    n: t.to_local() if isinstance(t, DTensor) else t
                    for n, t in strategy.tensors(model, optimizers).items()
                }
                assert all(torch.equal(now[n], truth[n]) for n in truth), (
                    f"{name} loads something else than was saved"
                )
                local |= {n: t.detach() for n, t in now.items()}
                tensors = strategy.tensors(model, optimizers)
            world.barrier()
            if world.rank == 0:
                shutil.rmtree(path)
            world.barrier()
    medians = {
        what: {side: statistics.median(ms[1:]) for side, ms in sides.items()} for what, sides in taken.items()
    }
    return medians | {"mb": world.sum(torch.tensor(sum(t.nbytes for t in local.values()) / 1e6)).item()}


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
