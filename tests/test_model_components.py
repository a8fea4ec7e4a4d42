"""model_components.py: the registries, every combination of choices, the attention backends, RoPE and the
KV cache."""

import importlib
import itertools
import logging
import math
import random
import sys
import types
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from tiny_models import CPU, TINY, random_ids, tiny

from base import fields
from model_builder import ConfigurableGPT
from model_components import (
    ACTIVATIONS,
    FFNS,
    NORMS,
    POSITION_ENCODINGS,
    KVCache,
    LearnedPositions,
    NoPositions,
    RMSNorm,
    RoPEPositionEncoding,
)
from model_config import PRESET_CONFIGS, ModelArchitectureConfig
from operators import attention
from operators.attention import (
    ATTENTION_BACKENDS,
    CPU_MANUAL_ATTENTION_MAX_T,
    FLASH_PACKAGES,
    PREFERRED_KERNELS,
    backend_problem,
    choose_backend,
)


def choices(field):
    declared, hint = (
        fields.knobs(ModelArchitectureConfig)[field],
        fields.types(ModelArchitectureConfig)[field],
    )
    return fields.choices_of(declared) or get_args(hint)


# Registries


def test_a_registry_holds_what_the_config_names_and_nothing_else():
    assert set(NORMS) == set(choices("normalization"))
    assert set(ACTIVATIONS) == set(choices("activation"))
    assert set(FFNS) == set(choices("ffn_type"))
    assert set(ATTENTION_BACKENDS) == set(choices("attention_backend")) - {"auto"}
    assert set(FLASH_PACKAGES) == {
        name for name in choices("attention_backend") if name.startswith("flash_attn")
    }
    kinds = {"learned": LearnedPositions, "rope": RoPEPositionEncoding, "none": NoPositions}
    assert set(POSITION_ENCODINGS) == set(choices("position_encoding")) == set(kinds)
    for position, kind in kinds.items():
        assert type(ConfigurableGPT(tiny(position_encoding=position)).position_embedding) is kind


def test_norms_and_activations_are_the_written_out_ones():
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    norm = RMSNorm(8, eps=0.1)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(8.0))
    torch.testing.assert_close(
        norm(x), x / (x.pow(2).mean(-1, keepdim=True) + 0.1).sqrt() * torch.arange(8.0)
    )
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    tanh = 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    torch.testing.assert_close(ACTIVATIONS["gelu_tanh"](x), tanh)
    torch.testing.assert_close(ACTIVATIONS["gelu"](x), 0.5 * x * (1 + torch.erf(x / math.sqrt(2))))
    torch.testing.assert_close(ACTIVATIONS["silu"](x), x / (1 + torch.exp(-x)))
    assert ACTIVATIONS["relu"](x).equal(x.clamp(min=0))


def test_the_ffns_are_the_written_out_ones():
    x = torch.randn(2, 3, 16, generator=torch.Generator().manual_seed(0))
    swiglu, standard = (ConfigurableGPT(tiny(ffn_type=t)).blocks[0].ffn for t in ("swiglu", "standard"))
    gate, up = swiglu.gate_up.weight[:24], swiglu.gate_up.weight[24:]
    torch.testing.assert_close(swiglu(x), (F.silu(x @ gate.T) * (x @ up.T)) @ swiglu.down.weight.T)
    torch.testing.assert_close(standard(x), F.silu(x @ standard.up.weight.T) @ standard.down.weight.T)


# Every combination


AXES = dict(
    normalization=choices("normalization"), norm_position=choices("norm_position"),
    position_encoding=choices("position_encoding"), activation=choices("activation"), ffn_type=choices("ffn_type"),
    num_key_value_heads=(1, 2, 4), qk_norm=(False, True), bias=(False, True), weight_tying=(False, True),
    attention_backend=("sdpa", "manual"),
)  # fmt: skip


