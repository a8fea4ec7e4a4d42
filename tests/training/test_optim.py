"""Schedules at their corners, decay groups, and that both optimizers learn."""

import math

import pytest
import torch

from model_builder import ConfigurableGPT
from model_config import get_preset_config
from training.config import TrainConfig
from training.optim import build_optimizers, learning_rate_at, set_learning_rate


def rates(**fields: object) -> list[float]:
    base = dict(learning_rate=1.0, min_lr=0.1, warmup_iters=4, max_iters=104)
    config = TrainConfig(**{**base, **fields})
    return [learning_rate_at(step, config) for step in range(130)]


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "linear", "constant"])
def test_warm_up_is_linear_and_moves_from_the_first_step(schedule):
    assert rates(lr_schedule=schedule)[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates(lr_schedule=schedule, warmup_iters=0)[0] == 1.0
    assert rates(lr_schedule=schedule, warmup_iters=1000, max_iters=10)[9] == pytest.approx(10 / 1001)


def test_cosine():
    r = rates()
    assert r[54] == pytest.approx(0.55) and r[29] == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi / 4)))
    assert r[103] > 0.1 and r[104] == r[129] == 0.1


def test_linear_and_constant():
    r = rates(lr_schedule="linear")
    assert r[54] == pytest.approx(0.55) and r[79] == pytest.approx(0.325) and r[104] == 0.1
    assert set(rates(lr_schedule="constant")[4:]) == {1.0}


def test_wsd_stays_up_and_then_falls():
    r = rates(lr_schedule="wsd", wsd_decay_fraction=0.25)  # the last 26 of 104
    assert set(r[4:79]) == {1.0} and r[79] < 1.0
    assert r[91] == pytest.approx(0.55) and r[104] == 0.1


def test_lr_decay_iters_ends_the_decay_before_the_run():
    assert rates(lr_decay_iters=50)[50] == 0.1 and rates(lr_decay_iters=50)[49] > 0.1


@pytest.fixture
def model() -> ConfigurableGPT:
    return ConfigurableGPT(
        get_preset_config("gpt2", n_layer=2, n_embd=32, n_head=2, block_size=16, vocab_size=31)
    )


def names_of(model: ConfigurableGPT, params: list) -> set[str]:
    names = {id(p): n for n, p in model.named_parameters()}
    return {names[id(p)] for p in params}


def test_matrices_decay_and_the_rest_does_not(model):
    (adamw,) = build_optimizers(model, TrainConfig(weight_decay=0.3), torch.device("cpu"))
    decayed, others = adamw.param_groups
    assert decayed["weight_decay"] == 0.3 and others["weight_decay"] == 0.0
    assert {n for n, p in model.named_parameters() if p.dim() == 2} == names_of(model, decayed["params"])
    assert {n for n, p in model.named_parameters() if p.dim() == 1} == names_of(model, others["params"])


def test_muon_has_the_hidden_matrices_and_nothing_else(model):
    adamw, muon = build_optimizers(
        model, TrainConfig(optimizer="muon", muon_learning_rate=3e-3), torch.device("cpu")
    )
    by_muon = names_of(model, muon.param_groups[0]["params"])
    assert (
        by_muon == {n for n, p in model.named_parameters() if p.dim() == 2 and n.startswith("blocks.")}
        and len(by_muon) == 8
    )
    by_adamw = names_of(model, [p for g in adamw.param_groups for p in g["params"]])
    assert by_adamw | by_muon == {n for n, _ in model.named_parameters()} and not by_adamw & by_muon
    set_learning_rate([adamw, muon], 3e-4)
    assert [g["lr"] for g in adamw.param_groups] == [3e-4, 3e-4]
    assert muon.param_groups[0]["lr"] == pytest.approx(1.5e-3)  # five times, as at the start


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_loss_falls(model, optimizer):
    optimizers = build_optimizers(
        model, TrainConfig(optimizer=optimizer, learning_rate=1e-2), torch.device("cpu")
    )
    x = torch.arange(16)[None]
    losses = []
    for _ in range(30):
        loss = model(x, (x + 1) % 31)[1]
        loss.backward()
        for o in optimizers:
            o.step()
            o.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "linear"])
def test_a_warm_up_or_a_decay_may_be_longer_than_the_run(schedule):
    r = rates(lr_schedule=schedule, warmup_iters=60, lr_decay_iters=50)
    assert r[59] == pytest.approx(60 / 61) and r[60] == r[129] == 0.1
    assert rates(lr_schedule=schedule, max_iters=10, lr_decay_iters=104) == rates(lr_schedule=schedule)
    assert rates(lr_schedule=schedule, warmup_iters=104)[103:105] == pytest.approx([104 / 105, 0.1])


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "linear", "constant"])
def test_a_rate_rises_to_the_peak_and_falls_to_the_floor(schedule):
    for warmup_iters in (0, 1, 7, 103):
        for fraction in (0.01, 0.2, 1.0):
            r = rates(lr_schedule=schedule, warmup_iters=warmup_iters, wsd_decay_fraction=fraction)
            peak = r.index(max(r))
            assert r[:peak] == sorted(r[:peak]) and r[peak:] == sorted(r[peak:], reverse=True)
            assert min(r) > 0 and max(r) <= 1.0 and r[-1] == (1.0 if schedule == "constant" else 0.1)


def test_wsd_with_a_fraction_of_one_is_linear():
    assert rates(lr_schedule="wsd", wsd_decay_fraction=1.0) == pytest.approx(rates(lr_schedule="linear"))


def test_an_untied_head_and_qk_norm_are_not_for_muon():
    shape = dict(
        n_layer=1, n_embd=32, n_head=2, num_key_value_heads=1, head_dim=8, block_size=16, vocab_size=31
    )
    model = ConfigurableGPT(get_preset_config("qwen3", weight_tying=False, **shape))
    adamw, muon = build_optimizers(
        model, TrainConfig(optimizer="muon", weight_decay=0.2), torch.device("cpu")
    )
    decayed, others = (names_of(model, g["params"]) for g in adamw.param_groups)
    assert decayed == {"token_embedding.weight", "lm_head.weight"}
    assert others and all("norm" in name for name in others)
    assert muon.param_groups[0]["weight_decay"] == 0.2
    assert muon.param_groups[0]["lr_ratio"] == 1.0


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_rate_of_zero_moves_nothing_and_decay_shrinks_matrices_only(model, optimizer):
    optimizers = build_optimizers(
        model, TrainConfig(optimizer=optimizer, weight_decay=0.5), torch.device("cpu")
    )
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    set_learning_rate(optimizers, 0.0)
    for o in optimizers:
        o.step()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    set_learning_rate(optimizers, 0.1)
    for o in optimizers:
        o.step()
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[n] * (0.95 if p.dim() == 2 else 1.0), msg=n)
