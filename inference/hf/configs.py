"""config.json to a ModelArchitectureConfig and back."""

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch

from base.errors import InputError
from base.fields import MODEL, did_you_mean, names
from base.files import read_json
from base.text import shown
from inference.hf.attributes import check_attributes, dropout_left_out
from inference.hf.families import FAMILIES
from inference.hf.family import ACTIVATIONS, LLAMA3_ROPE, Family
from model_config import ModelArchitectureConfig

MAX_SIZE = 1 << 24  # of a dimension


def check_same_weights(
    wanted: ModelArchitectureConfig, config: ModelArchitectureConfig, folder: Path, free: Collection[str] = ()
) -> None:
    """Raises InputError, naming every difference, unless the weights of `config` serve `wanted`: what is
    not of the kind MODEL is free, and with RoPE so is a shorter block_size; so are the fields `free`."""
    fixed = set(names(ModelArchitectureConfig, MODEL)) - set(free)
    if wanted.position_encoding == "rope" and wanted.block_size <= config.block_size:
        fixed.remove("block_size")
    theirs, ours = config.to_dict(), wanted.to_dict()
    differing = [
        f"{k}={theirs[k]!r} there, {ours[k]!r} here" for k in ours if k in fixed and ours[k] != theirs[k]
    ]
    if differing:
        raise InputError(f"{folder} is another model than the configuration: {', '.join(differing)}")


def read_config(folder: Path) -> tuple[dict[str, Any], ModelArchitectureConfig]:
    """config.json of a folder, as it is and as ours. Raises InputError, which names the file."""
    file, adapter = folder / "config.json", folder / "adapter_config.json"
    if os.path.lexists(adapter):
        raise InputError(
            f"{adapter}: the folder holds an adapter, not a model: merge it into its model first"
        )
    hf_config = read_json(file)
    try:
        return hf_config, config_from_hf(hf_config)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def notes_on_config(folder: Path) -> list[str]:
    """What config.json of a folder says that its model here does not have. Raises InputError as read_config."""
    hf_config, _ = read_config(folder)
    note = dropout_left_out(hf_config, FAMILIES[hf_config["model_type"]])
    return [note] if note else []


def config_from_hf(hf_config: dict[str, Any]) -> ModelArchitectureConfig:
    """What a config.json of transformers 4 or 5 describes, with dropout 0.0. Raises InputError, naming the
    field and its value, for what we cannot express, and for a size that is not there."""
    model_type = hf_config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        near = did_you_mean(model_type, FAMILIES)
        raise InputError(f"model_type={shown(model_type)} is not supported{near}")
    family = FAMILIES[model_type]
    check_attributes(hf_config, family)

    hf_config = without_aliases(hf_config, family)
    ours = {**family.fixed, "dropout": 0.0}
    for name, theirs in family.fields.items():
        hf_names = theirs.split()
        values = [hf_field(hf_config, hf_name, family.defaults) for hf_name in hf_names]
        if any(value != values[0] for value in values):
            both = " with ".join(
                f"{hf_name}={shown(value)}" for hf_name, value in zip(hf_names, values, strict=True)
            )
            raise InputError(f"{both} cannot be expressed here: one {name!r} says both")
        if name == "activation":
            if values[0] not in ACTIVATIONS:
                near = did_you_mean(values[0], ACTIVATIONS)
                raise InputError(f"{hf_names[0]}={shown(values[0])} is not supported{near}")
            values[0] = ACTIVATIONS[values[0]]
        ours[name] = values[0]
    if ours["position_encoding"] == "rope":
        ours |= rope_from_hf(hf_config, family)
    try:
        config = ModelArchitectureConfig(**ours)
    except InputError as error:  # in our names
        raise InputError(in_their_names(str(error), family)) from None
    check_sizes(config, family)
    return config


def in_their_names(message: str, family: Family) -> str:
    """The message of a check of ours, with the names of config.json beside ours."""
    theirs = family.fields | (LLAMA3_ROPE if "rope" in message else {})
    named = [f"{name} is {theirs[name]}" for name in theirs if re.search(rf"\b{name}\b", message)]
    different = [pair for pair in named if pair.split(" is ")[0] != pair.split(" is ")[1]]
    return message + (f" ({', '.join(different)} in config.json)" if different else "")


def without_aliases(hf_config: dict[str, Any], family: Family) -> dict[str, Any]:
    """The same with the family's own names alone. Raises InputError where two names of one field
    contradict each other."""
    renamed = dict(hf_config)
    for alias, name in family.aliases.items():
        value = renamed.pop(alias, None)
        if value is not None and renamed.setdefault(name, value) != value:
            raise InputError(f"{alias}={shown(value)} contradicts {name}={shown(renamed[name])}")
    return renamed


def check_sizes(config: ModelArchitectureConfig, family: Family) -> None:
    """Raises InputError for a size beyond any model's, which would overflow that of a tensor."""
    sizes = {theirs: getattr(config, name) for name, theirs in family.fields.items()}
    sizes["heads times their width"] = config.n_head * config.head_dim
    sizes[LLAMA3_ROPE["rope_original_block_size"]] = config.rope_original_block_size
    for name, value in sizes.items():
        if isinstance(value, int) and value > MAX_SIZE:
            raise InputError(f"{name}={shown(value)} is more than any model has, at most {MAX_SIZE:,}")


