"""Before a run: will it fit, how long does it take, what does it cost.

    python plan.py config/full_qwen3_1.5b.py --gpus=2 --gpu=A6000
    python plan.py config/full_qwen3_1.5b.py --gpus=8 --gpu=B200 --mfu=0.4 --tokens=6e9 --price_per_gpu_hour=4
    python plan.py config/full_qwen3_1.5b.py --gpus=8 --gpu=H100 --measured=out-qwen3-1.5b     # MFU of a run's log
    python plan.py config/full_qwen3_1.5b.py --gpu=H200 --budget=1e21        # or --budget=500gpu-hours --mfu=0.4
    python plan.py config/full_llama3_8b.py --gpus=4 --gpu=mine --peak_tflops=400 --memory_gb=96 --json

Flags of train.py change the configuration. --json prints the same numbers as JSON. Memory is that of eager execution on CUDA;
--fragmentation (0.05 of it) and --context_gb (1) are added. docs/PLANNING.md says what is counted and what is assumed.
"""

import dataclasses
import importlib.util
import json
import math
import os
import shutil
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch

from model_builder import ConfigurableGPT
from model_config import ModelArchitectureConfig
from training import flops, memory, scaling
from training.config import MODEL_FIELDS, TRAIN_FIELDS, TrainConfig, load_config, parse_flags, user_errors
from training.gpus import GPU, find_gpu, unknown_gpu
from training.memory import StepShape

ROOT = Path(__file__).resolve().parent
GIB = 2**30
SHOWN_MFU = (0.3, 0.4, 0.5)  # where none is stated: a range, not a guess
RECOMPUTE = {"none": 1.0, "selective": 1.0, "full": 4 / 3}  # FLOPs done for each that counts: full runs the forward pass twice
ENOUGH_TOKENS = 4096  # in a micro-step; below it matmuls of these widths leave a GPU idle
TOKEN_BYTES = 4  # uint32 shards


@dataclass(kw_only=True)
class PlanOptions:
    gpus: int = 1
    gpu: str | None = None
    peak_tflops: float | None = None  # dense, in the type of the matmuls
    memory_gb: float | None = None
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
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if isinstance(value, int | float) and f.name != "json" and not 0 <= value < math.inf:
                raise ValueError(f"--{f.name}={value} must be finite and not negative")
        for name in ("gpus", "peak_tflops", "memory_gb", "mfu", "tokens", "disk_gb_per_s"):
            if getattr(self, name) == 0:
                raise ValueError(f"--{name}=0 must be more than 0")
        if self.mfu is not None and self.mfu > 1:
            raise ValueError(f"--mfu={self.mfu} is a fraction of the peak: 0.4 is 40 %")
        if self.mfu is not None and self.measured is not None:
            raise ValueError(f"--mfu={self.mfu} and --measured={self.measured} are two ways to say it: give one")


def main(argv: Sequence[str]) -> int:
    if {"-h", "--help"} & set(argv):
        print(__doc__.strip())
        return 0
    with user_errors():
        c, train, o = parse(argv)
        gpu, peak = device_of(o)
        plan = make_plan(c, train, o, gpu, peak)
    print(json.dumps(plan, indent=2) if o.json else "\n".join(report(plan)))
    return 0


def parse(argv: Sequence[str]) -> tuple[ModelArchitectureConfig, TrainConfig, PlanOptions]:
    """Flags of plan.py for itself, all others for the configuration."""
    own = get_type_hints(PlanOptions)
    words, flags = parse_flags(argv, own | get_type_hints(ModelArchitectureConfig) | get_type_hints(TrainConfig))
    if not words and not set(flags) - set(own):
        raise ValueError("which run? python plan.py config/full_qwen3_1.5b.py --gpus=8 --gpu=B200")
    c, train = load_config([*words, *(f"--{k}={v}" for k, v in flags.items() if k not in own)])
    return c, train, PlanOptions(**{k: v for k, v in flags.items() if k in own})


