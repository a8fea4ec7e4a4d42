"""Documents to token shards: parallel, in bounded memory, resumable at any moment, the same bytes for any
number of workers.

    reader (this process) -> batches of rows -> workers: parse, split, tokenize -> this process, in order -> shards

Each document is followed by the end-of-text id, once. Whether it is held out (val) is a keyed hash of its
text, so that it depends on no order; where val_fraction holds out none, as it may of few documents, all is read
again to hold out the one whose hash is least. Every `commit_interval` seconds progress.json records where the reader
and the writers are; a killed run that is started again resumes there. meta.json, which makes the folder a
dataset, comes last.

tokenization/command.py is its command line; docs/DATA.md describes it.
"""

import contextlib
import logging
import os
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from tqdm import tqdm

from base.errors import InputError, writing
from base.files import alone_in, writable_folder
from tokenization import engines
from tokenization.batches import Batch, Source, limited
from tokenization.documents import SPLITS
from tokenization.estimate import Sample, check_disk, check_engine, sample_of, tokens_of
from tokenization.job import Job, Settings, identity_of
from tokenization.progress import BadRows, Progress, finished, read_progress, remove_partial
from tokenization.tokenizer_files import TokenizerFiles
from tokenization.worker import Tokenized, add_statistics, in_another_process, in_order, pool
from tokens.format import write_meta
from tokens.writer import ShardWriter

MAX_SOURCES = 10_000  # of the statistics, which meta.json holds
Say = Callable[[str], None]
Submit = Callable[[Batch], Future]


