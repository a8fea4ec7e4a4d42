"""The token shard format: what is written, what is read, and what is refused before anything is trained on
it."""

import hashlib
import json
import os
import pickle
import shutil
import tracemalloc

import numpy as np
import pytest

from base.errors import InputError, MissingFile
from tokens import stream
from tokens.format import read_meta, write_meta
from tokens.nanogpt import read_nanogpt_meta
from tokens.reader import open_tokens
from tokens.writer import ShardWriter

VOCAB = 200_000  # beyond uint16
EOT = VOCAB - 1
SHARD = 100
TOKENIZER = {"name": "toy", "length": VOCAB, "sha256": "0" * 64}


def make_documents(n, seed=0):
    """n documents of 1 to 249 ids, each ending in EOT: with shards of 100 some cross one boundary and some
    cross two."""
    rng = np.random.default_rng(seed)
    return [np.append(rng.integers(0, EOT, rng.integers(0, 249)), EOT) for _ in range(n)]


def write_split(folder, split, documents, shard_tokens=SHARD):
    writer = ShardWriter(folder, split, shard_tokens)
    for ids in documents:
        writer.add(ids, text_bytes=3 * len(ids))
    return writer.finish()


def write_dataset(folder):
    """train: 30 documents over many shards; val: 2 documents. Returns the ids of each split."""
    documents = {"train": make_documents(30), "val": make_documents(2, seed=1)}
    splits = {split: write_split(folder, split, d) for split, d in documents.items()}
    write_meta(folder, vocab_size=VOCAB, tokenizer=TOKENIZER, eot_id=EOT, splits=splits)
    return {split: np.concatenate(d) for split, d in documents.items()}


def edit_meta(folder, edit):
    meta = json.loads((folder / "meta.json").read_text())
    edit(meta)
    (folder / "meta.json").write_text(json.dumps(meta))


def poke(path, position, value, dtype="<u4"):
    ids = np.memmap(path, dtype=dtype, mode="r+")
    ids[position] = value
    ids.flush()


@pytest.fixture
def dataset(tmp_path):
    write_dataset(tmp_path / "d")
    return tmp_path / "d"


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


def test_write_meta_refuses_ids_without_a_row(tmp_path):
    splits = {"train": write_split(tmp_path, "train", [np.array([1, 99])])}
    arguments = dict(tokenizer=TOKENIZER, splits=splits)
    with pytest.raises(ValueError, match=r"train_00000\.bin: id 99 has no row in a vocabulary of 99"):
        write_meta(tmp_path, vocab_size=99, eot_id=0, **arguments)
    with pytest.raises(ValueError, match="eot_id: id 100"):
        write_meta(tmp_path, vocab_size=100, eot_id=100, **arguments)
    assert not (tmp_path / "meta.json").exists()
    write_meta(tmp_path, vocab_size=100, eot_id=99, **arguments)


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
def test_read_beyond_the_ends(dataset, start, length):
    with pytest.raises(IndexError, match=r"ids \[.*\) of a split of"):
        open_tokens(dataset, "train", VOCAB).read(start, length)


def test_read_gives_a_copy(dataset):
    tokens = open_tokens(dataset, "train", VOCAB)
    tokens.read(0, 10)[:] = 0
    assert tokens.read(0, 10).any()


def test_file_descriptors_do_not_grow_with_the_shards(dataset, monkeypatch):
    monkeypatch.setattr(stream, "MAX_OPEN_SHARDS", 3)
    before = len(os.listdir("/dev/fd"))
    tokens = open_tokens(dataset, "train", VOCAB)
    assert len(list(dataset.glob("train_*.bin"))) > 10
    whole = tokens.read(0, tokens.n_tokens)
    assert len(os.listdir("/dev/fd")) - before <= 3
    assert np.array_equal(tokens.read(0, tokens.n_tokens), whole)


