"""Where documents come from: local files and hub datasets, as a stream of batches that can be resumed at
any of them.

    files = find_files(["corpus/**/*.jsonl.zst"])
    for batch in FileSource(files, field="text").batches(position=None):
        for row in batch.rows(): ...           # in a worker: parsing is its share of the work
        batch.next_position                    # JSON: where the next batch begins

The reader only decompresses and cuts, about a gigabyte a second; what a batch holds is parsed where it is
tokenized. The order of rows is that of the sorted files, and no number of workers, batch size or
interruption changes it."""

import glob
import gzip
import importlib
import io
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from base.errors import InputError, MissingFile, MissingPackage

TEXT_SUFFIXES = (".txt", ".md", ".rst")
FORMATS = (".jsonl", ".parquet", *TEXT_SUFFIXES)
COMPRESSIONS = (".zst", ".gz")
BATCH_BYTES = 4 << 20  # of text: the unit of work of a tokenizing process
PIECE_BYTES = 1 << 20  # what is read at once
MAX_DOCUMENT_BYTES = 64 << 20  # a longer one is a bad row: tokenizing it would take gigabytes
TOO_LONG = "longer than 64 MiB; text files are cut into documents with --separator"


@dataclass(slots=True)
class Row:
    """One document, or why it is none."""

    where: str  # "file:line" for people
    text: str = ""
    source: str = ""  # the part of the corpus it belongs to, for the statistics
    problem: str | None = None


class Batch(Protocol):
    """Rows that are tokenized together. It travels to another process."""

    n_rows: int
    read_bytes: int  # of the files, compressed as they are, since the batch before
    next_position: dict[str, Any]

    def rows(self) -> Iterator[Row]: ...


class Source(Protocol):
    total_bytes: int | None  # of the files, for progress and estimates; None if unknown
    identity: dict[str, Any]  # changes when the corpus does; JSON

    def batches(self, position: dict[str, Any] | None) -> Iterator[Batch]: ...


# ---- files


def find_files(sources: Sequence[str | Path]) -> list[Path]:
    """The files that paths, folders (searched through) and glob patterns (** included) name: each once,
    however many patterns and links lead to it, sorted by path.

    Raises FileNotFoundError where one names nothing, ValueError where a named file is of no known format.
    """
    found: dict[Path, Path] = {}  # by where it really lies
    for source in map(str, sources):
        if not source.strip():
            raise InputError("--source= is empty: name files, folders or a pattern")
        path = Path(source).expanduser()
        if path.is_dir():
            files = [p for p in sorted(path.rglob("*")) if p.is_file() and format_of(p)]
            if not files:
                raise MissingFile(
                    f"{path} holds no {', '.join(FORMATS)} file, plain or {' or '.join(COMPRESSIONS)}"
                )
        elif path.is_file():
            files = [path]
        else:
            matches = sorted(glob.glob(os.path.expanduser(source), recursive=True))
            files = [Path(p) for p in matches if os.path.isfile(p)]
            if matches and not files:
                raise MissingFile(
                    f"source {source!r} matches folders alone: add /* or /**/* for what is in them"
                )
            if not files:
                raise MissingFile(
                    f"source {source!r} is no file, no folder, and matches nothing: check the path"
                )
        for file in files:
            if format_of(file) is None:
                raise InputError(
                    f"{file} is of no known format: {', '.join(FORMATS)}, plain or {' or '.join(COMPRESSIONS)}"
                )
            real = file.resolve()
            found[real] = min(file, found.get(real, file))
    return sorted(found.values())


def format_of(file: Path) -> str | None:
    """jsonl, parquet or text by the file's name, a compression suffix aside; None for anything else."""
    suffixes = [s for s in file.suffixes if s not in COMPRESSIONS]
    last = suffixes[-1] if suffixes else ""
    return "text" if last in TEXT_SUFFIXES else last[1:] if last in FORMATS else None


