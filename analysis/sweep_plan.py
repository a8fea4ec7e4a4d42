"""The runs of a sweep: configurations x settings x seeds, each in a folder named after what it is."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from analysis.differences import OWN_WEIGHTS
from base.errors import InputError
from training.config import TrainConfig, load_config

OWN = ("seed", "out_dir", "init_from", "eval_only")  # what the sweep decides, or what makes no comparison


@dataclass
class Planned:
    """One run of a sweep."""

    out_dir: Path
    flags: list[str]  # of train.py, the config file first
    config: dict[str, dict[str, Any]]  # as train.py resolves it and logs it
    tokens: int
    notes: list[str]


def plan(
    files: Sequence[str], settings: Sequence[str], seeds: int, tokens: int | None, folder: Path
) -> list[Planned]:
    """The runs, the seeds outermost, so that a sweep which is cut short has all configurations. `settings`
    are 'key=v1,v2': all combinations of their values are run. Raises InputError for what train.py would
    refuse."""
    if not files:
        raise InputError("--run needs config files: --run config/compare_tiny_*.py")
    if len({Path(file).stem for file in files}) < len(files):
        raise InputError(f"two of the config files have one name: {', '.join(sorted(files))}")
    choices = choices_of(settings, tokens)
    return [
        planned(file, dict(zip(choices, values, strict=True)), choices, seed, tokens, folder)
        for seed, file, values in product(range(seeds), files, product(*choices.values()))
    ]


def choices_of(settings: Sequence[str], tokens: int | None) -> dict[str, list[str]]:
    """The values of each key of --set. Raises InputError for a key that is not for it."""
    choices: dict[str, list[str]] = {}
    for setting in settings:
        key, equals, values = setting.partition("=")
        if not equals or not all(values.split(",")):
            raise InputError(f"--set {setting}: wanted key=value or key=v1,v2")
        if key in choices:
            raise InputError(f"--set {setting}: {key} is set twice")
        if key in OWN:
            raise InputError(f"--set {setting}: {key} is not for --set")
        if key == "max_iters" and tokens is not None:
            raise InputError(f"--set {setting}: {key} follows from --tokens")
        # A mixture is one value, as train.py takes it
        choices[key] = [values] if key == "dataset" and ":" in values else values.split(",")
    return choices


def planned(
    file: str,
    chosen: dict[str, str],
    choices: dict[str, list[str]],
    seed: int,
    tokens: int | None,
    folder: Path,
) -> Planned:
    """One run: its folder is named after the file, what of the settings varies, and the seed."""
    flags = [file, *(f"--{key}={value}" for key, value in chosen.items()), f"--seed={seed}"]
    model, config = load_config(flags)
    step_tokens, steps, notes = config.tokens_per_step(model.block_size), config.max_iters, []
    if tokens is not None:
        steps = -(-tokens // step_tokens)
        flags.append(f"--max_iters={steps}")
        notes = notes_on_length(file, config, steps, tokens)
    varied = [f"{key}={chosen[key].replace('/', '_')}" for key in chosen if len(choices[key]) > 1]
    out_dir = folder / "-".join([Path(file).stem, *varied, f"seed{seed}"])
    flags.append(f"--out_dir={out_dir}")
    if config.init_from in OWN_WEIGHTS:
        flags.append("--init_from=auto")
    model, config = load_config(flags)
    resolved = {"model": asdict(model), "train": asdict(config)}
    return Planned(out_dir, flags, resolved, steps * step_tokens, notes)


def notes_on_length(file: str, config: TrainConfig, steps: int, tokens: int) -> list[str]:
    """A line on each field that was meant for a longer run."""
    fixed = {name: getattr(config, name) for name in ("warmup_iters", "lr_decay_iters")}
    return [
        f"{file}: {name}={at} reaches beyond the {steps} steps that --tokens={tokens} asks for"
        for name, at in fixed.items()
        if at is not None and at > steps
    ]