def covering(axes):
    """Combinations in which each triple of values of each three axes occurs: 9,216 in all, some hundred
    here."""
    product = list(itertools.product(*axes.values()))
    random.Random(0).shuffle(product)
    seen: set = set()
    for row in product:
        triples = set(itertools.combinations(enumerate(row), 3))
        if not triples <= seen:
            seen |= triples
            yield dict(zip(axes, row, strict=True))


def test_every_combination_builds_and_trains():
    ids = random_ids(2, 12)
    built = 0
    for combination in covering(AXES):
        model = ConfigurableGPT(ModelArchitectureConfig(**TINY | combination))
        logits, _ = model(ids)
        assert logits.shape == (2, 12, 31) and logits.isfinite().all(), combination
        _, loss = model(ids, ids.roll(-1, 1))
        assert loss.isfinite() and loss.shape == (), combination
        loss.backward()
        for name, p in model.named_parameters():
            assert p.grad is not None and p.grad.isfinite().all(), (name, combination)
            # The same vector added to every key moves no softmax
            invariant = name.endswith("k_norm.bias") and combination["position_encoding"] != "rope"
            assert invariant or p.grad.abs().max() > 0, (name, combination)
        built += 1
    assert built > 50


# Attention


def plain_attention(q, k, v):
    """One query at a time over keys that are repeated for each query head, in fp64."""
    q, k, v = q.double(), k.double(), v.double()
    k, v = (x.repeat_interleave(q.size(1) // k.size(1), dim=1) for x in (k, v))
    T, S = q.size(2), k.size(2)
    rows = []
    for t in range(T):
        seen = S - T + t + 1
        scores = torch.einsum("bhd,bhsd->bhs", q[:, :, t], k[:, :, :seen]) / math.sqrt(q.size(3))
        rows.append(torch.einsum("bhs,bhsd->bhd", scores.softmax(-1), v[:, :, :seen]))
    return torch.stack(rows, dim=2).float()


@pytest.mark.parametrize(
    "backend", ["manual", "sdpa", *sorted(PREFERRED_KERNELS)]
)  # the last fall back to what the CPU has
@pytest.mark.parametrize("K", [4, 2, 1])  # MHA, GQA, MQA of four query heads
@pytest.mark.parametrize("T, S", [(1, 1), (7, 7), (1, 9), (3, 9), (8, 9)])
@pytest.mark.parametrize("rows", [3, 128])
def test_a_backend_equals_plain_attention_and_its_gradients(backend, K, T, S, rows, monkeypatch):
    monkeypatch.setattr(attention, "CAUSAL_ROWS", rows)
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, T, 8), (2, K, S, 8), (2, K, S, 8))
    inputs = [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]
    weight = torch.randn(shapes[0], generator=generator)
    results = []
    for attend in (lambda q, k, v: ATTENTION_BACKENDS[backend](q, k, v, 0.0), plain_attention):
        out = attend(*inputs)
        results.append([out, *torch.autograd.grad((out * weight).sum(), inputs)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["manual", "sdpa"])
def test_attention_dropout_drops_weights_and_keeps_the_mean(backend):
    q, k = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 2000, 4)  # 2000 equal weights
    torch.manual_seed(0)
    kept = ATTENTION_BACKENDS[backend](q, k, torch.ones(1, 1, 2000, 4), 0.25)
    assert 0.9 < kept.mean() < 1.1 and not kept.allclose(torch.ones(4), atol=1e-6)


@pytest.mark.parametrize("preset", PRESET_CONFIGS)
@pytest.mark.parametrize("backend", ["manual", "sdpa"])
def test_no_token_sees_the_future(preset, backend):
    model = ConfigurableGPT(tiny(preset, attention_backend=backend))
    ids = random_ids(2, 12)
    before = model(ids)[0]
    for t in (1, 6, 11):
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 1) % 31
        after = model(changed)[0]
        torch.testing.assert_close(after[:, :t], before[:, :t], rtol=0, atol=1e-6)
        assert (after[:, t:] - before[:, t:]).abs().amax(
            -1
        ).min() > 1e-4  # and every later one sees the change


