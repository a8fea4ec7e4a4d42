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

# What an event must have to be of use, and which fields are numbers, or null, where they are there.
NEEDED = {"run_start": ("config", "model"), "train": ("step", "loss"), "eval": ("step", "val_loss"), "run_end": ("reason",)}
NUMBERS = ("time", "start_step", "step", "tokens", "loss", "val_loss", "val_bits_per_byte", "dt_ms", "tokens_per_s", "mfu",
           "memory_gb", "wall_s")  # fmt: skip


@dataclass
class Run:
    """One training run, its logs joined. The curves are in the order of steps, without the steps that a resume took back."""

    out_dir: str
    files: list[Path]
    start: dict[str, Any]  # run_start of the newest log
    trains: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    time_s: float | None
    time_is_wall: bool  # else the sum of the logged steps, without start-up, evaluation and saving
    reason: str | None  # of the newest log's run_end, if it has one
    status: str  # done, stopped (by a signal), crashed, running
    damaged_lines: int
    label: str  # out_dir, and which run in it where the comparison has several

    @property
    def tokens(self) -> int:
        return max((events[-1]["tokens"] for events in (self.trains, self.evals) if events), default=0)

    @property
    def architecture(self) -> str:
        return self.start["model"]["architecture_name"]

    @property
    def data(self) -> dict[str, Any]:
        return self.start.get("data") or {}

    def has_bytes(self) -> bool:
        return any(math.isfinite(value) for _, value in self.curve("val_bits_per_byte"))

    def curve(self, key: str) -> list[tuple[int, float]]:
        """(tokens, value) of each evaluation that has the value."""
        return [(e["tokens"], e[key]) for e in self.evals if e.get(key) is not None]


def parse_event(line: str) -> dict[str, Any] | None:
    """The event on one line of a log; None for a damaged line."""
    try:
        event = json.loads(line)
    except ValueError:
        return None
    if not isinstance(event, dict) or any(key not in event for key in NEEDED.get(str(event.get("event")), ())):
        return None
    if not all(isinstance(event.get(key), int | float | None) for key in NUMBERS):
        return None
    if event.get("event") in ("train", "eval") and not isinstance(event["step"], int):
        return None
    if event.get("event") == "run_start":
        model = event["model"]
        if not isinstance(model, dict) or not {"architecture_name", "params", "flops_per_token"} <= model.keys():
            return None
    for key in ("loss", "val_loss"):  # JSON has no NaN: a loss that was not finite may come back as null
        if key in event and event[key] is None:
            event[key] = math.nan
    return event


