"""A parquet file as batches of rows."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from base.errors import InputError, one_line, require
from base.files import size_of
from tokenization import cutting
from tokenization.batches import TableBatch

MOST_ROWS = 10_000  # of a batch


def batches(path: Path, fields: tuple[str, str | None], row: int, batch_bytes: int) -> Iterator[TableBatch]:
    """From `row` on. `fields` are the columns of text and source. Raises InputError where the file is damaged or
    has no such column of text. next_position is the caller's to fill."""
    text_field, source_field = fields
    with _open(path) as file:
        check_column(file, path, text_field)
        names = [text_field, *([source_field] if _kind(file, path, source_field) is not None else [])]
        groups = _groups(file, path, text_field)
        read_per_row = size_of(path) / max(1, sum(n_rows for n_rows, _ in groups))
        done = 0
        for group, (n_rows, text_bytes) in enumerate(groups):
            if done + n_rows <= row:  # before a resumed position
                done += n_rows
                continue
            bytes_per_row = max(1.0, text_bytes / max(1, n_rows))
            at_once = max(1, min(int(batch_bytes / bytes_per_row), MOST_ROWS))
            for table in _read(file.iter_batches(at_once, row_groups=[group], columns=names), path):
                read, skip = int(read_per_row * table.num_rows), max(0, row - done)
                done += table.num_rows
                if skip < table.num_rows:
                    table = table.slice(skip)
                    first = done - table.num_rows
                    yield TableBatch(
                        table.num_rows, read, {}, table, cutting.on_a_line(str(path)), first, names
                    )


def check_column(file: Any, path: Path, name: str) -> None:
    """Raises InputError where a parquet file has no column of text of this name, or several."""
    kind = _kind(file, path, name)
    if kind is None:
        leaves = sorted({file.schema.column(c).path for c in range(len(file.schema))})
        raise InputError(
            f"{path}: no column {name!r}, only {cutting.columns_in_words(leaves)}; --text_field names it"
        )
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    binaries = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_null)
    if not any(is_kind(kind) for is_kind in (*texts, *binaries)):
        raise InputError(
            f"{path}: column {name!r} is of type {str(kind)[:100]}, not text; --text_field names another"
        )


def _kind(file: Any, path: Path, name: str | None) -> Any:
    """The type of a column, with dots where it is nested in structs; None where there is none. Raises InputError
    where there are several."""
    import pyarrow as pa

    try:
        fields = list(file.schema_arrow)
    except Exception as error:  # of many kinds, by what is damaged
        raise cutting.damaged(path, error) from error
    kind = None
    for part in [name] if any(f.name == name for f in fields) else (name or "").split("."):
        same = [f for f in fields if f.name == part]
        if len(same) > 1:
            raise InputError(f"{path}: {len(same)} columns are named {part!r}: rename all but one")
        if not same:
            return None
        kind = same[0].type
        kind = kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind
        fields = [kind.field(i) for i in range(kind.num_fields)] if pa.types.is_struct(kind) else []
    return kind


@contextmanager
def _open(path: Path) -> Iterator[Any]:
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


def _groups(file: Any, path: Path, text_field: str) -> list[tuple[int, int]]:
    """Of each row group its rows and the bytes of their text."""
    try:
        groups = []
        for group in map(file.metadata.row_group, range(file.num_row_groups)):
            chunks = map(group.column, range(group.num_columns))
            sizes = (c.total_uncompressed_size for c in chunks if c.path_in_schema == text_field)
            groups.append((group.num_rows, next(sizes, 0)))
    except Exception as error:  # of many kinds, by what is damaged
        raise cutting.damaged(path, error) from error
    return groups


def _read(tables: Iterator[Any], path: Path) -> Iterator[Any]:
    while True:
        try:
            table = next(tables, None)
        except Exception as error:  # of many kinds, by what is damaged
            raise cutting.damaged(path, error) from error
        if table is None:
            return
        yield table