def test_the_auto_table():
    assert CPU_MANUAL_ATTENTION_MAX_T == 512
    for device, T, expected in [("cpu", 1, "sdpa"), ("cpu", 2, "manual"), ("cpu", 512, "manual"), ("cpu", 513, "sdpa"),
                                ("cuda", 2, "sdpa"), ("cuda", 4096, "sdpa")]:  # fmt: skip
        for dtype in (torch.float32, torch.bfloat16):
            assert choose_backend("auto", device, dtype, T, 0.0) == expected, (device, T)


@pytest.fixture
def log():
    """The messages of our logger, each once. A cache of its own: another test may have warned already."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("nanofoundry")
    logger.addHandler(handler)
    attention.warn_once.cache_clear()
    yield lines
    logger.removeHandler(handler)
    attention.warn_once.cache_clear()


@pytest.mark.parametrize("backend", sorted([*FLASH_PACKAGES, *PREFERRED_KERNELS]))
def test_flash_attention_falls_back_on_cpu_with_one_line(backend, log):
    ids = random_ids(2, 12)
    model, sdpa = (ConfigurableGPT(tiny(attention_backend=b)) for b in (backend, "sdpa"))
    results = []
    for m in (model, sdpa):
        _, loss = m(ids, ids)
        loss.backward()
        results.append([m(ids)[0], loss, *(p.grad for p in m.parameters())])
    for got, expected in zip(*results, strict=True):
        assert got.equal(expected)
    assert log == [
        f"attention_backend='{backend}' cannot run here: it needs a CUDA device, the tensors are on cpu; using sdpa"
    ]


def test_why_a_flash_backend_cannot_run(log, monkeypatch):
    for name, (package, _) in FLASH_PACKAGES.items():
        monkeypatch.setitem(
            sys.modules, package.split(".")[0], None
        )  # not installed, whatever this machine has
        assert "float32" in backend_problem(name, "cuda", torch.float32)
        problem = backend_problem(name, "cuda", torch.bfloat16, dropout=0.1)
        assert ("no dropout" in problem) == (name != "flash_attn_2")
    assert (
        backend_problem("sdpa", "cpu", torch.float64) is None
        and backend_problem("manual", "cuda", torch.float32) is None
    )


@pytest.mark.parametrize("name", ["flash_attn_2", "flash_attn_3", "flash_attn_4"])
def test_a_flash_kernel_is_called_in_its_own_layout(name, monkeypatch):
    package = FLASH_PACKAGES[name][0]
    asked = []

    def flash_attn_func(q, k, v, causal=False, **options):
        asked.append((q.shape, k.shape, causal, options))
        out = plain_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)).transpose(1, 2)
        return (out, None) if name != "flash_attn_2" else out  # out and the log of the softmax sums

    real = importlib.import_module
    module = types.SimpleNamespace(flash_attn_func=flash_attn_func)
    monkeypatch.setattr(importlib, "import_module", lambda n, *a: module if n == package else real(n, *a))
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, T, 8, generator=generator) for heads, T in ((4, 3), (2, 5), (2, 5)))
    torch.testing.assert_close(ATTENTION_BACKENDS[name](q, k, v, 0.0), plain_attention(q, k, v))
    options = {"dropout_p": 0.0} if name == "flash_attn_2" else {}
    assert asked == [((2, 3, 4, 8), (2, 5, 2, 8), True, options)]


@pytest.mark.parametrize("backend", ["auto", "flash_attn_2"])
def test_one_graph_under_compile(backend, log):
    torch.compiler.reset()
    model = ConfigurableGPT(tiny(n_layer=1, attention_backend=backend))
    ids = random_ids(2, 12)
    _, eager = model(ids, ids)
    eager.backward()
    gradients = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    # The tracer decides what is one graph; the C++ compiler behind it would take a minute here
    _, compiled = torch.compile(model, fullgraph=True, backend="aot_eager")(ids, ids)
    compiled.backward()
    torch.testing.assert_close(compiled, eager, rtol=1e-5, atol=1e-6)
    for p, expected in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=1e-4, atol=1e-6)
    assert len(log) == (backend == "flash_attn_2")


@pytest.mark.parametrize("backend", sorted(PREFERRED_KERNELS))
def test_a_preferred_kernel_is_torchs_first(backend, monkeypatch):
    first = []
    monkeypatch.setattr(
        attention, "attend_sdpa", lambda *a: first.append(torch._C._get_sdp_priority_order()[0])
    )
    ATTENTION_BACKENDS[backend](None, None, None, 0.0)
    assert first == [int(PREFERRED_KERNELS[backend])]


@pytest.mark.parametrize("backend", sorted(PREFERRED_KERNELS))
def test_one_graph_with_a_kernel_that_is_preferred(backend, monkeypatch):
    monkeypatch.setattr(
        attention, "backend_problem", lambda *a: None
    )  # as on a GPU; torch then takes what is here
    test_one_graph_under_compile(backend, [])


def test_the_compiled_model_gives_the_same_loss():
    torch.compiler.reset()
    model = ConfigurableGPT(tiny(n_layer=1))
    ids = random_ids(2, 12)
    with torch.no_grad():
        _, compiled = torch.compile(model, fullgraph=True)(ids, ids)
        torch.testing.assert_close(compiled, model(ids, ids)[1], rtol=1e-5, atol=1e-6)


# KV cache


@pytest.mark.parametrize("preset", PRESET_CONFIGS)
@pytest.mark.parametrize("backend", ["auto", "manual", "sdpa"])
def test_the_cache_gives_the_logits_of_the_full_forward(preset, backend):
    config = tiny(preset, attention_backend=backend)
    model = ConfigurableGPT(config)
    ids = random_ids(2, 12)
    with torch.no_grad():
        full, _ = model(ids)
        cache = KVCache(config, 2, 12, CPU, torch.float32)
        pieces = []
        for piece in ids.split((5, 1, 1, 3, 1, 1), dim=1):  # a prompt, single tokens, a few at once
            pieces.append(model(piece, kv_cache=cache)[0])
        torch.testing.assert_close(torch.cat(pieces, 1), full, rtol=1e-5, atol=1e-5)
        assert cache.length == 12
        with pytest.raises(ValueError, match="13 positions exceed block_size=12"):
            model(ids[:, :1], kv_cache=cache)


def test_the_cache_holds_key_value_heads_only():
    cache = KVCache(tiny(), 3, 7, CPU, torch.bfloat16)
    assert [k.shape for k in cache.keys] == [v.shape for v in cache.values] == 2 * [(3, 2, 7, 4)]
    assert cache.keys[0].dtype == cache.values[1].dtype == torch.bfloat16


@pytest.mark.parametrize("preset", PRESET_CONFIGS)
def test_rows_of_different_lengths_share_a_cache(preset):
    """Prompts padded on the right, then a token a row at positions of their own: each row as it would be
    alone."""
    config = tiny(preset)
    model = ConfigurableGPT(config)
    ids = random_ids(3, 12)
    lengths = torch.tensor([5, 2, 8])
    with torch.no_grad():
        full, _ = model(ids)
        cache = KVCache(config, 3, 12, CPU, torch.float32)
        padded = ids[:, :8].masked_fill(torch.arange(8) >= lengths[:, None], 0)
        first, _ = model(padded, kv_cache=cache)
        cache.set_positions(lengths.clone())
        for row, n in enumerate(lengths):
            torch.testing.assert_close(first[row, :n], full[row, :n], rtol=1e-5, atol=1e-5)
        for _ in range(4):
            positions = cache.positions.clone()
            logits, _ = model(ids.gather(1, positions[:, None]), kv_cache=cache)
            torch.testing.assert_close(logits[:, 0], full[torch.arange(3), positions], rtol=1e-5, atol=1e-5)
            cache.positions += 1
