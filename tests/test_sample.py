"""Sampling: transformers' own filters as the reference, the cache against none, and the command line."""

import itertools

import pytest
import torch
from conftest import record_tokenizer, write_dataset

import sample
from inference.generate import generate, sampling_distribution
from model_builder import ConfigurableGPT
from model_config import get_preset_config


@pytest.mark.parametrize(
    "temperature, top_k, top_p, min_p", list(itertools.product((0.5, 1.3), (0, 5), (1.0, 0.7), (0.0, 0.1)))
)
def test_the_distribution_is_that_of_transformers(temperature, top_k, top_p, min_p):
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    for seed in range(20):
        logits = 3 * torch.randn(1, 40, generator=torch.Generator().manual_seed(seed))
        expected = TemperatureLogitsWarper(temperature)(None, logits)
        if top_k:
            expected = TopKLogitsWarper(top_k)(None, expected)
        if top_p < 1:
            expected = TopPLogitsWarper(top_p)(None, expected)
        if min_p:
            expected = MinPLogitsWarper(min_p)(None, expected)
        ours = sampling_distribution(logits[0], temperature, top_k, top_p, min_p)
        torch.testing.assert_close(ours, expected[0].softmax(-1))


def test_greedy_takes_the_largest():
    assert sampling_distribution(torch.tensor([1.0, 3.0, 2.0]), 0.0, 0, 1.0, 0.0).tolist() == [0, 1, 0]


@pytest.fixture
def model() -> ConfigurableGPT:
    config = get_preset_config("qwen3", n_layer=2, n_embd=32, n_head=4, num_key_value_heads=2, head_dim=8, block_size=16,
                               vocab_size=41, init_std=0.3)  # fmt: skip
    return ConfigurableGPT(config, seed=0)


@torch.no_grad()
def test_cached_greedy_decoding_equals_the_whole_model_each_time(model):
    ids = [3, 1, 4]
    for token in generate(model, [3, 1, 4], 13, temperature=0):
        logits, _ = model(torch.tensor([ids]))
        assert token == int(logits[0, -1].argmax())
        ids.append(token)
    assert len(ids) == 16


def test_generation_outlives_the_context(model):
    assert len(list(generate(model, list(range(30)), 50))) == 50  # a prompt longer than block_size too
    with pytest.raises(ValueError, match="the prompt has no tokens"):
        next(generate(model, [], 3))


def test_the_seed_decides_and_a_stop_id_ends(model):
    tokens = [list(generate(model, [1], 12, seed=s)) for s in (0, 0, 1)]
    assert tokens[0] == tokens[1] != tokens[2]
    cut = next(i for i, t in enumerate(tokens[0]) if t not in tokens[0][:i] and i > 2)
    assert list(generate(model, [1], 12, seed=0, stop_ids=(tokens[0][cut],))) == tokens[0][:cut]


BAD_FLAGS = "--temperature=-1 --temperature=nan --top_k=-1 --top_p=0 --top_p=1.1 --min_p=2 --max_new_tokens=0 --seed=-1"


@pytest.mark.parametrize("flag", [*BAD_FLAGS.split(), "--prompts=x", "word", "--out_dir=/no/such"])
def test_bad_input_is_one_line(flag, capsys):
    with pytest.raises(SystemExit) as stopped:
        sample.main([flag])
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1


