"""Which tokens a step trains on: a pure function of (seed, step, micro_step, rank), with nothing to save
and nothing to replay. To resume is to set the step.

A split of n tokens holds (n - 1) // T windows of T tokens and their successors. Each epoch visits every
window once, in an order that a keyed permutation gives without storing it; the order is the same at any
world size. Of several datasets each keeps its own epochs, and the samples are dealt out to them in exact
proportion (Mixture)."""

import hashlib
import itertools
import json
import math
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from base.errors import InputError, MissingFile
from model_config import ModelArchitectureConfig
from tokens.shards import open_tokens
from training.config import TrainConfig
from training.world import World


class Tokens(Protocol):
    """What the loader needs of a split: training.shards.TokenStream. A mixture also asks for tokenizer,
    eot_id, fingerprint and bytes_per_token."""

    n_tokens: int

    def read(self, start: int, length: int) -> np.ndarray: ...


def dataset_folder(dataset: str, data_root: Path) -> Path:
    """A name under data/, or a path. Raises FileNotFoundError, which says how to prepare it, where there is
    no data."""
    named = data_root / dataset
    folder = named if named.is_dir() else Path(dataset)
    if any((folder / file).is_file() for file in ("meta.json", "train.bin")):
        return folder
    if (named / "prepare.py").is_file():
        raise MissingFile(f"dataset {dataset!r} is not prepared: run python data/{dataset}/prepare.py")
    if folder.is_dir():
        raise MissingFile(
            f"dataset {folder} holds neither meta.json nor train.bin: prepare it or name another"
        )
    known = sorted(path.parent.name for path in data_root.glob("*/prepare.py"))
    raise MissingFile(f"dataset {dataset!r} is neither a folder nor one of data/: {', '.join(known)}")


WEIGHT = re.compile(r"(\d{1,18}(\.\d{0,18})?|\.\d{1,18})(e-?\d)?", re.IGNORECASE)


def parse_mixture(dataset: str, data_root: Path) -> tuple[dict[str, Fraction], str | None]:
    """'a' or 'a:0.7,b:0.3' as {name: weight}, the weights exact and summing to 1, and a note where they did
    not. What names a folder is that folder, whatever its name holds; inside a mixture a path may hold
    colons, but no comma."""
    if (data_root / dataset).is_dir() or Path(dataset).is_dir() or not set(dataset) & set(",:"):
        return {dataset: Fraction(1)}, None
    weights: dict[str, Fraction] = {}
    for part in dataset.split(","):
        name, _, text = part.strip().rpartition(":")
        name = name.strip()
        weight = Fraction(text.strip()) if WEIGHT.fullmatch(text.strip()) else 0
        if not name or weight <= 0:
            raise InputError(
                f"dataset={dataset!r}: {part.strip()!r} is not name:weight with a weight above 0: write --dataset=a:0.7,b:0.3"
            )
        if name in weights:
            raise InputError(f"dataset={dataset!r} names {name!r} twice: give it one weight")
        weights[name] = weight
    total = sum(weights.values())
    weights = {name: weight / total for name, weight in weights.items()}
    if math.lcm(*(weight.denominator for weight in weights.values())) > MAX_SHARES:
        raise InputError(
            f"dataset={dataset!r}: the weights have no common denominator up to {MAX_SHARES}: round them"
        )
    parts = ", ".join(f"{name} {float(weight):.6g}" for name, weight in weights.items())
    return (
        weights,
        None if total == 1 else f"the weights of dataset sum to {float(total):.6g}; normalised: {parts}",
    )


def tokenizer_files(folder: Path) -> list[Path]:
    """What a run copies beside its checkpoints, so that they can be sampled from alone."""
    names = (
        "tokenizer*",
        "special_tokens_map.json",
        "vocab.json",
        "merges.txt",
        "chat_template*",
        "*.tiktoken",
    )
    return [file for name in names for file in sorted(folder.glob(name)) if file.is_file()]


