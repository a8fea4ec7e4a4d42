"""Weights from Hugging Face: config.json and safetensors are all that is ever opened, no pickle, no remote
code."""

import os
import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from base.errors import InputError, MissingFile, require
from base.files import read_json, size_of
from base.text import brief
from inference.hf.configs import check_same_weights, read_config
from inference.hf.families import FAMILIES
from inference.hf.family import Family, as_hf
from model_builder import ConfigurableGPT, initial_matrix
from model_config import ModelArchitectureConfig

# Of safetensors; the others are quantised, with scales that we do not read
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")


# Parameters with a row for each token
OF_VOCABULARY = ("token_embedding.weight", "lm_head.weight")


class Rows(NamedTuple):
    """Of a model whose vocabulary changes: the rows old_ids [N] of what was become the rows new_ids [N], and
    the others are initial weights of `seed`."""

    old_ids: Tensor
    new_ids: Tensor
    seed: int

    def moved(self, old: Tensor, initial: Tensor) -> Tensor:
        """old [V, C], initial [V', C] -> [V', C]. An id beyond the rows of either stays out."""
        there = (self.old_ids < old.size(0)) & (self.new_ids < initial.size(0))
        return initial.index_copy(0, self.new_ids[there], old[self.old_ids[there]])


@torch.no_grad()
def load_hf(
    dir_or_id: str | Path,
    wanted: ModelArchitectureConfig | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    into: ConfigurableGPT | None = None,
    assign: Callable[[Tensor, Tensor], object] = Tensor.copy_,
    rows: "Rows | None" = None,
) -> ConfigurableGPT:
    """The model in a folder of Hugging Face's layout, or under a name on its hub, in `dtype` on `device`.

    The weights go over tensor by tensor, so that never more than one of them is held twice. Dropout is 0.0
    whatever config.json says: it belongs to a training run, not to the weights. `wanted` builds that
    architecture instead, which may differ from config.json's only in what no weight depends on. `into` is
    filled instead of a new model, each parameter by assign(parameter, values): the values are whole, the
    parameter may be a shard; with `rows` it may have another vocabulary, of which these rows are the
    file's and the others initial weights. Raises InputError, in one line, for a model_type or an option that we cannot
    express, for a missing, unexpected, misshapen or quantised tensor, for a tied lm_head that differs from
    the embedding, for a damaged file, for weights that are not safetensors, and where the hub gives
    nothing."""
    folder = find_folder(dir_or_id)
    hf_config, config = read_config(folder)
    if wanted is not None:
        free = () if rows is None else ("vocab_size",)
        check_same_weights(wanted, config, folder, free)
        config = replace(wanted, vocab_size=config.vocab_size)
    family = FAMILIES[hf_config["model_type"]]
    with ExitStack() as open_files:
        tensors = open_tensors(folder, family, open_files)
        if config.n_layer > len(tensors):  # else a wrong number could take an hour to build
            raise InputError(
                f"{folder}: config.json has {config.n_layer} layers, its files {len(tensors)} tensors"
            )
        with torch.device("meta"):
            model = ConfigurableGPT(config)
        check_tensors(tensors, model, family, folder)  # before any memory is taken
        model = into if into is not None else model.to(dtype).to_empty(device=device)
        for name, p in model.named_parameters():
            resized = rows is not None and name in OF_VOCABULARY
            shape = (config.vocab_size, *p.shape[1:]) if resized else p.shape
            whole = p if into is None else torch.empty(shape, dtype=dtype)
            for hf_name, view in as_hf(name, whole, family, config).items():
                view.copy_(tensors.pop(hf_name.removeprefix(family.prefix)).read())
            head = tensors.get("lm_head.weight") if config.weight_tying else None  # stored, though tied
            if name == "token_embedding.weight" and head is not None:
                check_tied(head, whole)
            if resized:
                whole = rows.moved(whole, initial_matrix(model.config, name, p.shape, rows.seed).to(dtype))
            if into is not None:
                assign(p, whole)
    model.fill_tables()
    return model


