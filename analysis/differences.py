"""What a comparison and a sweep call a difference. It follows from what base.fields knows of each field.

What the model is and what the numbers of a run depend on are differences, where the field has an effect,
and so is a field that this version does not know. The seed is none: runs that differ in nothing else are
one configuration. The machine's fields change no more than speed and memory; where to keep things and when
to look at them changes nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from base.fields import MACHINE, MODEL, NUMBERS, Kind, default_of, effective, names
from model_config import ModelArchitectureConfig
from training.config import TrainConfig

PARTS = {"model": ModelArchitectureConfig, "train": TrainConfig}
OWN_WEIGHTS = ("scratch", "resume", "auto")  # init_from that brings no weights of another model
ABSENT = object()


def effective_ones(config: Mapping[str, Any], *kinds: Kind) -> dict[str, Any]:
    """The fields of these kinds that have an effect. None is left out: it says no more than no effect."""
    return {
        name: value
        for part, cls in PARTS.items()
        for name, value in effective(cls, config[part], *kinds).items()
        if value is not None
    }


def learned_from(config: Mapping[str, Any], begun_from: Any = None) -> dict[str, Any]:
    """Of a configuration {"model", "train"} the fields that decide what is learned, with their values. One
    that an older log lacks has its default, which is the old meaning. `begun_from`: init_from of the
    run's first session, where a later one resumed it."""
    chosen = effective_ones(config, MODEL, NUMBERS)
    for part, cls in PARTS.items():
        chosen |= {name: value for name, value in config[part].items() if name not in names(cls)}
    chosen.pop("seed", None)
    default = default_of(TrainConfig, "init_from")
    weights = config["train"].get("init_from", default) if begun_from is None else begun_from
    return chosen if weights in OWN_WEIGHTS else chosen | {"init_from": weights}


def run_on(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that decide how fast and in which memory it is learned."""
    return effective_ones(config, MACHINE)


def names_that_differ(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of which not all of the records have one value."""
    found = dict.fromkeys(name for record in records for name in record)
    return [
        name
        for name in found
        if any(record.get(name, ABSENT) != records[0].get(name, ABSENT) for record in records)
    ]
