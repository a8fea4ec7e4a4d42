"""llm.c's token files: a folder of them is a dataset, and a header is never taken for tokens."""

import numpy as np
import pytest
from toy_tokens import poke

from base.errors import InputError, MissingFile
from tokens.dataset import Dataset, dataset_folder
from tokens.llmc import magic_of
from tokens.nanogpt import open_nanogpt
from tokens.reader import open_tokens

GPT2, LLAMA3 = (20240520, 1, "<u2"), (20240801, 7, "<u4")


def write(file, ids, kind=GPT2, version=None, n_tokens=None):
    """As llm.c's own preparation writes it."""
    magic, known, dtype = kind
    header = np.zeros(256, np.int32)
    header[:3] = magic, known if version is None else version, len(ids) if n_tokens is None else n_tokens
    file.write_bytes(header.tobytes() + np.asarray(ids).astype(dtype).tobytes())


@pytest.fixture
def folder(tmp_path):
    ids = np.random.default_rng(0).integers(0, 50257, 3000)
    write(tmp_path / "fineweb_val_000000.bin", ids[:500])
    write(tmp_path / "fineweb_train_000001.bin", ids[500:2000])
    write(tmp_path / "fineweb_train_000002.bin", ids[2000:])
    return tmp_path, ids


@pytest.mark.parametrize("data_dtype", [None, "uint16"])
def test_a_folder_is_a_dataset(folder, data_dtype):
    folder, ids = folder
    train, val = (open_tokens(folder, split, 50257, data_dtype) for split in ("train", "val"))
    assert (train.n_tokens, val.n_tokens, train.eot_id, train.bytes_per_token) == (2500, 500, None, None)
    assert np.array_equal(train.read(0, 2500), ids[500:]) and np.array_equal(val.read(0, 500), ids[:500])
    assert np.array_equal(train.read(1400, 300), ids[1900:2200])  # across files
    assert dataset_folder(str(folder), folder / "nowhere") == folder
    options = dict(
        vocab_size=50257, block_size=8, batch_size=2, gradient_accumulation_steps=1, seed=0, eval_tokens=16
    )
    data = Dataset(str(folder), folder / "nowhere", **options)
    rows = data.loader.micro_batch(0, 0)[0]
    starts = [int(np.flatnonzero(ids[500:] == row[0].item())[0]) for row in rows]
    assert all(np.array_equal(row, ids[500 + s : 508 + s]) for row, s in zip(rows, starts, strict=True))


def test_llama3_files_are_uint32(tmp_path):
    ids = np.random.default_rng(0).integers(0, 128256, 700)
    write(tmp_path / "tiny_shakespeare_train.bin", ids, LLAMA3)
    write(tmp_path / "tiny_shakespeare_val.bin", ids[:99], LLAMA3)
    assert np.array_equal(open_tokens(tmp_path, "train", 128256).read(0, 700), ids)
    with pytest.raises(InputError, match=r"id \d+ at position \d+ is beyond the model's vocab_size=50257"):
        open_tokens(tmp_path, "train", 50257)
    with pytest.raises(InputError, match="by its header that it is uint32, but data_dtype='uint16'"):
        open_tokens(tmp_path, "train", 128256, "uint16")


@pytest.mark.parametrize("kind", [GPT2, LLAMA3])
def test_a_header_under_nanogpts_names_is_not_tokens(tmp_path, kind):
    """train.bin and val.bin, with the dtype that nanoGPT's folders need: the tokens are those after the header."""
    ids = np.arange(600) % 300
    dtype = np.dtype(kind[2]).name
    write(tmp_path / "train.bin", ids, kind)
    (tmp_path / "val.bin").write_bytes(ids.astype(kind[2]).tobytes())
    assert np.array_equal(open_tokens(tmp_path, "train", 300, dtype).read(0, 600), ids)
    with pytest.raises(MissingFile, match=r"holds llm\.c's files, but no \*_val_\*\.bin among them"):
        open_tokens(tmp_path, "val", 300, dtype)
    write(tmp_path / "val.bin", ids[:50], kind)
    assert open_tokens(tmp_path, "val", 300).n_tokens == 50
    with pytest.raises(InputError, match=r"train\.bin begins with a header of llm\.c"):
        open_nanogpt(tmp_path, "train", 300, dtype)


def other_magic(magic):
    return lambda folder: write(folder / "fineweb_train_000001.bin", [1] * 50, (magic, 1, "<u2"))


DAMAGES = {
    "truncated": (lambda d: (d / "fineweb_train_000001.bin").write_bytes((d / "fineweb_train_000001.bin").read_bytes()[:-2]),
                  r"has 4022 bytes, but its header says 1500 tokens of uint16, 4024 bytes"),
    "no tokens": (lambda d: write(d / "fineweb_train_000001.bin", []), "its header says 0 tokens"),
    "negative": (lambda d: write(d / "fineweb_train_000001.bin", [1], n_tokens=-1), "its header says -1 tokens"),
    "a header alone, cut": (lambda d: (d / "fineweb_train_000001.bin").write_bytes(np.array(GPT2[:2], np.int32).tobytes()),
                            r"is cut off within llm\.c's header"),
    "another version": (lambda d: write(d / "fineweb_train_000001.bin", [1] * 9, version=2),
                        r"is version 2 of llm\.c's format 20240520, this code reads 1"),
    "a mixture": (lambda d: write(d / "fineweb_train_000002.bin", [1] * 9, LLAMA3),
                  r"fineweb_train_000002\.bin holds uint32, .*000001\.bin holds uint16"),
    "an evaluation": (other_magic(20240522), "holds questions of an evaluation"),
    "a model": (other_magic(20240326), "holds weights of a model"),
    "unknown": (other_magic(20250101), r"holds something unknown \(magic 20250101\)"),
    "a name of both splits": (lambda d: (d / "fineweb_train_000001.bin").rename(d / "fineweb_train_val_1.bin"),
                              r"fineweb_train_val_1\.bin is of train and of val by its name"),
    "an id": (lambda d: poke(d / "fineweb_train_000001.bin", 512 + 7, 60000, "<u2"), "id 60000 at position 7 "),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named(folder, name):
    damage, message = DAMAGES[name]
    damage(folder[0])
    with pytest.raises(InputError, match=message) as caught:
        open_tokens(folder[0], "train", 50257)
    assert "\n" not in str(caught.value)


def test_the_fingerprint_sees_names_headers_and_both_ends(folder):
    folder, _ = folder
    prints = {open_tokens(folder, "train", 50257).fingerprint}
    poke(folder / "fineweb_train_000002.bin", -1, 5, "<u2")
    prints.add(open_tokens(folder, "train", 50257).fingerprint)
    poke(folder / "fineweb_train_000001.bin", 512, 5, "<u2")
    prints.add(open_tokens(folder, "train", 50257).fingerprint)
    (folder / "fineweb_train_000002.bin").rename(folder / "fineweb_train_000003.bin")
    prints.add(open_tokens(folder, "train", 50257).fingerprint)
    assert len(prints) == 4


def test_tokens_are_not_taken_for_a_header(tmp_path):
    """nanoGPT's files whose first ids happen to read as a date."""
    ids = np.random.default_rng(1).integers(1, 50000, 3000).astype("<u2")
    ids[:2] = np.array([20240520], "<i4").view("<u2")
    ids.tofile(tmp_path / "train.bin")
    assert magic_of(tmp_path / "train.bin") is None
    assert open_tokens(tmp_path, "train", 60000, "uint16").n_tokens == 3000
