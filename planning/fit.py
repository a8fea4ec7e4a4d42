"""Which strategy and which checkpointing fit a GPU's memory, at which batch size."""

import math
from dataclasses import replace
from typing import Any

from hardware.gpus import GPU
from model_config import ModelArchitectureConfig
from planning.cost import RECOMPUTED
from planning.memory import BatchMemory, largest_batch
from planning.options import PlanOptions
from training.config import TrainConfig

GIB = 2**30
# Over more of them FSDP is also planned as hybrid sharding: sharded in a node, replicated between nodes
NODE_GPUS = 8
ENOUGH_TOKENS = 4096  # in a micro-step; with fewer, matmuls leave a GPU idle. A rule of thumb


def strategies(train: TrainConfig, gpus: int) -> dict[str, dict[str, Any]]:
    """The flags of each that is planned, those that communicate least first."""
    if gpus == 1:
        return {"single": {"use_zero1": False, "use_fsdp": False}}
    found: dict[str, dict[str, Any]] = {"ddp": {"use_zero1": False, "use_fsdp": False}}
    if train.dtype == "float16":  # gradients that are sharded have no scaler
        return found
    found["zero1"] = {"use_zero1": True, "use_fsdp": False}
    found["fsdp"] = {"use_zero1": False, "use_fsdp": True}
    shards = train.hybrid_shard_size or NODE_GPUS
    if gpus > shards and gpus % shards == 0:
        found["hybrid"] = found["fsdp"] | {"hybrid_shard_size": shards}
    return found


def memory_rows(
    c: ModelArchitectureConfig, train: TrainConfig, o: PlanOptions, gpu: GPU
) -> list[dict[str, Any]]:
    """Every strategy and checkpointing mode; the traces of a row answer for all its batch sizes."""
    rows = []
    for name, flags in strategies(train, o.gpus).items():
        for mode in RECOMPUTED:
            changes = {"hybrid_shard_size": None} | flags | {"activation_checkpointing": mode}
            rows.append(memory_row(name, c, replace(train, **changes), o, gpu))
    return rows


def memory_row(
    strategy: str, c: ModelArchitectureConfig, train: TrainConfig, o: PlanOptions, gpu: GPU
) -> dict[str, Any]:
    sequences = train.batch_size * train.gradient_accumulation_steps
    overhead, limit = round(o.context_gb * GIB), round(gpu.memory_gb * GIB)
    memory = BatchMemory(c, train, o.gpus)

    def gross(net: int) -> int:
        return overhead + round((1 + o.fragmentation) * net)

    # More would not be a step as configured; of so many there is one micro-step
    most = max(1, sequences // o.gpus)
    largest = largest_batch(lambda b: gross(memory(b).total), limit, most, memory.starts)
    if most - 1 <= largest < most:  # that one finds no gradients, and may need less
        alone = memory(most, accumulates=most * o.gpus < sequences)
        largest = most if gross(alone.total) <= limit else largest
    # What is run: the largest that divides the step as configured and leaves each GPU equally many
    # micro-batches
    use = None if sequences % o.gpus else largest_divisor(sequences // o.gpus, largest)
    parts = vars(memory(train.batch_size, train.gradient_accumulation_steps > o.gpus))
    total = gross(sum(parts.values()))
    parts = {**parts, "overhead": total - sum(parts.values()), "total": total}
    return {
        "strategy": strategy,
        "activation_checkpointing": train.activation_checkpointing,
        "gib": {name: n / GIB for name, n in parts.items()},
        "fits": total <= limit,
        "largest_batch_size": largest,
        "use_batch_size": use,
        "use_gradient_accumulation_steps": use and sequences // use,
        "strategy_flags": {
            name: getattr(train, name) for name in ("use_zero1", "use_fsdp", "hybrid_shard_size")
        },
    }


def largest_divisor(n: int, most: int) -> int | None:
    """Of n, up to `most`; None where that is below 1."""
    small = [d for d in range(1, min(most, math.isqrt(n)) + 1) if n % d == 0]
    return max((d for d in (*small, *(n // d for d in small)) if d <= most), default=None)


def recommend(rows: list[dict[str, Any]], T: int) -> dict[str, Any] | None:
    """What recomputes least, then what communicates least, among those that fit a micro-step of
    ENOUGH_TOKENS tokens; where none does, what fits the largest. None where nothing fits."""
    modes = list(RECOMPUTED)
    rows = [row for row in rows if row["use_batch_size"]]
    order = sorted(rows, key=lambda row: modes.index(row["activation_checkpointing"]))  # stable
    good = [row for row in order if row["use_batch_size"] * T >= ENOUGH_TOKENS]
    return good[0] if good else max(order, key=lambda row: row["use_batch_size"], default=None)


def flags_of(row: dict[str, Any], train: TrainConfig) -> str:
    """What differs from the configuration."""
    flags = {name: row[f"use_{name}"] for name in ("batch_size", "gradient_accumulation_steps")}
    flags |= row["strategy_flags"] | {"activation_checkpointing": row["activation_checkpointing"]}
    return " ".join(f"--{k}={v}" for k, v in flags.items() if v != getattr(train, k))