def read_start(path: Path) -> dict[str, Any] | None:
    """The run_start event of a log, found without reading the rest."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return next((e for e in map(parse_event, file) if e and e.get("event") == "run_start"), None)


def chains_of(folder: Path) -> tuple[list[tuple[float, list[Path]]], list[str]]:
    """The runs of one folder, oldest first, each as (unix time of its last start, logs that continue each other), and a
    line on each log that begins no run."""
    starts, left_out = [], []
    for path in sorted(folder.glob("run_*.jsonl")):
        start = read_start(path)
        if start is None:
            left_out.append(f"{path} {'has no run_start' if path.stat().st_size else 'is empty'}")
        else:
            starts.append((start.get("time") or path.stat().st_mtime, path, start.get("start_step") or 0))
    chains: list[tuple[float, list[Path]]] = []
    for started, path, start_step in sorted(starts):
        chains.append((started, [*chains.pop()[1], path] if start_step > 0 and chains else [path]))
    return chains, left_out


def find_runs(words: Sequence[str], latest: int | None) -> tuple[list[list[Path]], list[str]]:
    """The logs of each run asked for, by words (folders, files, patterns) or as the `latest` newest below the current
    folder, and a line on each log that was passed over. Raises ValueError where there is nothing to compare."""
    left_out: list[str] = []
    if latest is not None:
        if words:
            raise ValueError(f"--latest={latest} and {words[0]} are two ways to choose the runs: give one")
        if latest < 1:
            raise ValueError(f"--latest={latest} must be at least 1")
        chains = []
        for folder in sorted({p.parent for pattern in ("out*", "out*/*") for p in Path().glob(f"{pattern}/run_*.jsonl")}):
            found, passed_over = chains_of(folder)
            chains, left_out = chains + found, left_out + passed_over
        where, runs = f"out*/ below {Path.cwd()}", [files for _, files in sorted(chains)[-latest:]]
    else:
        if not words:
            raise ValueError("which runs? Name folders or logs of runs, or say --latest=3")
        where, runs = " ".join(words), []
        for path in [
            Path(p) for word in words for p in ([word] if os.path.exists(word) else sorted(glob.glob(word)) or [word])
        ]:
            if not path.exists():
                raise ValueError(f"{path} is not there{did_you_mean(str(path), map(str, Path().glob('out*')))}")
            folder = path if path.is_dir() else path.parent
            found, passed_over = chains_of(folder)
            if path.is_dir():
                if not found and not passed_over:
                    raise ValueError(f"{path} holds no run_*.jsonl: name the out_dir of a run")
                runs, left_out = runs + [files for _, files in found[-1:]], left_out + passed_over
            elif mine := [files for _, files in found if path in files]:
                runs += mine
            elif read_start(path):  # a log under another name
                runs.append([path])
            else:
                left_out.append(f"{path} {'has no run_start' if path.stat().st_size else 'is empty'}")
    left_out = list(dict.fromkeys(left_out))
    if not runs:
        raise ValueError(f"no run in {where}{''.join(f'; {line}' for line in left_out)}: train one first")
    return list({tuple(p.resolve() for p in files): files for files in runs}.values()), left_out


def read_run(files: Sequence[Path]) -> Run:
    """The logs of one run, oldest first, joined into one."""
    trains: dict[int, dict[str, Any]] = {}
    evals: dict[int, dict[str, Any]] = {}
    time_s, time_is_wall, damaged = 0.0, True, 0
    for path in files:
        with open(path, encoding="utf-8", errors="replace") as file:
            parsed = [parse_event(line) for line in file if line.strip()]
        events = [event for event in parsed if event is not None]
        damaged += len(parsed) - len(events)
        of = {kind: [e for e in events if e.get("event") == kind] for kind in NEEDED}
        start, end = of["run_start"][0], (of["run_end"] or [None])[-1]
        begin = int(start.get("start_step") or 0)
        counted = [e["tokens"] / e["step"] for e in of["train"] if e.get("tokens") and e["step"] > 0]
        for event in of["train"] + of["eval"]:
            if event.get("tokens") is None:
                event["tokens"] = round(event["step"] * counted[-1]) if counted else None
        # What the earlier log did beyond the checkpoint that this one began from did not happen to these weights.
        for curve, kind in ((trains, "train"), (evals, "eval")):
            for step in [step for step in curve if step > begin]:
                del curve[step]
            curve.update({e["step"]: e for e in of[kind] if e["tokens"] is not None})
        if end is not None and end.get("wall_s") is not None:
            time_s += end["wall_s"]
        else:  # dt_ms is that of one step, and a log_interval of steps lies between two events
            time_is_wall = False
            steps = [begin] + [e["step"] for e in of["train"]]
            time_s += sum(
                e.get("dt_ms", 0) / 1e3 * max(1, b - a) for e, (a, b) in zip(of["train"], pairwise(steps), strict=True)
            )
    if end is None:
        status = "crashed" if time.time() - files[-1].stat().st_mtime > SILENCE_S else "running"
    else:
        status = {"signal": "stopped", "error:": "crashed"}.get(str(end["reason"]).partition(" ")[0], str(end["reason"]))
    out_dir = run_folder(files[-1].parent, start)
    return Run(
        out_dir=out_dir,
        files=list(files),
        start=start,
        trains=[trains[step] for step in sorted(trains)],
        evals=[evals[step] for step in sorted(evals)],
        time_s=time_s or None,
        time_is_wall=time_is_wall,
        reason=end and str(end["reason"]),
        status=status,
        damaged_lines=damaged,
        label=out_dir,
    )


def run_folder(folder: Path, start: dict[str, Any]) -> str:
    """The run's out_dir as it was configured, or the folder that its logs were copied to."""
    configured = start["config"].get("train", {}).get("out_dir")
    if configured and (folder == Path() or Path(configured).resolve() == folder.resolve()):
        return str(Path(configured))
    return str(folder)


