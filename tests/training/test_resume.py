"""A run that stopped, was killed or damaged resumes to the same bits; nothing good is removed."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from conftest import TINY_FLAGS, read_events, write_dataset
from run_folders import exit_code, losses, read_complete, signal_after, weights

from training import checkpoint, saving
from training import run as training_run
from training.config import TrainConfig
from training.optim import learning_rate_at

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("flags", [
    ["--dropout=0.1"],
    ["--dropout=0.1", "--optimizer=muon", "--dtype=bfloat16"],
    ["--arch_preset=qwen3", "--head_dim=8", "--num_key_value_heads=2", "--dropout=0.2"],
    ["--dtype=float16"],
])  # fmt: skip
def test_resume_is_bit_exact_across_an_epochs_end(run, tmp_path, flags):
    # 2000 tokens are 124 windows; 4 a step: the epoch ends within step 31
    flags = [*flags, "--lr_decay_iters=36", "--eval_interval=9"]
    run("whole", *flags, "--max_iters=36")
    run("parts", *flags, "--max_iters=27")
    run("parts", *flags, "--max_iters=36")
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    whole, parts = weights(tmp_path / "whole", 36), weights(tmp_path / "parts", 36)
    assert whole.keys() == parts.keys() and len(whole) > 30
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_killed_run_resumes_to_the_same_weights(run, tmp_path, dataset):
    """kill -9 between two checkpoints, and each signal that asks for one."""
    flags = [
        *TINY_FLAGS,
        f"--dataset={dataset}",
        "--max_iters=100",
        "--eval_interval=50",
        "--checkpoint_interval=20",
    ]
    run("whole", *flags)
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        out = tmp_path / number.name
        command = [sys.executable, "train.py", *flags, f"--out_dir={out}"]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
        while not (out.exists() and len(read_complete(out)) > 30):
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
        process.send_signal(number)
        assert process.wait(60) == (-9 if number == signal.SIGKILL else 75)
        if number != signal.SIGKILL:
            assert read_events(out)[-1]["reason"] == f"signal {number.name}"
        assert run(number.name, *flags) == 0
        whole, resumed = weights(tmp_path / "whole", 100), weights(out, 100)
        assert all(torch.equal(whole[name], resumed[name]) for name in whole), number.name


def test_init_from_hf(run, tmp_path, capsys):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    shape = dict(vocab_size=97, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                 num_key_value_heads=2, head_dim=8, max_position_embeddings=64, tie_word_embeddings=True,
                 rope_parameters={"rope_type": "default", "rope_theta": 1e6})  # fmt: skip
    twin = Qwen3ForCausalLM(Qwen3Config(**shape))
    twin.save_pretrained(tmp_path / "hf")
    ours = [
        "--arch_preset=qwen3",
        "--num_key_value_heads=2",
        "--head_dim=8",
        f"--init_from=hf:{tmp_path / 'hf'}",
    ]
    assert run("a", *ours, "--max_iters=1", "--learning_rate=0", "--min_lr=0", "--weight_decay=0") == 0
    trained = weights(tmp_path / "a", 1)["token_embedding.weight"]
    assert torch.equal(trained, twin.model.embed_tokens.weight)
    assert exit_code(run, "b", *ours, "--rope_theta=1e4") == 2
    assert "rope_theta" in capsys.readouterr().err


def test_resume_refuses_another_model_or_another_order(run, tmp_path, dataset, capsys):
    run("a")
    for flags, said in (
        (["--n_embd=64"], "n_embd"),
        (["--seed=8"], "seed"),
        (["--batch_size=3"], "batch_size"),
        (["--optimizer=muon"], "optimizer"),
        ([f"--dataset={write_dataset(tmp_path / 'other', seed=1)}"], "fingerprint"),
    ):
        assert exit_code(run, "a", *flags) == 2
        err = capsys.readouterr().err
        assert said in err and "there" in err and err.count("\n") == 1
    for _, path in checkpoint.list_checkpoints(tmp_path / "a"):
        (path / "model.safetensors").write_bytes(b"damaged")
    assert exit_code(run, "a") == 2
    assert "no intact checkpoint" in capsys.readouterr().err


def test_an_asynchronous_checkpoint_is_written_while_steps_continue(run, tmp_path, monkeypatch):
    run("sync")
    plain = saving.write_durably

    def slowly(file: Path, parts: object, *digest: object) -> dict:
        time.sleep(0.1 if "partial_step_00000003" in str(file) else 0)
        return plain(file, parts, *digest)

    monkeypatch.setattr(saving, "write_durably", slowly)
    assert run("async", "--async_checkpoint") == 0
    events = [
        (e["event"], e["step"])
        for e in read_events(tmp_path / "async")
        if e["event"] in ("train", "checkpoint")
    ]
    assert events.index(("checkpoint", 3)) > events.index(("train", 4))
    first, _ = read_events(tmp_path / "async", "checkpoint")
    assert first["saved_ms"] > 300 > first["blocked_ms"]
    for step in (3, 6):  # what is written is the state of its step, though the weights have moved on
        ours, theirs = weights(tmp_path / "async", step), weights(tmp_path / "sync", step)
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_signals_while_saving_and_before_the_first_step(run, tmp_path, monkeypatch):
    flags = ["--max_iters=8", "--eval_interval=4", "--dropout=0.1"]
    run("whole", *flags)
    plain = saving.write_durably

    def interrupted(file: Path, parts: object, *digest: object) -> dict:
        if "step_00000004" in str(file) and file.name == "optimizer.safetensors":
            signal.raise_signal(signal.SIGUSR1)
        return plain(file, parts, *digest)

    def early(*args: object) -> None:
        signal.raise_signal(signal.SIGTERM)
        return None

    with monkeypatch.context() as patch:
        patch.setattr("training.run.check_space", early)  # the last thing before the loop
        assert run("parts", *flags) == 75
    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_durably", interrupted)
        assert run("parts", *flags) == 75
    assert run("parts", *flags) == 0
    assert [e["start_step"] for e in read_events(tmp_path / "parts", "run_start")] == [0, 0, 5]
    whole, parts = weights(tmp_path / "whole", 8), weights(tmp_path / "parts", 8)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_wandb_run_resumes_under_its_id(run, monkeypatch):
    seen = []

    class Wandb:
        def init(self, **settings: object) -> "Wandb":
            seen.append((settings["id"], settings["resume"]))
            return self

        def log(self, *args: object, **kwargs: object) -> None: ...

        def finish(self) -> None: ...

    monkeypatch.setitem(sys.modules, "wandb", Wandb())
    for steps in (3, 6):
        run("a", "--wandb_log", f"--max_iters={steps}", "--lr_decay_iters=6")
    run("b", "--wandb_log")
    assert seen[0] == seen[1] != seen[2] and seen[0][1] == "allow"


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stop_at_any_step_changes_nothing(run, tmp_path, monkeypatch, capsys, optimizer):
    flags = [f"--optimizer={optimizer}", "--dropout=0.1", "--max_iters=8", "--eval_interval=4"]
    run("whole", *flags)
    for steps in (1, 2, 5):
        assert run("parts", *flags, schedule=signal_after(steps)) == 75
        assert f"SIGTERM at step {steps}" in capsys.readouterr().out
        assert (
            read_events(tmp_path / "parts")[-1]["step"]
            == checkpoint.list_checkpoints(tmp_path / "parts")[-1][0]
            == steps
        )
    assert run("parts", *flags) == 0
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    whole, parts = weights(tmp_path / "whole", 8), weights(tmp_path / "parts", 8)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    steps = [e["start_step"] for e in read_events(tmp_path / "parts", "run_start")]
    assert steps == [0, 1, 2, 5]


def test_an_error_within_the_loop_is_logged_and_costs_the_steps_since_the_last_save(
    run, tmp_path, monkeypatch
):
    run("whole")

    def fails_at_4(step: int, config: object) -> float:
        if step == 4:
            raise RuntimeError("device lost")
        return learning_rate_at(step, config)

    with pytest.raises(RuntimeError, match="device lost"):
        run("parts", schedule=fails_at_4)
    assert read_events(tmp_path / "parts")[-1]["reason"] == "error: RuntimeError: device lost"
    assert not [t for t in threading.enumerate() if t.name.startswith("data")]
    assert run("parts") == 0
    assert read_events(tmp_path / "parts", "run_start")[-1]["start_step"] == 3
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    whole, parts = weights(tmp_path / "whole", 6), weights(tmp_path / "parts", 6)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.parametrize("cut_off", [3, 6])
def test_an_evaluation_that_a_signal_cuts_off_is_made_up_for(run, tmp_path, monkeypatch, cut_off):
    def schedule(step: int, config: TrainConfig) -> float:  # it makes the evaluation that is cut off the best
        return learning_rate_at(step, config) if step < cut_off else 10.0

    run("whole", "--max_iters=9", "--keep_last=1", schedule=schedule)
    seen, plain = [], training_run.evaluate

    def evaluate(*args: object) -> float | None:
        seen.append(args)
        if len(seen) == 2 * cut_off // 3 + 1:  # of the training split; two a time, at steps 0, 3 and 6
            signal.raise_signal(signal.SIGTERM)
        return plain(*args)

    with monkeypatch.context() as patch:
        patch.setattr(training_run, "evaluate", evaluate)
        assert run("parts", "--max_iters=9", "--keep_last=1", schedule=schedule) == 75
    path = checkpoint.checkpoint_path(tmp_path / "parts", cut_off)
    assert checkpoint.list_checkpoints(tmp_path / "parts")[-1][1] == path
    assert cut_off not in [e["step"] for e in read_events(tmp_path / "parts", "eval")]
    written = (path / "manifest.json").stat()
    written = (written.st_ino, written.st_mtime_ns)
    assert run("parts", "--max_iters=9", "--keep_last=1", schedule=schedule) == 0
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts")
    best = [
        checkpoint.load_state(checkpoint.checkpoint_path(tmp_path / name, 9))[0].best
        for name in ("whole", "parts")
    ]
    assert (
        best[0] == best[1]
        and best[1]["step"] == cut_off
        and checkpoint.checkpoint_path(tmp_path / "parts", best[1]["step"]).is_dir()
    )
    now = (path / "manifest.json").stat()
    assert (now.st_ino, now.st_mtime_ns) == written  # what is safe is not written again


def test_what_may_change_on_resume(run, tmp_path):
    """The schedule, the dropout, the precision of the matmuls, and how a step is cut into micro-batches."""
    flags = ["--learning_rate=1e-3", "--lr_schedule=constant", "--dropout=0.3", "--dtype=bfloat16", "--batch_size=4",
             "--gradient_accumulation_steps=1", "--weight_decay=0", "--grad_clip=0", "--max_iters=9"]  # fmt: skip
    run("a")
    assert run("a", *flags) == 0
    later = [e for e in read_events(tmp_path / "a", "train") if e["step"] > 6]
    assert [e["lr"] for e in later] == [1e-3] * 3 and [e["step"] for e in later] == [7, 8, 9]
