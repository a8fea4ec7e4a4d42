"""Tiny tokenizers in the layouts of folders that people publish, and what AutoTokenizer makes of them."""

import contextlib
import json
import warnings

import tokenizers as tk

TEXTS = [
    "hello", " hello", "  two spaces  ", "", " ", "\n", "a\n\n  b\t c ", "<|endoftext|>", "x <|endoftext|> y",
    "<s> hi</s> there", "  <s>  a", "e\u0301 \u00e9 \ufb01", "\u4f60\u597d \U0001f642 \u2581x", "don't DON'T 12345",
    "a<tool>b <tool> c", "<pad><unk> <mask>", " <extra> x<extra>", "HELLO world", "x<im>y <im> z",
]  # fmt: skip
CORPUS = [
    "hello world, hello there",
    "two spaces and don't 12345 12",
    "hello  hello x y z",
    "e\u0301t\u00e9 there",
] * 3


def byte_level(specials=("<|endoftext|>",), vocab_size=300, pre_tokenizer=None):
    tokenizer = tk.Tokenizer(tk.models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer or tk.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tk.decoders.ByteLevel()
    alphabet = tk.pre_tokenizers.ByteLevel.alphabet()
    trainer = tk.trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentencepiece_style(prepend=True):
    """As the tokenizer.json files of LLaMA 2: a normalizer for spaces, bytes for what is not in the
    vocabulary, <s> before each text."""
    words = [
        "<unk>",
        "<s>",
        "</s>",
        *[f"<0x{i:02X}>" for i in range(256)],
        *"\u2581abcdefghijklmnopqrstuvwxyz'",
    ]
    merges = [
        ("\u2581", "h"),
        ("h", "e"),
        ("\u2581", "\u2581"),
        ("l", "l"),
        ("\u2581h", "e"),
        ("ll", "o"),
        ("\u2581", "t"),
    ]
    words += [a + b for a, b in merges]
    model = tk.models.BPE(
        {word: i for i, word in enumerate(words)},
        merges,
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = tk.Tokenizer(model)
    steps = [tk.normalizers.Prepend("\u2581")] * prepend + [tk.normalizers.Replace(" ", "\u2581")]
    tokenizer.normalizer = tk.normalizers.Sequence(steps)
    decoders = [tk.decoders.Replace("\u2581", " "), tk.decoders.ByteFallback(), tk.decoders.Fuse()]
    tokenizer.decoder = tk.decoders.Sequence([*decoders, tk.decoders.Strip(" ", 1, 0)])
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = tk.processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)]
    )
    return tokenizer


def unigram():
    tokenizer = tk.Tokenizer(tk.models.Unigram())
    tokenizer.pre_tokenizer, tokenizer.decoder = tk.pre_tokenizers.Metaspace(), tk.decoders.Metaspace()
    trainer = tk.trainers.UnigramTrainer(
        vocab_size=60, special_tokens=["<unk>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def write_folder(folder, files):
    """files: {name: bytes or JSON}."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        (folder / name).write_bytes(content)
    return folder


def theirs(folder):
    from transformers import AutoTokenizer, logging

    logging.set_verbosity_error()
    with warnings.catch_warnings(), contextlib.redirect_stderr(None):
        warnings.simplefilter("ignore")
        return AutoTokenizer.from_pretrained(folder)


def assert_same(ours, auto, texts=TEXTS):
    """The ids and decoded text of a loaded tokenizer are those of AutoTokenizer."""
    for text in texts:
        for special in (False, True):
            expected = auto.encode(text, add_special_tokens=special)
            got = ours.encode(text, add_special_tokens=special).ids
            assert got == expected, (text, special)
            for skip in (False, True):
                expected_text = auto.backend_tokenizer.decode(expected, skip_special_tokens=skip)
                assert ours.decode(got, skip_special_tokens=skip) == expected_text, (text, skip)
