"""Save, verify, resume, keep.

A checkpoint is a folder `out_dir/checkpoints/step_00000100/` of safetensors and JSON:

    model.safetensors      every parameter once, by name, as trained (fp32)
    optimizer.safetensors  every tensor of optimizer state, as NAME/KEY
    state.json             step, tokens, losses, gradient scaler, what the data was
    config.json            the resolved configuration
    manifest.json          size and sha256 of the files above; written last

Of N processes each writes what it holds, as model_00000-of-0000N.safetensors and so on, with the place of
every piece in its tensor in the header. torch.distributed.checkpoint plans who writes what, and which
pieces a process has to read: any number of processes under any strategy reads what any other has written.
No pickle is involved; what torch calls a storage writer is here, so that every byte has a digest before it
has a name.

The folder appears under its name by one rename, after everything in it has reached the disk. The order of
batches, dropout and initial weights are functions of (seed, step), so no generator state needs saving."""

import hashlib
import json
import logging
import math
import os
import shutil
import time
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.distributed.tensor import DTensor

from base.errors import InputError
from training.config import TrainConfig
from training.optim import allocate_state, optimizer_tensors
from training.world import World

log = logging.getLogger("nanofoundry")
warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)


def checkpoint_path(out_dir: str | Path, step: int) -> Path:
    return Path(out_dir) / "checkpoints" / f"step_{step:08d}"


def list_checkpoints(out_dir: str | Path) -> list[tuple[int, Path]]:
    """(step, folder) of what is there, oldest first; nothing is opened."""
    folders = (Path(out_dir) / "checkpoints").glob("step_*")
    return sorted((int(f.name[5:]), f) for f in folders if f.is_dir() and f.name[5:].isdigit())


class Checkpoints:
    """Writes the checkpoints of a run, one at a time, and removes those that are no longer to be kept.
    Every rank calls every method, at the same points of its work."""

    def __init__(
        self,
        out_dir: Path,
        world: World,
        config: TrainConfig,
        best: Mapping[str, Any] | None,
        source_step: int | None,
    ) -> None:
        self.out_dir, self.world, self.config = out_dir, world, config
        self.best = best  # {"step", "val_loss"} of the best that is saved
        self.source_step = source_step  # what the run went on from
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
        state: Mapping[str, Any],
        resolved: Mapping[str, Any],
        wait: bool,
        prune: bool = True,
    ) -> None:
        """Writes the checkpoint of state["step"], or begins to. What comes of it is among the events; with
        `wait` it is on the disk when this returns. Without `prune` none is removed for it. Raises
        SaveFailed with `wait` only: an earlier one may be made good by the next."""
        self._finish()
        best = self._best_with(state["step"], state["val_loss"])
        state = {**state, "best": best}
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
        self._events.append({"step": state["step"], "blocked_ms": 1e3 * (time.perf_counter() - started)})
        if wait or not self.config.async_checkpoint:
            self._finish(must_succeed=wait)

    def rate(self, step: int, val_loss: float | None) -> None:
        """A loss that was evaluated when the checkpoint of `step` was there already. The next one records
        it."""
        self.best = self._best_with(step, val_loss)

    def finish(self) -> None:
        """Waits for the save that is underway; what becomes of it is among the events."""
        self._finish()

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
        state: Mapping[str, Any],
        resolved: Mapping[str, Any],
        prune: bool,
        group: Any,
    ) -> Path:
        path = save_checkpoint(self.out_dir, tensors, state, resolved, self.world, group)
        if prune and self.world.rank == 0 and not self.config.always_save_checkpoint:
            keep_steps = {state["step"], self.source_step, state["best"]["step"] if state["best"] else None}
            prune_checkpoints(self.out_dir, self.config.keep_last, keep_steps)
        return path


def own_share(tensors: dict[str, Tensor], world: World) -> dict[str, Tensor]:
    """What this rank saves: its shards, and of the tensors that every rank has whole, those that fall to
    it, by size. Without this each rank of DDP would copy everything for an asynchronous save."""
    whole = [name for name, t in tensors.items() if not isinstance(t, DTensor)]
    load, others = [0] * world.size, set()
    for name in sorted(whole, key=lambda name: -tensors[name].nbytes):
        rank = load.index(min(load))
        load[rank] += tensors[name].nbytes
        if rank != world.rank:
            others.add(name)
    return {name: t for name, t in tensors.items() if name not in others}


