"""Models of Hugging Face as ours: logits, loss, gradients and counts equal, in every layout that people publish."""

import shutil

import huggingface_hub
import pytest
import torch
from hf_twins import (
    GPT2,
    LLAMA_2,
    LLAMA_3,
    LLAMA_31_ROPE,
    QWEN3_06B,
    ROPE,
    TWINS,
    assert_refused,
    assert_same_model,
    edit_config,
    edit_tensors,
    gpt2,
    llama,
    qwen3,
    random_ids,
    twin_of,
)
from safetensors.torch import load_file

from inference.hf import load_hf
from inference.hf.configs import config_from_hf, notes_on_config
from inference.hf.families import FAMILIES
from inference.hf.family import as_hf
from model_builder import ConfigurableGPT
from model_config import get_preset_config
from operators.loss import IGNORED_TARGET


@pytest.fixture(scope="module", params=TWINS)
def twins(request):
    return twin_of(request.param)


@pytest.fixture
def twin_folder(request, tmp_path):
    """A folder to spoil: of the twin that is named by the test's parameter, or an untied llama."""
    return shutil.copytree(twin_of(getattr(request, "param", "llama GQA")).folder, tmp_path / "model")


def test_logits_equal(twins):
    hf_model, model, _ = twins
    ids = random_ids(model.config)
    with torch.no_grad():
        want, got = hf_model(ids).logits, model(ids)[0]
    assert want.std() > 0.3  # else close means nothing
    torch.testing.assert_close(got, want, atol=2e-5, rtol=0)


def test_loss_and_gradients_equal(twins):
    hf_model, model, _ = twins
    family = FAMILIES[hf_model.config.model_type]
    ids = random_ids(model.config)
    targets = torch.cat((ids[:, 1:], torch.full_like(ids[:, :1], IGNORED_TARGET)), dim=1)
    want, (_, got) = hf_model(ids, labels=ids).loss, model(ids, targets)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)

    hf_model.zero_grad()
    model.zero_grad()
    want.backward()
    got.backward()
    hf_grads = {name: p.grad for name, p in hf_model.named_parameters()}
    for name, p in model.named_parameters():
        assert p.grad.abs().max() > 1e-4, name
        for hf_name, view in as_hf(name, p.grad, family, model.config).items():
            torch.testing.assert_close(
                view, hf_grads.pop(hf_name), atol=2e-6, rtol=0, msg=lambda m, n=hf_name: f"{n}: {m}"
            )
    assert not hf_grads


def test_parameters_equal(twins):
    hf_model, model, _ = twins
    assert model.get_num_params() == hf_model.num_parameters()
    assert all(
        p.dtype == torch.float32 and p.requires_grad and p.device.type == "cpu" for p in model.parameters()
    )
    assert (model.config.dropout, model.config.init_std) == (0.0, 0.03)


