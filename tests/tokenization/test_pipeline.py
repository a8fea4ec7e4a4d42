"""The pipeline: whatever the format, the engine and the number of workers, the same bytes, and what meta.json says."""

import functools
import random
import re
import unicodedata

import numpy as np
import pytest
from preparing import (
    FORMATS,
    PIECES,
    SEPARATOR,
    TEXTS,
    custom,
    files_of,
    ids_of,
    jsonl,
    refused,
    set_of,
    write_files,
)

from tokenization import batches, engines, worker
from tokenization.documents import end_documents, is_val
from tokenization.file_source import FileSource
from tokenization.job import Job, Settings
from tokenization.pipeline import prepare
from tokens.format import read_meta
from tokens.verify import verify

pytest_plugins = ["preparing_fixtures"]


def make_documents():
    """10,000 in all scripts, every 97th empty, and one of 5 MB."""
    random_ = random.Random(5)
    documents = []
    for i in range(9_999):
        pieces = [
            random_.choice(PIECES) + str(random_.randrange(10_000)) for _ in range(random_.randrange(1, 5))
        ]
        documents.append("" if i % 97 == 0 else "".join(pieces))
    documents.insert(
        5_000, "".join(f"{random_.choice(PIECES[0].split())} {i} " for i in range(600_000))[: 5 << 20]
    )
    return documents


@pytest.fixture(scope="module")
def documents():
    return make_documents()


