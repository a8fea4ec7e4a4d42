"""A model's folder of any shape: wrong values, nesting, sizes, bytes, files that are no files. Each is read or
ends in one InputError, at once."""

import json
import os
import random
import shutil
import struct

import pytest
from hf_twins import twin_of

from base.errors import InputError
from base.files import MAX_JSON_BYTES
from inference.hf import load_hf, save_hf
from inference.hf.configs import config_from_hf


def nested(depth, kind=list):
    value = kind()
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


WRONG = [
    None, True, 0, -1, 3, 2**31, 2**63, 10**400, 0.5, 1e308, float("inf"), float("nan"), "", "48", "a" * 500, "\ud800",
    "\0", [], [1], {}, {"a": 1}, nested(300), nested(300, dict), ["full_attention"] * 1000,
]  # fmt: skip
RAW = [b"\xff\xfe", b"[" * 100_000, b'{"a":' * 100_000, b"1" * 100_000, b"", b"\xef\xbb\xbf{}", b"null"]


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(twin_of("llama scaled").folder, tmp_path / "model")


def is_refused(folder) -> bool:
    """Whether load_hf refuses it, in one line; anything but an InputError fails the test."""
    try:
        load_hf(folder)
    except InputError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500
        return True
    return False


@pytest.mark.parametrize("name", ["gpt2", "llama scaled", "qwen3"])
def test_any_value_of_config_json(name):
    config = json.loads((twin_of(name).folder / "config.json").read_text())
    rope = config.get("rope_parameters", {})
    keys = [*config, "rope_scaling", "rope_theta", "layer_types"]
    changes = [{key: value} for key in keys for value in WRONG]
    changes += [{"rope_parameters": rope | {key: value}} for key in rope for value in WRONG]
    refused = 0
    for change in changes:
        try:
            config_from_hf(config | change)
        except InputError as error:
            assert "\n" not in str(error) and len(str(error)) < 1500
            refused += 1
    assert len(changes) / 3 < refused < len(changes)  # many keys are none of ours


@pytest.mark.parametrize(
    "change",
    [dict(num_hidden_layers=10**6), dict(hidden_size=2**40, head_dim=8), dict(vocab_size=2**62),
     dict(num_attention_heads=2**20, head_dim=2**20), dict(max_position_embeddings=2**40),
     dict(rope_parameters=dict(rope_type="llama3", rope_theta=300.0, factor=8.0, low_freq_factor=1.0,
                               high_freq_factor=4.0, original_max_position_embeddings=10**30))],
)  # fmt: skip
def test_a_size_beyond_reason_is_refused_before_it_is_built(change, folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    assert is_refused(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_any_bytes_where_json_belongs(file, folder):
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    for raw in RAW:
        (folder / file).write_bytes(raw)
        assert is_refused(folder)
    with open(folder / file, "wb") as sparse:
        sparse.truncate(MAX_JSON_BYTES + 1)
    assert is_refused(folder)


def test_an_index_names_files_of_its_folder(folder):
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    shutil.copy(folder / "shard.safetensors", folder.parent / "outside.safetensors")
    os.mkfifo(folder / "pipe")
    (folder / "link").symlink_to("nowhere")
    index = folder / "model.safetensors.index.json"
    outside = ["../outside.safetensors", str(folder.parent / "outside.safetensors")]
    for file in [*WRONG, *outside, "pipe", "link", ".", "shard.safetensors/x"]:
        for content in ({"weight_map": file}, {"weight_map": {"x": file, "y": "shard.safetensors"}}):
            index.write_text(json.dumps(content))
            assert is_refused(folder)
    index.write_text('{"weight_map": {"x": "shard.safetensors"}}')
    assert not is_refused(folder)


def test_any_header_of_safetensors(folder):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    n = struct.unpack("<Q", content[:8])[0]
    header, body = json.loads(content[8 : 8 + n]), content[8 + n :]
    name = "model.norm.weight"
    changes = [{key: value} for key in (name, "__metadata__") for value in WRONG]
    parts = ("dtype", "shape", "data_offsets")
    changes += [{name: header[name] | {part: value}} for part in parts for value in WRONG]
    for change in changes:
        raw = json.dumps(header | change).encode()
        file.write_bytes(struct.pack("<Q", len(raw)) + raw + body)
        free = change.get("__metadata__", name) in (None, {}, {"a": "1"})
        assert is_refused(folder) or free
    for raw in RAW:
        file.write_bytes(struct.pack("<Q", len(raw)) + raw + body)
        assert is_refused(folder)
    rng = random.Random(0)
    for _ in range(100):
        damaged = bytearray(content)
        damaged[rng.randrange(8 + n)] = rng.randrange(256)
        file.write_bytes(damaged)
        is_refused(folder)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_file_that_is_none(file, folder):
    path = folder / file
    for make in (path.mkdir, lambda: os.mkfifo(path), lambda: path.symlink_to("nowhere"),
                 lambda: path.symlink_to(file), lambda: path.symlink_to("/dev/zero")):  # fmt: skip
        path.rmdir() if path.is_dir() else path.unlink()
        make()
        assert is_refused(folder)


def test_a_folder_that_is_none(folder, tmp_path):
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "loop").symlink_to("loop")
    for path in (tmp_path / "link", tmp_path / "loop", folder / "config.json", "/dev/null", "~no_such_user/x",
                 "x" * 300 + "/" + "y" * 300, "a\0b", "\udcff"):  # fmt: skip
        assert is_refused(path)
    with pytest.raises(InputError, match="a file: pass the folder"):
        load_hf(folder / "config.json")
    with pytest.raises(InputError, match="leads nowhere"):
        load_hf(tmp_path / "link")


def test_an_export_has_nowhere_to_go(tmp_path):
    model = twin_of("llama scaled").ours
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    for place in ("file", "link", "file/below", "x" * 300):
        with pytest.raises(InputError, match=place[:4]):
            save_hf(model, tmp_path / place)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "link"]
