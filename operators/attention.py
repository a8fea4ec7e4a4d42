"""Causal attention by whoever computes it fastest, and the masks that keep documents apart.

    y = attend(q, k, v, mask, backend="auto", dropout=0.0)     # softmax(q k^T / sqrt(D)) v

q [B, H, T, D]; k and v [B, K, S, D], where K divides H and no backend repeats keys or values in memory.
Without a mask attention is causal: query t is token S - T + t and sees the keys up to itself. A mask says
all, causality included: a Tensor, True where a query may look, or a BlockMask of flex attention.
model_components.softmax_attention is the same written out; it is registered here as "manual"."""

import functools
import importlib
import logging
import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

# (q, k, v, dropout probability) -> [B, H, T, D], causal. Those in TAKE_MASKS take a mask [B, 1, T, S]
# besides.
Attention = Callable[..., Tensor]
ATTENTION_BACKENDS: dict[str, Attention] = {}
TAKE_MASKS = ("sdpa", "manual")


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: "Tensor | BlockMask | None" = None,
    backend: str = "auto",
    dropout: float = 0.0,
) -> Tensor:
    """[B, H, T, D] by the backend that is named, or by the fixed choice for the device (choose_backend)."""
    T = q.size(2)
    if T == 1 and isinstance(mask, Tensor):
        return attend_one(q, k, v, mask)
    if mask is not None and not isinstance(mask, Tensor):
        return attend_flex(q, k, v, mask)
    name = choose_backend(backend, q.device.type, v.dtype, T, dropout)
    if mask is None:
        return ATTENTION_BACKENDS[name](q, k, v, dropout)
    return ATTENTION_BACKENDS[name if name in TAKE_MASKS else "sdpa"](q, k, v, dropout, mask)


def attend_sdpa(q: Tensor, k: Tensor, v: Tensor, dropout: float, mask: Tensor | None = None) -> Tensor:
    """torch's own choice among its kernels."""
    (B, H, T, D), (K, S) = q.shape, k.shape[1:3]
    if (
        T == 1 and mask is None
    ):  # sees everything: the H / K queries of a group go as if they were tokens, 2.5 times as fast
        q = q.reshape(B, K, H // K, D)
        return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout).view(B, H, 1, D)
    causal = mask is None and T == S  # then is_causal is exact
    if mask is None and T < S:
        mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal, enable_gqa=H != K
    )


CAUSAL_ROWS = 128  # queries at a time, at least: those before the last ones need not meet the last keys
CAUSAL_BLOCKS = 8  # and at most so many blocks, which leave out 7 / 16 of the scores


