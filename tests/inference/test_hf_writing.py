"""Our models as Hugging Face's: the same to transformers, or refused by name."""

import pytest
import torch
from hf_twins import TWINS, assert_same_model, random_ids, twin_of
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    PretrainedConfig,
)

import model_components
from base.errors import InputError
from inference.hf import load_hf, save_hf
from inference.hf.configs import config_from_hf, config_to_hf
from model_builder import ConfigurableGPT
from model_config import get_preset_config


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("max_shard_bytes", [1 << 30, 10_000], ids=["whole", "sharded"])
def test_export_is_the_same_model_to_transformers(name, max_shard_bytes, tmp_path):
    """Theirs -> ours -> theirs -> ours: every weight bit by bit, no key missing or too many, the same
    logits."""
    twin, model, _ = twin_of(name)
    save_hf(model, tmp_path / "ours", max_shard_bytes=max_shard_bytes)
    assert len(list((tmp_path / "ours").glob("*.safetensors"))) == 1 or max_shard_bytes == 10_000
    assert (tmp_path / "ours" / "model.safetensors.index.json").exists() == (max_shard_bytes == 10_000)
    assert len({file.stat().st_mode for file in (tmp_path / "ours").iterdir()}) == 1

    back, info = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(info.values()), info
    assert type(back) is type(twin)
    theirs, again = twin.state_dict(), back.state_dict()
    assert theirs.keys() == again.keys() and all(torch.equal(theirs[k], again[k]) for k in theirs)
    ids = random_ids(model.config)
    with torch.no_grad():
        torch.testing.assert_close(back.eval()(ids).logits, model.eval()(ids)[0], atol=1e-4, rtol=0)
    assert_same_model(load_hf(tmp_path / "ours"), model)


