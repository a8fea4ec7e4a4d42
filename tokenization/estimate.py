"""Before anything is written: documents of the run as a sample, on which the engine is checked and the size
of the dataset is estimated."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from base.errors import InputError
from tokenization import engines
from tokenization.batches import Batch, Source
from tokenization.file_source import FileSource

SAMPLE_BYTES = 1 << 20  # of the run's own text, on which the engine is checked and sizes are estimated


@dataclass
class Sample:
    texts: list[str] = field(default_factory=list)
    rows: int = 0
    problem: str | None = None  # of the first bad row
    text_bytes: int = 0  # of all rows that were read, more than are in texts
    read_bytes: int = 0  # of the files, as they are compressed


def sample_of(source: Source) -> Sample:
    """Documents of the run: the beginnings of up to eight files, spread over them."""
    sample = Sample()
    parts: list[Source] = [source]
    if isinstance(source, FileSource):
        spread = np.unique(np.linspace(0, len(source.files) - 1, 8).astype(int))
        parts = [replace(source, files=[source.files[i]]) for i in spread]
    for part in parts:
        if batch := next(part.batches(None), None):
            _add(sample, batch, room=SAMPLE_BYTES // len(parts))
    return sample


def _add(sample: Sample, batch: Batch, room: int) -> None:
    """Counts a batch, and takes texts of it while there is room."""
    sample.read_bytes += batch.read_bytes
    for row in batch.rows():
        size = len(row.text.encode(errors="replace"))
        sample.rows += 1
        sample.problem = sample.problem or (f"{row.where}: {row.problem}" if row.problem else None)
        sample.text_bytes += size
        if row.problem is None and room > 0 and _is_unicode(row.text):
            text = row.text if size <= room else row.text[: room // 4]  # a book's beginning
            sample.texts.append(text)
            room -= len(text.encode())


def _is_unicode(text: str) -> bool:
    """Whether it has a UTF-8 form: half of a surrogate pair has none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_engine(engine: str, tokenizer_json: bytes, texts: list[str]) -> tuple[str, str | None, int]:
    """(the engine, a warning, tokens of the texts with end-of-text ids). It is called in a process of its own:
    two tokenizers take 400 MB. Raises what choose_engine raises."""
    chosen, encode, warning = engines.choose_engine(engine, tokenizer_json, texts)
    return chosen, warning, len(encode(texts)[0]) + len(texts)


def tokens_of(source: Source, sample: Sample, sample_tokens: int, limit: int | None) -> int | None:
    """About how many the dataset will have; None where the source does not tell its size."""
    per_text_byte = sample_tokens / max(1, sum(len(text.encode()) for text in sample.texts))
    if source.total_bytes is not None:
        text_bytes = source.total_bytes * sample.text_bytes / max(1, sample.read_bytes)
        tokens = int(text_bytes * per_text_byte)
    elif source.expected_tokens is not None:
        tokens = source.expected_tokens
    else:
        return None
    if limit is not None and sample.texts:
        tokens = min(tokens, int(limit * sample.text_bytes / sample.rows * per_text_byte))
    return tokens


def check_disk(out_dir: Path, tokens: int | None, tokens_there: int, say: Callable[[str], None]) -> None:
    """Says what a dataset of so many tokens takes. Raises InputError where the disk is too small for those that
    are not there yet."""
    if tokens is None:
        say("the source does not tell its size: the disk is not checked")
        return
    exists = next(folder for folder in (out_dir, *out_dir.absolute().parents) if folder.exists())
    needed, free = 4 * max(0, tokens - tokens_there), shutil.disk_usage(exists).free
    say(f"estimate: {tokens:,} tokens, {4 * tokens / 1e9:.2f} GB of shards; {free / 1e9:.1f} GB are free")
    if needed > free:
        raise InputError(
            f"{out_dir} needs about {needed / 1e9:.1f} GB for {tokens:,} tokens, {free / 1e9:.1f} GB are free: "
            "choose another disk with --out_dir, or less with --limit"
        )
