"""A tiny model of any choices."""

import torch

from model_config import get_preset_config

CPU = torch.device("cpu")

TINY = dict(
    n_layer=2,
    n_head=4,
    n_embd=16,
    num_key_value_heads=2,
    head_dim=4,
    d_ff=24,
    block_size=12,
    vocab_size=31,
    init_std=0.2,
)


def tiny(preset="qwen3", **fields):
    return get_preset_config(
        preset, **TINY | dict(num_key_value_heads=4 if preset in ("gpt2", "llama2") else 2) | fields
    )


def random_ids(B, T, vocab_size=31, seed=0):
    return torch.randint(vocab_size, (B, T), generator=torch.Generator().manual_seed(seed))
