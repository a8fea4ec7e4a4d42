"""The parts of a transformer, and the registries from which model_builder.py picks them by the names in
model_config.py.

Shapes: B sequences, T tokens, C = n_embd, H query heads, K key/value heads, D = head_dim, S tokens attended
to (T plus cache)."""

import functools
import importlib
import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from model_config import ModelArchitectureConfig
from operators.linear import Linear

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

NORMS: dict[str, Callable[[int, ModelArchitectureConfig], nn.Module]] = {
    "layernorm": lambda dim, config: LayerNorm(dim, eps=config.norm_eps, bias=config.bias),
    "rmsnorm": lambda dim, config: RMSNorm(dim, eps=config.norm_eps),
}

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
    "relu": F.relu,
}


class LayerNorm(nn.LayerNorm):
    """(x - mean) / std * weight + bias over the last dimension, in the type of x (Ba et al. 2016)."""

    def forward(self, x: Tensor) -> Tensor:
        # Sharded blocks have their weights in bf16 beside a stream in fp32, which torch's kernel for the
        # CPU refuses
        if self.weight.dtype == torch.bfloat16 and x.dtype == torch.float32:
            bias = None if self.bias is None else self.bias.float()
            return F.layer_norm(x, self.normalized_shape, self.weight.float(), bias, self.eps)
        return super().forward(x)


class RMSNorm(nn.RMSNorm):
    """x / rms(x) * weight over the last dimension, in the type of x (Zhang & Sennrich 2019)."""

    def forward(self, x: Tensor) -> Tensor:
        # torch fuses only equal types; the sum of squares is taken in fp32 inside either way
        return F.rms_norm(x, self.normalized_shape, self.weight.to(x.dtype), self.eps)


class RoPE(nn.Module):
    """Rotary positions (Su et al. 2021) in the half-split layout of LLaMA on Hugging Face: element i of a
    head is rotated together with element i + D/2. The tables are computed in fp64 and kept in fp32 whatever
    the model is cast to."""

    def __init__(self, config: ModelArchitectureConfig) -> None:
        super().__init__()
        self.config = config
        shape = (config.block_size, config.head_dim // 2)
        self.register_buffer("cos", torch.empty(shape, dtype=torch.float32), persistent=False)
        self.register_buffer("sin", torch.empty(shape, dtype=torch.float32), persistent=False)
        self.fill_tables()

    def inverse_frequencies(self) -> Tensor:
        """[D/2] in radians a token, fp64."""
        c = self.config
        exponents = torch.arange(0, c.head_dim, 2, dtype=torch.float64, device="cpu") / c.head_dim
        freq = c.rope_theta**-exponents
        if c.rope_scaling == "llama3":
            # Wavelengths shorter than original/high stay, longer than original/low are stretched by the
            # factor, between them a linear blend: transformers'
            # modeling_rope_utils._compute_llama3_parameters.
            turns = c.rope_original_block_size * freq / (2 * math.pi)
            blend = (turns - c.rope_low_freq_factor) / (c.rope_high_freq_factor - c.rope_low_freq_factor)
            blend = blend.clamp(0.0, 1.0)
            freq = blend * freq + (1 - blend) * freq / c.rope_scaling_factor
        return freq

    def fill_tables(self) -> None:
        if self.cos.is_meta:
            return
        positions = torch.arange(self.config.block_size, dtype=torch.float64, device="cpu")
        angles = torch.outer(positions, self.inverse_frequencies())
        self.cos.copy_(angles.cos())
        self.sin.copy_(angles.sin())

    def _apply(self, fn: Callable, recurse: bool = True) -> "RoPE":
        super()._apply(fn, recurse)
        if self.cos.dtype != torch.float32:  # model.bfloat16() must not round the angles
            self.cos, self.sin = self.cos.float(), self.sin.float()
            self.fill_tables()
        return self

    def forward(self, start: int, T: int) -> tuple[Tensor, Tensor]:
        """cos and sin [T, D/2] of the positions from `start` on."""
        return self.cos[start : start + T], self.sin[start : start + T]

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [B, 1, T, D/2] of positions [B, T]."""
        return self.cos[positions].unsqueeze(1), self.sin[positions].unsqueeze(1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x [B, H, T, D] turned by the angles of its positions; computed and returned in fp32."""
    a, b = x.float().chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


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
        self.keys = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.values = [torch.zeros(shape, device=device, dtype=dtype) for _ in range(config.n_layer)]
        self.length = 0  # tokens held; the model moves it on after its last layer
        self.positions: Tensor | None = None  # [B] of each row's next token; the caller moves them on

    def set_positions(self, positions: Tensor) -> None:
        self.positions = positions

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Adds k, v [B, K, T, D] behind what is there and returns all of it, [B, K, S, D]; with positions S
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


# Attention backends: (q [B, H, T, D], k and v [B, K, S, D], dropout probability) -> [B, H, T, D]. Always
# causal: query t is token S - T + t and sees the keys up to itself. K divides H; no backend repeats keys or
# values in memory. sdpa and manual take a mask [B, 1, T, T] besides, True where query t may look, which
# then says all: causality is part of it.


def causal_mask(T: int, S: int, device: torch.device) -> Tensor:
    """[T, S], True where query t may look."""
    return torch.ones(T, S, dtype=torch.bool, device=device).tril(S - T)


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, dropout: float, mask: Tensor | None = None) -> Tensor:
    (B, H, T, D), (K, S) = q.shape, k.shape[1:3]
    if (
        T == 1 and mask is None
    ):  # sees everything: the H / K queries of a group go as if they were tokens, 2.5 times as fast
        return F.scaled_dot_product_attention(q.reshape(B, K, H // K, D), k, v, dropout_p=dropout).view(
            B, H, 1, D
        )
    causal = mask is None and T == S  # then is_causal is exact
    if mask is None and T < S:
        mask = causal_mask(T, S, q.device)
    grouped = q.size(1) != k.size(1)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, enable_gqa=grouped
    )


