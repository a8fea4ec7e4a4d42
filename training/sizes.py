"""What follows from a configuration in numbers, and what of it no machine could hold."""

import torch

from base.errors import InputError
from hardware.device import memory_bytes
from model_builder import ConfigurableGPT
from model_config import ModelArchitectureConfig
from training.config import TrainConfig
from training.flops import flops_per_token
from training.world import World

MOST_LAYERS = 1024


def model_on_meta(model_config: ModelArchitectureConfig) -> ConfigurableGPT:
    """The model without memory. Raises InputError for one beyond 64 bits, or of more blocks than anybody stacks, which
    would take minutes to build even so."""
    if model_config.n_layer > MOST_LAYERS:
        raise InputError(
            f"n_layer={model_config.n_layer} is more than the {MOST_LAYERS} blocks that a model may have here"
        )
    try:
        with torch.device("meta"):
            return ConfigurableGPT(model_config)
    except (RuntimeError, TypeError, OverflowError) as error:  # torch on sizes beyond 64 bits
        raise InputError(f"a model of this size is not possible: {str(error).splitlines()[0]}") from error


def check_memory(model: ConfigurableGPT, config: TrainConfig, world: World, device: torch.device) -> None:
    """Raises InputError for what no allocation could hold: weights, or ids of a micro-batch, beyond all the memory
    there is. What fits by this may still not train: plan.py tells."""
    there = memory_bytes(device)
    if there is None:
        return
    there //= world.local_size if device.type == "cpu" else 1
    if config.tokens_per_step(model.config.block_size) >= 2**63:
        raise InputError(
            "the tokens of a step are beyond 64 bits: lower batch_size or gradient_accumulation_steps"
        )
    shards = (config.hybrid_shard_size or world.size) if config.use_fsdp else 1
    tensors = [*model.parameters(), *model.buffers()]
    weights = sum(t.numel() * t.element_size() for t in tensors) // shards
    ids = 8 * config.batch_size * model.config.block_size
    for what, n_bytes, then in (
        ("the weights", weights, "a smaller model, or --use_fsdp over more processes"),
        (f"the ids of batch_size={config.batch_size}", ids, "lower batch_size"),
    ):
        if n_bytes > there:
            raise InputError(
                f"{what} alone need {n_bytes / 1e9:,.0f} GB on each process, which has {there / 1e9:,.0f} GB: {then}"
            )


def derived_figures(model_config: ModelArchitectureConfig, config: TrainConfig) -> dict[str, int]:
    """What follows from a configuration. Raises InputError for a model beyond 64 bits."""
    model = model_on_meta(model_config)
    return {
        "params": model.get_num_params(),
        "params_non_embedding": model.get_num_params_non_embedding(),
        "flops_per_token": flops_per_token(model_config),
        "tokens_per_step": config.tokens_per_step(model_config.block_size),
    }
