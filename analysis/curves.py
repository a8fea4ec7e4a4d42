"""How a run is drawn, in the PNG and in the page: its colour, its names, its smoothed training loss in the
ranking figure."""

import os
from collections.abc import Sequence
from itertools import accumulate

from analysis.align import Group, groups_of
from analysis.runs import BITS, LOSS, Run, ranking_key

# Okabe and Ito 2008: told apart by colour-blind readers too. Their yellow is too pale for a line.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", ":")  # from the eighth run on
AXIS_LABELS = {
    "tokens": "Training tokens",
    "FLOPs": "Training compute (FLOPs)",
    "time": "Training time (h:mm:ss)",
}


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
    return ratios[-1] if ratios else 1.0 if key == LOSS else None


def looks(runs: Sequence[Run]) -> list[dict[str, str]]:
    """A colour for each run; seeds of one configuration share it."""
    groups = groups_of(runs)
    number = {id(run): i for i, group in enumerate(groups) for run in (*group.runs, *group.repeats)}
    return [
        dict(color=COLOURS[i % len(COLOURS)], linestyle=DASHES[i // len(COLOURS) % len(DASHES)])
        for i in (number[id(run)] for run in runs)
    ]


def label_of_group(group: Group, key: str) -> str:
    """What the legend says."""
    where, seeds = min(group.label, os.path.relpath(group.label), key=len), len(group.runs)
    more = f" ({seeds} seeds)" if seeds > 1 else "" if group.runs[0].curve(key) else " (no evaluation)"
    return f"{group.runs[0].short_name}, {where}{more}"


def y_label(runs: Sequence[Run]) -> str:
    what = "Validation" if any(run.evals for run in runs) else "Training"
    return f"{what} bits per byte" if ranking_key(runs) == BITS else f"{what} loss (nats per token)"