@lru_cache(
    maxsize=64
)  # of the epochs and blocks that a batch touches; deriving them costs as much as a batch's rounds
def round_keys_of(key: int | tuple[int, ...]) -> np.ndarray:
    return np.random.SeedSequence(key).generate_state(6, np.uint64)


def permute(index: np.ndarray, n: int, key: int | tuple[int, ...]) -> np.ndarray:
    """A bijection of [0, n), chosen by `key`, at each index: a Feistel network over the next even number of
    bits, walked until it lands inside (Black & Rogaway 2002). O(1) memory at any n below 2^62."""
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    mask = np.uint64((1 << int(half)) - 1)
    round_keys = round_keys_of(key)

    def encrypt(x: np.ndarray) -> np.ndarray:
        left, right = x >> half, x & mask
        for round_key in round_keys:
            mixed = (right ^ round_key) * np.uint64(
                0x9E3779B97F4A7C15
            )  # wraps; so do the next two lines of splitmix64
            mixed = (mixed ^ (mixed >> np.uint64(32))) * np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed ^ (mixed >> np.uint64(29))) & mask)
        return (left << half) | right

    out = encrypt(np.asarray(index, dtype=np.uint64))
    while (outside := out >= n).any():
        out[outside] = encrypt(out[outside])
    return out.astype(np.int64)


def permute_within(period: int, index: np.ndarray, seed: int, *stream: int) -> tuple[np.ndarray, np.ndarray]:
    """(index // period, index % period permuted under a key of its own for each quotient). `stream` sets
    apart what shares a seed."""
    quotient, position = np.divmod(index, period)
    for q in set(quotient.tolist()):
        here = quotient == q
        key = seed * 2**32 + q
        position[here] = permute(position[here], period, (key, *stream) if stream else key)
    return quotient, position


def training_window(seed: int, sample: np.ndarray, n_windows: int, *stream: int) -> np.ndarray:
    """The window that the global sample number trains on. Samples count from the run's start, over all
    processes."""
    return permute_within(n_windows, sample, seed, *stream)[1]


MAX_SHARES = 1_000_000
MIN_BLOCK_SAMPLES = 4096  # shorter blocks would be more even, and cost a key each


