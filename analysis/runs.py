"""Run logs -> runs: which logs were asked for, which of them continue each other, and what each says.

A resumed run writes a new log with start_step > 0; the logs of a folder that continue each other are one
run here."""

import glob
import json
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

from base.errors import InputError
from base.fields import did_you_mean

SILENCE_S = 300  # a log without run_end that grew less than this ago belongs to a run that is still going
BITS, LOSS = "val_bits_per_byte", "val_loss"

# What an event must have to be of use, and which fields are numbers, or null, where they are there.
NEEDED = {
    "run_start": ("config", "model"),
    "train": ("step", "loss"),
    "eval": ("step", LOSS),
    "run_end": ("reason",),
}
NUMBERS = (
    *(
        "time",
        "start_step",
        "step",
        "tokens",
        "loss",
        LOSS,
        BITS,
        "dt_ms",
        "tokens_per_s",
        "mfu",
        "memory_gb",
        "wall_s",
    ),
    *("grad_norm", "skipped_steps", "energy_j"),
)
AXES = ("tokens", "FLOPs", "time")  # what a fair comparison holds equal; time is that of training, in seconds

# Fields of a configuration that decide where a run writes and how often it looks, not what it learns.
# arch_preset is there in the fields that it sets.
HOUSEKEEPING = (
    *(
        "seed",
        "arch_preset",
        "out_dir",
        "init_from",
        "eval_only",
        "eval_interval",
        "log_interval",
        "checkpoint_interval",
    ),
    *("keep_last", "always_save_checkpoint", "async_checkpoint", "dist_timeout_s", "device", "dashboard"),
    *("wandb_log", "wandb_project", "wandb_run_name", "tensorboard_log", "trackio_log"),
)
# Fields without effect unless another has one of these values
ONLY_WITH = {
    "rope_theta": ("position_encoding", ("rope",)),
    "rope_scaling": ("position_encoding", ("rope",)),
    "rope_scaling_factor": ("rope_scaling", ("llama3",)),
    "rope_low_freq_factor": ("rope_scaling", ("llama3",)),
    "rope_high_freq_factor": ("rope_scaling", ("llama3",)),
    "rope_original_block_size": ("rope_scaling", ("llama3",)),
    "muon_learning_rate": ("optimizer", ("muon",)),
    "wsd_decay_fraction": ("lr_schedule", ("wsd",)),
}


