"""The English vocabulary: the real Qwen3 tokenizer's counts, closure, and tokenizers with that part alone."""

import json
import random

import pytest
import tokenizers

from base.errors import InputError
from tokenization import vocabulary
from tokenization.tokenizers import find_tokenizer, load_tokenizer

ASCII = "".join(map(chr, range(128)))


@pytest.fixture(scope="module")
def ascii_part(qwen3_folder, tmp_path_factory):
    """(the record of the ASCII tier that the command writes, Qwen3's tokenizer, the tokenizer with the tier
    alone)."""
    out = tmp_path_factory.mktemp("english") / "ascii.json"
    assert vocabulary.main(["english", f"--tokenizer={qwen3_folder}", "--tier=ascii", f"--out={out}"]) == 0
    found = find_tokenizer(qwen3_folder)
    record = vocabulary.read_vocabulary(out, found)
    pruned = vocabulary.prune_tokenizer(found.json, vocabulary.kept_ids(record))
    return record, load_tokenizer(qwen3_folder), tokenizers.Tokenizer.from_buffer(pruned)


@pytest.fixture(scope="module")
def strings(qwen3):
    """The bytes of each of Qwen3's base tokens."""
    return vocabulary.token_bytes(qwen3)


def ascii_texts() -> list[str]:
    """Python's language reference, and strings of any ASCII characters, words and repetitions."""
    rng = random.Random(0)
    noise = ["".join(rng.choices(ASCII, k=rng.randrange(1, 60))) for _ in range(2000)]
    spaced = [
        "".join(
            rng.choice([" ", "\n", "\t", "ab", "The", "'s", "==", "9", "\r\n"]) * rng.randrange(1, 9)
            for _ in range(9)
        )
    ]
    reference = vocabulary.reference_text()
    return [*noise, *spaced, reference.encode("ascii", "ignore").decode()]


def test_the_counts_of_the_real_vocabulary(ascii_part):
    record = ascii_part[0]
    assert len(record["ids"]) == 94_358 and record["statistics"]["base_tokens"] == 151_643
    assert (
        record["statistics"]["tiers"]["ascii"] == 94_358
        and record["statistics"]["tiers"]["letters"] == 68_923 + 1
    )
    assert (
        record["statistics"]["tiers"]["words"] < 68_923
    )  # the one more is the space alone, without which letters is not closed
    scripts = record["statistics"]["scripts"]
    assert sum(scripts.values()) == 151_643 and scripts["ascii"] == 94_358 and scripts["cjk"] > 20_000
    assert len(record["byte_ids"]) == 128 and record["added_ids"] == list(range(151_643, 151_669))
    text = record["statistics"]["text"]
    assert text["bytes_per_token_lost"] == pytest.approx(
        text["bytes_per_token"] - text["bytes_per_token_pruned"]
    )
    assert 0 <= text["bytes_per_token_lost"] < 0.1 and text["tokens_outside"] < text["tokens"] / 100
    assert record["tokenizer"]["sha256"].startswith("aeb13307")


def test_any_ascii_text_encodes_inside_the_tier(ascii_part):
    record, full, pruned = ascii_part
    inside, new_id = set(record["ids"]), {old: new for new, old in enumerate(vocabulary.kept_ids(record))}
    n = 0
    for text in ascii_texts():
        ids = full.encode(text, add_special_tokens=False).ids
        assert inside.issuperset(ids)
        small = pruned.encode(text, add_special_tokens=False).ids
        assert small == [new_id[i] for i in ids] and pruned.decode(small, skip_special_tokens=False) == text
        n += len(ids)
    assert n > 50_000


def test_other_text_still_has_ids_in_the_pruned_tokenizer(ascii_part):
    record, full, pruned = ascii_part
    assert pruned.get_vocab_size() == 94_358 + 128 + 26
    text = "naïve café, 汉字, Привет, 🙂<|im_end|>"
    assert pruned.decode(pruned.encode(text).ids, skip_special_tokens=False) == text
    assert len(pruned.encode(text).ids) > len(full.encode(text).ids)
    kept = vocabulary.kept_ids(record)
    assert [kept[pruned.token_to_id(t)] for t in ("<|endoftext|>", "<|im_end|>", "</think>")] == [
        151_643,
        151_645,
        151_668,
    ]


