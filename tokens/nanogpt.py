"""nanoGPT's dataset folders: `train.bin` and `val.bin`, one file a split, and meta.pkl where the data is
character-level. They do not say their dtype, so the caller must (`data_dtype`): the wrong one gives losses
that look good. Of meta.pkl plain values are read and nothing is executed (tokens/plain_values.py)."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from base.errors import InputError, MissingFile, reading
from base.files import size_of
from tokens.llmc import magic_of
from tokens.plain_values import plain_values
from tokens.stream import TokenStream

NANOGPT_DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}
EDGE_BYTES = 1 << 20  # of the beginning and of the end, which a fingerprint covers
META_PKL_MAX_BYTES = 64 << 20


def is_nanogpt(folder: Path) -> bool:
    """Whether a folder is in nanoGPT's format."""
    there = {name for name in ("train.bin", "val.bin", "meta.json") if os.path.lexists(folder / name)}
    return bool(there) and "meta.json" not in there


def open_nanogpt(folder: Path, split: str, vocab_size: int, data_dtype: str | None) -> TokenStream:
    """One split of nanoGPT's folder. Raises InputError if it is missing, has no dtype or another one, or
    does not fit the model's vocabulary."""
    path = folder / f"{split}.bin"
    try:
        size = size_of(path)
    except MissingFile:
        raise MissingFile(f"{path} is missing: {folder} is in nanoGPT's format, one file a split") from None
    if magic_of(path):  # of one split alone, else the folder would be llm.c's
        raise InputError(
            f"{path} begins with a header of llm.c, whose files need the header of each split: restore it"
        )
    if data_dtype is None:
        raise InputError(
            f"{folder} has no meta.json and so no dtype: pass --data_dtype=uint16 (nanoGPT's format)"
        )
    recorded = read_nanogpt_meta(folder).get("vocab_size", 0)
    if recorded > vocab_size:
        raise InputError(
            f"{folder / 'meta.pkl'} has vocab_size {recorded}, the model {vocab_size}: "
            f"set --vocab_size={recorded}"
        )
    dtype = NANOGPT_DTYPES[data_dtype]
    if size == 0 or size % dtype.itemsize:
        raise InputError(
            f"{path} has {size} bytes, which is not a whole number, at least one, of {data_dtype} ids"
        )

    with reading(path), open(path, "rb") as f:
        first = f.read(EDGE_BYTES)
        f.seek(max(0, size - EDGE_BYTES))
        last = f.read(EDGE_BYTES)
    if data_dtype == "uint16":
        _refuse_uint32_as_uint16(path, np.frombuffer(first, dtype), vocab_size)
    digest = hashlib.sha256(json.dumps([data_dtype, path.name, size]).encode() + first + last)
    return TokenStream([path], [size // dtype.itemsize], dtype, vocab_size, digest.hexdigest())


def _refuse_uint32_as_uint16(path: Path, ids: np.ndarray, vocab_size: int) -> None:
    """Each half of a uint32 id is a valid uint16 id, so no range check sees it; but its upper halves are
    nearly all 0."""
    upper = ids[1::2]
    if len(upper) >= 512 and upper.max() <= (vocab_size - 1) >> 16:
        raise InputError(
            f"{path}: every second uint16 is at most {upper.max()}, so these are uint32: "
            "pass --data_dtype=uint32"
        )


def read_nanogpt_meta(folder: str | Path) -> dict[str, Any]:
    """nanoGPT's meta.pkl, {vocab_size, stoi, itos} of its character-level datasets, without executing any
    of it; {} where there is none. Raises InputError for anything but plain values. It names no dtype:
    --data_dtype does."""
    path = Path(folder) / "meta.pkl"
    if not os.path.lexists(path):
        return {}
    size = size_of(path, "remove it")
    if size > META_PKL_MAX_BYTES:
        raise InputError(f"{path} has {size} bytes, more than a vocabulary needs: remove it")
    with reading(path):
        content = path.read_bytes()
    meta = plain_values(content, path)
    vocab_size = meta.get("vocab_size", 0) if isinstance(meta, dict) else None
    if type(vocab_size) is not int or not 0 <= vocab_size < 2**32:
        raise InputError(
            f"{path} is not a dictionary with a whole number of 32 bits as vocab_size: remove it"
        )
    return meta
