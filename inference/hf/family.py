"""What a family of Hugging Face is: tables that read the same in both directions, our configuration fields
beside theirs, our modules beside theirs. One file a family: gpt2.py, llama.py, qwen3.py."""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from model_config import ModelArchitectureConfig

# How Hugging Face lays out one of our tensors: views of ours, one for each of theirs. A vector has no
# transpose.
LAYOUTS: dict[str, Callable[[Tensor, ModelArchitectureConfig], tuple[Tensor, ...]]] = {
    "same": lambda t, c: (t,),
    "transpose": lambda t, c: (t.t(),),  # GPT-2's Conv1D keeps [in, out]
    "q k v": lambda t, c: t.split(
        [n * c.head_dim for n in (c.n_head, c.num_key_value_heads, c.num_key_value_heads)]
    ),
    "gate up": lambda t, c: t.split([c.d_ff, c.d_ff]),
}

# Their name -> ours. For the way back the first of several names is the one that the family's authors use.
ACTIVATIONS = {
    "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh", "gelu_fast": "gelu_tanh",
    "gelu": "gelu", "gelu_python": "gelu", "silu": "silu", "swish": "silu", "relu": "relu",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Family:
    """A `model_type` of Hugging Face."""

    prefix: str  # before every tensor but lm_head; the file of a model without a head has none
    fixed: dict[str, Any]  # our fields that all its members share
    fields: dict[str, str]  # our field -> theirs; where there are two, ours says both at once
    # of its config class in transformers, for what config.json may leave out; the sizes may not
    defaults: dict[str, Any]
    only: dict[str, Any]  # their field -> the one value that we can express, which is also the default
    inert: frozenset[
        str
    ]  # their fields that no logit depends on, at any value; attributes.py has those of all
    model_class: str  # of transformers
    written: dict[str, Any]  # their fields that we have no use for, as they go into config.json
    aliases: dict[str, str] = field(default_factory=dict)  # other names of their fields
    derived: dict[str, Callable[[ModelArchitectureConfig], Any]] = field(
        default_factory=dict
    )  # likewise, from ours
    # ours -> layout and theirs, each with its weight and, where there is one, its bias
    modules: dict[str, tuple[str, ...]]
    buffers: str  # a pattern of tensors that hold no weights: old files have causal masks and frequencies


# rope_parameters (transformers 5) or rope_scaling (4) of type llama3: our field -> theirs
LLAMA3_ROPE = {
    "rope_scaling_factor": "factor",
    "rope_low_freq_factor": "low_freq_factor",
    "rope_high_freq_factor": "high_freq_factor",
    "rope_original_block_size": "original_max_position_embeddings",
}


def as_hf(name: str, tensor: Tensor, family: Family, config: ModelArchitectureConfig) -> dict[str, Tensor]:
    """Our parameter `name`, or its gradient, as Hugging Face names and shapes it: views of `tensor`. To
    copy into them is to import, to read them is to export."""
    module, leaf = name.rsplit(".", 1)
    layer = re.search(r"\.(\d+)\.", module)
    layout, *hf_modules = family.modules[re.sub(r"\.\d+\.", ".{i}.", module)]
    hf_names = [f"{hf_module.format(i=layer and layer[1])}.{leaf}" for hf_module in hf_modules]
    return dict(zip(hf_names, LAYOUTS[layout](tensor, config), strict=True))
