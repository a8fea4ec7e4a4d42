"""What --verify finds: anything but what was written."""

import hashlib
import os

import pytest
from toy_tokens import EOT, VOCAB, edit_meta, poke

from base.errors import MissingFile
from tokens.verify import verify

pytest_plugins = ["tokens_fixtures"]


@pytest.fixture
def verified(toy_dataset):
    (toy_dataset / "tokenizer.json").write_text("{}")
    digest = hashlib.sha256(b"{}").hexdigest()
    edit_meta(toy_dataset, lambda m: m["tokenizer"].update(sha256=digest))
    return toy_dataset


def edit_shard(**changes):
    return lambda d: edit_meta(d, lambda m: m["splits"]["train"]["shards"][1].update(changes))


def repeat_a_shard(folder):
    edit_meta(folder, lambda m: m["splits"]["train"]["shards"].append(m["splits"]["train"]["shards"][0]))


def link_a_shard(folder):
    (folder / "zz.bin").symlink_to("train_00000.bin")

    def edit(meta):
        first = meta["splits"]["train"]["shards"][0]
        meta["splits"]["val"]["shards"].append({**first, "file": "zz.bin"})

    edit_meta(folder, edit)


def replace(name, put):
    def change(folder):
        (folder / name).unlink()
        put(folder / name)

    return change


def test_a_whole_dataset_has_no_problems_and_each_shard_is_said(verified):
    said = []
    assert verify(verified, said.append) == []
    assert said == [f"{f.name.split('_')[0]} {f.name}" for f in sorted(verified.glob("*.bin"))]


def swap(folder):
    os.rename(folder / "train_00001.bin", folder / "x")
    os.rename(folder / "train_00002.bin", folder / "train_00001.bin")
    os.rename(folder / "x", folder / "train_00002.bin")


PROBLEMS = {
    "a missing shard": (lambda d: (d / "train_00001.bin").unlink(), "d/train_00001.bin: missing, but meta.json lists it"),
    "a folder": (replace("train_00001.bin", os.mkdir), "d/train_00001.bin: not a file, but meta.json lists it"),
    "a pipe": (replace("train_00001.bin", os.mkfifo), "d/train_00001.bin: not a file, but meta.json lists it"),
    "unreadable": (replace("train_00001.bin", lambda f: f.symlink_to("/proc/self/mem")),
                   "d/train_00001.bin: cannot be read (Input/output error)"),
    "a shorter one": (lambda d: os.truncate(d / "train_00001.bin", 396),
                      "d/train_00001.bin: 396 bytes, meta.json says 100 tokens, 400 bytes"),
    "a changed id": (lambda d: poke(d / "train_00001.bin", 3, EOT), "d/train_00001.bin: its content has changed"),
    "an id too large": (lambda d: poke(d / "train_00001.bin", 3, VOCAB), "d/train_00001.bin: holds id 200000, but"),
    "swapped": (swap, "d/train_00001.bin: holds the content of train_00002.bin"),
    "max_id": (edit_shard(max_id=7), "meta.json says 7"),
    "documents": (edit_shard(documents=70), "end-of-text ids, meta.json says 70 documents"),
    "listed twice": (repeat_a_shard, "d/meta.json: lists train_00000.bin twice"),
    "the sum": (lambda d: edit_meta(d, lambda m: m["splits"]["train"].update(documents=7)),
                "d/meta.json: split 'train' says 7 documents, its shards sum to 30"),
    "not listed": (lambda d: (d / "val_00077.bin").write_bytes(b""), "d/val_00077.bin: not listed in meta.json"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "d/tokenizer.json: missing"),
    "another tokenizer": (lambda d: (d / "tokenizer.json").write_text("[]"), "d/tokenizer.json: not the tokenizer that"),
    "the vocabulary": (lambda d: edit_meta(d, lambda m: m["tokenizer"].update(length=VOCAB + 1)),
                       "d/meta.json: vocab_size 200000 is smaller"),
    "one file of two names": (link_a_shard, "d/meta.json: lists zz.bin twice, once as train_00000.bin"),
    "absurd text": (lambda d: edit_meta(d, lambda m: m["splits"]["val"].update(text_bytes=1 << 50)),
                    "d/meta.json: split 'val' says 1125899906842624 bytes of text for"),
    "a tokenizer's file from elsewhere": (lambda d: (d / "tokenizer_config.json").symlink_to("/etc/passwd"),
                                          "d/tokenizer_config.json is a link out of the folder, to /etc/passwd"),
    "an odd split": (lambda d: edit_meta(d, lambda m: m["splits"].update({"/[!*": m["splits"]["val"]})), "twice"),
}  # fmt: skip


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", PROBLEMS)
def test_each_problem_is_one_line(verified, name):
    damage, message = PROBLEMS[name]
    damage(verified)
    problems = verify(verified)
    assert any(message in line for line in problems), problems
    assert all(line.isprintable() for line in problems)


def test_all_problems_are_found_at_once(verified):
    (verified / "train_00001.bin").unlink()
    poke(verified / "train_00003.bin", 3, VOCAB)
    (verified / "tokenizer.json").unlink()
    files = {line.split(":")[0].rpartition("/")[2] for line in verify(verified)}
    assert files == {"train_00001.bin", "train_00003.bin", "tokenizer.json"}


def test_an_unfinished_dataset_has_nothing_to_compare_with(toy_dataset):
    (toy_dataset / "meta.json").unlink()
    with pytest.raises(MissingFile, match=r"meta\.json is missing"):
        verify(toy_dataset)
