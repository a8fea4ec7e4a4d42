"""Every attribute of a config.json, one changed at a time: the logits are those of transformers, in one pass and
over its cache, or load_hf refuses it by name. The attributes are those that transformers' own sources read."""

import ast
import functools
import hashlib
import importlib
import inspect
import json
import tempfile
from pathlib import Path

import pytest
import torch
from hf_twins import LLAMA_2, LLAMA_31_ROPE, QWEN3_06B, SCALED, gpt2, llama, qwen3
from safetensors.torch import save_file
from transformers import GenerationConfig, PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS, RopeParameters

from base.errors import InputError
from inference.hf import load_hf
from inference.hf.attributes import INERT, NEUTRAL
from inference.hf.configs import config_from_hf, config_to_hf
from inference.hf.families import FAMILIES

T = 12
FAMILY = {
    "gpt2": lambda: gpt2(n_positions=16, attn_implementation="eager"),  # reorder_and_upcast_attn has effect
    "llama": lambda: llama(max_position_embeddings=16, num_key_value_heads=2, head_dim=8),
    "qwen3": lambda: qwen3(max_position_embeddings=16),
}
SHARED = ("configuration_utils", "modeling_rope_utils", "masking_utils", "cache_utils", "modeling_layers", "modeling_utils",
          "integrations.sdpa_attention", "integrations.heterogeneity.configuration_utils")  # fmt: skip
VALUES = [
    None, True, False, 0, 1, 3, 0.25, 1.0, "relu", "gelu", "gelu_new", "sliding_attention", [], {}, {"1": [0]}, [3],
    ["sliding_attention", "full_attention"], ["full_attention"] * 2, ["chunked_attention"] * 2, ["linear_attention"] * 2,
]  # fmt: skip


@functools.cache
def read_by_transformers(model_type):
    """Names of attributes of a configuration that the sources read, of this family and of what all share."""
    own = [f"models.{model_type}.{kind}_{model_type}" for kind in ("configuration", "modeling")]
    found = set()
    for module in (*SHARED, *own):
        tree = ast.parse(inspect.getsource(importlib.import_module(f"transformers.{module}")))
        of_config = "configuration" in module or "rope" in module  # there `self` is one
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and is_config(node.value, of_config):
                found.add(node.attr)
            if isinstance(node, ast.Call) and (name := named_in_call(node, of_config)):
                found.add(name)
    return found


def is_config(node, of_config):
    name = node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""
    return name.endswith("config") or (of_config and name == "self")


