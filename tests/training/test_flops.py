"""FLOPs against hand-worked totals and torch's counter; peaks against the datasheets."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from hardware.gpus import peak_flops_per_s
from model_builder import ConfigurableGPT
from model_components import FFNS
from model_config import PRESET_CONFIGS, get_preset_config
from training.config import load_config
from training.flops import block_weights, flops_per_token, matmul_weights


def test_qwen3_1_7b_by_hand():
    config, _ = load_config(["config/full_qwen3_1.5b.py"])
    attention = 2048 * 128 * (16 + 8 + 8) + 16 * 128 * 2048
    n_matmul = 28 * (attention + 3 * 2048 * 6144) + 151936 * 2048
    assert matmul_weights(config) == n_matmul
    assert flops_per_token(config, T=4096) == 6 * n_matmul + 6 * 28 * 16 * 128 * 4096
    assert flops_per_token(config, T=4096) / 1e9 == pytest.approx(11.73, abs=0.005)
    assert flops_per_token(config, T=4096, full_attention=True) / 1e9 == pytest.approx(13.14, abs=0.005)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("preset", PRESET_CONFIGS)
def test_torchs_counter_agrees(preset, tied):
    heads = dict(num_key_value_heads=2) if preset in ("llama3", "qwen3") else {}
    config = get_preset_config(preset, n_layer=2, n_embd=64, n_head=4, block_size=32, vocab_size=97, weight_tying=tied,
                               attention_backend="manual", **heads)  # fmt: skip
    model = ConfigurableGPT(config)
    x = torch.randint(97, (3, 32))
    with FlopCounterMode(display=False) as counter:
        model(x, x)[1].backward()
    # the counter sees all of attention; it counts the input gradient of every matmul, as we do
    assert counter.get_total_flops() == pytest.approx(
        flops_per_token(config, full_attention=True) * x.numel(), rel=1e-6
    )


@pytest.mark.parametrize("preset", PRESET_CONFIGS)
def test_torchs_counter_agrees_at_other_widths(preset):
    """It counts attention in full; 1 % is what it does not count as we do: the rotation, and the chunked
    loss."""
    shape = dict(n_layer=2, n_embd=256, d_ff=512, n_head=4, num_key_value_heads=2, head_dim=64)
    c = get_preset_config(preset, **shape, block_size=32, vocab_size=101, attention_backend="manual")
    model, ids = ConfigurableGPT(c), torch.zeros(2, 32, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(ids, ids)[1].backward()
    assert counter.get_total_flops() / ids.numel() == pytest.approx(
        flops_per_token(c, full_attention=True), rel=0.01
    )


def test_a_block_is_counted_as_it_is_built(monkeypatch):
    """A new FFN needs no formula here, and another depth no other block."""

    class Wide(nn.Module):
        def __init__(self, config):
            super().__init__()
            self.up, self.gain = nn.Linear(config.n_embd, 7), nn.Parameter(torch.ones(3))

    monkeypatch.setitem(FFNS, "wide", Wide)
    shape = dict(n_embd=64, n_head=4, vocab_size=97)
    config = get_preset_config("gpt2", n_layer=3, ffn_type="wide", **shape)
    assert matmul_weights(config) == 3 * (4 * 64 * 64 + 64 * 7) + 97 * 64
    block_weights.cache_clear()
    for n_layer in (1, 5, 100):
        matmul_weights(get_preset_config("gpt2", n_layer=n_layer, **shape))
    assert block_weights.cache_info().misses == 1


@pytest.mark.parametrize("name, tflops", [
    ("NVIDIA H200", 989), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA B200", 2250),
    ("NVIDIA GB200", 2500), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA L40S", 362), ("NVIDIA RTX A6000", 154.8),
    ("NVIDIA GeForce RTX 4090", 165.2), ("NVIDIA GeForce RTX 5090", None), ("AMD EPYC (2 threads)", None), ("Tesla T4", None),
    ("NVIDIA H100 NVL", None), ("NVIDIA H200 NVL", None), ("NVIDIA GH200 480GB", None),
    ("NVIDIA GeForce RTX 4090 Laptop GPU", None), ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None), ("GRID A100-10C", None),
    ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None), ("NVIDIA A100-4C", None), ("NVIDIA H100XM-80C", None),
    ("NVIDIA L40S-48Q", None), ("NVIDIA A100-SXM-64GB", None), ("A100-SXM4-80GB", 312), ("NVIDIA A100 80GB PCIe", 312),
])  # fmt: skip
def test_peaks_are_dense_and_never_guessed(name, tflops):
    assert peak_flops_per_s(name) == (tflops and pytest.approx(tflops * 1e12))


@pytest.mark.parametrize("dtype, fp8, tflops", [
    ("bfloat16", False, 989), ("float16", False, 989), ("float32", False, 67), ("bfloat16", True, 1979), ("int8", False, None),
])  # fmt: skip
def test_the_peak_is_that_of_the_type_that_multiplies(dtype, fp8, tflops):
    assert peak_flops_per_s("NVIDIA H200", dtype, fp8) == (tflops and pytest.approx(tflops * 1e12))


def test_what_has_no_fp8_has_no_peak_of_it():
    assert peak_flops_per_s("NVIDIA A100-SXM4-80GB", "bfloat16", fp8=True) is None
