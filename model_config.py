"""What a model is: every architectural choice in one flat, typed, checked record. Imports no torch.

    config = get_preset_config("qwen3")                       # the preset as its authors published it
    config = get_preset_config("qwen3", n_layer=6, n_embd=384, n_head=6, num_key_value_heads=3)
    config.save("model.json"); ModelArchitectureConfig.load("model.json")

The registries in model_components.py hold one implementation for each choice named here.
"""

import dataclasses
import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints


@dataclass(kw_only=True)
class ModelArchitectureConfig:
    """One decoder-only transformer. Raises ValueError, with both numbers, where the choices contradict each other.

    The defaults are GPT-2 small. `num_key_value_heads`, `head_dim` and `d_ff` may be left None; after construction they
    hold the numbers that are built, and `ffn_ratio`, which is another way to say d_ff, has become part of it and is None.
    """

    # Shape
    n_layer: int = 12
    n_head: int = 12  # query heads
    n_embd: int = 768  # width of the residual stream
    num_key_value_heads: int | None = None  # None: n_head (MHA); 1 is MQA; between them GQA
    head_dim: int | None = None  # None: n_embd / n_head; Qwen3 sets it on its own
    d_ff: int | None = None  # hidden width of the FFN; None: ffn_ratio * n_embd
    ffn_ratio: float | None = None  # None without d_ff: 4 for standard, 8/3 for swiglu (rounded up to 256)
    block_size: int = 1024  # longest sequence, in tokens
    vocab_size: int = 50257  # rows of the embedding

    # Choices
    normalization: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_position: Literal["pre", "post"] = "pre"
    norm_eps: float = 1e-5
    position_encoding: Literal["learned", "rope", "none"] = "learned"
    activation: Literal["gelu", "gelu_tanh", "silu", "relu"] = "gelu_tanh"
    ffn_type: Literal["standard", "swiglu"] = "standard"  # swiglu gates with `activation`; the name is for silu
    attention_backend: Literal[
        "auto", "sdpa", "flash", "cudnn", "efficient", "flash_attn_2", "flash_attn_3", "flash_attn_4", "manual"
    ] = "auto"
    qk_norm: bool = False  # normalise q and k over head_dim, before RoPE
    bias: bool = True  # of every linear layer and of LayerNorm
    weight_tying: bool = True  # lm_head shares the token embedding
    dropout: float = 0.0
    loss_backend: Literal["auto", "plain", "chunked"] = "auto"  # chunked never holds the logits of all tokens
    z_loss: float = 0.0  # training adds z_loss * log(Z)^2, which keeps the logits' normaliser near 1; PaLM: 1e-4
    init_std: float = 0.02

    # RoPE
    rope_theta: float = 10_000.0
    rope_scaling: Literal["none", "llama3"] = "none"  # llama3: LLaMA 3.1's stretch of the low frequencies
    rope_scaling_factor: float = 8.0
    rope_low_freq_factor: float = 1.0
    rope_high_freq_factor: float = 4.0
    rope_original_block_size: int = 8192

    def __post_init__(self) -> None:
        check_field_types(self)
        for name in ("n_layer", "n_head", "n_embd", "num_key_value_heads", "head_dim", "d_ff", "ffn_ratio", "block_size",
                     "vocab_size", "norm_eps", "rope_theta", "rope_scaling_factor", "rope_low_freq_factor",
                     "rope_high_freq_factor", "rope_original_block_size"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name}={value} must be positive and finite")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout={self.dropout} must lie in [0, 1)")
        for name in ("init_std", "z_loss"):
            if not 0.0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name}={getattr(self, name)} must be finite and at least 0")

        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.n_head
        if self.n_head % self.num_key_value_heads:
            raise ValueError(f"n_head={self.n_head} is not divisible by num_key_value_heads={self.num_key_value_heads}")
        if self.head_dim is None:
            if self.n_embd % self.n_head:
                raise ValueError(f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}: change one or set head_dim")
            self.head_dim = self.n_embd // self.n_head
        if self.position_encoding == "rope" and self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd, but position_encoding='rope' rotates pairs: make it even")
        if self.rope_scaling == "llama3" and self.rope_high_freq_factor <= self.rope_low_freq_factor:
            raise ValueError(f"rope_high_freq_factor={self.rope_high_freq_factor} must exceed "
                             f"rope_low_freq_factor={self.rope_low_freq_factor}")  # fmt: skip

        from_ratio = self._d_ff_from_ratio()
        if None not in (self.d_ff, self.ffn_ratio) and self.d_ff != from_ratio:
            raise ValueError(f"d_ff={self.d_ff} contradicts ffn_ratio={self.ffn_ratio} ({from_ratio}): set only one")
        self.d_ff = self.d_ff or from_ratio
        self.ffn_ratio = None

    def _d_ff_from_ratio(self) -> int:
        if self.ffn_ratio is not None:
            if self.ffn_ratio > 1e6:
                raise ValueError(f"ffn_ratio={self.ffn_ratio} is not a width in units of n_embd={self.n_embd}")
            return max(1, round(self.ffn_ratio * self.n_embd))
        if self.ffn_type == "swiglu":  # Shazeer 2020: 2/3 of 4x keeps the parameters of a standard FFN
            return -(-8 * self.n_embd // (3 * 256)) * 256
        return 4 * self.n_embd

    def notes(self) -> list[str]:
        """Fields that were set to other than their default and that this architecture does not use."""
        unused = []
        if self.position_encoding != "rope":
            names = ("rope_theta", "rope_scaling")
            unused += [(n, f"position_encoding='{self.position_encoding}'") for n in names]
        if self.position_encoding != "rope" or self.rope_scaling == "none":
            names = ("rope_scaling_factor", "rope_low_freq_factor", "rope_high_freq_factor", "rope_original_block_size")
            unused += [(n, f"rope_scaling='{self.rope_scaling}'") for n in names]
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        return [
            f"{name}={getattr(self, name)} has no effect with {why}"
            for name, why in unused
            if getattr(self, name) != defaults[name]
        ]

    def get_architecture_name(self) -> str:
        """The family, where the choices are those of a preset (sizes aside), and what the choices are."""
        family = "custom"
        for name, label in (("gpt2", "GPT-2"), ("llama2", "LLaMA-2"), ("llama3", "LLaMA-3"), ("qwen3", "Qwen3")):
            preset = get_preset_config(name)
            if all(getattr(self, field) == getattr(preset, field) for field in FAMILY_FIELDS):
                family = label
        norm = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}[self.normalization]
        parts = [f"{self.norm_position}-{norm}"]
        if self.position_encoding == "rope":
            stretched = "" if self.rope_scaling == "none" else f" {self.rope_scaling}-scaled"
            parts.append(f"RoPE {self.rope_theta:.0e}".replace("e+0", "e").replace("e+", "e") + stretched)
        else:
            parts.append({"learned": "learned positions", "none": "no positions"}[self.position_encoding])
        if self.num_key_value_heads == self.n_head:
            parts.append(f"MHA {self.n_head}")
        else:
            kind = "MQA" if self.num_key_value_heads == 1 else "GQA"
            parts.append(f"{kind} {self.n_head}:{self.num_key_value_heads}")
        act = {"gelu": "GELU", "gelu_tanh": "GELU-tanh", "silu": "SiLU", "relu": "ReLU"}[self.activation]
        parts.append(act if self.ffn_type == "standard" else "SwiGLU" if self.activation == "silu" else f"{act}-gated")
        parts += ["qk-norm"] * self.qk_norm + ["tied" if self.weight_tying else "untied"]
        return f"{family} ({', '.join(parts)})"

    def summary(self) -> str:
        """One line of sizes beneath the architecture's name."""
        return (
            f"{self.get_architecture_name()}\n"
            f"{self.n_layer} layers, {self.n_embd} wide, {self.n_head} heads of {self.head_dim} "
            f"({self.num_key_value_heads} for keys and values), FFN {self.d_ff}, "
            f"{self.vocab_size:,} tokens of vocabulary, {self.block_size:,} of context"
        )

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "ModelArchitectureConfig":
        if not isinstance(fields, dict):
            raise ValueError(f"a model configuration is a dictionary of fields, not {type(fields).__name__}")
        check_field_names(fields, [f.name for f in dataclasses.fields(cls)], "a model configuration")
        return cls(**fields)

    @classmethod
    def load(cls, path: str | Path) -> "ModelArchitectureConfig":
        return cls.from_dict(json.loads(Path(path).read_text()))


