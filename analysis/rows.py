"""The numbers of one run, as comparison.json holds them."""

import os
from statistics import median
from typing import Any

from analysis.alignment import value_at
from analysis.logs import BITS, LOSS, on_one_line
from analysis.runs import Run


def summarise(run: Run, common: float | None, common_flops: float | None) -> dict[str, Any]:
    """The numbers of one run, None for unknown. tokens_per_s and mfu are medians over the train events, so
    that the first steps, which compile, do not move them; best_* is the lowest evaluation; the value at
    common tokens or FLOPs lies where the evaluations of all end."""
    losses, bits = run.curve(LOSS), run.curve(BITS)
    model, data, hardware = run.model, run.start["data"], run.start["hardware"]
    names = ("tokens_per_s", "mfu", "memory_gb", "grad_norm")
    logged = {k: [e[k] for e in run.trains if e.get(k) is not None] for k in names}
    return {
        "out_dir": run.out_dir,
        "label": run.label,
        "seed": run.seed,
        "logs": [on_one_line(str(path)) for path in run.files],
        **{
            k: model.get(k)
            for k in ("architecture_name", "params", "params_non_embedding", "flops_per_token")
        },
        "dataset": short_path(data.get("dataset")),
        **{k: data.get(k) for k in ("fingerprint", "bytes_per_token")},
        **{k: hardware.get(k) for k in ("device_name", "world_size")},
        "tokens": run.tokens,
        "training_flops": model["flops_per_token"] * run.tokens,
        "final_val_loss": run.evals[-1][LOSS] if run.evals else None,
        "best_val_loss": run.best(LOSS),
        "final_bits_per_byte": run.evals[-1].get(BITS) if run.evals else None,
        "best_bits_per_byte": run.best(BITS),
        "val_loss_at_common_tokens": value_at(losses, common),
        "bits_per_byte_at_common_tokens": value_at(bits, common),
        "val_loss_at_common_flops": value_at(run.curve(LOSS, "FLOPs"), common_flops),
        "bits_per_byte_at_common_flops": value_at(run.curve(BITS, "FLOPs"), common_flops),
        "tokens_per_s": median(logged["tokens_per_s"]) if logged["tokens_per_s"] else None,
        "mfu": median(logged["mfu"]) if logged["mfu"] else None,
        "memory_gb": max(logged["memory_gb"], default=None),
        "grad_norm": median(logged["grad_norm"]) if logged["grad_norm"] else None,
        "grad_norm_max": max(logged["grad_norm"], default=None),
        "skipped_steps": run.skipped_steps,
        "spikes": run.spikes() if run.trains else None,
        "energy_j": run.energy_j,
        "time_s": run.time_s,
        "time_is_wall": run.time_is_wall,
        "status": run.status,
        "reason": run.reason,
        "damaged_lines": run.damaged_lines,
        "evaluations": [[e["step"], e["tokens"], e[LOSS], e.get(BITS)] for e in run.evals],
        "evaluated_at_s": [run.seconds_at(e["step"]) for e in run.evals],
    }


def short_path(path: str | None) -> str | None:
    """Relative to the current folder where that is shorter, so that a published report does not name a
    machine's folders."""
    return min(path, os.path.relpath(path), key=len) if path and os.path.isabs(path) else path
