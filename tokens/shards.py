"""The token shard format, writer and reader. What a dataset folder holds:

    train_00000.bin …, val_00000.bin …   little-endian uint32 ids and nothing else, so that
                                         np.memmap(path, dtype=np.uint32, mode="r") is a reader
    meta.json                            sizes, digests, vocabulary; written last: without it the folder is unfinished

uint32 because Qwen3's and LLaMA-3's ids do not fit in uint16. nanoGPT's `train.bin` / `val.bin` are read
too; they do not say their dtype, so the caller must (`data_dtype`): the wrong one gives losses that look
good. Of nanoGPT's `meta.pkl` plain values are read and nothing is executed.

    writer = ShardWriter(folder, "train")
    writer.add(ids, text_bytes)                # one document, end-of-text id included
    write_meta(folder, vocab_size=…, tokenizer=…, eot_id=…, splits={"train": writer.finish()})
    tokens = open_tokens(folder, "train", vocab_size)
    tokens.read(start, length)                 # int64 [length]
"""

import hashlib
import io
import json
import os
import pickle
import pickletools
from bisect import bisect_right
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from base.errors import InputError, MissingFile

FORMAT_VERSION = 1
SHARD_DTYPE = np.dtype("<u4")
NANOGPT_DTYPES = {"uint16": np.dtype("<u2"), "uint32": np.dtype("<u4")}

WRITE_CHUNK_TOKENS = 1 << 20  # ids are converted and written in pieces of 4 MiB, however long the document
SCAN_WHOLE_BYTES = 256 << 20  # a split up to this size is scanned whole when it is opened
SCAN_PIECE_BYTES = 1 << 20  # a larger one in 64 pieces of 1 MiB, the first and the last among them
SCAN_PIECES = 64
MAX_OPEN_SHARDS = (
    256  # each map holds a file descriptor, of which a process often gets 1024; 627 B tokens are 6,270 shards
)


