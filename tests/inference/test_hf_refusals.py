"""What cannot be read as one of our models ends in one InputError, and nothing is executed."""

import shutil

import huggingface_hub
import pytest
import torch
from hf_twins import TWINS, assert_refused, edit_config, edit_tensors, scaled, twin_of

from inference.hf import load_hf

Q, K = (
    "model.layers.1.self_attn.q_proj.weight",
    "model.layers.1.self_attn.k_proj.weight",
)  # [40, 32] and [20, 32]


@pytest.fixture
def twin_folder(request, tmp_path):
    """A folder to spoil: of the twin that is named by the test's parameter, or an untied llama."""
    return shutil.copytree(twin_of(getattr(request, "param", "llama GQA")).folder, tmp_path / "model")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda t: t.pop(K), (K, "[20, 32]", "missing")),
        (lambda t: t.pop("lm_head.weight"), ("lm_head.weight", "[61, 32]", "missing")),
        (lambda t: t.pop("model.norm.weight"), ("model.norm.weight", "[32]", "missing")),
        (lambda t: t.update({Q + "_scale": torch.ones(40)}), (Q + "_scale", "[40]", "unexpected")),
        (
            lambda t: t.update({Q.replace("weight", "bias"): torch.ones(40)}),
            ("q_proj.bias", "[40]", "unexpected"),
        ),
        (
            lambda t: t.update({Q.replace(".1.", ".2."): t[Q]}),
            ("model.layers.2.self_attn.q_proj.weight", "unexpected"),
        ),
        (lambda t: t.update({Q.removeprefix("model."): t[Q]}), ("layers.1.self_attn.q_proj.weight", "twice")),
        (lambda t: t.update({Q: t[Q].t().contiguous()}), (Q, "[32, 40]", "[40, 32]")),
        # The sum of the rows is right, so that a check of the fused tensor alone would let it pass
        (lambda t: t.update({Q: t[K], K: t[Q]}), (Q, "[20, 32]", "[40, 32]")),
        (lambda t: t.update({Q: t[Q].to(torch.int8)}), (Q, "I8")),
    ],
)
def test_wrong_tensor_is_refused(twin_folder, edit, words):
    edit_tensors(twin_folder, edit)
    assert_refused(twin_folder, *words)


@pytest.mark.parametrize("keep", [0, 5, 300, -4])
def test_truncated_weights_are_refused(twin_folder, keep):
    path = twin_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert_refused(twin_folder, "model.safetensors", "damaged")


@pytest.mark.parametrize("content", ["", "[1]", '{"model_type": "llama"', "\x00"])
def test_damaged_config_is_refused(twin_folder, content):
    (twin_folder / "config.json").write_text(content)
    assert_refused(twin_folder, "config.json", "damaged")


def test_absent_files_are_refused(twin_folder):
    weights = twin_folder / "model.safetensors"
    weights.rename(twin_folder / "pytorch_model.bin")
    assert_refused(twin_folder, "needs model.safetensors", ".bin")
    (twin_folder / "pytorch_model.bin").unlink()
    assert_refused(twin_folder, "needs model.safetensors")
    (twin_folder / "model.safetensors.index.json").write_text('{"metadata": {}}')
    assert_refused(twin_folder, "index.json", "weight_map")
    (twin_folder / "config.json").unlink()
    assert_refused(twin_folder, "config.json", "missing")


@pytest.mark.parametrize(
    ("name", "fields", "words"),
    [
        ("llama GQA", dict(model_type="mistral"), ("model_type='mistral'",)),
        ("llama GQA", dict(model_type="qwen4"), ("model_type='qwen4'", "did you mean 'qwen3'")),
        ("llama GQA", dict(model_type=None), ("model_type=None",)),
        ("llama GQA", dict(attention_bias=True), ("attention_bias=True", "mlp_bias=False")),
        ("llama GQA", dict(mlp_bias=True), ("attention_bias=False", "mlp_bias=True")),
        ("llama GQA", dict(hidden_act="quick_gelu"), ("hidden_act='quick_gelu'",)),
        ("llama GQA", dict(hidden_size=None), ("hidden_size is missing",)),
        ("llama GQA", dict(num_attention_heads=3), ("n_head=3",)),
        ("llama GQA", dict(quantization_config=dict(bits=4)), ("quantization_config", "4")),
        ("llama GQA", dict(partial_rotary_factor=0.5), ("partial_rotary_factor=0.5",)),
        ("llama GQA", dict(rope_parameters=dict(rope_type="yarn", factor=4.0)), ("rope_type='yarn'",)),
        (
            "llama GQA",
            dict(rope_scaling=dict(type="linear", factor=2.0)),
            ("rope_type='linear'", "rope_scaling"),
        ),
        ("llama GQA", scaled(factor=None), ("factor is missing",)),
        (
            "llama GQA",
            scaled(original_max_position_embeddings=None),
            ("original_max_position_embeddings is missing",),
        ),
        ("llama GQA", scaled(attention_factor=2.0), ("attention_factor=2.0", "llama3")),
        ("llama GQA", scaled(partial_rotary_factor=0.25), ("partial_rotary_factor=0.25",)),
        ("qwen3", dict(attention_bias=True), ("attention_bias=True",)),
        ("qwen3", dict(use_sliding_window=True), ("use_sliding_window=True",)),
        (
            "qwen3",
            dict(layer_types=["full_attention", "sliding_attention"]),
            ("layer_types='sliding_attention'",),
        ),
        ("qwen3", dict(head_dim=None), ("head_dim is missing",)),
        ("gpt2", dict(scale_attn_by_inverse_layer_idx=True), ("scale_attn_by_inverse_layer_idx=True",)),
        ("gpt2", dict(scale_attn_weights=False), ("scale_attn_weights=False",)),
        ("gpt2", dict(add_cross_attention=True), ("add_cross_attention=True",)),
        (
            "gpt2",
            dict(activation_function="gelu_nwe"),
            ("activation_function='gelu_nwe'", "did you mean 'gelu_new'"),
        ),
        ("gpt2", dict(n_positions="48"), ("48",)),
    ],
)
def test_inexpressible_config_is_refused(tmp_path, name, fields, words):
    TWINS[name]()[1].save_pretrained(
        tmp_path
    )  # no weights: the configuration is refused before they are looked for
    edit_config(tmp_path, **fields)
    assert_refused(tmp_path, str(tmp_path / "config.json"), *words)


def test_hub_failure_is_one_line(monkeypatch):
    def snapshot_download(name, allow_patterns):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert_refused("someone/a-model", "someone/a-model", "not a folder", "no route")


def test_nothing_is_unpickled(twin_folder, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch.load was called"))
    (twin_folder / "pytorch_model.bin").write_bytes(b"not a pickle")
    load_hf(str(twin_folder))


def test_an_adapter_is_not_read_as_its_model(twin_folder):
    (twin_folder / "adapter_config.json").write_text('{"base_model_name_or_path": "x"}')
    assert_refused(twin_folder, "adapter_config.json", "merge it")
