"""The tokenizer that a folder's files make together, as transformers' AutoTokenizer (version 5) puts it
together: tokenizer.json is only one of them.

A class that has a pipeline of its own takes the vocabulary, the merges and the post-processor of
tokenizer.json and nothing else. Tokens that only tokenizer_config.json, special_tokens_map.json or
added_tokens.json know are added. Truncation and padding belong to a call, not to the tokenizer: they are
switched off. The result is again a tokenizer.json, of the same bytes where nothing was to be changed.

Source: https://huggingface.co/docs/transformers (tokenizers, auto classes), and the behaviour of 5.23."""

import fnmatch
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from base.errors import InputError
from base.files import json_bytes, parse_json
from base.text import brief
from tokenization.added_tokens import AddedToken, AddedTokens, read_added_token, special_token
from tokenization.pipelines import PIPELINES, Pipeline, same_step, template_around

COPY = "copy it again"
NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
GENERIC = "PreTrainedTokenizerFast"  # the class that takes tokenizer.json as it is; version 4 knows it too
AS_FILED = ("PreTrainedTokenizer", "TokenizersBackend", "PythonBackend", "BloomTokenizer", GENERIC)
OTHER = "another class of transformers"
# The class that transformers has for a model_type, where it has one: it reads a folder that names none. Of
# a model whose class is generic every folder is taken as filed.
CLASS_OF_MODEL = {
    "gpt2": "GPT2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "qwen2": "Qwen2Tokenizer",
    "llama": None,
}
CLASS_OF_MODEL |= dict.fromkeys(("granite", "mistral", "mixtral", "olmo2", "olmo3", "phi3"), GENERIC)
MISNAMED = ("qwen2", "phi3")  # models whose folders name a wrong class: that of the model reads them
FILED_REPOS = (
    "deepseek-ai/deepseek-r1-distill-llama-*", "deepseek-ai/deepseek-coder-*", "allenai/dolma2-tokenizer",
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    json: bytes  # a tokenizer.json that holds all there is
    names: dict[str, str]  # what a template sees: bos_token, eos_token, …
    record: dict[str, Any]  # what json holds
    config: dict[str, Any] | None  # tokenizer_config.json, where it must change with tokenizer.json


def put_together(
    name: str, content: bytes, record: dict[str, Any], files: Mapping[str, bytes], filed: bool = True
) -> Layout:
    """`content` holds `record`, whose vocabulary is sound; `files` are those beside it by name, config.json
    among them. Without `filed`, the record was made of vocab.json and the like, and there is no
    tokenizer.json. The class that reads them is not OTHER. Raises InputError for what cannot be honoured, by
    name."""
    config, model = (config_of(files, file, name) for file in ("tokenizer_config.json", "config.json"))
    reader = class_that_reads(name, config, model, content)
    _refuse(name, config, record, reader)
    pipeline = PIPELINES[reader](config) if reader in PIPELINES else None
    named, extra, declared = _tokens(name, config, files, record, pipeline)

    model_record = record["model"]
    vocabulary = model_record["vocab"]
    if isinstance(vocabulary, list):  # a Unigram's
        vocabulary = {pair[0]: i for i, pair in enumerate(vocabulary)}
    added = AddedTokens(vocabulary)
    if pipeline is None:
        added.add(read_added_token(token, f"tokenizer.json of {name!r}") for token in record["added_tokens"])
    added.add_missing(named, extra, declared)
    texts = list(dict.fromkeys(str(token) for token in (*named.values(), *extra)))
    if reader == "Qwen2Tokenizer":
        added.add(special_token(text) for text in texts)

    changes: dict[str, Any] = {"truncation": None, "padding": None, "added_tokens": added.listed()}
    if pipeline is not None:
        changes |= pipeline.steps
        changes["model"] = pipeline.model | {
            "vocab": vocabulary,
            "merges": model_record.get("merges", []),
        }
    if not filed:
        around = [str(named[end]) if config.get(f"add_{end}") and end in named else None for end in NAMES[:2]]
        changes["post_processor"] = template_around(*around, added.id_of)
    names = {key: str(token) for key, token in named.items()}
    needed = {"tokenizer_class": reader} if class_that_reads(name, config, {}, content) != reader else {}
    if filed and all(_same(record, key, value) for key, value in changes.items()):
        return Layout(content, names, record, config | needed if needed else None)
    record = {"version": "1.0"} | record | changes
    told = changes["added_tokens"] if pipeline is not None else []  # else tokenizer.json tells them
    config = config | needed | _as_told(names, extra, told)
    return Layout(json_bytes(record), names, record, config)


def _as_told(names: dict[str, str], extra: list[Any], added: list[dict[str, Any]]) -> dict[str, Any]:
    """All that tokenizer_config.json must say of tokens, so that no older file beside it has a say."""
    by_index = {str(t["id"]): {key: value for key, value in t.items() if key != "id"} for t in added}
    unusual = {key: text for key, text in names.items() if not key.endswith("_token")}
    told = {key: text for key, text in names.items() if key not in unusual}
    return told | {
        "added_tokens_decoder": by_index,
        "extra_special_tokens": unusual,
        "additional_special_tokens": [str(token) for token in extra],
    }


def class_that_reads(name: str, config: Mapping[str, Any], model: Mapping[str, Any], content: bytes) -> str:
    """The class that AutoTokenizer would choose: one of PIPELINES, GENERIC, or OTHER, which is unknown here.
    Raises InputError for code that comes with the tokenizer."""
    declared = config.get("tokenizer_class") or model.get("tokenizer_class")
    if declared is not None and not isinstance(declared, str):
        raise InputError(f"tokenizer_class of {name!r} is {brief(declared)}, not a class: {COPY}")
    declared = declared and (declared if declared == GENERIC else declared.removesuffix("Fast"))
    model_type = model.get("model_type") or None
    known = CLASS_OF_MODEL.get(model_type, OTHER) if isinstance(model_type, str | None) else OTHER
    of_model = None if model_type is None else known
    if config.get("auto_map") is not None:
        if declared not in PIPELINES:
            raise InputError(
                f"tokenizer {name!r} is read by code of its own (auto_map in tokenizer_config.json), which is "
                "never run: convert it to a tokenizer.json that needs none"
            )
        return declared
    if any(fnmatch.fnmatch(name.lower(), pattern) for pattern in FILED_REPOS):
        return GENERIC
    if of_model == OTHER:
        return OTHER
    if declared is None:
        return of_model or GENERIC
    if model_type in MISNAMED and declared != of_model:
        return of_model
    if declared == "LlamaTokenizer" and of_model != GENERIC and b'"ByteLevel"' in content:
        return GENERIC  # LLaMA 3's style under LLaMA 2's name
    if of_model == GENERIC or declared in AS_FILED:
        return GENERIC
    return declared if declared in PIPELINES else OTHER


def config_of(files: Mapping[str, bytes], file: str, name: str) -> dict[str, Any]:
    """The object in one of the files; empty where there is none."""
    record = parse_json(files.get(file, b"{}"), f"{file} of {name!r}")
    return record if isinstance(record, dict) else {}


def _refuse(name: str, config: Mapping[str, Any], record: Mapping[str, Any], reader: str) -> None:
    """Raises InputError for what would change ids and cannot be kept in a tokenizer.json."""
    for key in ("split_special_tokens", "fix_mistral_regex"):
        if config.get(key):
            raise InputError(
                f"tokenizer {name!r}: {key} in tokenizer_config.json is not supported: set it to false, "
                "or pass another tokenizer"
            )
    if reader == GENERIC and record["model"].get("dropout"):
        raise InputError(
            f"tokenizer {name!r}: dropout in tokenizer.json makes the ids random: set it to null"
        )


def _same(record: Mapping[str, Any], key: str, value: Any) -> bool:
    there = record.get(key)
    if key == "added_tokens":
        return [{"id": t["id"], **asdict(read_added_token(t, key))} for t in there] == value
    if key == "model":
        keys = value.keys() | there.keys()
        return all(same_step(there.get(k), value.get(k)) for k in keys - {"type"})
    return same_step(there, value, decoder=key == "decoder")


def _tokens(
    name: str, config: Mapping[str, Any], files: Mapping[str, bytes], record: Mapping[str, Any],
    pipeline: Pipeline | None,
) -> tuple[dict[str, Any], list[Any], dict[int, AddedToken]]:  # fmt: skip
    """(tokens with a name, other special tokens, tokens by the index they are said to have), each a string
    or an AddedToken. Where tokenizer_config.json has added_tokens_decoder, it alone counts; else the older
    files beside it do."""
    where = f"tokenizer_config.json of {name!r}"
    given = dict(config)
    extra = given.pop("extra_special_tokens", None)
    if not extra and "additional_special_tokens" in given:
        extra = given.pop("additional_special_tokens")  # its older name
    specific = {
        k: given.pop(k) for k in _more_names(given, str)
    }  # a multimodal model's image_token and so on
    declared: dict[int, AddedToken] = {}
    if isinstance(extra, dict):
        specific, extra = specific | extra, None
    if "added_tokens_decoder" in given:
        for index, token in _items(given["added_tokens_decoder"], f"{where}: added_tokens_decoder"):
            if not index.isdecimal() or len(index) > 10:
                raise InputError(f"{where}: added_tokens_decoder has the index {brief(index)}: {COPY}")
            declared[int(index)] = read_added_token(token, where)
    else:
        older, more = _special_tokens_map(files, name)
        given |= older
        if isinstance(more, dict):
            specific, extra = specific | more, None
        elif more is not None:
            extra = _token_list(extra, where) + more
        special = {_text(given[k]) for k in NAMES if given.get(k)}
        special |= {_text(token) for token in extra or []} if isinstance(extra, list) else set()
        for text, index in _items(config_of(files, "added_tokens.json", name), "added_tokens.json"):
            if type(index) is not int:
                raise InputError(
                    f"added_tokens.json of {name!r}: {brief(text)} has id {brief(index)}: {COPY}"
                )
            declared[index] = special_token(text) if text in special else AddedToken(text)
        for token in record["added_tokens"]:
            declared[token["id"]] = read_added_token(token, f"tokenizer.json of {name!r}")
    given = {k: _marked(value, where) for k, value in given.items()}
    known = {token.content: token for token in declared.values()}
    given = {**(pipeline.names if pipeline else {}), **given}
    padding = record.get("padding")
    if isinstance(padding, dict):
        given.setdefault("pad_token", padding.get("pad_token"))
    named = {k: _token(given[k], f"{where}: {k}") for k in NAMES if given.get(k) is not None}
    named = {k: known.get(str(token), token) for k, token in named.items()}
    specific = {k: given[k] for k in _more_names(given, (str, AddedToken))} | specific
    named |= {k: _token(v, f"{where}: {k}") for k, v in specific.items()}
    extra = given.get("additional_special_tokens") if extra is None else extra
    return named, _token_list(extra, where), declared


def _special_tokens_map(files: Mapping[str, bytes], name: str) -> tuple[dict[str, Any], Any]:
    """What special_tokens_map.json says of names, which outranks tokenizer_config.json, and its
    extra_special_tokens."""
    where, names = f"special_tokens_map.json of {name!r}", {}
    record = config_of(files, "special_tokens_map.json", name)
    more = record.pop("extra_special_tokens", None)
    for key, value in record.items():
        names[key] = read_added_token(value, where, special=True) if isinstance(value, dict) else value
    return names, more if more is None or isinstance(more, dict) else _token_list(more, where)


def _more_names(given: Mapping[str, Any], kinds: type | tuple[type, ...]) -> list[str]:
    return [k for k, v in given.items() if k.endswith("_token") and k not in NAMES and isinstance(v, kinds)]


def _marked(value: Any, where: str) -> Any:
    """An AddedToken where the value says that it is one."""
    marked = isinstance(value, dict) and value.get("__type") == "AddedToken"
    return read_added_token(value, where) if marked else value


def _items(record: Any, where: str) -> list[tuple[str, Any]]:
    if not isinstance(record, dict):
        raise InputError(f"{where} is {brief(record)}, not an object of tokens: {COPY}")
    return list(record.items())


def _token(value: Any, where: str) -> Any:
    """A string or an AddedToken. Raises InputError."""
    if isinstance(value, dict):
        value = read_added_token(value, where)
    if not isinstance(value, str | AddedToken) or any("\ud800" <= c <= "\udfff" for c in str(value)):
        raise InputError(f"{where} is {brief(value)}, not a token: {COPY}")
    return value


def _token_list(tokens: Any, where: str) -> list[Any]:
    if tokens is not None and not isinstance(tokens, list):
        raise InputError(f"{where}: extra special tokens are {brief(tokens)}, not a list of tokens: {COPY}")
    return [_token(token, f"{where}: a special token") for token in tokens or []]


def _text(token: Any) -> str | None:
    return str(token) if isinstance(token, str | AddedToken) else None
