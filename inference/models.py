"""A model by where it is, a run folder or Hugging Face's layout, with its tokenizer. What is wrong with
names, tokenizer or configuration is said before any weights are read.

    found = find_model(out_dir="out-quickstart")                 # or model="Qwen/Qwen3-0.6B"
    model, tokenizer = found.load(device, torch.bfloat16), load_tokenizer(found.tokenizer)
"""

from dataclasses import dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any

import torch

from base.errors import InputError, MissingFile, reading
from base.files import entry, sha256_of
from inference.ends import Ends, declared_ends, tokenizer_ends, unique
from inference.hf import load_hf
from inference.hf.configs import read_config
from inference.hf.reading import find_folder
from inference.text import check_fits
from model_builder import ConfigurableGPT
from model_config import ModelArchitectureConfig
from tokenization.tokenizers import find_tokenizer
from training import checkpoint
from training.state import RunState


@dataclass(frozen=True)
class FoundModel:
    path: Path  # a checkpoint, or a folder of Hugging Face's layout
    architecture: ModelArchitectureConfig
    tokenizer: str | Path  # a name, folder or hub id
    eot_id: int | None  # goes between documents
    is_run: bool
    begins_with_bos: bool  # where the tokenizer has one: our shards have none, what was trained elsewhere may
    declared: Ends  # by the model's folder or the run's

    def ends(self, tokenizer: Any) -> Ends:
        """All that ends a text of this model; `tokenizer` is what load_tokenizer made of its own."""
        of_tokenizer = tokenizer_ends(find_tokenizer(self.tokenizer), self.tokenizer, tokenizer)
        ids = unique([self.eot_id, *of_tokenizer, *self.declared.ids])
        drawable = tuple(i for i in ids if 0 <= i < self.architecture.vocab_size)
        return Ends(drawable, self.declared.strings)

    def load(self, device: torch.device, dtype: torch.dtype) -> ConfigurableGPT:
        """The weights in `dtype` on `device`, ready for inference. Raises what load_hf and load_weights
        raise."""
        if not self.is_run:
            return load_hf(self.path, self.architecture, device, dtype).eval()
        with torch.device("meta"):
            model = ConfigurableGPT(self.architecture)
        model.to_empty(device=device)
        checkpoint.load_weights(self.path, model)
        model.to(dtype)
        model.fill_tables()
        return model.eval()


def find_model(
    out_dir: str = "out",
    step: int | None = None,
    model: str | None = None,
    tokenizer: str | None = None,
    context_length: int | None = None,
) -> FoundModel:
    """The newest checkpoint of out_dir that verifies, or that of `step`; where `model` is given, that
    folder or hub id instead. `context_length` shortens block_size, and with it the tables. Raises
    InputError."""
    if model is not None:
        path = find_folder(model)
        _, architecture = read_config(path)
        found = find_tokenizer(tokenizer or path)
        check_fits(found, architecture.vocab_size)
        architecture = shortened(architecture, context_length)
        return FoundModel(
            path, architecture, tokenizer or path, found.eot_id,
            is_run=False, begins_with_bos=True, declared=declared_ends(path),
        )  # fmt: skip
    path = checkpoint.find_checkpoint(out_dir, step)
    if path is None:
        raise MissingFile(
            f"no checkpoint in {out_dir}/checkpoints: train one, or pass --out_dir=... or --model=..."
        )
    state, saved = checkpoint.load_state(path)
    architecture = shortened(ModelArchitectureConfig.from_dict(saved["model"]), context_length)
    if tokenizer is None:
        check_own_tokenizer(out_dir, state)
    else:
        check_fits(find_tokenizer(tokenizer), architecture.vocab_size)
    eot_id = entry(state.data, "eot_id", (int, NoneType), path / "state.json", "copy the run again")
    return FoundModel(
        path, architecture, tokenizer or out_dir, eot_id,
        is_run=True, begins_with_bos=not state.has_data, declared=declared_ends(out_dir),
    )  # fmt: skip


def check_own_tokenizer(out_dir: str | Path, state: RunState) -> None:
    """Raises InputError where the run folder's tokenizer is another than the data was made with."""
    file = Path(out_dir) / "tokenizer.json"
    where, again = f"a checkpoint of {out_dir}", "copy the run again, or pass --tokenizer="
    recorded = entry(state.data, "tokenizer", (dict, NoneType), where, again)
    if not recorded or not file.is_file():
        return
    with reading(file):
        digest = sha256_of(file)
    if digest != entry(recorded, "sha256", str, where, again):
        name = entry(recorded, "name", str, where, again)
        raise InputError(
            f"{file} is not {name!r}, with which the run's data was made: copy that, or pass --tokenizer="
        )


def shortened(architecture: ModelArchitectureConfig, context_length: int | None) -> ModelArchitectureConfig:
    if context_length is None:
        return architecture
    if context_length < 1:
        raise InputError(f"context_length={context_length} must be at least 1")
    if context_length > architecture.block_size:
        raise InputError(
            f"context_length={context_length} exceeds the model's block_size={architecture.block_size}"
        )
    if architecture.position_encoding == "learned":
        raise InputError(f"context_length={context_length}: learned positions cannot be cut, leave it out")
    return replace(architecture, block_size=context_length)
