"""Logs that continue each other -> one run, and what it says along each axis."""

import math
import os
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import median
from typing import Any

from analysis.differences import learned_from, run_on
from analysis.logs import BITS, LOSS, NEEDED, lines_of, on_one_line, parse_event
from analysis.measures import alike, measurement_of, same, why_not_ranked
from base.errors import reading

SILENCE_S = 300  # a log without run_end that grew less than this ago belongs to a run that is still going
# What a fair comparison holds equal; bytes are those of the text, time is that of training, in seconds
AXES = ("tokens", "bytes", "FLOPs", "time")


@dataclass
class Run:
    """One training run, its logs joined. Events are in the order of steps, without the steps that a resume
    took back."""

    files: list[Path]
    first_step: int  # of the oldest log: 0, unless what came before it is missing
    begun_from: Any  # init_from of the oldest log; None where it does not say
    out_dir: str
    start: dict[str, Any]  # run_start of the newest log
    trains: list[dict[str, Any]]
    evals: list[dict[str, Any]]
    tokens: int
    time_s: float  # of training, without evaluation and saving
    time_is_wall: bool  # as run_end has it, else the sum of the logged steps
    status: str  # done, stopped (by a signal), crashed, running
    reason: str | None  # of the newest log's run_end, if it has one
    damaged_lines: int
    skipped_steps: int | None  # for gradients that were not finite; None where the run reports none
    energy_j: float | None  # that the device reported
    measurement: dict[str, Any]  # what its evaluations are of (analysis/measures.py)
    other_evals: int  # evaluations of earlier sessions that were of something else, and are left out
    label: str = ""  # out_dir, and which run in it where the comparison has several

    @property
    def model(self) -> dict[str, Any]:
        return self.start["model"]

    @property
    def short_name(self) -> str:
        return self.model["architecture_name"].partition(" (")[0]

    @property
    def seed(self) -> int | None:
        seed = self.start["config"]["train"].get("seed")
        return seed if type(seed) is int else None

    @property
    def data(self) -> str | None:
        """What was read: the fingerprint of dataset and tokenizer, or the dataset's name where a log has
        none."""
        return self.start["data"].get("fingerprint") or self.start["data"].get("dataset")

    @property
    def bytes_per_token(self) -> float | None:
        """Of the training text; None where the log does not say."""
        return self.start["data"].get("train_bytes_per_token")

    @property
    def machine(self) -> str:
        hardware = self.start["hardware"]
        return f"{hardware.get('world_size')} x {hardware.get('device_name')}"

    @cached_property
    def choices(self) -> dict[str, Any]:
        """The configuration as far as it decides what is learned."""
        return learned_from(self.start["config"], self.begun_from)

    @cached_property
    def machine_choices(self) -> dict[str, Any]:
        """The configuration as far as it decides how fast."""
        return run_on(self.start["config"])

    def along(self, events: Iterable[dict[str, Any]], key: str, axis: str) -> list[tuple[float, float]]:
        """(x, value) of each event that has the value, x in the units of the axis. Nothing for the time of
        a run whose step times are not all there, and for bytes that nobody counted."""
        if axis == "bytes" and self.bytes_per_token is None:
            return []
        if axis == "time" and (self.first_step > 0 or not all(e["s"] for e in self.trains)):
            return []
        position = {
            "tokens": lambda e: e["tokens"],
            "bytes": lambda e: e["tokens"] * self.bytes_per_token,
            "FLOPs": lambda e: self.model["flops_per_token"] * e["tokens"],
            "time": lambda e: self.seconds_at(e["step"]),
        }[axis]
        return [(position(e), e[key]) for e in events if e.get(key) is not None]

    def curve(self, key: str, axis: str = "tokens") -> list[tuple[float, float]]:
        """(x, value) of each evaluation that has the value."""
        return self.along(self.evals, key, axis)

    def seconds_at(self, step: int) -> float:
        """Training time up to a step, on the line between the logged steps around it."""
        steps, ends = self.clock
        i = bisect_left(steps, step)
        if i == len(steps) or steps[i] == step:
            return ends[min(i, len(steps) - 1)]
        return ends[i - 1] + (ends[i] - ends[i - 1]) * (step - steps[i - 1]) / (steps[i] - steps[i - 1])

    @cached_property
    def clock(self) -> tuple[list[int], list[float]]:
        """The logged steps and the training time up to each, from step 0."""
        return [0, *(e["step"] for e in self.trains)], [0.0, *accumulate(e["s"] for e in self.trains)]

    def best(self, key: str) -> float | None:
        return min((value for _, value in self.curve(key)), default=None)

    def spikes(self) -> int:
        """Times that the logged training loss left its course: not finite, or above each of the 5 values
        logged before by more than 5 % and 6 times the usual change (the median of the last 20) between
        neighbours. Neighbours count once."""
        count, in_spike, calm = 0, False, []
        for loss in (e["loss"] for e in self.trains):
            spiked = loss is None
            if not spiked and len(calm) >= 5:
                usual = median(abs(b - a) for a, b in pairwise(calm))
                spiked = loss > max(calm[-5:]) + max(6 * usual, 0.05 * abs(calm[-1]))
            count += spiked and not in_spike
            in_spike = spiked
            if not spiked:
                calm = [*calm[-20:], loss]
        return count


