"""How many parameters a model has, without building all its blocks: the second is like every later one."""

from dataclasses import replace

import torch

from model_builder import ConfigurableGPT
from model_config import ModelArchitectureConfig

OUTSIDE = ("token embedding", "position embedding", "head")  # of what model cards call non-embedding


def parameters(c: ModelArchitectureConfig) -> int:
    """All of them; tied weights count once."""
    return sum(parameters_by_part(c).values())


def parameters_by_part(c: ModelArchitectureConfig) -> dict[str, int]:
    """Tied weights count once, as embedding."""
    one, two = (parts_of(replace(c, n_layer=n)) for n in (1, 2))
    return {part: one[part] + (c.n_layer - 1) * (two[part] - one[part]) for part in one}


def parts_of(c: ModelArchitectureConfig) -> dict[str, int]:
    with torch.device("meta"):
        model = ConfigurableGPT(c)
    parts = dict.fromkeys(("token embedding", "position embedding", "attention", "ffn", "norms", "head"), 0)
    for name, p in model.named_parameters():
        part = (
            "token embedding" if name.startswith("token_embedding")
            else "position embedding" if name.startswith("position_embedding")
            else "head" if name.startswith("lm_head")
            else "norms" if "norm" in name
            else "attention" if ".attention." in name
            else "ffn"
        )  # fmt: skip
        parts[part] += p.numel()
    return parts
