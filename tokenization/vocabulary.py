"""The English part of a tokenizer's vocabulary, and the tokenizer that has only that.

    python -m tokenization.vocabulary english --tokenizer=qwen3 --tier=ascii --out=english.json

No model is loaded. A tier is a set of byte strings that holds every substring of its members. A token of a
text is a substring of it, so a text of the tier encodes inside the tier's tokens: that is the closure, and
--text counts it.

    ascii     every byte below 128: English text, code, markup
    letters   ASCII letters, a space before them or none
    words     ASCII letters in the case of a word (lower case, the first perhaps a capital), a space before them or none
"""

import collections
import json
import re
import sys
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from base import cli, fields
from base.errors import InputError, writing
from base.fields import knob
from base.files import entry, read_json, read_text, write_json
from base.text import brief
from tokenization.from_tiktoken import BYTE_CHARACTERS
from tokenization.tokenizer_files import TokenizerFiles, loaded, package_errors
from tokenization.tokenizers import find_tokenizer

TIERS = {
    "ascii": re.compile(rb"[\x00-\x7f]+"),
    "letters": re.compile(rb" ?[A-Za-z]*"),
    "words": re.compile(rb" ?[A-Z]?[a-z]*"),
}
BYTE_OF = {character: bytes([byte]) for byte, character in BYTE_CHARACTERS.items()}
MAKE_IT = "make it with python -m tokenization.vocabulary english --out=FILE.json"


@dataclass(frozen=True, kw_only=True)
class VocabularyConfig:
    part: list[str] = knob([], "of the vocabulary, as a word: english", takes_words=True)
    tokenizer: str = knob("qwen3", "a name, a folder or a hub id")
    tier: Literal["ascii", "letters", "words"] = knob("ascii", "what is kept, as above")
    out: str = knob("", "the JSON that is written")
    text: str | None = knob(
        None, "a file of text to measure on; without it the language reference that comes with Python"
    )

    def __post_init__(self) -> None:
        fields.check(self)
        if self.part != ["english"]:
            raise InputError(
                f"{' '.join(self.part) or 'no command'}: write python -m tokenization.vocabulary english "
                "--out=FILE.json"
            )
        if not self.out:
            raise InputError("--out=FILE.json is missing")


def main(argv: Sequence[str]) -> int:
    return cli.run(argv, __doc__, VocabularyConfig, write_english)


def write_english(config: VocabularyConfig) -> None:
    out = Path(config.out)
    if not out.absolute().parent.is_dir():
        raise InputError(f"{out.absolute().parent} is not a folder: make it, or choose another --out")
    text = read_text(config.text) if config.text else reference_text()
    if not text:
        raise InputError(f"{config.text} is empty: name a text, on which the tier is measured")
    found = find_tokenizer(config.tokenizer)
    record = english(found, config.tier, text)
    with writing(out):
        write_json(out, record, indent=None)
    counts, measured = record["statistics"]["tiers"], record["statistics"]["text"]
    print(f"{out}: {len(record['ids']):,} ids of {found.name}, tier {config.tier}; {record['method']}")
    of_tiers = ", ".join(f"{name} {n:,}" for name, n in counts.items())
    print(f"{of_tiers}; of {record['statistics']['base_tokens']:,} base tokens")
    print(", ".join(f"{name} {n:,}" for name, n in record["statistics"]["scripts"].items()))
    print(
        f"on {measured['bytes']:,} bytes of text: {measured['tokens']:,} tokens, "
        f"{measured['tokens_outside']:,} outside the tier; {measured['bytes_per_token']:.3f} bytes per token, "
        f"{measured['bytes_per_token_pruned']:.3f} with the tier and single bytes alone "
        f"({measured['bytes_per_token_lost']:.3f} lost)"
    )


