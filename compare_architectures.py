"""Run logs -> one fair table, the curves, and the numbers behind them.

    python compare_architectures.py --latest 3                     # the newest runs of out*/ and out*/*/
    python compare_architectures.py out-gpt2 'out-qwen3/run_*.jsonl' --out=comparison

A run is named by its folder (the newest run in it), by a log file or by a pattern. The table goes to stdout, and with the
curves and all the numbers to comparison.md, comparison.png and comparison.json in --out (default comparison/).

A resumed run writes a new log with start_step > 0; the logs of a folder that continue each other are one run here.
"""

import glob
import io
import json
import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import median
from typing import Any

from model_config import did_you_mean
from training.config import parse_flags, user_errors

SILENCE_S = 300  # a log without run_end that grew less than this ago belongs to a run that is still going
BITS, LOSS = "val_bits_per_byte", "val_loss"

# What an event must have to be of use, and which fields are numbers, or null, where they are there.
NEEDED = {"run_start": ("config", "model"), "train": ("step", "loss"), "eval": ("step", LOSS), "run_end": ("reason",)}
NUMBERS = ("time", "start_step", "step", "tokens", "loss", LOSS, BITS, "dt_ms", "tokens_per_s", "mfu", "memory_gb", "wall_s")

# Okabe and Ito 2008: told apart by colour-blind readers too. Their yellow is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":")  # from the eighth run on


@dataclass
class Run:
    """One training run, its logs joined. Events are in the order of steps, without the steps that a resume took back."""

    files: list[Path]
    out_dir: str
    start: dict[str, Any]  # run_start of the newest log
    trains: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    tokens: int
    time_s: float  # of training, without evaluation and saving
    time_is_wall: bool  # as run_end has it, else the sum of the logged steps
    status: str  # done, stopped (by a signal), crashed, running
    reason: str | None  # of the newest log's run_end, if it has one
    damaged_lines: int
    label: str = ""  # out_dir, and which run in it where the comparison has several

    def curve(self, key: str) -> list[tuple[int, float]]:
        """(tokens, value) of each evaluation that has the value."""
        return [(e["tokens"], e[key]) for e in self.evals if e.get(key) is not None]

    def best(self, key: str) -> float | None:
        return min((value for _, value in self.curve(key)), default=None)


