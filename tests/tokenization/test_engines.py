"""Engines: the fast ones give the reference's ids, or the run says where they do not and uses the
reference."""

import json
import random

import numpy as np
import pytest

from base.errors import MissingPackage
from tokenization import engines
from tokenization.engines import ENGINES, HARD_CASES, choose_engine, first_difference

FAST = ["fastokens", "gigatoken"]


@pytest.fixture(scope="module")
def encoders(qwen3):
    return {name: engine(qwen3.json) for name, engine in ENGINES.items()}


@pytest.fixture(scope="module")
def toy_json(toy_folder):
    return (toy_folder / "tokenizer.json").read_bytes()


def rows_of(encode, texts):
    ids, lengths = encode(texts)
    assert len(lengths) == len(texts) and lengths.sum() == len(ids)
    return [row.tolist() for row in np.split(ids, np.cumsum(lengths)[:-1])]


def random_texts(n, seed):
    """Strings of code points drawn from every block, half of them assigned ones that people use."""
    random_ = random.Random(seed)
    common = [
        chr(c)
        for c in [*range(0x20, 0x250), *range(0x370, 0x600), *range(0x4E00, 0x4F00), *range(0x1F600, 0x1F640)]
    ]
    common += ["\n", "\r\n", "\t", "  ", "'s", "<|endoftext|>", "<|im_end|>", "e\u0301", "\u200d"]
    texts = []
    for _ in range(n):
        alphabet = random_.sample(common, 30)
        texts.append("".join(random_.choice(alphabet) for _ in range(random_.randrange(200))))
    return texts


def test_the_default_engine_gives_the_ids_of_the_reference(encoders):
    texts = [*HARD_CASES, *random_texts(2000, seed=0)]
    assert rows_of(encoders["fastokens"], texts) == rows_of(encoders["tokenizers"], texts)


def test_every_code_point(encoders):
    """Each between letters, spaces and an accent: pieces and NFC must agree on all of them."""
    points = [chr(c) for c in range(0x20000) if not 0xD800 <= c < 0xE000]
    texts = ["".join(f"a{p}\u0301 {p}{p}b" for p in points[i : i + 64]) for i in range(0, len(points), 64)]
    assert first_difference(encoders["fastokens"], encoders["tokenizers"], texts) is None


def test_gigatoken_differs_in_the_unicode_version_of_nfc(encoders, qwen3):
    """Its tables are newer than those of the reference: it orders these two marks. All else is alike."""
    texts = [*HARD_CASES[:-1], *random_texts(2000, seed=1)]
    assert rows_of(encoders["gigatoken"], texts) == rows_of(encoders["tokenizers"], texts)
    assert "ids" in first_difference(encoders["gigatoken"], encoders["tokenizers"], ["a\u08cb\u08d2"])
    name, _, warning = choose_engine("gigatoken", qwen3.json, [])
    assert name == "tokenizers" and warning.startswith("engine gigatoken differs from tokenizers on ")


@pytest.mark.parametrize("name", ENGINES)
def test_control_tokens_in_text_are_text(encoders, qwen3, name):
    """The 14 special ones. The others that are added, such as <think>, stay one token, as in transformers."""
    for token in json.loads(qwen3.json)["added_tokens"]:
        (ids,) = rows_of(encoders[name], [token["content"]])
        if token["special"]:
            assert len(ids) > 1 and max(ids) < 151_643
        else:
            assert ids == [token["id"]]
    (ids,) = rows_of(encoders[name], ["a<|endoftext|>b<|im_end|>" * 100])
    assert max(ids) < 151_643


@pytest.mark.parametrize("name", ENGINES)
def test_no_texts_and_empty_texts(encoders, name):
    ids, lengths = encoders[name](["", "a", ""])
    assert ids.dtype == np.uint32 and len(ids) == 1 and lengths.tolist() == [0, 1, 0]
    ids, lengths = encoders[name]([""])
    assert len(ids) == 0 and lengths.tolist() == [0]


def test_llama3(llama3):
    for name in FAST:
        chosen, encode, warning = choose_engine(name, llama3.json, random_texts(100, seed=2))
        assert (chosen, warning) == (name, None)
        (ids,) = rows_of(encode, ["<|begin_of_text|><|end_of_text|> text"])
        assert max(ids) < 128_000  # none is put in front either


