"""The pipeline: whatever the format, the engine, the number of workers and the interruptions, the same
bytes; and what is wrong with the input is said in one line before anything is touched."""

import gzip
import io
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import unicodedata
from concurrent.futures import Future
from pathlib import Path

import numpy as np
import pytest
from backports import zstd

from tokenization import batches, command, cutting, engines, merging, pipeline, worker
from tokenization.documents import end_documents, is_val
from tokenization.file_source import FileSource
from tokenization.job import Job, Settings
from tokenization.pipeline import prepare
from tokenization.tokenizers import find_tokenizer
from tokens.format import read_meta
from tokens.verify import verify

ROOT = Path(__file__).resolve().parents[2]
SEPARATOR = "\n<<<>>>\n"
PIECES = [
    "The quick brown fox doesn't jump; it'LL run. ",
    "Съешь же ещё этих мягких французских булок. ",
    "天地玄黄,宇宙洪荒。日月盈昃、辰宿列张。",
    "いろはにほへと ちりぬるを 조선말 한글 ",
    "نص عربي مع أرقام ١٢٣ שלום עולם ",
    "नमस्ते दुनिया สวัสดีชาวโลก ",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7\U0001f44d\U0001f3fd\u2764\ufe0f ",
    "<|endoftext|><|im_start|>user\n<|im_end|> <think>no</think> <|fim_prefix|></s> ",
    "e\u0301 \u212b \u1100\u1161 q\u0323\u0307 \u0958 \ufb01 ",  # NFC changes these, or must not
    "def f(x):\n\treturn {'a': [1, 22, 333, 4444]}  # \r\n\n\n",
    "https://example.org/?q=%20&n=12345678901234567890 \x00\x7f\u00a0\u2028\ufeff",
    "           \n \n\t\t\n",
]


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


def set_of(i):
    return f"set{i % 3}"


def jsonl(texts, first=0):
    rows = ({"meta": {"set": set_of(i)}, "text": text} for i, text in enumerate(texts, first))
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def parquet(texts, first=0):
    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    rows = [{"meta": {"set": set_of(i)}, "text": text} for i, text in enumerate(texts, first)]
    pq.write_table(pa.Table.from_pylist(rows), buffer, row_group_size=1_111)
    return buffer.getvalue()


def frames(content, size=1 << 20):
    return b"".join(zstd.compress(content[i : i + size]) for i in range(0, len(content), size))


def separated(texts, first=0):
    return "".join(text + SEPARATOR for text in texts).encode()


FORMATS = {  # and the engine that reads each here
    "jsonl": (jsonl, "fastokens"),
    "jsonl.zst": (lambda texts, first: frames(jsonl(texts, first)), "gigatoken"),
    "jsonl.gz": (lambda texts, first: gzip.compress(jsonl(texts, first), 1), "tokenizers"),
    "parquet": (parquet, "auto"),
    "txt": (separated, "fastokens"),
    "txt.zst": (lambda texts, first: frames(separated(texts, first)), "gigatoken"),
}


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
    """{split: the ids of its documents behind each other, each ended} as they should be."""
    ids = {"train": [], "val": []}
    for text, row in zip(documents, reference, strict=True):
        ids["val" if is_val(text.encode(), 0.02) else "train"].append(np.append(row, 151_643))
    return {split: np.concatenate(rows) for split, rows in ids.items()}


def ids_of(folder, split):
    return np.concatenate([np.fromfile(file, np.uint32) for file in sorted(folder.glob(f"{split}_*.bin"))])