def english(found: TokenizerFiles, tier: str, text: str) -> dict[str, Any]:
    """What the JSON holds: `ids` of the tier, `byte_ids` of single bytes outside it, `added_ids`,
    statistics."""
    strings = token_bytes(found)
    ids = {
        name: [i for i, b in strings.items() if b and pattern.fullmatch(b)] for name, pattern in TIERS.items()
    }
    added = sorted(token["id"] for token in json.loads(found.json)["added_tokens"])
    scripts = collections.Counter(script_of(b) for b in strings.values())
    record = {
        "tier": tier,
        "method": f"base tokens whose bytes match {TIERS[tier].pattern.decode()} as a whole",
        "tokenizer": found.described(),
        "ids": ids[tier],
        "byte_ids": sorted({i for i, b in strings.items() if len(b) == 1} - set(ids[tier])),
        "added_ids": added,
        "statistics": {
            "base_tokens": len(strings),
            "tiers": {name: len(members) for name, members in ids.items()},
            "scripts": dict(scripts.most_common()),
        },
    }
    record["statistics"]["text"] = measure(found, record, text)
    return record


def measure(found: TokenizerFiles, record: dict[str, Any], text: str) -> dict[str, float]:
    """What the text costs in the whole vocabulary and in the part of it."""
    pruned_json = prune_tokenizer(found.json, kept_ids(record))
    full, pruned = (_ids(content, found.name, text) for content in (found.json, pruned_json))
    if not full or not pruned:
        raise InputError(f"tokenizer {found.name!r} gives no token for the text: choose another --text")
    n, inside = len(text.encode()), set(record["ids"])
    return {
        "bytes": n,
        "tokens": len(full),
        "tokens_outside": sum(i not in inside for i in full),
        "bytes_per_token": n / len(full),
        "bytes_per_token_pruned": n / len(pruned),
        "bytes_per_token_lost": n / len(full) - n / len(pruned),
    }


def _ids(tokenizer_json: bytes, name: str, text: str) -> list[int]:
    tokenizer = loaded(tokenizer_json, f"tokenizer.json of {name!r}")
    with package_errors(f"tokenizer {name!r} cannot encode the text", "choose another --text"):
        return tokenizer.encode(text, add_special_tokens=False).ids


def read_vocabulary(file: str | Path, tokenizer: TokenizerFiles) -> dict[str, Any]:
    """The JSON that `main` wrote. Raises InputError, in one line, for another file or one of another
    tokenizer."""
    record = read_json(file, MAKE_IT)
    made_from = entry(record, "tokenizer", dict, f"{file} is not a vocabulary: it", MAKE_IT)
    sha256 = entry(made_from, "sha256", str, f"{file} is not a vocabulary: its tokenizer", MAKE_IT)
    ids = [entry(record, key, list, f"{file}", MAKE_IT) for key in ("ids", "byte_ids", "added_ids")]
    if tokenizer.sha256 != sha256:
        raise InputError(
            f"{file} was made from another tokenizer ({brief(made_from.get('name'))}, sha256 {sha256[:12]}…) "
            f"than {tokenizer.name!r} ({tokenizer.sha256[:12]}…): make it again"
        )
    for i in (i for some in ids for i in some):
        if type(i) is not int or not 0 <= i < tokenizer.length:
            raise InputError(f"{file} lists {brief(i)}, which is not an id of {tokenizer.name!r}: {MAKE_IT}")
    if not any(ids):
        raise InputError(f"{file} lists no ids: {MAKE_IT}")
    return record


def kept_ids(record: dict[str, Any]) -> list[int]:
    """Old ids of a pruned vocabulary, in the order of their new ones. Single bytes stay, so that any text
    can be encoded."""
    return sorted({*record["ids"], *record["byte_ids"], *record["added_ids"]})


def token_bytes(found: TokenizerFiles) -> dict[int, bytes]:
    """The bytes of every base token. Raises InputError for what is neither byte-level BPE nor BPE with byte
    fallback."""
    try:
        return bytes_of_tokens(_read_bpe(found.json, found.name))
    except KeyError as error:
        raise InputError(f"tokenizer {found.name!r} is not byte-level: a token holds {error}") from None


