"""The bytes of a file, decompressed and cut into pieces that end where a document does, at about a gigabyte a
second."""

import bz2
import codecs
import gzip
import lzma
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from base.errors import InputError, one_line, reading, require
from base.text import printable
from tokenization.splitting import Splitter, Whole

PIECE_BYTES = 1 << 20  # what is read at once
MAX_DOCUMENT_BYTES = 64 << 20  # a longer one is a bad row: tokenizing it would take gigabytes
TAIL_BYTES = 1024  # longer than any separator
HEAD_BYTES = 4096  # by which an encoding is known
BYTE_ORDER_MARKS = {  # the longer ones first
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def damaged(file: Path, error: BaseException) -> InputError:
    """For whatever a library raises about a file."""
    return InputError(
        f"{file}: {one_line(error)}: the file is damaged, truncated or of another format; restore it"
    )


def on_a_line(text: str) -> str:
    """A name from outside, line breaks and tabs as escapes too."""
    return printable(text).replace("\n", r"\n").replace("\t", r"\t")


def columns_in_words(names: Iterable[str]) -> str:
    """Names that a file gives its columns, on one line that is not too long."""
    line = ", ".join(on_a_line(name[:60]) for name in names)
    return line if len(line) <= 400 else f"{line[:400]}…"


class Stream:
    """The content of a file, decompressed, and as UTF-8 where its byte order mark says UTF-16 or UTF-32. Raises
    InputError, which names the file, where it cannot be read or is damaged."""

    def __init__(self, file: Path) -> None:
        self.file = file
        suffix = file.suffix.lower()
        zstd = require("backports.zstd", "reading .zst", "backports.zstd") if suffix == ".zst" else None
        with reading(file):
            self._raw = open(file, "rb")  # noqa: SIM115  closed by __exit__
        self._errors: tuple[type[Exception], ...] = (OSError, EOFError, zlib.error, lzma.LZMAError)
        self._content: BinaryIO | Transcoded = self._raw
        if suffix == ".gz":
            self._content = gzip.GzipFile(fileobj=self._raw)
        elif suffix in (".bz2", ".xz"):
            self._content = (bz2 if suffix == ".bz2" else lzma).open(self._raw)
        elif zstd:
            # 2^31 is the largest window that `zstd --long` writes
            options = {zstd.DecompressionParameter.window_log_max: 31}
            self._content = zstd.open(self._raw, options=options)
            self._errors += (zstd.ZstdError,)
        try:
            self._ahead = self._decoded(self.read(HEAD_BYTES))
        except InputError:
            self._raw.close()
            raise

    def __enter__(self) -> "Stream":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._raw.close()

    def _decoded(self, head: bytes) -> bytes:
        """The beginning of the content, by which the encoding is known; from here on it is read as UTF-8."""
        if encoding := next((name for mark, name in BYTE_ORDER_MARKS.items() if head.startswith(mark)), None):
            self._content = Transcoded(self._content, encoding)
            self._errors += (UnicodeError,)
            try:
                return self._content.decoded(head)
            except UnicodeError as error:
                raise damaged(self.file, error) from error
        if name := utf16_without_mark(head):
            raise InputError(
                f"{self.file} looks like {name} without a byte order mark, by its zero bytes: convert it, as with "
                f"iconv -f {name} -t UTF-8"
            )
        return head

    @property
    def read_bytes(self) -> int:
        """Of the file, compressed as it is."""
        return self._raw.tell()

    _ahead = b""  # what was read and not yet given

    def read(self, n_bytes: int) -> bytes:
        """About so many; none at the end. The decompressors raise EOFError where the file ends too early."""
        if self._ahead:
            ahead, self._ahead = self._ahead, b""
            return ahead
        try:
            return self._content.read(n_bytes)
        except PermissionError as error:
            raise InputError(f"{self.file}: {one_line(error)}") from error
        except self._errors as error:
            raise damaged(self.file, error) from error

    def skip(self, n_bytes: int) -> None:
        """From the beginning."""
        if self._content is self._raw:
            self._ahead = b""
            self._raw.seek(n_bytes)
            return
        # What is compressed must be read to be skipped
        while n_bytes:
            block = self.read(min(PIECE_BYTES, n_bytes))
            if not block:
                raise damaged(self.file, EOFError("it is shorter than it was when this preparation began"))
            self._ahead, n_bytes = block[n_bytes:], max(0, n_bytes - len(block))


class Transcoded:
    """A content in another encoding as UTF-8."""

    def __init__(self, content: BinaryIO, encoding: str) -> None:
        self._content, self._decoder = content, codecs.getincrementaldecoder(encoding)()

    def decoded(self, block: bytes, final: bool = False) -> bytes:
        return self._decoder.decode(block, final).encode()

    def read(self, n_bytes: int) -> bytes:
        text = b""
        while not text:
            block = self._content.read(n_bytes)
            text = self.decoded(block, final=not block)
            if not block:
                break
        return text


def utf16_without_mark(head: bytes) -> str | None:
    """UTF-16LE or UTF-16BE where every second byte is 0, as of ASCII, or 0 and one other, as of one alphabet with
    its spaces, and the bytes between are not. As UTF-8 that could be text with a zero after each letter, which no
    reader would refuse."""
    for name, high, low in (("UTF-16LE", head[1::2], head[0::2]), ("UTF-16BE", head[0::2], head[1::2])):
        zeros = high.count(0)
        others = Counter(high.replace(b"\0", b"")).most_common(1)
        in_alphabet = zeros + sum(n for _, n in others)
        if zeros >= max(4, len(high) / 20, 10 * low.count(0)) and in_alphabet >= 0.8 * len(high):
            return name
    return None


def cut(
    stream: Stream, offset: int, splitter: Splitter, size: int
) -> Iterator[tuple[bytes, int, int, int, bool, int]]:
    """(piece, its begin, its end, how many documents it holds, whether it is one that is too long, bytes read of
    the file) from `offset` on.

    Pieces of about `size` bytes end where a document does; a file that is one document is a piece. Of a document
    that is longer than MAX_DOCUMENT_BYTES only the first bytes are given, so that memory stays bounded. Raises
    InputError where the end of such a document cannot be found."""
    stream.skip(offset)
    begin, content, told = offset, b"", stream.read_bytes if offset else 0
    wanted = MAX_DOCUMENT_BYTES + 1 if isinstance(splitter, Whole) else size
    while True:
        content, at_end = _filled(stream, content, wanted)
        read = stream.read_bytes - told
        if at_end:
            if content:
                n = len(splitter.documents(content))
                yield content, begin, begin + len(content), n, False, read
            return
        length, n = splitter.complete(content)
        if length:
            end, piece, rest, too_long = begin + length, content[:length], content[length:], False
        elif len(content) > MAX_DOCUMENT_BYTES:
            end, rest = _skip_document(stream, begin + len(content), content[-TAIL_BYTES:], splitter)
            piece, n, too_long = content[:256], 1, True
        else:
            wanted = len(content) + size  # a long document: collect more
            continue
        yield piece, begin, end, n, too_long, read
        begin, content, wanted, told = end, rest, size, told + read


def _filled(stream: Stream, content: bytes, wanted: int) -> tuple[bytes, bool]:
    """(the content and what follows it in the stream, of `wanted` bytes or a little more; whether that is its end)"""
    blocks, length, block = [content], len(content), b"-"
    while length < wanted and block:
        block = stream.read(PIECE_BYTES)
        blocks.append(block)
        length += len(block)
    return b"".join(blocks), not block


def _skip_document(stream: Stream, at: int, tail: bytes, splitter: Splitter) -> tuple[int, bytes]:
    """Reads past the document's end; returns that and what was read after it."""
    while block := stream.read(PIECE_BYTES):
        window = tail + block
        end = splitter.first_end(window)
        if end is None:
            raise InputError(
                f"{stream.file}: a record before byte {at:,} is longer than 64 MiB: is a quote or a bracket not "
                "closed? repair the file"
            )
        at += len(block)
        if end >= 0:
            return at - (len(window) - end), window[end:]
        tail = window[-TAIL_BYTES:]
    return at, b""
