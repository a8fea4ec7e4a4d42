"""A plan as text."""

from typing import Any

from base.text import human, table
from planning.scaling import BESIROGLU, LAWS


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
    lines += [*rows_of(["strategy", "checkpointing", *columns, "fits", "largest"], body), ""]
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
    lines += [*rows_of(head, body), ""]
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
    return lines + rows_of(head, body)


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
    return lines + rows_of([*head, *(f"loss, {law.source}" for law in LAWS)], body)


def rows_of(head: list[str], body: list[list[str]]) -> list[str]:
    return table([head, *body], left=[True] * len(head), rule=False).splitlines()
