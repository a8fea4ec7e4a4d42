"""progress.json: where the reader and the writers of a preparation are, so that a killed one resumes; and
what a folder holds already, which is never overwritten."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from base.errors import InputError
from base.files import count_entry, entry, read_json, write_json
from tokenization.documents import SPLITS
from tokenization.job import differences
from tokenization.worker import STATISTICS
from tokens.format import read_meta

EXAMPLES = 100  # of bad rows, which progress.json keeps


@dataclass
class Progress:
    """What progress.json holds."""

    identity: dict[str, Any]
    position: dict[str, Any] | None = None  # of the reader: the source's own
    rows: int = 0  # of the source
    read_bytes: int = 0  # of its files
    statistics: dict[str, dict[str, int]] = field(default_factory=dict)
    bad_rows: list[Any] = field(default_factory=lambda: [0, []])  # how many; examples of [where, problem]
    least_fraction: float | None = None  # the least val_fraction that would hold out a document
    val_fraction: float | None = None  # the one that is used, where the job's holds out none
    writers: dict[str, dict[str, Any] | None] = field(default_factory=lambda: dict.fromkeys(SPLITS))

    @property
    def tokens(self) -> int:
        """Those that are written."""
        states = [state for state in self.writers.values() if state]
        shards = [shard for state in states for shard in [*state["shards"], state["partial"]] if shard]
        return sum(shard["tokens"] for shard in shards)

    def commit(self, folder: Path) -> None:
        write_json(folder / "progress.json", vars(self))


def remove_partial(folder: Path) -> None:
    """What kills in the midst of atomic writes left. For whoever is alone in the folder."""
    for partial in folder.glob(".*.json.*"):
        partial.unlink()


@dataclass
class BadRows:
    """Counts what could not be used, says where, and stops where it becomes too much."""

    limit: int
    count: int = 0
    examples: list[list[str]] = field(default_factory=list)
    say: Callable[[str], None] = print

    def add(self, rows: Sequence[tuple[str, str]]) -> None:
        """Raises InputError beyond the limit."""
        for where, problem in rows:
            self.count += 1
            if len(self.examples) < EXAMPLES:
                self.examples.append([where, problem])
                self.say(f"bad row {where}: {problem}")
            if self.count > self.limit:
                raise InputError(
                    f"{where}: {problem}; this is bad row {self.count} and max_bad_rows={self.limit}: repair "
                    "the file, or repeat the command with a larger --max_bad_rows"
                )


def finished(folder: Path, identity: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    """The meta.json of a folder that is complete. Raises InputError where it is of another identity."""
    meta = read_meta(folder)
    preparation = meta.get("preparation")
    own = preparation.get("identity") if isinstance(preparation, dict) else None
    if own != identity:
        raise InputError(
            f"{folder} holds a finished dataset of {differences(own, identity)}: pass another "
            "--out_dir, or remove it first"
        )
    check_preparation(meta, folder / "meta.json")
    (folder / "progress.json").unlink(missing_ok=True)
    say(f"{folder} is complete already; --verify reads it again")
    return meta


def read_progress(folder: Path, identity: dict[str, Any]) -> Progress | None:
    """Where the preparation of a folder stopped; None if none has begun there. Raises InputError where
    progress.json is damaged or of another identity, or the folder holds shards of unknown origin."""
    path = folder / "progress.json"
    if not os.path.lexists(path):
        if any(folder.glob("*.bin")):
            raise InputError(
                f"{folder} holds .bin files without a meta.json: pass another --out_dir, or remove them first"
            )
        return None
    again = f"remove {folder} and prepare it again"
    record = read_json(path, again)
    own = entry(record, "identity", dict, path, again)
    if own != identity:
        raise InputError(
            f"{folder} holds the beginning of a dataset of {differences(own, identity)}: pass another "
            "--out_dir, repeat the first command, or remove the folder"
        )
    _check(record, path, again)
    return Progress(**{name: record[name] for name in Progress.__dataclass_fields__ if name in record})


def _check(record: dict[str, Any], path: Path, again: str) -> None:
    """Raises InputError where a value has another type than commit gives it. The position is checked by the
    source, which knows its shape."""
    entry(record, "position", (dict, type(None)), path, again)
    for name in ("rows", "read_bytes"):
        count_entry(record, name, path, again)
    _check_statistics(record, path, again)
    bad_rows = entry(record, "bad_rows", list, path, again)
    if len(bad_rows) != 2 or not _are_examples(bad_rows[1]):
        raise InputError(f"{path}: 'bad_rows' is not a number and a list of examples: {again}")
    count_entry({"bad_rows": bad_rows[0]}, "bad_rows", path, again)
    for name in ("least_fraction", "val_fraction"):  # which earlier versions did not write
        fraction = entry({name: record.get(name)}, name, (float, type(None)), path, again)
        if fraction is not None and not 0 < fraction <= 1:
            raise InputError(f"{path}: {name!r} is {fraction}, expected one in (0, 1]: {again}")
    writers = entry(record, "writers", dict, path, again)
    for split in SPLITS:
        state = entry(writers, split, (dict, type(None)), path, again)
        if state is not None:
            _check_writer(state, split, f"{path}: writers: {split}", again)


def _are_examples(value: Any) -> bool:
    """[[where, problem], …]"""
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)
        for pair in value
    )


def check_preparation(meta: dict[str, Any], where: object) -> dict[str, Any]:
    """The part of a meta.json that a preparation wrote. Raises InputError where it is missing or something
    else."""
    again = "prepare it again"
    preparation = entry(meta, "preparation", dict, where, again)
    for name in ("rows", "bad_rows"):
        count_entry(preparation, name, where, again)
    _check_statistics(preparation, where, again)
    return preparation


def _check_statistics(record: dict[str, Any], where: object, again: str) -> None:
    statistics = entry(record, "statistics", dict, where, again)
    for source in statistics:
        one = entry(statistics, source, dict, where, again)
        for name in STATISTICS:
            count_entry(one, name, where, again)
        if len(one) > len(STATISTICS):
            raise InputError(f"{where}: statistics hold more than {', '.join(STATISTICS)}: {again}")


def _check_writer(state: dict[str, Any], split: str, where: str, again: str) -> None:
    """Of what tokens.writer.ShardWriter.commit gives."""
    for name in ("documents", "text_bytes"):
        count_entry(state, name, where, again)
    shards = list(entry(state, "shards", list, where, again))
    partial = entry(state, "partial", (dict, type(None)), where, again)
    # What an earlier version was writing has no digest
    for shard in [*shards, partial] if partial and "sha256" in partial else shards:
        entry(shard, "sha256", str, where, again)
    for i, shard in enumerate([*shards, partial] if partial else shards):
        if entry(shard, "file", str, where, again) != f"{split}_{i:05d}.bin":
            raise InputError(f"{where}: shard {i} has another name than {split}_{i:05d}.bin: {again}")
        for name in ("tokens", "documents", "max_id"):
            count_entry(shard, name, where, again)