def device_of(o: PlanOptions) -> tuple[GPU, float]:
    """The GPU, with what the flags say of it, and its peak in FLOP/s. Raises ValueError where neither table nor flags know."""
    gpu = find_gpu(o.gpu) if o.gpu else None
    if gpu is None:
        if o.peak_tflops is None or o.memory_gb is None:
            raise ValueError(unknown_gpu(o.gpu) if o.gpu else "which GPU? --gpu=H100, or --peak_tflops=… --memory_gb=…")
        gpu = GPU(o.gpu or "GPU", o.memory_gb, math.nan, math.nan)
    gpu = dataclasses.replace(gpu, memory_gb=o.memory_gb or gpu.memory_gb, power_w=o.power_w or gpu.power_w)
    peak = o.peak_tflops * 1e12 if o.peak_tflops else flops.peak_flops_per_s(gpu.driver_name)
    assert peak is not None, f"{gpu.driver_name} is in training/gpus.py and not in training/flops.py"
    return gpu, peak


def measured_mfu(path: str, peak: float) -> tuple[float, str]:
    """The median MFU of the logged steps of a run, without its first two, and where it is from. Raises ValueError."""
    logs = sorted(Path(path).glob("run_*.jsonl")) if Path(path).is_dir() else [Path(path)]
    if not logs or not logs[-1].is_file():
        raise ValueError(f"--measured={path}: no run_*.jsonl there; name the out_dir or the log of a run")
    rates, start = [], None
    for line in logs[-1].read_text(errors="replace").splitlines():
        try:
            event = json.loads(line)
        except ValueError:
            continue  # the line that a crash cut
        if event.get("event") == "run_start":
            start = event
        elif event.get("event") == "train" and event.get("tokens_per_s"):
            rates.append(event["tokens_per_s"])
    if start is None or len(rates) < 3:
        raise ValueError(f"--measured={path}: {logs[-1]} has {len(rates)} logged steps; at least 3 are needed")
    hardware = start["hardware"]
    its_peak = hardware["peak_flops_per_s"] or peak
    mfu = statistics.median(rates[2:]) * start["model"]["flops_per_token"] / (its_peak * hardware["world_size"])
    return mfu, f"median of {len(rates) - 2} logged steps on {hardware['world_size']} x {hardware['device_name']}"


def make_plan(c: ModelArchitectureConfig, train: TrainConfig, o: PlanOptions, gpu: GPU, peak: float) -> dict[str, Any]:
    """Every number of the report."""
    mfu, mfu_source = (o.mfu, "stated") if o.mfu else (None, None)
    if o.measured:
        mfu, mfu_source = measured_mfu(o.measured, peak)
    notes = c.notes() + train.notes() + missing_parts()
    if train.gradient_accumulation_steps % o.gpus:
        accumulation = train.gradient_accumulation_steps
        notes.append(f"gradient_accumulation_steps={accumulation} is not divisible by {o.gpus} GPUs: train.py will refuse it")
    if train.dtype == "float32" and o.peak_tflops is None:
        notes.append("dtype='float32': the peak is that of bf16; times hold only with --peak_tflops of fp32 or TF32")
    device = {"gpus": o.gpus, "peak_tflops": peak / 1e12, **known(asdict(gpu))}
    plan: dict[str, Any] = {"architecture": c.summary().splitlines(), "device": device, "notes": notes}
    plan["mfu"] = {"value": mfu, "source": mfu_source}
    if o.budget is not None:
        plan["budget"] = search(c, train, o, gpu, peak, mfu)
        return plan
    model = on_meta(c)
    parts = memory.parameters_by_part(model)
    params = model.get_num_params()
    plan["parameters"] = {
        **parts, "total": params, "non_embedding": model.get_num_params_non_embedding(), "matmul": flops.matmul_weights(c)
    }  # fmt: skip
    rows = fits(c, train, o, gpu, model)
    plan["memory"] = {"limit_gib": gpu.memory_gb, "rows": rows}
    choice = recommend(rows, c.block_size)
    plan["recommended"] = choice and {"flags": flags_of(choice, train), **choice}

    per_step = train.tokens_per_step(c.block_size)
    tokens = o.tokens or train.max_iters * per_step
    work = flops.flops_per_token(c)
    plan["compute"] = {
        "flops_per_token": work,
        "flops_per_token_full_attention": flops.flops_per_token(c, full_attention=True),
        "tokens_per_step": per_step,
        "tokens": tokens,
        "steps": math.ceil(tokens / per_step),
        "flops": work * tokens,
    }
    checkpointing = choice["activation_checkpointing"] if choice else "none"
    power_w = None if math.isnan(gpu.power_w) else gpu.power_w
    plan["time"] = [
        cost(work * RECOMPUTE[checkpointing], work, tokens, m, peak, power_w, o)
        for m in ((mfu,) if mfu else SHOWN_MFU)
    ]  # fmt: skip
    if not math.isnan(gpu.bandwidth_gb_per_s):
        # AdamW reads weight, gradient and two moments and writes all but the gradient: 28 bytes a parameter
        plan["optimizer_step_ms_at_least"] = 28 * params / gpu.bandwidth_gb_per_s / 1e6
    plan["disk"] = disk(c, train, o, model, tokens)
    plan["chinchilla"] = chinchilla(params, tokens)
    return plan


