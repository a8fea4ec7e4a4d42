"""Before a run: will it fit, how long does it take, what does it cost.

    python plan.py config/full_qwen3_1.5b.py --gpus=2 --gpu=A6000
    python plan.py config/full_qwen3_1.5b.py --gpus=8 --gpu=B200 --mfu=0.4 --tokens=6e9 --price_per_gpu_hour=4
    python plan.py config/full_qwen3_1.5b.py --gpus=8 --gpu=H100 --measured=out-qwen3-1.5b     # the MFU of a run's log
    python plan.py config/full_qwen3_1.5b.py --gpu=H200 --budget=1e21        # or --budget=500gpu-hours --mfu=0.4
    python plan.py config/full_llama3_8b.py --gpus=4 --gpu=mine --peak_tflops=400 --memory_gb=96 --json

Flags of train.py change the configuration. Memory is that of eager execution on CUDA; to it are added
--fragmentation (0.05 of it) and --context_gb (1). --json prints the same numbers as JSON. docs/PLAN.md says
what is counted and what is assumed."""

import json
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from analysis.runs import read_runs
from analysis.selection import find_runs
from base import fields
from base.errors import InputError, input_errors
from hardware.gpus import GPU, find_gpu, peak_flops_per_s, unknown_gpu
from model_builder import ConfigurableGPT
from model_config import ModelArchitectureConfig
from planning.memory import BatchMemory, largest_batch, parameters_by_part
from planning.scaling import BESIROGLU, LAWS, best_shapes
from tokens.dataset import dataset_folder
from tokens.format import read_meta
from training import flops
from training.config import TrainConfig, load_config_and

ROOT = Path(__file__).resolve().parent
GIB = 2**30
NODE_GPUS = 8  # over more of them FSDP is also planned as hybrid sharding: sharded in a node, replicated between nodes
SHOWN_MFU = (0.3, 0.4, 0.5)  # where none is stated or measured: a range, not a guess
CHECKPOINTING = {
    "none": 1.0,
    "selective": 1.0,
    "full": 4 / 3,
}  # FLOPs done for each that counts: full runs the forward twice
ENOUGH_TOKENS = 4096  # in a micro-step; with fewer, matmuls leave a GPU idle. A rule of thumb


@dataclass(kw_only=True)
class PlanOptions:
    gpus: int = 1
    gpu: str | None = None
    peak_tflops: float | None = None  # dense, in the type of the matmuls
    memory_gb: float | None = None  # GiB, as drivers report it
    mfu: float | None = None
    measured: str | None = None  # a run's folder or log
    tokens: float | None = None  # None: those of max_iters steps
    fragmentation: float = 0.05
    context_gb: float = 1.0
    disk_gb_per_s: float = 1.0
    power_w: float | None = None  # of one GPU; None: its board limit
    price_per_gpu_hour: float | None = None
    price_per_kwh: float | None = None
    budget: str | None = None
    json: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            positive = name in (
                "gpus",
                "peak_tflops",
                "memory_gb",
                "mfu",
                "tokens",
                "disk_gb_per_s",
                "power_w",
            )
            if isinstance(value, int | float) and not (0 < value < 1e30 if positive else 0 <= value < 1e30):
                raise InputError(
                    f"--{name}={value} must be below 1e30 and {'more than 0' if positive else 'not negative'}"
                )
        if self.mfu is not None and self.mfu > 1:
            raise InputError(f"--mfu={self.mfu} is a fraction of the peak: 0.4 is 40 %")
        if self.mfu is not None and self.measured is not None:
            raise InputError(
                f"--mfu={self.mfu} and --measured={self.measured} say the same thing twice: give one"
            )


def main(argv: Sequence[str]) -> int:
    if {"-h", "--help"} & set(argv):
        print(__doc__.strip())
        return 0
    with input_errors():
        c, train, o = parse(argv)
        gpu, peak = device_of(o)
        mfu, mfu_source = (
            (o.mfu, "stated")
            if o.mfu
            else measured_mfu(o.measured, o.peak_tflops)
            if o.measured
            else (None, None)
        )
        plan: dict[str, Any] = {
            "architecture": c.summary(),
            "gpus": o.gpus,
            "gpu": asdict(gpu),
            "peak_tflops": peak / 1e12,
        }
        plan |= {"mfu": mfu, "mfu_source": mfu_source, "notes": c.notes() + train.notes()}
        if o.budget:
            plan |= plan_budget(c, o, peak, mfu)
        else:
            plan |= plan_run(c, train, o, gpu, peak, mfu)
    print(json.dumps(plan, indent=2) if o.json else "\n".join(report(plan)))
    return 0


