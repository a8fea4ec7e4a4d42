"""The matmuls of the blocks in FP8 on GPUs that have it (torchao's Float8Linear); weights, gradients,
norms, attention and the output head stay what they are, and so do the names in a checkpoint.

    check_fp8(config, model_config, device)
    convert_blocks(model, "rowwise", device)  # before the model is compiled or sharded

tensorwise: one scale a tensor, the fastest. rowwise: one scale a row, nearer to bf16. Both scales are those
of the tensors at hand. MFU is still counted against the GPU's bf16 peak."""

import dataclasses

import torch
from torch import nn

from base.errors import InputError, require
from model_config import ModelArchitectureConfig
from training.config import TrainConfig

FP8_CAPABILITY = (8, 9)  # Ada, Hopper, Blackwell


def has_fp8(device: torch.device) -> bool:
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= FP8_CAPABILITY


def check_fp8(train: TrainConfig, config: ModelArchitectureConfig, device: torch.device) -> None:
    """Raises InputError where the device or a size cannot, MissingPackage without torchao."""
    recipe = train.fp8
    if recipe == "none":
        return
    if not has_fp8(device):
        raise InputError(
            f"fp8={recipe!r} needs an NVIDIA GPU of Ada, Hopper or newer, not {device.type}: pass --fp8=none"
        )
    check_sizes(train, config)
    require("torchao.float8", f"fp8={recipe!r}", "torchao")


def check_sizes(train: TrainConfig, config: ModelArchitectureConfig) -> None:
    """Raises InputError for a size that FP8's matmul cannot take."""
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
                f"fp8={train.fp8!r}: {name} = {size} is not a multiple of 16, which FP8's matmul needs"
            )


def convert_blocks(model: nn.Module, recipe: str, device: torch.device) -> None:
    """Converts the linear layers of model.blocks in place; on the meta device too. Where `device`, on which
    the model will be, has no FP8, its matmuls are emulated: rounded to FP8 and multiplied in fp32."""
    if recipe == "none":
        return
    from torchao.float8 import Float8LinearConfig, convert_to_float8_training

    config = dataclasses.replace(Float8LinearConfig.from_recipe_name(recipe), emulate=not has_fp8(device))
    convert_to_float8_training(model.blocks, config=config)
