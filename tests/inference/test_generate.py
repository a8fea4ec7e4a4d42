"""Generation against transformers: its filters, its generate, its penalties; the cache against none;
batches against rows."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from inference.generate import Completion, generate, stream
from inference.hf import save_hf
from inference.sampling import NUCLEUS_CANDIDATES, Sampling, draw, penalize_repetition, sampling_distribution
from inference.text import TextStream
from model_builder import ConfigurableGPT
from model_config import get_preset_config

GREEDY = Sampling(temperature=0)


def full(logits, sampling):
    """The distribution over the whole vocabulary, [B, V]."""
    probabilities, ids = sampling_distribution(logits, sampling)
    return probabilities if ids is None else torch.zeros(logits.shape).scatter(1, ids, probabilities)


@pytest.mark.parametrize(
    "temperature, top_k, top_p, min_p", list(itertools.product((0.5, 1.3), (0, 5), (1.0, 0.7), (0.0, 0.1)))
)
@pytest.mark.parametrize("V", [40, 3 * NUCLEUS_CANDIDATES])
def test_the_distribution_is_that_of_transformers(temperature, top_k, top_p, min_p, V):
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    for seed, scale in enumerate((0.01, 1, 3, 8)):  # from a nucleus of most words to one of few
        logits = scale * torch.randn(5, V, generator=torch.Generator().manual_seed(seed))
        logits[0, 1:7] = logits[0].max()  # ties
        expected = TemperatureLogitsWarper(temperature)(None, logits)
        if top_k:
            expected = TopKLogitsWarper(top_k)(None, expected)
        if top_p < 1:
            expected = TopPLogitsWarper(top_p)(None, expected)
        if min_p:
            expected = MinPLogitsWarper(min_p)(None, expected)
        ours = full(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p))
        expected = expected.softmax(-1)
        if top_p < 1:  # which of several equal tokens is the last inside, a sort decides
            ours, expected = ours.sort().values, expected.sort().values
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_the_distribution_at_its_corners():
    logits = 5 * torch.randn(1, 40, generator=torch.Generator().manual_seed(3))
    top = int(logits.argmax())
    for sampling in (GREEDY, Sampling(top_k=1), Sampling(top_p=1e-9), Sampling(min_p=1.0)):
        assert full(logits, sampling)[0, top] == 1
    for sampling in (Sampling(), Sampling(top_k=40), Sampling(top_k=9999)):
        torch.testing.assert_close(full(logits, sampling), logits.softmax(-1))
    half = full(logits.bfloat16(), Sampling(temperature=0.7, top_k=3, top_p=0.9, min_p=0.05))
    assert (
        half.dtype == torch.float32 and half.sum().item() == pytest.approx(1.0) and 1 <= (half > 0).sum() <= 3
    )


@pytest.mark.parametrize("penalty", [0.7, 1.0, 1.8])
def test_the_repetition_penalty_is_that_of_transformers(penalty):
    from transformers import RepetitionPenaltyLogitsProcessor

    logits = torch.randn(2, 30, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[3, 3, 7], [1, 2, 29]])
    seen = torch.zeros(2, 30, dtype=torch.bool).scatter(1, ids, True)
    torch.testing.assert_close(
        penalize_repetition(logits, seen, penalty), RepetitionPenaltyLogitsProcessor(penalty)(ids, logits)
    )


@pytest.mark.parametrize(
    "values",
    [dict(temperature=-1.0), dict(temperature=float("nan")), dict(top_k=-1), dict(top_p=0.0), dict(top_p=1.1), dict(min_p=2.0),
     dict(repetition_penalty=0.0), dict(repetition_penalty=float("inf"))],
)  # fmt: skip
def test_values_outside_their_range_are_refused(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        Sampling(**values)


def tiny(preset="qwen3", **options):
    kv = 4 if preset == "gpt2" else 2
    shape = dict(
        n_layer=2,
        n_embd=32,
        n_head=4,
        num_key_value_heads=kv,
        head_dim=8,
        block_size=64,
        vocab_size=41,
        init_std=0.3,
    )
    return ConfigurableGPT(get_preset_config(preset, **shape | options), seed=0).eval()


@pytest.fixture(scope="module")
def model():
    return tiny(block_size=16)


PROMPTS = [[3, 1, 4, 1, 5, 9, 2], [6], [5, 3, 5], [8, 9, 7, 9, 3, 2, 3]]


@pytest.mark.parametrize("preset", ["gpt2", "llama2", "llama3", "qwen3"])
def test_greedy_tokens_are_those_of_transformers(preset, tmp_path):
    from transformers import AutoModelForCausalLM

    ours = tiny(preset)
    save_hf(ours, tmp_path)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    for penalty in (1.0, 1.3):
        answers = generate(ours, PROMPTS, 40, Sampling(temperature=0, repetition_penalty=penalty))
        for prompt, answer in zip(PROMPTS, answers, strict=True):
            out = theirs.generate(
                torch.tensor([prompt]),
                max_new_tokens=40,
                do_sample=False,
                repetition_penalty=penalty,
                pad_token_id=0,
            )
            assert answer.ids == out[0, len(prompt) :].tolist()


@pytest.mark.parametrize("preset", ["gpt2", "llama3", "qwen3"])
@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.5, top_p=0.9, repetition_penalty=1.2)])
def test_a_row_of_a_batch_is_what_it_is_alone(preset, sampling):
    model = tiny(preset, block_size=20)  # some rows outgrow it, at different times
    together = generate(model, PROMPTS, 30, sampling, seed=5, logprobs=True, stop_ids=[7])
    for row, prompt in enumerate(PROMPTS):
        (alone,) = generate(model, [prompt], 30, sampling, seed=5 + row, logprobs=True, stop_ids=[7])
        assert together[row].ids == alone.ids and together[row].finish == alone.finish
        assert together[row].logprobs == pytest.approx(alone.logprobs, abs=1e-4)


def test_a_compiled_step_gives_the_same_tokens():
    from hardware.device import compile_problem

    assert compile_problem(torch.device("cpu")) is None
    model = tiny(init_std=0.2)
    want = generate(model, PROMPTS, 20, GREEDY)
    assert generate(model, PROMPTS, 20, GREEDY, compiled=True) == want
    assert generate(model, PROMPTS[:1], 20, GREEDY, compiled=True) == want[:1]  # another batch size


@pytest.mark.parametrize("preset", ["gpt2", "llama2", "llama3", "qwen3"])
def test_golden_generations(preset):
    """What these weights have always said; a change here is a change of the model, the cache or the draws."""
    golden = json.loads((Path(__file__).parents[1] / "golden" / "generations.json").read_text())[preset]
    assert [a.ids for a in generate(tiny(preset), PROMPTS[:2], 12, GREEDY)] == golden["greedy"]
    assert [a.ids for a in generate(tiny(preset), PROMPTS[:2], 12, Sampling(top_k=10), seed=3)] == golden[
        "sampled"
    ]


@torch.no_grad()
def test_cached_greedy_decoding_equals_the_whole_model_each_time(model):
    ids = [3, 1, 4]
    for ((_, token, _, _, _),) in stream(model, [[3, 1, 4]], 13, GREEDY):
        logits, _ = model(torch.tensor([ids]))
        assert token == int(logits[0, -1].argmax())
        ids.append(token)
    assert len(ids) == 16


@torch.no_grad()
@pytest.mark.parametrize("preset", ["gpt2", "llama3"])
def test_past_the_context_it_goes_on_with_the_last_half(preset):
    model = tiny(preset, block_size=8)
    ids = list(range(11))
    context = ids[-8:]  # a prompt longer than block_size keeps its end
    (answer,) = generate(model, [ids], 21, GREEDY)
    for token in answer.ids:
        if len(context) > 8:
            context = context[-4:]
        assert token == int(model(torch.tensor([context]))[0][0, -1].argmax())
        context.append(token)
    assert len(answer.ids) == 21


def test_the_seed_decides_and_a_stop_id_ends(model):
    answers = [generate(model, [[1]], 12, seed=s)[0].ids for s in (0, 0, 1)]
    assert answers[0] == answers[1] != answers[2] and len(answers[0]) == 12
    cut = next(i for i, t in enumerate(answers[0]) if t not in answers[0][:i] and i > 2)
    (stopped,) = generate(model, [[1]], 12, seed=0, stop_ids=(answers[0][cut],))
    assert stopped == Completion(ids=answers[0][:cut], finish="stop_id")


def test_only_allowed_ids_are_drawn(model):
    (answer,) = generate(model, [[1]], 40, Sampling(temperature=3.0), allowed_ids=[2, 30, 31])
    assert set(answer.ids) == {2, 30, 31}


def test_log_probabilities_are_those_of_the_model(model):
    (answer,) = generate(model, [[1, 2]], 10, Sampling(temperature=0.5, top_k=5), logprobs=True)
    with torch.no_grad():
        table = model(torch.tensor([[1, 2, *answer.ids]]))[0][0].log_softmax(-1)
    want = [float(table[1 + i, token]) for i, token in enumerate(answer.ids)]
    assert answer.logprobs == pytest.approx(want, abs=1e-4)


def test_the_draws_follow_the_distribution():
    p = torch.tensor([[0.5, 0.0, 0.3, 0.2, 0.0]])
    generator = torch.Generator().manual_seed(0)
    n = 2000
    drawn = torch.bincount(torch.cat([draw(p, None, [generator]) for _ in range(n)]), minlength=5)
    assert (drawn[p[0] == 0] == 0).all()
    expected = n * p[0][p[0] > 0]
    assert (
        (drawn[p[0] > 0] - expected) ** 2 / expected
    ).sum() < 13.8  # chi-square with 2 degrees of freedom, p = 0.001


@pytest.mark.parametrize(
    ("prompts", "options", "word"),
    [
        ([[]], {}, "no tokens"),
        ([], {}, "no tokens"),
        ([[41]], {}, "41"),
        ([[-1]], {}, "-1"),
        ([[1]], dict(stop_strings=["a"]), "tokenizer"),
        ([[1]], dict(allowed_ids=[]), "allowed_ids"),
        ([[1]], dict(allowed_ids=[99]), "99"),
    ],
)
def test_bad_requests_are_refused(model, prompts, options, word):
    with pytest.raises(ValueError, match=word):
        generate(model, prompts, 3, **options)


def test_a_model_in_training_mode_is_sampled_without_dropout():
    wild = tiny("gpt2", dropout=0.9).train()
    assert generate(wild, [[1]], 10, GREEDY) == generate(wild, [[1]], 10, GREEDY)


@pytest.fixture(scope="module")
def byte_tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = (
        pre_tokenizers.ByteLevel(add_prefix_space=False),
        decoders.ByteLevel(),
    )
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        ["x"], trainers.BpeTrainer(special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    )
    return tokenizer


def test_a_character_appears_when_its_last_byte_does(byte_tokenizer):
    ids = byte_tokenizer.encode("aß€🙂").ids
    assert len(ids) == 1 + 2 + 3 + 4
    text = TextStream(byte_tokenizer, ids[:1])
    assert [text.feed(token) for token in ids[1:]] == ["", "ß", "", "", "€", "", "", "", "🙂"]


def test_a_stop_string_is_held_back_and_cut(byte_tokenizer):
    text = TextStream(byte_tokenizer, [], ["\n\n", "END."])
    pieces = [text.feed(token) for token in byte_tokenizer.encode("an EN\nEND. more").ids[:10]]
    assert pieces[:6] == ["a", "n", " ", "", "", "EN"]
    assert "".join(pieces) == "an EN\n" and text.stopped


def test_stop_strings_end_a_row(byte_tokenizer):
    model = tiny(vocab_size=257, init_std=0.02)
    ids = byte_tokenizer.encode("ab").ids
    (free,) = generate(
        model, [ids], 30, Sampling(temperature=1.0), tokenizer=byte_tokenizer, allowed_ids=range(40, 70)
    )
    assert len(free.text) == 30 and free.finish == "length"
    stop = free.text[11:14]
    answers = generate(
        model,
        [ids, ids],
        30,
        tokenizer=byte_tokenizer,
        allowed_ids=range(40, 70),
        stop_strings=[stop, "never"],
    )
    assert answers[0].text == free.text[: free.text.find(stop)] and answers[0].finish == "stop_string"
    assert answers[0].ids == free.ids[: free.text.find(stop) + 3]
    assert answers[1].text != answers[0].text  # its own seed
