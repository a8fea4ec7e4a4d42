"""What survives a crash besides weights and optimizers: one record, state.json of a checkpoint."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from base.errors import InputError
from base.fields import MODEL, NUMBERS, differing, effective, knobs, names, typed, types
from base.files import count_entry, entry, read_json
from model_config import ModelArchitectureConfig
from training.config import TrainConfig
from training.measure import IDENTITY, same
from training.optim import MuonProducts, learning_rate_at

Origin = Literal["scratch", "resume", "imported", "forked"]
NUMBER = (int, float)
# What each entry may be in JSON. Those that earlier versions did not write may be missing, and have their
# default
TYPES: dict[str, tuple[type, ...]] = {
    "step": (int,),
    "tokens": (int,),
    "session": (int,),
    "trained_s": NUMBER,
    "energy_j": (*NUMBER, NoneType),
    "val_loss": (*NUMBER, NoneType),
    "best": (dict, NoneType),
    "measurement": (dict, NoneType),
    "grad_scaler": (dict,),
    "guard": (dict, NoneType),
    "wandb_run_id": (str, NoneType),
    "attention_backend": (str, NoneType),
    "dtype": (str, NoneType),
    "muon_products": (str,),
    "data": (dict,),
    "origin": (str,),
}
NEEDED = ("step", "data")
# What those that are records hold; of "best" and "data" there may be more, which earlier versions did not write
RECORDS: dict[str, dict[str, tuple[type, ...]]] = {
    "best": {"step": (int,), "val_loss": NUMBER},
    "guard": dict.fromkeys(("mean_norm", "good", "bad_in_a_row", "skipped"), NUMBER),
    "grad_scaler": dict.fromkeys(
        ("scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"), NUMBER
    ),
    "data": {
        "dataset": (str, NoneType),
        "fingerprint": (str,),
        "bytes_per_token": (*NUMBER, NoneType),
        "tokenizer": (dict, NoneType),
        "eot_id": (int, NoneType),
    },
}
PARTS = {"model": ModelArchitectureConfig, "train": TrainConfig}
NO_DATA = {
    "dataset": None,
    "fingerprint": "",
    "bytes_per_token": None,
    "tokenizer": None,
    "eot_id": None,
}


@dataclass(kw_only=True)
class RunState:
    """The state of a run after `step` optimizer steps."""

    step: int = 0
    tokens: int = 0  # trained on
    trained_s: float = 0.0  # seconds of training, over all sessions
    energy_j: float | None = 0.0  # joules, over all sessions; None: not measured
    val_loss: float | None = None  # evaluated at this step
    best: dict[str, Any] | None = None  # {"step", "val_loss"} of the best checkpoint
    measurement: dict[str, Any] | None = None  # that both were evaluated by (training/measure.py)
    grad_scaler: dict[str, Any] = field(default_factory=dict)
    guard: dict[str, float] | None = None  # of StepGuard
    session: int = 0  # how often the run was resumed
    wandb_run_id: str | None = None  # names the run to log backends, in every session
    attention_backend: str | None = None  # that a measurement chose
    dtype: str | None = None  # of the matmuls
    muon_products: MuonProducts = "bfloat16"  # training/optim.py; earlier versions had torch's alone
    data: dict[str, Any] = field(
        default_factory=lambda: dict(NO_DATA)
    )  # what was read: tokens.dataset's record
    origin: Origin = "scratch"  # how this came about

    @property
    def has_data(self) -> bool:
        """Whether the weights were trained here: scripts/import_hf.py writes a state that belongs to no
        data."""
        return self.data["dataset"] is not None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def read(cls, checkpoint: Path) -> "RunState":
        """From state.json of a checkpoint, of this version or an earlier one. Raises InputError for wrong
        types."""
        file, again = checkpoint / "state.json", "restore the checkpoint"
        content = read_json(file)
        for key, kinds in TYPES.items():
            if key in content or key in NEEDED:
                entry(content, key, kinds, file, again)
        for key in ("origin", "muon_products"):
            if key in content:
                typed(f"{file}: {key}", content[key], types(cls)[key])
        content["data"] = NO_DATA | content["data"]
        there = {file: content}  # by how a message names it
        for name, kinds_of in RECORDS.items():
            if content.get(name) is not None and (content[name] or name == "best"):
                there[f"{file}: {name}"] = content[name]
                for key, kinds in kinds_of.items():
                    entry(content[name], key, kinds, f"{file}: {name}", again)
        for name, record in there.items():
            for key, value in record.items():
                if key in ("step", "tokens") or (isinstance(value, int) and abs(value) >= 2**63):
                    count_entry(record, key, name, again)
        if content.get("best") and not math.isfinite(content["best"]["val_loss"]):
            raise InputError(f"{file}: best: 'val_loss' is not finite: {again}")
        state = cls(**{f.name: content[f.name] for f in fields(cls) if f.name in content})
        if not state.has_data:  # earlier versions wrote no origin
            state.origin = "imported"
        return state


def read_config(checkpoint: Path) -> dict[str, dict[str, Any]]:
    """{"model": fields, "train": fields} of a checkpoint. Raises InputError for wrong types; fields that
    this version does not know are left as they are."""
    file = checkpoint / "config.json"
    content = read_json(file)
    for part, kind in PARTS.items():
        values = entry(content, part, dict, file, "restore the checkpoint")
        for name in values.keys() & types(kind).keys():
            typed(f"{file}: {name}", values[name], types(kind)[name])
    return content


def check_resumable(
    checkpoint: Path,
    state: RunState,
    saved: Mapping[str, Mapping[str, Any]],
    resolved: Mapping[str, Mapping[str, Any]],
    fingerprint: str,
) -> list[str]:
    """What differs between the configuration of a checkpoint and that of the run that resumes from it, as
    far as it changes numbers, with the learning rate that follows from either: one note. `saved` and
    `resolved` are {"model": fields, "train": fields}; a field that an earlier version did not have has its
    default. Raises InputError, naming each difference, where the checkpoint belongs to another model or
    another order of data, or has fields of a model that this version does not know."""
    if not state.has_data:
        begin = f"--init_from={saved['train'].get('init_from')} and another --out_dir"
        raise InputError(
            f"{checkpoint} holds imported weights and belongs to no data: to train from them pass {begin}"
        )
    foreign = {part: sorted(saved[part].keys() - types(kind).keys()) for part, kind in PARTS.items()}
    if foreign["model"]:
        raise InputError(
            f"{checkpoint} is of another version, whose models have {', '.join(foreign['model'])}: "
            "resume it with that version"
        )

    def essence(config: Mapping[str, Mapping[str, Any]], data_fingerprint: str) -> dict[str, Any]:
        train = effective(TrainConfig, config["train"])
        fixed = {name: train[name] for name, k in knobs(TrainConfig).items() if k.fixed}
        step = train["batch_size"] * train["gradient_accumulation_steps"]
        model = effective(ModelArchitectureConfig, config["model"], MODEL)
        data = {"data": f"{train['dataset']}, fingerprint {data_fingerprint[:12]}"} if other_data else {}
        return model | fixed | {"batch_size * gradient_accumulation_steps": step} | data

    other_data = state.data["fingerprint"] != fingerprint
    if different := differing(essence(saved, state.data["fingerprint"]), essence(resolved, fingerprint)):
        raise InputError(
            f"{checkpoint} cannot be resumed under this configuration: {different}; "
            "use its settings, another --out_dir, or --init_from=scratch"
        )
    changed = [
        differing(*(effective(kind, config[part], NUMBERS) for config in (saved, resolved)))
        for part, kind in PARTS.items()
    ]
    before, after = (next_learning_rate(state.step, config["train"]) for config in (saved, resolved))
    if None not in (before, after) and before != after:
        changed.append(f"learning rate of the next step {before:.4g} there, {after:.4g} here")
    changes = ", ".join(line for line in changed if line)
    notes = [f"changed since the checkpoint: {changes}"] if changes else []
    if foreign["train"]:
        notes.append(f"of the checkpoint's configuration {', '.join(foreign['train'])} is not known here")
    return notes


def next_learning_rate(step: int, train: Mapping[str, Any]) -> float | None:
    """Of the update after `step`, as fields of TrainConfig say, of which others are left out; None where
    they contradict each other."""
    try:
        return learning_rate_at(
            step, TrainConfig(**{k: v for k, v in train.items() if k in names(TrainConfig)})
        )
    except InputError:
        return None


def take_up(state: RunState, data: Mapping[str, Any], measured: dict[str, Any], dtype: str) -> list[str]:
    """Takes up what this session reads, measures and computes in, in place of what the checkpoint's did. Losses that
    were measured in another way are forgotten. Notes on what that changes; what an earlier version did not record is
    not compared, but for the best, whose windows it chose in another way."""
    notes, before = [], state.measurement
    if not same(before, measured):
        what = " and ".join(
            words for name, words in IDENTITY.items() if before is None or before.get(name) != measured[name]
        )
        best = "" if state.best is None else f" ({state.best['val_loss']:.4f} at step {state.best['step']})"
        if before is not None or best:
            notes.append(
                f"evaluations differ from the checkpoint's in {what}: the best so far{best} is not compared, and starts anew"
            )
        state.best = state.val_loss = None
    elif before.get("bytes") != measured["bytes"]:
        notes.append(
            "bytes of text are counted in another way: bits per byte before and after do not compare"
        )
    if state.dtype not in (None, dtype):
        notes.append(f"matmuls were in {state.dtype} and are now in {dtype}")
    if dtype == "float16" and not state.grad_scaler:
        notes.append("the scale of float16's gradients starts anew")
    state.data, state.measurement, state.dtype = dict(data), measured, dtype
    return notes
