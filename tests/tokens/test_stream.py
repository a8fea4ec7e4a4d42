"""Reading ids from the shards of an open split."""

import os

import numpy as np
import pytest
from toy_tokens import SHARD, VOCAB, poke, write_dataset

from base.errors import InputError
from tokens import stream
from tokens.reader import open_tokens

pytest_plugins = ["tokens_fixtures"]


def test_read_is_a_slice_of_the_whole(tmp_path):
    ids = write_dataset(tmp_path)
    for split, whole in ids.items():
        tokens = open_tokens(tmp_path, split, VOCAB)
        assert tokens.n_tokens == len(tokens) == len(whole)
        assert tokens.bytes_per_token == 3.0
        windows = [
            (start, length)
            for start in range(0, len(whole), 37)
            for length in (0, 1, 63, 100, 101, 250, len(whole))
        ]
        for start, length in windows + [(0, len(whole)), (len(whole), 0), (len(whole) - 1, 1)]:
            if start + length <= len(whole):
                read = tokens.read(start, length)
                assert read.dtype == np.int64
                assert np.array_equal(read, whole[start : start + length])


@pytest.mark.parametrize("start, length", [(-1, 1), (0, -1), (0, 10**6)])
def test_read_beyond_the_ends(toy_dataset, start, length):
    with pytest.raises(IndexError, match=r"ids \[.*\) of a split of"):
        open_tokens(toy_dataset, "train", VOCAB).read(start, length)


def test_read_gives_a_copy(toy_dataset):
    tokens = open_tokens(toy_dataset, "train", VOCAB)
    tokens.read(0, 10)[:] = 0
    assert tokens.read(0, 10).any()


def test_file_descriptors_do_not_grow_with_the_shards(toy_dataset, monkeypatch):
    monkeypatch.setattr(stream, "MAX_OPEN_SHARDS", 3)
    before = len(os.listdir("/dev/fd"))
    tokens = open_tokens(toy_dataset, "train", VOCAB)
    assert len(list(toy_dataset.glob("train_*.bin"))) > 10
    whole = tokens.read(0, tokens.n_tokens)
    assert len(os.listdir("/dev/fd")) - before <= 3
    assert np.array_equal(tokens.read(0, tokens.n_tokens), whole)


def test_damage_while_running_names_file_and_position(toy_dataset):
    tokens = open_tokens(toy_dataset, "train", VOCAB)
    poke(toy_dataset / "train_00002.bin", 17, VOCAB)
    assert len(tokens.read(0, 2 * SHARD + 17)) == 217
    with pytest.raises(ValueError, match=r"train_00002\.bin: id 200000 at position 17 .*vocab_size=200000"):
        tokens.read(SHARD + 50, 2 * SHARD)
    with pytest.raises(ValueError, match=r"train_00002\.bin: id 200000 at position 17 "):
        tokens.read(2 * SHARD + 10, 20)


def test_a_large_split_is_scanned_in_pieces(toy_dataset, monkeypatch):
    monkeypatch.setattr(stream, "SCAN_WHOLE_BYTES", 400)
    monkeypatch.setattr(stream, "SCAN_PIECE_BYTES", 40)
    monkeypatch.setattr(stream, "SCAN_PIECES", 3)
    n = open_tokens(toy_dataset, "train", VOCAB).n_tokens
    seen = []
    read = stream.TokenStream.read
    monkeypatch.setattr(
        stream.TokenStream, "read", lambda self, *window: seen.append(window) or read(self, *window)
    )
    open_tokens(toy_dataset, "train", VOCAB)
    assert seen == [(0, 10), ((n - 10) // 2, 10), (n - 10, 10)]
    last = sorted(toy_dataset.glob("train_*.bin"))[-1]
    poke(last, -1, VOCAB)
    with pytest.raises(ValueError, match=f"{last.name}: id {VOCAB} at position"):
        open_tokens(toy_dataset, "train", VOCAB)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda file: file.unlink(), "is missing"),
        (lambda file: os.truncate(file, 396), "has shrunk to 396 bytes from 400"),
        (lambda file: (file.unlink(), file.mkdir()), "is not a file"),
    ],
)
def test_a_shard_that_goes_away_after_the_opening(toy_dataset, monkeypatch, damage, message):
    monkeypatch.setattr(stream, "MAX_OPEN_SHARDS", 1)  # so that it is opened again
    tokens = open_tokens(toy_dataset, "train", VOCAB)
    damage(toy_dataset / "train_00001.bin")
    with pytest.raises(InputError, match=rf"train_00001\.bin {message}"):
        tokens.read(SHARD, 10)
