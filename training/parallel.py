"""One model on many processes: single, DDP, ZeRO-1, FSDP and hybrid sharding behind three verbs.

    strategy = build_strategy(config, world, device, dtype)
    forward = strategy.wrap(model, seed)              # model on the meta device -> weights on the device, whole or a shard
    with strategy.gradient_sync(model, last): …       # around a micro-step; gradients travel in the last one only
    strategy.tensors(model, optimizers)               # {name: tensor or this rank's shard of it}, to save or to fill

train.py never asks which strategy it runs. ZeRO-1 is FSDP2's fully_shard without resharding: a rank holds a
shard of the fp32 weights, gradients and optimizer state, and the gathered weights of all blocks for the
length of a step; so it shares FSDP's checkpoints, and with them their resharding. torch's
ZeroRedundancyOptimizer can give its state only by gathering it."""

import contextlib
import functools
import inspect
import types
from collections.abc import Callable
from datetime import timedelta

import torch
import torch.distributed
import torch.nn as nn
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from base.errors import InputError
from model_builder import ConfigurableGPT, init_weights
from training.config import TrainConfig
from training.fp8 import convert_blocks
from training.optim import optimizer_tensors
from training.world import World


class Strategy:
    """One process, and what all strategies share."""

    name = "single"
    frees_gradients = True  # after each step

    def __init__(self, config: TrainConfig, world: World, device: torch.device, dtype: torch.dtype) -> None:
        self.config, self.world, self.device, self.dtype = config, world, device, dtype

    def wrap(self, model: ConfigurableGPT, seed: int | None, compile: bool = False) -> Callable:
        """Takes a model on the meta device; gives it memory on the device and, unless seed is None, its
        initial weights. Returns what to call in its place."""
        self._prepare_blocks(model, compile and self.world.size > 1)
        model.to_empty(device=self.device)
        fill(model, seed)
        if compile and self.world.size == 1:
            model.compile(dynamic=False)  # with one process nothing has to happen between the blocks
        return model

    def gradient_sync(self, model: ConfigurableGPT, last: bool) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext()

    def tensors(self, model: ConfigurableGPT, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
        """Everything that a checkpoint keeps: parameters by NAME, optimizer state as NAME/KEY."""
        return dict(model.named_parameters()) | optimizer_tensors(model, optimizers)

    def _prepare_blocks(self, model: ConfigurableGPT, compile: bool) -> None:
        """FP8 and activation checkpointing inside, compilation around them; sharding comes around all."""
        convert_blocks(model, self.config.fp8, self.device)
        for block in model.blocks:
            if self.config.activation_checkpointing != "none":
                recompute = (
                    recompute_some if self.config.activation_checkpointing == "selective" else recompute_all
                )
                block.forward = types.MethodType(recompute, block)
            if compile:
                block.compile(dynamic=False)


class DDP(Strategy):
    """A whole copy on every rank; gradients are averaged bucket by bucket while the backward pass runs."""

    name = "ddp"
    # They are views of the buckets that are summed. Once freed, those of a micro-step without exchange
    # would lie beside them.
    frees_gradients = False

    def wrap(self, model: ConfigurableGPT, seed: int | None, compile: bool = False) -> Callable:
        super().wrap(model, seed, compile)
        # Every rank has made the same weights and tables: nothing to send. (torch 2.13 renamed the option.)
        options = inspect.signature(nn.parallel.DistributedDataParallel).parameters
        buffers = "forward_sync_buffers" if "forward_sync_buffers" in options else "broadcast_buffers"
        self._ddp = nn.parallel.DistributedDataParallel(
            model,
            device_ids=[self.device] if self.device.type == "cuda" else None,
            init_sync=False,
            gradient_as_bucket_view=True,
            **{buffers: False},
        )
        if self.config.reduce_dtype == "bfloat16":
            self._ddp.register_comm_hook(self.world.size, average_in_bf16)
        self._settle_buckets(model)
        return self._ddp

    def _settle_buckets(self, model: ConfigurableGPT) -> None:
        """DDP sorts its buckets anew after its first backward pass. Where a gradient lies in them is the
        order in which ranks are summed, so that a resumed run, whose first pass is another's eleventh,
        would end in other bits. The second pass makes the gradients views of the new buckets."""
        ids = torch.zeros(
            1, min(16, model.config.block_size), dtype=torch.long, device=self.device
        )  # 16: FP8's least
        autocast = torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)
        for _ in range(2):
            with torch.compiler.set_stance("force_eager"), autocast:
                _, loss = self._ddp(ids, ids)
            loss.backward()
        model.zero_grad(set_to_none=False)

    def gradient_sync(self, model: ConfigurableGPT, last: bool) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if last else self._ddp.no_sync()


