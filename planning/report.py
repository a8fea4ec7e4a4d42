"""A plan (planning/plan.py) as text."""

from collections.abc import Sequence
from typing import Any

from base.text import human, table
from planning.scaling import BESIROGLU, LAWS


def report(plan: dict[str, Any]) -> list[str]:
    gpu = plan["gpu"]
    power = "" if gpu["power_w"] is None else f", {gpu['power_w']:g} W"
    device = f"{plan['gpus']} x {gpu['driver_name']}: {gpu['memory_gb']:g} GiB, {plan['peak_tflops']:g} TFLOP/s dense{power}"
    lines = [*plan["architecture"].splitlines(), device]
    parts = [parameters, memory, recommended, time, disk, chinchilla] if "memory" in plan else [budget]
    for part in parts:
        lines += part(plan)
    return lines + [f"note: {note}" for note in plan["notes"]]


def aligned(head: Sequence[str], body: Sequence[Sequence[str]], texts: int = 1) -> list[str]:
    """A table whose first `texts` columns are words and whose others are numbers."""
    left = [i < texts for i in range(len(head))]
    return table([head, *body], left, rule=False).splitlines()


def parameters(plan: dict[str, Any]) -> list[str]:
    p = plan["parameters"]
    parts = ", ".join(f"{name} {n:,}" for name, n in list(p.items())[2:] if n)
    return [f"{p['total']:,} parameters ({p['non_embedding']:,} without embeddings): {parts}", ""]


def memory(plan: dict[str, Any]) -> list[str]:
    columns = list(plan["memory"][0]["gib"])
    body = [
        [
            r["strategy"],
            r["activation_checkpointing"],
            *(f"{r['gib'][name]:.2f}" for name in columns),
            "yes" if r["fits"] else "no",
            str(r["largest_batch_size"]),
        ]
        for r in plan["memory"]
    ]
    head = ["strategy", "checkpointing", *columns, "fits", "largest"]
    title = f"GiB on each GPU at batch_size={plan['batch_size']}, and the largest batch_size that fits, at most the whole step:"
    return [title, *aligned(head, body, texts=2), ""]


def recommended(plan: dict[str, Any]) -> list[str]:
    choice, n = plan["recommended"], plan["gpus"]
    if choice is not None:
        launch = "python" if n == 1 else f"torchrun --standalone --nproc_per_node={n}"
        command = f"{launch} train.py CONFIG {choice['flags']}".rstrip()
        return [f"It fits with {choice['strategy']}: {command}", ""]
    if any(r["largest_batch_size"] for r in plan["memory"]):
        sequences = plan["tokens_per_step"] // plan["block_size"]
        return [
            f"A step of {sequences} sequences cannot be divided among {n} GPUs: change batch_size, "
            "gradient_accumulation_steps or --gpus",
            "",
        ]
    return ["It does not fit: take more GPUs, GPUs with more memory, or a shorter block_size.", ""]


def time(plan: dict[str, Any]) -> list[str]:
    work, full = plan["flops_per_token"] / 1e9, plan["flops_per_token_full_attention"] / 1e9
    source = plan["mfu_source"] or "neither stated (--mfu=0.4) nor measured (--measured=OUT_DIR): a range"
    lines = [
        f"{work:.2f} GFLOP a token ({full:.2f} if attention were not causal), {plan['steps']:,} steps of "
        f"{plan['tokens_per_step']:,} tokens, {human(plan['tokens'])} tokens, {plan['flops']:.3g} FLOPs",
        f"MFU: {source}",
    ]
    head = ["MFU", "tokens/s", "days per B tokens", "days", "GPU hours", "kWh at most", "price"]
    body = [
        [
            f"{t['mfu']:.1%}",
            f"{t['tokens_per_s']:,.0f}",
            f"{1e9 / t['tokens_per_s'] / 86400:.2f}",
            f"{t['days']:.2f}",
            f"{t['gpu_hours']:,.1f}",
            *("n/a" if t[name] is None else f"{t[name]:,.2f}" for name in ("kwh_at_most", "price")),
        ]
        for t in plan["time"]
    ]
    return [*lines, *aligned(head, body, texts=0), ""]


def disk(plan: dict[str, Any]) -> list[str]:
    d = plan["disk"]
    total = d["checkpoint_gb"] * d["checkpoints"]
    there = f"; the dataset has {human(d['dataset_tokens'])}" if d["dataset_tokens"] else ""
    return [
        f"Checkpoint: {d['checkpoint_gb']:.1f} GB, {d['checkpoint_s']:.0f} s; room for {d['checkpoints']}: {total:.0f} GB",
        f"Data: {d['data_gb']:.1f} GB if every token is seen once{there}",
        "",
    ]


def chinchilla(plan: dict[str, Any]) -> list[str]:
    head = ["law", "parameters", "tokens", "tokens/parameter", "loss", "loss of this run"]
    body = [
        [
            r["law"],
            human(r["params"]),
            human(r["tokens"]),
            f"{r['tokens_per_param']:.1f}",
            f"{r['loss']:.3f}",
            f"{r['loss_of_this_run']:.3f}",
        ]
        for r in plan["chinchilla"]
    ]
    title = f"This run: {plan['tokens_per_param']:.1f} tokens a parameter. Optimum of as many FLOPs (6 N D):"
    return [title, *aligned(head, body)]


def budget(plan: dict[str, Any]) -> list[str]:
    days = "" if plan["days"] is None else f", {plan['days']:.2f} days"
    head = ["layers", "width", "heads", "KV heads", "d_ff", "parameters", "tokens", "tokens/parameter"]
    body = [
        [
            *(str(s[name]) for name in ("n_layer", "n_embd", "n_head", "num_key_value_heads", "d_ff")),
            human(s["params"]),
            human(s["tokens"]),
            f"{s['tokens_per_param']:.1f}",
            *(f"{s['loss'][law.source]:.4f}" for law in LAWS),
        ]
        for s in plan["shapes"]
    ]
    title = f"{plan['budget_flops']:.3g} FLOPs{days}; each width at its best depth, best first by {BESIROGLU.source}:"
    return [title, *aligned([*head, *(f"loss, {law.source}" for law in LAWS)], body, texts=0)]
