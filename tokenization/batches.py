"""Rows that are tokenized together: what the reader cuts and a worker parses, in each format. A batch travels
from one process to the other; parsing is the worker's share of the work."""

import csv
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from base.errors import InputError, one_line, require
from tokenization import cutting
from tokenization.splitting import LINES, Splitter

TOO_LONG = "longer than 64 MiB; text files are cut into documents with --split_documents or --separator"
SOURCE_CHARACTERS = 200
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(slots=True)
class Row:
    """One document, or why it is not one."""

    where: str  # "file:line" for people
    text: str = ""
    source: str = ""  # the part of the corpus it belongs to, for the statistics
    problem: str | None = None


class Batch(Protocol):
    """Rows that are tokenized together. It travels to another process."""

    n_rows: int
    read_bytes: int  # of the files, compressed as they are, since the batch before
    next_position: dict[str, Any]  # JSON: where the next batch begins

    def rows(self) -> Iterator[Row]: ...


class Source(Protocol):
    """Where documents come from, in an order that no number of workers, batch size or interruption changes."""

    total_bytes: int | None  # of the files, for progress and estimates; None if unknown
    expected_tokens: int | None  # of all of it, where total_bytes is None
    identity: dict[str, Any]  # changes when the corpus does; JSON

    def batches(self, position: dict[str, Any] | None) -> Iterator[Batch]: ...


@dataclass
class EndOfFile:
    """No rows: tells that the next position is where the next file begins."""

    n_rows: int
    read_bytes: int
    next_position: dict[str, Any]

    def rows(self) -> Iterator[Row]:
        return iter(())


def limited(batches: Iterator[Batch], rows_before: int, limit: int | None) -> Iterator[Batch]:
    """Batches up to the limit; of the last one only the first rows."""
    rows = rows_before
    for batch in batches:
        if limit is not None and rows + batch.n_rows > limit:
            if limit > rows:
                yield FirstRows(limit - rows, batch.read_bytes, batch.next_position, batch)
            return
        rows += batch.n_rows
        yield batch


@dataclass
class FirstRows:
    """The first n_rows of a batch. Nothing is read after it."""

    n_rows: int
    read_bytes: int
    next_position: dict[str, Any]
    batch: Batch

    def rows(self) -> Iterator[Any]:
        first = self.batch.first_row
        for row in self.batch.rows():
            if int(row.where.rpartition(":")[2]) > first + self.n_rows:
                return
            yield row


def _row_of(where: str, text: object, source: object, text_field: str) -> Row:
    """A row of a record whose text may be missing or something else."""
    if not isinstance(text, str):
        kind = "missing" if text is None else f"{type(text).__name__}, not text"
        return Row(where, problem=f"field {text_field!r} is {kind}")
    return Row(where, text, source_name(source))


def source_name(value: object) -> str:
    """Of a row, for the statistics: the beginning of what its field holds, if that is text."""
    return value[:SOURCE_CHARACTERS] if isinstance(value, str) else ""


def _decoded(where: str, content: bytes, of: str) -> Row:
    try:
        return Row(where, content.decode())
    except UnicodeDecodeError as error:
        return Row(where, problem=f"invalid UTF-8 at byte {error.start} of the {of}")


@dataclass
class CutBatch:
    """A piece of a file that ends where a document does, and how its documents are found."""

    n_rows: int
    read_bytes: int
    next_position: dict[str, Any]
    content: bytes
    file: str
    first_row: int
    splitter: Splitter
    at_start: bool
    problem: str | None = None

    def rows(self) -> Iterator[Row]:
        if self.problem:
            yield Row(f"{self.file}:{self.first_row + 1}", problem=self.problem)
            return
        pieces = self.splitter.documents(self.content)
        if self.at_start and pieces:
            pieces[0] = pieces[0].removeprefix(BYTE_ORDER_MARK)
        for number, piece in enumerate(pieces, self.first_row + 1):
            where = f"{self.file}:{number}"
            if len(piece) > cutting.MAX_DOCUMENT_BYTES:
                yield Row(where, problem=TOO_LONG)
            elif (row := self.row(where, piece)) is not None:
                yield row

    def row(self, where: str, piece: bytes) -> Row | None:
        """What a document's bytes are; None for an empty line."""
        raise NotImplementedError


@dataclass
class TextBatch(CutBatch):
    """A text file, or a piece of one."""

    def row(self, where: str, piece: bytes) -> Row:
        return _decoded(where, piece, "document")


