"""Weights to and from Hugging Face: GPT-2, LLaMA and Qwen3 checkpoints as a ConfigurableGPT and back.

    model = load_hf("/models/Qwen3-0.6B")    # a folder with config.json and safetensors
    model = load_hf("Qwen/Qwen3-0.6B")       # or a name on the hub
    save_hf(model, "exported", tokenizer="qwen3")    # AutoModelForCausalLM.from_pretrained("exported") reads it

FAMILIES holds all that is particular to a family, as tables that read the same in both directions: our
configuration fields beside theirs, our modules beside theirs. JSON and safetensors are all that is ever
opened: no pickle, no remote code."""

import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from base.errors import InputError, MissingFile
from base.fields import did_you_mean
from model_builder import ConfigurableGPT
from model_config import ModelArchitectureConfig
from tokenization.tokenizers import find_tokenizer, save_tokenizer

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
    defaults: dict[
        str, Any
    ]  # of its config class in transformers, for what config.json may leave out; the sizes may not
    only: dict[str, Any]  # their field -> the one value that we can express, which is also the default
    model_class: str  # of transformers
    written: dict[str, Any]  # their fields that we have no use for, as they go into config.json
    modules: dict[
        str, tuple[str, ...]
    ]  # ours -> layout and theirs, each with its weight and, where there is one, its bias
    buffers: str  # a pattern of tensors that hold no weights: old files have causal masks and frequencies


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

# Source: transformers 5.23, models/{gpt2,llama,qwen3}. Two options are left alone because they only change
# the order of a sum: GPT-2's reorder_and_upcast_attn and LLaMA's pretraining_tp.
FAMILIES: dict[str, Family] = {
    "gpt2": Family(
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
        buffers=r"h\.\d+\.attn\.(masked_)?bias",
    ),
    "llama": LLAMA,
    "qwen3": Family(
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
        buffers=LLAMA.buffers,
    ),
}  # fmt: skip

# rope_parameters (transformers 5) or rope_scaling (4) of type llama3: our field -> theirs
LLAMA3_ROPE = {
    "rope_scaling_factor": "factor",
    "rope_low_freq_factor": "low_freq_factor",
    "rope_high_freq_factor": "high_freq_factor",
    "rope_original_block_size": "original_max_position_embeddings",
}

FLOAT_DTYPES = (
    "F64",
    "F32",
    "F16",
    "BF16",
)  # of safetensors; the others are quantised, with scales that we do not read


@torch.no_grad()
def load_hf(
    dir_or_id: str | Path,
    wanted: ModelArchitectureConfig | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    into: ConfigurableGPT | None = None,
    assign: Callable[[Tensor, Tensor], object] = Tensor.copy_,
) -> ConfigurableGPT:
    """The model in a folder of Hugging Face's layout, or under a name on its hub, in `dtype` on `device`.

    The weights go over tensor by tensor, so that never more than one of them is held twice. Dropout is 0.0
    whatever config.json says: it belongs to a training run, not to the weights. `wanted` builds that
    architecture instead, which may differ from config.json's only in what no weight depends on. `into` is
    filled instead of a new model, each parameter by assign(parameter, values): the values are whole, the
    parameter may be a shard. Raises InputError, in one line, for a model_type or an option that we cannot
    express, for a missing, unexpected, misshapen or quantised tensor, for a tied lm_head that differs from
    the embedding, for a damaged file, for weights that are not safetensors, and where the hub gives
    nothing."""
    folder = find_folder(dir_or_id)
    hf_config = read_json(folder / "config.json")
    try:
        config = config_from_hf(hf_config)
    except ValueError as error:
        raise InputError(f"{folder / 'config.json'}: {error}") from None
    if wanted is not None:
        check_same_weights(wanted, config, folder)
        config = wanted
    family = FAMILIES[hf_config["model_type"]]
    with ExitStack() as open_files:
        tensors = open_tensors(folder, family, open_files)
        with torch.device("meta"):
            model = ConfigurableGPT(config)
        check_tensors(tensors, model, family, folder)  # before any memory is taken
        model = into if into is not None else model.to(dtype).to_empty(device=device)
        for name, p in model.named_parameters():
            whole = p if into is None else torch.empty(p.shape, dtype=dtype)
            for hf_name, view in as_hf(name, whole, family, config).items():
                view.copy_(tensors.pop(hf_name.removeprefix(family.prefix)).read())
            head = tensors.get("lm_head.weight") if config.weight_tying else None  # stored, though tied
            if (
                name == "token_embedding.weight"
                and head is not None
                and not torch.equal(head.read().to(whole), whole)
            ):
                raise InputError(
                    f"{head.path}: lm_head.weight differs from the token embedding, but config.json ties them"
                )
            if into is not None:
                assign(p, whole)
    model.fill_tables()
    return model


