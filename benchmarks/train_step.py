"""A training step of ours beside transformers, a GPT-2 of the same size, and litgpt: same shape, weights,
data and dtype.

    python benchmarks/train_step.py --write                                # 8192 words, 8 x 256 tokens, one allocator for all
    python benchmarks/train_step.py --write --setting=started              # each as its users start it
    python benchmarks/train_step.py --write --vocab_size=151936 --batch_size=4 [--setting=started]
    python benchmarks/train_step.py --vs=hf --modes="bf16 compiled" --rounds=3 --n_layer=2 --n_embd=64 --n_head=2 \
        --num_key_value_heads=1 --d_ff=128 --vocab_size=512                # a smoke test

Each side is a process of its own (contestants.py). They are there at the same time and step in turn, so
that a disturbance of the machine meets all; between the rounds the matmul rate is measured. setting=same
gives every side glibc's large-block setting that train.py gives itself; setting=started gives the rivals
none. The peers' best mode is what ours is compared with. litgpt wants another huggingface_hub than
transformers, which its model does not use: pip install --no-deps litgpt lightning lightning-utilities
torchmetrics pytorch-lightning jsonargparse typeshed_client. clock=cpu counts the processor time of one
thread a side: for a machine that is not alone, where seconds say little. """

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch

from base.errors import MissingPackage
from base.fields import knob
from benchmarks import records
from benchmarks.contestants import CLOCKS
from benchmarks.records import write_result
from inference.hf import save_hf
from model_builder import ConfigurableGPT
from model_config import get_preset_config
from training.flops import flops_per_token

ALLOCATOR = {  # what keep_freed_memory sets, as environment variables of glibc
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "1099511627776",
    "MALLOC_TOP_PAD_": "67108864",
}
MODES = ("bf16 compiled", "bf16 eager", "fp32 compiled", "fp32 eager")
RIVALS = {"hf": "transformers", "nanogpt_shape": "transformers", "litgpt": "litgpt"}  # and their packages
SHAPE = ("n_layer", "n_embd", "n_head", "num_key_value_heads", "head_dim", "d_ff", "vocab_size", "block_size")


@dataclass(kw_only=True)
class BenchmarkConfig(records.ModelShape):
    """6 layers, 384 wide, 6:3 heads of 64."""

    vs: str = knob("hf,nanogpt_shape,litgpt", "the rivals, separated by commas")
    modes: str = knob(",".join(MODES), "separated by commas")
    setting: Literal["same", "started"] = knob(
        "same", "same: one allocator for all; started: each as its users start it"
    )
    batch_size: int = knob(8, "sequences", bounds="[1, inf)")
    block_size: int = knob(256, "tokens of a sequence", bounds="[1, inf)")
    rounds: int = knob(9, "that the medians are taken over", bounds="[1, inf)")
    clock: Literal["wall", "cpu"] = knob(
        "wall", "seconds, or processor time of one thread a side, for a machine that is not alone"
    )
    write: bool = knob(False, "store the result under benchmarks/results/")

    def __post_init__(self) -> None:
        records.names("vs", self.vs, RIVALS)
        records.names("modes", self.modes, MODES)


class Side:
    """A contestant's process."""

    def __init__(self, name: str, c: BenchmarkConfig, folder: str, mode: str) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
        if c.setting == "same":
            environment |= ALLOCATOR
        shape = json.dumps({k: getattr(c, k) for k in (*SHAPE, "batch_size")})
        command = [
            sys.executable,
            str(Path(__file__).with_name("contestants.py")),
            name,
            shape,
            folder,
            mode,
            c.clock,
        ]
        self.process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.name = name
        self.answers: list[dict[str, Any]] = []

    def step(self) -> dict[str, Any]:
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line.startswith("{"):
            raise RuntimeError(
                f"{self.name} ended: run benchmarks/contestants.py by itself to see why. {line}"
            )
        self.answers.append(json.loads(line))
        return self.answers[-1]

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def matmul_seconds(dtype: torch.dtype, clock: str, n: int = 1024) -> float:
    """Of one n^3 product in torch."""
    a, b = torch.ones(n, n, dtype=dtype), torch.ones(n, n, dtype=dtype)
    start = CLOCKS[clock]()
    torch.mm(a, b)
    return CLOCKS[clock]() - start


