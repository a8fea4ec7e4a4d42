"""Cross-entropy through the output head: plain, and without ever holding the logits of all tokens.

    loss = head_loss(x, weight, targets, "auto")     # x [B, T, C], weight [V, C], targets [B, T] -> mean over valid targets

At 152 k words the fp32 logits of 16 k tokens are 10 GB, and their gradient as much again. The chunked loss
takes some thousand tokens at a time and computes the gradients in the same pass, while the chunk's logits
are there."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from operators.linear import linear

IGNORED_TARGET = -100
PLAIN_MAX_BYTES = 512 << 20  # auto: fp32 logits up to this size are kept
CHUNK_BYTES = 512 << 20  # logits of a chunk, in the type of the matmul
# fp32 logits at a time between the matmuls, where nothing is compiled: what stays in a CPU's cache; on
# others enough to fill it
PIECE_BYTES = 8 << 20
DEVICE_PIECE_BYTES = 128 << 20
LOSS_BACKENDS = ("auto", "plain", "chunked")


def head_loss(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    backend: str = "auto",
    z_loss: float = 0.0,
    *,
    piece_bytes: int | None = None,
    starts: Callable[[int], Sequence[int]] | None = None,
) -> Tensor:
    """Mean over the valid targets of cross-entropy + z_loss * log(Z)^2, in nats; 0 where no target is valid.

    x [B, T, C], weight [V, C], targets [B, T] with -100 ignored. z_loss (PaLM, Chowdhery et al. 2022: 1e-4)
    keeps the logits' normaliser near 1. `backend` is one of LOSS_BACKENDS; auto is chunked where the logits
    would be large. `piece_bytes` and `starts`, the first tokens of the chunks by their size, are for who
    counts memory without data (planning/memory.py): another device's pieces, and no more chunks than
    differ."""
    x, targets = x.flatten(0, 1), targets.flatten()  # [N, C], [N]
    if backend == "auto":
        backend = "chunked" if 4 * x.size(0) * weight.size(0) > PLAIN_MAX_BYTES else "plain"
    if backend == "plain":
        logits = linear(x, weight).float()
        total = F.cross_entropy(logits, targets, ignore_index=IGNORED_TARGET, reduction="sum")
        if z_loss:
            total = total + z_loss * (logits.logsumexp(-1).square() * (targets != IGNORED_TARGET)).sum()
    else:
        # The type of the matmuls is autocast's, as for F.linear above
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        chunk = max(1, CHUNK_BYTES // (dtype.itemsize * weight.size(0)))
        needs_grad = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        walked = None if starts is None else tuple(starts(chunk))
        total = ChunkedLoss.apply(x, weight, targets, z_loss, dtype, chunk, needs_grad, piece_bytes, walked)
    return total / (targets != IGNORED_TARGET).sum().clamp(min=1)


class ChunkedLoss(torch.autograd.Function):
    """Sum of the losses of x [N, C] against targets [N] through weight [V, C], `chunk` tokens at a time.
    The gradients of the sum are computed on the way forward and scaled on the way back, in place: a graph
    that is kept cannot be used twice, which autograd notices. That of the weight is accumulated in fp32
    where there are several chunks."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        z_loss: float,
        dtype: torch.dtype,
        chunk: int,
        needs_grad: bool,
        piece_bytes: int | None = None,
        starts: tuple[int, ...] | None = None,
    ) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            head = weight.to(dtype)
            total = torch.zeros((), dtype=torch.float32, device=x.device)
            grad_x = torch.empty_like(x) if needs_grad else None
            grad_weight = None
            for start in range(0, x.size(0), chunk) if starts is None else starts:
                rows = slice(start, start + chunk)
                loss, grad_x_chunk, part = chunk_loss(
                    x[rows].to(dtype), head, targets[rows], z_loss, needs_grad, piece_bytes
                )
                total = total + loss
                if needs_grad:
                    grad_x[rows] = grad_x_chunk
                    grad_weight = (
                        part if x.size(0) <= chunk else part.float() if start == 0 else grad_weight.add_(part)
                    )
        if needs_grad:
            ctx.save_for_backward(grad_x, grad_weight)
            ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight = ctx.saved_tensors
        return (
            grad_x.mul_(grad),
            grad_weight.to(ctx.weight_dtype).mul_(grad),
            None,
            None,
            None,
            None,
            None,
            None,
            None,
        )


def chunk_loss(
    x: Tensor,
    head: Tensor,
    targets: Tensor,
    z_loss: float,
    needs_grad: bool,
    piece_bytes: int | None = None,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """x [n, C], head [V, C] in the type of the matmuls, targets [n] -> the sum of the losses and its
    gradients of x and head. Its logits, the only such tensor at a time, are gone when it returns."""
    logits = linear(x, head)  # [n, V]
    valid = (targets != IGNORED_TARGET).float().unsqueeze(1)
    target = targets.masked_fill(targets == IGNORED_TARGET, 0).unsqueeze(
        1
    )  # any other id that is none stays an error
    if (
        torch.compiler.is_compiling()
    ):  # fused into one pass over the logits for the sums and one for the gradient
        total, grad = loss_and_gradient(logits.float(), target, valid, z_loss)
        grad = grad.to(logits.dtype)
    else:  # the gradient takes the place of the logits; between them fp32 for as many rows as stay in cache
        total = torch.zeros((), dtype=torch.float32, device=x.device)
        at_once = PIECE_BYTES if x.device.type == "cpu" else DEVICE_PIECE_BYTES
        piece = max(1, (piece_bytes or at_once) // (4 * logits.size(1)))
        for part in zip(logits.split(piece), target.split(piece), valid.split(piece), strict=True):
            loss, part_grad = loss_and_gradient(part[0].float(), *part[1:], z_loss, inplace=True)
            part[0].copy_(part_grad)
            total += loss
        grad = logits
    if not needs_grad:
        return total, None, None
    return total, linear(grad, head.t()), grad.t() @ x


def loss_and_gradient(
    logits: Tensor, target: Tensor, valid: Tensor, z_loss: float, inplace: bool = False
) -> tuple[Tensor, Tensor]:
    """logits [N, V] in fp32, target and valid (0.0 or 1.0) [N, 1] -> the sum of the losses, and its
    gradient [N, V], which is softmax * (1 + 2 z_loss log Z) - onehot in valid rows. `inplace` overwrites
    the logits with it and takes one exponential; the compiler would keep that one in fp32 between its
    passes, so without it there are two."""
    right = logits.gather(1, target)
    if inplace:
        highest = logits.amax(-1, keepdim=True)
        powers = logits.sub_(highest).exp_()
        sums = powers.sum(-1, keepdim=True)
        log_z = highest + sums.log()
    else:
        log_z, sums = logits.logsumexp(-1, keepdim=True), 1.0
    loss = ((log_z - right + z_loss * log_z.square()) * valid).sum()
    scale = valid * (1 + 2 * z_loss * log_z) / sums
    if inplace:
        return loss, powers.mul_(scale).scatter_add_(1, target, -valid)
    words = torch.arange(logits.size(1), device=logits.device)
    return loss, (logits - log_z).exp() * scale - valid * (words == target)