@pytest.mark.parametrize("name", ["llama GQA", "llama scaled", "qwen3"])
def test_transformers_4_config_says_the_same(name):
    new = TWINS[name]()[1].to_dict()
    rope = dict(new["rope_parameters"])
    old = {field: value for field, value in new.items() if field != "rope_parameters"}
    old["rope_theta"] = rope.pop("rope_theta")
    old["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    assert config_from_hf(old) == config_from_hf(new)
    if old["rope_scaling"]:
        rope["type"] = rope.pop("rope_type")  # its first name
        assert config_from_hf(old) == config_from_hf(new)


@pytest.mark.parametrize("twin", [gpt2, llama, qwen3])
def test_absent_options_mean_what_they_mean_to_transformers(twin):
    _, config = twin()
    sizes = {
        name: value
        for name, value in config.to_dict().items()
        if name in GPT2 | ROPE or name == "num_key_value_heads"
    }
    sizes = {name: value for name, value in sizes.items() if type(value) is int}  # no eps, no rates, no theta
    assert config_from_hf(sizes | dict(model_type=config.model_type)) == config_from_hf(
        type(config)(**sizes).to_dict()
    )


@pytest.mark.parametrize("name", ["gpt2", "qwen3"])
def test_shards_are_read(name, tmp_path):
    theirs, ours, _ = twin_of(name)
    shards = tmp_path / "shards"
    theirs.save_pretrained(shards, max_shard_size="10KB")
    files = sorted(shards.glob("model-*.safetensors"))
    assert len(files) > 2
    assert not (shards / "model.safetensors").exists()
    assert_same_model(load_hf(str(shards)), ours)

    files[1].unlink()
    assert_refused(shards, files[1].name, "missing")


@pytest.mark.parametrize("name", ["gpt2", "llama MHA tied", "qwen3 tied"])
def test_base_model_without_head_is_read(name, tmp_path):
    theirs, ours, _ = twin_of(name)
    theirs.base_model.save_pretrained(tmp_path)  # no prefix, as in the official gpt2 files
    stored = load_file(tmp_path / "model.safetensors")
    assert not any(tensor.startswith(FAMILIES[theirs.config.model_type].prefix) for tensor in stored)
    assert_same_model(load_hf(str(tmp_path)), ours)


@pytest.mark.parametrize("twin_folder", ["gpt2", "llama MHA tied"], indirect=True)
def test_old_buffers_and_tied_head_are_passed_over(twin_folder):
    before = load_hf(str(twin_folder))
    embedding = next(
        name for name in load_file(twin_folder / "model.safetensors") if "wte" in name or "embed" in name
    )

    def add(tensors):
        tensors["lm_head.weight"] = tensors[embedding]
        if "wte" in embedding:
            tensors["transformer.h.1.attn.bias"] = torch.ones(1, 1, 48, 48, dtype=torch.bool)
            tensors["transformer.h.1.attn.masked_bias"] = torch.tensor(-1e4)
        else:
            tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(5)
            tensors["model.rotary_emb.inv_freq"] = torch.ones(5)

    edit_tensors(twin_folder, add)
    assert_same_model(load_hf(str(twin_folder)), before)

    edit_tensors(twin_folder, lambda tensors: tensors["lm_head.weight"][3, 2].add_(0.1))
    assert_refused(twin_folder, "lm_head.weight", "differs")


def test_bfloat16_becomes_float32(twin_folder):
    exact = load_hf(str(twin_folder))
    edit_tensors(
        twin_folder, lambda tensors: tensors.update({name: t.bfloat16() for name, t in tensors.items()})
    )
    rounded = load_hf(str(twin_folder))
    for p, q in zip(exact.parameters(), rounded.parameters(), strict=True):
        assert q.dtype == torch.float32
        assert torch.equal(q, p.bfloat16().float())


def test_hub_name_is_downloaded(twin_folder, monkeypatch):
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(twin_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert_same_model(load_hf("someone/a-model"), load_hf(str(twin_folder)))
    patterns = ["*.json", "*.jinja", "merges.txt", "tokenizer.model", "model*.safetensors"]
    assert asked == [("someone/a-model", patterns)]


OFFICIAL = {
    "gpt2": (
        dict(
            model_type="gpt2", activation_function="gelu_new", attn_pdrop=0.1, embd_pdrop=0.1, initializer_range=0.02,
            layer_norm_epsilon=1e-5, n_ctx=1024, n_embd=768, n_head=12, n_layer=12, n_positions=1024, resid_pdrop=0.1,
            vocab_size=50257,
        ),
        124_439_808,
        "gpt2",
        {},
    ),
    "llama-2-7b": (LLAMA_2, 6_738_415_616, "llama2", {}),
    "llama-3-8b": (LLAMA_3, 8_030_261_248, "llama3", {}),
    "llama-3.1-8b": (
        LLAMA_3 | dict(max_position_embeddings=131072, rope_scaling=LLAMA_31_ROPE),
        8_030_261_248,
        "llama3",
        dict(block_size=131072, rope_scaling="llama3"),
    ),
    "qwen3-0.6b": (QWEN3_06B, 596_049_920, "qwen3", dict(block_size=40960, weight_tying=True)),
    "qwen3-1.7b": (
        QWEN3_06B | dict(hidden_size=2048, intermediate_size=6144),
        1_720_574_976,
        "qwen3",
        dict(block_size=40960, weight_tying=True, n_embd=2048),
    ),
    "qwen3-4b": (
        QWEN3_06B | dict(hidden_size=2560, intermediate_size=9728, num_attention_heads=32, num_hidden_layers=36),
        4_022_468_096,
        "qwen3",
        dict(block_size=40960, weight_tying=True, n_embd=2560, d_ff=9728, n_head=32, n_layer=36),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("hf_config", "params", "preset", "overrides"), OFFICIAL.values(), ids=OFFICIAL)
def test_official_config_is_the_preset(hf_config, params, preset, overrides):
    config = config_from_hf(hf_config)
    with torch.device("meta"):
        assert ConfigurableGPT(config).get_num_params() == params
    assert config == get_preset_config(preset, **overrides)


def test_dropout_is_left_out_and_said(twin_folder):
    assert notes_on_config(twin_folder) == []
    edit_config(twin_folder, attention_dropout=0.25)
    (note,) = notes_on_config(twin_folder)
    assert note.startswith("attention_dropout=0.25 of config.json left out")
    assert load_hf(twin_folder).config.dropout == 0.0
