"""Tiny random models of transformers, the oracles of ours, and what a test does to their folders."""

import atexit
import functools
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from base.errors import InputError, MissingFile, MissingPackage
from inference.hf import load_hf
from model_builder import ConfigurableGPT

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


class Twin(NamedTuple):
    """A model of transformers, what load_hf makes of its folder, and the folder. All are read only."""

    theirs: Any
    ours: ConfigurableGPT
    folder: Path


@functools.cache
def twin_of(name):
    """The twin, which is built, saved and loaded once for all tests."""
    folder = Path(tempfile.mkdtemp(prefix="hf_twin_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    model = build_twin(name)
    model.save_pretrained(folder)
    return Twin(model, load_hf(str(folder)), folder)


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


def scaled(**fields):
    return dict(
        rope_parameters={name: value for name, value in (SCALED | fields).items() if value is not None}
    )


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
