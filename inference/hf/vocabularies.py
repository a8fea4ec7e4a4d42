"""A model of Hugging Face as the start of a run: its vocabulary beside that of the data.

The rows of embedding and head belong to tokens by their ids, so that data of another tokenizer would train in
silence, from worse than nothing. It is refused, or, by resize_vocabulary, each token that both have takes its row
along."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from base.errors import InputError, MissingFile
from base.text import brief
from inference.ends import generation_config, save_generation_config
from inference.hf.configs import notes_on_config
from inference.hf.reading import Rows, find_folder, load_hf
from model_builder import ConfigurableGPT
from model_config import ModelArchitectureConfig
from tokenization.from_tiktoken import BYTE_CHARACTERS
from tokenization.tokenizer_files import TokenizerFiles
from tokenization.tokenizers import find_tokenizer
from training.parallel import assign_shard

BYTE_OF = {character: bytes([byte]) for byte, character in BYTE_CHARACTERS.items()}
RESIZE = "--resize_vocabulary=True"


class Start(NamedTuple):
    """What a run takes along besides the weights."""

    notes: list[str]
    generation: dict[str, Any]  # for generation_config.json


class StartFromHF:
    """What build_run calls to fill a model with the weights that init_from='hf:…' names, and what of them the run
    folder gets."""

    def __init__(self, wanted: ModelArchitectureConfig, resize_vocabulary: bool, seed: int) -> None:
        self.wanted, self.resize_vocabulary, self.seed = wanted, resize_vocabulary, seed
        self.generation: dict[str, Any] = {}

    def __call__(self, dir_or_id: str, model: ConfigurableGPT, data_folder: Path) -> list[str]:
        how = self.resize_vocabulary, self.seed, assign_shard
        notes, self.generation = start_from_hf(dir_or_id, model, self.wanted, data_folder, *how)
        return notes

    def save_beside(self, out_dir: Path) -> None:
        save_generation_config(out_dir, self.generation)


def start_from_hf(
    dir_or_id: str,
    into: ConfigurableGPT,
    wanted: ModelArchitectureConfig,
    data_folder: str | Path,
    resize_vocabulary: bool,
    seed: int,
    assign: Callable[[Tensor, Tensor], object] = Tensor.copy_,
) -> Start:
    """Fills a model with the weights of a folder or hub id, to be trained on the data of a folder. Raises
    InputError where the two have different vocabularies and none is to be resized, and what load_hf raises."""
    folder = find_folder(dir_or_id)
    notes = notes_on_config(folder)
    model_tokenizer, data_tokenizer = tokenizer_of(folder), tokenizer_of(data_folder)
    rows = None
    if model_tokenizer is None or data_tokenizer is None:
        without, other = (folder, data_folder) if model_tokenizer is None else (data_folder, folder)
        if resize_vocabulary:
            raise InputError(
                f"resize_vocabulary=True needs both tokenizers, and {without} has none: add its files"
            )
        notes.append(f"{without} has no tokenizer: whether its ids are those of {other} is not checked")
    else:
        moved = ids_that_differ(model_tokenizer, data_tokenizer)
        if resize_vocabulary:
            rows = shared_rows(model_tokenizer, data_tokenizer, seed)
            kept, total = len(rows.new_ids), wanted.vocab_size
            notes.append(
                f"resize_vocabulary=True: {kept:,} rows are those of the same tokens in {folder}, the other "
                f"{total - kept:,} of {total:,} are initial weights"
            )
        elif moved:
            raise InputError(difference(moved, dir_or_id, model_tokenizer, data_folder, data_tokenizer))
        elif more := len(ids_of(model_tokenizer)) - len(ids_of(data_tokenizer)):
            notes.append(
                f"{more:,} tokens of {folder} are not in the tokenizer of {data_folder}, which the run takes"
            )
    load_hf(folder, wanted, into=into, assign=assign, rows=rows)
    new_ids = None if rows is None else dict(zip(rows.old_ids.tolist(), rows.new_ids.tolist(), strict=True))
    return Start(notes, generation_config(folder, new_ids))


def tokenizer_of(folder: str | Path) -> TokenizerFiles | None:
    """None where there is none. Raises InputError where it is damaged."""
    try:
        return find_tokenizer(Path(folder))
    except MissingFile:
        return None


def ids_that_differ(model: TokenizerFiles, data: TokenizerFiles) -> dict[str, int]:
    """The tokens of the data, with their ids, that the model has under another id or not at all."""
    if model.sha256 == data.sha256:
        return {}
    theirs = ids_of(model)
    return {token: i for token, i in ids_of(data).items() if theirs.get(token) != i}


def ids_of(found: TokenizerFiles) -> dict[str, int]:
    """{token: id} of the vocabulary and the tokens that were added, as tokenizer.json spells them."""
    record = json.loads(found.json)
    tokens = record["model"]["vocab"]
    base = {pair[0]: i for i, pair in enumerate(tokens)} if isinstance(tokens, list) else tokens
    return {**base, **{token["content"]: token["id"] for token in record["added_tokens"]}}


def difference(
    moved: dict[str, int],
    dir_or_id: str,
    model: TokenizerFiles,
    data_folder: str | Path,
    data: TokenizerFiles,
) -> str:
    token, i = next(iter(moved.items()))
    there = ids_of(model).get(token)
    there = "no id" if there is None else f"id {there}"
    return (
        f"init_from: {dir_or_id} has another vocabulary than the data in {data_folder}: {len(moved):,} of its "
        f"{data.length:,} ids mean something else, as {brief(token)}, which has {there} there and {i} here: prepare "
        f"the data with --tokenizer={dir_or_id}, or pass {RESIZE}, which keeps the rows of the "
        f"{len(shared_rows(model, data, 0).new_ids):,} tokens that both have"
    )


def shared_rows(model: TokenizerFiles, data: TokenizerFiles, seed: int) -> Rows:
    """The ids of the tokens that both have: added ones of the same content, others of the same bytes, whether
    a tokenizer writes a space as Ġ or as ▁."""
    theirs, ours = meanings(model), meanings(data)
    shared = [meaning for meaning in ours if meaning in theirs]
    old, new = (torch.tensor([ids[m] for m in shared], dtype=torch.long) for ids in (theirs, ours))
    return Rows(old, new, seed)


def meanings(found: TokenizerFiles) -> dict[tuple[str, object], int]:
    """{what a token stands for: id}; of two tokens that stand for the same the first counts."""
    record = json.loads(found.json)
    added = {token["id"]: token["content"] for token in record["added_tokens"]}
    meaning = meaning_of(record)
    known: dict[tuple[str, object], int] = {("added", content): i for i, content in added.items()}
    # Single bytes last: <0x41> stands for what A stands for, and A is what a text has
    for token, i in sorted(ids_of(found).items(), key=lambda entry: (entry[0].startswith("<0x"), entry[1])):
        if i not in added:
            known.setdefault(meaning(token), i)
    return known


def meaning_of(record: dict[str, Any]) -> Callable[[str], tuple[str, object]]:
    """For the kind of a tokenizer.json: byte-level, with spaces as ▁, or another, whose tokens are compared as
    they are spelled."""
    kind = brief(record["model"].get("type"))
    steps = [step for part in ("pre_tokenizer", "decoder") for step in steps_of(record.get(part))]
    if "ByteLevel" in steps:

        def byte_level(token: str) -> tuple[str, object]:
            parts = [BYTE_OF.get(character) for character in token]
            return (kind, token) if None in parts else ("bytes", b"".join(parts))

        return byte_level
    if record["model"].get("byte_fallback") or "Metaspace" in steps:

        def with_fallback(token: str) -> tuple[str, object]:
            if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
                try:
                    return "bytes", bytes.fromhex(token[3:5])
                except ValueError:
                    pass
            return "bytes", token.replace("\u2581", " ").encode(errors="surrogatepass")

        return with_fallback
    return lambda token: (kind, token)


def steps_of(part: Any) -> list[str]:
    """The types of a step of tokenizer.json and of those in it."""
    types, waiting = [], [part]
    while waiting:
        step = waiting.pop()
        if isinstance(step, dict):
            types.append(step.get("type"))
            for inner in (step.get("pretokenizers"), step.get("decoders")):
                waiting += inner if isinstance(inner, list) else []
    return types
