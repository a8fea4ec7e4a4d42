"""Layouts of files as people publish them: read, or named in one line with the reason."""

import json
import tracemalloc

import pytest
from backports import zstd
from source_formats import jsonl, problems_of, rows_of, source_of, texts_of

from base.errors import InputError
from tokenization import cutting


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


def test_json_by_its_first_value(write):
    rows = [{"text": "a [1, {"}, {"text": 'b \\ "quoted\\"'}, {"text": "c\n"}]
    texts = [row["text"] for row in rows]
    for i, content in enumerate(
        [
            json.dumps(rows),
            json.dumps(rows, indent=4),
            f" \n[{json.dumps(rows)[1:-1]}]\n\n",
            "\n".join(map(json.dumps, rows)),
            "\n\n".join(json.dumps(row, indent=2) for row in rows),
            " ".join(map(json.dumps, rows)),
        ]
    ):
        assert texts_of(source_of(write(f"{i}.json", content.encode()))) == texts
    assert texts_of(source_of(write("one.json", b'{\n"text": "alone"\n}'))) == ["alone"]
    assert texts_of(source_of(write("empty.json", b" \n"), write("none.json", b"[ ]\n"))) == []


def test_bad_rows_of_an_array_are_named(write):
    content = b'[{"text": "good"}, 1, "text", [2, 3], {"text": 5}, {"text": nope}, {"text": "\xff"}, null,\n {"text": "too"}]'
    source = source_of(write("a.json", content))
    assert [(row.where[-1], row.text) for row in rows_of(source) if not row.problem] == [
        ("1", "good"),
        ("9", "too"),
    ]
    problems = dict(problems_of(source))
    assert [problems[f"a.json:{i}"] for i in (2, 3, 4, 8)] == ["field 'text' is missing"] * 4
    assert problems["a.json:5"] == "field 'text' is int, not text"
    assert problems["a.json:6"].startswith("invalid JSON (")
    assert problems["a.json:7"] == "invalid UTF-8 at byte 10 of the value"
    # A damaged line of lines costs that line alone
    lines = [b'{"text": "good"}', b'{"text": "open', b'{"text": "too"}']
    for order in ([0, 1, 2], [1, 0, 2], [1, 1, 0, 2]):
        source = source_of(write("b.json", b"\n".join(lines[i] for i in order)))
        assert [row.text for row in rows_of(source) if not row.problem] == ["good", "too"]
        assert len(problems_of(source)) == order.count(1)


def test_an_array_that_does_not_end_is_damaged(write):
    content = json.dumps([{"text": "a"}, {"text": "b"}]).encode()
    for cut in (-1, -5, content.index(b",") + 1):
        with pytest.raises(InputError, match=r"a\.json: the array in it does not end: the file is damaged"):
            rows_of(source_of(write("a.json", content[:cut])))


def test_an_object_around_the_rows_is_one_bad_row(write):
    source = source_of(write("a.json", json.dumps({"data": [{"text": "x"}]}, indent=1).encode()))
    assert problems_of(source) == [("a.json:1", "field 'text' is missing")]


def test_a_record_without_end_is_named(write, monkeypatch):
    monkeypatch.setattr(cutting, "MAX_DOCUMENT_BYTES", 1000)
    monkeypatch.setattr(cutting, "PIECE_BYTES", 100)
    long = b"x, y\n" * 500
    for name, content in (("a.json", b'[{"text": "' + long), ("a.csv", b'n,text\n1,"' + long)):
        with pytest.raises(InputError, match=rf"{name}: a record before byte .* is longer than 64 MiB"):
            rows_of(source_of(write(name, content), batch_bytes=50))


def test_csv_as_people_write_it(write):
    content = b'\xef\xbb\xbfid,text\r\n1,"a, ""quoted""\nand broken"\r\n\r\n2,plain \xc3\xa9\r\n3,"last"'
    assert texts_of(source_of(write("a.csv", content))) == ['a, "quoted"\nand broken', "plain é", "last"]
    for delimiter in ";|\t":
        file = write("b.csv", f"a{delimiter}text\n1{delimiter}x, y\n".encode())
        assert texts_of(source_of(file)) == ["x, y"]
    assert texts_of(source_of(write("one.csv", b"text\nalpha\nbeta\n"))) == ["alpha", "beta"]
    file = write("c.csv", b"title,body,set\nt,b,s\n")
    assert [
        (row.text, row.source) for row in rows_of(source_of(file, text_field="body", source_field="set"))
    ] == [("b", "s")]
    assert texts_of(source_of(write("d.csv", b""), write("e.csv", b"text\n"))) == []


