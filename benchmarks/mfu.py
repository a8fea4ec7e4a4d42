"""Training speed of the large configurations on one GPU: tokens/s, MFU, share of the measured matmul rate,
peak memory.

    python benchmarks/mfu.py --write                                       # on an H200: every row that its memory holds
    python benchmarks/mfu.py --configs=full_qwen3_1.5b --block_sizes=4096 --tokens=16384 --steps=100 --write
    python benchmarks/mfu.py --configs=full_qwen3_1.5b --fp8=tensorwise --write
    python benchmarks/mfu.py --configs=quickstart --block_sizes=64 --tokens=128 --steps=3       # a smoke test on CPU

Each row is train.py itself in a process of its own, with optimizer, data (the embedded corpus, whose ids
every vocabulary holds) and logging; `tokens` is batch_size x block_size of the one micro-batch that a step
has. The rate is the median of the logged steps after the first third. A row that does not fit is recorded
as such."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from base.errors import InputError
from base.fields import knob
from benchmarks import records
from benchmarks.records import write_result
from hardware.device import select_device, wait_for

ROOT = Path(__file__).resolve().parents[1]


@dataclass(kw_only=True)
class BenchmarkConfig:
    configs: str = knob("full_qwen3_0.6b,full_qwen3_1.5b,full_qwen3_2.0b", "of config/")
    block_sizes: str = knob("2048,4096", "tokens of a sequence, separated by commas")
    tokens: int = knob(16_384, "of a step", bounds="[1, inf)")
    steps: int = knob(100, "of each run", bounds="[1, inf)")
    compile: bool = knob(True, "by torch.compile")
    activation_checkpointing: Literal["none", "selective", "full"] = knob("none", "as train.py's")
    fp8: Literal["none", "tensorwise", "rowwise"] = knob("none", "as train.py's")
    device: str = knob("auto", "auto, cpu, cuda, cuda:N or mps")
    write: bool = knob(False, "store the result under benchmarks/results/")


def measure(c: BenchmarkConfig, name: str, T: int) -> dict[str, Any]:
    """One row, from the run log of a training run."""
    with tempfile.TemporaryDirectory() as folder:
        flags = {
            "dataset": "python_stdlib",
            "block_size": T,
            "batch_size": c.tokens // T,
            "gradient_accumulation_steps": 1,
            "max_iters": c.steps,
            "compile": c.compile,
            "activation_checkpointing": c.activation_checkpointing,
            "fp8": c.fp8,
            "device": c.device,
            "log_interval": 1,
            "eval_interval": c.steps + 1,
            "eval_tokens": T,
            "checkpoint_interval": 2 * c.steps,
            "init_from": "scratch",
            "out_dir": folder,
        }
        command = [sys.executable, "train.py", f"config/{name}.py", *(f"--{k}={v}" for k, v in flags.items())]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        logs = list(Path(folder).glob("run_*.jsonl"))
        events = [json.loads(line) for file in logs for line in file.read_text().splitlines()]
    logged = [e for e in events if e["event"] == "train"]
    steps = logged[c.steps // 3 :]
    if done.returncode or not steps:
        lines = done.stderr.strip().splitlines()
        return {"failed": lines[-1][:300] if lines else f"exit code {done.returncode}"}

    start = events[0]
    rate = matmul_flops_per_s(select_device(c.device), getattr(torch, start["hardware"]["dtype"]))

    def median(key: str) -> float | None:
        return None if steps[0][key] is None else statistics.median(e[key] for e in steps)

    return {
        "tokens/s": round(median("tokens_per_s")),
        "mfu": median("mfu"),
        "of matmul rate": start["model"]["flops_per_token"] * median("tokens_per_s") / rate,
        "memory GB": median("memory_gb"),
        "params": start["model"]["params"],
        "matmul TFLOP/s": rate / 1e12,
        "steps": len(steps),
        "attention_backend": start["hardware"]["attention_backend"],
        "losses": [
            round(e["loss"], 4) for e in logged[9::10]
        ],  # of every tenth step: FP8 beside bf16 at equal tokens
    }


def matmul_flops_per_s(device: torch.device, dtype: torch.dtype, budget_s: float = 0.05) -> float:
    """Of the fastest of some square products of random numbers, in a size that the device needs: what a
    training step could reach at most. (Zeros would be faster: a GPU's clock depends on the bits.) Draws
    from a generator of its own."""
    n = 8192 if device.type == "cuda" else 256 if dtype == torch.float16 else 1024  # CPUs crawl in fp16
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(n, n, generator=generator, device=device).to(dtype) for _ in range(2))
    seconds = []
    deadline = time.perf_counter() + budget_s
    while len(seconds) < 4 or time.perf_counter() < deadline:
        start = time.perf_counter()
        torch.mm(a, b)
        wait_for(device)
        seconds.append(time.perf_counter() - start)
    return 2 * n**3 / min(seconds[1:])  # others may share a CPU in the meantime


def main(argv: Sequence[str]) -> int:
    return records.run(argv, __doc__, BenchmarkConfig, bench)


def bench(c: BenchmarkConfig, argv: Sequence[str]) -> None:
    names = records.names(
        "configs", c.configs, [file.stem for file in sorted((ROOT / "config").glob("*.py"))]
    )
    lengths = records.numbers("block_sizes", c.block_sizes)
    if too_long := [T for T in lengths if c.tokens % T]:
        raise InputError(f"--tokens={c.tokens} is not a multiple of --block_sizes={too_long[0]}")
    device = select_device(c.device)
    results = {}
    for name in names:
        for T in lengths:
            row = results[f"{name} T {T}"] = measure(c, name, T)
            print(f"{name} T {T}: {row}", flush=True)
    if c.write:
        name = f"mfu_{device.type}_{c.tokens}" + ("" if c.fp8 == "none" else f"_fp8_{c.fp8}")
        write_result(name, "mfu.py", argv, device, config=asdict(c), results=results)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
