"""The ids of a folder are AutoTokenizer's, whatever its layout: tokens that one file alone knows, names and
their precedence, state of a tokenizer.json, classes with a pipeline of their own, folders without a
tokenizer.json. So are those of what is saved of it."""

import json
import random

import pytest
import tokenizers as tk
from tokenizer_layouts import (
    TEXTS,
    assert_same,
    byte_level,
    sentencepiece_style,
    theirs,
    unigram,
    write_folder,
)

from base.errors import InputError, MissingPackage
from tokenization import other_classes
from tokenization.named import TOKENIZERS, config_bytes
from tokenization.tokenizers import find_tokenizer, has_tokenizer, load_tokenizer
from tokens.format import tokenizer_files

RAW, GPT2, QWEN, LLAMA = "PreTrainedTokenizerFast", "GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizer"
BYTES = json.loads(byte_level().to_str())
SPM = json.loads(sentencepiece_style().to_str())
UNIGRAM = json.loads(unigram().to_str())
TOOL = {
    "content": "<tool>",
    "single_word": False,
    "lstrip": True,
    "rstrip": False,
    "normalized": False,
    "special": False,
}
EXTRA = {**TOOL, "content": "<extra>", "special": True, "lstrip": False}
N = len(BYTES["model"]["vocab"])
END = {**BYTES["added_tokens"][0]}
END.pop("id")
MORE_IM = {"extra_special_tokens": ["<im>"]}
PADDING = {
    "strategy": {"Fixed": 10**9}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
    "pad_token": "<pad>",
}  # fmt: skip
TRUNCATION = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}


def check(folder, texts=TEXTS):
    """Ours is AutoTokenizer's, of the folder and of what we save of it, which is again the same tokenizer."""
    auto = theirs(folder)
    found = find_tokenizer(folder)
    assert_same(load_tokenizer(folder), auto, texts)
    named = dict(auto.special_tokens_map)
    assert found.names == named
    saved = found.save(folder.with_name(folder.name + "_saved"))
    again = find_tokenizer(saved)
    assert (again.json, again.names, again.eot_id) == (found.json, found.names, found.eot_id)
    copied = theirs(saved)
    assert_same(load_tokenizer(folder), copied, texts)
    assert copied.special_tokens_map == named
    assert found.length > max(auto.get_vocab().values())
    return found


@pytest.mark.parametrize("files", [
    {"added_tokens.json": {"<tool>": N, "<extra>": N + 1}},
    {"added_tokens.json": {"<tool>": N + 7}},  # a hole that nobody keeps
    {"added_tokens.json": {"<tool>": N + 1, "<extra>": N}, "tokenizer_config.json": {"additional_special_tokens": ["<extra>"]}},
    {"tokenizer_config.json": {"added_tokens_decoder": {"0": END, str(N): TOOL, str(N + 1): EXTRA}}},
    {"tokenizer_config.json": {"added_tokens_decoder": {"0": {**END, "lstrip": True}}}},  # flags differ
    {"tokenizer_config.json": {"added_tokens_decoder": {"0": END}, "eos_token": "</s>"}, "added_tokens.json": {"<tool>": N}},
    {"special_tokens_map.json": {"eos_token": "</s>", "pad_token": {**TOOL, "content": "<pad>"}}},
    {"special_tokens_map.json": {"eos_token": "</s>"}, "tokenizer_config.json": {"eos_token": "<|endoftext|>"}},
    {"special_tokens_map.json": {"eos_token": "</s>"}, "tokenizer_config.json": {"added_tokens_decoder": {}}},
    {"special_tokens_map.json": {"additional_special_tokens": ["<extra>", "<tool>"]}},
    {"special_tokens_map.json": {"extra_special_tokens": ["<extra>"]}, "tokenizer_config.json": MORE_IM},
    {"tokenizer_config.json": {"extra_special_tokens": ["<extra>"], "additional_special_tokens": ["<tool>"]}},
    {"tokenizer_config.json": {"extra_special_tokens": {"image_token": "<im>"}, "audio_token": "<extra>"}},
    {"tokenizer_config.json": {"eos_token": {"__type": "AddedToken", **EXTRA}, "mask_token": "<mask>"}},
    {"tokenizer.json": BYTES | {"truncation": TRUNCATION}},
    {"tokenizer.json": BYTES | {"padding": PADDING}},
    {"tokenizer.json": BYTES | {"added_tokens": BYTES["added_tokens"] + [{"id": 900, **TOOL}, {"id": 800, **EXTRA}]}},
])  # fmt: skip
@pytest.mark.parametrize("reader", [None, RAW, GPT2, QWEN])
def test_tokens_that_other_files_know(tmp_path, files, reader):
    config = files.get("tokenizer_config.json", {}) | ({"tokenizer_class": reader} if reader else {})
    check(write_folder(tmp_path / "t", {"tokenizer.json": BYTES, **files, "tokenizer_config.json": config}))