class Mixture:
    """One split of one or more datasets, drawn in the exact proportions of their weights (which sum to 1).

    Samples come in blocks of `block` = sum(shares): within each, source i has exactly shares[i] of them, in
    an order permuted under the block's key. Sample number -> (source, number among the source's own
    samples) is so a formula: the state is the step, whatever the corpus. Each source permutes its own
    windows, without replacement, epoch by epoch; where an epoch ends inside a block, the block mixes its
    last windows with the next one's first.

    Raises InputError where the tokenizers differ or are not known to be one."""

    def __init__(
        self,
        streams: Sequence[Tokens],
        weights: Sequence[Fraction] = (Fraction(1),),
        names: Sequence[str] = (),
    ):
        self.streams, self.weights, self.names = streams, weights, names or ["the split"]
        parts = math.lcm(*(w.denominator for w in weights))
        parts *= -(-MIN_BLOCK_SAMPLES // parts)
        self.shares = np.array([int(w * parts) for w in weights])
        self.ends = np.cumsum(self.shares)
        self.block = int(self.ends[-1])
        if len(streams) > 1:
            for name, stream in zip(names, streams, strict=True):
                if stream.tokenizer is None:
                    raise InputError(
                        f"{name} has no meta.json, so its tokenizer is unknown: it cannot be mixed"
                    )
                ours, theirs = streams[0].tokenizer, stream.tokenizer
                if (ours["sha256"], streams[0].eot_id) != (theirs["sha256"], stream.eot_id):
                    raise InputError(
                        f"{names[0]} and {name} have different tokenizers, {ours['name']!r} (sha256 "
                        f"{ours['sha256'][:12]}) and {theirs['name']!r} ({theirs['sha256'][:12]}): prepare both with one"
                    )

    @property
    def fingerprint(self) -> str:
        """Of all sources, their weights and their order; a single source's own."""
        if len(self.streams) == 1:
            return self.streams[0].fingerprint
        parts = [
            [stream.fingerprint, str(weight)]
            for stream, weight in zip(self.streams, self.weights, strict=True)
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def windows(self, block_size: int) -> list[int]:
        """Windows of each source. Raises InputError where one has none."""
        return [count_windows(s, block_size, name) for s, name in zip(self.streams, self.names, strict=True)]

    def deal(self, sample: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
        """(source, number among the source's samples) of each global sample number."""
        if len(self.streams) == 1:
            return np.zeros_like(sample), sample
        block, slot = permute_within(
            self.block, sample, seed, len(self.streams)
        )  # sources are the streams 0, 1, … below it
        source = np.searchsorted(self.ends, slot, side="right")
        return source, block * self.shares[source] + slot - (self.ends - self.shares)[source]

    def evaluated(self, n: int, block_size: int) -> list[int]:
        """How many windows of each source make up an evaluation of n: the proportions to the nearest
        window. Where a source has fewer than its part, all parts shrink with it, so that no window counts
        twice and the proportions hold."""
        windows = self.windows(block_size)
        n = min(n, *(w * self.block // int(share) for w, share in zip(windows, self.shares, strict=True)))
        counts, rest = np.divmod(n * self.shares, self.block)
        counts[np.argsort(-rest, kind="stable")[: n - counts.sum()]] += 1  # largest remainder
        return counts.tolist()

    def bytes_per_token(self, n: int, block_size: int) -> float | None:
        """Of the evaluation of n windows; None where a source did not count its bytes."""
        counts = self.evaluated(n, block_size)
        if any(stream.bytes_per_token is None for stream in self.streams):
            return None
        return sum(c * stream.bytes_per_token for c, stream in zip(counts, self.streams, strict=True)) / sum(
            counts
        )


def as_mixture(tokens: "Tokens | Mixture") -> Mixture:
    return tokens if isinstance(tokens, Mixture) else Mixture([tokens])


def dropout_seed(seed: int, step: int, micro_step: int) -> int:
    """Seeds torch's generators for one micro-step, so that dropout, too, is a function of the step at any
    world size."""
    return int(
        np.random.SeedSequence((seed, step, micro_step)).generate_state(1, np.uint64)[0] >> np.uint64(1)
    )


SAMPLES_AT_ONCE = (
    1024  # a permutation of 16 indices costs as much as reading a batch, and one of 1024 not much more
)
Batch = tuple[Tensor, ...]  # (inputs, targets), and with document masking (inputs, targets, document_starts)


class BatchLoader:
    """The batches of one process. micro_steps are numbered over all processes; this one has rank, rank +
    world_size, ….

    With an `eot_id` a batch carries its document starts (document_starts()) behind inputs and targets.
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
                f"gradient_accumulation_steps={gradient_accumulation_steps} is not divisible by the {world_size} processes "
                "that share them: change one"
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


class Dataset:
    """All that one process of a run reads: the prepared folder of config.dataset, or several in proportion
    to their weights.

    Raises FileNotFoundError and ValueError, which say what to do, where something is not prepared or does
    not fit the model."""

    def __init__(
        self, config: TrainConfig, model_config: ModelArchitectureConfig, world: World, data_root: Path
    ) -> None:
        self.name, self.sizes = (
            config.dataset,
            (model_config.block_size, config.batch_size, config.eval_iters),
        )
        self.weights, weights_note = parse_mixture(config.dataset, data_root)
        self.folders = [dataset_folder(name, data_root) for name in self.weights]
        data_dtype = None if config.data_dtype == "auto" else config.data_dtype
        self.splits = {}
        for split in ("train", "val"):
            streams = [
                open_tokens(folder, split, model_config.vocab_size, data_dtype) for folder in self.folders
            ]
            self.splits[split] = Mixture(
                streams, list(self.weights.values()), [f"{name} ({split})" for name in self.weights]
            )
        self.tokenizer, self.eot_id = streams[0].tokenizer, streams[0].eot_id  # one for all of a mixture
        if config.document_masking and self.eot_id is None:
            raise InputError(
                f"document_masking=True: {self.folders[0]} has no meta.json and so no eot_id; set it to False"
            )
        eot_id = self.eot_id if config.document_masking else None
        self.own_share = {"rank": world.rank, "world_size": world.size, "eot_id": eot_id}
        T, B, n = model_config.block_size, config.batch_size, config.eval_iters * config.batch_size
        accumulation = config.gradient_accumulation_steps
        self.loader = BatchLoader(self.splits["train"], T, B, accumulation, config.seed, **self.own_share)
        self.bytes_per_token = self.splits["val"].bytes_per_token(n, T)  # of the evaluations

        self.notes = [weights_note] if weights_note else []
        if self.tokenizer and not tokenizer_files(self.folders[0]):
            self.notes.append(
                f"{self.folders[0]} holds no tokenizer: sample.py will look for its files in {config.out_dir}"
            )
        if len(self.folders) > 1 and (there := sum(self.splits["val"].evaluated(n, T))) < n:
            self.notes.append(
                f"evaluations take {there} windows, not {n}: a val split has no more for its weight"
            )

    def evaluation_batches(self, split: str) -> Iterator[Batch]:
        return evaluation_batches(self.splits[split], *self.sizes, **self.own_share)

    def record(self, max_iters: int) -> dict[str, Any]:
        """For the run log and the checkpoints."""
        streams, epochs = self.splits["train"].streams, self.loader.epochs(max_iters)
        sources = [
            {"dataset": str(folder), "weight": float(weight), "tokens": tokens.n_tokens, "epochs": n}
            for folder, weight, tokens, n in zip(
                self.folders, self.weights.values(), streams, epochs, strict=True
            )
        ]
        return {
            "dataset": str(self.folders[0]) if len(self.folders) == 1 else self.name,
            "sources": sources,
            "fingerprint": self.splits["train"].fingerprint,
            "bytes_per_token": self.bytes_per_token,
            "tokenizer": self.tokenizer,
            "eot_id": self.eot_id,
        }


def evaluation_batches(
    tokens: Tokens | Mixture,
    block_size: int,
    batch_size: int,
    n_batches: int,
    rank: int = 0,
    world_size: int = 1,
    eot_id: int | None = None,
) -> Iterator[Batch]:
    """This process's share of the evaluation batches: windows that depend on the split and the sizes alone,
    not on the seed or the world size, none twice. Where the split has fewer windows than asked for, all of
    them; the last batch is then filled up with targets of -100. Of a mixture: its proportions, as far as
    its shortest source goes."""
    mixture = as_mixture(tokens)
    counts, n_windows = mixture.evaluated(n_batches * batch_size, block_size), mixture.windows(block_size)
    source = np.repeat(np.arange(len(counts)), counts)
    windows = np.concatenate(
        [permute(np.arange(c), n, key=0) for c, n in zip(counts, n_windows, strict=True)]
    )
    n_batches = -(-len(windows) // batch_size)
    for first in range(
        0, n_batches, world_size
    ):  # a rank without a batch of its own takes part with one that counts nothing
        m = first + rank
        rows = slice(m * batch_size, (m + 1) * batch_size)
        full = [
            np.resize(of_all[rows] if m < n_batches else of_all[:1], batch_size)
            for of_all in (source, windows)
        ]
        batch = read_windows(mixture, *full, block_size, eot_id)
        batch[1][len(windows[rows]) :] = -100
        yield batch


def count_windows(tokens: Tokens, block_size: int, name: str = "the split") -> int:
    n_windows = (tokens.n_tokens - 1) // block_size
    if n_windows < 1:
        raise InputError(
            f"block_size={block_size} needs {block_size + 1} tokens, {name} has {tokens.n_tokens}: "
            "lower block_size or prepare more data"
        )
    return n_windows


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
