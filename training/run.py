"""What a run is built of, as one object: recipes and notebooks use it as train.py does.

    run = build_run(*load_config(["config/quickstart.py", "--max_iters=100"]))     # touches no file
    while not run.finished:
        result = run.step()                  # StepResult
    run.evaluate()                           # {"train": 1.9, "val": 2.0}
    run.open_folder(); run.save()            # a checkpoint
    run.close()

In a world of processes every rank calls every method, at the same points of its work.
"""

import secrets
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from base.errors import InputError, writing
from base.files import writable_folder
from base.locks import FolderLock, check_free
from hardware.device import compile_problem, select_device, select_dtype, wait_for
from model_builder import ConfigurableGPT
from model_config import ModelArchitectureConfig
from tokens.dataset import Dataset, copy_tokenizer, tokenizer_files
from tokens.loader import Batch
from tokens.mixture import parse_mixture
from training import checkpoint
from training.attention import choose_kernel
from training.config import TrainConfig
from training.evaluate import evaluate
from training.fp8 import check_fp8
from training.keeping import Checkpoints, check_space, check_unchanged, set_aside_damaged, set_aside_run
from training.measure import measurement
from training.meters import EnergyMeter, StepTimer
from training.optim import build_optimizers, learning_rate_at, muon_products, state_bytes
from training.parallel import Strategy, build_strategy
from training.sizes import check_memory, model_on_meta
from training.state import RunState, check_resumable, take_up
from training.step import MicroBatch, StepResult, TrainStep
from training.world import World

DATA = Path(__file__).resolve().parents[1] / "data"
# Fills the model with the weights that init_from names, to be trained on the data of a folder; notes
Loader = Callable[[str, ConfigurableGPT, Path], list[str]]


