"""Qwen3 (dense). Source: transformers 5.23, models/qwen3."""

from inference.hf.family import Family

QWEN3 = Family(
    prefix="model.",
    fixed=dict(
        normalization="rmsnorm", norm_position="pre", position_encoding="rope", ffn_type="swiglu", qk_norm=True, bias=False,
    ),
    fields=dict(
        vocab_size="vocab_size", block_size="max_position_embeddings", n_embd="hidden_size", d_ff="intermediate_size",
        n_layer="num_hidden_layers", n_head="num_attention_heads", num_key_value_heads="num_key_value_heads",
        head_dim="head_dim", activation="hidden_act", norm_eps="rms_norm_eps", weight_tying="tie_word_embeddings",
        init_std="initializer_range",
    ),
    # head_dim and num_key_value_heads have defaults in Qwen3Config too, but as sizes: 128 and 32
    defaults=dict(
        hidden_act="silu", rms_norm_eps=1e-6, tie_word_embeddings=False, initializer_range=0.02, rope_theta=1e4,
    ),
    only=dict(attention_bias=False, use_sliding_window=False),
    # sliding_window and max_window_layers say something where use_sliding_window does
    inert=frozenset(("attention_dropout", "sliding_window", "max_window_layers")),
    model_class="Qwen3ForCausalLM",
    written=dict(attention_dropout=0.0, sliding_window=None, use_cache=True),
    derived=dict(
        max_window_layers=lambda c: c.n_layer, layer_types=lambda c: ["full_attention"] * c.n_layer,
    ),
    modules={
        "token_embedding": ("same", "model.embed_tokens"),
        "blocks.{i}.attention_norm": ("same", "model.layers.{i}.input_layernorm"),
        "blocks.{i}.attention.qkv": (
            "q k v",
            "model.layers.{i}.self_attn.q_proj",
            "model.layers.{i}.self_attn.k_proj",
            "model.layers.{i}.self_attn.v_proj",
        ),
        "blocks.{i}.attention.q_norm": ("same", "model.layers.{i}.self_attn.q_norm"),
        "blocks.{i}.attention.k_norm": ("same", "model.layers.{i}.self_attn.k_norm"),
        "blocks.{i}.attention.out": ("same", "model.layers.{i}.self_attn.o_proj"),
        "blocks.{i}.ffn_norm": ("same", "model.layers.{i}.post_attention_layernorm"),
        "blocks.{i}.ffn.gate_up": ("gate up", "model.layers.{i}.mlp.gate_proj", "model.layers.{i}.mlp.up_proj"),
        "blocks.{i}.ffn.down": ("same", "model.layers.{i}.mlp.down_proj"),
        "final_norm": ("same", "model.norm"),
        "lm_head": ("same", "lm_head"),
    },
    buffers=r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
)  # fmt: skip
