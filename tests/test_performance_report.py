"""docs/PERFORMANCE.md says what benchmarks/results/*.json say, and the benchmarks run at a tiny size."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import mfu, report, time_to_loss, train_step

ROOT = Path(__file__).resolve().parents[1]


def test_the_document_is_what_report_writes():
    text = report.DOCUMENT.read_text()
    assert set(re.findall(r"<!-- table (\w+) -->", text)) == set(report.TABLES)
    assert report.render(text) == text, "run python benchmarks/report.py"
    assert report.render(re.sub(r"\d", "7", text)) != re.sub(r"\d", "7", text)  # it does write the figures


def test_results_hold_no_path_of_a_machine():
    for file in report.RESULTS.iterdir():
        assert not re.search(r"/(home|root|tmp|work|Users)/", file.read_text()), file


TINY = (
    "--n_layer=1 --n_embd=32 --n_head=2 --num_key_value_heads=1 --head_dim=16 --d_ff=32 --vocab_size=97 --batch_size=2 "
    "--block_size=16"
)


@pytest.mark.parametrize("command", [
    f"train_step.py --vs=hf,nanogpt_shape --rounds=1 --setting=started {TINY} --modes=bf16\x00eager",
    "loss_memory.py --vocab_size=300 --tokens=40 --rounds=1",
    "attention.py --device=cpu --shapes=1x4:2x32x16 --rounds=1",
    "mfu.py --device=cpu --configs=quickstart --block_sizes=16 --tokens=32 --steps=3 --compile=False",
], ids=lambda c: c.split(".")[0])  # fmt: skip
def test_a_benchmark_at_a_tiny_size(command):
    before = {file: file.read_bytes() for file in report.RESULTS.iterdir()}
    script, *flags = command.split()
    argv = [sys.executable, f"benchmarks/{script}", *(flag.replace("\0", " ") for flag in flags)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout and "failed" not in done.stdout and "cannot" not in done.stdout
    assert {file: file.read_bytes() for file in report.RESULTS.iterdir()} == before  # nothing without --write


def test_wrong_flags_of_a_benchmark_are_one_line(capsys):
    wrong = [(train_step, "--vs=megatron", "'megatron' is none of"), (train_step, "--modes=fp8", "'fp8'"),
             (train_step, "--setting=best", "setting"), (mfu, "--fp8=foo", "fp8='foo' is not known")]  # fmt: skip
    for benchmark, flag, said in wrong:
        with pytest.raises(SystemExit) as end:
            benchmark.main([flag])
        err = capsys.readouterr().err
        assert end.value.code == 2 and said in err and err.count("\n") == 1


def test_a_row_of_the_report(monkeypatch, tmp_path):
    side = {"nanofoundry": 120, "hf": 100}
    row = {
        "tokens/s": side,
        "extra GB": dict.fromkeys(side, 1.0),
        "matmul GFLOP/s": 200,
        "of matmul rate": dict.fromkeys(side, 0.5),
        "ratio": {"hf": 1.21},
    }
    config = {
        "vocab_size": 8192,
        "batch_size": 8,
        "block_size": 256,
        "setting": "same",
        "rounds": 3,
        "clock": "wall",
        "vs": "hf",
    }
    record = {"command": "c", "device": "d", "git": None, "config": config, "results": {"bf16 eager": row}}
    (tmp_path / "train_step_cpu_8192_same.json").write_text(json.dumps(record))
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    text = "\n".join(report.train_steps())
    cells = ["bf16 eager", "200 GFLOP/s: 240", "120 (50%, 1.00 GB)", "100 (50%, 1.00 GB)", "1.21"]
    assert cells in [[c.strip() for c in line.strip("|").split("|")] for line in text.splitlines()]
    assert "Our best mode over the peers' best: bf16 1.20." in text


@pytest.mark.parametrize(
    "speeds, ends_at", [([2.0, 2.0], 10.0), ([2.0, 1.0, 1.0], 10.0), ([1.0, 4.0, 2.0, 4.0, 1.0], 40.0)]
)
def test_a_recipe_runs_again_where_the_machine_changed_its_speed(speeds, ends_at, monkeypatch):
    """20 steps first; then as many as end between 9 and 11 seconds; the last of four attempts stands."""
    left = iter(speeds)
    monkeypatch.setattr(
        time_to_loss, "run", lambda w, f, c, steps, t: {"steps": steps, "seconds": steps / next(left)}
    )
    assert time_to_loss.timed([], {}, time_to_loss.BenchmarkConfig(), (9.0, 11.0), 64)[
        "seconds"
    ] == pytest.approx(ends_at, abs=0.6)