def check_same_weights(
    wanted: ModelArchitectureConfig, config: ModelArchitectureConfig, folder: Path
) -> None:
    """Raises InputError, naming every difference, unless the weights of `config` serve `wanted`: dropout,
    backends, z_loss and initialisation are free, and with RoPE so is a shorter block_size."""
    free = {"dropout", "attention_backend", "init_std", "loss_backend", "z_loss"}
    if wanted.position_encoding == "rope" and wanted.block_size <= config.block_size:
        free.add("block_size")
    theirs, ours = config.to_dict(), wanted.to_dict()
    differing = [
        f"{k}={theirs[k]!r} there, {ours[k]!r} here" for k in ours if k not in free and ours[k] != theirs[k]
    ]
    if differing:
        raise InputError(f"{folder} is another model than the configuration: {', '.join(differing)}")


def config_from_hf(hf_config: dict[str, Any]) -> ModelArchitectureConfig:
    """What a config.json of transformers 4 or 5 describes, with dropout 0.0. Raises InputError, naming the
    field and its value, for what we cannot express, and for a size that is not there."""
    model_type = hf_config.get("model_type")
    if str(model_type) not in FAMILIES:
        raise InputError(f"model_type={model_type!r} is not supported{did_you_mean(model_type, FAMILIES)}")
    family = FAMILIES[model_type]
    for name, value in {**family.only, "quantization_config": None}.items():
        if hf_config.get(name, value) != value:
            raise InputError(f"{name}={hf_config[name]!r} cannot be expressed here, only {value!r}")
    for kind in hf_config.get("layer_types") or ():
        if kind != "full_attention":
            raise InputError(f"layer_types={kind!r} cannot be expressed here, only 'full_attention'")

    ours = {**family.fixed, "dropout": 0.0}
    for name, theirs in family.fields.items():
        hf_names = theirs.split()
        values = [hf_field(hf_config, hf_name, family.defaults) for hf_name in hf_names]
        if any(value != values[0] for value in values):
            both = " with ".join(
                f"{hf_name}={value!r}" for hf_name, value in zip(hf_names, values, strict=True)
            )
            raise InputError(f"{both} cannot be expressed here: one {name!r} says both")
        if name == "activation":
            if str(values[0]) not in ACTIVATIONS:
                raise InputError(
                    f"{hf_names[0]}={values[0]!r} is not supported{did_you_mean(values[0], ACTIVATIONS)}"
                )
            values[0] = ACTIVATIONS[values[0]]
        ours[name] = values[0]
    if ours["position_encoding"] == "rope":
        ours |= rope_from_hf(hf_config, family)
    return ModelArchitectureConfig(**ours)


def rope_from_hf(hf_config: dict[str, Any], family: Family) -> dict[str, Any]:
    """Our RoPE fields. transformers 5 keeps theirs in rope_parameters; 4 has rope_theta beside them and the
    rest in rope_scaling. Where both speak, the precedence is that of convert_rope_params_to_dict in
    modeling_rope_utils.py."""
    where = "rope_scaling" if hf_config.get("rope_scaling") else "rope_parameters"
    rope = hf_config.get(where) or {}
    if not isinstance(rope, dict):
        raise InputError(f"{where}={rope!r} is not a dictionary")
    rope_type = rope.get("rope_type", rope.get("type", "default"))
    if rope_type not in ("default", "llama3"):
        raise InputError(
            f"rope_type={rope_type!r} in {where} cannot be expressed here, only 'default' and 'llama3'"
        )
    partial = rope.get("partial_rotary_factor", hf_config.get("partial_rotary_factor"))
    if partial not in (None, 1.0):
        raise InputError(f"partial_rotary_factor={partial!r} cannot be expressed here, only 1.0")
    scaling = LLAMA3_ROPE if rope_type == "llama3" else {}
    known = ("rope_type", "type", "rope_theta", "partial_rotary_factor", *scaling.values())
    for name in [name for name in rope if name not in known]:
        raise InputError(
            f"{name}={rope[name]!r} in {where} cannot be expressed here with rope_type={rope_type!r}"
        )
    theta = rope.get("rope_theta", hf_field(hf_config, "rope_theta", family.defaults))
    fields = {"rope_theta": theta, "rope_scaling": "llama3" if scaling else "none"}
    return fields | {name: hf_field(rope, hf_name, {}, f" in {where}") for name, hf_name in scaling.items()}


