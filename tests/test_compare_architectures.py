"""compare_architectures.py on logs that the tests write: what is compared, the numbers, the notes, the
picture, bad input."""

import json
import math
import os
import re
import statistics
import struct
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

import compare_architectures as compare
from analysis import alignment, noise
from analysis.curves import smoothed
from base import cli, fields
from model_config import ModelArchitectureConfig
from training.config import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
TOKENS_PER_STEP = 1000
BYTES_PER_TOKEN = 4.0
NAMES = {
    "gpt2": "GPT-2 (pre-LayerNorm, learned positions, MHA 12, GELU-tanh, tied)",
    "llama3": "LLaMA-3 (pre-RMSNorm, RoPE 5e5, GQA 12:4, SwiGLU, tied)",
    "qwen3": "Qwen3 (pre-RMSNorm, RoPE 1e6, GQA 12:6, SwiGLU, qk-norm, tied)",
}


def loss_of(floor, step):
    return floor + (10.0 - floor) / (1 + step / 10)


def write_log(folder, *, floor=3.0, name="gpt2", steps=(0, 100), evals=20, end="done", started=1_700_000_000, old=True,
              bits=True, fingerprint="f0", flops=6e8, mfu=0.4, lines=(), loss=loss_of, train=None, model=None,
              dt_ms=200.0):  # fmt: skip
    """One log from steps[0] to steps[1]: a train event every 5 steps, an evaluation every `evals`, then
    `lines` verbatim."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    first, last = steps
    events = [{
        "event": "run_start", "time": started, "start_step": first, "git": None, "versions": {},
        "config": {"model": model or {}, "train": {"out_dir": str(folder), "dataset": "d", **(train or {})}},
        "model": {"architecture_name": NAMES[name], "params": 124_337_664, "params_non_embedding": 85_000_000,
                  "flops_per_token": flops},
        "derived": {"tokens_per_step": TOKENS_PER_STEP},
        "data": {"dataset": "d", "fingerprint": fingerprint, "bytes_per_token": BYTES_PER_TOKEN},
        "hardware": {"device": "cpu", "device_name": "a CPU", "world_size": 1, "peak_flops_per_s": None},
    }]  # fmt: skip
    for step in range(first, last + 1):
        value, tokens = loss(floor, step), step * TOKENS_PER_STEP
        if evals and step % evals == 0:
            events.append({"event": "eval", "step": step, "tokens": tokens, "train_loss": value, "val_loss": value,
                           "val_bits_per_byte": value / math.log(2) / BYTES_PER_TOKEN if bits else None})  # fmt: skip
        if step > first and step % 5 == 0:
            events.append({"event": "train", "step": step, "loss": value, "lr": 1e-3, "grad_norm": 1.0,
                           "tokens": tokens, "dt_ms": dt_ms, "tokens_per_s": 5000.0 + step, "mfu": mfu,
                           "memory_gb": 1.0 + step / 1000})  # fmt: skip
    if end:
        events.append(
            {
                "event": "run_end",
                "reason": end,
                "step": last,
                "tokens": last * TOKENS_PER_STEP,
                "wall_s": 3723.0,
            }
        )
    path = folder / f"run_20250101T000000Z_{started % 1000:03}.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events) + "".join(lines))
    if old:
        os.utime(path, (started, started))
    return path


def run(capsys, *argv, picture=False):
    """(stdout, stderr, comparison.json) of a comparison in this process; the picture takes most of the
    time."""
    draw = {} if picture else {"draw": lambda runs: b""}
    cli.run([*argv, "--out=cmp"], "", compare.CompareConfig, lambda config: compare.work(config, **draw))
    captured = capsys.readouterr()
    return captured.out, captured.err, json.loads(Path("cmp/comparison.json").read_text())


def row_of(report, out_dir):
    (row,) = [row for row in report["runs"] if row["out_dir"] == out_dir]
    return row


def notes(out):
    return [line for line in out.splitlines() if line.startswith("- ")]


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def three(in_tmp_path):
    """The best, a crash half-way, the worst; the oldest run of all is not among the newest three."""
    write_log("out-old", floor=1.0, started=1_600_000_000)
    write_log("out-gpt2", floor=3.2, name="gpt2", started=1_700_000_001)
    write_log(
        "out-llama3", floor=3.1, name="llama3", steps=(0, 50), end=None, started=1_700_000_002, flops=7e8
    )
    write_log("out/qwen3", floor=3.0, name="qwen3", started=1_700_000_003, flops=8e8)


def test_three_runs_one_crashed(three, capsys):
    out, err, report = run(capsys, "--latest", "3")
    lines = out.splitlines()
    assert lines[0].startswith("run ")
    assert [line.split()[:2] for line in lines[2:5]] == [
        ["out/qwen3", "Qwen3"],
        ["out-gpt2", "GPT-2"],
        ["out-llama3", "LLaMA-3"],
    ]
    assert [line.split()[-1] for line in lines[2:5]] == ["done", "done", "crashed"]
    assert [row["out_dir"] for row in report["runs"]] == ["out/qwen3", "out-gpt2", "out-llama3"]
    assert err == ""
    assert "124.3M" in lines[2] and "100K" in lines[2] and "1:02:03" in lines[2] and "40.0%" in lines[2]
    assert any("out-llama3" in note and "crashed at 50,000 tokens" in note for note in notes(out))
    markdown = Path("cmp/comparison.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown[:5]]
    assert cells[0][0] == "run" and [row[0] for row in cells[2:]] == ["out/qwen3", "out-gpt2", "out-llama3"]
    assert len({len(row) for row in cells}) == 1
    assert [cell for cell in cells[2] if cell] == [w.strip() for w in lines[2].split("  ") if w.strip()]


def test_numbers_of_the_report(three, capsys):
    """Every figure again, from the log itself and without the code under test."""
    _, _, report = run(capsys, "out-gpt2", "out-llama3")
    assert report["common_tokens"] == 40_000  # the last evaluation of the run that crashed at step 50
    for out_dir, flops in (("out-gpt2", 6e8), ("out-llama3", 7e8)):
        (path,) = Path(out_dir).glob("run_*.jsonl")
        events = [json.loads(line) for line in path.read_text().splitlines()]
        trains, evals = ([e for e in events if e["event"] == kind] for kind in ("train", "eval"))
        row = row_of(report, out_dir)
        assert row["tokens"] == trains[-1]["tokens"]
        assert row["training_flops"] == flops * trains[-1]["tokens"]
        assert row["final_val_loss"] == evals[-1]["val_loss"]
        assert row["best_val_loss"] == min(e["val_loss"] for e in evals)
        assert row["best_bits_per_byte"] == pytest.approx(row["best_val_loss"] / math.log(2) / 4, rel=1e-12)
        assert row["tokens_per_s"] == median(e["tokens_per_s"] for e in trains)
        assert row["mfu"] == 0.4
        assert row["memory_gb"] == max(e["memory_gb"] for e in trains)
        assert row["params"] == 124_337_664 and row["architecture_name"] == NAMES[out_dir[4:]]
        at_common = next(e for e in evals if e["tokens"] == 40_000)
        assert row["val_loss_at_common_tokens"] == at_common["val_loss"]
        assert row["bits_per_byte_at_common_tokens"] == at_common["val_bits_per_byte"]
        assert [e[1] for e in row["evaluations"]] == [e["tokens"] for e in evals]
    assert row_of(report, "out-gpt2")["time_s"] == 3723.0 and row_of(report, "out-gpt2")["time_is_wall"]
    # no run_end: 10 train events of 5 steps of 200 ms
    assert row_of(report, "out-llama3")["time_s"] == pytest.approx(10.0)
    assert not row_of(report, "out-llama3")["time_is_wall"]


def test_best_is_not_last(capsys):
    write_log("out-a", loss=lambda floor, step: floor + abs(step - 60) / 100)
    _, _, report = run(capsys, "out-a")
    row = report["runs"][0]
    assert (row["best_val_loss"], row["final_val_loss"]) == (3.0, 3.4)


def test_loss_at_common_tokens_is_interpolated(capsys):
    write_log("out-a", floor=3.0, steps=(0, 90), evals=30)
    write_log("out-b", floor=3.1, steps=(0, 100), evals=25)
    out, _, report = run(capsys, "out-a", "out-b")
    assert report["common_tokens"] == 90_000
    expected = loss_of(3.1, 75) + (loss_of(3.1, 100) - loss_of(3.1, 75)) * 15 / 25
    assert row_of(report, "out-b")["val_loss_at_common_tokens"] == pytest.approx(expected, rel=1e-12)
    assert row_of(report, "out-a")["val_loss_at_common_tokens"] == loss_of(3.0, 90)
    assert any(
        "90,000 tokens" in note and "differ in tokens (90,000 to 100,000)" in note for note in notes(out)
    )
    assert "val loss at 90K" in out.splitlines()[0]


def test_equal_tokens_need_no_common_count(capsys):
    write_log("out-a", floor=3.0)
    write_log("out-b", floor=3.1)
    out, _, report = run(capsys, "out-a", "out-b")
    assert (
        report["common_tokens"] is None
        and "differ in tokens" not in out
        and " at " not in out.splitlines()[0]
    )


def test_nothing_is_extrapolated(capsys):
    """One run stopped before the other was first evaluated."""
    write_log("out-a", floor=3.0, steps=(0, 50))
    write_log("out-b", floor=3.1, steps=(60, 200), started=1_700_000_500)
    out, _, report = run(capsys, "out-a", "out-b")
    assert report["common_tokens"] is None
    assert all(row["val_loss_at_common_tokens"] is None for row in report["runs"])
    assert any("no token count" in note for note in notes(out))


@pytest.mark.parametrize(
    "tokens, value", [(0, None), (10, 5.0), (15, 4.5), (20, 4.0), (35, 3.25), (40, 3.0), (41, None)]
)
def test_value_at(tokens, value):
    assert alignment.value_at([(10, 5.0), (20, 4.0), (40, 3.0)], tokens) == value


def test_resumed_logs_are_one_run(capsys):
    """Crashed at 70, resumed from 40, stopped at 60 by a signal, resumed from 60. What lies beyond 40 in
    the first is lost."""
    write_log("out-a", steps=(0, 70), end=None, started=1_700_000_001, loss=lambda floor, step: 1.0)
    write_log("out-a", steps=(40, 60), end="signal SIGTERM", started=1_700_000_002)
    write_log("out-a", steps=(60, 100), started=1_700_000_003)
    write_log("out-b", floor=5.0, started=1_700_000_000)
    out, _, report = run(capsys, "--latest=2")
    row = row_of(report, "out-a")
    assert len(report["runs"]) == 2 and len(row["logs"]) == 3
    assert [(step, loss) for step, _, loss, _ in row["evaluations"]] == [
        (0, 1.0), (20, 1.0), *((step, loss_of(3.0, step)) for step in (40, 60, 80, 100))]  # fmt: skip
    assert row["status"] == "done" and row["tokens"] == 100_000
    assert row["time_s"] == 3723.0  # wall_s counts the earlier sessions too
    assert sum("3 logs joined" in note for note in notes(out)) == 1
    # any log of the chain, the folder and a pattern name the same run
    (first, *_) = sorted(Path("out-a").glob("run_*.jsonl"))
    _, _, again = run(capsys, str(first), "out-a", "out-a/run_*.jsonl", str(first.resolve()))
    assert [row["logs"] for row in again["runs"]] == [row["logs"]]


def test_a_resume_forgets_through_several_logs(capsys):
    write_log("out-a", steps=(0, 60), end=None, started=1_700_000_001)
    write_log("out-a", steps=(40, 100), end=None, started=1_700_000_002)
    write_log("out-a", steps=(20, 43), evals=30, end="signal SIGUSR1", started=1_700_000_003)
    _, _, report = run(capsys, "out-a")
    row = report["runs"][0]
    assert [e[0] for e in row["evaluations"]] == [0, 20, 30] and row["status"] == "stopped"
    assert row["tokens"] == 43_000  # by run_end: the last train event is that of step 40


def test_time_of_a_crashed_resume(capsys):
    """Without run_end: the 40 kept steps of the first log and the 60 of the second, at 200 ms."""
    write_log("out-a", steps=(0, 70), end="error: power", started=1_700_000_001)
    write_log("out-a", steps=(40, 100), end=None, started=1_700_000_002)
    out, _, report = run(capsys, "out-a")
    row = report["runs"][0]
    assert row["time_s"] == pytest.approx(20.0) and not row["time_is_wall"] and row["status"] == "crashed"
    assert "~0:00:20" in out


def test_an_evaluation_of_a_checkpoint_is_no_part_of_the_run(capsys):
    """eval_only on the folder of a run that is still going: it neither ends the run nor takes anything
    back."""
    write_log("out-a", end=None, started=1_700_000_001, old=False)
    path = write_log("out-a", steps=(40, 40), started=1_700_000_002)
    path.write_text(path.read_text().replace('"dataset": "d"}', '"dataset": "d", "eval_only": true}', 1))
    _, err, report = run(capsys, "--latest=3")
    (row,) = report["runs"]
    assert row["tokens"] == 100_000 and row["status"] == "running" and "only evaluates" in err


def test_a_fresh_start_in_the_same_folder_is_another_run(capsys):
    write_log("out-a", floor=3.0, started=1_700_000_001)
    path = write_log("out-a", floor=3.5, started=1_700_000_002)
    out, _, report = run(capsys, "--latest=2")
    assert [row["final_val_loss"] for row in report["runs"]] == [loss_of(3.0, 100), loss_of(3.5, 100)]
    labels = [row["label"] for row in report["runs"]]
    assert len(set(labels)) == 2 and all(label.startswith("out-a") for label in labels)
    assert [line.startswith("out-a") for line in out.splitlines()[2:4]] == [True, True]
    for word in ("out-a", str(path)):
        _, _, newest = run(capsys, word)
        assert [row["logs"] for row in newest["runs"]] == [[str(path)]]


def test_status(capsys):
    write_log("out-done")
    write_log("out-error", end="error: loss is nan")
    write_log("out-running", end=None, old=False)
    write_log("out-silent", end=None)
    write_log("out-stopped", end="signal SIGTERM")
    out, _, report = run(capsys, "--latest=5")
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


def test_damaged_lines_are_skipped_and_counted(capsys):
    bad = ['{"event": "eval", "step": 80, "val\n', "\0\0\0\n", "[1]\n", "\n", '{"event": "train", "step": 3}\n',
           '{"event": "eval", "step": "4", "val_loss": 1.0}\n', '{"event": "of tomorrow"}\n',
           '{"event": "train", "step": 3, "loss": 3.0, "tokens": "5"}\n',
           '{"event": "train", "step": 3, "loss": 3.0, "tokens": 1' + 400 * "0" + "}\n", '{"event": "eval", "st']  # fmt: skip
    write_log("out-a", lines=bad)
    out, _, report = run(capsys, "out-a")
    assert report["runs"][0]["damaged_lines"] == 8  # an event of a later version is no damage
    assert any("damaged lines skipped: 8" in note for note in notes(out))
    assert report["runs"][0]["final_val_loss"] == loss_of(3.0, 100)


def test_logs_that_begin_no_run_are_left_out(capsys):
    write_log("out-a")
    Path("out-b").mkdir()
    Path("out-b/run_x_1.jsonl").touch()
    Path("out-b/run_x_2.jsonl").write_text('{"event": "train", "step": 1, "loss": 3.0, "tokens": 1}\n')
    out, err, report = run(capsys, "--latest", "3")
    assert [row["out_dir"] for row in report["runs"]] == ["out-a"]
    assert len(err.splitlines()) == 2
    assert "out-b/run_x_1.jsonl is empty" in err and "out-b/run_x_2.jsonl has no run_start" in err
    _, err, report = run(capsys, "out-a", "out-b/run_x_1.jsonl")
    assert len(report["runs"]) == 1 and len(err.splitlines()) == 1


def test_a_run_without_evaluation(capsys):
    write_log("out-a", evals=0)
    write_log("out-b", floor=9.0, mfu=None)
    out, _, report = run(capsys, "out-a", "out-b")
    assert [row["out_dir"] for row in report["runs"]] == ["out-b", "out-a"]
    assert report["sorted_by"] == "val_bits_per_byte"  # a run without any loss does not forbid the column
    line = next(line for line in out.splitlines() if line.startswith("out-a"))
    assert line.count("n/a") == 4 and any("out-a: no evaluation" in note for note in notes(out))
    _, _, alone = run(capsys, "out-a")
    assert alone["runs"][0]["best_val_loss"] is None


def test_ranked_by_loss_where_one_lacks_bytes(capsys):
    write_log("out-a", floor=3.5, fingerprint="f1")
    write_log("out-b", floor=3.0, bits=False)
    out, _, report = run(capsys, "out-a", "out-b")
    assert report["sorted_by"] == "val_loss" and [row["out_dir"] for row in report["runs"]] == [
        "out-b",
        "out-a",
    ]
    assert any("dataset or tokenizer" in note and "not every run has them" in note for note in notes(out))


def test_ranked_by_bits_where_tokenizers_differ(capsys):
    """A lower loss per token of shorter tokens is no better."""
    write_log("out-short", floor=2.5)
    write_log("out-long", floor=3.0, fingerprint="f1")
    path = next(Path("out-long").iterdir())
    events = [json.loads(line) for line in path.read_text().splitlines()]
    for event in events:
        if event["event"] == "eval":
            event["val_bits_per_byte"] /= 2
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    out, _, report = run(capsys, "out-short", "out-long")
    assert [row["out_dir"] for row in report["runs"]] == ["out-long", "out-short"]
    assert any(
        "loss per token does not compare" in n and "bits per byte is the column" in n for n in notes(out)
    )


def test_a_loss_that_is_not_finite(capsys):
    write_log("out-a", loss=lambda floor, step: floor if step < 60 else math.nan)
    out, _, report = run(capsys, "out-a")
    row = report["runs"][0]
    assert (
        row["best_val_loss"] == 3.0 and row["final_val_loss"] is None and row["final_bits_per_byte"] is None
    )
    assert "NaN" not in Path("cmp/comparison.json").read_text()
    assert any("not finite" in note for note in notes(out))


def test_logs_of_the_bare_contract(capsys):
    """Events with no more than the fields that design.md promises."""
    Path("out-a").mkdir()
    model = {
        "architecture_name": NAMES["qwen3"],
        "params": 10,
        "params_non_embedding": 5,
        "flops_per_token": 60,
    }
    events = [
        {"event": "run_start", "config": {}, "model": model, "hardware": {}, "versions": {}, "git": None}
    ]
    events += [{"event": "train", "step": s, "loss": 5.0, "lr": 1e-3, "grad_norm": 1.0, "tokens": s * 64, "dt_ms": 10.0,
                "tokens_per_s": 6400.0, "mfu": None, "memory_gb": None} for s in (1, 2, 3, 4)]  # fmt: skip
    events += [{"event": "eval", "step": 4, "train_loss": 4.0, "val_loss": 4.5, "val_bits_per_byte": None}]
    events += [{"event": "run_end", "reason": "done"}]
    Path("out-a/run_1_a.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    _, _, report = run(capsys, "--latest=1")
    row = report["runs"][0]
    assert row["out_dir"] == "out-a" and row["status"] == "done"
    assert row["evaluations"] == [[4, 256, 4.5, None]] and row["time_s"] == pytest.approx(0.04)


def test_different_hardware_is_said(capsys):
    write_log("out-a")
    path = write_log("out-b", floor=3.5)
    path.write_text(path.read_text().replace("a CPU", "NVIDIA H200"))
    out, _, _ = run(capsys, "out-a", "out-b")
    assert any("1 x NVIDIA H200, 1 x a CPU" in note for note in notes(out))


def test_architectures_of_one_family_keep_their_parenthesis(capsys, monkeypatch):
    write_log("out-a")
    monkeypatch.setitem(NAMES, "gpt2", NAMES["gpt2"].replace("MHA 12", "GQA 12:4"))
    write_log("out-b")
    out, _, _ = run(capsys, "out-a", "out-b")
    assert "MHA 12" in out and "GQA 12:4" in out


def test_out_dir_of_the_row(capsys, tmp_path):
    write_log(tmp_path / "out-absolute")
    write_log("out-here").rename("renamed.jsonl")
    out, _, report = run(capsys, "out-absolute", "renamed.jsonl")
    assert {row["out_dir"] for row in report["runs"]} == {str(tmp_path / "out-absolute"), "out-here"}
    Path("moved").mkdir()
    Path("renamed.jsonl").rename("moved/run_x.jsonl")
    assert run(capsys, "moved")[2]["runs"][0]["out_dir"] == "moved"


def test_a_report_names_no_folders_of_the_machine(capsys, tmp_path):
    path = write_log("out-a")
    path.write_text(
        path.read_text().replace('"data": {"dataset": "d"', f'"data": {{"dataset": "{tmp_path}/data/d"')
    )
    _, _, report = run(capsys, "out-a")
    assert report["runs"][0]["dataset"] == "data/d"
    assert not [p for p in Path("cmp").iterdir() if p.suffix != ".png" and str(tmp_path) in p.read_text()]


def test_smoothed():
    assert smoothed([]) == []
    assert smoothed([4.0]) == [4.0]
    line = [10.0 - i for i in range(30)]
    assert smoothed(line)[:-1] == pytest.approx(line[:-1])  # a straight line stays one
    assert smoothed([0.0, 3.0, 0.0]) == pytest.approx([0.0, 1.0, 1.5])


def standing(report, axis, of="all"):
    (entry,) = [e for e in report["standings"] if (e["axis"], e["of"]) == (axis, of)]
    return entry


def test_who_leads_depends_on_what_is_equal(capsys):
    """A learns a third faster per token, but a token of it costs twice the FLOPs and half the time."""
    write_log("out-a", floor=3.0, flops=1.2e9, dt_ms=100.0)
    write_log("out-b", floor=3.0, flops=6e8, loss=lambda floor, step: loss_of(floor, step * 0.75))
    out, _, report = run(capsys, "out-a", "out-b")

    def bits(step):
        return loss_of(3.0, step) / math.log(2) / BYTES_PER_TOKEN

    tokens, flops, seconds = (standing(report, axis) for axis in ("tokens", "FLOPs", "time"))
    assert [p["configuration"] for p in tokens["places"]] == ["out-a", "out-b"] and tokens["at"] == 100_000
    assert tokens["places"][1]["gap"] == pytest.approx(bits(75) - bits(100))
    assert flops["at"] == pytest.approx(
        6e13
    )  # b ends there; a stood there at 50,000 tokens, between two evaluations
    first, second = flops["places"]
    assert (first["configuration"], second["configuration"]) == ("out-b", "out-a")
    assert first["mean"] == pytest.approx(bits(75)) and second["mean"] == pytest.approx(
        (bits(40) + bits(60)) / 2
    )
    assert seconds["at"] == pytest.approx(10.0) and seconds["places"][0]["configuration"] == "out-a"
    assert seconds["places"][1]["values"] == pytest.approx([(bits(30) + bits(45)) / 2])
    assert report["common_flops"] == pytest.approx(6e13) and "bits/byte at 6e+13 FLOPs" in out.splitlines()[0]
    assert row_of(report, "out-a")["bits_per_byte_at_common_flops"] == pytest.approx(second["mean"])
    assert "At equal FLOPs: out-b leads out-a" in out


def test_since_when_it_leads(capsys):
    """b overtakes a on the line between 40 and 60 thousand tokens."""
    write_log("out-a", loss=lambda floor, step: 5.0)
    write_log("out-b", loss=lambda floor, step: 6.0 if step <= 40 else 4.5)
    _, _, report = run(capsys, "out-a", "out-b")
    entry = standing(report, "tokens")
    assert entry["places"][0]["configuration"] == "out-b" and entry["range"] == [0, 100_000]
    assert entry["leads_since"] == pytest.approx(40_000 + 20_000 * 1.0 / 1.5)


def test_nobody_leads_where_two_end_level(capsys):
    write_log("out-a", loss=lambda floor, step: 5.0)
    write_log("out-b", loss=lambda floor, step: 6.0 if step <= 40 else 5.0)
    out, _, report = run(capsys, "out-a", "out-b")
    assert standing(report, "tokens")["leads_since"] is None and "leads" not in out and "level" in out


def three_seeds(folder, floors, **options):
    for seed, floor in enumerate(floors):
        train = {"seed": seed, **options.get("train", {})}
        write_log(f"{folder}-seed{seed}", floor=floor, **{**options, "train": train})


def test_seeds_of_one_configuration(capsys):
    three_seeds("out-sweep/a", [3.00, 3.01, 3.02], train={"learning_rate": 1e-3})
    three_seeds("out-sweep/b", [3.20, 3.21, 3.22], train={"learning_rate": 3e-3})
    three_seeds("out-sweep/c", [2.90, 3.10, 3.05], train={"learning_rate": 2e-3})
    write_log("out-sweep/b-again", floor=9.0, steps=(0, 80), train={"seed": 0, "learning_rate": 3e-3})
    out, _, report = run(capsys, "out-sweep")  # the whole folder
    assert len(report["runs"]) == 10
    _, _, report = run(capsys, *(f"out-sweep/{name}-seed*" for name in "abc"))
    places = {p["configuration"]: p for p in standing(report, "tokens")["places"]}
    assert list(places) == ["out-sweep/a", "out-sweep/c", "out-sweep/b"] and all(
        p["seeds"] == 3 for p in places.values()
    )
    finals = [loss_of(floor, 100) / math.log(2) / 4 for floor in (3.2, 3.21, 3.22)]
    assert places["out-sweep/b"]["mean"] == pytest.approx(sum(finals) / 3)
    assert places["out-sweep/b"]["spread"] == pytest.approx(
        finals[1] - finals[0]
    )  # of three equidistant values
    assert (
        places["out-sweep/b"]["larger_than_noise"] is True
        and places["out-sweep/c"]["larger_than_noise"] is False
    )
    assert places["out-sweep/b"]["differs_in"] == ["learning_rate"]
    assert report["config_diff"]["fields"] == {"learning_rate": [2e-3, 1e-3, 3e-3]}  # the best run first
    assert (
        "differ in learning_rate only" in out
        and "out-sweep/b-again: seed and configuration of another run" in out
    )
    assert any("leads out-sweep/c" in line and "within the noise" in line for line in report["summary"])


def test_what_does_not_change_a_run_makes_no_other_configuration(capsys):
    three_seeds("out-sweep/a", [3.0, 3.01])
    write_log(
        "out-sweep/a-seed2",
        floor=3.02,
        train={"seed": 2, "dashboard": True, "tensorboard_log": True, "keep_last": 9},
    )
    _, _, report = run(capsys, "out-sweep")
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


def two_seeds(capsys, part, beside, different):
    """The configurations among two seeds, whose second differs in `different` too."""
    other = "model" if part == "train" else "train"
    for seed in (0, 1):
        given = {part: {**beside, **(different if seed else {})}, other: {}}
        given["train"] = {"seed": seed, **given["train"]}
        write_log(f"out-s/a-seed{seed}", floor=3 + seed / 100, **given)
    return run(capsys, "out-s")[2]


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
    _, _, report = run(capsys, "out-a", "out-b")
    assert report["config_diff"]["fields"] == {"init_from": ["hf:gpt2", None]}


def test_two_changes_at_once_are_said(capsys):
    llama = {"position_encoding": "rope", "rope_theta": 5e5, "rope_scaling": "none", "d_ff": 10}
    write_log(
        "out-a",
        model={**llama, "position_encoding": "learned", "rope_theta": 1e4},
        train={"seed": 1, "keep_last": 1},
    )
    write_log("out-b", floor=3.1, model={**llama, "d_ff": 12}, train={"seed": 1, "keep_last": 2})
    out, _, report = run(capsys, "out-a", "out-b")
    assert report["config_diff"] == {  # learned positions have no theta
        "configurations": ["out-a", "out-b"],
        "fields": {"position_encoding": ["learned", "rope"], "d_ff": [10, 12], "rope_theta": [None, 5e5],
                   "rope_scaling": [None, "none"]},
    }  # fmt: skip
    assert "differ in 4 things at once (d_ff, position_encoding, rope_theta, rope_scaling)" in out
    assert [line.split() for line in out.splitlines() if line.startswith("d_ff")] == [["d_ff", "10", "12"]]
    markdown = Path("cmp/comparison.md").read_text()
    assert "| position_encoding | learned | rope" in markdown and "\n\n| at equal" in markdown


def test_a_crash_does_not_hide_how_the_others_end(three, capsys):
    _, _, report = run(capsys, "--latest=3")
    assert standing(report, "tokens")["at"] == 40_000 and len(standing(report, "tokens")["places"]) == 3
    done = standing(report, "tokens", of="done")
    assert done["at"] == 100_000 and [p["configuration"] for p in done["places"]] == ["out/qwen3", "out-gpt2"]


@pytest.mark.parametrize("why", ["tokenizer", "range", "times", "hardware"])
def test_what_forbids_a_ranking_is_said(why, capsys):
    write_log("out-a", bits=why != "tokenizer")
    path = write_log("out-b", fingerprint="f1" if why == "tokenizer" else "f0", bits=why != "tokenizer",
                     steps=(120, 200) if why == "range" else (0, 100), dt_ms=None if why == "times" else 9.0,
                     started=1_700_000_001)  # fmt: skip
    if why == "hardware":
        path.write_text(path.read_text().replace("a CPU", "NVIDIA H200"))
    out, _, report = run(capsys, "out-a", "out-b")
    expected = {"tokenizer": "tokenizers or datasets", "range": "no common range", "times": "step times of a run",
                "hardware": "differ in hardware"}[why]  # fmt: skip
    axes = ["time"] if why in ("times", "hardware") else ["tokens", "FLOPs", "time"]
    assert [e["axis"] for e in report["standings"] if not e["places"]] == axes
    if why == "range":
        expected += "|step times of a run"  # a log that begins at step 120 does not say how long those took
    assert all(re.search(expected, standing(report, axis)["why"]) for axis in axes)
    assert f"not compared: {standing(report, 'time')['why']}" in out


@pytest.mark.parametrize("df, t", [(2, 4.302653), (4, 2.776445), (10, 2.228139)])
def test_p_of_difference(df, t):
    """Student's table: two samples of n and equal spread have df = 2 n - 2, and t at 5 %."""
    n = df // 2 + 1
    a = [i - (n - 1) / 2 for i in range(n)]
    shift = t * math.sqrt(2 * statistics.variance(a) / n)
    assert noise.p_of_difference(a, [x + shift for x in a]) == pytest.approx(0.05, abs=1e-6)
    assert noise.p_of_difference(a, a) == pytest.approx(1.0)


