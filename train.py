"""Trains a language model from scratch.

    python train.py config/quickstart.py
    python train.py config/full_qwen3_0.6b.py --max_iters=10 --compile=False
    torchrun --standalone --nproc_per_node=2 train.py config/full_qwen3_1.5b.py --use_zero1=True
    python train.py config/full_qwen3_1.5b.py --print_config     # the resolved configuration as JSON, and exit

A config file sets fields of ModelArchitectureConfig (model_config.py) and TrainConfig (training/config.py);
flags overrule it. The run folder, `out_dir`, receives a log of JSON lines and checkpoints; the same command
again resumes from the newest. Exit codes: 0 done, 2 wrong input, 75 stopped by a signal after saving, 1
anything else."""

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from base import cli
from base.errors import EXIT_STOPPED, input_errors
from base.fields import knob
from base.text import log_to_terminal
from hardware.device import keep_freed_memory, select_device
from inference.hf.vocabularies import StartFromHF
from inference.samples import TextSampler
from model_config import ModelArchitectureConfig
from reporting.dashboard import check_dashboard
from reporting.instruments import StepProfile, check_profile
from reporting.journal import Journal
from training.config import TrainConfig, load_config_and
from training.optim import learning_rate_at
from training.run import Run, build_run
from training.sizes import derived_figures
from training.world import StopSignals, StopVote, World, exit_with, speaks_first

ROOT = Path(__file__).resolve().parent
Schedule = Callable[[int, TrainConfig], float]


@dataclass(kw_only=True)
class PrintOptions:
    print_config: bool = knob(False, "print the resolved configuration as JSON, and end")


def main(argv: Sequence[str], schedule: Schedule = learning_rate_at, keep_memory: bool = True) -> int:
    """`schedule` gives the learning rate of a step; `keep_memory` is the allocator's setting of keep_freed_memory."""
    log_to_terminal()
    if cli.wants_help(argv):
        print(cli.help_text(__doc__, PrintOptions, ModelArchitectureConfig, TrainConfig))
        return 0
    with input_errors(speaks_first):
        model_config, config, options = load_config_and(argv, PrintOptions)
        if options.print_config:
            derived = derived_figures(model_config, config)
            if os.environ.get("RANK", "0") == "0":
                whole = {"model": asdict(model_config), "train": asdict(config), "derived": derived}
                print(json.dumps(whole, indent=2))
            return 0
        world, stop = World.from_environment(), StopSignals()
        if keep_memory:
            keep_freed_memory()
        device = select_device(config.device, world.local_rank, world.local_size)
        with world.connected(device, config.dist_timeout_s):
            return train(model_config, config, world, device, stop, argv, schedule)


def train(
    model_config: ModelArchitectureConfig,
    config: TrainConfig,
    world: World,
    device: torch.device,
    stop: StopSignals,
    argv: Sequence[str],
    schedule: Schedule = learning_rate_at,
) -> int:
    """The whole run of one process; returns its exit code. What is wrong with the input is said before a
    file is touched."""
    check_dashboard(config)
    imported = StartFromHF(model_config, config.resize_vocabulary, config.seed)
    run = build_run(
        model_config, config, world, device,
        data_root=ROOT / "data", load_weights=imported, schedule=schedule,
    )  # fmt: skip
    check_profile(config.profile, config.max_iters - run.start_step)
    sampler = (
        TextSampler(config, run.dataset.folders[0], model_config.vocab_size) if config.sample_prompt else None
    )
    moved = run.open_folder()
    if world.rank == 0 and not config.eval_only:
        imported.save_beside(run.out_dir)
    journal = Journal(run, [Path(sys.argv[0]).name, *argv])
    journal.introduce([*run.notes, *moved])
    reason = "done"
    try:
        reason = loop(run, journal, StopVote(world, stop), sampler)
    except BaseException as error:
        reason = f"error: {type(error).__name__}: {error}"
        raise
    finally:
        journal.end(reason)
        run.close()
    return conclude(run, journal, reason)


def loop(run: Run, journal: Journal, stopping: StopVote, sampler: TextSampler | None) -> str:
    """Evaluate, save, stop, step, log. Returns the reason of its end."""
    profiled = run.config.profile if run.world.rank == 0 else 0
    profile = StepProfile(profiled, run.out_dir / "profile", run.device)
    while True:
        if not stopping() and run.evaluation_due and (losses := run.evaluate(stopping)):
            journal.evaluation(losses)
            if sampler is not None:
                journal.sample(run.config.sample_prompt, sampler(run.model, run.train_step.autocast))

        ending = run.finished or bool(stopping.agreed)
        if (ending or run.save_due) and not run.config.eval_only:
            run.save(wait=ending)
        journal.checkpoints()

        if stopping.agreed:
            return f"signal {stopping.agreed}"
        if ending or run.config.eval_only:
            return "done"

        read = run.logging_due
        result = run.step(read)
        if (table := profile.step()) is not None:
            journal.say(table)
        if read:
            journal.train(result)
        if (read or run.state.step % run.config.max_bad_steps == 0) and (bad := run.bad_steps()):
            run.checkpoints.finish()  # an asynchronous one must not be cut off
            journal.checkpoints()
            return f"error: {bad} steps in a row were skipped, gradient norm {float(result.grad_norm):.3g}"


def conclude(run: Run, journal: Journal, reason: str) -> int:
    """Says how it ended and what to do next; the exit code."""
    step, out_dir = run.state.step, run.out_dir
    if reason == "done":
        if step == run.start_step and not run.config.eval_only:
            there = f"{out_dir} is at step {step} of {run.config.max_iters}: nothing to train"
            journal.say(f"{there}; --init_from=scratch starts over")
        return 0
    if reason.startswith("error"):
        good = step - run.train_step.guard.bad_in_a_row()
        journal.say(
            f"{reason}; the last good step led to {good}: look at the data, lower learning_rate, move the"
        )
        journal.say(
            f"later checkpoints away, and resume from the newest that is left in {out_dir}/checkpoints"
        )
        return 1
    then = "begins again" if run.config.eval_only else "resumes from there"
    journal.say(f"stopped by {reason} at step {step}; the same command {then}")
    return EXIT_STOPPED


if __name__ == "__main__":
    exit_with(main, sys.argv[1:])
