"""The matmuls of the blocks in FP8 on GPUs that have it (torchao's Float8Linear); weights, gradients,
norms, attention and the output head stay what they are, and so do the names in a checkpoint.

    check_fp8(config, model_config, device)
    convert_blocks(model, "rowwise")         # before the model is compiled or sharded

tensorwise: one scale a tensor, the fastest. rowwise: one scale a row, nearer to bf16. Both scales are those
of the tensors at hand. MFU is still counted against the GPU's bf16 peak."""

import dataclasses

import torch
from torch import nn

from base.errors import InputError, MissingPackage
from model_config import ModelArchitectureConfig
from training.config import TrainConfig

FP8_CAPABILITY = (8, 9)  # Ada, Hopper, Blackwell
EMULATED = False  # a test's: rounded to FP8 and multiplied in fp32, on any device


def check_fp8(train: TrainConfig, config: ModelArchitectureConfig, device: torch.device) -> None:
    """Raises InputError where the device or a size cannot, ImportError where torchao is missing."""
    recipe = train.fp8
    if recipe == "none":
        return
    has_fp8 = EMULATED or (
        device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY
    )
    if not has_fp8:
        raise InputError(
            f"fp8={recipe!r} needs an NVIDIA GPU of Ada, Hopper or newer, not {device.type}: pass --fp8=none"
        )
    heads = (config.n_head + 2 * config.num_key_value_heads) * config.head_dim
    attended = config.n_head * config.head_dim
    sizes = {
        "n_embd": config.n_embd,
        "d_ff": config.d_ff,
        "n_head * head_dim": attended,
        "rows of qkv": heads,
    }
    sizes["batch_size * block_size"] = train.batch_size * config.block_size
    for name, size in sizes.items():
        if size % 16:
            raise InputError(
                f"fp8={recipe!r}: {name} = {size} is no multiple of 16, which FP8's matmul needs"
            )
    try:
        import torchao.float8  # noqa: F401
    except ImportError as error:
        raise MissingPackage(f"fp8={recipe!r} needs torchao: pip install torchao") from error


def convert_blocks(model: nn.Module, recipe: str) -> None:
    """In place, the linear layers of model.blocks; on the meta device too."""
    if recipe == "none":
        return
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = dataclasses.replace(Float8LinearConfig.from_recipe_name(recipe), emulate=EMULATED)
    convert_to_float8_training(model.blocks, config=config)