def compare(c: BenchmarkConfig, mode: str, folder: str) -> dict[str, Any]:
    """The sides' medians in one mode."""
    dtype = torch.bfloat16 if mode.startswith("bf16") else torch.float32
    names = ["nanofoundry", *c.vs.split(",")]
    sides = [Side(name, c, folder, mode) for name in names]
    try:
        for _ in range(3):  # the first compiles, and allocates; losses after two updates must agree
            for side in sides:
                side.step()
        losses = {side.name: [a["loss"] for a in side.answers] for side in sides}
        for name in set(names) - {"nanofoundry", "nanogpt_shape"}:
            gaps = [abs(a - b) for a, b in zip(losses["nanofoundry"], losses[name], strict=True)]
            assert max(gaps) < 2e-2, f"they do not compute the same loss: {losses}"
        products = []
        for _ in range(c.rounds):
            for side in sides:
                side.step()
            products += [matmul_seconds(dtype, c.clock) for _ in range(5)]
    finally:
        for side in sides:
            side.close()
    tokens = c.batch_size * c.block_size
    times = {side.name: [a["s"] for a in side.answers[3:]] for side in sides}
    medians = {name: statistics.median(t) for name, t in times.items()}
    config = get_preset_config("qwen3", **{k: getattr(c, k) for k in SHAPE}, weight_tying=True)
    needed, rate = tokens * flops_per_token(config), 2 * 1024**3 / statistics.median(products)
    return {
        "tokens/s": {name: round(tokens / s) for name, s in medians.items()},
        "extra GB": {
            s.name: round(statistics.median(a["extra_bytes"] for a in s.answers[3:]) / 1e9, 3) for s in sides
        },
        "matmul GFLOP/s": round(rate / 1e9),
        "of matmul rate": {name: round(needed / s / rate, 3) for name, s in medians.items()},
        "ratio": {
            n: statistics.median(b / a for a, b in zip(times["nanofoundry"], times[n], strict=True))
            for n in names[1:]
        },
        "losses": {name: round(values[-1], 4) for name, values in losses.items()},
        "load average": os.getloadavg()[0],
    }


def main(argv: Sequence[str]) -> int:
    return records.run(argv, __doc__, BenchmarkConfig, bench)


def bench(c: BenchmarkConfig, argv: Sequence[str]) -> None:
    for name in c.vs.split(","):
        if find_spec(RIVALS[name]) is None:
            raise MissingPackage(
                f"--vs={name} needs the package {RIVALS[name]}: install it or leave {name} out of --vs"
            )
    if c.clock == "cpu":
        torch.set_num_threads(1)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        config = get_preset_config("qwen3", **{k: getattr(c, k) for k in SHAPE}, weight_tying=True)
        save_hf(ConfigurableGPT(config, seed=0), folder)
        for mode in c.modes.split(","):
            r = results[mode] = compare(c, mode, folder)
            print(
                f"{mode}: tokens/s {r['tokens/s']}, of the matmul rate ({r['matmul GFLOP/s']} GFLOP/s) {r['of matmul rate']}, "
                f"GB above weights and AdamW {r['extra GB']}, ratios { {k: round(v, 2) for k, v in r['ratio'].items()} }",
                flush=True,
            )
            if c.write:  # after every mode: what is measured is not lost
                name = f"train_step_cpu_{c.vocab_size}_{c.setting}"
                write_result(
                    name, "train_step.py", argv, torch.device("cpu"), config=asdict(c), results=results
                )


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