def parse(argv: Sequence[str]) -> tuple[ModelArchitectureConfig, TrainConfig, PlanOptions]:
    """Flags of plan.py for itself, all others for the configuration."""
    c, train, options = load_config_and(argv, PlanOptions)
    if all(word.partition("=")[0].removeprefix("--") in fields.names(PlanOptions) for word in argv):
        raise InputError("which run? python plan.py config/full_qwen3_1.5b.py --gpus=8 --gpu=B200")
    return c, train, options


def device_of(o: PlanOptions) -> tuple[GPU, float]:
    """The GPU, with what the flags say of it, and its peak in FLOP/s. Raises InputError where neither table
    nor flags know."""
    gpu = find_gpu(o.gpu) if o.gpu else None
    if gpu is None:
        if o.peak_tflops is None or o.memory_gb is None:
            raise InputError(
                unknown_gpu(o.gpu) if o.gpu else "which GPU? --gpu=H100, or --peak_tflops=… --memory_gb=…"
            )
        gpu = GPU(o.gpu or "GPU", o.memory_gb, None)
    gpu = replace(gpu, memory_gb=o.memory_gb or gpu.memory_gb, power_w=o.power_w or gpu.power_w)
    return gpu, 1e12 * o.peak_tflops if o.peak_tflops else peak_flops_per_s(gpu.driver_name)


def measured_mfu(path: str, stated_tflops: float | None) -> tuple[float, str]:
    """The MFU of a run's median step, against the peak of its own device, or the stated one where that is
    unknown, as it would be without the run's recomputation, if it had any. Raises InputError."""
    run = read_runs(find_runs([path], None)[0])[-1]
    rates = [event["tokens_per_s"] for event in run.trains if event.get("tokens_per_s")]
    if len(rates) < 3:
        raise InputError(f"--measured={path}: {len(rates)} steps were logged; at least 3 are needed")
    hardware = run.start.get("hardware") or {}
    n, peak = hardware.get("world_size"), hardware.get("peak_flops_per_s") or 1e12 * (stated_tflops or 0)
    if not n:
        raise InputError(f"--measured={path}: its run_start does not say on how many GPUs: state --mfu")
    if not peak:
        device = hardware.get("device_name")
        raise InputError(
            f"--measured={path}: the peak of {device} is unknown: state --mfu, or that peak with --peak_tflops"
        )
    recomputed = CHECKPOINTING.get(run.start["config"]["train"].get("activation_checkpointing"), 1.0)
    mfu = recomputed * median(rates) * run.start["model"]["flops_per_token"] / (peak * n)
    return mfu, f"the median of {len(rates)} logged steps on {n} x {hardware.get('device_name')}"


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
    optimum = []
    for law in LAWS:
        N, D = law.optimum(6 * params * tokens)
        optimum.append(
            {"law": law.source, "params": N, "tokens": D, "tokens_per_param": D / N, "loss": law.loss(N, D)}
        )
        optimum[-1]["loss_of_this_run"] = law.loss(params, tokens)
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
        "chinchilla": optimum,
        "notes": notes,
    }


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

    most = max(
        1, sequences // o.gpus
    )  # more would not be a step as configured; of so many there is one micro-step
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


def cost(
    tokens: float, flops_per_token: float, mfu: float, peak: float, gpu: GPU, o: PlanOptions
) -> dict[str, float | None]:
    """At `mfu`, in which FLOPs that are recomputed do not count."""
    tokens_per_s = o.gpus * peak * mfu / flops_per_token
    hours = tokens / tokens_per_s / 3600
    kwh = None if gpu.power_w is None else o.gpus * gpu.power_w * hours / 1e3
    rates = [(o.price_per_gpu_hour, o.gpus * hours), (o.price_per_kwh, kwh)]
    prices = [rate * amount for rate, amount in rates if rate is not None and amount is not None]
    return {"mfu": mfu, "tokens_per_s": tokens_per_s, "days": hours / 24, "gpu_hours": hours * o.gpus,
            "kwh_at_most": kwh, "price": sum(prices) if prices else None}  # fmt: skip


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
        there = read_meta(dataset_folder(train.dataset, ROOT / "data"))["splits"]["train"]["tokens"]
    except (FileNotFoundError, KeyError):  # not prepared yet, a mixture, or nanoGPT's format
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


def report(plan: dict[str, Any]) -> list[str]:
    gpu = plan["gpu"]
    power = "" if gpu["power_w"] is None else f", {gpu['power_w']:g} W"
    device = f"{plan['gpus']} x {gpu['driver_name']}: {gpu['memory_gb']:g} GiB, {plan['peak_tflops']:g} TFLOP/s dense{power}"
    lines = [*plan["architecture"].splitlines(), device]
    lines += report_run(plan) if "memory" in plan else report_budget(plan)
    return lines + [f"note: {note}" for note in plan["notes"]]