def named_in_call(node, of_config):
    """X of getattr(config, "X"), hasattr(config, "X"), kwargs.pop("X"), kwargs.get("X"); else None."""
    names = [arg.value for arg in node.args if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    of_object = isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr", "setattr")
    if names and of_object and is_config(node.args[0], of_config):
        return names[0]
    of_kwargs = isinstance(node.func, ast.Attribute) and node.func.attr in ("pop", "get")
    return names[0] if names and of_kwargs and getattr(node.func.value, "id", "") == "kwargs" else None


def fill(model):
    """Each parameter by its name and shape, so that a change of the configuration changes no other."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            seed = int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)
            p.normal_(generator=torch.Generator().manual_seed(seed)).mul_(
                0.3 if p.dim() == 1 else p.shape[-1] ** -0.5
            )
            if "norm" in name or "ln_" in name:
                p.add_(1.0)


def ids_of(vocab_size):
    return torch.randint(vocab_size, (1, T), generator=torch.Generator().manual_seed(2))


@torch.no_grad()
def of_transformers(model_class, hf_config):
    """(model, logits), or None where transformers itself refuses this. The last token comes in a second pass,
    over its cache."""
    try:
        model = model_class(model_class.config_class.from_dict(hf_config)).eval()
        fill(model)
        ids = ids_of(model.config.vocab_size)
        first = model(ids[:, :-1], use_cache=True, return_dict=True)
        last = model(ids[:, -1:], past_key_values=first.past_key_values, use_cache=True, return_dict=True)
    except Exception:
        return None
    return model, torch.cat((first.logits, last.logits), dim=1)


@torch.no_grad()
def of_ours(hf_config, weights):
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(hf_config))
        save_file(weights, Path(folder) / "model.safetensors", metadata={"format": "pt"})
        model = load_hf(folder).eval()
    return model(ids_of(model.config.vocab_size)[:, : model.config.block_size])[0]


class Base:
    """A family's tiny model as it is before an attribute changes."""

    def __init__(self, name):
        self.model_class, config = FAMILY[name]()
        self.hf_config = json.loads(config.to_json_string(use_diff=False)) | {"model_type": name}
        if name == "gpt2":
            self.hf_config["attn_implementation"] = "eager"
        self.config = config_from_hf(self.hf_config)
        model, logits = of_transformers(self.model_class, self.hf_config)
        self.weights = stored(model)
        self.logits = of_ours(self.hf_config, self.weights)
        torch.testing.assert_close(self.logits, logits, atol=2e-5, rtol=0)


def stored(model):
    tied = model.config.tie_word_embeddings
    return {
        n: t.contiguous() for n, t in model.state_dict().items() if not (tied and n.startswith("lm_head"))
    }


@functools.cache
def base_of(name):
    return Base(name)


def outcome(name, changed, *words):
    """ "refused", naming one of the words; "equal"; or "theirs", where transformers refuses it."""
    base = base_of(name)
    try:
        config = config_from_hf(changed)
    except InputError as error:
        assert any(word in str(error) for word in words), (words, str(error))
        assert "\n" not in str(error)
        return "refused"
    theirs = of_transformers(base.model_class, changed)
    if theirs is None:
        return "theirs"
    model, logits = theirs
    try:
        ours = base.logits if config == base.config else of_ours(changed, stored(model))
    except InputError as error:
        assert any(word in str(error) for word in words), (words, str(error))
        return "refused"
    want = logits[:, : ours.shape[1]]  # theirs may go on beyond the end of its positions
    torch.testing.assert_close(ours, want, atol=5e-5, rtol=0, msg=lambda m: f"{words}: {m}")
    return "equal"


@pytest.mark.parametrize("name", FAMILY)
def test_an_attribute_is_honoured_neutral_or_refused_by_name(name):
    base, family = base_of(name), FAMILIES[name]
    of_class = set(base.hf_config) | set(base.model_class.config_class.attribute_map)
    read = read_by_transformers(name) | of_class | NEUTRAL.keys() | family.inert | {"made_up"}
    assert {
        "is_causal",
        "sliding_window",
        "layer_types",
        "per_layer_config",
        "attention_chunk_size",
        "pruned_heads",
    } <= read
    outcomes = {}
    for attribute in sorted(read):
        now = base.hf_config.get(attribute)
        values = [True, 3] if attribute in INERT and now is None else near(now)
        for value in values:
            if attribute in ("model_type", "auto_map") or base.hf_config.get(attribute, VALUES) == value:
                continue
            changed = base.hf_config | {attribute: value}
            outcomes[attribute, str(value)] = outcome(name, changed, attribute)
    for attribute in INERT - read:  # which this version does not even read
        outcomes[attribute, "3"] = outcome(name, base.hf_config | {attribute: 3}, attribute)
    counts = {kind: list(outcomes.values()).count(kind) for kind in ("refused", "equal", "theirs")}
    assert min(counts["refused"], counts["equal"]) > 80, counts
    assert outcomes["is_causal", "False"] == outcomes["is_causal", "None"] == "refused"
    assert outcomes["made_up", "None"] == "refused"
    _, unmasked = of_transformers(base.model_class, base.hf_config | {"is_causal": False})
    assert (unmasked - base.logits).abs().max() > 0.01  # else equality would mean nothing


def near(value):
    """Values to try: others of its type, or of any."""
    if type(value) is bool:
        return [not value]
    if type(value) is int:
        return [value - 1, 2 * value, None]
    if type(value) is float:
        return [value / 2, 0.5, None]
    return VALUES


@pytest.mark.parametrize(("name", "where"), [("llama", "rope_scaling"), ("qwen3", "rope_parameters")])
def test_rope_of_every_type_and_parameter(name, where):
    base = base_of(name)
    plain = {k: v for k, v in base.hf_config.items() if k != "rope_parameters"} | {"rope_theta": 300.0}
    parameters = set(RopeParameters.__annotations__) | {"type", "attn_factor", "full_attention", "made_up"}
    values = [None, 0, 1.0, 0.25, 8.0, 20, [2.0] * 4, {"rope_type": "linear"}, *ROPE_INIT_FUNCTIONS]
    kinds = [dict(rope_type="default", rope_theta=500.0), SCALED | {"original_max_position_embeddings": 8}]
    kinds += [SCALED | {"rope_type": kind} for kind in ROPE_INIT_FUNCTIONS]
    kinds += [{"type": kind, "factor": 2.0} for kind in ROPE_INIT_FUNCTIONS]
    outcomes = [outcome(name, plain | {where: kind}, "rope_type", "factor", "original") for kind in kinds]
    assert outcomes[:2] == ["equal", "equal"]
    for kind in kinds[:2]:
        for parameter in sorted(parameters):
            for value in values:
                changed = plain | {where: kind | {parameter: value}}
                words = (parameter, "rope_type", "factor") if "type" in parameter else (parameter,)
                outcomes.append(outcome(name, changed, *words))
    assert outcomes.count("refused") > 100 and outcomes.count("equal") > 15


def test_two_names_of_one_field_may_not_contradict_each_other():
    base = base_of("gpt2")
    only_alias = {k: v for k, v in base.hf_config.items() if k != "n_embd"} | {"hidden_size": 36}
    assert config_from_hf(only_alias) == base.config
    with pytest.raises(InputError, match="hidden_size=72 contradicts n_embd=36"):
        config_from_hf(base.hf_config | {"hidden_size": 72})


def test_code_for_the_model_is_refused_and_other_code_is_not_run():
    base = base_of("llama")
    harmless = {"AutoConfig": "configuration_x.XConfig", "AutoTokenizer": ["tokenization_x.X", None]}
    assert config_from_hf(base.hf_config | {"auto_map": harmless}) == base.config
    for auto_map in (
        {"AutoModelForCausalLM": "modeling_x.X"},
        harmless | {"AutoModel": "x.X"},
        ["x"],
        3,
        None,
    ):
        with pytest.raises(InputError, match="auto_map="):
            config_from_hf(base.hf_config | {"auto_map": auto_map})


def test_what_generate_had_in_config_json_is_inert():
    generation = set(GenerationConfig._get_default_generation_params())
    assert generation | set(PreTrainedConfig().to_dict()) <= INERT | NEUTRAL.keys()


@pytest.mark.parametrize(
    "hf_config",
    [
        LLAMA_2 | dict(max_sequence_length=4096, pad_token_id=0, max_length=4096, _name_or_path="x", use_cache=True),
        LLAMA_2 | {"is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"dtype": "q4"}},
        LLAMA_2 | dict(rope_scaling=LLAMA_31_ROPE, eos_token_id=[1, 2], unsloth_fixed=True, _attn_implementation_autoset=True),
        QWEN3_06B | dict(attention_dropout=0.0, bos_token_id=151643, transformers_version="4.51.0", torch_dtype="bfloat16"),
        QWEN3_06B | dict(layer_types=["full_attention"] * 28, dtype="bfloat16", pad_token_id=None),
        dict(model_type="gpt2", vocab_size=50257, n_positions=1024, n_ctx=1024, n_embd=1024, n_layer=24, n_head=16, n_special=0,
             predict_special_tokens=True, task_specific_params={"text-generation": {"do_sample": True, "max_length": 50}},
             id2label={"0": "LABEL_0"}, label2id={"LABEL_0": 0}, _num_labels=1, output_past=True),
    ],
)  # fmt: skip
def test_what_people_publish_is_read(hf_config):
    config = config_from_hf(hf_config)
    assert config_from_hf(config_to_hf(config)) == config
