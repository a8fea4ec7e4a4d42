"""Who leads at equal tokens, FLOPs and training time, by how much, beyond the noise or within it."""

from collections.abc import Sequence
from statistics import mean, stdev
from typing import Any

from analysis.alignment import Points, common_range, leads_since, value_at
from analysis.groups import Group, differing, differing_machines, groups_of
from analysis.noise import is_larger_than_noise, p_of_difference
from analysis.runs import Run, forbidden, ranking_key, useful_axes


def standings(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """The configurations on each axis, best first, each with its gap to the leader: of all evaluated runs,
    and where some of them broke off also of those that are done. An entry without `places` says in `why`
    what forbids it."""
    key, evaluated = ranking_key(runs), [run for run in runs if run.evals]
    scopes = {"all": groups_of(evaluated)}
    done = [run for run in evaluated if run.status == "done"]
    if len(done) < len(evaluated) and len(groups_of(done)) > 1:
        scopes["done"] = groups_of(done)
    return [
        {"axis": axis, "figure": key, "of": scope, "at": None, "places": [], **on_axis(groups, key, axis)}
        for scope, groups in scopes.items()
        if len(groups) > 1 or (groups and len(groups[0].runs) > 1)
        for axis in useful_axes(evaluated)
    ]


def on_axis(groups: Sequence[Group], key: str, axis: str) -> dict[str, Any]:
    """The places at the end of the common range, or `why` there are none."""
    runs = [run for group in groups for run in group.runs]
    curves = [[run.curve(key, axis) for run in group.runs] for group in groups]
    span = common_range([points for group in curves for points in group])
    if why := forbidden(runs):
        return {"why": why}
    if axis == "bytes" and any(run.bytes_per_token is None for run in runs):
        return {"why": "a log does not say how many bytes the training text has"}
    if axis == "time" and (machines := differing_machines(runs)):
        return {"why": f"the runs differ in {', '.join(machines)}"}
    if axis == "time" and not all(points for group in curves for points in group):
        return {"why": "the step times of a run are not all there"}
    if span is None or span[1] <= 0:
        return {"why": "the evaluations have no common range"}
    return {
        "at": span[1],
        "range": list(span),
        "leads_since": leads_since(curves, span),
        "places": places(groups, curves, span[1]),
    }


def places(groups: Sequence[Group], curves: Sequence[Sequence[Points]], x: float) -> list[dict[str, Any]]:
    """The groups at x, the best first. `larger_than_noise` is None for the leader and where a configuration
    has one seed."""
    values = [[value_at(points, x) for points in group] for group in curves]
    order = sorted(range(len(groups)), key=lambda g: mean(values[g]))
    first = order[0]
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
            "larger_than_noise": None if p is None else is_larger_than_noise(p, len(groups)),
            "differs_in": [] if g == first else differing(groups[first].runs[0], groups[g].runs[0]),
        })  # fmt: skip
    return rows
