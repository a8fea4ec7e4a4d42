"""Local files as a stream of batches that can be resumed at any of them.

    files = find_files(["corpus/**/*.jsonl.zst"]).files
    for batch in FileSource(files, text_field="text").batches(position=None):
        for row in batch.rows(): ...           # in a worker
        batch.next_position                    # JSON: where the next batch begins

The order of rows is that of the sorted files."""

import csv
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from base.errors import InputError
from base.files import count_entry, size_of
from base.text import check_utf8, printable
from tokenization import cutting, tables
from tokenization.batches import BYTE_ORDER_MARK, TOO_LONG, Batch, CsvBatch, EndOfFile, JsonBatch, TextBatch
from tokenization.searching import format_of
from tokenization.splitting import LINES, Paragraphs, Pieces, Records, Separated, Splitter, Values, Whole

BATCH_BYTES = 4 << 20  # of text: the unit of work of a tokenizing process
CSV_DELIMITERS = (",", ";", "\t", "|")
LEAST_PIECE_BYTES = 64
HEAD_BYTES = 1 << 20  # by which the layout of a file is known, whatever is read at once


def parse_split_documents(text: str) -> str | int:
    """paragraphs, or a number of bytes. Raises InputError."""
    if text == "paragraphs":
        return text
    if (
        not text.isdecimal()
        or len(text) > 9
        or not LEAST_PIECE_BYTES <= int(text) <= cutting.MAX_DOCUMENT_BYTES
    ):
        raise InputError(
            f"--split_documents={printable(text[:40])} is neither 'paragraphs' nor a number of bytes from "
            f"{LEAST_PIECE_BYTES} to {cutting.MAX_DOCUMENT_BYTES}, such as 65536"
        )
    return int(text)


@dataclass
class FileSource:
    """Local files. `text_field` and `source_field` name columns or keys, with dots for nested ones;
    `separator` cuts text files into documents, which are otherwise one each. Raises InputError for a file that
    cannot be read, lacks the column or is damaged."""

    files: Sequence[Path]
    text_field: str = "text"
    source_field: str | None = None
    separator: str | None = None
    batch_bytes: int = BATCH_BYTES
    split_documents: str | int | None = None
    ext: Sequence[str] = ()
    total_bytes: int | None = field(init=False)
    expected_tokens: int | None = field(init=False, default=None)
    identity: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        check_utf8(
            text_field=self.text_field, source_field=self.source_field or "", separator=self.separator or ""
        )
        if self.separator and self.split_documents:
            raise InputError("--separator and --split_documents both cut text files: pass one of them")
        if len((self.separator or "").encode()) > cutting.TAIL_BYTES:
            raise InputError(f"--separator is longer than {cutting.TAIL_BYTES} bytes: choose a shorter one")
        sizes = [size_of(file) for file in self.files]
        self.total_bytes = sum(sizes)
        names = [[file.name, size] for file, size in zip(self.files, sizes, strict=True)]
        self.identity = {"files": names, "text_field": self.text_field, "source_field": self.source_field}
        self.identity["separator"] = self.separator
        if self.split_documents:  # without, as it was before there was any
            self.identity["split_documents"] = self.split_documents

    @property
    def fields(self) -> tuple[str, str | None]:
        return self.text_field, self.source_field

    def batches(self, position: dict[str, Any] | None) -> Iterator[Batch]:
        """From `position`, the next_position of a batch, on. A position is {file, offset in its content,
        row in it}."""
        first, first_offset, first_row = self._start(position)
        readers = {
            "lines": self._json_batches,
            "json": self._json_batches,
            "csv": self._csv_batches,
            "parquet": self._table_batches,
            "text": self._text_batches,
        }
        for i in range(first, len(self.files)):
            offset, row = (first_offset, first_row) if i == first else (0, 0)
            yield from readers[format_of(self.files[i], self.ext)](i, offset, row)
            yield EndOfFile(0, 0, {"file": i + 1, "offset": 0, "row": 0})

    def _start(self, position: dict[str, Any] | None) -> tuple[int, int, int]:
        if position is None:
            return 0, 0, 0
        again = "remove the folder and prepare it again"
        file, offset, row = (
            count_entry(position, key, "position", again) for key in ("file", "offset", "row")
        )
        if file > len(self.files):
            raise InputError(f"position: file is {file}, but there are {len(self.files)}: {again}")
        return file, offset, row

    def _text_batches(self, i: int, offset: int, row: int) -> Iterator[Batch]:
        splitter: Splitter = Whole()
        if self.separator:
            splitter = Separated(self.separator.encode())
        elif self.split_documents:
            by_size = isinstance(self.split_documents, int)
            splitter = Pieces(self.split_documents) if by_size else Paragraphs()
        yield from self._cut(TextBatch, i, splitter, offset, row)

    def _json_batches(self, i: int, offset: int, row: int) -> Iterator[Batch]:
        splitter, begin = LINES, 0
        if format_of(self.files[i]) == "json":
            splitter, begin = json_layout(self.files[i])
        batches = self._cut(JsonBatch, i, splitter, max(offset, begin), row, begin, fields=self.fields)
        if not begin:
            yield from batches
            return
        last = b""
        for batch in batches:
            last = batch.content.rstrip() or last
            yield batch
        if last and not last.endswith(b"]"):
            raise cutting.damaged(self.files[i], EOFError("the array in it does not end"))

    def _csv_batches(self, i: int, offset: int, row: int) -> Iterator[Batch]:
        header, delimiter, begin = csv_header(self.files[i], self.text_field)
        for name in (self.text_field, self.source_field):
            if header.count(name) > 1:
                raise InputError(f"{self.files[i]}: two columns are named {name!r}: rename one")
        more = {"header": header, "delimiter": delimiter, "fields": self.fields}
        splitter = Records(delimiter.encode())
        yield from self._cut(CsvBatch, i, splitter, max(offset, begin), row, begin, **more)

    def _cut(
        self,
        kind: type[JsonBatch | CsvBatch | TextBatch],
        i: int,
        splitter: Splitter,
        offset: int,
        row: int,
        content_begin: int = 0,
        **more: Any,
    ) -> Iterator[Batch]:
        """Batches of file i from `offset` on, whose documents the splitter finds. Before content_begin there are
        none."""
        name = cutting.on_a_line(str(self.files[i]))
        with cutting.Stream(self.files[i]) as stream:
            pieces = cutting.cut(stream, offset, splitter, self.batch_bytes)
            for piece, begin, end, n_rows, too_long, read in pieces:
                position = {"file": i, "offset": end, "row": row + n_rows}
                problem = TOO_LONG if too_long else None
                at_start = begin == content_begin == 0
                yield kind(n_rows, read, position, piece, name, row, splitter, at_start, problem, **more)
                row += n_rows

    def _table_batches(self, i: int, offset: int, row: int) -> Iterator[Batch]:
        """From `row` on; a parquet file has no offset."""
        for batch in tables.batches(self.files[i], self.fields, row, self.batch_bytes):
            batch.next_position = {"file": i, "offset": 0, "row": batch.first_row + batch.n_rows}
            yield batch


