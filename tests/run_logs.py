"""Run logs as train.py writes them, made up for tests, and the comparison of such runs."""

import json
import math
import os
from functools import partial
from pathlib import Path

import compare_architectures as compare
from base import cli

TOKENS_PER_STEP = 1000
BYTES_PER_TOKEN = 4.0
MEASUREMENT = {"split": "v0", "windows": 100, "block_size": 64, "document_masking": False, "dtype": "float32",
               "tokens": 6400, "bytes": 25600, "whole": False, "text": None}  # fmt: skip
NAMES = {
    "gpt2": "GPT-2 (pre-LayerNorm, learned positions, MHA 12, GELU-tanh, tied)",
    "llama3": "LLaMA-3 (pre-RMSNorm, RoPE 5e5, GQA 12:4, SwiGLU, tied)",
    "qwen3": "Qwen3 (pre-RMSNorm, RoPE 1e6, GQA 12:6, SwiGLU, qk-norm, tied)",
}


def loss_of(floor, step):
    return floor + (10.0 - floor) / (1 + step / 10)


def write_log(folder, *, floor=3.0, name="gpt2", steps=(0, 100), evals=20, end="done", started=1_700_000_000, old=True,
              bits=True, fingerprint="f0", flops=6e8, mfu=0.4, lines=(), loss=loss_of, train=None, model=None,
              dt_ms=200.0, measurement=None, data=None, run_id=None, session=0):  # fmt: skip
    """One log from steps[0] to steps[1]: a train event every 5 steps, an evaluation every `evals`, then
    `lines` verbatim."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    first, last = steps
    events = [{
        **({"measurement": MEASUREMENT | measurement} if measurement is not None else {}), "run_id": run_id, "session": session,
        "event": "run_start", "time": started, "start_step": first, "git": None, "versions": {},
        "config": {"model": model or {}, "train": {"out_dir": str(folder), "dataset": "d", **(train or {})}},
        "model": {"architecture_name": NAMES[name], "params": 124_337_664, "params_non_embedding": 85_000_000,
                  "flops_per_token": flops},
        "derived": {"tokens_per_step": TOKENS_PER_STEP},
        "data": {"dataset": "d", "fingerprint": fingerprint, "bytes_per_token": BYTES_PER_TOKEN, **(data or {})},
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


def compare_without_picture(*argv):
    """The exit code of compare_architectures.py, of whose time the picture takes most."""
    return cli.run(argv, "", compare.CompareConfig, partial(compare.work, draw=lambda runs: b""))


def compared(capsys, *argv, picture=False):
    """(stdout, stderr, comparison.json) of a comparison in this process."""
    argv = (*argv, "--out=cmp")
    assert (compare.main(argv) if picture else compare_without_picture(*argv)) == 0
    captured = capsys.readouterr()
    return captured.out, captured.err, json.loads(Path("cmp/comparison.json").read_text())


def row_of(report, out_dir):
    (row,) = [row for row in report["runs"] if row["out_dir"] == out_dir]
    return row


def notes(out):
    return [line for line in out.splitlines() if line.startswith("- ")]


def write_three():
    """The best, a crash half-way, the worst; the oldest run of all is not among the newest three."""
    write_log("out-old", floor=1.0, started=1_600_000_000)
    write_log("out-gpt2", floor=3.2, name="gpt2", started=1_700_000_001)
    write_log(
        "out-llama3", floor=3.1, name="llama3", steps=(0, 50), end=None, started=1_700_000_002, flops=7e8
    )
    write_log("out/qwen3", floor=3.0, name="qwen3", started=1_700_000_003, flops=8e8)


def standing(report, axis, of="all"):
    (entry,) = [e for e in report["standings"] if (e["axis"], e["of"]) == (axis, of)]
    return entry


def three_seeds(folder, floors, **options):
    for seed, floor in enumerate(floors):
        train = {"seed": seed, **options.get("train", {})}
        write_log(f"{folder}-seed{seed}", floor=floor, **{**options, "train": train})


def two_seeds(capsys, part, beside, different):
    """The configurations among two seeds, whose second differs in `different` too."""
    other = "model" if part == "train" else "train"
    for seed in (0, 1):
        given = {part: {**beside, **(different if seed else {})}, other: {}}
        given["train"] = {"seed": seed, **given["train"]}
        write_log(f"out-s/a-seed{seed}", floor=3 + seed / 100, **given)
    return compared(capsys, "out-s")[2]
