"""Which parameters are updated how, and at which learning rate."""

import contextlib
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode

from hardware.device import has_bfloat16
from training.config import TrainConfig


def learning_rate_at(step: int, config: TrainConfig) -> float:
    """The learning rate of the update that leads from `step` to `step + 1`."""
    c = config
    decay_iters = c.max_iters if c.lr_decay_iters is None else c.lr_decay_iters
    # 1) linear warm-up; the first update already moves
    if step < c.warmup_iters:
        return c.learning_rate * (step + 1) / (c.warmup_iters + 1)
    # 2) constant, for as long as it takes
    if c.lr_schedule == "constant":
        return c.learning_rate
    # 3) past the end of the decay
    if step >= decay_iters:
        return c.min_lr
    # 4) in between; wsd stays up until its last part (Hu et al. 2024)
    start = c.warmup_iters
    if c.lr_schedule == "wsd":
        start = max(start, decay_iters - math.ceil(c.wsd_decay_fraction * decay_iters))
    progress = max(0.0, (step - start) / (decay_iters - start))
    remaining = 0.5 * (1.0 + math.cos(math.pi * progress)) if c.lr_schedule == "cosine" else 1.0 - progress
    return c.min_lr + remaining * (c.learning_rate - c.min_lr)


def set_learning_rate(optimizers: list[torch.optim.Optimizer], learning_rate: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_ratio"]


MuonProducts = Literal["bfloat16", "float32"]


def muon_products(device: torch.device) -> MuonProducts:
    """How a run that begins here computes the products of Muon's bfloat16 matrices: as torch does, or in
    fp32 and rounded where a CPU has no instructions for them. There torch's kernel is many times slower;
    the sums are in another order, so a run keeps what it began with (RunState)."""
    return "float32" if device.type == "cpu" and not has_bfloat16(device) else "bfloat16"


class Muon(torch.optim.Muon):
    """torch's, with `products` of its bfloat16 matrices as muon_products says. On a GPU they are torch's."""

    products: MuonProducts = "bfloat16"

    def step(self, closure: Callable | None = None) -> float | None:
        on_cpu = self.param_groups[0]["params"][0].device.type == "cpu"
        with ProductsInFp32() if on_cpu and self.products == "float32" else contextlib.nullcontext():
            return super().step(closure)


class ProductsInFp32(TorchFunctionMode):
    """Under it products of bfloat16 matrices are those of fp32, rounded."""

    PRODUCTS = (torch.addmm, torch.mm, torch.matmul, Tensor.__matmul__)

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in self.PRODUCTS and all(t.dtype == torch.bfloat16 for t in args):
            return func(*(t.float() for t in args), **(kwargs or {})).bfloat16()
        return func(*args, **(kwargs or {}))


def build_optimizers(
    model: nn.Module, config: TrainConfig, device: torch.device, products: MuonProducts = "bfloat16"
) -> list[torch.optim.Optimizer]:
    """AdamW over everything, or Muon over the hidden matrices and AdamW over the rest.

    Matrices and embeddings decay; norms and biases (1-D) do not, as in GPT-3. Muon orthogonalises the
    update of a matrix (Jordan 2024) and is not meant for embeddings and the head; its updates are scaled to
    the size of AdamW's (Liu et al. 2025), so that one learning rate serves both."""
    params = dict(model.named_parameters())
    hidden = {n for n, p in params.items() if p.dim() == 2 and n.startswith("blocks.")}
    by_muon = hidden if config.optimizer == "muon" else set()
    decayed = [p for n, p in params.items() if p.dim() >= 2 and n not in by_muon]
    others = [p for p in params.values() if p.dim() < 2]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay, "lr_ratio": 1.0},
        {"params": others, "weight_decay": 0.0, "lr_ratio": 1.0},
    ]
    lr = config.learning_rate
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(
            [g for g in groups if g["params"]],
            lr=lr,
            betas=(config.beta1, config.beta2),
            fused=device.type != "mps",
        )
    ]
    if by_muon:
        muon_lr = lr if config.muon_learning_rate is None else config.muon_learning_rate
        group = {
            "params": [params[n] for n in params if n in by_muon],
            "lr_ratio": muon_lr / lr if lr else 0.0,
        }
        muon = Muon([group], lr=muon_lr, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw")
        muon.products = products
        optimizers.append(muon)
    return optimizers


def clip_gradients(model: nn.Module, max_norm: float) -> Tensor:
    """Scales the gradients to a global norm of at most max_norm. Their norm before, the same number on
    every rank."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if isinstance(norm, DTensor):
        norm = norm.full_tensor()
    torch.nn.utils.clip_grads_with_norm_(model.parameters(), max_norm, norm)
    return norm


STATE_KEYS = {torch.optim.AdamW: ("step", "exp_avg", "exp_avg_sq"), Muon: ("momentum_buffer",)}


def optimizer_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
    """The state of the optimizers, as NAME/KEY; nothing before their first step."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        f"{names[id(p)]}/{key}": optimizer.state[p][key]
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
        if p in optimizer.state
        for key in STATE_KEYS[type(optimizer)]
    }