def test_bad_records_of_csv_are_named(write):
    content = b'n,text\n1,good\n2,a,b\n3\n4,"a" b\n5,\xff\n6,5" disk\n7,good too\n'
    source = source_of(write("a.csv", content))
    assert [row.text for row in rows_of(source) if not row.problem] == ["good", '5" disk', "good too"]
    problems = dict(problems_of(source))
    assert problems["a.csv:2"] == "3 fields, where the header has 2"
    assert problems["a.csv:3"] == "1 field, where the header has 2"
    assert problems["a.csv:4"].startswith("invalid CSV (")
    assert problems["a.csv:5"] == "invalid UTF-8 at byte 2 of the record"
    source = source_of(write("e.tsv", b'n\ttext\n1\t"open\n2\tb\n3\t"c" d\n4\tlast\n'))
    (problem,) = [problem for _, problem in problems_of(source)]
    assert problem.startswith("invalid CSV (") and problem.endswith(
        "in a record of 3 lines: is a quote not closed?"
    )
    assert [row.text for row in rows_of(source) if not row.problem] == ["last"]
    with pytest.raises(InputError, match=r"no column 'text', only a, b; --text_field names it"):
        rows_of(source_of(write("b.csv", b"a,b\n1,2\n")))
    with pytest.raises(InputError, match=r"no column 'text', only a\\nb, \\x1b\[2J, x{60}, ") as caught:
        rows_of(source_of(write("d.csv", b'"a\nb",\x1b[2J,' + b"x" * 999 + b",y" * 999 + b"\n")))
    assert str(caught.value).isprintable() and len(str(caught.value)) < 700
    with pytest.raises(InputError, match="two columns are named 'text'"):
        rows_of(source_of(write("c.csv", b"text,text\n1,2\n")))


@pytest.mark.parametrize("window_log", [27, 31])
def test_zstd_with_long_windows(write, window_log):
    texts = [f"row {i} " * 100 for i in range(300)]
    options = {
        zstd.CompressionParameter.window_log: window_log,
        zstd.CompressionParameter.enable_long_distance_matching: 1,
    }
    compressor = zstd.ZstdCompressor(options=options)  # as a stream, so that the frame does not tell its size
    content = compressor.compress(jsonl({"text": text} for text in texts)) + compressor.flush()
    tracemalloc.start()
    assert texts_of(source_of(write("a.jsonl.zst", content))) == texts
    assert tracemalloc.get_traced_memory()[1] < 64 << 20
    tracemalloc.stop()


@pytest.mark.parametrize("text", ["Plain English.\n" * 20, "Съешь ещё этих мягких булок.\n" * 20])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_named(write, text, encoding):
    """Each byte of it may be ASCII, so that as UTF-8 it would be text with zeros."""
    name = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    for file in ("a.txt", "a.jsonl", "a.json", "a.csv"):
        with pytest.raises(
            InputError, match=rf"a\.\w+ looks like {name} without a byte order mark.* iconv -f {name}"
        ):
            rows_of(source_of(write(file, text.encode(encoding)), separator=None))


def test_zeros_in_utf8_are_text(write):
    for text in ("\0", "a\0b", "a\0\0b" * 100, ("many words \0" * 50)):
        assert texts_of(source_of(write("a.txt", text.encode()), separator=None)) == [text]


def test_damaged_utf16_is_named(write):
    for content in (
        b"\xff\xfea\0b",
        b"\xff\xfe" + b"\x00\xd8" * 3000,
        b"\xfe\xff" + "a".encode("utf-16-be") * 5000 + b"\xdc\x00",
    ):
        with pytest.raises(InputError, match=r"a\.txt: .*damaged, truncated or of another format"):
            rows_of(source_of(write("a.txt", content), separator=None))


def test_parquet_columns_that_are_not_text(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "list": pa.array([["x"], ["y", "z"]]),
        "structs": pa.array([[{"a": "1"}], []]),
        "map": pa.array([[("k", "v")], []], pa.map_(pa.string(), pa.string())),
        "struct": pa.array([{"s": "q", "l": ["x"]}, None]),
        "number": pa.array([1, 2]),
        "view": pa.array(["v", "w"], pa.string_view()),
        "nothing": pa.nulls(2),
    }
    names = [*columns, "text", "text"]
    table = pa.Table.from_arrays([*columns.values(), pa.array(["a", "b"]), pa.array(["c", "d"])], names=names)
    pq.write_table(table, tmp_path / "a.parquet")
    for name, message in {
        "text": "2 columns are named 'text': rename all but one",
        "list": "column 'list' is of type list<element: string>, not text",
        "list.list.element": "no column 'list.list.element', only",
        "structs": "column 'structs' is of type list<element: struct<a: string>>, not text",
        "structs.list.element.a": "no column",
        "map": "column 'map' is of type map<string, string",
        "map.key_value.value": "no column",
        "struct": "column 'struct' is of type struct<",
        "struct.l": "column 'struct.l' is of type list<",
        "number": "column 'number' is of type int64, not text",
        "absent": "no column 'absent', only",
    }.items():
        with pytest.raises(InputError) as caught:
            rows_of(source_of(tmp_path / "a.parquet", text_field=name))
        assert message in str(caught.value) and "\n" not in str(caught.value)
    assert texts_of(source_of(tmp_path / "a.parquet", text_field="view")) == ["v", "w"]
    rows = rows_of(source_of(tmp_path / "a.parquet", text_field="struct.s", source_field="list"))
    assert [(row.text, row.source, row.problem) for row in rows] == [
        ("q", "", None),
        ("", "", "field 'struct.s' is missing"),
    ]
    assert [p for _, p in problems_of(source_of(tmp_path / "a.parquet", text_field="nothing"))] == [
        "field 'nothing' is missing"
    ] * 2
