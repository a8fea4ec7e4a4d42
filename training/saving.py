"""Writes a checkpoint: every process its pieces, then rank 0 the JSON and, by one rename, the name.

torch.distributed.checkpoint plans who writes what. What torch calls a storage writer is here, so that every
byte has a digest before it has a name. No pickle is involved."""

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.distributed.tensor import DTensor

from base.errors import InputError, MachineError
from base.files import fsync, json_bytes, write_durably
from base.locks import FolderLock, is_held
from training.checkpoint import checkpoint_path, find_problem, leftovers
from training.state import RunState
from training.world import World


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
    state: RunState,
    config: Mapping[str, Any],
    world: World = World(),  # noqa: B008  immutable
    group: torch.distributed.ProcessGroup | None = None,
    digest: Callable[[], Any] = hashlib.sha256,
) -> Path:
    """Writes the checkpoint of state.step; config is {"model": fields, "train": fields}. A crash leaves the
    old ones and a folder that no reader looks at. Raises SaveFailed, on every rank, where one of them
    cannot write."""
    writer = Writer(
        checkpoint_path(out_dir, state.step),
        world,
        {"state.json": state.to_json(), "config.json": config},
        digest,
    )
    try:
        dcp.save(tensors, storage_writer=writer, process_group=group, no_dist=world.size == 1)
    except CheckpointException as error:  # the same on every rank
        failures = [(rank, cause) for rank, (cause, _) in error.failures.items()]
        rank, cause = next(((r, c) for r, c in failures if not isinstance(c, OSError)), failures[0])
        if isinstance(cause, InputError):
            raise InputError(str(cause)) from None
        if not isinstance(cause, OSError):
            raise RuntimeError(f"saving {writer.path} failed on rank {rank}: {cause}") from cause
        if world.rank == 0:
            shutil.rmtree(writer.partial, ignore_errors=True)  # a full disk may have room for the log again
        raise SaveFailed(f"{writer.path} could not be written by rank {rank}: {cause}") from None
    finally:
        writer.close()
    return writer.path


class SaveFailed(MachineError):
    """A checkpoint could not be written; those before it are untouched."""


class Writer(StorageWriter):
    """Where torch.distributed.checkpoint puts what it has planned: each rank its pieces, then rank 0 the
    JSON and the name."""

    def __init__(
        self,
        path: Path,
        world: World,
        documents: Mapping[str, Mapping[str, Any]],
        digest: Callable[[], Any] = hashlib.sha256,
    ) -> None:
        self.path, self.partial = path, path.with_name(f"partial_{path.name}")
        self.world, self.documents, self.digest = world, documents, digest
        self.lock: FolderLock | None = None

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        if is_coordinator:
            self.partial.parent.mkdir(parents=True, exist_ok=True)
            if not is_held(self.path.parent.parent):  # by the run, which train.py opens before it saves
                self.lock = FolderLock(self.path.parent.parent, "run")
            self._check_replaceable()
            for folder in leftovers(self.path.parent):
                shutil.rmtree(folder, ignore_errors=True)
            self.partial.mkdir()

    def _check_replaceable(self) -> None:
        """Raises OSError where another run's intact checkpoint of this step is there."""
        if not self.path.exists() or self._is_own():
            return
        try:
            problem = find_problem(self.path)
        except InputError as error:  # it may be intact
            raise FileExistsError(str(error)) from None
        if problem is None:
            raise FileExistsError(f"{self.path} is of another run and intact: move it away")

    def _is_own(self) -> bool:
        with contextlib.suppress(InputError):
            return RunState.read(self.path).wandb_run_id == self.documents["state.json"]["wandb_run_id"]
        return False

    def close(self) -> None:
        """Lets go of the folder, if it was taken for this save alone."""
        if self.lock is not None:
            self.lock.release()

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
                record = write_safetensors(self.partial / name, items, planner, self.digest)
                results.append(WriteResult(MetadataIndex(name), record["bytes"], record))
        done: torch.futures.Future[list[WriteResult]] = torch.futures.Future()
        done.set_result(results)
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        manifest = {result.index.fqn: result.storage_data for of_rank in results for result in of_rank}
        for name, content in self.documents.items():
            manifest[name] = write_durably(self.partial / name, [json_bytes(content)])
        write_durably(self.partial / "manifest.json", [json_bytes(dict(sorted(manifest.items())))])
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


def write_safetensors(
    file: Path, items: list[WriteItem], planner: SavePlanner, digest: Callable[[], Any] = hashlib.sha256
) -> dict[str, Any]:
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

    return write_durably(file, parts(), digest)
