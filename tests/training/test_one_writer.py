"""A run folder has one writer, and what another wrote there is neither removed nor replaced."""

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import TINY_FLAGS, read_events
from run_folders import exit_code, weights

from base import locks
from base.errors import InputError
from base.locks import FolderLock
from training import checkpoint, saving
from training import run as training_run
from training.config import load_config
from training.state import RunState
from training.world import World


@pytest.fixture(autouse=True)
def in_haste(monkeypatch):
    monkeypatch.setattr(locks, "WAIT_S", 0.05)


@pytest.fixture
def elsewhere(tmp_path) -> Iterator[Path]:
    """The folder of a run whose lock another process holds; not this one, as far as it knows."""
    (tmp_path / "a").mkdir(exist_ok=True)
    with open(tmp_path / "a" / ".lock", "w") as f:
        fcntl.flock(f, fcntl.LOCK_EX)
        yield tmp_path / "a"


def contents(folder: Path) -> dict[str, int]:
    return {str(f.relative_to(folder)): f.stat().st_mtime_ns for f in sorted(folder.rglob("*"))}


def test_a_second_run_in_a_folder_is_refused_and_changes_nothing(run, tmp_path, capsys):
    run("a", "--max_iters=3")
    first = FolderLock(tmp_path / "a", "run")
    before = contents(tmp_path / "a")
    capsys.readouterr()
    for flags in ([], ["--init_from=scratch"]):
        assert exit_code(run, "a", *flags) == 2
        said = capsys.readouterr().err
        assert (
            said.count("\n") == 1
            and f"another run is at work in {tmp_path / 'a'} (process {os.getpid()} on" in said
        )
    assert contents(tmp_path / "a") == before
    assert run("a", "--eval_only") == 0  # it reads, and has a log of its own
    first.release()
    assert run("a") == 0 and not (tmp_path / "a" / ".lock").exists()


def test_one_that_came_to_life_while_this_one_was_built_is_noticed(run, tmp_path, dataset):
    flags = [*TINY_FLAGS, f"--dataset={dataset}", f"--out_dir={tmp_path / 'a'}"]
    new, old = (training_run.build_run(*load_config(flags)) for _ in range(2))
    run("a", "--max_iters=3")
    with pytest.raises(
        InputError, match=r"changed by another run meanwhile \(.*step_00000003 is new\): repeat"
    ):
        new.open_folder()
    held = training_run.build_run(*load_config(flags))
    other = FolderLock(tmp_path / "a", "run")
    with pytest.raises(InputError, match="another run is at work"):
        held.open_folder()
    other.release()
    held.open_folder()
    with pytest.raises(InputError, match=r"another run .*: close it, or choose another folder"):
        old.open_folder()
    for each in (new, old, held):
        each.close()
    assert not (tmp_path / "a" / ".lock").exists()


def test_a_run_that_fails_lets_go(run, tmp_path):
    def fails(step: int, config: object) -> float:
        raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        run("a", schedule=fails)
    assert run("a") == 0


def test_what_another_process_is_writing_is_not_left_over(elsewhere):
    writing = elsewhere / "checkpoints" / "partial_step_00000007"
    writing.mkdir(parents=True)
    with pytest.raises(InputError, match="another run is at work"):
        saving.save_checkpoint(elsewhere, {}, RunState(step=8), {})
    assert writing.is_dir() and not checkpoint.list_checkpoints(elsewhere)


def test_an_intact_checkpoint_of_another_run_is_not_replaced(run, tmp_path):
    run("a", "--max_iters=3")
    path = checkpoint.checkpoint_path(tmp_path / "a", 3)
    theirs, before = weights(tmp_path / "a", 3), contents(path)
    state, config = checkpoint.load_state(path)
    with pytest.raises(saving.SaveFailed, match=r"step_00000003 is of another run and intact: move it away"):
        saving.save_checkpoint(tmp_path / "a", theirs, RunState(step=3, wandb_run_id="other"), config)
    assert contents(path) == before
    saving.save_checkpoint(tmp_path / "a", theirs, RunState(step=3, wandb_run_id=state.wandb_run_id), config)
    assert contents(path) != before
    (path / "model.safetensors").write_bytes(b"damaged")
    saving.save_checkpoint(tmp_path / "a", theirs, RunState(step=3, wandb_run_id="other"), config)
    assert RunState.read(path).wandb_run_id == "other"


def test_the_ranks_are_told_together():
    class SecondRank(World):
        def first(self, value: str | None) -> str | None:
            assert value is None
            return "out is locked"  # as rank 0 found

    with pytest.raises(InputError, match="out is locked"):
        SecondRank(1, 1, 2).by_rank_0(lambda: pytest.fail("the second rank's work"))


@pytest.mark.parametrize("number, name", [
    (errno.EACCES, "manifest.json"),
    (errno.EMFILE, "model.safetensors"),
    (errno.ENOMEM, "state.json"),
    (errno.EACCES, "checkpoints"),
])  # fmt: skip
def test_what_cannot_be_read_now_is_not_damage(run, tmp_path, monkeypatch, capsys, number, name):
    run("a")
    plain = {(module, call): getattr(module, call) for module, call in ((os, "stat"), (os, "scandir"))}

    def refusing(of: tuple):
        def call(path: object, *args: object, **kwargs: object) -> object:
            if str(path).endswith(f"step_00000006/{name}" if "." in name else "a/checkpoints"):
                raise OSError(number, os.strerror(number), str(path))
            return plain[of](path, *args, **kwargs)

        return call

    before = contents(tmp_path / "a")
    with monkeypatch.context() as patch:
        for module, call in plain:
            patch.setattr(module, call, refusing((module, call)))
        capsys.readouterr()
        assert exit_code(run, "a", "--max_iters=9") == 2
    said = capsys.readouterr().err
    assert os.strerror(number) in said and said.count("\n") == 1
    assert contents(tmp_path / "a") == before
    assert run("a", "--max_iters=9") == 0
    assert read_events(tmp_path / "a", "run_start")[-1]["start_step"] == 6