def save_checkpoint(
    out_dir: str | Path,
    tensors: dict[str, Tensor],
    state: Mapping[str, Any],
    config: Mapping[str, Any],
    world: World = World(),  # noqa: B008  immutable
    group: torch.distributed.ProcessGroup | None = None,
) -> Path:
    """Writes the checkpoint of state["step"]. A crash leaves the old ones and a folder that no reader looks
    at. Raises SaveFailed, on every rank, where one of them cannot write."""
    writer = Writer(
        checkpoint_path(out_dir, state["step"]), world, {"state.json": state, "config.json": config}
    )
    try:
        dcp.save(tensors, storage_writer=writer, process_group=group, no_dist=world.size == 1)
    except CheckpointException as error:  # the same on every rank
        failures = [(rank, cause) for rank, (cause, _) in error.failures.items()]
        rank, cause = next(((r, c) for r, c in failures if not isinstance(c, OSError)), failures[0])
        if not isinstance(cause, OSError):
            raise RuntimeError(f"saving {writer.path} failed on rank {rank}: {cause}") from cause
        if world.rank == 0:
            shutil.rmtree(writer.partial, ignore_errors=True)  # a full disk may have room for the log again
        raise SaveFailed(f"{writer.path} could not be written by rank {rank}: {cause}") from None
    return writer.path


class SaveFailed(OSError):
    """A checkpoint could not be written; those before it are untouched."""


class Writer(StorageWriter):
    """Where torch.distributed.checkpoint puts what it has planned: each rank its pieces, then rank 0 the
    JSON and the name."""

    def __init__(self, path: Path, world: World, documents: Mapping[str, Mapping[str, Any]]) -> None:
        self.path, self.partial = path, path.with_name(f"partial_{path.name}")
        self.world, self.documents = world, documents

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if is_coordinator:
            for folder in leftovers(self.path.parent):
                shutil.rmtree(folder, ignore_errors=True)
            self.partial.mkdir(parents=True)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> torch.futures.Future[list[WriteResult]]:
        results = []
        for kind in ("model", "optimizer"):
            items = [
                i
                for i in plan.items
                if i.tensor_data.chunk.sizes.numel() and ("/" in i.index.fqn) == (kind == "optimizer")
            ]
            one_of_many = f"_{self.world.rank:05d}-of-{self.world.size:05d}" if self.world.size > 1 else ""
            name = f"{kind}{one_of_many}.safetensors"
            if items:
                record = write_safetensors(self.partial / name, items, planner)
                results.append(WriteResult(MetadataIndex(name), record["bytes"], record))
        done: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        manifest = {result.index.fqn: result.storage_data for of_rank in results for result in of_rank}
        for name, content in self.documents.items():
            manifest[name] = write_json(self.partial / name, content)
        write_json(self.partial / "manifest.json", dict(sorted(manifest.items())))
        fsync(self.partial)
        damaged = self.path.with_name(f"partial_old_{self.path.name}")
        if self.path.exists():  # the same step again, after a damaged copy was passed over
            shutil.rmtree(damaged, ignore_errors=True)
            self.path.rename(damaged)
        self.partial.rename(self.path)
        fsync(self.path.parent)
        shutil.rmtree(damaged, ignore_errors=True)

    def reset(self, checkpoint_id: str | os.PathLike | None = None) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike) -> bool:
        return False


DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.float64: "F64"}


def write_safetensors(file: Path, items: list[WriteItem], planner: SavePlanner) -> dict[str, Any]:
    """Size and digest of the file, which is on the disk when this returns. Its tensors go through the CPU's
    memory one by one, and their digest is taken on the way. The header is that of
    HuggingFaceStorageWriter."""
    header: dict[str, Any] = {}
    offsets = {i.index.fqn: {"saved_offsets": list(i.tensor_data.chunk.offsets)} for i in items}
    header["__metadata__"] = {"format": "pt", "DCP_SHARDING_INFO": json.dumps(offsets)}
    end = 0
    for item in items:
        chunk, dtype = item.tensor_data.chunk, item.tensor_data.properties.dtype
        begin, end = end, end + chunk.sizes.numel() * dtype.itemsize
        header[item.index.fqn] = {
            "dtype": DTYPES[dtype],
            "shape": list(chunk.sizes),
            "data_offsets": [begin, end],
        }
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)

    def parts() -> Iterator[memoryview | bytes]:
        yield len(head).to_bytes(8, "little") + head
        for item in items:
            tensor = planner.resolve_data(item).detach().cpu().contiguous()
            yield memoryview(tensor.flatten().view(torch.uint8).numpy())

    return write_durably(file, parts())