def read_runs(chains: Iterable[Sequence[Path]]) -> list[Run]:
    """All the runs, best first: by bits per byte where every evaluated run has them, else by validation loss."""
    runs = [read_run(files) for files in chains]
    often = Counter(run.out_dir for run in runs)
    for run in runs:
        if often[run.out_dir] > 1:
            run.label = f"{run.out_dir} ({run.files[0].stem.removeprefix('run_')})"
    key = metric_of(runs)
    return sorted(runs, key=lambda run: (math.inf if best(run.curve(key)) is None else best(run.curve(key)), run.label))


def metric_of(runs: Sequence[Run]) -> str:
    """The figure that ranks the runs and is drawn."""
    evaluated = [run for run in runs if run.evals]
    return "val_bits_per_byte" if evaluated and all(run.has_bytes() for run in evaluated) else "val_loss"


def best(points: Iterable[tuple[int, float]]) -> float | None:
    return min((value for _, value in points if math.isfinite(value)), default=None)


def value_at(points: Sequence[tuple[int, float]], tokens: float) -> float | None:
    """The value at a token count, on the line between the evaluations around it; None outside of them."""
    if not points or not points[0][0] <= tokens <= points[-1][0]:
        return None
    for (a, before), (b, after) in pairwise([points[0], *points]):
        if tokens <= b:
            return after if tokens == b else before + (after - before) * (tokens - a) / (b - a)


def common_tokens(runs: Sequence[Run]) -> int | None:
    """The largest token count inside every evaluated run's evaluations; None where the runs end at the same count, or
    where there is no such count."""
    curves = [points for run in runs if len(points := run.curve("val_loss")) > 0]
    ends = {points[-1][0] for points in curves}
    return min(ends) if len(ends) > 1 and max(points[0][0] for points in curves) <= min(ends) else None


def summarise(run: Run, common: int | None) -> dict[str, Any]:
    """The numbers of one run; None is unknown. tokens_per_s and mfu are medians over the train events, which the compiling
    first steps and a busy moment do not move; best_* is the lowest evaluation of the run."""
    losses, bits = run.curve("val_loss"), run.curve("val_bits_per_byte")
    values = {k: [e[k] for e in run.trains if e.get(k) is not None] for k in ("tokens_per_s", "mfu", "memory_gb")}
    model, hardware = run.start["model"], run.start.get("hardware") or {}
    return {
        "out_dir": run.out_dir,
        "label": run.label,
        "logs": [str(path) for path in run.files],
        "architecture": run.architecture,
        "params": model["params"],
        "params_non_embedding": model.get("params_non_embedding"),
        "flops_per_token": model["flops_per_token"],
        "tokens": run.tokens,
        "training_flops": model["flops_per_token"] * run.tokens,
        "final_val_loss": losses[-1][1] if losses else None,
        "best_val_loss": best(losses),
        "final_bits_per_byte": bits[-1][1] if bits else None,
        "best_bits_per_byte": best(bits),
        "val_loss_at_common_tokens": None if common is None else value_at(losses, common),
        "bits_per_byte_at_common_tokens": None if common is None else value_at(bits, common),
        "tokens_per_s": median(values["tokens_per_s"]) if values["tokens_per_s"] else None,
        "mfu": median(values["mfu"]) if values["mfu"] else None,
        "memory_gb": max(values["memory_gb"], default=None),
        "time_s": run.time_s,
        "time_is_wall": run.time_is_wall,
        "status": run.status,
        "reason": run.reason,
        "damaged_lines": run.damaged_lines,
        "dataset": run.data.get("dataset"),
        "fingerprint": run.data.get("fingerprint"),
        "device_name": hardware.get("device_name"),
        "world_size": hardware.get("world_size"),
        "evaluations": [[e["step"], e["tokens"], e["val_loss"], e.get("val_bits_per_byte")] for e in run.evals],
    }


