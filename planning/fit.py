"""Which strategy and micro-batch fit a GPU's memory, and which of them to take."""

from dataclasses import replace
from typing import Any

from base.errors import InputError
from hardware.gpus import GPU
from model_config import ModelArchitectureConfig
from planning.memory import BatchMemory, largest_batch
from planning.options import PlanOptions
from training.config import TrainConfig

GIB = 2**30

NODE_GPUS = 8  # over more of them FSDP is also planned as hybrid sharding: sharded in a node, replicated between nodes

# FLOPs done for each that counts: full runs the forward twice
CHECKPOINTING = {"none": 1.0, "selective": 1.0, "full": 4 / 3}

ENOUGH_TOKENS = 4096  # in a micro-step; with fewer, matmuls leave a GPU idle. A rule of thumb


def memory_rows(
    c: ModelArchitectureConfig, train: TrainConfig, o: PlanOptions, gpu: GPU
) -> list[dict[str, Any]]:
    """Every strategy and checkpointing mode; the traces of a row answer for all its batch sizes."""
    strategies: dict[str, dict[str, Any]] = (
        {"single": {}} if o.gpus == 1 else {"ddp": {}, "zero1": {}, "fsdp": {}}
    )
    if train.dtype == "float16":  # gradients that are sharded have no scaler
        strategies = dict(list(strategies.items())[:1])
    strategies = {name: {"use_zero1": name == "zero1", "use_fsdp": name == "fsdp"} for name in strategies}
    shards = train.hybrid_shard_size or NODE_GPUS
    if o.gpus > shards and o.gpus % shards == 0 and "fsdp" in strategies:
        strategies["hybrid"] = {"use_zero1": False, "use_fsdp": True, "hybrid_shard_size": shards}
    try:
        return [
            memory_row(
                name,
                c,
                replace(train, **{"hybrid_shard_size": None} | flags, activation_checkpointing=mode),
                o,
                gpu,
            )
            for name, flags in strategies.items()
            for mode in CHECKPOINTING
        ]
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise InputError(f"a tensor of this step is beyond 64 bits ({error}): shorten block_size") from error


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
        largest = (
            most if gross(memory(most, accumulates=most * o.gpus < sequences).total) <= limit else largest
        )
    # What is run: the largest that divides the step as configured and leaves each GPU equally many
    # micro-batches
    use = next((b for b in range(largest, 0, -1) if sequences % (b * o.gpus) == 0), None)
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


def recommend(rows: list[dict[str, Any]], T: int) -> dict[str, Any] | None:
    """What recomputes least, then what communicates least, among those that fit a micro-step of
    ENOUGH_TOKENS tokens; where none does, what fits the largest. None where nothing fits."""
    modes = list(CHECKPOINTING)
    rows = [row for row in rows if row["use_batch_size"]]
    order = sorted(
        rows, key=lambda row: modes.index(row["activation_checkpointing"])
    )  # stable: ddp, zero1, fsdp, hybrid
    good = [row for row in order if row["use_batch_size"] * T >= ENOUGH_TOKENS]
    return good[0] if good else max(order, key=lambda row: row["use_batch_size"], default=None)


def flags_of(row: dict[str, Any], train: TrainConfig) -> str:
    """What differs from the configuration."""
    flags = {name: row[f"use_{name}"] for name in ("batch_size", "gradient_accumulation_steps")}
    flags |= row["strategy_flags"] | {"activation_checkpointing": row["activation_checkpointing"]}
    return " ".join(f"--{k}={v}" for k, v in flags.items() if v != getattr(train, k))
