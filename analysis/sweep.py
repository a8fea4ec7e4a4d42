"""Runs still missing from a comparison, trained one after another.

A run that is done is left alone, one that broke off resumes from its checkpoint, so that the same command
again does what is missing."""

import ctypes
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from analysis.differences import ABSENT, learned_from, names_that_differ
from analysis.logs import join_logs
from analysis.runs import Run, read_run
from analysis.selection import LOGS
from analysis.sweep_plan import Planned
from base.errors import EXIT_INPUT, EXIT_STOPPED, InputError

TRAIN = Path(__file__).resolve().parents[1] / "train.py"


def newest_run(folder: Path) -> Run | None:
    chains, _ = join_logs(folder.glob(LOGS))
    return read_run(chains[-1][1]) if chains else None


def is_done(run: Planned) -> bool:
    """Whether its folder holds the run, finished. Raises InputError where it holds another one."""
    found = newest_run(run.out_dir)
    if found is None:
        return False
    theirs, ours = found.choices, learned_from(run.config)
    differences = [
        f"{name}={shown(theirs, name)}, wanted {shown(ours, name)}"
        for name in names_that_differ([theirs, ours])
    ]
    if differences:
        raise InputError(
            f"{run.out_dir} holds a run with {'; '.join(differences)}: name another --sweep_dir, or delete it"
        )
    return found.status == "done"


def shown(choices: Mapping[str, Any], name: str) -> str:
    value = choices.get(name, ABSENT)
    return "nothing" if value is ABSENT else repr(value)


def end_with_parent() -> None:
    """Called in a child: Linux sends it SIGTERM when its parent dies, by kill -9 too."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def launch(command: Sequence[str]) -> tuple[int, bool]:
    """Runs the command; (its exit code, whether a signal came meanwhile). SIGTERM, SIGINT and SIGUSR1 are
    passed on to it, once each: it saves and ends."""
    # A session of its own, so that Ctrl-C reaches it through us, once
    child = subprocess.Popen(command, start_new_session=True, preexec_fn=end_with_parent)
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


def execute(
    runs: Sequence[Planned],
    n_processes: int = 1,
    launch: Callable[[Sequence[str]], tuple[int, bool]] = launch,
) -> tuple[list[Path], int]:
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
        print(f"{where}: {run.tokens:,} tokens: {shlex.join(['train.py', *run.flags])}", flush=True)
        ended, signalled = launch([*launcher, str(TRAIN), *run.flags])
        if signalled or ended == EXIT_STOPPED or was_stopped(run.out_dir):
            print(f"stopped; the same command resumes {run.out_dir}", flush=True)
            code = EXIT_STOPPED
            break
        if ended:
            code = ended if ended > 0 else 1
            print(f"{where}: train.py ended with {ended}", file=sys.stderr, flush=True)
            if ended == EXIT_INPUT:
                break
    return [run.out_dir for run in runs if any(run.out_dir.glob(LOGS))], code


def was_stopped(out_dir: Path) -> bool:
    """Whether a signal ended the newest run in the folder: torchrun's own exit code says 1 for everything."""
    found = newest_run(out_dir)
    return found is not None and (found.reason or "").startswith("signal")