def head_of(file: Path) -> bytes:
    """The beginning of a file's content, of about HEAD_BYTES."""
    head, block = b"", b"-"
    with cutting.Stream(file) as stream:
        while block and len(head) < HEAD_BYTES:
            block = stream.read(HEAD_BYTES)
            head += block
    return head


def json_layout(file: Path) -> tuple[Splitter, int]:
    """How rows follow each other in a .json file, and where they begin: as the values of an array; as lines, where
    one is an object from its first character to its last (the first may be damaged); as values of any form, such as
    objects over several lines."""
    head = head_of(file)
    mark = len(BYTE_ORDER_MARK) if head.startswith(BYTE_ORDER_MARK) else 0
    begin = len(head) - len(head[mark:].lstrip())
    if head[begin : begin + 1] == b"[":
        return Values(), begin + 1
    objects = (line for line in head[mark:].split(b"\n") if line.startswith(b"{"))
    return (LINES if any(is_one_value(line) for line in objects) else Values()), 0


def is_one_value(line: bytes) -> bool:
    spans, end = Values().spans(line)
    return len(spans) == 1 and not line[end:].strip()


def csv_header(file: Path, text_field: str) -> tuple[list[str], str, int]:
    """(the names of the columns, what is between them, where the records begin) of a CSV file. The delimiter is
    the one by which a column has the name text_field. Raises InputError where none is."""
    head = head_of(file)
    columns: dict[str, list[str]] = {}
    for delimiter in CSV_DELIMITERS:
        end = Records(delimiter.encode()).documents(head)[:1]
        try:
            text = end[0].removeprefix(BYTE_ORDER_MARK).decode() if end else ""
            columns[delimiter] = next(csv.reader([text], delimiter=delimiter, strict=True), [])
        except (csv.Error, ValueError):
            continue
        if text_field in columns[delimiter]:
            return columns[delimiter], delimiter, len(end[0])
    if not head.strip():
        return [text_field], ",", 0
    names = cutting.columns_in_words(columns.get(",", []))
    raise InputError(f"{file}: no column {text_field!r}, only {names}; --text_field names it")
