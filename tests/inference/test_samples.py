"""Samples of text while a model is trained: in the log, the same on every rank, and without a trace in the
run itself."""

import shutil
from pathlib import Path

import pytest
import torch
from conftest import TINY_FLAGS, read_events, record_tokenizer, write_dataset
from ranks import train_all

import train
from inference.generate import generate
from inference.samples import TextSampler, continuation
from inference.sampling import Sampling
from model_builder import ConfigurableGPT
from tokenization.tokenizers import load_tokenizer
from training.config import TrainConfig, load_config
from training.world import on_ranks

SAMPLES = ["--sample_prompt=def f(", "--sample_tokens=24"]


@pytest.fixture
def flags(tmp_path, toy_folder) -> list[str]:
    """Of a run over a dataset that has a tokenizer."""
    folder = write_dataset(tmp_path / "dataset", vocab_size=400)
    shutil.copy(toy_folder / "tokenizer.json", folder)
    record_tokenizer(folder)
    return [
        *TINY_FLAGS,
        "--vocab_size=400",
        "--dropout=0.1",
        "--max_iters=4",
        "--eval_interval=2",
        f"--dataset={folder}",
    ]


def without_samples(out_dir: Path) -> list[dict]:
    """All numbers of a run but its times."""
    kept = ("step", "loss", "grad_norm", "train_loss", "val_loss")
    return [
        {k: e[k] for k in kept if k in e} for e in read_events(out_dir) if e["event"] in ("train", "eval")
    ]


def test_a_run_samples_at_its_evaluations(flags, tmp_path, capsys):
    assert train.main([*flags, f"--out_dir={tmp_path / 'plain'}"]) == 0
    assert train.main([*flags, f"--out_dir={tmp_path / 'with'}", *SAMPLES]) == 0
    assert without_samples(tmp_path / "with") == without_samples(tmp_path / "plain")  # to the bit
    samples = read_events(tmp_path / "with", "sample")
    assert [e["step"] for e in samples] == [0, 2, 4] and all(e["prompt"] == "def f(" for e in samples)
    assert (
        len({e["text"] for e in samples}) > 1
        and f"sample: def f({samples[-1]['text']}" in capsys.readouterr().out
    )
    assert not read_events(tmp_path / "plain", "sample")
    assert train.main([*flags, f"--out_dir={tmp_path / 'longer'}", SAMPLES[0], "--sample_tokens=48"]) == 0
    for short, long in zip(samples, read_events(tmp_path / "longer", "sample"), strict=True):
        assert long["text"].startswith(short["text"].rstrip("\ufffd")) and len(long["text"]) > len(
            short["text"]
        )


def test_it_is_what_generate_draws(flags, toy_folder):
    model, ids = (
        ConfigurableGPT(load_config(flags)[0], seed=1),
        load_tokenizer(toy_folder).encode("def f(").ids,
    )
    model.train()
    before = torch.get_rng_state()
    ours = continuation(model, ids, 10, Sampling(temperature=0.8), 7, torch.no_grad())
    assert model.training and torch.equal(torch.get_rng_state(), before)
    assert ours == generate(model, [ids], 10, Sampling(temperature=0.8), seed=7)[0].ids
    assert len(continuation(model, ids, 30, Sampling(), 7, torch.no_grad())) == 30  # beyond block_size=16


def test_every_strategy_draws_the_same(flags, tmp_path):
    strategies = {"ddp": [], "zero1": ["--use_zero1"], "fsdp": ["--use_fsdp"]}
    flags = [*flags, *SAMPLES]
    assert train.main([*flags, f"--out_dir={tmp_path / 'single'}"]) == 0
    on_ranks(
        2, train_all, [[*flags, f"--out_dir={tmp_path / name}", *more] for name, more in strategies.items()]
    )
    expected = [e["text"] for e in read_events(tmp_path / "single", "sample")]
    for name in strategies:
        assert [e["text"] for e in read_events(tmp_path / name, "sample")] == expected


def test_backends_get_the_text(flags, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train.main([*flags, f"--out_dir={tmp_path / 'a'}", *SAMPLES, "--tensorboard_log"]) == 0
    reader = EventAccumulator(str(tmp_path / "a" / "tensorboard"))
    reader.Reload()
    texts = [e.tensor_proto.string_val[0].decode() for e in reader.Tensors("sample/text/text_summary")]
    assert texts == [e["text"] for e in read_events(tmp_path / "a", "sample")]


def test_without_a_tokenizer_it_is_one_line(run, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run("a", *SAMPLES)
    assert (
        stopped.value.code == 2
        and "tokenizer.json" in capsys.readouterr().err
        and not (tmp_path / "a").exists()
    )


def test_a_prompt_that_the_model_cannot_read(toy_folder):
    for prompt, vocab_size in (("def f(", 50), ("", 400)):
        with pytest.raises(ValueError, match=f"the model knows 0 to {vocab_size - 1}"):
            TextSampler(TrainConfig(sample_prompt=prompt), toy_folder, vocab_size)