@pytest.mark.parametrize("preset", ["gpt2", "llama2", "llama3", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_our_own_weights_come_back(preset, tied, tmp_path):
    shape = dict(n_layer=2, n_embd=32, n_head=4, block_size=24, vocab_size=61, weight_tying=tied)
    kv = dict(num_key_value_heads=2) if preset in ("llama3", "qwen3") else {}
    model = ConfigurableGPT(get_preset_config(preset, **shape, **kv), seed=3)
    save_hf(model, tmp_path)
    assert_same_model(load_hf(tmp_path), model)
    half = ConfigurableGPT(model.config, seed=3).bfloat16()
    save_hf(half, tmp_path, dtype=torch.bfloat16)  # over the files of before
    stored = load_file(tmp_path / "model.safetensors")
    assert all(t.dtype == torch.bfloat16 for t in stored.values())
    assert_same_model(load_hf(tmp_path, dtype=torch.bfloat16), half)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.dtype == torch.bfloat16 and theirs.num_parameters() == model.get_num_params()


@pytest.mark.parametrize("tied", [True, False])
def test_a_gpt2_without_biases_is_one_with_biases_of_zero(tied, tmp_path):
    sizes = dict(n_layer=2, n_embd=32, n_head=4, block_size=24, vocab_size=61, weight_tying=tied)
    model = ConfigurableGPT(get_preset_config("gpt2", bias=False, **sizes), seed=3)
    save_hf(model, tmp_path)
    back, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    assert not any(t.any() for name, t in back.state_dict().items() if name.endswith("bias"))
    ids = random_ids(model.config)
    with torch.no_grad():
        expected = model.eval()(ids)[0]
        torch.testing.assert_close(back.eval()(ids).logits, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(load_hf(tmp_path).eval()(ids)[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["gpt2", "llama scaled", "qwen3 tied"])
def test_config_json_leaves_no_field_to_a_default(name):
    """What transformers 5 writes itself, and for transformers 4 the older names of the same."""
    _, config = TWINS[name]()
    config.architectures = None  # names the class, as ours does
    ours = config_to_hf(config_from_hf(config.to_dict()))
    assert set(config.to_dict()) - set(ours) <= {
        "transformers_version",
        "_name_or_path",
        *PretrainedConfig().to_dict(),
    }
    assert set(type(config)().to_dict()) - set(PretrainedConfig().to_dict()) <= set(ours)
    read = type(config).from_dict(dict(ours))
    assert config_from_hf(read.to_dict()) == config_from_hf(config.to_dict())
    old = {k: v for k, v in ours.items() if k != "rope_parameters"}
    assert config_from_hf(old) == config_from_hf(ours)


@pytest.mark.parametrize(
    ("preset", "choices", "words"),
    [
        ("gpt2", dict(num_key_value_heads=2), ("num_key_value_heads=2",)),
        ("gpt2", dict(head_dim=16), ("head_dim=16",)),
        ("gpt2", dict(position_encoding="none"), ("position_encoding='none'",)),
        ("llama3", dict(norm_position="post"), ("norm_position='post'", "llama")),
        ("llama3", dict(ffn_type="standard"), ("ffn_type='standard'",)),
        ("llama3", dict(normalization="layernorm"), ("normalization='layernorm'",)),
        ("qwen3", dict(bias=True), ("bias=True", "qwen3")),
    ],
)
def test_what_no_class_expresses_is_refused(preset, choices, words, tmp_path):
    sizes = dict(n_layer=1, n_embd=32, n_head=4, num_key_value_heads=4, block_size=8, vocab_size=11)
    model = ConfigurableGPT(get_preset_config(preset, **sizes | choices))
    with pytest.raises(ValueError, match="no Hugging Face class") as caught:
        save_hf(model, tmp_path / "out")
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "registry", "entry"),
    [
        ("activation", model_components.ACTIVATIONS, lambda x: x.relu().square()),
        ("normalization", model_components.NORMS, lambda dim, config: torch.nn.RMSNorm(dim)),
        ("ffn_type", model_components.FFNS, model_components.SwiGLU),
        ("position_encoding", model_components.POSITION_ENCODINGS, model_components.rope),
    ],
)
def test_a_choice_without_a_name_there_is_refused_by_name(field, registry, entry, monkeypatch):
    monkeypatch.setitem(registry, "mine", entry)
    for preset in ("gpt2", "llama2", "qwen3"):
        with pytest.raises(InputError, match=f"{field}='mine'"):
            config_to_hf(get_preset_config(preset, **{field: "mine"}))


@pytest.mark.parametrize("fault", [OSError, SafetensorError])
def test_the_cast_is_that_of_torch_and_a_failed_export_leaves_the_old_one(fault, tmp_path, monkeypatch):
    model = ConfigurableGPT(get_preset_config("llama3", n_layer=1, n_embd=32, n_head=4, num_key_value_heads=2, block_size=8,
                                              vocab_size=11))  # fmt: skip
    save_hf(model, tmp_path / "out", dtype=torch.bfloat16, max_shard_bytes=2000)
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    rounded = load_hf(tmp_path / "out")
    assert all(
        torch.equal(p, q.bfloat16().float())
        for p, q in zip(rounded.parameters(), model.parameters(), strict=True)
    )

    def fails(*args, **kwargs):
        raise fault("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("inference.hf.writing.save_file", fails)
        with pytest.raises(InputError, match="cannot be written"):
            save_hf(model, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    save_hf(model, tmp_path / "out")  # one file: the shards of before are gone
    assert_same_model(load_hf(tmp_path / "out"), model)
    assert len(list((tmp_path / "out").glob("*.safetensors*"))) == 1


def test_a_fault_of_ours_is_not_called_the_users(tmp_path, monkeypatch):
    model = ConfigurableGPT(get_preset_config("llama3", n_layer=1, n_embd=32, n_head=4, num_key_value_heads=2, block_size=8,
                                              vocab_size=11))  # fmt: skip

    def fails(*args):
        raise FileNotFoundError("a fault of ours")

    monkeypatch.setattr("inference.hf.writing.as_hf", fails)
    with pytest.raises(FileNotFoundError, match="a fault of ours"):
        save_hf(model, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