def report_run(plan: dict[str, Any]) -> list[str]:
    p, d, choice = plan["parameters"], plan["disk"], plan["recommended"]
    parts = ", ".join(f"{name} {n:,}" for name, n in list(p.items())[2:] if n)
    lines = [f"{p['total']:,} parameters ({p['non_embedding']:,} without embeddings): {parts}", ""]
    lines.append(
        f"GiB on each GPU at batch_size={plan['batch_size']}, and the largest batch_size that fits, at most the whole step:"
    )
    columns = list(plan["memory"][0]["gib"])
    body = [
        [r["strategy"], r["activation_checkpointing"], *(f"{r['gib'][name]:.2f}" for name in columns),
         "yes" if r["fits"] else "no", str(r["largest_batch_size"])]
        for r in plan["memory"]
    ]  # fmt: skip
    lines += [*table(["strategy", "checkpointing", *columns, "fits", "largest"], body), ""]
    if choice is None and any(r["largest_batch_size"] for r in plan["memory"]):
        sequences = plan["tokens_per_step"] // plan["block_size"]
        lines.append(f"A step of {sequences} sequences cannot be divided among {plan['gpus']} GPUs: change batch_size, "
                     "gradient_accumulation_steps or --gpus")  # fmt: skip
    elif choice is None:
        lines.append("It does not fit: take more GPUs, GPUs with more memory, or a shorter block_size.")
    else:
        n = plan["gpus"]
        launch = "python" if n == 1 else f"torchrun --standalone --nproc_per_node={n}"
        lines.append(
            f"It fits with {choice['strategy']}: {launch} train.py CONFIG {choice['flags']}".rstrip()
        )
    lines += ["", f"{plan['flops_per_token'] / 1e9:.2f} GFLOP a token ({plan['flops_per_token_full_attention'] / 1e9:.2f} if "
              f"attention were not causal), {plan['steps']:,} steps of {plan['tokens_per_step']:,} tokens, "
              f"{human(plan['tokens'])} tokens, {plan['flops']:.3g} FLOPs"]  # fmt: skip
    source = plan["mfu_source"] or "not stated (--mfu=0.4) nor measured (--measured=OUT_DIR): a range"
    lines.append(f"MFU: {source}")
    head = ["MFU", "tokens/s", "days per B tokens", "days", "GPU hours", "kWh at most", "price"]
    body = [
        [f"{t['mfu']:.1%}", f"{t['tokens_per_s']:,.0f}", f"{1e9 / t['tokens_per_s'] / 86400:.2f}",
         f"{t['days']:.2f}", f"{t['gpu_hours']:,.1f}",
         *("n/a" if t[name] is None else f"{t[name]:,.2f}" for name in ("kwh_at_most", "price"))]
        for t in plan["time"]
    ]  # fmt: skip
    lines += [*table(head, body), ""]
    lines.append(f"Checkpoint: {d['checkpoint_gb']:.1f} GB, {d['checkpoint_s']:.0f} s; room for {d['checkpoints']}: "
                 f"{d['checkpoint_gb'] * d['checkpoints']:.0f} GB")  # fmt: skip
    epochs = f"; the dataset has {human(d['dataset_tokens'])}" if d["dataset_tokens"] else ""
    lines.append(f"Data: {d['data_gb']:.1f} GB if every token is seen once{epochs}")
    lines += [
        "",
        f"This run: {plan['tokens_per_param']:.1f} tokens a parameter. Optimum of as many FLOPs (6 N D):",
    ]
    head = ["law", "parameters", "tokens", "tokens/parameter", "loss", "loss of this run"]
    body = [
        [r["law"], human(r["params"]), human(r["tokens"]), f"{r['tokens_per_param']:.1f}", f"{r['loss']:.3f}",
         f"{r['loss_of_this_run']:.3f}"]
        for r in plan["chinchilla"]
    ]  # fmt: skip
    return lines + table(head, body)


def report_budget(plan: dict[str, Any]) -> list[str]:
    days = "" if plan["days"] is None else f", {plan['days']:.2f} days"
    lines = [
        f"{plan['budget_flops']:.3g} FLOPs{days}; each width at its best depth, best first by {BESIROGLU.source}:"
    ]
    head = ["layers", "width", "heads", "KV heads", "d_ff", "parameters", "tokens", "tokens/parameter"]
    body = [
        [*(str(s[name]) for name in ("n_layer", "n_embd", "n_head", "num_key_value_heads", "d_ff")), human(s["params"]),
         human(s["tokens"]), f"{s['tokens_per_param']:.1f}", *(f"{s['loss'][law.source]:.4f}" for law in LAWS)]
        for s in plan["shapes"]
    ]  # fmt: skip
    return lines + table([*head, *(f"loss, {law.source}" for law in LAWS)], body)


def table(head: list[str], body: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in (head, *body)
    ]


def human(n: float) -> str:
    """1.72e9 -> 1.72 B"""
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M")):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:,.0f}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