def hf_field(fields: dict[str, Any], name: str, defaults: dict[str, Any], where: str = "") -> Any:
    if name not in defaults and fields.get(name) is None:
        raise InputError(f"{name} is missing{where}")
    return fields.get(name, defaults.get(name))


def as_hf(name: str, tensor: Tensor, family: Family, config: ModelArchitectureConfig) -> dict[str, Tensor]:
    """Our parameter `name`, or its gradient, as Hugging Face names and shapes it: views of `tensor`. To
    copy into them is to import, to read them is to export."""
    module, leaf = name.rsplit(".", 1)
    layer = re.search(r"\.(\d+)\.", module)
    layout, *hf_modules = family.modules[re.sub(r"\.\d+\.", ".{i}.", module)]
    hf_names = [f"{hf_module.format(i=layer and layer[1])}.{leaf}" for hf_module in hf_modules]
    return dict(zip(hf_names, LAYOUTS[layout](tensor, config), strict=True))


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in an open safetensors file; `read` brings it into memory."""

    name: str
    path: Path
    file: Any

    @property
    def shape(self) -> list[int]:
        return self.file.get_slice(self.name).get_shape()

    @property
    def dtype(self) -> str:
        return self.file.get_slice(self.name).get_dtype()

    def read(self) -> Tensor:
        try:
            return self.file.get_tensor(self.name)
        except SafetensorError as error:
            raise InputError(f"{self.path} is damaged at tensor {self.name}: {error}") from None


def open_tensors(folder: Path, family: Family, open_files: ExitStack) -> dict[str, StoredTensor]:
    """Every tensor of the folder, under its name without the family's prefix."""
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.exists():
        paths = [single]
    elif index.exists():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise InputError(f"{index} is damaged: it has no weight_map")
        paths = [folder / file for file in sorted(set(map(str, shards.values())))]
    else:
        pickles = "; its .bin files are pickles, which are never opened" if any(folder.glob("*.bin")) else ""
        raise InputError(
            f"{folder} needs model.safetensors, or model.safetensors.index.json and its shards{pickles}"
        )

    tensors: dict[str, StoredTensor] = {}
    for path in paths:
        try:
            file = open_files.enter_context(safe_open(path, framework="pt", device="cpu"))
        except FileNotFoundError:
            raise InputError(f"{path} is missing, but {index.name} names it") from None
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} is damaged: {error}") from None
        for name in file.keys():  # noqa: SIM118 (not a dict)
            bare = name.removeprefix(family.prefix)
            if bare in tensors:
                raise InputError(f"{path}: tensor {name} is stored twice, also in {tensors[bare].path.name}")
            tensors[bare] = StoredTensor(name, path, file)
    return tensors


def check_tensors(
    tensors: dict[str, StoredTensor], model: ConfigurableGPT, family: Family, folder: Path
) -> None:
    """Raises InputError unless the file has every tensor of the model, in its shape, and nothing else that
    is a weight."""
    wanted = {}
    for name, p in model.named_parameters():
        wanted |= as_hf(name, p, family, model.config)
    if model.config.weight_tying and "lm_head.weight" in tensors:
        wanted["lm_head.weight"] = model.head_weight
    for hf_name, view in wanted.items():
        stored = tensors.get(hf_name.removeprefix(family.prefix))
        if stored is None:
            raise InputError(f"{folder}: tensor {hf_name} {list(view.shape)} is missing")
        if stored.shape != list(view.shape):
            raise InputError(
                f"{stored.path}: tensor {stored.name} is {stored.shape}, config.json wants {list(view.shape)}"
            )
        if stored.dtype not in FLOAT_DTYPES:
            raise InputError(
                f"{stored.path}: tensor {stored.name} holds {stored.dtype}, wanted one of {', '.join(FLOAT_DTYPES)}"
            )
    known = {hf_name.removeprefix(family.prefix) for hf_name in wanted}
    for name, stored in tensors.items():
        if name not in known and not re.fullmatch(family.buffers, name):
            raise InputError(
                f"{stored.path}: tensor {stored.name} {stored.shape} is unexpected: the model has no such part"
            )


