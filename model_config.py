"""What a model is: every architectural choice in one flat, typed, checked record. Imports no torch.

    config = get_preset_config("qwen3")                       # the preset as its authors published it
    config = get_preset_config("qwen3", n_layer=6, n_embd=384, n_head=6, num_key_value_heads=3)
    config.save("model.json"); ModelArchitectureConfig.load("model.json")

The registries in model_components.py hold one implementation for each choice named here.
"""

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from base import fields
from base.errors import InputError
from base.fields import MACHINE, MODEL, NUMBERS, did_you_mean, knob
from base.files import read_json, write_json

ROPE = {"position_encoding": ("rope",)}
LLAMA3_ROPE = {"rope_scaling": ("llama3",)}
POSITIVE = "(0, inf)"


@dataclass(kw_only=True)
class ModelArchitectureConfig:
    """One decoder-only transformer. Raises InputError, with both numbers, where the choices contradict each
    other.

    The defaults are GPT-2 small. `num_key_value_heads`, `head_dim` and `d_ff` may be left None; after
    construction they hold the numbers that are built, and `ffn_ratio`, which is another way to say d_ff,
    has become part of it and is None. A choice with a registry is a name in it; adding an entry there is
    all that a new one takes."""

    # Shape
    n_layer: int = knob(12, "transformer blocks", kind=MODEL, bounds=POSITIVE)
    n_head: int = knob(12, "query heads", kind=MODEL, bounds=POSITIVE)
    n_embd: int = knob(768, "width of the residual stream", kind=MODEL, bounds=POSITIVE)
    num_key_value_heads: int | None = knob(
        None,
        "heads of keys and values; none: n_head (MHA), 1 is MQA, between them GQA",
        kind=MODEL,
        bounds=POSITIVE,
    )
    head_dim: int | None = knob(
        None, "width of a head; none: n_embd / n_head; Qwen3 sets it on its own", kind=MODEL, bounds=POSITIVE
    )
    d_ff: int | None = knob(
        None, "hidden width of the FFN; none: ffn_ratio * n_embd", kind=MODEL, bounds=POSITIVE
    )
    ffn_ratio: float | None = knob(
        None,
        "d_ff / n_embd; none without d_ff: 4, for swiglu 8/3 rounded up to 256",
        kind=MODEL,
        bounds=POSITIVE,
    )
    block_size: int = knob(1024, "longest sequence, in tokens", kind=MODEL, bounds=POSITIVE)
    vocab_size: int = knob(50257, "rows of the embedding", kind=MODEL, bounds=POSITIVE)

    # Choices
    normalization: str = knob(
        "layernorm", "norm", kind=MODEL, choices=("model_components:NORMS",), family=True
    )
    norm_position: Literal["pre", "post"] = knob(
        "pre", "norm before each part, or after its sum", kind=MODEL, family=True
    )
    norm_eps: float = knob(1e-5, "added to the variance", kind=MODEL, bounds=POSITIVE)
    position_encoding: str = knob(
        "learned", "positions", kind=MODEL, choices=("model_components:POSITION_ENCODINGS",), family=True
    )
    activation: str = knob(
        "gelu_tanh", "of the FFN", kind=MODEL, choices=("model_components:ACTIVATIONS",), family=True
    )
    ffn_type: str = knob(
        "standard", "swiglu gates with `activation`; the name is for silu", kind=MODEL, choices=("model_components:FFNS",),
        family=True,
    )  # fmt: skip
    attention_backend: str = knob(
        "auto", "who computes attention; auto: the fastest", kind=MACHINE,
        choices=("auto", "model_components:ATTENTION_BACKENDS"),
    )  # fmt: skip
    qk_norm: bool = knob(False, "normalise q and k over head_dim, before RoPE", kind=MODEL, family=True)
    bias: bool = knob(True, "of every linear layer and of LayerNorm", kind=MODEL)
    weight_tying: bool = knob(True, "lm_head shares the token embedding", kind=MODEL)
    dropout: float = knob(0.0, "probability, in training", kind=NUMBERS, bounds="[0, 1)")
    loss_backend: Literal["auto", "plain", "chunked"] = knob(
        "auto", "chunked never holds the logits of all tokens", kind=MACHINE
    )
    z_loss: float = knob(
        0.0, "training adds z_loss * log(Z)^2, which keeps the logits' normaliser near 1; PaLM: 1e-4", kind=NUMBERS,
        bounds="[0, inf)",
    )  # fmt: skip
    init_std: float = knob(0.02, "of the initial weights", kind=NUMBERS, bounds="[0, inf)")

    # RoPE
    rope_theta: float = knob(
        10_000.0, "base of the wavelengths", kind=MODEL, bounds=POSITIVE, needs=ROPE, family=True
    )
    rope_scaling: Literal["none", "llama3"] = knob(
        "none", "llama3: LLaMA 3.1's stretch of the low frequencies", kind=MODEL, needs=ROPE
    )
    rope_scaling_factor: float = knob(8.0, "of the stretch", kind=MODEL, bounds=POSITIVE, needs=LLAMA3_ROPE)
    rope_low_freq_factor: float = knob(
        1.0,
        "longer wavelengths than original / low are stretched",
        kind=MODEL,
        bounds=POSITIVE,
        needs=LLAMA3_ROPE,
    )
    rope_high_freq_factor: float = knob(
        4.0, "shorter ones than original / high stay", kind=MODEL, bounds=POSITIVE, needs=LLAMA3_ROPE
    )
    rope_original_block_size: int = knob(
        8192, "that the frequencies were trained at", kind=MODEL, bounds=POSITIVE, needs=LLAMA3_ROPE
    )

    def __post_init__(self) -> None:
        fields.check(self)
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.n_head
        if self.n_head % self.num_key_value_heads:
            raise InputError(
                f"n_head={self.n_head} is not divisible by num_key_value_heads={self.num_key_value_heads}"
            )
        if self.head_dim is None:
            if self.n_embd % self.n_head:
                raise InputError(
                    f"n_embd={self.n_embd} is not divisible by n_head={self.n_head}: change one or set head_dim"
                )
            self.head_dim = self.n_embd // self.n_head
        if self.position_encoding == "rope" and self.head_dim % 2:
            raise InputError(
                f"head_dim={self.head_dim} is odd, but position_encoding='rope' rotates pairs: make it even"
            )
        if self.rope_scaling == "llama3" and self.rope_high_freq_factor <= self.rope_low_freq_factor:
            raise InputError(f"rope_high_freq_factor={self.rope_high_freq_factor} must exceed "
                             f"rope_low_freq_factor={self.rope_low_freq_factor}")  # fmt: skip

        from_ratio = self._d_ff_from_ratio()
        if None not in (self.d_ff, self.ffn_ratio) and self.d_ff != from_ratio:
            raise InputError(
                f"d_ff={self.d_ff} contradicts ffn_ratio={self.ffn_ratio} ({from_ratio}): set only one"
            )
        self.d_ff = self.d_ff or from_ratio
        self.ffn_ratio = None

    def _d_ff_from_ratio(self) -> int:
        if self.ffn_ratio is not None:
            if self.ffn_ratio > 1e6:
                raise InputError(
                    f"ffn_ratio={self.ffn_ratio} is not a width in units of n_embd={self.n_embd}"
                )
            return max(1, round(self.ffn_ratio * self.n_embd))
        if self.ffn_type == "swiglu":  # Shazeer 2020: 2/3 of 4x keeps the parameters of a standard FFN
            return -(-8 * self.n_embd // (3 * 256)) * 256
        return 4 * self.n_embd

    def notes(self) -> list[str]:
        """Fields that were set to other than their default and that this architecture does not use."""
        return fields.notes(self)

    def get_architecture_name(self) -> str:
        """The family, where the choices are those of a preset (sizes aside), and what the choices are."""
        family = "custom"
        tells = [name for name, k in fields.knobs(type(self)).items() if k.family]
        for name in PRESET_CONFIGS:
            preset = get_preset_config(name)
            if all(getattr(self, field) == getattr(preset, field) for field in tells):
                family = label(name)
        parts = [f"{self.norm_position}-{label(self.normalization)}"]
        if self.position_encoding == "rope":
            stretched = "" if self.rope_scaling == "none" else f" {self.rope_scaling}-scaled"
            parts.append(f"RoPE {self.rope_theta:.0e}".replace("e+0", "e").replace("e+", "e") + stretched)
        else:
            parts.append(f"{label(self.position_encoding)} positions")
        if self.num_key_value_heads == self.n_head:
            parts.append(f"MHA {self.n_head}")
        else:
            kind = "MQA" if self.num_key_value_heads == 1 else "GQA"
            parts.append(f"{kind} {self.n_head}:{self.num_key_value_heads}")
        act, ffn = label(self.activation), label(self.ffn_type)
        if self.ffn_type == "standard":
            parts.append(act)
        elif self.ffn_type == "swiglu":
            parts.append("SwiGLU" if self.activation == "silu" else f"{act}-gated")
        else:
            parts.append(f"{ffn} {act}")
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
        write_json(path, self.to_dict())

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelArchitectureConfig":
        return fields.from_dict(cls, values, "a model configuration")

    @classmethod
    def load(cls, path: str | Path) -> "ModelArchitectureConfig":
        return cls.from_dict(read_json(path))


# What people call a name of a registry or a preset, where it is not the name itself
LABELS = {
    "gpt2": "GPT-2", "llama2": "LLaMA-2", "llama3": "LLaMA-3", "qwen3": "Qwen3",
    "layernorm": "LayerNorm", "rmsnorm": "RMSNorm", "none": "no",
    "gelu": "GELU", "gelu_tanh": "GELU-tanh", "silu": "SiLU", "relu": "ReLU",
}  # fmt: skip


def label(name: str) -> str:
    return LABELS.get(name, name)


# Each preset lists what differs from the defaults. Sizes that follow from others (d_ff from ffn_ratio,
# MHA's key and value heads) are left to follow, so that `--n_embd` alone scales a preset in its own
# proportions.
PRESET_CONFIGS: dict[str, dict[str, Any]] = {
    # Radford et al. 2019; https://huggingface.co/openai-community/gpt2/blob/main/config.json: 124,439,808
    # parameters
    "gpt2": dict(
        n_layer=12, n_head=12, n_embd=768, ffn_ratio=4.0, block_size=1024, vocab_size=50257,
        normalization="layernorm", norm_eps=1e-5, position_encoding="learned", activation="gelu_tanh",
        ffn_type="standard", bias=True, weight_tying=True,
    ),
    # Touvron et al. 2023; https://huggingface.co/meta-llama/Llama-2-7b-hf/blob/main/config.json:
    # 6,738,415,616 parameters
    "llama2": dict(
        n_layer=32, n_head=32, n_embd=4096, ffn_ratio=11008 / 4096, block_size=4096, vocab_size=32000,
        normalization="rmsnorm", norm_eps=1e-5, position_encoding="rope", rope_theta=1e4, activation="silu",
        ffn_type="swiglu", bias=False, weight_tying=False,
    ),
    # Grattafiori et al. 2024; https://huggingface.co/meta-llama/Meta-Llama-3-8B/blob/main/config.json:
    # 8,030,261,248 parameters. No RoPE scaling: that came with 3.1.
    "llama3": dict(
        n_layer=32, n_head=32, n_embd=4096, num_key_value_heads=8, ffn_ratio=3.5, block_size=8192, vocab_size=128256,
        normalization="rmsnorm", norm_eps=1e-5, position_encoding="rope", rope_theta=5e5, activation="silu",
        ffn_type="swiglu", bias=False, weight_tying=False,
    ),
    # Yang et al. 2025; https://huggingface.co/Qwen/Qwen3-0.6B/blob/main/config.json, whose head_dim is its
    # own number and not n_embd / n_head. The official small models tie their embeddings; the full_qwen3_*
    # configs do so.
    "qwen3": dict(
        n_layer=28, n_head=16, n_embd=1024, num_key_value_heads=8, head_dim=128, ffn_ratio=3.0, block_size=32768,
        vocab_size=151936, normalization="rmsnorm", norm_eps=1e-6, position_encoding="rope", rope_theta=1e6,
        activation="silu", ffn_type="swiglu", qk_norm=True, bias=False, weight_tying=False,
    ),
}  # fmt: skip


def merge_layers(layers: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """Field dictionaries, weakest first, as one. `d_ff` and `ffn_ratio` say the same thing twice, so the
    layer that sets one of them overrules both of the layers below it."""
    merged: dict[str, Any] = {}
    for layer in layers:
        for name, twin in (("d_ff", "ffn_ratio"), ("ffn_ratio", "d_ff")):
            if layer.get(name) is not None and twin not in layer:
                merged.pop(twin, None)
        merged.update(layer)
    return merged


def get_preset_config(name: str, **overrides: Any) -> ModelArchitectureConfig:
    """The preset `name` with `overrides` on top. Raises InputError for an unknown name or field."""
    if name not in PRESET_CONFIGS:
        raise InputError(f"unknown arch_preset {name!r}{did_you_mean(name, PRESET_CONFIGS)}")
    return ModelArchitectureConfig.from_dict(merge_layers([PRESET_CONFIGS[name], overrides]))


def get_qwen3_style_config() -> ModelArchitectureConfig:
    """The Qwen3-0.6B shape, untied, at 32k of context: 751,632,384 parameters (596,049,920 with
    weight_tying=True)."""
    return get_preset_config("qwen3")
