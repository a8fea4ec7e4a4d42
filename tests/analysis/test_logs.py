"""Which lines of a log count, and what a log must hold."""

import json
import math
from pathlib import Path

import pytest
from run_logs import NAMES, compared, loss_of, notes, write_log

pytestmark = pytest.mark.usefixtures("in_tmp_path")


def test_damaged_lines_are_skipped_and_counted(capsys):
    bad = ['{"event": "eval", "step": 80, "val\n', "\0\0\0\n", "[1]\n", "\n", '{"event": "train", "step": 3}\n',
           '{"event": "eval", "step": "4", "val_loss": 1.0}\n', '{"event": "of tomorrow"}\n',
           '{"event": "train", "step": 3, "loss": 3.0, "tokens": "5"}\n',
           '{"event": "train", "step": 3, "loss": 3.0, "tokens": 1' + 400 * "0" + "}\n", '{"event": "eval", "st']  # fmt: skip
    write_log("out-a", lines=bad)
    out, _, report = compared(capsys, "out-a")
    assert report["runs"][0]["damaged_lines"] == 8  # an event of a later version is not damage
    assert any("damaged lines skipped: 8" in note for note in notes(out))
    assert report["runs"][0]["final_val_loss"] == loss_of(3.0, 100)


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
    _, _, report = compared(capsys, "--latest=1")
    row = report["runs"][0]
    assert row["out_dir"] == "out-a" and row["status"] == "done"
    assert row["evaluations"] == [[4, 256, 4.5, None]] and row["time_s"] == pytest.approx(0.04)


def test_a_loss_that_is_not_finite(capsys):
    write_log("out-a", loss=lambda floor, step: floor if step < 60 else math.nan)
    out, _, report = compared(capsys, "out-a")
    row = report["runs"][0]
    assert (
        row["best_val_loss"] == 3.0 and row["final_val_loss"] is None and row["final_bits_per_byte"] is None
    )
    assert "NaN" not in Path("cmp/comparison.json").read_text()
    assert any("not finite" in note for note in notes(out))
