"""A trained run as a folder that transformers, vLLM and the hub read.

    python scripts/export_hf.py --out_dir=out-quickstart --to=exported
    python scripts/export_hf.py --out_dir=out --to=exported --step=2000 --dtype=bfloat16 --tokenizer=qwen3

The run's tokenizer goes with it.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from base import cli, fields
from base.errors import InputError, MissingFile, reading
from base.fields import knob
from base.files import writable_folder
from inference.ends import generation_config
from inference.hf import save_hf
from inference.hf.configs import config_to_hf
from inference.hf.writing import MAX_SHARD_BYTES
from inference.models import check_own_tokenizer
from model_builder import ConfigurableGPT
from model_config import ModelArchitectureConfig
from training import checkpoint


@dataclass(kw_only=True)
class ExportConfig:
    out_dir: str = knob("out", "the run")
    to: str = knob("", "the folder that is written")
    step: int | None = knob(None, "of the checkpoint; none: the newest that verifies")
    dtype: Literal["float32", "bfloat16", "float16"] = knob("float32", "of the weights")
    tokenizer: str | None = knob(None, "a name, folder or hub id; none: the run's own, where it has one")
    max_shard_gb: float = knob(MAX_SHARD_BYTES / 2**30, "most GiB of a file of weights", bounds="(0, inf)")

    def __post_init__(self) -> None:
        fields.check(self)
        if not self.to:
            raise InputError("--to=DIR is missing: the folder to write")


def main(argv: Sequence[str]) -> int:
    return cli.run(argv, __doc__, ExportConfig, export)


def export(config: ExportConfig) -> None:
    to = writable_folder(config.to, "to")
    with reading(to):
        if to.is_dir() and any(to.iterdir()) and not (to / "config.json").is_file():
            raise InputError(f"{to} holds files and no exported model: choose a new folder")
    path = checkpoint.find_checkpoint(config.out_dir, config.step)
    if path is None:
        raise MissingFile(f"no checkpoint in {config.out_dir}/checkpoints: train one, or pass --out_dir=...")
    state, saved = checkpoint.load_state(path)
    architecture = ModelArchitectureConfig.from_dict(saved["model"])
    dtype = getattr(torch, config.dtype)
    config_to_hf(architecture, dtype)  # refuses before the weights are read
    generation = generation_config(config.out_dir)
    if config.tokenizer is None:
        check_own_tokenizer(config.out_dir, state)
    with torch.device("meta"):
        model = ConfigurableGPT(architecture)
    model.to_empty(device="cpu")
    checkpoint.load_weights(path, model)
    own = config.out_dir if (Path(config.out_dir) / "tokenizer.json").is_file() else None
    tokenizer = config.tokenizer or own
    save_hf(model, to, tokenizer, dtype, int(config.max_shard_gb * 2**30), generation)
    beside = (
        f"with the tokenizer of {tokenizer}" if tokenizer else "without a tokenizer: pass --tokenizer=..."
    )
    params = f"{model.get_num_params():,} parameters in {config.dtype}"
    print(f"{to}: {path.name} of {config.out_dir}, {params}, {beside}")


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
