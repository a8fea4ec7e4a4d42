"""What the tokenizer classes of transformers that have a pipeline of their own make of a vocabulary, as
tokenizer.json spells it: only the vocabulary, the merges and the post-processor of a file stay."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from base.errors import InputError
from base.text import brief
from tokenization.from_tiktoken import QWEN_PIECES

BYTES = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
END = "<|endoftext|>"


@dataclass(frozen=True)
class Pipeline:
    steps: dict[str, Any]  # normalizer, pre_tokenizer, decoder
    model: dict[str, Any]  # without its vocabulary and merges
    names: dict[str, str | None]  # of tokens, where the folder does not say


def llama(config: Mapping[str, Any]) -> Pipeline:
    """SentencePiece's BPE with bytes: LLaMA 1 and 2, TinyLlama, and all that followed them."""
    prefix = _flag(config, "add_prefix_space", True)
    scheme = ("always" if config.get("legacy", False) else "first") if prefix else "never"
    spaces = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": scheme, "split": False}
    decoders = [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    if prefix:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return Pipeline(
        {
            "normalizer": None,
            "pre_tokenizer": spaces,
            "decoder": {"type": "Sequence", "decoders": decoders},
        },
        _bpe(None, fuse_unk=True, byte_fallback=True),
        {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    )


def gpt2(config: Mapping[str, Any]) -> Pipeline:
    pre_tokenizer = BYTES | {"add_prefix_space": _flag(config, "add_prefix_space", False)}
    return Pipeline(
        {"normalizer": None, "pre_tokenizer": pre_tokenizer, "decoder": BYTES},
        _bpe("", fuse_unk=False, byte_fallback=False),
        {"unk_token": END, "bos_token": END, "eos_token": END, "pad_token": None},
    )


def qwen2(config: Mapping[str, Any]) -> Pipeline:
    """Qwen2's, which Qwen3 keeps."""
    bytes_after = BYTES | {"add_prefix_space": _flag(config, "add_prefix_space", False), "use_regex": False}
    split = {
        "type": "Split",
        "pattern": {"Regex": QWEN_PIECES},
        "behavior": "Isolated",
        "invert": False,
    }
    return Pipeline(
        {
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, bytes_after]},
            "decoder": BYTES,
        },
        _bpe("", fuse_unk=False, byte_fallback=False),
        {"unk_token": END, "bos_token": None, "eos_token": END, "pad_token": END},
    )


PIPELINES: dict[str, Callable[[Mapping[str, Any]], Pipeline]] = {
    "LlamaTokenizer": llama,
    "GPT2Tokenizer": gpt2,
    "Qwen2Tokenizer": qwen2,
}


def _flag(config: Mapping[str, Any], key: str, default: bool) -> bool:
    value = config.get(key)
    if value is not None and type(value) is not bool:
        raise InputError(f"tokenizer_config.json: {key} is {brief(value)}, expected true or false: set it")
    return default if value is None else value


def _bpe(affix: str | None, fuse_unk: bool, byte_fallback: bool) -> dict[str, Any]:
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": affix,
        "end_of_word_suffix": affix,
        "fuse_unk": fuse_unk,
        "byte_fallback": byte_fallback,
        "ignore_merges": False,
    }


def same_step(a: Any, b: Any, decoder: bool = False) -> bool:
    """Whether two parts of a tokenizer.json give the same ids and the same text: offsets do not count, an
    absent flag is off (use_regex on), and a byte-level decoder has no options."""
    if a is b:
        return True
    if isinstance(a, dict) and isinstance(b, dict):
        if decoder and a.get("type") == b.get("type") == "ByteLevel":
            return True
        keys = (a.keys() | b.keys()) - {"trim_offsets"}
        return all(same_step(*(x.get(key, key == "use_regex") for x in (a, b)), decoder) for key in keys)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(same_step(x, y, decoder) for x, y in zip(a, b, strict=True))
    return a == b or (not a and not b)


def template_around(bos: str | None, eos: str | None, id_of: Callable[[str], int | None]) -> dict[str, Any]:
    """The post-processor that puts these tokens around a text and around each of a pair."""

    def one(sequence: str, type_id: int) -> list[dict[str, Any]]:
        parts = [(bos, "SpecialToken"), (sequence, "Sequence"), (eos, "SpecialToken")]
        return [{kind: {"id": text, "type_id": type_id}} for text, kind in parts if text is not None]

    special = {t: {"id": t, "ids": [id_of(t)], "tokens": [t]} for t in (bos, eos) if t is not None}
    pair = one("A", 0) + one("B", 1)
    return {"type": "TemplateProcessing", "single": one("A", 0), "pair": pair, "special_tokens": special}