def missing_parts() -> list[str]:
    """What the plan covers and this version of the trainer has not."""
    notes = []
    if importlib.util.find_spec("training.parallel") is None:
        notes.append("this version of train.py trains in one process: rows of several GPUs are what a sharded run would take")
    if "activation_checkpointing" not in TRAIN_FIELDS:
        notes.append("this version has no activation_checkpointing: rows other than none are not recommended")
    return notes


def on_meta(c: ModelArchitectureConfig) -> ConfigurableGPT:
    with torch.device("meta"):
        return ConfigurableGPT(c)


def known(record: dict[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: what is not known is null."""
    return {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in record.items()}


def fits(
    c: ModelArchitectureConfig, train: TrainConfig, o: PlanOptions, gpu: GPU, model: torch.nn.Module
) -> list[dict[str, Any]]:
    """Memory per GPU at the configured batch_size, and the largest one, of every strategy and checkpointing mode."""
    rows = []
    accumulates = train.gradient_accumulation_steps > o.gpus
    for strategy in ("single",) if o.gpus == 1 else ("ddp", "zero1", "fsdp"):
        for mode in memory.CHECKPOINTING:
            step = StepShape(train.batch_size, c.block_size, 4 if train.dtype == "float32" else 2, "cuda", mode)
            how = dict(
                strategy=strategy, n_gpus=o.gpus, optimizer=train.optimizer, accumulates=accumulates,
                fragmentation=o.fragmentation, context=round(o.context_gb * GIB),
            )  # fmt: skip
            need = memory.step_memory(c, model, step, **how)
            largest = memory.largest_batch(c, model, step, round(gpu.memory_gb * GIB), **how)
            rows.append(
                {
                    "strategy": strategy,
                    "activation_checkpointing": mode,
                    "batch_size": train.batch_size,
                    "gib": {k: v / GIB for k, v in vars(need).items()} | {"total": need.total / GIB},
                    "fits": need.total <= gpu.memory_gb * GIB,
                    "largest_batch_size": largest,
                    **batch_plan(train, largest, o.gpus),
                    "tokens_per_micro_step": largest * c.block_size,
                }
            )
    return rows


def batch_plan(train: TrainConfig, largest: int, gpus: int) -> dict[str, int | None]:
    """The largest micro-batch that fits, divides the step as configured and leaves each GPU equally many of them."""
    sequences = train.batch_size * train.gradient_accumulation_steps
    b = next((b for b in range(min(largest, sequences // gpus), 0, -1) if sequences % (b * gpus) == 0), None)
    return {"use_batch_size": b, "use_gradient_accumulation_steps": sequences // b if b else None}


def recommend(rows: list[dict[str, Any]], T: int) -> dict[str, Any] | None:
    """What recomputes least, then what communicates least, among those that fit a micro-step of ENOUGH_TOKENS tokens; where none
    does, what fits the largest. None where nothing fits."""
    rows = [r for r in rows if r["use_batch_size"]]
    if "activation_checkpointing" not in TRAIN_FIELDS:
        rows = [r for r in rows if r["activation_checkpointing"] == "none"]
    order = sorted(rows, key=lambda r: memory.CHECKPOINTING.index(r["activation_checkpointing"]))  # stable: ddp, zero1, fsdp
    good = [r for r in order if r["use_batch_size"] * T >= ENOUGH_TOKENS]
    return good[0] if good else max(order, key=lambda r: r["use_batch_size"], default=None)


def flags_of(row: dict[str, Any], train: TrainConfig) -> str:
    flags = {
        "batch_size": row["use_batch_size"],
        "gradient_accumulation_steps": row["use_gradient_accumulation_steps"],
        "use_zero1": row["strategy"] == "zero1",
        "use_fsdp": row["strategy"] == "fsdp",
    }
    if row["activation_checkpointing"] != "none":
        flags["activation_checkpointing"] = row["activation_checkpointing"]
    return " ".join(f"--{k}={v}" for k, v in flags.items() if v != getattr(train, k, None))


def cost(
    done: float, counted: float, tokens: float, mfu: float, peak: float, power_w: float | None, o: PlanOptions
) -> dict[str, Any]:
    """Time, energy and price at `mfu` of a step without recomputation: recomputed FLOPs take time and count for nothing."""
    tokens_per_s = o.gpus * peak * mfu / done
    hours = tokens / tokens_per_s / 3600
    kwh = None if power_w is None else o.gpus * power_w * hours / 1e3
    price = None
    if o.price_per_gpu_hour is not None or o.price_per_kwh is not None:
        price = (o.price_per_gpu_hour or 0) * o.gpus * hours
        price = None if o.price_per_kwh and kwh is None else price + (o.price_per_kwh or 0) * (kwh or 0)
    return {
        "mfu": mfu, "mfu_of_counted_flops": mfu * counted / done, "tokens_per_s": tokens_per_s, "days": hours / 24,
        "gpu_hours": hours * o.gpus, "kwh_at_most": kwh, "price": price,
    }  # fmt: skip


def disk(
    c: ModelArchitectureConfig, train: TrainConfig, o: PlanOptions, model: torch.nn.Module, tokens: float
) -> dict[str, Any]:
    weights = memory.FP32 * model.get_num_params()
    checkpoint = weights + memory.optimizer_bytes(model, train.optimizer)
    kept = train.max_iters // (train.checkpoint_interval or train.eval_interval) if train.always_save_checkpoint else None
    on_disk = None
    meta = ROOT / "data" / train.dataset / "meta.json"
    if meta.is_file():
        on_disk = json.loads(meta.read_text())["splits"]["train"]["tokens"]
    return {
        "checkpoint_gb": checkpoint / 1e9,
        "checkpoint_s": checkpoint / 1e9 / o.disk_gb_per_s,
        "checkpoints": max(1, kept) if kept is not None else train.keep_last + 2,  # the best one, and the one being written
        "weights_only_gb": weights / 1e9,
        "data_gb": TOKEN_BYTES * tokens / 1e9,
        "dataset_tokens": on_disk,
        "epochs": None if not on_disk else tokens / on_disk,
    }


def chinchilla(params: int, tokens: float) -> dict[str, Any]:
    """Where this run lies beside the optimum of its own 6 N D."""
    C = 6 * params * tokens
    rows = []
    for law in scaling.LAWS:
        N, D = law.optimum(C)
        rows.append(
            {"source": law.source, "params": N, "tokens": D, "tokens_per_param": D / N,
             "loss": law.loss(N, D), "loss_of_this_run": law.loss(params, tokens)}
        )  # fmt: skip
    return {"flops_6nd": C, "tokens_per_param": tokens / params, "optima": rows}


def parse_budget(text: str, o: PlanOptions, peak: float, mfu: float | None) -> float:
    """FLOPs of `1e21` or `500gpu-hours`. Raises ValueError."""
    number, hours, rest = text.partition("gpu-hours")
    try:
        value = float(number)
        if rest or not 0 < value < math.inf:
            raise ValueError
    except ValueError:
        raise ValueError(f"--budget={text} is neither FLOPs (--budget=1e21) nor GPU hours (--budget=500gpu-hours)") from None
    if not hours:
        return value
    if mfu is None:
        raise ValueError(f"--budget={text}: hours buy FLOPs at some MFU; say which with --mfu=0.4 or --measured=OUT_DIR")
    return value * 3600 * peak * mfu


WIDTH_PER_LAYER = (32, 128)  # Kaplan et al. 2020, figure 5: over this range of shapes the loss changes by about 1 %


def search(
    c: ModelArchitectureConfig, train: TrainConfig, o: PlanOptions, gpu: GPU, peak: float, mfu: float | None
) -> dict[str, Any]:
    """Depths and widths in the proportions of this architecture, each trained on as many tokens as the budget's FLOPs buy, by
    predicted loss. The law knows sizes, not shapes: of each width the best depth is shown."""
    C = parse_budget(o.budget, o, peak, mfu)
    N_opt, _ = scaling.BESIROGLU.optimum(C)
    group, head_ratio, ffn_ratio = c.n_head // c.num_key_value_heads, c.n_head / c.n_embd, c.d_ff / c.n_embd
    best: list[dict[str, Any]] = []
    for width in range(128, 20_481, 128):
        n_head = round(width * head_ratio)
        if abs(n_head - width * head_ratio) > 1e-9 or n_head % group:
            continue
        sizes = dict(
            n_embd=width, n_head=n_head, num_key_value_heads=n_head // group, head_dim=c.head_dim,
            d_ff=max(64, round(width * ffn_ratio / 64) * 64),
        )  # fmt: skip
        one, two = (on_meta(dataclasses.replace(c, n_layer=n, **sizes)).get_num_params() for n in (1, 2))
        if one > 30 * N_opt:
            break
        shapes = []
        for n_layer in range(max(2, math.ceil(width / WIDTH_PER_LAYER[1])), width // WIDTH_PER_LAYER[0] + 1):
            N = one + (n_layer - 1) * (two - one)
            shape = dataclasses.replace(c, n_layer=n_layer, **sizes)
            D = C / flops.flops_per_token(shape)
            losses = {law.source: law.loss(N, D) for law in scaling.LAWS}
            shapes.append((losses[scaling.BESIROGLU.source], {**sizes, "n_layer": n_layer, "params": N, "tokens": D,
                           "tokens_per_param": D / N, "loss": losses}))  # fmt: skip
        if shapes:
            best.append(min(shapes, key=lambda s: s[0])[1])
    if not best:
        raise ValueError(f"--budget={o.budget}: no width with n_head/n_embd = {c.n_head}/{c.n_embd} suits {C:.3g} FLOPs")
    best.sort(key=lambda s: s["loss"][scaling.BESIROGLU.source])
    for row in best[:8]:
        shape = dataclasses.replace(c, **{k: row[k] for k in MODEL_FIELDS if k in row})
        choice = recommend(fits(shape, train, o, gpu, on_meta(shape)), c.block_size)
        row["fits_with"] = choice and {k: choice[k] for k in ("strategy", "activation_checkpointing", "use_batch_size")}
        row["days"] = C / (o.gpus * peak * mfu) / 86400 if mfu else None
    return {"flops": C, "shapes": best[:8]}


# The report


def report(plan: dict[str, Any]) -> list[str]:
    d, lines = plan["device"], [*plan["architecture"]]
    power = "" if d["power_w"] is None else f", {d['power_w']:g} W"
    lines.append(f"{d['gpus']} x {d['driver_name']}: {d['memory_gb']:g} GiB, {d['peak_tflops']:g} TFLOP/s dense{power}")
    lines += report_budget(plan) if "budget" in plan else report_run(plan)
    return lines + [f"note: {note}" for note in plan["notes"]]


def report_run(plan: dict[str, Any]) -> list[str]:
    p, k, rows = plan["parameters"], plan["compute"], plan["memory"]["rows"]
    parts = ", ".join(f"{name} {n:,}" for name, n in p.items() if n and name not in ("total", "non_embedding", "matmul"))
    lines = [f"{p['total']:,} parameters ({p['non_embedding']:,} without embeddings): {parts}", ""]
    columns = ("weights", "weight_copies", "gradients", "optimizer", "activations", "workspace", "overhead", "total")
    lines.append(f"Memory per GPU in GiB at batch_size={rows[0]['batch_size']}, and the largest batch_size that fits:")
    head = ["strategy", "checkpointing", *(name.replace("_", " ") for name in columns), "fits", "largest"]
    body = [
        [r["strategy"], r["activation_checkpointing"], *(f"{r['gib'][name]:.2f}" for name in columns),
         "yes" if r["fits"] else "no", str(r["largest_batch_size"])]
        for r in rows
    ]  # fmt: skip
    lines += [*table(head, body), ""]
    choice = plan["recommended"]
    if choice is None:
        lines.append("It does not fit: more GPUs, GPUs with more memory, or a smaller block_size.")
    else:
        launch = "python" if plan["device"]["gpus"] == 1 else f"torchrun --standalone --nproc_per_node={plan['device']['gpus']}"
        flags = choice["flags"] or "the configuration as it is"
        lines.append(f"It fits with {choice['strategy']}: {launch} train.py CONFIG {flags}")
    lines += ["", f"{k['flops_per_token'] / 1e9:.2f} GFLOP a token ({k['flops_per_token_full_attention'] / 1e9:.2f} by the "
              f"full-attention convention), {k['tokens_per_step']:,} tokens a step, {k['steps']:,} steps, "
              f"{human(k['tokens'])} tokens, {k['flops']:.3g} FLOPs"]  # fmt: skip
    source = plan["mfu"]["source"]
    lines.append(f"MFU: {source}" if source else "MFU: none was stated or measured (--mfu=0.4, --measured=OUT_DIR); a range:")
    head = ["MFU", "tokens/s", "days", "GPU hours", "kWh at most", "price"]
    body = [
        [f"{t['mfu']:.1%}", f"{t['tokens_per_s']:,.0f}", f"{t['days']:.2f}", f"{t['gpu_hours']:,.1f}",
         "n/a" if t["kwh_at_most"] is None else f"{t['kwh_at_most']:,.1f}",
         "n/a" if t["price"] is None else f"{t['price']:,.2f}"]
        for t in plan["time"]
    ]  # fmt: skip
    lines += [*table(head, body), ""]
    if "optimizer_step_ms_at_least" in plan:
        lines.append(f"AdamW on a whole copy: at least {plan['optimizer_step_ms_at_least']:.1f} ms a step, by memory bandwidth")
    disk = plan["disk"]
    lines.append(
        f"Checkpoint: {disk['checkpoint_gb']:.1f} GB, {disk['checkpoint_s']:.0f} s; up to {disk['checkpoints']} of them, "
        f"{disk['checkpoint_gb'] * disk['checkpoints']:.0f} GB"
    )
    epochs = "" if disk["epochs"] is None else f"; the dataset has {disk['dataset_tokens']:,}: {disk['epochs']:.3g} epochs"
    lines.append(f"Data: {disk['data_gb']:.1f} GB for {human(k['tokens'])} tokens, each seen once{epochs}")
    lines += ["", f"This run: {plan['chinchilla']['tokens_per_param']:.1f} tokens a parameter, "
              f"{plan['chinchilla']['flops_6nd']:.3g} FLOPs by 6ND. The optimum of that budget:"]  # fmt: skip
    head = ["law", "parameters", "tokens", "tokens/parameter", "loss", "loss of this run"]
    body = [
        [r["source"], human(r["params"]), human(r["tokens"]), f"{r['tokens_per_param']:.1f}", f"{r['loss']:.3f}",
         f"{r['loss_of_this_run']:.3f}"]
        for r in plan["chinchilla"]["optima"]
    ]  # fmt: skip
    return lines + table(head, body)


def report_budget(plan: dict[str, Any]) -> list[str]:
    lines = [f"{plan['budget']['flops']:.3g} FLOPs; the best depth of each width, best first (by {scaling.BESIROGLU.source}):"]
    head = ["layers", "width", "heads", "KV heads", "d_ff", "parameters", "tokens", "tokens/parameter",
            *(f"loss, {law.source}" for law in scaling.LAWS), "fits with", "days"]  # fmt: skip
    body = [
        [str(r["n_layer"]), str(r["n_embd"]), str(r["n_head"]), str(r["num_key_value_heads"]), str(r["d_ff"]),
         human(r["params"]), human(r["tokens"]), f"{r['tokens_per_param']:.1f}",
         *(f"{r['loss'][law.source]:.4f}" for law in scaling.LAWS),
         "nothing" if r["fits_with"] is None else f"{r['fits_with']['strategy']}, batch {r['fits_with']['use_batch_size']}",
         "n/a" if r["days"] is None else f"{r['days']:.2f}"]
        for r in plan["budget"]["shapes"]
    ]  # fmt: skip
    return lines + table(head, body)


def table(head: list[str], body: list[list[str]]) -> list[str]:
    """Columns by rich on a terminal that is wide enough; else plain and never cut."""
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    wide = sum(widths) + 3 * len(widths) + 1 <= shutil.get_terminal_size().columns
    if sys.stdout.isatty() and wide and importlib.util.find_spec("rich"):
        from rich.console import Console
        from rich.table import Table

        rich = Table(*head)
        for row in body:
            rich.add_row(*row)
        console = Console(file=open(os.devnull, "w"), record=True)  # noqa: SIM115
        console.print(rich)
        return console.export_text(styles=True).rstrip("\n").split("\n")
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in (head, *body)]


def human(n: float) -> str:
    """1.72e9 -> 1.72 B"""
    for size, unit in ((1e12, " T"), (1e9, " B"), (1e6, " M")):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:,.0f}"


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
