"""Which tokens a process trains on and evaluates: batches that are a pure function of (seed, step,
micro_step, rank).

The order is the same at any world size. Of several datasets each keeps its own epochs, and the samples are
dealt out to them in exact proportion (tokens/mixture.py)."""

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from base.errors import InputError
from operators.loss import IGNORED_TARGET
from tokens.mixture import Mixture, Tokens, as_mixture
from tokens.order import evaluation_windows, training_window

# A permutation of 16 indices costs as much as reading a batch, and one of 1024 not much more
SAMPLES_AT_ONCE = 1024
Batch = tuple[Tensor, ...]  # (inputs, targets), and with document masking (inputs, targets, document_starts)


class BatchLoader:
    """The batches of one process. micro_steps are numbered over all processes; this one has rank, rank +
    world_size, ….

    With an `eot_id` a batch carries its document starts (document_starts()) after inputs and targets.
    Raises InputError where a split is shorter than one window, or the micro-batches do not divide among the
    processes."""

    def __init__(
        self,
        tokens: Tokens | Mixture,
        block_size: int,
        batch_size: int,
        gradient_accumulation_steps: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        eot_id: int | None = None,
    ) -> None:
        if gradient_accumulation_steps % world_size:
            raise InputError(
                f"gradient_accumulation_steps={gradient_accumulation_steps} is not divisible by the "
                f"{world_size} processes that share them: change one"
            )
        self.mixture = as_mixture(tokens)
        self.block_size, self.batch_size, self.seed, self.eot_id = block_size, batch_size, seed, eot_id
        self.micro_steps_per_step = gradient_accumulation_steps
        self.own_micro_steps = range(rank, gradient_accumulation_steps, world_size)
        self.n_windows = self.mixture.windows(block_size)
        self._dealt = lru_cache(maxsize=2)(self._deal)

    def epochs(self, step: int) -> list[float]:
        """How often the run has seen each source by then."""
        samples = step * self.micro_steps_per_step * self.batch_size
        return [samples * float(w) / n for w, n in zip(self.mixture.weights, self.n_windows, strict=True)]

    def micro_batch(self, step: int, micro_step: int) -> Batch:
        """inputs and targets, int64 [batch_size, block_size] each."""
        first = (step * self.micro_steps_per_step + micro_step) * self.batch_size
        chunk, begin = divmod(first, SAMPLES_AT_ONCE)
        end = begin + self.batch_size
        chunks = [self._dealt(chunk + i) for i in range(-(-end // SAMPLES_AT_ONCE))]
        source, window = (np.concatenate(parts)[begin:end] for parts in zip(*chunks, strict=True))
        return read_windows(self.mixture, source, window, self.block_size, self.eot_id)

    def _deal(self, chunk: int) -> tuple[np.ndarray, np.ndarray]:
        """(source, window) of SAMPLES_AT_ONCE consecutive samples."""
        samples = np.arange(chunk * SAMPLES_AT_ONCE, (chunk + 1) * SAMPLES_AT_ONCE)
        source, window = self.mixture.deal(samples, self.seed)
        for i, n_windows in enumerate(self.n_windows):
            here = source == i
            stream = () if len(self.n_windows) == 1 else (i,)
            window[here] = training_window(self.seed, window[here], n_windows, *stream)
        return source, window

    def prefetched(self, start_step: int, device: torch.device) -> Iterator[Batch]:
        """This process's micro-batches from `start_step` on, on the device; the next two are read while one
        is trained on. What goes wrong in the reading is raised here, at the batch that it concerns."""

        def load(step: int, micro_step: int) -> Batch:
            batch = self.micro_batch(step, micro_step)
            return tuple(t.pin_memory() for t in batch) if device.type == "cuda" else batch

        order = ((step, m) for step in itertools.count(start_step) for m in self.own_micro_steps)
        with ThreadPoolExecutor(max_workers=1, thread_name_prefix="data") as reader:
            pending = [reader.submit(load, *next(order)) for _ in range(2)]
            while True:
                batch = pending.pop(0).result()
                pending.append(reader.submit(load, *next(order)))
                yield tuple(t.to(device, non_blocking=True) for t in batch)


def evaluated_windows(tokens: Tokens | Mixture, n: int, block_size: int) -> tuple[np.ndarray, np.ndarray]:
    """(source, window) of each of the n windows that an evaluation takes: a function of the split and the sizes alone,
    none twice. Where the split has fewer, all of them. Of a mixture: its proportions, as far as its shortest source
    goes."""
    mixture = as_mixture(tokens)
    counts, n_windows = mixture.evaluated(n, block_size), mixture.windows(block_size)
    windows = [evaluation_windows(c, of, i) for i, (c, of) in enumerate(zip(counts, n_windows, strict=True))]
    return np.repeat(np.arange(len(counts)), counts), np.concatenate(windows)


def evaluation_batches(
    tokens: Tokens | Mixture,
    block_size: int,
    batch_size: int,
    n: int,
    rank: int = 0,
    world_size: int = 1,
    eot_id: int | None = None,
) -> Iterator[Batch]:
    """This process's share of the n evaluated_windows(), batch_size at a time. The last batch is filled up with
    targets of -100."""
    mixture = as_mixture(tokens)
    source, windows = evaluated_windows(mixture, n, block_size)
    n_batches = -(-len(windows) // batch_size)
    # A rank without a batch of its own takes part with one that counts nothing
    for first in range(0, n_batches, world_size):
        m = first + rank
        rows = slice(m * batch_size, (m + 1) * batch_size)
        full = [
            np.resize(of_all[rows] if m < n_batches else of_all[:1], batch_size)
            for of_all in (source, windows)
        ]
        batch = read_windows(mixture, *full, block_size, eot_id)
        batch[1][len(windows[rows]) :] = IGNORED_TARGET
        yield batch


def read_windows(
    mixture: Mixture, source: np.ndarray, windows: np.ndarray, block_size: int, eot_id: int | None = None
) -> Batch:
    rows = np.empty((len(windows), block_size + 1), dtype=np.int64)
    for row, i, window in zip(rows, source.tolist(), windows.tolist(), strict=True):
        row[:] = mixture.streams[i].read(window * block_size, block_size + 1)
    # Copies: of a single row the two would share memory, and targets are overwritten where they do not count
    x, y = (torch.from_numpy(part.copy()) for part in (rows[:, :-1], rows[:, 1:]))
    return (x, y) if eot_id is None else (x, y, torch.from_numpy(document_starts(rows[:, :-1], eot_id)))


def document_starts(ids: np.ndarray, eot_id: int) -> np.ndarray:
    """int32 [B, T]: for each token of ids [B, T] the column where its document begins in this row. The
    end-of-text id is the last token of its document; a document that began before the window begins, as far
    as the row goes, at 0.

    The target of an end-of-text token, the first token of the next document, stays in the loss, as in
    torchtitan and unlike Hugging Face's flattening collator: from it the model learns what a document
    begins with, which is what sampling without a prompt asks of it, and each step has the same number of
    targets with and without masking, so that a mean over micro-batches stays the mean over the step and
    bits per byte still count every token of the text once."""
    starts = np.zeros(ids.shape, dtype=np.int32)
    starts[:, 1:] = (ids[:, :-1] == eot_id) * np.arange(1, ids.shape[1], dtype=np.int32)
    return np.maximum.accumulate(starts, axis=1)
