"""Save, verify, resume, keep.

A checkpoint is a folder `out_dir/checkpoints/step_00000100/` of safetensors and JSON:

    model.safetensors      every parameter once, by name, as trained (fp32)
    optimizer.safetensors  every tensor of optimizer state, as NAME/KEY
    state.json             step, tokens, losses, gradient scaler, what the data was
    config.json            the resolved configuration
    manifest.json          size and sha256 of the files above; written last

It appears under its name by one rename, after everything in it has reached the disk. The order of batches, dropout and
initial weights are functions of (seed, step), so no generator state needs saving.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

log = logging.getLogger("nanofoundry")


def checkpoint_path(out_dir: str | Path, step: int) -> Path:
    return Path(out_dir) / "checkpoints" / f"step_{step:08d}"


def list_checkpoints(out_dir: str | Path) -> list[tuple[int, Path]]:
    """(step, folder) of what is there, oldest first; nothing is opened."""
    folders = (Path(out_dir) / "checkpoints").glob("step_*")
    return sorted((int(f.name[5:]), f) for f in folders if f.is_dir() and f.name[5:].isdigit())


def save_checkpoint(
    out_dir: str | Path,
    model: nn.Module,
    optimizers: list[torch.optim.Optimizer],
    state: Mapping[str, Any],
    config: Mapping[str, Any],
) -> Path:
    """Writes the checkpoint of state["step"]; a crash leaves the old ones and a folder that no reader looks at."""
    path = checkpoint_path(out_dir, state["step"])
    partial = path.with_name(f"partial_{path.name}")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: p.detach().contiguous() for name, p in model.named_parameters()}, partial / "model.safetensors")
    save_file(optimizer_tensors(model, optimizers), partial / "optimizer.safetensors")
    write_json(partial / "state.json", state)
    write_json(partial / "config.json", config)
    write_json(partial / "manifest.json", {f.name: describe(f) for f in sorted(partial.iterdir())})
    for file in partial.iterdir():
        fsync(file)
    fsync(partial)
    if path.exists():  # the same step again, after a damaged copy was passed over
        shutil.rmtree(path)
    partial.rename(path)
    fsync(path.parent)
    return path


def find_checkpoint(out_dir: str | Path, step: int | None = None) -> Path | None:
    """The newest checkpoint that verifies, or None where there is none at all. Damaged ones are passed over with a warning.
    Raises ValueError where `step` was asked for and is not there or is damaged, and where all are damaged."""
    there = list_checkpoints(out_dir)
    if step is not None and step not in dict(there):
        steps = ", ".join(str(s) for s, _ in there) or "none"
        raise ValueError(f"no checkpoint of step {step} in {out_dir}/checkpoints (there: {steps})")
    problem = None
    for at, path in reversed(there):
        if step not in (None, at):
            continue
        problem = find_damage(path)
        if problem is None:
            return path
        if step is None:
            log.warning(f"passing over the damaged checkpoint {path}: {problem}")
    if problem:
        raise ValueError(f"no intact checkpoint in {out_dir}/checkpoints: {problem}; restore one or use --init_from=scratch")
    return None


def find_damage(path: Path) -> str | None:
    """What is wrong with a checkpoint's files, or None. Digests are compared before anything is parsed."""
    try:
        manifest = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        return f"{path / 'manifest.json'}: {type(error).__name__}: {error}"
    try:
        for name, recorded in manifest.items():
            found = describe(path / name)
            for what in ("bytes", "sha256"):
                if found[what] != recorded[what]:
                    return f"{path / name} has {what} {found[what]}, its manifest says {recorded[what]}"
        missing = {"model.safetensors", "state.json", "config.json"} - set(manifest)
        return f"{path}/manifest.json does not list {', '.join(sorted(missing))}" if missing else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{path}: {type(error).__name__}: {error}"


