"""The comparison as one HTML page: curves to point at, over tokens, FLOPs or time, and the tables. It opens
from disk and loads nothing; its policy forbids it to."""

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from analysis.alignment import Points
from analysis.curves import AXIS_LABELS, Drawn, axes_of, curves_of, label_of_group, y_label
from analysis.groups import groups_of
from analysis.runs import Run, ranking_key
from analysis.tables import Table

TEMPLATE = Path(__file__).with_name("page.html")
MOST_POINTS = 400  # of a training curve: as many as a screen shows
SVG_DASHES = {"-": "none", "--": "6 4", ":": "2 3"}


def page(runs: Sequence[Run], tables: Sequence[Table], lines: Sequence[str]) -> str:
    """The page with the curves of the runs, the tables and the sentences on them."""
    key = ranking_key(runs)
    content = {
        "figure": y_label(runs),
        "axes": [{"key": axis, "label": AXIS_LABELS[axis]} for axis in axes_of(runs)],
        "groups": [label_of_group(group, key) for group in groups_of(runs)],
        "runs": [described(curves) for curves in curves_of(runs)],
    }
    # No text ends the script early: "<" occurs in JSON only inside strings
    data = json.dumps(content, allow_nan=False).replace("<", "\\u003c")
    said = "".join(f"<li>{html.escape(line)}\n" for line in lines)
    below = "".join(map(html_table, tables)) + f"<ul>\n{said}</ul>"
    head, tables_mark, rest = TEMPLATE.read_text(encoding="utf-8").partition("<!--TABLES-->")
    middle, data_mark, tail = rest.partition("/*DATA*/")
    assert tables_mark and data_mark
    return head + below + middle + data + tail


def described(curves: Drawn) -> dict[str, Any]:
    """A run as the page's script reads it."""
    return {
        "label": curves.run.label,
        "group": curves.group,
        "color": curves.look["color"],
        "dash": SVG_DASHES[curves.look["linestyle"]],
        "status": curves.run.status,
        "evals": {axis: rounded(points) for axis, points in curves.evals.items()},
        "trains": {axis: rounded(thinned(points)) for axis, points in curves.trains.items()},
    }


def thinned(points: Points) -> Points:
    """As many as a screen shows, the last among them."""
    every = -(-len(points) // MOST_POINTS) or 1
    return [*points[::every], *(points[-1:] if (len(points) - 1) % every else [])]


def rounded(points: Points) -> Points:
    """Seven digits are more than a screen shows."""
    return [(float(f"{x:.7g}"), float(f"{y:.7g}")) for x, y in points]


def html_table(table: Table) -> str:
    words = [' class="words"' if left else "" for left in table.left]

    def row(cells: Sequence[str], tag: str) -> str:
        marked = f' class="{cells[-1]}"' if cells[-1] in ("crashed", "running", "stopped") else ""
        shown = "".join(f"<{tag}{w}>{html.escape(c)}" for c, w in zip(cells, words, strict=True))
        return f"<tr{marked}>{shown}\n"

    body = "".join(row(cells, "td") for cells in table.rows[1:])
    return f'<div class="scroll"><table>\n{row(table.rows[0], "th")}{body}</table></div>\n'