def write_durably(file: Path, parts: Iterable[memoryview | bytes]) -> dict[str, Any]:
    n_bytes, digest = 0, hashlib.sha256()
    with open(file, "wb") as f:
        for part in parts:
            f.write(part)
            digest.update(part)
            n_bytes += len(part)
        f.flush()
        os.fsync(f.fileno())
    return {"bytes": n_bytes, "sha256": digest.hexdigest()}


def write_json(file: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    return write_durably(file, [json.dumps(content, indent=2).encode() + b"\n"])


def check_space(out_dir: Path, n_bytes: int, keep_last: int) -> str | None:
    """Raises InputError where not even one more checkpoint of n_bytes fits on the disk; a note where the
    kept ones may not."""
    folder = next(p for p in (out_dir, *out_dir.absolute().parents) if p.exists())
    free = shutil.disk_usage(folder).free
    cut_off = leftovers(
        out_dir / "checkpoints"
    )  # a save that died may have filled the disk; the next one removes it
    free += sum(file.stat().st_size for partial in cut_off for file in partial.iterdir())
    if free < n_bytes:
        raise InputError(
            f"{folder} has {free / 1e9:.1f} GB free, one checkpoint takes {n_bytes / 1e9:.1f} GB: make room"
        )
    missing = keep_last + 2 - len(list_checkpoints(out_dir))  # the best one, and the one being written
    if free < missing * n_bytes:
        return f"{folder} has {free / 1e9:.1f} GB free; {missing} more checkpoints take {missing * n_bytes / 1e9:.1f} GB"
    return None


def find_checkpoint(out_dir: str | Path, step: int | None = None, world: World = World()) -> Path | None:  # noqa: B008
    """The newest checkpoint that verifies, or None where there is none at all. Damaged ones are passed over
    with a warning. Raises InputError where `step` was asked for and is not there or is damaged, and where
    all are damaged. Each rank takes the digests of a part of the files."""
    there = list_checkpoints(out_dir)
    # What rank 0 sees: a network file system may show another node an older list, and ranks that look at
    # different checkpoints would wait for each other
    seen = json.loads(world.first(json.dumps([(s, path.name) for s, path in there])))
    there = [(s, Path(out_dir) / "checkpoints" / name) for s, name in seen]
    if step is not None and step not in dict(there):
        steps = ", ".join(str(s) for s, _ in there) or "none"
        raise InputError(f"no checkpoint of step {step} in {out_dir}/checkpoints (there: {steps})")
    problem = None
    for at, path in reversed(there):
        if step not in (None, at):
            continue
        problem = world.first(find_damage(path, world))
        if problem is None:
            return path
        if step is None and world.rank == 0:
            log.warning(f"passing over the damaged checkpoint {path}: {problem}")
    if problem:
        raise InputError(
            f"no intact checkpoint in {out_dir}/checkpoints: {problem}; restore one or use --init_from=scratch"
        )
    return None


def find_damage(path: Path, world: World = World()) -> str | None:  # noqa: B008
    """What is wrong with a checkpoint's files, or with this rank's part of them; None if nothing. Digests
    are compared before anything is parsed, and a file that the manifest does not list is not trusted to be
    harmless."""
    try:
        manifest = load_manifest(path)
    except (OSError, ValueError) as error:
        return f"{path / 'manifest.json'}: {type(error).__name__}: {error}"
    try:
        for name, recorded in list(manifest.items())[world.rank :: world.size]:
            found = describe(path / name)
            for what in ("bytes", "sha256"):
                if found[what] != recorded[what]:
                    return f"{path / name} has {what} {found[what]}, its manifest says {recorded[what]}"
        for name in ("state.json", "config.json", "model"):
            if not any(listed.startswith(name) for listed in manifest):
                return f"{path}/manifest.json lists no {name}"
        for file in path.iterdir():
            if (
                file.name not in manifest
                and file.name != "manifest.json"
                and not file.name.startswith((".nfs", ".DS_Store"))
            ):
                return f"{file} is not listed in its manifest: move it away"
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{path}: {type(error).__name__}: {error}"


def load_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """{file: {"bytes", "sha256"}}"""
    return json.loads((path / "manifest.json").read_text())


def load_state(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(state, config) of a checkpoint."""
    return json.loads((path / "state.json").read_text()), json.loads((path / "config.json").read_text())


# What may change between a checkpoint and the run that goes on from it: neither a weight's shape nor the
# order of the data.
FREE_MODEL_FIELDS = ("attention_backend", "dropout", "init_std", "loss_backend", "z_loss")


def differing_fields(old: Mapping[str, Any], new: Mapping[str, Any], free: Collection[str] = ()) -> str:
    return ", ".join(
        f"{k}={old.get(k)!r} there, {new[k]!r} here" for k in new if k not in free and old.get(k) != new[k]
    )


def check_resumable(
    path: Path,
    state: Mapping[str, Any],
    saved: Mapping[str, Any],
    resolved: Mapping[str, Any],
    fingerprint: str,
) -> None:
    """Raises InputError, naming each difference, where the checkpoint belongs to another model or another
    order of data. `saved` and `resolved` are {"model": fields, "train": fields}."""

    def essence(config: Mapping[str, Any], data_fingerprint: str) -> dict[str, Any]:
        train = config["train"]
        return config["model"] | {
            "seed": train["seed"],
            "batch_size * gradient_accumulation_steps": train["batch_size"]
            * train["gradient_accumulation_steps"],
            "optimizer": train["optimizer"],
            "data fingerprint": data_fingerprint[:12],
        }

    if state["data"]["dataset"] is None:  # scripts/import_hf.py
        begin = f"--init_from={saved['train']['init_from']} and another --out_dir"
        raise InputError(
            f"{path} holds imported weights and belongs to no data: to train from them pass {begin}"
        )
    then, now = essence(saved, state["data"]["fingerprint"]), essence(resolved, fingerprint)
    if differences := differing_fields(then, now, FREE_MODEL_FIELDS):
        raise InputError(
            f"{path} cannot go on under this configuration: {differences}; "
            "use its settings, another --out_dir, or --init_from=scratch"
        )


def load_weights(path: Path, model: nn.Module) -> None:
    """Fills the model's parameters, be they whole or shards. Raises InputError for names or shapes that do
    not fit."""
    load_tensors(path, dict(model.named_parameters()), of_optimizer=False)


def load_optimizers(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """Fills the optimizers' state; their hyperparameters stay those of the present configuration."""
    if any("/" in name for name in HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata):
        allocate_state(optimizers)
        load_tensors(path, optimizer_tensors(model, optimizers), of_optimizer=True)


def load_tensors(path: Path, tensors: dict[str, Tensor], of_optimizer: bool) -> None:
    stored = HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    stored = {name: entry for name, entry in stored.items() if ("/" in name) == of_optimizer}
    if stored.keys() != tensors.keys():
        differing = ", ".join(sorted(stored.keys() ^ tensors.keys())[:3])
        what = "the state of another optimizer" if of_optimizer else "other parameters than this model's"
        raise InputError(f"{path} holds {what}: {differing}, …")
    for name, entry in stored.items():
        if entry.size != tensors[name].shape:
            raise InputError(
                f"{path}: {name} has shape {list(entry.size)}, the model {list(tensors[name].shape)}"
            )
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=alone)


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


def leftovers(checkpoints: Path) -> list[Path]:
    """Folders that were being written or removed when a process died; the next save removes them first."""
    return [folder for folder in checkpoints.glob("partial_*") if folder.is_dir()]


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
        file.rename(aside / file.name)
    return aside


def set_aside_damaged(out_dir: str | Path, source_step: int) -> list[Path]:
    """The checkpoints beyond the one that a run goes on from, which it has passed over, become
    damaged_step_N: they must not count among the newest, in whose favour others are removed. Where they are
    now. What can be read by now stays."""
    moved = []
    for step, path in list_checkpoints(out_dir):
        if step > source_step and find_damage(path) is not None:
            aside = path.with_name(f"damaged_{path.name}")
            if aside.exists():  # of an earlier time
                aside = path.with_name(f"{aside.name}_{time.time_ns()}")
            moved.append(path.rename(aside))
    return moved


def describe(file: Path) -> dict[str, Any]:
    with open(file, "rb") as f:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(f, "sha256").hexdigest()}


def fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
