"""What a plan holds: everything that plan.py prints, as plain values.

make_plan(model_config, train_config, options, (0.4, "stated"), data_root)     # of a run, or of a budget
"""

import contextlib
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from base.errors import InputError, one_line
from hardware.gpus import GPU
from model_config import ModelArchitectureConfig
from planning.cost import RECOMPUTED, SHOWN_MFU, budget_flops, cost, disk
from planning.fit import flags_of, memory_rows, recommend
from planning.options import PlanOptions
from planning.scaling import LAWS, best_shapes
from planning.sizes import OUTSIDE, parameters_by_part
from training.config import TrainConfig
from training.flops import flops_per_token, matmul_weights

MOST = 1e15  # tokens of a run; more than there are
SHAPE = ("n_layer", "n_embd", "n_head", "num_key_value_heads", "d_ff")


def make_plan(
    c: ModelArchitectureConfig,
    train: TrainConfig,
    o: PlanOptions,
    mfu: tuple[float | None, str | None],
    data_root: Path,
) -> dict[str, Any]:
    """`mfu`, with its source in words, is None where it is neither stated nor measured. Raises
    InputError."""
    gpu = o.device()
    plan: dict[str, Any] = {
        "architecture": c.summary(),
        "gpus": o.gpus,
        "gpu": {name: getattr(gpu, name) for name in ("driver_name", "memory_gb", "power_w")},
        "peak_tflops": gpu.peak_flops_per_s / 1e12,
        "mfu": mfu[0],
        "mfu_source": mfu[1],
        "notes": c.notes() + train.notes(),
    }
    with sizes_of_64_bits():
        if o.budget:
            return plan | budget_plan(c, o, gpu, mfu[0])
        return plan | run_plan(c, train, o, gpu, mfu[0], data_root)


@contextlib.contextmanager
def sizes_of_64_bits() -> Iterator[None]:
    """What torch says of a tensor that no machine can count becomes an InputError."""
    log = logging.getLogger("torch._subclasses.fake_tensor")  # would show a traceback
    log.disabled = True
    try:
        yield
    except RuntimeError as error:
        if "overflow" not in str(error):
            raise
        raise InputError(
            f"a tensor of this step is beyond 64 bits ({one_line(error)}): shorten block_size, or lower the model's sizes"
        ) from error
    finally:
        log.disabled = False


def run_plan(
    c: ModelArchitectureConfig,
    train: TrainConfig,
    o: PlanOptions,
    gpu: GPU,
    mfu: float | None,
    data_root: Path,
) -> dict[str, Any]:
    parts, work, per_step = parameters_by_part(c), flops_per_token(c), train.tokens_per_step(c.block_size)
    params = sum(parts.values())
    tokens = o.tokens or train.max_iters * per_step
    if not tokens:
        raise InputError("max_iters=0 trains on nothing: plan what with --tokens=6e9")
    if max(tokens, per_step) >= MOST:
        raise InputError(
            f"a step of {per_step:.3g} tokens and {tokens:.3g} in all are beyond {MOST:.0e}: lower them"
        )
    rows = memory_rows(c, train, o, gpu)
    choice = recommend(rows, c.block_size)
    inside = {part: n for part, n in parts.items() if part not in OUTSIDE}
    matrices = matmul_weights(c) - c.vocab_size * c.n_embd
    return {
        "parameters": {"total": params, "non_embedding": sum(inside.values()), **parts},
        "batch_size": train.batch_size,
        "block_size": c.block_size,
        "memory": rows,
        "recommended": choice and {"flags": flags_of(choice, train), **choice},
        "flops_per_token": work,
        "flops_per_token_full_attention": flops_per_token(c, full_attention=True),
        "tokens_per_step": per_step,
        "tokens": tokens,
        "steps": math.ceil(tokens / per_step),
        "flops": work * tokens,
        "time": [cost(tokens, work, m, gpu, o) for m in planned_mfus(o.mfu, mfu, choice)],
        "disk": disk(train, o, params, matrices, tokens, data_root),
        "tokens_per_param": tokens / params,
        "chinchilla": optima(params, tokens),
        "notes": c.notes() + train.notes() + notes(train, o),
    }


def planned_mfus(stated: float | None, mfu: float | None, choice: dict[str, Any] | None) -> list[float]:
    """What is recomputed takes time and counts for nothing. A stated MFU is what train.py will log, with
    that in it; a measured one and the range are not."""
    if stated:
        return [stated]
    recomputed = RECOMPUTED[choice["activation_checkpointing"]] if choice else 1.0
    return [m / recomputed for m in ([mfu] if mfu else SHOWN_MFU)]


def notes(train: TrainConfig, o: PlanOptions) -> list[str]:
    """What train.py will refuse of this plan, and what the plan leaves out."""
    said, shards, accumulation = [], train.hybrid_shard_size, train.gradient_accumulation_steps
    if accumulation % o.gpus:
        said.append(
            f"gradient_accumulation_steps={accumulation} is not divisible by {o.gpus} GPUs: train.py will refuse it"
        )
    if train.dtype == "float16" and o.gpus > 1:
        said.append("dtype='float16' cannot be sharded: only DDP is planned")
    if train.document_masking:
        said.append(
            "document_masking=True: its masks are not in the memory, and attention's FLOPs are those of whole windows"
        )
    if shards and o.gpus % shards:
        said.append(f"hybrid_shard_size={shards} does not divide {o.gpus} GPUs: train.py will refuse it")
    if train.fp8 != "none":
        said.append(f"fp8={train.fp8!r}: memory is that of bf16, and MFU counts against the bf16 peak")
    if train.dtype == "float32" and o.peak_tflops is None:
        said.append("dtype='float32': the peak is that of bf16; times hold only with --peak_tflops of fp32")
    return said


def optima(params: int, tokens: float) -> list[dict[str, Any]]:
    """By each law the best model for as many FLOPs (6 N D) as this run takes, and the loss of both."""
    found = []
    for law in LAWS:
        N, D = law.optimum(6 * params * tokens)
        entry = {"law": law.source, "params": N, "tokens": D, "tokens_per_param": D / N}
        found.append(entry | {"loss": law.loss(N, D), "loss_of_this_run": law.loss(params, tokens)})
    return found


def budget_plan(c: ModelArchitectureConfig, o: PlanOptions, gpu: GPU, mfu: float | None) -> dict[str, Any]:
    C = budget_flops(o.budget, gpu, mfu)
    shapes = []
    for s in best_shapes(c, C)[:8]:
        sizes = {name: getattr(s.config, name) for name in SHAPE}
        sizes |= {"params": s.params, "tokens": s.tokens, "tokens_per_param": s.tokens / s.params}
        shapes.append(sizes | {"loss": {law.source: law.loss(s.params, s.tokens) for law in LAWS}})
    days = C / (o.gpus * gpu.peak_flops_per_s * mfu) / 86400 if mfu else None
    return {"budget_flops": C, "days": days, "shapes": shapes}
