"""Memory and time of a training step under each strategy, on gloo ranks of this machine, beside theory, DDP
and torch's ZeRO-1.

    python benchmarks/parallel.py                        # writes benchmarks/results/parallel.json; Linux, about 4 minutes
    python benchmarks/parallel.py --steps=2 --n_layer=2 --n_embd=64 --vocab_size=512 --write=False     # a smoke test

A step is forward, backward, clipping, AdamW (fused) and zero_grad, as in train.py, of the same sequences on
every strategy; their losses must agree. "ddp + zero" is the rival of our ZeRO-1: DDP with
torch.distributed.optim.ZeroRedundancyOptimizer.

Memory, MB of one rank, its largest over the ranks; a process of its own for each strategy:
    parameters, gradients, optimizer    the storages held after a backward pass and between steps
    peak      the most resident memory in a step, above what the process held before it had a model (VmHWM in /proc)
  beside theory, of P parameters: 4 P + 4 P + 8 P bytes, each divided by the number of ranks where it is sharded. The peak is
  where the backward pass begins: weights, optimizer state, what one process has there above these (activations, and
  autocast's copies of the blocks' weights), of DDP the gradients, whose buckets are always there, and of sharded models the
  gathered weights (of ZeRO-1 all, of FSDP two blocks) in place of those copies.
Time, ms of a step: all strategies in the same processes, in turn; medians, and the median of the ratios to
DDP's step of the same round. Every rank has its own batch and one thread; "single" is that without any
exchange. Exits with 1 where the sharded optimizer state is not within 5 % of its share."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor

from base.errors import InputError
from base.fields import knob
from benchmarks import records
from benchmarks.records import write_result
from hardware.device import keep_freed_memory, select_dtype
from model_builder import ConfigurableGPT
from model_config import get_preset_config
from training.config import TrainConfig
from training.optim import build_optimizers, clip_gradients
from training.parallel import build_strategy
from training.world import World, on_ranks

SETTINGS: dict[str, dict[str, Any]] = {
    "single": {},
    "ddp": {},
    "ddp + zero": {},
    "zero1": {"use_zero1": True},
    "fsdp": {"use_fsdp": True},
    "hybrid": {"use_fsdp": True, "hybrid_shard_size": 2},  # at 4 ranks
}


@dataclass(kw_only=True)
class BenchmarkConfig:
    n_layer: int = knob(8, "of the model", bounds="[1, inf)")
    n_embd: int = knob(512, "of the model", bounds="[1, inf)")
    vocab_size: int = knob(8192, "of the model", bounds="[1, inf)")
    batch_size: int = knob(2, "of a rank", bounds="[1, inf)")
    block_size: int = knob(256, "tokens of a sequence", bounds="[1, inf)")
    dtype: str = knob("auto", "of the matmuls; weights, gradients and optimizer state are fp32")
    steps: int = knob(9, "timed, of each strategy, after 2", bounds="[1, inf)")
    write: bool = knob(True, "store the result under benchmarks/results/")


def meta_model(c: BenchmarkConfig) -> ConfigurableGPT:
    shape = {key: getattr(c, key) for key in ("n_layer", "n_embd", "vocab_size", "block_size")}
    with torch.device("meta"):
        heads = {"n_head": 8, "num_key_value_heads": 4, "head_dim": 64}
        return ConfigurableGPT(get_preset_config("qwen3", **shape, **heads, d_ff=3 * c.n_embd))


def zero_optimizer(model: ConfigurableGPT, config: TrainConfig) -> ZeroRedundancyOptimizer:
    """The rival's: each rank updates some of the parameters and broadcasts them."""
    [whole] = build_optimizers(model, config, torch.device("cpu"))
    groups = [{key: group[key] for key in ("params", "weight_decay")} for group in whole.param_groups]
    options = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2), "fused": True}
    return ZeroRedundancyOptimizer(groups, torch.optim.AdamW, parameters_as_bucket_view=True, **options)


def build(name: str, world: World, c: BenchmarkConfig) -> tuple[ConfigurableGPT, list, Callable[..., float]]:
    """(model, optimizers, step); step(after_backward) trains on this rank's batch, always the same, and
    returns its loss."""
    config = TrainConfig(**SETTINGS[name], warmup_iters=0, learning_rate=1e-4)
    device = torch.device("cpu")
    dtype = select_dtype(c.dtype, device)
    strategy = build_strategy(config, World() if name == "single" else world, device, dtype)
    model = meta_model(c)
    forward = strategy.wrap(model, seed=1)
    rival = name == "ddp + zero"
    optimizers = [zero_optimizer(model, config)] if rival else build_optimizers(model, config, device)
    ids = torch.randint(
        c.vocab_size, (c.batch_size, c.block_size + 1), generator=torch.Generator().manual_seed(world.rank)
    )

    def step(after_backward: Callable[[], None] = lambda: None) -> float:
        with strategy.gradient_sync(model, last=True):
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                _, loss = forward(ids[:, :-1], ids[:, 1:])
            loss.backward()
        clip_gradients(model, 1.0)
        after_backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=strategy.frees_gradients)
        return loss.item()

    return model, optimizers, step


def held_mb(tensors: Iterable[Tensor | None]) -> float:
    """Of this rank, every storage once."""
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors if t is not None]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in local}.values()) / 1e6