@dataclass
class Session:
    """What one log says."""

    start: dict[str, Any]
    steps: list[dict[str, Any]]  # train and eval events
    others: list[dict[str, Any]]
    end: dict[str, Any]  # the last run_end; empty where there is none
    damaged_lines: int

    @property
    def begin(self) -> int:
        return self.start.get("start_step") or 0

    @cached_property
    def measurement(self) -> dict[str, Any]:
        return measurement_of(self.start)


def read_session(path: Path) -> Session:
    """One log that begins a run or resumes one. Raises InputError where it cannot be read."""
    parsed = [parse_event(line) for line in lines_of(path) if line.strip()]
    events = [event for event in parsed if event is not None]
    return Session(
        start=next(e for e in events if e["event"] == "run_start"),
        steps=[e for e in events if e["event"] in ("train", "eval")],
        others=[e for e in events if e["event"] not in NEEDED],
        end=next((e for e in reversed(events) if e["event"] == "run_end"), {}),
        damaged_lines=len(parsed) - len(events),
    )


def joined_steps(sessions: Iterable[Session]) -> dict[tuple[str, int], dict[str, Any]]:
    """The train and eval events of a run by kind and step, each with `tokens` and, if it is a train event,
    the seconds `s` of its steps."""
    joined: dict[tuple[str, int], dict[str, Any]] = {}
    for session in sessions:
        # What the earlier log did beyond the checkpoint that this one began from is lost
        joined = {at: event for at, event in joined.items() if at[1] <= session.begin}
        before, tokens_per_step = session.begin, 0.0
        for event in session.steps:
            step = event["step"]
            if event["event"] == "train":  # dt_ms is the mean over the steps since the event before
                event["s"], before = (event.get("dt_ms") or 0) / 1e3 * max(0, step - before), step
                tokens_per_step = (event.get("tokens") or 0) / max(1, step)
            if event.get("tokens") is None:
                event["tokens"] = round(step * tokens_per_step)
            joined[event["event"], step] = event | {"measurement": session.measurement}
    return joined


