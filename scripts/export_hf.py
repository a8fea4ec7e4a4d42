"""A trained run as a folder that transformers, vLLM and the hub read.

    python scripts/export_hf.py --out_dir=out-quickstart --to=exported
    python scripts/export_hf.py --out_dir=out --to=exported --step=2000 --dtype=bfloat16 --tokenizer=qwen3

The fields of ExportConfig are the flags.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_type_hints

import torch

from base.cli import parse_flags
from base.errors import InputError, MissingFile, input_errors
from base.fields import check
from inference.hf import MAX_SHARD_BYTES, config_to_hf, save_hf
from inference.models import check_own_tokenizer
from model_builder import ConfigurableGPT
from model_config import ModelArchitectureConfig
from training import checkpoint


@dataclass(kw_only=True)
class ExportConfig:
    out_dir: str = "out"  # the run
    to: str = ""  # the folder that is written
    step: int | None = None  # None: the newest checkpoint that verifies
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    tokenizer: str | None = None  # a name, folder or hub id; None: the run's own, where it has one
    max_shard_gb: float = MAX_SHARD_BYTES / 2**30

    def __post_init__(self) -> None:
        check(self)
        if not self.to:
            raise InputError("--to=DIR is missing: the folder to write")
        if not 0 < self.max_shard_gb < float("inf"):
            raise InputError(f"max_shard_gb={self.max_shard_gb} must be positive")


def main(argv: Sequence[str]) -> int:
    logging.basicConfig(format="%(message)s")
    if "--help" in argv or "-h" in argv:
        print(__doc__)
        return 0
    with input_errors():
        words, flags = parse_flags(argv, get_type_hints(ExportConfig))
        if words:
            raise InputError(f"{words[0]!r} is no flag: did you mean --to={words[0]!r}?")
        config = ExportConfig(**flags)
        to = Path(config.to)
        if to.is_dir() and any(to.iterdir()) and not (to / "config.json").is_file():
            raise InputError(f"{to} holds files and no exported model: choose a new folder")
        path = checkpoint.find_checkpoint(config.out_dir, config.step)
        if path is None:
            raise MissingFile(
                f"no checkpoint in {config.out_dir}/checkpoints: train one, or pass --out_dir=..."
            )
        state, saved = checkpoint.load_state(path)
        architecture = ModelArchitectureConfig.from_dict(saved["model"])
        dtype = getattr(torch, config.dtype)
        config_to_hf(architecture, dtype)  # refuses before the weights are read
        if config.tokenizer is None:
            check_own_tokenizer(config.out_dir, state)
        with torch.device("meta"):
            model = ConfigurableGPT(architecture)
        model.to_empty(device="cpu")
        checkpoint.load_weights(path, model)
        tokenizer = config.tokenizer or (
            config.out_dir if (Path(config.out_dir) / "tokenizer.json").is_file() else None
        )
        save_hf(model, to, tokenizer, dtype, int(config.max_shard_gb * 2**30))
    beside = (
        "without a tokenizer: pass --tokenizer=..."
        if tokenizer is None
        else f"with the tokenizer of {tokenizer}"
    )
    print(
        f"{to}: {path.name} of {config.out_dir}, {model.get_num_params():,} parameters in {config.dtype}, {beside}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
