"""Rotary positions: 50 digits, the half-split rotation, casts, and the scaling of LLaMA 3."""

import mpmath
import pytest
import torch
from tiny_models import CPU, tiny
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from model_builder import ConfigurableGPT, init_weights
from model_components import (
    RoPEPositionEncoding,
    rope,
    rotate,
)


def rope_config(**fields):
    return tiny(**dict(head_dim=16) | fields)


def test_rope_tables_against_50_digits():
    positions = RoPEPositionEncoding(128, 32768, theta=1e6)
    assert positions.cos.shape == positions.sin.shape == (32768, 64)
    assert positions.cos.dtype == positions.sin.dtype == torch.float32
    assert positions.cos.isfinite().all() and positions.sin.isfinite().all()
    with mpmath.workdps(50):
        for position in (0, 1, 2, 1023, 16385, 32766, 32767):
            for i in (0, 1, 7, 31, 62, 63):
                angle = position * mpmath.mpf(10) ** (-6 * mpmath.mpf(2 * i) / 128)
                assert abs(positions.cos[position, i].item() - mpmath.cos(angle)) < 1e-6
                assert abs(positions.sin[position, i].item() - mpmath.sin(angle)) < 1e-6


def test_rotate_is_the_half_split_rotation():
    cos, sin = rope(rope_config()).angles(slice(3, 8))
    x = torch.randn(2, 4, 5, 16, generator=torch.Generator().manual_seed(0))
    as_complex = torch.complex(x[..., :8], x[..., 8:]) * torch.complex(
        cos, sin
    )  # element i turns with element i + D/2
    torch.testing.assert_close(rotate(x, cos, sin), torch.cat((as_complex.real, as_complex.imag), -1))
    assert rotate(x.bfloat16(), cos, sin).dtype == torch.float32


def test_scores_depend_on_the_distance_alone():
    cos, sin = rope(rope_config(block_size=64, rope_theta=100.0)).angles(slice(0, 64))
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(16, generator=generator).expand(1, 1, 64, 16) for _ in range(2))
    scores = (rotate(q, cos, sin) @ rotate(k, cos, sin).transpose(2, 3))[0, 0]  # [64, 64]
    for distance in (0, 1, 13, 40):
        diagonal = scores.diagonal(-distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-4)
    assert scores.diagonal(0)[0] - scores.diagonal(-13)[0] != pytest.approx(0, abs=1e-2)


@pytest.mark.parametrize("scaling", ["none", "llama3"])
def test_rope_tables_survive_casts_and_the_meta_device(scaling):
    config = rope_config(rope_scaling=scaling)
    expected = rope(config)
    with torch.device("meta"):
        models = [ConfigurableGPT(config), ConfigurableGPT(config).bfloat16()]
    for model in models:
        assert model.position_embedding.cos.is_meta and model.position_embedding.cos.dtype == torch.float32
        init_weights(model.to_empty(device="cpu"), 0)
    models += [
        ConfigurableGPT(config).bfloat16(),
        ConfigurableGPT(config).to(torch.float16),
        ConfigurableGPT(config).double(),
    ]
    models += [ConfigurableGPT(config).bfloat16().float()]
    for model in models:
        assert model.position_embedding.cos.dtype == model.position_embedding.sin.dtype == torch.float32
        assert model.position_embedding.cos.equal(expected.cos) and model.position_embedding.sin.equal(
            expected.sin
        )
    assert models[1].token_embedding.weight.dtype == models[2].token_embedding.weight.dtype == torch.bfloat16
    assert not any("position_embedding" in name for name in models[0].state_dict())


@pytest.mark.parametrize(
    "theta, factor, low, high, original", [(5e5, 8.0, 1.0, 4.0, 8192), (1e4, 32.0, 1.5, 7.0, 300)]
)
def test_llama3_scaling_is_that_of_transformers(theta, factor, low, high, original):
    config = rope_config(
        head_dim=128, rope_theta=theta, rope_scaling="llama3", rope_scaling_factor=factor, rope_low_freq_factor=low,
        rope_high_freq_factor=high, rope_original_block_size=original,
    )  # fmt: skip
    parameters = dict(
        rope_type="llama3", rope_theta=theta, factor=factor, low_freq_factor=low, high_freq_factor=high
    )
    parameters |= dict(original_max_position_embeddings=original)
    twin = LlamaConfig(hidden_size=256, num_attention_heads=2, head_dim=128, rope_parameters=parameters)
    expected, attention_factor = ROPE_INIT_FUNCTIONS["llama3"](twin, CPU)
    got = rope(config).inverse_frequencies()
    assert attention_factor == 1.0 and got.dtype == torch.float64
    torch.testing.assert_close(got.float(), expected.float(), rtol=1e-5, atol=0)
    unscaled = RoPEPositionEncoding(128, 12, theta).inverse_frequencies()
    shrunk = unscaled / got
    assert shrunk[0] == 1 and shrunk[-1] == factor and ((shrunk > 1) & (shrunk < factor)).any()
