"""open_tokens(): one split of a dataset folder, ours, nanoGPT's or llm.c's, checked against the model."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

from base.errors import InputError, MissingFile, reading
from base.files import sha256_of, size_of
from base.text import brief
from tokens.format import (
    PREPARE_AGAIN,
    SHARD_DTYPE,
    check_tokenizer_files,
    contradictions,
    read_meta,
    twice_listed,
    unlisted_shards,
)
from tokens.llmc import is_llmc, open_llmc
from tokens.nanogpt import NANOGPT_DTYPES, is_nanogpt, open_nanogpt
from tokens.stream import TokenStream


def open_tokens(
    folder: str | Path, split: str, vocab_size: int, data_dtype: str | None = None
) -> TokenStream:
    """Opens one split ("train" or "val") of a dataset folder, ours, nanoGPT's or llm.c's, and checks it against
    the model.

    `vocab_size` is the model's rows; `data_dtype` ("uint16" or "uint32") is needed by nanoGPT's folders
    only. Raises InputError, one line, if anything is missing, left over, contradicts meta.json in size,
    vocabulary or tokenizer, or holds an id the model has no row for: whatever would otherwise fail, or
    train to nonsense, hours later. The sha256 of the shards are recomputed where the split is small
    (TokenStream.is_small); of a larger split pieces are read, and `prepare.py --verify` reads the rest."""
    folder = Path(folder)
    if data_dtype is not None and data_dtype not in NANOGPT_DTYPES:
        raise InputError(
            f"data_dtype={data_dtype!r} is unknown: pass --data_dtype=uint16 or --data_dtype=uint32"
        )
    if not os.path.isdir(folder):
        raise MissingFile(
            f"dataset folder {folder} does not exist: prepare it, or name another with --dataset"
        )
    if not os.path.lexists(folder / "meta.json") and is_llmc(folder):
        check_tokenizer_files(folder)
        stream = open_llmc(folder, split, vocab_size, data_dtype)
        stream.scan()
        return stream
    if is_nanogpt(folder):
        check_tokenizer_files(folder)
        stream = open_nanogpt(folder, split, vocab_size, data_dtype)
        stream.scan()
        return stream

    meta = read_meta(folder)
    path = folder / "meta.json"
    if data_dtype not in (None, meta["dtype"]):
        raise InputError(
            f"{path} says dtype {meta['dtype']!r}, but data_dtype={data_dtype!r}: leave --data_dtype out"
        )
    _check_vocabulary(meta, path, vocab_size)
    _check_split(meta, path, split)
    check_tokenizer_files(folder)
    shards = meta["splits"][split]["shards"]
    for shard in shards:
        _check_shard(folder / shard["file"], shard, vocab_size)
    if extra := unlisted_shards(folder, split, {shard["file"] for shard in shards}):
        raise InputError(f"{extra[0]} is not listed in meta.json: remove it, or {PREPARE_AGAIN}")
    _check_tokenizer(folder / "tokenizer.json", meta["tokenizer"])
    stream = _stream(folder, meta, split, vocab_size)
    stream.scan()
    if stream.is_small:
        _check_digests(folder, shards)
    return stream


def _stream(folder: Path, meta: dict[str, Any], split: str, vocab_size: int) -> TokenStream:
    entry = meta["splits"][split]
    shards = entry["shards"]
    identity = [meta["dtype"], [[s["file"], s["tokens"] * SHARD_DTYPE.itemsize, s["sha256"]] for s in shards]]
    return TokenStream(
        paths=[folder / s["file"] for s in shards],
        shard_tokens=[s["tokens"] for s in shards],
        dtype=SHARD_DTYPE,
        vocab_size=vocab_size,
        fingerprint=hashlib.sha256(json.dumps(identity).encode()).hexdigest(),
        max_ids=[s["max_id"] for s in shards],
        bytes_per_token=entry["text_bytes"] / entry["tokens"] or None,
        tokenizer=meta["tokenizer"],
        eot_id=meta["eot_id"],
    )


def _check_vocabulary(meta: dict[str, Any], path: Path, vocab_size: int) -> None:
    if meta["tokenizer"]["length"] > meta["vocab_size"]:
        raise InputError(
            f"{path}: vocab_size {meta['vocab_size']} is smaller than the {meta['tokenizer']['length']} tokens of its "
            f"tokenizer: {PREPARE_AGAIN}"
        )
    if meta["vocab_size"] > vocab_size:
        raise InputError(
            f"{path}: dataset whose vocabulary exceeds the model's: {meta['vocab_size']} rows (tokenizer "
            f"{brief(meta['tokenizer']['name'])}) against vocab_size={vocab_size}: "
            f"set --vocab_size={meta['vocab_size']} or prepare it with the model's tokenizer"
        )


def _check_split(meta: dict[str, Any], path: Path, split: str) -> None:
    """What meta.json says of a split and its shards, against itself."""
    splits = meta["splits"]
    if split not in splits:
        there = ", ".join(name if name.isprintable() else brief(name) for name in splits) or "none"
        raise InputError(f"{path} has no split {split!r}, only {there[:200]}: {PREPARE_AGAIN}")
    entry = splits[split]
    if entry["tokens"] == 0:
        raise InputError(f"{path}: split {split!r} has no tokens")
    if problem := next(contradictions(entry), None):
        raise InputError(f"{path}: split {split!r} {problem}: {PREPARE_AGAIN}")
    for file, other in twice_listed(path.parent, splits):
        also = "" if file == other else f", once as {brief(other)}"
        raise InputError(f"{path} lists {brief(file)} twice{also}: {PREPARE_AGAIN}")


def _check_shard(file: Path, shard: dict[str, Any], vocab_size: int) -> None:
    try:
        size = size_of(file, "restore it or prepare the dataset again")
    except MissingFile:
        raise MissingFile(
            f"{file} is missing, but meta.json lists it: restore it or {PREPARE_AGAIN}"
        ) from None
    expected = shard["tokens"] * SHARD_DTYPE.itemsize
    if size != expected or not size:
        raise InputError(
            f"{file} has {size} bytes, meta.json says {shard['tokens']} tokens, {expected} bytes: "
            "prepare it again"
        )
    if shard["max_id"] >= vocab_size:
        raise InputError(
            f"{file}: recorded max_id {shard['max_id']} has no row in the model's vocab_size={vocab_size}"
        )


def _check_tokenizer(file: Path, tokenizer: dict[str, Any]) -> None:
    if not os.path.lexists(file):
        return
    if (digest := _digest(file)) != tokenizer["sha256"]:
        raise InputError(
            f"{file} is not the tokenizer {brief(tokenizer['name'])} of the shards: its sha256 is {digest[:12]}, "
            f"meta.json says {brief(tokenizer['sha256'], 12)}: restore it or {PREPARE_AGAIN}"
        )


def _check_digests(folder: Path, shards: list[dict[str, Any]]) -> None:
    for shard in shards:
        file, expected = folder / shard["file"], shard["sha256"]
        if (digest := _digest(file)) != expected:
            others = [other["file"] for other in shards if other["sha256"] == digest]
            whose = f"it holds the bytes of {others[0]}" if others else "damaged"
            raise InputError(
                f"{file} is not what meta.json records (sha256 {digest[:12]}, not {brief(expected, 12)}): {whose}; "
                f"restore it or {PREPARE_AGAIN}"
            )


def _digest(file: Path) -> str:
    size_of(file)
    with reading(file):
        return sha256_of(file)
