"""What a training step keeps in memory, from the step itself: train.py's own parts on tensors that have shapes and no data.

    need = step_memory(model_config, train_config, world_size=8)      # StepMemory: bytes on one GPU, by kind
    largest_batch(lambda b: step_memory(model_config, replace(train_config, batch_size=b), 8).total, limit, most=64)

torch's FakeTensorMode computes shapes only, a process group of the kind "fake" stands for the other ranks, and LiveBytes adds
up the storages that are alive. So the strategies, checkpointing, the loss and every architectural choice are those of training/
and model_builder.py, and there is no formula that could fall behind them. It is eager execution: a compiled model fuses
elementwise work and keeps less. Not in it: what the allocator loses between blocks, the device's own context, the two
batches that wait, and evaluation, which needs less than a step.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal
from unittest.mock import patch

import torch
import torch.distributed
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from model_builder import ConfigurableGPT
from model_config import ModelArchitectureConfig
from training.config import TrainConfig
from training.dist import World
from training.parallel import Strategy, build_strategy


@dataclass(frozen=True)
class StepMemory:
    """Bytes at the peak of a step, on one process."""

    weights: int  # fp32, whole or a shard; RoPE's tables
    gathered: int  # of a sharded model, when the loss begins
    gradients: int  # of earlier micro-steps, and DDP's buckets
    optimizer: int
    activations: int  # what the forward pass leaves, with autocast's copies of weights
    workspace: int  # all else at the peak: logits and their gradient, temporaries, gradients that were just made

    @property
    def total(self) -> int:
        return sum(vars(self).values())


class LiveBytes(TorchDispatchMode):
    """`now`: bytes of all storages made under this mode and not yet freed; `peak`: their most since it was last set."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._storages: dict[int, tuple[weakref.ref, int]] = {}

    def __torch_dispatch__(self, func: Callable, types: Iterable[type], args: tuple = (), kwargs: dict | None = None) -> Any:
        if DTensor in types:
            return NotImplemented  # it comes back as operations on the shard
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if isinstance(t, Tensor):
                self._add(t.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._storages:
            self._storages[key] = weakref.ref(storage, lambda _: self._count(-self._storages.pop(key)[1])), storage.nbytes()
            self._count(storage.nbytes())

    def _count(self, change: int) -> None:
        self.now += change
        self.peak = max(self.peak, self.now)

    def __enter__(self) -> "LiveBytes":
        resize = torch.UntypedStorage.resize_

        def counted_resize(storage: torch.UntypedStorage, size: int) -> None:
            resize(storage, size)
            if storage._cdata in self._storages:  # FSDP2 frees and refills gathered weights in this way
                ref, before = self._storages[storage._cdata]
                self._storages[storage._cdata] = ref, size
                self._count(size - before)

        self._patch = patch.object(torch.UntypedStorage, "resize_", counted_resize)
        self._patch.start()
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        self._patch.stop()
        super().__exit__(*error)


def fused_rms_norm(x: Tensor, shape: tuple[int, ...], weight: Tensor, eps: float) -> Tensor:
    """CUDA's RMSNorm is one kernel. On the CPU, where tensors without data lie, it is composed and keeps more."""
    return torch.ops.aten._fused_rms_norm(x, shape, weight, eps)[0]


class PretendedDDP(Strategy):
    """DDP's reducer needs data. Gradients are views of its buckets, which it holds for the whole run."""

    def wrap(self, model: ConfigurableGPT, seed: int | None, compile: bool = False) -> Callable:
        super().wrap(model, seed, compile)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        return model


def step_memory(
    c: ModelArchitectureConfig, train: TrainConfig, world_size: int = 1, device: Literal["cuda", "cpu"] = "cuda"
) -> StepMemory:
    """Of one rank of world_size. `dtype='auto'` is bfloat16. Every part of it, in every phase of the step, is linear in the
    number of layers, from the three on that FSDP's prefetching spans: two shallow models say it all. Raises ValueError as
    build_strategy does."""
    if device == "cuda" and c.attention_backend != "manual":
        c = replace(c, attention_backend="sdpa")  # all the flash kernels keep q, k, v, the result and its log-sum-exp
    if c.n_layer <= 4:
        parts, peaks = simulated_step(c, train, world_size, device)
    else:
        (a, peaks_a), (b, peaks_b) = (simulated_step(replace(c, n_layer=n), train, world_size, device) for n in (3, 4))
        parts, peaks = (
            {key: x[key] + (c.n_layer - 3) * (y[key] - x[key]) for key in x} for x, y in ((a, b), (peaks_a, peaks_b))
        )
    return StepMemory(**parts, workspace=max(peaks.values()) - sum(parts.values()))


def simulated_step(
    c: ModelArchitectureConfig, train: TrainConfig, world_size: int, device: str
) -> tuple[dict[str, int], dict[str, int]]:
    """All of StepMemory but the workspace, and the peak of each phase of the last micro-step: up to the gradient of the last
    block's output, up to that of the first block's, up to the end, and the update."""
    dtype = torch.bfloat16 if train.dtype == "auto" else getattr(torch, train.dtype)
    with torch.device("meta"):
        model = ConfigurableGPT(c)
    live, parts, peaks = LiveBytes(), {}, {}

    def end_of(phase: str) -> None:
        peaks[phase], live.peak = live.peak, live.now

    kernels = patch("torch.nn.functional.rms_norm", fused_rms_norm) if device == "cuda" else contextlib.nullcontext()
    with pretended_world(world_size) as world, kernels, contextlib.ExitStack() as modes:
        sharded = train.use_zero1 or train.use_fsdp
        build = PretendedDDP if world.size > 1 and not sharded else build_strategy
        strategy = build(train, world, torch.device("cpu"), dtype)
        modes.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        modes.enter_context(live)
        forward = strategy.wrap(model, None)
        own = {storage_of(p)._cdata for p in model.parameters()}
        buckets = sum(storage_of(p).nbytes() for p in model.parameters()) if build is PretendedDDP else 0
        parts["weights"] = live.now - buckets

        def gathered() -> int:
            storages = {s._cdata: s.nbytes() for p in model.parameters() if (s := storage_of(p))._cdata not in own}
            return sum(storages.values())

        def loss_begins(*_: object) -> None:
            parts["gathered"] = gathered()
            parts["activations"] = live.now - sum(parts[part] for part in ("weights", "gathered", "gradients"))

        model.final_norm.register_forward_hook(loss_begins)
        for block, phase in ((model.blocks[-1], "head"), (model.blocks[0], "blocks")):

            def watch(block: nn.Module, inputs: tuple, out: Tensor, phase: str = phase) -> None:
                out.register_hook(lambda _: end_of(phase))

            block.register_forward_hook(watch)
        optimizers = strategy.optimizers(model, train)
        ids = torch.zeros(train.batch_size, c.block_size, dtype=torch.long)
        accumulates = train.gradient_accumulation_steps > world_size
        for last in (False, True) if accumulates else (True,):
            live.peak = live.now
            parts["gradients"] = live.now - parts["weights"] - gathered() - ids.nbytes
            with strategy.gradient_sync(model, last):
                with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                    _, loss = forward(ids, ids)
                loss.backward()
            del loss
            end_of("tail")
        strategy.clip(model, train.grad_clip)
        before = live.now
        for optimizer in optimizers:
            optimizer.step()
        parts["optimizer"] = live.now - before  # there from the first update on
        live.peak = live.now
        for (
            optimizer
        ) in optimizers:  # again: the first time FakeTensorMode traces the fused update, with temporaries of its own
            optimizer.step()
        end_of("update")
    return parts, {phase: peak + parts["optimizer"] * (phase != "update") for phase, peak in peaks.items()}


def storage_of(p: Tensor) -> torch.UntypedStorage:
    return (p.to_local() if isinstance(p, DTensor) else p).untyped_storage()


@contextlib.contextmanager
def pretended_world(size: int) -> Iterator[World]:
    """Rank 0 of a process group in which every collective returns at once."""
    if size > 1:
        torch.distributed.init_process_group("fake", store=torch.distributed.HashStore(), rank=0, world_size=size)
    try:
        yield World(size=size)
    finally:
        if size > 1:
            torch.distributed.destroy_process_group()


def largest_batch(need: Callable[[int], int], limit: int, most: int) -> int:
    """The largest batch, up to `most`, whose need(batch) stays within the limit; 0 where not even one does. The need grows in
    a line, but for a step down where the loss begins to go by chunks: the last two points have to agree with the answer."""
    points = {batch: need(batch) for batch in {1, min(2, most)}}
    while True:
        fits = max((b for b, n in points.items() if n <= limit), default=0)
        exceeds = min((b for b, n in points.items() if n > limit), default=None)
        if fits == most:
            return most
        (b1, n1), (b2, n2) = ([(0, 0)] + sorted(points.items()))[-2:]
        guess = max(fits, b1 + (limit - n1) * (b2 - b1) // (n2 - n1)) if n2 > n1 else 2 * b2
        guess = min(guess, most) if exceeds is None else min(guess, exceeds - 1)
        if guess in points or guess == 0:
            return guess
        points[guess] = need(guess)


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Elements of each part of a ConfigurableGPT, which may be on the meta device; tied weights count once, as embedding."""
    parts = dict.fromkeys(("token embedding", "position embedding", "attention", "ffn", "norms", "head"), 0)
    for name, p in model.named_parameters():
        part = (
            "token embedding" if name.startswith("token_embedding")
            else "position embedding" if name.startswith("position_embedding")
            else "head" if name.startswith("lm_head")
            else "norms" if "norm" in name
            else "attention" if ".attention." in name
            else "ffn"
        )  # fmt: skip
        parts[part] += p.numel()
    return parts
