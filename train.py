"""Trains a language model from scratch.

    python train.py config/quickstart.py
    python train.py config/full_qwen3_0.6b.py --max_iters=10 --compile=False
    torchrun --standalone --nproc_per_node=2 train.py config/full_qwen3_1.5b.py --use_zero1=True
    python train.py config/full_qwen3_1.5b.py --print_config     # the resolved configuration as JSON, and exit

A config file sets fields of ModelArchitectureConfig (model_config.py) and TrainConfig (training/config.py);
flags overrule it. The run folder, `out_dir`, receives a log of JSON lines and checkpoints; the same command
again goes on from the newest. Exit codes: 0 done, 2 wrong input, 75 stopped by a signal after saving, 1
anything else."""

import contextlib
import json
import logging
import os
import secrets
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from base import cli
from base.errors import InputError, input_errors
from base.fields import knob
from base.files import writable_folder
from base.provenance import git_state, versions
from hardware.device import compile_problem, keep_freed_memory, select_device, select_dtype
from inference.samples import TextSampler
from model_builder import ConfigurableGPT
from model_config import ModelArchitectureConfig
from reporting import instruments
from reporting.dashboard import check_rich
from reporting.journal import Journal
from reporting.meters import EnergyMeter, StepTimer
from tokens.dataset import Dataset, tokenizer_files
from tokens.mixture import parse_mixture
from tokens.order import dropout_seed
from training import checkpoint, flops
from training.attention import choose_kernel
from training.config import TrainConfig, load_config_and
from training.evaluate import evaluate
from training.fp8 import check_fp8
from training.optim import StepGuard, learning_rate_at, set_learning_rate, state_bytes
from training.parallel import assign_shard, build_strategy
from training.world import StopSignals, StopVote, World, exit_with

ROOT = Path(__file__).resolve().parent
EXIT_STOPPED = 75


@dataclass(kw_only=True)
class PrintOptions:
    print_config: bool = knob(False, "print the resolved configuration as JSON, and end")


def main(argv: Sequence[str]) -> int:
    logging.basicConfig(format="%(message)s")
    if "--help" in argv or "-h" in argv:
        print(cli.help_text(__doc__, PrintOptions, ModelArchitectureConfig, TrainConfig))
        return 0
    with input_errors():
        model_config, config, own = load_config_and(argv, PrintOptions)
        derived = derived_figures(model_config, config)
    if own.print_config:
        if os.environ.get("RANK", "0") == "0":
            print(
                json.dumps(
                    {"model": asdict(model_config), "train": asdict(config), "derived": derived}, indent=2
                )
            )
        return 0

    with input_errors():
        world = World.from_environment()
        stop = StopSignals()
        keep_freed_memory()
        device = select_device(config.device, world.local_rank, world.local_size)
    with world.connected(device, config.dist_timeout_s):
        return train(model_config, config, derived, world, device, stop, argv)


def derived_figures(model_config: ModelArchitectureConfig, config: TrainConfig) -> dict[str, int]:
    try:
        with torch.device("meta"):
            model = ConfigurableGPT(model_config)
    except (RuntimeError, TypeError, OverflowError) as error:  # torch on sizes beyond 64 bits
        raise InputError(f"a model of this size cannot be: {str(error).splitlines()[0]}") from error
    return {
        "params": model.get_num_params(),
        "params_non_embedding": model.get_num_params_non_embedding(),
        "flops_per_token": flops.flops_per_token(model_config),
        "tokens_per_step": config.tokens_per_step(model_config.block_size),
    }


