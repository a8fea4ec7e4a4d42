"""What follows from a field's one declaration: types, choices, bounds, effect, differences."""

from dataclasses import dataclass
from typing import Literal

import pytest

from base import fields
from base.errors import InputError
from base.fields import KEEPING, LOOKING, MACHINE, MODEL, NUMBERS, SET, Kind, knob
from model_config import ModelArchitectureConfig
from training.config import TrainConfig

REGISTRY = {"one": 1, "two": 2}


@dataclass(kw_only=True)
class Record:
    size: int = knob(3, "a size", kind=MODEL, bounds="[1, inf)")
    rate: float = knob(0.5, "a rate", kind=NUMBERS, bounds="[0, 1)")
    width: float = knob(1.0, "a width", kind=NUMBERS, bounds="(0, inf)")
    seed: int = knob(0, "a seed", bounds="[0, 2^63)")
    mode: Literal["plain", "fancy"] = knob("plain", "a mode", kind=NUMBERS)
    name: str = knob("one", "a name", choices=("auto", "base.test_fields_registry:REGISTRY"))
    colour: str | None = knob(None, "of fancy", kind=NUMBERS, needs={"mode": ("fancy",)})
    shade: float = knob(0.1, "of the colour", kind=NUMBERS, bounds="[0, inf)", needs={"colour": SET})
    log: bool = knob(False, "whether", kind=LOOKING)
    words: list[str] = knob([], "what is left", takes_words=True)

    def __post_init__(self) -> None:
        fields.check(self)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    import sys
    import types

    module = types.ModuleType("base.test_fields_registry")
    module.REGISTRY = dict(REGISTRY)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module.REGISTRY


@pytest.mark.parametrize("given, said", [
    ({"size": 0}, "size=0 must be at least 1"),
    ({"size": "3"}, "size='3' is of type str, wanted int"),
    ({"size": 2.5}, "size=2.5 is of type float, wanted int"),
    ({"size": True}, "size=True is of type bool, wanted int"),
    ({"rate": 1.0}, "rate=1.0 must lie in [0, 1)"),
    ({"rate": float("nan")}, "rate=nan must lie in [0, 1)"),
    ({"width": 0}, "width=0.0 must be positive and finite"),
    ({"width": float("inf")}, "width=inf must be positive and finite"),
    ({"shade": -0.5}, "shade=-0.5 must be finite and at least 0"),
    ({"seed": 2**63}, "must lie in [0, 2^63)"),
    ({"mode": "fance"}, "mode='fance' is not known: did you mean 'fancy'?"),
    ({"name": "three"}, "name='three' is not known: one of auto, one, two"),
    ({"colour": 3}, "colour=3 is of type int, wanted str or None"),
    ({"log": 1}, "log=1 is of type int, wanted bool"),
])  # fmt: skip
def test_what_is_wrong_is_said(given, said):
    with pytest.raises(InputError) as error:
        Record(**given)
    assert said in str(error.value) and "\n" not in str(error.value)


def test_numbers_come_to_their_declared_type():
    record = Record(size=4.0, width=2, seed=2**63 - 1)
    assert (record.size, type(record.size), record.width, type(record.width)) == (4, int, 2.0, float)


def test_an_entry_added_to_a_registry_is_a_choice(registry):
    with pytest.raises(InputError):
        Record(name="three")
    registry["three"] = 3
    assert Record(name="three").name == "three"


def test_a_default_list_is_not_shared():
    a, b = Record(), Record()
    a.words.append("x")
    assert b.words == []


def test_effect_follows_the_chain_of_needs():
    assert not fields.has_effect(Record, "shade", {})
    assert not fields.has_effect(Record, "shade", {"colour": "red"})  # colour itself needs mode
    assert fields.has_effect(Record, "shade", {"colour": "red", "mode": "fancy"})
    assert fields.notes(Record()) == []
    assert fields.notes(Record(shade=0.2)) == ["shade=0.2 has no effect without colour"]
    assert fields.notes(Record(colour="red")) == ["colour='red' has no effect with mode='plain'"]
    assert fields.notes(Record(colour="red", shade=0.2)) == [
        "colour='red' has no effect with mode='plain'",
        "shade=0.2 has no effect with mode='plain'",
    ]
    assert fields.notes(Record(colour="red", mode="fancy", shade=0.2)) == []


def test_what_is_effective_fills_in_defaults_and_leaves_out_the_rest():
    assert fields.effective(Record, {"rate": 0.25}, NUMBERS) == {"rate": 0.25, "width": 1.0, "mode": "plain"}
    assert fields.effective(Record, {}, LOOKING, MODEL) == {"size": 3, "log": False}


def test_differences_are_named_with_both_values():
    assert (
        fields.differing({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4})
        == "b=2 there, 3 here, c=None there, 4 here"
    )
    assert fields.differing({"a": 1}, {"a": 1}) == ""


@pytest.mark.parametrize("values, said", [
    ([], "a record is a dictionary of fields, not list"),
    ({"sizes": 3}, "unknown key 'sizes' in a record: did you mean 'size'?"),
    ({"size": -1}, "size=-1 must be at least 1"),
])  # fmt: skip
def test_a_record_from_json_is_checked(values, said):
    with pytest.raises(InputError, match=said):
        fields.from_dict(Record, values, "a record")


@pytest.mark.parametrize("kind", [ModelArchitectureConfig, TrainConfig])
def test_every_field_of_a_run_is_declared(kind):
    for name, k in fields.knobs(kind).items():
        assert k.meaning and k.kind in (MODEL, NUMBERS, MACHINE, KEEPING, LOOKING), name
        assert set(k.needs) <= set(fields.names(kind)), name
    assert set(Kind) >= {k.kind for k in fields.knobs(kind).values()}


def test_a_program_has_its_own_defaults():
    @dataclass(frozen=True, kw_only=True)
    class Options:
        out_dir: str = knob("out", "where it goes")
        count: int = knob(3, "how many", bounds="[1, inf)")

        def __post_init__(self) -> None:
            fields.check(self)

    own = fields.with_defaults(Options, out_dir="here")
    assert (own().out_dir, own().count, own(count=4.0).count) == ("here", 3, 4) and isinstance(own(), Options)
    assert fields.knobs(own) == fields.knobs(Options) and fields.default_of(own, "out_dir") == "here"
    assert fields.names(own) == ("out_dir", "count")
    with pytest.raises(InputError, match="count=0"):
        own(count=0)