@dataclass
class Run:
    """A run at step state.step, on one process of its world."""

    model_config: ModelArchitectureConfig
    config: TrainConfig
    world: World
    device: torch.device
    dtype: torch.dtype  # of the matmuls
    strategy: Strategy
    dataset: Dataset
    model: ConfigurableGPT
    optimizers: list[torch.optim.Optimizer]
    train_step: TrainStep
    state: RunState
    source: Path | None  # the checkpoint that it resumed from
    stay: set[int]  # the steps of checkpoints that this session removes in no case
    attention_ms: dict[str, float | str]  # where backends were timed
    notes: list[str]  # what whoever starts the run should know

    def __post_init__(self) -> None:
        state = self.state
        self.out_dir = Path(self.config.out_dir)
        self.lock: FolderLock | None = None  # of the run folder, on rank 0
        self.start_step = state.step
        self.saved_step = state.step if self.source is not None else None
        # A signal may have cut off the evaluation of the step that it saved: that is made up for
        self.cut_off = self.source is not None and self._evaluates_at(state.step) and state.val_loss is None
        self.timer = StepTimer(state.trained_s, lambda: wait_for(self.device))
        self.energy = EnergyMeter(self.device, self.world, state.energy_j)
        self.checkpoints = Checkpoints(self.out_dir, self.world, self.config, state.best, self.stay)
        self.batches: Iterator[Batch] = self.dataset.loader.prefetched(state.step, self.device)

    @property
    def resolved(self) -> dict[str, dict[str, Any]]:
        """The configuration, as it goes into logs and checkpoints."""
        return {"model": asdict(self.model_config), "train": asdict(self.config)}

    @property
    def tokens_per_step(self) -> int:
        return self.config.tokens_per_step(self.model_config.block_size)

    @property
    def attention_backend(self) -> str:
        return self.model.config.attention_backend

    @property
    def finished(self) -> bool:
        return self.state.step >= self.config.max_iters

    def _evaluates_at(self, step: int) -> bool:
        return step >= self.config.max_iters or step % self.config.eval_interval == 0

    @property
    def evaluation_due(self) -> bool:
        here = self._evaluates_at(self.state.step) and (self.state.step != self.saved_step or self.cut_off)
        return self.config.eval_only or here

    @property
    def save_due(self) -> bool:
        interval = self.config.checkpoint_interval or self.config.eval_interval
        return self.state.step > self.start_step and self.state.step % interval == 0

    @property
    def logging_due(self) -> bool:
        """Whether the step that comes next is one that is logged."""
        step = self.state.step + 1
        return step % self.config.log_interval == 0 or step in (self.start_step + 1, self.config.max_iters)

    def evaluate(self, stopping: Callable[[], bool] = lambda: False) -> dict[str, float] | None:
        """Mean loss of each split in nats a token; None where `stopping` says on all ranks that there is no
        time."""
        self.timer.settle()
        losses = {}
        for split in ("train", "val"):
            batches = self.dataset.evaluation_batches(split)
            autocast = self.train_step.autocast
            losses[split] = evaluate(self.model, batches, self.device, autocast, self.world, stopping)
        if None in losses.values():
            return None
        self.state.val_loss = losses["val"]
        if self.state.step == self.saved_step:
            self.checkpoints.rate(self.state.step, losses["val"])
        return losses

    def step(self, read: bool = True) -> StepResult:
        """One optimizer step. With `read` its result is numbers, and the clock stops when the device is
        done."""
        self.timer.start()
        accumulation, own = self.config.gradient_accumulation_steps, self.dataset.loader.own_micro_steps
        micro_batches = (MicroBatch(m, next(self.batches), accumulation, last=m == own[-1]) for m in own)
        result = self.train_step(self.state.step, micro_batches)
        if read:
            loss, z_loss = self.world.sum(torch.stack([result.loss, result.z_loss])).tolist()
            result = StepResult(loss, result.grad_norm.item(), result.lr, z_loss)
        self.timer.stop(steps=1)
        self.state.step += 1
        self.state.tokens = self.state.step * self.tokens_per_step
        self.state.val_loss = None
        return result

    def bad_steps(self) -> int:
        """Steps that were skipped since the last good one, where they are so many that the run should end;
        else 0."""
        self.timer.settle()
        n = self.train_step.guard.bad_in_a_row()
        return n if n >= self.config.max_bad_steps else 0

    def open_folder(self) -> list[str]:
        """Makes the run folder, which belongs to this run until close(), sets aside what is there of other
        runs, and copies the tokenizer. Notes on what moved. Raises InputError, on every rank, where another
        run is at work in it."""
        return self.world.by_rank_0(self._open_folder) or []

    def _open_folder(self) -> list[str]:
        notes = []
        with writing(self.out_dir):
            self.out_dir.mkdir(parents=True, exist_ok=True)
            if self.config.eval_only:  # it writes a log of its own: the run may be at work
                return notes
            self.lock = FolderLock(self.out_dir, "run")
            try:
                if self.source is not None:
                    damaged = set_aside_damaged(self.out_dir, self.start_step)
                    notes += [f"a damaged checkpoint is now {path}" for path in damaged]
                if self.config.init_from != "scratch":
                    check_unchanged(self.out_dir, self.source, self.start_step)
                elif aside := set_aside_run(self.out_dir, tokenizer_files(self.out_dir)):
                    notes.append(f"the checkpoints of an earlier run are now in {aside}")
                copy_tokenizer(self.dataset.folders[0], self.out_dir)
            except BaseException:
                self.lock.release()
                raise
        return notes

    def save(self, wait: bool = True) -> None:
        """Writes a checkpoint of this step, unless there is one; with `wait` it is on the disk when this
        returns. What becomes of it is among self.checkpoints.events(). Raises SaveFailed with `wait`."""
        if self.state.step == self.saved_step:
            return
        self.timer.settle()
        guard, chosen = self.train_step.guard, self.model_config.attention_backend == "auto"
        self.state = replace(
            self.state,
            trained_s=self.timer.trained_s,
            energy_j=self.energy(),
            grad_scaler=self.train_step.scaler.state_dict(),
            guard=guard.state(),
            attention_backend=self.attention_backend if chosen else None,
        )
        # Between bad steps the weights stand still, and may be what is bad: those from before are not
        # removed for them
        tensors, prune = self.strategy.tensors(self.model, self.optimizers), not guard.bad_in_a_row()
        self.checkpoints.save(tensors, self.state, self.resolved, wait=wait, prune=prune)
        self.saved_step = self.state.step

    def close(self) -> None:
        """Ends the reading of batches, and lets go of the run folder."""
        self.batches.close()
        if self.lock is not None:
            self.checkpoints.when_written(self.lock.release)