@dataclass
class FileSource:
    """Local files. `text_field` and `source_field` name columns or keys, with dots for nested ones;
    `separator` cuts text files into documents, which are else one each."""

    files: Sequence[Path]
    text_field: str = "text"
    source_field: str | None = None
    separator: str | None = None
    batch_bytes: int = BATCH_BYTES
    total_bytes: int | None = field(init=False)
    identity: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        sizes = [file.stat().st_size for file in self.files]
        self.total_bytes = sum(sizes)
        names = [[file.name, size] for file, size in zip(self.files, sizes, strict=True)]
        self.identity = {"files": names, "text_field": self.text_field, "source_field": self.source_field}
        self.identity["separator"] = self.separator

    def batches(self, position: dict[str, Any] | None) -> Iterator[Batch]:
        """From `position`, the next_position of a batch, on. A position is {file, offset in its content,
        row in it}."""
        start = position or {"file": 0, "offset": 0, "row": 0}
        readers = {"jsonl": self._line_batches, "parquet": self._parquet_batches, "text": self._text_batches}
        for i in range(start["file"], len(self.files)):
            offset, row = (start["offset"], start["row"]) if i == start["file"] else (0, 0)
            kind = format_of(self.files[i])
            with _named_errors(self.files[i]):
                yield from readers[kind](i, offset, row)

    def _line_batches(self, i: int, offset: int, row: int) -> Iterator[Batch]:
        fields = (self.text_field, self.source_field)
        with _open(self.files[i]) as stream:
            for piece, begin, end, too_long, read in _cut(stream, offset, b"\n", self.batch_bytes):
                n_rows = piece.count(b"\n") + (not piece.endswith(b"\n"))
                position = {"file": i, "offset": end, "row": row + n_rows}
                problem = TOO_LONG if too_long else None
                yield LineBatch(
                    n_rows, read, position, piece, str(self.files[i]), row, fields, begin == 0, problem
                )
                row += n_rows
        yield EndOfFile(0, 0, {"file": i + 1, "offset": 0, "row": 0})

    def _text_batches(self, i: int, offset: int, row: int) -> Iterator[Batch]:
        with _open(self.files[i]) as stream:
            separator = self.separator.encode() if self.separator else None
            for piece, begin, end, too_long, read in _cut(stream, offset, separator, self.batch_bytes):
                n_rows = len(_documents(piece, separator))
                position = {"file": i, "offset": end, "row": row + n_rows}
                problem = TOO_LONG if too_long else None
                yield TextBatch(
                    n_rows, read, position, piece, str(self.files[i]), row, separator, begin == 0, problem
                )
                row += n_rows
        yield EndOfFile(0, 0, {"file": i + 1, "offset": 0, "row": 0})

    def _parquet_batches(self, i: int, offset: int, row: int) -> Iterator[Batch]:
        pq = _import("pyarrow.parquet", "reading .parquet", "pyarrow")
        with pq.ParquetFile(self.files[i], buffer_size=PIECE_BYTES, pre_buffer=False) as file:
            have = {column.path for column in (file.schema.column(c) for c in range(len(file.schema)))}
            if self.text_field not in have:
                raise FieldError(
                    f"no column {self.text_field!r}, only {', '.join(sorted(have))}; --text_field names it"
                )
            names = [self.text_field, *({self.source_field} & have)]  # statistics do without a source
            per_row = self.files[i].stat().st_size / max(1, file.metadata.num_rows)
            done = 0
            for group in range(file.num_row_groups):
                metadata = file.metadata.row_group(group)
                if done + metadata.num_rows <= row:  # before a resumed position
                    done += metadata.num_rows
                    continue
                text = next(
                    c
                    for c in map(metadata.column, range(metadata.num_columns))
                    if c.path_in_schema == names[0]
                )
                at_once = int(
                    self.batch_bytes / max(1.0, text.total_uncompressed_size / max(1, metadata.num_rows))
                )
                for table in file.iter_batches(
                    max(1, min(at_once, 10_000)), row_groups=[group], columns=names
                ):
                    skip = max(0, row - done)
                    done += table.num_rows
                    if skip < table.num_rows:
                        read, table = int(per_row * table.num_rows), table.slice(skip)
                        position = {"file": i, "offset": 0, "row": done}
                        yield TableBatch(
                            table.num_rows,
                            read,
                            position,
                            table,
                            str(self.files[i]),
                            done - table.num_rows,
                            names,
                        )
        yield EndOfFile(0, 0, {"file": i + 1, "offset": 0, "row": 0})


