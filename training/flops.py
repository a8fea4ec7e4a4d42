"""What a training step costs, and what a device can do."""

import torch

from model_components import FFNS
from model_config import ModelArchitectureConfig


def matmul_weights(config: ModelArchitectureConfig) -> int:
    """Weights that multiply every token: all linear layers and the output head once, tied or not. The
    embedding lookup multiplies nothing; norms and biases do not count."""
    c = config
    attention = (
        c.n_embd * c.head_dim * (c.n_head + 2 * c.num_key_value_heads) + c.n_head * c.head_dim * c.n_embd
    )
    with torch.device("meta"):
        ffn = sum(p.numel() for p in FFNS[c.ffn_type](c).parameters() if p.dim() > 1)
    return c.n_layer * (attention + ffn) + c.vocab_size * c.n_embd


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