# Each preset lists what differs from the defaults. Sizes that follow from others (d_ff from ffn_ratio, MHA's key and value
# heads) are left to follow, so that `--n_embd` alone scales a preset in its own proportions.
PRESET_CONFIGS: dict[str, dict[str, Any]] = {
    # Radford et al. 2019; https://huggingface.co/openai-community/gpt2/blob/main/config.json: 124,439,808 parameters
    "gpt2": dict(
        n_layer=12, n_head=12, n_embd=768, ffn_ratio=4.0, block_size=1024, vocab_size=50257,
        normalization="layernorm", norm_eps=1e-5, position_encoding="learned", activation="gelu_tanh",
        ffn_type="standard", bias=True, weight_tying=True,
    ),
    # Touvron et al. 2023; https://huggingface.co/meta-llama/Llama-2-7b-hf/blob/main/config.json: 6,738,415,616 parameters
    "llama2": dict(
        n_layer=32, n_head=32, n_embd=4096, ffn_ratio=11008 / 4096, block_size=4096, vocab_size=32000,
        normalization="rmsnorm", norm_eps=1e-5, position_encoding="rope", rope_theta=1e4, activation="silu",
        ffn_type="swiglu", bias=False, weight_tying=False,
    ),
    # Grattafiori et al. 2024; https://huggingface.co/meta-llama/Meta-Llama-3-8B/blob/main/config.json: 8,030,261,248
    # parameters. No RoPE scaling: that came with 3.1.
    "llama3": dict(
        n_layer=32, n_head=32, n_embd=4096, num_key_value_heads=8, ffn_ratio=3.5, block_size=8192, vocab_size=128256,
        normalization="rmsnorm", norm_eps=1e-5, position_encoding="rope", rope_theta=5e5, activation="silu",
        ffn_type="swiglu", bias=False, weight_tying=False,
    ),
    # Yang et al. 2025; https://huggingface.co/Qwen/Qwen3-0.6B/blob/main/config.json, whose head_dim is its own number and
    # not n_embd / n_head. The official small models tie their embeddings; the full_qwen3_* configs do so.
    "qwen3": dict(
        n_layer=28, n_head=16, n_embd=1024, num_key_value_heads=8, head_dim=128, ffn_ratio=3.0, block_size=32768,
        vocab_size=151936, normalization="rmsnorm", norm_eps=1e-6, position_encoding="rope", rope_theta=1e6,
        activation="silu", ffn_type="swiglu", qk_norm=True, bias=False, weight_tying=False,
    ),
}  # fmt: skip