CAUSAL_ROWS = (
    128  # attend_manual's queries at a time, at least: those before the last ones need not meet the last keys
)
CAUSAL_BLOCKS = 8  # and at most so many blocks, which leave out 7 / 16 of the scores


def attend_manual(q: Tensor, k: Tensor, v: Tensor, dropout: float, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v written out: the reference, and the fastest on CPU for short sequences.
    Without a mask queries go in blocks that see the keys up to their last one, which leaves out most of the
    upper half of the scores."""
    T, S = q.size(2), k.size(2)
    if mask is not None or T <= CAUSAL_ROWS:
        return attend_block(q, k, v, dropout, mask)
    blocks = []
    rows = max(CAUSAL_ROWS, -(-T // CAUSAL_BLOCKS))
    for start in range(0, T, rows):
        end = min(start + rows, T)
        seen = S - T + end
        blocks.append(attend_block(q[:, :, start:end], k[:, :, :seen], v[:, :, :seen], dropout, None))
    return torch.cat(blocks, dim=2)


def attend_block(q: Tensor, k: Tensor, v: Tensor, dropout: float, mask: Tensor | None) -> Tensor:
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


def attend_one(q: Tensor, k: Tensor, v: Tensor, positions: Tensor) -> Tensor:
    """The one query of each row, q [B, H, 1, D], against the slots of a cache up to its own position: k, v
    [B, K, S, D]. Sums of products in fp32, which a compiler fuses into one pass over keys and one over
    values."""
    B, H, _, D = q.shape
    K, S = k.size(1), k.size(2)
    q = q.view(B, K, H // K, 1, D).float() * D**-0.5
    scores = (q * k[:, :, None].float()).sum(-1)  # [B, K, H/K, S]
    unseen = torch.arange(S, device=q.device) > positions[:, None, None, None]
    weights = scores.masked_fill(unseen, -math.inf).softmax(-1)
    return (weights[..., None] * v[:, :, None].float()).sum(-2).to(v.dtype).view(B, H, 1, D)


def document_mask(starts: Tensor, config: ModelArchitectureConfig, training: bool) -> "Tensor | BlockMask":
    """What keeps each token of starts [B, T] (int, the column where its document begins) to its own
    document and the past: on CUDA a BlockMask for flex attention, which skips the blocks between documents
    and keeps its shape, so that nothing is compiled again for another batch; elsewhere, and for what flex
    has not (dropout, narrow heads) or was not asked to do (manual), bool [B, 1, T, T]."""
    B, T = starts.shape
    plain = (
        config.attention_backend == "manual"
        or (training and config.dropout)
        or config.head_dim < FLEX_MIN_HEAD_DIM
    )
    if starts.device.type != "cuda" or plain:
        same = starts.unsqueeze(2) == starts.unsqueeze(1)  # [B, T, T]
        return (same & causal_mask(T, T, starts.device)).unsqueeze(1)
    return flex_document_mask(starts)


def flex_document_mask(starts: Tensor) -> "BlockMask":
    from torch.nn.attention.flex_attention import create_block_mask

    def may_look(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        # Documents lie one behind the other, so a key in the past belongs to the query's if it is not
        # before its start
        return (key <= query) & (key >= starts[b, query])

    B, T = starts.shape
    create = create_block_mask if torch.compiler.is_compiling() else compiled(create_block_mask)
    return create(may_look, B, None, T, T, device=starts.device)


def attend_flex(q: Tensor, k: Tensor, v: Tensor, mask: "BlockMask") -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    attend = flex_attention if torch.compiler.is_compiling() else compiled(flex_attention)
    return attend(q, k, v, block_mask=mask, enable_gqa=q.size(1) != k.size(1))


FLEX_MIN_HEAD_DIM = 16


@functools.cache
def compiled(function: Callable) -> Callable:
    """Flex attention is a kernel only when compiled; without compile=True it is the one thing that is."""
    return torch.compile(function, dynamic=False)


def flash_attention(package: str) -> Callable[[Tensor, Tensor, Tensor, float], Tensor]:
    """A backend over one of the flash-attn packages, whose layout is [B, T, H, D] and whose causal mask is
    aligned to the last key, as ours is."""

    def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        kernel = importlib.import_module(package).flash_attn_func
        options = {"dropout_p": dropout} if package == "flash_attn" else {}  # only FA2 has dropout
        out = kernel(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), causal=True, **options)
        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

    return attend


FLASH_PACKAGES = {
    "flash_attn_2": ("flash_attn", "pip install flash-attn"),
    "flash_attn_3": ("flash_attn_interface", "build hopper/ of the flash-attention repository"),
    "flash_attn_4": ("flash_attn.cute", "pip install flash-attn-4"),
}

# torch's kernels, one of which is put before the others; "sdpa" leaves the order to torch, whose versions
# differ
TORCH_KERNELS = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.MATH,
]
PREFERRED_KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}


def sdpa_preferring(kernel: SDPBackend) -> Callable[[Tensor, Tensor, Tensor, float], Tensor]:
    """attend_sdpa with this kernel where it can run, as it cannot for every mask and length."""
    order = [kernel, *(other for other in TORCH_KERNELS if other != kernel)]

    def attend(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        with sdpa_kernel(order, set_priority=True):
            return attend_sdpa(q, k, v, dropout)

    return attend


ATTENTION_BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, float], Tensor]] = {
    "sdpa": attend_sdpa,
    **{name: sdpa_preferring(kernel) for name, kernel in PREFERRED_KERNELS.items()},
    "manual": attend_manual,
    **{name: flash_attention(package) for name, (package, _) in FLASH_PACKAGES.items()},
}


def backend_problem(name: str, device_type: str, dtype: torch.dtype, dropout: float = 0.0) -> str | None:
    """Why the backend cannot run on such tensors here, or None."""
    if name not in FLASH_PACKAGES and name not in PREFERRED_KERNELS:
        return None
    if device_type != "cuda":
        return f"it needs a CUDA device, the tensors are on {device_type}"
    if name in PREFERRED_KERNELS:  # torch itself goes on to another one
        return None
    package, how = FLASH_PACKAGES[name]
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it needs float16 or bfloat16, the tensors are {dtype}"
    if dropout and name != "flash_attn_2":
        return "it has no dropout"
    try:
        importlib.import_module(package)
    except ImportError as error:  # absent, or built for another torch
        return f"the package {package} cannot be imported ({error}); {how}"
    return None


# A constant to the compiler: it runs while a graph is traced, never inside one.
@torch.compiler.assume_constant_result
def choose_backend(name: str, device_type: str, dtype: torch.dtype, T: int, dropout: float) -> str:
    """The backend that runs: `name` itself, sdpa with one warning where it cannot, and for `auto` the fixed
    choice for the device and the length (law 12: a table, not a measurement; train.py measures on a GPU and
    then passes a name)."""
    if name == "auto":
        # torch's flash kernel for the CPU is far from the matmul rate; two plain matmuls win while the
        # scores stay in cache
        return "manual" if device_type == "cpu" and 1 < T <= CPU_MANUAL_ATTENTION_MAX_T else "sdpa"
    problem = backend_problem(name, device_type, dtype, dropout)
    if problem:
        warn_once(f"attention_backend={name!r} cannot run here: {problem}; using sdpa")
        return "sdpa"
    return name


CPU_MANUAL_ATTENTION_MAX_T = 512


@functools.cache
def warn_once(message: str) -> None:
    logging.getLogger("nanofoundry").warning(message)


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
        self.backend = config.attention_backend
        self.dropout = config.dropout
        # One matmul for queries, keys and values; rows in this order: H heads of q, K of k, K of v
        self.qkv = Linear(config.n_embd, (self.n_head + 2 * self.n_kv_head) * self.head_dim, bias=config.bias)
        self.out = Linear(self.n_head * self.head_dim, config.n_embd, bias=config.bias)
        self.q_norm = NORMS[config.normalization](self.head_dim, config) if config.qk_norm else nn.Identity()
        self.k_norm = NORMS[config.normalization](self.head_dim, config) if config.qk_norm else nn.Identity()

    def forward(
        self,
        x: Tensor,
        angles: tuple[Tensor, Tensor] | None,
        kv_cache: KVCache | None = None,
        mask: "Tensor | BlockMask | None" = None,
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
            k, v = kv_cache.update(self.layer, k, v)
        if kv_cache is not None and kv_cache.positions is not None:
            y = attend_one(q, k, v, kv_cache.positions)  # [B, H, 1, D]
            return self.out(y.reshape(B, T, -1))
        dropout = self.dropout if self.training else 0.0
        backend = choose_backend(self.backend, x.device.type, v.dtype, T, dropout)
        if mask is None:
            y = ATTENTION_BACKENDS[backend](q, k, v, dropout)  # [B, H, T, D]
        elif isinstance(mask, Tensor):
            y = (attend_manual if backend == "manual" else attend_sdpa)(q, k, v, dropout, mask)
        else:
            y = attend_flex(q, k, v, mask)
        return self.out(y.transpose(1, 2).reshape(B, T, -1))


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