def byte_tokenizer(path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(["x"], trainers.BpeTrainer(special_tokens=["<|endoftext|>"], initial_alphabet=alphabet))
    tokenizer.save(str(path))


def test_the_command(run, tmp_path, capsys):
    data = write_dataset(tmp_path / "bytes", vocab_size=257)
    byte_tokenizer(data / "tokenizer.json")
    record_tokenizer(data)
    run("a", f"--dataset={data}", "--vocab_size=257")
    capsys.readouterr()

    def sampled(*flags: str) -> str:
        assert sample.main([f"--out_dir={tmp_path / 'a'}", "--prompt=héllo", "--max_new_tokens=40", *flags]) == 0
        return capsys.readouterr().out

    assert sampled("--seed=1").startswith("héllo") and len(sampled("--seed=1")) > 20
    assert sampled("--seed=1") == sampled("--seed=1") != sampled("--seed=2")
    assert sampled("--step=3") != sampled("--step=6")
    assert sampled("--num_samples=2").count("héllo") == 2
    (tmp_path / "prompt").write_text("from a file")
    assert sampled(f"--prompt=FILE:{tmp_path / 'prompt'}").startswith("from a file")
    assert sampled("--prompt=") and sampled("--temperature=0") == sampled("--temperature=0", "--seed=9")
    with pytest.raises(SystemExit) as stopped:
        sampled("--step=4")
    assert stopped.value.code == 2 and "no checkpoint of step 4" in capsys.readouterr().err


def test_the_distribution_at_its_corners():
    logits = 5 * torch.randn(40, generator=torch.Generator().manual_seed(3))
    top = int(logits.argmax())
    assert sampling_distribution(logits, 1.0, 1, 1.0, 0.0)[top] == 1
    assert sampling_distribution(logits, 1.0, 0, 1e-9, 0.0)[top] == 1
    assert sampling_distribution(logits, 1.0, 0, 1.0, 1.0)[top] == 1
    torch.testing.assert_close(sampling_distribution(logits, 1.0, 40, 1.0, 0.0), logits.softmax(-1))
    torch.testing.assert_close(sampling_distribution(logits, 1.0, 9999, 1.0, 0.0), logits.softmax(-1))
    half = sampling_distribution(logits.bfloat16(), 0.7, 3, 0.9, 0.05)
    assert half.dtype == torch.float32 and half.sum().item() == pytest.approx(1.0) and 1 <= (half > 0).sum() <= 3


def test_the_draws_follow_the_distribution(model):
    n = 600
    drawn = torch.bincount(
        torch.tensor([next(generate(model, [5, 2], 1, 2.0, top_k=4, seed=s)) for s in range(n)]), minlength=41
    )
    with torch.no_grad():
        p = sampling_distribution(model(torch.tensor([[5, 2]]))[0][0, -1], 2.0, 4, 1.0, 0.0)
    assert (drawn[p == 0] == 0).all() and (p > 0).sum() == 4
    expected = n * p[p > 0]
    assert ((drawn[p > 0] - expected) ** 2 / expected).sum() < 16.3  # chi-square with 3 degrees of freedom, p = 0.001


@torch.no_grad()
@pytest.mark.parametrize("preset", ["gpt2", "llama3"])
def test_past_the_context_it_goes_on_with_the_last_half(preset):
    shape = dict(n_layer=2, n_embd=32, n_head=4, num_key_value_heads=4 if preset == "gpt2" else 1, block_size=8,
                 vocab_size=41, init_std=0.3)  # fmt: skip
    model = ConfigurableGPT(get_preset_config(preset, **shape), seed=0).eval()
    ids = list(range(11))
    context = ids[-8:]  # a prompt longer than block_size keeps its end
    for token in generate(model, ids, 21, temperature=0):
        if len(context) > 8:
            context = context[-4:]
        assert token == int(model(torch.tensor([context]))[0][0, -1].argmax())
        context.append(token)
    assert len(list(generate(model, ids, 21, temperature=0))) == 21


def test_a_model_in_training_mode_is_sampled_without_dropout():
    wild = ConfigurableGPT(get_preset_config("gpt2", n_layer=1, n_embd=32, n_head=2, block_size=16, vocab_size=41, dropout=0.9))
    wild.train()
    assert list(generate(wild, [1], 10, temperature=0)) == list(generate(wild, [1], 10, temperature=0))


def test_a_character_appears_when_its_last_byte_does(tmp_path):
    from tokenization.tokenizers import load_tokenizer

    byte_tokenizer(tmp_path / "tokenizer.json")
    tokenizer = load_tokenizer(tmp_path)
    ids = tokenizer.encode("aß€🙂").ids
    assert len(ids) == 1 + 2 + 3 + 4
    stream = sample.text_stream(tokenizer, ids[:1])
    assert [stream(token) for token in ids[1:]] == ["", "ß", "", "", "€", "", "", "", "🙂"]


def test_the_end_of_text_ends_a_sample_and_damage_is_passed_over(run, tmp_path, capsys, monkeypatch):
    data = write_dataset(tmp_path / "bytes", vocab_size=257)
    byte_tokenizer(data / "tokenizer.json")
    record_tokenizer(data)
    run("a", f"--dataset={data}", "--vocab_size=257")
    flags = [f"--out_dir={tmp_path / 'a'}", "--prompt=ab", "--max_new_tokens=9"]
    asked = []

    def fake(model: object, ids: list[int], *rest: object, seed: int, stop_ids: tuple[int, ...]) -> list[int]:
        asked.append((ids, rest, seed, stop_ids))
        return [70, 71]

    with monkeypatch.context() as patch:
        patch.setattr(sample, "generate", fake)
        assert sample.main([*flags, "--num_samples=2", "--top_k=3", "--top_p=0.5", "--min_p=0.1", "--seed=4"]) == 0
    assert [a[1:] for a in asked] == [((9, 0.8, 3, 0.5, 0.1), 4, (0,)), ((9, 0.8, 3, 0.5, 0.1), 5, (0,))]
    assert len(asked[0][0]) == 2
    capsys.readouterr()
    (tmp_path / "a" / "checkpoints" / "step_00000006" / "model.safetensors").write_bytes(b"")
    assert sample.main([*flags, "--step=3"]) == 0
    named = capsys.readouterr().out
    assert sample.main(flags) == 0
    assert capsys.readouterr().out == named
    with pytest.raises(SystemExit) as stopped:
        sample.main([*flags, "--step=6"])
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    (tmp_path / "a" / "tokenizer.json").unlink()
    with pytest.raises(SystemExit) as stopped:
        sample.main(flags)
    assert stopped.value.code == 2 and capsys.readouterr().err.count("\n") == 1
