"""What a checkpoint is; verifying and reading one. training/saving.py writes it, training/keeping.py keeps
and removes.

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

import contextlib
import errno
import json
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from base.errors import InputError, MissingFile, one_line, reading
from base.fields import names
from base.files import entry, read_json, sha256_of, size_of
from model_config import ModelArchitectureConfig
from training.optim import allocate_state, optimizer_tensors
from training.sizes import model_on_meta
from training.state import RunState, read_config
from training.world import World

log = logging.getLogger("nanofoundry")
warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)


def checkpoint_path(out_dir: str | Path, step: int) -> Path:
    return Path(out_dir) / "checkpoints" / f"step_{step:08d}"


def list_checkpoints(out_dir: str | Path) -> list[tuple[int, Path]]:
    """(step, folder) of what is there, oldest first; nothing is opened. Raises InputError where that cannot
    be seen."""
    folder = Path(out_dir) / "checkpoints"
    try:
        with reading(folder), os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.is_dir()]
    except MissingFile:
        return []
    steps = {int(name[5:]): name for name in names if re.fullmatch(r"step_[0-9]{8,}", name)}
    return [(step, folder / name) for step, name in sorted(steps.items()) if name == f"step_{step:08d}"]


def _listing(out_dir: str | Path) -> str:
    """[(step, name), …] of list_checkpoints, or what is in its way, as JSON."""
    try:
        return json.dumps([(step, path.name) for step, path in list_checkpoints(out_dir)])
    except InputError as error:
        return json.dumps(str(error))


def find_checkpoint(out_dir: str | Path, step: int | None = None, world: World = World()) -> Path | None:  # noqa: B008
    """The newest checkpoint that verifies, or None where there is none at all. Damaged ones are passed over
    with a warning. Raises InputError where `step` was asked for and is not there or is damaged, where all
    are damaged, and where one cannot be read. Each rank takes the digests of a part of the files."""
    # What rank 0 sees: a network file system may show another node an older list, and ranks that look at
    # different checkpoints would wait for each other
    seen = json.loads(world.first(_listing(out_dir)))
    if isinstance(seen, str):
        raise InputError(seen)
    there = [(s, Path(out_dir) / "checkpoints" / name) for s, name in seen]
    if step is not None and step not in dict(there):
        steps = ", ".join(str(s) for s, _ in there) or "none"
        raise InputError(f"no checkpoint of step {step} in {out_dir}/checkpoints (there: {steps})")
    problem = None
    for at, path in reversed(there):
        if step not in (None, at):
            continue
        problem = find_problem(path, world)
        if problem is None:
            return path
        if step is None and world.rank == 0:
            log.warning(f"passing over the damaged checkpoint {path}: {problem}")
    if problem:
        raise InputError(
            f"no intact checkpoint in {out_dir}/checkpoints: {problem}; restore one or use --init_from=scratch"
        )
    return None


def find_problem(path: Path, world: World = World()) -> str | None:  # noqa: B008
    """What is wrong with a checkpoint, the same on every rank; None if nothing. Raises InputError where that
    cannot be seen now."""
    own = None
    try:
        problem = find_damage(path, world) or (find_contradiction(path) if world.rank == 0 else None)
        own = problem and json.dumps({"problem": problem})
    except InputError as error:
        own = json.dumps({"unreadable": str(error)})
    found = json.loads(world.first(own) or "{}")
    if "unreadable" in found:
        raise InputError(found["unreadable"])
    return found.get("problem")


def find_damage(path: Path, world: World = World()) -> str | None:  # noqa: B008
    """What is wrong with a checkpoint's files, or with this rank's part of them; None if nothing. Digests
    are compared before anything else is parsed, and a file that the manifest does not list is not trusted
    to be harmless. Raises InputError for a file that is there and cannot be read now."""
    with damage() as found:
        manifest = read_manifest(path)
        for name, recorded in list(manifest.items())[world.rank :: world.size]:
            for what, of in (("bytes", size_of), ("sha256", sha256_of)):
                if (value := of(path / name)) != recorded[what]:
                    return f"{path / name} has {what} {value}, its manifest says {recorded[what]}"
        for file in path.iterdir():
            if (
                file.name not in manifest
                and file.name != "manifest.json"
                and not file.name.startswith(IGNORED)
            ):
                return f"{file} is not listed in its manifest: move it away"
    return found[0] if found else None


def find_contradiction(path: Path) -> str | None:
    """Where the files of a checkpoint, each of them whole, do not belong together; None if they do. Raises
    InputError for a file that is there and cannot be read now."""
    with damage() as found:
        state, config = RunState.read(path), read_json(path / "config.json")
        config = read_config(path) if config else {"model": {}}
        if path.name != f"step_{state.step:08d}":
            return f"{path / 'state.json'} is that of step {state.step}"
        stored = stored_tensors(path)
        for name, tensor in stored.items():
            if tensor.properties.dtype != torch.float32:
                return f"{path}: {name} is of {str(tensor.properties.dtype)[6:]}, not float32"
            if sum(chunk.sizes.numel() for chunk in tensor.chunks) != tensor.size.numel():
                return f"{path}: {name} is there in part"
        weights = {name: list(t.size) for name, t in stored.items() if "/" not in name}
        moments = {name: list(t.size) for name, t in stored.items() if "/" in name}
        if config["model"] and not config["model"].keys() - names(ModelArchitectureConfig):
            model = model_on_meta(ModelArchitectureConfig(**config["model"]))
            of_model = {name: list(p.shape) for name, p in model.named_parameters()}
            if weights != of_model:
                name = next(n for n in weights.keys() | of_model if weights.get(n) != of_model.get(n))
                there, wanted = weights.get(name, "missing"), of_model.get(name, "none")
                return f"{path}: the shape of {name} is {there}, its configuration says {wanted}"
        if state.has_data and state.step > 0 and {n.partition("/")[0] for n in moments} != weights.keys():
            return f"{path} lacks optimizer state"
        for name, shape in moments.items():
            if shape not in ([], weights.get(name.partition("/")[0])):
                return f"{path}: {name} has shape {shape}, which is not that of its weight"
    return found[0] if found else None


DAMAGE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL, errno.EIO)


@contextlib.contextmanager
def damage() -> Iterator[list[str]]:
    """Around the reading of a checkpoint: what is wrong with it is put into the list. An InputError is let
    through, and made, where the operating system refuses what may be good: permissions, too many files."""
    found: list[str] = []
    try:
        yield found
    except (InputError, OSError, ValueError) as error:  # a ValueError: a name that no file can have
        cause = error.__cause__ if isinstance(error, InputError) else error
        if isinstance(cause, OSError) and cause.errno not in DAMAGE:
            raise InputError(
                f"{one_line(error)}; it may be intact, so nothing older is taken in its place"
            ) from error
        found.append(str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}")


IGNORED = (".nfs", ".DS_Store")  # that file systems and desktops leave behind


def read_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """{file: {"bytes", "sha256"}}. Raises InputError where it is anything else, or lacks a part of a
    checkpoint."""
    file = path / "manifest.json"
    manifest = read_json(file, "restore the checkpoint")
    for name, recorded in manifest.items():
        for key, kind in (("bytes", int), ("sha256", str)):
            entry(recorded, key, kind, f"{file}: {name!r}", "restore the checkpoint")
        if Path(name).name != name:
            raise InputError(f"{file} names {name!r}, which is a path: restore the checkpoint")
    for part in ("state.json", "config.json", "model"):
        if not any(name.startswith(part) for name in manifest):
            raise InputError(f"{file} lists no {part}: restore the checkpoint")
    return manifest


def load_state(path: Path) -> tuple[RunState, dict[str, dict[str, Any]]]:
    """(state, configuration) of a checkpoint, the latter as {"model": fields, "train": fields}. Raises
    InputError."""
    return RunState.read(path), read_config(path)


def load_weights(path: Path, model: nn.Module) -> None:
    """Fills the model's parameters, be they whole or shards. Raises InputError for names or shapes that do
    not fit."""
    load_tensors(path, dict(model.named_parameters()), of_optimizer=False)


def load_optimizers(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """Fills the optimizers' state; their hyperparameters stay those of the present configuration."""
    if any("/" in name for name in stored_tensors(path)):
        allocate_state(optimizers)
        load_tensors(path, optimizer_tensors(model, optimizers), of_optimizer=True)


