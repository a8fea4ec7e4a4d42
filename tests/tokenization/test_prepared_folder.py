"""A folder that holds something: it is left as it is, and --verify names each kind of damage."""

import json
import os
import re
import shutil

import numpy as np
import pytest
from preparing import InThisProcess, custom, files_of, refused

from tokenization import worker
from tokens.format import read_meta

pytest_plugins = ["preparing_fixtures"]


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


def test_a_corpus_without_a_split_is_refused_and_cleaned_up(
    corpus, toy_folder, tmp_path, capsys, in_this_process, prepare_custom
):
    flags = f"--source={corpus}", f"--tokenizer={toy_folder}", f"--out_dir={tmp_path / 'out'}", "--workers=1"
    assert "all of 600 documents are held out with val_fraction=0.999999999: pass a smaller one" in refused(
        capsys, *flags, "--val_fraction=0.999999999"
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
