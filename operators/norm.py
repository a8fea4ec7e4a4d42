"""Norms over the last dimension, in the type of what is normalised; their sums are taken in fp32 either
way."""

import torch
import torch.nn.functional as F
from torch import Tensor


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / std * weight + bias: x [..., D], weight and bias [D]."""
    # Sharded blocks have their weights in bf16 beside a stream in fp32, which torch's kernel for the CPU
    # refuses
    if weight.dtype == torch.bfloat16 and x.dtype == torch.float32:
        weight, bias = weight.float(), None if bias is None else bias.float()
    return F.layer_norm(x, weight.shape, weight, bias, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / rms(x) * weight: x [..., D], weight [D]."""
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)  # torch fuses only equal types
