"""llm.c's token files: a header of 256 int32 (magic, version, number of tokens), then the ids. A folder of them
is a dataset: *_train_*.bin (or *_train.bin, train.bin) and *_val_*.bin."""

import hashlib
import json
import os
import re
from pathlib import Path

import numpy as np

from base.errors import InputError, MissingFile, reading
from base.files import size_of
from tokens.stream import TokenStream

HEADER_BYTES = 256 * 4
# Of token files: the version and the type of the ids
TOKEN_FILES = {20240520: (1, np.dtype("<u2")), 20240801: (7, np.dtype("<u4"))}  # of GPT-2 and of LLaMA 3
OTHER_FILES = {
    20240522: "questions of an evaluation",
    20240326: "weights of a model",
    20240327: "a model's outputs for debugging",
    20240328: "a tokenizer",
}
MAGICS = range(20240000, 20300000)  # dates: of those that are not known here too
FIELDS_BYTES = 64  # after which a header is zeros
EDGE_BYTES = 1 << 20  # of the beginning and of the end of each file, which the fingerprint covers


def magic_of(file: Path) -> int | None:
    """The first int32 of a file that begins with a header of llm.c's kind; else None. Raises InputError where it
    cannot be read."""
    size_of(file)
    with reading(file), open(file, "rb") as f:
        header = f.read(HEADER_BYTES)
    magic = int.from_bytes(header[:4], "little")
    return magic if magic in MAGICS and not header[FIELDS_BYTES:].strip(b"\0") else None


def llmc_files(folder: Path, split: str) -> list[Path]:
    """The files of a split, by name and by header."""
    name = re.compile(rf"(.*[_.-])?{split}([_.-].*)?\.bin")
    return sorted(file for file in folder.glob("*.bin") if name.fullmatch(file.name) and magic_of(file))


def is_llmc(folder: Path) -> bool:
    """Whether a folder without a meta.json holds llm.c's files."""
    return os.path.isdir(folder) and any(llmc_files(folder, split) for split in ("train", "val"))


def open_llmc(folder: Path, split: str, vocab_size: int, data_dtype: str | None) -> TokenStream:
    """One split of a folder of llm.c's files. Raises InputError where there is none, a header contradicts its file
    or the others, or data_dtype is another one."""
    files = llmc_files(folder, split)
    if not files:
        raise MissingFile(f"{folder} holds llm.c's files, but no *_{split}_*.bin among them: add one")
    if both := set(files) & set(llmc_files(folder, "val" if split == "train" else "train")):
        raise InputError(f"{min(both)} is of train and of val by its name: rename it")
    headers = [read_header(file) for file in files]
    dtype = headers[0][0]
    for file, (other, _) in zip(files, headers, strict=True):
        if other != dtype:
            raise InputError(
                f"{file} holds {other}, {files[0]} holds {dtype}: keep one kind of files in the folder"
            )
    if data_dtype not in (None, dtype.name):
        raise InputError(
            f"{files[0]} says by its header that it is {dtype.name}, but data_dtype={data_dtype!r}: leave "
            "--data_dtype out"
        )
    digest = hashlib.sha256()
    for file in files:
        size = size_of(file)
        with reading(file), open(file, "rb") as f:
            first = f.read(EDGE_BYTES)
            f.seek(max(0, size - EDGE_BYTES))
            digest.update(json.dumps([dtype.name, file.name, size]).encode() + first + f.read(EDGE_BYTES))
    lengths = [n_tokens for _, n_tokens in headers]
    return TokenStream(files, lengths, dtype, vocab_size, digest.hexdigest(), offset_bytes=HEADER_BYTES)


def read_header(file: Path) -> tuple[np.dtype, int]:
    """(the type of the ids, their number) of one of llm.c's files. Raises InputError where it holds something other
    than tokens, is of another version, or is not as long as it says."""
    size = size_of(file)
    with reading(file), open(file, "rb") as f:
        content = f.read(HEADER_BYTES)
    header = np.frombuffer(content[: len(content) // 4 * 4], "<i4")
    if len(header) < 3:
        raise InputError(f"{file} is cut off within llm.c's header: restore it")
    magic, version, n_tokens = map(int, header[:3])
    if magic not in TOKEN_FILES:
        what = OTHER_FILES.get(magic, f"something unknown (magic {magic})")
        raise InputError(f"{file} holds {what} in llm.c's format, not tokens to train on: remove it")
    known, dtype = TOKEN_FILES[magic]
    if version != known:
        raise InputError(
            f"{file} is version {version} of llm.c's format {magic}, this code reads {known}: write it again"
        )
    expected = HEADER_BYTES + n_tokens * dtype.itemsize
    if n_tokens < 1 or size != expected:
        raise InputError(
            f"{file} has {size} bytes, but its header says {n_tokens} tokens of {dtype.name}, {expected} bytes: "
            "restore it"
        )
    return dtype, n_tokens
