"""Sampling: transformers' own filters as the reference, the cache against none, and the command line."""

import json

import pytest
from conftest import record_tokenizer, write_dataset

import sample
from base.characters import printable
from inference.generate import Event
from inference.samples import TextSampler
from inference.sampling import Sampling
from tokenization.tokenizers import find_tokenizer
from training.config import TrainConfig

BAD_FLAGS = (
    "--temperature=-1 --temperature=1e-40 --temperature=nan --top_k=-1 --top_p=0 --top_p=1.1 --min_p=2 "
)
BAD_FLAGS += "--max_new_tokens=0 "
BAD_FLAGS += "--seed=-1 --repetition_penalty=0 --context_length=0 --thinking=on --num_samples=0 --output=xml"


@pytest.mark.parametrize(
    "flag", [*BAD_FLAGS.split(), "--prompts=x", "--prompt=\udcff", "word", "--out_dir=/no/such"]
)
def test_bad_input_is_one_line(flag, capsys):
    with pytest.raises(SystemExit) as stopped:
        sample.main([flag])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and said.count("\n") == 1
    assert ("/no/such" if "no/such" in flag else flag.lstrip("-").partition("=")[0]) in said
    assert ("no checkpoint" in said) == ("no/such" in flag)  # nothing else is wrong here


@pytest.mark.parametrize(
    ("word", "meant"), [("out-quickstart", "out_dir"), ("some words", "prompt"), ("so long " * 50, "prompt")]
)
def test_a_word_is_told_which_flag_it_means(word, meant, capsys):
    with pytest.raises(SystemExit) as stopped:
        sample.main([word])
    assert (
        stopped.value.code == 2
        and f"did you mean --{meant}={' '.join(word.split())}" in capsys.readouterr().err
    )


def byte_tokenizer(path) -> None:
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
    tokenizer.save(str(path))


def test_the_command(run, tmp_path, capsys):
    data = write_dataset(tmp_path / "bytes", vocab_size=257)
    byte_tokenizer(data / "tokenizer.json")
    record_tokenizer(data)
    run("a", f"--dataset={data}", "--vocab_size=257")
    capsys.readouterr()

    def sampled(*flags: str) -> str:
        assert (
            sample.main([f"--out_dir={tmp_path / 'a'}", "--prompt=héllo", "--max_new_tokens=40", *flags]) == 0
        )
        return capsys.readouterr().out

    assert sampled("--seed=1").startswith("héllo") and len(sampled("--seed=1")) > 20
    assert sampled("--seed=1") == sampled("--seed=1") != sampled("--seed=2")
    assert sampled("--step=3") != sampled("--step=6")
    both = sampled("--num_samples=2", "--seed=1")
    assert both == sampled("--seed=1") + "---\n" + sampled("--seed=2")
    answers = [
        json.loads(line) for line in sampled("--output=json", "--num_samples=2", "--seed=1").splitlines()
    ]
    # As text they are on a terminal, where control characters are escapes
    assert [printable(a["prompt"] + a["text"]) + "\n" for a in answers] == [
        sampled("--seed=1"),
        sampled("--seed=2"),
    ]
    assert all(len(a["ids"]) == len(a["logprobs"]) > 0 and max(a["logprobs"]) < 0 for a in answers)
    stop = answers[0]["text"][5:7]
    assert (
        sampled("--seed=1", f"--stop=never||{stop}")
        == "héllo" + printable(answers[0]["text"].partition(stop)[0]) + "\n"
    )
    assert sampled("--seed=1", "--repetition_penalty=5") != sampled("--seed=1")
    with pytest.raises(SystemExit):
        sampled("--context_length=8")
    assert "learned positions" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        sampled("--tokenizer=qwen3")
    assert "the model 257 rows: it belongs to another model" in capsys.readouterr().err
    few = {"ids": [65, 66], "byte_ids": [], "added_ids": [], "tokenizer": {"name": "x", "sha256": "0" * 64}}
    (tmp_path / "few.json").write_text(json.dumps(few))
    with pytest.raises(SystemExit):
        sampled(f"--vocabulary={tmp_path / 'few.json'}")
    assert "few.json was made from another tokenizer ('x', sha256 000000000000…)" in capsys.readouterr().err
    few["tokenizer"]["sha256"] = find_tokenizer(data).sha256
    (tmp_path / "few.json").write_text(json.dumps(few))
    few = sampled(f"--vocabulary={tmp_path / 'few.json'}", "--output=json", "--num_samples=8").splitlines()
    assert {i for line in few for i in json.loads(line)["ids"]} == {
        65,
        66,
    }  # and the end-of-text, which ends a sample
    (tmp_path / "prompt").write_text("from a file")
    assert sampled(f"--prompt=FILE:{tmp_path / 'prompt'}").startswith("from a file")
    assert sampled("--prompt=") and sampled("--temperature=0") == sampled("--temperature=0", "--seed=9")
    with pytest.raises(SystemExit) as stopped:
        sampled("--step=4")
    assert stopped.value.code == 2 and "no checkpoint of step 4" in capsys.readouterr().err


def test_a_run_of_ours_is_asked_without_the_bos_that_its_tokenizer_would_add(run, tmp_path, monkeypatch):
    """LLaMA 3's does; the shards hold none."""
    from tokenizers import Tokenizer, processors

    data = write_dataset(tmp_path / "bytes", vocab_size=258)
    byte_tokenizer(data / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(data / "tokenizer.json"))
    tokenizer.add_special_tokens(["<bos>"])
    bos_id = tokenizer.token_to_id("<bos>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", bos_id)]
    )
    tokenizer.save(str(data / "tokenizer.json"))
    assert tokenizer.encode("a").ids[0] == bos_id
    record_tokenizer(data)
    run("a", f"--dataset={data}", "--vocab_size=258")
    seen, plain = [], sample.stream

    def stream(model, prompts, *args, **options):
        seen.extend(prompts)
        return plain(model, prompts, *args, **options)

    monkeypatch.setattr(sample, "stream", stream)
    for prompt in ("ab", ""):
        assert sample.main([f"--out_dir={tmp_path / 'a'}", f"--prompt={prompt}", "--max_new_tokens=2"]) == 0
    assert seen == [tokenizer.encode("ab", add_special_tokens=False).ids, [0]]  # 0 ends a document
    sampler = TextSampler(TrainConfig(sample_prompt="ab"), data, 258)
    assert sampler.prompt_ids == seen[0]


def test_the_end_of_text_ends_a_sample_and_damage_is_passed_over(run, tmp_path, capsys, monkeypatch):
    data = write_dataset(tmp_path / "bytes", vocab_size=257)
    byte_tokenizer(data / "tokenizer.json")
    record_tokenizer(data)
    run("a", f"--dataset={data}", "--vocab_size=257")
    flags = [f"--out_dir={tmp_path / 'a'}", "--prompt=ab", "--max_new_tokens=9"]
    asked = []

    def fake(model, prompts, max_new_tokens, sampling, *, seed, stop_ids, **options):
        asked.append((prompts, max_new_tokens, sampling, seed, stop_ids))
        return [[Event(0, 70, "x", None, "length")]]

    with monkeypatch.context() as patch:
        patch.setattr(sample, "stream", fake)
        assert sample.main([*flags, "--top_k=3", "--top_p=0.5", "--min_p=0.1", "--seed=4"]) == 0
    assert [a[1:] for a in asked] == [(9, Sampling(temperature=0.8, top_k=3, top_p=0.5, min_p=0.1), 4, {0})]
    assert len(asked[0][0]) == 1 and len(asked[0][0][0]) == 2
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
