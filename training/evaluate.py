"""Held-out loss, over the same windows every time."""

import contextlib
import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, ...]],
    device: torch.device,
    autocast: contextlib.AbstractContextManager,
) -> float:
    """Mean loss in nats over the valid targets of all batches. Leaves the model in the mode it found it in."""
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64 if device.type != "mps" else torch.float32, device=device)
    count = 0
    for batch in batches:
        valid = int((batch[1] != -100).sum())  # counted before the transfer: no wait for the device
        with autocast:
            _, loss = model(*(tensor.to(device) for tensor in batch))
        total += loss * valid
        count += valid
    model.train(was_training)
    return total.item() / count


def bits_per_byte(loss: float, bytes_per_token: float | None) -> float | None:
    """Nats a token as bits a byte of text, which compares across tokenizers; None where the bytes were not counted."""
    return None if bytes_per_token is None else loss / math.log(2) / bytes_per_token
