"""Whatever lies in a folder or is named on the command line: one line, exit code 2, nothing touched."""

import json
import os
import pickle
import shutil

import numpy as np
import pytest
from preparing import FORMATS, TEXTS, custom, files_of, refused

from base.errors import InputError, MissingFile, MissingPackage
from tokenization import merging, pipeline
from tokenization.command import report
from tokenization.file_source import FileSource
from tokenization.job import Job, Settings, identity_of
from tokenization.pipeline import prepare
from tokenization.progress import finished, read_progress
from tokenization.searching import find_files
from tokenization.worker import in_another_process
from tokens.verify import verify

pytest_plugins = ["preparing_fixtures"]

DEEP = "[" * 100_000
# Of any type, size and nesting
VALUES = [None, True, -1, 1.5, 10**30, "x", [], {}, [[]], {"a": {}}, [None], ["train", 1], {"train": None}]


def paths_in(value, path=()):
    """Of every value inside a JSON value."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from paths_in(inner, (*path, key))


def changed(record, path, value):
    """A copy with the value at the path replaced."""
    record = json.loads(json.dumps(record))
    if not path:
        return value
    inner = record
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return record


@pytest.fixture
def begun(toy, corpus, tmp_path, in_this_process):
    """(folder, source, identity) of a preparation that was stopped in the midst."""
    source, stops = FileSource(sorted(corpus.iterdir()), source_field="meta.set", batch_bytes=2000), []
    job, out = Job(0.1, 1000), tmp_path / "begun"
    with pytest.raises(KeyboardInterrupt):
        prepare(
            source,
            toy,
            out,
            job,
            Settings(commit_interval=0),
            stopping=lambda: bool(stops.append(1)) or len(stops) > 12,
        )
    return out, source, identity_of(source, toy, job)


def test_progress_of_any_shape(begun, toy):
    """Each value in turn becomes something else: it is read, or refused in one line."""
    out, source, identity = begun
    progress = json.loads((out / "progress.json").read_bytes())
    assert progress["rows"] > 50 and progress["writers"]["train"]["shards"]
    refusals = 0
    for path in paths_in(progress):
        for value in VALUES:
            (out / "progress.json").write_text(json.dumps(changed(progress, path, value)))
            try:
                read = read_progress(out, identity)
                list(source.batches(read.position))
            except InputError as error:
                assert "\n" not in str(error)
                refusals += 1
    assert refusals > 300


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[]", b"7", DEEP.encode(), b'{"identity": 1}', b"9" * 5000]
)
def test_progress_of_another_kind(begun, toy, content, capsys):
    out, source, identity = begun
    (out / "progress.json").write_bytes(content)
    before = files_of(out)
    with pytest.raises(InputError, match=r"progress\.json"):
        prepare(source, toy, out, Job(0.1, 1000))
    assert files_of(out) == before


def test_progress_that_is_a_folder(begun):
    out, _, identity = begun
    (out / "progress.json").unlink()
    (out / "progress.json").mkdir()
    with pytest.raises(InputError, match=r"progress\.json is not a file"):
        read_progress(out, identity)


def test_a_finished_meta_of_any_shape(prepare_custom, in_this_process, capsys):
    """Read again by the command that made it, and by --verify."""
    out = prepare_custom("out", "--limit=60", "--shard_tokens=1e6")
    meta = json.loads((out / "meta.json").read_bytes())
    identity, refusals = meta["preparation"]["identity"], 0
    for path in paths_in(meta):
        if path[:2] == ("preparation", "identity") and len(path) > 2:
            continue  # what differs is another dataset
        for value in [*VALUES, "\x1b[2J\n"]:
            (out / "meta.json").write_text(json.dumps(changed(meta, path, value)))
            for act in (lambda: report(out, finished(out, identity, print)), lambda: verify(out)):
                try:
                    act()
                except InputError as error:
                    assert "\n" not in str(error) and "\x1b" not in str(error)
                    refusals += 1
    assert refusals > 500 and "\x1b" not in capsys.readouterr().out


def test_names_from_the_data_do_not_reach_the_terminal_as_they_are(
    toy_folder, tmp_path, in_this_process, capsys
):
    rows = [{"text": text, "meta": {"set": f"\x1b[2J{i % 2}\n" * 99}} for i, text in enumerate(TEXTS)]
    content = "".join(json.dumps(row) + "\n" for row in rows) + "{\n"
    (tmp_path / "a\x1b[31m.jsonl").write_text(content)
    flags = f"--source={tmp_path}", f"--tokenizer={toy_folder}", f"--out_dir={tmp_path / 'out'}"
    assert custom(*flags, "--source_field=meta.set", "--workers=1") == 0
    printed = capsys.readouterr()
    assert "\x1b" not in printed.out and r"\x1b[2J0\n" in printed.out and r"bad row" in printed.out
    assert max(map(len, printed.out.splitlines())) < 1000


def test_a_source_field_of_too_many_values(
    corpus, toy_folder, tmp_path, in_this_process, capsys, monkeypatch
):
    monkeypatch.setattr(pipeline, "MAX_SOURCES", 2)
    flags = (
        f"--source={corpus}",
        f"--tokenizer={toy_folder}",
        f"--out_dir={tmp_path / 'out'}",
        "--source_field=meta.set",
    )
    assert "the source field has more than 2 values" in refused(capsys, *flags)


def test_merge_plan_of_any_shape(prepare_custom, in_this_process, tmp_path):
    for task in range(2):
        prepare_custom("tasks", f"--task={task}/2", "--shard_tokens=10000")
    plan = merging._plan(tmp_path / "tasks")
    path, refusals = tmp_path / "merge.json", 0
    for place in paths_in(plan):
        if place[:2] == ("meta", "preparation") and len(place) > 4:
            continue  # identities: whatever they are
        for value in VALUES:
            path.write_text(json.dumps(changed(plan, place, value)))
            try:
                merging._read_plan(path)
            except InputError as error:
                assert "\n" not in str(error)
                refusals += 1
    assert refusals > 100
    for pair in (
        ["task_00000_of_00002/../x.bin", "x.bin"],
        ["task_00000_of_00002/x.bin", "../x.bin"],
        ["x/x.bin", "x.bin"],
    ):
        path.write_text(json.dumps({**plan, "renames": [pair]}))
        with pytest.raises(InputError, match="not shards of this folder"):
            merging._read_plan(path)
    for content in (b"", DEEP.encode(), b"[]"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"merge\.json"):
            merging._read_plan(path)


def test_a_merge_plan_without_the_splits(prepare_custom, in_this_process, tmp_path, capsys):
    prepare_custom("tasks", "--task=0/1")
    plan = merging._plan(tmp_path / "tasks")
    del plan["meta"]["splits"]["train"]["tokens"]
    (tmp_path / "tasks/merge.json").write_text(json.dumps(plan))
    assert "lacks 'tokens'" in refused(capsys, "--merge", f"--out_dir={tmp_path / 'tasks'}")


def test_tasks_with_a_meta_of_another_shape(prepare_custom, in_this_process, tmp_path, capsys):
    for task in range(2):
        prepare_custom("tasks", f"--task={task}/2")
    file = tmp_path / "tasks/task_00001_of_00002/meta.json"
    meta = json.loads(file.read_bytes())
    refusals = 0
    for path in paths_in(meta["preparation"]):
        for value in VALUES:
            file.write_text(json.dumps({**meta, "preparation": changed(meta["preparation"], path, value)}))
            try:
                merging._plan(tmp_path / "tasks")
            except InputError as error:
                assert "\n" not in str(error)
                refusals += 1
    assert refusals > 100


@pytest.mark.parametrize("name", ["jsonl.zst", "jsonl.gz", "parquet"])
def test_damaged_files(name, tmp_path, in_this_process, toy):
    """Cut short, with changed bytes, of zeros: each is read or named in one line; no batch raises anything else."""
    content = FORMATS[name][0](TEXTS, 0)
    rng, refusals = np.random.default_rng(3), 0
    file = tmp_path / f"x.{name}"
    for i in range(80):
        damaged = bytearray(content[: rng.integers(len(content))] if i % 3 == 0 else content)
        for at in rng.integers(0, max(1, len(damaged)), 1 + i % 9):
            if damaged:
                damaged[at] ^= int(rng.integers(1, 256))
        file.write_bytes(damaged)
        try:
            for batch in FileSource([file], source_field="meta.set").batches(None):
                list(batch.rows())
        except InputError as error:
            assert str(error).startswith(str(file)) and "\n" not in str(error)
            refusals += 1
    assert refusals > 20


def test_sources_that_cannot_be_read(tmp_path, capsys, toy_folder):
    (tmp_path / "gone.jsonl").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    for source in (
        "gone.jsonl",
        "loop.jsonl",
        "pipe.jsonl",
        "x" * 5000,
        "~nobody-of-this-name/x",
        "gone.jsonl/x",
        "*.jsonl",
    ):
        with pytest.raises(MissingFile, match="source"):
            find_files([tmp_path / source if source[0] != "~" else source])
    with pytest.raises(MissingFile, match="holds no"):
        find_files([tmp_path])
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(MissingFile, match="holds no"):
        find_files([tmp_path / "folder.jsonl"])
    with pytest.raises(InputError, match="not a file"):
        FileSource([tmp_path / "pipe.jsonl"])


def test_an_out_dir_that_cannot_be(corpus, toy_folder, tmp_path, capsys, in_this_process):
    (tmp_path / "file").touch()
    flags = f"--source={corpus}", f"--tokenizer={toy_folder}"
    cases = {"x" * 5000: "cannot be a folder", "": "--out_dir= is empty"}
    cases |= {str(tmp_path / "file"): "cannot be written to", str(tmp_path / "file/x"): "cannot"}
    for out, message in cases.items():
        assert message in refused(capsys, *flags, f"--out_dir={out}")


@pytest.mark.parametrize(
    "flag, message",
    [
        ("--tokenizer=", "which tokenizer"),
        ("--task=", "must be i/N"),
        ("--task=-1/2", "must be i/N"),
        ("--task=1/0", "must be i/N"),
        ("--task=1/2/3", "must be i/N"),
        ("--task=0/" + "9" * 5000, "must be i/N"),
        ("--commit_interval=nan", "commit_interval=nan"),
        ("--val_fraction=inf", "val_fraction=inf must lie in"),
        ("--limit=1e400", "limit"),
        ("--separator=\udcff", "separator is not UTF-8"),
        ("--text_field=\udcff", "text_field is not UTF-8"),
        ("--source=", "--source= is empty"),
    ],
)
def test_nonsense_is_one_line(corpus, toy_folder, tmp_path, capsys, in_this_process, flag, message):
    flags = f"--source={corpus}", f"--tokenizer={toy_folder}", f"--out_dir={tmp_path / 'out'}", flag
    assert message in refused(capsys, *flags)
    assert not (tmp_path / "out").exists()


def test_words_are_sources(corpus, toy_folder, tmp_path, in_this_process):
    """An unquoted pattern arrives as several words."""
    files = sorted(map(str, corpus.iterdir()))
    flags = f"--tokenizer={toy_folder}", "--val_fraction=0.1", "--workers=1"
    assert custom(*flags, f"--out_dir={tmp_path / 'a'}", *files) == 0
    assert custom(*flags, f"--out_dir={tmp_path / 'b'}", f"--source={files[0]}", *files[1:]) == 0
    assert custom(*flags, f"--out_dir={tmp_path / 'c'}", f"--source={corpus}") == 0
    shards = [{n: c for n, c in files_of(tmp_path / o).items() if n.endswith(".bin")} for o in "abc"]
    assert shards[0] == shards[1] == shards[2] and shards[0]


def test_file_names_of_any_bytes(toy_folder, tmp_path, in_this_process, capsys):
    file = tmp_path / os.fsdecode(b"caf\xe9.jsonl")
    file.write_bytes(FORMATS["jsonl"][0](TEXTS, 0) + b"{\n")
    flags = (
        f"--source={file}",
        f"--tokenizer={toy_folder}",
        f"--out_dir={tmp_path / 'out'}",
        "--val_fraction=0.1",
    )
    assert custom(*flags) == 0
    shutil.rmtree(tmp_path / "out")
    assert "invalid JSON" in refused(capsys, *flags, "--max_bad_rows=0")


def raise_it(error):
    raise error


@pytest.mark.parametrize("kind", [InputError, MissingFile, MissingPackage])
def test_an_input_error_survives_its_process(kind):
    error = pickle.loads(pickle.dumps(kind("one line")))
    assert type(error) is kind and str(error) == "one line"
    with pytest.raises(kind, match="one line"):
        in_another_process(raise_it, kind("one line"))


def test_a_partial_write_that_a_kill_left_is_removed(begun, toy):
    out, source, _ = begun
    (out / ".progress.json.12345").write_text("{")
    prepare(source, toy, out, Job(0.1, 1000))
    assert not list(out.glob(".*"))


def test_a_position_beyond_the_files(tmp_path):
    """As though all had been read."""
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    source = FileSource([tmp_path / "a.jsonl"])
    assert list(source.batches({"file": 1, "offset": 0, "row": 0})) == []
    with pytest.raises(InputError, match="position: file is 2, but there are 1"):
        list(source.batches({"file": 2, "offset": 0, "row": 0}))


def test_statistics_of_more_than_there_are(prepare_custom, in_this_process, tmp_path, capsys):
    prepare_custom("tasks", "--task=0/1")
    file = tmp_path / "tasks/task_00000_of_00001/meta.json"
    meta = json.loads(file.read_bytes())
    meta["preparation"]["statistics"][""]["more"] = 1
    file.write_text(json.dumps(meta))
    assert "statistics hold more than documents" in refused(
        capsys, "--merge", f"--out_dir={tmp_path / 'tasks'}"
    )
