"""The same rows in every format that a source reads."""

import bz2
import csv
import gzip
import io
import json
import lzma

from backports import zstd

from tokenization.file_source import BATCH_BYTES, FileSource

SEPARATOR = "\n---\n"

ROWS = [
    {
        "text": f"document {i}: " + "wort 词 слово \U0001f642\t" * (i % 7) + ("" if i % 5 else "\r\nline\n"),
        "meta": {"set": f"s{i % 3}"},
    }
    for i in range(60)
] + [
    {"text": "", "meta": {"set": "s0"}},
    {"text": "x" * 5000, "meta": {"set": "s1"}},
    {"text": "the end", "meta": {"set": "s2"}},
]

TEXTS = [row["text"] for row in ROWS]


def jsonl(rows):
    return "".join(json.dumps(row, ensure_ascii=i % 2 == 0) + "\n" for i, row in enumerate(rows)).encode()


def zstd_frames(content, n):
    size = len(content) // n + 1
    return b"".join(zstd.compress(content[i : i + size]) for i in range(0, len(content), size))


def parquet(rows, row_group_size=7, **arguments):
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=row_group_size, **arguments)
    return buffer.getvalue()


def separated(texts, separator=SEPARATOR):
    return "".join(text + separator for text in texts).encode()


def csv_of(rows, delimiter=","):
    out = io.StringIO(newline="")
    writer = csv.writer(out, delimiter=delimiter)
    writer.writerow(["n", "text", "meta.set"])
    writer.writerows([i, row["text"], row["meta"]["set"]] for i, row in enumerate(rows))
    return out.getvalue().encode()


def pretty(rows):
    return "\n".join(json.dumps(row, ensure_ascii=False, indent=2) for row in rows).encode()


FORMATS = {
    "a.jsonl": lambda: jsonl(ROWS),
    "a.jsonl.zst": lambda: zstd.compress(jsonl(ROWS)),
    "frames.jsonl.zst": lambda: zstd_frames(jsonl(ROWS), 5),
    "a.jsonl.gz": lambda: gzip.compress(jsonl(ROWS)),
    "members.jsonl.gz": lambda: gzip.compress(jsonl(ROWS[:20])) + gzip.compress(jsonl(ROWS[20:])),
    "a.parquet": lambda: parquet(ROWS),
    "one_group.parquet": lambda: parquet(ROWS, row_group_size=1000, compression="zstd"),
    "a.txt": lambda: separated(TEXTS),
    "a.txt.zst": lambda: zstd_frames(separated(TEXTS), 3),
    "a.md.gz": lambda: gzip.compress(separated(TEXTS)),
    "A.JSONL.GZ": lambda: gzip.compress(jsonl(ROWS)),
    "a.jsonl.bz2": lambda: bz2.compress(jsonl(ROWS)),
    "a.ndjson.xz": lambda: lzma.compress(jsonl(ROWS)),
    "lines.json": lambda: jsonl(ROWS),
    "array.json": lambda: json.dumps(ROWS).encode(),
    "pretty_array.json.gz": lambda: gzip.compress(b"\xef\xbb\xbf \n" + json.dumps(ROWS, indent=1).encode()),
    "pretty.json": lambda: pretty(ROWS),
    "a.csv": lambda: csv_of(ROWS),
    "semicolons.csv.zst": lambda: zstd.compress(b"\xef\xbb\xbf" + csv_of(ROWS, ";")),
    "utf16.jsonl": lambda: jsonl(ROWS).decode().encode("utf-16"),
    "utf16be.json.zst": lambda: zstd.compress(b"\xfe\xff" + json.dumps(ROWS).encode("utf-16-be")),
    "utf32.txt": lambda: separated(TEXTS).decode().encode("utf-32"),
}


def source_of(*files, batch_bytes=BATCH_BYTES, separator=SEPARATOR, **arguments):
    return FileSource(list(files), separator=separator, batch_bytes=batch_bytes, **arguments)


def rows_of(source, position=None):
    return [row for batch in source.batches(position) for row in batch.rows()]


def texts_of(source, position=None):
    rows = rows_of(source, position)
    assert not [row for row in rows if row.problem]
    return [row.text for row in rows]


def problems_of(source):
    return [(row.where.rpartition("/")[2], row.problem) for row in rows_of(source) if row.problem]