def build_run(
    model_config: ModelArchitectureConfig,
    config: TrainConfig,
    world: World = World(),  # noqa: B008  immutable
    device: torch.device | None = None,
    *,
    data_root: Path = DATA,
    load_weights: Loader | None = None,
    schedule: Callable[[int, TrainConfig], float] = learning_rate_at,
) -> Run:
    """The run that a configuration describes, from scratch or from the newest checkpoint of its out_dir, as
    init_from says. `load_weights` serves init_from='hf:…'. No file is touched. Raises InputError for
    whatever is wrong with the input."""
    device = device or select_device(config.device, world.local_rank, world.local_size)
    dtype = select_dtype(config.dtype, device)
    check_memory(model_on_meta(model_config), config, world, device)  # said before data is read
    check_fp8(config, model_config, device)
    strategy = build_strategy(config, world, device, dtype)
    out_dir = writable_folder(config.out_dir)
    if not config.eval_only:  # said before anything that takes long
        world.by_rank_0(lambda: check_free(out_dir, "run"))
    prepare_embedded(config.dataset, world, data_root)
    dataset = open_dataset(model_config, config, world, data_root)
    data, measured = dataset.record(config.max_iters), measurement(dataset, config, dtype, world)
    if measured["bytes"]:
        data["bytes_per_token"] = measured["bytes"] / measured["tokens"]

    source, state, stay, resume_notes = begin(model_config, config, world, data, measured, device, dtype)
    kernel, kernels_ms = choose_kernel(model_config, config, device, dtype, world, state.attention_backend)
    no_compiler = compile_problem(device) if config.compile else None
    model = model_on_meta(replace(model_config, attention_backend=kernel))
    seed = config.seed if state.origin == "scratch" else None
    forward = strategy.wrap(model, seed, compile=config.compile and no_compiler is None)
    if state.origin == "imported":
        assert load_weights is not None, "init_from='hf:…' needs load_weights"
        resume_notes += load_weights(config.init_from.removeprefix("hf:"), model, dataset.folders[0])
    optimizers = build_optimizers(model, config, device, state.muon_products)
    if source is not None:
        checkpoint.load_weights(source, model)
        checkpoint.load_optimizers(source, model, optimizers)
    step = TrainStep(
        model, forward, strategy, optimizers, config, world, device, dtype,
        schedule=schedule, guard=state.guard, scaler=state.grad_scaler,
    )  # fmt: skip
    notes = [*model_config.notes(), *config.notes()]
    notes += [*config.notes_here(model_config, device.type, world.size), *dataset.notes, *resume_notes]
    if not config.eval_only and (note := check_space(out_dir, state_bytes(optimizers), config.keep_last)):
        notes.append(note)
    if no_compiler:
        notes.append(f"compile=True is switched off: {no_compiler}")
    if kernel != model_config.attention_backend:
        notes.append(
            f"attention_backend={kernel!r}; ms a layer: {kernels_ms or 'measured when the run began'}"
        )
    return Run(
        model_config, config, world, device, dtype, strategy, dataset, model, optimizers, step, state, source,
        stay, kernels_ms, notes,
    )  # fmt: skip


def begin(
    model_config: ModelArchitectureConfig,
    config: TrainConfig,
    world: World,
    data: dict[str, Any],
    measured: dict[str, Any],
    device: torch.device,
    dtype: torch.dtype,
) -> tuple[Path | None, RunState, set[int], list[str]]:
    """The checkpoint to resume from, if any, the state to begin with, the steps whose checkpoints stay, and what
    changed since. Raises InputError."""
    source = None
    if config.init_from != "scratch":
        source = checkpoint.find_checkpoint(config.out_dir, world=world)
    if source is None and config.init_from == "resume":
        raise InputError(
            f"init_from='resume', but {config.out_dir}/checkpoints holds none: pass --init_from=auto"
        )
    if source is None and config.eval_only and config.init_from == "auto":
        raise InputError(
            f"eval_only=True, but {config.out_dir}/checkpoints holds none: name another --out_dir, or pass "
            "--init_from=scratch to evaluate random weights"
        )
    state = RunState(
        muon_products=muon_products(device), data=data, measurement=measured, dtype=str(dtype)[6:]
    )
    stay, notes = set(), []
    if source is not None:
        resolved = {"model": asdict(model_config), "train": asdict(config)}
        state, saved = checkpoint.load_state(source)
        notes = check_resumable(source, state, saved, resolved, data["fingerprint"])
        # What was the best stays for this session, even where the best starts anew
        stay = {state.step, *([state.best["step"]] if state.best else [])}
        notes += take_up(state, data, measured, str(dtype)[6:])
        state.origin, state.session = "resume", state.session + 1
    elif config.init_from.startswith("hf:"):
        state.origin = "imported"
    state.wandb_run_id = state.wandb_run_id or secrets.token_hex(4)
    return source, state, stay, notes


def open_dataset(
    model_config: ModelArchitectureConfig, config: TrainConfig, world: World, data_root: Path
) -> Dataset:
    """What config.dataset names, as this process reads it. Raises InputError."""
    return Dataset(
        config.dataset,
        data_root,
        vocab_size=model_config.vocab_size,
        block_size=model_config.block_size,
        batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        seed=config.seed,
        eval_tokens=config.evaluated_tokens(model_config.block_size),
        data_dtype=None if config.data_dtype == "auto" else config.data_dtype,
        document_masking=config.document_masking,
        rank=world.rank,
        world_size=world.size,
    )


def prepare_embedded(dataset: str, world: World, data_root: Path) -> None:
    """The corpus that is always there is prepared on first use."""
    if "python_stdlib" in parse_mixture(dataset, data_root)[0]:
        if world.rank == 0 and not (data_root / "python_stdlib" / "meta.json").is_file():
            from tokenization import embedded

            print("preparing data/python_stdlib", flush=True)
            embedded.prepare(data_root / "python_stdlib")
        world.barrier()