# What makes a family, as against a size of it.
FAMILY_FIELDS = ("normalization", "norm_position", "position_encoding", "rope_theta", "activation", "ffn_type", "qk_norm")


def merge_layers(layers: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Field dictionaries, weakest first, as one. `d_ff` and `ffn_ratio` say the same thing twice, so the layer that sets
    one of them overrules both of the layers below it."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for name, twin in (("d_ff", "ffn_ratio"), ("ffn_ratio", "d_ff")):
            if layer.get(name) is not None and twin not in layer:
                merged.pop(twin, None)
        merged.update(layer)
    return merged


def get_preset_config(name: str, **overrides: Any) -> ModelArchitectureConfig:
    """The preset `name` with `overrides` on top. Raises ValueError for an unknown name or field."""
    if name not in PRESET_CONFIGS:
        raise ValueError(f"unknown arch_preset {name!r}{did_you_mean(name, PRESET_CONFIGS)}")
    return ModelArchitectureConfig.from_dict(merge_layers([PRESET_CONFIGS[name], overrides]))


def get_qwen3_style_config() -> ModelArchitectureConfig:
    """The Qwen3-0.6B shape, untied, at 32k of context: 751,632,384 parameters (596,049,920 with weight_tying=True)."""
    return get_preset_config("qwen3")


def did_you_mean(word: object, known: Iterable[str]) -> str:
    """The tail of an error message: the nearest known word, or all of them where they are few."""
    known = list(known)
    near = difflib.get_close_matches(str(word), known, n=1, cutoff=0.6)
    if near:
        return f": did you mean {near[0]!r}?"
    return f": one of {', '.join(known)}" if 0 < len(known) <= 12 else ""


def check_field_names(names: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raises ValueError for the first name that is not known."""
    known = list(known)
    for name in names:
        if name not in known:
            raise ValueError(f"unknown key {name!r} in {where}{did_you_mean(name, known)}")


def check_field_types(record: Any) -> None:
    """Brings each field of a dataclass to its annotated type, in place. An int serves as a float and an integral float as an
    int; nothing else is converted. Raises ValueError."""
    hints = get_type_hints(type(record))
    for field in dataclasses.fields(record):
        setattr(record, field.name, checked_value(field.name, getattr(record, field.name), hints[field.name]))


def checked_value(name: str, value: Any, hint: Any) -> Any:
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            raise ValueError(f"{name}={value!r} is not known{did_you_mean(value, get_args(hint))}")
        return value
    kinds = get_args(hint) or (hint,)
    if value is None and type(None) in kinds:
        return None
    if type(value) in kinds:
        return value
    if float in kinds and type(value) is int and abs(value) < 2**1000:
        return float(value)
    if int in kinds and type(value) is float and value.is_integer():
        return int(value)
    wanted = " or ".join("None" if k is type(None) else k.__name__ for k in kinds)
    raise ValueError(f"{name}={value!r} is of type {type(value).__name__}, wanted {wanted}")
