"""What is refused before anything is trained on it."""

import hashlib
import os
import shutil

import numpy as np
import pytest
from toy_tokens import SHARD, VOCAB, edit_meta, poke

from base.errors import InputError, MissingFile
from tokens.format import read_meta
from tokens.reader import open_tokens

pytest_plugins = ["tokens_fixtures"]


def drop_bytes(folder):
    path = folder / "train_00001.bin"
    path.write_bytes(path.read_bytes()[:-4])


def set_shard(key, value):
    return lambda folder: edit_meta(folder, lambda m: m["splits"]["train"]["shards"][1].update({key: value}))


def set_top(key, value):
    return lambda folder: edit_meta(folder, lambda m: m.update({key: value}))


def set_split(key, value):
    return lambda folder: edit_meta(folder, lambda m: m["splits"]["train"].update({key: value}))


def more_documents(meta):
    split = meta["splits"]["train"]
    for shard in split["shards"]:
        shard["documents"] = 5000
    split["documents"] = 5000 * len(split["shards"])


def rename_shard(folder, name, link):
    """meta.json lists a second name of the first training shard in place of the only one for validation."""
    link(folder / name, folder / "train_00000.bin")
    edit_meta(
        folder,
        lambda m: m["splits"]["val"]["shards"].append({**m["splits"]["train"]["shards"][0], "file": name}),
    )


def put(file):
    file.write_text("x")
    return file


def swap(folder):
    os.rename(folder / "train_00002.bin", folder / "x")
    os.rename(folder / "train_00001.bin", folder / "train_00002.bin")
    os.rename(folder / "x", folder / "train_00001.bin")


def swap_alike(folder):
    """Two shards whose largest ids are the same, so that only the digests tell them apart."""
    set_shard("max_id", VOCAB - 1)(folder)
    edit_meta(folder, lambda m: m["splits"]["train"]["shards"][2].update(max_id=VOCAB - 1))
    swap(folder)


def flip_a_bit(folder):
    ids = np.fromfile(folder / "train_00001.bin", "<u4")
    poke(folder / "train_00001.bin", 9, ids[9] ^ 1)


