"""Counts, initial weights, the loss, and: every knob of the architecture turns."""

import dataclasses
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from model_builder import ConfigurableGPT
from model_config import ModelArchitectureConfig, get_preset_config
from operators.embedding import Embedding
from training.config import load_config

ROOT = Path(__file__).resolve().parents[1]
PARAMETERS = {
    "full_qwen3_0.6b": 596_049_920,
    "full_qwen3_1.5b": 1_720_574_976,
    "full_qwen3_2.0b": 2_084_281_600,
    "full_gpt2_1.36b": 1_267_213_824,
    "full_llama_1.36b": 1_294_159_104,
    "full_llama3_1.5b_optimal": 1_544_628_224,
    "full_llama3_2.2b_chinchilla": 2_224_154_624,
    "full_llama3_8b": 8_030_261_248,
    "full_gpt2_124m": 124_337_664,
    "full_llama_124m": 123_551_232,
    "full_llama3_124m": 124_730_880,
    "full_qwen3_124m": 123_552_768,
    "quickstart": 4_753_536,
    "compare_tiny_gpt2": 1_350_400,
    "compare_tiny_llama2": 1_352_832,
    "compare_tiny_llama3": 1_348_736,
    "compare_tiny_qwen3": 1_348_992,
}


def on_meta(config: ModelArchitectureConfig) -> ConfigurableGPT:
    with torch.device("meta"):
        return ConfigurableGPT(config)


def test_the_table_has_every_config():
    assert {f.stem for f in (ROOT / "config").glob("*.py")} == set(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_config_file_builds_what_its_header_says(name):
    path = ROOT / "config" / f"{name}.py"
    model_config, train_config = load_config([str(path)])
    params = on_meta(model_config).get_num_params()
    assert params == PARAMETERS[name]
    header = path.read_text().split('"""')[1]
    assert re.search(rf"^    python train\.py config/{re.escape(name)}\.py$", header, re.MULTILINE)
    assert f"{params:,} parameters" in header
    assert f"{train_config.tokens_per_step(model_config.block_size):,} tokens a step." in header


def test_counts_of_presets_and_without_embeddings():
    counts = {"gpt2": 124_439_808, "llama2": 6_738_415_616, "llama3": 8_030_261_248, "qwen3": 751_632_384}
    assert {name: on_meta(get_preset_config(name)).get_num_params() for name in counts} == counts
    for name, expected in (("full_qwen3_0.6b", 440_467_456), ("full_qwen3_1.5b", 1_409_410_048)):
        config, _ = load_config([str(ROOT / "config" / f"{name}.py")])
        assert on_meta(config).get_num_params_non_embedding() == expected
    untied = on_meta(get_preset_config("qwen3"))
    assert untied.get_num_params_non_embedding() == 440_467_456


def tiny(**changes: object) -> ModelArchitectureConfig:
    base = dict(n_layer=2, n_head=4, n_embd=32, num_key_value_heads=2, head_dim=8, d_ff=48, block_size=16, vocab_size=61,
                normalization="rmsnorm", position_encoding="rope", rope_scaling="llama3", rope_original_block_size=8,
                activation="silu", ffn_type="swiglu", qk_norm=True, bias=False, weight_tying=True)  # fmt: skip
    return ModelArchitectureConfig(**{**base, **changes})


def test_initial_weights_are_a_function_of_seed_and_name():
    torch.manual_seed(1)
    a = ConfigurableGPT(tiny(), seed=5)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    b = ConfigurableGPT(tiny(), seed=5)
    assert torch.equal(torch.get_rng_state(), before)
    other, deeper = ConfigurableGPT(tiny(), seed=6), ConfigurableGPT(tiny(n_layer=3), seed=5)
    later = dict(deeper.named_parameters())
    for (name, p), q, r in zip(a.named_parameters(), b.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)
        if p.dim() > 1:
            assert not torch.equal(p, r), name
            if "out." not in name and "down." not in name:  # these shrink with depth
                assert torch.equal(p, later[name]), name


def test_the_table_of_initial_weights():
    model = ConfigurableGPT(
        tiny(n_embd=256, d_ff=512, vocab_size=999, bias=True, weight_tying=False, init_std=0.03), seed=0
    )
    for name, p in model.named_parameters():
        if name.endswith("bias"):
            assert (p == 0).all(), name
        elif p.dim() == 1:
            assert (p == 1).all(), name
        else:
            std = 0.03 / math.sqrt(4) if name.endswith(("attention.out.weight", "ffn.down.weight")) else 0.03
            assert p.std().item() == pytest.approx(std, rel=0.05), name
            assert abs(p.mean().item()) < 0.1 * std, name


def test_the_loss_is_the_mean_over_valid_targets():
    model = ConfigurableGPT(tiny(), seed=0)
    x = torch.randint(61, (3, 16), generator=torch.Generator().manual_seed(0))
    y = x.roll(-1, 1)
    y[:, -1] = y[0] = -100
    logits, nothing = model(x)
    none, loss = model(x, y)
    assert nothing is None and none is None and logits.shape == (3, 16, 61)
    expected = F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=-100)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    assert loss.item() == pytest.approx(math.log(61), rel=0.05)
    assert model(x, torch.full_like(y, -100))[1].item() == 0.0
    with pytest.raises(ValueError, match="17 positions exceed block_size=16"):
        model(torch.zeros(1, 17, dtype=torch.long))


