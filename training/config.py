"""From the command line to a checked configuration: defaults < preset < config file < --key=value.

    python train.py config/quickstart.py --learning_rate=1e-3 --compile

A config file is plain Python whose public names are fields of ModelArchitectureConfig or TrainConfig. Every
key is known, every value typed, everything that is wrong is an InputError of one line."""

import math
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from base import fields
from base.cli import parse_flags
from base.errors import InputError, one_line
from base.fields import KEEPING, LOOKING, MACHINE, NUMBERS, SET, check_names, did_you_mean, knob
from base.files import read_text
from base.text import check_utf8
from model_config import PRESET_CONFIGS, ModelArchitectureConfig, merge_layers

COUNT, AT_LEAST_0 = "[1, inf)", "[0, inf)"
ITER_WINDOWS = 12  # nanoGPT's evaluations are eval_iters batches of its batch_size, 12


@dataclass(kw_only=True)
class TrainConfig:
    """How a model is trained. Raises InputError where the fields contradict each other."""

    # It is there in the fields that it sets, so it is nothing by itself
    arch_preset: str = knob(
        "gpt2", "what the architecture begins with", kind=KEEPING, choices=("model_config:PRESET_CONFIGS",)
    )

    # Data
    dataset: str = knob(
        "python_stdlib", "a name under data/ or a path; a mixture of them as 'a:0.7,b:0.3'", kind=NUMBERS
    )
    data_dtype: Literal["auto", "uint16", "uint32"] = knob(
        "auto", "of nanoGPT's train.bin, which does not say", kind=NUMBERS
    )
    document_masking: bool = knob(
        False, "attention stays inside documents, whose positions begin at 0", kind=NUMBERS
    )

    # Batch. gradient_accumulation_steps counts the micro-batches of one optimizer step over ALL processes,
    # so a step is batch_size x block_size x gradient_accumulation_steps tokens on any number of GPUs.
    batch_size: int = knob(12, "sequences of one micro-batch of one process", kind=NUMBERS, bounds=COUNT)
    gradient_accumulation_steps: int = knob(
        40, "micro-batches of a step, over all processes", kind=NUMBERS, bounds=COUNT
    )
    max_iters: int = knob(600_000, "optimizer steps, exactly", kind=NUMBERS, bounds=AT_LEAST_0)

    # Optimizer
    optimizer: Literal["adamw", "muon"] = knob(
        "adamw", "muon: hidden matrices by Muon, the rest by AdamW", kind=NUMBERS, fixed=True
    )
    learning_rate: float = knob(6e-4, "at the end of the warm-up", kind=NUMBERS, bounds=AT_LEAST_0)
    min_lr: float = knob(
        6e-5,
        "at the end of the decay",
        kind=NUMBERS,
        bounds=AT_LEAST_0,
        needs={"lr_schedule": ("cosine", "wsd", "linear")},
    )
    muon_learning_rate: float | None = knob(
        None,
        "none: learning_rate; follows the same schedule",
        kind=NUMBERS,
        bounds=AT_LEAST_0,
        needs={"optimizer": ("muon",)},
    )
    lr_schedule: Literal["cosine", "wsd", "linear", "constant"] = knob(
        "cosine", "after the warm-up", kind=NUMBERS
    )
    warmup_iters: int = knob(2000, "steps of linear warm-up", kind=NUMBERS, bounds=AT_LEAST_0)
    lr_decay_iters: int | None = knob(
        None, "the step at which min_lr is reached; none: max_iters", kind=NUMBERS, bounds=COUNT,
        needs={"lr_schedule": ("cosine", "wsd", "linear")},
    )  # fmt: skip
    wsd_decay_fraction: float = knob(
        0.2, "the last part of lr_decay_iters, in which the rate falls to min_lr", kind=NUMBERS, bounds="(0, 1]",
        needs={"lr_schedule": ("wsd",)},
    )  # fmt: skip
    weight_decay: float = knob(
        0.1, "of matrices and embeddings, not of norms and biases", kind=NUMBERS, bounds=AT_LEAST_0
    )
    beta1: float = knob(0.9, "of AdamW", kind=NUMBERS, bounds="[0, 1)")
    beta2: float = knob(0.95, "of AdamW", kind=NUMBERS, bounds="[0, 1)")
    grad_clip: float = knob(
        1.0, "most of the gradients' global norm; 0 is off", kind=NUMBERS, bounds=AT_LEAST_0
    )
    max_bad_steps: int = knob(
        20, "the run ends when so many steps in a row had gradients that were not finite and were skipped", kind=NUMBERS,
        bounds=COUNT,
    )  # fmt: skip
    spike_factor: float = knob(
        0.0, "skip a step whose gradient norm exceeds so many times its recent mean; 0 is off", kind=NUMBERS
    )
    seed: int = knob(1337, "of weights, batches and dropout", kind=NUMBERS, bounds="[0, 2^63)", fixed=True)

    # Machine
    device: str = knob("auto", "auto, cpu, cuda, cuda:N or mps", kind=MACHINE)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = knob(
        "auto", "of the matmuls; weights stay float32", kind=NUMBERS
    )
    compile: bool = knob(True, "by torch.compile", kind=MACHINE)
    fp8: Literal["none", "tensorwise", "rowwise"] = knob(
        "none", "the blocks' matmuls in FP8, on Ada, Hopper and newer; needs torchao", kind=NUMBERS
    )

    # Many processes (torchrun). Neither use_zero1 nor use_fsdp: DDP
    use_zero1: bool = knob(False, "shard the optimizer over the processes", kind=MACHINE)
    use_fsdp: bool = knob(False, "shard everything over the processes", kind=MACHINE)
    hybrid_shard_size: int | None = knob(
        None, "shard over so many processes (the GPUs of a node), replicate between them", kind=MACHINE, bounds=COUNT,
        needs={"use_fsdp": SET, "use_zero1": SET},
    )  # fmt: skip
    reduce_dtype: Literal["float32", "bfloat16"] = knob(
        "float32", "in which gradients are summed over the processes", kind=NUMBERS
    )
    activation_checkpointing: Literal["none", "selective", "full"] = knob(
        "none", "recompute activations to save memory", kind=MACHINE
    )
    dist_timeout_s: float = knob(
        600.0, "a process that does not answer for so long ends the job", kind=MACHINE, bounds="(0, inf)"
    )

    # Run folder
    out_dir: str = knob("out", "the run folder", kind=KEEPING)
    init_from: str = knob(
        "auto",
        "scratch, resume, auto (resume if there is a checkpoint, else scratch), hf:DIR_OR_ID",
        kind=KEEPING,
    )
    resize_vocabulary: bool = knob(
        False, "of hf:DIR_OR_ID, to that of the data: tokens that both have keep their rows, the others are initialised",
        kind=KEEPING,
    )  # fmt: skip
    checkpoint_interval: int | None = knob(
        None, "steps between checkpoints; none: eval_interval", kind=KEEPING, bounds=COUNT
    )
    keep_last: int = knob(
        2, "checkpoints that are kept; the best one and the one that the run resumed from stay besides", kind=KEEPING,
        bounds=COUNT, needs={"always_save_checkpoint": (False,)},
    )  # fmt: skip
    always_save_checkpoint: bool = knob(False, "keep all checkpoints", kind=KEEPING)
    async_checkpoint: bool = knob(
        False, "copy to CPU memory, write while the training continues", kind=KEEPING
    )

    # What is looked at
    eval_tokens: int | None = knob(
        None,
        "of each split, in windows of block_size; none: what eval_iters means",
        kind=LOOKING,
        bounds=COUNT,
    )
    eval_iters: int = knob(
        200, f"nanoGPT's way to say eval_tokens: so many times {ITER_WINDOWS} windows of block_size", kind=LOOKING,
        bounds=COUNT, needs={"eval_tokens": (None,)},
    )  # fmt: skip
    eval_interval: int = knob(2000, "steps between evaluations", kind=LOOKING, bounds=COUNT)
    eval_only: bool = knob(False, "evaluate once and end", kind=LOOKING)
    log_interval: int = knob(10, "steps between log lines", kind=LOOKING, bounds=COUNT)
    sample_prompt: str = knob(
        "", "at every evaluation the log gets what the model makes of it; empty is off", kind=LOOKING
    )
    sample_tokens: int = knob(100, "length of that", kind=LOOKING, bounds=COUNT, needs={"sample_prompt": SET})
    profile: int = knob(
        0,
        "profile so many steps, after three others: a table, and out_dir/profile",
        kind=LOOKING,
        bounds=AT_LEAST_0,
    )
    dashboard: bool = knob(
        False, "loss curve, speed and events on the terminal in place of lines; needs rich", kind=LOOKING
    )
    wandb_log: bool = knob(False, "to Weights & Biases", kind=LOOKING)
    tensorboard_log: bool = knob(False, "to out_dir/tensorboard", kind=LOOKING)
    trackio_log: bool = knob(False, "to trackio", kind=LOOKING)
    wandb_project: str = knob("nanofoundry", "trackio's too", kind=LOOKING)
    wandb_run_name: str | None = knob(
        None, "trackio's too; none: out_dir", kind=LOOKING, needs={"wandb_log": SET, "trackio_log": SET}
    )

    def __post_init__(self) -> None:
        fields.check(self)
        if self.spike_factor != 0 and not 1 < self.spike_factor < float("inf"):
            raise InputError(f"spike_factor={self.spike_factor} must be 0 (off) or greater than 1")
        if self.min_lr > self.learning_rate and self.lr_schedule != "constant":
            raise InputError(
                f"min_lr={self.min_lr} exceeds learning_rate={self.learning_rate}: lower min_lr too"
            )
        if self.learning_rate == 0 and self.optimizer == "muon" and self.muon_learning_rate:
            raise InputError(
                f"muon_learning_rate={self.muon_learning_rate} follows the schedule of learning_rate=0, which is 0 "
                "throughout: set learning_rate too"
            )
        if self.use_zero1 and self.use_fsdp:
            raise InputError(
                "use_zero1=True and use_fsdp=True exclude each other: FSDP shards the optimizer as well; set one"
            )
        if self.init_from not in ("scratch", "resume", "auto") and not self.init_from.startswith("hf:"):
            known = ("scratch", "resume", "auto", "hf:DIR_OR_ID")
            raise InputError(
                f"init_from={self.init_from!r} is not known{did_you_mean(self.init_from, known)}"
            )
        check_utf8(sample_prompt=self.sample_prompt)
        for name in ("dataset", "out_dir", "device"):
            if not getattr(self, name) or "\0" in getattr(self, name):
                raise InputError(f"{name}={getattr(self, name)!r} must be a name or a path")

    def tokens_per_step(self, block_size: int) -> int:
        return self.batch_size * self.gradient_accumulation_steps * block_size

    def evaluated_tokens(self, block_size: int) -> int:
        """Of each split, where it has so many."""
        return self.eval_tokens or self.eval_iters * ITER_WINDOWS * block_size

    def notes(self) -> list[str]:
        """Fields that were set and have no effect, and those whose effect together is seldom meant."""
        notes = [*fields.notes(self), *self._schedule_notes()]
        if self.resize_vocabulary and not self.init_from.startswith("hf:"):
            notes.append(f"resize_vocabulary=True has no effect with init_from={self.init_from!r}")
        return notes

    def _schedule_notes(self) -> Iterator[str]:
        warmup, last = self.warmup_iters, self.max_iters
        decay = self.lr_decay_iters if self.lr_schedule != "constant" else None
        if warmup >= last > 0:
            yield f"warmup_iters={warmup} is not over before max_iters={last}: learning_rate is never reached"
        elif decay is not None and decay <= warmup:
            yield (
                f"lr_decay_iters={decay} ends before warmup_iters={warmup}: after the warm-up the learning rate "
                "falls to min_lr at once"
            )
        save = self.checkpoint_interval or self.eval_interval
        if save < last <= math.lcm(save, self.eval_interval) and not self.eval_only:
            yield (
                f"checkpoint_interval={save} and eval_interval={self.eval_interval} do not meet before the end: no "
                "checkpoint before it has a val_loss, so none is kept as the best; let one be a multiple of the other"
            )

    def notes_here(self, model: ModelArchitectureConfig, device_type: str, world_size: int) -> list[str]:
        """Fields that give way to where the run is: its device, its processes, its output."""
        notes = []
        if self.eval_tokens is None:
            tokens, block_size = self.evaluated_tokens(model.block_size), model.block_size
            notes.append(
                f"eval_iters={self.eval_iters} means eval_tokens={tokens:,}: {self.eval_iters} x {ITER_WINDOWS} "
                f"windows of {block_size:,}, whatever batch_size is"
            )
        if world_size == 1 and (self.use_zero1 or self.use_fsdp):
            notes.append(
                f"{'use_zero1' if self.use_zero1 else 'use_fsdp'}=True shards over processes; here there is one"
            )
        if world_size == 1 and self.reduce_dtype != TrainConfig.reduce_dtype:
            notes.append(
                f"reduce_dtype={self.reduce_dtype!r} is that of sums over processes; here there is one"
            )
        if (
            self.document_masking
            and device_type == "cuda"
            and model.attention_backend not in ("auto", "manual")
        ):
            notes.append(
                f"attention_backend={model.attention_backend!r} gives way to flex attention: document_masking=True"
            )
        if self.dashboard and not sys.stderr.isatty():
            notes.append("dashboard=True gives way to lines: the output is not a terminal")
        return notes


