"""What a plan holds: memory, time, disk and scaling laws for a run, or shapes for a budget."""

import math
from pathlib import Path
from typing import Any

import torch

from base.errors import InputError, MissingFile
from hardware.gpus import GPU
from model_builder import ConfigurableGPT
from model_config import ModelArchitectureConfig
from planning.cost import cost, device_of, measured_mfu
from planning.fit import CHECKPOINTING, flags_of, memory_rows, recommend
from planning.memory import parameters_by_part
from planning.options import PlanOptions
from planning.scaling import LAWS, best_shapes
from tokens.dataset import dataset_folder
from tokens.format import read_meta
from training import flops
from training.config import TrainConfig

DATA = Path(__file__).resolve().parents[1] / "data"
SHOWN_MFU = (0.3, 0.4, 0.5)  # where none is stated or measured: a range, not a guess


def make_plan(c: ModelArchitectureConfig, train: TrainConfig, o: PlanOptions) -> dict[str, Any]:
    """The plan as JSON. Raises InputError for what cannot be planned."""
    gpu, peak = device_of(o)
    mfu, mfu_source = (o.mfu, "stated") if o.mfu else (None, None)
    if o.measured:
        mfu, mfu_source = measured_mfu(o.measured, o.peak_tflops)
    plan: dict[str, Any] = {"architecture": c.summary(), "gpus": o.gpus}
    plan["gpu"] = {"driver_name": gpu.driver_name, "memory_gb": gpu.memory_gb, "power_w": gpu.power_w}
    plan |= {
        "peak_tflops": peak / 1e12,
        "mfu": mfu,
        "mfu_source": mfu_source,
        "notes": c.notes() + train.notes(),
    }
    return plan | (plan_budget(c, o, peak, mfu) if o.budget else plan_run(c, train, o, gpu, peak, mfu))


def plan_run(
    c: ModelArchitectureConfig, train: TrainConfig, o: PlanOptions, gpu: GPU, peak: float, mfu: float | None
) -> dict[str, Any]:
    with torch.device("meta"):
        model = ConfigurableGPT(c)
    params, work, per_step = (
        model.get_num_params(),
        flops.flops_per_token(c),
        train.tokens_per_step(c.block_size),
    )
    tokens = o.tokens or train.max_iters * per_step
    if not tokens:
        raise InputError("max_iters=0 trains on nothing: plan what with --tokens=6e9")
    rows = memory_rows(c, train, o, gpu)
    choice = recommend(rows, c.block_size)
    # What is recomputed takes time and counts for nothing. A stated MFU is what train.py will log, with
    # that in it
    recomputed = CHECKPOINTING[choice["activation_checkpointing"]] if choice else 1.0
    mfus = [o.mfu] if o.mfu else [m / recomputed for m in ([mfu] if mfu else SHOWN_MFU)]
    return {
        "parameters": {
            "total": params,
            "non_embedding": model.get_num_params_non_embedding(),
            **parameters_by_part(model),
        },
        "batch_size": train.batch_size,
        "block_size": c.block_size,
        "memory": rows,
        "recommended": choice and {"flags": flags_of(choice, train), **choice},
        "flops_per_token": work,
        "flops_per_token_full_attention": flops.flops_per_token(c, full_attention=True),
        "tokens_per_step": per_step,
        "tokens": tokens,
        "steps": math.ceil(tokens / per_step),
        "flops": work * tokens,
        "time": [cost(tokens, work, m, peak, gpu, o) for m in mfus],
        "disk": disk(train, o, params, model, tokens),
        "tokens_per_param": tokens / params,
        "chinchilla": optima(params, tokens),
        "notes": notes_on(c, train, o),
    }


