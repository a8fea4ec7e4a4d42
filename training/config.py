"""From the command line to a checked configuration: defaults < preset < config file < --key=value.

    python train.py config/quickstart.py --learning_rate=1e-3 --compile

A config file is plain Python whose public names are fields of ModelArchitectureConfig or TrainConfig. Every key is known,
every value typed, everything that is wrong is a ValueError of one line.
"""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from model_config import (
    PRESET_CONFIGS,
    ModelArchitectureConfig,
    check_field_names,
    check_field_types,
    did_you_mean,
    merge_layers,
)


@dataclass(kw_only=True)
class TrainConfig:
    """How a model is trained. Raises ValueError where the fields contradict each other."""

    arch_preset: str = "gpt2"  # gpt2, llama2, llama3, qwen3

    # Data
    dataset: str = "python_stdlib"  # a name under data/ or a path; a mixture of them as 'a:0.7,b:0.3'
    data_dtype: Literal["auto", "uint16", "uint32"] = "auto"  # for nanoGPT's train.bin, which does not say
    document_masking: bool = False  # attention stays inside documents, whose positions begin at 0

    # Batch. gradient_accumulation_steps counts the micro-batches of one optimizer step over ALL processes, so a step is
    # batch_size x block_size x gradient_accumulation_steps tokens on any number of GPUs.
    batch_size: int = 12  # sequences of one micro-step of one process
    gradient_accumulation_steps: int = 40
    max_iters: int = 600_000  # optimizer steps, exactly

    # Optimizer
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: hidden matrices by Muon, the rest by AdamW
    learning_rate: float = 6e-4
    min_lr: float = 6e-5
    muon_learning_rate: float | None = None  # None: learning_rate; follows the same schedule
    lr_schedule: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    warmup_iters: int = 2000
    lr_decay_iters: int | None = None  # None: max_iters
    wsd_decay_fraction: float = 0.2  # wsd: the last part of lr_decay_iters, in which it falls to min_lr
    weight_decay: float = 0.1  # of matrices and embeddings, not of norms and biases
    beta1: float = 0.9
    beta2: float = 0.95
    grad_clip: float = 1.0  # of the global norm; 0 is off

    # Machine
    device: str = "auto"  # cpu, cuda, cuda:N, mps
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of the matmuls; weights stay fp32
    compile: bool = True
    fp8: Literal["none", "tensorwise", "rowwise"] = "none"  # the blocks' matmuls, on Ada, Hopper and newer; needs torchao

    # Many processes (torchrun). Neither use_zero1 nor use_fsdp: DDP
    use_zero1: bool = False  # shard the optimizer over the processes
    use_fsdp: bool = False  # shard everything over the processes
    hybrid_shard_size: int | None = None  # shard over so many processes (the GPUs of a node), replicate between them
    reduce_dtype: Literal["float32", "bfloat16"] = "float32"  # in which gradients are summed over the processes
    activation_checkpointing: Literal["none", "selective", "full"] = "none"  # recompute activations to save memory
    dist_timeout_s: float = 600.0  # a process that does not answer for so long ends the job
    max_bad_steps: int = 20  # the run stops when so many steps in a row, or more, had non-finite gradients and were skipped
    spike_factor: float = 0.0  # skip a step whose gradient norm exceeds so many times its recent mean; 0 is off
    seed: int = 1337

    # Run folder
    out_dir: str = "out"
    init_from: str = "auto"  # scratch, resume, auto (resume if there is a checkpoint), hf:DIR_OR_ID
    eval_interval: int = 2000
    eval_iters: int = 200  # micro-batches over all processes, of each split
    eval_only: bool = False
    sample_prompt: str = ""  # at every evaluation the log gets what the model makes of it; empty is off
    sample_tokens: int = 100
    log_interval: int = 10
    checkpoint_interval: int | None = None  # None: eval_interval
    keep_last: int = 2  # checkpoints; the best one and the one that the run went on from stay besides
    async_checkpoint: bool = False  # copy to CPU memory, write while the training goes on
    always_save_checkpoint: bool = False  # keep all of them

    profile: int = 0  # profile so many steps, after three others: a table, and out_dir/profile
    dashboard: bool = False  # the terminal shows loss curve, speed and events in place of lines; needs rich
    wandb_log: bool = False
    tensorboard_log: bool = False  # to out_dir/tensorboard
    trackio_log: bool = False
    wandb_project: str = "nanofoundry"  # trackio's too
    wandb_run_name: str | None = None  # trackio's too; None: out_dir

    def __post_init__(self) -> None:
        check_field_types(self)
        for name in ("batch_size", "gradient_accumulation_steps", "eval_interval", "eval_iters", "log_interval",
                     "checkpoint_interval", "keep_last", "lr_decay_iters", "max_bad_steps", "hybrid_shard_size",
                     "sample_tokens"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}={value} must be at least 1")
        for name in ("max_iters", "warmup_iters", "learning_rate", "min_lr", "muon_learning_rate", "weight_decay", "grad_clip",
                     "profile"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"{name}={value} must be finite and at least 0")
        if self.spike_factor != 0 and not 1 < self.spike_factor < float("inf"):
            raise ValueError(f"spike_factor={self.spike_factor} must be 0 (off) or greater than 1")
        if not 0 < self.dist_timeout_s < float("inf"):
            raise ValueError(f"dist_timeout_s={self.dist_timeout_s} must be positive and finite")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in [0, 1)")
        if not 0 < self.wsd_decay_fraction <= 1:
            raise ValueError(f"wsd_decay_fraction={self.wsd_decay_fraction} must lie in (0, 1]")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed} must lie in [0, 2^63)")
        if self.min_lr > self.learning_rate and self.lr_schedule != "constant":
            raise ValueError(f"min_lr={self.min_lr} exceeds learning_rate={self.learning_rate}: lower min_lr too")
        if self.use_zero1 and self.use_fsdp:
            raise ValueError("use_zero1=True and use_fsdp=True exclude each other: FSDP shards the optimizer as well; set one")
        if self.init_from not in ("scratch", "resume", "auto") and not self.init_from.startswith("hf:"):
            known = ("scratch", "resume", "auto", "hf:DIR_OR_ID")
            raise ValueError(f"init_from={self.init_from!r} is not known{did_you_mean(self.init_from, known)}")
        check_text(sample_prompt=self.sample_prompt)
        for name in ("dataset", "out_dir", "device"):
            if not getattr(self, name) or "\0" in getattr(self, name):
                raise ValueError(f"{name}={getattr(self, name)!r} must be a name or a path")

    def tokens_per_step(self, block_size: int) -> int:
        return self.batch_size * self.gradient_accumulation_steps * block_size

    def notes(self) -> list[str]:
        """Fields that were set and have no effect."""
        notes = []
        if self.muon_learning_rate is not None and self.optimizer != "muon":
            notes.append(f"muon_learning_rate={self.muon_learning_rate} has no effect with optimizer={self.optimizer!r}")
        if self.hybrid_shard_size is not None and not (self.use_fsdp or self.use_zero1):
            notes.append(f"hybrid_shard_size={self.hybrid_shard_size} has no effect without use_fsdp or use_zero1")
        if self.wsd_decay_fraction != TrainConfig.wsd_decay_fraction and self.lr_schedule != "wsd":
            notes.append(f"wsd_decay_fraction={self.wsd_decay_fraction} has no effect with lr_schedule={self.lr_schedule!r}")
        for name in ("lr_decay_iters", "min_lr"):
            if (value := getattr(self, name)) != getattr(TrainConfig, name) and self.lr_schedule == "constant":
                notes.append(f"{name}={value} has no effect with lr_schedule='constant'")
        if self.keep_last != TrainConfig.keep_last and self.always_save_checkpoint:
            notes.append(f"keep_last={self.keep_last} has no effect with always_save_checkpoint=True")
        if self.sample_tokens != TrainConfig.sample_tokens and not self.sample_prompt:
            notes.append(f"sample_tokens={self.sample_tokens} has no effect without sample_prompt")
        if self.wandb_run_name is not None and not (self.wandb_log or self.trackio_log):
            notes.append(f"wandb_run_name={self.wandb_run_name!r} has no effect without wandb_log or trackio_log")
        return notes

    def notes_here(self, model: ModelArchitectureConfig, device_type: str, world_size: int) -> list[str]:
        """Fields that give way to where the run is: its device, its processes, its output."""
        notes = []
        if world_size == 1 and (self.use_zero1 or self.use_fsdp):
            notes.append(f"{'use_zero1' if self.use_zero1 else 'use_fsdp'}=True shards over processes; here there is one")
        if world_size == 1 and self.reduce_dtype != TrainConfig.reduce_dtype:
            notes.append(f"reduce_dtype={self.reduce_dtype!r} is that of sums over processes; here there is one")
        if self.document_masking and device_type == "cuda" and model.attention_backend not in ("auto", "manual"):
            notes.append(f"attention_backend={model.attention_backend!r} gives way to flex attention: document_masking=True")
        if self.dashboard and not sys.stderr.isatty():
            notes.append("dashboard=True gives way to lines: the output is no terminal")
        return notes