@pytest.mark.parametrize("config", [
    {}, {"legacy": False}, {"legacy": True}, {"add_prefix_space": False}, {"add_prefix_space": True, "legacy": None},
    {"add_bos_token": False, "add_eos_token": True}, {"pad_token": "<pad>", "added_tokens_decoder": {}},
])  # fmt: skip
@pytest.mark.parametrize("reader", ["LlamaTokenizer", "LlamaTokenizerFast", RAW])
def test_a_class_that_is_rebuilt_when_it_is_read(tmp_path, config, reader):
    """LLaMA 2's: leading spaces differ from those of the file as it is."""
    found = check(
        write_folder(
            tmp_path / "t",
            {"tokenizer.json": SPM, "tokenizer_config.json": {**config, "tokenizer_class": reader}},
        )
    )
    as_filed = tk.Tokenizer.from_str(json.dumps(SPM)).encode("  two").ids
    assert (load_tokenizer(tmp_path / "t").encode("  two").ids == as_filed) == (reader == RAW)
    assert found.eot_token == "</s>"


@pytest.mark.parametrize(
    "model_type", [None, "gpt2", "llama", "qwen3", "qwen2", "granite", "mistral", "phi3"]
)
@pytest.mark.parametrize("reader", [None, RAW, GPT2, QWEN, LLAMA])
def test_the_class_follows_the_model_too(tmp_path, model_type, reader):
    """And what was decided with its config.json holds where that is gone."""
    files = {"tokenizer.json": BYTES, "tokenizer_config.json": {"tokenizer_class": reader} if reader else {}}
    if model_type:
        files["config.json"] = {"model_type": model_type}
    check(write_folder(tmp_path / "t", files), TEXTS[:12])


def test_other_kinds_of_models(tmp_path):
    check(write_folder(tmp_path / "u", {"tokenizer.json": UNIGRAM, "added_tokens.json": {"<tool>": 60}}))
    sparse = json.loads(json.dumps(BYTES))
    sparse["model"]["vocab"]["zz"] = 5000
    check(write_folder(tmp_path / "s", {"tokenizer.json": sparse, "added_tokens.json": {"<tool>": 5001}}))


def test_bytes_stay_where_there_is_nothing_to_change(tmp_path):
    content = json.dumps(BYTES, indent=1).encode()
    for i, config in enumerate(({}, {"tokenizer_class": GPT2}, {"eos_token": "<|endoftext|>"})):
        folder = write_folder(tmp_path / str(i), {"tokenizer.json": content, "tokenizer_config.json": config})
        assert find_tokenizer(folder).json == content


@pytest.mark.parametrize("reader, config", [
    (GPT2, {}), (GPT2, {"add_prefix_space": True}), (GPT2, {"add_bos_token": True}), (QWEN, {}),
    (QWEN, {"eos_token": "<im>", "added_tokens_decoder": {str(N): {**EXTRA, "content": "<im>"}}}),
    (GPT2, {"add_eos_token": True, "add_bos_token": True, "bos_token": "<s>"}),
])  # fmt: skip
def test_a_folder_of_vocab_and_merges(tmp_path, reader, config):
    merges = "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in BYTES["model"]["merges"])
    files = {"vocab.json": BYTES["model"]["vocab"], "merges.txt": merges.encode()}
    folder = write_folder(
        tmp_path / "t", {**files, "tokenizer_config.json": config | {"tokenizer_class": reader}}
    )
    assert has_tokenizer(folder)
    check(folder)


