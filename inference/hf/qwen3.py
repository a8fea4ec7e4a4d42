"""Qwen3 (dense). Source: transformers 5.23, models/qwen3."""

from inference.hf.family import Family
from inference.hf.llama import LLAMA

QWEN3 = Family(
    prefix=LLAMA.prefix,
    fixed=LLAMA.fixed | dict(qk_norm=True, bias=False),
    fields={ours: theirs for ours, theirs in LLAMA.fields.items() if ours != "bias"},
    # head_dim and num_key_value_heads have defaults in Qwen3Config too, but as sizes: 128 and 32
    defaults=dict(
        hidden_act="silu", rms_norm_eps=1e-6, tie_word_embeddings=False, initializer_range=0.02, rope_theta=1e4,
    ),
    only=dict(attention_bias=False, use_sliding_window=False),
    model_class="Qwen3ForCausalLM",
    written=dict(attention_dropout=0.0, sliding_window=None, use_cache=True),
    modules=LLAMA.modules | {
        "blocks.{i}.attention.q_norm": ("same", "model.layers.{i}.self_attn.q_norm"),
        "blocks.{i}.attention.k_norm": ("same", "model.layers.{i}.self_attn.k_norm"),
    },
    derived=dict(
        max_window_layers=lambda c: c.n_layer, layer_types=lambda c: ["full_attention"] * c.n_layer,
    ),
    buffers=LLAMA.buffers,
)  # fmt: skip
