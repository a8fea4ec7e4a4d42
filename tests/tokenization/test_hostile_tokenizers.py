"""Whatever a tokenizer's folder holds: it is read, or one line says what is wrong with it."""

import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from base.errors import InputError
from tokenization import engines
from tokenization.tokenizers import find_tokenizer, load_tokenizer
from tokenization.vocabulary import english

# Of any type, size and shape
HOSTILE = [None, True, False, 0, -1, 7, 2**32, 2**63, 2**64, 10**400, 0.5, -1e308, float("nan"), float("inf")]
HOSTILE += [
    "",
    "x",
    "\ud800",
    "<|endoftext|>",
    [],
    [[]],
    ["a"],
    [0],
    {},
    {"a": {}},
    {"content": {}, "id": []},
]
SETTINGS = settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))


def with_change(draw, record):
    """A copy of a JSON record in which one value at any depth is another, is gone, or comes twice."""
    record = {"": copy.deepcopy(record)}
    at, key = record, ""
    while isinstance(at[key], dict | list) and at[key] and draw(st.integers(0, 3)):
        at = at[key]
        key = draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
    kind = draw(st.sampled_from(["change", "change", "remove", "repeat"]))
    if kind == "change" or at is record:
        at[key] = draw(st.sampled_from(HOSTILE))
    elif kind == "remove":
        del at[key]
    elif isinstance(at, dict):
        at["x"] = at[key]
    else:
        at.append(at[key])
    return record[""]


def with_changed_bytes(draw, content):
    begin, end = sorted(draw(st.tuples(*[st.integers(0, len(content))] * 2)))
    instead = draw(st.sampled_from([b"", b"\xff", b"[" * 50_000, b"9" * 5_000, content[end:]]))
    return content[:begin] + instead + draw(st.sampled_from([b"", content[end:]]))


@st.composite
def changed(draw, record):
    """What a file may hold after a mishap: the bytes of one to three changes."""
    for _ in range(draw(st.integers(1, 3))):
        record = with_change(draw, record)
    content = json.dumps(record).encode()
    return with_changed_bytes(draw, content) if draw(st.integers(0, 4)) == 0 else content


def outcome(call):
    """What it returns; None where it is refused in one line. Anything else is a fault of ours."""
    try:
        return call()
    except InputError as error:
        assert str(error) and "\n" not in str(error)
        return None