@pytest.mark.parametrize(
    ("tier", "text", "outside"), [("letters", " wordInCamel", "x1"), ("words", " Word", "wORD!")]
)
def test_the_smaller_tiers_are_closed(strings, tier, text, outside):
    pattern = vocabulary.TIERS[tier]
    assert pattern.fullmatch(text.encode()) and not pattern.fullmatch(outside.encode())
    for token in random.Random(1).sample(
        [b for b in strings.values() if pattern.fullmatch(b)], 3000
    ):  # every substring is in
        assert (
            all(
                pattern.fullmatch(token[i:j]) for i in range(len(token)) for j in range(i + 1, len(token) + 1)
            )
            or not token
        )


def test_a_tokenizer_with_byte_fallback():
    vocab = {
        "<unk>": 0,
        "<0x41>": 1,
        "<0xC3>": 2,
        "\u2581the": 3,
        "\u2581": 4,
        "the": 5,
        "é": 6,
        "1": 7,
        "<0x0A>": 8,
    }
    model = {"type": "BPE", "byte_fallback": True, "vocab": vocab, "merges": []}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": 0, "content": "<unk>", **flags}, {"id": 9, "content": "</s>", **flags}]
    content = json.dumps({"version": "1.0", "model": model, "added_tokens": added}).encode()
    found = vocabulary.TokenizerFiles("llama2", content, 10, 10, "</s>", 9)
    strings = vocabulary.token_bytes(found)
    assert strings == {
        1: b"A",
        2: b"\xc3",
        3: b" the",
        4: b" ",
        5: b"the",
        6: "é".encode(),
        7: b"1",
        8: b"\n",
    }


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ([], "no command"),
        (["german", "--out=x.json"], "german"),
        (["english"], "--out=FILE.json is missing"),
        (["english", "--tier=latin", "--out=x.json"], "tier='latin'"),
        (["english", "--out=/no/such/x.json"], "/no/such is not a folder"),
        (["english", "--tokenizer=/no/such", "--out=x.json"], "/no/such"),
        (["english", "--tokenizer=qwen3", "--text=/no/such", "--out=x.json"], "/no/such"),
        (["english", "--tokenizer=qwen3", "--text=/dev/null", "--out=x.json"], "/dev/null is not a file"),
    ],
)
def test_bad_input_is_one_line(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        vocabulary.main(flags)
    error = capsys.readouterr().err
    assert (
        stopped.value.code == 2 and error.count("\n") == 1 and words in error and not any(tmp_path.iterdir())
    )


@pytest.mark.parametrize("content", ["", "[]", '{"ids": [1]}', "{"])
def test_another_file_is_no_vocabulary(content, tmp_path):
    (tmp_path / "v.json").write_text(content)
    with pytest.raises(ValueError, match=r"v\.json"):
        vocabulary.read_vocabulary(tmp_path / "v.json", None)


def bpe_with(processor):
    """A byte-level BPE with <s> and </s>, and what it puts around a text."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(alphabet)} | {"<s>": 256, "th": 257, "</s>": 258}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("t", "h")]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = processor
    tokenizer.enable_padding(pad_id=258, pad_token="</s>")
    return tokenizer


SEP, CLS = ("</s>", 258), ("<s>", 256)
AROUND = [tokenizers.processors.BertProcessing(SEP, CLS), tokenizers.processors.RobertaProcessing(SEP, CLS)]
AROUND += [tokenizers.processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[SEP, CLS])]
AROUND += [tokenizers.processors.Sequence([tokenizers.processors.ByteLevel(), part]) for part in AROUND[1:3]]


@pytest.mark.parametrize("processor", AROUND, ids=lambda p: type(p).__name__)
def test_what_is_put_around_a_text_is_renumbered(processor):
    full = bpe_with(processor)
    kept = [i for i in range(259) if i not in (3, 200, 257)]
    pruned = tokenizers.Tokenizer.from_buffer(vocabulary.prune_tokenizer(full.to_str().encode(), kept))
    theirs, ours = full.encode("the two"), pruned.encode("the two")
    assert ours.tokens == ["<s>", *"the", "Ġ", *"two", "</s>"]
    assert (theirs.ids[0], theirs.ids[-1]) == (kept[ours.ids[0]], kept[ours.ids[-1]]) == (256, 258)
    assert kept[pruned.padding["pad_id"]] == 258
    for left_out in (256, 258):
        without = [i for i in kept if i != left_out]
        with pytest.raises(InputError, match=f"id {left_out} around every text"):
            vocabulary.prune_tokenizer(full.to_str().encode(), without)
