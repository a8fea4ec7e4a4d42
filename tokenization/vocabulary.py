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
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_type_hints

from base.cli import parse_flags
from base.errors import InputError, input_errors
from base.fields import check
from base.files import read_json
from tokenization.tokenizers import _CHARACTERS, TokenizerFiles, find_tokenizer, import_tokenizers

TIERS = {
    "ascii": re.compile(rb"[\x00-\x7f]+"),
    "letters": re.compile(rb" ?[A-Za-z]*"),
    "words": re.compile(rb" ?[A-Z]?[a-z]*"),
}
BYTE_OF = {character: bytes([byte]) for byte, character in _CHARACTERS.items()}


@dataclass(kw_only=True)
class VocabularyConfig:
    tokenizer: str = "qwen3"  # a name, folder or hub id
    tier: Literal["ascii", "letters", "words"] = "ascii"
    out: str = ""  # the JSON that is written
    text: str | None = (
        None  # a file of text to measure on; None: the language reference that comes with Python
    )

    def __post_init__(self) -> None:
        check(self)
        if not self.out:
            raise InputError("--out=FILE.json is missing")


def main(argv: Sequence[str]) -> int:
    if "--help" in argv or "-h" in argv:
        print(__doc__)
        return 0
    with input_errors():
        words, flags = parse_flags(argv, get_type_hints(VocabularyConfig))
        if words != ["english"]:
            raise InputError(
                f"{' '.join(words) or 'no command'}: write python -m tokenization.vocabulary english --out=FILE.json"
            )
        config = VocabularyConfig(**flags)
        out = Path(config.out)
        if not out.absolute().parent.is_dir():
            raise InputError(f"{out.absolute().parent} is no folder: make it, or choose another --out")
        found = find_tokenizer(config.tokenizer)
        text = Path(config.text).read_text(encoding="utf-8") if config.text else reference_text()
        if not text:
            raise InputError(f"{config.text} is empty: name a text, on which the tier is measured")
        record = english(found, config.tier, text)
    out.write_text(json.dumps(record) + "\n")
    counts, measured = record["statistics"]["tiers"], record["statistics"]["text"]
    print(f"{out}: {len(record['ids']):,} ids of {found.name}, tier {config.tier}; {record['method']}")
    print(
        ", ".join(f"{name} {n:,}" for name, n in counts.items())
        + f"; of {record['statistics']['base_tokens']:,} base tokens"
    )
    print(", ".join(f"{name} {n:,}" for name, n in record["statistics"]["scripts"].items()))
    print(
        f"on {measured['bytes']:,} bytes of text: {measured['tokens']:,} tokens, {measured['tokens_outside']:,} outside the "
        f"tier; {measured['bytes_per_token']:.3f} bytes per token, {measured['bytes_per_token_pruned']:.3f} with the tier "
        f"and single bytes alone ({measured['bytes_per_token_lost']:.3f} lost)"
    )
    return 0


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
        "tokenizer": {"name": found.name, "length": found.length, "sha256": found.sha256},
        "ids": ids[tier],
        "byte_ids": sorted({i for i, b in strings.items() if len(b) == 1} - set(ids[tier])),
        "added_ids": added,
        "statistics": {
            "base_tokens": len(strings),
            "tiers": {name: len(members) for name, members in ids.items()},
            "scripts": dict(scripts.most_common()),
        },
    }
    package = import_tokenizers("reading tokenizer.json")
    full = package.Tokenizer.from_buffer(found.json).encode(text, add_special_tokens=False).ids
    pruned_json = prune_tokenizer(found.json, kept_ids(record))
    pruned = package.Tokenizer.from_buffer(pruned_json).encode(text, add_special_tokens=False).ids
    n, inside = len(text.encode()), set(ids[tier])
    record["statistics"]["text"] = {
        "bytes": n,
        "tokens": len(full),
        "tokens_outside": sum(i not in inside for i in full),
        "bytes_per_token": n / len(full),
        "bytes_per_token_pruned": n / len(pruned),
        "bytes_per_token_lost": n / len(full) - n / len(pruned),
    }
    return record


def read_vocabulary(file: str | Path, tokenizer: TokenizerFiles) -> dict[str, Any]:
    """The JSON that `main` wrote. Raises InputError for another file, or one of another tokenizer, in one
    line."""
    record = read_json(file, "make it again with python -m tokenization.vocabulary english")
    if not isinstance(record, dict) or not {"ids", "byte_ids", "added_ids", "tokenizer"} <= record.keys():
        raise InputError(
            f"{file} is not a vocabulary: write one with python -m tokenization.vocabulary english --out=FILE"
        )
    made_from = record["tokenizer"]
    if tokenizer.sha256 != made_from.get("sha256"):
        raise InputError(
            f"{file} was made from another tokenizer ({made_from.get('name')!r}, sha256 {str(made_from.get('sha256'))[:12]}…) "
            f"than {tokenizer.name!r} ({tokenizer.sha256[:12]}…): make it again"
        )
    return record


def kept_ids(record: dict[str, Any]) -> list[int]:
    """Old ids of a pruned vocabulary, in the order of their new ones. Single bytes stay, so that any text
    can be encoded."""
    return sorted({*record["ids"], *record["byte_ids"], *record["added_ids"]})


def token_bytes(found: TokenizerFiles) -> dict[int, bytes]:
    """The bytes of every base token. Raises InputError for what is neither byte-level BPE nor BPE with byte
    fallback."""
    record = json.loads(found.json)
    added = {token["id"] for token in record["added_tokens"]}
    model = record["model"]
    if model.get("type") != "BPE":
        raise InputError(f"tokenizer {found.name!r} is {model.get('type')}, only BPE is known here")
    base = {i: token for token, i in model["vocab"].items() if i not in added}
    if model.get("byte_fallback"):  # LLaMA 2: a space is U+2581, a byte <0x0A>

        def decode(token: str) -> bytes:
            byte = re.fullmatch(r"<0x([0-9A-F]{2})>", token)
            return bytes.fromhex(byte[1]) if byte else token.replace("\u2581", " ").encode()
    else:

        def decode(token: str) -> bytes:
            return b"".join(BYTE_OF[character] for character in token)

    try:
        return {i: decode(base[i]) for i in sorted(base)}
    except KeyError as error:
        raise InputError(f"tokenizer {found.name!r} is not byte-level: a token holds {error}") from None


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
    """tokenizer.json with these ids alone, renumbered in their order, and the merges among them in theirs."""
    record = json.loads(tokenizer_json)
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
    steps = record.get("post_processor") or {}
    for step in steps.get("processors", [steps]):
        for token in (
            step.get("special_tokens", {}).values() if isinstance(step.get("special_tokens"), dict) else ()
        ):
            token["ids"] = [new_id[i] for i in token["ids"]]
    return json.dumps(record, ensure_ascii=False).encode()


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
