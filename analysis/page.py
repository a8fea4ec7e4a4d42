"""The comparison as one HTML page: curves to point at, over tokens, FLOPs or time, and the tables. It opens
from disk and loads nothing; its policy forbids it to."""

import html
import json
from collections.abc import Sequence
from pathlib import Path

from analysis.align import groups_of
from analysis.curves import AXIS_LABELS, label_of_group, looks, per_byte, smoothed, y_label
from analysis.report import is_text
from analysis.runs import AXES, Run, ranking_key

TEMPLATE = Path(__file__).with_name("page.html")
MOST_POINTS = 400  # of a training curve: as many as a screen shows
SVG_DASHES = {"-": "none", "--": "6 4", ":": "2 3"}


def page(runs: Sequence[Run], tables: Sequence[Sequence[Sequence[str]]], lines: Sequence[str]) -> str:
    """The page with the curves of the runs, the tables (rows of cells, the header first) and the sentences
    on them."""
    key, groups = ranking_key(runs), groups_of(runs)
    group_of = {id(run): i for i, group in enumerate(groups) for run in (*group.runs, *group.repeats)}
    axes = [axis for axis in AXES if axis != "time" or any(run.curve(key, axis) for run in runs)]
    drawn = []
    for run, look in zip(runs, looks(runs), strict=True):
        scale = per_byte(run, key)
        trains = {}
        for axis in axes:
            points = run.along(run.trains, "loss", axis) if scale else []
            ys = smoothed([y * scale for _, y in points])
            every = -(-len(points) // MOST_POINTS) or 1
            thinned = [(x, y) for (x, _), y in zip(points, ys, strict=True)]
            trains[axis] = rounded(thinned[::every] + (thinned[-1:] if (len(thinned) - 1) % every else []))
        drawn.append({
            "label": run.label,
            "group": group_of[id(run)],
            "color": look["color"],
            "dash": SVG_DASHES[look["linestyle"]],
            "status": run.status,
            "evals": {axis: rounded(run.curve(key, axis)) for axis in axes},
            "trains": trains,
        })  # fmt: skip
    content = {
        "figure": y_label(runs),
        "axes": [{"key": axis, "label": AXIS_LABELS[axis]} for axis in axes],
        "groups": [label_of_group(group, key) for group in groups],
        "runs": drawn,
    }
    # No text ends the script early: "<" occurs in JSON only inside strings
    data = json.dumps(content, allow_nan=False).replace("<", "\\u003c")
    said = "".join(f"<li>{html.escape(line)}\n" for line in lines)
    below = "".join(map(html_table, tables)) + f"<ul>\n{said}</ul>"
    head, tables_mark, rest = TEMPLATE.read_text(encoding="utf-8").partition("<!--TABLES-->")
    middle, data_mark, tail = rest.partition("/*DATA*/")
    assert tables_mark and data_mark
    return head + below + middle + data + tail


def rounded(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Seven digits are more than a screen shows."""
    return [(float(f"{x:.7g}"), float(f"{y:.7g}")) for x, y in points]


def html_table(grid: Sequence[Sequence[str]]) -> str:
    words = [' class="words"' if is_text(name, grid) else "" for name in grid[0]]

    def row(cells: Sequence[str], tag: str) -> str:
        marked = f' class="{cells[-1]}"' if cells[-1] in ("crashed", "running", "stopped") else ""
        return (
            f"<tr{marked}>"
            + "".join(f"<{tag}{w}>{html.escape(c)}" for c, w in zip(cells, words, strict=True))
            + "\n"
        )

    body = "".join(row(cells, "td") for cells in grid[1:])
    return f'<div class="scroll"><table>\n{row(grid[0], "th")}{body}</table></div>\n'
