"""--train_tokenizer: a vocabulary of the text's own, the same every time, saved with the data."""

import json
import random

import pytest
import regex
from preparing import PIECES as TEXTS_OF_ALL_KINDS
from preparing import TEXTS, custom, files_of, ids_of, jsonl, refused

from base.errors import InputError
from tokenization import byte_bpe
from tokenization.byte_bpe import PIECES, TrainingTexts, cut_runs, parse_special_tokens, train_tokenizer
from tokenization.documents import is_val
from tokenization.engines import HARD_CASES
from tokenization.file_source import FileSource
from tokenization.job import Job
from tokenization.tokenizers import find_tokenizer, load_tokenizer
from tokens.format import read_meta
from tokens.reader import open_tokens

pytest_plugins = ["preparing_fixtures"]


@pytest.fixture
def prepared(corpus, tmp_path, in_this_process):
    """prepared("out", *flags) prepares the corpus with a tokenizer of its own and returns its folder."""

    def call(name, *flags):
        common = f"--source={corpus}", f"--out_dir={tmp_path / name}", "--val_fraction=0.1", "--workers=1"
        assert custom(*common, *flags) == 0
        return tmp_path / name

    return call


def test_a_folder_is_prepared_for_a_new_vocabulary_in_one_command(prepared, capsys):
    out = prepared("out", "--train_tokenizer=500")
    meta = read_meta(out)
    assert meta["vocab_size"] == meta["tokenizer"]["length"] == 500 and meta["eot_id"] == 0
    tokenizer = load_tokenizer(out)
    ids = ids_of(out, "train")
    documents = tokenizer.decode(ids.tolist(), skip_special_tokens=False).split("<|endoftext|>")[:-1]
    held_in = [text for text in TEXTS if not is_val(text.encode(), 0.1)]
    assert sum(map(len, documents)) + sum(t.count("<|endoftext|>") for t in held_in) * 13 == sum(
        map(len, held_in)
    )
    assert open_tokens(out, "val", 500).n_tokens == meta["splits"]["val"]["tokens"]
    assert find_tokenizer(out).eot_token == "<|endoftext|>"
    before = files_of(out)
    assert prepared("out", "--train_tokenizer=500") == out and files_of(out) == before
    assert "is complete already" in capsys.readouterr().out
    assert files_of(prepared("other", "--train_tokenizer=500")) == before


def test_transformers_reads_it_and_gives_the_same_ids(prepared):
    from transformers import AutoTokenizer

    out = prepared("out", "--train_tokenizer=400")
    theirs, ours = AutoTokenizer.from_pretrained(out), load_tokenizer(out)
    assert theirs.eos_token == "<|endoftext|>" and len(theirs) == 400
    for text in [*TEXTS_OF_ALL_KINDS, *HARD_CASES]:
        assert theirs(text)["input_ids"] == ours.encode(text).ids
        assert ours.decode(ours.encode(text).ids, skip_special_tokens=False) == text


def test_special_tokens_are_given_or_our_own(prepared):
    out = prepared(
        "out", "--train_tokenizer=400", "--special_tokens=<s>,</s>", "--special_tokens=<|im_start|>"
    )
    added = json.loads((out / "tokenizer.json").read_text())["added_tokens"]
    assert [(token["content"], token["id"], token["special"]) for token in added] == [
        ("<s>", 0, True), ("</s>", 1, True), ("<|im_start|>", 2, True),
    ]  # fmt: skip
    assert read_meta(out)["eot_id"] == 1
    assert parse_special_tokens([], 257) == ("<|endoftext|>",)
    assert parse_special_tokens(["<a>, <b>"], 300) == ("<|endoftext|>", "<a>", "<b>")
    for wrong, message in ((["<a>,<a>"], "twice"), (["x"], "two characters"), ([""], "two characters")):
        with pytest.raises(InputError, match=message):
            parse_special_tokens(wrong, 300)
    with pytest.raises(InputError, match="cannot hold 256 bytes and 3 special tokens: at least 259"):
        parse_special_tokens(["<a>,<b>"], 258)


def test_rows_beyond_what_the_text_gives(tmp_path, in_this_process, capsys):
    (tmp_path / "a.jsonl").write_bytes(jsonl([f"ab{i}" for i in range(30)]))
    flags = f"--source={tmp_path / 'a.jsonl'}", f"--out_dir={tmp_path / 'out'}", "--train_tokenizer=5000"
    assert custom(*flags, "--workers=1") == 0
    meta = read_meta(tmp_path / "out")
    assert meta["vocab_size"] == 5000 and 257 < meta["tokenizer"]["length"] < 400
    assert f"no more than {meta['tokenizer']['length']} tokens of 5,000" in capsys.readouterr().err


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--train_tokenizer=256", "train_tokenizer=256 must lie in"),
        ("--train_tokenizer=1e9", "train_tokenizer=1000000000 must lie in"),
        ("--train_tokenizer=500 --tokenizer=qwen3", "exclude each other"),
        ("--train_tokenizer=500 --task=0/2", "--task sees its own share"),
        ("--train_tokenizer=257 --special_tokens=<a>", "at least 258"),
    ],
)
def test_what_is_refused(corpus, tmp_path, capsys, in_this_process, flags, message):
    assert message in refused(capsys, f"--source={corpus}", f"--out_dir={tmp_path / 'out'}", *flags.split())
    assert not (tmp_path / "out").exists()


