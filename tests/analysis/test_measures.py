"""Figures of different measurements are not ranked, but for bits per byte of one text."""

import pytest
from run_logs import compared, write_log

WHOLE = {"whole": True, "text": "t0"}


@pytest.fixture(autouse=True)
def here(in_tmp_path):
    pass


def why(report) -> set[str | None]:
    return {entry.get("why") for entry in report["standings"] if not entry["places"]}


@pytest.mark.parametrize("other, said", [
    ({"windows": 200}, "evaluated windows (100, 200)"), ({"block_size": 128}, "block_size (128, 64)"),
    ({"split": "v1"}, "held-out data"), ({"split": "v1", "whole": True, "text": "t1"}, "held-out data"),
])  # fmt: skip
def test_other_windows_and_other_texts_are_not_ranked(capsys, other, said):
    """Whoever has the lower figure: the rows are in the order of their names, and nobody leads."""
    write_log("out-b", floor=2.0, measurement=other)
    write_log("out-a", floor=3.0, measurement={})
    out, _, report = compared(capsys, "out-a", "out-b")
    assert [row["out_dir"] for row in report["runs"]] == ["out-a", "out-b"] and report["summary"] == []
    (reason,) = why(report)
    assert said in reason and "bits per byte compare only over the same held-out text" in reason
    assert f"Not ranked: {reason}." in out and "leads" not in out


@pytest.mark.parametrize("a, b", [
    ({}, {"dtype": "bfloat16"}), ({}, {"document_masking": True}), (WHOLE, WHOLE | {"split": "v1", "windows": 7}),
])  # fmt: skip
def test_bits_per_byte_of_one_text_are_ranked(capsys, a, b):
    write_log("out-a", floor=3.0, measurement=a)
    write_log("out-b", floor=2.0, measurement=b)
    out, _, report = compared(capsys, "out-a", "out-b")
    assert [row["out_dir"] for row in report["runs"]] == ["out-b", "out-a"] and not why(report) - {None}
    assert (
        report["sorted_by"] == "val_bits_per_byte"
        and "over the same held-out text: bits per byte compare" in out
    )


def test_bytes_that_were_estimated_do_not_rank_beside_counted_ones(capsys):
    """Of one measurement the loss does."""
    write_log("out-a", floor=3.0, measurement={"bytes": None})
    write_log("out-b", floor=2.0, measurement={})
    out, _, report = compared(capsys, "out-a", "out-b")
    assert report["sorted_by"] == "val_loss" and "in different ways" not in out
    assert [row["out_dir"] for row in report["runs"]] == ["out-b", "out-a"]


@pytest.mark.parametrize("unknown", [
    dict.fromkeys(["split", "windows", "block_size", "document_masking", "dtype"]), {"split": ["v0"]}, {"split": 1e60},
])  # fmt: skip
def test_what_nobody_recorded_is_not_ranked(capsys, unknown):
    for name, floor in (("out-a", 3.0), ("out-b", 2.0)):
        write_log(name, floor=floor, measurement=unknown)
    _, _, report = compared(capsys, "out-a", "out-b")
    assert why(report) == {"a log does not say what it evaluated"}


def test_sessions_are_in_their_own_order_whatever_the_clock(capsys):
    for session, (steps, started) in enumerate((((0, 40), 1), ((40, 60), 900), ((60, 100), 5))):
        write_log("out-a", steps=steps, end="done" if session == 2 else "signal", run_id="x", session=session,
                  started=1_700_000_000 + started)  # fmt: skip
    _, _, report = compared(capsys, "out-a")
    (row,) = report["runs"]
    assert len(row["logs"]) == 3 and row["tokens"] == 100_000


def test_loss_per_token_is_not_ranked_across_measurements(capsys):
    write_log("out-a", measurement={}, bits=False)
    write_log("out-b", floor=2.0, measurement={"dtype": "bfloat16"}, bits=False)
    _, _, report = compared(capsys, "out-a", "out-b")
    assert why(report) == {
        "the runs differ in dtype (bfloat16, float32): loss per token does not compare between them"
    }


def test_one_measurement_ranks_whatever_the_training_data(capsys):
    write_log("out-a", measurement={}, bits=False)
    write_log("out-b", floor=2.0, measurement={}, fingerprint="f1", bits=False)
    out, _, report = compared(capsys, "out-a", "out-b")
    assert not why(report) and "equal tokens need not be equal text" in out


@pytest.mark.parametrize("ours, theirs, ranked", [((4, 4), (4, 4), True), ((4, 4), (16, 4), False)])
def test_logs_of_earlier_versions_say_it_by_their_batch(capsys, ours, theirs, ranked):
    for name, (batch_size, iters), floor in (("out-a", ours, 3.0), ("out-b", theirs, 2.0)):
        write_log(name, floor=floor, train={"batch_size": batch_size, "eval_iters": iters})
    _, _, report = compared(capsys, "out-a", "out-b")
    assert bool(why(report)) is not ranked
    write_log("out-c", measurement={"windows": 16, "split": "f0"})
    _, _, report = compared(capsys, "out-a", "out-c")
    assert all("version of nanofoundry" in reason for reason in why(report))


def test_evaluations_of_an_earlier_session_that_were_of_something_else_are_left_out(capsys):
    write_log("out-a", steps=(0, 60), end="signal", measurement={"windows": 7}, started=1_700_000_001)
    write_log("out-a", steps=(40, 100), measurement={}, started=1_700_000_002)
    write_log("out-b", floor=3.5, measurement={})
    out, _, report = compared(capsys, "out-a", "out-b")
    row = next(row for row in report["runs"] if row["out_dir"] == "out-a")
    assert [step for step, *_ in row["evaluations"]] == [40, 60, 80, 100]
    assert "2 evaluations of an earlier session left out" in out


def test_equal_bytes_of_text(capsys):
    """The tokens of b hold twice the text: at equal text it has had half the tokens."""
    for name, per_token in (("out-a", 4.0), ("out-b", 8.0)):
        write_log(name, measurement={}, data={"train_bytes_per_token": per_token})
    _, _, report = compared(capsys, "out-a", "out-b")
    (entry,) = (e for e in report["standings"] if e["axis"] == "bytes")
    assert entry["at"] == 400_000 and entry["places"][0]["configuration"] == "out-a"
    write_log("out-c", measurement={}, data={"train_bytes_per_token": None})
    _, _, report = compared(capsys, "out-a", "out-c")
    (entry,) = (e for e in report["standings"] if e["axis"] == "bytes")
    assert entry["why"] == "a log does not say how many bytes the training text has"


def test_a_clock_that_was_behind_loses_no_session(capsys):
    write_log("out-a", steps=(0, 60), end="signal", started=1_700_000_900)
    write_log("out-a", steps=(60, 100), started=1_700_000_100)
    _, _, report = compared(capsys, "out-a")
    (row,) = report["runs"]
    assert len(row["logs"]) == 2 and row["tokens"] == 100_000 and row["evaluations"][0][0] == 0


def test_sessions_are_joined_by_the_name_of_their_run(capsys):
    """Of two runs in one folder the clock would give the last session to the second."""
    write_log("out-a", steps=(0, 60), end="signal", run_id="x", started=1_700_000_001)
    write_log("out-a", steps=(0, 40), run_id="y", started=1_700_000_002)
    write_log("out-a", steps=(60, 100), run_id="x", started=1_700_000_003)
    _, _, report = compared(capsys, "--latest=2")
    assert sorted((len(row["logs"]), row["tokens"]) for row in report["runs"]) == [(1, 40_000), (2, 100_000)]
