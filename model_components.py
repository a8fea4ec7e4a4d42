"""The parts of a transformer, and the registries from which model_builder.py picks them by the names in
model_config.py.

Shapes: B sequences, T tokens, C = n_embd, H query heads, K key/value heads, D = head_dim, S tokens attended
to (T plus cache).

What stands here is the mathematics. linear, embed, layer_norm, rms_norm and attend compute what their names
say; operators/ has the faster ways, and a test that each equals the plain one. An entry that is added to a
registry is all that a new choice takes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from model_config import ModelArchitectureConfig
from operators.attention import ATTENTION_BACKENDS, attend, by_blocks, document_mask
from operators.embedding import embed
from operators.linear import Linear
from operators.norm import layer_norm, rms_norm

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

    Mask = Tensor | BlockMask | None
Positions = slice | Tensor  # of the tokens: a slice for all rows, or [B, T]


# Norms and activations


class LayerNorm(nn.LayerNorm):
    """(x - mean) / std * weight + bias over the last dimension (Ba et al. 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)


class RMSNorm(nn.RMSNorm):
    """x / rms(x) * weight over the last dimension (Zhang & Sennrich 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)


NORMS: dict[str, Callable[[int, ModelArchitectureConfig], nn.Module]] = {
    "layernorm": lambda dim, config: LayerNorm(dim, eps=config.norm_eps, bias=config.bias),
    "rmsnorm": lambda dim, config: RMSNorm(dim, eps=config.norm_eps),
}

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
}


# Positions. Each kind adds to the residual stream, or turns queries and keys, or does neither.


class NoPositions(nn.Module):
    """The model knows order by causality alone. The base of the other kinds."""

    def add(self, x: Tensor, positions: Positions) -> Tensor:
        """x [B, T, C] as the first block reads it."""
        return x

    def angles(self, positions: Positions) -> tuple[Tensor, Tensor] | None:
        """cos and sin, [T, D/2] or [B, 1, T, D/2], by which `rotate` turns queries and keys; None: not at
        all."""
        return None

    def fill_tables(self) -> None:
        """Computes what is neither a parameter nor in a checkpoint."""


class LearnedPositions(nn.Embedding, NoPositions):
    """A vector for each position, added to the token's (Radford et al. 2019)."""

    def add(self, x: Tensor, positions: Positions) -> Tensor:
        rows = self.weight[positions] if isinstance(positions, slice) else embed(positions, self.weight)[0]
        return x + rows