@pytest.fixture(scope="module")
def reference(documents, qwen3_folder):
    """transformers' ids of each document."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(qwen3_folder)
    rows = tokenizer(documents, split_special_tokens=True, add_special_tokens=False)["input_ids"]
    return [np.array(row, dtype=np.uint32) for row in rows]


@pytest.fixture(scope="module")
def expected(documents, reference):
    """{split: the ids of its documents one after the other, each ended} as they should be."""
    ids = {"train": [], "val": []}
    for text, row in zip(documents, reference, strict=True):
        ids["val" if is_val(text.encode(), 0.02) else "train"].append(np.append(row, 151_643))
    return {split: np.concatenate(rows) for split, rows in ids.items()}


@pytest.fixture(scope="module")
def loaded_once():
    """The engines, each of which loads a tokenizer once."""
    return {name: functools.cache(load) for name, load in engines.ENGINES.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_and_engine_gives_the_ids_of_transformers(
    name, documents, expected, qwen3, tmp_path, caplog, request, monkeypatch, loaded_once
):
    if name not in ("jsonl", "parquet"):  # which show that the pool's processes do the same
        request.getfixturevalue("in_this_process")
        for engine, load in loaded_once.items():
            monkeypatch.setitem(engines.ENGINES, engine, load)
    if FORMATS[name][1] == "gigatoken":  # it would fall back: see test_engines.py
        monkeypatch.setattr(engines, "HARD_CASES", engines.HARD_CASES[:-1])
    files = write_files(tmp_path / "in", name, documents)
    source = FileSource(files, source_field="meta.set", separator=SEPARATOR)
    job = Job(val_fraction=0.02, shard_tokens=300_000)
    meta = prepare(source, qwen3, tmp_path / "out", job, Settings(2, FORMATS[name][1]))
    assert not caplog.records  # no fall back to another engine
    for split, ids in expected.items():
        assert np.array_equal(ids_of(tmp_path / "out", split), ids)
        entry = meta["splits"][split]
        assert entry["tokens"] == len(ids) and entry["documents"] == (ids == 151_643).sum()
        assert [s["tokens"] for s in entry["shards"][:-1]] == [300_000] * (len(entry["shards"]) - 1)
    assert sum(e["text_bytes"] for e in meta["splits"].values()) == sum(
        len(text.encode()) for text in documents
    )
    assert (meta["vocab_size"], meta["eot_id"], meta["tokenizer"]["length"]) == (151_936, 151_643, 151_669)
    assert verify(tmp_path / "out") == []


def test_documents_decode_to_their_nfc(documents, expected, qwen3_folder):
    """The ids are those of every format, by the test above."""
    import tokenizers

    decode = tokenizers.Tokenizer.from_file(str(qwen3_folder / "tokenizer.json")).decode
    held_out = [is_val(text.encode(), 0.02) for text in documents]
    for split, wanted in (("train", False), ("val", True)):
        ids = expected[split]
        rows = np.split(ids, np.flatnonzero(ids == 151_643) + 1)
        assert not len(rows.pop())
        texts = [text for text, val in zip(documents, held_out, strict=True) if val is wanted]
        assert len(rows) == len(texts)
        for row, text in zip(rows, texts, strict=True):
            assert decode(row[:-1].tolist(), skip_special_tokens=False) == unicodedata.normalize("NFC", text)


def test_bytes_do_not_depend_on_workers(toy, tmp_path):
    files = write_files(tmp_path / "in", "jsonl", TEXTS * 5, parts=9)
    results = []
    for workers, engine in ((1, "fastokens"), (2, "tokenizers"), (3, "auto")):
        source = FileSource(files, source_field="meta.set", batch_bytes=20_000)
        how = Settings(workers, engine, commit_interval=0)
        prepare(source, toy, tmp_path / str(workers), Job(0.1, 5_000), how)
        results.append(files_of(tmp_path / str(workers)))
    assert results[0] == results[1] == results[2]
    assert len(results[0]) > 20 and verify(tmp_path / "3") == []


def test_what_meta_says(toy, tmp_path, in_this_process):
    files = write_files(tmp_path / "in", "parquet", TEXTS)
    meta = prepare(
        FileSource(files, source_field="meta.set"), toy, tmp_path / "out", Job(0.1, 1000), in_words="made up"
    )
    assert meta == read_meta(tmp_path / "out")
    encode = engines.tokenizers(toy.json)
    sizes = [len(text.encode()) for text in TEXTS]
    tokens = [n + 1 for n in encode(TEXTS)[1].tolist()]
    assert (
        meta["source"] == "made up"
        and meta["preparation"]["rows"] == 600
        and meta["preparation"]["bad_rows"] == 0
    )
    assert meta["preparation"]["statistics"] == {
        set_of(k): {
            "documents": 200,
            "tokens": sum(tokens[k::3]),
            "text_bytes": sum(sizes[k::3]),
            "longest_document_bytes": max(sizes[k::3]),
        }
        for k in range(3)
    }
    val = [is_val(text.encode(), 0.1) for text in TEXTS]
    assert 20 < sum(val) < 120
    for split, wanted in (("train", False), ("val", True)):
        entry = meta["splits"][split]
        assert entry["documents"] == val.count(wanted)
        assert entry["tokens"] == sum(n for n, v in zip(tokens, val, strict=True) if v is wanted)
        assert entry["text_bytes"] == sum(n for n, v in zip(sizes, val, strict=True) if v is wanted)
        assert (ids_of(tmp_path / "out", split) == toy.eot_id).sum() == entry["documents"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.suffix != ".bin") == [
        "meta.json",
        "tokenizer.json",
    ]


def test_the_split_depends_on_the_text_alone(toy, tmp_path, in_this_process):
    """In any order a document is on the same side, and more of them with a larger fraction."""
    shuffled = random.Random(1).sample(TEXTS, len(TEXTS))
    documents = {}
    for name, texts, fraction in (("a", TEXTS, 0.1), ("b", shuffled, 0.1), ("c", TEXTS, 0.3)):
        files = write_files(tmp_path / name, "jsonl", texts, parts=4)
        prepare(FileSource(files, batch_bytes=700), toy, tmp_path / f"{name}_out", Job(fraction))
        ids = ids_of(tmp_path / f"{name}_out", "val")
        documents[name] = {row.tobytes() for row in np.split(ids, np.flatnonzero(ids == toy.eot_id) + 1)}
    assert documents["a"] == documents["b"] < documents["c"]


@pytest.mark.parametrize("limit", [1, 7, 119, 120, 121, 600, 10_000])
@pytest.mark.parametrize("name", ["jsonl", "parquet", "txt"])
def test_limit(toy, tmp_path, in_this_process, limit, name):
    files = write_files(tmp_path / "in", name, TEXTS, parts=5)
    source = FileSource(files, separator=SEPARATOR, batch_bytes=900)
    meta = prepare(source, toy, tmp_path / "out", Job(0.1, limit=limit), allow_empty=True)
    assert (
        sum(e["documents"] for e in meta["splits"].values()) == meta["preparation"]["rows"] == min(limit, 600)
    )
    val = [text for text in TEXTS[:limit] if is_val(text.encode(), 0.1)]
    ids, lengths = engines.tokenizers(toy.json)(val)
    if val:
        assert np.array_equal(ids_of(tmp_path / "out", "val"), end_documents(ids, lengths, toy.eot_id)[0])


def test_bad_rows_are_counted_and_limited(toy_folder, tmp_path, in_this_process, capsys):
    lines = jsonl(TEXTS).splitlines(keepends=True)
    for i in (50, 51, 300, 599):
        lines[i] = b'{"text": 7}\n'
    (tmp_path / "in.jsonl").write_bytes(b"".join(lines))
    flags = (
        f"--source={tmp_path / 'in.jsonl'}",
        f"--tokenizer={toy_folder}",
        "--val_fraction=0.1",
        "--workers=1",
    )
    line = refused(capsys, *flags, f"--out_dir={tmp_path / 'out'}", "--max_bad_rows=3")
    assert "in.jsonl:600: field 'text' is int, not text; this is bad row 4 and max_bad_rows=3" in line
    # More are allowed then, and the dataset is the one of a run that allowed them at once
    assert custom(*flags, f"--out_dir={tmp_path / 'out'}", "--max_bad_rows=4") == 0
    printed = capsys.readouterr()
    assert (
        "4 bad rows were left out" in printed.out and "in.jsonl:51: field 'text'" in printed.out + printed.err
    )
    assert custom(*flags, f"--out_dir={tmp_path / 'other'}") == 0
    assert files_of(tmp_path / "out") == files_of(tmp_path / "other")
    meta = read_meta(tmp_path / "out")
    assert (
        meta["preparation"]["bad_rows"] == 4 and sum(e["documents"] for e in meta["splits"].values()) == 596
    )


def test_half_a_surrogate_pair_is_a_bad_row(toy):
    class Half:
        def rows(self):
            return iter([batches.Row("x:1", "good"), batches.Row("x:2", "bad \ud800")])

    result = worker.Worker(engines.tokenizers(toy.json), toy.eot_id, toy.length, 0.5)(Half())
    assert result.bad_rows == [("x:2", "invalid Unicode: half of a surrogate pair")]
    assert sum(len(lengths) for _, lengths, _ in result.splits.values()) == 1


def test_a_corpus_of_long_documents_has_a_sample(toy, tmp_path, in_this_process):
    """Books: each longer than the sample that the engine is checked on."""
    for i in range(12):
        (tmp_path / f"{i}.txt").write_text(f"book {i} " + "word " * 300_000)
    meta = prepare(FileSource(sorted(tmp_path.glob("*.txt"))), toy, tmp_path / "out", Job(0.3))
    assert sum(e["documents"] for e in meta["splits"].values()) == 12


def test_an_engine_that_differs_is_replaced(corpus, toy, tmp_path, monkeypatch, caplog, in_this_process):
    """The warning names the difference, and the bytes are those of the reference."""

    def broken(tokenizer_json):
        encode = engines.tokenizers(tokenizer_json)

        def encode_but(texts):
            ids, lengths = encode(texts)
            return np.where(ids == ids.max(initial=0), 3, ids), lengths

        return encode_but

    files = sorted(corpus.iterdir())
    prepare(FileSource(files), toy, tmp_path / "reference", Job(0.1), Settings(engine="tokenizers"))
    assert not caplog.records
    monkeypatch.setitem(engines.ENGINES, "fastokens", broken)
    prepare(FileSource(files), toy, tmp_path / "broken", Job(0.1))
    (record,) = caplog.records
    assert re.search(
        r"engine fastokens differs from tokenizers on .*: ids \[.*\] against \[.*\]", record.getMessage()
    )
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "reference")
