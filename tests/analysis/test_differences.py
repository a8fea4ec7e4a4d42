"""What splits configurations, for every field that there is."""

from pathlib import Path

import pytest
from run_logs import compared, standing, three_seeds, two_seeds, write_log

from base import fields
from model_config import ModelArchitectureConfig
from training.config import TrainConfig

pytestmark = pytest.mark.usefixtures("in_tmp_path")


def test_what_does_not_change_a_run_makes_no_other_configuration(capsys):
    three_seeds("out-sweep/a", [3.0, 3.01])
    write_log(
        "out-sweep/a-seed2",
        floor=3.02,
        train={"seed": 2, "dashboard": True, "tensorboard_log": True, "keep_last": 9},
    )
    _, _, report = compared(capsys, "out-sweep")
    assert [place["seeds"] for place in standing(report, "tokens")["places"]] == [3]


OTHER_VALUES = {
    "hybrid_shard_size": 2,
    "init_from": "resume",
}  # of fields whose default says nothing of their type


def other_value(cls, name):
    """A value that the field does not have by default."""
    default = fields.default_of(cls, name)
    if name in OTHER_VALUES:
        return OTHER_VALUES[name]
    if isinstance(default, bool):
        return not default
    return f"{default}-other" if isinstance(default, str) else (default or 0) + 1


def setting_that_gives_effect(cls, name):
    """What the field needs beside it: values of other fields."""
    for other, wanted in fields.knobs(cls)[name].needs.items():
        value = other_value(cls, other) if wanted is fields.SET else wanted[0]
        return {other: value, **setting_that_gives_effect(cls, other)}
    return {}


def of_kinds(*kinds):
    return [
        (part, cls, name)
        for part, cls in (("model", ModelArchitectureConfig), ("train", TrainConfig))
        for name in fields.names(cls, *kinds)
    ]


@pytest.mark.parametrize("part, cls, name", of_kinds(fields.MACHINE, fields.KEEPING, fields.LOOKING))
def test_the_machine_and_looking_split_no_configuration(part, cls, name, capsys):
    if name == "out_dir":  # the two have folders of their own as it is
        report = two_seeds(capsys, part, {}, {})
    else:
        beside = setting_that_gives_effect(cls, name)
        report = two_seeds(capsys, part, beside, {name: other_value(cls, name)})
    assert report["config_diff"]["fields"] == {}
    assert [place["seeds"] for place in standing(report, "tokens")["places"]] == [2]
    assert [place["seeds"] for place in standing(report, "FLOPs")["places"]] == [2]
    in_time = standing(report, "time")
    if name in fields.names(cls, fields.MACHINE):
        assert not in_time["places"] and in_time["why"] == f"the runs differ in {name}"
        assert any(f"The runs differ in {name} (" in note for note in report["notes"])
    else:
        assert [place["seeds"] for place in in_time["places"]] == [2]


LEARNED = [field for field in of_kinds(fields.MODEL, fields.NUMBERS) if field[2] != "seed"]


@pytest.mark.parametrize("part, cls, name", LEARNED)
def test_what_is_learned_splits(part, cls, name, capsys):
    beside = setting_that_gives_effect(cls, name)
    report = two_seeds(capsys, part, beside, {name: other_value(cls, name)})
    assert name in report["config_diff"]["fields"]
    if name in ("block_size", "document_masking"):  # they are part of what is measured, too
        assert name in standing(report, "tokens")["why"]
    else:
        assert [place["seeds"] for place in standing(report, "tokens")["places"]] == [1, 1]


@pytest.mark.parametrize("part, cls, name", [f for f in LEARNED if not fields.has_effect(f[1], f[2], {})])
def test_a_field_without_effect_splits_nothing(part, cls, name, capsys):
    report = two_seeds(capsys, part, {}, {name: other_value(cls, name)})
    assert [place["seeds"] for place in standing(report, "tokens")["places"]] == [2]


@pytest.mark.parametrize("different, splits", [
    ({"init_from": "hf:gpt2"}, True), ({"init_from": "run:out-a@100"}, True), ({"init_from": "scratch"}, False),
    ({"of_tomorrow": None}, True), ({"learning_rate": 6e-4}, False), ({"learning_rate": 1e-3}, True),
    ({"sample_prompt": "def", "sample_tokens": 9, "profile": 3}, False), ({"grad_clip": 1}, False),
])  # fmt: skip
def test_what_an_older_or_a_later_log_says(different, splits, capsys):
    """A field that a log lacks has its default; one that this version does not know is a difference."""
    report = two_seeds(capsys, "train", {}, different)
    assert [place["seeds"] for place in standing(report, "tokens")["places"]] == ([1, 1] if splits else [2])
    assert list(report["config_diff"]["fields"]) == (list(different) if splits else [])


def test_a_resumed_run_is_told_by_the_weights_that_it_began_with(capsys):
    write_log(
        "out-a", steps=(0, 60), end=None, started=1_700_000_001, train={"seed": 0, "init_from": "hf:gpt2"}
    )
    write_log("out-a", steps=(40, 100), started=1_700_000_002, train={"seed": 0, "init_from": "resume"})
    write_log("out-b", train={"seed": 1, "init_from": "scratch"})
    _, _, report = compared(capsys, "out-a", "out-b")
    assert report["config_diff"]["fields"] == {"init_from": ["hf:gpt2", None]}


def test_two_changes_at_once_are_said(capsys):
    llama = {"position_encoding": "rope", "rope_theta": 5e5, "rope_scaling": "none", "d_ff": 10}
    write_log(
        "out-a",
        model={**llama, "position_encoding": "learned", "rope_theta": 1e4},
        train={"seed": 1, "keep_last": 1},
    )
    write_log("out-b", floor=3.1, model={**llama, "d_ff": 12}, train={"seed": 1, "keep_last": 2})
    out, _, report = compared(capsys, "out-a", "out-b")
    assert report["config_diff"] == {  # learned positions have no theta
        "configurations": ["out-a", "out-b"],
        "fields": {"position_encoding": ["learned", "rope"], "d_ff": [10, 12], "rope_theta": [None, 5e5],
                   "rope_scaling": [None, "none"]},
    }  # fmt: skip
    assert "differ in 4 things at once (d_ff, position_encoding, rope_theta, rope_scaling)" in out
    assert [line.split() for line in out.splitlines() if line.startswith("d_ff")] == [["d_ff", "10", "12"]]
    markdown = Path("cmp/comparison.md").read_text()
    assert "| position_encoding | learned | rope" in markdown and "\n\n| at equal" in markdown
