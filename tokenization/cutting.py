"""The bytes of a file, decompressed and cut into pieces that end where a document does, at about a gigabyte a
second."""

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from base.errors import InputError, one_line, reading, require

PIECE_BYTES = 1 << 20  # what is read at once
MAX_DOCUMENT_BYTES = 64 << 20  # a longer one is a bad row: tokenizing it would take gigabytes
TAIL_BYTES = 1024  # longer than any separator


def damaged(file: Path, error: BaseException) -> InputError:
    """For whatever a library raises about a file."""
    return InputError(
        f"{file}: {one_line(error)}: the file is damaged, truncated or of another format; restore it"
    )


class Stream:
    """The content of a file, decompressed. Raises InputError, which names the file, where it cannot be read or is
    damaged."""

    def __init__(self, file: Path) -> None:
        self.file = file
        zstd = require("backports.zstd", "reading .zst", "backports.zstd") if file.suffix == ".zst" else None
        with reading(file):
            self._raw = open(file, "rb")  # noqa: SIM115  closed by __exit__
        self._errors: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error)
        self._content: BinaryIO = self._raw
        if file.suffix == ".gz":
            self._content = gzip.GzipFile(fileobj=self._raw)
        elif zstd:
            self._content = zstd.open(self._raw)
            self._errors += (zstd.ZstdError,)

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._raw.close()

    @property
    def read_bytes(self) -> int:
        """Of the file, compressed as it is."""
        return self._raw.tell()

    def read(self, n_bytes: int) -> bytes:
        """Up to so many; none at the end. Both decompressors raise EOFError where the file ends too early."""
        try:
            return self._content.read(n_bytes)
        except PermissionError as error:
            raise InputError(f"{self.file}: {one_line(error)}") from error
        except self._errors as error:
            raise damaged(self.file, error) from error

    def skip(self, n_bytes: int) -> None:
        if self._content is self._raw:
            self._raw.seek(n_bytes)
            return
        # What is compressed must be read to be skipped
        while n_bytes:
            block = self.read(min(PIECE_BYTES, n_bytes))
            if not block:
                raise damaged(self.file, EOFError("it is shorter than it was when this preparation began"))
            n_bytes -= len(block)


def cut(
    stream: Stream, offset: int, separator: bytes | None, size: int
) -> Iterator[tuple[bytes, int, int, bool, int]]:
    """(piece, its begin, its end, whether it is too long, bytes read of the file) from `offset` on.

    Pieces of about `size` bytes end after a separator; without one the whole is a piece. Of a document
    that is longer than MAX_DOCUMENT_BYTES only the first bytes are given, so that memory stays bounded."""
    stream.skip(offset)
    begin, content, told = offset, b"", stream.read_bytes
    wanted = size if separator else MAX_DOCUMENT_BYTES + 1
    while True:
        content, at_end = _filled(stream, content, wanted)
        read = stream.read_bytes - told
        if at_end:
            if content:
                yield content, begin, begin + len(content), False, read
            return
        rest = _after_last(content, separator)
        if len(rest) < len(content):
            end, too_long = begin + len(content) - len(rest), False
            piece = content[: end - begin]
        elif len(content) > MAX_DOCUMENT_BYTES:
            end, rest = _skip_document(stream, begin + len(content), content[-TAIL_BYTES:], separator)
            piece, too_long = content[:256], True
        else:
            wanted = len(content) + size  # a long document: collect more
            continue
        yield piece, begin, end, too_long, read
        begin, content, wanted, told = end, rest, size, told + read


def _filled(stream: Stream, content: bytes, wanted: int) -> tuple[bytes, bool]:
    """(the content and what follows it in the stream, of `wanted` bytes or a little more; whether that is its end)"""
    blocks, length, block = [content], len(content), b"-"
    while length < wanted and block:
        block = stream.read(PIECE_BYTES)
        blocks.append(block)
        length += len(block)
    return b"".join(blocks), not block


def _after_last(content: bytes, separator: bytes | None) -> bytes:
    """What follows the last separator; all of it without one. Cut from the left, as the whole file would be: in
    three line breaks rfind sees other pairs than split."""
    if separator is None:
        return content
    return content.rpartition(separator)[2] if separator == b"\n" else content.split(separator)[-1]


def documents(content: bytes, separator: bytes | None) -> list[bytes]:
    """What a piece of a text file holds. After the last separator there is no empty document."""
    if not separator:
        return [content]
    found = content.split(separator)
    return found if found[-1] else found[:-1]


def _skip_document(stream: Stream, at: int, tail: bytes, separator: bytes | None) -> tuple[int, bytes]:
    """Reads past the next separator; returns its end and what was read after it."""
    while block := stream.read(PIECE_BYTES):
        window = tail + block
        found = window.find(separator) if separator else -1
        at += len(block)
        if found >= 0:
            rest = window[found + len(separator) :]
            return at - len(rest), rest
        tail = window[-TAIL_BYTES:]
    return at, b""
