"""One training step of train.py's own parts on tensors that have shapes and no data.

torch's FakeTensorMode computes shapes only, a process group of the kind "fake" stands for the other ranks,
and LiveBytes adds up the storages that are alive. So the strategies, checkpointing, the loss and every
architectural choice are those of training/ and model_builder.py, and there is no formula that could fall
behind them. It is eager execution: a compiled model fuses elementwise work and keeps less."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.distributed
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.tensor import DTensor

from model_builder import ConfigurableGPT
from model_config import ModelArchitectureConfig
from operators.loss import SIZES, LossSizes
from planning.live_bytes import FirstShards, FusedNorms, LiveBytes
from training.config import TrainConfig
from training.optim import build_optimizers, clip_gradients
from training.parallel import Strategy, build_strategy
from training.world import World

CPU = torch.device("cpu")  # where tensors without data lie, whatever device they stand for
# No size is a multiple of this prime but those of tensors that grow with the batch. There are no data: it
# costs nothing
TRACED_BATCH = 1_000_003


@dataclass(frozen=True)
class StepTrace:
    """Bytes as [fixed, for each sequence]: all of StepMemory but the workspace [2], and for each phase of
    the last micro-step all points that it passes [points, 2]. The phases: up to the gradient of the last
    block's output, up to that of the first block's, up to the end, and the update."""

    parts: dict[str, np.ndarray]
    points: dict[str, np.ndarray]

    def at(self, batch_size: int) -> tuple[dict[str, int], dict[str, int]]:
        """The parts, and the peak of each phase."""
        of_batch = np.array((1.0, batch_size))  # in float64, exact up to 9 PB and never wrong
        parts = {name: int(line @ of_batch) for name, line in self.parts.items()}
        return parts, {phase: int((points @ of_batch).max()) for phase, points in self.points.items()}


def simulated_step(
    c: ModelArchitectureConfig, train: TrainConfig, world_size: int, device: str, sizes: LossSizes = SIZES
) -> StepTrace:
    """Of rank 0 of world_size. At a batch size of TRACED_BATCH the trace is that of all batch sizes; at any
    other of that one."""
    every_batch = train.batch_size == TRACED_BATCH
    if device == "cuda":
        sizes = replace(sizes, piece=sizes.device_piece)
    # A million sequences have many chunks; from the third on they find the same beside them
    sizes = FirstChunks(**asdict(sizes), most=3 if every_batch else 12)
    with torch.device("meta"):
        model = ConfigurableGPT(c)
    model.head_loss = partial(model.head_loss, sizes=sizes)
    with pretended_world(world_size) as world, contextlib.ExitStack() as modes:
        strategy = pretended_strategy(train, world)
        if device == "cuda":
            modes.enter_context(FusedNorms())
        modes.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        live = modes.enter_context(LiveBytes(TRACED_BATCH if every_batch else None))
        return Simulation(model, train, strategy, live).run()


@dataclass(frozen=True)
class FirstChunks(LossSizes):
    most: int = 3

    def starts(self, tokens: int, chunk: int) -> range:
        return range(0, tokens, chunk)[: self.most]


class PretendedDDP(Strategy):
    """DDP's reducer needs data. Gradients are views of its buckets, which it holds for the whole run."""

    def wrap(self, model: ConfigurableGPT, seed: int | None, compile: bool = False) -> Callable:
        super().wrap(model, seed, compile)
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        return model


def pretended_strategy(train: TrainConfig, world: World) -> Strategy:
    build = PretendedDDP if world.size > 1 and not is_sharded(train) else build_strategy
    return build(train, world, CPU, matmul_dtype(train))


def is_sharded(train: TrainConfig) -> bool:
    return train.use_zero1 or train.use_fsdp


def matmul_dtype(train: TrainConfig) -> torch.dtype:
    return torch.bfloat16 if train.dtype == "auto" else getattr(torch, train.dtype)


@contextlib.contextmanager
def pretended_world(size: int) -> Iterator[World]:
    """Rank 0 of a process group in which every collective returns at once."""
    if size > 1:
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("fake", store=store, rank=0, world_size=size)
    try:
        yield World(size=size)
    finally:
        if size > 1:
            torch.distributed.destroy_process_group()