def test_a_folder_of_sentencepiece(tmp_path):
    import sentencepiece

    corpus = tmp_path / "corpus.txt"
    corpus.write_text("hello world, hello there\ntwo spaces and 12345\nhello hello x y z\n" * 20)
    for i, config in enumerate(
        ({}, {"add_bos_token": True, "legacy": False}, {"added_tokens_decoder": {"300": TOOL}})
    ):
        folder = write_folder(
            tmp_path / str(i), {"tokenizer_config.json": config | {"tokenizer_class": LLAMA}}
        )
        sentencepiece.SentencePieceTrainer.train(
            input=str(corpus), model_prefix=str(folder / "tokenizer"), vocab_size=300, model_type="bpe",
            byte_fallback=True, user_defined_symbols=["<im>"], minloglevel=9,
        )  # fmt: skip
        (folder / "tokenizer.vocab").unlink()
        check(folder)
    damaged = (folder / "tokenizer.model").read_bytes()
    for content in (b"", b"\xff" * 40, damaged[: len(damaged) // 2], damaged[:50]):
        (folder / "tokenizer.model").write_bytes(content)
        with pytest.raises(InputError, match=r"tokenizer\.model of .* (damaged|not a BPE)"):
            find_tokenizer(folder)


@pytest.mark.parametrize("files, words", [
    ({"tokenizer_config.json": {"split_special_tokens": True}}, "split_special_tokens"),
    ({"tokenizer_config.json": {"auto_map": {"AutoTokenizer": ["a.B", None]}, "tokenizer_class": "B"}}, "code of its own"),
    ({"tokenizer.json": BYTES | {"model": BYTES["model"] | {"dropout": 0.1}}}, "ids random"),
    ({"tokenizer_config.json": {"tokenizer_class": 5}}, "tokenizer_class"),
    ({"tokenizer_config.json": {"added_tokens_decoder": {"x": END}}}, "index 'x'"),
    ({"tokenizer_config.json": {"added_tokens_decoder": [END]}}, "not an object of tokens"),
    ({"tokenizer_config.json": {"added_tokens_decoder": {"0": {"content": 5}}}}, "not a token with its flags"),
    ({"added_tokens.json": {"<tool>": "7"}}, "has id '7'"),
    ({"tokenizer_config.json": {"extra_special_tokens": "x"}}, "not a list of tokens"),
])  # fmt: skip
def test_what_cannot_be_honoured_is_refused_by_name(tmp_path, files, words):
    folder = write_folder(tmp_path / "t", {"tokenizer.json": BYTES, **files})
    with pytest.raises(InputError, match=words) as error:
        find_tokenizer(folder)
    assert "\n" not in str(error.value)


def test_a_class_that_only_transformers_knows(tmp_path, monkeypatch):
    files = {"tokenizer.json": BYTES, "tokenizer_config.json": {"tokenizer_class": "GPTNeoXTokenizer"}}
    folder = write_folder(tmp_path / "t", files | {"added_tokens.json": {"<tool>": N}})
    check(folder)
    check(
        write_folder(tmp_path / "unknown", files | {"tokenizer_config.json": {"tokenizer_class": "NoSuch"}})
    )
    python = {"tokenizer_class": "ByT5Tokenizer"}
    with pytest.raises(InputError, match=r"cannot be read here .*PreTrainedTokenizerFast"):
        find_tokenizer(write_folder(tmp_path / "python", files | {"tokenizer_config.json": python}))
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(
        MissingPackage, match="of a class that is unknown here, needs the package transformers"
    ):
        find_tokenizer(folder)
    assert other_classes


def test_everything_travels(tmp_path):
    """What a folder needs is in what is saved, and in what a run copies of a dataset."""
    files = {
        "tokenizer.json": BYTES, "tokenizer_config.json": {"eos_token": "</s>"}, "added_tokens.json": {"<tool>": N},
        "special_tokens_map.json": {"pad_token": "<pad>"}, "chat_template.jinja": b"{{ 1 }}", "vocab.json": {"a": 0},
        "merges.txt": b"", "tokenizer.model": b"",
    }  # fmt: skip
    folder = write_folder(tmp_path / "t", files)
    write_folder(folder / "additional_chat_templates", {"rag.jinja": b"{{ 2 }}"})
    saved = find_tokenizer(folder).save(tmp_path / "saved")
    there = {str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file()}
    assert there == {*files, "additional_chat_templates/rag.jinja"}
    copied = {str(path.relative_to(saved)) for path in tokenizer_files(saved)}
    assert copied == there


def test_an_earlier_llama2_keeps_its_ids(tmp_path, monkeypatch):
    """Datasets were made with tokenizer.json as it is, beside a class that reads it otherwise."""
    import dataclasses
    import hashlib

    content = json.dumps(SPM).encode()
    known = dataclasses.replace(TOKENIZERS["llama2"], sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(TOKENIZERS, "llama2", known)
    files = {"tokenizer.json": content, "tokenizer_config.json": config_bytes(known.earlier_config)}
    found = find_tokenizer(write_folder(tmp_path / "t", files))
    assert found.json == content
    assert_same(tk.Tokenizer.from_str(content.decode()), theirs(found.save(tmp_path / "saved")))


def random_folder(rng):
    """Files in which tokens, names and state come from anywhere; a token has the same flags in all of them."""
    kind = rng.choice(["bytes", "spm"])
    record = json.loads(json.dumps(BYTES if kind == "bytes" else SPM))
    n = len(record["model"]["vocab"])

    contents = ["<tool>", "<extra>", "<pad>", "<s>", "</s>", "hello", "<im>", "<|endoftext|>", "h"]
    flags = {
        c: {flag: rng.random() < 0.3 for flag in ("lstrip", "rstrip", "normalized", "special")}
        for c in contents
    }

    def token(**more):
        content = rng.choice(contents)
        return {"content": content, "single_word": False, **flags[content], **more}

    def name():
        return rng.choice([token()["content"], {**token(), "__type": "AddedToken"}])

    names = ["bos_token", "eos_token", "pad_token", "unk_token", "mask_token", "image_token"]
    some = lambda k: rng.sample(names, rng.randint(0, k))  # noqa: E731
    config = {key: name() for key in some(3)}
    if reader := rng.choice([None, RAW, QWEN, GPT2] if kind == "bytes" else [None, RAW, LLAMA, LLAMA]):
        config["tokenizer_class"] = reader
    for key, value in (
        ("legacy", rng.random() < 0.5), ("add_prefix_space", rng.random() < 0.5), ("add_bos_token", True),
        ("additional_special_tokens", [token()["content"] for _ in range(2)]),
        ("extra_special_tokens", rng.choice([["<im>"], {"audio_token": "<im>"}])),
        ("added_tokens_decoder", {str(rng.randint(0, n + 9)): token() for _ in range(rng.randint(0, 3))}),
    ):  # fmt: skip
        if rng.random() < 0.35:
            config[key] = value
    files = {"tokenizer_config.json": config}
    if rng.random() < 0.4:
        files["added_tokens.json"] = {token()["content"]: rng.randint(0, n + 9) for _ in range(2)}
    if rng.random() < 0.4:
        mapped = {
            k: rng.choice([token()["content"], {k: v for k, v in token().items() if k != "special"}])
            for k in some(3)
        }
        files["special_tokens_map.json"] = mapped
    for _ in range(rng.choice([0, 0, 1, 2])):
        if (more := token())["content"] not in files.get("added_tokens.json", {}):
            record["added_tokens"].append({"id": rng.randint(0, n + 9), **more})
    record["truncation"] = rng.choice([None, None, TRUNCATION])
    record["padding"] = rng.choice([None, None, PADDING])
    return files | {"tokenizer.json": record}


@pytest.mark.parametrize("seed", range(50))
def test_any_combination(tmp_path, seed):
    files = random_folder(random.Random(seed))
    folder = write_folder(tmp_path / "t", files)
    try:
        theirs(folder)
    except Exception:  # what transformers cannot read need not be read
        return
    try:
        check(folder)
    except InputError as error:  # nothing ends a document: the only reason to refuse such a folder
        assert "it goes between documents" in str(error)


def test_ids_around_a_text_belong_to_tokens(tmp_path):
    """A template of ids that its tokens do not get."""
    one = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    special = {"<s>": {"id": "<s>", "ids": [900], "tokens": ["<s>"]}}
    template = {"type": "TemplateProcessing", "single": one, "pair": one, "special_tokens": special}
    for step in (template, {"type": "Sequence", "processors": [template]}):
        with pytest.raises(InputError, match="puts id '900' around a text, which no token has"):
            find_tokenizer(write_folder(tmp_path / "t", {"tokenizer.json": BYTES | {"post_processor": step}}))
