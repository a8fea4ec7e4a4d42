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

import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import HuggingFaceStorageReader

from base.errors import InputError
from base.files import describe, entry, read_json
from training.optim import allocate_state, optimizer_tensors
from training.state import RunState, read_config
from training.world import World

log = logging.getLogger("nanofoundry")
warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized", UserWarning)


def checkpoint_path(out_dir: str | Path, step: int) -> Path:
    return Path(out_dir) / "checkpoints" / f"step_{step:08d}"


def list_checkpoints(out_dir: str | Path) -> list[tuple[int, Path]]:
    """(step, folder) of what is there, oldest first; nothing is opened."""
    folders = (Path(out_dir) / "checkpoints").glob("step_*")
    return sorted((int(f.name[5:]), f) for f in folders if f.is_dir() and f.name[5:].isdigit())


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
    are compared before anything else is parsed, and a file that the manifest does not list is not trusted
    to be harmless."""
    try:
        manifest = read_manifest(path)
        for name, recorded in list(manifest.items())[world.rank :: world.size]:
            found = describe(path / name)
            for what in ("bytes", "sha256"):
                if found[what] != recorded[what]:
                    return f"{path / name} has {what} {found[what]}, its manifest says {recorded[what]}"
        for file in path.iterdir():
            if (
                file.name not in manifest
                and file.name != "manifest.json"
                and not file.name.startswith(IGNORED)
            ):
                return f"{file} is not listed in its manifest: move it away"
        return None
    except InputError as error:
        return str(error)
    except (OSError, ValueError) as error:  # a ValueError: a name that no file can have
        return f"{path}: {type(error).__name__}: {error}"


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