def rope_from_hf(hf_config: dict[str, Any], family: Family) -> dict[str, Any]:
    """Our RoPE fields. transformers 5 keeps theirs in rope_parameters; 4 has rope_theta beside them and the
    rest in rope_scaling. Where both speak, the precedence is that of convert_rope_params_to_dict in
    modeling_rope_utils.py."""
    where = "rope_scaling" if hf_config.get("rope_scaling") else "rope_parameters"
    rope = hf_config.get(where) or {}
    if not isinstance(rope, dict):
        raise InputError(f"{where}={shown(rope)} is not a dictionary")
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "llama3"):
        raise InputError(
            f"rope_type={shown(rope_type)} in {where} cannot be expressed here, only 'default' and 'llama3'"
        )
    partial = rope.get("partial_rotary_factor", hf_config.get("partial_rotary_factor"))
    if partial not in (None, 1.0):
        raise InputError(f"partial_rotary_factor={shown(partial)} cannot be expressed here, only 1.0")
    scaling = LLAMA3_ROPE if rope_type == "llama3" else {}
    known = ("rope_type", "type", "rope_theta", "partial_rotary_factor", *scaling.values())
    for name in [name for name in rope if name not in known]:
        raise InputError(
            f"{name}={shown(rope[name])} in {where} cannot be expressed here with rope_type={rope_type!r}"
        )
    beside = hf_field(hf_config, "rope_theta", family.defaults)  # transformers 4
    theta = hf_field(rope, "rope_theta", {"rope_theta": beside}, f" in {where}")
    fields = {"rope_theta": theta, "rope_scaling": "llama3" if scaling else "none"}
    return fields | {name: hf_field(rope, hf_name, {}, f" in {where}") for name, hf_name in scaling.items()}


def hf_field(fields: dict[str, Any], name: str, defaults: dict[str, Any], where: str = "") -> Any:
    """A plain value of a config.json. Raises InputError where it is missing, or a list or a dictionary."""
    value = fields.get(name, defaults.get(name))
    if value is None and name not in defaults:
        raise InputError(f"{name} is missing{where}")
    if isinstance(value, list | dict):
        raise InputError(f"{name}={shown(value)}{where} is not a plain value")
    return value


def config_to_hf(config: ModelArchitectureConfig, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """config.json for transformers 4 and 5, with every field of its class. A family whose members have
    biases, GPT-2's, also expresses a model without, by biases of zero. Raises InputError, naming the
    choices in the way, where no class can express the architecture."""
    ours = config.to_dict()
    model_type = nearest_family(config)
    family = FAMILIES[model_type]
    hf_config = {"model_type": model_type, "architectures": [family.model_class]}
    hf_config |= dict.fromkeys(("dtype", "torch_dtype"), str(dtype).removeprefix("torch."))
    hf_config |= (
        dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")) | family.only | family.written
    )
    for name, theirs in family.fields.items():
        value = hf_activation(config.activation) if name == "activation" else ours[name]
        hf_config |= dict.fromkeys(theirs.split(), value)
    if config.position_encoding == "rope":
        scaling = {"rope_type": "default"}
        if config.rope_scaling == "llama3":
            scaling = {"rope_type": "llama3"} | {hf_name: ours[name] for name, hf_name in LLAMA3_ROPE.items()}
        hf_config["rope_parameters"] = {"rope_theta": config.rope_theta, **scaling}  # transformers 5
        hf_config["rope_theta"] = config.rope_theta  # transformers 4
        hf_config["rope_scaling"] = scaling if config.rope_scaling == "llama3" else None
    return hf_config | {name: derive(config) for name, derive in family.derived.items()}


def hf_activation(activation: str) -> str:
    """Their first name of ours, the one that the family's authors use. Raises InputError where they have
    none."""
    found = next((hf_name for hf_name, name in ACTIVATIONS.items() if name == activation), None)
    if found is None:
        raise InputError(
            f"activation={activation!r} has no name in Hugging Face's classes: it cannot be exported"
        )
    return found


def nearest_family(config: ModelArchitectureConfig) -> str:
    """The model_type that expresses the architecture. Raises InputError, naming the choices in the way of
    each that comes nearest, where none does."""
    ours = config.to_dict()
    differing = {}
    for model_type, family in FAMILIES.items():
        need = family.fixed | implied_sizes(config, family)
        # Biases can be written as zeros
        differing[model_type] = [
            name for name, value in need.items() if ours[name] != value and (name != "bias" or config.bias)
        ]
    fewest = min(map(len, differing.values()))
    nearest = [model_type for model_type, names in differing.items() if len(names) == fewest]
    if not fewest:
        return nearest[0]
    ways = []
    for model_type in nearest:
        need = FAMILIES[model_type].fixed | implied_sizes(config, FAMILIES[model_type])
        choices = [f"{name}={ours[name]!r} where it has {need[name]!r}" for name in differing[model_type]]
        ways.append(f"{model_type}: {', '.join(choices)}")
    raise InputError(f"no Hugging Face class has this architecture; in the way of {'; of '.join(ways)}")


def implied_sizes(config: ModelArchitectureConfig, family: Family) -> dict[str, Any]:
    """Our sizes that the family has no field for, as they follow from the others."""
    implied = {"num_key_value_heads": config.n_head, "head_dim": config.n_embd / config.n_head}
    return {name: value for name, value in implied.items() if name not in family.fields}
