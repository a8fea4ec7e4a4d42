"""Sources: every format gives the same rows, any position is a place to go on from, and what is damaged is
named."""

import gzip
import json
import os
import random

import pytest
from backports import zstd
from source_formats import (
    FORMATS,
    ROWS,
    TEXTS,
    jsonl,
    parquet,
    problems_of,
    rows_of,
    separated,
    source_of,
    texts_of,
)

from base.errors import MissingFile
from tokenization import cutting
from tokenization.batches import TOO_LONG
from tokenization.searching import find_files


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return path

    return write


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("batch_bytes", [1, 300, 4 << 20])
def test_every_format_gives_the_same_rows(write, name, batch_bytes, monkeypatch):
    monkeypatch.setattr(cutting, "PIECE_BYTES", 117)
    source = source_of(write(name, FORMATS[name]()), batch_bytes=batch_bytes, source_field="meta.set")
    rows = rows_of(source)
    assert [row.text for row in rows] == TEXTS
    assert not [row for row in rows if row.problem]
    assert [row.where for row in rows] == [f"{source.files[0]}:{i + 1}" for i in range(len(TEXTS))]
    of_sets = "txt" not in name and "md" not in name
    assert [row.source for row in rows] == [row["meta"]["set"] if of_sets else "" for row in ROWS]


@pytest.mark.parametrize("name", FORMATS)
def test_any_position_is_a_place_to_go_on_from(write, name, monkeypatch):
    """Batches are cut elsewhere then, but the rows behind a position are the same, whatever the size of
    batches."""
    monkeypatch.setattr(cutting, "PIECE_BYTES", 64)
    content = FORMATS[name]()
    files = [write(f"{i}/{name}", content) for i in range(2)]
    random_ = random.Random(name)
    for batch_bytes in (1, 90, 1000, 10_000):
        source, seen = source_of(*files, batch_bytes=batch_bytes), []
        batches = [(list(batch.rows()), batch.n_rows, batch.next_position) for batch in source.batches(None)]
        assert sum(n_rows for _, n_rows, _ in batches) == 2 * len(TEXTS)
        chosen = set(random_.sample(range(len(batches)), min(12, len(batches))))
        for i, (rows, n_rows, position) in enumerate(batches):
            assert len(rows) == n_rows
            seen += [(row.where, row.text) for row in rows]
            if i in chosen:
                position = json.loads(json.dumps(position))
                other = source_of(*files, batch_bytes=random_.choice([1, 90, 1000, 10_000]))
                rest = [(row.where, row.text) for row in rows_of(other, position)]
                assert seen + rest == [
                    (f"{file}:{j + 1}", text) for file in files for j, text in enumerate(TEXTS)
                ]
    assert [text for _, text in seen] == TEXTS * 2


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_separators_that_overlap_themselves(write, suffix, monkeypatch):
    """Three line breaks hold two empty lines; which one is the cut must not depend on where a batch ends."""
    random_ = random.Random(0)
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstd.compress}[suffix]
    for case in range(40):
        content = "".join(random_.choice(["\n", "\n", "a"]) for _ in range(random_.randrange(1, 60)))
        expected = content.split("\n\n")
        expected = expected if expected[-1] else expected[:-1]
        file = write(f"{case}.txt{suffix}", compress(content.encode()))
        for piece in (1, 2, 3, 7):
            monkeypatch.setattr(cutting, "PIECE_BYTES", piece)
            source = source_of(file, batch_bytes=random_.randrange(1, 9), separator="\n\n")
            assert texts_of(source) == expected
            assert sum(batch.n_rows for batch in source.batches(None)) == len(expected)
            done = 0
            for batch in list(source.batches(None)):
                done += batch.n_rows
                assert (
                    texts_of(
                        source_of(file, batch_bytes=random_.randrange(1, 9), separator="\n\n"),
                        batch.next_position,
                    )
                    == (expected[done:])
                )


