"""A dataset of the Hugging Face hub, or a local folder of that layout, as a stream of batches."""

import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from base.errors import InputError, MissingFile, require
from base.files import count_entry, entry
from base.text import check_utf8
from tokenization.batches import Batch, RecordBatch
from tokenization.cutting import columns_in_words

AGAIN = "remove the folder and prepare it again"


@dataclass
class HubSource:
    """A dataset through the package `datasets`: streamed, or downloaded first. Raises MissingFile, which says
    what to do, where it cannot be reached, InputError where it lacks the column."""

    repo: str
    config: str | None = None
    split: str = "train"
    revision: str | None = None
    text_field: str = "text"
    source_field: str | None = None
    download: bool = False
    rows_at_once: int = 500
    expected_tokens: int | None = None
    total_bytes: int | None = None
    identity: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        check_utf8(text_field=self.text_field, source_field=self.source_field or "")
        self._dataset = self._load()
        if have := self._dataset.column_names:
            if self.text_field.split(".")[0] not in have:
                raise InputError(
                    f"dataset {self.repo} has no column {self.text_field!r}, only {columns_in_words(have)}"
                )
            wanted = [name.split(".")[0] for name in (self.text_field, self.source_field or "")]
            self._dataset = self._dataset.select_columns([name for name in have if name in wanted])
        named = ("repo", "config", "split", "revision", "text_field", "source_field")
        self.identity = {name: getattr(self, name) for name in named}

    def _load(self) -> Any:
        datasets = require("datasets", f"reading {self.repo} from the hub")
        datasets.disable_progress_bars()
        # Its retries; the error below says it once
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return datasets.load_dataset(
                    self.repo,
                    self.config,
                    split=self.split,
                    revision=self.revision,
                    streaming=not self.download,
                )
        except Exception as error:  # of datasets, the hub's client, the network
            raise MissingFile(
                f"dataset {self.repo} cannot be read from the hub ({_reason(error)}): check the network, or "
                "pass local files with --source=FILES (.jsonl, .parquet, .txt and others)"
            ) from error

    def batches(self, position: dict[str, Any] | None) -> Iterator[Batch]:
        """From `position` on: {row} and, where the data is streamed, what `datasets` needs to resume there."""
        row = 0 if position is None else count_entry(position, "row", "position", AGAIN)
        fields = (self.text_field, self.source_field)
        for rows, state in self._downloaded(row) if self.download else self._streamed(position):
            n_rows = len(next(iter(rows.values())))
            next_position = {"row": row + n_rows} | ({"state": state} if state is not None else {})
            yield RecordBatch(n_rows, 0, next_position, rows, f"{self.repo} {self.split}", row, fields)
            row += n_rows

    def _downloaded(self, row: int) -> Iterator[tuple[dict[str, list[Any]], None]]:
        for first in range(row, len(self._dataset), self.rows_at_once):
            yield self._dataset[first : first + self.rows_at_once], None

    def _streamed(
        self, position: dict[str, Any] | None
    ) -> Iterator[tuple[dict[str, list[Any]], dict[str, Any]]]:
        """({column: values}, the state after them)"""
        if position is not None:
            state = entry(position, "state", dict, "position", AGAIN)
            try:
                self._dataset.load_state_dict(state)
            except Exception as error:  # whatever its internals make of a wrong one
                raise InputError(f"dataset {self.repo} cannot resume ({_reason(error)}): {AGAIN}") from error
        batches = self._dataset.iter(self.rows_at_once)
        while True:
            try:
                rows = next(batches, None)
            except Exception as error:  # of datasets, the hub's client, the network, damaged files
                raise InputError(
                    f"dataset {self.repo} cannot be read further ({_reason(error)}): the same command resumes"
                ) from error
            if rows is None:
                return
            yield rows, self._dataset.state_dict()


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