DAMAGES = {
    "no folder": (shutil.rmtree, MissingFile, r"dataset folder .*/d does not exist.*--dataset"),
    "no meta.json": (lambda d: (d / "meta.json").unlink(), MissingFile, r"d/meta\.json is missing.*prepare\.py"),
    "not JSON": (lambda d: (d / "meta.json").write_text('{"a": '), InputError, r"meta\.json is damaged or not JSON"),
    "not text": (lambda d: (d / "meta.json").write_bytes(b"\xff\xfe\xfa"), InputError, r"meta\.json is damaged or not JSON"),
    "not an object": (lambda d: (d / "meta.json").write_text("[]"), InputError, r"meta\.json holds list, not a JSON object"),
    "format version": (set_top("format_version", 2), InputError, r"meta\.json has format_version 2, this code reads 1"),
    "dtype": (set_top("dtype", "uint16"), InputError, r"meta\.json has dtype 'uint16'"),
    "mistyped": (set_top("vocab_size", "many"), InputError, r"meta\.json: 'vocab_size' is 'many', expected int"),
    "tokenizer": (set_top("tokenizer", {"name": "x"}), InputError, r"meta\.json: tokenizer lacks 'length'"),
    "no split": (lambda d: edit_meta(d, lambda m: m["splits"].pop("train")), InputError, r"no split 'train', only val"),
    "split lacks": (lambda d: edit_meta(d, lambda m: m["splits"]["train"].pop("tokens")), InputError, "'train' lacks 'tokens'"),
    "shard lacks": (lambda d: edit_meta(d, lambda m: m["splits"]["train"]["shards"][1].pop("sha256")), InputError,
                    "'train', shard 1 lacks 'sha256'"),
    "negative": (set_shard("tokens", -5), InputError, "shard 1: 'tokens' is '-5'"),
    "path in file": (set_shard("file", "../x.bin"), InputError, r"shard 1: file '\.\./x\.bin' is a path"),
    "sum": (lambda d: edit_meta(d, lambda m: m["splits"]["train"].update(tokens=7)), InputError, r"says 7 tokens.*sum to \d+"),
    "no shard": (lambda d: (d / "train_00001.bin").unlink(), MissingFile, r"d/train_00001\.bin is missing"),
    "size": (drop_bytes, InputError, r"train_00001\.bin has 396 bytes, meta\.json says 100 tokens, 400 bytes"),
    "max_id": (set_shard("max_id", VOCAB), InputError, r"train_00001\.bin: recorded max_id 200000 .*vocab_size=200000"),
    "an id": (lambda d: poke(d / "train_00001.bin", 42, VOCAB + 3), InputError, r"train_00001\.bin: id 200003 at position 42 "),
    "a flipped bit": (flip_a_bit, InputError, r"train_00001\.bin is not what meta\.json records.*: damaged;"),
    "two shards swapped": (swap, InputError, r"train_00001\.bin: id 199999 .* max_id 199327 .* another shard's"),
    "two like shards swapped": (swap_alike, InputError, r"train_00001\.bin is not .* holds the bytes of train_00002\.bin"),
    "a shard too many": (lambda d: shutil.copy(d / "train_00000.bin", d / "train_00077.bin"), InputError,
                         r"d/train_00077\.bin is not listed in meta\.json"),
    "beyond the recorded max_id": (set_shard("max_id", 5), InputError, r"beyond the shard's max_id 5 in meta\.json"),
    "foreign tokenizer": (lambda d: (d / "tokenizer.json").write_text("{}"), InputError,
                          r"d/tokenizer\.json is not the tokenizer 'toy' of the shards: its sha256 is 44136fa355b3"),
    "eot_id": (set_top("eot_id", VOCAB), InputError, r"meta\.json: eot_id 200000 has no row in its vocabulary of 200000"),
    "eot_id of no token": (lambda d: edit_meta(d, lambda m: m["tokenizer"].update(length=VOCAB - 1)), InputError,
                           "eot_id 199999 has .* or no token among the 199999 of its tokenizer"),
    "a tokenizer larger than the vocabulary": (lambda d: edit_meta(d, lambda m: m["tokenizer"].update(length=VOCAB + 1)),
                                               InputError, "vocab_size 200000 is smaller than the 200001 tokens"),
    "a float": (set_shard("tokens", 100.0), InputError, r"shard 1: 'tokens' is '100\.0', expected int"),
    "a count of true": (set_shard("documents", True), InputError, "shard 1: 'documents' is 'True', expected int"),
    "documents": (set_shard("documents", 70), InputError, r"split 'train' says 30 documents, its shards sum to \d+"),
    "more documents than tokens": (lambda d: edit_meta(d, more_documents), InputError,
                                   r"says \d+ documents, but \d+ tokens, and each document ends with one"),
    "no text": (set_split("text_bytes", 0), InputError, r"split 'train' says 0 bytes of text for \d+ tokens, which cannot be"),
    "too little text": (set_split("text_bytes", 9), InputError, r"says 9 bytes of text for \d+ tokens, which cannot be"),
    "too much text": (set_split("text_bytes", 2**62), InputError, r"says 4611686018427387904 bytes of text for \d+ tokens"),
    "a link to a shard": (lambda d: rename_shard(d, "x.bin", lambda new, old: new.symlink_to(old.name)), InputError,
                          r"meta\.json lists 'x\.bin' twice, once as 'train_00000\.bin'"),
    "a hard link to a shard": (lambda d: rename_shard(d, "x.bin", lambda new, old: os.link(old, new)), InputError,
                               r"meta\.json lists 'x\.bin' twice, once as 'train_00000\.bin'"),
    "a tokenizer's file from elsewhere": (lambda d: (d / "tokenizer_config.json").symlink_to("/etc/passwd"), InputError,
                                          r"tokenizer_config\.json is a link out of the folder, to /etc/passwd"),
    "a tokenizer's file from above": (lambda d: (d / "merges.txt").symlink_to(put(d.parent / "merges.txt")), InputError,
                                      r"merges\.txt is a link out of the folder"),
    "a tokenizer's file that is huge": (lambda d: os.truncate(put(d / "tokenizer.model"), (1 << 30) + 1), InputError,
                                        r"tokenizer\.model has 1,073,741,825 bytes, more than a tokenizer's file has"),
    "a shard twice": (lambda d: edit_meta(d, lambda m: m["splits"]["train"].update(
        shards=[*m["splits"]["train"]["shards"], m["splits"]["train"]["shards"][0]],
        tokens=m["splits"]["train"]["tokens"] + SHARD)), InputError, r"meta\.json lists 'train_00000\.bin' twice"),
    "a shard of both splits": (lambda d: edit_meta(d, lambda m: m["splits"]["val"]["shards"].append(
        m["splits"]["train"]["shards"][0])), InputError, r"meta\.json lists 'train_00000\.bin' twice"),
    "no tokens": (lambda d: edit_meta(d, lambda m: m["splits"]["train"].update(tokens=0, shards=[])), InputError,
                  "split 'train' has no tokens"),
}  # fmt: skip  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_before_training(toy_dataset, name):
    damage, error, message = DAMAGES[name]
    open_tokens(toy_dataset, "train", VOCAB)
    damage(toy_dataset)
    with pytest.raises(error, match=message) as caught:
        open_tokens(toy_dataset, "train", VOCAB)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


