"""Runs still missing from a comparison, trained one after another: configurations x settings x seeds.

Each run has a folder of its own, named after what it is. A run that is done is left alone, one that broke
off goes on from its checkpoint, so that the same command again finishes what is missing."""

import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from analysis.runs import HOUSEKEEPING, join_logs, read_run
from base.errors import InputError
from training.config import load_config

TRAIN = Path(__file__).resolve().parents[1] / "train.py"
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
    if seeds < 1:
        raise InputError(f"--seeds={seeds} must be at least 1")
    if tokens is not None and tokens < 1:
        raise InputError(f"--tokens={tokens} must be at least 1")
    choices: dict[str, list[str]] = {}
    for setting in settings:
        key, equals, values = setting.partition("=")
        if not equals or not all(values.split(",")):
            raise InputError(f"--set {setting}: wanted key=value or key=v1,v2")
        if key in choices or key in OWN or (key == "max_iters" and tokens is not None):
            why = (
                "is set twice"
                if key in choices
                else "follows from --tokens"
                if key == "max_iters"
                else "is not for --set"
            )
            raise InputError(f"--set {setting}: {key} {why}")
        # A mixture is one value, as train.py takes it
        choices[key] = [values] if key == "dataset" and ":" in values else values.split(",")
    varied = [key for key, values in choices.items() if len(values) > 1]
    stems = [Path(file).stem for file in files]
    if len(set(stems)) < len(stems):
        raise InputError(f"two of the config files have one name: {', '.join(sorted(files))}")
    runs = []
    for seed, (file, stem), values in product(
        range(seeds), zip(files, stems, strict=True), product(*choices.values())
    ):
        chosen = dict(zip(choices, values, strict=True))
        flags = [file, *(f"--{key}={value}" for key, value in chosen.items()), f"--seed={seed}"]
        model, config = load_config(flags)
        step_tokens, steps, notes = config.tokens_per_step(model.block_size), config.max_iters, []
        if tokens is not None:
            steps = -(-tokens // step_tokens)
            flags.append(f"--max_iters={steps}")
            for name in ("warmup_iters", "lr_decay_iters"):
                fixed = getattr(config, name)
                if fixed is not None and fixed > steps:
                    notes.append(
                        f"{file}: {name}={fixed} reaches beyond the {steps} steps that --tokens={tokens} asks for"
                    )
        words = [stem, *(f"{key}={chosen[key].replace('/', '_')}" for key in varied)]
        out_dir = folder / "-".join([*words, f"seed{seed}"])
        flags += [
            f"--out_dir={out_dir}",
            *([] if config.init_from.startswith("hf:") else ["--init_from=auto"]),
        ]
        model, config = load_config(flags)
        runs.append(
            Planned(
                out_dir, flags, {"model": asdict(model), "train": asdict(config)}, steps * step_tokens, notes
            )
        )
    return runs


def is_done(run: Planned) -> bool:
    """Whether its folder holds the run, finished. Raises InputError where it holds another one."""
    chains, _ = join_logs(run.out_dir.glob("run_*.jsonl"))
    if not chains:
        return False
    found = read_run(chains[-1][1])
    there = found.start["config"]
    differences = [
        f"{key}={theirs!r}, wanted {value!r}"
        for part, fields in run.config.items()
        for key, value in fields.items()
        if key not in HOUSEKEEPING and (theirs := there.get(part, {}).get(key, value)) != value
    ]
    if differences:
        raise InputError(
            f"{run.out_dir} holds a run with {'; '.join(differences)}: name another --sweep_dir, or delete it"
        )
    return found.status == "done"


def execute(runs: Sequence[Planned], n_processes: int = 1) -> tuple[list[Path], int]:
    """Trains what is missing. Returns the folders that hold a log, and 0, or 75 where a signal ended it, or
    what the last run that failed ended with; after a run whose input is wrong (2) none is begun, after one
    that crashed the others are."""
    done = [is_done(run) for run in runs]  # of all, before the first is begun
    for note in dict.fromkeys(note for run in runs for note in run.notes):
        print(f"note: {note}", flush=True)
    launcher = [sys.executable]
    if n_processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={n_processes}"]
    code = 0
    for i, run in enumerate(runs, 1):
        where = f"[{i}/{len(runs)}] {run.out_dir}"
        if done[i - 1]:
            print(f"{where}: done already", flush=True)
            continue
        command = [*launcher, str(TRAIN), *run.flags]
        print(f"{where}: {run.tokens:,} tokens: {shlex.join(['train.py', *run.flags])}", flush=True)
        ended, signalled = launch(command)
        reason = reason_of(run.out_dir)
        if signalled or ended == 75 or reason.startswith("signal"):
            print(f"stopped; the same command goes on with {run.out_dir}", flush=True)
            code = 75
            break
        if ended:
            code = ended if ended > 0 else 1
            print(f"{where}: train.py ended with {ended}", file=sys.stderr, flush=True)
            if ended == 2:
                break
    return [run.out_dir for run in runs if any(run.out_dir.glob("run_*.jsonl"))], code


def launch(command: Sequence[str]) -> tuple[int, bool]:
    """Runs the command; (its exit code, whether a signal came meanwhile). SIGTERM, SIGINT and SIGUSR1 are
    passed on to it, once each: it saves and ends."""
    child = subprocess.Popen(command, start_new_session=True)  # so that Ctrl-C reaches it through us, once
    received = []

    def forward(number: int, frame: object) -> None:
        received.append(number)
        child.send_signal(number)

    before: Mapping[int, Any] = {
        n: signal.signal(n, forward) for n in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    }
    try:
        return child.wait(), bool(received)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def reason_of(out_dir: Path) -> str:
    """How the newest run in the folder ended: torchrun's own exit code says 1 for everything."""
    chains, _ = join_logs(out_dir.glob("run_*.jsonl"))
    return (read_run(chains[-1][1]).reason if chains else None) or ""