def _open(file: Path) -> BinaryIO:
    """Its content, decompressed. Both decompressors raise EOFError where the file ends too early."""
    if file.suffix == ".gz":
        return gzip.open(file, "rb")
    if file.suffix == ".zst":
        return _import("backports.zstd", "reading .zst", "backports.zstd").open(file, "rb")
    return open(file, "rb")


def _cut(
    stream: BinaryIO, offset: int, separator: bytes | None, size: int
) -> Iterator[tuple[bytes, int, int, bool, int]]:
    """(piece, its begin, its end, whether it is too long, bytes read of the file) from `offset` on.

    Pieces of about `size` bytes end behind a separator; without one the whole is a piece. Of a document
    that is longer than MAX_DOCUMENT_BYTES only the first bytes are given, so that memory stays bounded."""
    file = getattr(stream, "fileobj", None) or getattr(
        stream, "_fp", stream
    )  # the compressed one inside gzip's and zstd's
    _skip(stream, offset)
    begin, content, told = offset, b"", file.tell()
    wanted = size if separator else MAX_DOCUMENT_BYTES + 1
    while True:
        blocks, length, block = [content], len(content), b"-"
        while length < wanted and block:
            block = stream.read(PIECE_BYTES)
            blocks.append(block)
            length += len(block)
        content, read = b"".join(blocks), file.tell() - told
        if not block:
            if content:
                yield content, begin, begin + len(content), False, read
            return
        # From the left, as the whole file would be cut: in three line breaks rfind sees other pairs than
        # split
        rest = (
            content.rpartition(separator)[2]
            if separator == b"\n"
            else content.split(separator)[-1]
            if separator
            else content
        )
        if len(rest) < len(content):
            end = begin + len(content) - len(rest)
            yield content[: end - begin], begin, end, False, read
            begin, content, wanted, told = end, rest, size, told + read
        elif length > MAX_DOCUMENT_BYTES:
            end, rest = _skip_document(stream, begin + length, content[-1024:], separator)
            yield content[:256], begin, end, True, read
            begin, content, wanted, told = end, rest, size, told + read
        else:
            wanted = length + size  # a long document: go on collecting


def _documents(content: bytes, separator: bytes | None) -> list[bytes]:
    """What a piece of a text file holds. Behind the last separator there is no empty document."""
    if not separator:
        return [content]
    documents = content.split(separator)
    return documents if documents[-1] else documents[:-1]


def _skip(stream: BinaryIO, n_bytes: int) -> None:
    if isinstance(stream, io.BufferedReader):
        stream.seek(n_bytes)
        return
    # What is compressed must be read to be skipped
    while n_bytes:
        block = stream.read(min(PIECE_BYTES, n_bytes))
        if not block:
            raise EOFError("it is shorter than it was when this preparation began")
        n_bytes -= len(block)


def _skip_document(stream: BinaryIO, at: int, tail: bytes, separator: bytes | None) -> tuple[int, bytes]:
    """Reads past the next separator; returns its end and what was read behind it."""
    while block := stream.read(PIECE_BYTES):
        window = tail + block
        found = window.find(separator) if separator else -1
        at += len(block)
        if found >= 0:
            rest = window[found + len(separator) :]
            return at - len(rest), rest
        tail = window[-1024:]
    return at, b""


