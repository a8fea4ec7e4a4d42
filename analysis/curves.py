"""How runs are drawn, in the PNG and in the page: their colours, their names, their curves."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from analysis.alignment import Points
from analysis.groups import Group, groups_of
from analysis.logs import BITS, LOSS, is_number
from analysis.runs import Run, ranking_key, useful_axes

# Okabe and Ito 2008: told apart by colour-blind readers too. Their yellow is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":")  # from the eighth configuration on
AXIS_LABELS = {
    "tokens": "Training tokens",
    "bytes": "Training text (bytes)",
    "FLOPs": "Training compute (FLOPs)",
    "time": "Training time (h:mm:ss)",
}


@dataclass
class Drawn:
    """A run's curves on each axis: the ranking figure, and the smoothed training loss in its units."""

    run: Run
    group: int  # the number of its configuration
    look: dict[str, str]  # color and linestyle; seeds of one configuration share them
    evals: dict[str, Points]
    trains: dict[str, Points]


def curves_of(runs: Sequence[Run]) -> list[Drawn]:
    """The curves of the runs, on the axes of axes_of()."""
    key, axes = ranking_key(runs), axes_of(runs)
    number = {id(run): i for i, group in enumerate(groups_of(runs)) for run in (*group.runs, *group.repeats)}
    return [
        Drawn(
            run=run,
            group=number[id(run)],
            look=look(number[id(run)]),
            evals={axis: run.curve(key, axis) for axis in axes},
            trains={axis: training_curve(run, key, axis) for axis in axes},
        )
        for run in runs
    ]


def axes_of(runs: Sequence[Run]) -> list[str]:
    """Time only where a run has times, and bytes where one has them and they are not tokens once more."""
    key = ranking_key(runs)
    return [
        axis
        for axis in useful_axes(runs)
        if axis in ("tokens", "FLOPs") or any(run.curve(key, axis) for run in runs)
    ]


def look(i: int) -> dict[str, str]:
    return {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[i // len(COLOURS) % len(DASHES)]}


def training_curve(run: Run, key: str, axis: str) -> Points:
    """The smoothed training loss in the ranking figure; empty where that cannot be had."""
    scale = per_byte(run, key)
    points = run.along(run.trains, "loss", axis) if scale else []
    return list(zip([x for x, _ in points], smoothed([y * scale for _, y in points]), strict=True))


def smoothed(values: Sequence[float]) -> list[float]:
    """The mean over 2 % of the points to either side; at the steep beginning over as few as keep it
    symmetric."""
    n, sums = len(values), [0.0, *accumulate(values)]
    window = max(1, n // 50)
    spans = [(i - min(i, window), i + min(i, window, n - 1 - i) + 1) for i in range(n)]
    return [(sums[b] - sums[a]) / (b - a) for a, b in spans]


def per_byte(run: Run, key: str) -> float | None:
    """What makes the run's loss per token the ranking figure, by the bytes in a token that its last
    evaluation saw; None where it has none."""
    ratios = [e[key] / e[LOSS] for e in run.evals if e.get(key) and e[LOSS]]
    ratios = [ratio for ratio in ratios if is_number(ratio)]
    return ratios[-1] if ratios else 1.0 if key == LOSS else None


def label_of_group(group: Group, key: str) -> str:
    """What the legend says."""
    where, seeds = min(group.label, os.path.relpath(group.label), key=len), len(group.runs)
    more = f" ({seeds} seeds)" if seeds > 1 else "" if group.runs[0].curve(key) else " (no evaluation)"
    return f"{group.runs[0].short_name}, {where}{more}"


def y_label(runs: Sequence[Run]) -> str:
    what = "Validation" if any(run.evals for run in runs) else "Training"
    return f"{what} bits per byte" if ranking_key(runs) == BITS else f"{what} loss (nats per token)"
