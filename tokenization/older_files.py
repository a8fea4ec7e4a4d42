"""A tokenizer.json made of what older folders have in its place: vocab.json and merges.txt, or
SentencePiece's tokenizer.model. Nothing of them is run."""

import struct
from collections.abc import Iterator, Mapping
from typing import Any

from base.errors import InputError
from base.files import json_bytes, parse_json
from base.text import brief

LAYOUTS = {  # the class that reads it: its files
    "GPT2Tokenizer": ("vocab.json", "merges.txt"),
    "Qwen2Tokenizer": ("vocab.json", "merges.txt"),
    "LlamaTokenizer": ("tokenizer.model",),
}
COPY = "copy it again"
BPE, CONTROL, USER_DEFINED = 2, 3, 4  # of SentencePiece's model and piece types
MAX_PIECE = 256  # characters: each is cut at every place


def is_older(files: Mapping[str, bytes]) -> bool:
    return any(all(file in files for file in layout) for layout in LAYOUTS.values())


def made_of_older(name: str, files: Mapping[str, bytes], reader: str) -> tuple[bytes, dict[str, bytes]]:
    """(tokenizer.json, more files that say what the older ones know) for the class `reader`. Raises
    InputError for a class that does not read them."""
    missing = [file for file in LAYOUTS.get(reader, ()) if file not in files]
    if reader not in LAYOUTS or missing:
        known = "; ".join(f"{cls} of {' and '.join(layout)}" for cls, layout in LAYOUTS.items())
        raise InputError(
            f"tokenizer {name!r} has no tokenizer.json, and of class {brief(reader)} none can be made (one can be of "
            f"{known}): save it with AutoTokenizer.from_pretrained(...).save_pretrained(...)"
        )
    if reader == "LlamaTokenizer":
        pieces = list(_pieces(files["tokenizer.model"], f"tokenizer.model of {name!r}"))
        vocabulary = {piece: i for i, (piece, _) in enumerate(pieces)}
        merges = _merges_of(vocabulary)
        marked = [
            {"__type": "AddedToken", "content": piece, "normalized": False, "special": kind == CONTROL}
            for piece, kind in pieces
            if kind in (CONTROL, USER_DEFINED)
        ]
        more = {"additional_special_tokens": marked}
    else:
        vocabulary = parse_json(files["vocab.json"], f"vocab.json of {name!r}")
        merges = _merges_in(files["merges.txt"], f"merges.txt of {name!r}")
        more = {}
    record = {"added_tokens": [], "model": {"type": "BPE", "vocab": vocabulary, "merges": merges}}
    config = parse_json(files.get("tokenizer_config.json", b"{}"), f"tokenizer_config.json of {name!r}")
    config = config | more if isinstance(config, dict) else more
    return json_bytes(record, indent=None), {"tokenizer_config.json": json_bytes(config)} if more else {}


def _merges_in(content: bytes, where: str) -> list[list[str]]:
    try:
        lines = content.decode().split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{where} is not UTF-8 at byte {error.start}: {COPY}") from None
    pairs = [line.rstrip("\r").split(" ") for line in lines if line and not line.startswith("#version")]
    for pair in pairs:
        if len(pair) != 2:
            raise InputError(f"{where}: {brief(' '.join(pair))} is not a pair of tokens: {COPY}")
    return pairs


def _merges_of(vocabulary: Mapping[str, int]) -> list[list[str]]:
    """Every pair of pieces that makes a piece: the pieces in their order, shorter first parts first."""
    merges = []
    for piece, i in vocabulary.items():
        pairs = [(piece[:at], piece[at:]) for at in range(1, len(piece))]
        merges += [(i, len(a), len(b), a, b) for a, b in pairs if a in vocabulary and b in vocabulary]
    return [[a, b] for _, _, _, a, b in sorted(merges, key=lambda merge: merge[:3])]


def _pieces(content: bytes, where: str) -> Iterator[tuple[str, int]]:
    """(piece, its type) of a SentencePiece model, in the order of their ids. Raises InputError."""
    kind = None
    try:
        for field, value in _fields(content):
            if field == 1:
                record = dict(_fields(value))
                piece = record[1].decode()
                if len(piece) > MAX_PIECE:
                    raise ValueError(f"a piece of {len(piece)} characters")
                yield piece, record.get(3, 1)
            elif field == 2:
                kind = dict(_fields(value)).get(3, 1)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, struct.error) as error:
        raise InputError(f"{where} is damaged or not of SentencePiece ({error}): {COPY}") from None
    if kind != BPE:
        raise InputError(f"{where} is not a BPE model of SentencePiece, only those are read: convert it")


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    """(number, value) of each field of a protobuf message: an int, or bytes."""
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    while at < len(message):
        number, wire = divmod(varint(), 8)
        if wire == 0:
            yield number, varint()
            continue
        size = {1: 8, 2: varint, 5: 4}.get(wire)
        if size is None:
            raise ValueError(f"a field of wire type {wire}")
        size = size if isinstance(size, int) else size()
        if at + size > len(message):
            raise ValueError("it ends early")
        yield number, message[at : at + size]
        at += size