def parse_event(line: str) -> dict[str, Any] | None:
    """The event on one line of a log, its figures numbers or None (as is what was not finite); None for a damaged line."""
    try:
        event = json.loads(line, parse_constant=lambda _: None)
    except ValueError:
        return None
    if not isinstance(event, dict) or not all(event.get(key) is None or is_number(event[key]) for key in NUMBERS):
        return None
    kind = event.get("event")
    if not isinstance(kind, str) or any(key not in event for key in NEEDED.get(kind, ())):
        return None
    if kind in ("train", "eval") and not isinstance(event["step"], int):
        return None
    if kind == "run_start":
        config, model = event["config"], event["model"]
        if not isinstance(config, dict) or not isinstance(config.setdefault("train", {}), dict) or not isinstance(model, dict):
            return None
        if not (is_number(model.get("params")) and is_number(model.get("flops_per_token"))):
            return None
        return event if isinstance(model.get("architecture_name"), str) else None
    return event


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def read_start(path: Path) -> dict[str, Any] | None:
    """The run_start event of a log, found without reading on."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return next((e for e in map(parse_event, file) if e and e.get("event") == "run_start"), None)


def join_logs(paths: Iterable[Path]) -> tuple[list[tuple[float, list[Path]]], dict[Path, str]]:
    """The runs that the logs of one folder make up, oldest first, each as (unix time of its last start, logs that continue
    each other), and a line on each log that begins no run."""
    starts, left_out = [], {}
    for path in paths:
        start = read_start(path)
        start_step = (start or {}).get("start_step") or 0
        if start is None:
            left_out[path] = f"{path} {'has no run_start' if path.stat().st_size else 'is empty'}"
        elif start_step > 0 and start["config"]["train"].get("eval_only"):
            left_out[path] = f"{path} only evaluates a checkpoint"  # perhaps while the run that it is from goes on
        else:
            starts.append((start.get("time") or path.stat().st_mtime, path, start_step))
    chains: list[tuple[float, list[Path]]] = []
    for started, path, start_step in sorted(starts):
        chains.append((started, [*chains.pop()[1], path] if start_step > 0 and chains else [path]))
    return chains, left_out


def find_runs(words: Sequence[str], latest: int | None) -> tuple[list[list[Path]], list[str]]:
    """The logs of each run asked for, by words (folders, files, patterns) or as the `latest` newest below the current
    folder, and a line on each log that was passed over. Raises ValueError where there is nothing to compare."""
    runs: list[list[Path]] = []
    left_out: dict[Path, str] = {}
    if latest is not None:
        if words:
            raise ValueError(f"--latest={latest} and {words[0]} are two ways to choose the runs: give one")
        if latest < 1:
            raise ValueError(f"--latest={latest} must be at least 1")
        chains = []
        for folder in {path.parent for pattern in ("out*", "out*/*") for path in Path().glob(f"{pattern}/run_*.jsonl")}:
            found, passed_over = join_logs(folder.glob("run_*.jsonl"))
            chains += found
            left_out |= passed_over
        runs = [files for _, files in sorted(chains)[-latest:]]
    elif not words:
        raise ValueError("which runs? Name folders or logs of runs, or say --latest=3")
    for path in [Path(p) for word in words for p in ([word] if os.path.exists(word) else sorted(glob.glob(word)) or [word])]:
        if not path.exists():
            raise ValueError(f"{path} is not there{did_you_mean(path, map(str, Path().glob('out*')))}")
        if path.is_dir():
            found, passed_over = join_logs(path.glob("run_*.jsonl"))
            if not found and not passed_over:
                raise ValueError(f"{path} holds no run_*.jsonl: name the out_dir of a run")
            runs += [files for _, files in found[-1:]]
            left_out |= passed_over
        else:  # the run that the log is a part of
            found, passed_over = join_logs({path, *path.parent.glob("run_*.jsonl")})
            runs += [files for _, files in found if path in files]
            left_out |= {p: line for p, line in passed_over.items() if p == path}
    if not runs:
        reasons = "; ".join(left_out.values()) or f"no out*/run_*.jsonl below {Path.cwd()}"
        raise ValueError(f"no run to compare: {reasons}. Train one first, or name its folder")
    return list({tuple(path.resolve() for path in files): files for files in reversed(runs)}.values()), sorted(
        left_out.values()
    )


def read_run(files: Sequence[Path]) -> Run:
    """The logs of one run, oldest first, as one."""
    joined: dict[tuple[str, int], dict[str, Any]] = {}
    damaged = 0
    for path in files:
        with open(path, encoding="utf-8", errors="replace") as file:
            parsed = [parse_event(line) for line in file if line.strip()]
        events = [event for event in parsed if event is not None]
        damaged += len(parsed) - len(events)
        start = next(e for e in events if e["event"] == "run_start")
        end = next((e for e in reversed(events) if e["event"] == "run_end"), {})
        # What the earlier log did beyond the checkpoint that this one began from is lost.
        before = begin = start.get("start_step") or 0
        joined = {at: event for at, event in joined.items() if at[1] <= begin}
        tokens_per_step = 0.0
        for event in [e for e in events if e["event"] in ("train", "eval")]:
            step = event["step"]
            if event["event"] == "train":  # dt_ms is the mean over the steps since the event before
                event["s"], before = (event.get("dt_ms") or 0) / 1e3 * (step - before), step
                tokens_per_step = (event.get("tokens") or 0) / max(1, step)
            if event.get("tokens") is None:
                event["tokens"] = round(step * tokens_per_step)
            joined[event["event"], step] = event
    trains, evals = ([joined[at] for at in sorted(joined) if at[0] == kind] for kind in ("train", "eval"))
    tokens = max((e["tokens"] for e in (*trains[-1:], *evals[-1:], end) if e.get("tokens")), default=0)
    folder, out_dir = files[-1].parent, start["config"]["train"].get("out_dir")
    if not isinstance(out_dir, str) or (folder != Path() and folder.resolve() != Path(out_dir).resolve()):
        out_dir = folder  # its logs were copied from elsewhere
    wall_s = end.get("wall_s")  # counts the sessions before a resume too, as the sum does
    time_s = sum(e["s"] for e in trains) if wall_s is None else wall_s
    if end:
        reason = str(end["reason"])
        status = {"signal": "stopped", "error:": "crashed"}.get(reason.partition(" ")[0], reason)
    else:
        reason, status = None, "crashed" if time.time() - files[-1].stat().st_mtime > SILENCE_S else "running"
    return Run(
        list(files), str(Path(out_dir)), start, trains, evals, tokens, time_s, wall_s is not None, status, reason, damaged
    )


def read_runs(chains: Iterable[Sequence[Path]]) -> list[Run]:
    """All the runs, the best first."""
    runs = [read_run(files) for files in chains]
    often = Counter(run.out_dir for run in runs)
    for run in runs:
        run.label = run.out_dir if often[run.out_dir] == 1 else f"{run.out_dir} ({run.files[0].stem.removeprefix('run_')})"
    key = ranking_key(runs)
    return sorted(runs, key=lambda run: (math.inf if run.best(key) is None else run.best(key), run.label))


def ranking_key(runs: Sequence[Run]) -> str:
    """Bits per byte where every evaluated run has them, else validation loss: what ranks the runs and is drawn."""
    evaluated = [run for run in runs if run.evals]
    return BITS if evaluated and all(run.best(BITS) is not None for run in evaluated) else LOSS


def common_tokens(runs: Sequence[Run]) -> int | None:
    """The largest token count inside the evaluations of every evaluated run; None where there is none, and where it is not
    needed because they all end at the same count."""
    curves = [curve for run in runs if (curve := run.curve(LOSS))]
    ends = {points[-1][0] for points in curves}
    return min(ends) if len(ends) > 1 and max(points[0][0] for points in curves) <= min(ends) else None


def value_at(points: Sequence[tuple[int, float]], tokens: int | None) -> float | None:
    """The value at a token count, on the line between the evaluations around it; None outside of them."""
    if not points or tokens is None or not points[0][0] <= tokens <= points[-1][0]:
        return None
    for (a, before), (b, after) in pairwise([points[0], *points]):
        if tokens <= b:
            return after if tokens == b else before + (after - before) * (tokens - a) / (b - a)


def summarise(run: Run, common: int | None) -> dict[str, Any]:
    """The numbers of one run, None for unknown. tokens_per_s and mfu are medians over the train events, so that the first
    steps, which compile, do not move them; best_* is the lowest evaluation."""
    losses, bits = run.curve(LOSS), run.curve(BITS)
    model, data, hardware = run.start["model"], run.start.get("data") or {}, run.start.get("hardware") or {}
    logged = {k: [e[k] for e in run.trains if e.get(k) is not None] for k in ("tokens_per_s", "mfu", "memory_gb")}
    return {
        "out_dir": run.out_dir,
        "label": run.label,
        "logs": [str(path) for path in run.files],
        **{k: model.get(k) for k in ("architecture_name", "params", "params_non_embedding", "flops_per_token")},
        **{k: data.get(k) for k in ("dataset", "fingerprint", "bytes_per_token")},
        **{k: hardware.get(k) for k in ("device_name", "world_size")},
        "tokens": run.tokens,
        "training_flops": model["flops_per_token"] * run.tokens,
        "final_val_loss": run.evals[-1][LOSS] if run.evals else None,
        "best_val_loss": run.best(LOSS),
        "final_bits_per_byte": run.evals[-1].get(BITS) if run.evals else None,
        "best_bits_per_byte": run.best(BITS),
        "val_loss_at_common_tokens": value_at(losses, common),
        "bits_per_byte_at_common_tokens": value_at(bits, common),
        "tokens_per_s": median(logged["tokens_per_s"]) if logged["tokens_per_s"] else None,
        "mfu": median(logged["mfu"]) if logged["mfu"] else None,
        "memory_gb": max(logged["memory_gb"], default=None),
        "time_s": run.time_s,
        "time_is_wall": run.time_is_wall,
        "status": run.status,
        "reason": run.reason,
        "damaged_lines": run.damaged_lines,
        "evaluations": [[e["step"], e["tokens"], e[LOSS], e.get(BITS)] for e in run.evals],
    }


def notes_on(runs: Sequence[Run], rows: Sequence[dict[str, Any]], common: int | None) -> list[str]:
    """What a reader must know before comparing the rows."""
    notes = []
    if len({row["fingerprint"] or row["dataset"] for row in rows}) > 1:
        read = "bits per byte is the column to read, as far as the held-out text is the same"
        if ranking_key(runs) != BITS:
            read = "bits per byte would, but not every run has them"
        notes.append(f"The runs differ in dataset or tokenizer: loss per token does not compare between them; {read}.")
    counts = sorted(run.tokens for run in runs)
    if counts[0] != counts[-1]:
        note = f"The runs differ in tokens ({counts[0]:,} to {counts[-1]:,}), so their final and best losses do not compare"
        if common is not None:
            note += f"; the columns 'at {human(common)}' do: at {common:,} tokens, interpolated between evaluations"
        elif sum(bool(run.evals) for run in runs) > 1:
            note += "; no token count lies within the evaluations of all of them"
        notes.append(f"{note}.")
    machines = sorted({f"{row['world_size']} x {row['device_name']}" for row in rows})
    if len(machines) > 1:
        notes.append(f"The runs differ in hardware ({', '.join(machines)}): tokens/s, MFU, time and memory do not compare.")
    for run in runs:
        facts = {
            f"{len(run.files)} logs joined": len(run.files) > 1,
            "no evaluation": not run.evals,
            "its validation loss is not finite everywhere": any(e[LOSS] is None for e in run.evals),
            "~time is the sum of its logged steps": not run.time_is_wall and run.time_s,
            f"damaged lines skipped: {run.damaged_lines}": run.damaged_lines,
            f"crashed at {run.tokens:,} tokens ({run.reason or 'its log has no run_end'})": run.status == "crashed",
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


def short_name(run: Run) -> str:
    return run.start["model"]["architecture_name"].partition(" (")[0]


def cells(runs: Sequence[Run], rows: Sequence[dict[str, Any]], common: int | None) -> list[list[str]]:
    """The table as text, the header first."""
    full = {run.start["model"]["architecture_name"] for run in runs}
    unique = len(full) == len({short_name(run) for run in runs})  # else the parenthesis is what tells them apart

    def column(key: str, form: str) -> list[str]:
        return ["n/a" if row[key] is None else format(row[key], form) for row in rows]

    columns = {
        "run": column("label", ""),
        "architecture": [short_name(run) for run in runs] if unique else column("architecture_name", ""),
        "parameters": [human(row["params"]) for row in rows],
        "tokens": [human(row["tokens"]) for row in rows],
        "final val loss": column("final_val_loss", ".4f"),
        "best val loss": column("best_val_loss", ".4f"),
        "best bits/byte": column("best_bits_per_byte", ".4f"),
    }
    if common is not None:
        columns[f"val loss at {human(common)}"] = column("val_loss_at_common_tokens", ".4f")
        if any(row["bits_per_byte_at_common_tokens"] is not None for row in rows):
            columns[f"bits/byte at {human(common)}"] = column("bits_per_byte_at_common_tokens", ".4f")
    times = [("" if run.time_is_wall else "~") + clock(run.time_s) for run in runs]
    columns |= {
        "tokens/s": column("tokens_per_s", ",.0f"),
        "MFU": column("mfu", ".1%"),
        "time": [text if run.time_s else "n/a" for run, text in zip(runs, times, strict=True)],
        "memory GB": column("memory_gb", ".2f"),
        "status": column("status", ""),
    }
    return [list(columns), *(list(row) for row in zip(*columns.values(), strict=True))]


def table(grid: Sequence[Sequence[str]], markdown: bool = False) -> str:
    """The cells as aligned text or as Markdown, words to the left and numbers to the right. A row is as long as it needs to
    be, whatever the terminal."""
    widths = [max(len(row[i]) for row in grid) for i in range(len(grid[0]))]
    words = [name in ("run", "architecture", "status") for name in grid[0]]
    rows = [[c.ljust(w) if word else c.rjust(w) for c, w, word in zip(row, widths, words, strict=True)] for row in grid]
    if not markdown:
        return "\n".join("  ".join(row).rstrip() for row in [rows[0], ["-" * w for w in widths], *rows[1:]])
    rule = ["-" * (w - 1) + ("-" if word else ":") for w, word in zip(widths, words, strict=True)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [rows[0], rule, *rows[1:]])


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean over 2 % of the points to either side; at the steep beginning over as few as keep it symmetric."""
    n, sums = len(values), [0.0, *accumulate(values)]
    window = max(1, n // 50)
    spans = [(i - min(i, window), i + min(i, window, n - 1 - i) + 1) for i in range(n)]
    return [(sums[b] - sums[a]) / (b - a) for a, b in spans]


def plot(runs: Sequence[Run]) -> bytes:
    """A PNG of two panels: the ranking figure over tokens and over training FLOPs, the smoothed training loss faint behind
    it."""
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no window, nothing global, and Agg draws the PNG
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter, LogFormatterSciNotation, LogLocator, MaxNLocator, NullFormatter

    key = ranking_key(runs)
    handles, curves = [], []
    for i, run in enumerate(runs):
        look = dict(color=COLOURS[i % len(COLOURS)], linestyle=DASHES[i // len(COLOURS) % len(DASHES)])
        points = run.curve(key)
        # Loss per token to the panel's unit, by the bytes in a token that the run's last evaluation saw.
        ratios = [e[key] / e[LOSS] for e in run.evals if e.get(key) and e[LOSS]]
        scale = ratios[-1] if ratios else 1.0 if key == LOSS else None
        trains = [(e["tokens"], e["loss"] * scale) for e in run.trains if e["loss"] is not None and scale]
        behind = list(zip([x for x, _ in trains], smoothed([y for _, y in trains]), strict=True))
        curves.append((run, look, points, behind))
        where = min(run.label, os.path.relpath(run.label), key=len)
        label = f"{short_name(run)}, {where}{'' if points else ' (no evaluation)'}".replace("$", r"\$")
        handles.append(Line2D([], [], **look, label=label))
    handles.append(Line2D([], [], color="#999999", linewidth=0.9, label="training loss, smoothed"))
    if any(run.status == "crashed" for run in runs):
        handles.append(Line2D([], [], color="#555555", marker="x", markeredgewidth=1.5, linestyle="", label="crashed"))
    lengths = [len(handle.get_label()) + 8 for handle in handles]  # with the line and the gap; about 130 fit the width
    n_columns = len(handles) if sum(lengths) <= 130 else max(1, 130 // max(lengths))
    # The evaluations set the frame; where no run has two of them, training does.
    evaluated = any(sum(x > 0 for x, _ in points) > 1 for _, _, points, _ in curves)
    marker = "o" if max(len(points) for _, _, points, _ in curves) <= 20 else None
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "axes.grid": True,
             "axes.axisbelow": True, "grid.color": "#e8e8e8", "grid.linewidth": 0.6, "legend.frameon": False}  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(9.0, 3.5 + 0.2 * math.ceil(len(handles) / n_columns)), layout="constrained")
        figure.get_layout_engine().set(wspace=0.04)
        panels = figure.subplots(1, 2, sharey=True)
        ys = []
        for ax in panels:
            xs = []
            for run, look, points, behind in curves:
                per_token = 1 if ax is panels[0] else run.start["model"]["flops_per_token"]
                # Step 0 is ln(vocabulary) for every run: on no log axis, and not worth the height that the differences need.
                points, behind = ([(x * per_token, y) for x, y in c if x > 0] for c in (points, behind))
                if behind:
                    ax.plot(*zip(*behind, strict=True), **look, linewidth=0.9, alpha=0.35 if points else 0.8)
                if points:
                    ax.plot(*zip(*points, strict=True), **look, linewidth=1.6, marker=marker, markersize=3.5)
                if run.status == "crashed" and (points or behind):
                    ax.plot(*(points or behind)[-1], color=look["color"], marker="x", markersize=8, markeredgewidth=2, zorder=5)
                framed = points + behind[-1:] if evaluated else points + behind
                xs += [x for x, _ in framed]
                ys += [y for _, y in framed]
            ratio = max(xs, default=1) / min(xs, default=1)
            if ratio >= 20:
                ax.set_xscale("log")
                ax.set_xlim(min(xs) / 1.1, max(xs) * 1.15)
                ax.xaxis.set_major_locator(LogLocator(subs=(1,) if ratio > 1e3 else (1, 3) if ax is panels[1] else (1, 2, 5)))
                ax.xaxis.set_minor_formatter(NullFormatter())
            else:
                ax.xaxis.set_major_locator(MaxNLocator(5))
                ax.set_xlim(left=0)
        if ys:
            margin = 0.05 * (max(ys) - min(ys)) or 0.1
            panels[0].set_ylim(min(ys) - margin, max(ys) + margin)
        panels[0].xaxis.set_major_formatter(FuncFormatter(lambda x, _: human(x)))
        panels[1].xaxis.set_major_formatter(LogFormatterSciNotation(minor_thresholds=(math.inf, math.inf)))
        panels[1].tick_params(axis="y", left=False)
        panels[0].set_xlabel("Training tokens")
        panels[1].set_xlabel("Training compute (FLOPs)")
        what = "Validation" if any(run.evals for run in runs) else "Training"
        panels[0].set_ylabel(f"{what} bits per byte" if key == BITS else f"{what} loss (nats per token)")
        figure.legend(handles=handles, loc="outside lower center", ncols=n_columns)
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=200, bbox_inches="tight", pad_inches=0.08)
    return image.getvalue()


def write_atomically(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def main(argv: Sequence[str]) -> None:
    if {"-h", "--help"} & set(argv):
        print(__doc__.strip())
        return
    with user_errors():
        words, flags = parse_flags(argv, {"latest": int, "out": str})
        chains, left_out = find_runs(words, flags.get("latest"))
        out = Path(flags.get("out", "comparison"))
        try:
            out.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=out).close()
        except OSError as error:
            raise ValueError(f"--out={out} cannot be written to ({error.strerror}): name another folder") from error
    for line in left_out:
        print(f"compare_architectures.py: left out: {line}", file=sys.stderr)

    runs = read_runs(chains)
    common = common_tokens(runs)
    rows = [summarise(run, common) for run in runs]
    notes, grid = notes_on(runs, rows, common), cells(runs, rows, common)
    print(table(grid), *(f"- {note}" for note in notes), sep="\n", flush=True)

    report = {"sorted_by": ranking_key(runs), "common_tokens": common, "notes": notes, "runs": rows}
    write_atomically(out / "comparison.json", (json.dumps(report, indent=1) + "\n").encode())
    listed = "".join(f"- {note}\n" for note in notes)
    text = f"{table(grid, markdown=True)}\n\n{listed}\n![The curves](comparison.png)\n"
    write_atomically(out / "comparison.md", text.encode())
    with user_errors():
        try:
            import matplotlib  # noqa: F401
        except ImportError as error:
            raise ImportError(f"{out}/comparison.png needs matplotlib: pip install matplotlib") from error
    write_atomically(out / "comparison.png", plot(runs))
    print(f"wrote {out}/comparison.md, comparison.json and comparison.png")


if __name__ == "__main__":
    main(sys.argv[1:])
