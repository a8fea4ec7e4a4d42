"""What a batch costs the training process, beside nanoGPT's get_batch on the same file in the same run.

    python benchmarks/loader.py                          # writes benchmarks/results/loader.json
    python benchmarks/loader.py --file_gb=0.1 --batches=50 --write=False     # a smoke test

The corpus is a sparse file of zeros, which os.truncate makes in no time and which takes no disk; positions
are spread over all of it. Before a batch is timed its windows are read through another map of the file, so
that the pages are in the page cache, but not yet in the map that is measured. Ours and nanoGPT's take
turns. In ms:

    micro_batch   reading a batch in place: ours, and nanoGPT's
    prefetched    what the training process waits for a batch that the reader thread has had a pause to prepare in
    positions     micro_batch with all windows of the batch near the file's beginning, middle and end
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import os
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from base.fields import knob
from benchmarks import records
from benchmarks.records import write_result
from tokens.loader import BatchLoader
from tokens.reader import open_tokens
from tokens.stream import TokenStream

VOCAB_SIZE = 151_936
CPU = torch.device("cpu")


@dataclass(kw_only=True)
class BenchmarkConfig:
    file_gb: float = knob(20.0, "of uint32 ids", bounds="(0, inf)")
    batch_size: int = knob(16, "sequences", bounds="[1, inf)")
    block_size: int = knob(2048, "tokens of a sequence", bounds="[1, inf)")
    batches: int = knob(400, "timed, of each", bounds="[1, inf)")
    pause_ms: float = knob(
        5.0,
        "between two prefetched batches: a training step, far shorter than any real one",
        bounds="[0, inf)",
    )
    write: bool = knob(True, "store the result under benchmarks/results/")


def nanogpt_get_batch(
    path: Path, rng: torch.Generator, batch_size: int, block_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """get_batch of nanoGPT's train.py, which opens its memmap anew for every batch; uint32 for its uint16."""
    data = np.memmap(path, dtype=np.uint32, mode="r")
    ix = torch.randint(len(data) - block_size, (batch_size,), generator=rng)
    x = torch.stack([torch.from_numpy((data[i : i + block_size]).astype(np.int64)) for i in ix])
    y = torch.stack([torch.from_numpy((data[i + 1 : i + 1 + block_size]).astype(np.int64)) for i in ix])
    return x, y


class Nearby:
    """A stream of which the first GB after `start` is used: windows at one place of a long file."""

    def __init__(self, tokens: TokenStream, start: int) -> None:
        self.tokens, self.start = tokens, start
        self.n_tokens = min(250_000_000, tokens.n_tokens - start)

    def read(self, start: int, length: int) -> np.ndarray:
        return self.tokens.read(self.start + start, length)


def times_ms(
    calls: Sequence[tuple[Callable[[int], object], Callable[[int], object]]], batches: int
) -> list[list[float]]:
    """A list for each pair (warm, measured) of calls, in turn: the time of measured(i), right after
    warm(i)."""
    times: list[list[float]] = [[] for _ in calls]
    for i in range(batches):
        for (warm, measured), mine in zip(calls, times, strict=True):
            warm(i)
            begin = time.perf_counter()
            measured(i)
            mine.append((time.perf_counter() - begin) * 1e3)
    return times


def summary(times: Sequence[float]) -> dict[str, float]:
    return {"median_ms": statistics.median(times), "p99_ms": sorted(times)[int(len(times) * 0.99)]}


def main(argv: Sequence[str]) -> int:
    return records.run(argv, __doc__, BenchmarkConfig, bench)


def bench(c: BenchmarkConfig, argv: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "train.bin")
        path.touch()
        os.truncate(path, int(c.file_gb * 1e9) // 4 * 4)
        rows = in_place(c, path) | {"prefetched": summary(waits_ms(c, path))}
        held = held_bytes(c, path)
    for name, row in rows.items():
        print(f"{name:24} median {row['median_ms']:.3f} ms, 99th percentile {row['p99_ms']:.3f} ms")
    print(f"memory held by Python after 100 and after 2,000 batches: {held[0]:,} and {held[-1]:,} bytes")
    if c.write:
        unit = f"ms a batch of {c.batch_size} x {c.block_size} tokens, warm page cache"
        results = rows | {"bytes_held_more_after_1900_batches": held[-1] - held[0]}
        write_result("loader", "loader.py", argv, CPU, unit=unit, config=asdict(c), results=results)


def open_loader(c: BenchmarkConfig, path: Path, place: float | None = None) -> BatchLoader:
    """On the whole file, or on windows near one place of it: 0.5 is the middle."""
    tokens = open_tokens(path.parent, "train", VOCAB_SIZE, "uint32")
    if place is not None:
        tokens = Nearby(tokens, int(place * tokens.n_tokens))
    return BatchLoader(tokens, c.block_size, c.batch_size, 1, seed=0)


def in_place(c: BenchmarkConfig, path: Path) -> dict[str, dict[str, float]]:
    """Batches that the caller reads itself, ours and nanoGPT's in turn."""

    def ours(place: float | None = None) -> tuple[Callable[[int], object], Callable[[int], object]]:
        warm, measured = open_loader(c, path, place), open_loader(c, path, place)
        return lambda i: warm.micro_batch(i, 0), lambda i: measured.micro_batch(i, 0)

    def nanogpt(i: int) -> None:
        nanogpt_get_batch(path, torch.Generator().manual_seed(i), c.batch_size, c.block_size)

    calls = {
        "micro_batch": ours(),
        "nanogpt get_batch": (nanogpt, nanogpt),
        "micro_batch, beginning": ours(0.0),
        "micro_batch, middle": ours(0.5),
        "micro_batch, end": ours(0.95),
    }
    times = times_ms(list(calls.values()), c.batches)
    return {name: summary(of_call) for name, of_call in zip(calls, times, strict=True)}


def waits_ms(c: BenchmarkConfig, path: Path) -> list[float]:
    """What is waited for each batch that the reader thread has had a pause to prepare."""
    loader = open_loader(c, path)
    for i in range(c.batches + 2):  # into the page cache
        loader.micro_batch(i, 0)
    stream = open_loader(c, path).prefetched(0, CPU)
    waits = []
    for _ in range(c.batches):
        time.sleep(c.pause_ms / 1e3)
        begin = time.perf_counter()
        next(stream)
        waits.append((time.perf_counter() - begin) * 1e3)
    stream.close()
    return waits


def held_bytes(c: BenchmarkConfig, path: Path) -> list[int]:
    """What Python holds after 100, 200, ... 2,000 batches all over the file."""
    loader = open_loader(c, path)
    tracemalloc.start()
    held = []
    for i in range(0, 2000, 100):
        for step in range(i, i + 100):
            loader.micro_batch(10**6 + step, 0)
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    return held


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
