"""The loop and its log: exact steps, evaluations, accumulation, mixtures, the command itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY_FLAGS, read_events, write_dataset
from run_folders import losses, weights

import train
from reporting.run_log import RunLog
from training import checkpoint
from training import run as training_run
from training.run import prepare_embedded
from training.world import World

ROOT = Path(__file__).resolve().parents[1]


def test_exactly_max_iters_and_the_log_of_the_contract(run, tmp_path):
    assert run("a") == 0
    events = read_events(tmp_path / "a")
    assert events[0]["event"] == "run_start" and events[-1]["event"] == "run_end"
    assert [e["step"] for e in events if e["event"] == "train"] == [1, 2, 3, 4, 5, 6]
    assert [e["step"] for e in events if e["event"] == "eval"] == [0, 3, 6]
    assert [e["step"] for e in events if e["event"] == "checkpoint"] == [3, 6]
    start, end = events[0], events[-1]
    assert {"config", "model", "hardware", "versions", "git"} <= start.keys()
    assert {"architecture_name", "params", "params_non_embedding", "flops_per_token"} <= start["model"].keys()
    for e in events:
        if e["event"] == "train":
            assert {
                "loss",
                "lr",
                "grad_norm",
                "tokens",
                "dt_ms",
                "tokens_per_s",
                "mfu",
                "memory_gb",
            } <= e.keys()
            assert e["tokens"] == e["step"] * 2 * 2 * 16 and e["mfu"] is None
        if e["event"] == "eval":  # 50 ids of 150 bytes a document
            assert e["val_bits_per_byte"] == pytest.approx(e["val_loss"] / np.log(2) / 3)
    assert end["reason"] == "done" and end["step"] == 6


def test_the_model_learns(run, tmp_path):
    run("a", "--max_iters=60", "--eval_interval=30")
    first, *_, last = read_events(tmp_path / "a", "eval")
    assert last["val_loss"] < first["val_loss"] - 1.0


def test_accumulation_equals_one_big_batch(run, tmp_path):
    run("many", "--batch_size=2", "--gradient_accumulation_steps=4")
    run("one", "--batch_size=8", "--gradient_accumulation_steps=1")
    for many, one in zip(
        read_events(tmp_path / "many", "train"), read_events(tmp_path / "one", "train"), strict=True
    ):
        assert many["loss"] == pytest.approx(one["loss"], rel=1e-6)
        assert many["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-5)


def test_eval_only_evaluates_and_leaves_nothing_else(run, tmp_path):
    run("a")
    assert run("a", "--eval_only") == 0
    first, second = (e for e in read_events(tmp_path / "a", "eval") if e["step"] == 6)
    assert first["val_loss"] == second["val_loss"]
    assert run("b", "--eval_only", "--init_from=scratch") == 0
    assert not (tmp_path / "b" / "checkpoints").exists()


def test_the_log_survives_a_full_disk(run, tmp_path, monkeypatch, caplog):

    class Full:
        def __init__(self, file: object) -> None:
            self.file, self.calls = file, 0

        def write(self, data: bytes) -> int:
            self.calls += 1
            if 3 <= self.calls < 6:
                raise OSError(28, "No space left on device")
            return self.file.write(data[:100])

    plain = RunLog.__init__

    def init(self, *args: object) -> None:
        plain(self, *args)
        self._file = Full(self._file)

    monkeypatch.setattr(RunLog, "__init__", init)
    assert run("a") == 0
    assert [e["step"] for e in read_events(tmp_path / "a", "train")] == [1, 2, 3, 4, 5, 6]
    assert "No space left on device" in caplog.text


def test_print_config_needs_neither_data_nor_device(capsys):
    assert (
        train.main(["config/full_qwen3_1.5b.py", "--device=cuda:99", "--dataset=nowhere", "--print_config"])
        == 0
    )
    printed = json.loads(capsys.readouterr().out)
    assert set(printed) == {"model", "train", "derived"}
    assert printed["derived"]["params"] == 1_720_574_976 and printed["derived"]["tokens_per_step"] == 393_216
    assert set(printed["derived"]) == {"params", "params_non_embedding", "flops_per_token", "tokens_per_step"}


@pytest.mark.parametrize("flag", ["--print_config=True", "--print_config true", "--print_config"])
def test_print_config_is_a_flag_like_any_other(flag, monkeypatch, capsys):
    assert train.main([*flag.split(), "config/quickstart.py"]) == 0
    assert json.loads(capsys.readouterr().out)["model"]["n_layer"] == 3
    monkeypatch.setenv("RANK", "1")  # of torchrun, whose ranks share a terminal
    assert train.main([*flag.split(), "config/quickstart.py"]) == 0 and capsys.readouterr().out == ""
    with pytest.raises(SystemExit) as end:
        train.main(["config/quickstart.py", "--print_config=maybe"])
    assert end.value.code == 2 and "neither True nor False" in capsys.readouterr().err


def test_the_command_line_itself(tmp_path, dataset):
    command = [
        sys.executable,
        ROOT / "train.py",
        *TINY_FLAGS,
        f"--dataset={dataset}",
        f"--out_dir={tmp_path / 'a'}",
    ]
    done = subprocess.run([*command, "--n_heads=3"], capture_output=True, text=True, cwd=tmp_path)
    assert (
        done.returncode == 2
        and done.stderr == "train.py: unknown key 'n_heads' in the flags: did you mean 'n_head'?\n"
    )
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"COLUMNS": "80"}
    )
    assert done.returncode == 0 and "step 6/6 | loss" in done.stdout and "tokens/s" in done.stdout


def test_accumulated_gradients_equal_those_of_one_big_batch(run, tmp_path):
    """By Adam's running mean of them: weights whose true gradient is 0 (the bias of the keys) follow its
    rounding errors."""
    run("many", "--batch_size=2", "--gradient_accumulation_steps=4")
    run("one", "--batch_size=8", "--gradient_accumulation_steps=1")
    many, one = (weights(tmp_path / n, 6) for n in ("many", "one"))
    means = [name for name in many if name.endswith("/exp_avg")]
    assert len(means) > 20
    for name in means:
        torch.testing.assert_close(many[name], one[name], rtol=0, atol=1e-6)
    torch.testing.assert_close(
        many["token_embedding.weight"], one["token_embedding.weight"], rtol=0, atol=1e-5
    )


def test_evaluation_windows_are_those_of_every_run(run, tmp_path, monkeypatch):
    """The same windows at each evaluation, whatever the seed."""
    seen = []

    def evaluate(model: object, batches: object, *rest: object) -> float:
        seen.append([x.tolist() for x, _ in batches])
        return 1.0

    monkeypatch.setattr(training_run, "evaluate", evaluate)
    run("a")
    run("b", "--seed=8")
    train_windows, val_windows = seen[0], seen[1]
    assert len(seen) == 12 and seen == [train_windows, val_windows] * 6
    assert len(val_windows) == 2 and train_windows != val_windows


def test_every_line_of_a_diverged_run_is_json(run, tmp_path):
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    assert run("a", "--learning_rate=1e30", "--grad_clip=0", "--warmup_iters=0") == 0
    for file in (tmp_path / "a").glob("run_*.jsonl"):
        events = [json.loads(line, parse_constant=refuse) for line in file.read_text().splitlines()]
    assert events[-1]["reason"] == "done" and any(e.get("loss", 0) is None for e in events)


def test_notes_are_said(run, capsys):
    run("a", "--rope_theta=5e5", "--muon_learning_rate=1", "--use_zero1")
    out = capsys.readouterr().out
    for said in (
        "rope_theta=500000.0 has no effect",
        "muon_learning_rate=1.0 has no effect",
        "use_zero1=True",
    ):
        assert out.count(said) == 1


def test_the_embedded_corpus_is_prepared_on_first_use(run, tmp_path, monkeypatch, capsys):
    import train
    from tokenization import embedded

    prepared = []

    def prepare(folder: Path) -> None:
        prepared.append(folder)
        write_dataset(folder)

    monkeypatch.setattr(train, "ROOT", tmp_path)
    monkeypatch.setattr(embedded, "prepare", prepare)
    for _ in range(2):
        assert run("a", "--dataset=python_stdlib") == 0
    assert prepared == [tmp_path / "data" / "python_stdlib"]


def test_no_steps_at_all(run, tmp_path, capsys):
    assert run("a", "--max_iters=0") == 0
    assert [s for s, _ in checkpoint.list_checkpoints(tmp_path / "a")] == [0]
    assert run("a", "--max_iters=2") == 0
    run("b", "--max_iters=2")
    whole, parts = weights(tmp_path / "b", 2), weights(tmp_path / "a", 2)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_mixture_trains_resumes_and_says_what_it_is(run, tmp_path, dataset, capsys):
    other = write_dataset(tmp_path / "other", train_tokens=900, seed=1)
    mixed = f"--dataset={dataset}:3,{other}:1"
    flags = [mixed, "--lr_decay_iters=6", "--eval_tokens=128"]
    run("whole", *flags)
    out = capsys.readouterr().out
    assert "the weights of dataset sum to 4; normalised: " in out and "holds no tokenizer: sample.py" in out
    assert f"{dataset}: 2,000 tokens, weight 0.75, " in out and f"{other}: 900 tokens, weight 0.25, " in out
    run("parts", *flags, "--max_iters=3")
    run("parts", *flags)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    data = read_events(tmp_path / "whole", "run_start")[0]["data"]
    assert [(s["dataset"], s["weight"], s["tokens"]) for s in data["sources"]] == [
        (str(dataset), 0.75, 2000), (str(other), 0.25, 900)]  # fmt: skip
    assert [s["epochs"] for s in data["sources"]] == pytest.approx([24 * 0.75 / 124, 24 * 0.25 / 56])
    assert data["bytes_per_token"] == 3.0 and data["eot_id"] == 0 and data["tokenizer"]["name"] == "synthetic"
    run("long", *flags, "--eval_tokens=3200")
    assert (
        "evaluations of val take 49 windows, not 200: " in capsys.readouterr().out
    )  # 37 are three quarters of 49
    run("alone")
    assert losses(tmp_path / "alone") != losses(tmp_path / "whole")
    capsys.readouterr()
    for changed in (f"{dataset}:1,{other}:1", f"{other}:3,{dataset}:1", str(dataset)):
        with pytest.raises(SystemExit) as stopped:
            run("whole", f"--dataset={changed}", "--max_iters=9")
        assert stopped.value.code == 2 and "fingerprint" in capsys.readouterr().err


def test_document_masking_changes_the_loss_and_resumes(run, tmp_path):
    run("plain", "--arch_preset=qwen3", "--head_dim=8", "--num_key_value_heads=2")
    masked = [
        "--arch_preset=qwen3",
        "--head_dim=8",
        "--num_key_value_heads=2",
        "--document_masking",
        "--lr_decay_iters=6",
    ]
    run("masked", *masked)
    run("parts", *masked, "--max_iters=3")
    run("parts", *masked)
    plain, whole, parts = (losses(tmp_path / name) for name in ("plain", "masked", "parts"))
    assert whole == parts and plain.keys() == whole.keys()
    assert all(plain[key] != whole[key] for key in plain)
    assert (
        read_events(tmp_path / "masked", "train")[-1]["tokens"]
        == read_events(tmp_path / "plain", "train")[-1]["tokens"]
    )


def test_only_its_own_name_prepares_the_embedded_corpus(tmp_path, monkeypatch):
    prepared = []
    monkeypatch.setattr(train, "ROOT", tmp_path)
    monkeypatch.setattr("tokenization.embedded.prepare", prepared.append)
    for dataset in ("elsewhere/python_stdlib_copy", "my_python_stdlib:0.5,other:0.5"):
        prepare_embedded(dataset, World(), tmp_path / "data")
    assert not prepared
    with pytest.raises(ValueError, match="weight above 0"):
        prepare_embedded("python_stdlib:none,other:1", World(), tmp_path / "data")
    assert not prepared
    for dataset in ("python_stdlib", "python_stdlib:0.5,other:0.5"):
        prepare_embedded(dataset, World(), tmp_path / "data")
    assert prepared == [tmp_path / "data" / "python_stdlib"] * 2
