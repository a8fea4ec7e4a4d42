"""x @ weight^T + bias by the library that is fastest for it.

torch sends fp32 matmuls on x86 to MKL, which has no AVX-512 kernels for AMD's processors; oneDNN, which
torch ships too and uses for bf16, has. docs/PERFORMANCE.md has both rates. Which one runs follows from
types and shapes alone (a table, no measurement); the results differ by rounding."""

import math
import platform

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

ONEDNN_MIN_ROWS = 64  # fewer are bound by reading the weight
HAS_ONEDNN = (
    platform.machine() in ("x86_64", "AMD64")
    and torch.backends.mkldnn.is_available()
    and hasattr(torch.ops.mkldnn, "_linear_pointwise")
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear: x [..., K], weight [N, K], bias [N] -> [..., N]."""
    if runs_in_onednn(x, weight):
        return OneDNNLinear.apply(x, weight, bias)
    return F.linear(x, weight, bias)


def runs_in_onednn(x: Tensor, weight: Tensor) -> bool:
    return (
        HAS_ONEDNN
        and x.device.type == "cpu"
        and x.dtype == weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and x.numel() >= ONEDNN_MIN_ROWS * x.size(-1)
    )


# An operator of its own: torch's compiler accepts the one inside for constant weights only
@torch.library.custom_op("nanofoundry::linear", mutates_args=())
def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@register_flop_formula(torch.ops.nanofoundry.linear)
def linear_flops(x_shape: torch.Size, weight_shape: torch.Size, *args: object, **kwargs: object) -> int:
    """For torch's FlopCounterMode."""
    return 2 * math.prod(x_shape) * weight_shape[0]


@onednn_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return x.new_empty(*x.shape[:-1], weight.size(0))


class OneDNNLinear(torch.autograd.Function):
    """The gradient of the weight, whose first factor is transposed, stays with MKL, which is as fast
    there."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return onednn_linear(x, weight, bias)

    @staticmethod
    def setup_context(
        ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, Tensor, Tensor | None], output: Tensor
    ) -> None:
        ctx.save_for_backward(*inputs[:2])

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.size(-1))  # [M, N]
        grad_x = OneDNNLinear.apply(rows, weight.t(), None).view(x.shape) if ctx.needs_input_grad[0] else None
        grad_weight = rows.t() @ x.reshape(-1, x.size(-1)) if ctx.needs_input_grad[1] else None
        grad_bias = rows.sum(0) if ctx.needs_input_grad[2] else None
        return grad_x, grad_weight, grad_bias


class Linear(torch.nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
