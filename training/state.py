"""What survives a crash besides weights and optimizers: one record, state.json of a checkpoint."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from base.errors import InputError
from base.fields import MODEL, NUMBERS, differing, effective, knobs, typed, types
from base.files import entry, read_json
from model_config import ModelArchitectureConfig
from training.config import TrainConfig
from training.optim import MuonProducts

Origin = Literal["scratch", "resume", "imported", "forked"]
NUMBER = (int, float)
# What each entry may be in JSON. Those that earlier versions did not write may be missing, and have their
# default
TYPES: dict[str, tuple[type, ...]] = {
    "step": (int,),
    "tokens": (int,),
    "trained_s": NUMBER,
    "energy_j": (*NUMBER, NoneType),
    "val_loss": (*NUMBER, NoneType),
    "best": (dict, NoneType),
    "measurement": (dict, NoneType),
    "grad_scaler": (dict,),
    "guard": (dict, NoneType),
    "wandb_run_id": (str, NoneType),
    "attention_backend": (str, NoneType),
    "muon_products": (str,),
    "data": (dict,),
    "origin": (str,),
}
NEEDED = ("step", "data")
PARTS = {"model": ModelArchitectureConfig, "train": TrainConfig}
NO_DATA = {"dataset": None, "fingerprint": "", "bytes_per_token": None, "tokenizer": None, "eot_id": None}


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
    wandb_run_id: str | None = None  # names the run to log backends, in every session
    attention_backend: str | None = None  # that a measurement chose
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
        file = checkpoint / "state.json"
        content = read_json(file)
        for key, kinds in TYPES.items():
            if key in content or key in NEEDED:
                entry(content, key, kinds, file, "restore the checkpoint")
        for key in ("origin", "muon_products"):
            if key in content:
                typed(f"{file}: {key}", content[key], types(cls)[key])
        state = cls(**{f.name: content[f.name] for f in fields(cls) if f.name in content})
        state.data = NO_DATA | state.data
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
    far as it changes numbers: notes. `saved` and `resolved` are {"model": fields, "train": fields}; a field
    that an earlier version did not have has its default. Raises InputError, naming each difference, where
    the checkpoint belongs to another model or another order of data, or has fields of a model that this
    version does not know."""
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
        return (
            model
            | fixed
            | {
                "batch_size * gradient_accumulation_steps": step,
                "data fingerprint": data_fingerprint[:12],
            }
        )

    if different := differing(essence(saved, state.data["fingerprint"]), essence(resolved, fingerprint)):
        raise InputError(
            f"{checkpoint} cannot be resumed under this configuration: {different}; "
            "use its settings, another --out_dir, or --init_from=scratch"
        )
    changed = [
        differing(*(effective(kind, config[part], NUMBERS) for config in (saved, resolved)))
        for part, kind in PARTS.items()
    ]
    notes = [f"changed since the checkpoint: {line}" for line in changed if line]
    if foreign["train"]:
        notes.append(f"of the checkpoint's configuration {', '.join(foreign['train'])} is not known here")
    return notes