def find_folder(dir_or_id: str) -> Path:
    """The folder itself, or the hub's snapshot of that name, downloaded unless it is in the hub's cache."""
    folder = Path(dir_or_id).expanduser()
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", str(dir_or_id)):  # no name that a hub could know
        raise MissingFile(f"{dir_or_id} is not a folder: check the path")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise InputError(
            f"{dir_or_id!r} is not a folder; to ask the hub for it: pip install huggingface_hub"
        ) from None
    try:
        return Path(
            snapshot_download(str(dir_or_id), allow_patterns=["*.json", "*.jinja", "model*.safetensors"])
        )
    except Exception as error:  # the hub's client fails with its own types, httpx's, OSError and ValueError
        reason = next(iter(str(error).splitlines()), "")
        raise InputError(
            f"{dir_or_id!r} is not a folder, nor could the hub give it: {type(error).__name__}: {reason}"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} is missing") from None
    except ValueError as error:  # bad JSON, bad UTF-8
        raise InputError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is damaged: it holds no JSON object")
    return content


MAX_SHARD_BYTES = 2 << 30


@torch.no_grad()
def save_hf(
    model: ConfigurableGPT,
    folder: str | Path,
    tokenizer: Any = None,
    dtype: torch.dtype = torch.float32,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> Path:
    """Writes config.json, generation_config.json, the weights in `dtype` and the tokenizer's files into
    folder, in the layout that transformers and load_hf read. `tokenizer` is a name, folder or hub id, or an
    object with save_pretrained.

    Shard by shard, so that at most max_shard_bytes of weights are held twice. Every file is complete before
    the first one appears in folder. Raises InputError, before anything is written, for an architecture that
    no class of transformers can express, naming the choices in the way, for an embedding with fewer rows
    than the tokenizer has tokens, and what find_tokenizer raises."""
    hf_config = config_to_hf(model.config, dtype)
    folder = Path(folder).absolute()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: choose a folder")
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        generation = {"do_sample": False, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
        if tokenizer is not None:
            ids = write_tokenizer(tokenizer, partial, model.config)
            hf_config |= {
                "bos_token_id": ids["bos"],
                "eos_token_id": ids["eos"][0],
                "pad_token_id": ids["pad"],
            }
            generation |= {"bos_token_id": ids["bos"], "eos_token_id": ids["eos"], "pad_token_id": ids["pad"]}
        write_json(partial / "generation_config.json", generation)
        write_weights(model, FAMILIES[hf_config["model_type"]], partial, dtype, max_shard_bytes)
        write_json(partial / "config.json", hf_config)
        written = sorted(partial.iterdir(), key=lambda path: path.name == "config.json")  # which comes last
        for path in written:
            path.chmod((partial / "config.json").stat().st_mode)  # safetensors writes for the owner alone
            with open(path, "rb") as file:
                os.fsync(file.fileno())
        folder.mkdir(parents=True, exist_ok=True)
        for stale in [
            folder / "config.json",
            *folder.glob("model*.safetensors"),
            folder / "model.safetensors.index.json",
        ]:
            stale.unlink(missing_ok=True)
        for path in written:
            path.replace(folder / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder


def config_to_hf(config: ModelArchitectureConfig, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """config.json for transformers 4 and 5, with every field of its class. A family whose members have
    biases, GPT-2's, also expresses a model without, by biases of zero. Raises InputError, naming the
    choices in the way, where no class can express the architecture."""
    ours = config.to_dict()
    differing = {
        model_type: [
            n for n, value in family.fixed.items() if ours[n] != value and (n != "bias" or config.bias)
        ]
        + [name for name, value in implied_sizes(config, family).items() if ours[name] != value]
        for model_type, family in FAMILIES.items()
    }
    model_type = min(differing, key=lambda name: len(differing[name]))
    family = FAMILIES[model_type]
    if differing[model_type]:
        ways = []
        for nearest in [name for name in differing if len(differing[name]) == len(differing[model_type])]:
            need = FAMILIES[nearest].fixed | implied_sizes(config, FAMILIES[nearest])
            choices = [f"{name}={ours[name]!r} where it has {need[name]!r}" for name in differing[nearest]]
            ways.append(f"{nearest}: {', '.join(choices)}")
        raise InputError(f"no Hugging Face class has this architecture; in the way of {'; of '.join(ways)}")

    hf_config = {"model_type": model_type, "architectures": [family.model_class]}
    hf_config |= {
        "dtype": str(dtype).removeprefix("torch."),
        "torch_dtype": str(dtype).removeprefix("torch."),
    }
    hf_config |= (
        {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None} | family.only | family.written
    )
    for name, theirs in family.fields.items():
        value = ours[name]
        if name == "activation":
            value = next(hf_name for hf_name, activation in ACTIVATIONS.items() if activation == value)
        hf_config |= dict.fromkeys(theirs.split(), value)
    if config.position_encoding == "rope":
        scaling = {"rope_type": "default"}
        if config.rope_scaling == "llama3":
            scaling = {"rope_type": "llama3"} | {hf_name: ours[name] for name, hf_name in LLAMA3_ROPE.items()}
        hf_config["rope_parameters"] = {"rope_theta": config.rope_theta, **scaling}  # transformers 5
        hf_config["rope_theta"] = config.rope_theta  # transformers 4
        hf_config["rope_scaling"] = scaling if config.rope_scaling == "llama3" else None
    if model_type == "qwen3":
        hf_config["max_window_layers"] = config.n_layer
        hf_config["layer_types"] = ["full_attention"] * config.n_layer
    if model_type == "gpt2":
        hf_config["n_ctx"] = config.block_size
    return hf_config


def implied_sizes(config: ModelArchitectureConfig, family: Family) -> dict[str, Any]:
    """Our sizes that the family has no field for, as they follow from the others."""
    implied = {"num_key_value_heads": config.n_head, "head_dim": config.n_embd / config.n_head}
    return {name: value for name, value in implied.items() if name not in family.fields}


def write_weights(
    model: ConfigurableGPT, family: Family, folder: Path, dtype: torch.dtype, max_shard_bytes: int
) -> None:
    """model.safetensors, or shards and their index where it would be larger than max_shard_bytes."""
    ours = dict(model.named_parameters())
    if family.fixed.get("bias") and not model.config.bias:  # theirs cannot be left out, and zeros add nothing
        inside = {name: p for name, p in ours.items() if name.startswith(("blocks.", "final_norm."))}
        ours |= {name.removesuffix("weight") + "bias": p.new_zeros(p.size(0)) for name, p in inside.items()}
    views = {n: v for name, p in ours.items() for n, v in as_hf(name, p, family, model.config).items()}
    shards: list[list[str]] = [[]]
    size = total = 0
    for name, view in views.items():
        nbytes = view.numel() * dtype.itemsize
        if shards[-1] and size + nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size, total = size + nbytes, total + nbytes
    files = [f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors" for i in range(len(shards))]
    if len(shards) == 1:
        files = ["model.safetensors"]
    for file, names in zip(files, shards, strict=True):
        tensors = {name: views[name].detach().to("cpu", dtype).contiguous() for name in names}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        write_json(
            folder / "model.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": weight_map},
        )


def write_tokenizer(tokenizer: Any, folder: Path, config: ModelArchitectureConfig) -> dict[str, Any]:
    """The tokenizer's files into folder; returns its ids `bos`, `pad` and `eos`, all that end a text, of a
    document first."""
    if hasattr(tokenizer, "save_pretrained"):
        tokenizer.save_pretrained(folder)
        found = find_tokenizer(folder)
    else:
        found = save_tokenizer(tokenizer, folder)
    if found.length > config.vocab_size:
        raise InputError(
            f"tokenizer {found.name!r} has ids up to {found.length - 1}, the model vocab_size={config.vocab_size} rows: "
            "it belongs to another model"
        )
    path = folder / "tokenizer_config.json"
    fields = read_json(path) if path.is_file() else {}
    # A tokenizer.json alone does not tell transformers which class reads it, nor what ends a text
    ours = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": found.eot_token,
        "pad_token": found.eot_token,
    }
    ours |= {"clean_up_tokenization_spaces": False, "model_max_length": config.block_size}
    fields = ours | fields
    write_json(path, fields)
    ids = {token["content"]: token["id"] for token in json.loads(found.json)["added_tokens"]}

    def id_of(field: str) -> int | None:
        token = fields.get(field)
        return ids.get(token["content"] if isinstance(token, dict) else token)

    eos = [found.eot_id] + [i for i in (id_of("eos_token"),) if i not in (None, found.eot_id)]
    return {"bos": id_of("bos_token"), "eos": eos, "pad": id_of("pad_token")}


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