def bytes_of_tokens(record: dict[str, Any]) -> dict[int, bytes]:
    """The same of what a tokenizer.json with BPE holds. Raises KeyError for a character that is no byte's."""
    added = {token["id"] for token in record["added_tokens"]}
    model = record["model"]
    base = {i: token for token, i in model["vocab"].items() if i not in added}
    decode = _byte_fallback_bytes if model.get("byte_fallback") else _byte_level_bytes
    return {i: decode(base[i]) for i in sorted(base)}


def _read_bpe(tokenizer_json: bytes, name: str) -> dict[str, Any]:
    """What the file holds, in the shapes that the package `tokenizers` takes."""
    loaded(tokenizer_json, f"tokenizer.json of {name!r}")
    record = json.loads(tokenizer_json)
    kind = record["model"].get("type")
    if kind != "BPE":
        raise InputError(f"tokenizer {name!r} is {brief(kind)}, only BPE is known here: pass another")
    return record


def _byte_fallback_bytes(token: str) -> bytes:
    """LLaMA 2: a space is U+2581, a byte <0x0A>."""
    byte = re.fullmatch(r"<0x([0-9A-F]{2})>", token)
    return bytes.fromhex(byte[1]) if byte else token.replace("\u2581", " ").encode()


def _byte_level_bytes(token: str) -> bytes:
    return b"".join(BYTE_OF[character] for character in token)


def script_of(token: bytes) -> str:
    """ascii; the script of its first letter beyond that; symbols; or part of a character."""
    try:
        text = token.decode()
    except UnicodeDecodeError:
        return "part of a character"
    if text.isascii():
        return "ascii"
    letters = [c for c in text if not c.isascii() and c.isalpha()]
    if not letters:
        return "symbols"
    return unicodedata.name(letters[0], "unnamed").split()[0].lower()  # "CYRILLIC SMALL LETTER A"


def reference_text() -> str:
    from pydoc_data.topics import topics

    return "\n".join(topics.values())


def prune_tokenizer(tokenizer_json: bytes, kept: Sequence[int]) -> bytes:
    """tokenizer.json with these ids alone, renumbered in their order, and the merges among them in theirs.
    Raises InputError where a token that is left out is put around every text."""
    record = _read_bpe(tokenizer_json, "to be pruned")
    new_id = {old: new for new, old in enumerate(kept)}
    model = record["model"]
    model["vocab"] = {token: new_id[i] for token, i in model["vocab"].items() if i in new_id}
    merges = []
    for merge in model["merges"]:
        a, b = merge.split(" ") if isinstance(merge, str) else merge
        if a in model["vocab"] and b in model["vocab"] and a + b in model["vocab"]:
            merges.append(merge)
    model["merges"] = merges
    record["added_tokens"] = [
        {**t, "id": new_id[t["id"]]} for t in record["added_tokens"] if t["id"] in new_id
    ]
    if padding := record.get("padding"):  # used where a caller asks for it alone
        padding["pad_id"] = new_id.get(padding["pad_id"], 0)
    try:
        _renumber_post_processor(record.get("post_processor") or {}, new_id.__getitem__)
    except KeyError as error:
        raise InputError(
            f"tokenizer.json puts id {error} around every text, which is not kept: keep it among the ids"
        ) from None
    return json.dumps(record, ensure_ascii=False).encode()


def _renumber_post_processor(step: dict[str, Any], new_id: Callable[[int], int]) -> None:
    """In place: the tokens that a post-processor puts around a text."""
    for part in step.get("processors", []):
        _renumber_post_processor(part, new_id)
    if step.get("type") == "TemplateProcessing":
        for token in step["special_tokens"].values():
            token["ids"] = [new_id(i) for i in token["ids"]]
    for end in ("sep", "cls"):  # BERT's and RoBERTa's: [token, id]
        if end in step:
            step[end] = [step[end][0], new_id(step[end][1])]


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