@pytest.mark.timeout(30)  # a pipe would block whoever opens it
@pytest.mark.parametrize("name", ["train_00001.bin", "tokenizer.json"])
@pytest.mark.parametrize(
    "put, message",
    [
        (os.mkdir, "is not a file"),
        (os.mkfifo, "is not a file"),
        (lambda path: path.symlink_to("nowhere"), "is missing"),
        (lambda path: path.symlink_to(path), r"cannot be read \(.*symbolic links"),
        (lambda path: path.symlink_to("/dev/zero"), "is not a file"),
        (
            lambda path: path.symlink_to("/proc/self/mem"),
            r"has 0 bytes|cannot be read \(Input/output error|is a link out of the folder",
        ),
    ],
)
def test_what_is_not_a_readable_file_is_named(toy_dataset, name, put, message):
    (toy_dataset / name).unlink(missing_ok=True)
    put(toy_dataset / name)
    with pytest.raises(InputError, match=rf"{name} ({message})") as caught:
        open_tokens(toy_dataset, "train", VOCAB)
    assert "\n" not in str(caught.value)


def test_meta_json_is_read_once_for_each_split(toy_dataset, monkeypatch):
    reads = []
    monkeypatch.setattr("tokens.reader.read_meta", lambda folder: reads.append(folder) or read_meta(folder))
    open_tokens(toy_dataset, "train", VOCAB)
    assert reads == [toy_dataset]


@pytest.mark.parametrize("folder", ["nowhere", "x" * 5000, "a\0b", "train_00000.bin"])
def test_what_is_not_a_folder_is_named(toy_dataset, folder):
    with pytest.raises(MissingFile, match=r"dataset folder .* does not exist"):
        open_tokens(toy_dataset / folder, "train", VOCAB)


def test_vocabulary_beyond_the_model(toy_dataset):
    open_tokens(toy_dataset, "val", VOCAB + 1)
    with pytest.raises(
        ValueError, match=r"exceeds the model's: 200000 rows \(tokenizer 'toy'\) against vocab_size=50257"
    ):
        open_tokens(toy_dataset, "val", 50257)


def test_data_dtype_must_not_contradict(toy_dataset):
    open_tokens(toy_dataset, "val", VOCAB, "uint32")
    with pytest.raises(ValueError, match="dtype 'uint32', but data_dtype='uint16'"):
        open_tokens(toy_dataset, "val", VOCAB, "uint16")
    with pytest.raises(ValueError, match="data_dtype='int32' is unknown"):
        open_tokens(toy_dataset, "val", VOCAB, "int32")


def test_fingerprint(toy_dataset, tmp_path):
    fingerprint = open_tokens(toy_dataset, "train", VOCAB).fingerprint
    assert len(fingerprint) == 64
    copy = shutil.copytree(toy_dataset, tmp_path / "elsewhere")
    assert open_tokens(copy, "train", VOCAB + 5).fingerprint == fingerprint
    assert open_tokens(copy, "val", VOCAB).fingerprint != fingerprint
    ids = np.fromfile(copy / "train_00003.bin", "<u4")
    poke(copy / "train_00003.bin", 0, ids[0] ^ 1)
    digest = hashlib.sha256((copy / "train_00003.bin").read_bytes()).hexdigest()
    edit_meta(copy, lambda m: m["splits"]["train"]["shards"][3].update(sha256=digest))
    assert open_tokens(copy, "train", VOCAB).fingerprint != fingerprint
    copy = shutil.copytree(toy_dataset, tmp_path / "swapped")
    edit_meta(copy, lambda m: m["splits"]["train"]["shards"].insert(0, m["splits"]["train"]["shards"].pop(1)))
    assert open_tokens(copy, "train", VOCAB).fingerprint != fingerprint
