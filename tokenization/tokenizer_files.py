"""What a tokenizer consists of, and what its tokenizer.json says, whatever is in it."""

import contextlib
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from base.errors import InputError, one_line, require, writing
from base.files import json_bytes, parse_json
from base.text import brief
from tokenization.layouts import OTHER, class_that_reads, config_of, put_together
from tokenization.named import TOKENIZERS, config_bytes
from tokenization.older_files import made_of_older
from tokenization.other_classes import read_through_transformers

if TYPE_CHECKING:
    import tokenizers

# Between documents goes the first of these that a tokenizer has as a special token, which no text encodes
# to. Qwen3's eos_token is <|im_end|>, which ends a chat turn, not a document; LLaMA 3's <|eot_id|>
# likewise.
END_OF_TEXT = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>")
MAX_IDS = 1 << 32  # shards hold uint32


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer that was found, its files put together, none of it loaded by a package yet."""

    name: str
    json: bytes = field(repr=False)  # a tokenizer.json that gives the ids of all the files together
    length: int  # one more than the largest id
    vocab_size: int  # rows of the model: 151,936 for Qwen3, of which 151,669 have a token
    eot_token: str
    eot_id: int  # goes between documents
    companions: dict[str, bytes] = field(default_factory=dict, repr=False)  # other files by name
    names: dict[str, str] = field(default_factory=dict)  # bos_token, eos_token, … where there is one

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.json).hexdigest()

    def described(self) -> dict[str, Any]:
        """What meta.json says of it."""
        return {"name": self.name, "length": self.length, "sha256": self.sha256}

    def save(self, folder: str | Path) -> Path:
        """Writes tokenizer.json and what belongs to it into folder, so that load_tokenizer and transformers
        read it there. Raises InputError where the folder cannot be written."""
        folder = Path(folder)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            for name, content in {**self.companions, "tokenizer.json": self.json}.items():
                (folder / name).parent.mkdir(exist_ok=True)  # additional_chat_templates/
                (folder / name).write_bytes(content)
        return folder


def describe(name: str, content: bytes, companions: dict[str, bytes], filed: bool = True) -> TokenizerFiles:
    """The tokenizer whose tokenizer.json is `content`; `companions` are the files beside it, a model's
    config.json among them. Without `filed` there is no such file, and `content` was made of others. Raises
    InputError, in one line, for whatever is not a tokenizer."""
    where = f"tokenizer.json of {name!r}"
    companions = _as_now(content, companions)
    record = _checked(_parse(content, where), where)
    config, model = (config_of(companions, file, name) for file in ("tokenizer_config.json", "config.json"))
    if class_that_reads(name, config, model, content) == OTHER:
        layout = read_through_transformers(name, companions | {"tokenizer.json": content})
    else:
        layout = put_together(name, content, record, companions, filed)
    vocabulary = _vocabulary(layout.record["model"]["vocab"], layout.record["added_tokens"], where)
    length = max(vocabulary.values()) + 1
    _check_around(layout.record.get("post_processor"), length, where)

    companions.pop("config.json", None)
    rows = _model_rows(model, f"config.json of {name!r}")
    eot_token = _end_of_text(layout.record["added_tokens"], layout.names.get("eos_token"), name)
    # A model's embedding often has more rows than the tokenizer has tokens
    of_this_length = [known.vocab_size for known in TOKENIZERS.values() if known.length == length]
    vocab_size = max(length, rows, *of_this_length)
    if layout.config is not None:
        companions["tokenizer_config.json"] = json_bytes(layout.config)
    return TokenizerFiles(
        name, layout.json, length, vocab_size, eot_token, vocabulary[eot_token], companions, layout.names
    )


def describe_older(name: str, companions: dict[str, bytes]) -> TokenizerFiles:
    """Likewise of a folder that has vocab.json and merges.txt, or tokenizer.model, in place of
    tokenizer.json."""
    config, model = (config_of(companions, file, name) for file in ("tokenizer_config.json", "config.json"))
    reader = class_that_reads(name, config, model, b"")
    content, more = made_of_older(name, companions, reader)
    return describe(name, content, companions | more, filed=False)


def _as_now(content: bytes, companions: dict[str, bytes]) -> dict[str, bytes]:
    """The companions, where an earlier version wrote another tokenizer_config.json for a tokenizer that has
    a name here, with today's. A copy."""
    there = companions.get("tokenizer_config.json")
    for known in TOKENIZERS.values():
        earlier = known.earlier_config and config_bytes(known.earlier_config)
        if earlier and there == earlier and hashlib.sha256(content).hexdigest() == known.sha256:
            return companions | {"tokenizer_config.json": config_bytes(known.config)}
    return dict(companions)


