"""Presets, what is refused, and the one-liners of the seed plan."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from model_config import (
    PRESET_CONFIGS,
    ModelArchitectureConfig,
    get_preset_config,
    get_qwen3_style_config,
    merge_layers,
)

ROOT = Path(__file__).resolve().parents[1]
SIZES = "n_layer n_embd n_head num_key_value_heads head_dim d_ff block_size vocab_size"
COLUMNS = [*SIZES.split(), "norm_eps", "position_encoding", "rope_theta"]
OFFICIAL = {
    "gpt2": (12, 768, 12, 12, 64, 3072, 1024, 50257, 1e-5, "learned", 1e4),
    "llama2": (32, 4096, 32, 32, 128, 11008, 4096, 32000, 1e-5, "rope", 1e4),
    "llama3": (32, 4096, 32, 8, 128, 14336, 8192, 128256, 1e-5, "rope", 5e5),
    "qwen3": (28, 1024, 16, 8, 128, 3072, 32768, 151936, 1e-6, "rope", 1e6),
}
GPT2 = dict(
    normalization="layernorm",
    activation="gelu_tanh",
    ffn_type="standard",
    bias=True,
    weight_tying=True,
    qk_norm=False,
)
LLAMA = dict(
    normalization="rmsnorm",
    activation="silu",
    ffn_type="swiglu",
    bias=False,
    weight_tying=False,
    qk_norm=False,
)
CHOICES = {"gpt2": GPT2, "llama2": LLAMA, "llama3": LLAMA, "qwen3": LLAMA | dict(qk_norm=True)}


@pytest.mark.parametrize("name", OFFICIAL)
def test_presets_hold_the_official_values(name):
    config = get_preset_config(name)
    assert {c: getattr(config, c) for c in COLUMNS} == dict(zip(COLUMNS, OFFICIAL[name], strict=True))
    assert {c: getattr(config, c) for c in CHOICES[name]} == CHOICES[name]
    assert (config.norm_position, config.rope_scaling, config.dropout) == ("pre", "none", 0.0)


def test_the_presets_and_their_names():
    assert list(PRESET_CONFIGS) == list(OFFICIAL) and get_qwen3_style_config() == get_preset_config("qwen3")
    assert get_preset_config("gpt2") == ModelArchitectureConfig()
    names = {name: get_preset_config(name).get_architecture_name() for name in OFFICIAL}
    assert names["qwen3"] == "Qwen3 (pre-RMSNorm, RoPE 1e6, GQA 16:8, SwiGLU, qk-norm, untied)"
    assert [n.partition(" ")[0] for n in names.values()] == ["GPT-2", "LLaMA-2", "LLaMA-3", "Qwen3"]
    assert get_preset_config("qwen3", qk_norm=False).get_architecture_name().startswith("custom (")


def test_sizes_scale_a_preset_in_its_own_proportions():
    small = get_preset_config("llama2", n_embd=256, n_head=8)
    assert (small.num_key_value_heads, small.head_dim, small.d_ff) == (8, 32, 688)


def test_json_round_trip(tmp_path):
    config = get_preset_config("qwen3", n_embd=512, dropout=0.1)
    config.save(tmp_path / "model.json")
    assert ModelArchitectureConfig.load(tmp_path / "model.json") == config
    fields = json.loads((tmp_path / "model.json").read_text())
    with pytest.raises(ValueError, match=r"unknown key 'n_layers'.*did you mean 'n_layer'"):
        ModelArchitectureConfig.from_dict(fields | {"n_layers": 3})


@pytest.mark.parametrize("fields, said", [
    (dict(n_embd=100, n_head=12), ("n_embd=100", "n_head=12")),
    (dict(n_head=12, num_key_value_heads=5), ("n_head=12", "num_key_value_heads=5")),
    (dict(head_dim=63, position_encoding="rope"), ("head_dim=63", "position_encoding='rope'")),
    (dict(d_ff=100, ffn_ratio=4.0), ("d_ff=100", "ffn_ratio=4.0", "3072")),
    (dict(rope_scaling="llama3", rope_high_freq_factor=1.0, rope_low_freq_factor=2.0), ("1.0", "2.0")),
    (dict(ffn_ratio=1e308), ("ffn_ratio=1e+308",)),
    (dict(rope_theta=10**400), ("rope_theta=1000",)),
    (dict(dropout=1.0), ("dropout=1.0", "[0, 1)")),
    (dict(n_layer=0), ("n_layer=0",)),
    (dict(norm_eps=float("nan")), ("norm_eps=nan",)),
    (dict(rope_theta=float("inf")), ("rope_theta=inf",)),
    (dict(normalization="rms_norm"), ("'rms_norm'", "did you mean 'rmsnorm'")),
    (dict(n_layer="12"), ("n_layer='12'", "wanted int")),
    (dict(n_layer=1.5), ("n_layer=1.5", "wanted int")),
    (dict(bias=1), ("bias=1", "wanted bool")),
    (dict(n_embd=True), ("n_embd=True", "wanted int")),
])  # fmt: skip
def test_nonsense_is_refused_with_both_numbers(fields, said):
    with pytest.raises(ValueError) as error:
        ModelArchitectureConfig(**fields)
    assert all(part in str(error.value) for part in said) and "\n" not in str(error.value)


def test_unknown_preset():
    with pytest.raises(ValueError, match="did you mean 'qwen3'"):
        get_preset_config("qwen")


def test_the_later_of_d_ff_and_ffn_ratio_counts():
    assert merge_layers([{"ffn_ratio": 3.0}, {"d_ff": 100}]) == {"d_ff": 100}
    assert merge_layers([{"d_ff": 100}, {"ffn_ratio": 3.0}]) == {"ffn_ratio": 3.0}
    assert get_preset_config("qwen3", ffn_ratio=2.0).d_ff == 2048


def test_swiglu_without_a_width_keeps_the_parameters_of_a_standard_ffn():
    assert ModelArchitectureConfig(n_embd=4096, n_head=32, ffn_type="swiglu").d_ff == 11008  # LLaMA 2's own


def test_unused_fields_are_noted():
    assert get_preset_config("gpt2", rope_theta=5e5).notes() == [
        "rope_theta=500000.0 has no effect with position_encoding='learned'"
    ]
    assert get_preset_config("llama3", rope_scaling_factor=4.0).notes() == [
        "rope_scaling_factor=4.0 has no effect with rope_scaling='none'"
    ]
    assert not any(get_preset_config(name).notes() for name in PRESET_CONFIGS)


# Section 6.1 of the plan that the project was asked to follow, as written there.
ONE_LINERS = ["""
from model_config import get_preset_config
config = get_preset_config('qwen3')
print(f'Qwen3 preset: {config.get_architecture_name()}')
assert config.rope_theta == 1_000_000, 'RoPE theta incorrect'
assert config.num_key_value_heads == 8, 'GQA heads incorrect'
print('✓ Qwen3 preset validation passed')
""", """
from model_builder import ConfigurableGPT
from model_config import get_preset_config
config = get_preset_config('qwen3')
model = ConfigurableGPT(config)
print(f'Parameters: {model.get_num_params() / 1e6:.2f}M')
print('✓ Qwen3 model construction passed')
"""]  # fmt: skip


@pytest.mark.parametrize(
    "code, said", [(ONE_LINERS[0], "Qwen3 preset: Qwen3"), (ONE_LINERS[1], "Parameters: 751.63M")]
)
def test_the_one_liners_of_the_seed_plan(code, said):
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and said in done.stdout and "passed" in done.stdout, done.stderr