def test_damage_while_running_names_file_and_position(dataset):
    tokens = open_tokens(dataset, "train", VOCAB)
    poke(dataset / "train_00002.bin", 17, VOCAB)
    assert len(tokens.read(0, 2 * SHARD + 17)) == 217
    with pytest.raises(ValueError, match=r"train_00002\.bin: id 200000 at position 17 .*vocab_size=200000"):
        tokens.read(SHARD + 50, 2 * SHARD)
    with pytest.raises(ValueError, match=r"train_00002\.bin: id 200000 at position 17 "):
        tokens.read(2 * SHARD + 10, 20)


def drop_bytes(folder):
    path = folder / "train_00001.bin"
    path.write_bytes(path.read_bytes()[:-4])


def set_shard(key, value):
    return lambda folder: edit_meta(folder, lambda m: m["splits"]["train"]["shards"][1].update({key: value}))


def set_top(key, value):
    return lambda folder: edit_meta(folder, lambda m: m.update({key: value}))


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
    "no tokens": (lambda d: edit_meta(d, lambda m: m["splits"]["train"].update(tokens=0, shards=[])), InputError,
                  "split 'train' has no tokens"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_named_before_training(dataset, name):
    damage, error, message = DAMAGES[name]
    open_tokens(dataset, "train", VOCAB)
    damage(dataset)
    with pytest.raises(error, match=message) as caught:
        open_tokens(dataset, "train", VOCAB)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)


def test_vocabulary_beyond_the_model(dataset):
    open_tokens(dataset, "val", VOCAB + 1)
    with pytest.raises(
        ValueError, match=r"exceeds the model's: 200000 rows \(tokenizer 'toy'\) against vocab_size=50257"
    ):
        open_tokens(dataset, "val", 50257)


def test_data_dtype_must_not_contradict(dataset):
    open_tokens(dataset, "val", VOCAB, "uint32")
    with pytest.raises(ValueError, match="dtype 'uint32', but data_dtype='uint16'"):
        open_tokens(dataset, "val", VOCAB, "uint16")
    with pytest.raises(ValueError, match="data_dtype='int32' is unknown"):
        open_tokens(dataset, "val", VOCAB, "int32")


def test_a_large_split_is_scanned_in_pieces(dataset, monkeypatch):
    monkeypatch.setattr(stream, "SCAN_WHOLE_BYTES", 400)
    monkeypatch.setattr(stream, "SCAN_PIECE_BYTES", 40)
    monkeypatch.setattr(stream, "SCAN_PIECES", 3)
    n = open_tokens(dataset, "train", VOCAB).n_tokens
    seen = []
    read = stream.TokenStream.read
    monkeypatch.setattr(
        stream.TokenStream, "read", lambda self, *window: seen.append(window) or read(self, *window)
    )
    open_tokens(dataset, "train", VOCAB)
    assert seen == [(0, 10), ((n - 10) // 2, 10), (n - 10, 10)]
    last = sorted(dataset.glob("train_*.bin"))[-1]
    poke(last, -1, VOCAB)
    with pytest.raises(ValueError, match=f"{last.name}: id {VOCAB} at position"):
        open_tokens(dataset, "train", VOCAB)


def test_fingerprint(dataset, tmp_path):
    fingerprint = open_tokens(dataset, "train", VOCAB).fingerprint
    assert len(fingerprint) == 64
    copy = shutil.copytree(dataset, tmp_path / "elsewhere")
    assert open_tokens(copy, "train", VOCAB + 5).fingerprint == fingerprint
    assert open_tokens(copy, "val", VOCAB).fingerprint != fingerprint
    ids = np.fromfile(copy / "train_00003.bin", "<u4")
    poke(copy / "train_00003.bin", 0, ids[0] ^ 1)
    digest = hashlib.sha256((copy / "train_00003.bin").read_bytes()).hexdigest()
    edit_meta(copy, lambda m: m["splits"]["train"]["shards"][3].update(sha256=digest))
    assert open_tokens(copy, "train", VOCAB).fingerprint != fingerprint
    copy = shutil.copytree(dataset, tmp_path / "swapped")
    edit_meta(copy, lambda m: m["splits"]["train"]["shards"].insert(0, m["splits"]["train"]["shards"].pop(1)))
    assert open_tokens(copy, "train", VOCAB).fingerprint != fingerprint


@pytest.fixture
def nanogpt(tmp_path):
    ids = np.random.default_rng(0).integers(0, 50257, 3000)
    for split in ("train", "val"):
        ids.astype("<u2").tofile(tmp_path / f"{split}.bin")
    itos = dict(enumerate("abc"))
    meta = {"vocab_size": 50257, "itos": itos, "stoi": {s: i for i, s in itos.items()}}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta))
    return tmp_path, ids


