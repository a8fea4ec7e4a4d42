"""Rows of a table, with a gradient that is summed in one order and that a tied output head shares."""

import torch
import torch.nn.functional as F
from torch import Tensor


def embed(ids: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """F.embedding(ids, weight) [B, T, C] for ids [B, T] and weight [V, C], and the weight once more, for an
    output head that is tied to it: then both gradients are one tensor [V, C] instead of two."""
    if torch.is_grad_enabled():
        return Embedding.apply(weight, ids)
    return F.embedding(ids, weight), weight  # the weight itself, whose cast autocast keeps


class Embedding(torch.autograd.Function):
    """The gradient of the rows is added to that of the head, instead of to a second [V, C] of zeros."""

    @staticmethod
    def forward(weight: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return F.embedding(ids, weight), weight.view_as(weight)

    @staticmethod
    def setup_context(
        ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor], output: tuple
    ) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(
        ctx: torch.autograd.function.FunctionCtx, grad: Tensor, grad_head: Tensor
    ) -> tuple[Tensor, None]:
        (ids,) = ctx.saved_tensors
        # create_graph=True, for a second derivative, which nothing compiled has
        if (grad.requires_grad or grad_head.requires_grad) and not torch.compiler.is_compiling():
            return grad_head.index_add(0, ids.flatten(), grad.flatten(0, 1).to(grad_head.dtype)), None
        # In place: linear and the losses make the gradient of a head for this function alone; without one
        # it is zeros
        add_rows(grad_head, ids.flatten(), grad.flatten(0, 1).to(grad_head.dtype))
        return grad_head, None


# An operator of its own, since the compiler's sum for rows that occur several times is in the order in
# which threads come
@torch.library.custom_op("nanofoundry::add_rows", mutates_args=("table",))
def add_rows(table: Tensor, ids: Tensor, rows: Tensor) -> None:
    """table[ids[i]] += rows[i] in an order that is the same in every run: table [V, C], ids [N], rows [N,
    C]."""
    if table.device.type == "cpu":
        table.index_add_(0, ids, rows)
    else:
        table.index_put_((ids,), rows, accumulate=True)  # sorts on CUDA, where index_add_ does not


@add_rows.register_fake
def _(table: Tensor, ids: Tensor, rows: Tensor) -> None:
    return None
