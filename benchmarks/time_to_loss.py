"""Time to quality: how long our quickstart's recipe takes to the held-out bits per byte that nanoGPT's has
after some minutes.

    python benchmarks/time_to_loss.py --write                     # 3 minutes of nanoGPT's recipe, then ours in a third of them
    python benchmarks/time_to_loss.py --seconds=2 --eval_tokens=2048 # a smoke test

Both train by train.py on the embedded corpus with the same seed, tokenizer and evaluation windows, at the
same number of parameters (4,753,664 and 4,753,536). nanoGPT's recipe is its gpt2 architecture with AdamW in
fp32 and the hyperparameters of its README for a CPU and of config/train_shakespeare_char.py: 12 x 64 tokens
a step, 1e-3 -> 1e-4 by cosine, beta2 0.99, 100 steps of warm-up. Ours is config/quickstart.py with its
schedule stretched to the time. Steps are chosen from the speed of a run before, so that each schedule ends
at its time; the clock of both is train.py's, which stands still during evaluations."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from base.errors import InputError
from base.fields import knob
from benchmarks import records
from benchmarks.records import write_result

ROOT = Path(__file__).resolve().parents[1]
QUICKSTART = "config/quickstart.py"
NANOGPT = {
    "arch_preset": "gpt2",
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 256,
    "d_ff": 1288,
    "block_size": 64,
    "vocab_size": 4096,
    "bias": False,
    "weight_tying": True,
    "dropout": 0.0,
    "batch_size": 12,
    "gradient_accumulation_steps": 1,
    "optimizer": "adamw",
    "learning_rate": 1e-3,
    "min_lr": 1e-4,
    "beta2": 0.99,
    "warmup_iters": 100,
    "weight_decay": 0.1,
    "dtype": "float32",
    "compile": False,
}


ATTEMPTS = 4


@dataclass(kw_only=True)
class BenchmarkConfig:
    seconds: float = knob(180.0, "of nanoGPT's recipe")
    share: float = knob(1 / 3, "of them, for ours")
    eval_tokens: int = knob(
        81_920, "of the val split, the same for both: 1,272 windows of 64 tokens", bounds="[1, inf)"
    )
    seed: int = knob(1337, "of both runs")
    write: bool = knob(False, "store the result under benchmarks/results/")


def run(
    words: list[str], flags: dict[str, Any], c: BenchmarkConfig, steps: int, tokens: int
) -> dict[str, Any]:
    """One run of train.py with so many steps; `tokens` of a micro-batch."""
    with tempfile.TemporaryDirectory() as folder:
        flags = flags | {
            "dataset": "python_stdlib",
            "device": "cpu",
            "seed": c.seed,
            "max_iters": steps,
            "eval_interval": steps,
            "eval_tokens": c.eval_tokens,
            "log_interval": steps,
            "init_from": "scratch",
            "out_dir": folder,
        }
        command = [sys.executable, "train.py", *words, *(f"--{k}={v}" for k, v in flags.items())]
        subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
        log = next(Path(folder).glob("run_*.jsonl")).read_text()
    events = [json.loads(line) for line in log.splitlines()]
    val = [e["val_bits_per_byte"] for e in events if e["event"] == "eval"]
    return {
        "params": events[0]["model"]["params"],
        "steps": steps,
        "tokens": events[-1]["tokens"],
        "seconds": round(events[-1]["wall_s"], 2),
        "val bits per byte": val[-1],
    }


def timed(
    words: list[str], flags: dict[str, Any], c: BenchmarkConfig, seconds: tuple[float, float], tokens: int
) -> dict[str, Any]:
    """A run whose schedule ends between these seconds of training; the machine's speed changes, so that it
    may take a few."""
    least, most = seconds
    done = run(words, flags, c, 20, tokens)
    for _ in range(ATTEMPTS):
        done = run(
            words, flags, c, max(2, round(done["steps"] * (least + most) / 2 / done["seconds"])), tokens
        )
        if least <= done["seconds"] <= most:
            break
        print(f"{done['seconds']:.0f} s are not between {least:.0f} and {most:.0f}: once more", flush=True)
    return done


def main(argv: Sequence[str]) -> int:
    return records.run(argv, __doc__, BenchmarkConfig, bench)


def bench(c: BenchmarkConfig, argv: Sequence[str]) -> None:
    if not c.seconds > 0 or not 0 < c.share <= 1:
        raise InputError(f"--seconds={c.seconds} must be positive and --share={c.share} in (0, 1]")
    results = {"nanoGPT": timed([], NANOGPT, c, (0.95 * c.seconds, 1.1 * c.seconds), 12 * 64)}
    print(f"nanoGPT's recipe: {results['nanoGPT']}", flush=True)
    most = c.share * results["nanoGPT"]["seconds"]
    results["nanofoundry"] = timed([QUICKSTART], {}, c, (0.9 * most, most), 24 * 64)
    print(f"ours:             {results['nanofoundry']}", flush=True)
    a, b = results["nanofoundry"], results["nanoGPT"]
    reached = a["val bits per byte"] <= b["val bits per byte"]
    print(f"{'reached' if reached else 'not reached'} in {a['seconds'] / b['seconds']:.2f} of the time")
    if c.write:
        write_result(
            "time_to_loss", "time_to_loss.py", argv, torch.device("cpu"), config=asdict(c), results=results
        )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
