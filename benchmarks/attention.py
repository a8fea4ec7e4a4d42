"""Every attention backend that can run here, forward and backward, beside torch's default.

    python benchmarks/attention.py --write                                 # Qwen3-1.7B's heads on CUDA; small ones on CPU
    python benchmarks/attention.py --shapes=1x4:2x32x16 --rounds=1         # a smoke test

A shape is BxH:KxTxD: B sequences, H query heads, K key/value heads, T tokens, D wide, in bf16 (fp32 with --dtype). The rate
counts causal attention once: forward and backward are 3 x 2 x 2 x B H T^2 D / 2 operations. Before it is timed each must give
the written-out attention's output.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import re
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.records import config_from_flags, write_result
from model_components import ATTENTION_BACKENDS, attend_manual, attend_sdpa, backend_problem
from training import dist
from training.config import user_errors

SHAPES = {"cuda": "8x16:8x2048x128,4x16:8x4096x128", "cpu": "8x6:3x256x64,2x6:3x1024x64", "mps": "8x6:3x256x64"}


@dataclass(kw_only=True)
class BenchmarkConfig:
    shapes: str = ""  # '': those of the device
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    device: str = "auto"
    rounds: int = 20
    write: bool = False


def only(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
    with sdpa_kernel(backend):
        return attend_sdpa(q, k, v, dropout)


def candidates(device: torch.device, dtype: torch.dtype) -> dict[str, Callable[..., Tensor]]:
    found = {name: f for name, f in ATTENTION_BACKENDS.items() if backend_problem(name, device.type, dtype) is None}
    if device.type == "cuda":
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
            found[f"sdpa {backend.name.lower()}"] = partial(only, backend)
    return found


def measure(shape: tuple[int, ...], c: BenchmarkConfig, device: torch.device) -> dict[str, Any]:
    B, H, K, T, D = shape
    dtype = getattr(torch, c.dtype)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(B, heads, T, D, generator=generator).to(device, dtype).requires_grad_() for heads in (H, K, K))
    grad = torch.randn(B, H, T, D, generator=generator).to(device, dtype)
    with torch.no_grad():
        expected = attend_manual(q, k, v, 0.0).float()
    calls, results, errors = {}, {}, {}
    for name, attend in candidates(device, dtype).items():
        try:
            difference = (attend(q, k, v, 0.0).float() - expected).abs().max().item()
        except RuntimeError as error:  # a kernel of torch's that has no such shape
            results[name] = {"cannot": str(error).splitlines()[0][:200]}
            continue
        assert difference < 0.05, f"{name} differs from attention written out by {difference}"
        calls[name], errors[name] = attend, difference
    times: dict[str, list[float]] = {name: [] for name in calls}
    for n in range(c.rounds + 1):
        for name, attend in calls.items():
            start = time.perf_counter()
            torch.autograd.grad(attend(q, k, v, 0.0), (q, k, v), grad)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if n:
                times[name].append(time.perf_counter() - start)
    for name, seconds in times.items():
        median_s = statistics.median(seconds)
        rate = 6 * B * H * T * T * D / median_s
        results[name] = {"ms": round(1e3 * median_s, 3), "GFLOP/s": round(rate / 1e9), "difference": errors[name]}
    return results


def main(argv: Sequence[str]) -> int:
    with user_errors():
        c = config_from_flags(BenchmarkConfig, argv)
        device = dist.select_device(c.device)
        shapes = {}
        for text in (c.shapes or SHAPES[device.type]).split(","):
            match = re.fullmatch(r"(\d+)x(\d+):(\d+)x(\d+)x(\d+)", text)
            if match is None or int(match[2]) % int(match[3]):
                raise ValueError(f"--shapes: {text!r} is not BxH:KxTxD with K a divisor of H")
            shapes[text] = tuple(int(n) for n in match.groups())
    dist.keep_freed_memory()
    results = {}
    for text, shape in shapes.items():
        results[text] = measure(shape, c, device)
        for name, row in results[text].items():
            print(f"{text} {name:24} {row}", flush=True)
    if c.write:
        write_result(f"attention_{device.type}", "attention.py", argv, device, config=asdict(c), results=results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
