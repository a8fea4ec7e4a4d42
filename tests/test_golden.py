"""Ten steps of training a tiny model of each preset give the losses of golden/losses.json, so that no
change of the model, its initial weights or its gradients goes unseen. After a change that is meant to move
them, say why in its commit and write them anew with

    python tests/test_golden.py --update
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # pytest does this too; --update runs without it

from model_builder import ConfigurableGPT
from model_config import PRESET_CONFIGS, get_preset_config

GOLDEN = Path(__file__).with_name("golden") / "losses.json"
SHAPE = dict(n_layer=2, n_embd=64, n_head=4, block_size=32, vocab_size=97, attention_backend="manual")
HEADS = {
    "gpt2": {},
    "llama2": {},
    "llama3": dict(num_key_value_heads=2),
    "qwen3": dict(num_key_value_heads=2, head_dim=32),  # its own number, as in Qwen3
}


def golden_losses(preset: str) -> list[float]:
    """fp32 on the CPU: 10 steps of AdamW on batches of 4 x 32 tokens, each a walk of fixed stride through
    the vocabulary."""
    model = ConfigurableGPT(get_preset_config(preset, **SHAPE, **HEADS[preset]), seed=1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rng = np.random.default_rng(1)
    losses = []
    for _ in range(10):
        walks = (rng.integers(97, size=(4, 1)) + rng.integers(1, 4, size=(4, 1)) * np.arange(33)) % 97
        tokens = torch.from_numpy(walks)
        _, loss = model(tokens[:, :-1], tokens[:, 1:])
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.mark.parametrize("preset", PRESET_CONFIGS)
def test_losses_are_the_golden_ones(preset):
    golden = json.loads(GOLDEN.read_text())
    assert set(golden) == set(PRESET_CONFIGS), "a preset was added or removed: run this file with --update"
    losses = golden_losses(preset)
    assert len(golden[preset]) == 10
    assert losses[-1] < losses[0] - 0.1  # it learned; ten equal numbers would prove little
    assert losses == pytest.approx(golden[preset], rel=1e-5)


if __name__ == "__main__":
    if sys.argv[1:] != ["--update"]:
        sys.exit(__doc__)
    torch.set_num_threads(1)
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(
        json.dumps({preset: golden_losses(preset) for preset in PRESET_CONFIGS}, indent=1) + "\n"
    )
