"""document_masking: a packed row gives what its documents give one by one, in logits, loss and gradients,
and nothing is compiled again for another batch."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounter

from model_builder import ConfigurableGPT
from model_components import may_look, softmax_attention
from model_config import PRESET_CONFIGS, get_preset_config
from operators.attention import attend_flex, document_mask, flex_document_mask
from tokens.loader import document_starts

VOCAB, EOT, T = 61, 7, 32
HEADS = {
    "gpt2": {},
    "llama2": {},
    "llama3": dict(num_key_value_heads=2),
    "qwen3": dict(num_key_value_heads=2, head_dim=16),
}


def build(preset: str, backend: str = "manual", **changes: object) -> ConfigurableGPT:
    shape = dict(
        n_layer=2,
        n_embd=64,
        n_head=4,
        block_size=T,
        vocab_size=VOCAB,
        init_std=0.1,
        attention_backend=backend,
    )
    return ConfigurableGPT(get_preset_config(preset, **{**shape, **HEADS[preset], **changes}), seed=3)


def packed(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """ids, targets and document starts [4, T]. Rows begin and end inside a document; one document is an end
    of text alone, one row has no end of text, one begins with it."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(EOT + 1, VOCAB, (4, T + 1))
    for row in (0, 1):
        ids[row, rng.choice(T, 5, replace=False)] = EOT
    ids[0, 10:12] = EOT
    ids[3, [0, 20]] = EOT
    x = np.ascontiguousarray(ids[:, :-1])
    return torch.from_numpy(x), torch.from_numpy(ids[:, 1:].copy()), torch.from_numpy(document_starts(x, EOT))


def documents(ids: torch.Tensor) -> list[tuple[int, int, int]]:
    """(row, begin, end) of each piece of a document in the batch, found by walking."""
    found = []
    for row, line in enumerate(ids.tolist()):
        begin = 0
        for column, token in enumerate(line):
            if token == EOT or column == len(line) - 1:
                found.append((row, begin, column + 1))
                begin = column + 1
    return found


def test_the_starts_are_those_of_the_documents():
    ids, _, starts = packed()
    assert starts.dtype == torch.int32 and starts.shape == ids.shape
    pieces = documents(ids)
    assert len(pieces) > 12
    for row, begin, end in pieces:
        assert starts[row, begin:end].tolist() == [begin] * (end - begin)


@pytest.mark.parametrize("backend", ["manual", "sdpa"])
@pytest.mark.parametrize("preset", PRESET_CONFIGS)
def test_a_packed_row_is_its_documents_one_by_one(preset, backend):
    model = build(preset, backend)
    ids, targets, starts = packed()
    logits, _ = model(ids, document_starts=starts)
    total = torch.zeros(())
    for row, begin, end in documents(ids):
        alone, _ = model(ids[row : row + 1, begin:end])
        torch.testing.assert_close(logits[row : row + 1, begin:end], alone, rtol=1e-5, atol=1e-5)
        total = total + F.cross_entropy(alone[0], targets[row, begin:end], reduction="sum")
    (total / targets.numel()).backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    _, loss = model(ids, targets, starts)
    loss.backward()
    assert loss.item() == pytest.approx(total.item() / targets.numel(), rel=1e-5)
    for (name, p), grad in zip(model.named_parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-6, msg=name)
    assert not torch.allclose(model(ids)[0], logits, atol=1e-3)  # without the starts it is something else


def test_one_document_a_row_is_the_plain_model():
    for preset in PRESET_CONFIGS:
        model = build(preset)
        ids, targets, starts = packed()
        torch.testing.assert_close(model(ids, targets, torch.zeros_like(starts))[1], model(ids, targets)[1])


def test_a_document_does_not_hear_of_the_others():
    model = build("qwen3")
    ids, _, starts = packed()
    logits, _ = model(ids, document_starts=starts)
    row, begin, end = max(documents(ids[:1]), key=lambda d: d[1] * (d[2] - d[1]))
    assert begin > 0
    other = ids.clone()
    other[row, : begin - 1] = (
        other[row, : begin - 1] + 1
    ) % VOCAB  # the starts are given, so these may be anything
    assert torch.equal(model(other, document_starts=starts)[0][row, begin:end], logits[row, begin:end])


@pytest.mark.parametrize("heads", [4, 2])
def test_the_mask_of_flex_attention_is_the_same_mask(heads, monkeypatch):
    """The one that runs on CUDA, here in the eager form that it has on a CPU."""
    monkeypatch.setattr("operators.attention.compiled", lambda function: function)
    generator = torch.Generator().manual_seed(0)
    _, _, starts = packed()
    q = torch.randn(4, 4, T, 16, generator=generator)
    k, v = (torch.randn(4, heads, T, 16, generator=generator) for _ in range(2))
    dense = document_mask(starts, may_look, "auto", 16, dropout=0.0)
    assert dense.shape == (4, 1, T, T) and dense.dtype == torch.bool
    torch.testing.assert_close(
        attend_flex(q, k, v, flex_document_mask(starts, may_look)), softmax_attention(q, k, v, dense)
    )


def compilations(model: ConfigurableGPT, batches: list[tuple[torch.Tensor, ...]]) -> int:
    torch.compiler.reset()
    counter = CompileCounter()
    model.compile(dynamic=False, backend=counter, fullgraph=True)  # fullgraph: a break is an error
    for batch in batches:
        model(*batch)[1].backward()
    return counter.frame_count


@pytest.mark.parametrize("backend", ["manual", "sdpa", "auto"])
@pytest.mark.parametrize("preset", ["gpt2", "qwen3"])
def test_one_graph_serves_every_batch(preset, backend):
    batches = [packed(seed) for seed in range(4)]
    batches[2] = (*batches[2][:2], torch.zeros_like(batches[2][2]))
    assert len({len(documents(batch[0])) for batch in batches}) > 1
    assert compilations(build(preset, backend), batches) == 1


def test_one_graph_serves_every_batch_with_flex_attention(monkeypatch):
    monkeypatch.setattr(
        "model_components.document_mask", lambda starts, rule, *rest: flex_document_mask(starts, rule)
    )
    torch.compiler.reset()
    counter = CompileCounter()
    model = build("qwen3").requires_grad_(False)  # flex attention has no backward on a CPU
    expected = [model(*packed(seed))[1] for seed in range(3)]
    model.compile(dynamic=False, backend=counter, fullgraph=True)
    for seed in range(3):
        torch.testing.assert_close(model(*packed(seed))[1], expected[seed])
    assert counter.frame_count == 1


def test_masking_with_dropout_is_a_function_of_the_seed():
    model = build("gpt2", "sdpa", dropout=0.2).train()
    losses = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        losses.append(model(*packed())[1].item())
    assert losses[0] == losses[1] != losses[2]