def prepare(
    source: Source,
    tokenizer: TokenizerFiles,
    out_dir: str | Path,
    job: Job,
    settings: Settings | None = None,
    *,
    in_words: str | None = None,
    allow_empty: bool = False,
    show_progress: bool = False,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Writes the dataset into out_dir, or resumes it, and returns what meta.json holds.

    `in_words` is meta.json's `source`; `allow_empty` lets a share of a larger whole have no held-out
    documents; once `stopping` gives True it raises KeyboardInterrupt. Raises InputError where the input is
    wrong, the disk too small, or out_dir holds something else; what is there stays as it is then."""
    settings = settings or Settings()
    say = tqdm.write if show_progress else lambda line: None
    out_dir = Path(out_dir)
    identity = identity_of(source, tokenizer, job)
    if os.path.isfile(out_dir / "meta.json"):
        return finished(out_dir, identity, say)
    writable_folder(str(out_dir))
    progress = read_progress(out_dir, identity)
    sample = sample_of(source)
    if not sample.texts and progress is None:
        why = sample.problem or "no documents at the beginning of the source: is it the right one?"
        raise InputError(f"{in_words or source.identity}: {why}")
    with contextlib.ExitStack() as stack:
        workers = settings.workers or available_cores()
        fraction = (progress and progress.val_fraction) or job.val_fraction
        engine, submit, sample_tokens = _start(stack, settings.engine, workers, tokenizer, fraction, sample)
        tokens = tokens_of(source, sample, sample_tokens, job.limit)
        check_disk(out_dir, tokens, progress.tokens if progress else 0, say)
        with writing(out_dir):
            out_dir.mkdir(parents=True, exist_ok=True)
        stack.enter_context(alone_in(out_dir, "prepare.py"))
        if (out_dir / "meta.json").is_file() or read_progress(out_dir, identity) != progress:
            raise InputError(f"{out_dir} was written by another prepare.py meanwhile: repeat the command")
        say(f"tokenizer {tokenizer.name} ({tokenizer.length:,} tokens), engine {engine}, workers {workers}")
        del sample
        state = progress or Progress(identity)
        work = Preparation(out_dir, tokenizer, job, settings, state, say, resumed=progress is not None)
        work.read(source, submit, workers + 2, show_progress, stopping)
        if allow_empty or not work.start_over():
            return work.finish(in_words, allow_empty)
    return prepare(  # with the fraction that progress.json now holds
        source,
        tokenizer,
        out_dir,
        job,
        settings,
        in_words=in_words,
        show_progress=show_progress,
        stopping=stopping,
    )


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _start(
    stack: contextlib.ExitStack,
    engine: str,
    workers: int,
    tokenizer: TokenizerFiles,
    val_fraction: float,
    sample: Sample,
) -> tuple[str, Submit, int]:
    """(the engine, submit of its pool, tokens of the sample). The processes load the engine that will very
    likely pass while it is checked."""
    likely = engines.DEFAULT if engine == "auto" else engine
    submit = stack.enter_context(pool(workers, likely, tokenizer, val_fraction))
    chosen, warning, tokens = in_another_process(check_engine, engine, tokenizer.json, sample.texts)
    if warning:
        logging.getLogger("nanofoundry").warning(warning)
    if chosen != likely:
        stack.close()
        submit = stack.enter_context(pool(workers, chosen, tokenizer, val_fraction))
    return chosen, submit, tokens


class Preparation:
    """The writing side: what the workers made, in order, into shards, with the progress beside them."""

    def __init__(
        self,
        out_dir: Path,
        tokenizer: TokenizerFiles,
        job: Job,
        settings: Settings,
        progress: Progress,
        say: Say,
        resumed: bool,
    ) -> None:
        self.out_dir, self.tokenizer, self.job = out_dir, tokenizer, job
        self.progress, self.say = progress, say
        self.commit_interval = settings.commit_interval
        self.bad_rows = BadRows(settings.max_bad_rows, *progress.bad_rows, say=say)
        self.times = dict.fromkeys(("read_s", "parse_s", "tokenize_s", "write_s"), 0.0)
        with writing(out_dir):
            remove_partial(out_dir)
            self.writers = {
                split: ShardWriter(out_dir, split, job.shard_tokens, progress.writers[split])
                for split in SPLITS
            }
            if not resumed:
                tokenizer.save(out_dir)
        if progress.rows:
            say(f"resuming after row {progress.rows:,}")
        self.started_at = time.monotonic()
        self.commit()

    @property
    def tokens(self) -> int:
        return sum(writer.tokens for writer in self.writers.values())

    def commit(self) -> None:
        with writing(self.out_dir):
            self.progress.writers = {split: writer.commit() for split, writer in self.writers.items()}
            self.progress.bad_rows = [self.bad_rows.count, self.bad_rows.examples]
            self.progress.commit(self.out_dir)
        self.committed_at = time.monotonic()

    def read(
        self, source: Source, submit: Submit, ahead: int, show_progress: bool, stopping: Callable[[], bool]
    ) -> None:
        """All that is left of the source."""
        tokens_before = self.tokens
        bar = tqdm(
            total=source.total_bytes,
            initial=self.progress.read_bytes,
            unit="B",
            unit_scale=True,
            disable=not show_progress,
        )
        with bar:
            batches = limited(source.batches(self.progress.position), self.progress.rows, self.job.limit)
            for batch, result in in_order(batches, submit, ahead, self.times):
                if stopping():  # the handler's own exception is lost in a __del__ or a weakref's callback
                    raise KeyboardInterrupt
                started = time.perf_counter()
                self.add(batch, result)
                bar.update(batch.read_bytes)
                rate = (self.tokens - tokens_before) / max(1e-9, time.monotonic() - self.started_at)
                bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
                self.times["write_s"] += time.perf_counter() - started

    def add(self, batch: Batch, result: Tokenized | None) -> None:
        """A batch and what a worker made of it, None where it has no rows. Raises InputError where that
        makes too many bad rows."""
        progress = self.progress
        if result is not None:
            with writing(self.out_dir):
                for split, (ids, lengths, text_bytes) in result.splits.items():
                    self.writers[split].add(ids, text_bytes, lengths)
            add_statistics(progress.statistics, result.statistics)
            if len(progress.statistics) > MAX_SOURCES:
                raise InputError(
                    f"the source field has more than {MAX_SOURCES:,} values, too many to keep statistics by: name "
                    "another with --source_field, or none"
                )
            fractions = (progress.least_fraction, result.least_fraction)
            progress.least_fraction = min((f for f in fractions if f is not None), default=None)
            self.times["parse_s"] += result.parse_s
            self.times["tokenize_s"] += result.tokenize_s
        progress.position = batch.next_position
        progress.rows += batch.n_rows
        progress.read_bytes += batch.read_bytes
        if result is not None:
            self.bad_rows.add(result.bad_rows)
        if time.monotonic() - self.committed_at >= self.commit_interval:
            self.commit()

    def finish(self, in_words: str | None, allow_empty: bool) -> dict[str, Any]:
        """Completes the shards and writes meta.json, which it returns."""
        empty = [split for split, writer in self.writers.items() if not writer.tokens]
        if empty and not allow_empty:
            self._discard(empty)
        with writing(self.out_dir):
            meta = write_meta(
                self.out_dir,
                vocab_size=self.tokenizer.vocab_size,
                tokenizer=self.tokenizer.described(),
                eot_id=self.tokenizer.eot_id,
                splits={split: writer.finish() for split, writer in self.writers.items()},
                source=in_words,
                preparation=self._described(),
            )
            (self.out_dir / "progress.json").unlink()
        by_part = ", ".join(f"{name[:-2]} {s:.1f} s" for name, s in self.times.items())
        self.say(f"{time.monotonic() - self.started_at:.1f} s; summed over processes: {by_part}")
        return meta

    def _described(self) -> dict[str, Any]:
        """What meta.json remembers of the preparation."""
        described = {
            "identity": self.progress.identity,
            "rows": self.progress.rows,
            "bad_rows": self.bad_rows.count,
            "statistics": self.progress.statistics,
        }
        used = self.progress.val_fraction
        return described if used is None else {**described, "val_fraction": used}

    def start_over(self) -> bool:
        """Where no document of several is held out: removes what was written and notes the least fraction that
        holds out one, for the next preparation of this folder. Whether that is so."""
        progress, fraction = self.progress, self.progress.least_fraction
        if self.writers["val"].tokens or progress.val_fraction or self.documents < 2 or fraction is None:
            return False
        self.say(
            f"val_fraction={self.job.val_fraction} holds out none of {self.documents} documents: all is read "
            "again, to hold out one"
        )
        with writing(self.out_dir):
            for writer in self.writers.values():
                writer.discard()
            Progress(progress.identity, val_fraction=fraction).commit(self.out_dir)
        return True

    @property
    def documents(self) -> int:
        return sum(s["documents"] for s in self.progress.statistics.values())

    def _discard(self, empty: list[str]) -> None:
        for writer in self.writers.values():
            writer.discard()
        (self.out_dir / "progress.json").unlink()
        raise InputError(why_empty(self.documents, empty, self.job.val_fraction))


def why_empty(documents: int, empty: list[str], val_fraction: float) -> str:
    """Why a split has no document, and what to do."""
    if documents == 0:
        return "there are no documents: is the source the right one?"
    if documents == 1:
        return (
            "the source is one document, of which nothing can be held out: cut a text file into several with "
            "--split_documents=65536 (bytes), --split_documents=paragraphs or --separator, or add text"
        )
    if empty == ["train"] and val_fraction > 0.5:
        return (
            f"all of {documents} documents are held out with val_fraction={val_fraction}: pass a smaller one"
        )
    return (
        f"none of {documents} documents is left for {' and '.join(empty)} beside the other split, perhaps as all "
        "are the same text: add text"
    )