def notes_on(runs: Sequence[Run], common: int | None) -> list[str]:
    """What a reader must know before comparing the rows."""
    notes = []
    if len({run.data.get("fingerprint") or run.data.get("dataset") for run in runs}) > 1:
        bits = "bits per byte is the column to read, as far as the held-out text is the same"
        if metric_of(runs) != "val_bits_per_byte":
            bits = "bits per byte would, but not every run has them"
        notes.append(f"The runs differ in dataset or tokenizer: loss per token does not compare between them; {bits}.")
    if len({run.tokens for run in runs}) > 1:
        counts = f"{min(run.tokens for run in runs):,} to {max(run.tokens for run in runs):,}"
        note = f"The runs differ in tokens ({counts}), so their final and best losses do not compare"
        if common is not None:
            note += f"; the columns at {human(common)} hold the loss at {common:,} tokens, between evaluations by interpolation"
        elif sum(bool(run.evals) for run in runs) > 1:
            note += "; their evaluations have no token count in common"
        notes.append(note + ".")
    machines = {(h.get("device_name"), h.get("world_size")) for h in (run.start.get("hardware") or {} for run in runs)}
    if len(machines) > 1:
        listed = ", ".join(sorted(f"{size} x {name}" for name, size in machines))
        notes.append(f"The runs differ in hardware ({listed}): tokens/s, MFU, time and memory do not compare.")
    for run in runs:
        said = []
        if len(run.files) > 1:
            said.append(f"{len(run.files)} logs joined")
        if not run.evals:
            said.append("no evaluation")
        elif not all(math.isfinite(e["val_loss"]) for e in run.evals):
            said.append("its validation loss is not finite everywhere")
        if not run.time_is_wall and run.time_s:
            said.append("~time is the sum of its logged steps, for lack of a run_end")
        if run.damaged_lines:
            said.append(f"{run.damaged_lines} damaged line{'s' * (run.damaged_lines > 1)} skipped")
        if run.status == "crashed":
            said.append(run.reason or f"its log ends at {run.tokens:,} tokens without run_end")
        if said:
            notes.append(f"{run.label}: {'; '.join(said)}.")
    return notes


