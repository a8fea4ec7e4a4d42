"""What a training step costs."""

import functools
from typing import Any

import torch

from model_builder import Block
from model_config import ModelArchitectureConfig


def matmul_weights(config: ModelArchitectureConfig) -> int:
    """Weights that multiply every token: all matrices of the blocks, and the output head once, tied or not.
    The embedding lookup multiplies nothing; norms and biases do not count."""
    fields = vars(config) | {"n_layer": 1, "vocab_size": 1}  # on which a block does not depend
    return config.n_layer * block_weights(tuple(fields.items())) + config.vocab_size * config.n_embd


@functools.cache
def block_weights(fields: tuple[tuple[str, Any], ...]) -> int:
    """Elements of the matrices of a block with these fields, from the block itself."""
    with torch.device("meta"):
        block = Block(ModelArchitectureConfig(**dict(fields)), layer=0)
    return sum(p.numel() for p in block.parameters() if p.dim() == 2)


def flops_per_token(
    config: ModelArchitectureConfig, T: int | None = None, full_attention: bool = False
) -> float:
    """FLOPs to train on one token at sequences of T tokens (default block_size), forward and backward:

        6 N_matmul + 6 L n_head head_dim T

    Two FLOPs a multiply-add, and the backward pass is twice the forward (Kaplan et al. 2020, Chowdhery et
    al. 2022, appendix B). Attention has two matmuls (q k^T and weights v) of 2 n_head head_dim T FLOPs a
    token each; a causal one needs half: 3 x 2 x 2 / 2 = 6. `full_attention=True` is the convention that
    does not halve (12). Softmax, norms and the optimizer are left out: below 1 % at the sizes of
    interest."""
    c = config
    T = c.block_size if T is None else T
    return 6 * matmul_weights(c) + (12 if full_attention else 6) * c.n_layer * c.n_head * c.head_dim * T
