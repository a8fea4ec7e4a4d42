"""The numbers of runs as rows, notes and tables: for a terminal, a pipe, Markdown."""

import os
import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

from analysis.align import Group, value_at
from analysis.runs import BITS, LOSS, Run, ranking_key

WORDS = (
    "run",
    "architecture",
    "status",
    "at equal",
    "configuration",
    "against the noise",
    "field",
)  # to the left


def summarise(run: Run, common: float | None, common_flops: float | None) -> dict[str, Any]:
    """The numbers of one run, None for unknown. tokens_per_s and mfu are medians over the train events, so
    that the first steps, which compile, do not move them; best_* is the lowest evaluation; the value at
    common tokens or FLOPs lies where the evaluations of all end."""
    losses, bits = run.curve(LOSS), run.curve(BITS)
    model, data, hardware = run.start["model"], run.start.get("data") or {}, run.start.get("hardware") or {}
    names = ("tokens_per_s", "mfu", "memory_gb", "grad_norm")
    logged = {k: [e[k] for e in run.trains if e.get(k) is not None] for k in names}
    return {
        "out_dir": run.out_dir,
        "label": run.label,
        "seed": run.seed,
        "logs": [str(path) for path in run.files],
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


def notes_on(
    runs: Sequence[Run],
    rows: Sequence[dict[str, Any]],
    common: float | None,
    groups: Sequence[Group],
    diff: dict[str, list[Any]],
    leads: Sequence[dict[str, Any]],
) -> list[str]:
    """What a reader must know before comparing the rows."""
    notes = []
    if len(diff) == 1:
        notes.append(f"The configurations differ in {next(iter(diff))} only.")
    elif diff:
        which = "data only" if list(diff) == ["data"] else f"{len(diff)} things at once ({', '.join(diff)})"
        notes.append(f"The configurations differ in {which}: what they differ by in the result is due to all of these "
                     "together and to none alone.")  # fmt: skip
    for group in groups:
        if group.repeats:
            repeated = ", ".join(run.label for run in group.repeats)
            notes.append(
                f"{repeated}: seed and configuration of another run here, so not counted as one more seed."
            )
    compared = [entry for entry in leads if entry["places"]]
    if compared and all(place["seeds"] == 1 for entry in compared for place in entry["places"]):
        notes.append(
            "One seed of each configuration: whether a gap is larger than the noise between seeds is not known."
        )
    if len({run.data for run in runs}) > 1:
        read = "bits per byte is the column to read, as far as the held-out text is the same"
        if ranking_key(runs) == BITS:
            read += "; equal tokens are then not equal text"
        else:
            read = "bits per byte would, but not every run has them"
        notes.append(
            f"The runs differ in dataset or tokenizer: loss per token does not compare between them; {read}."
        )
    counts = sorted(run.tokens for run in runs)
    if counts[0] != counts[-1]:
        note = f"The runs differ in tokens ({counts[0]:,} to {counts[-1]:,}), so their final and best losses do not compare"
        if common is not None:
            note += f"; the columns 'at {human(common)}' do: at {common:,.0f} tokens, interpolated between evaluations"
        elif sum(bool(run.evals) for run in runs) > 1:
            note += "; no token count lies within the evaluations of all of them"
        notes.append(f"{note}.")
    machines = sorted({run.machine for run in runs})
    if len(machines) > 1:
        notes.append(
            f"The runs differ in hardware ({', '.join(machines)}): tokens/s, MFU, time and memory do not compare."
        )
    for run in runs:
        facts = {
            f"{len(run.files)} logs joined": len(run.files) > 1,
            "no evaluation": not run.evals,
            "its validation loss is not finite everywhere": any(e[LOSS] is None for e in run.evals),
            "~time is the sum of its logged steps": not run.time_is_wall and run.time_s,
            f"damaged lines skipped: {run.damaged_lines}": run.damaged_lines,
            f"crashed at {run.tokens:,} tokens ({run.reason or 'its log has no run_end'})": run.status
            == "crashed",
        }
        if any(facts.values()):
            notes.append(f"{run.label}: {'; '.join(fact for fact, holds in facts.items() if holds)}.")
    return notes


def human(number: float) -> str:
    """Four significant digits: 124.3M."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:.4g}"


def clock(seconds: float) -> str:
    s = round(seconds)
    return f"{s // 3600}:{s // 60 % 60:02}:{s % 60:02}"


def cells(
    runs: Sequence[Run], rows: Sequence[dict[str, Any]], common: float | None, common_flops: float | None
) -> list[list[str]]:
    """The table as text, the header first."""
    full = {run.start["model"]["architecture_name"] for run in runs}
    unique = len(full) == len(
        {run.short_name for run in runs}
    )  # else the parenthesis is what tells them apart

    def column(key: str, form: str) -> list[str]:
        return ["n/a" if row[key] is None else format(row[key], form) for row in rows]

    columns = {
        "run": column("label", ""),
        "architecture": [run.short_name for run in runs] if unique else column("architecture_name", ""),
        "parameters": [human(row["params"]) for row in rows],
        "non-embedding": ["n/a" if (n := row["params_non_embedding"]) is None else human(n) for row in rows],
        "FLOPs/token": [human(row["flops_per_token"]) for row in rows],
        "tokens": [human(row["tokens"]) for row in rows],
        "final val loss": column("final_val_loss", ".4f"),
        "best val loss": column("best_val_loss", ".4f"),
        "best bits/byte": column("best_bits_per_byte", ".4f"),
    }
    if common is not None:
        columns[f"val loss at {human(common)}"] = column("val_loss_at_common_tokens", ".4f")
        if any(row["bits_per_byte_at_common_tokens"] is not None for row in rows):
            columns[f"bits/byte at {human(common)}"] = column("bits_per_byte_at_common_tokens", ".4f")
    if common_flops is not None:
        what, key = ("bits/byte", "bits_per_byte") if ranking_key(runs) == BITS else ("val loss", "val_loss")
        columns[f"{what} at {common_flops:.3g} FLOPs"] = column(f"{key}_at_common_flops", ".4f")
    times = [("" if run.time_is_wall else "~") + clock(run.time_s) for run in runs]
    columns |= {
        "tokens/s": column("tokens_per_s", ",.0f"),
        "MFU": column("mfu", ".1%"),
        "time": [text if run.time_s else "n/a" for run, text in zip(runs, times, strict=True)],
        "memory GB": column("memory_gb", ".2f"),
        "grad norm": column("grad_norm", ".2f"),
        "skipped": column("skipped_steps", ""),
        "spikes": column("spikes", ""),
        **({"energy kJ": [*("n/a" if (e := row["energy_j"]) is None else f"{e / 1e3:,.1f}" for row in rows)]}
           if any(row["energy_j"] is not None for row in rows) else {}),
        "status": column("status", ""),
    }  # fmt: skip
    return [list(columns), *(list(row) for row in zip(*columns.values(), strict=True))]


def is_text(column: str, grid: Sequence[Sequence[str]]) -> bool:
    return column in WORDS or grid[0][0] == "field"


def table(grid: Sequence[Sequence[str]], markdown: bool = False) -> str:
    """The cells as aligned text or as Markdown, words to the left and numbers to the right. A row is as
    long as it needs to be, whatever the terminal."""
    widths = [max(len(row[i]) for row in grid) for i in range(len(grid[0]))]
    words = [is_text(name, grid) for name in grid[0]]
    rows = [
        [c.ljust(w) if word else c.rjust(w) for c, w, word in zip(row, widths, words, strict=True)]
        for row in grid
    ]
    if not markdown:
        return "\n".join("  ".join(row).rstrip() for row in [rows[0], ["-" * w for w in widths], *rows[1:]])
    rule = ["-" * (w - 1) + ("-" if word else ":") for w, word in zip(widths, words, strict=True)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])


def on_axis(axis: str, x: float) -> str:
    return clock(x) if axis == "time" else human(x) if axis == "tokens" else f"{x:.3g}"


def standings_cells(leads: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Who leads, as text, the header first; only the header where there is nothing to rank."""
    figure = "bits/byte" if leads and leads[0]["figure"] == BITS else "val loss"
    grid = [["at equal", "configuration", "seeds", figure, "spread", "gap", "against the noise"]]
    for entry in leads:
        done = "" if entry["of"] == "all" else ", of those done"
        x = entry["at"]
        where = entry["axis"] + ("" if x is None else f" ({on_axis(entry['axis'], x)})") + done
        if not entry["places"]:
            grid.append([where, f"not compared: {entry['why']}", *[""] * 5])
        for i, place in enumerate(entry["places"]):
            noise = (
                "not known" if place["p"] is None else "larger" if place["larger_than_noise"] else "within"
            )
            grid.append([
                "" if i else where,
                place["configuration"],
                str(place["seeds"]),
                f"{place['mean']:.4f}",
                "n/a" if place["spread"] is None else f"{place['spread']:.4f}",
                f"{place['gap']:+.4f}" if i else "leads" if all(other["gap"] for other in entry["places"][1:]) else "level",
                "" if not i else noise + ("" if place["p"] is None else f" (p = {place['p']:.2g})"),
            ])  # fmt: skip
    return grid


def standings_lines(leads: Sequence[dict[str, Any]]) -> list[str]:
    """The winner of each axis in a sentence."""
    lines = []
    for entry in (entry for entry in leads if len(entry["places"]) > 1):
        first, second = entry["places"][:2]
        if not second["gap"]:
            continue
        noise = {None: "of unknown noise", True: "larger than the noise", False: "within the noise"}[
            second["larger_than_noise"]
        ]
        since, (low, high) = entry["leads_since"], entry["range"]
        share = 1.0 if since is None or high == low else (high - since) / (high - low)
        fields = second["differs_in"]
        what = (
            f"in {fields[0]} alone"
            if len(fields) == 1
            else f"in {len(fields)} things at once"
            if fields
            else "in no field"
        )
        of = "" if entry["of"] == "all" else ", of the runs that are done"
        lines.append(
            f"At equal {entry['axis']}{of}: {first['configuration']} leads {second['configuration']} by {second['gap']:.4f}, "
            f"{noise}; it has led for the last {share:.0%} of the common range; the two differ {what}."
        )
    return lines


def diff_cells(groups: Sequence[Group], diff: dict[str, list[Any]]) -> list[list[str]]:
    """What differs between the configurations, a row each field."""
    shown = {
        name: ["-" if v is None else v[:12] if name == "data" else str(v) for v in values]
        for name, values in diff.items()
    }
    return [
        ["field", *(group.label for group in groups)],
        *([name, *values] for name, values in shown.items()),
    ]


def show(grid: Sequence[Sequence[str]]) -> None:
    """A table on stdout: with rich where it is installed and a person reads it, in blocks of columns where
    the terminal is narrow; else as plain text, a row as long as it needs to be."""
    try:
        from rich.console import Console
        from rich.table import Table
    except ImportError:
        Console = None
    if Console is None or not sys.stdout.isatty():
        print(table(grid), flush=True)
        return
    console = Console()
    widths = [max(len(row[i]) for row in grid) + 3 for i in range(len(grid[0]))]
    blocks, used = [[0]], widths[0] + 1
    for i in range(1, len(widths)):
        if used + widths[i] > console.width and len(blocks[-1]) > 1:
            blocks.append([0])
            used = widths[0] + 1
        blocks[-1].append(i)
        used += widths[i]
    for block in blocks:
        shown = Table()
        for i in block:
            shown.add_column(
                grid[0][i], justify="left" if is_text(grid[0][i], grid) else "right", overflow="fold"
            )
        for row in grid[1:]:
            style = {"crashed": "red", "running": "yellow", "stopped": "yellow"}.get(row[-1])
            shown.add_row(*(row[i].replace("[", r"\[") for i in block), style=style)
        console.print(shown)
