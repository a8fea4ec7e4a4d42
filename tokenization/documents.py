"""What becomes of each document, whatever the pipeline: which split it goes to, and how it ends."""

import hashlib

import numpy as np

SPLITS = ("train", "val")
SPLIT_KEY = b"nanofoundry"


def is_val(key: bytes, fraction: float) -> bool:
    """Whether a document is held out: a keyed hash of its text, or of its path, so that it is on the same
    side in every order and on every machine."""
    digest = hashlib.blake2b(key, key=SPLIT_KEY, digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def end_documents(ids: np.ndarray, lengths: np.ndarray, eot_id: int) -> tuple[np.ndarray, np.ndarray]:
    """ids [N] of documents of lengths [D] to ids [N + D], each followed by eot_id, and their lengths."""
    lengths = lengths + 1
    ended = np.full(len(ids) + len(lengths), eot_id, dtype=np.uint32)
    is_text = np.ones(len(ended), dtype=bool)
    is_text[np.cumsum(lengths) - 1] = False
    ended[is_text] = ids
    return ended, lengths
