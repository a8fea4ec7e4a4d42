"""Cross-entropy through the output head: plain, and without ever holding the logits of all tokens.

    loss = head_loss(x, weight, targets, "auto")     # x [B, T, C], weight [V, C], targets [B, T] -> mean over valid targets

At 152 k words the fp32 logits of 16 k tokens are 10 GB, and their gradient as much again. The chunked loss
takes some thousand tokens at a time and computes the gradients in the same pass, while the chunk's logits
are there."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from operators.linear import linear

IGNORED_TARGET = -100
LOSS_BACKENDS = ("auto", "plain", "chunked")


@dataclass(frozen=True)
class LossSizes:
    """How many logits there are at a time, in bytes."""

    plain_max: int = 512 << 20  # auto: fp32 logits up to this size are kept
    chunk: int = 512 << 20  # of a chunk, in the type of the matmul
    # In fp32 between the matmuls, where nothing is compiled: what stays in a CPU's cache; on other devices
    # enough to fill them
    piece: int = 8 << 20
    device_piece: int = 128 << 20

    def starts(self, tokens: int, chunk: int) -> Iterable[int]:
        """The first token of each chunk of so many."""
        return range(0, tokens, chunk)


SIZES = LossSizes()


def head_loss(
    x: Tensor,
    weight: Tensor,
    targets: Tensor,
    backend: str = "auto",
    z_loss: float = 0.0,
    sizes: LossSizes = SIZES,
    apart: list[Tensor] | None = None,
) -> Tensor:
    """Mean over the valid targets of cross-entropy + z_loss * log(Z)^2, in nats; 0 where no target is valid.

    x [B, T, C], weight [V, C], targets [B, T] with -100 ignored. z_loss (PaLM, Chowdhery et al. 2022: 1e-4)
    keeps the logits' normaliser near 1; the list `apart` gets its share of the loss, as a number without
    gradient, so that the cross-entropy can be told. `backend` is one of LOSS_BACKENDS; auto is chunked where the
    logits would be large."""
    x, targets = x.flatten(0, 1), targets.flatten()  # [N, C], [N]
    if backend == "auto":
        backend = "chunked" if 4 * x.size(0) * weight.size(0) > sizes.plain_max else "plain"
    if backend == "plain":
        logits = linear(x, weight).float()
        total = F.cross_entropy(logits, targets, ignore_index=IGNORED_TARGET, reduction="sum")
        z = torch.zeros_like(total)
        if z_loss:
            z = z_loss * (logits.logsumexp(-1).square() * (targets != IGNORED_TARGET)).sum()
            total = total + z
    else:
        # The type of the matmuls is autocast's, as for F.linear above
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        chunk = max(1, sizes.chunk // (dtype.itemsize * weight.size(0)))
        piece = max(1, (sizes.piece if device == "cpu" else sizes.device_piece) // (4 * weight.size(0)))
        starts = tuple(sizes.starts(x.size(0), chunk))
        needs_grad = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
        total, z = ChunkedLoss.apply(x, weight, targets, z_loss, dtype, (starts, chunk, piece), needs_grad)
    n_valid = (targets != IGNORED_TARGET).sum().clamp(min=1)
    if apart is not None:
        apart.append(z.detach() / n_valid)
    return total / n_valid


class ChunkedLoss(torch.autograd.Function):
    """Sum of the losses of x [N, C] against targets [N] through weight [V, C], and what of it is z_loss's. `walk`
    is the first token of each chunk, the tokens of a chunk, and those of a piece (chunk_loss). The gradients of the sum are
    computed on the way forward and scaled on the way back, in place: a graph that is kept cannot be used
    twice, which autograd notices. That of the weight is accumulated in fp32 where there are several
    chunks."""

    @staticmethod
    def forward(
        ctx: torch.autograd.function.FunctionCtx,
        x: Tensor,
        weight: Tensor,
        targets: Tensor,
        z_loss: float,
        dtype: torch.dtype,
        walk: tuple[tuple[int, ...], int, int],
        needs_grad: bool,
    ) -> tuple[Tensor, Tensor]:
        starts, chunk, piece = walk
        with torch.autocast(x.device.type, enabled=False):
            head = weight.to(dtype)
            totals = torch.zeros(2, dtype=torch.float32, device=x.device)
            grad_x = torch.empty_like(x) if needs_grad else None
            grad_weight = None
            for start in starts:
                rows = slice(start, start + chunk)
                loss, grad_x_chunk, part = chunk_loss(
                    x[rows].to(dtype), head, targets[rows], z_loss, needs_grad, piece
                )
                totals = totals + loss
                if needs_grad:
                    grad_x[rows] = grad_x_chunk
                    grad_weight = (
                        part if x.size(0) <= chunk else part.float() if start == 0 else grad_weight.add_(part)
                    )
        if needs_grad:
            ctx.save_for_backward(grad_x, grad_weight)
            ctx.weight_dtype = weight.dtype
        total, z = totals[0].clone(), totals[1].clone()
        ctx.mark_non_differentiable(z)
        return total, z

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor, grad_z: Tensor
    ) -> tuple[Tensor | None, ...]:
        grad_x, grad_weight = ctx.saved_tensors
        return grad_x.mul_(grad), grad_weight.to(ctx.weight_dtype).mul_(grad), None, None, None, None, None


def chunk_loss(
    x: Tensor, head: Tensor, targets: Tensor, z_loss: float, needs_grad: bool, piece: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """x [n, C], head [V, C] in the type of the matmuls, targets [n] -> the sums [2] of the losses and of z_loss's part,
    and the gradients of the first of x and head. Its logits, the only such tensor at a time, are gone when it returns. Eagerly
    `piece` tokens at a time are in fp32."""
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
        total = torch.zeros(2, dtype=torch.float32, device=x.device)
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
    """logits [N, V] in fp32, target and valid (0.0 or 1.0) [N, 1] -> the sums [2] of the losses and of
    z_loss's part, and the gradient [N, V] of the first, which is
    softmax * (1 + 2 z_loss log Z) - onehot in valid rows. `inplace` overwrites
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
    z = z_loss * log_z.square()
    loss = torch.stack([((log_z - right + z) * valid).sum(), (z * valid).sum()])
    scale = valid * (1 + 2 * z_loss * log_z) / sums
    if inplace:
        return loss, powers.mul_(scale).scatter_add_(1, target, -valid)
    words = torch.arange(logits.size(1), device=logits.device)
    return loss, (logits - log_z).exp() * scale - valid * (words == target)
