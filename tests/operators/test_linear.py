"""The fast path of fp32 on CPU gives F.linear's values and gradients, and is taken where it is meant to
be."""

import pytest
import torch
import torch.nn.functional as F

from model_builder import ConfigurableGPT
from model_config import get_preset_config
from operators import linear as linear_module
from operators.linear import linear, runs_in_onednn

needs_onednn = pytest.mark.skipif(
    not linear_module.HAS_ONEDNN, reason="no oneDNN on this machine"
)  # x86 has: CI runs these


def values_and_grads(function, bias, dtype=torch.float32):
    g = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(s, generator=g, dtype=dtype, requires_grad=True) for s in ((4, 40, 24), (56, 24))
    )
    b = torch.randn(56, generator=g, dtype=dtype, requires_grad=True) if bias else None
    y = function(x, weight, b)
    y.square().sum().backward()
    return [y, x.grad, weight.grad] + ([b.grad] if bias else [])


@needs_onednn
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_it_is_linear(bias, compiled, monkeypatch):
    calls = []
    real = linear_module.onednn_linear
    if not compiled:
        monkeypatch.setattr(linear_module, "onednn_linear", lambda *a: calls.append(1) or real(*a))
    ours = torch.compile(linear, fullgraph=True, dynamic=False, backend="aot_eager") if compiled else linear
    for a, b in zip(values_and_grads(ours, bias), values_and_grads(F.linear, bias), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-4)
    assert compiled or len(calls) == 2


@needs_onednn
def test_where_it_is_taken():
    x, weight = torch.ones(64, 8), torch.ones(3, 8)
    assert runs_in_onednn(x, weight) and runs_in_onednn(x.view(2, 32, 8), weight)
    assert not runs_in_onednn(x[:63], weight)
    assert not runs_in_onednn(x.double(), weight.double()) and not runs_in_onednn(
        x.bfloat16(), weight.bfloat16()
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert not runs_in_onednn(x, weight) and linear(x, weight).dtype == torch.bfloat16


@needs_onednn
def test_a_model_is_the_same_with_and_without(monkeypatch):
    shape = dict(n_layer=2, n_embd=64, n_head=4, block_size=32, vocab_size=97, num_key_value_heads=4)
    ids = torch.randint(97, (4, 33), generator=torch.Generator().manual_seed(1))
    results = []
    for has in (True, False):
        monkeypatch.setattr(linear_module, "HAS_ONEDNN", has)
        model = ConfigurableGPT(get_preset_config("gpt2", **shape), seed=1)
        _, loss = model(ids[:, :-1], ids[:, 1:])
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters())])
    for fast, plain in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-4, atol=1e-6)