@pytest.fixture(scope="module")
def tokenizer_files(toy_folder):
    record = json.loads((toy_folder / "tokenizer.json").read_bytes())
    template = {
        "type": "TemplateProcessing",
        "single": [{"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}],
    }
    template["special_tokens"] = {
        "<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}
    }
    record["post_processor"] = template
    end = {"content": "<|endoftext|>", "lstrip": False, "special": True}
    config = {"eos_token": end, "model_max_length": 1024, "added_tokens_decoder": {"0": end}}
    config |= {"extra_special_tokens": ["<a>", end], "image_token": "<b>"}
    return {
        "tokenizer.json": record,
        "tokenizer_config.json": config,
        "special_tokens_map.json": {
            "eos_token": end,
            "additional_special_tokens": ["<c>", end],
            "pad_token": "<d>",
        },
        "added_tokens.json": {"<d>": 400, "<e>": 401},
        "config.json": {"vocab_size": 512},
    }


@pytest.fixture(scope="module")
def folder(tokenizer_files, tmp_path_factory):
    return tmp_path_factory.mktemp("hostile")


def write_tokenizer(folder, files, name, content):
    for other, record in files.items():
        (folder / other).write_bytes(json.dumps(record).encode())
    (folder / name).write_bytes(content)


@SETTINGS
@given(data=st.data())
def test_a_tokenizer_of_any_content(tokenizer_files, folder, data):
    name = data.draw(st.sampled_from(["tokenizer.json"] * 3 + sorted(tokenizer_files)))
    files = copy.deepcopy(tokenizer_files)
    reader = data.draw(
        st.sampled_from(["PreTrainedTokenizerFast", "GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizer"])
    )
    files["tokenizer_config.json"]["tokenizer_class"] = reader
    if data.draw(st.booleans()):  # else the older files beside it do not count
        del files["tokenizer_config.json"]["added_tokens_decoder"]
    write_tokenizer(folder, files, name, data.draw(changed(files[name])))
    found = outcome(lambda: find_tokenizer(folder))
    tokenizer = outcome(lambda: load_tokenizer(folder))
    assert found or not tokenizer
    if found:
        assert found.eot_id < found.length <= found.vocab_size
    encode = outcome(lambda: engines.tokenizers(found.json)) if found else None
    if encode:
        outcome(lambda: encode(["some text, wört", "<|endoftext|>", ""]))


@SETTINGS
@given(data=st.data())
def test_an_older_folder_of_any_content(tokenizer_files, tmp_path_factory, data):
    """vocab.json and merges.txt, or SentencePiece's tokenizer.model, of any content."""
    folder = tmp_path_factory.mktemp("older")
    model = tokenizer_files["tokenizer.json"]["model"]
    pieces = b"".join(
        b"\x0a" + bytes([len(p) + 9, 10, len(p)]) + p + b"\x15\x00\x00\x00\x00\x18\x03"
        for p in (b"a", b"</s>")
    )
    files = {
        "vocab.json": json.dumps(model["vocab"]).encode(),
        "merges.txt": "".join(f"{a} {b}\n" for a, b in model["merges"]).encode(),
        "tokenizer.model": pieces + b"\x12\x02\x18\x02",
    }
    reader = data.draw(st.sampled_from(["GPT2Tokenizer", "Qwen2Tokenizer", "LlamaTokenizer", "Other"]))
    for name, content in files.items():
        hostile = with_changed_bytes(data.draw, content) if data.draw(st.booleans()) else content
        if name == "vocab.json" and data.draw(st.booleans()):
            hostile = data.draw(changed(model["vocab"]))
        (folder / name).write_bytes(hostile)
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": reader, "add_bos_token": True})
    )
    found = outcome(lambda: find_tokenizer(folder)) if reader != "Other" else None
    if found and (tokenizer := outcome(lambda: load_tokenizer(folder))):
        assert found.eot_id < found.length
        outcome(lambda: engines.tokenizers(found.json)(["some text", ""]))
        assert tokenizer.get_vocab_size() > 0


@SETTINGS
@given(data=st.data())
def test_a_vocabulary_of_any_tokenizer(tokenizer_files, folder, data):
    write_tokenizer(
        folder, tokenizer_files, "tokenizer.json", data.draw(changed(tokenizer_files["tokenizer.json"]))
    )
    if found := outcome(lambda: find_tokenizer(folder)):
        record = outcome(lambda: english(found, "ascii", "def f(x): return x"))
        assert record is None or record["statistics"]["text"]["tokens"] > 0


@pytest.mark.parametrize("merge", ["a b", ["a", "b"], ["a", ""], ["a", 7], 7, None])
def test_merges_that_would_end_the_process(tokenizer_files, folder, merge):
    """The package `tokenizers` aborts where a part of a merge is shorter than the prefix that it takes off."""
    record = copy.deepcopy(tokenizer_files["tokenizer.json"])
    record["model"] |= {"continuing_subword_prefix": "##", "merges": [merge]}
    write_tokenizer(folder, tokenizer_files, "tokenizer.json", json.dumps(record).encode())
    with pytest.raises(InputError, match=r"is damaged or not a tokenizer .merge .* lacks the prefix '##'"):
        find_tokenizer(folder)


def test_merges_of_continuing_tokens(tokenizer_files, folder):
    record = copy.deepcopy(tokenizer_files["tokenizer.json"])
    vocabulary = {"<|endoftext|>": 0, "a": 1, "##b": 2, "ab": 3}
    record["model"] |= {"continuing_subword_prefix": "##", "vocab": vocabulary, "merges": [["a", "##b"]]}
    write_tokenizer(folder, tokenizer_files, "tokenizer.json", json.dumps(record).encode())
    assert load_tokenizer(folder).encode("ab").ids == [3]
