"""What goes wrong on one rank of two, inside one process group: non-finite gradients, full disks, signals.
And the death of a process at every operation of a save."""

import builtins
import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from conftest import TINY_FLAGS, read_events, write_dataset
from ranks import train_once

import model_builder
from base import files
from base.errors import InputError
from base.locks import FolderLock
from model_config import get_preset_config
from training import checkpoint, keeping, saving
from training.config import TrainConfig
from training.optim import StepGuard, build_optimizers, learning_rate_at, optimizer_tensors
from training.state import RunState
from training.world import World, on_ranks


class Sabotage:
    """Makes things go wrong in this process, by the step that train.py is about to take."""

    def __init__(self) -> None:
        self.step = -1
        self.nan_steps: range = range(0)
        self.signal_at: dict[int, int] = {}
        self.full_disk_at: set[int] = set()
        self.in_evaluation: int | None = None
        plain_loss, plain_write = model_builder.head_loss, saving.write_durably

        def head_loss(x: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
            if not torch.is_grad_enabled() and self.in_evaluation:
                os.kill(os.getpid(), self.in_evaluation)
                self.in_evaluation = None
            loss = plain_loss(x, *args, **options)
            return loss * float("nan") if torch.is_grad_enabled() and self.step in self.nan_steps else loss

        def write_durably(file: Path, parts: Iterator[bytes], *digest: object) -> dict:
            if any(f"{step:08d}" in str(file) for step in self.full_disk_at):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))
            return plain_write(file, parts, *digest)

        model_builder.head_loss, saving.write_durably = head_loss, write_durably

    def schedule(self, step: int, config: TrainConfig) -> float:
        self.step = step
        if step in self.signal_at:
            os.kill(os.getpid(), self.signal_at.pop(step))
        return learning_rate_at(step, config)


def faulty_runs(world: World, folder: Path) -> None:
    sabotage, broken_rank = Sabotage(), world.rank == 1
    common = [*TINY_FLAGS, f"--dataset={folder}/dataset", "--max_iters=9", "--eval_interval=3"]

    def run(name: str, *flags: str) -> None:
        code = train_once(world, [*common, f"--out_dir={folder}/{name}", *flags], sabotage.schedule)
        if world.rank == 0:
            with open(folder / f"{name}.codes", "a") as f:
                f.write(f"{code} ")

    (folder / "held").mkdir(exist_ok=True)
    other = FolderLock(folder / "held", "run") if world.rank == 0 else None
    try:
        run("held")
    except InputError as error:
        (folder / f"refused {world.rank}").write_text(str(error))
    if other is not None:
        other.release()
    for strategy in ("", "--use_zero1", "--use_fsdp"):
        run(f"whole{strategy}", "--always_save_checkpoint", *[strategy] * bool(strategy))
        flags = ["--max_bad_steps=2", *[strategy] * bool(strategy)]
        if broken_rank:
            sabotage.nan_steps = range(4, 5)
        run(f"nan once{strategy}", *flags)
        if broken_rank:
            sabotage.nan_steps = range(4, 100)
        run(f"nan forever{strategy}", *flags)
        sabotage.nan_steps = range(0)
        for kind in ([], ["--async_checkpoint"]):
            if broken_rank:
                sabotage.full_disk_at = {3}
            run(f"full disk{strategy}{''.join(kind)}", *flags, *kind)
            sabotage.full_disk_at = set()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            name = f"{signal.Signals(number).name}{strategy}"
            flags = ["--eval_interval=2", "--eval_tokens=256", *[strategy] * bool(strategy)]
            if broken_rank:
                sabotage.signal_at = {4: number}
            run(name, *flags)
            if not broken_rank:
                sabotage.in_evaluation = number  # the first one, on the other rank
            run(name, *flags)
            run(name, *flags)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("faulty")
    write_dataset(folder / "dataset")
    on_ranks(2, faulty_runs, folder)
    return folder


STRATEGIES = ("", "--use_zero1", "--use_fsdp")


def test_a_folder_that_another_run_holds_is_refused_by_all(folder):
    assert not list((folder / "held").iterdir())
    first, second = ((folder / f"refused {rank}").read_text() for rank in range(2))
    assert first == second and f"another run is at work in {folder}/held (process " in first


