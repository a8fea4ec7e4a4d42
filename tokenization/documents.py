"""What becomes of each document, whatever the pipeline: which split it goes to, and how it ends."""

import hashlib
import math

import numpy as np

SPLITS = ("train", "val")
SPLIT_KEY = b"nanofoundry"


def place_of(key: bytes) -> int:
    """Of a document in [0, 2^64): a keyed hash of its text, or of its path, the same in every order and on every
    machine."""
    return int.from_bytes(hashlib.blake2b(key, key=SPLIT_KEY, digest_size=8).digest(), "big")


def is_below(place: int, fraction: float) -> bool:
    """Whether a document of that place is held out."""
    return place < fraction * 2**64


def is_val(key: bytes, fraction: float) -> bool:
    """Whether a document is held out."""
    return is_below(place_of(key), fraction)


def fraction_up_to(place: int) -> float:
    """The least fraction that holds out a document of that place."""
    return math.nextafter(place / 2**64, 1.0)


def end_documents(ids: np.ndarray, lengths: np.ndarray, eot_id: int) -> tuple[np.ndarray, np.ndarray]:
    """ids [N] of documents of lengths [D] to ids [N + D], each followed by eot_id, and their lengths."""
    lengths = lengths + 1
    ended = np.full(len(ids) + len(lengths), eot_id, dtype=np.uint32)
    is_text = np.ones(len(ended), dtype=bool)
    is_text[np.cumsum(lengths) - 1] = False
    ended[is_text] = ids
    return ended, lengths
