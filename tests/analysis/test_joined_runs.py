"""Logs that continue each other are one run, and how it ended."""

import math
from pathlib import Path

import pytest
from run_logs import compared, loss_of, notes, row_of, write_log

pytestmark = pytest.mark.usefixtures("in_tmp_path")


def test_resumed_logs_are_one_run(capsys):
    """Crashed at 70, resumed from 40, stopped at 60 by a signal, resumed from 60. What lies beyond 40 in
    the first is lost."""
    write_log("out-a", steps=(0, 70), end=None, started=1_700_000_001, loss=lambda floor, step: 1.0)
    write_log("out-a", steps=(40, 60), end="signal SIGTERM", started=1_700_000_002)
    write_log("out-a", steps=(60, 100), started=1_700_000_003)
    write_log("out-b", floor=5.0, started=1_700_000_000)
    out, _, report = compared(capsys, "--latest=2")
    row = row_of(report, "out-a")
    assert len(report["runs"]) == 2 and len(row["logs"]) == 3
    assert [(step, loss) for step, _, loss, _ in row["evaluations"]] == [
        (0, 1.0), (20, 1.0), *((step, loss_of(3.0, step)) for step in (40, 60, 80, 100))]  # fmt: skip
    assert row["status"] == "done" and row["tokens"] == 100_000
    assert row["time_s"] == 3723.0  # wall_s counts the earlier sessions too
    assert sum("3 logs joined" in note for note in notes(out)) == 1
    # any log of the chain, the folder and a pattern name the same run
    (first, *_) = sorted(Path("out-a").glob("run_*.jsonl"))
    _, _, again = compared(capsys, str(first), "out-a", "out-a/run_*.jsonl", str(first.resolve()))
    assert [row["logs"] for row in again["runs"]] == [row["logs"]]


def test_a_resume_forgets_through_several_logs(capsys):
    write_log("out-a", steps=(0, 60), end=None, started=1_700_000_001)
    write_log("out-a", steps=(40, 100), end=None, started=1_700_000_002)
    write_log("out-a", steps=(20, 43), evals=30, end="signal SIGUSR1", started=1_700_000_003)
    _, _, report = compared(capsys, "out-a")
    row = report["runs"][0]
    assert [e[0] for e in row["evaluations"]] == [0, 20, 30] and row["status"] == "stopped"
    assert row["tokens"] == 43_000  # by run_end: the last train event is that of step 40


def test_time_of_a_crashed_resume(capsys):
    """Without run_end: the 40 kept steps of the first log and the 60 of the second, at 200 ms."""
    write_log("out-a", steps=(0, 70), end="error: power", started=1_700_000_001)
    write_log("out-a", steps=(40, 100), end=None, started=1_700_000_002)
    out, _, report = compared(capsys, "out-a")
    row = report["runs"][0]
    assert row["time_s"] == pytest.approx(20.0) and not row["time_is_wall"] and row["status"] == "crashed"
    assert "~0:00:20" in out


def test_an_evaluation_of_a_checkpoint_is_no_part_of_the_run(capsys):
    """eval_only on the folder of a run that is still going: it neither ends the run nor takes anything
    back."""
    write_log("out-a", end=None, started=1_700_000_001, old=False)
    path = write_log("out-a", steps=(40, 40), started=1_700_000_002)
    path.write_text(path.read_text().replace('"dataset": "d"}', '"dataset": "d", "eval_only": true}', 1))
    _, err, report = compared(capsys, "--latest=3")
    (row,) = report["runs"]
    assert row["tokens"] == 100_000 and row["status"] == "running" and "only evaluates" in err


def test_a_fresh_start_in_the_same_folder_is_another_run(capsys):
    write_log("out-a", floor=3.0, started=1_700_000_001)
    path = write_log("out-a", floor=3.5, started=1_700_000_002)
    out, _, report = compared(capsys, "--latest=2")
    assert [row["final_val_loss"] for row in report["runs"]] == [loss_of(3.0, 100), loss_of(3.5, 100)]
    labels = [row["label"] for row in report["runs"]]
    assert len(set(labels)) == 2 and all(label.startswith("out-a") for label in labels)
    assert [line.startswith("out-a") for line in out.splitlines()[2:4]] == [True, True]
    for word in ("out-a", str(path)):
        _, _, newest = compared(capsys, word)
        assert [row["logs"] for row in newest["runs"]] == [[str(path)]]


def test_status(capsys):
    write_log("out-done")
    write_log("out-error", end="error: loss is nan")
    write_log("out-running", end=None, old=False)
    write_log("out-silent", end=None)
    write_log("out-stopped", end="signal SIGTERM")
    out, _, report = compared(capsys, "--latest=5")
    expected = {
        "done": "done",
        "error": "crashed",
        "running": "running",
        "silent": "crashed",
        "stopped": "stopped",
    }
    assert {row["out_dir"]: row["status"] for row in report["runs"]} == {
        f"out-{k}": v for k, v in expected.items()
    }
    assert any("out-error" in note and "loss is nan" in note for note in notes(out))


def test_out_dir_of_the_row(capsys, tmp_path):
    write_log(tmp_path / "out-absolute")
    write_log("out-here").rename("renamed.jsonl")
    out, _, report = compared(capsys, "out-absolute", "renamed.jsonl")
    assert {row["out_dir"] for row in report["runs"]} == {str(tmp_path / "out-absolute"), "out-here"}
    Path("moved").mkdir()
    Path("renamed.jsonl").rename("moved/run_x.jsonl")
    assert compared(capsys, "moved")[2]["runs"][0]["out_dir"] == "moved"


def test_spikes(capsys):
    bumps = {40: 9.0, 45: 8.0, 70: math.nan, 85: 12.0}  # 40 and 45 are one
    write_log("out-a", evals=0, loss=lambda floor, step: bumps.get(step, loss_of(floor, step)))
    write_log("out-b")
    _, _, report = compared(capsys, "out-a", "out-b")
    assert row_of(report, "out-a")["spikes"] == 3 and row_of(report, "out-b")["spikes"] == 0


@pytest.mark.parametrize("how, expected", [("count", 3), ("events", 2), ("neither", None)])
def test_skipped_steps(how, expected, capsys):
    lines = {"count": ['{"event": "train", "step": 101, "loss": 3.0, "tokens": 101000, "skipped_steps": 3}\n'],
             "events": ['{"event": "skipped_step", "step": 7}\n', '{"event": "skipped_step", "step": 9}\n'],
             "neither": []}[how]  # fmt: skip
    write_log("out-a", lines=lines)
    out, _, report = compared(capsys, "out-a")
    assert row_of(report, "out-a")["skipped_steps"] == expected
