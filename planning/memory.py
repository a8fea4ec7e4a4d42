"""What a training step keeps in memory, from the step itself: train.py's own parts on tensors that have
shapes and no data.

    need = step_memory(model_config, train_config, world_size=8)      # StepMemory: bytes on one GPU, by kind
    memory = BatchMemory(model_config, train_config, world_size=8)    # the same for any batch, traced once
    largest_batch(lambda b: memory(b).total, limit, most=64, starts=memory.starts)

torch's FakeTensorMode computes shapes only, a process group of the kind "fake" stands for the other ranks,
and LiveBytes adds up the storages that are alive. So the strategies, checkpointing, the loss and every
architectural choice are those of training/ and model_builder.py, and there is no formula that could fall
behind them. It is eager execution: a compiled model fuses elementwise work and keeps less. Not in it: what
the allocator loses between blocks, the device's own context, the two batches that wait, and evaluation,
which needs less than a step."""

import contextlib
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor
from torch.overrides import TorchFunctionMode

from model_builder import ConfigurableGPT
from model_config import ModelArchitectureConfig
from operators import loss
from planning.live_bytes import LiveBytes
from training.config import TrainConfig
from training.optim import build_optimizers, clip_gradients
from training.parallel import Strategy, build_strategy
from training.world import World


@dataclass(frozen=True)
class StepMemory:
    """Bytes at the peak of a step, on one process."""

    weights: int  # fp32, whole or a shard; RoPE's tables
    gathered: int  # of a sharded model, when the loss begins
    gradients: int  # of earlier micro-steps, and DDP's buckets
    optimizer: int
    activations: int  # what the forward pass leaves, with autocast's copies of weights
    workspace: (
        int  # all else at the peak: logits and their gradient, temporaries, gradients that were just made
    )

    @property
    def total(self) -> int:
        return sum(vars(self).values())


# No size is a multiple of this prime but those of tensors that grow with the batch. There are no data: it
# costs nothing
TRACED_BATCH = 1_000_003


class PretendedDDP(Strategy):
    """DDP's reducer needs data. Gradients are views of its buckets, which it holds for the whole run."""

    def wrap(self, model: ConfigurableGPT, seed: int | None, compile: bool = False) -> Callable:
        super().wrap(model, seed, compile)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        return model


def step_memory(
    c: ModelArchitectureConfig,
    train: TrainConfig,
    world_size: int = 1,
    device: Literal["cuda", "cpu"] = "cuda",
) -> StepMemory:
    """Of one rank of world_size. `dtype='auto'` is bfloat16. Raises InputError as build_strategy does."""
    accumulates = train.gradient_accumulation_steps > world_size
    return BatchMemory(c, train, world_size, device)(train.batch_size, accumulates)


class BatchMemory:
    """step_memory of any batch size, from few traces. Every part of it, at every point of the step, is
    linear in the batch, as long as the loss goes by the same way; and in every phase of the step linear in
    the number of layers, sharded from the three on that FSDP's prefetching spans: one trace of each of two
    shallow models says it all."""

    def __init__(
        self,
        c: ModelArchitectureConfig,
        train: TrainConfig,
        world_size: int = 1,
        device: Literal["cuda", "cpu"] = "cuda",
    ) -> None:
        if device == "cuda" and c.attention_backend != "manual":
            c = replace(
                c, attention_backend="sdpa"
            )  # all the flash kernels keep q, k, v, the result and its log-sum-exp
        self.c, self.train, self.world_size, self.device = c, train, world_size, device
        self.starts = (1, *starts_of_chunks(c, train))  # for largest_batch
        self._traces: dict[tuple[str | int, bool], list[StepTrace]] = {}

    def __call__(self, batch_size: int, accumulates: bool = True) -> StepMemory:
        """`accumulates`: whether a step has more than one micro-step, so that gradients are there before
        the last."""
        kind, depth = kind_of_batch(self.c, self.train, batch_size), self.c.n_layer
        shallow = 3 if self.train.use_fsdp or self.train.use_zero1 else 2
        if (kind, accumulates) not in self._traces:
            c = self.c if isinstance(kind, int) else replace(self.c, loss_backend=kind)
            train = replace(self.train, batch_size=kind if isinstance(kind, int) else TRACED_BATCH)
            train.gradient_accumulation_steps = self.world_size * (1 + accumulates)
            self._traces[kind, accumulates] = [
                simulated_step(replace(c, n_layer=n), train, self.world_size, self.device)
                for n in ((depth,) if depth <= shallow + 1 else (shallow, shallow + 1))
            ]
        parts, peaks = zip(*(trace.at(batch_size) for trace in self._traces[kind, accumulates]), strict=True)
        if depth > shallow + 1:
            parts, peaks = (
                [{key: a[key] + (depth - shallow) * (b[key] - a[key]) for key in a}]
                for a, b in (parts, peaks)
            )
        return StepMemory(**parts[0], workspace=max(peaks[0].values()) - sum(parts[0].values()))


