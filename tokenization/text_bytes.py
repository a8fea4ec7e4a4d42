"""What ids stand for in bytes of text, so that bits per byte can count the very tokens that were evaluated.

text = text_of_ids(folder, eot_id)            # None where the tokenizer does not say
text.count(before, ids)                       # bytes of ids, `before` being the id before each
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from base.errors import InputError
from base.files import read_bytes
from tokenization.vocabulary import bytes_of_tokens

MOST_IDS = 1 << 24  # a vocabulary with ids beyond is none
SEPARATOR = b"\xff"  # between documents, in a digest: a byte that UTF-8 never has


class TextOfIds:
    """`pieces` are the bytes of every id. With `prefixed` the tokenizer puts a space before each document, which is
    no part of its text (LLaMA 2); it is not `exact` where that space may as well be the text's own."""

    def __init__(
        self, pieces: dict[int, bytes], eot_id: int, prefixed: bool = False, exact: bool = True
    ) -> None:
        self.pieces = [pieces.get(i, b"") for i in range(max(pieces, default=0) + 1)]
        self.eot_id, self.prefixed, self.exact = eot_id, prefixed, exact
        self.lengths = np.array([len(piece) for piece in self.pieces], dtype=np.int64)
        self.begins_with_space = np.array([piece[:1] == b" " for piece in self.pieces])

    def count(self, before: np.ndarray, ids: np.ndarray) -> int:
        """UTF-8 bytes of text that ids [...] stand for; before [...] is the id before each, the end-of-text id where a
        document begins. Ids that the tokenizer does not know, and those that end a text, have none."""
        ids, before = ids.ravel(), before.ravel()
        known = ids < len(self.lengths)
        ids, before = ids[known], before[known]
        return int(self.lengths[ids].sum() - self.added_spaces(before, ids).sum())

    def added_spaces(self, before: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Which of ids [n] begin with a space that is the tokenizer's own."""
        return self.prefixed & self.begins_with_space[ids] & (before == self.eot_id)

    def digest(self, parts: Iterable[np.ndarray]) -> str:
        """Hex sha256 of the texts that the ids of all parts [n] stand for, in order: the same by every tokenizer that
        loses nothing."""
        sha256, last = hashlib.sha256(), self.eot_id
        for ids in parts:
            ids = ids[ids < len(self.pieces)]
            before = np.concatenate([[last], ids[:-1]])
            texts = [SEPARATOR if i == self.eot_id else self.pieces[i] for i in ids.tolist()]
            for at in np.flatnonzero(self.added_spaces(before, ids)):
                texts[at] = texts[at][1:]
            sha256.update(b"".join(texts))
            last = ids[-1] if len(ids) else last
        return sha256.hexdigest()


def text_of_ids(folder: Path, eot_id: int | None) -> TextOfIds | None:
    """Of the tokenizer.json in a dataset folder. None where there is none, and where its tokens do not give back the
    text: it is not byte-level BPE or BPE with byte fallback, or it normalises more than the spaces."""
    file = folder / "tokenizer.json"
    if eot_id is None or not os.path.isfile(file):
        return None
    try:
        record = json.loads(read_bytes(file))
        if record["model"]["type"] != "BPE":
            return None
        pieces = bytes_of_tokens(record)
        if len({piece for piece in pieces.values() if len(piece) == 1}) < 256:
            return None  # a byte without a token is lost, or becomes an unknown one
        prefixed, exact = puts_space_first(record)
        for token in record["added_tokens"]:
            pieces[token["id"]] = token["content"].encode()
    except (InputError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    if not all(type(i) is int and 0 <= i < MOST_IDS for i in pieces):
        return None
    pieces[eot_id] = b""
    return TextOfIds(pieces, eot_id, prefixed, exact)


def puts_space_first(record: dict[str, Any]) -> tuple[bool, bool]:
    """Whether a tokenizer.json says that a text is encoded with a space before it, and whether that is so for every
    text, those with a space of their own too. Raises ValueError where it changes the text in a way that is not known
    here."""
    steps = [
        *flat(record.get("normalizer"), "normalizers"),
        *flat(record.get("pre_tokenizer"), "pretokenizers"),
    ]
    prefixed, exact = False, True
    for step in steps:
        match step:
            case {"type": "Prepend", "prepend": "\u2581"}:
                prefixed = True
            case {"type": "Metaspace"} if step.get("prepend_scheme", "always") != "never":
                prefixed, exact = True, False
            case {"type": "ByteLevel", "add_prefix_space": True}:
                prefixed, exact = True, False
            case {"type": "Metaspace" | "ByteLevel" | "Digits"}:
                pass
            case {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}:
                pass
            case {
                "type": "Split",
                "behavior": "Isolated" | "MergedWithPrevious" | "MergedWithNext" | "Contiguous",
            }:
                pass
            case {"type": "NFC"}:  # it changes a text only where a letter and its accent are two characters
                pass
            case _:
                raise ValueError(f"{step['type']} is not known")
    return prefixed, exact


def flat(step: dict[str, Any] | None, members: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, those of a sequence one by one."""
    if step is None:
        return []
    return (
        [inner for part in step[members] for inner in flat(part, members)]
        if step["type"] == "Sequence"
        else [step]
    )
