"""plan.py's memory beside that of train.py on CPU: every strategy and checkpointing mode, and the largest
batch by running it.

    python benchmarks/plan_memory.py                    # writes benchmarks/results/plan_memory_cpu.json; about 30 minutes
    python benchmarks/plan_memory.py --shapes=gpt2_124m --strategies=ddp,zero1     # a part of it; the file keeps the others
    python benchmarks/plan_memory.py --shapes=tiny --largest=False --write=False

Measured is the peak resident memory of rank 0, as train.py logs it, after two steps without compilation. A
process holds some memory before there is a model (Python, torch, the processes' connections): a model of
next to no size, trained under the same strategy, says how much, and that is added to the prediction. glibc
is told to give large blocks back at once (MALLOC_MMAP_THRESHOLD_=65536), so that resident is what lives, as
torch.cuda.max_memory_allocated counts it; train.py by itself keeps freed memory, which costs the "kept"
that is measured once for a shape.

For the largest batch the kernel refuses memory beyond RLIMIT_DATA. The batch that planning/memory.py finds
for what the limit leaves has to run, and one that is a tenth larger has to fail."""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import json
import os
import resource
import runpy
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from base.fields import knob
from base.files import write_json
from base.provenance import git_state, versions
from benchmarks import records
from hardware.device import device_name
from planning.memory import BatchMemory, largest_batch, step_memory
from tokens.format import write_meta
from tokens.writer import ShardWriter
from training.config import load_config
from training.world import exit_with

RESULTS = Path(__file__).parent / "results"
SHAPES = {  # vocabulary, flags
    "tiny": (4096, "config/quickstart.py --optimizer=adamw"),
    "gpt2_124m": (50257, "config/full_gpt2_124m.py --batch_size=2 --block_size=256"),
    "qwen3_124m": (50257, "config/full_qwen3_124m.py --batch_size=2 --block_size=256"),
}
NEXT_TO_NOTHING = (
    "--n_layer=2 --n_head=1 --num_key_value_heads=1 --head_dim=8 --n_embd=8 --d_ff=8 --block_size=8 "
)
NEXT_TO_NOTHING += "--batch_size=1"
COMMON = (
    "--device=cpu --dtype=bfloat16 --compile=False --max_iters=2 --warmup_iters=1 --eval_interval=100 --eval_iters=1 "
    "--log_interval=1"
)
STRATEGIES = {
    "single": "",
    "ddp": "",
    "zero1": "--use_zero1=True",
    "fsdp": "--use_zero1=False --use_fsdp=True",
}
TRAIN = "--train"  # the first flag of this file where it is train.py that gives memory back
CHECKPOINTING = ("none", "selective", "full")


@dataclass(kw_only=True)
class BenchmarkConfig:
    shapes: str = knob("tiny,gpt2_124m", "separated by commas")
    strategies: str = knob("single,ddp,zero1,fsdp", "or none")
    largest: bool = knob(True, "confirm the largest batch by running it")
    write: bool = knob(True, "store the result under benchmarks/results/")


def write_dataset(folder: Path, vocab_size: int) -> Path:
    """Random ids: memory does not depend on them."""
    splits = {}
    for split in ("train", "val"):
        writer = ShardWriter(folder, split)
        writer.add(np.random.default_rng(0).integers(vocab_size, size=100_000), text_bytes=300_000)
        splits[split] = writer.finish()
    write_meta(
        folder,
        vocab_size=vocab_size,
        tokenizer={"name": "random", "length": vocab_size, "sha256": "0" * 64},
        eot_id=0,
        splits=splits,
    )
    return folder


def train_flags(shape: str, strategy: str, checkpointing: str, dataset: Path, *more: str) -> list[str]:
    world_size = 1 if strategy == "single" else 2
    flags = f"{SHAPES[shape][1]} --use_zero1=False {STRATEGIES[strategy]} {COMMON} --activation_checkpointing={checkpointing}"
    return [*flags.split(), f"--gradient_accumulation_steps={2 * world_size}", f"--dataset={dataset}", *more]


