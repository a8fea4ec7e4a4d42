"""Runs on a common axis. Nothing is extrapolated: runs are compared where the evaluations of all of them
reach, on the line between two of them."""

from bisect import bisect_left
from collections.abc import Sequence
from statistics import mean

from analysis.runs import Run

Points = Sequence[tuple[float, float]]  # (x, value), in the order of x


def common_range(curves: Sequence[Points]) -> tuple[float, float] | None:
    """From where to where every one of the curves has values; None where there is no such place."""
    if not curves or not all(curves):
        return None
    low, high = max(points[0][0] for points in curves), min(points[-1][0] for points in curves)
    return (low, high) if low <= high else None


def common_end(runs: Sequence[Run], key: str, axis: str) -> float | None:
    """The end of the range that every evaluated run covers; None where there is none, and where it is not
    needed because they all end there."""
    curves = [curve for run in runs if (curve := run.curve(key, axis))]
    span = common_range(curves)
    return span[1] if span and len({points[-1][0] for points in curves}) > 1 else None


def value_at(points: Points, x: float | None) -> float | None:
    """The value at x, on the line between the evaluations around it; None outside of them."""
    if not points or x is None or not points[0][0] <= x <= points[-1][0]:
        return None
    i = bisect_left(points, x, key=lambda point: point[0])
    (a, before), (b, after) = points[max(0, i - 1)], points[i]
    return after if x == b else before + (after - before) * (x - a) / (b - a)


def leads_since(curves: Sequence[Sequence[Points]], span: tuple[float, float]) -> float | None:
    """The x since which the group that leads at the end of the span has led; the start of the span where it
    led all along; None where groups end level. Each group is the mean over the curves of its seeds."""
    xs = sorted(
        {x for group in curves for points in group for x, _ in points if span[0] <= x <= span[1]} | set(span)
    )
    means = [[mean(value_at(points, x) for points in group) for x in xs] for group in curves]
    leader = min(range(len(means)), key=lambda g: means[g][-1])
    since = span[0]
    for other in (m for g, m in enumerate(means) if g != leader):
        gaps = [theirs - ours for theirs, ours in zip(other, means[leader], strict=True)]
        if gaps[-1] == 0:
            return None
        behind = max((i for i, gap in enumerate(gaps) if gap < 0), default=None)
        if behind is not None:  # the lines cross before the next evaluation
            share = gaps[behind] / (gaps[behind] - gaps[behind + 1])
            since = max(since, xs[behind] + share * (xs[behind + 1] - xs[behind]))
    return since
