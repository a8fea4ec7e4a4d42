"""Sampling: transformers' own filters as the reference, the cache against none, and the command line."""

import itertools

import pytest
import torch
from conftest import write_dataset

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


def test_the_command(run, tmp_path, capsys):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(["x"], trainers.BpeTrainer(special_tokens=["<|endoftext|>"], initial_alphabet=alphabet))
    data = write_dataset(tmp_path / "bytes", vocab_size=257)
    tokenizer.save(str(data / "tokenizer.json"))
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
