"""The curves as a PNG: a panel each for equal tokens, equal training FLOPs and equal training time."""

import io
import math
from collections.abc import Sequence

from analysis.align import groups_of
from analysis.curves import AXIS_LABELS, label_of_group, looks, per_byte, smoothed, y_label
from analysis.report import clock, human
from analysis.runs import AXES, Run, ranking_key


def plot(runs: Sequence[Run]) -> bytes:
    """A PNG of three panels, the ranking figure over tokens, training FLOPs and training time, with the
    smoothed training loss faint behind it; of two where no run has times."""
    import matplotlib
    from matplotlib.figure import Figure  # without pyplot: no window, nothing global, and Agg draws the PNG
    from matplotlib.lines import Line2D
    from matplotlib.ticker import (
        FuncFormatter,
        LogFormatterSciNotation,
        LogLocator,
        MaxNLocator,
        NullFormatter,
    )
    from PIL import Image  # matplotlib needs it too

    key = ranking_key(runs)
    groups, handles, curves = groups_of(runs), [], []
    label_of = {id(group.runs[0]): label_of_group(group, key) for group in groups}
    axes = [axis for axis in AXES if axis != "time" or any(run.curve(key, axis) for run in runs)]
    for run, look in zip(runs, looks(runs), strict=True):
        scale = per_byte(run, key)
        lines = {}
        for axis in axes:
            trains = run.along(run.trains, "loss", axis) if scale else []
            behind = zip([x for x, _ in trains], smoothed([y * scale for _, y in trains]), strict=True)
            # Step 0 is ln(vocabulary) for every run: on no log axis, and not worth the height that the
            # differences need.
            lines[axis] = tuple([(x, y) for x, y in c if x > 0] for c in (run.curve(key, axis), behind))
        curves.append((run, look, lines))
        if id(run) in label_of:
            handles.append(Line2D([], [], **look, label=label_of[id(run)].replace("$", r"\$")))
    handles.append(Line2D([], [], color="#999999", linewidth=0.9, label="training loss, smoothed"))
    if any(run.status == "crashed" for run in runs):
        handles.append(
            Line2D([], [], color="#555555", marker="x", markeredgewidth=1.5, linestyle="", label="crashed")
        )
    lengths = [
        len(handle.get_label()) + 8 for handle in handles
    ]  # with the line and the gap; about 42 fit a panel
    room = 43 * (len(axes) + 1)
    n_columns = len(handles) if sum(lengths) <= room else max(1, room // max(lengths))
    # The evaluations set the frame; where no run has two of them, training does.
    evaluated = any(len(lines["tokens"][0]) > 1 for _, _, lines in curves)
    marker = "o" if max(len(lines["tokens"][0]) for _, _, lines in curves) <= 20 and len(runs) <= 7 else None
    style = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8, "axes.grid": True,
             "axes.axisbelow": True, "grid.color": "#e8e8e8", "grid.linewidth": 0.6, "legend.frameon": False}  # fmt: skip
    with matplotlib.rc_context(style):
        width = 1.5 + 3.75 * len(axes)
        figure = Figure(
            figsize=(width, 3.5 + 0.2 * math.ceil(len(handles) / n_columns)), layout="constrained"
        )
        figure.get_layout_engine().set(wspace=0.04)
        panels = figure.subplots(1, len(axes), sharey=True)
        ys = []
        for ax, axis in zip(panels, axes, strict=True):
            xs = []
            for run, look, lines in curves:
                points, behind = lines[axis]
                if behind:
                    ax.plot(*zip(*behind, strict=True), **look, linewidth=0.9, alpha=0.35 if points else 0.8)
                if points:
                    ax.plot(*zip(*points, strict=True), **look, linewidth=1.6, marker=marker, markersize=3.5)
                if run.status == "crashed" and (points or behind):
                    ax.plot(
                        *(points or behind)[-1],
                        color=look["color"],
                        marker="x",
                        markersize=8,
                        markeredgewidth=2,
                        zorder=5,
                    )
                framed = points + behind[-1:] if evaluated else points + behind
                xs += [x for x, _ in framed]
                ys += [y for _, y in framed]
            ratio = max(xs, default=1) / min(xs, default=1)
            if ratio >= 20:
                ax.set_xscale("log")
                ax.set_xlim(min(xs) / 1.1, max(xs) * 1.15)
                ax.xaxis.set_major_locator(
                    LogLocator(subs=(1,) if ratio > 1e3 else (1, 3) if axis == "FLOPs" else (1, 2, 5))
                )
                ax.xaxis.set_minor_formatter(NullFormatter())
            else:
                ax.xaxis.set_major_locator(MaxNLocator(5))
                ax.set_xlim(left=0)
        if ys:
            margin = 0.05 * (max(ys) - min(ys)) or 0.1
            panels[0].set_ylim(min(ys) - margin, max(ys) + margin)
        for ax, axis in zip(panels, axes, strict=True):
            form = {"tokens": human, "time": clock}.get(axis)
            scientific = LogFormatterSciNotation(minor_thresholds=(math.inf, math.inf))
            ax.xaxis.set_major_formatter(
                FuncFormatter(lambda x, _, form=form: form(x)) if form else scientific
            )
            ax.set_xlabel(AXIS_LABELS[axis])
            if ax is not panels[0]:
                ax.tick_params(axis="y", left=False)
        panels[0].set_ylabel(y_label(runs))
        figure.legend(handles=handles, loc="outside lower center", ncols=n_columns)
        image = io.BytesIO()
        figure.savefig(image, format="png", dpi=200, bbox_inches="tight", pad_inches=0.08)
    palette = io.BytesIO()  # 256 colours are enough for lines, and a third of the bytes
    Image.open(image).convert("RGB").quantize(256).save(palette, format="png", optimize=True)
    return palette.getvalue()
