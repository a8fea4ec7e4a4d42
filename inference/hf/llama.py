"""LLaMA 2, 3 and 3.1. Source: transformers 5.23, models/llama. pretraining_tp is inert: it only
changes the order of a sum."""

from inference.hf.family import Family

LLAMA = Family(
    prefix="model.",
    fixed=dict(
        normalization="rmsnorm", norm_position="pre", position_encoding="rope", ffn_type="swiglu", qk_norm=False,
    ),
    fields=dict(
        vocab_size="vocab_size", block_size="max_position_embeddings", n_embd="hidden_size", d_ff="intermediate_size",
        n_layer="num_hidden_layers", n_head="num_attention_heads", num_key_value_heads="num_key_value_heads",
        head_dim="head_dim", activation="hidden_act", norm_eps="rms_norm_eps", bias="attention_bias mlp_bias",
        weight_tying="tie_word_embeddings", init_std="initializer_range",
    ),
    # None: n_head of them, n_embd / n_head wide, as with us
    defaults=dict(
        num_key_value_heads=None, head_dim=None, hidden_act="silu", rms_norm_eps=1e-6, attention_bias=False, mlp_bias=False,
        tie_word_embeddings=False, initializer_range=0.02, rope_theta=1e4,
    ),
    only=dict(),
    inert=frozenset(("attention_dropout", "pretraining_tp", "max_sequence_length", "max_window_layers")),
    model_class="LlamaForCausalLM",
    written=dict(attention_dropout=0.0, pretraining_tp=1, use_cache=True),
    modules={
        "token_embedding": ("same", "model.embed_tokens"),
        "blocks.{i}.attention_norm": ("same", "model.layers.{i}.input_layernorm"),
        "blocks.{i}.attention.qkv": (
            "q k v",
            "model.layers.{i}.self_attn.q_proj",
            "model.layers.{i}.self_attn.k_proj",
            "model.layers.{i}.self_attn.v_proj",
        ),
        "blocks.{i}.attention.out": ("same", "model.layers.{i}.self_attn.o_proj"),
        "blocks.{i}.ffn_norm": ("same", "model.layers.{i}.post_attention_layernorm"),
        "blocks.{i}.ffn.gate_up": ("gate up", "model.layers.{i}.mlp.gate_proj", "model.layers.{i}.mlp.up_proj"),
        "blocks.{i}.ffn.down": ("same", "model.layers.{i}.mlp.down_proj"),
        "final_norm": ("same", "model.norm"),
        "lm_head": ("same", "lm_head"),
    },
    buffers=r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",
)  # fmt: skip
