"""Small datasets and token streams for the tests of tokens/."""

import json
from pathlib import Path

import numpy as np

from tokens.format import write_meta
from tokens.loader import BatchLoader
from tokens.mixture import Mixture, parse_mixture
from tokens.writer import ShardWriter

VOCAB = 200_000  # beyond uint16
EOT = VOCAB - 1
SHARD = 100
TOKENIZER = {"name": "toy", "length": VOCAB, "sha256": "0" * 64}


def make_documents(n, seed=0):
    """n documents of 1 to 249 ids, each ending in EOT: with shards of 100 some cross one boundary and some
    cross two."""
    rng = np.random.default_rng(seed)
    return [np.append(rng.integers(0, EOT, rng.integers(0, 249)), EOT) for _ in range(n)]


def write_split(folder, split, documents, shard_tokens=SHARD):
    writer = ShardWriter(folder, split, shard_tokens)
    for ids in documents:
        writer.add(ids, text_bytes=3 * len(ids))
    return writer.finish()


def write_dataset(folder):
    """train: 30 documents over many shards; val: 2 documents. Returns the ids of each split."""
    documents = {"train": make_documents(30), "val": make_documents(2, seed=1)}
    splits = {split: write_split(folder, split, d) for split, d in documents.items()}
    write_meta(folder, vocab_size=VOCAB, tokenizer=TOKENIZER, eot_id=EOT, splits=splits)
    return {split: np.concatenate(d) for split, d in documents.items()}


def edit_meta(folder, edit):
    meta = json.loads((folder / "meta.json").read_text())
    edit(meta)
    (folder / "meta.json").write_text(json.dumps(meta))


def poke(path, position, value, dtype="<u4"):
    ids = np.memmap(path, dtype=dtype, mode="r+")
    ids[position] = value
    ids.flush()


class Ramp:
    """Tokens that are their own positions."""

    def __init__(self, n_tokens: int) -> None:
        self.n_tokens = n_tokens

    def read(self, start: int, length: int) -> np.ndarray:
        assert start >= 0 and start + length <= self.n_tokens
        return np.arange(start, start + length, dtype=np.int64)


class Source(Ramp):
    """A ramp that begins at `base`, with what a mixture asks of a stream."""

    eot_id = 0

    def __init__(
        self, n_tokens: int, base: int, sha256: str = "a", bytes_per_token: float | None = 3.0
    ) -> None:
        super().__init__(n_tokens)
        self.base, self.fingerprint, self.bytes_per_token = base, f"f{base}", bytes_per_token
        self.tokenizer = {"name": f"tokenizer {sha256}", "length": 9, "sha256": sha256}

    def read(self, start: int, length: int) -> np.ndarray:
        return self.base + super().read(start, length)


BASE = 10**6


def mixture(
    weights: str = "a:0.7,b:0.2,c:0.1", windows: tuple[int, ...] = (5000, 300, 2000), T: int = 4
) -> Mixture:
    parsed, _ = parse_mixture(weights, Path("no such root"))
    streams = [Source(n * T + 1, i * BASE) for i, n in enumerate(windows[: len(parsed)])]
    return Mixture(streams, list(parsed.values()), list(parsed))


def windows_of(loaders: list[BatchLoader], steps: range) -> list[list[int]]:
    """The first token of every row, in global order, a list for each step."""
    return [
        [
            w
            for m in range(loaders[0].micro_steps_per_step)
            for w in loaders[m % len(loaders)].micro_batch(s, m)[0][:, 0].tolist()
        ]
        for s in steps
    ]