def test_p_of_difference_without_noise():
    assert noise.p_of_difference([1.0], [2.0, 3.0]) is None
    assert noise.p_of_difference([1.0, 1.0], [2.0, 2.0]) == 0.0
    assert noise.p_of_difference([1.0, 1.0], [1.0, 1.0]) == 1.0


def test_spikes(capsys):
    bumps = {40: 9.0, 45: 8.0, 70: math.nan, 85: 12.0}  # 40 and 45 are one
    write_log("out-a", evals=0, loss=lambda floor, step: bumps.get(step, loss_of(floor, step)))
    write_log("out-b")
    _, _, report = run(capsys, "out-a", "out-b")
    assert row_of(report, "out-a")["spikes"] == 3 and row_of(report, "out-b")["spikes"] == 0


@pytest.mark.parametrize("how, expected", [("count", 3), ("events", 2), ("neither", None)])
def test_skipped_steps(how, expected, capsys):
    lines = {"count": ['{"event": "train", "step": 101, "loss": 3.0, "tokens": 101000, "skipped_steps": 3}\n'],
             "events": ['{"event": "skipped_step", "step": 7}\n', '{"event": "skipped_step", "step": 9}\n'],
             "neither": []}[how]  # fmt: skip
    write_log("out-a", lines=lines)
    out, _, report = run(capsys, "out-a")
    assert row_of(report, "out-a")["skipped_steps"] == expected


