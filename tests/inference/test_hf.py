"""inference/hf.py against transformers: a tiny random twin of each family is the oracle of logits, loss and
gradients."""

import json

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from base.errors import InputError, MissingFile, MissingPackage
from inference.hf import load_hf, save_hf
from inference.hf.configs import config_from_hf, config_to_hf
from inference.hf.families import FAMILIES
from inference.hf.family import as_hf
from model_builder import ConfigurableGPT
from model_config import get_preset_config
from operators.loss import IGNORED_TARGET

# Sizes that no default would give, heads that are not n_embd / n_head wide, an eps that is seen, a theta
# that turns slowly enough for every pair of a head to matter within 48 positions.
GPT2 = dict(vocab_size=61, n_positions=48, n_embd=36, n_layer=2, n_head=4, layer_norm_epsilon=0.02)
GPT2 |= dict(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.03)
ROPE = dict(
    vocab_size=61, max_position_embeddings=48, hidden_size=32, intermediate_size=52, num_hidden_layers=2
)
ROPE |= dict(num_attention_heads=4, head_dim=10, rms_norm_eps=0.02, initializer_range=0.03)
ROPE |= dict(rope_parameters=dict(rope_type="default", rope_theta=300.0))
# Of the 8 pairs of a head of 16 the first turns 6.4 times in 40 tokens and stays, the next two 3.1 and 1.5
# times and are blended, the others less than once and are stretched
SCALED = dict(rope_type="llama3", rope_theta=300.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
SCALED |= dict(original_max_position_embeddings=40)


def gpt2(**options):
    return GPT2LMHeadModel, GPT2Config(**GPT2 | options)


def llama(**options):
    return LlamaForCausalLM, LlamaConfig(**ROPE | options)


def qwen3(**options):
    return Qwen3ForCausalLM, Qwen3Config(**ROPE | dict(num_key_value_heads=2) | options)


TWINS = {
    "gpt2": gpt2,
    "gpt2 untied": lambda: gpt2(tie_word_embeddings=False),
    "gpt2 n_inner, gelu": lambda: gpt2(n_inner=50, activation_function="gelu"),
    "llama MHA": llama,  # LLaMA 2
    "llama MHA tied": lambda: llama(tie_word_embeddings=True),
    "llama GQA": lambda: llama(num_key_value_heads=2),  # LLaMA 3
    "llama GQA tied": lambda: llama(num_key_value_heads=2, tie_word_embeddings=True),
    "llama biases, heads of n_embd / n_head": lambda: llama(
        head_dim=None, attention_bias=True, mlp_bias=True
    ),
    "llama scaled": lambda: llama(
        num_key_value_heads=1, head_dim=16, rope_parameters=dict(SCALED)
    ),  # LLaMA 3.1
    "llama scaled tied": lambda: llama(
        head_dim=16, rope_parameters=dict(SCALED), tie_word_embeddings=True
    ),  # LLaMA 3.2
    "qwen3": qwen3,
    "qwen3 tied": lambda: qwen3(tie_word_embeddings=True),
}


def build_twin(name):
    """A transformers model, every parameter of it random: norm gains about 1, biases, and matrices that
    keep the variance."""
    model_class, config = TWINS[name]()
    config._attn_implementation = "eager"
    model = model_class(config).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(generator=generator).mul_(0.3 if p.dim() == 1 else p.shape[-1] ** -0.5)
        for parameter_name, p in model.named_parameters():
            if "norm" in parameter_name or "ln_" in parameter_name:
                p.add_(1.0)
    return model


@pytest.fixture(scope="module", params=TWINS)
def twins(request, tmp_path_factory):
    """(transformers' model, what load_hf made of its folder, the folder), read only."""
    folder = tmp_path_factory.mktemp("twin")
    hf_model = build_twin(request.param)
    hf_model.save_pretrained(folder)
    return hf_model, load_hf(str(folder)), folder


@pytest.fixture
def twin_folder(request, tmp_path):
    """A folder to spoil: the twin that is named by the test's parameter, or an untied llama."""
    build_twin(getattr(request, "param", "llama GQA")).save_pretrained(tmp_path)
    return tmp_path


def random_ids(config, B=3, T=None):
    return torch.randint(
        config.vocab_size, (B, T or config.block_size), generator=torch.Generator().manual_seed(2)
    )


def edit_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def edit_tensors(folder, edit):
    path = folder / "model.safetensors"
    tensors = load_file(path)
    edit(tensors)
    save_file({name: t.clone() for name, t in tensors.items()}, path, metadata={"format": "pt"})


def assert_refused(folder, *words):
    """load_hf raises one InputError of one line that has all the words."""
    with pytest.raises(ValueError) as caught:
        load_hf(str(folder))
    assert type(caught.value) in (InputError, MissingFile, MissingPackage)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), (words, message)


