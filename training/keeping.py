"""Which checkpoints a run keeps, when it writes them, and what moves aside for it."""

import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from base.errors import InputError
from training.checkpoint import find_problem, leftovers, list_checkpoints
from training.config import TrainConfig
from training.saving import SaveFailed, own_share, save_checkpoint
from training.state import RunState
from training.world import World

log = logging.getLogger("nanofoundry")


class Checkpoints:
    """Writes the checkpoints of a run, one at a time, and removes those that are no longer to be kept.
    Every rank calls every method, at the same points of its work."""

    def __init__(
        self,
        out_dir: Path,
        world: World,
        config: TrainConfig,
        best: Mapping[str, Any] | None,
        stay: Collection[int] = (),
    ) -> None:
        self.out_dir, self.world, self.config = out_dir, world, config
        self.best = best  # {"step", "val_loss"} of the best that is saved
        self.stay = set(stay)  # steps whose checkpoints are kept besides
        self._events: list[dict[str, Any]] = []
        self._pending: tuple[Future, Mapping[str, Any] | None, float] | None = None
        if config.async_checkpoint:
            self._thread = ThreadPoolExecutor(1, "checkpoint")
            self._stager = DefaultStager(StagingOptions(False, False, False, False))
            # Its collectives must not meet those of the training
            timeout = timedelta(seconds=config.dist_timeout_s)
            self._group = (
                torch.distributed.new_group(backend="gloo", timeout=timeout) if world.size > 1 else None
            )

    def save(
        self,
        tensors: dict[str, Tensor],
        state: RunState,
        resolved: Mapping[str, Any],
        wait: bool,
        prune: bool = True,
    ) -> None:
        """Writes the checkpoint of state.step, or begins to. What comes of it is among the events; with
        `wait` it is on the disk when this returns. Without `prune` none is removed for it. Raises
        SaveFailed with `wait` only: an earlier one may be made good by the next."""
        self._finish()
        best = self._best_with(state.step, state.val_loss)
        state = replace(state, best=best)
        started = time.perf_counter()
        tensors = own_share(tensors, self.world)
        if self.config.async_checkpoint:
            future = self._thread.submit(
                self._write, self._stager.stage(tensors), state, resolved, prune, self._group
            )
        else:
            future = Future()
            try:
                future.set_result(self._write(tensors, state, resolved, prune, None))
            except SaveFailed as error:
                future.set_exception(error)
        self._pending = future, best, started
        self._events.append({"step": state.step, "blocked_ms": 1e3 * (time.perf_counter() - started)})
        if wait or not self.config.async_checkpoint:
            self._finish(must_succeed=wait)

    def rate(self, step: int, val_loss: float | None) -> None:
        """A loss that was evaluated when the checkpoint of `step` was there already. The next one records
        it."""
        self.best = self._best_with(step, val_loss)

    def finish(self) -> None:
        """Waits for the save that is underway; what becomes of it is among the events."""
        self._finish()

    def when_written(self, then: Callable[[], object]) -> None:
        """Calls it when no save is underway any more, which may be now."""
        if self._pending is None:
            then()
        else:
            self._pending[0].add_done_callback(lambda _: then())

    def events(self) -> list[dict[str, Any]]:
        """What became of the saves since the last call: {"step", "blocked_ms", "saved_ms", "path" or
        "failed"} each."""
        if self._pending is not None and self._pending[0].done():
            self._finish()
        n_done = len(self._events) - (self._pending is not None)
        done, self._events = self._events[:n_done], self._events[n_done:]
        return done

    def _finish(self, must_succeed: bool = False) -> None:
        if self._pending is None:
            return
        (future, best, started), self._pending = self._pending, None
        event = self._events[-1]
        try:
            event["path"] = str(future.result())
            self.best = best
        except SaveFailed as error:
            event["failed"] = str(error)
            if must_succeed:
                raise
        event["saved_ms"] = 1e3 * (time.perf_counter() - started)

    def _best_with(self, step: int, val_loss: float | None) -> Mapping[str, Any] | None:
        better = (
            val_loss is not None
            and math.isfinite(val_loss)
            and (self.best is None or val_loss < self.best["val_loss"])
        )
        return {"step": step, "val_loss": val_loss} if better else self.best

    def _write(
        self,
        tensors: dict[str, Tensor],
        state: RunState,
        resolved: Mapping[str, Any],
        prune: bool,
        group: Any,
    ) -> Path:
        path = save_checkpoint(self.out_dir, tensors, state, resolved, self.world, group)
        if prune and self.world.rank == 0 and not self.config.always_save_checkpoint:
            keep_steps = self.stay | {state.step, *([state.best["step"]] if state.best else [])}
            prune_checkpoints(self.out_dir, self.config.keep_last, keep_steps)
        return path