def check_tied(head: "StoredTensor", embedding: Tensor) -> None:
    if not torch.equal(head.read().to(embedding), embedding):
        raise InputError(
            f"{head.path}: lm_head.weight differs from the token embedding, but config.json ties them"
        )


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in an open safetensors file; `read` brings it into memory."""

    name: str
    path: Path
    file: Any

    @property
    def shape(self) -> list[int]:
        return self.file.get_slice(self.name).get_shape()

    @property
    def dtype(self) -> str:
        return self.file.get_slice(self.name).get_dtype()

    def read(self) -> Tensor:
        try:
            return self.file.get_tensor(self.name)
        except SafetensorError as error:
            raise InputError(f"{self.path} is damaged at tensor {self.name}: {error}") from None


def open_tensors(folder: Path, family: Family, open_files: ExitStack) -> dict[str, StoredTensor]:
    """Every tensor of the folder, under its name without the family's prefix. Raises InputError."""
    tensors: dict[str, StoredTensor] = {}
    for path in weight_files(folder):
        size_of(path, "copy the folder again")  # no pipe, which would block
        try:
            file = open_files.enter_context(safe_open(path, framework="pt", device="cpu"))
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is damaged: {error}") from None
        for name in file.keys():  # noqa: SIM118 (not a dict)
            bare = name.removeprefix(family.prefix)
            if bare in tensors:
                raise InputError(f"{path}: tensor {name} is stored twice, also in {tensors[bare].path.name}")
            tensors[bare] = StoredTensor(name, path, file)
    return tensors


def weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the shards that its index names. Raises InputError."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if os.path.lexists(single):
        return [single]
    if not os.path.lexists(index):
        pickles = "; its .bin files are pickles, which are never opened" if any(folder.glob("*.bin")) else ""
        raise InputError(
            f"{folder} needs model.safetensors, or model.safetensors.index.json and its shards{pickles}"
        )
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise InputError(f"{index} is damaged: it has no weight_map")
    for file in shards.values():
        inside = isinstance(file, str) and file.isprintable() and file and file[0] != "/"
        if not inside or ".." in Path(file).parts:
            raise InputError(
                f"{index} is damaged: {brief(file)} in its weight_map is not a file of the folder"
            )
    return [folder / file for file in sorted(set(shards.values()))]


def check_tensors(
    tensors: dict[str, StoredTensor], model: ConfigurableGPT, family: Family, folder: Path
) -> None:
    """Raises InputError unless the file has every tensor of the model, in its shape, and nothing else that
    is a weight."""
    wanted = {}
    for name, p in model.named_parameters():
        wanted |= as_hf(name, p, family, model.config)
    if model.config.weight_tying and "lm_head.weight" in tensors:
        wanted["lm_head.weight"] = model.head_weight
    for hf_name, view in wanted.items():
        stored = tensors.get(hf_name.removeprefix(family.prefix))
        if stored is None:
            raise InputError(f"{folder}: tensor {hf_name} {list(view.shape)} is missing")
        if stored.shape != list(view.shape):
            raise InputError(
                f"{stored.path}: tensor {stored.name} is {stored.shape}, config.json wants {list(view.shape)}"
            )
        if stored.dtype not in FLOAT_DTYPES:
            wanted_types = f"wanted one of {', '.join(FLOAT_DTYPES)}"
            raise InputError(f"{stored.path}: tensor {stored.name} holds {stored.dtype}, {wanted_types}")
    known = {hf_name.removeprefix(family.prefix) for hf_name in wanted}
    for name, stored in tensors.items():
        if name not in known and not re.fullmatch(family.buffers, name):
            what = f"tensor {stored.name} {stored.shape} is unexpected"
            raise InputError(f"{stored.path}: {what}: the model has no such part")


def find_folder(dir_or_id: str | Path) -> Path:
    """The folder itself, or the hub's snapshot of that name, downloaded unless it is in the hub's cache.
    Raises InputError."""
    folder = Path(os.path.expanduser(dir_or_id))
    if os.path.isdir(folder):
        return folder
    if os.path.lexists(folder):
        what = "a file" if os.path.exists(folder) else "a link that leads nowhere"
        raise InputError(f"{dir_or_id} is {what}: pass the folder with config.json and the weights")
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", str(dir_or_id)):  # no name that a hub could know
        raise MissingFile(f"{dir_or_id} is not a folder: check the path")
    hub = require("huggingface_hub", f"{dir_or_id!r} is not a folder; to ask the hub for it")
    # Of a tokenizer also what older folders have in place of tokenizer.json
    wanted = ["*.json", "*.jinja", "merges.txt", "tokenizer.model", "model*.safetensors"]
    try:
        return Path(hub.snapshot_download(str(dir_or_id), allow_patterns=wanted))
    except Exception as error:  # the hub's client fails with its own types, httpx's, OSError and ValueError
        reason = next(iter(str(error).splitlines()), "")
        raise InputError(
            f"{dir_or_id!r} is not a folder, nor could the hub give it: {type(error).__name__}: {reason}"
        ) from None
