"""nanoGPT's folders."""

import os
import pickle

import numpy as np
import pytest
from toy_tokens import poke

from base.errors import InputError, MissingFile
from tokens.nanogpt import read_nanogpt_meta
from tokens.reader import open_tokens

pytest_plugins = ["tokens_fixtures"]


def test_nanogpt_folder(nanogpt):
    folder, ids = nanogpt
    with pytest.raises(ValueError, match=r"--data_dtype=uint16 \(nanoGPT's format\)"):
        open_tokens(folder, "train", 50257)
    tokens = open_tokens(folder, "train", 50257, "uint16")
    assert (tokens.n_tokens, tokens.bytes_per_token) == (3000, None)
    assert np.array_equal(tokens.read(0, 3000), ids)
    assert np.array_equal(tokens.read(1234, 56), ids[1234:1290])


def test_meta_pkl_speaks_of_the_vocabulary(nanogpt):
    folder, _ = nanogpt
    with pytest.raises(
        ValueError, match=r"meta\.pkl has vocab_size 50257, the model 50000: set --vocab_size=50257"
    ):
        open_tokens(folder, "train", 50000, "uint16")
    for meta in ([1], {"vocab_size": "97"}, {"vocab_size": -1}, {"vocab_size": 2**32}):
        (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
        with pytest.raises(
            ValueError, match=r"meta\.pkl is not a dictionary with a whole number of 32 bits as vocab_size"
        ):
            open_tokens(folder, "train", 50257, "uint16")
    (folder / "meta.pkl").unlink()
    assert read_nanogpt_meta(folder) == {}


def test_nanogpt_damage(nanogpt):
    folder, ids = nanogpt
    with pytest.raises(
        ValueError, match=r"train\.bin: id \d+ at position \d+ is beyond the model's vocab_size=50257.*uint32"
    ):
        open_tokens(folder, "train", 50257, "uint32")
    poke(folder / "val.bin", 2999, 50257, "<u2")
    with pytest.raises(ValueError, match=r"val\.bin: id 50257 at position 2999"):
        open_tokens(folder, "val", 50257, "uint16")
    (folder / "val.bin").write_bytes(b"abc")
    with pytest.raises(ValueError, match=r"val\.bin has 3 bytes"):
        open_tokens(folder, "val", 50257, "uint16")
    (folder / "val.bin").unlink()
    with pytest.raises(MissingFile, match=r"val\.bin is missing"):
        open_tokens(folder, "val", 50257, "uint16")


@pytest.mark.parametrize("vocab_size", [50257, 151936])
def test_uint32_is_not_read_as_uint16(tmp_path, vocab_size):
    np.random.default_rng(0).integers(0, vocab_size, 3000).astype("<u4").tofile(tmp_path / "train.bin")
    with pytest.raises(ValueError, match=r"train\.bin: every second uint16 .*--data_dtype=uint32"):
        open_tokens(tmp_path, "train", vocab_size, "uint16")
    assert open_tokens(tmp_path, "train", vocab_size, "uint32").n_tokens == 3000


def test_nanogpt_fingerprint_sees_both_ends_and_the_dtype(tmp_path):
    ids = np.random.default_rng(0).integers(0, 300, 2 << 20).astype("<u2")
    ids[1::2] += 500  # as uint32 it is within a vocabulary of 2**31 too
    ids.tofile(tmp_path / "train.bin")
    prints = [open_tokens(tmp_path, "train", 2**31, "uint32").fingerprint]
    for position in (None, 0, len(ids) - 1):
        if position is not None:
            poke(tmp_path / "train.bin", position, 7, "<u2")
        prints.append(open_tokens(tmp_path, "train", 1000, "uint16").fingerprint)
    ids[:-2].tofile(tmp_path / "train.bin")
    prints.append(open_tokens(tmp_path, "train", 1000, "uint16").fingerprint)
    assert len(set(prints)) == 5


@pytest.mark.timeout(30)  # a pipe would block whoever opens it
@pytest.mark.parametrize("name", ["train.bin", "meta.pkl"])
@pytest.mark.parametrize(
    "put, message",
    [
        (os.mkdir, "is not a file"),
        (os.mkfifo, "is not a file"),
        (lambda path: path.symlink_to("nowhere"), "is missing"),
        (lambda path: path.symlink_to("/proc/self/mem"), r"has 0 bytes|cannot be read \(Input/output error"),
    ],
)
def test_what_is_not_a_readable_file_is_named(nanogpt, name, put, message):
    folder, _ = nanogpt
    (folder / name).unlink()
    put(folder / name)
    with pytest.raises(InputError, match=rf"{name} ({message})") as caught:
        open_tokens(folder, "train", 50257, "uint16")
    assert "\n" not in str(caught.value)


def test_a_meta_pkl_of_many_bytes_is_not_read(nanogpt):
    folder, _ = nanogpt
    os.truncate(folder / "meta.pkl", (64 << 20) + 1)
    with pytest.raises(InputError, match=r"meta\.pkl has 67108865 bytes, more than a vocabulary needs"):
        read_nanogpt_meta(folder)
