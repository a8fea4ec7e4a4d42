"""What config.json may say besides a family's own fields. An allow-list: what is neither read by the family
(Family.fields), nor known to be inert, nor at a value that is known to be neutral, is refused by name.

Source: what the configurations, models, masks, caches and rotary embeddings of transformers 5.23 read, and
what transformers 4 wrote into config.json; tests/inference/test_hf_attributes.py derives the list from there."""

from collections.abc import Iterator
from typing import Any

from base.errors import InputError
from base.text import shown
from inference.hf.family import Family

# At any value. No number between the ids and the logits depends on them
INERT = frozenset(
    # where it came from, how it was stored and by what it is computed
    "_name_or_path name_or_path _commit_hash architectures model_type transformers_version dtype torch_dtype torchscript "
    "use_bfloat16 attn_implementation _attn_implementation _attn_implementation_autoset _attn_implementation_internal "
    "_experts_implementation_internal _flash_attn_2_enabled base_model_tp_plan base_model_pp_plan gradient_checkpointing "
    "chunk_size_feed_forward tf_legacy_loss use_cache transformers.js_config unsloth_fixed unsloth_version "
    "is_llama_config "
    # what the call returns, and heads that a language model does not have
    "output_attentions output_hidden_states output_past return_dict use_return_dict id2label label2id num_labels _num_labels "
    "problem_type finetuning_task task_specific_params "
    # tokens; what ends a text is read by inference/ends.py
    "tokenizer_class prefix bos_token_id eos_token_id pad_token_id sep_token_id cls_token_id mask_token_id unk_token_id "
    "decoder_start_token_id "
    # defaults of generate(), which transformers 4 kept here
    "do_sample early_stopping temperature top_k top_p min_p typical_p epsilon_cutoff eta_cutoff num_beams num_beam_groups "
    "num_return_sequences diversity_penalty repetition_penalty encoder_repetition_penalty length_penalty max_length "
    "max_new_tokens min_length min_new_tokens no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids force_words_ids "
    "forced_bos_token_id forced_eos_token_id suppress_tokens begin_suppress_tokens remove_invalid_values "
    "exponential_decay_length_penalty output_scores return_dict_in_generate assistant_confidence_threshold "
    "assistant_lookbehind target_lookbehind num_assistant_tokens num_assistant_tokens_schedule".split()
)

# At these values alone. The default of an attribute that some family of transformers has, or what turns it off
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False, None),
    "attention_chunk_size": (None,),
    "cross_attention_hidden_size": (None,),
    "is_causal": (True,),
    "is_decoder": (False, True, None),
    "is_encoder_decoder": (False, None),
    "pruned_heads": ({}, None),
    "quantization_config": (None,),
    "rope_interleaved": (False, None),
    "sliding_window": (None,),
    "tie_encoder_decoder": (False, None),
    "use_mrope": (False, None),
    "use_sliding_window": (False, None),
}
ROPE_FIELDS = frozenset(("rope_theta", "rope_parameters", "rope_scaling", "partial_rotary_factor"))


def check_attributes(hf_config: dict[str, Any], family: Family) -> None:
    """Raises InputError, naming the attribute and its value, for the first that is not in the family's
    fields and is not known to leave the logits alone."""
    read = {name for theirs in family.fields.values() for name in theirs.split()} | family.aliases.keys()
    if family.fixed["position_encoding"] == "rope":
        read |= ROPE_FIELDS  # configs.rope_from_hf
    neutral = {name: (value,) for name, value in family.only.items()}
    neutral = {name: values for name, values in NEUTRAL.items() if name not in family.inert} | neutral
    for name, value in hf_config.items():
        if name in read or name in INERT or name in family.inert:
            continue
        if name in neutral:
            if value not in neutral[name]:
                raise InputError(f"{name}={shown(value)} cannot be expressed here, only {neutral[name][0]!r}")
        elif name == "layer_types":
            check_layer_types(value)
        elif name == "auto_map":
            check_auto_map(value)
        else:
            called = name if name.isidentifier() and len(name) < 100 else shown(name)
            raise InputError(
                f"{called}={shown(value)} is not known here and may change what the model computes: if it does not, "
                "take it out of config.json"
            )


def dropout_left_out(hf_config: dict[str, Any], family: Family) -> str | None:
    """A note where a config.json has dropout, which belongs to a training run and not to the weights."""
    names = [name for name in hf_config if name in family.inert and name.endswith(("dropout", "pdrop"))]
    there = [
        f"{name}={shown(hf_config[name])}" for name in names if hf_config[name] and "summary" not in name
    ]
    return f"{', '.join(there)} of config.json left out: pass --dropout to train with any" if there else None


def check_layer_types(layer_types: Any) -> None:
    """None, or full attention in every layer."""
    for kind in layer_types if isinstance(layer_types, list) else [layer_types]:
        if kind != "full_attention" and layer_types is not None:
            raise InputError(f"layer_types={shown(kind)} cannot be expressed here, only 'full_attention'")


def check_auto_map(auto_map: Any) -> None:
    """Code for a configuration or a tokenizer may be left alone, one for the model not."""
    models = sorted(model_classes(auto_map))
    if models:
        raise InputError(
            f"auto_map={shown(auto_map)} names code for {models[0]}, which is never run: if the weights are those of the "
            "model_type, take it out of config.json"
        )


def model_classes(auto_map: Any) -> Iterator[str]:
    if not isinstance(auto_map, dict):
        yield "the model"
        return
    for name in auto_map:
        if name != "AutoConfig" and not name.startswith(("AutoTokenizer", "AutoProcessor")):
            yield shown(name)