def train(
    model_config: ModelArchitectureConfig,
    config: TrainConfig,
    derived: dict[str, int],
    world: World,
    device: torch.device,
    stop: StopSignals,
    argv: Sequence[str],
) -> int:
    """The whole run of one process; returns its exit code."""
    resolved = {"model": asdict(model_config), "train": asdict(config)}
    tokens_per_step = derived["tokens_per_step"]
    # Build. Whatever is wrong with the input ends here, before a file is touched.
    with input_errors():
        dtype = select_dtype(config.dtype, device)
        check_fp8(config, model_config, device)
        if config.dashboard:
            check_rich()
        strategy = build_strategy(config, world, device, dtype)
        out_dir = writable_folder(config.out_dir)
        prepare_embedded(config.dataset, world)
        dataset = Dataset(
            config.dataset,
            ROOT / "data",
            vocab_size=model_config.vocab_size,
            block_size=model_config.block_size,
            batch_size=config.batch_size,
            gradient_accumulation_steps=config.gradient_accumulation_steps,
            seed=config.seed,
            eval_iters=config.eval_iters,
            data_dtype=None if config.data_dtype == "auto" else config.data_dtype,
            document_masking=config.document_masking,
            rank=world.rank,
            world_size=world.size,
        )
        data, loader = dataset.record(config.max_iters), dataset.loader
        sampler = (
            TextSampler(config, dataset.folders[0], model_config.vocab_size) if config.sample_prompt else None
        )

        source = (
            None if config.init_from == "scratch" else checkpoint.find_checkpoint(config.out_dir, world=world)
        )
        if source is None and config.init_from == "resume":
            raise InputError(
                f"init_from='resume', but {config.out_dir}/checkpoints holds none: pass --init_from=auto"
            )
        from_hf = source is None and config.init_from.startswith("hf:")
        state: dict[str, Any] = {"step": 0, "trained_s": 0.0, "energy_j": 0.0, "best": None, "guard": None}
        state["wandb_run_id"] = secrets.token_hex(4)
        if source is not None:
            saved_state, saved_config = checkpoint.load_state(source)
            checkpoint.check_resumable(source, saved_state, saved_config, resolved, data["fingerprint"])
            state |= saved_state
        instruments.check_profile(config.profile, config.max_iters - state["step"])
        no_compiler = compile_problem(device) if config.compile else None
        kernel, kernels_ms = choose_kernel(
            model_config, config, device, dtype, world, state.get("attention_backend")
        )
        with torch.device("meta"):
            model = ConfigurableGPT(replace(model_config, attention_backend=kernel))
        seed = config.seed if source is None and not from_hf else None
        forward = strategy.wrap(model, seed, compile=config.compile and no_compiler is None)
        if from_hf:
            from inference.hf import load_hf

            load_hf(config.init_from.removeprefix("hf:"), model_config, into=model, assign=assign_shard)
        optimizers = strategy.optimizers(model, config)
        scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        if source is not None:
            checkpoint.load_weights(source, model)
            checkpoint.load_optimizers(source, model, optimizers)
            scaler.load_state_dict(state["grad_scaler"])
        space_note = None
        if not config.eval_only:
            space_note = checkpoint.check_space(out_dir, state_bytes(optimizers), config.keep_last)

    notes = (
        model_config.notes()
        + config.notes()
        + config.notes_here(model_config, device.type, world.size)
        + dataset.notes
    )
    notes += [space_note] if space_note else []
    if no_compiler:
        notes.append(f"compile=True is switched off: {no_compiler}")
    if kernel != model_config.attention_backend:
        notes.append(
            f"attention_backend={kernel!r}; ms a layer: {kernels_ms or 'measured when the run began'}"
        )
    if world.rank == 0:
        out_dir.mkdir(parents=True, exist_ok=True)
        if not config.eval_only:
            if source is not None:
                damaged = checkpoint.set_aside_damaged(out_dir, state["step"])
                notes += [f"a damaged checkpoint is now {path}" for path in damaged]
            elif aside := checkpoint.set_aside_run(out_dir, tokenizer_files(out_dir)):
                notes.append(f"the checkpoints of an earlier run are now in {aside}")
            for file in tokenizer_files(dataset.folders[0]):
                shutil.copy(file, out_dir)
    about = {
        "command": [Path(sys.argv[0]).name, *argv],
        "config": resolved,
        "model": {"architecture_name": model_config.get_architecture_name(), **derived},
        "data": data,
        "hardware": instruments.hardware(device, dtype)
        | {
            "world_size": world.size,
            "strategy": strategy.name,
            "attention_backend": kernel,
            "attention_ms": kernels_ms,
        },
        "versions": versions(),
        "git": git_state(),
        "start_step": state["step"],
    }
    journal = Journal(config, world, out_dir, about, state["wandb_run_id"])
    journal.introduce(model_config.summary(), notes)
    if source is not None:
        journal.say(f"going on from {source}; --init_from=scratch starts over")

    # The loop: evaluate, save, stop, step, log.
    autocast = torch.autocast(device.type, dtype) if dtype != torch.float32 else contextlib.nullcontext()
    start_step = step = state["step"]
    checkpoints = checkpoint.Checkpoints(
        out_dir, world, config, state["best"], step if source is not None else None
    )
    is_evaluated = lambda step: step >= config.max_iters or step % config.eval_interval == 0  # noqa: E731
    saved_step = step if source is not None else None
    # A signal may have cut off the evaluation of the step that it saved: that is made up for
    cut_off = source is not None and is_evaluated(step) and state.get("val_loss") is None
    guard = StepGuard(config, device, state["guard"])
    batches = loader.prefetched(step, device)
    timer, energy = StepTimer(state["trained_s"]), EnergyMeter(device, world, state["energy_j"])
    profile = instruments.StepProfile(config.profile if world.rank == 0 else 0, out_dir / "profile", device)
    checkpoint_interval = config.checkpoint_interval or config.eval_interval
    stopping = StopVote(world, stop)
    reason = "done"
    try:
        while True:
            last = step >= config.max_iters
            losses = {}

            evaluation_due = config.eval_only or (is_evaluated(step) and (step != saved_step or cut_off))
            if not stopping() and evaluation_due:
                for split in ("train", "val"):
                    losses[split] = evaluate(
                        model, dataset.evaluation_batches(split), device, autocast, world, stopping
                    )
                if stopping.agreed:
                    losses = {}
                else:
                    journal.evaluation(step, losses)
                    if sampler is not None:
                        journal.sample(step, config.sample_prompt, sampler(model, autocast))

            ending = last or bool(stopping.agreed)
            save_due = ending or (step > start_step and step % checkpoint_interval == 0)
            if save_due and step != saved_step and not config.eval_only:
                state = {
                    "step": step,
                    "tokens": step * tokens_per_step,
                    "trained_s": timer.trained_s,
                    "energy_j": energy(),
                    "val_loss": losses.get("val"),
                    "grad_scaler": scaler.state_dict(),
                    "guard": guard.state(),
                    "wandb_run_id": state["wandb_run_id"],
                    "attention_backend": kernel if model_config.attention_backend == "auto" else None,
                    "data": data,
                }
                # Between bad steps the weights stand still, and may be what is bad: those from before are
                # not removed for them
                prune = not guard.bad_in_a_row()
                checkpoints.save(
                    strategy.tensors(model, optimizers), state, resolved, wait=ending, prune=prune
                )
                saved_step = step
            elif step == saved_step:
                checkpoints.rate(step, losses.get("val"))
            for event in checkpoints.events():
                journal.checkpoint(event)

            if stopping.agreed:
                reason = f"signal {stopping.agreed}"
            if ending or config.eval_only:
                break

            timer.start()
            lr = learning_rate_at(step, config)
            set_learning_rate(optimizers, lr)
            step_loss = torch.zeros((), device=device)
            for micro_step in loader.own_micro_steps:
                batch = next(batches)
                if model_config.dropout:
                    torch.manual_seed(dropout_seed(config.seed, step, micro_step))
                with strategy.gradient_sync(model, last=micro_step == loader.own_micro_steps[-1]):
                    with autocast:
                        _, loss = forward(*batch)
                    # Every window is full, so the mean over micro-batches is the mean over the step's
                    # tokens. Ranks' gradients are averaged, their losses summed.
                    loss = loss / config.gradient_accumulation_steps
                    scaler.scale(loss * world.size).backward()
                step_loss += loss.detach()
            for optimizer in optimizers:
                scaler.unscale_(optimizer)
            grad_norm = strategy.clip(model, config.grad_clip or float("inf"))
            guard.step(optimizers, guard.check(grad_norm))
            for optimizer in optimizers:
                optimizer.zero_grad(set_to_none=strategy.frees_gradients)
            scaler.update()
            step += 1

            logging_step = step % config.log_interval == 0 or step in (start_step + 1, config.max_iters)
            if logging_step:
                loss_now, norm_now = (
                    world.sum(step_loss).item(),
                    grad_norm.item(),
                )  # waits for the device: the clock is right
            timer.stop(steps=1)
            if (table := profile.step()) is not None:
                journal.say(table)
            if logging_step:
                journal.train(
                    step,
                    loss=loss_now,
                    grad_norm=norm_now,
                    lr=lr,
                    dt_ms=timer.lap_ms(),
                    skipped_steps=guard.skipped(),
                    energy_j=energy(),
                    device=device,
                )
            if (
                logging_step or step % config.max_bad_steps == 0
            ) and guard.bad_in_a_row() >= config.max_bad_steps:
                reason = f"error: {guard.bad_in_a_row()} steps in a row were skipped, gradient norm {grad_norm.item():.3g}"
                checkpoints.finish()  # an asynchronous one must not be cut off
                for event in checkpoints.events():
                    journal.checkpoint(event)
                break
    except BaseException as error:
        reason = f"error: {type(error).__name__}: {error}"
        raise
    finally:
        journal.end(reason, step, timer.trained_s)
        batches.close()
    if reason == "done":
        if step == start_step and not config.eval_only:
            journal.say(
                f"{out_dir} is at step {step} of {config.max_iters}: nothing to train; --init_from=scratch starts over"
            )
        return 0
    if reason.startswith("error"):
        good = step - guard.bad_in_a_row()
        journal.say(
            f"{reason}; the last good step led to {good}: look at the data, lower learning_rate, move the checkpoints away"
        )
        journal.say(
            f"that are later than the trouble, and go on from the newest left in {out_dir}/checkpoints"
        )
        return 1
    then = "begins again" if config.eval_only else "goes on from there"
    journal.say(f"stopped by {reason} at step {step}; the same command {then}")
    return EXIT_STOPPED


def prepare_embedded(dataset: str, world: World) -> None:
    """The corpus that is always there is prepared on first use."""
    if "python_stdlib" in parse_mixture(dataset, ROOT / "data")[0]:
        if world.rank == 0 and not (ROOT / "data" / "python_stdlib" / "meta.json").is_file():
            from tokenization import embedded

            print("preparing data/python_stdlib", flush=True)
            embedded.prepare(ROOT / "data" / "python_stdlib")
        world.barrier()


if __name__ == "__main__":
    exit_with(main, sys.argv[1:])
