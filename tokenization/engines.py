"""Text to ids in bulk: three implementations of one tokenizer.json, of which the fast ones are checked
against the reference.

    name, encode, warning = choose_engine("auto", tokenizer_json, sample)
    ids, lengths = encode(texts)              # ids uint32 [N] of all documents, lengths int64 [D]

Every engine encodes a control token that a text spells out, `<|endoftext|>` in a web page, as the ordinary
text it is. (As in transformers with split_special_tokens=True: a token that is added but not special,
Qwen3's `<think>`, stays one token.)

fastokens is the default. Measured with Qwen3's tokenizer (benchmarks/tokenizer_speed.py): it is the faster
one, returns flat buffers, has no dependencies, keeps no growing cache, and knows how to leave control
tokens alone; Apache-2.0. gigatoken 0.10 orders combining marks by a newer Unicode than the reference does
(U+08D2 and 191 others), so it fails the check with Qwen3."""

import contextlib
import json
from collections.abc import Callable, Sequence

import numpy as np

from base.errors import InputError, MissingPackage, one_line, require
from tokenization.tokenizer_files import loaded, package_errors

Encode = Callable[[list[str]], tuple[np.ndarray, np.ndarray]]

# What tokenizers disagree on. Every run is checked on these and on a sample of its own documents.
HARD_CASES = [
    "",
    " ",
    "\n",
    "\r\n\r\n\t  \n x",
    "a\u00a0b\u2003c\u200bd\ufeffe",  # spaces of several kinds, zero width ones, a byte order mark inside
    "e\u0301 \u212b \uac00 \u1100\u1161 \ufb01 \u0958",  # NFC changes these, or must not
    "q\u0323\u0307 \u1e9b\u0323",  # combining marks in the wrong order
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1eb\U0001f1f7 \U0001f44d\U0001f3fd \u2764\ufe0f",
    "Привет, мир! Γειά σου. שלום עולם، مرحبا بالعالم. नमस्ते दुनिया। สวัสดีชาวโลก 你好，世界。こんにちは 안녕하세요",
    "1 12 123 1234 12345678901234567890 ٣٤٥ Ⅷ ½ ²",
    "I'll we'Ve THEY'RE don't 'tis ’s ſ'S",
    "<|endoftext|> <|im_start|>user\n<|im_end|><|end_of_text|></s><s><unk><|begin_of_text|><think>x</think><|fim_prefix|>",
    "<|endoftext|<|endoftext|>|> <| endoftext |>",
    "x" * 20_000,
    " " * 5_000 + "x" + "\n" * 5_000,
    "ab" * 3_000 + "🙂" * 500 + "é" * 2_000,
    "\x00\x01\x7f\x80\u2028\u2029\ufffd\uffff\U0010ffff",
    "".join(chr(c) for c in range(0x20, 0x3000, 7)),
]


def fastokens(tokenizer_json: bytes) -> Encode:
    package = require("fastokens", "the engine fastokens")
    tokenizer = package.Tokenizer.from_json_str(tokenizer_json.decode())

    def encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        with _encoding("fastokens"):
            ids, offsets = tokenizer.encode_batch_flat(texts, split_special_tokens=True)
        return np.frombuffer(ids, "<u4"), np.diff(np.frombuffer(offsets, "<u8").astype(np.int64))

    return encode


def gigatoken(tokenizer_json: bytes) -> Encode:
    package = require("gigatoken", "the engine gigatoken")
    # It has no switch for control tokens in text. A tokenizer that does not know them does not find them.
    record = json.loads(tokenizer_json)
    record["added_tokens"] = [token for token in record["added_tokens"] if not token["special"]]
    tokenizer = package.Tokenizer.from_json(json.dumps(record, ensure_ascii=False))

    def encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        # bytes, as its str path cannot take every text; parallel=False, as the pipeline has a process a core
        with _encoding("gigatoken"):
            rows = tokenizer.encode_batch([text.encode() for text in texts], parallel=False).layout
        offsets = np.asarray(rows.offsets.data, dtype=np.int64)
        return np.asarray(rows.content.data)[offsets[0] : offsets[-1]], np.diff(offsets)

    return encode