MODEL_FIELDS = tuple(f.name for f in dataclasses.fields(ModelArchitectureConfig))
TRAIN_FIELDS = tuple(f.name for f in dataclasses.fields(TrainConfig))


def load_config(argv: Sequence[str]) -> tuple[ModelArchitectureConfig, TrainConfig]:
    """The configuration that a command line asks for: at most one config file, then flags."""
    return load_config_and(argv, {})[:2]


def load_config_and(argv: Sequence[str], own: dict[str, Any]) -> tuple[ModelArchitectureConfig, TrainConfig, dict[str, Any]]:
    """The same, and the program's own flags, {name: type}, as far as they are given."""
    hints = get_type_hints(ModelArchitectureConfig) | get_type_hints(TrainConfig)
    files, flags = parse_flags(argv, own | hints)
    if len(files) > 1:
        raise ValueError(f"one config file at most, not {len(files)}: {' '.join(files)}")
    from_file = read_config_file(Path(files[0])) if files else {}
    train = TrainConfig(**{k: v for k, v in (from_file | flags).items() if k in TRAIN_FIELDS})
    if train.arch_preset not in PRESET_CONFIGS:
        raise ValueError(f"arch_preset={train.arch_preset!r} is not known{did_you_mean(train.arch_preset, PRESET_CONFIGS)}")
    layers = [{k: v for k, v in layer.items() if k in MODEL_FIELDS} for layer in (from_file, flags)]
    model = ModelArchitectureConfig(**merge_layers([PRESET_CONFIGS[train.arch_preset], *layers]))
    return model, train, {k: v for k, v in flags.items() if k in own}


