"""The planner's memory beside torch's own count and the bytes that one can count by hand;
benchmarks/plan_memory.py holds it against resident memory, on one and two processes."""

import os
from dataclasses import replace

import pytest
import torch

from model_builder import ConfigurableGPT
from model_config import PRESET_CONFIGS, get_preset_config
from operators.loss import LossSizes
from planning.memory import BatchMemory, largest_batch, step_memory
from planning.sizes import parameters_by_part
from planning.step import simulated_step
from training.config import TrainConfig

TINY = dict(
    n_layer=2, n_embd=64, d_ff=96, n_head=4, num_key_value_heads=2, head_dim=16, block_size=32, vocab_size=101
)
TRAIN = TrainConfig(batch_size=3, gradient_accumulation_steps=4, dtype="bfloat16", compile=False)


def tiny(preset="qwen3", **changes):
    return get_preset_config(preset, **(TINY | changes))


def saved_bytes(c, batch_size):
    """What autograd keeps between a forward and a backward pass, parameters and tables aside, counted by
    torch's own hooks."""
    model = ConfigurableGPT(c)
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t
        return t

    ids = torch.randint(c.vocab_size, (batch_size, c.block_size))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        model(ids, ids.clone())
    return sum(t.untyped_storage().nbytes() for t in kept.values())


@pytest.mark.parametrize("backend", ["sdpa", "manual"])
@pytest.mark.parametrize("preset", PRESET_CONFIGS)
def test_activations_are_those_that_autograd_keeps(preset, backend):
    """The difference of two depths, so that the head and the loss drop out."""
    a, b = (tiny(preset, n_layer=n, attention_backend=backend) for n in (2, 5))
    kept = saved_bytes(b, 3) - saved_bytes(a, 3)
    assert kept == pytest.approx(
        step_memory(b, TRAIN, device="cpu").activations - step_memory(a, TRAIN, device="cpu").activations,
        rel=0.02,
    )


@pytest.mark.parametrize("preset", PRESET_CONFIGS)
def test_weights_gradients_and_adamw_are_four_four_and_eight_bytes(preset):
    c = tiny(preset)
    n = ConfigurableGPT(c).get_num_params()
    tables = 4 * c.block_size * c.head_dim if c.position_encoding == "rope" else 0
    m = step_memory(c, TRAIN)
    assert (m.weights, m.gradients) == (4 * n + tables, 4 * n)
    assert m.optimizer == pytest.approx(8 * n, rel=0.01)  # and a count of steps for each tensor
    assert sum(parameters_by_part(c).values()) == n


def test_strategies_divide_what_they_shard():
    n = ConfigurableGPT(tiny()).get_num_params()
    ddp, zero1, fsdp = (step_memory(tiny(), replace(TRAIN, gradient_accumulation_steps=8, **flags), 4)
                        for flags in ({}, {"use_zero1": True}, {"use_fsdp": True}))  # fmt: skip
    assert ddp.gradients == 4 * n  # in the buckets, from the first micro-step on
    for sharded in (zero1, fsdp):
        assert sharded.optimizer == pytest.approx(ddp.optimizer / 4, rel=0.02)
        assert sharded.gradients == pytest.approx(4 * n, rel=0.01)  # whole until the last micro-step
    assert zero1.gathered > fsdp.gathered > 0 == ddp.gathered
    hybrid = step_memory(tiny(), replace(TRAIN, use_fsdp=True, hybrid_shard_size=2), 4)
    assert hybrid.optimizer == pytest.approx(ddp.optimizer / 2, rel=0.02)
    alone = step_memory(tiny(), replace(TRAIN, use_fsdp=True, gradient_accumulation_steps=4), 4)
    assert alone.gradients == 0 and alone.total < fsdp.total


STRATEGIES = [{}, {"use_fsdp": True}, {"use_zero1": True}, {"optimizer": "muon"}]


SLOW = "SLOW" in os.environ  # make test-faults, which has time for all combinations