def test_choose(toy_json):
    assert choose_engine("auto", toy_json, ["text"])[::2] == ("fastokens", None)
    assert choose_engine("tokenizers", toy_json, [])[::2] == ("tokenizers", None)
    with pytest.raises(
        ValueError, match="engine 'fastoken' is unknown: auto, fastokens, gigatoken, tokenizers"
    ):
        choose_engine("fastoken", toy_json, [])


def with_fault(fault):
    def load(tokenizer_json):
        encode = engines.tokenizers(tokenizer_json)
        return lambda texts: fault(texts, *encode(texts))

    return load


def other_id(texts, ids, lengths):
    at = (
        sum(lengths[: next(i for i, text in enumerate(texts) if "needle" in text)])
        if "needle" in "".join(texts)
        else None
    )
    ids = ids.copy()
    if at is not None:
        ids[at + 1] += 1
    return ids, lengths


def fails(texts, ids, lengths):
    raise OverflowError("too much\nof it")


class Panic(BaseException):
    """As pyo3's PanicException, no Exception."""


def panics(texts, ids, lengths):
    raise Panic("index out of bounds")


@pytest.mark.parametrize(
    "fault, message",
    [
        (
            other_id,
            r"differs from tokenizers on 'a needle .*: ids \[\d+.*\] against \[\d+.*\] from token 1; using tokenizers",
        ),
        (
            lambda texts, ids, lengths: (ids[:-1], [*lengths[:-1], lengths[-1] - 1]),
            r"differs from tokenizers on .* from token",
        ),
        (lambda texts, ids, lengths: (ids, np.roll(lengths, 1)), r"differs from tokenizers on "),
        (
            lambda texts, ids, lengths: (ids, np.append(lengths, 0)),
            r"differs from tokenizers in the number of documents",
        ),
        (lambda texts, ids, lengths: (ids[: sum(lengths[:5])], lengths[:5]), r"differs from tokenizers"),
        (fails, r"differs from tokenizers in that it fails \(too much"),
        (panics, r"differs from tokenizers in that it fails \(index out of bounds\)"),
    ],
)
def test_a_broken_engine_is_replaced(toy_json, monkeypatch, fault, message):
    monkeypatch.setitem(ENGINES, "fastokens", with_fault(fault))
    name, encode, warning = choose_engine("auto", toy_json, ["some text", "a needle in it"])
    assert name == "tokenizers"
    import re

    assert re.search(message, warning) and "\n" not in warning
    assert rows_of(encode, ["some text"]) == rows_of(engines.tokenizers(toy_json), ["some text"])


def test_a_fault_is_found_in_the_documents_of_the_run(toy_json, monkeypatch):
    monkeypatch.setitem(ENGINES, "fastokens", with_fault(other_id))
    assert choose_engine("auto", toy_json, ["only hay"])[0] == "fastokens"
    assert choose_engine("auto", toy_json, ["only hay", "and a needle"])[0] == "tokenizers"


@pytest.mark.parametrize("kind", [RuntimeError, Panic])
def test_a_tokenizer_that_an_engine_cannot_load(toy_json, monkeypatch, kind):
    def refuse(tokenizer_json):
        raise kind("unknown\nkind")

    monkeypatch.setitem(ENGINES, "fastokens", refuse)
    name, _, warning = choose_engine("auto", toy_json, [])
    assert (
        name == "tokenizers"
        and warning == "engine fastokens cannot load this tokenizer (unknown kind); using tokenizers"
    )


@pytest.mark.parametrize("package", FAST)
def test_an_engine_that_is_not_installed(toy_json, monkeypatch, package):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(
        MissingPackage, match=f"the engine {package} needs the package {package}: pip install {package}"
    ):
        choose_engine(package, toy_json, [])
    monkeypatch.setattr(engines, "DEFAULT", package)
    name, _, warning = choose_engine("auto", toy_json, [])
    assert name == "tokenizers" and warning.startswith(
        f"the engine {package} needs the package {package}: pip install {package}; using"
    )


def test_a_damaged_tokenizer_is_named_in_one_line():
    for content in (b"{}", b'{"model": {"type": "BPE", "vocab": {}}}', b"\xff", b"no"):
        with pytest.raises(ValueError, match=r"tokenizer\.json is damaged or not a tokenizer") as error:
            choose_engine("auto", content, [])
        assert "\n" not in str(error.value)
