"""What a configuration field is, declared once beside its name: type, default, bounds or choices, when it
has an effect, what it is for.

    @dataclass(kw_only=True)
    class TrainConfig:
        learning_rate: float = knob(6e-4, "of the first update after warm-up", kind=NUMBERS, bounds="[0, inf)")
        wsd_decay_fraction: float = knob(0.2, "…", kind=NUMBERS, bounds="(0, 1]", needs={"lr_schedule": ("wsd",)})

        def __post_init__(self) -> None:
            check(self)                     # types, choices, bounds

Everything else that has to know fields asks here: checks, "did you mean", notes on fields without effect,
--help (base/cli.py), what a resume must match and what it mentions, what a comparison calls a difference.
"""

import dataclasses
import difflib
import functools
import importlib
import math
import os
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any, Literal, get_args, get_origin, get_type_hints

from base.errors import InputError
from base.text import shown


class Kind(StrEnum):
    """What a field is for. The values are the headings of --help."""

    MODEL = "What the model is"
    NUMBERS = "What the numbers of a run depend on"
    MACHINE = "The machine: speed and memory"
    KEEPING = "Keeping"
    LOOKING = "Looking"
    OPTION = "Options"  # of a program, in no run's configuration


MODEL, NUMBERS, MACHINE, KEEPING, LOOKING, OPTION = Kind
SET = ...  # in `needs`: any value but None, False, 0 and ""


@dataclasses.dataclass(frozen=True)
class Knob:
    """What is declared of a field besides its name, type and default."""

    meaning: str
    kind: Kind = OPTION
    bounds: str | None = None  # an interval such as "[0, 1)"; inf is never inside
    choices: tuple[str, ...] = ()  # names, and registries as "module:NAME", whose keys are names
    needs: Mapping[str, Any] = dataclasses.field(
        default_factory=dict
    )  # {other field: values or SET}, one of which must hold
    family: bool = False  # tells families of architectures apart, as against their sizes
    fixed: bool = False  # a resume must match it
    takes_words: bool = False  # words of the command line that are not flags


def knob(default: Any, meaning: str, **declared: Any) -> Any:
    """A dataclass field with all that is declared of it; the keywords are Knob's."""
    metadata = {"knob": Knob(meaning, **declared)}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def with_defaults(cls: type, **defaults: Any) -> type:
    """The record with other defaults, which its --help shows: one program's."""
    made = [
        (name, types(cls)[name], dataclasses.field(default=value, metadata={"knob": knobs(cls)[name]}))
        for name, value in defaults.items()
    ]
    frozen = cls.__dataclass_params__.frozen
    return dataclasses.make_dataclass(cls.__name__, made, bases=(cls,), kw_only=True, frozen=frozen)


@functools.cache
def knobs(cls: type) -> dict[str, Knob]:
    """Of every field of a dataclass."""
    return {f.name: f.metadata.get("knob", Knob("")) for f in dataclasses.fields(cls)}


@functools.cache
def types(cls: type) -> dict[str, Any]:
    hints = get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def default_of(cls: type, name: str) -> Any:
    field = cls.__dataclass_fields__[name]
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def names(cls: type, *kinds: Kind) -> tuple[str, ...]:
    """The fields of these kinds, or all."""
    return tuple(name for name, k in knobs(cls).items() if not kinds or k.kind in kinds)


def choices_of(k: Knob) -> tuple[str, ...]:
    """The names that a field may have; those of a registry are looked up now, so that what was added to it
    counts."""
    found: list[str] = []
    for choice in k.choices:
        module, colon, registry = choice.partition(":")
        found += getattr(importlib.import_module(module), registry) if colon else [choice]
    return tuple(found)


def check(record: Any) -> None:
    """Brings each field of a dataclass to its declared type, in place, and checks choices and bounds. An
    int serves as a float and an integral float as an int; nothing else is converted. Raises InputError."""
    cls = type(record)
    for name, hint in types(cls).items():
        object.__setattr__(record, name, typed(name, getattr(record, name), hint))  # a frozen one too
    for name, k in knobs(cls).items():
        value = getattr(record, name)
        if k.choices and value is not None and value not in (known := choices_of(k)):
            raise InputError(f"{name}={shown(value)} is not known{did_you_mean(value, known)}")
        if k.bounds and value is not None:
            check_bounds(name, value, k.bounds)
        if isinstance(value, int) and abs(value) >= 2**63:  # where files, numpy and torch end
            raise InputError(f"{name} is beyond 64 bits: choose a smaller number")


