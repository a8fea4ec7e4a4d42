"""The body of the loop: one optimizer step of one process.

    step = TrainStep(model, forward, strategy, optimizers, config, world, device, dtype)
    result = step(number, micro_batches)                        # StepResult: loss, gradient norm, learning rate

A recipe owns its data and its loss and copies nothing: `micro_batches` is whatever it yields, `loss_of`
what it makes of one."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tokens.order import dropout_seed
from training.config import TrainConfig
from training.optim import StepGuard, clip_gradients, learning_rate_at, set_learning_rate
from training.parallel import Strategy
from training.world import World


class MicroBatch(NamedTuple):
    """What one forward and backward pass of one process reads."""

    number: int  # among those of the step, over all processes: seeds dropout
    tensors: tuple[Tensor, ...]
    parts: (
        float  # its mean loss counts as 1 / parts in the step's; equal for all where all have as many targets
    )
    last: bool  # of this process in this step: gradients travel then


class StepResult(NamedTuple):
    """Of a TrainStep tensors on the device, so that nothing waits for it, the loss being this process's
    part of the mean over the step's targets. Read (Run.step), they are numbers, and the loss is that of all
    processes."""

    loss: Tensor | float  # cross-entropy, nats a token
    grad_norm: Tensor | float  # before clipping, the same on all ranks
    lr: float
    z_loss: Tensor | float = 0.0  # what the model's z_loss adds to it in training


class TrainStep:
    """Forward and backward over the micro-batches, clip, update, unless the gradients are bad. `schedule`
    gives the learning rate of a step. `guard` and `scaler` are the states that a checkpoint kept."""

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[..., tuple[Tensor | None, Tensor]],
        strategy: Strategy,
        optimizers: list[torch.optim.Optimizer],
        config: TrainConfig,
        world: World,
        device: torch.device,
        dtype: torch.dtype,
        *,
        schedule: Callable[[int, TrainConfig], float] = learning_rate_at,
        guard: Mapping[str, float] | None = None,
        scaler: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.forward, self.strategy, self.optimizers = model, forward, strategy, optimizers
        self.config, self.world, self.device, self.dtype = config, world, device, dtype
        self.schedule = schedule
        self.guard = StepGuard(config, device, guard)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        if scaler:
            self.scaler.load_state_dict(dict(scaler))
        self.autocast = contextlib.nullcontext()
        if dtype != torch.float32:
            self.autocast = torch.autocast(device.type, dtype)
        self.draws = any(isinstance(m, nn.Dropout) and m.p for m in model.modules())

    def __call__(
        self,
        step: int,
        micro_batches: Iterable[MicroBatch],
        loss_of: Callable[[tuple[Tensor, ...]], Tensor] | None = None,
    ) -> StepResult:
        """The update that leads from `step` to `step + 1`. loss_of(tensors) is the mean loss of a
        micro-batch, by default that of forward(*tensors)."""
        lr = self.schedule(step, self.config)
        set_learning_rate(self.optimizers, lr)
        step_loss, step_z = torch.zeros((), device=self.device), torch.zeros((), device=self.device)
        for batch in micro_batches:
            self.model.z_part = None
            if self.draws:
                torch.manual_seed(dropout_seed(self.config.seed, step, batch.number))
            with self.strategy.gradient_sync(self.model, batch.last):
                with self.autocast:
                    loss = loss_of(batch.tensors) if loss_of else self.forward(*batch.tensors)[1]
                # Ranks' gradients are averaged, their losses summed
                loss = loss / batch.parts
                self.scaler.scale(loss * self.world.size).backward()
            step_loss += loss.detach()
            if self.model.z_part is not None:
                step_z += self.model.z_part / batch.parts
        return StepResult(step_loss - step_z, self.update(), lr, step_z)

    def update(self) -> Tensor:
        """Clips the gradients and updates the weights, unless they are bad; clears the gradients. Their
        norm before."""
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        grad_norm = clip_gradients(self.model, self.config.grad_clip or float("inf"))
        self.guard.step(self.optimizers, self.guard.check(grad_norm))
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=self.strategy.frees_gradients)
        self.scaler.update()
        return grad_norm
