"""Which tokens a step trains on: a pure function of (seed, step, micro_step, rank), with nothing to save and nothing to
replay. To resume is to set the step.

A split of n tokens holds (n - 1) // T windows of T tokens and their successors. Each epoch visits every window once, in an
order that a keyed permutation gives without storing it; the order is the same at any world size.
"""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor


class Tokens(Protocol):
    """What the loader needs of a split: training.shards.TokenStream."""

    n_tokens: int

    def read(self, start: int, length: int) -> np.ndarray: ...


def dataset_folder(dataset: str, data_root: Path) -> Path:
    """A name under data/, or a path. Raises FileNotFoundError, which says how to prepare it, where there is no data."""
    named = data_root / dataset
    folder = named if named.is_dir() else Path(dataset)
    if any((folder / file).is_file() for file in ("meta.json", "train.bin")):
        return folder
    if (named / "prepare.py").is_file():
        raise FileNotFoundError(f"dataset {dataset!r} is not prepared: run python data/{dataset}/prepare.py")
    if folder.is_dir():
        raise FileNotFoundError(f"dataset {folder} holds neither meta.json nor train.bin: prepare it or name another")
    known = sorted(path.parent.name for path in data_root.glob("*/prepare.py"))
    raise FileNotFoundError(f"dataset {dataset!r} is neither a folder nor one of data/: {', '.join(known)}")


def tokenizer_files(folder: Path) -> list[Path]:
    """What a run copies beside its checkpoints, so that they can be sampled from alone."""
    names = ("tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt", "chat_template*", "*.tiktoken")
    return [file for name in names for file in sorted(folder.glob(name)) if file.is_file()]


def permute(index: np.ndarray, n: int, key: int) -> np.ndarray:
    """A bijection of [0, n), chosen by `key`, at each index: a Feistel network over the next even number of bits, walked until
    it lands inside (Black & Rogaway 2002). O(1) memory at any n below 2^62."""
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    round_keys = np.random.SeedSequence(key).generate_state(6, np.uint64)

    def encrypt(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & mask
        for round_key in round_keys:
            mixed = (right ^ round_key) * np.uint64(0x9E3779B97F4A7C15)  # wraps; so do the next two lines of splitmix64
            mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(29))) & mask)
        return (left << half) | right

    out = encrypt(np.asarray(index, dtype=np.uint64))
    while (outside := out >= n).any():
        out[outside] = encrypt(out[outside])
    return out.astype(np.int64)


def training_window(seed: int, sample: np.ndarray, n_windows: int) -> np.ndarray:
    """The window that the global sample number trains on. Samples count from the run's start, over all processes."""
    epoch, position = np.divmod(sample, n_windows)
    window = np.empty_like(position)
    for e in np.unique(epoch):
        here = epoch == e
        window[here] = permute(position[here], n_windows, key=seed * 2**32 + int(e))
    return window


def dropout_seed(seed: int, step: int, micro_step: int) -> int:
    """Seeds torch's generators for one micro-step, so that dropout, too, is a function of the step at any world size."""
    return int(np.random.SeedSequence((seed, step, micro_step)).generate_state(1, np.uint64)[0] >> np.uint64(1))


class BatchLoader:
    """The batches of one process. micro_steps are numbered over all processes; this one has rank, rank + world_size, ….

    Raises ValueError where the split is shorter than one window, or the micro-batches do not divide among the processes."""

    def __init__(
        self,
        tokens: Tokens,
        block_size: int,
        batch_size: int,
        gradient_accumulation_steps: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if gradient_accumulation_steps % world_size:
            raise ValueError(
                f"gradient_accumulation_steps={gradient_accumulation_steps} is not divisible by the {world_size} processes "
                "that share them: change one"
            )
        self.tokens, self.block_size, self.batch_size, self.seed = tokens, block_size, batch_size, seed
        self.micro_steps_per_step = gradient_accumulation_steps
        self.own_micro_steps = range(rank, gradient_accumulation_steps, world_size)
        self.n_windows = count_windows(tokens, block_size)

    def micro_batch(self, step: int, micro_step: int) -> tuple[Tensor, Tensor]:
        """inputs and targets, int64 [batch_size, block_size] each."""
        first = (step * self.micro_steps_per_step + micro_step) * self.batch_size
        samples = np.arange(first, first + self.batch_size)
        return read_windows(self.tokens, training_window(self.seed, samples, self.n_windows), self.block_size)

    def prefetched(self, start_step: int, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
        """This process's micro-batches from `start_step` on, on the device; the next two are read while one is trained on."""

        def load(step: int, micro_step: int) -> tuple[Tensor, Tensor]:
            x, y = self.micro_batch(step, micro_step)
            return (x.pin_memory(), y.pin_memory()) if device.type == "cuda" else (x, y)

        order = ((step, m) for step in itertools.count(start_step) for m in self.own_micro_steps)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="data") as reader:
            pending = [reader.submit(load, *next(order)) for _ in range(2)]
            while True:
                x, y = pending.pop(0).result()
                pending.append(reader.submit(load, *next(order)))
                yield x.to(device, non_blocking=True), y.to(device, non_blocking=True)


def evaluation_batches(
    tokens: Tokens, block_size: int, batch_size: int, n_batches: int, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's share of the evaluation batches: windows that depend on the split and the sizes alone, not on the seed
    or the world size, none twice. Where the split has fewer windows than asked for, all of them; the last batch is then
    filled up with targets of -100."""
    n_windows = count_windows(tokens, block_size)
    windows = permute(np.arange(min(n_batches * batch_size, n_windows)), n_windows, key=0)
    n_batches = -(-len(windows) // batch_size)
    for m in range(rank, n_batches, world_size):
        rows = windows[m * batch_size : (m + 1) * batch_size]
        x, y = read_windows(tokens, np.resize(rows, batch_size), block_size)
        y[len(rows) :] = -100
        yield x, y


def count_windows(tokens: Tokens, block_size: int) -> int:
    n_windows = (tokens.n_tokens - 1) // block_size
    if n_windows < 1:
        raise ValueError(
            f"block_size={block_size} needs {block_size + 1} tokens, the split has {tokens.n_tokens}: "
            "lower block_size or prepare more data"
        )
    return n_windows


def read_windows(tokens: Tokens, windows: np.ndarray, block_size: int) -> tuple[Tensor, Tensor]:
    rows = torch.from_numpy(np.stack([tokens.read(int(w) * block_size, block_size + 1) for w in windows]))
    return rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
