"""The comparison in sentences: who leads, and what a reader must know before comparing the rows."""

import json
from collections.abc import Sequence
from typing import Any

from analysis.groups import Group, differing_machines
from analysis.logs import LOSS
from analysis.measures import TOLD
from analysis.runs import Run, forbidden
from base.text import human


def on_the_leaders(leads: Sequence[dict[str, Any]]) -> list[str]:
    """The winner of each axis in a sentence."""
    lines = []
    for entry in (entry for entry in leads if len(entry["places"]) > 1):
        first, second = entry["places"][:2]
        if not second["gap"]:
            continue
        noise = {None: "of unknown noise", True: "larger than the noise", False: "within the noise"}
        since, (low, high) = entry["leads_since"], entry["range"]
        share = 1.0 if since is None or high == low else (high - since) / (high - low)
        of = "" if entry["of"] == "all" else ", of the runs that are done"
        lines.append(
            f"At equal {entry['axis']}{of}: {first['configuration']} leads {second['configuration']} by "
            f"{second['gap']:.4f}, {noise[second['larger_than_noise']]}; it has led for the last {share:.0%} of "
            f"the common range; the two differ {in_what(second['differs_in'])}."
        )
    return lines


def in_what(fields: Sequence[str]) -> str:
    if len(fields) == 1:
        return f"in {fields[0]} alone"
    return f"in {len(fields)} things at once" if fields else "in no field"


def notes_on(
    runs: Sequence[Run],
    common: float | None,
    groups: Sequence[Group],
    diff: dict[str, list[Any]],
    leads: Sequence[dict[str, Any]],
) -> list[str]:
    """What a reader must know before comparing the rows."""
    return [
        *on_configurations(groups, diff, leads),
        *on_data(runs),
        *on_tokens(runs, common),
        *on_machines(runs),
        *(line for run in runs for line in on_run(run)),
    ]


def on_configurations(
    groups: Sequence[Group], diff: dict[str, list[Any]], leads: Sequence[dict[str, Any]]
) -> list[str]:
    """What they differ in, and how many seeds each has."""
    notes = []
    if len(diff) == 1:
        notes.append(f"The configurations differ in {next(iter(diff))} only.")
    elif diff:
        notes.append(
            f"The configurations differ in {len(diff)} things at once ({', '.join(diff)}): what they differ by "
            "in the result is due to all of these together and to none alone."
        )
    for group in groups:
        if group.repeats:
            repeated = ", ".join(run.label for run in group.repeats)
            notes.append(
                f"{repeated}: seed and configuration of another run here, so not counted as one more seed."
            )
    compared = [entry for entry in leads if entry["places"]]
    if compared and all(place["seeds"] == 1 for entry in compared for place in entry["places"]):
        notes.append(
            "One seed of each configuration: whether a gap is larger than the noise between seeds is not known."
        )
    return notes


def on_data(runs: Sequence[Run]) -> list[str]:
    """Whether the evaluations of the runs compare, and what differs in the data."""
    notes = []
    if why := forbidden(runs):
        notes.append(f"Not ranked: {why}.")
    elif len({json.dumps([run.measurement[name] for name in TOLD]) for run in runs if run.evals}) > 1:
        notes.append(
            "The runs were evaluated in different ways, but over the same held-out text: bits per byte compare."
        )
    if len({run.data for run in runs}) > 1:
        notes.append("The runs differ in training data or tokenizer: equal tokens need not be equal text.")
    return notes


def on_tokens(runs: Sequence[Run], common: float | None) -> list[str]:
    """How far the runs came, and where they are compared."""
    fewest, most = min(run.tokens for run in runs), max(run.tokens for run in runs)
    if fewest == most:
        return []
    note = (
        f"The runs differ in tokens ({fewest:,} to {most:,}), so their final and best losses do not compare"
    )
    if common is not None:
        note += f"; the columns 'at {human(common)}' do: at {common:,.0f} tokens, "
        note += "interpolated between evaluations"
    elif sum(bool(run.evals) for run in runs) > 1:
        note += "; no token count lies within the evaluations of all of them"
    return [f"{note}."]


def on_machines(runs: Sequence[Run]) -> list[str]:
    """Hardware and the machine's fields, where they differ."""
    what = []
    for name in differing_machines(runs):
        values = {run.machine if name == "hardware" else str(run.machine_choices.get(name)) for run in runs}
        what.append(f"{name} ({', '.join(sorted(values))})")
    if not what:
        return []
    return [f"The runs differ in {', '.join(what)}: tokens/s, MFU, time and memory do not compare."]


def on_run(run: Run) -> list[str]:
    facts = {
        f"{len(run.files)} logs joined": len(run.files) > 1,
        "no evaluation": not run.evals,
        f"{run.other_evals} evaluations of an earlier session left out, which evaluated something else": run.other_evals,
        "its validation loss is not finite everywhere": any(e[LOSS] is None for e in run.evals),
        "~time is the sum of its logged steps": not run.time_is_wall and run.time_s,
        f"damaged lines skipped: {run.damaged_lines}": run.damaged_lines,
        f"crashed at {run.tokens:,} tokens ({run.reason or 'its log has no run_end'})": run.status
        == "crashed",
    }
    said = [fact for fact, holds in facts.items() if holds]
    return [f"{run.label}: {'; '.join(said)}."] if said else []
