"""The laws, and the shapes that a budget buys."""

import pytest

from model_config import get_preset_config
from planning.scaling import BESIROGLU, HOFFMANN, best_shapes
from planning.sizes import parameters
from training import flops

SHAPE = dict(
    n_layer=2,
    n_embd=64,
    d_ff=96,
    n_head=4,
    num_key_value_heads=2,
    head_dim=16,
    block_size=32,
    vocab_size=32000,
)


@pytest.mark.parametrize("law", [HOFFMANN, BESIROGLU])
def test_the_optimum_is_the_lowest_point(law):
    N, D = law.optimum(1e21)
    assert pytest.approx(1e21) == 6 * N * D
    assert law.loss(N, D) < min(law.loss(1.02 * N, D / 1.02), law.loss(N / 1.02, 1.02 * D))


def test_besiroglu_asks_for_about_twenty_tokens_a_parameter():
    N, D = BESIROGLU.optimum(5.76e23)  # Chinchilla's budget; the paper's abstract
    assert 15 < D / N < 25


def test_the_budget_is_spent_and_the_order_is_by_loss():
    shapes = best_shapes(get_preset_config("qwen3", **SHAPE), 1e18)
    losses = [BESIROGLU.loss(s.params, s.tokens) for s in shapes]
    assert losses == sorted(losses)
    for s in shapes[:3]:
        assert s.params == parameters(s.config)
        assert s.tokens * flops.flops_per_token(s.config) == pytest.approx(1e18)