@dataclass(frozen=True)
class Llama3Scaling:
    """LLaMA 3.1's stretch of the low frequencies: wavelengths shorter than original / high stay, those
    longer than original / low are stretched by the factor, between them the blend is linear. Source:
    transformers' modeling_rope_utils, _compute_llama3_parameters."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_seq_len: int

    def __call__(self, frequencies: Tensor) -> Tensor:
        turns = self.original_max_seq_len * frequencies / (2 * math.pi)
        blend = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        blend = blend.clamp(0.0, 1.0)
        return blend * frequencies + (1 - blend) * frequencies / self.factor


class RoPEPositionEncoding(NoPositions):
    """Rotary positions (Su et al. 2021) in the half-split layout of LLaMA on Hugging Face: element i of a
    head is rotated together with element i + dim/2, by position * theta^(-2i/dim). The tables are computed
    in fp64 and kept in fp32 whatever the model is cast to."""

    def __init__(
        self,
        dim: int,
        max_seq_len: int,
        theta: float = 10000.0,
        scaling: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.dim, self.max_seq_len, self.theta, self.scaling = dim, max_seq_len, theta, scaling
        shape = (max_seq_len, dim // 2)
        self.register_buffer("cos", torch.empty(shape, dtype=torch.float32), persistent=False)
        self.register_buffer("sin", torch.empty(shape, dtype=torch.float32), persistent=False)
        self.fill_tables()

    def inverse_frequencies(self) -> Tensor:
        """[dim/2] in radians a token, fp64."""
        exponents = torch.arange(0, self.dim, 2, dtype=torch.float64, device="cpu") / self.dim
        frequencies = self.theta**-exponents
        return frequencies if self.scaling is None else self.scaling(frequencies)

    def fill_tables(self) -> None:
        if self.cos.is_meta:
            return
        positions = torch.arange(self.max_seq_len, dtype=torch.float64, device="cpu")
        angles = torch.outer(positions, self.inverse_frequencies())
        self.cos.copy_(angles.cos())
        self.sin.copy_(angles.sin())

    def _apply(self, fn: Callable, recurse: bool = True) -> "RoPEPositionEncoding":
        super()._apply(fn, recurse)
        if self.cos.dtype != torch.float32:  # model.bfloat16() must not round the angles
            self.cos, self.sin = self.cos.float(), self.sin.float()
            self.fill_tables()
        return self

    def angles(self, positions: Positions) -> tuple[Tensor, Tensor]:
        cos, sin = self.cos[positions], self.sin[positions]
        return (cos, sin) if isinstance(positions, slice) else (cos.unsqueeze(1), sin.unsqueeze(1))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, H, T, D] turned by the angles of its positions; computed and returned in fp32."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def rope(config: ModelArchitectureConfig) -> RoPEPositionEncoding:
    c = config
    scaling = None
    if c.rope_scaling == "llama3":
        scaling = Llama3Scaling(
            c.rope_scaling_factor, c.rope_low_freq_factor, c.rope_high_freq_factor, c.rope_original_block_size
        )
    return RoPEPositionEncoding(c.head_dim, c.block_size, c.rope_theta, scaling)


POSITION_ENCODINGS: dict[str, Callable[[ModelArchitectureConfig], NoPositions]] = {
    "learned": lambda config: LearnedPositions(config.block_size, config.n_embd),
    "rope": rope,
    "none": lambda config: NoPositions(),
}


# Attention


def softmax_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, dropout: float = 0.0
) -> Tensor:
    """softmax(q k^T / sqrt(D)) v written out: q [B, H, T, D], k and v [B, K, S, D] -> [B, H, T, D]. mask
    [B, 1, T, S] is True where a query may look; without one query t is token S - T + t and sees the keys up
    to itself. `attend` computes the same faster."""
    B, H, T, D = q.shape
    K, S = k.size(1), k.size(2)
    q = q.reshape(B, K, H // K * T, D)  # the H / K query heads of a group share its keys
    scores = (q * D**-0.5) @ k.transpose(2, 3)  # [B, K, H/K * T, S]
    if mask is not None:
        scores = scores.view(B, K, H // K, T, S).masked_fill(~mask.unsqueeze(2), -math.inf)
    elif T > 1:
        future = torch.full((T, S), -math.inf, dtype=scores.dtype, device=q.device).triu(S - T + 1)
        scores = scores.view(B, K, H // K, T, S) + future
    weights = F.dropout(scores.softmax(dim=-1), dropout)
    return (weights.view(B, K, H // K * T, S).to(v.dtype) @ v).view(B, H, T, D)


ATTENTION_BACKENDS["manual"] = by_blocks(softmax_attention)


def may_look(query: Tensor, key: Tensor, document_start: Tensor | int = 0) -> Tensor:
    """Whether the token in column `query` may look at that in column `key`: at itself and what came before
    it in its document. A sliding window would be one more condition here, `& (key > query - window)`."""
    return (key <= query) & (key >= document_start)


def attention_mask(
    config: ModelArchitectureConfig,
    training: bool,
    document_starts: Tensor | None,
    kv_cache: "KVCache | None",
) -> "Mask":
    """Made once for all blocks. None stands for plain causality, which every backend has built in."""
    if document_starts is not None:
        dropout = config.dropout if training else 0.0
        return document_mask(document_starts, may_look, config.attention_backend, config.head_dim, dropout)
    if kv_cache is not None and kv_cache.positions is not None:
        slots = torch.arange(kv_cache.max_tokens, device=kv_cache.positions.device)
        return may_look(kv_cache.positions[:, None, None, None], slots)  # [B, 1, 1, S]
    return None


class KVCache:
    """The keys and values of every layer, allocated once: 2 x n_layer x [B, K, max_tokens, D]; slot i holds
    position i.

    At first all rows hold `length` tokens, and every call of the model appends as many to each. With
    `set_positions` each row has its own end, kept on the device, and takes one token a call: prompts of
    different lengths are prefilled together, padded on the right, and the padding is overwritten or masked.
    No shape depends on how far the rows are, so such a step compiles once."""

    def __init__(
        self,
        config: ModelArchitectureConfig,
        B: int,
        max_tokens: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        shape = (B, config.num_key_value_heads, max_tokens, config.head_dim)
        self.max_tokens = max_tokens
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.length = 0  # tokens held; the model moves it on after its last layer
        self.positions: Tensor | None = None  # [B] of each row's next token; the caller moves them on

    def set_positions(self, positions: Tensor) -> None:
        self.positions = positions

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Appends k, v [B, K, T, D] to what is there and returns all of it, [B, K, S, D]; with positions S
        is max_tokens."""
        keys, values = self.keys[layer], self.values[layer]
        if self.positions is not None:
            slots = self.positions[:, None, None, None].expand(-1, k.size(1), 1, k.size(3))
            keys.scatter_(2, slots, k)
            values.scatter_(2, slots, v)
            return keys, values
        end = self.length + k.size(2)
        assert end <= keys.size(2), (end, keys.size(2))
        keys[:, :, self.length : end] = k
        values[:, :, self.length : end] = v
        return keys[:, :, :end], values[:, :, :end]