def test_text_without_separator_is_one_document(write):
    files = [write("a.txt", b"eins\n\nzwei\r\n"), write("b.md", b"three"), write("empty.rst", b"")]
    assert texts_of(source_of(*files, separator=None)) == ["eins\n\nzwei\r\n", "three"]
    assert texts_of(source_of(*files, separator=None, batch_bytes=1)) == ["eins\n\nzwei\r\n", "three"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.txt", "a.txt.zst"])
@pytest.mark.parametrize("piece", [5, 37, 1 << 20])
def test_a_document_that_is_too_long_is_one_bad_row(write, name, piece, monkeypatch):
    """Its rest is passed over in bounded memory, the separator crossing the edge of a piece or not; the
    rows around it stay."""
    monkeypatch.setattr(cutting, "PIECE_BYTES", piece)
    monkeypatch.setattr(cutting, "MAX_DOCUMENT_BYTES", 600)
    compress = {".gz": gzip.compress, ".zst": zstd.compress}.get(name[-4:].lstrip("l"), bytes)
    for long in (601, 615, 630, 640, 644, 2000, 2001, 2002, 2003, 2004, 2005):
        texts = ["before", "b" * long, "after", "", "c" * long, "d" * long]
        is_text = "txt" in name
        content = separated(texts) if is_text else jsonl({"text": t} for t in texts)
        file = write(name, compress(content))
        for batch_bytes in (1, 50, 4 << 20):
            source = source_of(file, batch_bytes=batch_bytes)
            rows = [(row.where.rpartition(":")[2], row.text, row.problem) for row in rows_of(source)]
            bad = TOO_LONG
            expected = [
                ("1", "before", None),
                ("2", "", bad),
                ("3", "after", None),
                ("4", "", None),
                ("5", "", bad),
                ("6", "", bad),
            ]
            assert rows == expected
            n_rows = 0
            for batch in list(source.batches(None)):
                n_rows += batch.n_rows
                rest = rows_of(source_of(file, batch_bytes=70), batch.next_position)
                assert [(row.where.rpartition(":")[2], row.text, row.problem) for row in rest] == expected[
                    n_rows:
                ]


def test_too_long_without_separator(write, monkeypatch):
    monkeypatch.setattr(cutting, "MAX_DOCUMENT_BYTES", 100)
    monkeypatch.setattr(cutting, "PIECE_BYTES", 30)
    files = [
        write("a.txt", b"a" * 100),
        write("b.txt", b"b" * 101),
        write("c.txt", b"c" * 1000),
        write("d.txt", b"d"),
    ]
    rows = rows_of(source_of(*files, separator=None))
    assert [(row.text, row.problem) for row in rows] == [
        ("a" * 100, None),
        ("", TOO_LONG),
        ("", TOO_LONG),
        ("d", None),
    ]


def test_lines_as_people_write_them(write):
    """A byte order mark, CRLF, blank lines, no line break at the end. Line numbers are those of an editor."""
    content = b'\xef\xbb\xbf{"text": "a"}\r\n\r\n\n  \t\n{"text": "b\\r\\n"}\r\n{"text": "c"}'
    rows = rows_of(source_of(write("a.jsonl", content)))
    assert [(row.text, row.where[-1], row.problem) for row in rows] == [
        ("a", "1", None),
        ("b\r\n", "5", None),
        ("c", "6", None),
    ]
    assert texts_of(source_of(write("a.txt", b"\xef\xbb\xbfa\r\n---\nb"))) == ["a\r", "b"]
    assert texts_of(source_of(write("b.txt", b"\xef\xbb\xbfa\n---\n\xef\xbb\xbfb"))) == ["a", "\ufeffb"]


def test_nested_fields(write):
    record = {"a": {"b": {"text": "deep"}, "n": 3}, "a.b.c": "dotted", "name": ["x"]}
    file = write("a.jsonl", jsonl([record]))
    assert texts_of(source_of(file, text_field="a.b.text")) == ["deep"]
    assert texts_of(source_of(file, text_field="a.b.c")) == ["dotted"]
    assert problems_of(source_of(file, text_field="a.n")) == [("a.jsonl:1", "field 'a.n' is int, not text")]
    assert problems_of(source_of(file, text_field="a.b")) == [("a.jsonl:1", "field 'a.b' is dict, not text")]
    assert problems_of(source_of(file, text_field="name.x")) == [("a.jsonl:1", "field 'name.x' is missing")]
    file = write("a.parquet", parquet([{"a": {"b": "deep"}, "c": "wide"}, {"a": None, "c": "wide"}]))
    rows = rows_of(source_of(file, text_field="a.b", source_field="c"))
    assert [(row.text, row.source, row.problem) for row in rows] == [
        ("deep", "wide", None),
        ("", "", "field 'a.b' is missing"),
    ]


def test_bad_lines_are_named(write):
    lines = [
        b'{"text": "good"}',
        b'{"text": "open',
        b"[1, 2]",
        b'"text"',
        b'{"no": 1}',
        b'{"text": null}',
        b'{"text": 5}',
        b'{"text": "\xff"}',
        b'{"text": "\\ud800"}',
        b'{"text": "\xed\xa0\x80"}',
        b"\x00",
        b'{"text": "good too"}{"text": "two"}',
        b'{"text": NaN}',
        b"[" * 100_000,
        b'{"text": "last"}',
    ]
    file = write("a.jsonl", b"\n".join(lines))
    assert [row.text for row in rows_of(source_of(file)) if row.problem is None] == ["good", "last"]
    problems = dict(problems_of(source_of(file)))
    assert list(problems) == [f"a.jsonl:{i}" for i in range(2, 15)]
    for line in (3, 4, 5, 6):
        assert problems[f"a.jsonl:{line}"] == "field 'text' is missing"
    assert problems["a.jsonl:7"] == "field 'text' is int, not text"
    assert problems["a.jsonl:8"] == "invalid UTF-8 at byte 10 of the line"
    assert problems["a.jsonl:10"] == "invalid UTF-8 at byte 10 of the line"
    for line in (2, 9, 11, 12, 13, 14):
        assert problems[f"a.jsonl:{line}"].startswith("invalid JSON (")
    assert not any("\n" in problem for problem in problems.values())


def test_invalid_utf8_in_text(write):
    file = write("a.txt", b"good\n---\nb\xffd\n---\n\xed\xa0\x80\n---\nlast")
    assert problems_of(source_of(file)) == [
        ("a.txt:2", "invalid UTF-8 at byte 1 of the document"),
        ("a.txt:3", "invalid UTF-8 at byte 0 of the document"),
    ]
    assert [row.text for row in rows_of(source_of(file)) if not row.problem] == ["good", "last"]


@pytest.mark.parametrize("kind", ["string", "large_string", "binary", "large_binary", "dictionary", "nested"])
def test_invalid_utf8_in_parquet(tmp_path, kind):
    """A string column may hold any bytes: other writers do not check."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    values = [b"good", b"b\xffd", None, "ż".encode()]
    binary = pa.array(values, pa.large_binary() if kind.startswith("large") else pa.binary())
    column = {
        "string": lambda: binary.view(pa.string()),
        "large_string": lambda: binary.view(pa.large_string()),
    }
    column |= {"dictionary": lambda: binary.view(pa.string()).dictionary_encode()}
    column |= {"nested": lambda: pa.StructArray.from_arrays([binary.view(pa.string())], ["text"])}
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"a": column.get(kind, lambda: binary)()}), file)
    name = "a.text" if kind == "nested" else "a"
    rows = rows_of(source_of(file, text_field=name))
    assert [row.text for row in rows] == ["good", "", "", "ż"]
    assert problems_of(source_of(file, text_field=name)) == [
        ("a.parquet:2", "invalid UTF-8 at byte 1 of the text"),
        ("a.parquet:3", f"field {name!r} is missing"),
    ]


@pytest.mark.parametrize(
    "name", ["a.jsonl.zst", "a.jsonl.gz", "a.parquet", "one_group.parquet", "a.txt.zst", "frames.jsonl.zst"]
)
def test_a_truncated_file_is_named_in_one_line(write, name):
    content = FORMATS[name]()
    for cut in (1, 5, len(content) // 2, len(content) - 10):
        source = source_of(write(name, content[:cut]))
        with pytest.raises(ValueError) as error:
            rows_of(source)
        assert str(error.value).startswith(f"{source.files[0]}: ")
        assert "\n" not in str(error.value) and "damaged, truncated" in str(error.value)


@pytest.mark.parametrize("name", ["a.jsonl.zst", "a.jsonl.gz", "a.parquet"])
def test_bytes_of_another_format_are_named(write, name):
    source = source_of(write(name, b'{"text": "not compressed at all"}\n' * 50))
    with pytest.raises(ValueError, match=r"damaged, truncated or of another format"):
        rows_of(source)


def test_a_damaged_byte_in_compressed_data_is_named(write):
    content = bytearray(gzip.compress(jsonl(ROWS)))
    content[len(content) // 2] ^= 0x40
    with pytest.raises(ValueError, match=r"a\.jsonl\.gz: "):
        rows_of(source_of(write("a.jsonl.gz", bytes(content))))


def test_a_file_that_shrank_since_is_named(write):
    file = write("a.jsonl.gz", gzip.compress(jsonl(ROWS)))
    last = list(source_of(file, batch_bytes=100).batches(None))[-2].next_position
    write("a.jsonl.gz", gzip.compress(jsonl(ROWS[:3])))
    with pytest.raises(ValueError, match="shorter than it was"):
        rows_of(source_of(file), last)


def test_a_column_that_is_not_there(write):
    file = write("a.parquet", parquet(ROWS))
    with pytest.raises(ValueError) as error:
        rows_of(source_of(file, text_field="content"))
    assert str(error.value) == f"{file}: no column 'content', only meta.set, text; --text_field names it"
    assert [row.source for row in rows_of(source_of(file, source_field="absent"))] == [""] * len(ROWS)


def test_empty_files_hold_no_rows(write):
    files = [
        write("a.jsonl", b""),
        write("b.jsonl", b"\n\n"),
        write("c.txt", b""),
        write("d.jsonl.gz", gzip.compress(b"")),
    ]
    files += [write("e.jsonl.zst", zstd.compress(b"")), write("f.parquet", parquet(ROWS[:1]))]
    assert texts_of(source_of(*files)) == TEXTS[:1]
    positions = [batch.next_position for batch in source_of(*files).batches(None)]
    assert positions[-1] == {"file": 6, "offset": 0, "row": 0}
    assert texts_of(source_of(*files), positions[-1]) == []


def test_bytes_read_sum_to_the_size_of_the_files(write, monkeypatch):
    monkeypatch.setattr(cutting, "PIECE_BYTES", 100)
    for name in ("a.jsonl", "a.txt", "a.jsonl.gz", "frames.jsonl.zst"):
        source = source_of(write(name, FORMATS[name]()), batch_bytes=500)
        batches = list(source.batches(None))
        assert source.total_bytes == os.path.getsize(source.files[0])
        assert (
            source.total_bytes - 20 <= sum(batch.read_bytes for batch in batches) <= source.total_bytes
        )  # a trailer at most
        # What was read before a position is not counted again behind it
        middle = batches[len(batches) // 2].next_position
        assert sum(batch.read_bytes for batch in source.batches(middle)) < source.total_bytes


def test_find_files(write, tmp_path):
    names = ["b/x.jsonl", "a/y.jsonl.zst", "a/deep/z.parquet", "c.txt", "d.md.gz"]
    files = {name: write(name, b"x") for name in [*names, "a/notes.doc", "a/picture.png"]}
    every = sorted(files[name] for name in names)
    assert find_files([tmp_path]).files == every
    assert (
        find_files([tmp_path / "a", f"{tmp_path}/**/*.jsonl*", files["c.txt"], f"{tmp_path}/*.md.gz"]).files
        == every
    )
    assert find_files([files["c.txt"], files["c.txt"]]).files == [files["c.txt"]]
    assert find_files([f"{tmp_path}/?.txt"]).files == [files["c.txt"]]


@pytest.mark.parametrize(
    "source, kind, message",
    [
        ("absent", MissingFile, "no file, no folder, and matches nothing"),
        ("absent/*.jsonl", MissingFile, "matches nothing"),
        ("empty", MissingFile, r"holds no \.jsonl"),
        ("a.doc", ValueError, "of no known format"),
        ("*.doc", ValueError, "of no known format"),
        ("a.zst", ValueError, "of no known format"),
    ],
)
def test_find_files_refuses(write, tmp_path, source, kind, message):
    (tmp_path / "empty").mkdir()
    write("a.doc", b"")
    write("a.zst", b"")
    with pytest.raises(kind, match=message) as error:
        find_files([f"{tmp_path}/{source}"])
    assert "\n" not in str(error.value)


def test_the_identity_changes_when_the_corpus_does(write):
    file = write("a.jsonl", jsonl(ROWS))
    same = source_of(file).identity
    assert source_of(file).identity == same == json.loads(json.dumps(same))
    assert source_of(file, text_field="other").identity != same
    assert source_of(file, separator="x").identity != same
    assert source_of(file, file).identity != same
    assert source_of(write("a.jsonl", jsonl(ROWS[1:]))).identity != same


def test_a_file_reached_twice_is_read_once(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("{}\n")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "a.jsonl")
    (tmp_path / "more").symlink_to(tmp_path, target_is_directory=True)
    monkeypatch.chdir(tmp_path)
    twice = ["*.jsonl", tmp_path / "a.jsonl", "more/b.jsonl", tmp_path]
    for named in (twice, twice[::-1]):
        assert [file.name for file in find_files(named).files] == ["a.jsonl", "b.jsonl"]
