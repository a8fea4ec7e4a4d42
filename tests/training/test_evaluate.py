"""The held-out loss is the mean over valid tokens, leaves no trace, and adds up over ranks."""

import contextlib
import math

import numpy as np
import pytest
import torch

from model_builder import ConfigurableGPT
from model_config import get_preset_config
from tokens.loader import evaluation_batches
from training.evaluate import bits_per_byte, evaluate

CPU = torch.device("cpu")


class Noise:
    def __init__(self, n_tokens: int) -> None:
        self.n_tokens = n_tokens
        self.ids = np.random.default_rng(0).integers(0, 31, n_tokens)

    def read(self, start: int, length: int) -> np.ndarray:
        return self.ids[start : start + length]


@pytest.fixture
def model() -> ConfigurableGPT:
    shape = dict(n_layer=1, n_embd=32, n_head=2, block_size=8, vocab_size=31, dropout=0.5, init_std=0.2)
    return ConfigurableGPT(get_preset_config("gpt2", **shape))


def test_the_mean_is_over_valid_tokens_whatever_the_batch_size(model):
    tokens = Noise(8 * 11 + 1)  # 11 windows: with batches of 4 the last has one row of padding
    rows = torch.from_numpy(np.stack([tokens.read(8 * w, 9) for w in range(11)]))
    model.eval()
    with torch.no_grad():
        logits = model(rows[:, :-1])[0]
    expected = torch.nn.functional.cross_entropy(logits.double().flatten(0, 1), rows[:, 1:].flatten()).item()
    for batch_size in (1, 4, 11, 16):
        got = evaluate(model, evaluation_batches(tokens, 8, batch_size, 100), CPU, contextlib.nullcontext())
        assert got == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_is_restored_and_no_random_number_is_drawn(model, training):
    model.train(training)
    state = torch.random.get_rng_state()
    batches = list(evaluation_batches(Noise(200), 8, 4, 3))
    first = evaluate(model, batches, CPU, contextlib.nullcontext())
    assert model.training is training and torch.equal(torch.random.get_rng_state(), state)
    assert first == evaluate(model, batches, CPU, contextlib.nullcontext())
    assert all(p.grad is None for p in model.parameters())


def test_bits_per_byte():
    assert bits_per_byte(2 * math.log(2), 4.0) == pytest.approx(0.5)
    assert bits_per_byte(1.0, None) is None