@dataclass
class Run:
    """One training run, its logs joined. Events are in the order of steps, without the steps that a resume
    took back."""

    files: list[Path]
    first_step: int  # of the oldest log: 0, unless what came before it is missing
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
    skipped_steps: (
        int | None
    )  # that the run reports, for gradients that were not finite; None where it reports none
    energy_j: float | None  # that the device reported
    label: str = ""  # out_dir, and which run in it where the comparison has several

    @property
    def model(self) -> dict[str, Any]:
        return self.start["model"]

    @property
    def short_name(self) -> str:
        return self.model["architecture_name"].partition(" (")[0]

    @property
    def seed(self) -> int | None:
        return self.start["config"]["train"].get("seed")

    @property
    def data(self) -> Any:
        """What was read: the fingerprint of dataset and tokenizer, or the dataset's name where a log has
        none."""
        data = self.start.get("data") or {}
        return data.get("fingerprint") or data.get("dataset")

    @property
    def machine(self) -> str:
        hardware = self.start.get("hardware") or {}
        return f"{hardware.get('world_size')} x {hardware.get('device_name')}"

    def along(self, events: Iterable[dict[str, Any]], key: str, axis: str) -> list[tuple[float, float]]:
        """(x, value) of each event that has the value, x in the units of the axis. Nothing for the time of
        a run whose step times are not all there."""
        if axis == "time" and (self.first_step > 0 or not all(e["s"] for e in self.trains)):
            return []
        position = {
            "tokens": lambda e: e["tokens"],
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

    def choices(self) -> dict[str, Any]:
        """The configuration as far as it decides what is learned: without housekeeping and fields without
        effect."""
        config = self.start["config"]
        fields = {**(config["model"] if isinstance(config.get("model"), dict) else {}), **config["train"]}
        chosen = {k: v for k, v in fields.items() if k not in HOUSEKEEPING}
        for name, (other, values) in ONLY_WITH.items():
            if fields.get(other) not in values:
                chosen.pop(name, None)
        weights = fields.get("init_from")
        return chosen | (
            {"init_from": weights} if isinstance(weights, str) and weights.startswith("hf:") else {}
        )


def parse_event(line: str) -> dict[str, Any] | None:
    """The event on one line of a log, its figures numbers or None (as is what was not finite); None for a
    damaged line."""
    try:
        event = json.loads(line, parse_constant=lambda _: None)
    except ValueError:
        return None
    if not isinstance(event, dict) or not all(
        event.get(key) is None or is_number(event[key]) for key in NUMBERS
    ):
        return None
    kind = event.get("event")
    if not isinstance(kind, str) or any(key not in event for key in NEEDED.get(kind, ())):
        return None
    if kind in ("train", "eval") and not isinstance(event["step"], int):
        return None
    if kind == "run_start":
        config, model = event["config"], event["model"]
        if (
            not isinstance(config, dict)
            or not isinstance(config.setdefault("train", {}), dict)
            or not isinstance(model, dict)
        ):
            return None
        if not (is_number(model.get("params")) and is_number(model.get("flops_per_token"))):
            return None
        return event if isinstance(model.get("architecture_name"), str) else None
    return event


def is_number(value: Any) -> bool:
    return (
        isinstance(value, int | float) and -1e300 < value < 1e300
    )  # no NaN, and no whole number beyond floats


def read_start(path: Path) -> dict[str, Any] | None:
    """The run_start event of a log, found without reading on."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return next((e for e in map(parse_event, file) if e and e.get("event") == "run_start"), None)


def join_logs(paths: Iterable[Path]) -> tuple[list[tuple[float, list[Path]]], dict[Path, str]]:
    """The runs that the logs of one folder make up, oldest first, each as (unix time of its last start,
    logs that continue each other), and a line on each log that begins no run."""
    starts, left_out = [], {}
    for path in paths:
        start = read_start(path)
        start_step = (start or {}).get("start_step") or 0
        if start is None:
            left_out[path] = f"{path} {'has no run_start' if path.stat().st_size else 'is empty'}"
        elif start_step > 0 and start["config"]["train"].get("eval_only"):
            left_out[path] = (
                f"{path} only evaluates a checkpoint"  # perhaps while the run that it is from goes on
            )
        else:
            starts.append((start.get("time") or path.stat().st_mtime, path, start_step))
    chains: list[tuple[float, list[Path]]] = []
    for started, path, start_step in sorted(starts):
        chains.append((started, [*chains.pop()[1], path] if start_step > 0 and chains else [path]))
    return chains, left_out


def find_runs(words: Sequence[str], latest: int | None) -> tuple[list[list[Path]], list[str]]:
    """The logs of each run asked for, by words (folders of a run or of runs, files, patterns) or as the
    `latest` newest below the current folder, and a line on each log that was passed over. Raises InputError
    where there is nothing to compare."""
    runs: list[list[Path]] = []
    left_out: dict[Path, str] = {}
    if latest is not None:
        if words:
            raise InputError(f"--latest={latest} and {words[0]} are two ways to choose the runs: give one")
        if latest < 1:
            raise InputError(f"--latest={latest} must be at least 1")
        chains = []
        for folder in {
            path.parent for pattern in ("out*", "out*/*") for path in Path().glob(f"{pattern}/run_*.jsonl")
        }:
            found, passed_over = join_logs(folder.glob("run_*.jsonl"))
            chains += found
            left_out |= passed_over
        runs = [files for _, files in sorted(chains)[-latest:]]
    elif not words:
        raise InputError("which runs? Name folders or logs of runs, or say --latest=3")
    for path in [
        Path(p)
        for word in words
        for p in ([word] if os.path.exists(word) else sorted(glob.glob(word)) or [word])
    ]:
        if not path.exists():
            raise InputError(f"{path} is not there{did_you_mean(path, map(str, Path().glob('out*')))}")
        if path.is_dir():
            folders = (
                [path]
                if any(path.glob("run_*.jsonl"))
                else sorted({p.parent for p in path.glob("*/run_*.jsonl")})
            )
            if not folders:
                raise InputError(
                    f"{path} holds no run_*.jsonl: name the out_dir of a run, or a folder of them"
                )
            for folder in folders:
                found, passed_over = join_logs(folder.glob("run_*.jsonl"))
                runs += [files for _, files in found[-1:]]
                left_out |= passed_over
        else:  # the run that the log is a part of
            found, passed_over = join_logs({path, *path.parent.glob("run_*.jsonl")})
            runs += [files for _, files in found if path in files]
            left_out |= {p: line for p, line in passed_over.items() if p == path}
    if not runs:
        reasons = "; ".join(left_out.values()) or f"no out*/run_*.jsonl below {Path.cwd()}"
        raise InputError(f"no run to compare: {reasons}. Train one first, or name its folder")
    return list(
        {tuple(path.resolve() for path in files): files for files in reversed(runs)}.values()
    ), sorted(left_out.values())


def read_run(files: Sequence[Path]) -> Run:
    """The logs of one run, oldest first, as one."""
    joined: dict[tuple[str, int], dict[str, Any]] = {}
    others: list[dict[str, Any]] = []
    damaged, first_step = 0, None
    for path in files:
        with open(path, encoding="utf-8", errors="replace") as file:
            parsed = [parse_event(line) for line in file if line.strip()]
        events = [event for event in parsed if event is not None]
        damaged += len(parsed) - len(events)
        start = next(e for e in events if e["event"] == "run_start")
        end = next((e for e in reversed(events) if e["event"] == "run_end"), {})
        # What the earlier log did beyond the checkpoint that this one began from is lost.
        others += [e for e in events if e["event"] not in NEEDED]
        before = begin = start.get("start_step") or 0
        first_step = begin if first_step is None else first_step
        joined = {at: event for at, event in joined.items() if at[1] <= begin}
        tokens_per_step = 0.0
        for event in [e for e in events if e["event"] in ("train", "eval")]:
            step = event["step"]
            if event["event"] == "train":  # dt_ms is the mean over the steps since the event before
                event["s"], before = (event.get("dt_ms") or 0) / 1e3 * (step - before), step
                tokens_per_step = (event.get("tokens") or 0) / max(1, step)
            if event.get("tokens") is None:
                event["tokens"] = round(step * tokens_per_step)
            joined[event["event"], step] = event
    trains, evals = ([joined[at] for at in sorted(joined) if at[0] == kind] for kind in ("train", "eval"))
    tokens = max((e["tokens"] for e in (*trains[-1:], *evals[-1:], end) if e.get("tokens")), default=0)
    skipped = skipped_steps([*trains, end], others)
    energy = max((e["energy_j"] for e in (*trains, end) if e.get("energy_j") is not None), default=None)
    folder, out_dir = files[-1].parent, start["config"]["train"].get("out_dir")
    if not isinstance(out_dir, str) or (folder != Path() and folder.resolve() != Path(out_dir).resolve()):
        out_dir = folder  # its logs were copied from elsewhere
    wall_s = end.get("wall_s")  # counts the sessions before a resume too, as the sum does
    time_s = sum(e["s"] for e in trains) if wall_s is None else wall_s
    if end:
        reason = str(end["reason"])
        status = {"signal": "stopped", "error:": "crashed"}.get(reason.partition(" ")[0], reason)
    else:
        reason, status = None, "crashed" if time.time() - files[-1].stat().st_mtime > SILENCE_S else "running"
    return Run(
        files=list(files), first_step=first_step, out_dir=str(Path(out_dir)), start=start, trains=trains, evals=evals,
        tokens=tokens, time_s=time_s, time_is_wall=wall_s is not None, status=status, reason=reason, damaged_lines=damaged,
        skipped_steps=skipped, energy_j=energy,
    )  # fmt: skip


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
        run.label = (
            run.out_dir
            if often[run.out_dir] == 1
            else f"{run.out_dir} ({run.files[0].stem.removeprefix('run_')})"
        )
    key = ranking_key(runs)
    return sorted(runs, key=lambda run: (math.inf if run.best(key) is None else run.best(key), run.label))


def ranking_key(runs: Sequence[Run]) -> str:
    """Bits per byte where every evaluated run has them, else validation loss: what ranks the runs and is
    drawn."""
    evaluated = [run for run in runs if run.evals]
    return BITS if evaluated and all(run.best(BITS) is not None for run in evaluated) else LOSS