def digests(out_dir: Path, step: int) -> dict[str, str]:
    manifest = checkpoint.read_manifest(checkpoint.checkpoint_path(out_dir, step))
    return {file: r["sha256"] for file, r in manifest.items() if file.endswith(".safetensors")}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_step_without_finite_gradients_is_skipped_by_all(folder, strategy):
    assert (folder / f"nan once{strategy}.codes").read_text() == "0 "
    events = read_events(folder / f"nan once{strategy}", "train")
    assert [e["skipped_steps"] for e in events] == [0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert events[4]["loss"] is None and events[4]["grad_norm"] is None and all(e["loss"] for e in events[5:])
    whole = read_events(folder / f"whole{strategy}", "train")
    assert [e["loss"] for e in events[:4]] == [e["loss"] for e in whole[:4]] and events[5]["loss"] != whole[
        5
    ]["loss"]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_too_many_of_them_end_the_run(folder, strategy):
    assert (folder / f"nan forever{strategy}.codes").read_text() == "1 "
    out_dir = folder / f"nan forever{strategy}"
    assert read_events(out_dir)[-1]["reason"].startswith("error: 2 steps in a row were skipped")
    assert read_events(out_dir)[-1]["step"] == 6  # steps 4 and 5 were bad
    assert checkpoint.find_checkpoint(out_dir) == checkpoint.checkpoint_path(out_dir, 3)
    assert digests(out_dir, 3) == digests(folder / f"whole{strategy}", 3)


@pytest.mark.parametrize("kind", ["", "--async_checkpoint"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_full_disk_costs_one_checkpoint(folder, strategy, kind):
    assert (folder / f"full disk{strategy}{kind}.codes").read_text() == "0 "
    out_dir = folder / f"full disk{strategy}{kind}"
    failed, second, third = read_events(out_dir, "checkpoint")
    assert (
        failed["step"] == 3
        and "by rank 1" in failed["failed"]
        and "No space left on device" in failed["failed"]
    )
    assert (second["step"], third["step"]) == (6, 9) and "path" in second and "path" in third
    assert [s for s, _ in checkpoint.list_checkpoints(out_dir)] == [6, 9]
    assert not list((out_dir / "checkpoints").glob("partial*"))
    assert digests(out_dir, 9) == digests(folder / f"whole{strategy}", 9)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_signal_to_one_rank_stops_all_with_a_checkpoint(folder, strategy, number):
    name = f"{number.name}{strategy}"
    assert (folder / f"{name}.codes").read_text() == "75 75 0 "
    first, second, last = read_events(folder / name, "run_end")
    assert first["reason"] == second["reason"] == f"signal {number.name}" and last["reason"] == "done"
    starts = [e["start_step"] for e in read_events(folder / name, "run_start")]
    # Cast at the boundary after step 4, counted at that of step 6, whose evaluation falls out; the second
    # run makes up for it, gets its own signal there, and leaves it to the third
    assert (first["step"], second["step"]) == (6, 6) and starts == [0, 6, 6]
    assert [e["step"] for e in read_events(folder / name, "eval")] == [0, 2, 4, 6, 8, 9]
    assert digests(folder / name, 9) == digests(folder / f"whole{strategy}", 9)


def test_spikes_are_skipped_when_asked_for():
    config = TrainConfig(spike_factor=4.0, max_bad_steps=3)
    guard = StepGuard(config, torch.device("cpu"))
    norms = [1000.0, 500.0, *[1.0] * 200]  # a warm-up may do what it likes
    assert not any(guard.check(torch.tensor(n)) for n in norms)
    mean = guard.state()["mean_norm"]
    assert [bool(guard.check(torch.tensor(n))) for n in (3.9 * mean, 100.0, float("inf"), 1.0)] == [
        False,
        True,
        True,
        False,
    ]
    assert guard.state()["skipped"] == 2 and guard.state()["bad_in_a_row"] == 0
    resumed = StepGuard(config, torch.device("cpu"), guard.state())
    for norm in (100.0, 1.0, float("nan"), 2.0):
        assert guard.check(torch.tensor(norm)) == resumed.check(torch.tensor(norm))
    assert resumed.state() == guard.state()
    off = StepGuard(TrainConfig(), torch.device("cpu"))
    assert not any(off.check(torch.tensor(n)) for n in [1.0] * 200 + [1e30])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_skipped_step_leaves_no_trace(optimizer):
    model, optimizers = small_model(optimizer)
    guard = StepGuard(TrainConfig(), torch.device("cpu"))
    before = {
        k: t.clone()
        for k, t in (dict(model.named_parameters()) | optimizer_tensors(model, optimizers)).items()
    }
    for p in model.parameters():
        p.grad = torch.full_like(p, float("nan"))
    guard.step(optimizers, torch.tensor(1.0))
    after = dict(model.named_parameters()) | optimizer_tensors(model, optimizers)
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    guard.step(optimizers, torch.tensor(0.0))
    assert not any(torch.equal(before[n], p) for n, p in model.named_parameters())


def small_model(optimizer: str = "adamw") -> tuple:
    shape = {"n_layer": 1, "n_embd": 16, "n_head": 2, "num_key_value_heads": 1, "head_dim": 8, "d_ff": 16}
    config = get_preset_config("qwen3", **shape, block_size=8, vocab_size=11)
    model = model_builder.ConfigurableGPT(config)
    optimizers = build_optimizers(model, TrainConfig(optimizer=optimizer), torch.device("cpu"))
    x = torch.arange(8)[None]
    model(x, x)[1].backward()
    for o in optimizers:
        o.step()
    return model, optimizers


class DeathAt:
    """Ends this process at the n-th operation on files: before it, or, for a write, in the middle of it."""

    def __init__(self, n: int) -> None:
        self.left = n
        for module, name in ((os, "fsync"), (os, "rename"), (os, "mkdir"), (os, "unlink"), (os, "rmdir")):
            setattr(module, name, self.dying(getattr(module, name)))
        files.open = self.open

    def tick(self) -> bool:
        self.left -= 1
        return self.left < 0

    def dying(self, function: Callable) -> Callable:
        def call(*args: object, **kwargs: object) -> object:
            if self.tick():
                os._exit(9)
            return function(*args, **kwargs)

        return call

    def open(self, file: object, mode: str = "r") -> object:
        if self.tick():
            os._exit(9)
        opened = builtins.open(file, mode, buffering=0)  # noqa: SIM115 closed by what wraps it
        if "w" not in mode:
            return opened
        write, death = opened.write, self

        class File:
            def __enter__(self) -> "File":
                return self

            def __exit__(self, *error: object) -> None:
                opened.close()

            def write(self, data: bytes) -> None:
                if death.tick():
                    write(bytes(data)[: len(data) // 2])
                    os._exit(9)
                write(data)

            def __getattr__(self, name: str) -> object:
                return getattr(opened, name)

        return File()


def test_death_at_every_operation_of_a_save_loses_nothing(tmp_path):
    """Step 3 is saved over a damaged folder of the same name, then the oldest is pruned: whichever
    operation is the last, an intact checkpoint of step 2 or 3 is found, and the next process saves as if
    nothing had been."""
    model, optimizers = small_model()
    tensors = dict(model.named_parameters()) | optimizer_tensors(model, optimizers)
    config = TrainConfig(keep_last=2, device="cpu")
    start = tmp_path / "start"
    for step in (1, 2, 3):
        saving.save_checkpoint(start, tensors, RunState(step=step), {})
    damaged = checkpoint.checkpoint_path(start, 3) / "model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-4])
    good = digests(start, 2)

    def save(out_dir: Path) -> None:
        checkpoints = keeping.Checkpoints(out_dir, World(), config, None)
        checkpoints.save(tensors, RunState(step=3, val_loss=None), {}, wait=True)

    found_at, n = [], 0
    while True:
        out_dir = tmp_path / f"{n}"
        shutil.copytree(start, out_dir)
        child = os.fork()
        if child == 0:
            try:
                DeathAt(n)
                save(out_dir)
            except BaseException:
                os._exit(1)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        newest = checkpoint.find_checkpoint(out_dir)
        assert newest is not None and digests(out_dir, int(newest.name[5:])) == good
        found_at.append(int(newest.name[5:]))
        save(out_dir)  # continues from whatever was left
        assert checkpoint.find_checkpoint(out_dir, 3) == checkpoint.checkpoint_path(out_dir, 3)
        assert [s for s, _ in checkpoint.list_checkpoints(out_dir)] == [2, 3]
        assert not [
            f
            for f in (out_dir / "checkpoints").iterdir()
            if f.name.startswith("partial") and "0003" in f.name
        ]
        shutil.rmtree(out_dir)
        if code == 0:
            break
        n += 1
    assert n > 40 and found_at == sorted(found_at) and set(found_at) == {2, 3}
