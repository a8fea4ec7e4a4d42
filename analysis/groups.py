"""Seeds of one configuration together, and what the configurations differ in."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from analysis.differences import names_that_differ
from analysis.runs import Run


@dataclass
class Group:
    """The runs of one configuration, one a seed."""

    label: str
    runs: list[Run]
    repeats: list[Run]  # further runs of the same seeds: they say nothing of the noise between seeds


def identity(run: Run) -> tuple[Any, ...]:
    """What the runs of one configuration have in common. Runs without a recorded seed stay alone."""
    alone = run.label if run.seed is None else None
    model = run.model
    return run.choices, model["architecture_name"], model["params"], model["flops_per_token"], run.data, alone


def groups_of(runs: Sequence[Run]) -> list[Group]:
    """The configurations among the runs, in their order."""
    grouped: list[tuple[Any, list[Run]]] = []
    for run in runs:
        found = next((members for what, members in grouped if what == identity(run)), None)
        if found is None:
            grouped.append((identity(run), [run]))
        else:
            found.append(run)
    return [group_of(members) for _, members in grouped]


def group_of(members: Sequence[Run]) -> Group:
    """The runs of one configuration, of each seed the one that came farthest."""
    by_seed: dict[int | None, Run] = {}
    for run in sorted(members, key=lambda run: -run.tokens):
        by_seed.setdefault(run.seed, run)
    chosen = [run for run in members if by_seed[run.seed] is run]
    stems = {re.sub(r"[-_]?seed[-_=]?\d+$", "", run.label) for run in chosen}
    if len(chosen) == 1:
        label = chosen[0].label
    else:
        label = stems.pop() if len(stems) == 1 else f"{chosen[0].label} and others"
    return Group(label, chosen, [run for run in members if run not in chosen])


def differing(a: Run, b: Run) -> list[str]:
    """The fields in which two configurations differ, and 'data' where they read other tokens."""
    fields = names_that_differ([a.choices, b.choices])
    return fields + (["data"] if a.data != b.data and "dataset" not in fields else [])


def config_diff(groups: Sequence[Group]) -> dict[str, list[Any]]:
    """Each field in which any two of the groups differ, with its value in each; None where it is not set or
    has no effect."""
    names: dict[str, None] = {}
    for a, b in combinations(groups, 2):
        names |= dict.fromkeys(differing(a.runs[0], b.runs[0]))
    return {n: [g.runs[0].data if n == "data" else g.runs[0].choices.get(n) for g in groups] for n in names}


def differing_machines(runs: Sequence[Run]) -> list[str]:
    """What keeps the speed of the runs from being compared: 'hardware', and the fields of their
    configurations that are for the machine."""
    hardware = ["hardware"] if len({run.machine for run in runs}) > 1 else []
    return hardware + names_that_differ([run.machine_choices for run in runs])