def assert_same_model(a, b):
    assert a.config == b.config
    assert a.state_dict().keys() == b.state_dict().keys()
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


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
    twin = build_twin(name)
    whole, shards = tmp_path / "whole", tmp_path / "shards"
    twin.save_pretrained(whole)
    twin.save_pretrained(shards, max_shard_size="10KB")
    files = sorted(shards.glob("model-*.safetensors"))
    assert len(files) > 2
    assert not (shards / "model.safetensors").exists()
    assert_same_model(load_hf(str(shards)), load_hf(str(whole)))

    files[1].unlink()
    assert_refused(shards, files[1].name, "missing")


@pytest.mark.parametrize("name", ["gpt2", "llama MHA tied", "qwen3 tied"])
def test_base_model_without_head_is_read(name, tmp_path):
    twin = build_twin(name)
    twin.save_pretrained(tmp_path / "whole")
    twin.base_model.save_pretrained(tmp_path / "base")  # no prefix, as in the official gpt2 files
    stored = load_file(tmp_path / "base" / "model.safetensors")
    assert not any(tensor.startswith(FAMILIES[twin.config.model_type].prefix) for tensor in stored)
    assert_same_model(load_hf(str(tmp_path / "base")), load_hf(str(tmp_path / "whole")))


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


Q, K = (
    "model.layers.1.self_attn.q_proj.weight",
    "model.layers.1.self_attn.k_proj.weight",
)  # [40, 32] and [20, 32]


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


def scaled(**fields):
    return dict(
        rope_parameters={name: value for name, value in (SCALED | fields).items() if value is not None}
    )


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


def test_hub_name_is_downloaded(twin_folder, monkeypatch):
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        return str(twin_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert_same_model(load_hf("someone/a-model"), load_hf(str(twin_folder)))
    assert asked == [("someone/a-model", ["*.json", "*.jinja", "model*.safetensors"])]


def test_hub_failure_is_one_line(monkeypatch):
    def snapshot_download(name, allow_patterns):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert_refused("someone/a-model", "someone/a-model", "not a folder", "no route")


def test_nothing_is_unpickled(twin_folder, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("torch.load was called"))
    (twin_folder / "pytorch_model.bin").write_bytes(b"not a pickle")
    load_hf(str(twin_folder))


# The fields that matter of the config.json files on huggingface.co, in transformers 4's style, as their
# authors wrote them
LLAMA_2 = dict(
    model_type="llama", hidden_act="silu", hidden_size=4096, intermediate_size=11008, max_position_embeddings=4096,
    num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=32, pretraining_tp=1, rms_norm_eps=1e-5,
    rope_scaling=None, tie_word_embeddings=False, vocab_size=32000,
)  # fmt: skip
LLAMA_3 = LLAMA_2 | dict(
    attention_bias=False, intermediate_size=14336, max_position_embeddings=8192, num_key_value_heads=8, rope_theta=500000.0,
    vocab_size=128256,
)  # fmt: skip
LLAMA_31_ROPE = dict(
    factor=8.0,
    high_freq_factor=4.0,
    low_freq_factor=1.0,
    original_max_position_embeddings=8192,
    rope_type="llama3",
)
QWEN3_06B = dict(
    model_type="qwen3", attention_bias=False, head_dim=128, hidden_act="silu", hidden_size=1024, intermediate_size=3072,
    max_position_embeddings=40960, max_window_layers=28, num_attention_heads=16, num_hidden_layers=28, num_key_value_heads=8,
    rms_norm_eps=1e-6, rope_scaling=None, rope_theta=1000000, sliding_window=None, tie_word_embeddings=True,
    use_sliding_window=False, vocab_size=151936,
)  # fmt: skip
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


@pytest.mark.parametrize("name", TWINS)
@pytest.mark.parametrize("max_shard_bytes", [1 << 30, 10_000], ids=["whole", "sharded"])
def test_export_is_the_same_model_to_transformers(name, max_shard_bytes, tmp_path):
    """Theirs -> ours -> theirs -> ours: every weight bit by bit, no key missing or too many, the same
    logits."""
    twin = build_twin(name)
    twin.save_pretrained(tmp_path / "theirs")
    model = load_hf(tmp_path / "theirs")
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


def test_the_cast_is_that_of_torch_and_a_failed_export_leaves_the_old_one(tmp_path, monkeypatch):
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
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("inference.hf.writing.save_file", fails)
        with pytest.raises(InputError, match="cannot be written"):
            save_hf(model, tmp_path / "out")
    assert {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    save_hf(model, tmp_path / "out")  # one file: the shards of before are gone
    assert_same_model(load_hf(tmp_path / "out"), model)
    assert len(list((tmp_path / "out").glob("*.safetensors*"))) == 1
