"""Every attention backend that can run here, forward and backward, beside torch's default.

    python benchmarks/attention.py --write                                 # Qwen3-1.7B's heads on CUDA; small ones on CPU
    python benchmarks/attention.py --shapes=1x4:2x32x16 --rounds=1         # a smoke test

A shape is BxH:KxTxD: B sequences, H query heads, K key/value heads, T tokens, D wide, in bf16 (fp32 with
--dtype). The rate counts causal attention once: forward and backward are 3 x 2 x 2 x B H T^2 D / 2
operations. train.py makes the same measurement of its own shape before a run on a GPU
(training/attention.py)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import re
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from base.errors import InputError
from base.fields import knob
from benchmarks import records
from benchmarks.records import write_result
from hardware.device import keep_freed_memory, select_device
from operators.attention import ATTENTION_BACKENDS, backend_problem
from training.attention import time_kernels

SHAPES = {
    "cuda": "8x16:8x2048x128,4x16:8x4096x128",
    "cpu": "8x6:3x256x64,2x6:3x1024x64",
    "mps": "8x6:3x256x64",
}


@dataclass(kw_only=True)
class BenchmarkConfig:
    shapes: str = knob("", "BxH:KxTxD of each, separated by commas; empty: those of the device")
    dtype: Literal["bfloat16", "float32"] = knob("bfloat16", "of the matmuls")
    device: str = knob("auto", "auto, cpu, cuda, cuda:N or mps")
    rounds: int = knob(5, "that the medians are taken over", bounds="[1, inf)")
    write: bool = knob(False, "store the result under benchmarks/results/")


def measure(shape: tuple[int, ...], c: BenchmarkConfig, device: torch.device) -> dict[str, Any]:
    """Every backend of ours; all are timed in each round, so that a disturbance of the machine meets all."""
    B, H, _, T, D = shape
    dtype = getattr(torch, c.dtype)
    candidates = [name for name in ATTENTION_BACKENDS if backend_problem(name, device.type, dtype) is None]
    seconds = 0.2 if device.type == "cuda" else 0.05
    rounds = [
        time_kernels(shape, device, dtype, candidates=candidates, seconds=seconds) for _ in range(c.rounds)
    ]
    results = {}
    for name in candidates:
        if problem := next((r[name] for r in rounds if isinstance(r[name], str)), None):
            results[name] = {"cannot": problem}
            continue
        ms = statistics.median(r[name] for r in rounds)
        results[name] = {"ms": round(ms, 3), "GFLOP/s": round(6 * B * H * T * T * D / ms / 1e6)}
    return results


def main(argv: Sequence[str]) -> int:
    return records.run(argv, __doc__, BenchmarkConfig, bench)


def bench(c: BenchmarkConfig, argv: Sequence[str]) -> None:
    device = select_device(c.device)
    shapes = {}
    for text in (c.shapes or SHAPES[device.type]).split(","):
        match = re.fullmatch(r"(\d+)x(\d+):(\d+)x(\d+)x(\d+)", text)
        if match is None or int(match[2]) % int(match[3]):
            raise InputError(f"--shapes: {text!r} is not BxH:KxTxD with K a divisor of H")
        shapes[text] = tuple(int(n) for n in match.groups())
    keep_freed_memory()
    results = {}
    for text, shape in shapes.items():
        results[text] = measure(shape, c, device)
        for name, row in results[text].items():
            print(f"{text} {name:24} {row}", flush=True)
    if c.write:
        write_result(
            f"attention_{device.type}", "attention.py", argv, device, config=asdict(c), results=results
        )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