def read_run(files: Sequence[Path]) -> Run:
    """The logs of one run, oldest first, as one. Raises InputError where one cannot be read."""
    sessions = [read_session(path) for path in files]
    start, end = sessions[-1].start, sessions[-1].end
    joined = joined_steps(sessions)
    trains, evals = ([joined[at] for at in sorted(joined) if at[0] == kind] for kind in ("train", "eval"))
    measurement = sessions[-1].measurement
    measured = [e for e in evals if alike(e["measurement"], measurement)]
    wall_s = end.get("wall_s")  # counts the sessions before a resume too, as the sum does
    status, reason = how_it_ended(end, files[-1])
    return Run(
        files=list(files),
        first_step=sessions[0].begin,
        begun_from=sessions[0].start["config"]["train"].get("init_from"),
        out_dir=on_one_line(str(out_dir_of(start, files[-1].parent))),
        start=start,
        trains=trains,
        evals=measured,
        measurement=measurement,
        other_evals=len(evals) - len(measured),
        tokens=max((e["tokens"] for e in (*trains[-1:], *evals[-1:], end) if e.get("tokens")), default=0),
        time_s=sum(e["s"] for e in trains) if wall_s is None else wall_s,
        time_is_wall=wall_s is not None,
        status=status,
        reason=reason,
        damaged_lines=sum(session.damaged_lines for session in sessions),
        skipped_steps=skipped_steps([*trains, end], [e for session in sessions for e in session.others]),
        energy_j=max((e["energy_j"] for e in (*trains, end) if e.get("energy_j") is not None), default=None),
    )


def out_dir_of(start: dict[str, Any], folder: Path) -> Path:
    """The run folder as the run named it, or where its logs now lie if they were copied from elsewhere."""
    named = start["config"]["train"].get("out_dir")
    if not isinstance(named, str):
        return folder
    here = folder == Path() or os.path.realpath(folder) == os.path.realpath(named)
    return Path(named) if here else folder


def how_it_ended(end: dict[str, Any], newest: Path) -> tuple[str, str | None]:
    """(status, reason) by the run_end of the newest log; without one by how long ago the log grew."""
    if end:
        reason = end["reason"]
        return {"signal": "stopped", "error:": "crashed"}.get(reason.partition(" ")[0], reason), reason
    with reading(newest):
        silent_s = time.time() - newest.stat().st_mtime
    return "crashed" if silent_s > SILENCE_S else "running", None


def skipped_steps(counted: Iterable[dict[str, Any]], others: Iterable[dict[str, Any]]) -> int | None:
    """Optimizer steps left out: the highest running count, or the events that say so; None where a log has
    neither."""
    counts = [e["skipped_steps"] for e in counted if e.get("skipped_steps") is not None]
    events = sum(e["event"].startswith("skip") for e in others)
    return max([*counts, events]) if counts or events else None


def read_runs(chains: Iterable[Sequence[Path]]) -> list[Run]:
    """All the runs, the best first."""
    runs = [read_run(files) for files in chains]
    often = Counter(run.out_dir for run in runs)
    for run in runs:
        which = on_one_line(run.files[0].stem.removeprefix("run_"))
        run.label = run.out_dir if often[run.out_dir] == 1 else f"{run.out_dir} ({which})"
    key = ranking_key(runs)
    best = {run.label: math.inf if run.best(key) is None else run.best(key) for run in runs}
    ranked = forbidden(runs) is None
    return sorted(runs, key=lambda run: (best[run.label] if ranked else 0, run.label))


def forbidden(runs: Sequence[Run]) -> str | None:
    """Why the evaluations of the runs are not ranked; None where they are."""
    measurements = [run.measurement for run in runs if run.evals]
    return why_not_ranked(measurements, by_bytes=ranking_key(runs) == BITS) if measurements else None


def useful_axes(runs: Sequence[Run]) -> list[str]:
    """Those of AXES that say something: bytes where the runs differ in the bytes of a token, which is where they are
    not tokens once more."""
    return [axis for axis in AXES if axis != "bytes" or len({run.bytes_per_token for run in runs}) > 1]


def ranking_key(runs: Sequence[Run]) -> str:
    """Bits per byte where every evaluated run has them, else validation loss: what ranks the runs and is
    drawn."""
    evaluated = [run for run in runs if run.evals]
    if not evaluated or any(run.best(BITS) is None for run in evaluated):
        return LOSS
    # Of one measurement the loss ranks, too, and bytes that were counted here and estimated there do not
    first = evaluated[0].measurement
    one = all(same(first, run.measurement) for run in evaluated)
    return LOSS if one and len({run.measurement["bytes"] for run in evaluated}) > 1 else BITS
