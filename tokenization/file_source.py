"""Local files as a stream of batches that can be resumed at any of them.

    files = find_files(["corpus/**/*.jsonl.zst"])
    for batch in FileSource(files, text_field="text").batches(position=None):
        for row in batch.rows(): ...           # in a worker
        batch.next_position                    # JSON: where the next batch begins

The order of rows is that of the sorted files."""

import glob
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from base.errors import InputError, MissingFile, one_line, require
from base.files import count_entry, size_of
from base.text import check_utf8, printable
from tokenization import cutting
from tokenization.batches import TOO_LONG, Batch, EndOfFile, LineBatch, TableBatch, TextBatch

TEXT_SUFFIXES = (".txt", ".md", ".rst")
FORMATS = (".jsonl", ".parquet", *TEXT_SUFFIXES)
COMPRESSIONS = (".zst", ".gz")
KNOWN = f"{', '.join(FORMATS)}, plain or {' or '.join(COMPRESSIONS)}"
BATCH_BYTES = 4 << 20  # of text: the unit of work of a tokenizing process
MOST_ROWS = 10_000  # of a batch of parquet


def find_files(sources: Sequence[str | Path]) -> list[Path]:
    """The files that paths, folders (searched through) and glob patterns (** included) name: each once,
    however many patterns and links lead to it, sorted by path.

    Raises MissingFile where one names nothing, InputError where a named file is of no known format."""
    found: dict[Path, Path] = {}  # by where it really lies
    for source in map(str, sources):
        if not source.strip():
            raise InputError("--source= is empty: name files, folders or a pattern")
        for file in _named(source):
            if format_of(file) is None:
                raise InputError(f"{file} is of no known format: {KNOWN}")
            real = Path(os.path.realpath(file))
            found[real] = min(file, found.get(real, file))
    return sorted(found.values())


def _named(source: str) -> list[Path]:
    """What one path, folder or pattern names."""
    place = os.path.expanduser(source)
    if os.path.isdir(place):
        files = [p for p in sorted(Path(place).rglob("*")) if os.path.isfile(p) and format_of(p)]
        if not files:
            raise MissingFile(
                f"{Path(place)} holds no {', '.join(FORMATS)} file, plain or {' or '.join(COMPRESSIONS)}"
            )
        return files
    if os.path.isfile(place):
        return [Path(place)]
    matches = sorted(glob.glob(place, recursive=True))
    files = [Path(match) for match in matches if os.path.isfile(match)]
    if any(map(os.path.isdir, matches)) and not files:
        raise MissingFile(f"source {source!r} matches folders alone: add /* or /**/* for what is in them")
    if matches and not files:
        raise MissingFile(
            f"source {source!r} is not a file that can be read: is it a link to something that is gone?"
        )
    if not files:
        raise MissingFile(f"source {source!r} is no file, no folder, and matches nothing: check the path")
    return files


