"""Weights to Hugging Face: a folder that transformers, vLLM and load_hf read."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from base.errors import InputError, writing
from base.files import fsync, read_json, write_json
from inference.chat import token_text
from inference.ends import GENERATION, ids_in, tokenizer_ends, unique
from inference.hf.configs import config_to_hf
from inference.hf.families import FAMILIES
from inference.hf.family import Family, as_hf
from inference.text import check_fits
from model_builder import ConfigurableGPT
from model_config import ModelArchitectureConfig
from tokenization.tokenizers import find_tokenizer, load_tokenizer, save_tokenizer

MAX_SHARD_BYTES = 2 << 30


@torch.no_grad()
def save_hf(
    model: ConfigurableGPT,
    folder: str | Path,
    tokenizer: Any = None,
    dtype: torch.dtype = torch.float32,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    generation: Mapping[str, Any] | None = None,
) -> Path:
    """Writes config.json, generation_config.json, the weights in `dtype` and the tokenizer's files into
    folder, in the layout that transformers and load_hf read. `tokenizer` is a name, folder or hub id, or an
    object with save_pretrained; `generation` what the model brought along for generation_config.json
    (inference/ends.py). All that ends a text, by any of these, is in its eos_token_id.

    Shard by shard, so that at most max_shard_bytes of weights are held twice. Every file is complete before
    the first one appears in folder. Raises InputError, before anything is written, for an architecture that
    no class of transformers can express, naming the choices in the way, for an embedding with fewer rows
    than the tokenizer has tokens, and what find_tokenizer raises."""
    hf_config = config_to_hf(model.config, dtype)
    folder = Path(folder).absolute()
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise InputError(f"{folder} is a file: choose a folder")
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        with writing(folder):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        ids = write_tokenizer(tokenizer, partial, model.config) if tokenizer is not None else SpecialIds()
        generation = with_special_ids(generation or {"do_sample": False}, ids, model.config.vocab_size)
        hf_config |= {name: single(generation[name]) for name in SpecialIds().named()}
        with writing(folder):
            write_json(partial / GENERATION, generation)
        write_weights(model, FAMILIES[hf_config["model_type"]], partial, dtype, max_shard_bytes)
        with writing(folder):
            write_json(partial / "config.json", hf_config)
            move_all(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


class SpecialIds(NamedTuple):
    """Of a tokenizer; `ends` are all that end a text, that of a document first."""

    bos: int | None = None
    pad: int | None = None
    ends: tuple[int, ...] = ()

    def named(self) -> dict[str, Any]:
        return {"bos_token_id": self.bos, "pad_token_id": self.pad, "eos_token_id": list(self.ends) or None}


def with_special_ids(generation: Mapping[str, Any], ids: SpecialIds, vocab_size: int) -> dict[str, Any]:
    """generation_config.json with the tokenizer's ids beside those that it has."""
    own = {name: i for name, i in generation.items() if i is not None}
    ends = unique([*ids.ends, *ids_in(generation, GENERATION)])
    drawable = [i for i in ends if 0 <= i < vocab_size]
    return ids.named() | own | {"eos_token_id": drawable or None}


def single(ids: Any) -> Any:
    """A list of one as the one: config.json has a list of ends only where there are several."""
    return ids[0] if isinstance(ids, list) and len(ids) == 1 else ids


def move_all(partial: Path, folder: Path) -> None:
    """Moves the files of an export, all of which are complete, in place of an earlier export; config.json
    comes last."""
    written = [path for path in partial.rglob("*") if path.is_file()]
    written.sort(key=lambda path: path.name == "config.json")
    for path in written:
        path.chmod((partial / "config.json").stat().st_mode)  # safetensors writes for the owner alone
        fsync(path)
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / "model.safetensors.index.json"
    for stale in [folder / "config.json", *folder.glob("model*.safetensors"), index]:
        stale.unlink(missing_ok=True)
    for path in written:
        place = folder / path.relative_to(partial)
        place.parent.mkdir(exist_ok=True)  # additional_chat_templates/
        path.replace(place)


def write_weights(
    model: ConfigurableGPT, family: Family, folder: Path, dtype: torch.dtype, max_shard_bytes: int
) -> None:
    """model.safetensors, or shards and their index where it would be larger than max_shard_bytes."""
    ours = dict(model.named_parameters())
    if family.fixed.get("bias") and not model.config.bias:  # theirs cannot be left out, and zeros add nothing
        inside = {name: p for name, p in ours.items() if name.startswith(("blocks.", "final_norm."))}
        ours |= {name.removesuffix("weight") + "bias": p.new_zeros(p.size(0)) for name, p in inside.items()}
    views = {n: v for name, p in ours.items() for n, v in as_hf(name, p, family, model.config).items()}
    shards: list[list[str]] = [[]]
    size = total = 0
    for name, view in views.items():
        nbytes = view.numel() * dtype.itemsize
        if shards[-1] and size + nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size, total = size + nbytes, total + nbytes
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        files = ["model.safetensors"]
    for file, names in zip(files, shards, strict=True):
        tensors = {name: views[name].detach().to("cpu", dtype).contiguous() for name in names}
        try:
            with writing(folder / file):
                save_file(tensors, folder / file, metadata={"format": "pt"})
        except SafetensorError as error:  # which a full disk is to the package
            raise InputError(f"{folder / file} cannot be written ({error}): choose another place") from error
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        with writing(folder):
            write_json(folder / "model.safetensors.index.json", index)


def write_tokenizer(tokenizer: Any, folder: Path, config: ModelArchitectureConfig) -> SpecialIds:
    """The tokenizer's files into folder."""
    if hasattr(tokenizer, "save_pretrained"):
        with writing(folder):
            tokenizer.save_pretrained(folder)
        found = find_tokenizer(folder)
    else:
        found = save_tokenizer(tokenizer, folder)
    check_fits(found, config.vocab_size)
    path = folder / "tokenizer_config.json"
    # A tokenizer.json alone does not tell transformers which class reads it, nor what ends a text
    fields = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": found.eot_token,
        "pad_token": found.eot_token,
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.block_size,
    }
    fields |= read_json(path) if path.is_file() else {}
    with writing(folder):
        write_json(path, fields)
    ids = {token["content"]: token["id"] for token in json.loads(found.json)["added_tokens"]}
    bos, pad = (
        ids.get(token_text(fields[name], name, path.name)) if fields.get(name) else None
        for name in ("bos_token", "pad_token")
    )
    return SpecialIds(bos, pad, tokenizer_ends(find_tokenizer(folder), folder, load_tokenizer(folder)))
