"""One split of one or more datasets in the exact proportions of their weights: --dataset=a:0.7,b:0.3."""

import hashlib
import json
import math
import os
import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import numpy as np

from base.errors import InputError
from tokens.order import permute_within

MAX_SHARES = 1_000_000
MIN_BLOCK_SAMPLES = 4096  # shorter blocks would be more even, and cost a key each
WEIGHT = re.compile(r"(\d{1,18}(\.\d{0,18})?|\.\d{1,18})(e-?\d)?", re.IGNORECASE)


def parse_mixture(dataset: str, data_root: Path) -> tuple[dict[str, Fraction], str | None]:
    """'a' or 'a:0.7,b:0.3' as {name: weight}, the weights exact and summing to 1, and a note where they did
    not. What names a folder is that folder, whatever its name holds; inside a mixture a path may hold
    colons, but no comma."""
    if os.path.isdir(data_root / dataset) or os.path.isdir(dataset) or not set(dataset) & set(",:"):
        return {dataset: Fraction(1)}, None
    weights: dict[str, Fraction] = {}
    for part in dataset.split(","):
        name, _, text = part.strip().rpartition(":")
        name = name.strip()
        weight = Fraction(text.strip()) if WEIGHT.fullmatch(text.strip()) else 0
        if not name or weight <= 0:
            raise InputError(
                f"dataset={dataset!r}: {part.strip()!r} is not name:weight with a weight above 0: write "
                "--dataset=a:0.7,b:0.3"
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


class Tokens(Protocol):
    """What the loader needs of a split: tokens.stream.TokenStream. A mixture also asks for tokenizer,
    eot_id, fingerprint and bytes_per_token."""

    n_tokens: int

    def read(self, start: int, length: int) -> np.ndarray: ...


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
                        f"{ours['sha256'][:12]}) and {theirs['name']!r} ({theirs['sha256'][:12]}): prepare both "
                        "with one"
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

    @property
    def mean_bytes_per_token(self) -> float | None:
        """Of what is drawn; None where a source did not count its bytes."""
        each = [stream.bytes_per_token for stream in self.streams]
        return None if None in each else sum(float(w) * b for w, b in zip(self.weights, each, strict=True))

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


def count_windows(tokens: Tokens, block_size: int, name: str = "the split") -> int:
    n_windows = (tokens.n_tokens - 1) // block_size
    if n_windows < 1:
        raise InputError(
            f"block_size={block_size} needs {block_size + 1} tokens, {name} has {tokens.n_tokens}: "
            "lower block_size or prepare more data"
        )
    return n_windows