def test_nanogpt_folder(nanogpt):
    folder, ids = nanogpt
    with pytest.raises(ValueError, match=r"--data_dtype=uint16 \(nanoGPT's format\)"):
        open_tokens(folder, "train", 50257)
    tokens = open_tokens(folder, "train", 50257, "uint16")
    assert (tokens.n_tokens, tokens.bytes_per_token) == (3000, None)
    assert np.array_equal(tokens.read(0, 3000), ids)
    assert np.array_equal(tokens.read(1234, 56), ids[1234:1290])


class Hostile:
    def __reduce__(self):
        return os.mkdir, ("hostile",)


class Innocent:
    pass


HOSTILE = {
    "a call": pickle.dumps({"vocab_size": 97, "x": Hostile()}),
    "a call, protocol 0": pickle.dumps(Hostile(), protocol=0),
    "an old call": b"(S'hostile'\nios\nmkdir\n.",
    "an object": pickle.dumps({"vocab_size": 97, "x": Innocent()}),
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent id": b"Phostile\n.",
    "a memo of 2^31": b"\x80\x02}r\xff\xff\xff\x7f.",
    "a truncated one": pickle.dumps({"vocab_size": 97})[:-3],
    "not a pickle": b"not a pickle",
    "empty": b"",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_meta_pkl_is_refused_and_not_executed(nanogpt, monkeypatch, name):
    folder, _ = nanogpt
    monkeypatch.chdir(folder)
    (folder / "meta.pkl").write_bytes(HOSTILE[name])
    with pytest.raises(
        ValueError, match=r"meta\.pkl holds more than plain values, or is damaged .*was not executed"
    ) as caught:
        open_tokens(folder, "train", 50257, "uint16")
    assert "\n" not in str(caught.value)
    assert not (folder / "hostile").exists()


def test_the_hostile_calls_would_have_worked(tmp_path, monkeypatch):
    for name in ("a call", "a call, protocol 0", "an old call"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        pickle.loads(HOSTILE[name])
        assert (tmp_path / name / "hostile").is_dir()


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_of_every_protocol(tmp_path, protocol):
    stoi = {chr(i): i for i in range(33, 400)}
    meta = {
        "vocab_size": 400,
        "stoi": stoi,
        "more": [None, True, -1, 2**70, 1.5, (), (1,), (1, 2, 3, 4), b"" if protocol > 2 else ""],
    }
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(meta, protocol))
    assert read_nanogpt_meta(tmp_path) == meta


def test_meta_pkl_speaks_of_the_vocabulary(nanogpt):
    folder, _ = nanogpt
    with pytest.raises(
        ValueError, match=r"meta\.pkl has vocab_size 50257, the model 50000: set --vocab_size=50257"
    ):
        open_tokens(folder, "train", 50000, "uint16")
    for meta in ([1], {"vocab_size": "97"}, {"vocab_size": -1}):
        (folder / "meta.pkl").write_bytes(pickle.dumps(meta))
        with pytest.raises(
            ValueError, match=r"meta\.pkl is not a dictionary with a whole number as vocab_size"
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