@torch.no_grad()
def allocate_state(optimizers: list[torch.optim.Optimizer]) -> None:
    """Zeros where the optimizers' state will be, so that a checkpoint can be read into it."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for p in group["params"]:
                for key in STATE_KEYS[type(optimizer)]:
                    # A fused AdamW counts its steps on the device
                    count = torch.zeros((), device=p.device if group.get("fused") else "cpu")
                    optimizer.state[p][key] = count if key == "step" else torch.zeros_like(p)


def state_bytes(optimizers: list[torch.optim.Optimizer]) -> int:
    """What weights and optimizer state will take on disk, of all ranks together."""
    copies = {torch.optim.AdamW: 3, Muon: 2}
    return sum(
        copies[type(o)] * 4 * p.numel()
        for o in optimizers
        for group in o.param_groups
        for p in group["params"]
    )


class StepGuard:
    """Skips steps whose gradients are not finite, or whose norm is a spike. It decides on the device, so
    nothing waits; the norm is the same on all ranks, so they agree."""

    MEMORY = 100  # steps over which the mean norm is taken

    def __init__(
        self, config: TrainConfig, device: torch.device, state: Mapping[str, float] | None = None
    ) -> None:
        self.spike_factor, self.max_bad_steps = config.spike_factor, config.max_bad_steps
        state = state or {"mean_norm": 0.0, "good": 0, "bad_in_a_row": 0, "skipped": 0}
        self._state = {name: torch.tensor(float(value), device=device) for name, value in state.items()}

    def check(self, norm: Tensor) -> Tensor:
        """0.0, or 1.0 for a step to be skipped."""
        s = self._state
        bad = ~torch.isfinite(norm)
        if self.spike_factor:
            bad |= (s["good"] >= self.MEMORY) & (norm > self.spike_factor * s["mean_norm"])
        bad = bad.float()
        s["good"] += 1 - bad
        change = (norm - s["mean_norm"]) / s["good"].clamp(1, self.MEMORY)
        s["mean_norm"] += torch.where(bad.bool(), torch.zeros_like(change), change)
        s["bad_in_a_row"] = (s["bad_in_a_row"] + 1) * bad
        s["skipped"] += bad
        return bad

    def step(self, optimizers: list[torch.optim.Optimizer], bad: Tensor) -> None:
        for optimizer in optimizers:
            if optimizer.defaults.get("fused"):
                optimizer.found_inf = bad  # as GradScaler tells a fused optimizer not to move
                optimizer.step()
            elif not bad.item():
                optimizer.step()

    def bad_in_a_row(self) -> int:
        """Steps that were skipped since the last good one; waits for the device, as all below."""
        return int(self._state["bad_in_a_row"].item())

    def skipped(self) -> int:
        return int(self._state["skipped"].item())

    def state(self) -> dict[str, float]:
        """For the checkpoint."""
        return {name: value.item() for name, value in self._state.items()}
