"""Held-out loss, over the same windows every time."""

import contextlib
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from operators.loss import IGNORED_TARGET
from training.world import World


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, ...]],
    device: torch.device,
    autocast: contextlib.AbstractContextManager,
    world: World = World(),  # noqa: B008  immutable
    stopping: Callable[[], bool] = lambda: False,
) -> float | None:
    """Mean loss in nats over the valid targets of all batches of all ranks, each of which has equally many.
    Leaves the model in the mode it found it in. None where `stopping`, asked before each batch, says on all
    ranks that it must end."""
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    count, stopped = 0, False
    for batch in batches:
        if stopped := stopping():
            break
        valid = int((batch[1] != IGNORED_TARGET).sum())  # counted before the transfer: no wait for the device
        with autocast:
            _, loss = model(*(tensor.to(device) for tensor in batch))
        if valid:
            total += loss * valid
        count += valid
    model.train(was_training)
    sums = world.sum(torch.tensor([total.item(), count], dtype=torch.float64))
    return None if stopped else (sums[0] / sums[1]).item()


def bits_per_byte(loss: float, bytes_per_token: float | None) -> float | None:
    """Nats a token as bits a byte of text, which compares across tokenizers; None where the bytes were not
    counted."""
    return None if bytes_per_token is None else loss / math.log(2) / bytes_per_token
