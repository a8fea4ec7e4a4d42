"""What an evaluation measures: numbers of different measurements are never ranked.

The windows follow from the data, block_size and eval_tokens alone (tokens.loader.evaluated_windows); a run log and a
checkpoint say which they were, of which split, read how."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch

from tokenization.text_bytes import TextOfIds, text_of_ids
from tokens.dataset import Dataset
from tokens.loader import evaluated_windows
from training.config import TrainConfig
from training.world import World

WINDOWS_AT_ONCE = 1024
WHOLE = 0.99
# What two measurements have in common where their numbers may be ranked, and how it is called
IDENTITY = {
    "split": "held-out data",
    "windows": "evaluated windows",
    "block_size": "block_size",
    "document_masking": "document_masking",
    "dtype": "dtype",
}


def measurement(dataset: Dataset, config: TrainConfig, dtype: torch.dtype, world: World) -> dict[str, Any]:
    """Of the val split: IDENTITY; `tokens` and `bytes` of text in the windows, None where they were not counted;
    `whole`, whether those are all windows of the split; `text`, then the digest of the split's text, which is the same
    by every tokenizer. Whole is all but a hundredth: what follows the last window, and the first token, are not
    evaluated. Rank 0 reads, every rank calls."""
    mixture = dataset.splits["val"]
    taken = mixture.evaluated(dataset.evaluated, dataset.block_size)
    sizes = [stream.n_tokens for stream in mixture.streams]
    whole = all(n * dataset.block_size >= WHOLE * size for n, size in zip(taken, sizes, strict=True))

    def count() -> str:
        text = text_of_ids(dataset.folders[0], dataset.eot_id)
        n_bytes = text and bytes_of_windows(dataset, text)
        return json.dumps([n_bytes, text.digest(ids_of(dataset)) if text and text.exact and whole else None])

    n_bytes, digest = json.loads(world.first(world.by_rank_0(count)))
    return {
        "split": mixture.fingerprint,
        "windows": sum(taken),
        "block_size": dataset.block_size,
        "document_masking": config.document_masking,
        "dtype": str(dtype).removeprefix("torch.")
        + (f" with {config.fp8} fp8" if config.fp8 != "none" else ""),
        "tokens": sum(taken) * dataset.block_size,
        "bytes": n_bytes,
        "whole": whole,
        "text": digest,
    }


def same(a: Mapping[str, Any] | None, b: Mapping[str, Any] | None) -> bool:
    """Whether the numbers of two measurements may be ranked; None is one that nobody recorded."""
    return a is not None and b is not None and all(a.get(name) == b.get(name) for name in IDENTITY)


def bytes_of_windows(dataset: Dataset, text: TextOfIds) -> int:
    """Of the targets of all evaluated windows of the val split."""
    mixture, T = dataset.splits["val"], dataset.block_size
    source, window = evaluated_windows(mixture, dataset.evaluated, T)
    total = 0
    for first in range(0, len(window), WINDOWS_AT_ONCE):
        part = slice(first, first + WINDOWS_AT_ONCE)
        pairs = zip(source[part].tolist(), window[part].tolist(), strict=True)
        rows = np.stack([mixture.streams[i].read(w * T, T + 1) for i, w in pairs])
        total += text.count(rows[:, :-1], rows[:, 1:])
    return total


def ids_of(dataset: Dataset) -> Iterator[np.ndarray]:
    """All ids of the val split, source by source, in parts."""
    size = WINDOWS_AT_ONCE * dataset.block_size
    for stream in dataset.splits["val"].streams:
        for first in range(0, stream.n_tokens, size):
            yield stream.read(first, min(size, stream.n_tokens - first))