def notes_on(c: ModelArchitectureConfig, train: TrainConfig, o: PlanOptions) -> list[str]:
    """What a reader of the plan must know."""
    notes = c.notes() + train.notes()
    if train.gradient_accumulation_steps % o.gpus:
        accumulation = train.gradient_accumulation_steps
        notes.append(
            f"gradient_accumulation_steps={accumulation} is not divisible by {o.gpus} GPUs: train.py will refuse it"
        )
    if train.dtype == "float16" and o.gpus > 1:
        notes.append("dtype='float16' cannot be sharded: only DDP is planned")
    if train.document_masking:
        notes.append(
            "document_masking=True: its masks are not in the memory, and attention's FLOPs are those of whole windows"
        )
    if train.hybrid_shard_size and o.gpus % train.hybrid_shard_size:
        notes.append(
            f"hybrid_shard_size={train.hybrid_shard_size} does not divide {o.gpus} GPUs: train.py will refuse it"
        )
    if train.fp8 != "none":
        notes.append(f"fp8={train.fp8!r}: memory is that of bf16, and MFU counts against the bf16 peak")
    if train.dtype == "float32" and o.peak_tflops is None:
        notes.append("dtype='float32': the peak is that of bf16; times hold only with --peak_tflops of fp32")
    return notes


def optima(params: int, tokens: float) -> list[dict[str, Any]]:
    """For each scaling law the best N and D at the FLOPs of this run, 6 N D, and the losses of both."""
    optimum = []
    for law in LAWS:
        N, D = law.optimum(6 * params * tokens)
        optimum.append(
            {"law": law.source, "params": N, "tokens": D, "tokens_per_param": D / N, "loss": law.loss(N, D)}
        )
        optimum[-1]["loss_of_this_run"] = law.loss(params, tokens)
    return optimum


def disk(
    train: TrainConfig, o: PlanOptions, params: int, model: ConfigurableGPT, tokens: float
) -> dict[str, Any]:
    """A checkpoint holds fp32 weights and AdamW's two moments, or Muon's one (training/checkpoint.py);
    shards are uint32."""
    one_moment = (
        sum(p.numel() for p in model.blocks.parameters() if p.dim() == 2) if train.optimizer == "muon" else 0
    )
    size_gb = 4 * (3 * params - one_moment) / 1e9
    kept = train.keep_last + 2  # besides them the best one and the one being written
    if train.always_save_checkpoint:
        kept = max(1, train.max_iters // (train.checkpoint_interval or train.eval_interval))
    try:
        there = read_meta(dataset_folder(train.dataset, DATA))["splits"]["train"]["tokens"]
    except (MissingFile, KeyError):  # not prepared yet, a mixture, or nanoGPT's format
        there = None
    return {"checkpoint_gb": size_gb, "checkpoint_s": size_gb / o.disk_gb_per_s, "checkpoints": kept,
            "data_gb": 4 * tokens / 1e9, "dataset_tokens": there}  # fmt: skip


def plan_budget(c: ModelArchitectureConfig, o: PlanOptions, peak: float, mfu: float | None) -> dict[str, Any]:
    number, in_hours, rest = o.budget.partition("gpu-hours")
    try:
        C = float(number)
        if rest or not 0 < C < math.inf:
            raise ValueError
    except ValueError:
        raise InputError(
            f"--budget={o.budget} is neither FLOPs (--budget=1e21) nor hours (--budget=500gpu-hours)"
        ) from None
    if in_hours and mfu is None:
        raise InputError(
            f"--budget={o.budget}: what hours buy depends on the MFU: --mfu=0.4, or --measured=OUT_DIR"
        )
    C *= 3600 * peak * mfu if in_hours else 1
    shapes = [
        {**{name: getattr(s.config, name) for name in ("n_layer", "n_embd", "n_head", "num_key_value_heads", "d_ff")},
         "params": s.params, "tokens": s.tokens, "tokens_per_param": s.tokens / s.params,
         "loss": {law.source: law.loss(s.params, s.tokens) for law in LAWS}}
        for s in best_shapes(c, C)[:8]
    ]  # fmt: skip
    return {"budget_flops": C, "days": C / (o.gpus * peak * mfu) / 86400 if mfu else None, "shapes": shapes}
