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

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from base.errors import InputError, MissingFile
from base.files import count_entry, entry, read_json, size_of, write_json
from base.text import brief, printable

FORMAT_VERSION = 1
SHARD_DTYPE = np.dtype("<u4")
META_MAX_BYTES = 64 << 20  # some 300,000 shards; 627 B tokens are 6,270 shards
TOKENIZER_MAX_BYTES = 1 << 30
MOST_BYTES_PER_TOKEN = 1024  # the longest tokens of vocabularies are runs of some hundred spaces
LEAST_BYTES_PER_TOKEN = 1 / 16  # normalization may make 33 bytes of 3, each of them a token
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
    vocab_size = _count(meta, "vocab_size", path)
    eot_id = _count(meta, "eot_id", path)
    tokenizer = entry(meta, "tokenizer", dict, path, PREPARE_AGAIN)
    length = _count(tokenizer, "length", f"{path}: tokenizer")
    if eot_id >= vocab_size or eot_id >= length:
        raise InputError(
            f"{path}: eot_id {eot_id} has no row in its vocabulary of {vocab_size}, or no token among the "
            f"{length} of its tokenizer: {PREPARE_AGAIN}"
        )
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


def contradictions(split: dict[str, Any]) -> Iterator[str]:
    """Where the counts of a split, which are whole numbers, cannot be true together."""
    for key in ("tokens", "documents"):
        total = sum(shard[key] for shard in split["shards"])
        if total != split[key]:
            yield f"says {split[key]} {key}, its shards sum to {total}"
    of_text = split["tokens"] - split["documents"]  # without the end-of-text ids
    if of_text < 0:
        yield f"says {split['documents']} documents, but {split['tokens']} tokens, and each document ends with one"
    elif not of_text * LEAST_BYTES_PER_TOKEN <= split["text_bytes"] <= split["tokens"] * MOST_BYTES_PER_TOKEN:
        yield f"says {split['text_bytes']} bytes of text for {split['tokens']} tokens, which cannot be"


def twice_listed(folder: Path, splits: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """(a shard's file, the file before it that it is): one name, or two names of one file, as links and file systems
    without case give it."""
    seen: dict[object, str] = {}
    for split in splits.values():
        for shard in split["shards"]:
            names = [shard["file"]]
            with contextlib.suppress(OSError):  # a missing shard is named where it is opened
                status = os.stat(folder / shard["file"])
                names.append((status.st_dev, status.st_ino))
            if other := next((seen[name] for name in names if name in seen), None):
                yield shard["file"], other
            seen.update(dict.fromkeys(names, shard["file"]))


def _count(record: Any, key: str, where: object) -> int:
    return count_entry(record, key, where, PREPARE_AGAIN)


def tokenizer_files(folder: Path) -> list[Path]:
    """What a run copies beside its checkpoints, so that they can be sampled from alone."""
    names = (
        "tokenizer*",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "merges.txt",
        "tekken.json",
        "chat_template*",
        "additional_chat_templates/*.jinja",
        "*.tiktoken",
        "generation_config.json",  # of a run that began with a model which had one
    )
    return [file for name in names for file in sorted(folder.glob(name)) if file.is_file()]


def check_tokenizer_files(folder: Path) -> None:
    """Raises InputError for a tokenizer's file that is a link out of the folder, to what nobody meant to copy into a
    run and to publish, or that is too large for one."""
    inside = os.path.realpath(folder)
    for file in tokenizer_files(folder):
        target = os.path.realpath(file)
        if not target.startswith(inside + os.sep):
            raise InputError(
                f"{file} is a link out of the folder, to {printable(target)}, and a run would copy that: put the file "
                "itself there"
            )
        if (size := size_of(file)) > TOKENIZER_MAX_BYTES:
            raise InputError(f"{file} has {size:,} bytes, more than a tokenizer's file has: remove it")


def unlisted_shards(folder: Path, split: str, listed: set[str]) -> list[Path]:
    """Shards of a split that lie in the folder and that meta.json does not list, in order."""
    names = (name for name in os.listdir(folder) if name.startswith(f"{split}_") and name.endswith(".bin"))
    return [folder / name for name in sorted(names) if name not in listed]