def by_blocks(attention: Attention) -> Attention:
    """`attention` on blocks of queries that see the keys up to their last one, which leaves out most of the
    upper half of the scores: with it plain matmuls are the fastest on a CPU for short sequences."""

    def attend_blocks(q: Tensor, k: Tensor, v: Tensor, dropout: float, mask: Tensor | None = None) -> Tensor:
        T, S = q.size(2), k.size(2)
        if mask is not None or T <= CAUSAL_ROWS:
            return attention(q, k, v, mask, dropout)
        blocks = []
        rows = max(CAUSAL_ROWS, -(-T // CAUSAL_BLOCKS))
        for start in range(0, T, rows):
            end = min(start + rows, T)
            seen = S - T + end
            blocks.append(attention(q[:, :, start:end], k[:, :, :seen], v[:, :, :seen], None, dropout))
        return torch.cat(blocks, dim=2)

    return attend_blocks


def attend_one(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """One query of each row, q [B, H, 1, D], against the slots of a cache: k, v [B, K, S, D], mask [B, 1,
    1, S]. Sums of products in fp32, which a compiler fuses into one pass over keys and one over values."""
    B, H, _, D = q.shape
    K = k.size(1)
    q = q.view(B, K, H // K, 1, D).float() * D**-0.5
    scores = (q * k[:, :, None].float()).sum(-1)  # [B, K, H/K, S]
    weights = scores.masked_fill(~mask, -math.inf).softmax(-1)
    return (weights[..., None] * v[:, :, None].float()).sum(-2).to(v.dtype).view(B, H, 1, D)


def flash_attention(package: str) -> Attention:
    """A backend over one of the flash-attn packages, whose layout is [B, T, H, D] and whose causal mask is
    aligned to the last key, as ours is."""

    def attend_flash(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        kernel = importlib.import_module(package).flash_attn_func
        options = {"dropout_p": dropout} if package == "flash_attn" else {}  # only FA2 has dropout
        out = kernel(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), causal=True, **options)
        return (out[0] if isinstance(out, tuple) else out).transpose(1, 2)

    return attend_flash


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


def sdpa_preferring(kernel: SDPBackend) -> Attention:
    """attend_sdpa with this kernel where it can run, as it cannot for every mask and length."""
    order = [kernel, *(other for other in TORCH_KERNELS if other != kernel)]

    def attend_preferring(q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        with sdpa_kernel(order, set_priority=True):
            return attend_sdpa(q, k, v, dropout)

    return attend_preferring


ATTENTION_BACKENDS |= {
    "sdpa": attend_sdpa,
    **{name: sdpa_preferring(kernel) for name, kernel in PREFERRED_KERNELS.items()},
    **{name: flash_attention(package) for name, (package, _) in FLASH_PACKAGES.items()},
}


# Whether the token in column `query` may look at that in column `key`, where the document of `query` begins
# in column `start`
Rule = Callable[[Tensor, Tensor, Tensor], Tensor]
FLEX_MIN_HEAD_DIM = 16


def document_mask(
    starts: Tensor, rule: Rule, backend: str, head_dim: int, dropout: float
) -> "Tensor | BlockMask":
    """The rule for all queries and keys of a batch, whose documents begin in columns starts [B, T]: on CUDA
    a BlockMask for flex attention, which skips the blocks between documents and keeps its shape, so that
    nothing is compiled again for another batch; elsewhere, and for what flex has not (dropout, narrow
    heads) or was not asked to do (manual), bool [B, 1, T, T]."""
    plain = backend == "manual" or dropout or head_dim < FLEX_MIN_HEAD_DIM
    if starts.device.type == "cuda" and not plain:
        return flex_document_mask(starts, rule)
    column = torch.arange(starts.size(1), device=starts.device)
    return rule(column[:, None], column[None, :], starts.unsqueeze(2)).unsqueeze(1)


def flex_document_mask(starts: Tensor, rule: Rule) -> "BlockMask":
    from torch.nn.attention.flex_attention import create_block_mask

    def may_look(b: Tensor, h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return rule(query, key, starts[b, query])

    B, T = starts.shape
    create = create_block_mask if torch.compiler.is_compiling() else compiled(create_block_mask)
    return create(may_look, B, None, T, T, device=starts.device)


def attend_flex(q: Tensor, k: Tensor, v: Tensor, mask: "BlockMask") -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    attend = flex_attention if torch.compiler.is_compiling() else compiled(flex_attention)
    return attend(q, k, v, block_mask=mask, enable_gqa=q.size(1) != k.size(1))


@functools.cache
def compiled(function: Callable) -> Callable:
    """Flex attention is a kernel only when compiled; without compile=True it is the one thing that is."""
    return torch.compile(function, dynamic=False)


def backend_problem(name: str, device_type: str, dtype: torch.dtype, dropout: float = 0.0) -> str | None:
    """Why the backend cannot run on such tensors here, or None."""
    if name not in FLASH_PACKAGES and name not in PREFERRED_KERNELS:
        return None
    if device_type != "cuda":
        return f"it needs a CUDA device, the tensors are on {device_type}"
    if name in PREFERRED_KERNELS:  # torch itself falls back to another one
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


# A constant to the compiler: it runs while a graph is traced, never inside one. This is what
# torch.compiler.assume_constant_result sets; calling that would load the compiler into every program.
choose_backend._dynamo_marked_constant = True

CPU_MANUAL_ATTENTION_MAX_T = 512


@functools.cache
def warn_once(message: str) -> None:
    logging.getLogger("nanofoundry").warning(message)
