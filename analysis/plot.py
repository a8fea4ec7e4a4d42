"""The curves as a PNG: a panel each for equal tokens, equal training FLOPs and equal training time."""

import io
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from analysis.alignment import Points
from analysis.curves import AXIS_LABELS, Drawn, axes_of, curves_of, label_of_group, y_label
from analysis.groups import groups_of
from analysis.runs import Run, ranking_key
from base.text import clock, human

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

STYLE = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#e8e8e8", "grid.linewidth": 0.6, "legend.frameon": False,
}  # fmt: skip
LETTERS_OF_A_PANEL = 43  # that fit below it
LETTERS_OF_A_LINE = 8  # the width of a legend's line and gap


def plot(runs: Sequence[Run]) -> bytes:
    """A PNG of three panels, the ranking figure over tokens, training FLOPs and training time, with the
    smoothed training loss faint behind it; of two where no run has times."""
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no window, nothing global, and Agg draws the PNG

    axes, drawn, handles = axes_of(runs), curves_of(runs), legend(runs)
    n_columns = columns_of(handles, len(axes))
    with matplotlib.rc_context(STYLE):
        width = 1.5 + 3.75 * len(axes)
        height = 3.5 + 0.2 * math.ceil(len(handles) / n_columns)
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.get_layout_engine().set(wspace=0.04)
        panels = figure.subplots(1, len(axes), sharey=True)
        # The evaluations set the frame; where no run has two of them, training does
        evaluated = any(len(beyond_0(curves.evals["tokens"])) > 1 for curves in drawn)
        ys = []
        for ax, axis in zip(panels, axes, strict=True):
            framed = draw(ax, axis, drawn, evaluated)
            scale_x(ax, axis, [x for x, _ in framed])
            ys += [y for _, y in framed]
            if ax is not panels[0]:
                ax.tick_params(axis="y", left=False)
        if ys:
            margin = 0.05 * (max(ys) - min(ys)) or 0.1
            panels[0].set_ylim(min(ys) - margin, max(ys) + margin)
        panels[0].set_ylabel(y_label(runs))
        figure.legend(handles=handles, loc="outside lower center", ncols=n_columns)
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=200, bbox_inches="tight", pad_inches=0.08)
    return in_few_colours(image)


def in_few_colours(image: io.BytesIO) -> bytes:
    """256 of them are enough for lines, and make a third of the bytes."""
    from PIL import Image  # matplotlib needs it too

    palette = io.BytesIO()
    Image.open(image).convert("RGB").quantize(256).save(palette, format="png", optimize=True)
    return palette.getvalue()


def legend(runs: Sequence[Run]) -> "list[Line2D]":
    """An entry for each configuration, for the faint lines, for the crosses if there are any."""
    from matplotlib.lines import Line2D

    key, groups = ranking_key(runs), groups_of(runs)
    looks = {curves.group: curves.look for curves in curves_of(runs)}
    handles = [
        Line2D([], [], **looks[i], label=label_of_group(group, key).replace("$", r"\$"))
        for i, group in enumerate(groups)
    ]
    handles.append(Line2D([], [], color="#999999", linewidth=0.9, label="training loss, smoothed"))
    if any(run.status == "crashed" for run in runs):
        cross: dict[str, Any] = {"color": "#555555", "marker": "x", "markeredgewidth": 1.5, "linestyle": ""}
        handles.append(Line2D([], [], **cross, label="crashed"))
    return handles


def columns_of(handles: "Sequence[Line2D]", n_panels: int) -> int:
    """How many entries of the legend fit side by side."""
    lengths = [len(handle.get_label()) + LETTERS_OF_A_LINE for handle in handles]
    room = LETTERS_OF_A_PANEL * (n_panels + 1)
    return len(handles) if sum(lengths) <= room else max(1, room // max(lengths))


def beyond_0(points: Points) -> Points:
    """Step 0 is ln(vocabulary) for every run: on no log axis, and not worth the height that the differences
    need."""
    return [(x, y) for x, y in points if x > 0]


def draw(ax: "Axes", axis: str, drawn: Sequence[Drawn], evaluated: bool) -> list[tuple[float, float]]:
    """The curves of all runs in one panel. Returns the points that its frame must hold."""
    few = max(len(beyond_0(curves.evals["tokens"])) for curves in drawn) <= 20 and len(drawn) <= 7
    framed = []
    for curves in drawn:
        points, behind = beyond_0(curves.evals[axis]), beyond_0(curves.trains[axis])
        if behind:
            ax.plot(*zip(*behind, strict=True), **curves.look, linewidth=0.9, alpha=0.35 if points else 0.8)
        if points:
            marker = "o" if few else None
            ax.plot(*zip(*points, strict=True), **curves.look, linewidth=1.6, marker=marker, markersize=3.5)
        if curves.run.status == "crashed" and (points or behind):
            cross = {"marker": "x", "markersize": 8, "markeredgewidth": 2, "zorder": 5}
            ax.plot(*(points or behind)[-1], color=curves.look["color"], **cross)
        framed += [*points, *(behind[-1:] if evaluated else behind)]
    return framed


def scale_x(ax: "Axes", axis: str, xs: Sequence[float]) -> None:
    """A log axis where the points span a factor of 20, and its ticks and label."""
    from matplotlib.ticker import (
        FuncFormatter,
        LogFormatterSciNotation,
        LogLocator,
        MaxNLocator,
        NullFormatter,
    )

    ratio = max(xs, default=1) / min(xs, default=1)
    if ratio >= 20:
        ax.set_xscale("log")
        ax.set_xlim(min(xs) / 1.1, max(xs) * 1.15)
        subs = (1,) if ratio > 1e3 else (1, 3) if axis == "FLOPs" else (1, 2, 5)
        ax.xaxis.set_major_locator(LogLocator(subs=subs))
        ax.xaxis.set_minor_formatter(NullFormatter())
    else:
        ax.xaxis.set_major_locator(MaxNLocator(5))
        ax.set_xlim(left=0)
    form = {"tokens": human, "bytes": human, "time": clock}.get(axis)
    scientific = LogFormatterSciNotation(minor_thresholds=(math.inf, math.inf))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: form(x)) if form else scientific)
    ax.set_xlabel(AXIS_LABELS[axis])