def read_config_file(path: Path) -> dict[str, Any]:
    """The public names that the file sets. Raises ValueError for one that is no field, and for a file that does not run."""
    if not path.is_file():
        near = [str(p) for p in sorted(Path("config").glob("*.py"))]
        raise ValueError(f"config file {path} is not there{did_you_mean(str(path), near)}")
    namespace: dict[str, Any] = {}
    try:
        exec(compile(path.read_text(), str(path), "exec"), namespace)
    except SyntaxError as error:
        raise ValueError(f"{path}:{error.lineno or 1}: {error.msg}") from error
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path}: {type(error).__name__}: {error}") from error
    fields = {name: value for name, value in namespace.items() if not name.startswith("_")}
    check_field_names(fields, (*TRAIN_FIELDS, *MODEL_FIELDS), str(path))
    return fields


def parse_flags(argv: Sequence[str], hints: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Splits a command line into positional words and typed flags: --key=value, --key value, or for a bool a bare --key. The
    last of several wins, but a list[str] collects them."""
    words, flags = [], {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            words.append(word)
            continue
        name, equals, text = word[2:].partition("=")
        check_field_names([name], hints, "the flags")
        if not equals:
            if hints[name] is bool:
                text = rest.pop(0) if rest and rest[0].lower() in BOOL_WORDS else "true"
            elif rest and not rest[0].startswith("--"):
                text = rest.pop(0)
            else:
                raise ValueError(f"--{name} needs a value: --{name}=...")
        if hints[name] == list[str]:
            flags.setdefault(name, []).append(text)
        else:
            flags[name] = parse_value(name, text, hints[name])
    return words, flags


BOOL_WORDS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}


def parse_value(name: str, text: str, hint: Any) -> Any:
    """The text of a flag as the type of its field. Raises ValueError with both."""
    kinds = get_args(hint) if get_origin(hint) is not Literal else (str,)
    kinds = kinds or (hint,)
    if type(None) in kinds and text.lower() in ("none", "null"):
        return None
    if bool in kinds:
        if text.lower() in BOOL_WORDS:
            return BOOL_WORDS[text.lower()]
        raise ValueError(f"--{name}={text} is neither True nor False")
    if str in kinds:
        return text
    try:
        if int not in kinds:
            return float(text)
        try:
            return int(text)
        except ValueError:
            number = float(text)  # 1e6
            if not number.is_integer():
                raise
            return int(number)
    except (ValueError, OverflowError) as error:
        wanted = "a whole number" if int in kinds else "a number"
        raise ValueError(f"--{name}={text} is not {wanted}") from error


def check_text(**texts: str) -> None:
    """Raises ValueError for what a tokenizer cannot take: a command line may hold bytes that are no UTF-8."""
    for name, text in texts.items():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"{name} is not UTF-8 at character {error.start}: check the terminal's encoding") from None


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Around everything that happens before a program's work begins: what is wrong with the input ends it with one line on
    stderr and exit code 2. Errors after that are ours and keep their traceback."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        if "TORCHELASTIC_RUN_ID" not in os.environ or _first_of_many(message):
            print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
        raise SystemExit(2) from error


def _first_of_many(message: str) -> bool:
    from training.dist import speaks_first  # here, because it needs torch, and data/*/prepare.py does not

    return speaks_first(message)