@dataclass(kw_only=True)
class JsonBatch(CutBatch):
    """Rows of JSON, as they are: lines, or values of an array."""

    fields: tuple[str, str | None]

    def row(self, where: str, piece: bytes) -> Row | None:
        if not piece or piece.isspace():
            return None
        try:
            record = _json_loads()(piece)
        except ValueError as error:
            return Row(where, problem=_json_problem(piece, error, self.splitter == LINES))
        text_field, source_field = self.fields
        source = _lookup(record, source_field) if source_field else None
        return _row_of(where, _lookup(record, text_field), source, text_field)


@dataclass(kw_only=True)
class CsvBatch(CutBatch):
    """Records of CSV. `header` are the names of its columns."""

    header: list[str]
    delimiter: str
    fields: tuple[str, str | None]

    def row(self, where: str, piece: bytes) -> Row | None:
        if not piece or piece.isspace():
            return None
        csv.field_size_limit(cutting.MAX_DOCUMENT_BYTES)
        try:
            (values,) = csv.reader([piece.decode()], delimiter=self.delimiter, strict=True)
        except UnicodeDecodeError as error:
            return Row(where, problem=f"invalid UTF-8 at byte {error.start} of the record")
        except (csv.Error, ValueError) as error:
            return Row(where, problem=f"invalid CSV ({one_line(error)}){self._over_lines(piece)}")
        if len(values) != len(self.header):
            what = f"{len(values)} field{'s' * (len(values) != 1)}, where the header has {len(self.header)}"
            return Row(where, problem=what + self._over_lines(piece))
        record = dict(zip(self.header, values, strict=True))
        text_field, source_field = self.fields
        return _row_of(where, record[text_field], record.get(source_field), text_field)

    def _over_lines(self, piece: bytes) -> str:
        """What a quote that is not closed costs besides its own line."""
        lines = piece.rstrip(b"\r\n").count(b"\n") + 1
        return f", in a record of {lines:,} lines: is a quote not closed?" if lines > 1 else ""


@functools.cache
def _json_loads() -> Callable[[bytes], object]:
    return require("orjson", "reading JSON").loads


def _json_problem(piece: bytes, error: ValueError, is_line: bool) -> str:
    try:
        piece.decode()
    except UnicodeDecodeError as e:
        return f"invalid UTF-8 at byte {e.start} of the {'line' if is_line else 'value'}"
    return f"invalid JSON ({error})"


def _lookup(record: object, dotted: str) -> object:
    """The value at `dotted`: the key itself if there is one, else key by key into nested objects; None
    where there is none."""
    if isinstance(record, dict) and dotted in record:
        return record[dotted]
    for key in dotted.split("."):
        record = record.get(key) if isinstance(record, dict) else None
    return record


@dataclass
class TableBatch:
    """Rows of a pyarrow.RecordBatch."""

    n_rows: int
    read_bytes: int
    next_position: dict[str, Any]
    table: Any
    file: str
    first_row: int
    names: list[str]

    def rows(self) -> Iterator[Row]:
        columns = [self._column(name) for name in self.names]
        for number, values in enumerate(zip(*columns, strict=True), self.first_row + 1):
            where, text, source = f"{self.file}:{number}", values[0], values[1] if len(values) > 1 else None
            if isinstance(text, bytes):
                row = _decoded(where, text, "text")
                row.source = source_name(source)
                yield row
            else:
                yield _row_of(where, text, source, self.names[0])

    def _column(self, name: str) -> list[object]:
        """Its values. Raises InputError where pyarrow cannot give them."""
        import pyarrow as pa
        import pyarrow.compute as pc

        top, *nested = name.split(".") if name not in self.table.schema.names else [name]
        column = self.table.column(top)
        try:
            if nested:
                column = pc.struct_field(column, nested)
            if pa.types.is_dictionary(column.type):
                column = column.dictionary_decode()
            try:
                return column.to_pylist()
            except UnicodeDecodeError:  # a string column may hold anything: look at its bytes
                large = pa.types.is_large_string(column.type)
                return column.view(pa.large_binary() if large else pa.binary()).to_pylist()
        except (pa.ArrowException, ValueError, OverflowError, ImportError) as error:
            raise InputError(f"{self.file}: column {name!r} is not text ({one_line(error)})") from error


@dataclass
class RecordBatch:
    """Rows of `datasets`: {column: [value, …]}."""

    n_rows: int
    read_bytes: int
    next_position: dict[str, Any]
    columns: dict[str, list[Any]]
    where: str
    first_row: int
    fields: tuple[str, str | None]

    def rows(self) -> Iterator[Row]:
        text_field, source_field = self.fields
        for i in range(self.n_rows):
            record = {name: values[i] for name, values in self.columns.items()}
            source = _lookup(record, source_field) if source_field else None
            where = f"{self.where}:{self.first_row + i + 1}"
            yield _row_of(where, _lookup(record, text_field), source, text_field)