MODEL_FIELDS, TRAIN_FIELDS = fields.names(ModelArchitectureConfig), fields.names(TrainConfig)


def load_config(argv: Sequence[str]) -> tuple[ModelArchitectureConfig, TrainConfig]:
    """The configuration that a command line asks for: at most one config file, then flags."""
    return load_config_and(argv)[:2]


def load_config_and(argv: Sequence[str], *own: type) -> tuple[Any, ...]:
    """The same, and a record of each of the classes `own`, a program's own flags."""
    kinds = (ModelArchitectureConfig, TrainConfig, *own)
    words, flags = parse_flags(
        argv, {name: hint for kind in kinds for name, hint in fields.types(kind).items()}
    )
    if len(words) > 1:
        raise InputError(f"one config file at most, not {len(words)}: {' '.join(words)}")
    from_file = read_config_file(Path(words[0])) if words else {}
    train = TrainConfig(**{k: v for k, v in (from_file | flags).items() if k in TRAIN_FIELDS})
    layers = [{k: v for k, v in layer.items() if k in MODEL_FIELDS} for layer in (from_file, flags)]
    model = ModelArchitectureConfig(**merge_layers([PRESET_CONFIGS[train.arch_preset], *layers]))
    return (
        model,
        train,
        *(kind(**{k: v for k, v in flags.items() if k in fields.names(kind)}) for kind in own),
    )


def read_config_file(path: Path) -> dict[str, Any]:
    """The public names that the file sets. Raises InputError for one that is not a field, and for a file
    that does not run."""
    if os.path.isdir(path):
        raise InputError(f"{path} is a folder: name a config file, as config/quickstart.py")
    if not os.path.isfile(path):
        near = [str(p) for p in sorted(Path("config").glob("*.py"))]
        raise InputError(f"config file {path} is not there{did_you_mean(str(path), near)}")
    namespace: dict[str, Any] = {}
    try:
        exec(compile(read_text(path), str(path), "exec"), namespace)
    except SyntaxError as error:
        raise InputError(f"{path}:{error.lineno or 1}: {error.msg}") from error
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"{path}: {type(error).__name__}: {one_line(error)}") from error
    found = {name: value for name, value in namespace.items() if not name.startswith("_")}
    check_names(found, (*TRAIN_FIELDS, *MODEL_FIELDS), str(path))
    return found