def _checked(record: dict[str, Any], where: str) -> dict[str, Any]:
    """The content of a tokenizer.json, which has a vocabulary. Raises InputError."""
    model, added = record.get("model"), record.get("added_tokens")
    if not isinstance(model, dict) or not isinstance(added, list) or not model.get("vocab"):
        raise _damaged(where, "it has no vocabulary")
    _vocabulary(model["vocab"], added, where)
    _check_merges(model, where)
    return record


def loaded(content: bytes, where: str, purpose: str = "reading tokenizer.json") -> "tokenizers.Tokenizer":
    """tokenizer.json as an object of the package `tokenizers`, which neither cuts nor pads a text. Raises
    InputError for what the package does not take, MissingPackage without it."""
    package = require("tokenizers", purpose)
    with package_errors(f"{where} is damaged or not a tokenizer", "copy it again"):
        tokenizer = package.Tokenizer.from_buffer(content)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer


@contextlib.contextmanager
def package_errors(what: str, what_to_do: str) -> Iterator[None]:
    """Around a call into a package that reads a tokenizer.json: whatever it raises becomes an InputError.
    Such packages raise bare Exception, and a Rust panic is not even that."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    except BaseException as error:
        raise InputError(f"{what} ({one_line(error)[:200]}): {what_to_do}") from None


def _damaged(where: str, why: str) -> InputError:
    return InputError(f"{where} is damaged or not a tokenizer ({why}): copy it again")


def _parse(content: bytes, where: str) -> dict[str, Any]:
    record = parse_json(content, where)
    return record if isinstance(record, dict) else {}


def _vocabulary(tokens: Any, added: list[Any], where: str) -> dict[str, int]:
    """{token: id} of the model's tokens and those that were added. A Unigram's are [token, score] by id."""
    if isinstance(tokens, list):
        pairs = [(pair[0] if isinstance(pair, list) and pair else pair, i) for i, pair in enumerate(tokens)]
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in tokens):
            raise _damaged(where, "its vocabulary is a list of something other than [token, score]")
    elif isinstance(tokens, dict):
        pairs = list(tokens.items())
    else:
        raise _damaged(where, f"its vocabulary is {brief(tokens)}")
    for token in added:
        if not isinstance(token, dict) or not {"content", "id"} <= token.keys():
            raise _damaged(where, f"{brief(token)} among added_tokens lacks content or id")
        pairs.append((token["content"], token["id"]))
    for token, i in pairs:
        if not isinstance(token, str) or type(i) is not int or not 0 <= i < MAX_IDS:
            raise _damaged(where, f"token {brief(token)} has id {brief(i)}")
    return dict(pairs)


def _check_around(step: Any, length: int, where: str) -> None:
    """Refuses ids that a post-processor puts around a text and that no token has."""
    if not isinstance(step, dict):
        return
    for part in step["processors"] if isinstance(step.get("processors"), list) else []:
        _check_around(part, length, where)
    special = step["special_tokens"] if isinstance(step.get("special_tokens"), dict) else {}
    listed = [token.get("ids") for token in special.values() if isinstance(token, dict)]
    ids = [i for some in listed if isinstance(some, list) for i in some]
    ids += [step[end][-1] for end in ("sep", "cls") if isinstance(step.get(end), list) and step[end]]
    for i in ids:
        if type(i) is int and i >= length:
            raise _damaged(where, f"its post-processor puts id {brief(i)} around a text, which no token has")


def _check_merges(model: dict[str, Any], where: str) -> None:
    """Refuses merges that end the process: the package `tokenizers` cuts the prefix of continuing tokens off
    the second part of each, and aborts where that is shorter."""
    prefix, merges = model.get("continuing_subword_prefix"), model.get("merges")
    if not prefix or not isinstance(merges, list):
        return
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        second = pair[1] if isinstance(pair, list) and len(pair) == 2 else None
        if not isinstance(prefix, str) or not isinstance(second, str) or not second.startswith(prefix):
            raise _damaged(where, f"merge {brief(merge)} lacks the prefix {brief(prefix)}")


def _end_of_text(added: list[dict[str, Any]], eos: str | None, name: str) -> str:
    """The special token that goes between documents; `eos` is the tokenizer's eos_token."""
    candidates = (*END_OF_TEXT, eos)
    special = [token["content"] for token in added if token.get("special")]
    found = next((token for token in candidates if token in special), None)
    if found is None:
        raise InputError(
            f"tokenizer {name!r} has none of {', '.join(END_OF_TEXT)} among its special tokens, nor the eos_token "
            "of a tokenizer_config.json: add one, it goes between documents"
        )
    return found


def _model_rows(config: dict[str, Any], where: str) -> int:
    """The rows that a model's config.json gives its embedding; 0 where it does not say."""
    rows = config.get("vocab_size")
    if rows is None:
        return 0
    if type(rows) is not int or not 0 <= rows < MAX_IDS:
        raise InputError(f"{where}: vocab_size is {brief(rows)}, expected a number of rows: copy it again")
    return rows
