"""Every way to the loss gives the plain one's value and gradients."""

import pytest
import torch

from model_builder import ConfigurableGPT
from model_config import get_preset_config
from operators import loss as model_loss
from operators.loss import SIZES, LossSizes, head_loss

V, C, B, T = 97, 24, 3, 10


def case(dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(B, T, C, generator=g), torch.randn(V, C, generator=g)
    targets = torch.randint(V, (B, T), generator=g)
    targets[0, :4] = targets[2, -1] = -100
    return x.to(dtype).requires_grad_(), weight.requires_grad_(), targets


def loss_and_grads(backend, z_loss=0.0, scale=3.0, sizes=SIZES, **kwargs):
    x, weight, targets = case(**kwargs)
    loss = head_loss(x, weight, targets, backend, z_loss, sizes)
    (scale * loss).backward()
    return loss.detach(), x.grad, weight.grad


@pytest.mark.parametrize("chunk", [1, 7, 30, 1000])
@pytest.mark.parametrize("z_loss", [0.0, 0.01])
@pytest.mark.parametrize("piece", [1, 4, 1000])
def test_chunked_is_plain(chunk, z_loss, piece):
    sizes = LossSizes(chunk=chunk * 4 * V, piece=piece * 4 * V)
    chunked, plain = loss_and_grads("chunked", z_loss, sizes=sizes), loss_and_grads("plain", z_loss)
    for ours, theirs in zip(chunked, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_z_loss_is_what_it_says():
    x, weight, targets = case()
    logits = x @ weight.t()
    extra = logits.logsumexp(-1).square()[targets != -100].mean()
    difference = head_loss(x, weight, targets, "plain", 0.5) - head_loss(x, weight, targets, "plain")
    torch.testing.assert_close(difference, 0.5 * extra)


@pytest.mark.parametrize("backend", ["plain", "chunked"])
def test_what_z_loss_adds_is_told_apart(backend):
    x, weight, targets = case()
    apart: list[torch.Tensor] = []
    loss = head_loss(x, weight, targets, backend, 0.5, apart=apart)
    cross_entropy = head_loss(x, weight, targets, "plain")
    torch.testing.assert_close(loss - apart[0], cross_entropy)
    assert apart[0] > 0 and not apart[0].requires_grad


@pytest.mark.parametrize("chunk", [7, 1000])
def test_under_autocast_they_differ_by_rounding(chunk):
    sizes = LossSizes(chunk=chunk * 2 * V)
    exact = loss_and_grads("plain")
    with torch.autocast("cpu", torch.bfloat16):
        plain, chunked = loss_and_grads("plain"), loss_and_grads("chunked", sizes=sizes)
    for ours, theirs, truth in zip(chunked, plain, exact, strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        assert (ours - truth).norm() <= 1.2 * (
            theirs - truth
        ).norm() + 1e-6  # no further from fp32 than the plain one
        assert not torch.equal(ours, truth)  # it did compute in bfloat16


def test_no_valid_target_is_zero_with_zero_gradient():
    for backend in ("plain", "chunked"):
        x, weight, targets = case()
        loss = head_loss(x, weight, torch.full_like(targets, -100), backend)
        loss.backward()
        assert loss == 0 and x.grad.eq(0).all() and weight.grad.eq(0).all()


def test_no_fp32_tensor_of_all_logits():
    """The largest allocation of a bf16 step is the chunk's logits in bf16."""
    words, tokens = 200_000, 64
    x, weight = torch.randn(1, tokens, 8, requires_grad=True), torch.randn(words, 8, requires_grad=True)
    targets = torch.randint(words, (1, tokens))
    with torch.profiler.profile(profile_memory=True) as profile, torch.autocast("cpu", torch.bfloat16):
        head_loss(x, weight, targets, "chunked").backward()
    sizes = [event.self_cpu_memory_usage for event in profile.events()]
    logits = 2 * words * tokens
    assert logits <= max(sizes) < 1.6 * logits  # fp32 ones would be twice as large


def test_without_gradients_none_are_computed(monkeypatch):
    x, weight, targets = case()
    with torch.no_grad():
        torch.testing.assert_close(
            head_loss(x, weight, targets, "chunked"), head_loss(x, weight, targets, "plain")
        )
    shapes = []
    monkeypatch.setattr(torch, "empty_like", lambda t: shapes.append(t.shape))
    with torch.no_grad():
        head_loss(x, weight, targets, "chunked")
    assert not shapes


def test_auto_is_chunked_where_the_logits_are_large(monkeypatch):
    calls = []
    real = model_loss.ChunkedLoss.apply
    monkeypatch.setattr(model_loss.ChunkedLoss, "apply", lambda *a: calls.append(a[5][:2]) or real(*a))
    x, weight, targets = case()
    head_loss(x, weight, targets)
    assert not calls
    head_loss(x, weight, targets, sizes=LossSizes(plain_max=4 * B * T * V - 1, chunk=8 * 4 * V))
    assert calls == [((0, 8, 16, 24), 8)]


def test_chunked_compiles_whole():
    compiled = torch.compile(head_loss, fullgraph=True, dynamic=False, backend="aot_eager")
    results = []
    for function in (head_loss, compiled):
        x, weight, targets = case()
        loss = function(x, weight, targets, "chunked", 0.01, LossSizes(chunk=16 * 4 * V))
        loss.backward()
        results.append((loss.detach(), x.grad, weight.grad))
    for eager, graph in zip(*results, strict=True):
        torch.testing.assert_close(eager, graph)


@pytest.mark.parametrize("preset", ["gpt2", "qwen3"])  # tied and untied
def test_the_model_obeys(preset):
    ids = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(1))
    results = []
    for backend, z_loss in (("plain", 0.0), ("chunked", 0.0), ("chunked", 1.0)):
        shape = dict(
            n_layer=1,
            n_embd=32,
            n_head=2,
            num_key_value_heads=2,
            head_dim=16,
            d_ff=32,
            block_size=8,
            vocab_size=61,
        )
        model = ConfigurableGPT(
            get_preset_config(preset, **shape, loss_backend=backend, z_loss=z_loss), seed=3
        )
        _, loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    for plain, chunked in zip(results[0], results[1], strict=True):
        torch.testing.assert_close(plain, chunked, rtol=1e-5, atol=1e-6)
    assert results[2][0] > results[1][0] + 1
    model.eval()
    _, evaluated = model(ids[:, :-1], ids[:, 1:])
    torch.testing.assert_close(
        evaluated, results[1][0]
    )  # the extra term is for training: an evaluation is comparable


@pytest.mark.parametrize("chunk_bytes", [1 << 20, 4 * 97 * 3])  # all tokens at once, three at a time
def test_a_kept_graph_or_a_second_derivative_is_refused(chunk_bytes):
    """Its gradients are scaled in place: what cannot be right is an error, not a number."""
    sizes = LossSizes(chunk=chunk_bytes)
    x = torch.randn(1, 7, 4, requires_grad=True)
    weight = torch.randn(97, 4, requires_grad=True)
    targets = torch.arange(7)[None]
    loss = head_loss(x, weight, targets, "chunked", sizes=sizes)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
    again = head_loss(x, weight, targets, "chunked", sizes=sizes)
    (grad,) = torch.autograd.grad(again**2, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("backend", ["plain", "chunked"])
@pytest.mark.parametrize("target", [-1, 5])
def test_a_target_that_is_no_word_is_an_error(backend, target):
    x, weight = torch.randn(1, 3, 4), torch.randn(5, 4)
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        head_loss(x, weight, torch.tensor([[1, target, -100]]), backend)