def kind_of_batch(c: ModelArchitectureConfig, train: TrainConfig, batch_size: int) -> str | int:
    """The loss backend of which all batches lie on one line; or the batch size itself, which has to be
    traced: where the loss takes less than three chunks, and the one sequence that manual attention does not
    have to copy."""
    chunked_from, many_from = starts_of_chunks(c, train)
    if chunked_from <= batch_size < many_from or (batch_size == 1 and c.attention_backend != "sdpa"):
        return batch_size
    return "chunked" if batch_size >= many_from else "plain"


def starts_of_chunks(c: ModelArchitectureConfig, train: TrainConfig) -> tuple[int, int]:
    """The batch sizes from which on the loss goes by chunks, and by at least three of them."""
    logits = c.block_size * c.vocab_size  # of a sequence
    plain_most = {"plain": 2**62, "chunked": 0, "auto": loss.PLAIN_MAX_BYTES // (4 * logits)}[c.loss_backend]
    three_chunks = -(-3 * loss.CHUNK_BYTES // (matmul_dtype(train).itemsize * logits))
    return plain_most + 1, max(plain_most + 1, three_chunks)


def matmul_dtype(train: TrainConfig) -> torch.dtype:
    return torch.bfloat16 if train.dtype == "auto" else getattr(torch, train.dtype)


@dataclass(frozen=True)
class StepTrace:
    """Bytes as [fixed, for each sequence]: all of StepMemory but the workspace [2], and for each phase of
    the last micro-step all points that it passes [points, 2]. The phases: up to the gradient of the last
    block's output, up to that of the first block's, up to the end, and the update."""

    parts: dict[str, np.ndarray]
    points: dict[str, np.ndarray]

    def at(self, batch_size: int) -> tuple[dict[str, int], dict[str, int]]:
        """The parts, and the peak of each phase."""
        parts = {name: int(line @ (1, batch_size)) for name, line in self.parts.items()}
        return parts, {phase: int((points @ (1, batch_size)).max()) for phase, points in self.points.items()}


class FusedNorms(TorchFunctionMode):
    """RMSNorm as CUDA has it, one operator. On the CPU, where tensors without data lie, it is composed and
    keeps more."""

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is torch.nn.functional.rms_norm:
            return torch.ops.aten._fused_rms_norm(*args, **(kwargs or {}))[0]
        return func(*args, **(kwargs or {}))


def simulated_step(c: ModelArchitectureConfig, train: TrainConfig, world_size: int, device: str) -> StepTrace:
    """At a batch size of TRACED_BATCH for all of them; at any other for that one."""
    with pretended_world(world_size) as world, contextlib.ExitStack() as modes:
        if device == "cuda":
            modes.enter_context(FusedNorms())
        return Simulation(c, train, world, device).trace(modes)


class Simulation:
    """A model and its strategy, of which one step is made without data."""

    def __init__(self, c: ModelArchitectureConfig, train: TrainConfig, world: World, device: str) -> None:
        self.c, self.train, self.world, self.dtype = c, train, world, matmul_dtype(train)
        self.sharded = world.size > 1 and (train.use_zero1 or train.use_fsdp)
        self.buckets = world.size > 1 and not self.sharded
        self.accumulates = train.gradient_accumulation_steps > world.size
        with torch.device("meta"):
            self.model = ConfigurableGPT(c)
        every_batch = train.batch_size == TRACED_BATCH
        # A million sequences have many chunks; from the third on they find the same beside them
        starts = (lambda chunk: (0, chunk, 2 * chunk)) if every_batch else None
        piece_bytes = loss.DEVICE_PIECE_BYTES if device == "cuda" else None
        self.model.head_loss = partial(self.model.head_loss, piece_bytes=piece_bytes, starts=starts)
        build = PretendedDDP if self.buckets else build_strategy
        self.strategy = build(train, world, torch.device("cpu"), self.dtype)
        self.live = LiveBytes(TRACED_BATCH if every_batch else None)
        self.parts: dict[str, np.ndarray] = {}
        self.points: dict[str, list[np.ndarray]] = {}

    def trace(self, modes: contextlib.ExitStack) -> StepTrace:
        modes.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        modes.enter_context(self.live)
        forward = self.strategy.wrap(self.model, None)
        self.own = {storage_of(p)._cdata for p in self.model.parameters()}
        buckets = sum(storage_of(p).nbytes() for p in self.model.parameters()) if self.buckets else 0
        self.parts["weights"] = self.live.now - (buckets, 0)
        self.watch()
        optimizers = build_optimizers(self.model, self.train, torch.device("cpu"))
        without_ids = self.live.now
        ids = torch.zeros(self.train.batch_size, self.c.block_size, dtype=torch.long)
        self.micro_steps(forward, ids, ids_bytes=self.live.now - without_ids)
        self.update(optimizers)
        points = {phase: np.unique(np.array(p), axis=0) for phase, p in self.points.items()}
        state = self.parts["optimizer"]
        return StepTrace(self.parts, {phase: p + state * (phase != "update") for phase, p in points.items()})

    def watch(self) -> None:
        """Hooks that tell the phases of the last micro-step apart."""
        self.model.final_norm.register_forward_hook(lambda *_: self.loss_begins())
        for block, phase in ((self.model.blocks[-1], "head"), (self.model.blocks[0], "blocks")):

            def end_with_gradient(block: nn.Module, inputs: tuple, out: Tensor, phase: str = phase) -> None:
                out.register_hook(lambda _: self.end_of(phase))

            block.register_forward_hook(end_with_gradient)

    def end_of(self, phase: str) -> None:
        self.live.look()
        self.points[phase], self.live.points = self.live.points, [self.live.now]

    def gathered(self) -> np.ndarray:
        """Bytes of weights that are not this rank's own."""
        storages = {
            s._cdata: s.nbytes()
            for p in self.model.parameters()
            if (s := storage_of(p))._cdata not in self.own
        }
        return np.array((sum(storages.values()), 0))

    def loss_begins(self) -> None:
        self.live.look()
        self.parts["gathered"] = self.gathered()
        held = sum(self.parts[part] for part in ("weights", "gathered", "gradients"))
        self.parts["activations"] = self.live.now - held

    def micro_steps(self, forward: Callable, ids: Tensor, ids_bytes: np.ndarray) -> None:
        """The last micro-step, and the one before it where that leaves what cannot be known otherwise."""
        if self.accumulates and self.world.size == 1:  # what an earlier micro-step leaves is known
            for p in self.model.parameters():
                p.grad = torch.zeros_like(p)
        for last in (False, True) if self.accumulates and self.sharded else (True,):
            self.live.look()
            self.live.points = [self.live.now]
            self.parts["gradients"] = self.live.now - self.parts["weights"] - self.gathered() - ids_bytes
            with self.strategy.gradient_sync(self.model, last):
                with torch.autocast("cpu", self.dtype, enabled=self.dtype != torch.float32):
                    _, step_loss = forward(ids, ids)
                step_loss.backward()
            del step_loss
            self.end_of("tail")

    def update(self, optimizers: list[torch.optim.Optimizer]) -> None:
        clip_gradients(self.model, self.train.grad_clip)
        before = self.live.now
        for optimizer in optimizers:
            optimizer.step()
        self.parts["optimizer"] = self.live.now - before  # there from the first update on
        self.live.points = [self.live.now]
        for optimizer in optimizers:  # again: the first fused update is traced with temporaries of its own
            optimizer.step()
        self.end_of("update")


def storage_of(p: Tensor) -> torch.UntypedStorage:
    return (p.to_local() if isinstance(p, DTensor) else p).untyped_storage()


@contextlib.contextmanager
def pretended_world(size: int) -> Iterator[World]:
    """Rank 0 of a process group in which every collective returns at once."""
    if size > 1:
        torch.distributed.init_process_group(
            "fake", store=torch.distributed.HashStore(), rank=0, world_size=size
        )
    try:
        yield World(size=size)
    finally:
        if size > 1:
            torch.distributed.destroy_process_group()


def largest_batch(need: Callable[[int], int], limit: int, most: int, starts: Sequence[int] = (1,)) -> int:
    """The largest batch, up to `most`, whose need(batch) stays within the limit; 0 where not even one does.
    The need grows from each of `starts` to the next, where it may step down; the last ones are asked for
    first."""
    for start in sorted(starts, reverse=True):
        if start <= most and need(start) <= limit:
            return bisect_right(range(start, most + 1), limit, key=need) + start - 1
        most = min(most, start - 1)
    return 0


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Elements of each part of a ConfigurableGPT, which may be on the meta device; tied weights count once,
    as embedding."""
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