class FieldError(ValueError):
    """The file is in order but lacks the column that was asked for."""


@contextmanager
def _named_errors(file: Path) -> Iterator[None]:
    """Whatever a library raises about a damaged file becomes one line that names the file."""
    try:
        yield
    except (GeneratorExit, KeyboardInterrupt, MemoryError, ImportError):
        raise
    except (FieldError, PermissionError) as error:
        raise InputError(f"{file}: {error}") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{file}: {reason}: the file is damaged, truncated or of another format; restore it"
        ) from error


@dataclass
class EndOfFile:
    """No rows: tells that the next position is the next file's begin."""

    n_rows: int
    read_bytes: int
    next_position: dict[str, Any]

    def rows(self) -> Iterator[Row]:
        return iter(())


@dataclass
class LineBatch:
    """Lines of a JSON Lines file, as they are."""

    n_rows: int
    read_bytes: int
    next_position: dict[str, Any]
    content: bytes
    file: str
    first_row: int
    fields: tuple[str, str | None]
    at_start: bool
    problem: str | None = None

    def rows(self) -> Iterator[Row]:
        orjson = _import("orjson", "reading .jsonl", "orjson")
        if self.problem:
            yield Row(f"{self.file}:{self.first_row + 1}", problem=self.problem)
            return
        text_field, source_field = self.fields
        content = (
            self.content.removeprefix(b"\xef\xbb\xbf") if self.at_start else self.content
        )  # a byte order mark
        for number, line in enumerate(content.split(b"\n"), self.first_row + 1):
            if not line or line.isspace():
                continue
            where = f"{self.file}:{number}"
            if len(line) > MAX_DOCUMENT_BYTES:
                yield Row(where, problem=TOO_LONG)
                continue
            try:
                record = orjson.loads(line)
            except ValueError as error:
                yield Row(where, problem=_json_problem(line, error))
                continue
            text = _lookup(record, text_field)
            if not isinstance(text, str):
                kind = "missing" if text is None else f"{type(text).__name__}, not text"
                yield Row(where, problem=f"field {text_field!r} is {kind}")
                continue
            source = _lookup(record, source_field) if source_field else None
            yield Row(where, text, source if isinstance(source, str) else "")


def _json_problem(line: bytes, error: ValueError) -> str:
    try:
        line.decode()
    except UnicodeDecodeError as e:
        return f"invalid UTF-8 at byte {e.start} of the line"
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
class TextBatch:
    """A text file, or a piece of one that ends behind a separator."""

    n_rows: int
    read_bytes: int
    next_position: dict[str, Any]
    content: bytes
    file: str
    first_row: int
    separator: bytes | None
    at_start: bool
    problem: str | None = None

    def rows(self) -> Iterator[Row]:
        if self.problem:
            yield Row(f"{self.file}:{self.first_row + 1}", problem=self.problem)
            return
        content = self.content.removeprefix(b"\xef\xbb\xbf") if self.at_start else self.content
        for number, piece in enumerate(_documents(content, self.separator), self.first_row + 1):
            where = f"{self.file}:{number}"
            if len(piece) > MAX_DOCUMENT_BYTES:
                yield Row(where, problem=TOO_LONG)
                continue
            try:
                yield Row(where, piece.decode())
            except UnicodeDecodeError as error:
                yield Row(where, problem=f"invalid UTF-8 at byte {error.start} of the document")


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
            where, text = f"{self.file}:{number}", values[0]
            if isinstance(text, bytes):
                try:
                    text = text.decode()
                except UnicodeDecodeError as error:
                    yield Row(where, problem=f"invalid UTF-8 at byte {error.start} of the text")
                    continue
            if not isinstance(text, str):
                kind = "missing" if text is None else f"{type(text).__name__}, not text"
                yield Row(where, problem=f"field {self.names[0]!r} is {kind}")
                continue
            source = values[1] if len(values) > 1 else None
            yield Row(where, text, source if isinstance(source, str) else "")

    def _column(self, name: str) -> list[object]:
        import pyarrow as pa
        import pyarrow.compute as pc

        top, *nested = name.split(".") if name not in self.table.schema.names else [name]
        column = self.table.column(top)
        if nested:
            column = pc.struct_field(column, nested)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        try:
            return column.to_pylist()
        except UnicodeDecodeError:  # a string column may hold anything: look at its bytes
            return column.view(
                pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()
            ).to_pylist()


