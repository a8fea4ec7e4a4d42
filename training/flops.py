"""What a training step costs, and what a device can do."""

import re

from model_config import ModelArchitectureConfig

# Dense bf16 peak in FLOP/s, by a pattern of the name that the driver reports. Vendors also print rates with 2:4 sparsity,
# twice as high (H200 1979, B200 4500 TFLOP/s): not these. NVL, laptop and regional variants are other chips: not in the table.
PEAK_FLOPS_PER_S: tuple[tuple[str, float], ...] = (
    (r"\bGB200\b", 2500e12),  # NVIDIA GB200 NVL72 datasheet: 5000 sparse
    (r"\bB200\b", 2250e12),  # NVIDIA HGX B200 datasheet: 4500 sparse
    (r"\bH200\b(?! NVL)", 989e12),  # NVIDIA H200 datasheet: 1979 sparse
    (r"\bH100 PCIe", 756e12),  # NVIDIA H100 datasheet: 1513 sparse
    (r"\bH100\b(?! NVL)", 989e12),  # SXM: 1979 sparse
    (r"\bA100\b", 312e12),  # NVIDIA A100 datasheet
    (r"\bL40S\b", 362e12),  # NVIDIA L40S datasheet: 733 sparse
    (r"\bRTX A6000\b", 154.8e12),  # NVIDIA RTX A6000 datasheet: 309.7 sparse
    (r"\bRTX 4090$", 165.2e12),  # NVIDIA Ada whitepaper, FP32 accumulate
)


def matmul_weights(config: ModelArchitectureConfig) -> int:
    """Weights that multiply every token: all linear layers and the output head once, tied or not. The embedding lookup
    multiplies nothing; norms and biases do not count."""
    c = config
    attention = c.n_embd * c.head_dim * (c.n_head + 2 * c.num_key_value_heads) + c.n_head * c.head_dim * c.n_embd
    ffn = (3 if c.ffn_type == "swiglu" else 2) * c.n_embd * c.d_ff
    return c.n_layer * (attention + ffn) + c.vocab_size * c.n_embd


def flops_per_token(config: ModelArchitectureConfig, T: int | None = None, full_attention: bool = False) -> float:
    """FLOPs to train on one token at sequences of T tokens (default block_size), forward and backward:

        6 N_matmul + 6 L n_head head_dim T

    Two FLOPs a multiply-add, and the backward pass is twice the forward (Kaplan et al. 2020, Chowdhery et al. 2022, appendix
    B). Attention has two matmuls (q k^T and weights v) of 2 n_head head_dim T FLOPs a token each; a causal one needs
    half: 3 x 2 x 2 / 2 = 6. `full_attention=True` is the convention that does not halve (12). Softmax, norms and the
    optimizer are left out: below 1 % at the sizes of interest."""
    c = config
    T = c.block_size if T is None else T
    return 6 * matmul_weights(c) + (12 if full_attention else 6) * c.n_layer * c.n_head * c.head_dim * T


def peak_flops_per_s(device_name: str) -> float | None:
    """Dense bf16 peak of the device, or None where it is not in the table: then MFU is n/a, not a guess."""
    return next((peak for pattern, peak in PEAK_FLOPS_PER_S if re.search(pattern, device_name)), None)