def format_of(file: Path) -> str | None:
    """jsonl, parquet or text by the file's name, a compression suffix aside; None for anything else."""
    suffixes = [s for s in file.suffixes if s not in COMPRESSIONS]
    last = suffixes[-1] if suffixes else ""
    return "text" if last in TEXT_SUFFIXES else last[1:] if last in FORMATS else None


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
    total_bytes: int | None = field(init=False)
    expected_tokens: int | None = field(init=False, default=None)
    identity: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        check_utf8(
            text_field=self.text_field, source_field=self.source_field or "", separator=self.separator or ""
        )
        sizes = [size_of(file) for file in self.files]
        self.total_bytes = sum(sizes)
        names = [[file.name, size] for file, size in zip(self.files, sizes, strict=True)]
        self.identity = {"files": names, "text_field": self.text_field, "source_field": self.source_field}
        self.identity["separator"] = self.separator

    def batches(self, position: dict[str, Any] | None) -> Iterator[Batch]:
        """From `position`, the next_position of a batch, on. A position is {file, offset in its content,
        row in it}."""
        first, first_offset, first_row = self._start(position)
        readers = {"jsonl": self._line_batches, "parquet": self._table_batches, "text": self._text_batches}
        for i in range(first, len(self.files)):
            offset, row = (first_offset, first_row) if i == first else (0, 0)
            yield from readers[format_of(self.files[i])](i, offset, row)
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

    def _line_batches(self, i: int, offset: int, row: int) -> Iterator[Batch]:
        fields, name = (self.text_field, self.source_field), printable(str(self.files[i]))
        with cutting.Stream(self.files[i]) as stream:
            for piece, begin, end, too_long, read in cutting.cut(stream, offset, b"\n", self.batch_bytes):
                n_rows = piece.count(b"\n") + (not piece.endswith(b"\n"))
                position = {"file": i, "offset": end, "row": row + n_rows}
                problem = TOO_LONG if too_long else None
                yield LineBatch(n_rows, read, position, piece, name, row, fields, begin == 0, problem)
                row += n_rows

    def _text_batches(self, i: int, offset: int, row: int) -> Iterator[Batch]:
        separator, name = self.separator.encode() if self.separator else None, printable(str(self.files[i]))
        with cutting.Stream(self.files[i]) as stream:
            for piece, begin, end, too_long, read in cutting.cut(stream, offset, separator, self.batch_bytes):
                n_rows = len(cutting.documents(piece, separator))
                position = {"file": i, "offset": end, "row": row + n_rows}
                problem = TOO_LONG if too_long else None
                yield TextBatch(n_rows, read, position, piece, name, row, separator, begin == 0, problem)
                row += n_rows

    def _table_batches(self, i: int, offset: int, row: int) -> Iterator[Batch]:
        """From `row` on; a parquet file has no offset."""
        path, name = self.files[i], printable(str(self.files[i]))
        with _open_parquet(path) as file:
            columns, groups = _layout(file, path, self.text_field)
            if self.text_field not in columns:
                raise InputError(
                    f"{path}: no column {self.text_field!r}, only {', '.join(sorted(columns))}; "
                    "--text_field names it"
                )
            names = [self.text_field, *({self.source_field} & columns)]  # statistics do without a source
            read_per_row = size_of(path) / max(1, sum(n_rows for n_rows, _ in groups))
            done = 0
            for group, (n_rows, text_bytes) in enumerate(groups):
                if done + n_rows <= row:  # before a resumed position
                    done += n_rows
                    continue
                bytes_per_row = max(1.0, text_bytes / max(1, n_rows))
                at_once = max(1, min(int(self.batch_bytes / bytes_per_row), MOST_ROWS))
                tables = file.iter_batches(at_once, row_groups=[group], columns=names)
                for table in _read(tables, path):
                    read, skip = int(read_per_row * table.num_rows), max(0, row - done)
                    done += table.num_rows
                    if skip < table.num_rows:
                        table = table.slice(skip)
                        position = {"file": i, "offset": 0, "row": done}
                        first = done - table.num_rows
                        yield TableBatch(table.num_rows, read, position, table, name, first, names)


@contextmanager
def _open_parquet(path: Path) -> Iterator[Any]:
    """A pyarrow.parquet.ParquetFile."""
    parquet = require("pyarrow.parquet", "reading .parquet")
    try:
        file = parquet.ParquetFile(path, buffer_size=cutting.PIECE_BYTES, pre_buffer=False)
    except PermissionError as error:
        raise InputError(f"{path}: {one_line(error)}") from error
    except Exception as error:  # of many kinds, by what is damaged
        raise cutting.damaged(path, error) from error
    with file:
        yield file


def _layout(file: Any, path: Path, text_field: str) -> tuple[set[str], list[tuple[int, int]]]:
    """(its columns, of each row group its rows and the bytes of their text) by the metadata of a parquet file."""
    try:
        columns = {file.schema.column(c).path for c in range(len(file.schema))}
        groups = []
        for group in map(file.metadata.row_group, range(file.num_row_groups)):
            chunks = map(group.column, range(group.num_columns))
            sizes = (c.total_uncompressed_size for c in chunks if c.path_in_schema == text_field)
            groups.append((group.num_rows, next(sizes, 0)))
    except Exception as error:  # of many kinds, by what is damaged
        raise cutting.damaged(path, error) from error
    return columns, groups


def _read(tables: Iterator[Any], path: Path) -> Iterator[Any]:
    while True:
        try:
            table = next(tables, None)
        except Exception as error:  # of many kinds, by what is damaged
            raise cutting.damaged(path, error) from error
        if table is None:
            return
        yield table
