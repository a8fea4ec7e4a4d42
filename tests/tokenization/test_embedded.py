"""The embedded corpus: the same source gives the same bytes, nothing is lost in them, and val stays apart
from train."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from base.errors import MissingFile, MissingPackage
from tokenization import embedded
from tokenization.embedded import collect, is_held_out, prepare
from tokenization.tokenizers import load_tokenizer
from tokens.format import read_meta
from tokens.reader import open_tokens

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "data/python_stdlib/prepare.py"
SPECIAL = 'EOT = "<|endoftext|>"  # is text here\n'


def ids_of(folder, split):
    return np.concatenate(
        [np.memmap(f, dtype=np.uint32, mode="r") for f in sorted(folder.glob(f"{split}_*.bin"))]
    )


def texts_of(folder, split):
    """The documents of a split, decoded from its shards alone."""
    tokenizer = load_tokenizer(folder)
    ids, eot = ids_of(folder, split), read_meta(folder)["eot_id"]
    assert ids[-1] == eot
    documents = np.split(ids, np.flatnonzero(ids == eot) + 1)[:-1]
    return [tokenizer.decode(d[:-1].tolist(), skip_special_tokens=False) for d in documents]


def files_of(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A small tree of sources: two dozen ordinary files and one of each kind that needs care."""
    root = tmp_path_factory.mktemp("source")

    def write(name, data):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())

    for i in range(80):
        write(
            f"package/module_{i:02d}.py",
            f'def f_{i}(x):\n    if x:\n\treturn [{i}, "ä€😀"]\n\n\n{SPECIAL}' * 3,
        )
    write("crlf.py", "a = 1\r\nb = 2\rc = 3\n")
    write("latin.py", "# -*- coding: latin-1 -*-\ns = 'é'\n".encode("latin-1"))
    write("bom.py", b"\xef\xbb\xbfx = 1\n")
    write("damaged.py", b"s = '\xff\xfe'\n")
    write("unknown.py", b"# coding: no-such-codec\n")
    write("surrogate.py", "# coding: raw_unicode_escape\ns = '\\ud800'\n")  # decodes, but to no UTF-8
    write("empty.py", "")
    write("notes.txt", "not Python")
    write("_sysconfigdata__linux.py", "build = 1\n")
    for folder in (
        "site-packages/p",
        "test",
        "unittest/tests",
        "idlelib/idle_test",
        "encodings",
        "pydoc_data",
        "config-3.11",
    ):
        write(f"{folder}/excluded.py", "excluded = True\n")
    return root


