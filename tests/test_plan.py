"""plan.py and the rooms below it: the memory model beside what torch keeps, the arithmetic, the command."""

import contextlib
import functools
from dataclasses import replace

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from model_builder import ConfigurableGPT
from model_config import PRESET_CONFIGS, get_preset_config
from training import memory
from training.config import TrainConfig
from training.memory import StepShape
from training.optim import build_optimizers

SHAPES = (  # n_layer, n_embd, d_ff, n_head, num_key_value_heads, head_dim, B, T
    (1, 48, 80, 4, 2, 16, 3, 8),
    (3, 64, 160, 4, 4, 16, 2, 32),
    (2, 96, 64, 6, 2, 32, 4, 64),
)
FIELDS = ("n_layer", "n_embd", "d_ff", "n_head", "num_key_value_heads", "head_dim")


def tiny(preset, shape=SHAPES[0], **changes):
    sizes = dict(zip(FIELDS, shape, strict=False))
    return get_preset_config(preset, **({"block_size": 64, "vocab_size": 101} | sizes | changes))


def count_saved(model, B, T, dtype):
    """Bytes of the distinct storages that autograd keeps between a forward and a backward pass, parameters and tables aside."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(t):
        if t.untyped_storage().data_ptr() not in own:
            kept[t.untyped_storage().data_ptr()] = t
        return t

    ids = torch.randint(model.config.vocab_size, (B, T))
    autocast = torch.autocast("cpu", dtype) if dtype != torch.float32 else contextlib.nullcontext()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), autocast:
        model(ids, ids.clone())
    return sum(t.untyped_storage().nbytes() for t in kept.values())


VARIANTS = (
    {},
    {"qk_norm": True},
    {"qk_norm": True, "normalization": "layernorm"},
    {"norm_position": "post"},
    {"activation": "relu"},
    {"position_encoding": "none"},
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ["sdpa", "manual"])
@pytest.mark.parametrize("preset", PRESET_CONFIGS)
def test_saved_activations_are_those_that_torch_keeps(preset, backend, dtype):
    for shape in SHAPES:
        for variant in VARIANTS:
            c = tiny(preset, shape, attention_backend=backend, **variant)
            step = StepShape(*shape[-2:], s=dtype.itemsize, device="cpu")
            predicted = memory.activation_bytes(c, step) + memory.head_bytes(c, step) + memory.weight_copy_bytes(c, step)
            counted = count_saved(ConfigurableGPT(c), *shape[-2:], dtype)
            assert predicted == pytest.approx(counted, rel=0.005), (shape, variant)


@pytest.mark.parametrize("preset", PRESET_CONFIGS)
def test_full_checkpointing_keeps_the_blocks_inputs(preset):
    c = tiny(preset, SHAPES[1], attention_backend="sdpa")
    model = ConfigurableGPT(c)
    for block in model.blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    step = StepShape(2, 32, s=4, device="cpu", checkpointing="full")
    recomputed = 2 * 32 * memory.block_bytes(c, step)  # later, in the backward pass
    predicted = memory.activation_bytes(c, step) - recomputed + memory.head_bytes(c, step)
    assert predicted == pytest.approx(count_saved(model, 2, 32, torch.float32), rel=0.01)


@pytest.mark.parametrize("preset", PRESET_CONFIGS)
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weights_gradients_and_optimizer_state_are_exact(preset, optimizer):
    model = ConfigurableGPT(tiny(preset))
    optimizers = build_optimizers(model, TrainConfig(optimizer=optimizer), torch.device("cpu"))
    model(ids := torch.randint(101, (2, 8)), ids)[1].backward()
    for o in optimizers:
        o.step()
    params = list(model.parameters())
    state = [t for o in optimizers for s in o.state.values() for t in s.values() if torch.is_tensor(t)]
    predicted = memory.step_memory(model.config, model, StepShape(2, 8), optimizer=optimizer)
    assert predicted.weights == sum(p.numel() * p.element_size() for p in params)
    assert predicted.gradients == sum(p.grad.numel() * p.grad.element_size() for p in params)
    assert predicted.optimizer == sum(t.numel() * t.element_size() for t in state)
    assert sum(memory.parameters_by_part(model).values()) == sum(p.numel() for p in params)


def test_strategies_divide_what_they_shard():
    c = tiny("qwen3", SHAPES[1])
    model = ConfigurableGPT(c)
    ddp, zero1, fsdp = (
        memory.step_memory(c, model, StepShape(2, 32), strategy, 4, accumulates=False) for strategy in ("ddp", "zero1", "fsdp")
    )
    assert (zero1.weights, zero1.gradients) == (ddp.weights, ddp.gradients)
    assert zero1.optimizer == fsdp.optimizer == -(-ddp.optimizer // 4)
    assert (fsdp.weights, fsdp.gradients) == (ddp.weights // 4, ddp.gradients // 4)
    whole = memory.step_memory(c, model, StepShape(2, 32), "fsdp", 4, accumulates=True)
    assert whole.gradients == ddp.gradients


def test_largest_batch_is_the_last_that_fits():
    c = tiny("llama3", SHAPES[1])
    model = ConfigurableGPT(c)
    how = dict(strategy="ddp", n_gpus=2, fragmentation=0.05, context=1000)
    for mode in memory.CHECKPOINTING:
        step = StepShape(1, 64, checkpointing=mode)
        limit = memory.step_memory(c, model, replace(step, batch_size=5), **how).total + 10
        assert memory.largest_batch(c, model, step, limit, **how) == 5
        assert memory.step_memory(c, model, replace(step, batch_size=6), **how).total > limit
        assert memory.largest_batch(c, model, step, 1000, **how) == 0
    assert memory.kept_bytes(c, replace(step, checkpointing="full")) < memory.kept_bytes(
        c, replace(step, checkpointing="selective")
    ) < memory.kept_bytes(c, replace(step, checkpointing="none"))  # fmt: skip