def random_ids(B: int, T: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(61, (B, T), generator=torch.Generator().manual_seed(seed))


def test_gradients_of_micro_batches_add_up_to_those_of_the_batch():
    model = ConfigurableGPT(tiny(init_std=0.2))
    ids, targets = random_ids(8, 16), random_ids(8, 16, seed=1)
    model(ids, targets)[1].backward()
    whole = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    for part, target in zip(ids.split(2), targets.split(2), strict=True):
        (model(part, target)[1] / 4).backward()
    for p, expected in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(p.grad, expected, rtol=1e-4, atol=1e-6)


def test_no_valid_target_gives_no_gradient():
    model = ConfigurableGPT(tiny())
    model(random_ids(2, 16), torch.full((2, 16), -100))[1].backward()
    assert all((p.grad == 0).all() for p in model.parameters())


def test_tied_weights_are_one_parameter():
    assert "lm_head.weight" not in dict(ConfigurableGPT(tiny()).named_parameters())
    assert (
        ConfigurableGPT(tiny(weight_tying=False)).get_num_params() - ConfigurableGPT(tiny()).get_num_params()
        == 61 * 32
    )


# field -> (a value, another value, what else must be set for it to matter)
KNOBS = {
    "n_layer": (2, 3, {}),
    "n_head": (4, 2, {}),
    "n_embd": (32, 64, {}),
    "num_key_value_heads": (2, 1, {}),
    "head_dim": (8, 12, {}),
    "d_ff": (48, 64, {}),
    "ffn_ratio": (2.0, 3.0, {"d_ff": None}),
    "block_size": (16, 8, {"position_encoding": "learned"}),
    "vocab_size": (61, 67, {}),
    "normalization": ("rmsnorm", "layernorm", {}),
    "norm_position": ("pre", "post", {}),
    "norm_eps": (1e-6, 1e-1, {}),
    "position_encoding": ("rope", "none", {}),
    "activation": ("silu", "relu", {}),
    "ffn_type": ("swiglu", "standard", {}),
    "qk_norm": (True, False, {}),
    "bias": (False, True, {}),
    "weight_tying": (True, False, {}),
    "dropout": (0.0, 0.5, {}),
    "init_std": (0.02, 0.2, {}),
    "rope_theta": (1e4, 1e2, {}),
    "rope_scaling": ("llama3", "none", {}),
    "rope_scaling_factor": (8.0, 2.0, {}),
    "rope_low_freq_factor": (1.0, 0.1, {}),
    "rope_high_freq_factor": (4.0, 1.5, {}),
    "rope_original_block_size": (8, 64, {}),
}


def built(config: ModelArchitectureConfig) -> tuple[list, torch.Tensor]:
    model = ConfigurableGPT(config, seed=0).train()
    torch.manual_seed(0)
    x = torch.arange(8)[None] % config.vocab_size
    with torch.no_grad():
        for p in model.parameters():  # away from init, where small weights hide the position of things
            p.mul_(1 + 3 * torch.sin(torch.arange(p.numel(), dtype=torch.float32)).view_as(p))
        logits = model(x)[0]
    return [(name, p.shape) for name, p in model.named_parameters()], logits


@pytest.mark.parametrize("field", KNOBS)
def test_every_knob_turns(field):
    one, other, extra = KNOBS[field]
    (shapes, logits), (other_shapes, other_logits) = (
        built(tiny(**extra, **{field: v})) for v in (one, other)
    )
    assert shapes != other_shapes or not torch.allclose(logits, other_logits, atol=1e-6), (
        f"{field} does nothing"
    )


def test_the_table_has_every_knob():
    # Neither backend changes what is computed; test_model_components.py and test_model_loss.py show that
    # they are obeyed, and z_loss, too, which changes the loss and no logit
    assert set(KNOBS) | {"attention_backend", "loss_backend", "z_loss"} == {
        f.name for f in dataclasses.fields(ModelArchitectureConfig)
    }


def test_the_embeddings_gradient_has_the_same_bits_in_every_run():
    """Of rows that occur several times; torch's own sum, compiled, is in the order in which its threads
    come."""
    ids = torch.randint(3, (4, 2048), generator=torch.Generator().manual_seed(0))
    weight = torch.zeros(8, 16, requires_grad=True)
    scale = torch.randn(4, 2048, 16, generator=torch.Generator().manual_seed(1))

    def gradient(apply):
        rows, head = apply(weight, ids)
        return torch.autograd.grad((rows * scale).sum() + (head**2 + 2 * head).sum(), weight)[0]

    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch.compiler.reset()
    try:
        for apply in (Embedding.apply, torch.compile(Embedding.apply, fullgraph=True, dynamic=False)):
            first = gradient(apply)
            assert all(gradient(apply).equal(first) for _ in range(20))
            expected = 2 + torch.zeros(8, 16).double().index_add(
                0, ids.flatten(), scale.flatten(0, 1).double()
            )
            torch.testing.assert_close(first.double(), expected, rtol=1e-5, atol=1e-4)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("tied", [True, False])
def test_second_derivatives_are_those_of_plain_operators(tied):
    """A Hessian times a vector, in fp32 through oneDNN's matmuls, beside torch's own embedding and matmuls
    in fp64."""
    model = ConfigurableGPT(tiny(weight_tying=tied, block_size=64))
    ids = torch.randint(61, (2, 64), generator=torch.Generator().manual_seed(0))
    along = [torch.randn_like(p) for p in model.parameters()]

    def product(loss: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parameters = list(model.parameters())
        grads = torch.autograd.grad(loss, parameters, create_graph=True)
        return torch.autograd.grad(sum((g * v).sum() for g, v in zip(grads, along, strict=True)), parameters)

    got = product(model(ids, ids)[1])
    model.double()
    logits = F.linear(model.features(ids), model.head_weight)
    for mine, plain in zip(got, product(F.cross_entropy(logits.flatten(0, 1), ids.flatten())), strict=True):
        torch.testing.assert_close(mine.double(), plain, rtol=1e-4, atol=1e-5)


def test_torch_func_takes_the_gradient():
    model = ConfigurableGPT(tiny(block_size=64))
    ids = torch.randint(61, (2, 64), generator=torch.Generator().manual_seed(0))
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    got = torch.func.grad(lambda p: torch.func.functional_call(model, p, (ids, ids))[1])(parameters)
    model(ids, ids)[1].backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(got[name], p.grad)


def test_without_gradients_autocast_casts_a_tied_weight_once():
    """A sample draws token by token: a cast of [V, C] each time would cost more than the token."""
    model = ConfigurableGPT(tiny())
    casts = []

    class Casts(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func is torch.ops.aten._to_copy.default and args[0].shape == model.head_weight.shape:
                casts.append(func)
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), Casts():
        for _ in range(3):
            model(torch.zeros(1, 4, dtype=torch.long))
    assert len(casts) == 1