def human(number: float) -> str:
    """Four significant digits: 124.3M."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:.4g}"


def short_names(runs: Sequence[Run]) -> list[str]:
    """Architecture names up to their parenthesis, or in full where that would make two different ones look the same."""
    short = [run.architecture.partition(" (")[0] for run in runs]
    same = len(set(short)) == len({run.architecture for run in runs})
    return short if same else [run.architecture for run in runs]


def cells(runs: Sequence[Run], rows: Sequence[dict[str, Any]], common: int | None) -> list[list[str]]:
    """The table as text, the header first; n/a is unknown."""

    def text(value: float | None, form: str) -> str:
        return "n/a" if value is None else format(value, form)

    columns: dict[str, list[str]] = {
        "run": [row["label"] for row in rows],
        "architecture": short_names(runs),
        "parameters": [human(row["params"]) for row in rows],
        "tokens": [human(row["tokens"]) for row in rows],
        "final val loss": [text(row["final_val_loss"], ".4f") for row in rows],
        "best val loss": [text(row["best_val_loss"], ".4f") for row in rows],
        "best bits/byte": [text(row["best_bits_per_byte"], ".4f") for row in rows],
    }
    if common is not None:
        columns[f"val loss at {human(common)}"] = [text(row["val_loss_at_common_tokens"], ".4f") for row in rows]
        columns[f"bits/byte at {human(common)}"] = [text(row["bits_per_byte_at_common_tokens"], ".4f") for row in rows]
    columns["tokens/s"] = [text(row["tokens_per_s"], ",.0f") for row in rows]
    columns["MFU"] = [text(row["mfu"], ".1%") for row in rows]
    columns["time"] = [("" if row["time_is_wall"] else "~") + clock(row["time_s"]) if row["time_s"] else "n/a" for row in rows]
    columns["memory GB"] = [text(row["memory_gb"], ".2f") for row in rows]
    columns["status"] = [row["status"] for row in rows]
    return [list(columns), *(list(row) for row in zip(*columns.values(), strict=True))]


def clock(seconds: float) -> str:
    minutes, s = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{s:02}"


LEFT = ("run", "architecture", "status")  # words; the other columns are numbers and end at the same place


def table(grid: Sequence[Sequence[str]], markdown: bool = False) -> str:
    """The cells as aligned text, or as a Markdown table. A row is as long as it needs to be, whatever the terminal."""
    widths = [max(len(row[i]) for row in grid) for i in range(len(grid[0]))]
    left = [name in LEFT for name in grid[0]]
    lines = [[c.ljust(w) if on_left else c.rjust(w) for c, w, on_left in zip(row, widths, left, strict=True)] for row in grid]
    if not markdown:
        lines.insert(1, ["-" * w for w in widths])
        return "\n".join("  ".join(line).rstrip() for line in lines)
    lines = [[c.replace("|", "\\|") for c in line] for line in lines]
    lines.insert(1, ["-" * (w - 1) + ("-" if on_left else ":") for w, on_left in zip(widths, left, strict=True)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# Okabe and Ito 2008: told apart by colour-blind readers too. Yellow is left out, too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":")  # from the eighth run on


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean over 2 % of the points to either side, and over fewer near the ends, so that no end is bent."""
    n, sums = len(values), [0.0, *accumulate(values)]
    half = [min(i, n - 1 - i, n // 50) for i in range(n)]
    return [(sums[i + h + 1] - sums[i - h]) / (2 * h + 1) for i, h in enumerate(half)]


def plot(runs: Sequence[Run]) -> bytes:
    """A PNG of two panels: validation loss (or bits per byte, where every run has them) over tokens and over training FLOPs,
    with the smoothed training loss behind it. Raises ImportError without matplotlib."""
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: nothing global, no window, and Agg is what draws a PNG
    from matplotlib.lines import Line2D
    from matplotlib.ticker import FuncFormatter

    key = metric_of(runs)
    names = short_names(runs)
    handles, curves = [], []
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        look = dict(color=COLOURS[i % len(COLOURS)], linestyle=DASHES[i // len(COLOURS) % len(DASHES)])
        points = [(x, y) for x, y in run.curve(key) if math.isfinite(y)]
        # Loss per token to the panel's unit by the bytes of a token that the run's own last evaluation saw.
        ratios = [e[key] / e["val_loss"] for e in run.evals if e.get(key) and math.isfinite(e["val_loss"])]
        scale = ratios[-1] if ratios else 1.0 if key == "val_loss" else math.nan
        trains = [(e["tokens"], e["loss"] * scale) for e in run.trains if math.isfinite(e["loss"] * scale)]
        behind = list(zip([x for x, _ in trains], smoothed([y for _, y in trains]), strict=True))
        curves.append((run, look, points, behind))
        where = min(run.label, os.path.relpath(run.label), key=len)
        handles.append(Line2D([], [], **look, label=f"{name}, {where}" + ("" if points else " (no evaluation)")))
    handles.append(Line2D([], [], color="#999999", alpha=0.6, linewidth=0.9, label="training loss, smoothed"))
    if any(run.status == "crashed" for run in runs):
        handles.append(Line2D([], [], color="#555555", marker="x", linestyle="", label="crashed"))
    n_columns = max(1, min(4, len(handles), 130 // (max(len(h.get_label()) for h in handles) + 8)))

    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "axes.grid": True,
             "axes.axisbelow": True, "grid.color": "#e8e8e8", "grid.linewidth": 0.6, "legend.frameon": False}  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(9.0, 3.5 + 0.2 * -(-len(handles) // n_columns)), layout="constrained")
        panels = figure.subplots(1, 2, sharey=True)
        for ax, label in zip(panels, ("Training tokens", "Training compute (FLOPs)"), strict=True):
            xs, ys = [], []
            for run, look, points, behind in curves:
                per_token = 1 if ax is panels[0] else run.start["model"]["flops_per_token"]
                points, behind = ([(x * per_token, y) for x, y in curve] for curve in (points, behind))
                ax.plot(*zip(*behind, strict=True), **look, linewidth=0.9, alpha=0.35) if behind else None
                main = points or behind
                if points:
                    marker = "o" if len(points) <= 40 else None
                    ax.plot(*zip(*points, strict=True), **look, linewidth=1.6, marker=marker, markersize=3)
                if main and run.status == "crashed":
                    ax.plot(*main[-1], color=look["color"], marker="x", markersize=8, markeredgewidth=2, zorder=5)
                # Step 0 is ln(vocabulary) for everyone: it would take the height that the differences need.
                shown = [(x, y) for x, y in main if x > 0] or main
                xs, ys = xs + [x for x, _ in shown], ys + [y for _, y in shown + behind[-1:]]
            if xs and min(xs) > 0 and max(xs) > 20 * min(xs):
                ax.set_xscale("log")
                ax.set_xlim(min(xs) / 1.1, max(xs) * 1.15)
            if ys:
                margin = 0.05 * (max(ys) - min(ys)) or 0.1
                ax.set_ylim(min(ys) - margin, max(ys) + margin)
            if ax is panels[0]:
                ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: human(x)))
            ax.set_xlabel(label)
        panels[0].set_ylabel("Validation bits per byte" if key == "val_bits_per_byte" else "Validation loss (nats per token)")
        figure.legend(handles=handles, loc="outside lower center", ncols=n_columns)
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=200)
    return image.getvalue()


def write_atomically(path: Path, data: bytes) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with open(partial, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def finite(value: Any) -> Any:
    """`value` for JSON, which has no NaN: null instead."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def main(argv: Sequence[str]) -> None:
    if {"-h", "--help"} & set(argv):
        print(__doc__.strip())
        return
    with user_errors():
        words, flags = parse_flags(argv, {"latest": int, "out": str})
        chains, left_out = find_runs(words, flags.get("latest"))
        out = Path(flags.get("out", "comparison"))
        out.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=out).close()  # fails now, not after the table
    for line in left_out:
        print(f"compare_architectures.py: left out: {line}", file=sys.stderr)

    runs = read_runs(chains)
    common = common_tokens(runs)
    rows, notes = [summarise(run, common) for run in runs], notes_on(runs, common)
    grid = cells(runs, rows, common)
    print(table(grid), *(f"- {note}" for note in notes), sep="\n")
    report = {"sorted_by": metric_of(runs), "common_tokens": common, "notes": notes, "runs": rows}
    write_atomically(out / "comparison.json", (json.dumps(finite(report), indent=1) + "\n").encode())
    listed = "".join(f"\n- {note}" for note in notes)
    write_atomically(out / "comparison.md", f"{table(grid, markdown=True)}\n{listed}\n\n![curves](comparison.png)\n".encode())
    with user_errors():
        try:
            image = plot(runs)
        except ImportError as error:
            raise ImportError(
                f"comparison.png was not drawn, for want of matplotlib: pip install matplotlib ({error})"
            ) from error
    write_atomically(out / "comparison.png", image)
    print(f"wrote {out}/comparison.png, .md and .json")


if __name__ == "__main__":
    main(sys.argv[1:])
