"""Which runs are compared: words of a command line, or the newest, -> the logs of each."""

import fnmatch
import glob
import os
from collections.abc import Sequence
from pathlib import Path

from analysis.logs import join_logs
from base.errors import InputError
from base.fields import did_you_mean

LOGS = "run_*.jsonl"


def find_runs(words: Sequence[str], latest: int | None) -> tuple[list[list[Path]], list[str]]:
    """The logs of each run asked for, by words (folders of a run or of runs, files, patterns) or as the
    `latest` newest below the current folder, and a line on each log that was passed over. Raises InputError
    where there is nothing to compare."""
    if latest is not None and words:
        raise InputError(f"--latest={latest} and {words[0]} are two ways to choose the runs: give one")
    if latest is None and not words:
        raise InputError("which runs? Name folders or logs of runs, or say --latest=3")
    runs: list[list[Path]] = []
    left_out: dict[Path, str] = {}
    if latest is not None:
        runs = newest(latest, left_out)
    for path in [Path(p) for word in words for p in paths_of(word)]:
        runs += runs_of(path, left_out)
    if not runs:
        reasons = "; ".join(left_out.values()) or f"no out*/run_*.jsonl below {Path.cwd()}"
        raise InputError(f"no run to compare: {reasons}. Train one first, or name its folder")
    once = {tuple(map(os.path.realpath, files)): files for files in reversed(runs)}
    return list(once.values()), sorted(left_out.values())


def paths_of(word: str) -> list[str]:
    """What a word names: itself, or as a pattern what fits it."""
    return [word] if os.path.lexists(word) else sorted(glob.glob(word)) or [word]


def newest(n: int, left_out: dict[Path, str]) -> list[list[Path]]:
    """The logs of the n newest runs in out*/ and out*/*/."""
    assert n > 0
    chains = []
    for folder in {
        path.parent for pattern in ("out*", "out*/*") for path in Path().glob(f"{pattern}/{LOGS}")
    }:
        found, passed_over = join_logs(folder.glob(LOGS))
        chains += found
        left_out |= passed_over
    return [files for _, files in sorted(chains)[-n:]]


def runs_of(path: Path, left_out: dict[Path, str]) -> list[list[Path]]:
    """The runs that one path names: the newest in a folder, or in each of its folders; or the run that a
    log is a part of. Raises InputError where it names nothing."""
    if not os.path.lexists(path):
        raise InputError(f"{path} is not there{did_you_mean(path, map(str, Path().glob('out*')))}")
    if not os.path.isdir(path) or fnmatch.fnmatch(path.name, LOGS):
        found, passed_over = join_logs({path, *path.parent.glob(LOGS)})
        left_out |= {p: line for p, line in passed_over.items() if p == path}
        return [files for _, files in found if path in files]
    folders = [path] if any(path.glob(LOGS)) else sorted({p.parent for p in path.glob(f"*/{LOGS}")})
    if not folders:
        raise InputError(f"{path} holds no {LOGS}: name the out_dir of a run, or a folder of them")
    runs = []
    for folder in folders:
        found, passed_over = join_logs(folder.glob(LOGS))
        runs += [files for _, files in found[-1:]]
        left_out |= passed_over
    return runs
