"""What is written."""

import hashlib
import os
import tracemalloc

import numpy as np
import pytest
from toy_tokens import (
    EOT,
    SHARD,
    TOKENIZER,
    VOCAB,
    make_documents,
    write_dataset,
    write_split,
)

from base.errors import InputError, MissingFile
from tokens.format import read_meta
from tokens.reader import open_tokens
from tokens.writer import ShardWriter


def test_memmap_is_a_reader(tmp_path):
    ids = write_dataset(tmp_path)
    for split in ("train", "val"):
        files = sorted(tmp_path.glob(f"{split}_*.bin"))
        assert files[0].name == f"{split}_00000.bin"
        assert np.array_equal(
            np.concatenate([np.memmap(f, dtype=np.uint32, mode="r") for f in files]), ids[split]
        )
    assert sorted(p.name for p in tmp_path.iterdir() if not p.name.endswith(".bin")) == ["meta.json"]


def test_bytes_are_little_endian(tmp_path):
    write_split(tmp_path, "train", [np.array([1, 0x01020304])])
    assert (tmp_path / "train_00000.bin").read_bytes() == bytes([1, 0, 0, 0, 4, 3, 2, 1])


def test_meta_agrees_with_the_files(tmp_path):
    documents = make_documents(30)
    write_dataset(tmp_path)
    meta = read_meta(tmp_path)
    assert (meta["format_version"], meta["dtype"], meta["vocab_size"], meta["eot_id"]) == (
        1,
        "uint32",
        VOCAB,
        EOT,
    )
    assert meta["tokenizer"] == TOKENIZER
    entry = meta["splits"]["train"]
    total = sum(map(len, documents))
    assert (entry["tokens"], entry["documents"], entry["text_bytes"]) == (total, 30, 3 * total)
    assert [s["tokens"] for s in entry["shards"]] == [SHARD] * (total // SHARD) + [total % SHARD]
    for i, shard in enumerate(entry["shards"]):
        data = (tmp_path / shard["file"]).read_bytes()
        ids = np.frombuffer(data, dtype=np.uint32)
        assert shard["file"] == f"train_{i:05d}.bin"
        assert shard["documents"] == (ids == EOT).sum()
        assert shard["max_id"] == ids.max()
        assert shard["sha256"] == hashlib.sha256(data).hexdigest()


def test_documents_that_end_at_a_boundary(tmp_path):
    entry = write_split(tmp_path, "train", [np.full(50, 7)] * 4)
    assert [(s["tokens"], s["documents"]) for s in entry["shards"]] == [(100, 2), (100, 2)]


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64])
def test_writer_takes_any_integer_dtype(tmp_path, dtype):
    write_split(tmp_path, "train", [np.array([5, 0, 127], dtype=dtype)])
    assert np.fromfile(tmp_path / "train_00000.bin", dtype=np.uint32).tolist() == [5, 0, 127]


@pytest.mark.parametrize(
    "ids, text_bytes, message",
    [
        ([3, -1], 2, "id -1"),
        ([3, 2**32], 2, "id 4294967296"),
        ([], 0, "at least one id"),
        ([[1, 2]], 2, "shape"),
        ([1.0, 2.0], 2, "dtype float64"),
        ([1, 2], -1, "text_bytes=-1"),
    ],
)
def test_writer_refuses(tmp_path, ids, text_bytes, message):
    writer = ShardWriter(tmp_path, "train")
    writer.add(np.array([1, 2**32 - 1]), 1)
    with pytest.raises(ValueError, match=f"document 1 of split 'train'.*{message}"):
        writer.add(np.array(ids), text_bytes)
    entry = writer.finish()
    assert (entry["tokens"], entry["documents"], entry["text_bytes"]) == (
        2,
        1,
        1,
    )  # nothing of the refused document


@pytest.mark.parametrize("length, count, limit_mib", [(20_000, 200, 3), (4_000_000, 1, 12)])
def test_writer_memory_grows_neither_with_the_corpus_nor_with_a_document(tmp_path, length, count, limit_mib):
    document = np.arange(length, dtype=np.uint32)
    writer = ShardWriter(tmp_path, "train", shard_tokens=3_900_000)
    tracemalloc.start()
    for _ in range(count):  # 16 MB of ids either way
        writer.add(document, 1)
    writer.finish()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < limit_mib << 20


def test_a_shard_appears_only_when_complete(tmp_path):
    writer = ShardWriter(tmp_path, "train", SHARD)
    writer.add(np.zeros(150, int), 150)
    assert [p.name for p in tmp_path.glob("train*")] == ["train_00000.bin"]
    with pytest.raises(MissingFile, match=r"meta\.json is missing"):
        open_tokens(tmp_path, "train", VOCAB)
    write_split(tmp_path, "train", [np.ones(150, int)])  # a second run after the first was killed
    assert sorted(p.name for p in tmp_path.iterdir()) == ["train_00000.bin", "train_00001.bin"]
    assert np.fromfile(tmp_path / "train_00001.bin", dtype=np.uint32).tolist() == [1] * 50


@pytest.mark.parametrize("renamed", [False, True])  # the shard was completed after the state was taken
def test_damage_to_a_half_written_shard_is_not_kept(tmp_path, renamed):
    def begin(folder):
        writer = ShardWriter(folder, "train", 100)
        writer.add(np.arange(130), 130)
        state = writer.commit()
        writer.add(np.arange(70 if renamed else 9), 9)
        writer.commit()
        return state, folder / ("train_00001.bin" if renamed else ".train_00001.bin")

    state, _ = begin(tmp_path / "good")
    writer = ShardWriter(tmp_path / "good", "train", 100, state)
    writer.add(np.arange(5), 5)
    entry = writer.finish()
    data = (tmp_path / "good" / "train_00001.bin").read_bytes()
    assert data == np.array([*range(100, 130), *range(5)], np.uint32).tobytes()
    assert entry["shards"][1]["sha256"] == hashlib.sha256(data).hexdigest()
    assert set(entry["shards"][1]) == {"file", "tokens", "documents", "max_id", "sha256"}

    state, file = begin(tmp_path / "bad")
    content = bytearray(file.read_bytes())
    content[17] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=r"\.train_00001\.bin is not what was written"):
        ShardWriter(tmp_path / "bad", "train", 100, state)
    state["partial"].pop("sha256")  # as an earlier version, which knew no better
    ShardWriter(tmp_path / "bad", "train", 100, state)


def test_a_complete_shard_that_was_cut_is_seen_on_resume(tmp_path):
    writer = ShardWriter(tmp_path, "train", 100)
    writer.add(np.arange(130), 130)
    state = writer.commit()
    os.truncate(tmp_path / "train_00000.bin", 396)
    with pytest.raises(InputError, match=r"train_00000\.bin has 396 bytes, 400 were written"):
        ShardWriter(tmp_path, "train", 100, state)
