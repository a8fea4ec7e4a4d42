"""What a dataset folder holds, and its meta.json.

    train_00000.bin …, val_00000.bin …   little-endian uint32 ids and nothing else, so that
                                         np.memmap(path, dtype=np.uint32, mode="r") is a reader
    meta.json                            sizes, digests, vocabulary; written last, so without it the folder is
                                         unfinished

uint32 because the ids of Qwen3 and LLaMA 3 do not fit in uint16.

    writer = ShardWriter(folder, "train")                           # tokens/writer.py
    writer.add(ids, text_bytes)                                     # one document, end-of-text id included
    write_meta(folder, vocab_size=…, tokenizer=…, eot_id=…, splits={"train": writer.finish()})
    tokens = open_tokens(folder, "train", vocab_size)               # tokens/reader.py
    tokens.read(start, length)                                      # int64 [length]
"""

import os
from pathlib import Path
from typing import Any

import numpy as np

from base.errors import InputError, MissingFile
from base.files import count_entry, entry, read_json, write_json
from base.text import brief

FORMAT_VERSION = 1
SHARD_DTYPE = np.dtype("<u4")
META_MAX_BYTES = 64 << 20  # some 300,000 shards; 627 B tokens are 6,270 shards
PREPARE_AGAIN = "prepare the dataset again"


def write_meta(
    folder: str | Path,
    *,
    vocab_size: int,
    tokenizer: dict[str, Any],
    eot_id: int,
    splits: dict[str, dict[str, Any]],
    source: str | None = None,
    preparation: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Writes meta.json, which makes the folder a dataset, and returns what it holds.

    `vocab_size` is the model's rows, which may exceed the tokenizer's length; `tokenizer` is {name, length,
    sha256}; `splits` maps train and val to what ShardWriter.finish() returned; `source` says in words where
    the text is from; `preparation` is whatever else a pipeline wants to remember. Raises InputError if an
    id of the shards, or eot_id, has no row."""
    top_ids = [(s["file"], s["max_id"]) for split in splits.values() for s in split["shards"]]
    for what, top_id in [("eot_id", eot_id), *top_ids]:
        if not 0 <= top_id < vocab_size:
            raise InputError(f"{what}: id {top_id} has no row in a vocabulary of {vocab_size}")
    meta = {"format_version": FORMAT_VERSION, "dtype": "uint32", "vocab_size": vocab_size}
    meta |= {"tokenizer": tokenizer, "eot_id": eot_id, "source": source, "splits": splits}
    if preparation is not None:
        meta["preparation"] = preparation
    write_json(Path(folder) / "meta.json", meta)
    return meta


def read_meta(folder: str | Path) -> dict[str, Any]:
    """The content of meta.json, with the keys above and values of their types, whatever else it holds.
    Raises InputError."""
    path = Path(folder) / "meta.json"
    if not os.path.lexists(path):
        raise MissingFile(f"{path} is missing, so the dataset is not finished: run its prepare.py again")
    meta = read_json(path, PREPARE_AGAIN, META_MAX_BYTES)
    check_meta(meta, path)
    return meta


def check_meta(meta: Any, path: str | Path) -> None:
    """Raises InputError, which begins with `path`, for what is not the content of a meta.json."""
    version = _count(meta, "format_version", path)
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} has format_version {version}, this code reads {FORMAT_VERSION}: {PREPARE_AGAIN}"
        )
    dtype = entry(meta, "dtype", str, path, PREPARE_AGAIN)
    if dtype != "uint32":
        raise InputError(f"{path} has dtype {brief(dtype)}, but shards are uint32: {PREPARE_AGAIN}")
    _count(meta, "vocab_size", path)
    _count(meta, "eot_id", path)
    tokenizer = entry(meta, "tokenizer", dict, path, PREPARE_AGAIN)
    _count(tokenizer, "length", f"{path}: tokenizer")
    for key in ("name", "sha256"):
        entry(tokenizer, key, str, f"{path}: tokenizer", PREPARE_AGAIN)
    for name, split in entry(meta, "splits", dict, path, PREPARE_AGAIN).items():
        _check_split(split, f"{path}: split {brief(name)}")


def _check_split(split: Any, where: str) -> None:
    for key in ("tokens", "documents", "text_bytes"):
        _count(split, key, where)
    for i, shard in enumerate(entry(split, "shards", list, where, PREPARE_AGAIN)):
        of_shard = f"{where}, shard {i}"
        file = entry(shard, "file", str, of_shard, PREPARE_AGAIN)
        for key in ("tokens", "documents", "max_id"):
            _count(shard, key, of_shard)
        entry(shard, "sha256", str, of_shard, PREPARE_AGAIN)
        if Path(file).name != file or file in ("", "..") or not file.isprintable():
            raise InputError(
                f"{of_shard}: file {brief(file)} is a path or not a name, but shards lie beside meta.json"
            )


def _count(record: Any, key: str, where: object) -> int:
    return count_entry(record, key, where, PREPARE_AGAIN)


def unlisted_shards(folder: Path, split: str, listed: set[str]) -> list[Path]:
    """Shards of a split that lie in the folder and that meta.json does not list, in order."""
    names = (name for name in os.listdir(folder) if name.startswith(f"{split}_") and name.endswith(".bin"))
    return [folder / name for name in sorted(names) if name not in listed]
