"""Which checkpoints and which tokenizer's files a run folder keeps: nothing good is removed."""

import pytest
import torch
from conftest import read_events, record_tokenizer
from run_folders import signal_after, weights

from inference.models import find_model
from tokens.format import tokenizer_files
from training import checkpoint, keeping
from training.config import TrainConfig
from training.optim import learning_rate_at
from training.world import World


def test_finished_scratch_and_kept_checkpoints(run, tmp_path, capsys):
    run("a", "--keep_last=1", "--checkpoint_interval=1")
    best = min(
        (e for e in read_events(tmp_path / "a", "eval") if e["step"] > 0), key=lambda e: e["val_loss"]
    )["step"]
    assert {s for s, _ in checkpoint.list_checkpoints(tmp_path / "a")} == {best, 6}
    assert run("a") == 0 and "nothing to train" in capsys.readouterr().out
    assert run("a", "--init_from=scratch", "--always_save_checkpoint", "--checkpoint_interval=2") == 0
    assert {s for s, _ in checkpoint.list_checkpoints(tmp_path / "a")} == {2, 4, 6}
    assert (tmp_path / "a" / "checkpoints_before_1" / "step_00000006").is_dir()


def test_a_damaged_newest_checkpoint_costs_only_its_steps(run, tmp_path, caplog):
    run("whole")
    run("parts")
    file = checkpoint.checkpoint_path(tmp_path / "parts", 6) / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    assert run("parts") == 0
    assert "passing over the damaged checkpoint" in caplog.text and "optimizer.safetensors" in caplog.text
    assert read_events(tmp_path / "parts", "run_start")[-1]["start_step"] == 3
    whole, parts = weights(tmp_path / "whole", 6), weights(tmp_path / "parts", 6)
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_damaged_checkpoints_take_no_good_ones_place(run, tmp_path, monkeypatch, capsys):
    run("a", "--max_iters=9", "--always_save_checkpoint")
    for step in (6, 9):
        (checkpoint.checkpoint_path(tmp_path / "a", step) / "state.json").write_text("{}")
    assert run("a", "--max_iters=9", "--keep_last=1", schedule=signal_after(5)) == 75
    assert [step for step, _ in checkpoint.list_checkpoints(tmp_path / "a")] == [3, 5]
    damaged = sorted((tmp_path / "a" / "checkpoints").glob("damaged_*"))
    assert [path.name for path in damaged] == ["damaged_step_00000006", "damaged_step_00000009"]
    assert f"note: a damaged checkpoint is now {damaged[0]}" in capsys.readouterr().out
    assert run("a", "--max_iters=9", "--keep_last=1") == 0
    assert [e["start_step"] for e in read_events(tmp_path / "a", "run_start")] == [0, 3, 5]
    assert (damaged[0] / "model.safetensors").is_file()


def test_the_best_may_be_one_that_was_rated_after_it_was_saved(tmp_path):
    checkpoints = keeping.Checkpoints(tmp_path, World(), TrainConfig(), {"step": 2, "val_loss": 3.0}, {4})
    checkpoints.rate(4, None)
    checkpoints.rate(4, 3.5)
    assert checkpoints.best == {"step": 2, "val_loss": 3.0}
    checkpoints.rate(4, 2.5)
    assert checkpoints.best == {"step": 4, "val_loss": 2.5}


def test_between_bad_steps_no_checkpoint_is_removed(run, tmp_path, monkeypatch, capsys):
    def schedule(step: int, config: TrainConfig) -> float:
        return 1e37 if step == 4 else learning_rate_at(step, config)

    flags = [
        "--max_iters=60",
        "--grad_clip=0",
        "--keep_last=1",
        "--checkpoint_interval=2",
        "--eval_interval=50",
    ]
    assert run("a", *flags, "--max_bad_steps=6", "--log_interval=50", schedule=schedule) == 1
    end = read_events(tmp_path / "a")[-1]
    assert end["reason"].startswith("error: 7 steps in a row were skipped") and end["step"] == 12
    assert "the last good step led to 5" in capsys.readouterr().out
    assert [step for step, _ in checkpoint.list_checkpoints(tmp_path / "a")] == [4, 6, 8, 10]
    largest = [max(t.abs().max().item() for t in weights(tmp_path / "a", step).values()) for step in (4, 6)]
    assert largest[0] < 100 and largest[1] > 1e30


def test_the_tokenizer_is_copied_and_the_tokens_are_not(run, tmp_path, dataset):
    for name in ("tokenizer.json", "merges.txt", "notes.txt"):
        (dataset / name).write_text(name)
    record_tokenizer(dataset)
    run("a")
    copied = {f.name for f in (tmp_path / "a").iterdir() if not f.name.startswith("run_")}
    assert copied == {"tokenizer.json", "merges.txt", "checkpoints"}
    data = read_events(tmp_path / "a")[0]["data"]
    assert data["tokenizer"]["name"] == "synthetic" and data["eot_id"] == 0 and data["bytes_per_token"] == 3.0


def test_a_tokenizer_of_an_earlier_run_is_not_taken_for_this_ones(run, tmp_path, dataset):
    (dataset / "tokenizer.json").write_text("theirs")
    record_tokenizer(dataset)
    run("a")
    (tmp_path / "a" / "chat_template.jinja").write_text("theirs")
    (dataset / "tokenizer.json").write_text("new")
    record_tokenizer(dataset)
    run("a", "--init_from=scratch")
    assert [f.name for f in tokenizer_files(tmp_path / "a")] == ["tokenizer.json"]
    assert (tmp_path / "a" / "tokenizer.json").read_text() == "new"
    before = tmp_path / "a" / "checkpoints_before_1"
    assert (before / "tokenizer.json").read_text() == (before / "chat_template.jinja").read_text() == "theirs"
    (dataset / "tokenizer.json").unlink()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "tokenizer.json").write_text("the user's")  # where no run was, it is nobody else's
    run("b")
    assert (tmp_path / "b" / "tokenizer.json").read_text() == "the user's"
    (tmp_path / "a" / "tokenizer.json").write_text("another")
    with pytest.raises(ValueError, match=r"tokenizer\.json is not 'synthetic'"):
        find_model(str(tmp_path / "a"))
    (tmp_path / "a" / "tokenizer.json").write_text("new")
    assert find_model(str(tmp_path / "a")).tokenizer == str(tmp_path / "a")


def test_the_best_checkpoint_stays_when_the_loss_rises_again(run, tmp_path):
    """After step 4 the rate is absurd: step 4 stays the best."""
    run("a", "--max_iters=4", "--eval_interval=2", "--keep_last=1")
    run(
        "a",
        "--max_iters=10",
        "--eval_interval=2",
        "--keep_last=1",
        "--learning_rate=10",
        "--lr_schedule=constant",
    )
    evaluations = {e["step"]: e["val_loss"] for e in read_events(tmp_path / "a", "eval") if e["step"]}
    assert min(evaluations, key=evaluations.get) == 4
    assert [s for s, _ in checkpoint.list_checkpoints(tmp_path / "a")] == [4, 10]