def peak_bytes(
    flags: list[str], world_size: int, data_limit: int | None = None, keep: bool = False
) -> int | None:
    """Of rank 0 of train.py; None where it ends without a step, which only a limit may cause."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}"]
    launch = launch if world_size > 1 else [sys.executable]
    env = os.environ | {"OMP_NUM_THREADS": "1"} | ({} if keep else {"MALLOC_MMAP_THRESHOLD_": "65536"})
    script = ROOT / "train.py" if keep else Path(__file__).resolve()
    limit = (
        None
        if data_limit is None
        else (lambda: resource.setrlimit(resource.RLIMIT_DATA, (data_limit, data_limit)))
    )
    with tempfile.TemporaryDirectory() as out_dir:
        command = [*launch, str(script), *([] if keep else [TRAIN]), *flags, f"--out_dir={out_dir}"]
        run = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, preexec_fn=limit)
        logs = list(Path(out_dir).glob("run_*.jsonl"))
        events = [json.loads(line) for log in logs for line in log.read_text().splitlines()]
    steps = [event for event in events if event["event"] == "train"]
    if len(steps) == 2:
        return round(1e9 * steps[-1]["memory_gb"])
    if data_limit is None:
        raise RuntimeError(f"{' '.join(command)} ended with {run.returncode}: {run.stderr[-2000:]}")
    return None


def predicted(flags: list[str], world_size: int) -> int:
    return step_memory(*load_config(flags), world_size, device="cpu").total


def compare_peaks(shape: str, strategies: Sequence[str], dataset: Path) -> list[dict[str, object]]:
    rows = []
    for strategy in strategies:
        world_size = 1 if strategy == "single" else 2
        base_flags = train_flags(shape, strategy, "none", dataset, *NEXT_TO_NOTHING.split())
        base = peak_bytes(base_flags, world_size) - predicted(base_flags, world_size)
        for checkpointing in CHECKPOINTING:
            flags = train_flags(shape, strategy, checkpointing, dataset)
            need, measured = predicted(flags, world_size), peak_bytes(flags, world_size)
            kept = (
                peak_bytes(flags, world_size, keep=True)
                if (strategy, checkpointing) == ("single", "none")
                else None
            )
            row = {
                "shape": shape,
                "strategy": strategy,
                "processes": world_size,
                "activation_checkpointing": checkpointing,
            }
            row |= {
                "process_gb": base / 1e9,
                "predicted_gb": (base + need) / 1e9,
                "measured_gb": measured / 1e9,
            }
            row["measured_with_kept_gb"] = kept and kept / 1e9
            rows.append(
                row
                | {
                    "error": (base + need) / measured - 1,
                    "error_without_process": need / (measured - base) - 1,
                }
            )
            print(
                " ".join(f"{k}={v:.3f}" if isinstance(v, float) else str(v) for k, v in rows[-1].items()),
                flush=True,
            )
    return rows


def confirm_largest(shape: str, dataset: Path, limit: int) -> dict[str, object]:
    """The process's share of the limit is found by bisection with the model of next to no size."""
    flags = train_flags(shape, "single", "none", dataset)
    small = [*flags, *NEXT_TO_NOTHING.split()]
    low, high = 0, limit
    while high - low > 16 << 20:
        middle = (low + high) // 2
        low, high = (low, middle) if peak_bytes(small, 1, middle) else (middle, high)
    memory = BatchMemory(*load_config(flags), device="cpu")
    largest = largest_batch(lambda b: memory(b).total, limit - high, most=1000, starts=memory.starts)
    larger = largest + max(1, round(0.1 * largest))
    runs = {b: peak_bytes([*flags, f"--batch_size={b}"], 1, limit) is not None for b in (largest, larger)}
    row = {"shape": shape, "rlimit_data_gb": limit / 1e9, "process_gb": high / 1e9, "largest_batch": largest,
           "it_runs": runs[largest], "larger_batch": larger, "that_runs": runs[larger]}  # fmt: skip
    print(row, flush=True)
    return row


def main(argv: Sequence[str]) -> int:
    return records.run(argv, __doc__, BenchmarkConfig, bench)


def bench(options: BenchmarkConfig, argv: Sequence[str]) -> None:
    shapes = records.names("shapes", options.shapes, SHAPES)
    strategies = records.names("strategies", options.strategies, [*STRATEGIES, "none"])
    strategies = [name for name in strategies if name != "none"]
    git = git_state()  # now: the checkout may move while this runs
    origin = {"command": " ".join(["python benchmarks/plan_memory.py", *argv]), "git": git}
    peaks, largest = [], []
    with tempfile.TemporaryDirectory() as folder:
        for shape in shapes:
            dataset = write_dataset(Path(folder) / shape, SHAPES[shape][0])
            peaks += compare_peaks(shape, strategies, dataset)
            if options.largest:
                largest.append(confirm_largest(shape, dataset, (2 if shape == "tiny" else 6) << 30))
    if options.write:
        file = RESULTS / "plan_memory_cpu.json"
        before = json.loads(file.read_text()) if file.exists() else {"peaks": [], "largest_batch": []}
        result = {
            "peaks": merged(before["peaks"], [row | origin for row in peaks]),
            "largest_batch": merged(before["largest_batch"], [row | origin for row in largest]),
            "device": device_name(torch.device("cpu")),
            "versions": versions(),
        }
        write_json(file, result)


def merged(before: list[dict[str, object]], rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Rows of the same shape, strategy and checkpointing give way to the new ones."""
    key = lambda row: [row.get(name) for name in ("shape", "strategy", "activation_checkpointing")]  # noqa: E731
    return [row for row in before if key(row) not in map(key, rows)] + rows


if __name__ == "__main__":
    if sys.argv[1:2] == [
        TRAIN
    ]:  # a run of train.py whose freed memory goes back, so that the peak is that of what it holds
        sys.argv[:2] = [str(ROOT / "train.py")]
        train = runpy.run_path(sys.argv[0])
        exit_with(partial(train["main"], keep_memory=False), sys.argv[1:])
    raise SystemExit(main(sys.argv[1:]))