def resident_mb(field: str) -> float:
    """VmRSS, or VmHWM: the most of it since it was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024 / 1e6


def memory(world: World, name: str, c: BenchmarkConfig) -> dict[str, float]:
    before = resident_mb("VmRSS")
    model, optimizers, step = build(name, world, c)
    row = {"parameters": held_mb(model.parameters())}
    step()
    step(lambda: row.update(gradients=held_mb(p.grad for p in model.parameters())))
    states = [
        getattr(o, "optim", o).state for o in optimizers
    ]  # ZeroRedundancyOptimizer wraps the one of its share
    row["optimizer"] = held_mb(t for state in states for entry in state.values() for t in entry.values())
    Path("/proc/self/clear_refs").write_text("5")
    step()
    return row | {"peak": resident_mb("VmHWM") - before}


def times(world: World, names: Sequence[str], c: BenchmarkConfig) -> dict[str, list[float]]:
    keep_freed_memory()  # as train.py
    steps = {name: build(name, world, c)[2] for name in names}
    losses = {name: [step() for _ in range(2)] for name, step in steps.items()}
    for name, of_name in losses.items():
        if name != "single":  # which averages no gradients
            worst = max(abs(a - b) for a, b in zip(of_name, losses["ddp"], strict=True))
            assert worst < 2e-2, f"the strategies do not compute the same loss: {losses}"
    taken: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(c.steps):
        for name, step in steps.items():
            world.barrier()
            start = time.perf_counter()
            step()
            world.barrier()
            taken[name].append((time.perf_counter() - start) * 1e3)
    return taken


def theory(name: str, size: int, c: BenchmarkConfig, working_mb: float) -> dict[str, float]:
    model = meta_model(c)
    total = model.get_num_params()
    in_blocks = sum(p.numel() for p in model.blocks.parameters())
    shards = {"single": 1, "ddp": 1, "hybrid": 2}.get(name, size)
    whole = 1 if name == "ddp + zero" else shards  # ways in which weights and gradients are divided
    row = {
        "parameters": 4 * total / whole / 1e6,
        "gradients": 4 * total / whole / 1e6,
        "optimizer": 8 * total / shards / 1e6,
    }
    n_blocks = {"zero1": c.n_layer, "fsdp": 2, "hybrid": 2}.get(name)
    gathered = 0.0
    if n_blocks is not None:  # the blocks in the type of the matmuls, what is outside them in fp32
        width = select_dtype(c.dtype, torch.device("cpu")).itemsize
        copies = width if width < 4 else 0
        gathered = (4 * (total - in_blocks) + in_blocks * (width * n_blocks / c.n_layer - copies)) / 1e6
    buckets = row["gradients"] if name.startswith("ddp") else 0.0
    return row | {"peak": row["parameters"] + row["optimizer"] + buckets + gathered + working_mb}


def main(argv: Sequence[str]) -> int:
    return records.run(argv, __doc__, BenchmarkConfig, bench)


def bench(c: BenchmarkConfig, argv: Sequence[str]) -> None:
    if not Path("/proc/self/clear_refs").exists():
        raise InputError("the peak of memory is read from /proc/self: this benchmark runs on Linux")
    load_average = round(os.getloadavg()[0], 1)
    torch.set_num_threads(1)
    rows: dict[str, dict[str, Any]] = {"memory": {}, "step of 2 ranks": {}}
    failed = []
    with threshold_of_malloc():
        single = on_ranks(1, memory, "single", c)[0]
        working_mb = single["peak"] - 12 * meta_model(c).get_num_params() / 1e6
        runs = [("single", 1)] + [(name, size) for size in (2, 4) for name in SETTINGS if name != "single"]
        for name, size in runs:
            if name == "hybrid" and size != 4:
                continue
            of_ranks = [single] if name == "single" else on_ranks(size, memory, name, c)
            measured = {key: max(of_rank[key] for of_rank in of_ranks) for key in single}
            expected = theory(name, size, c, working_mb)
            rows["memory"][f"{name}, {size} rank{'s' * (size > 1)}"] = {
                "measured_mb": measured,
                "theory_mb": expected,
            }
            line = "  ".join(f"{key} {measured[key]:6.1f} ({expected[key]:6.1f})" for key in measured)
            print(f"{name:10} {size} ranks, MB (theory): {line}", flush=True)
            if name != "ddp + zero" and abs(measured["optimizer"] / expected["optimizer"] - 1) > 0.05:
                failed.append(f"{name}, {size} ranks")
    names = [name for name in SETTINGS if name != "hybrid"]
    taken = on_ranks(2, times, names, c)[0]
    for name in names:
        ratio = statistics.median(a / b for a, b in zip(taken[name], taken["ddp"], strict=True))
        rows["step of 2 ranks"][name] = row = {"step_ms": statistics.median(taken[name]), "times_ddp": ratio}
        print(
            f"{name:10} 2 ranks: {row['step_ms']:7.1f} ms a step, {row['times_ddp']:.2f} times DDP's",
            flush=True,
        )
    verdict = (
        f"not within 5 % of its share: {', '.join(failed)}"
        if failed
        else "within 5 % of 1/N on every sharded strategy"
    )
    print(f"optimizer state a rank: {verdict}")
    if c.write and not failed:
        write_result(
            "parallel",
            "parallel.py",
            argv,
            torch.device("cpu"),
            unit="MB of one rank; ms of a step, median",
            config=asdict(c),
            parameters=meta_model(c).get_num_params(),
            results=rows,
            optimizer_state=verdict,
            load_average=load_average,  # of the minute before: what else the machine was doing
        )
    return 1 if failed else 0


@contextlib.contextmanager
def threshold_of_malloc() -> Iterator[None]:
    """Processes started within give freed blocks back at once, so that resident memory is what is in use."""
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    try:
        yield
    finally:
        del os.environ["MALLOC_MMAP_THRESHOLD_"]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
