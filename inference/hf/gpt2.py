"""GPT-2. Source: transformers 5.23, models/gpt2. reorder_and_upcast_attn is inert: it only changes the
order of a sum."""

from inference.hf.family import Family

GPT2 = Family(
    prefix="transformer.",
    fixed=dict(
        normalization="layernorm", norm_position="pre", position_encoding="learned", ffn_type="standard", qk_norm=False,
        bias=True,
    ),
    fields=dict(
        vocab_size="vocab_size", block_size="n_positions", n_embd="n_embd", d_ff="n_inner", n_layer="n_layer",
        n_head="n_head", activation="activation_function", norm_eps="layer_norm_epsilon",
        weight_tying="tie_word_embeddings", init_std="initializer_range",
    ),
    # n_inner None: 4 n_embd, as with us
    defaults=dict(
        n_inner=None, activation_function="gelu_new", layer_norm_epsilon=1e-5, tie_word_embeddings=True,
        initializer_range=0.02,
    ),
    only=dict(scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False, add_cross_attention=False),
    # dropout, the head that summarises, and what OpenAI's first GPT had
    inert=frozenset((
        "resid_pdrop", "embd_pdrop", "attn_pdrop", "reorder_and_upcast_attn", "n_ctx", "n_special", "predict_special_tokens",
        "summary_type", "summary_use_proj", "summary_activation", "summary_proj_to_labels", "summary_first_dropout",
    )),
    aliases=dict(
        hidden_size="n_embd", max_position_embeddings="n_positions", num_attention_heads="n_head",
        num_hidden_layers="n_layer",
    ),
    model_class="GPT2LMHeadModel",
    written=dict(
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, reorder_and_upcast_attn=False, summary_type="cls_index",
        summary_use_proj=True, summary_activation=None, summary_proj_to_labels=True, summary_first_dropout=0.1,
        use_cache=True,
    ),
    modules={
        "token_embedding": ("same", "transformer.wte"),
        "position_embedding": ("same", "transformer.wpe"),
        "blocks.{i}.attention_norm": ("same", "transformer.h.{i}.ln_1"),
        "blocks.{i}.attention.qkv": ("transpose", "transformer.h.{i}.attn.c_attn"),
        "blocks.{i}.attention.out": ("transpose", "transformer.h.{i}.attn.c_proj"),
        "blocks.{i}.ffn_norm": ("same", "transformer.h.{i}.ln_2"),
        "blocks.{i}.ffn.up": ("transpose", "transformer.h.{i}.mlp.c_fc"),
        "blocks.{i}.ffn.down": ("transpose", "transformer.h.{i}.mlp.c_proj"),
        "final_norm": ("same", "transformer.ln_f"),
        "lm_head": ("same", "lm_head"),
    },
    derived=dict(n_ctx=lambda c: c.block_size),
    buffers=r"h\.\d+\.attn\.(masked_)?bias",
)  # fmt: skip