class ShardWriter:
    """Streams the documents of one split into shards of `shard_tokens` ids; a document may cross from one
    into the next.

    A shard appears under its name only when it is complete (write, fsync, rename). Its `documents` are
    those that end in it, which is the number of its end-of-text ids. One writer a split and folder at a
    time: the temporary name is fixed, so that a killed run leaves at most one file behind and the next run
    overwrites it, or goes on with it:

        state = writer.commit()                                         # JSON; what was added so far is on disk
        writer = ShardWriter(folder, "train", shard_tokens, state)      # in another process: as if it had never stopped
    """

    def __init__(
        self,
        folder: str | Path,
        split: str,
        shard_tokens: int = 100_000_000,
        state: dict[str, Any] | None = None,
    ) -> None:
        if shard_tokens < 1:
            raise InputError(f"shard_tokens={shard_tokens} must be at least 1")
        self._folder = Path(folder)
        self._folder.mkdir(parents=True, exist_ok=True)
        self._split = split
        self._shard_tokens = shard_tokens
        self._shards: list[dict[str, Any]] = []
        self._file = None
        self._documents = 0
        self._text_bytes = 0
        self._finished = False
        if state is not None:
            self._resume(state)

    @property
    def tokens(self) -> int:
        return sum(s["tokens"] for s in self._shards) + (self._shard["tokens"] if self._file else 0)

    def add(self, ids: np.ndarray, text_bytes: int, lengths: np.ndarray | None = None) -> None:
        """Appends documents: ids [T] of any integer dtype, their end-of-text ids included; `text_bytes` is
        the UTF-8 length of all. `lengths` [D] cuts ids into documents; without it they are one.

        Raises InputError, before anything is written, if a document is empty, or ids not integers, negative
        or beyond uint32."""
        assert not self._finished, "add() after finish()"
        ids = np.asarray(ids)
        lengths = np.array([ids.size]) if lengths is None else np.asarray(lengths)
        where = f"document {self._documents} of split '{self._split}'"
        if ids.ndim != 1 or (lengths < 1).any() or lengths.sum() != len(ids):
            raise InputError(
                f"{where} has shape {ids.shape}: a document is a row of at least one id, its end-of-text id included"
            )
        if ids.dtype.kind not in "iu":
            raise InputError(f"{where} has dtype {ids.dtype}: ids are integers")
        if len(ids) and (ids.min() < 0 or ids.max() > 0xFFFFFFFF):
            bad = ids.min() if ids.min() < 0 else ids.max()
            raise InputError(f"{where} holds id {bad}, which uint32 cannot: ids lie in [0, {0xFFFFFFFF}]")
        if text_bytes < 0:
            raise InputError(f"{where} has text_bytes={text_bytes}: a length is not negative")

        ends = np.cumsum(lengths)
        done = 0
        while done < len(ids):
            if self._file is None:
                self._open_shard()
            room = self._shard_tokens - self._shard["tokens"]
            piece = ids[done : done + min(room, WRITE_CHUNK_TOKENS)].astype(SHARD_DTYPE, copy=False)
            self._write(piece)
            self._shard["tokens"] += len(piece)
            self._shard["documents"] += int(
                np.searchsorted(ends, done + len(piece), "right") - np.searchsorted(ends, done, "right")
            )
            done += len(piece)
            if self._shard["tokens"] == self._shard_tokens:
                self._close_shard()
        self._documents += len(lengths)
        self._text_bytes += int(text_bytes)

    def commit(self) -> dict[str, Any]:
        """Brings what was added to the disk. Returns what another ShardWriter needs to go on from here, as
        JSON."""
        partial = None
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            partial = dict(self._shard)
        return {
            "shards": list(self._shards),
            "partial": partial,
            "documents": self._documents,
            "text_bytes": self._text_bytes,
        }

    def finish(self) -> dict[str, Any]:
        """Completes the last shard. Returns the split's entry of meta.json: {tokens, documents, text_bytes,
        shards: […]}."""
        if self._file is not None:
            self._close_shard()
        self._finished = True
        tokens = sum(s["tokens"] for s in self._shards)
        return {
            "tokens": tokens,
            "documents": self._documents,
            "text_bytes": self._text_bytes,
            "shards": self._shards,
        }

    def discard(self) -> None:
        """Removes what was written."""
        if self._file is not None:
            self._file.close()
            self._temporary.unlink()
        for shard in self._shards:
            (self._folder / shard["file"]).unlink()
        self._file, self._shards, self._finished = None, [], True

    def _resume(self, state: dict[str, Any]) -> None:
        self._shards = list(state["shards"])
        self._documents, self._text_bytes = state["documents"], state["text_bytes"]
        for shard in self._shards:
            if not (self._folder / shard["file"]).is_file():
                raise MissingFile(
                    f"{self._folder / shard['file']} is missing: remove {self._folder} and prepare it again"
                )
        partial = state["partial"]
        if partial is None:
            return
        # It may have been completed and renamed after the state was taken
        final, n_bytes = self._folder / partial["file"], partial["tokens"] * SHARD_DTYPE.itemsize
        temporary = self._folder / f".{partial['file']}"
        if final.is_file():
            os.replace(final, temporary)
        if not temporary.is_file() or temporary.stat().st_size < n_bytes:
            raise MissingFile(
                f"{temporary} is missing or too short: remove {self._folder} and prepare it again"
            )
        os.truncate(temporary, n_bytes)
        self._open_shard(mode="r+b")
        while block := self._file.read(WRITE_CHUNK_TOKENS):
            self._sha256.update(block)
        self._shard = dict(partial)

    def _write(self, piece: np.ndarray) -> None:
        self._file.write(piece)
        self._sha256.update(piece)
        self._shard["max_id"] = max(self._shard["max_id"], int(piece.max()))

    def _open_shard(self, mode: str = "wb") -> None:
        name = f"{self._split}_{len(self._shards):05d}.bin"
        self._shard = {"file": name, "tokens": 0, "documents": 0, "max_id": 0}
        self._sha256 = hashlib.sha256()
        self._temporary = self._folder / f".{name}"  # still *.bin: what ignores the shards ignores this
        self._file = open(self._temporary, mode, buffering=1 << 20)  # noqa: SIM115  it outlives this call

    def _close_shard(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        self._file = None
        os.replace(self._temporary, self._folder / self._shard["file"])
        self._shards.append({**self._shard, "sha256": self._sha256.hexdigest()})


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
    for what, top_id in [("eot_id", eot_id)] + [
        (s["file"], s["max_id"]) for e in splits.values() for s in e["shards"]
    ]:
        if not 0 <= top_id < vocab_size:
            raise InputError(f"{what}: id {top_id} has no row in a vocabulary of {vocab_size}")
    meta = {"format_version": FORMAT_VERSION, "dtype": "uint32", "vocab_size": vocab_size}
    meta |= {"tokenizer": tokenizer, "eot_id": eot_id, "source": source, "splits": splits}
    if preparation is not None:
        meta["preparation"] = preparation
    write_json(Path(folder) / "meta.json", meta)
    return meta


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write, fsync, rename: at any moment the file holds one whole record, the old or the new."""
    temporary = path.with_name(f".{path.name}")
    with open(temporary, "w", encoding="utf-8") as f:
        f.write(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
        f.flush()
        os.fsync(f.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename, too
    finally:
        os.close(folder)


class TokenStream:
    """One split as one array of ids over memory-mapped shards. Made by open_tokens(); threads may share it.

    n_tokens          ids of the split
    bytes_per_token   UTF-8 bytes of text for each id, for bits per byte; None where nobody counted them
    fingerprint       hex sha256 that changes when the data does; the folder's place is not part of it
    tokenizer         {name, length, sha256} of meta.json; None in nanoGPT's folders
    eot_id            the id that ends each document; None in nanoGPT's folders
    """

    n_tokens: int
    bytes_per_token: float | None
    fingerprint: str
    tokenizer: dict[str, Any] | None
    eot_id: int | None

    def __init__(
        self,
        paths: list[Path],
        shard_tokens: list[int],
        dtype: np.dtype,
        vocab_size: int,
        fingerprint: str,
        *,
        max_ids: list[int] | None = None,
        bytes_per_token: float | None = None,
        tokenizer: dict[str, Any] | None = None,
        eot_id: int | None = None,
    ) -> None:
        self._paths = paths
        self._starts = [0, *accumulate(shard_tokens)]  # shard i holds ids [starts[i], starts[i+1])
        self._dtype = dtype
        self._vocab_size = vocab_size
        self._max_ids = max_ids or [vocab_size - 1] * len(
            paths
        )  # what meta.json records; never beyond the vocabulary
        self.n_tokens = self._starts[-1]
        self.bytes_per_token = bytes_per_token
        self.fingerprint = fingerprint
        self.tokenizer = tokenizer
        self.eot_id = eot_id

        def open_shard(
            i: int,
        ) -> np.ndarray:  # a plain view of the map: slices of np.memmap itself cost 3 us more
            return np.asarray(np.memmap(paths[i], dtype, "r", shape=(shard_tokens[i],)))

        self._map = lru_cache(maxsize=MAX_OPEN_SHARDS)(open_shard)

    def __len__(self) -> int:
        return self.n_tokens

    def read(self, start: int, length: int) -> np.ndarray:
        """Ids [start, start + length) of the split as a new int64 array [length], across shards where need
        be.

        Raises IndexError beyond the split's ends, and ValueError, with file and position, at an id >=
        vocab_size, which an embedding on a GPU would answer with a device assert or, in places, with
        silence, or beyond the shard's max_id."""
        if start < 0 or length < 0 or start + length > self.n_tokens:
            raise IndexError(f"ids [{start}, {start + length}) of a split of {self.n_tokens}")
        out = np.empty(length, dtype=np.int64)
        done = 0
        shard = bisect_right(self._starts, start) - 1
        while done < length:
            offset = start + done - self._starts[shard]
            piece = self._map(shard)[offset : offset + length - done]
            if piece.max() > self._max_ids[shard]:
                self._refuse(shard, offset, piece)
            out[done : done + len(piece)] = piece
            done += len(piece)
            shard += 1
        return out

    def _refuse(self, shard: int, offset: int, piece: np.ndarray) -> None:
        beyond_model = piece >= self._vocab_size
        at = int(np.argmax(beyond_model if beyond_model.any() else piece > self._max_ids[shard]))
        id_there = f"{self._paths[shard]}: id {piece[at]} at position {offset + at}"
        if beyond_model.any():
            raise InputError(
                f"{id_there} is beyond the model's vocab_size={self._vocab_size}: damaged, of another tokenizer, or not of "
                f"dtype {self._dtype.name}"
            )
        raise InputError(
            f"{id_there} is beyond the shard's max_id {self._max_ids[shard]} in meta.json: damaged, or another shard's bytes"
        )

    def scan(self) -> None:
        """Reads the split, or evenly spaced pieces of a large one, for the sake of the ValueError that
        read() may raise."""
        piece_tokens = SCAN_PIECE_BYTES // self._dtype.itemsize
        if self.n_tokens * self._dtype.itemsize <= SCAN_WHOLE_BYTES:
            starts = range(0, self.n_tokens, piece_tokens)
        else:
            last = self.n_tokens - piece_tokens
            starts = [last * i // (SCAN_PIECES - 1) for i in range(SCAN_PIECES)]
        for start in starts:
            self.read(start, min(piece_tokens, self.n_tokens - start))


def open_tokens(
    folder: str | Path, split: str, vocab_size: int, data_dtype: str | None = None
) -> TokenStream:
    """Opens one split ("train" or "val") of a dataset folder, ours or nanoGPT's, and checks it against the
    model.

    `vocab_size` is the model's rows; `data_dtype` ("uint16" or "uint32") is needed by nanoGPT's folders
    only. Raises FileNotFoundError or ValueError, one line, if anything is missing, left over, contradicts
    meta.json in size, vocabulary or tokenizer, or holds an id the model has no row for: whatever would
    otherwise fail, or train to nonsense, hours later. The sha256 of the shards are recomputed where the
    split is at most SCAN_WHOLE_BYTES; of a larger split pieces are read, and `prepare.py --verify` reads
    the rest."""
    folder = Path(folder)
    if data_dtype is not None and data_dtype not in NANOGPT_DTYPES:
        raise InputError(
            f"data_dtype='{data_dtype}' is unknown: pass --data_dtype=uint16 or --data_dtype=uint32"
        )
    if not folder.is_dir():
        raise MissingFile(
            f"dataset folder {folder} does not exist: prepare it, or name another with --dataset"
        )
    nanogpt = (
        any((folder / f"{name}.bin").exists() for name in ("train", "val"))
        and not (folder / "meta.json").exists()
    )
    stream = (_open_nanogpt if nanogpt else _open_shards)(folder, split, vocab_size, data_dtype)
    stream.scan()
    if not nanogpt and stream.n_tokens * SHARD_DTYPE.itemsize <= SCAN_WHOLE_BYTES:
        _check_digests(folder, split)
    return stream


def read_meta(folder: str | Path) -> dict[str, Any]:
    """The content of meta.json, its keys and their types checked. Raises FileNotFoundError or ValueError."""
    path = Path(folder) / "meta.json"
    if not path.is_file():
        raise MissingFile(f"{path} is missing, so the dataset is not finished: run its prepare.py again")
    try:
        meta = json.loads(path.read_bytes())
    except ValueError as e:
        raise InputError(f"{path} is not JSON ({e}): run the dataset's prepare.py again") from None
    version = _field(meta, "format_version", int, path)
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} has format_version {version}, this code reads {FORMAT_VERSION}: prepare the dataset again"
        )
    dtype = _field(meta, "dtype", str, path)
    if dtype != "uint32":
        raise InputError(f"{path} has dtype '{dtype}', but shards are uint32: prepare the dataset again")
    _field(meta, "vocab_size", int, path)
    _field(meta, "eot_id", int, path)
    tokenizer = _field(meta, "tokenizer", dict, path)
    for key, kind in (("name", str), ("length", int), ("sha256", str)):
        _field(tokenizer, key, kind, f"{path}: tokenizer")
    for name, entry in _field(meta, "splits", dict, path).items():
        where = f"{path}: split '{name}'"
        for key in ("tokens", "documents", "text_bytes"):
            _field(entry, key, int, where)
        for i, shard in enumerate(_field(entry, "shards", list, where)):
            for key, kind in (
                ("file", str),
                ("tokens", int),
                ("documents", int),
                ("max_id", int),
                ("sha256", str),
            ):
                _field(shard, key, kind, f"{where}, shard {i}")
            if Path(shard["file"]).name != shard["file"]:
                raise InputError(
                    f"{where}, shard {i}: file '{shard['file']}' is a path, but shards lie beside meta.json"
                )
    return meta


