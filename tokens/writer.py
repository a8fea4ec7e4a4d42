"""ShardWriter: documents of one split -> shards (tokens/format.py)."""

import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np

from base.errors import InputError, MissingFile
from base.files import size_of
from tokens.format import SHARD_DTYPE

WRITE_CHUNK_TOKENS = 1 << 20  # ids are converted and written in pieces of 4 MiB, however long the document


class ShardWriter:
    """Streams the documents of one split into shards of `shard_tokens` ids; a document may cross from one
    into the next.

    A shard appears under its name only when it is complete (write, fsync, rename). Its `documents` are
    those that end in it, which is the number of its end-of-text ids. One writer a split and folder at a
    time: the temporary name is fixed, so that a killed run leaves at most one file, which the next run
    overwrites or resumes from:

        state = writer.commit()                     # JSON; what was added so far is on the disk
        writer = ShardWriter(folder, "train", shard_tokens, state)          # in another process
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
                f"{where} has shape {ids.shape}: a document is a row of at least one id, its end-of-text id "
                "included"
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
        """Brings what was added to the disk. Returns what another ShardWriter needs to resume from here, as
        JSON."""
        partial = None
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            partial = self._shard | {"sha256": self._sha256.hexdigest()}
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
            file, again = self._folder / shard["file"], f"remove {self._folder} and prepare it again"
            n_bytes = shard["tokens"] * SHARD_DTYPE.itemsize
            if (size := size_of(file, again)) != n_bytes:
                raise InputError(f"{file} has {size:,} bytes, {n_bytes:,} were written: {again}")
        partial = state["partial"]
        if partial is None:
            return
        # It may have been completed and renamed after the state was taken
        final, n_bytes = self._folder / partial["file"], partial["tokens"] * SHARD_DTYPE.itemsize
        temporary = self._folder / f".{partial['file']}"
        if final.is_file():
            os.replace(final, temporary)
        if not temporary.is_file() or size_of(temporary) < n_bytes:
            raise MissingFile(
                f"{temporary} is missing or too short: remove {self._folder} and prepare it again"
            )
        os.truncate(temporary, n_bytes)
        self._open_shard(mode="r+b")
        while block := self._file.read(WRITE_CHUNK_TOKENS):
            self._sha256.update(block)
        self._shard = {key: value for key, value in partial.items() if key != "sha256"}
        # What an earlier version was writing has no digest
        if partial.get("sha256", self._sha256.hexdigest()) != self._sha256.hexdigest():
            self._file.close()
            raise InputError(
                f"{temporary} is not what was written (sha256): remove {self._folder} and prepare it again"
            )

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