def files_of(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def write_files(folder, name, texts, parts=3):
    """The texts in `parts` files of unlike size."""
    folder.mkdir(parents=True, exist_ok=True)
    make = FORMATS[name][0]
    cuts = [0, *(len(texts) * (i + 1) // (parts + 2) for i in range(parts - 1)), len(texts)]
    for i, (begin, end) in enumerate(itertools.pairwise(cuts)):
        (folder / f"part_{i}.{name}").write_bytes(make(texts[begin:end], begin))
    return sorted(folder.iterdir())


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_and_engine_gives_the_ids_of_transformers(
    name, documents, expected, qwen3, tmp_path, caplog, request, monkeypatch
):
    if (
        FORMATS[name][1] == "gigatoken"
    ):  # it would fall back: see test_engines.py. In this process it is let through
        request.getfixturevalue("in_this_process")
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


# Small datasets: a toy tokenizer and, but for what is about processes, all work in this one.


class InThisProcess:
    """In place of ProcessPoolExecutor."""

    def __init__(self, workers, context, initializer=lambda: None, initargs=()):
        initializer(*initargs)

    def submit(self, function, *arguments):
        future = Future()
        try:
            future.set_result(function(*arguments))
        except Exception as error:
            future.set_exception(error)
        return future

    def shutdown(self, **arguments):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr(worker, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(worker, "watch_parent", lambda: None)


@pytest.fixture
def toy(toy_folder, monkeypatch):
    monkeypatch.setattr(cutting, "PIECE_BYTES", 500)  # so that small batches are possible
    return find_tokenizer(toy_folder)


@pytest.fixture(autouse=True)
def restored_signals():
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


TEXTS = [f"text {i} " + PIECES[i % len(PIECES)] * (i % 4) for i in range(600)]


@pytest.fixture
def corpus(tmp_path):
    write_files(tmp_path / "in", "jsonl", TEXTS, parts=5)
    return tmp_path / "in"


def custom(*flags):
    """data/custom/prepare.py in this process."""
    return command.run("doc", ROOT / "data/custom", [str(flag) for flag in flags])


@pytest.fixture
def prepare_custom(corpus, toy_folder, tmp_path):
    """prepare_custom("out", *flags) prepares the corpus and returns its folder."""

    def call(name, *flags):
        common = (
            f"--source={corpus}",
            f"--tokenizer={toy_folder}",
            f"--out_dir={tmp_path / name}",
            "--shard_tokens=1000",
        )
        assert custom(*common, "--val_fraction=0.1", "--workers=1", *flags) == 0
        return tmp_path / name

    return call


def refused(capsys, *flags, run=custom):
    """The one line on stderr with which flags are refused."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run(*flags)
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    lines = [line for line in lines if line.strip() and "B/s" not in line]  # a progress bar
    assert len(lines) == 1, lines
    return lines[0]


def test_bytes_do_not_depend_on_workers(toy, tmp_path, monkeypatch):
    files = write_files(tmp_path / "in", "jsonl", TEXTS * 5, parts=9)
    results = []
    for workers in (1, 2, 3):
        source = FileSource(files, source_field="meta.set", batch_bytes=20_000)
        prepare(source, toy, tmp_path / str(workers), Job(0.1, 5_000), Settings(workers, commit_interval=0))
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


def test_a_full_disk_is_refused_before_anything_is_written(
    corpus, toy_folder, tmp_path, monkeypatch, in_this_process, capsys
):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    line = refused(
        capsys, f"--source={corpus}", f"--tokenizer={toy_folder}", f"--out_dir={tmp_path / 'new/out'}"
    )
    assert re.search(r"new/out needs about 0\.0 GB for [\d,]+ tokens, 0\.0 GB are free", line)
    assert not (tmp_path / "new").exists()
    # The estimate is near the truth
    monkeypatch.undo()
    tokens = int(re.search(r"for ([\d,]+) tokens", line)[1].replace(",", ""))
    monkeypatch.setattr(worker, "ProcessPoolExecutor", InThisProcess)
    monkeypatch.setattr(worker, "watch_parent", lambda: None)
    flags = (
        f"--source={corpus}",
        f"--tokenizer={toy_folder}",
        f"--out_dir={tmp_path / 'out'}",
        "--val_fraction=0.1",
    )
    assert custom(*flags) == 0
    assert sum(e["tokens"] for e in read_meta(tmp_path / "out")["splits"].values()) == pytest.approx(
        tokens, rel=0.3
    )


def test_a_finished_dataset_is_left_as_it_is(
    prepare_custom, in_this_process, capsys, toy_folder, corpus, tmp_path
):
    out = prepare_custom("out")
    before, times = files_of(out), {p: p.stat().st_mtime_ns for p in out.iterdir()}
    assert prepare_custom("out") == out
    assert "is complete already" in capsys.readouterr().out
    flags = f"--tokenizer={toy_folder}", f"--out_dir={out}", "--val_fraction=0.1", f"--source={corpus}"
    for change, what in [
        (["--shard_tokens=2000"], "shard_tokens"),
        (["--shard_tokens=1000", "--val_fraction=0.2"], "val_fraction"),
        (["--shard_tokens=1000", "--limit=3"], "limit"),
        (["--shard_tokens=1000", "--text_field=meta.set"], "source"),
    ]:
        line = refused(capsys, *flags, *change)
        assert (
            f"{out} holds a finished dataset of another {what}: pass another --out_dir, or remove it first"
            in line
        )
    assert files_of(out) == before and {p: p.stat().st_mtime_ns for p in out.iterdir()} == times


def test_what_others_left_in_the_folder_is_not_touched(corpus, toy_folder, tmp_path, capsys, in_this_process):
    out = tmp_path / "out"
    out.mkdir()
    flags = f"--source={corpus}", f"--tokenizer={toy_folder}", f"--out_dir={out}"
    (out / "train.bin").write_bytes(b"nanoGPT")
    assert "holds .bin files without a meta.json" in refused(capsys, *flags)
    (out / "meta.json").write_text("{}")
    assert "lacks 'format_version'" in refused(capsys, *flags)
    assert files_of(out) == {"train.bin": b"nanoGPT", "meta.json": b"{}"}
    (out / "meta.json").unlink()
    (out / "progress.json").write_text('{"identity"')
    assert "progress.json is damaged" in refused(capsys, *flags)
    (out / "progress.json").write_text('{"identity": {"limit": 5}}')
    assert "holds the beginning of a dataset of another" in refused(capsys, *flags)
    assert (out / "train.bin").read_bytes() == b"nanoGPT"


def test_no_held_out_document_is_refused_and_cleaned_up(
    corpus, toy_folder, tmp_path, capsys, in_this_process, prepare_custom
):
    flags = f"--source={corpus}", f"--tokenizer={toy_folder}", f"--out_dir={tmp_path / 'out'}", "--workers=1"
    assert "of 600 documents none fell into val with val_fraction=1e-09" in refused(
        capsys, *flags, "--val_fraction=1e-9"
    )
    assert not [p.name for p in (tmp_path / "out").iterdir() if p.name != "tokenizer.json"]
    assert files_of(prepare_custom("out")) == files_of(prepare_custom("other"))


def test_a_folder_that_only_holds_empty_files(tmp_path, toy_folder, capsys, in_this_process):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_bytes(b"\n\n")
    (tmp_path / "in/b.txt").write_bytes(b"")
    line = refused(
        capsys, f"--source={tmp_path / 'in'}", f"--tokenizer={toy_folder}", f"--out_dir={tmp_path / 'out'}"
    )
    assert "no documents at the beginning of the source" in line
    assert not (tmp_path / "out").exists()


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


# Interruptions


def test_a_worker_that_dies_costs_nothing(toy, tmp_path, corpus):
    """As the kernel does where memory is short. The same command goes on."""

    class Deadly(FileSource):
        def batches(self, position):
            for i, batch in enumerate(super().batches(position)):
                yield Suicide(batch) if i == 20 else batch

    files = sorted(corpus.iterdir())
    with pytest.raises(RuntimeError, match=r"a tokenizing process died.*the same command resumes"):
        prepare(
            Deadly(files, batch_bytes=900),
            toy,
            tmp_path / "out",
            Job(0.1, 1000),
            Settings(2, commit_interval=0),
        )
    assert json.loads((tmp_path / "out/progress.json").read_bytes())["rows"] > 0
    prepare(FileSource(files, batch_bytes=900), toy, tmp_path / "out", Job(0.1, 1000), Settings(2))
    prepare(FileSource(files), toy, tmp_path / "other", Job(0.1, 1000), Settings(1))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "other")


class Suicide:
    """A batch that ends the process that works on it."""

    def __init__(self, batch):
        self.n_rows, self.read_bytes, self.next_position = batch.n_rows, batch.read_bytes, batch.next_position

    def rows(self):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("name", ["jsonl", "jsonl.zst", "jsonl.gz", "parquet", "txt", "txt.zst"])
def test_stopped_anywhere_and_gone_on(toy, tmp_path, in_this_process, monkeypatch, name):
    """Each call into the file system that changes something is the last of a run in turn."""
    files = write_files(tmp_path / "in", name, TEXTS, parts=3)

    def attempt(out, batch_bytes):
        source = FileSource(files, separator=SEPARATOR, source_field="meta.set", batch_bytes=batch_bytes)
        return prepare(source, toy, out, Job(0.1, 2500), Settings(commit_interval=0))

    attempt(tmp_path / "whole", 3000)
    whole, random_ = files_of(tmp_path / "whole"), random.Random(name)

    class Killed(BaseException):
        pass

    calls, last_call = 0, 0

    def counted(function):
        def call(*arguments, **keywords):
            nonlocal calls
            calls += 1
            if calls > last_call:
                raise Killed
            return function(*arguments, **keywords)

        return call

    for name_ in ("replace", "fsync", "truncate"):
        monkeypatch.setattr(os, name_, counted(getattr(os, name_)))
    out, kills = tmp_path / "out", 0
    while True:
        calls, last_call = 0, random_.randrange(1, 60)
        try:
            attempt(out, random_.choice([1, 500, 3000, 50_000]))
            break
        except Killed:
            kills += 1
    assert kills >= 2
    assert files_of(out) == whole


PREPARE = [sys.executable, str(ROOT / "data/custom/prepare.py")]


def processes_of(group):
    """Those of a process group that still live."""
    lines = subprocess.run(
        ["ps", "-A", "-o", "pgid=,stat=,args="], capture_output=True, text=True, check=True
    ).stdout
    return [
        line
        for line in lines.splitlines()
        if line.split()[0] == str(group) and not line.split()[1].startswith("Z")
    ]


def wait_for_the_end_of(group, seconds=20):
    until = time.monotonic() + seconds
    while (left := processes_of(group)) and time.monotonic() < until:
        time.sleep(0.05)
    return left


KILLS = 20 if "SLOW" in os.environ else 4  # make test-faults has time


@pytest.mark.timeout(300)
def test_killed_at_many_moments_with_1_2_and_3_workers(toy_folder, tmp_path):
    random_ = random.Random(20)
    (tmp_path / "in").mkdir()
    for i in range(150):
        texts = [TEXTS[(i * 31 + k) % len(TEXTS)] * 4 for k in range(40)]
        suffix = ("jsonl", "jsonl.zst", "jsonl.gz", "parquet")[i % 4]
        (tmp_path / f"in/{i:04d}.{suffix}").write_bytes(FORMATS[suffix][0](texts, i))
    common = [
        f"--source={tmp_path / 'in'}",
        f"--tokenizer={toy_folder}",
        "--shard_tokens=20000",
        "--commit_interval=0",
    ]
    common += ["--val_fraction=0.05", "--source_field=meta.set"]

    def start(out, workers):
        flags = [*common, f"--out_dir={tmp_path / out}", f"--workers={workers}"]
        return subprocess.Popen(
            [*PREPARE, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )

    started = time.monotonic()
    assert start("whole", 2).wait() == 0
    duration = time.monotonic() - started
    whole = files_of(tmp_path / "whole")
    assert len(whole) > 10

    kills = finished = 0
    interrupted_at = set()
    while kills < KILLS or not finished:
        process = start("out", workers=1 + kills % 3)
        try:
            process.wait(random_.uniform(0.1, 1.0) * duration if kills < KILLS else 100)
        except subprocess.TimeoutExpired:
            if kills % 2:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()  # its children must notice by themselves
            kills += 1
        process.wait()
        assert wait_for_the_end_of(process.pid) == []
        process.stderr.close()
        if (progress := tmp_path / "out/progress.json").exists():
            interrupted_at.add(json.loads(progress.read_bytes())["rows"])
        if process.returncode == 0:
            finished += 1
            assert files_of(tmp_path / "out") == whole
            assert verify(tmp_path / "out") == []
            shutil.rmtree(tmp_path / "out")
        else:
            assert process.returncode == -signal.SIGKILL
    assert (
        len(interrupted_at) > KILLS // 6
    )  # it was killed in the midst of its work, not only while it started


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_with_75(toy_folder, tmp_path, number):
    (tmp_path / "in").mkdir()
    for i in range(2000):
        (tmp_path / f"in/{i:04d}.jsonl").write_bytes(jsonl(TEXTS[i % 500 : i % 500 + 20]))
    flags = [
        f"--source={tmp_path / 'in'}",
        f"--tokenizer={toy_folder}",
        f"--out_dir={tmp_path / 'out'}",
        "--workers=1",
    ]
    process = subprocess.Popen(
        [*PREPARE, *flags, "--commit_interval=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (tmp_path / "out/progress.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGSTOP)  # so that it cannot finish before the signal is there
    assert json.loads((tmp_path / "out/progress.json").read_bytes())["rows"] < 20_000
    os.kill(process.pid, number)
    os.kill(process.pid, signal.SIGCONT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert errors.splitlines()[-1] == f"stopped; the same command resumes {tmp_path / 'out'}"
    assert "Traceback" not in errors and wait_for_the_end_of(process.pid) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_in_a_destructor_is_not_lost(
    toy_folder, corpus, tmp_path, in_this_process, monkeypatch, number, capsys
):
    """Python throws away what a handler raises there."""

    class Signals:
        def __del__(self):
            signal.raise_signal(number)

    add, left = pipeline.add_statistics, [Signals()]

    def add_and_collect(*arguments):
        left.clear()
        add(*arguments)

    monkeypatch.setattr(pipeline, "add_statistics", add_and_collect)
    flags = f"--source={corpus}", f"--tokenizer={toy_folder}", f"--out_dir={tmp_path / 'out'}", "--workers=1"
    assert custom(*flags, "--val_fraction=0.1") == 75
    assert (tmp_path / "out/progress.json").is_file() and not (tmp_path / "out/meta.json").exists()
    monkeypatch.undo()
    assert custom(*flags, "--val_fraction=0.1") == 0 and verify(tmp_path / "out") == []


def test_two_at_once_in_one_folder(toy_folder, corpus, tmp_path, in_this_process, monkeypatch, capsys):
    flags = (
        f"--source={corpus}",
        f"--tokenizer={toy_folder}",
        f"--out_dir={tmp_path / 'out'}",
        "--val_fraction=0.1",
    )
    add, said = pipeline.add_statistics, []

    def add_and_start_another(*arguments):
        monkeypatch.setattr(pipeline, "add_statistics", add)
        with pytest.raises(SystemExit) as stop:
            custom(*flags)
        said.append((stop.value.code, capsys.readouterr().err))  # behind the progress bar of the first
        add(*arguments)

    monkeypatch.setattr(pipeline, "add_statistics", add_and_start_another)
    assert custom(*flags) == 0 and verify(tmp_path / "out") == []
    ((code, message),) = said
    assert code == 2 and "another prepare.py is at work in" in message


# Several machines


@pytest.mark.parametrize("n_tasks", [1, 2, 5])
def test_tasks_merged_are_one_run(prepare_custom, in_this_process, tmp_path, n_tasks, capsys):
    whole = prepare_custom("whole")
    for task in random.Random(0).sample(range(n_tasks), n_tasks):
        prepare_custom("merged", f"--task={task}/{n_tasks}")
    assert custom("--merge", f"--out_dir={tmp_path / 'merged'}") == 0
    merged, meta, whole_meta = tmp_path / "merged", read_meta(tmp_path / "merged"), read_meta(whole)
    for split in ("train", "val"):
        assert np.array_equal(ids_of(merged, split), ids_of(whole, split))
        for key in ("tokens", "documents", "text_bytes"):
            assert meta["splits"][split][key] == whole_meta["splits"][split][key]
    assert meta["preparation"]["statistics"] == whole_meta["preparation"]["statistics"]
    assert verify(merged) == []
    assert {p.suffix for p in merged.iterdir()} == {".bin", ".json"} and not [
        p for p in merged.iterdir() if p.is_dir()
    ]
    assert "is merged already" in refused(capsys, "--merge", f"--out_dir={merged}")


def test_a_merge_killed_anywhere_and_repeated(prepare_custom, in_this_process, tmp_path, monkeypatch):
    for task in range(3):
        prepare_custom("tasks", f"--task={task}/3")
    shutil.copytree(tmp_path / "tasks", tmp_path / "undisturbed")
    merging.merge(tmp_path / "undisturbed")
    whole = files_of(tmp_path / "undisturbed")

    class Killed(BaseException):
        pass

    for k in range(100):
        out, left = tmp_path / f"killed_{k}", k

        def once(function):
            def call(*arguments, **keywords):
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                return function(*arguments, **keywords)

            return call

        shutil.copytree(tmp_path / "tasks", out)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", once(os.replace))
            patch.setattr(shutil, "rmtree", once(shutil.rmtree))
            try:
                merging.merge(out)
                break
            except Killed:
                pass
        merging.merge(out)
        assert files_of(out) == whole
        shutil.rmtree(out)
    assert k > 15  # every rename was the last of a run


def test_what_merge_refuses(prepare_custom, in_this_process, tmp_path, capsys):
    out = tmp_path / "tasks"
    assert "holds no task_*_of_* folders" in refused(capsys, "--merge", f"--out_dir={out}")
    prepare_custom("tasks", "--task=0/2")
    line = refused(capsys, "--merge", f"--out_dir={out}")
    assert "task_00001_of_00002/meta.json is missing, so task 1/2 is not finished" in line
    prepare_custom("tasks", "--task=1/2", "--val_fraction=0.2")
    assert "task_00001_of_00002: its val_fraction differs from that of" in refused(
        capsys, "--merge", f"--out_dir={out}"
    )
    shutil.rmtree(out / "task_00001_of_00002")
    prepare_custom("tasks", "--task=1/2")
    prepare_custom("tasks", "--task=1/3")
    assert "several numbers of tasks" in refused(capsys, "--merge", f"--out_dir={out}")
    shutil.rmtree(out / "task_00001_of_00003")
    shard = out / "task_00001_of_00002/train_00001.bin"
    content = shard.read_bytes()
    for damage in (lambda: shard.write_bytes(content[:-4]), shard.unlink):
        damage()
        assert "train_00001.bin is not there with" in refused(capsys, "--merge", f"--out_dir={out}")
    assert not (out / "merge.json").exists() and len(list(out.iterdir())) == 2
    shard.write_bytes(content)
    assert custom("--merge", f"--out_dir={out}") == 0 and verify(out) == []


@pytest.mark.parametrize("sizes", [[100, 1, 1], [1, 1, 100], [0, 0, 0, 0], [5] * 7, [1, 100, 1, 100, 1]])
def test_tasks_share_the_files_in_order(tmp_path, sizes):
    files = [tmp_path / str(i) for i in range(len(sizes))]
    for file, size in zip(files, sizes, strict=True):
        file.write_bytes(b"x" * size)
    for n_tasks in range(1, len(sizes) + 1):
        shares = [merging.task_files(files, task, n_tasks) for task in range(n_tasks)]
        assert [file for share in shares for file in share] == files and all(shares)
    with pytest.raises(ValueError, match="smaller N"):
        merging.task_files(files, 0, len(sizes) + 1)


def test_the_slurm_array(corpus, toy_folder, tmp_path, prepare_custom):
    script, out = ROOT / "scripts/prepare_array.slurm", tmp_path / "out"
    flags = [
        f"--source={corpus}",
        f"--tokenizer={toy_folder}",
        f"--out_dir={out}",
        "--shard_tokens=1000",
        "--val_fraction=0.1",
    ]
    for task in (3, 4):  # an array need not begin at 0
        slurm = {
            "SLURM_ARRAY_TASK_ID": task,
            "SLURM_ARRAY_TASK_MIN": 3,
            "SLURM_ARRAY_TASK_COUNT": 2,
            "SLURM_CPUS_PER_TASK": 1,
        }
        env = os.environ | {name: str(value) for name, value in slurm.items()} | {"PYTHON": sys.executable}
        env["SLURM_SUBMIT_DIR"] = str(ROOT)
        subprocess.run(
            ["bash", script, "custom", *flags], env=env, cwd=tmp_path, check=True, capture_output=True
        )
    assert custom("--merge", f"--out_dir={out}") == 0
    whole = prepare_custom("whole", "--workers=1")
    assert all(np.array_equal(ids_of(out, split), ids_of(whole, split)) for split in ("train", "val"))


# Damage


def edit_meta(folder, edit):
    meta = json.loads((folder / "meta.json").read_bytes())
    edit(meta)
    (folder / "meta.json").write_text(json.dumps(meta))


def poke(file, at, value):
    ids = np.memmap(file, np.uint32, "r+")
    ids[at] = value


def resigned(folder, name):
    """meta.json agrees with what the file holds now, as though the damage had been there from the first."""
    import hashlib

    ids = np.fromfile(folder / name, np.uint32)

    def edit(meta):
        for entry in meta["splits"].values():
            for shard in entry["shards"]:
                if shard["file"] == name:
                    shard["sha256"] = hashlib.sha256(ids.tobytes()).hexdigest()

    edit_meta(folder, edit)


def flip_bit(d):
    content = bytearray((d / "train_00002.bin").read_bytes())
    content[1236] ^= 1
    (d / "train_00002.bin").write_bytes(content)


def swap(d):
    for old, new in (("train_00000", "x"), ("train_00001", "train_00000"), ("x", "train_00001")):
        os.replace(d / f"{old}.bin", d / f"{new}.bin")


def beyond_vocabulary(d):
    poke(d / "train_00001.bin", 17, 5_000)
    resigned(d, "train_00001.bin")


def lost_ends(d):
    ids = np.fromfile(d / "train_00001.bin", np.uint32)
    ids[ids == ids[-1]] = 7
    eot = json.loads((d / "meta.json").read_bytes())["eot_id"]
    ids = np.where(ids == eot, 7, ids).astype(np.uint32)
    ids[5] = json.loads((d / "meta.json").read_bytes())["splits"]["train"]["shards"][1]["max_id"]
    ids.tofile(d / "train_00001.bin")
    resigned(d, "train_00001.bin")


DAMAGE = {
    "bit flip": (flip_bit, [r"train_00002\.bin: its content has changed"]),
    "truncated": (
        lambda d: os.truncate(d / "train_00001.bin", 1001),
        [
            r"train_00001\.bin: 1001 bytes, meta\.json says 1000 tokens, 4000 bytes",
            r"train_00001\.bin: its content has changed",
        ],
    ),
    "missing": (
        lambda d: (d / "val_00000.bin").unlink(),
        [r"val_00000\.bin: missing, but meta\.json lists it"],
    ),
    "extra": (
        lambda d: shutil.copy(d / "train_00001.bin", d / "train_99999.bin"),
        [r"train_99999\.bin: not listed"],
    ),
    "swapped": (
        swap,
        [
            r"train_00000\.bin: holds the content of train_00001\.bin",
            r"train_00001\.bin: holds the content of train_00000\.bin",
        ],
    ),
    "id out of range": (
        beyond_vocabulary,
        [r"train_00001\.bin: holds id 5000, but vocab_size is \d+", "largest id is 5000"],
    ),
    "ends lost": (lost_ends, [r"train_00001\.bin: 0 end-of-text ids, meta\.json says \d+ documents"]),
    "foreign tokenizer": (
        lambda d: (d / "tokenizer.json").write_bytes((d / "tokenizer.json").read_bytes() + b" "),
        [r"tokenizer\.json: not the tokenizer that made the shards"],
    ),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), [r"tokenizer\.json: missing"]),
    "sums": (
        lambda d: edit_meta(d, lambda m: m["splits"]["val"].update(documents=3)),
        [r"meta\.json: split 'val' says 3 documents, its shards sum to \d+"],
    ),
    "listed twice": (
        lambda d: edit_meta(
            d, lambda m: m["splits"]["val"]["shards"].append(m["splits"]["val"]["shards"][0])
        ),
        [r"lists val_00000\.bin twice", "split 'val' says .* tokens", "split 'val' says .* documents"],
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_verify_names_each_kind_of_damage(prepare_custom, in_this_process, capsys, kind):
    out = prepare_custom("out")
    assert custom("--verify", f"--out_dir={out}") == 0
    assert re.search(r"is as it was written: train [\d,]+ tokens in \d+ shards, val", capsys.readouterr().out)
    damage, patterns = DAMAGE[kind]
    damage(out)
    assert custom("--verify", f"--out_dir={out}") == 2
    *lines, last = capsys.readouterr().err.splitlines()
    assert len(lines) == len(patterns)
    for line, pattern in zip(lines, patterns, strict=True):
        assert line.startswith(str(out)) and re.search(pattern, line)
    assert (
        last == f"{out}: {len(lines)} problem{'s' * (len(lines) > 1)}: restore the files or prepare it again"
    )


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda m: m.update(dtype="uint16"), r"meta\.json has dtype 'uint16', but shards are uint32"),
        (lambda m: m.update(format_version=2), "format_version 2"),
        (lambda m: m.pop("splits"), "lacks 'splits'"),
        (lambda m: m["splits"]["val"]["shards"][0].update(file="../x.bin"), "is a path"),
    ],
)
def test_verify_of_a_wrong_meta(prepare_custom, in_this_process, capsys, edit, message):
    out = prepare_custom("out")
    edit_meta(out, edit)
    assert re.search(message, refused(capsys, "--verify", f"--out_dir={out}"))


def test_verify_of_no_dataset(tmp_path, capsys):
    assert "meta.json is missing, so the dataset is not finished" in refused(
        capsys, "--verify", f"--out_dir={tmp_path}"
    )


# The command


@pytest.mark.parametrize(
    "flags, message",
    [
        ("", "which tokenizer\\? pass --tokenizer=qwen3"),
        ("--tokenizer=TOY", "which text\\? pass --source=FOLDER"),
        ("--tokenizer=qwen4 --source=IN", "tokenizer 'qwen4' is not one of gpt2, llama2, llama3, qwen3"),
        ("--tokenizer=IN --source=IN", r"tokenizer\.json is missing"),
        ("--tokenizer=TOY --source=nowhere/*.jsonl", "matches nothing"),
        ("--tokenizer=TOY --source=IN --val_fraction=0", "val_fraction=0"),
        ("--tokenizer=TOY --source=IN --val_fraction=1.5", "val_fraction=1.5 must lie in"),
        ("--tokenizer=TOY --source=IN --val_fraction=nan", "val_fraction=nan must lie in"),
        ("--tokenizer=TOY --source=IN --shard_tokens=0", "shard_tokens=0 must be at least 1"),
        ("--tokenizer=TOY --source=IN --limit=0", "limit=0 must be at least 1"),
        ("--tokenizer=TOY --source=IN --workers=0", "workers=0 must be at least 1"),
        ("--tokenizer=TOY --source=IN --max_bad_rows=-1", "max_bad_rows=-1 must be at least 0"),
        ("--tokenizer=TOY --source=IN --limit=many", "limit"),
        ("--tokenizer=TOY --source=IN --engine=fastoken", "engine"),
        ("--tokenizer=TOY --source=IN --task=2/2", "task '2/2' must be i/N"),
        ("--tokenizer=TOY --source=IN --task=1", "task '1' must be i/N"),
        ("--tokenizer=TOY --source=IN --task=0/9", "5 files for 9 tasks"),
        ("--tokenizer=TOY --source=IN --sourse=x", "did you mean"),
        (
            "--tokenizer=TOY --source=IN --text_field=body --max_bad_rows=0",
            r"part_0\.jsonl:1: field 'body' is missing",
        ),
    ],
)
def test_a_wrong_command_is_one_line(corpus, toy_folder, tmp_path, capsys, in_this_process, flags, message):
    flags = flags.replace("TOY", str(toy_folder)).replace("IN", str(corpus)).split()
    line = refused(capsys, *flags, f"--out_dir={tmp_path / 'out'}")
    assert re.search(message, line)
    assert not (tmp_path / "out").exists()


def test_help_names_every_flag(capsys):
    assert custom("--help") == 0
    printed = capsys.readouterr().out
    for name in command.PrepareConfig.__dataclass_fields__:
        assert f"--{name}" in printed


def test_without_a_network_the_message_says_what_to_do(tmp_path, qwen3_folder):
    flags = [f"--out_dir={tmp_path / 'out'}", f"--tokenizer={qwen3_folder}"]
    done = subprocess.run(
        [sys.executable, ROOT / "data/slimpajama_6b_qwen3/prepare.py", *flags],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.search(
        "prepare.py: dataset DKYoon/SlimPajama-6B cannot be had from the hub .* pass local files with --source",
        line,
    )
    assert not (tmp_path / "out").exists()


def test_from_local_files_to_a_trained_step(tmp_path, qwen3_folder):
    """data/slimpajama_6b_qwen3/prepare.py --source=…, then train.py with Qwen3's 0.6B configuration, shrunk
    by flags."""
    (tmp_path / "in").mkdir()
    rows = (
        {"text": text, "meta": {"redpajama_set_name": f"RedPajama{i % 2}"}} for i, text in enumerate(TEXTS)
    )
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "in/chunk_0.jsonl.zst").write_bytes(zstd.compress(content))

    def call(script, *flags):
        done = subprocess.run(
            [sys.executable, ROOT / script, *flags], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    flags = [
        f"--out_dir={tmp_path / 'data'}",
        f"--tokenizer={qwen3_folder}",
        "--val_fraction=0.1",
        "--workers=1",
    ]
    printed = call("data/slimpajama_6b_qwen3/prepare.py", f"--source={tmp_path / 'in'}", *flags)
    assert "RedPajama1: 300 documents" in printed and "engine fastokens" in printed
    call("data/slimpajama_6b_qwen3/prepare.py", "--verify", f"--out_dir={tmp_path / 'data'}")
    shape = "--n_layer=2 --n_embd=32 --n_head=2 --num_key_value_heads=1 --head_dim=16 --d_ff=64 --block_size=64 --batch_size=2"
    loop = "--gradient_accumulation_steps=1 --max_iters=2 --warmup_iters=1 --eval_interval=2 --eval_iters=1 --log_interval=1"
    machine = "--device=cpu --dtype=float32 --compile=False"
    flags = [
        *shape.split(),
        *loop.split(),
        *machine.split(),
        f"--dataset={tmp_path / 'data'}",
        f"--out_dir={tmp_path / 'run'}",
    ]
    call("train.py", str(ROOT / "config/full_qwen3_0.6b.py"), *flags)
    (log,) = (tmp_path / "run").glob("run_*.jsonl")
    events = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "train"]
    assert len(losses) == 2 and all(11 < loss < 13 for loss in losses)  # ln 151,936 = 11.9
    (evaluation, *_) = [event for event in events if event["event"] == "eval"]
    assert evaluation["val_bits_per_byte"] > 1