def typed(name: str, value: Any, hint: Any) -> Any:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise InputError(f"{name}={shown(value)} is not known{did_you_mean(value, get_args(hint))}")
        return value
    if get_origin(hint) is list:
        return value
    kinds = get_args(hint) or (hint,)
    if value is None and type(None) in kinds:
        return None
    if type(value) in kinds:
        return value
    if float in kinds and type(value) is int and abs(value) < 2**1000:
        return float(value)
    if int in kinds and type(value) is float and value.is_integer():
        return int(value)
    wanted = " or ".join("None" if k is type(None) else k.__name__ for k in kinds)
    raise InputError(f"{name}={shown(value)} is of type {type(value).__name__}, wanted {wanted}")


def check_bounds(name: str, value: float, bounds: str) -> None:
    """Raises InputError for a value outside an interval such as "[0, 1)"."""
    low, high = map(_number, bounds[1:-1].split(", "))
    above = value >= low if bounds[0] == "[" else value > low
    below = value <= high if bounds[-1] == "]" else value < high
    if above and below:
        return
    if math.isfinite(high):
        wanted = f"must lie in {bounds}"
    elif bounds[0] == "(":
        wanted = "must be positive and finite" if low == 0 else f"must be finite and greater than {low:g}"
    else:
        wanted = (
            f"must be at least {low:g}" if isinstance(value, int) else f"must be finite and at least {low:g}"
        )
    raise InputError(f"{name}={value} {wanted}")


def _number(text: str) -> float:
    base, power, exponent = text.partition("^")
    return float(base) ** int(exponent) if power else float(base)


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """The tail of an error message: the nearest known word, or all of them where they are few."""
    known = list(known)
    text = str(word) if isinstance(word, (str, os.PathLike)) else shown(word)
    near = difflib.get_close_matches(text, known, n=1, cutoff=0.6)
    if near:
        return f": did you mean {near[0]!r}?"
    return f": one of {', '.join(known)}" if 0 < len(known) <= 12 else ""


def check_names(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raises InputError for the first name that is not known."""
    known = list(known)
    for name in given:
        if name not in known:
            raise InputError(f"unknown key {name!r} in {where}{did_you_mean(name, known)}")


def from_dict(cls: type, values: Any, where: str) -> Any:
    """A record from what JSON holds of it. Raises InputError for what is not a dictionary, unknown names and
    wrong values."""
    if not isinstance(values, dict):
        raise InputError(f"{where} is a dictionary of fields, not {type(values).__name__}")
    check_names(values, names(cls), where)
    return cls(**values)


def has_effect(cls: type, name: str, values: Mapping[str, Any]) -> bool:
    """Whether the field does anything beside these values of the other fields, of which missing ones have
    their defaults."""
    needs = knobs(cls)[name].needs
    return not needs or any(_is_met(cls, other, wanted, values) for other, wanted in needs.items())


def _is_met(cls: type, other: str, wanted: Any, values: Mapping[str, Any]) -> bool:
    value = values.get(other, default_of(cls, other))
    return (bool(value) if wanted is SET else value in wanted) and has_effect(cls, other, values)


def notes(record: Any) -> list[str]:
    """A line on each field that was set to other than its default and has no effect."""
    cls, values = type(record), vars(record)
    said = []
    for name, k in knobs(cls).items():
        if values[name] != default_of(cls, name) and not has_effect(cls, name, values):
            said.append(f"{name}={values[name]!r} has no effect {_why_not(cls, k.needs, values)}")
    return said


def _why_not(cls: type, needs: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """What a field without effect lacks, in words. Where another field that it needs has the right value,
    and no effect itself, the reason is that one's."""
    for other, wanted in needs.items():
        if bool(values[other]) if wanted is SET else values[other] in wanted:
            return _why_not(cls, knobs(cls)[other].needs, values)
    if all(wanted is SET for wanted in needs.values()):
        return f"without {' or '.join(needs)}"
    return " and ".join(f"with {other}={values[other]!r}" for other in needs)


def effective(cls: type, values: Mapping[str, Any], *kinds: Kind) -> dict[str, Any]:
    """The fields of these kinds that have an effect, with their values; a field that is missing, as it is
    in what an earlier version wrote, has its default."""
    return {
        name: values.get(name, default_of(cls, name))
        for name in names(cls, *kinds)
        if has_effect(cls, name, values)
    }


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Where two sets of fields differ, in words; empty where they do not."""
    absent = object()
    return ", ".join(
        f"{name}={old.get(name)!r} there, {new.get(name)!r} here"
        for name in dict.fromkeys([*new, *old])
        if old.get(name, absent) != new.get(name, absent)
    )
