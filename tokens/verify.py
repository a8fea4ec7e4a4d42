"""Whether a dataset folder still is what was written: every shard is read again."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from base.errors import InputError, one_line, reading
from base.files import sha256_of
from base.text import brief
from tokens.format import (
    SHARD_DTYPE,
    check_tokenizer_files,
    contradictions,
    read_meta,
    twice_listed,
    unlisted_shards,
)

READ_BYTES = 4 << 20


def verify(folder: str | Path, say: Callable[[str], None] = lambda line: None) -> list[str]:
    """Reads every shard again and compares it with meta.json: size, digest, largest id, end-of-text ids
    against documents; then looks for shards that meta.json does not list, and for another tokenizer.
    Returns the problems, one line each, none if all is as it was written; `say` hears of each shard. Raises
    InputError where meta.json itself is wrong."""
    folder = Path(folder)
    meta = read_meta(folder)
    shards = [(split, shard) for split, entry in meta["splits"].items() for shard in entry["shards"]]
    file_of = {shard["sha256"]: shard["file"] for _, shard in shards}
    listed = {shard["file"] for _, shard in shards}
    problems = [
        f"{folder / 'meta.json'}: lists {file} twice" + (f", once as {other}" if file != other else "")
        for file, other in twice_listed(folder, meta["splits"])
    ]
    for split, shard in shards:
        file = folder / shard["file"]
        found = shard_problems(file, shard, meta["vocab_size"], meta["eot_id"], file_of)
        problems += [f"{file}: {problem}" for problem in found]
        say(f"{split} {shard['file']}")
    for split, entry in meta["splits"].items():
        problems += [f"{folder / 'meta.json'}: split {brief(split)} {c}" for c in contradictions(entry)]
        for file in unlisted_shards(folder, split, listed):
            problems.append(f"{file}: not listed in meta.json, so no run reads it: remove it")
    problems += tokenizer_problems(folder, meta)
    return problems


def shard_problems(
    file: Path, shard: dict[str, Any], vocab_size: int, eot_id: int, file_of: dict[str, str]
) -> Iterator[str]:
    """`file_of` names the shard that a digest belongs to."""
    if not os.path.isfile(file):
        yield (
            "not a file, but meta.json lists it"
            if os.path.exists(file)
            else "missing, but meta.json lists it"
        )
        return
    try:
        found = scan_shard(file, eot_id)
    except InputError as error:
        yield one_line(error).removeprefix(f"{file} ")
        return
    expected = shard["tokens"] * SHARD_DTYPE.itemsize
    if found["bytes"] != expected:
        yield f"{found['bytes']} bytes, meta.json says {shard['tokens']} tokens, {expected} bytes"
    if found["max_id"] >= vocab_size:
        yield f"holds id {found['max_id']}, but vocab_size is {vocab_size}"
    if found["sha256"] != shard["sha256"]:
        other = file_of.get(found["sha256"])
        yield (
            f"holds the content of {other}"
            if other
            else "its content has changed: the sha256 differs from meta.json's"
        )
    elif found["max_id"] != shard["max_id"]:
        yield f"its largest id is {found['max_id']}, meta.json says {shard['max_id']}"
    elif found["documents"] != shard["documents"]:
        yield f"{found['documents']} end-of-text ids, meta.json says {shard['documents']} documents"


def scan_shard(file: Path, eot_id: int) -> dict[str, Any]:
    """{bytes, sha256, max_id, documents} of what the file holds. Raises InputError where it cannot be read."""
    sha256, n_bytes, max_id, documents = hashlib.sha256(), 0, 0, 0
    with reading(file), open(file, "rb") as f:
        while block := f.read(READ_BYTES):
            sha256.update(block)
            n_bytes += len(block)
            ids = np.frombuffer(block[: len(block) // 4 * 4], SHARD_DTYPE)
            max_id = max(max_id, int(ids.max(initial=0)))
            documents += int(np.count_nonzero(ids == eot_id))
    return {"bytes": n_bytes, "sha256": sha256.hexdigest(), "max_id": max_id, "documents": documents}


def tokenizer_problems(folder: Path, meta: dict[str, Any]) -> Iterator[str]:
    file = folder / "tokenizer.json"
    if not os.path.isfile(file):
        yield f"{file}: missing, so nothing can be read back as text"
    else:
        with reading(file):
            digest = sha256_of(file)
        if digest != meta["tokenizer"]["sha256"]:
            yield f"{file}: not the tokenizer that made the shards: its sha256 differs from meta.json's"
    try:
        check_tokenizer_files(folder)
    except InputError as error:
        yield one_line(error)
    if meta["tokenizer"]["length"] > meta["vocab_size"]:
        yield f"{folder / 'meta.json'}: vocab_size {meta['vocab_size']} is smaller than its tokenizer"