def average_in_bf16(world_size: int, bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
    """DDP's communication hook. torch's own bf16_compress_hook does the same, but refuses gloo."""
    gradients = bucket.buffer()
    half = gradients.to(torch.bfloat16).div_(world_size)
    work = torch.distributed.all_reduce(half, async_op=True)
    return work.get_future().then(lambda done: gradients.copy_(done.value()[0]))


class Sharded(Strategy):
    """FSDP2: block by block, weights, gradients and optimizer state are shards along the first dimension.

    reshard=True frees a block's gathered weights after its forward and gathers them again for its backward
    (FSDP); False keeps them (ZeRO-1)."""

    def __init__(
        self,
        config: TrainConfig,
        world: World,
        device: torch.device,
        dtype: torch.dtype,
        reshard: bool,
        mesh_shape: tuple,
    ) -> None:
        super().__init__(config, world, device, dtype)
        self.name = ("fsdp" if reshard else "zero1") + (
            "" if len(mesh_shape) == 1 else f" {mesh_shape[0]}x{mesh_shape[1]}"
        )
        self.reshard = reshard
        self.mesh = torch.distributed.init_device_mesh(device.type, (world.size,), mesh_dim_names=("shard",))
        if len(mesh_shape) == 2:  # init_device_mesh would give the groups torch's time-out, not the run's
            ranks, timeout = (
                torch.arange(world.size).view(mesh_shape),
                timedelta(seconds=config.dist_timeout_s),
            )
            new_groups = torch.distributed.new_subgroups_by_enumeration
            groups = [new_groups(of_dim.tolist(), timeout=timeout)[0] for of_dim in (ranks.T, ranks)]
            self.mesh = DeviceMesh.from_group(
                groups, device.type, ranks, mesh_dim_names=("replicate", "shard")
            )

    def wrap(self, model: ConfigurableGPT, seed: int | None, compile: bool = False) -> Callable:
        self._prepare_blocks(model, compile)
        reduce = getattr(torch, self.config.reduce_dtype)
        # Blocks are gathered in the type of their matmuls. What is outside them stays fp32, and so does the
        # stream between them: the numbers are those of autocast on one process, but for the rounding of a
        # norm's weight.
        in_blocks = MixedPrecisionPolicy(
            param_dtype=self.dtype, reduce_dtype=reduce, cast_forward_inputs=False
        )
        outside = MixedPrecisionPolicy(reduce_dtype=reduce, cast_forward_inputs=False)
        for block in model.blocks:
            fully_shard(block, mesh=self.mesh, reshard_after_forward=self.reshard, mp_policy=in_blocks)
        fully_shard(model, mesh=self.mesh, reshard_after_forward=False, mp_policy=outside)
        model.to_empty(device=self.device)
        # One whole parameter at a time, on the CPU; what is not this rank's is forgotten at once
        fill(model, seed, assign=assign_shard)
        return model

    def gradient_sync(self, model: ConfigurableGPT, last: bool) -> contextlib.AbstractContextManager:
        model.set_requires_gradient_sync(last)
        if not self.reshard:
            model.set_reshard_after_backward(last)  # between micro-steps the weights do not change
        return contextlib.nullcontext()

    def tensors(self, model: ConfigurableGPT, optimizers: list[torch.optim.Optimizer]) -> dict[str, Tensor]:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()  # an evaluation leaves gathered weights behind, in place of the shards
        return super().tensors(model, optimizers)


def assign_shard(p: Tensor, full: Tensor) -> None:
    """p[...] = full, where p may be a shard; every rank has `full`, so nothing travels."""
    if isinstance(p, DTensor):
        full = distribute_tensor(full.to(p.device), p.device_mesh, p.placements, src_data_rank=None)
    p.copy_(full)


def fill(
    model: ConfigurableGPT, seed: int | None, assign: Callable[[Tensor, Tensor], object] = Tensor.copy_
) -> None:
    if seed is not None:
        init_weights(model, seed, assign)
    else:
        model.fill_tables()


def build_strategy(config: TrainConfig, world: World, device: torch.device, dtype: torch.dtype) -> Strategy:
    """From use_zero1, use_fsdp and hybrid_shard_size. Raises InputError where they cannot be had."""
    if world.size == 1:
        return Strategy(config, world, device, dtype)
    if device.type == "mps":
        raise InputError(
            "device='mps' works in one process only: start it without torchrun, or pass --device=cpu"
        )
    if not (config.use_zero1 or config.use_fsdp):
        return DDP(config, world, device, dtype)
    if dtype == torch.float16:
        raise InputError(
            "dtype='float16' needs a gradient scaler, which sharded gradients have not: use bfloat16 or float32"
        )
    shards = config.hybrid_shard_size or world.size
    if world.size % shards:
        raise InputError(
            f"hybrid_shard_size={shards} does not divide the {world.size} processes: use the GPUs of a node"
        )
    mesh_shape = (world.size,) if shards == world.size else (world.size // shards, shards)
    return Sharded(config, world, device, dtype, reshard=config.use_fsdp, mesh_shape=mesh_shape)


# Selective activation checkpointing keeps what is expensive to compute again, the matmuls and attention,
# and recomputes the rest: norms, rotations, activations, casts.
EXPENSIVE_OPS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_mm.default,
    torch.ops.nanofoundry.linear.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
}


# Functions of our own whose first argument is the block: the compiler enters neither torch's checkpoint by
# itself, nor, past eight blocks, what is another object for each of them.
def recompute_all(block: nn.Module, *args: object) -> Tensor:
    return checkpoint(functools.partial(type(block).forward, block), *args, use_reentrant=False)


def recompute_some(block: nn.Module, *args: object) -> Tensor:
    return checkpoint(
        functools.partial(type(block).forward, block),
        *args,
        use_reentrant=False,
        context_fn=selective_contexts,
    )


def selective_contexts() -> tuple[contextlib.AbstractContextManager, contextlib.AbstractContextManager]:
    def policy(context: object, op: object, *args: object, **kwargs: object) -> CheckpointPolicy:
        return CheckpointPolicy.MUST_SAVE if op in EXPENSIVE_OPS else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)