# ---- hub


@dataclass
class HubSource:
    """A dataset of the Hugging Face hub, or a local folder of that layout, through the package `datasets`:
    streamed, or downloaded first. Raises FileNotFoundError, which says what to do, where it cannot be
    reached."""

    repo: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    text_field: str = "text"
    source_field: str | None = None
    download: bool = False
    rows_at_once: int = 500
    total_bytes: int | None = None
    identity: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        datasets = _import("datasets", f"reading {self.repo} from the hub", "datasets")
        datasets.disable_progress_bars()
        logging.getLogger("huggingface_hub").setLevel(
            logging.ERROR
        )  # its retries; the error below says it once
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self._dataset = datasets.load_dataset(
                    self.repo,
                    self.config,
                    split=self.split,
                    revision=self.revision,
                    streaming=not self.download,
                )
        except Exception as error:  # of datasets, the hub's client, the network
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
            raise MissingFile(
                f"dataset {self.repo} cannot be had from the hub ({reason}): check the network, or pass local files with "
                "--source=FILES (.jsonl, .jsonl.zst, .jsonl.gz, .parquet, .txt)"
            ) from error
        if have := self._dataset.column_names:
            if self.text_field.split(".")[0] not in have:
                raise InputError(
                    f"dataset {self.repo} has no column {self.text_field!r}, only {', '.join(have)}"
                )
            wanted = [name.split(".")[0] for name in (self.text_field, self.source_field or "")]
            self._dataset = self._dataset.select_columns([name for name in have if name in wanted])
        self.identity = {
            "repo": self.repo,
            "config": self.config,
            "split": self.split,
            "revision": self.revision,
        }
        self.identity |= {"text_field": self.text_field, "source_field": self.source_field}

    def batches(self, position: dict[str, Any] | None) -> Iterator[Batch]:
        """A position is {row} and, where the data is streamed, what `datasets` needs to go on there."""
        row = (position or {}).get("row", 0)
        where = f"{self.repo} {self.split}"
        fields = (self.text_field, self.source_field)
        if self.download:
            for first in range(row, len(self._dataset), self.rows_at_once):
                rows = self._dataset[first : first + self.rows_at_once]
                n_rows = len(next(iter(rows.values())))
                yield RecordBatch(n_rows, 0, {"row": first + n_rows}, rows, where, first, fields)
            return
        if position:
            self._dataset.load_state_dict(position["state"])
        for rows in self._dataset.iter(self.rows_at_once):
            n_rows = len(next(iter(rows.values())))
            next_position = {"row": row + n_rows, "state": self._dataset.state_dict()}
            yield RecordBatch(n_rows, 0, next_position, rows, where, row, fields)
            row += n_rows


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
            where = f"{self.where}:{self.first_row + i + 1}"
            record = {name: values[i] for name, values in self.columns.items()}
            text = _lookup(record, text_field)
            if not isinstance(text, str):
                kind = "missing" if text is None else f"{type(text).__name__}, not text"
                yield Row(where, problem=f"field {text_field!r} is {kind}")
                continue
            source = _lookup(record, source_field) if source_field else None
            yield Row(where, text, source if isinstance(source, str) else "")


def _import(module: str, purpose: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as e:
        raise MissingPackage(f"{purpose} needs the package {package}: pip install {package}") from e
