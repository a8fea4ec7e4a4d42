"""What a run says when it resumes, and what it says of settings that are seldom meant together."""

import pytest
import torch
from conftest import read_events, write_dataset
from run_folders import weights

from training import checkpoint
from training.config import TrainConfig
from training.state import RunState

LINEAR = ["--lr_schedule=linear", "--min_lr=0", "--warmup_iters=0", "--learning_rate=1e-3"]


def test_one_note_lists_what_changed_with_the_learning_rate(run, capsys):
    run("a", *LINEAR)
    assert "changed" not in capsys.readouterr().out
    run("a", *LINEAR, "--max_iters=12", "--dropout=0.1")
    [note] = [line for line in capsys.readouterr().out.splitlines() if "changed since the checkpoint" in line]
    assert "dropout=0.0 there, 0.1 here" in note and "max_iters=6 there, 12 here" in note
    assert note.endswith("learning rate of the next step 0 there, 0.0005 here")  # 1e-3 * (1 - 6/12)


@pytest.mark.parametrize("before, after", [("float32", "float16"), ("float16", "float32")])
def test_float16_may_begin_and_end_on_resume(run, tmp_path, capsys, before, after):
    run("a", f"--dtype={before}", "--max_iters=3")
    capsys.readouterr()
    assert run("a", f"--dtype={after}", "--max_iters=6") == 0
    out = capsys.readouterr().out
    assert f"dtype='{before}' there, '{after}' here" in out
    assert ("scale of float16's gradients starts anew" in out) == (after == "float16")
    state = RunState.read(checkpoint.checkpoint_path(tmp_path / "a", 6))
    assert state.dtype == after and state.grad_scaler.get("scale") == (
        65536.0 if after == "float16" else None
    )
    assert all(torch.isfinite(t).all() for t in weights(tmp_path / "a", 6).values())
    run("a", f"--dtype={after}", "--max_iters=9")
    assert "gradients starts anew" not in capsys.readouterr().out


def test_a_replaced_validation_split_is_said_and_begins_the_best_anew(run, tmp_path, dataset, capsys):
    run("a", "--lr_decay_iters=9")
    best = RunState.read(checkpoint.checkpoint_path(tmp_path / "a", 6)).best
    other = write_dataset(tmp_path / "other", val_tokens=700)
    capsys.readouterr()
    assert run("a", f"--dataset={other}", "--max_iters=9", "--lr_decay_iters=9") == 0
    out = capsys.readouterr().out
    assert out.count("evaluations differ from the checkpoint's in held-out data: ") == 1
    losses = {e["step"]: e["val_loss"] for e in read_events(tmp_path / "a", "eval")[3:]}
    assert losses.keys() == {6, 9} and losses[6] != best["val_loss"]  # measured again, on the new split
    now = RunState.read(checkpoint.checkpoint_path(tmp_path / "a", 9)).best
    assert now["val_loss"] == min(losses.values())
    run("a", f"--dataset={other}", "--max_iters=12", "--lr_decay_iters=9")
    assert "evaluations differ" not in capsys.readouterr().out


def notes(**fields: object) -> str:
    return " | ".join(TrainConfig(**fields).notes())


@pytest.mark.parametrize("fields, said", [
    ({"checkpoint_interval": 10, "eval_interval": 15, "max_iters": 30}, "do not meet before the end"),
    ({"checkpoint_interval": 10, "eval_interval": 2000, "max_iters": 100}, "do not meet before the end"),
    ({"checkpoint_interval": 10, "eval_interval": 15, "max_iters": 31}, ""),
    ({"checkpoint_interval": 20, "eval_interval": 10, "max_iters": 60}, ""),
    ({"checkpoint_interval": 60, "eval_interval": 7, "max_iters": 60}, ""),  # the only one is evaluated
    ({"checkpoint_interval": 10, "eval_interval": 15, "max_iters": 30, "eval_only": True}, ""),
    ({"eval_interval": 10, "max_iters": 5}, ""),
    ({"warmup_iters": 50, "max_iters": 40}, "warmup_iters=50 is not over before max_iters=40"),
    ({"warmup_iters": 39, "max_iters": 40}, ""),
    ({"warmup_iters": 9, "max_iters": 0}, ""),
    ({"warmup_iters": 20, "lr_decay_iters": 10, "max_iters": 90}, "lr_decay_iters=10 ends before warmup_iters=20"),
    ({"warmup_iters": 20, "lr_decay_iters": 10, "max_iters": 90, "lr_schedule": "constant"}, ""),
    ({"warmup_iters": 20, "lr_decay_iters": 21, "max_iters": 90}, ""),
])  # fmt: skip
def test_settings_that_are_seldom_meant_together(fields, said):
    found = notes(**{"warmup_iters": 0, "lr_schedule": "linear"} | fields)
    others = [note for note in found.split(" | ") if note and "no effect" not in note]
    assert len(others) == bool(said) and said in found


def test_muon_has_no_rate_beside_a_learning_rate_of_0():
    muon = dict(optimizer="muon", learning_rate=0.0, min_lr=0.0)
    with pytest.raises(ValueError, match=r"muon_learning_rate=0\.02 follows the schedule of learning_rate=0"):
        TrainConfig(**muon, muon_learning_rate=0.02)
    TrainConfig(**muon)
    TrainConfig(**muon | {"optimizer": "adamw"}, muon_learning_rate=0.02)  # where it has no effect