def test_without_text_the_reason_is_given(corpus, tmp_path, capsys, in_this_process):
    flags = (
        f"--source={corpus}",
        f"--out_dir={tmp_path / 'out'}",
        "--train_tokenizer=500",
        "--text_field=body",
    )
    with pytest.raises(SystemExit):
        custom(*flags)
    assert (
        "part_0.jsonl:1: field 'body' is missing, so there is nothing to train on" in capsys.readouterr().err
    )


def test_special_tokens_alone_have_no_effect(corpus, toy_folder, tmp_path, capsys, in_this_process):
    flags = (
        f"--source={corpus}",
        f"--tokenizer={toy_folder}",
        f"--out_dir={tmp_path / 'out'}",
        "--val_fraction=0.1",
    )
    assert custom(*flags, "--workers=1", "--special_tokens=<a>") == 0
    assert "special_tokens=['<a>'] has no effect without train_tokenizer" in capsys.readouterr().err


def test_a_file_that_is_damaged_is_named(corpus, tmp_path, capsys, in_this_process):
    (corpus / "z.jsonl.gz").write_bytes(b"not gzip")
    with pytest.raises(SystemExit) as stop:
        custom(f"--source={corpus}", f"--out_dir={tmp_path / 'out'}", "--train_tokenizer=500")
    first, line = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and first == "training a tokenizer of 500 tokens"
    assert "z.jsonl.gz: " in line and "damaged, truncated or of another format" in line


def test_the_pieces_are_those_of_gpt4(monkeypatch):
    """Against the pattern that tiktoken publishes for cl100k_base, on texts of all kinds. (Of white space at the end
    of a text tiktoken now makes one piece whatever line breaks are in it.)"""
    from tiktoken_ext import openai_public

    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", lambda *a, **k: {})
    theirs, ours = regex.compile(openai_public.cl100k_base()["pat_str"]), regex.compile(PIECES)
    random_ = random.Random(0)
    parts = "' s LL 'Ve ab É ß \u017f 1 23456 \u2168 . ... ( 語 e\u0301 🙂 \x00 \ufeff".split(" ")
    parts += [" ", " ", "  ", "\t", "\n", "\r\n", "\u2028"]
    texts = ["".join(random_.choices(parts, k=random_.randrange(1, 30))) for _ in range(4000)]
    for text in [*texts, *HARD_CASES, *TEXTS_OF_ALL_KINDS]:
        pieces = ours.findall(text + ".")
        assert pieces == theirs.findall(text + ".") and "".join(pieces) == text + "."


def test_what_is_held_out_is_not_learnt(tmp_path):
    texts = [
        f"{word} " * 40 for word in ("alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta")
    ] * 2
    (tmp_path / "a.jsonl").write_bytes(jsonl(texts))
    job = Job(val_fraction=0.5)
    held_out = {text for text in texts if is_val(text.encode(), 0.5)}
    assert 0 < len(held_out) < len(set(texts))
    taken = TrainingTexts(FileSource([tmp_path / "a.jsonl"]), job)
    assert "".join(taken) == "".join(text for text in texts if text not in held_out)
    vocabulary = json.loads(train_tokenizer(FileSource([tmp_path / "a.jsonl"]), 600, ["</s>"], job).json)[
        "model"
    ]["vocab"]
    for text in set(texts):
        assert (f"Ġ{text.split()[0]}" in vocabulary) == (text not in held_out)


def test_a_large_corpus_is_sampled_over_its_files(tmp_path, monkeypatch):
    monkeypatch.setattr(byte_bpe, "TRAINING_BYTES", 3000)
    files = [tmp_path / f"{i}.jsonl" for i in range(4)]
    for i, file in enumerate(files):
        file.write_bytes(jsonl([f"{i}" * 100] * (2 if i == 0 else 50)))
    taken = TrainingTexts(FileSource(files, batch_bytes=100), Job(val_fraction=1e-9))
    text = "".join(taken)
    assert [text.count(str(i)) for i in range(4)] == [200, 1000, 900, 900] and taken.text_bytes == 3000
    limited = "".join(TrainingTexts(FileSource(files), Job(val_fraction=1e-9, limit=3)))
    assert [limited.count(str(i)) for i in range(4)] == [200, 100, 0, 0]


def test_a_word_without_end_is_cut():
    """BPE would take hours for it."""
    text = "x" * 2500 + " " * 1001 + "end"
    assert [len(part) for part in cut_runs(text)] == [1000, 1000, 1500, 4] and "".join(cut_runs(text)) == text