@pytest.fixture(scope="module")
def small(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    return folder, prepare(folder, vocab_size=300, source=source)


@pytest.fixture(scope="module")
def stdlib(tmp_path_factory):
    """(folder, meta.json) of what the command makes of the standard library."""
    root = tmp_path_factory.mktemp("stdlib")
    run = subprocess.run(
        [sys.executable, SCRIPT, "--out_dir", "out"], cwd=root, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr) == (0, "")
    assert "train: " in run.stdout and "val: " in run.stdout
    return root / "out", read_meta(root / "out")


def test_collect(source):
    documents = dict(collect(source))
    assert list(documents) == sorted(documents)
    assert set(documents) == {"crlf.py", "latin.py", "bom.py"} | {
        f"package/module_{i:02d}.py" for i in range(80)
    }
    assert documents["crlf.py"] == "a = 1\nb = 2\nc = 3\n"
    assert documents["latin.py"].endswith("s = 'é'\n")
    assert documents["bom.py"] == "x = 1\n"


def test_the_split_is_pinned():
    paths = [
        "argparse.py",
        "json/decoder.py",
        "json/encoder.py",
        "json/scanner.py",
        "pydoc.py",
        "random.py",
        "secrets.py",
    ]
    assert [p for p in paths if is_held_out(p)] == [
        "json/decoder.py",
        "json/encoder.py",
        "pydoc.py",
        "secrets.py",
    ]


def test_every_document_comes_back_in_order(source, small):
    folder, meta = small
    documents = collect(source)
    for split, held_out in (("train", False), ("val", True)):
        expected = [text for path, text in documents if is_held_out(path) == held_out]
        assert expected
        assert texts_of(folder, split) == expected
        entry = meta["splits"][split]
        assert entry["documents"] == len(expected) == (ids_of(folder, split) == meta["eot_id"]).sum()
        assert entry["text_bytes"] == sum(len(t.encode()) for t in expected)
        assert entry["tokens"] == len(ids_of(folder, split))


def test_the_separator_is_one_id_and_its_spelling_is_text(small):
    folder, meta = small
    tokenizer = load_tokenizer(folder)
    assert tokenizer.token_to_id("<|endoftext|>") == meta["eot_id"] == 0
    assert tokenizer.encode("<|endoftext|>").ids == [0]  # what a prompt may use
    assert all(
        SPECIAL in text for text in texts_of(folder, "train") if "def f_" in text
    )  # what a source file gets


def test_any_text_is_encodable(small):
    tokenizer = load_tokenizer(small[0])
    for text in ("", " ", "\n\n\t x\r\n\x0c", "日本語\u00a0 ", "".join(map(chr, range(256))), "a\x00b   c\n"):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_indentation_is_one_token_and_a_line_ends_before_its_break(stdlib):
    encoding = load_tokenizer(stdlib[0]).encode("def main():\n    if x:\n        return x\n")
    pieces = [load_tokenizer(stdlib[0]).decode([i]) for i in encoding.ids]
    assert pieces == ["def", " main", "():", "\n    ", "if", " x", ":", "\n        ", "return", " x", "\n"]


def test_two_processes_write_the_same_bytes(source, small, tmp_path):
    code = f"from tokenization.embedded import prepare; prepare({str(tmp_path)!r}, 300, {str(source)!r})"
    environment = {**os.environ, "PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)
    assert files_of(tmp_path) == files_of(small[0])
    assert sorted(files_of(tmp_path)) == ["meta.json", "tokenizer.json", "train_00000.bin", "val_00000.bin"]


def test_meta_records_the_tokenizer_and_opens_as_a_dataset(small):
    folder, meta = small
    assert meta == read_meta(folder) == json.loads((folder / "meta.json").read_text())
    digest = embedded.hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    assert meta["tokenizer"] == {"name": "python_stdlib_bpe_300", "length": 300, "sha256": digest}
    assert meta["vocab_size"] == 300
    assert open_tokens(folder, "val", 300).n_tokens == meta["splits"]["val"]["tokens"]


def test_a_killed_preparation_is_repeated(source, small, tmp_path, monkeypatch):
    prepare(
        tmp_path, vocab_size=280, source=source
    )  # an older dataset, which must not vouch for the new shards
    calls = []
    replace = os.replace

    def killed(old, new):
        if Path(new).parent == tmp_path:
            calls.append(new)
            if len(calls) == 2:
                raise KeyboardInterrupt
        replace(old, new)

    with monkeypatch.context() as m:
        m.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(tmp_path, vocab_size=300, source=source)
    assert len(calls) == 2
    with pytest.raises(MissingFile, match=r"meta\.json is missing"):
        open_tokens(tmp_path, "train", 300)
    prepare(tmp_path, vocab_size=300, source=source)
    assert files_of(tmp_path) == files_of(small[0])


def test_a_failed_preparation_leaves_the_old_dataset(source, small, tmp_path, monkeypatch):
    prepare(tmp_path, vocab_size=300, source=source)
    monkeypatch.setattr(embedded, "write_meta", lambda *a, **k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        prepare(tmp_path, vocab_size=280, source=source)
    assert files_of(tmp_path) == files_of(small[0])


def test_preparing_again_repairs_a_shard(source, small, tmp_path):
    prepare(tmp_path, vocab_size=300, source=source)
    (tmp_path / "val_00000.bin").write_bytes(b"")
    prepare(tmp_path, vocab_size=300, source=source)
    assert files_of(tmp_path) == files_of(small[0])


def test_too_little_source(tmp_path):
    with pytest.raises(ValueError, match="0 training and 0 held-out files"):
        prepare(tmp_path / "out", source=tmp_path)
    with pytest.raises(ValueError, match="vocab_size=256"):
        prepare(tmp_path / "out", vocab_size=256)
    assert not (tmp_path / "out").exists()


def test_the_standard_library(stdlib):
    folder, meta = stdlib
    train, val = meta["splits"]["train"], meta["splits"]["val"]
    assert train["text_bytes"] > 5_000_000
    assert val["text_bytes"] > 300_000
    assert 0.03 < val["text_bytes"] / (train["text_bytes"] + val["text_bytes"]) < 0.08
    for split, entry in meta["splits"].items():
        tokens = open_tokens(folder, split, 4096)
        ids = tokens.read(0, tokens.n_tokens)
        assert ids.max() < 4096
        assert (ids == 0).sum() == entry["documents"]
        assert 3.0 < tokens.bytes_per_token < 5.0
    assert meta["tokenizer"]["length"] == 4096
    held_out = [text for path, text in collect(os.path.dirname(os.__file__)) if is_held_out(path)]
    assert texts_of(folder, "val") == held_out
    assert np.unique(ids_of(folder, "train")).size > 3900  # nearly every token is used


def test_the_command_without_the_package(tmp_path):
    hide = tmp_path / "sitecustomize.py"
    hide.write_text("import sys; sys.modules['tokenizers'] = None\n")
    run = subprocess.run(
        [sys.executable, SCRIPT, f"--out_dir={tmp_path / 'out'}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 2
    assert (
        run.stderr
        == "prepare.py: preparing the embedded corpus needs the package tokenizers: pip install tokenizers\n"
    )


def test_the_command(stdlib, capsys):
    folder, meta = stdlib
    main = runpy.run_path(str(SCRIPT))["main"]
    with pytest.raises(SystemExit) as ended:
        main(["--out_dri=x"])
    said = capsys.readouterr().err
    assert ended.value.code == 2 and "did you mean 'out_dir'?" in said and said.count("\n") == 1
    assert main(["--verify=True", f"--out_dir={folder}"]) == 0 and not capsys.readouterr().err
    assert open_tokens(folder, "train", 4096).n_tokens == meta["splits"]["train"]["tokens"]


def test_load_tokenizer_says_what_is_wrong(tmp_path, monkeypatch):
    with pytest.raises(MissingFile, match=r"tokenizer\.json is missing"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer\.json of .* is damaged or not a tokenizer"):
        load_tokenizer(tmp_path)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingPackage, match="needs the package tokenizers: pip install tokenizers"):
        load_tokenizer(tmp_path)