def verify(folder: str | Path, say: Callable[[str], None] = lambda line: None) -> list[str]:
    """Reads every shard again and compares it with meta.json: size, digest, largest id, end-of-text ids
    against documents; then looks for shards that meta.json does not list, and for another tokenizer.
    Returns the problems, one line each, none if all is as it was written; `say` hears of each shard. Raises
    FileNotFoundError or ValueError where meta.json itself is wrong."""
    folder = Path(folder)
    meta = read_meta(folder)
    problems, listed, contents = [], set(), {}
    shards = [(split, shard) for split, entry in meta["splits"].items() for shard in entry["shards"]]
    file_of = {shard["sha256"]: shard["file"] for _, shard in shards}
    for split, shard in shards:
        file = folder / shard["file"]
        listed.add(shard["file"])
        if shard["file"] in contents:
            problems.append(f"{folder / 'meta.json'}: lists {shard['file']} twice")
        found = contents[shard["file"]] = _scan_shard(file, meta["eot_id"])
        problems += [
            f"{file}: {problem}" for problem in _shard_problems(shard, found, meta["vocab_size"], file_of)
        ]
        say(f"{split} {shard['file']}")
    for split, entry in meta["splits"].items():
        for key in ("tokens", "documents"):
            total = sum(shard[key] for shard in entry["shards"])
            if total != entry[key]:
                problems.append(
                    f"{folder / 'meta.json'}: split '{split}' says {entry[key]} {key}, its shards sum to {total}"
                )
        for file in sorted(folder.glob(f"{split}_*.bin")):
            if file.name not in listed:
                problems.append(f"{file}: not listed in meta.json, so no run reads it: remove it")
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        problems.append(f"{tokenizer}: missing, so nothing can be read back as text")
    elif hashlib.sha256(tokenizer.read_bytes()).hexdigest() != meta["tokenizer"]["sha256"]:
        problems.append(
            f"{tokenizer}: not the tokenizer that made the shards: its sha256 differs from meta.json's"
        )
    if meta["tokenizer"]["length"] > meta["vocab_size"] or meta["eot_id"] >= meta["vocab_size"]:
        problems.append(
            f"{folder / 'meta.json'}: vocab_size {meta['vocab_size']} is smaller than its tokenizer"
        )
    return problems