@pytest.mark.parametrize("mode", ["none", "selective", "full"] if SLOW else ["selective"])
@pytest.mark.parametrize("flags", STRATEGIES)
def test_depth_is_a_line(mode, flags):
    c, train = (
        tiny(n_layer=6, attention_backend="sdpa"),
        replace(TRAIN, activation_checkpointing=mode, **flags),
    )
    world_size = 2 if "optimizer" not in flags and flags else 1
    _, peaks = simulated_step(c, train, world_size, "cuda").at(train.batch_size)
    assert step_memory(c, train, world_size).total == pytest.approx(max(peaks.values()), rel=0.005)


@pytest.mark.parametrize("backend", ["auto", "chunked"] if SLOW else ["chunked"])
@pytest.mark.parametrize("flags", STRATEGIES)
def test_one_trace_answers_for_all_batches(flags, backend):
    """To the byte what a trace of the batch itself says: one, two, some chunks of the loss, and no whole
    number of them."""
    sizes = LossSizes(chunk=2 * 101 * 70)  # 70 tokens; sequences have 32
    c, train = tiny(loss_backend=backend, attention_backend="sdpa"), replace(TRAIN, **flags)
    memory = BatchMemory(c, train, 2, sizes=sizes)
    for B in (1, 3, 7, 9):
        parts, peaks = simulated_step(c, replace(train, batch_size=B), 2, "cuda", sizes).at(B)
        assert vars(memory(B)) | {"workspace": 0} == parts | {"workspace": 0} and memory(B).total == max(
            peaks.values()
        )


def test_checkpointing_keeps_less():
    none, selective, full = (step_memory(tiny(n_layer=8), replace(TRAIN, activation_checkpointing=mode)).activations
                             for mode in ("none", "selective", "full"))  # fmt: skip
    assert full < selective < none


def test_largest_batch():
    assert largest_batch(lambda b: 100 + 7 * b, 100 + 7 * 35 + 6, most=99) == 35
    assert largest_batch(lambda b: 100 + 7 * b, 100 + 7 * 35 + 6, most=20) == 20
    assert largest_batch(lambda b: 100 + 7 * b, 106, most=99) == 0
    assert largest_batch(lambda b: 100 + 7 * b, 110, most=1) == 1
    by_chunks_from_10 = lambda b: 100 + 7 * b - 50 * (b >= 10)  # noqa: E731
    answers = [
        largest_batch(by_chunks_from_10, limit, most=99, starts=(1, 10, 30))
        for limit in (400, 210, 125, 119, 106)
    ]
    assert answers == [50, 22, 10, 2, 0]
    memory = BatchMemory(tiny(), TRAIN)
    assert largest_batch(lambda b: memory(b).total, memory(5).total, most=99, starts=memory.starts) == 5
    sizes = LossSizes(plain_max=4 * 101 * 32 * 10, chunk=2 * 101 * 70)  # the plain loss up to ten sequences
    memory = BatchMemory(tiny(), TRAIN, sizes=sizes)
    assert memory.starts == (1, 11, 11) and memory(11).workspace < memory(10).workspace
    for B in (3, 10, 11, 40):
        fitting = [b for b in range(1, 50) if memory(b).total <= memory(B).total]
        assert largest_batch(
            lambda b: memory(b).total, memory(B).total, most=49, starts=memory.starts
        ) == max(fitting)


def test_muon_under_fsdp_holds_a_shard_of_its_moment():
    alone, sharded = (
        step_memory(tiny(), replace(TRAIN, optimizer="muon", use_fsdp=True), n).optimizer for n in (1, 4)
    )
    assert sharded == pytest.approx(alone / 4, rel=0.02)


def test_shards_of_many_ranks():
    """Pieces of other ranks are not made; a rank's own is what division gives, rounded up."""
    train = replace(TRAIN, use_fsdp=True, gradient_accumulation_steps=1000)
    shards = [step_memory(tiny(), train, n).weights for n in (8, 1000)]
    model = ConfigurableGPT(tiny())
    tables = 4 * 32 * 16
    for n, held in zip((8, 1000), shards, strict=True):
        assert held == tables + sum(
            4 * -(-p.size(0) // n) * (p.numel() // p.size(0)) for p in model.parameters()
        )