def stored_tensors(path: Path) -> dict[str, TensorStorageMetadata]:
    """What a checkpoint holds, by name: type, size and pieces. Raises InputError for what is not of its
    format."""
    try:
        return HuggingFaceStorageReader(str(path)).read_metadata().state_dict_metadata
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise InputError(
            f"{path} holds tensors of another format ({type(error).__name__}: {one_line(error)}): restore it"
        ) from None


def load_tensors(path: Path, tensors: dict[str, Tensor], of_optimizer: bool) -> None:
    stored = {name: kept for name, kept in stored_tensors(path).items() if ("/" in name) == of_optimizer}
    if stored.keys() != tensors.keys():
        differing = ", ".join(sorted(stored.keys() ^ tensors.keys())[:3])
        what = "the state of another optimizer" if of_optimizer else "other parameters than this model's"
        raise InputError(f"{path} holds {what}: {differing}, …")
    for name, kept in stored.items():
        if kept.size != tensors[name].shape:
            raise InputError(
                f"{path}: {name} has shape {list(kept.size)}, the model {list(tensors[name].shape)}"
            )
    alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())
    dcp.load(tensors, storage_reader=HuggingFaceStorageReader(str(path)), no_dist=alone)


def leftovers(checkpoints: Path) -> list[Path]:
    """Folders that were being written or removed when a process died; the next save removes them first."""
    return [folder for folder in checkpoints.glob("partial_*") if folder.is_dir()]
