"""Fairness: runs on a common axis, seeds of one configuration together, and who leads where, by how much,
beyond the noise or within it.

Nothing is extrapolated: runs are compared where the evaluations of all of them reach, on the line between
two of them."""

import json
import math
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import mean, stdev
from typing import Any

import numpy as np

from analysis.runs import AXES, BITS, Run, ranking_key

P_NOISE = 0.05  # of a difference that would be this rare without a cause, over all pairs that could have led


@dataclass
class Group:
    """The runs of one configuration, one a seed."""

    label: str
    runs: list[Run]
    repeats: list[Run]  # further runs of the same seeds: they say nothing of the noise between seeds


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """The configurations among the runs, in their order. Runs without a recorded seed stay alone."""
    grouped: dict[str, list[Run]] = {}
    for run in runs:
        what = [
            run.choices(),
            run.model["architecture_name"],
            run.model["params"],
            run.model["flops_per_token"],
            run.data,
        ]
        alone = run.label if run.seed is None else ""
        grouped.setdefault(json.dumps([what, alone], sort_keys=True), []).append(run)
    groups = []
    for members in grouped.values():
        by_seed: dict[Any, Run] = {}
        for run in sorted(
            members, key=lambda run: -run.tokens
        ):  # the one that came farthest stands for its seed
            by_seed.setdefault(run.seed, run)
        chosen = [run for run in members if by_seed[run.seed] is run]
        stems = {re.sub(r"[-_]?seed[-_=]?\d+$", "", run.label) for run in chosen}
        label = (
            chosen[0].label
            if len(chosen) == 1
            else stems.pop()
            if len(stems) == 1
            else f"{chosen[0].label} and others"
        )
        groups.append(Group(label, chosen, [run for run in members if run not in chosen]))
    return groups


def common_range(curves: Sequence[Sequence[tuple[float, float]]]) -> tuple[float, float] | None:
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


def value_at(points: Sequence[tuple[float, float]], x: float | None) -> float | None:
    """The value at x, on the line between the evaluations around it; None outside of them."""
    if not points or x is None or not points[0][0] <= x <= points[-1][0]:
        return None
    i = bisect_left(points, x, key=lambda point: point[0])
    (a, before), (b, after) = points[max(0, i - 1)], points[i]
    return after if x == b else before + (after - before) * (x - a) / (b - a)


def p_of_difference(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Welch's t-test (1947): how often two samples of one mean lie at least this far apart; None where
    either has one value.

    With t = sqrt(df) tan(angle) Student's density becomes cos(angle)^(df - 1), which is smooth and ends at
    pi / 2."""
    if min(len(a), len(b)) < 2:
        return None
    errors = [stdev(values) ** 2 / len(values) for values in (a, b)]
    if not sum(errors):
        return 1.0 if mean(a) == mean(b) else 0.0
    t = abs(mean(a) - mean(b)) / math.sqrt(sum(errors))
    df = sum(errors) ** 2 / sum(e**2 / (len(values) - 1) for e, values in zip(errors, (a, b), strict=True))
    tail, whole = (np.linspace(start, math.pi / 2, 20_001) for start in (math.atan(t / math.sqrt(df)), 0.0))
    integrals = [float(np.trapezoid(np.cos(x).clip(0) ** (df - 1), x)) for x in (tail, whole)]
    return integrals[0] / integrals[1]


def leads_since(
    curves: Sequence[Sequence[Sequence[tuple[float, float]]]], span: tuple[float, float]
) -> float | None:
    """From which x on the group that leads at the end of the span has led; its start where it led all
    along; None where groups end level. Each group is the mean over the curves of its seeds."""
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


def standings(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Who leads at equal tokens, FLOPs and training time, best first, each with its gap to the leader: of
    all evaluated runs, and where some of them broke off also of those that are done. An entry without
    `places` says in `why` what forbids it."""
    key, evaluated = ranking_key(runs), [run for run in runs if run.evals]
    scopes = [evaluated]
    done = [run for run in evaluated if run.status == "done"]
    if len(done) < len(evaluated) and len(groups_of(done)) > 1:
        scopes.append(done)
    found = []
    for scope in scopes:
        groups = groups_of(scope)
        if len(groups) < 2 and (not groups or len(groups[0].runs) < 2):
            continue
        for axis in AXES:
            entry = {
                "axis": axis,
                "figure": key,
                "of": "all" if scope is evaluated else "done",
                "at": None,
                "places": [],
            }
            curves = [[run.curve(key, axis) for run in group.runs] for group in groups]
            span = common_range([points for group in curves for points in group])
            if key != BITS and len({run.data for run in scope}) > 1:
                entry["why"] = "loss per token does not compare between tokenizers or datasets"
            elif axis == "time" and len({run.machine for run in scope}) > 1:
                entry["why"] = "the runs differ in hardware"
            elif span is None or span[1] <= 0:
                missing = axis == "time" and not all(points for group in curves for points in group)
                entry["why"] = (
                    "the step times of a run are not all there"
                    if missing
                    else "the evaluations have no common range"
                )
            else:
                entry |= {"at": span[1], "range": list(span), "leads_since": leads_since(curves, span)}
                entry["places"] = places(groups, curves, span[1])
            found.append(entry)
    return found


def places(
    groups: Sequence[Group], curves: Sequence[Sequence[Sequence[tuple[float, float]]]], x: float
) -> list[dict[str, Any]]:
    """The groups at x, the best first. `larger_than_noise` is None for the leader and where a configuration
    has one seed."""
    values = [[value_at(points, x) for points in group] for group in curves]
    order = sorted(range(len(groups)), key=lambda g: mean(values[g]))
    first, pairs = order[0], math.comb(len(groups), 2)
    rows = []
    for g in order:
        p = None if g == first else p_of_difference(values[first], values[g])
        rows.append({
            "configuration": groups[g].label,
            "architecture": groups[g].runs[0].short_name,
            "seeds": len(values[g]),
            "values": values[g],
            "mean": mean(values[g]),
            "spread": stdev(values[g]) if len(values[g]) > 1 else None,
            "gap": mean(values[g]) - mean(values[first]),
            "p": p,
            "larger_than_noise": None if p is None else p < P_NOISE / pairs,  # Bonferroni: any pair might have led
            "differs_in": [] if g == first else differing(groups[first].runs[0], groups[g].runs[0]),
        })  # fmt: skip
    return rows


def differing(a: Run, b: Run) -> list[str]:
    """The fields in which two configurations differ, and 'data' where they read other tokens."""
    one, other = a.choices(), b.choices()
    fields = [name for name in {**one, **other} if one.get(name) != other.get(name)]
    return fields + (["data"] if a.data != b.data and "dataset" not in fields else [])


def config_diff(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Each field in which any two of the groups differ, with its value in each; None where it is not set or
    has no effect."""
    names: dict[str, None] = {}
    for a, b in combinations(groups, 2):
        names |= dict.fromkeys(differing(a.runs[0], b.runs[0]))
    return {n: [g.runs[0].data if n == "data" else g.runs[0].choices().get(n) for g in groups] for n in names}