def check_space(out_dir: Path, n_bytes: int, keep_last: int) -> str | None:
    """Raises InputError where not even one more checkpoint of n_bytes fits on the disk; a note where the
    kept ones may not."""
    folder = next(p for p in (out_dir, *out_dir.absolute().parents) if p.exists())
    free = shutil.disk_usage(folder).free
    cut_off = leftovers(
        out_dir / "checkpoints"
    )  # a save that died may have filled the disk; the next one removes it
    free += sum(bytes_in(partial) for partial in cut_off)
    if free < n_bytes:
        raise InputError(
            f"{folder} has {free / 1e9:.1f} GB free, one checkpoint takes {n_bytes / 1e9:.1f} GB: make room"
        )
    missing = keep_last + 2 - len(list_checkpoints(out_dir))  # the best one, and the one being written
    if free < missing * n_bytes:
        return f"{folder} has {free / 1e9:.1f} GB free; {missing} more checkpoints take {missing * n_bytes / 1e9:.1f} GB"
    return None


def bytes_in(folder: Path) -> int:
    """Of the files in it; 0 for what cannot be looked at, or goes while it is."""
    try:
        return sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(folder))
    except OSError:
        return 0


def check_unchanged(out_dir: str | Path, source: Path | None, source_step: int) -> None:
    """Raises InputError where `source`, None for a run that found no checkpoint, is no longer the newest: a
    run that ended since it was chosen may have written there."""
    there = list_checkpoints(out_dir)
    newer = [path for step, path in there if source is None or step > source_step]
    if newer or (source is not None and source not in dict(there).values()):
        what = f"{newer[-1]} is new" if newer else f"{source} is gone"
        raise InputError(f"{out_dir} was changed by another run meanwhile ({what}): repeat the command")


def prune_checkpoints(out_dir: str | Path, keep_last: int, keep_steps: Collection[int | None]) -> None:
    """Removes all but the newest `keep_last` and those of `keep_steps`. What cannot be removed, as while
    someone reads it over NFS, costs a warning; the next save tries again."""
    for step, path in list_checkpoints(out_dir)[:-keep_last]:
        if step not in keep_steps:
            doomed = path.with_name(f"partial_{path.name}")  # first out of sight, then away
            try:
                path.rename(doomed)
                shutil.rmtree(doomed)
            except OSError as error:
                log.warning(f"{path} is no longer needed and could not be removed: {error}")


def set_aside_run(out_dir: str | Path, files: Collection[Path] = ()) -> Path | None:
    """Makes room for a run from scratch without losing the run before: its checkpoints, where there are
    any, move to checkpoints_before_N, and these files of the run folder, its tokenizer's, into that."""
    old = Path(out_dir) / "checkpoints"
    if not list_checkpoints(out_dir):
        return None
    n = 1
    while (aside := old.with_name(f"checkpoints_before_{n}")).exists():
        n += 1
    old.rename(aside)
    for file in files:
        place = aside / file.relative_to(out_dir)
        place.parent.mkdir(exist_ok=True)
        file.rename(place)
    return aside


def set_aside_damaged(out_dir: str | Path, source_step: int) -> list[Path]:
    """The checkpoints beyond the one that a run resumed from, which it has passed over, become
    damaged_step_N: they must not count among the newest, in whose favour others are removed. Where they are
    now. What can be read by now stays."""
    moved = []
    for step, path in list_checkpoints(out_dir):
        if step > source_step and find_problem(path) is not None:
            aside = path.with_name(f"damaged_{path.name}")
            if aside.exists():  # of an earlier time
                aside = path.with_name(f"{aside.name}_{time.time_ns()}")
            moved.append(path.rename(aside))
    return moved