class Simulation:
    """The step of one model, under the modes that count it."""

    def __init__(
        self, model: ConfigurableGPT, train: TrainConfig, strategy: Strategy, live: LiveBytes
    ) -> None:
        self.model, self.train, self.strategy, self.live = model, train, strategy, live
        self.parts: dict[str, np.ndarray] = {}
        self.points: dict[str, np.ndarray] = {}

    def run(self) -> StepTrace:
        model, live = self.model, self.live
        with FirstShards():
            self.forward = self.strategy.wrap(model, None)
        self.own = {storage_of(p)._cdata for p in model.parameters()}
        weights = sum(storage_of(p).nbytes() for p in model.parameters())
        self.parts["weights"] = live.now - (weights if isinstance(self.strategy, PretendedDDP) else 0, 0)
        self.watch_phases()
        optimizers = build_optimizers(model, self.train, CPU)
        self.micro_steps()
        clip_gradients(model, self.train.grad_clip)
        before = live.now
        for optimizer in optimizers:
            optimizer.step()
        self.parts["optimizer"] = live.now - before  # there from the first update on
        live.points = [live.now]
        for optimizer in optimizers:  # again: the first fused update is traced with temporaries of its own
            optimizer.step()
        self.end_of("update")
        points = {phase: np.unique(np.array(p), axis=0) for phase, p in self.points.items()}
        for phase in points.keys() - {"update"}:
            points[phase] = points[phase] + self.parts["optimizer"]
        return StepTrace(self.parts, points)

    def micro_steps(self) -> None:
        """Forward and backward: the last of a step, and where earlier ones leave what has to be seen, one
        of those."""
        model, live, train, world_size = self.model, self.live, self.train, self.strategy.world.size
        without_ids = live.now
        ids = torch.zeros(train.batch_size, model.config.block_size, dtype=torch.long)
        ids_bytes = live.now - without_ids
        accumulates = train.gradient_accumulation_steps > world_size
        if accumulates and world_size == 1:  # what an earlier micro-step leaves is known
            for p in model.parameters():
                p.grad = torch.zeros_like(p)
        sharded = world_size > 1 and is_sharded(train)
        dtype = matmul_dtype(train)
        for last in (False, True) if accumulates and sharded else (True,):
            live.points = [live.now]
            self.parts["gradients"] = live.now - self.parts["weights"] - self.gathered() - ids_bytes
            with self.strategy.gradient_sync(model, last):
                with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                    _, loss = self.forward(ids, ids)
                loss.backward()
            del loss
            self.end_of("tail")

    def watch_phases(self) -> None:
        """Has the model say where the loss begins and where the phases of the backward pass end, and which
        storages FSDP2 gathers weights into."""
        for module in (*self.model.blocks, self.model):
            module.register_forward_pre_hook(lambda module, _: self.live.watch(self.gathers_into(module)))
        self.model.final_norm.register_forward_hook(self.loss_begins)
        for block, phase in ((self.model.blocks[-1], "head"), (self.model.blocks[0], "blocks")):

            def watch(block: nn.Module, inputs: tuple, out: Tensor, phase: str = phase) -> None:
                out.register_hook(lambda _: self.end_of(phase))

            block.register_forward_hook(watch)

    def loss_begins(self, *_: object) -> None:
        self.parts["gathered"] = self.gathered()
        there = sum(self.parts[part] for part in ("weights", "gathered", "gradients"))
        self.parts["activations"] = self.live.now - there

    def end_of(self, phase: str) -> None:
        self.points[phase], self.live.points = self.live.points, [self.live.now]

    def gathers_into(self, module: nn.Module) -> list[torch.UntypedStorage]:
        return [s for p in module.parameters() if (s := storage_of(p))._cdata not in self.own]

    def gathered(self) -> np.ndarray:
        storages = {s._cdata: s.nbytes() for s in self.gathers_into(self.model)}
        return np.array((sum(storages.values()), 0))


def storage_of(p: Tensor) -> torch.UntypedStorage:
    return (p.to_local() if isinstance(p, DTensor) else p).untyped_storage()