def _scan_shard(file: Path, eot_id: int) -> dict[str, Any] | None:
    """{bytes, sha256, max_id, documents} of what the file holds; None without a file."""
    if not file.is_file():
        return None
    sha256, max_id, documents = hashlib.sha256(), 0, 0
    with open(file, "rb") as f:
        while block := f.read(WRITE_CHUNK_TOKENS * SHARD_DTYPE.itemsize):
            sha256.update(block)
            ids = np.frombuffer(block[: len(block) // 4 * 4], SHARD_DTYPE)
            max_id = max(max_id, int(ids.max(initial=0)))
            documents += int(np.count_nonzero(ids == eot_id))
    return {
        "bytes": file.stat().st_size,
        "sha256": sha256.hexdigest(),
        "max_id": max_id,
        "documents": documents,
    }


def _shard_problems(
    shard: dict[str, Any], found: dict[str, Any] | None, vocab_size: int, file_of: dict[str, str]
) -> Iterator[str]:
    if found is None:
        yield "missing, but meta.json lists it"
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


def _field(record: object, key: str, kind: type, where: object) -> Any:
    if not isinstance(record, dict) or key not in record:
        raise InputError(
            f"{where} lacks '{key}': damaged or made by something else; prepare the dataset again"
        )
    value = record[key]
    if not isinstance(value, kind) or isinstance(value, bool) or (kind is int and value < 0):
        raise InputError(
            f"{where}: '{key}' is {str(value)[:40]!r}, expected {kind.__name__}; prepare the dataset again"
        )
    return value


def _open_shards(folder: Path, split: str, vocab_size: int, data_dtype: str | None) -> TokenStream:
    meta = read_meta(folder)
    path = folder / "meta.json"
    if data_dtype not in (None, meta["dtype"]):
        raise InputError(
            f"{path} says dtype '{meta['dtype']}', but data_dtype='{data_dtype}': leave --data_dtype out"
        )
    if split not in meta["splits"]:
        raise InputError(
            f"{path} has no split '{split}', only {', '.join(meta['splits']) or 'none'}: prepare the dataset again"
        )
    if meta["vocab_size"] > vocab_size:
        name = meta["tokenizer"]["name"]
        raise InputError(
            f"{path}: dataset whose vocabulary exceeds the model's: {meta['vocab_size']} rows (tokenizer '{name}') against "
            f"vocab_size={vocab_size}: set --vocab_size={meta['vocab_size']} or prepare it with the model's tokenizer"
        )
    entry = meta["splits"][split]
    shards = entry["shards"]
    if entry["tokens"] == 0:
        raise InputError(f"{path}: split '{split}' has no tokens")
    total = sum(s["tokens"] for s in shards)
    if total != entry["tokens"]:
        raise InputError(
            f"{path}: split '{split}' says {entry['tokens']} tokens, its shards sum to {total}: prepare it again"
        )
    for s in shards:
        file = folder / s["file"]
        if not file.is_file():
            raise MissingFile(
                f"{file} is missing, but meta.json lists it: restore it or prepare the dataset again"
            )
        size, expected = file.stat().st_size, s["tokens"] * SHARD_DTYPE.itemsize
        if size != expected or not size:
            raise InputError(
                f"{file} has {size} bytes, meta.json says {s['tokens']} tokens, {expected} bytes: prepare it again"
            )
        if s["max_id"] >= vocab_size:
            raise InputError(
                f"{file}: recorded max_id {s['max_id']} has no row in the model's vocab_size={vocab_size}"
            )
    if extra := sorted({f.name for f in folder.glob(f"{split}_*.bin")} - {s["file"] for s in shards}):
        raise InputError(
            f"{folder / extra[0]} is not listed in meta.json: remove it, or prepare the dataset again"
        )
    tokenizer_file = folder / "tokenizer.json"
    if tokenizer_file.is_file():
        digest, expected = _sha256(tokenizer_file), meta["tokenizer"]["sha256"]
        if digest != expected:
            raise InputError(
                f"{tokenizer_file} is not the tokenizer '{meta['tokenizer']['name']}' of the shards: its sha256 is "
                f"{digest[:12]}, meta.json says {expected[:12]}: restore it or prepare the dataset again"
            )

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


def _sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _check_digests(folder: Path, split: str) -> None:
    recorded = [(s["file"], s["sha256"]) for s in read_meta(folder)["splits"][split]["shards"]]
    for file, expected in recorded:
        if (digest := _sha256(folder / file)) != expected:
            others = [other for other, sha256 in recorded if sha256 == digest]
            whose = f"it holds the bytes of {others[0]}" if others else "damaged"
            raise InputError(
                f"{folder / file} is not what meta.json records (sha256 {digest[:12]}, not {expected[:12]}): {whose}; "
                "restore it or prepare the dataset again"
            )


def _open_nanogpt(folder: Path, split: str, vocab_size: int, data_dtype: str | None) -> TokenStream:
    path = folder / f"{split}.bin"
    if not path.is_file():
        raise MissingFile(f"{path} is missing: {folder} is in nanoGPT's format, one file a split")
    if data_dtype is None:
        raise InputError(
            f"{folder} has no meta.json and so no dtype: pass --data_dtype=uint16 (nanoGPT's format)"
        )
    recorded = read_nanogpt_meta(folder).get("vocab_size", 0)
    if recorded > vocab_size:
        raise InputError(
            f"{folder / 'meta.pkl'} has vocab_size {recorded}, the model {vocab_size}: set --vocab_size={recorded}"
        )
    dtype = NANOGPT_DTYPES[data_dtype]
    size = path.stat().st_size
    if size == 0 or size % dtype.itemsize:
        raise InputError(
            f"{path} has {size} bytes, which is not a whole number, at least one, of {data_dtype} ids"
        )

    edge = 1 << 20
    with open(path, "rb") as f:
        first = f.read(edge)
        f.seek(max(0, size - edge))
        last = f.read(edge)
    if data_dtype == "uint16":
        _refuse_uint32_as_uint16(path, np.frombuffer(first, dtype), vocab_size)
    digest = hashlib.sha256(json.dumps([data_dtype, path.name, size]).encode() + first + last)
    return TokenStream([path], [size // dtype.itemsize], dtype, vocab_size, digest.hexdigest())


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"names {module}.{name}")


# What numbers, strings, lists, tuples and dictionaries are written with, in protocols 0 to 5. No opcode
# that imports, calls or builds anything is among them, so that hostile bytes are refused before the machine
# that could run them is started.
PLAIN_OPCODES = frozenset(
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT "
    "UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 STRING BINSTRING SHORT_BINSTRING SHORT_BINBYTES BINBYTES "
    "EMPTY_DICT DICT SETITEM SETITEMS EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET".split()
)
META_PKL_MAX_BYTES = 64 << 20


def read_nanogpt_meta(folder: str | Path) -> dict[str, Any]:
    """nanoGPT's meta.pkl, {vocab_size, stoi, itos} of its character-level data sets, without executing any
    of it; {} where there is none. Raises InputError for anything but plain values. It names no dtype:
    --data_dtype does."""
    path = Path(folder) / "meta.pkl"
    if not path.is_file():
        return {}
    if path.stat().st_size > META_PKL_MAX_BYTES:
        raise InputError(f"{path} has {path.stat().st_size} bytes, more than a vocabulary needs: remove it")
    data = path.read_bytes()
    try:
        for opcode, argument, _ in pickletools.genops(data):
            if opcode.name not in PLAIN_OPCODES:
                raise pickle.UnpicklingError(f"opcode {opcode.name}")
            if opcode.name in ("PUT", "LONG_BINPUT") and argument > len(
                data
            ):  # the memo is as long as its highest index
                raise pickle.UnpicklingError(f"memo index {argument}")
        meta = _PlainUnpickler(io.BytesIO(data)).load()
    except Exception as error:  # broken bytes raise anything from IndexError to UnicodeDecodeError
        raise InputError(
            f"{path} holds more than plain values, or is damaged ({error}), and was not executed: remove it"
        ) from error
    vocab_size = meta.get("vocab_size", 0) if isinstance(meta, dict) else None
    if type(vocab_size) is not int or vocab_size < 0:
        raise InputError(f"{path} is not a dictionary with a whole number as vocab_size: remove it")
    return meta


def _refuse_uint32_as_uint16(path: Path, ids: np.ndarray, vocab_size: int) -> None:
    """Each half of a uint32 id is a valid uint16 id, so no range check sees it; but its upper halves are
    nearly all 0."""
    upper = ids[1::2]
    if len(upper) >= 512 and upper.max() <= (vocab_size - 1) >> 16:
        raise InputError(
            f"{path}: every second uint16 is at most {upper.max()}, so these are uint32: pass --data_dtype=uint32"
        )