class Attention(nn.Module):
    """Causal self-attention with H query heads that share K heads of keys and values."""

    def __init__(self, config: ModelArchitectureConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.n_head, self.n_kv_head, self.head_dim = (
            config.n_head,
            config.num_key_value_heads,
            config.head_dim,
        )
        self.backend, self.dropout = config.attention_backend, config.dropout
        # One matmul for queries, keys and values; rows in this order: H heads of q, K of k, K of v
        self.qkv = Linear(config.n_embd, (self.n_head + 2 * self.n_kv_head) * self.head_dim, bias=config.bias)
        self.out = Linear(self.n_head * self.head_dim, config.n_embd, bias=config.bias)
        norm = NORMS[config.normalization]
        self.q_norm = norm(self.head_dim, config) if config.qk_norm else nn.Identity()
        self.k_norm = norm(self.head_dim, config) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor] | None,
        kv_cache: KVCache | None = None,
        mask: "Mask" = None,
    ) -> Tensor:
        B, T, C = x.shape
        heads = self.qkv(x).view(B, T, -1, self.head_dim)  # [B, T, H + 2K, D]
        q, k, v = heads.split((self.n_head, self.n_kv_head, self.n_kv_head), dim=2)
        q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)  # [B, H or K, T, D]
        if angles is not None:
            q, k = rotate(q, *angles), rotate(k, *angles)
        q, k = q.to(v.dtype), k.to(v.dtype)
        if kv_cache is not None:
            k, v = kv_cache.update(self.layer, k, v)  # [B, K, S, D]
        y = attend(q, k, v, mask, self.backend, self.dropout if self.training else 0.0)  # [B, H, T, D]
        return self.out(y.transpose(1, 2).reshape(B, T, -1))


# Feed-forward networks


class StandardFFN(nn.Module):
    """down(act(up(x)))"""

    def __init__(self, config: ModelArchitectureConfig) -> None:
        super().__init__()
        self.up = Linear(config.n_embd, config.d_ff, bias=config.bias)
        self.down = Linear(config.d_ff, config.n_embd, bias=config.bias)
        self.act = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.act(self.up(x)))


class SwiGLU(nn.Module):
    """down(act(gate(x)) * up(x)) (Shazeer 2020); gate and up are one matmul, gate's rows first."""

    def __init__(self, config: ModelArchitectureConfig) -> None:
        super().__init__()
        self.gate_up = Linear(config.n_embd, 2 * config.d_ff, bias=config.bias)
        self.down = Linear(config.d_ff, config.n_embd, bias=config.bias)
        self.act = ACTIVATIONS[config.activation]

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(self.act(gate) * up)


FFNS: dict[str, Callable[[ModelArchitectureConfig], nn.Module]] = {"standard": StandardFFN, "swiglu": SwiGLU}