def tokenizers(tokenizer_json: bytes) -> Encode:
    tokenizer = loaded(tokenizer_json, "tokenizer.json", "the engine tokenizers")
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        with _encoding("tokenizers"):
            encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        rows = [np.array(e.ids, dtype=np.uint32) for e in encodings]
        lengths = np.array([len(row) for row in rows], dtype=np.int64)
        return np.concatenate([np.empty(0, np.uint32), *rows]), lengths

    return encode


def _encoding(engine: str) -> contextlib.AbstractContextManager:
    """Around an engine's work on texts, which fails where a vocabulary has no token for them."""
    return package_errors(
        f"the engine {engine} cannot encode a text with this tokenizer",
        "pass another --tokenizer or --engine",
    )


ENGINES: dict[str, Callable[[bytes], Encode]] = {
    "fastokens": fastokens,
    "gigatoken": gigatoken,
    "tokenizers": tokenizers,
}
DEFAULT, REFERENCE = "fastokens", "tokenizers"


def choose_engine(name: str, tokenizer_json: bytes, sample: Sequence[str]) -> tuple[str, Encode, str | None]:
    """(the engine to use, its encode, a warning or None) for `name`, one of ENGINES or "auto": itself if it
    gives the ids of the reference on the hard cases and on `sample`, documents of the run; else the
    reference, and why. Raises InputError for an unknown name, MissingPackage where a named engine is not
    installed."""
    if name not in ("auto", *ENGINES):
        raise InputError(f"engine {name!r} is unknown: auto, {', '.join(ENGINES)}")
    chosen = DEFAULT if name == "auto" else name
    reference = ENGINES[REFERENCE](tokenizer_json)
    if chosen == REFERENCE:
        return REFERENCE, reference, None
    try:
        engine = ENGINES[chosen](tokenizer_json)
    except MissingPackage as error:
        if name != "auto":
            raise
        return REFERENCE, reference, f"{error}; using {REFERENCE}, which is some 50 times slower"
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a kind of tokenizer.json that it does not know; a Rust panic
        why = f"cannot load this tokenizer ({one_line(error)[:200]})"
        return REFERENCE, reference, f"engine {chosen} {why}; using {REFERENCE}"
    if difference := first_difference(engine, reference, [*HARD_CASES, *sample]):
        why = f"differs from {REFERENCE} {difference}"
        return REFERENCE, reference, f"engine {chosen} {why}; using {REFERENCE}"
    return chosen, engine, None


def first_difference(engine: Encode, reference: Encode, texts: Sequence[str]) -> str | None:
    """Where two engines first give other ids for one of the texts, in words; None if nowhere."""
    texts = list(texts)
    try:
        ids, lengths = engine(texts)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a Rust panic is not an Exception
        return f"in that it fails ({one_line(error)[:200]})"
    expected_ids, expected_lengths = reference(texts)
    if np.array_equal(ids, expected_ids) and np.array_equal(lengths, expected_lengths):
        return None
    if len(lengths) != len(texts):
        return "in the number of documents"
    starts, expected_starts = np.cumsum([0, *lengths]), np.cumsum([0, *expected_lengths])
    for i, text in enumerate(texts):
        own = ids[starts[i] : starts[i + 1]]
        expected = expected_ids[expected_starts[i] : expected_starts[i + 1]]
        if not np.array_equal(own, expected):
            unlike = (t for t, (a, b) in enumerate(zip(own, expected, strict=False)) if a != b)
            at = next(unlike, min(len(own), len(expected)))
            there = f"ids {own[at : at + 5].tolist()} against {expected[at : at + 5].tolist()}"
            return f"on {text[:60]!r}: {there} from token {at}"
    return "in ids that belong to no document"
