"""The tables of a comparison as cells: the runs, who leads, what the configurations differ in."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis.groups import Group
from analysis.logs import BITS
from analysis.runs import Run, ranking_key
from base.text import clock, human


@dataclass
class Table:
    rows: list[list[str]]  # the header first
    left: list[bool]  # of each column: words, flush left, rather than numbers


def table_of_runs(
    runs: Sequence[Run], rows: Sequence[dict[str, Any]], common: float | None, common_flops: float | None
) -> Table:
    """The runs with their numbers, which are those of summarise()."""
    full = {run.model["architecture_name"] for run in runs}
    unique = len(full) == len({run.short_name for run in runs})  # else the parenthesis tells them apart

    def column(key: str, form: str = "") -> list[str]:
        return ["n/a" if row[key] is None else format(row[key], form) for row in rows]

    def in_units(key: str) -> list[str]:
        return ["n/a" if row[key] is None else human(row[key]) for row in rows]

    columns = {
        "run": column("label"),
        "architecture": [run.short_name for run in runs] if unique else column("architecture_name"),
        "parameters": in_units("params"),
        "non-embedding": in_units("params_non_embedding"),
        "FLOPs/token": in_units("flops_per_token"),
        "tokens": in_units("tokens"),
        "final val loss": column("final_val_loss", ".4f"),
        "best val loss": column("best_val_loss", ".4f"),
        "best bits/byte": column("best_bits_per_byte", ".4f"),
    }
    if common is not None:
        columns[f"val loss at {human(common)}"] = column("val_loss_at_common_tokens", ".4f")
        if any(row["bits_per_byte_at_common_tokens"] is not None for row in rows):
            columns[f"bits/byte at {human(common)}"] = column("bits_per_byte_at_common_tokens", ".4f")
    if common_flops is not None:
        what, key = ("bits/byte", "bits_per_byte") if ranking_key(runs) == BITS else ("val loss", "val_loss")
        columns[f"{what} at {common_flops:.3g} FLOPs"] = column(f"{key}_at_common_flops", ".4f")
    columns |= {
        "tokens/s": column("tokens_per_s", ",.0f"),
        "MFU": column("mfu", ".1%"),
        "time": [
            ("" if run.time_is_wall else "~") + clock(run.time_s) if run.time_s else "n/a" for run in runs
        ],
        "memory GB": column("memory_gb", ".2f"),
        "grad norm": column("grad_norm", ".2f"),
        "skipped": column("skipped_steps"),
        "spikes": column("spikes"),
    }
    if any(row["energy_j"] is not None for row in rows):
        columns["energy kJ"] = [
            "n/a" if (e := row["energy_j"]) is None else f"{e / 1e3:,.1f}" for row in rows
        ]
    columns["status"] = column("status")
    left = [name in ("run", "architecture", "status") for name in columns]
    return Table([list(columns), *(list(row) for row in zip(*columns.values(), strict=True))], left)


def table_of_standings(leads: Sequence[dict[str, Any]]) -> Table:
    """Who leads; only the header where there is nothing to rank."""
    figure = "bits/byte" if leads and leads[0]["figure"] == BITS else "val loss"
    rows = [["at equal", "configuration", "seeds", figure, "spread", "gap", "against the noise"]]
    for entry in leads:
        where = where_of(entry)
        if not entry["places"]:
            rows.append([where, f"not compared: {entry['why']}", *[""] * 5])
        someone_leads = all(place["gap"] for place in entry["places"][1:])
        for i, place in enumerate(entry["places"]):
            rows.append([
                "" if i else where,
                place["configuration"],
                str(place["seeds"]),
                f"{place['mean']:.4f}",
                "n/a" if place["spread"] is None else f"{place['spread']:.4f}",
                f"{place['gap']:+.4f}" if i else "leads" if someone_leads else "level",
                against_the_noise(place) if i else "",
            ])  # fmt: skip
    return Table(rows, [True, True, False, False, False, False, True])


def where_of(entry: dict[str, Any]) -> str:
    """The axis, and how far along it."""
    x, form = (
        entry["at"],
        {"time": clock, "tokens": human, "bytes": human}.get(entry["axis"], "{:.3g}".format),
    )
    done = "" if entry["of"] == "all" else ", of those done"
    return entry["axis"] + ("" if x is None else f" ({form(x)})") + done


def against_the_noise(place: dict[str, Any]) -> str:
    if place["p"] is None:
        return "not known"
    return f"{'larger' if place['larger_than_noise'] else 'within'} (p = {place['p']:.2g})"


def table_of_differences(groups: Sequence[Group], diff: dict[str, list[Any]]) -> Table:
    """What differs between the configurations, a row each field."""
    shown = {
        name: ["-" if v is None else v[:12] if name == "data" else str(v) for v in values]
        for name, values in diff.items()
    }
    header = ["field", *(group.label for group in groups)]
    return Table([header, *([name, *values] for name, values in shown.items())], [True] * len(header))