def test_energy_is_a_column_where_a_device_reports_it(capsys):
    write_log(
        "out-a",
        lines=['{"event": "train", "step": 105, "loss": 3.0, "tokens": 105000, "energy_j": 1234567.0}\n'],
    )
    assert "1,234.6" in run(capsys, "out-a")[0]
    write_log("out-b")
    assert "energy" not in run(capsys, "out-b")[0]


def test_rich_on_a_terminal(three, capsys, monkeypatch):
    """A narrow terminal gets blocks of columns, each with the run's name, and no figure is lost."""
    piped, _, _ = run(capsys, "--latest=3")
    monkeypatch.setattr(sys.stdout.__class__, "isatty", lambda self: True)
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.setenv("NO_COLOR", "1")
    out, _, _ = run(capsys, "--latest=3")
    out = re.sub(r"\x1b\[\d*m", "", out)
    assert all(len(line) <= 90 for line in out.splitlines() if not line.startswith("- "))
    assert out.count("out-llama3") >= 3 and "crashed" in out and "┃" in out
    shown = set(out.replace("│", " ").split())
    assert {word for line in piped.splitlines()[2:5] for word in line.split()} <= shown


def size_of(path):
    """(width, height) of a PNG, from its header."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", data[16:24])


def test_picture(three, capsys, monkeypatch):
    """Its size, and what is drawn: asked of matplotlib, as an eye would have to otherwise."""
    from matplotlib.figure import Figure

    kept = []
    savefig = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *a, **k: kept.append(self) or savefig(self, *a, **k))
    run(capsys, "--latest=3", picture=True)
    width, height = size_of(Path("cmp/comparison.png"))
    assert 2450 < width < 2650 and 600 < height < 1000  # 12.75 inches at 200 dpi
    (figure,) = kept
    tokens, flops, seconds = figure.axes
    assert tokens.get_ylabel() == "Validation bits per byte"
    assert (tokens.get_xlabel(), flops.get_xlabel()) == ("Training tokens", "Training compute (FLOPs)")
    assert seconds.get_xlabel() == "Training time (h:mm:ss)"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert (
        labels[:3] == ["Qwen3, out/qwen3", "GPT-2, out-gpt2", "LLaMA-3, out-llama3"]
        and labels[-1] == "crashed"
    )
    for ax, per_token in ((tokens, 1), (flops, 7e8), (seconds, 0.2 / 1000)):
        (cross,) = [line for line in ax.lines if line.get_marker() == "x"]
        assert list(cross.get_xdata()) == pytest.approx([40_000 * per_token])
        assert cross.get_ydata()[0] == pytest.approx(loss_of(3.1, 40) / math.log(2) / 4)
        assert len(ax.lines) == 2 * 3 + 1
    main = [line for line in tokens.lines if line.get_linewidth() == 1.6]
    assert len({line.get_color() for line in main}) == 3
    box = figure.legends[0].get_window_extent()
    assert all(not box.overlaps(ax.get_tightbbox()) for ax in figure.axes)


@pytest.mark.parametrize("kind", ["one", "no evaluation", "only step 0", "nan", "long", "a dollar"])
def test_picture_of_odd_runs(kind, capsys):
    options = {
        "no evaluation": dict(evals=0),
        "only step 0": dict(steps=(0, 3)),
        "nan": dict(loss=lambda floor, step: math.nan),
        "long": dict(steps=(0, 2000)),
    }
    write_log("out-$x$^" if kind == "a dollar" else "out-a", **options.get(kind, {}))
    run(capsys, "--latest=1", picture=True)
    assert size_of(Path("cmp/comparison.png"))[0] > 1000


def test_table_is_not_cut_in_a_pipe_and_nothing_half_written_stays(tmp_path):
    long = "out-" + "x" * 150
    write_log(long)
    env = {**os.environ, "COLUMNS": "40"}
    command = [sys.executable, str(ROOT / "compare_architectures.py"), "--latest", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True, cwd=tmp_path)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(long)]
    assert line.endswith("done") and done.stderr == ""
    assert sorted(p.name for p in Path("comparison").iterdir()) == [
        "comparison.html", "comparison.json", "comparison.md", "comparison.png"]  # fmt: skip


BAD = {
    "no runs": (["--latest=3"], "out*/run_*.jsonl"),
    "nothing named": ([], "--latest=3"),
    "none wanted": (["--latest", "0"], "latest=0 must be"),
    "negative": (["--latest=-2"], "latest=-2 must be"),
    "no number": (["--latest=three"], "three"),
    "no value": (["--latest"], "--latest"),
    "unknown flag": (["--lastest=3"], "did you mean 'latest'"),
    "missing file": (["out-a/run_nowhere.jsonl"], "out-a/run_nowhere.jsonl is not there"),
    "misspelt folder": (["out-aa"], "did you mean 'out-a'"),
    "pattern without a match": (["out-z*/run_*.jsonl"], "out-z*/run_*.jsonl"),
    "folder without runs": (["empty"], "empty"),
    "only an empty log": (["hollow"], "hollow/run_1.jsonl is empty"),
    "both ways": (["out-a", "--latest=1"], "out-a"),
    "out is a file": (["out-a", "--out=file"], "out='file' cannot"),
    "out is below a file": (["out-a", "--out=file/sub"], "out='file/sub' cannot"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, tmp_path, capsys):
    if case != "no runs":
        write_log("out-a")
    Path("empty").mkdir()
    Path("hollow").mkdir()
    Path("hollow/run_1.jsonl").touch()
    Path("file").touch()
    before = sorted(tmp_path.rglob("*"))
    argv, named = BAD[case]
    with pytest.raises(SystemExit) as stop:
        compare.main(argv)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert len(captured.err.splitlines()) == 1 and named in captured.err
    assert sorted(tmp_path.rglob("*")) == before


def test_exit_code_of_the_command(tmp_path):
    command = [sys.executable, str(ROOT / "compare_architectures.py"), "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr.startswith("compare_architectures.py: nowhere is not there")
        and done.stderr.count("\n") == 1
    )


def test_without_matplotlib_the_table_is_there(capsys, monkeypatch):
    write_log("out-a")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as stop:
        compare.main(["out-a", "--out=cmp"])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out.splitlines()[2].startswith("out-a ")
    assert len(captured.err.splitlines()) == 1 and "pip install matplotlib" in captured.err
    assert Path("cmp/comparison.json").exists() and not Path("cmp/comparison.png").exists()