def load_state(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(state, config) of a checkpoint."""
    return json.loads((path / "state.json").read_text()), json.loads((path / "config.json").read_text())


# What may change between a checkpoint and the run that goes on from it: neither a weight's shape nor the order of the data.
FREE_MODEL_FIELDS = ("attention_backend", "dropout", "init_std", "loss_backend", "z_loss")


def differing_fields(old: Mapping[str, Any], new: Mapping[str, Any], free: Collection[str] = ()) -> str:
    return ", ".join(f"{k}={old.get(k)!r} there, {new[k]!r} here" for k in new if k not in free and old.get(k) != new[k])


def check_resumable(
    path: Path, state: Mapping[str, Any], saved: Mapping[str, Any], resolved: Mapping[str, Any], fingerprint: str
) -> None:
    """Raises ValueError, naming each difference, where the checkpoint belongs to another model or another order of data.
    `saved` and `resolved` are {"model": fields, "train": fields}."""

    def essence(config: Mapping[str, Any], data_fingerprint: str) -> dict[str, Any]:
        train = config["train"]
        return config["model"] | {
            "seed": train["seed"],
            "batch_size * gradient_accumulation_steps": train["batch_size"] * train["gradient_accumulation_steps"],
            "optimizer": train["optimizer"],
            "data fingerprint": data_fingerprint[:12],
        }

    then, now = essence(saved, state["data"]["fingerprint"]), essence(resolved, fingerprint)
    if differences := differing_fields(then, now, FREE_MODEL_FIELDS):
        raise ValueError(
            f"{path} cannot go on under this configuration: {differences}; "
            "use its settings, another --out_dir, or --init_from=scratch"
        )


def load_weights(path: Path, model: nn.Module) -> None:
    """Fills the model's parameters. Raises ValueError for names or shapes that do not fit."""
    tensors = read_tensors(path / "model.safetensors")
    params = dict(model.named_parameters())
    if tensors.keys() != params.keys():
        differing = ", ".join(sorted(tensors.keys() ^ params.keys())[:3])
        raise ValueError(f"{path}/model.safetensors holds other parameters than this model: {differing}, …")
    with torch.no_grad():
        for name, p in params.items():
            if tensors[name].shape != p.shape:
                raise ValueError(f"{path}: {name} has shape {list(tensors[name].shape)}, the model {list(p.shape)}")
            p.copy_(tensors[name])


STATE_KEYS = {torch.optim.AdamW: {"step", "exp_avg", "exp_avg_sq"}, torch.optim.Muon: {"momentum_buffer"}}


def load_optimizers(path: Path, model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> None:
    """Fills the optimizers' state; their hyperparameters stay those of the present configuration."""
    tensors = read_tensors(path / "optimizer.safetensors")
    for optimizer, names in zip(optimizers, parameter_names(model, optimizers), strict=True):
        fresh = optimizer.state_dict()
        fresh["state"] = {index: {} for index in range(len(names))}
        for index, name in enumerate(names):
            prefix = name + "/"
            fresh["state"][index] = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
        if tensors and any(state.keys() != STATE_KEYS[type(optimizer)] for state in fresh["state"].values()):
            raise ValueError(f"{path}/optimizer.safetensors was written by another optimizer: use the one of the checkpoint")
        optimizer.load_state_dict(fresh)


def optimizer_tensors(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> dict[str, torch.Tensor]:
    tensors = {}
    for optimizer, names in zip(optimizers, parameter_names(model, optimizers), strict=True):
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{names[index]}/{key}": value.contiguous() for key, value in state.items()}
    return tensors


def parameter_names(model: nn.Module, optimizers: list[torch.optim.Optimizer]) -> list[list[str]]:
    """For each optimizer the names of its parameters, in the order in which its state_dict numbers them."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [[names[id(p)] for group in optimizer.param_groups for p in group["params"]] for optimizer in optimizers]


def prune_checkpoints(out_dir: str | Path, keep_last: int, keep_steps: set[int]) -> None:
    """Removes all but the newest `keep_last` and those of `keep_steps`."""
    for step, path in list_checkpoints(out_dir)[:-keep_last]:
        if step not in keep_steps:
            doomed = path.with_name(f"partial_{path.name}")  # first out of sight, then away
            path.rename(doomed)
            shutil.rmtree(doomed)


def set_aside_checkpoints(out_dir: str | Path) -> Path | None:
    """Makes room for a run from scratch without losing the run before: its checkpoints move to checkpoints_before_N."""
    old = Path(out_dir) / "checkpoints"
    if not list_checkpoints(out_dir):
        return None
    n = 1
    while (aside := old.with_name(f"checkpoints_before_{n}")).exists():
        n += 1
    old.rename(aside)
    return aside


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    try:
        return load_file(file)
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged: {error}") from error


def write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")


def describe(file: Path) -> dict[str, Any]:
    with open(file, "rb") as f:
        return {"bytes": file.stat().st_size, "sha256": hashlib.file_digest(f, "sha256").hexdigest()}


def fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
