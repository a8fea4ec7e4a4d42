"""Run logs, read with suspicion: their lines, the events on them, and which logs continue each other.

A resumed run writes a new log with start_step > 0; the logs of a folder that continue each other are one
run here."""

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from base.errors import InputError, reading
from base.text import printable

BITS, LOSS = "val_bits_per_byte", "val_loss"
MAX_LINE_BYTES = 1 << 24  # a longer line is damaged
MAX_DEPTH = 16  # of the lists and objects in an event whose texts are shown

# What an event must have to be of use, and which of its fields are numbers, or null, where they are there
NEEDED = {
    "run_start": ("config", "model"),
    "train": ("step", "loss"),
    "eval": ("step", LOSS),
    "run_end": ("reason",),
}
LOSSES = ("loss", LOSS, BITS)
AMOUNTS = (  # which are not negative
    "time", "start_step", "step", "tokens", "dt_ms", "tokens_per_s", "mfu", "memory_gb", "wall_s", "grad_norm",
    "skipped_steps", "energy_j",
)  # fmt: skip


def is_number(value: Any) -> bool:
    """Whether it is finite and small enough that products of a few such numbers stay finite."""
    return type(value) in (int, float) and -1e50 < value < 1e50


def is_amount(value: Any) -> bool:
    return is_number(value) and value >= 0


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a log; one that is too long is empty but for a NUL. Raises InputError for what cannot be
    read."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path} is not a file")
    with reading(path), open(path, "rb") as file:
        while line := file.readline(MAX_LINE_BYTES):
            cut = len(line) == MAX_LINE_BYTES and not line.endswith(b"\n")
            yield "\0" if cut else line.decode(errors="replace")
            while cut and (rest := file.readline(MAX_LINE_BYTES)):
                cut = not rest.endswith(b"\n")


def parse_event(line: str) -> dict[str, Any] | None:
    """The event on one line of a log, its figures numbers or None (as is what was not finite); None for a
    damaged line."""
    try:
        event = json.loads(line, parse_constant=lambda _: None)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(kind := event.get("event"), str):
        return None
    if any(key not in event for key in NEEDED.get(kind, ())):
        return None
    if not all(event.get(key) is None or is_number(event[key]) for key in LOSSES):
        return None
    if not all(event.get(key) is None or is_amount(event[key]) for key in AMOUNTS):
        return None
    if kind in ("train", "eval"):
        return event if type(event["step"]) is int else None
    if kind == "run_end":
        return event | {"reason": on_one_line(event["reason"])} if isinstance(event["reason"], str) else None
    return start_of(event) if kind == "run_start" else event


def start_of(event: dict[str, Any]) -> dict[str, Any] | None:
    """A run_start of which all that is used has its type: what a comparison cannot do without is there,
    anything else of a wrong type is left out. None for a damaged one."""
    try:
        event = in_plain_text(event)
    except ValueError:
        return None
    config, model = event["config"], event["model"]
    if not isinstance(config, dict) or not isinstance(model, dict):
        return None
    config = config | {"model": config.get("model") or {}, "train": config.get("train", {})}
    if not isinstance(config["model"], dict) or not isinstance(config["train"], dict):
        return None
    if not (is_amount(model.get("params")) and is_amount(model.get("flops_per_token"))):
        return None
    if not isinstance(model.get("architecture_name"), str):
        return None
    if not is_amount(model.get("params_non_embedding")):
        model["params_non_embedding"] = None
    data, hardware = (
        part if isinstance(part := event.get(name), dict) else {} for name in ("data", "hardware")
    )
    data |= {name: None for name in ("dataset", "fingerprint") if not isinstance(data.get(name), str)}
    for name in ("bytes_per_token", "train_bytes_per_token"):
        data[name] = value if is_amount(value := data.get(name)) and value else None
    return event | {"config": config, "model": model, "data": data, "hardware": hardware}


def on_one_line(text: str) -> str:
    """The text as it may stand in a table: without line breaks, control characters and broken Unicode."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def in_plain_text(value: Any, depth: int = 0) -> Any:
    """The value with all its texts on one line and numbers that are not finite None. Raises ValueError
    where it is nested too deeply."""
    if depth > MAX_DEPTH:
        raise ValueError("nested too deeply")
    if isinstance(value, str):
        return on_one_line(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, list):
        return [in_plain_text(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {on_one_line(name): in_plain_text(item, depth + 1) for name, item in value.items()}
    return value


def read_start(path: Path) -> dict[str, Any]:
    """The run_start event of a log, found without reading further. Raises InputError where it has none."""
    empty = True
    for line in lines_of(path):
        empty, event = False, parse_event(line)
        if event and event["event"] == "run_start":
            return event
    raise InputError(f"{path} {'is empty' if empty else 'has no run_start'}")


def join_logs(paths: Iterable[Path]) -> tuple[list[tuple[float, list[Path]]], dict[Path, str]]:
    """The runs that the logs of one folder make up, oldest first, each as (unix time of its last start,
    logs that continue each other), and a line on each log that begins no run."""
    heads, resumed, left_out = [], [], {}
    for path in paths:
        try:
            start = read_start(path)
            with reading(path):
                started = start.get("time") or path.stat().st_mtime
        except InputError as error:
            left_out[path] = str(error)
            continue
        start_step = start.get("start_step") or 0
        if start_step > 0 and start["config"]["train"].get("eval_only"):  # perhaps of a run that continues
            left_out[path] = f"{path} only evaluates a checkpoint"
        else:
            session = start.get("session") if is_amount(start.get("session")) else 0
            (resumed if start_step > 0 else heads).append((started, path, start.get("run_id"), session))
    # The sessions of a run count themselves; the clock decides where they do not, and between two of one checkpoint
    heads.sort(key=lambda log: log[:2])
    resumed.sort(key=lambda log: (log[3], *log[:2]))
    if not heads:  # what came before is missing
        heads, resumed = resumed[:1], resumed[1:]
    chains = [[head] for head in heads]
    for log in resumed:
        of_its_run = [chain for chain in chains if log[2] and chain[0][2] == log[2]]
        # By the clock, where a log does not say of which run it is; one that was behind puts it before all
        before = [chain for chain in chains if chain[0][:2] <= log[:2]]
        (of_its_run or before[-1:] or chains[:1])[0].append(log)
    joined = [(max(log[0] for log in chain), [log[1] for log in chain]) for chain in chains]
    return sorted(joined, key=lambda chain: chain[0]), left_out
