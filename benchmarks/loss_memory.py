"""The loss over a large vocabulary, forward and backward: time, memory and error of ours (chunked), the
plain one, and torch's F.linear_cross_entropy (torch 2.13).

    python benchmarks/loss_memory.py --write                         # 8,192 words, 2,048 tokens
    python benchmarks/loss_memory.py --write --vocab_size=151936 --tokens=1024
    python benchmarks/loss_memory.py --vocab_size=500 --tokens=64 --rounds=1      # a smoke test

Each is a process of its own: features x [tokens, n_embd] and the head's weight in fp32, under bf16
autocast. Memory is the peak of the resident set during a step above what was there before it, the gradients
of x and the weight included. The error is the largest difference of a gradient from the plain one in fp32,
over the largest of that gradient."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F

from base.errors import InputError
from base.fields import knob
from benchmarks import records
from benchmarks.contestants import CLOCKS, memory_bytes
from benchmarks.records import write_result
from hardware.device import keep_freed_memory
from operators.loss import head_loss


@dataclass(kw_only=True)
class BenchmarkConfig:
    vocab_size: int = knob(8192, "of the model", bounds="[1, inf)")
    tokens: int = knob(2048, "in the batch", bounds="[1, inf)")
    n_embd: int = knob(384, "of the model", bounds="[1, inf)")
    rounds: int = knob(5, "that the medians are taken over", bounds="[1, inf)")
    clock: Literal["wall", "cpu"] = knob(
        "wall", "seconds, or processor time of one thread a side, for a machine that is not alone"
    )
    compile: bool = knob(False, "ours and the plain one; torch's falls out of torch.compile")
    write: bool = knob(False, "store the result under benchmarks/results/")
    losses: str = knob("plain,chunked,torch", "which, separated by commas")
    only: str = knob("", "one of LOSSES: this process measures it")


def torchs(x: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    # Autocast does not reach it: it is given what the others make of their inputs
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
    options = torch.nn.LinearCrossEntropyOptions(chunking_method="auto")
    return F.linear_cross_entropy(
        x.flatten(0, 1).to(dtype), weight.to(dtype), targets.flatten(), options=options
    )


LOSSES = {
    "plain": lambda x, weight, targets: head_loss(x, weight, targets, "plain"),
    "chunked": lambda x, weight, targets: head_loss(x, weight, targets, "chunked"),
    "torch": torchs,
}


def measure(c: BenchmarkConfig) -> dict[str, Any]:
    """Of LOSSES[c.only], in this process."""
    if c.clock == "cpu":
        torch.set_num_threads(1)
    keep_freed_memory()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, c.tokens, c.n_embd, generator=generator).requires_grad_()
    weight = (0.02 * torch.randn(c.vocab_size, c.n_embd, generator=generator)).requires_grad_()
    targets = torch.randint(c.vocab_size, (1, c.tokens), generator=generator)
    loss_of = LOSSES[c.only]
    if c.compile and c.only != "torch":
        loss_of = torch.compile(loss_of, dynamic=False)
    before = memory_bytes("VmRSS")
    seconds, extra = [], []
    for _ in range(c.rounds + 1):
        x.grad = weight.grad = None
        start = CLOCKS[c.clock]()
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(x, weight, targets)
        loss.backward()
        seconds.append(CLOCKS[c.clock]() - start)
        extra.append(memory_bytes("VmHWM") - before)
        Path("/proc/self/clear_refs").write_text("5")
    grads = x.grad, weight.grad
    exact = torch.autograd.grad(head_loss(x, weight, targets, "plain"), (x, weight))
    error = max(((a - b).abs().max() / b.abs().max()).item() for a, b in zip(grads, exact, strict=True))
    median_s, peak = statistics.median(seconds[1:]), statistics.median(extra[1:])
    return {
        "ms": round(1e3 * median_s, 1),
        "extra GB": round(peak / 1e9, 3),
        "error": error,
        "loss": loss.item(),
    }


def main(argv: Sequence[str]) -> int:
    return records.run(argv, __doc__, BenchmarkConfig, bench)


def bench(c: BenchmarkConfig, argv: Sequence[str]) -> None:
    names = records.names("losses", c.only or c.losses, LOSSES)
    if "torch" in names and not hasattr(F, "linear_cross_entropy"):
        raise InputError(
            f"torch {torch.__version__} has no F.linear_cross_entropy: it came with 2.13; --losses=plain,chunked"
        )
    if c.only:
        print(json.dumps(measure(c)))
        return
    results = {}
    for name in names:
        command = [sys.executable, __file__, *argv, f"--only={name}"]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        results[name] = json.loads(out.splitlines()[-1])
        print(f"{name:8} {results[name]}", flush=True)
    if c.write:
        fields = {"config": asdict(c), "results": results}
        write_result(f"loss_cpu_{c.vocab_size}", "loss_memory.py", argv, torch.device("cpu"), **fields)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
