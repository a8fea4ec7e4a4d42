"""What a training step keeps in memory, from the step itself (planning/step.py).

    need = step_memory(model_config, train_config, world_size=8)      # StepMemory: bytes on one GPU, by kind
    memory = BatchMemory(model_config, train_config, world_size=8)    # the same for any batch, traced once
    largest_batch(lambda b: memory(b).total, limit, most=64, starts=memory.starts)

Not in it: what the allocator loses between blocks, the device's own context, the two batches that wait, and
evaluation, which needs less than a step."""

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from model_config import ModelArchitectureConfig
from operators.loss import SIZES, LossSizes
from planning.step import TRACED_BATCH, StepTrace, matmul_dtype, simulated_step
from training.config import TrainConfig


@dataclass(frozen=True)
class StepMemory:
    """Bytes at the peak of a step, on one process."""

    weights: int  # fp32, whole or a shard; RoPE's tables
    gathered: int  # of a sharded model, when the loss begins
    gradients: int  # of earlier micro-steps, and DDP's buckets
    optimizer: int
    activations: int  # what the forward pass leaves, with autocast's copies of weights
    # All else at the peak: logits and their gradient, temporaries, gradients that were just made
    workspace: int

    @property
    def total(self) -> int:
        return sum(vars(self).values())


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
    linear in the batch, as long as the loss takes the same path; and in every phase of the step linear in
    the number of layers, sharded from the three on that FSDP's prefetching spans: one trace of each of two
    shallow models says it all."""

    def __init__(
        self,
        c: ModelArchitectureConfig,
        train: TrainConfig,
        world_size: int = 1,
        device: Literal["cuda", "cpu"] = "cuda",
        sizes: LossSizes = SIZES,
    ) -> None:
        if device == "cuda" and c.attention_backend != "manual":
            # All the flash kernels keep q, k, v, the result and its log-sum-exp
            c = replace(c, attention_backend="sdpa")
        self.c, self.train, self.world_size, self.device, self.sizes = c, train, world_size, device, sizes
        self.chunked_from, self.many_from = starts_of_chunks(c, train, sizes)
        self.starts = (1, self.chunked_from, self.many_from)  # for largest_batch
        self._traces: dict[tuple[str | int, bool], list[StepTrace]] = {}

    def __call__(self, batch_size: int, accumulates: bool = True) -> StepMemory:
        """`accumulates`: whether a step has more than one micro-step, so that gradients are there before
        the last."""
        kind, depth = self.kind_of(batch_size), self.c.n_layer
        shallow = 3 if self.train.use_fsdp or self.train.use_zero1 else 2
        if (kind, accumulates) not in self._traces:
            depths = (depth,) if depth <= shallow + 1 else (shallow, shallow + 1)
            self._traces[kind, accumulates] = [self.trace(kind, accumulates, n) for n in depths]
        traces = self._traces[kind, accumulates]
        parts, peaks = zip(*(trace.at(batch_size) for trace in traces), strict=True)
        if len(traces) == 2:
            parts, peaks = (
                [{key: a[key] + (depth - shallow) * (b[key] - a[key]) for key in a}]
                for a, b in (parts, peaks)
            )
        return StepMemory(**parts[0], workspace=max(peaks[0].values()) - sum(parts[0].values()))

    def trace(self, kind: str | int, accumulates: bool, n_layer: int) -> StepTrace:
        c = replace(self.c, n_layer=n_layer)
        batch_size = kind if isinstance(kind, int) else TRACED_BATCH
        if isinstance(kind, str):
            c = replace(c, loss_backend=kind)
        train = replace(self.train, batch_size=batch_size)
        train.gradient_accumulation_steps = self.world_size * (1 + accumulates)
        return simulated_step(c, train, self.world_size, self.device, self.sizes)

    def kind_of(self, batch_size: int) -> str | int:
        """The loss backend of which all batches lie on one line; or the batch size itself, which has to be
        traced: where the loss takes fewer than three chunks, and the one sequence that manual attention does
        not have to copy."""
        if self.chunked_from <= batch_size < self.many_from:
            return batch_size
        if batch_size == 1 and self.c.attention_backend != "sdpa":
            return batch_size
        return "chunked" if batch_size >= self.many_from else "plain"


def starts_of_chunks(c: ModelArchitectureConfig, train: TrainConfig, sizes: LossSizes) -> tuple[int, int]:
    """The batch sizes from which the loss is chunked, and takes at least three chunks."""
    logits = c.block_size * c.vocab_size  # of a sequence
    plain_most = {"plain": 2**62, "chunked": 0, "auto": sizes.plain_max // (4 * logits)}[c.loss_backend]
    three_chunks = -(-3 * sizes.chunk // (matmul_dtype(train).itemsize * logits))
    return plain_most + 1, max(plain_most + 1, three_chunks)


def largest_batch(need: Callable[[int], int], limit: int, most: int, starts: Sequence[int] = (1,)) -> int:
    """The largest batch, up to `most`, whose need(batch) stays within the limit; 0 where not even one does.
    The need grows from each of `starts` to the next, where it may step down; the last ones are asked for
    first."""
    for start in sorted(starts, reverse=True):
        if start <= most and need(start) <= limit:
            return bisect_right(range(start, most + 1), limit, key=need) + start - 1
        most = min(most, start - 1)
    return 0
