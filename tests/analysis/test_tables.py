"""The tables, the numbers in them and the notes below them."""

import json
import math
import re
import sys
from pathlib import Path
from statistics import median

import pytest
from run_logs import NAMES, compared, notes, row_of, write_log, write_three

pytestmark = pytest.mark.usefixtures("in_tmp_path")


def test_three_runs_one_crashed(capsys):
    write_three()
    out, err, report = compared(capsys, "--latest", "3")
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


def test_numbers_of_the_report(capsys):
    """Every figure again, from the log itself and without the code under test."""
    write_three()
    _, _, report = compared(capsys, "out-gpt2", "out-llama3")
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
    _, _, report = compared(capsys, "out-a")
    row = report["runs"][0]
    assert (row["best_val_loss"], row["final_val_loss"]) == (3.0, 3.4)


def test_a_run_without_evaluation(capsys):
    write_log("out-a", evals=0)
    write_log("out-b", floor=9.0, mfu=None)
    out, _, report = compared(capsys, "out-a", "out-b")
    assert [row["out_dir"] for row in report["runs"]] == ["out-b", "out-a"]
    assert report["sorted_by"] == "val_bits_per_byte"  # a run without any loss does not forbid the column
    line = next(line for line in out.splitlines() if line.startswith("out-a"))
    assert line.count("n/a") == 4 and any("out-a: no evaluation" in note for note in notes(out))
    _, _, alone = compared(capsys, "out-a")
    assert alone["runs"][0]["best_val_loss"] is None


def test_not_ranked_by_loss_where_one_lacks_bytes(capsys):
    write_log("out-a", floor=3.5, fingerprint="f1")
    write_log("out-b", floor=3.0, bits=False)
    out, _, report = compared(capsys, "out-a", "out-b")
    assert report["sorted_by"] == "val_loss" and [row["out_dir"] for row in report["runs"]] == [
        "out-a",
        "out-b",
    ]
    assert any("loss per token does not compare" in note for note in notes(out))


def test_ranked_by_bits_where_tokenizers_differ(capsys):
    """A lower loss per token of shorter tokens is not better."""
    whole = {"whole": True, "text": "t0"}
    write_log("out-short", floor=2.5, measurement=whole)
    write_log("out-long", floor=3.0, fingerprint="f1", measurement=whole | {"split": "v1", "windows": 70})
    path = next(Path("out-long").iterdir())
    events = [json.loads(line) for line in path.read_text().splitlines()]
    for event in events:
        if event["event"] == "eval":
            event["val_bits_per_byte"] /= 2
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    out, _, report = compared(capsys, "out-short", "out-long")
    assert [row["out_dir"] for row in report["runs"]] == ["out-long", "out-short"]
    assert any("over the same held-out text: bits per byte compare" in n for n in notes(out))
    assert report["standings"][0]["places"][0]["configuration"] == "out-long"


def test_different_hardware_is_said(capsys):
    write_log("out-a")
    path = write_log("out-b", floor=3.5)
    path.write_text(path.read_text().replace("a CPU", "NVIDIA H200"))
    out, _, _ = compared(capsys, "out-a", "out-b")
    assert any("1 x NVIDIA H200, 1 x a CPU" in note for note in notes(out))


def test_architectures_of_one_family_keep_their_parenthesis(capsys, monkeypatch):
    write_log("out-a")
    monkeypatch.setitem(NAMES, "gpt2", NAMES["gpt2"].replace("MHA 12", "GQA 12:4"))
    write_log("out-b")
    out, _, _ = compared(capsys, "out-a", "out-b")
    assert "MHA 12" in out and "GQA 12:4" in out


def test_a_report_names_no_folders_of_the_machine(capsys, tmp_path):
    path = write_log("out-a")
    path.write_text(
        path.read_text().replace('"data": {"dataset": "d"', f'"data": {{"dataset": "{tmp_path}/data/d"')
    )
    _, _, report = compared(capsys, "out-a")
    assert report["runs"][0]["dataset"] == "data/d"
    assert not [p for p in Path("cmp").iterdir() if p.suffix != ".png" and str(tmp_path) in p.read_text()]


def test_energy_is_a_column_where_a_device_reports_it(capsys):
    write_log(
        "out-a",
        lines=['{"event": "train", "step": 105, "loss": 3.0, "tokens": 105000, "energy_j": 1234567.0}\n'],
    )
    assert "1,234.6" in compared(capsys, "out-a")[0]
    write_log("out-b")
    assert "energy" not in compared(capsys, "out-b")[0]


def test_rich_on_a_terminal(capsys, monkeypatch):
    """A narrow terminal gets blocks of columns, each with the run's name, and no figure is lost."""
    write_three()
    piped, _, _ = compared(capsys, "--latest=3")
    monkeypatch.setattr(sys.stdout.__class__, "isatty", lambda self: True)
    monkeypatch.setenv("COLUMNS", "90")
    monkeypatch.setenv("NO_COLOR", "1")
    out, _, _ = compared(capsys, "--latest=3")
    out = re.sub(r"\x1b\[\d*m", "", out)
    assert all(len(line) <= 90 for line in out.splitlines() if not line.startswith("- "))
    assert out.count("out-llama3") >= 3 and "crashed" in out and "┃" in out
    shown = set(out.replace("│", " ").split())
    assert {word for line in piped.splitlines()[2:5] for word in line.split()} <= shown
