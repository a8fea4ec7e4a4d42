"""Documents to token shards: parallel, in bounded memory, resumable at any moment, the same bytes for any
number of workers.

    reader (this process) -> batches of raw rows -> workers: parse, split, tokenize -> this process, in order -> shards

Each document is followed by the end-of-text id, once. Whether it is held out (val) is a keyed hash of its
text, so that it depends on no order. Every `commit_interval` seconds progress.json records where the reader
and the writers are; a killed run that is started again goes on from there. meta.json, which makes the
folder a dataset, comes last.

tokenization/command.py is its command line; docs/DATA.md describes the flags.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import multiprocessing
import os
import shutil
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from base.errors import InputError
from base.files import write_json
from tokenization import engines
from tokenization.sources import Batch, FileSource, Source
from tokenization.tokenizers import TokenizerFiles
from tokens.format import read_meta, write_meta
from tokens.writer import ShardWriter

SPLITS = ("train", "val")
SPLIT_KEY = b"nanofoundry"
SAMPLE_BYTES = 1 << 20  # of the run's own text, on which the engine is checked and sizes are estimated


@dataclass(frozen=True)
class Job:
    """What the bytes of a dataset depend on, besides its source and tokenizer."""

    val_fraction: float = 0.005  # of the documents
    shard_tokens: int = 100_000_000
    limit: int | None = None  # rows of the source

    def __post_init__(self) -> None:
        if not 0 < self.val_fraction < 1:
            raise InputError(f"val_fraction={self.val_fraction} must lie between 0 and 1, such as 0.005")
        if self.shard_tokens < 1:
            raise InputError(f"shard_tokens={self.shard_tokens} must be at least 1")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"limit={self.limit} must be at least 1")


def is_val(text: bytes, fraction: float) -> bool:
    """Whether a document is held out: a keyed hash of its UTF-8 text, so the same text is on the same side
    everywhere."""
    digest = hashlib.blake2b(text, key=SPLIT_KEY, digest_size=8).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def end_documents(ids: np.ndarray, lengths: np.ndarray, eot_id: int) -> tuple[np.ndarray, np.ndarray]:
    """ids [N] of documents of lengths [D] to ids [N + D], each followed by eot_id, and their lengths."""
    lengths = lengths + 1
    ended = np.full(len(ids) + len(lengths), eot_id, dtype=np.uint32)
    is_text = np.ones(len(ended), dtype=bool)
    is_text[np.cumsum(lengths) - 1] = False
    ended[is_text] = ids
    return ended, lengths


# ---- the work of one process


@dataclass
class Tokenized:
    """What a worker makes of a batch. For each split: ids [N] with end-of-text ids, lengths [D], bytes of
    text."""

    splits: dict[str, tuple[np.ndarray, np.ndarray, int]]
    statistics: dict[str, dict[str, int]]
    bad_rows: list[tuple[str, str]]  # (where, problem)
    parse_s: float
    tokenize_s: float


@dataclass
class Worker:
    """Parses and tokenizes batches. One a process; `encode` is an engine."""

    encode: engines.Encode
    eot_id: int
    length: int  # of the tokenizer
    val_fraction: float

    def __call__(self, batch: Batch) -> Tokenized:
        started = time.perf_counter()
        texts, sources, sizes, held_out, bad_rows = [], [], [], [], []
        for row in batch.rows():
            try:
                encoded = row.text.encode()
            except UnicodeEncodeError:
                row.problem = "invalid Unicode: half of a surrogate pair"
            if row.problem:
                bad_rows.append((row.where, row.problem))
                continue
            texts.append(row.text)
            sources.append(row.source)
            sizes.append(len(encoded))
            held_out.append(is_val(encoded, self.val_fraction))
        parsed = time.perf_counter()
        ids, lengths = self.encode(texts) if texts else (np.empty(0, np.uint32), np.empty(0, np.int64))
        assert len(lengths) == len(texts) and lengths.sum() == len(ids), "the engine lost documents"
        if len(ids) and ids.max() >= self.length:
            raise InputError(
                f"the tokenizer gave id {ids.max()}, but its length is {self.length}: its files do not belong together"
            )

        with_eot, lengths = end_documents(ids, lengths, self.eot_id)
        tokenized = time.perf_counter()

        sizes_, val = np.array(sizes, dtype=np.int64), np.array(held_out, dtype=bool)
        splits = {"train": (with_eot, lengths, int(sizes_.sum()))}
        if val.any():
            in_val = np.repeat(val, lengths)
            splits = {
                "train": (with_eot[~in_val], lengths[~val], int(sizes_[~val].sum())),
                "val": (with_eot[in_val], lengths[val], int(sizes_[val].sum())),
            }
        statistics: dict[str, dict[str, int]] = {}
        for source, size, n_ids in zip(sources, sizes, lengths.tolist(), strict=True):
            s = statistics.setdefault(source, dict.fromkeys(STATISTICS, 0))
            s["documents"] += 1
            s["tokens"] += n_ids
            s["text_bytes"] += size
            s["longest_document_bytes"] = max(s["longest_document_bytes"], size)
        return Tokenized(splits, statistics, bad_rows, parsed - started, tokenized - parsed)


STATISTICS = ("documents", "tokens", "text_bytes", "longest_document_bytes")

_worker: Worker | BaseException | None = None  # of this process, where it is one of the pool


def _start_worker(engine: str, tokenizer_json: bytes, eot_id: int, length: int, val_fraction: float) -> None:
    global _worker
    _watch_parent()
    try:
        _worker = Worker(engines.ENGINES[engine](tokenizer_json), eot_id, length, val_fraction)
    except (
        BaseException
    ) as error:  # a Rust panic is no Exception. The check, under way in another process, will say it
        _worker = error


def _watch_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """A pool does not notice that its parent was killed with -9; its processes would wait for ever."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _work(batch: Batch | None) -> Tokenized | None:
    if isinstance(_worker, BaseException):
        raise RuntimeError(f"the engine cannot be loaded: {_worker}") from _worker
    return _worker(batch) if batch else None


# ---- the pipeline


@dataclass
class BadRows:
    """Counts what could not be used, says where, and stops where it becomes too much."""

    limit: int
    count: int = 0
    examples: list[list[str]] = field(default_factory=list)
    say: Callable[[str], None] = print

    def add(self, rows: Sequence[tuple[str, str]]) -> None:
        for where, problem in rows:
            self.count += 1
            if len(self.examples) < 100:
                self.examples.append([where, problem])
                self.say(f"bad row {where}: {problem}")
            if self.count > self.limit:
                raise InputError(
                    f"{where}: {problem}; this is bad row {self.count} and max_bad_rows={self.limit}: repair the file, or "
                    "repeat the command with a larger --max_bad_rows"
                )


def prepare(
    source: Source,
    tokenizer: TokenizerFiles,
    out_dir: str | Path,
    job: Job,
    *,
    engine: str = "auto",
    workers: int | None = None,
    max_bad_rows: int = 100,
    commit_interval: float = 20.0,
    expected_tokens: int | None = None,
    in_words: str | None = None,
    allow_empty: bool = False,
    show_progress: bool = False,
    stopping: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Writes the dataset into out_dir, or goes on with it, and returns what meta.json holds.

    `workers` defaults to the cores, of which the bytes do not depend; `expected_tokens` estimates the disk
    where the source does not tell its size; `in_words` is meta.json's `source`; `allow_empty` lets a share
    of a larger whole have no held-out documents; once `stopping` gives True it raises KeyboardInterrupt.
    Raises InputError, FileNotFoundError, ImportError or OSError, each in one line, where the input is
    wrong, the disk too small, or out_dir holds something else; what is there stays as it is then."""
    say = tqdm.write if show_progress else lambda line: None
    out_dir = Path(out_dir)
    workers = workers or available_cores()
    identity = {
        "source": _condensed(source.identity),
        "tokenizer_sha256": tokenizer.sha256,
        "eot_id": tokenizer.eot_id,
    }
    identity |= {"val_fraction": job.val_fraction, "shard_tokens": job.shard_tokens, "limit": job.limit}
    identity |= {"split_key": SPLIT_KEY.decode()}
    if (out_dir / "meta.json").is_file():
        return _finished(out_dir, identity, say)
    progress = _read_progress(out_dir, identity)

    sample = _sample(source)
    if not sample.texts and progress is None:
        why = sample.problem or "no documents at the beginning of the source: is it the right one?"
        raise InputError(f"{in_words or source.identity}: {why}")
    with contextlib.ExitStack() as pools:
        # The processes load the engine that will very likely pass while it is checked
        likely = engines.DEFAULT if engine == "auto" else engine
        submit = pools.enter_context(_pool(workers, likely, tokenizer, job))
        # Two tokenizers are 400 MB, for a while
        with ProcessPoolExecutor(
            1, multiprocessing.get_context("spawn"), initializer=_watch_parent
        ) as checker:
            chosen, warning, sample_tokens = checker.submit(
                _check_engine, engine, tokenizer.json, sample.texts
            ).result()
        if warning:
            _warn(warning)
        if chosen != likely:
            pools.close()
            submit = pools.enter_context(_pool(workers, chosen, tokenizer, job))
        _check_disk(out_dir, source, sample, sample_tokens, job, expected_tokens, progress, say)
        out_dir.mkdir(parents=True, exist_ok=True)
        pools.enter_context(_alone_in(out_dir))
        if (out_dir / "meta.json").is_file() or _read_progress(out_dir, identity) != progress:
            raise InputError(f"{out_dir} was written by another prepare.py meanwhile: repeat the command")
        say(f"tokenizer {tokenizer.name} ({tokenizer.length:,} tokens), engine {chosen}, workers {workers}")
        del sample

        state = progress or {
            "identity": identity,
            "position": None,
            "rows": 0,
            "read_bytes": 0,
            "statistics": {},
            "bad_rows": [0, []],
        }
        state.setdefault("writers", dict.fromkeys(SPLITS))
        writers = {
            split: ShardWriter(out_dir, split, job.shard_tokens, state["writers"][split]) for split in SPLITS
        }
        bad_rows = BadRows(max_bad_rows, *state["bad_rows"], say=say)
        if not progress:
            tokenizer.save(out_dir)
        else:
            say(f"going on behind row {state['rows']:,}")
        times = dict.fromkeys(("read_s", "parse_s", "tokenize_s", "write_s"), 0.0)

        def commit() -> None:
            state["writers"] = {split: writer.commit() for split, writer in writers.items()}
            state["bad_rows"] = [bad_rows.count, bad_rows.examples]
            write_json(out_dir / "progress.json", state)

        commit()
        bar = tqdm(
            total=source.total_bytes,
            initial=state["read_bytes"],
            unit="B",
            unit_scale=True,
            disable=not show_progress,
        )
        committed_at = started_at = time.monotonic()
        tokens_before = sum(writer.tokens for writer in writers.values())
        with bar:
            batches = _limited(source.batches(state["position"]), state["rows"], job.limit)
            for batch, result in _in_order(batches, submit, workers + 2, times):
                if stopping():  # the handler's own exception is lost where it strikes in a __del__ or a weakref's callback
                    raise KeyboardInterrupt
                t = time.perf_counter()
                if result is not None:
                    for split, (ids, lengths, text_bytes) in result.splits.items():
                        writers[split].add(ids, text_bytes, lengths)
                    add_statistics(state["statistics"], result.statistics)
                    times["parse_s"] += result.parse_s
                    times["tokenize_s"] += result.tokenize_s
                state["position"] = batch.next_position
                state["rows"] += batch.n_rows
                state["read_bytes"] += batch.read_bytes
                if result is not None:
                    bad_rows.add(result.bad_rows)
                if time.monotonic() - committed_at >= commit_interval:
                    commit()
                    committed_at = time.monotonic()
                bar.update(batch.read_bytes)
                tokens = sum(writer.tokens for writer in writers.values()) - tokens_before
                bar.set_postfix_str(
                    f"{tokens / max(1e-9, time.monotonic() - started_at):,.0f} tokens/s", refresh=False
                )
                times["write_s"] += time.perf_counter() - t

    empty = [split for split, writer in writers.items() if not writer.tokens]
    if empty and not allow_empty:
        documents = sum(s["documents"] for s in state["statistics"].values())
        for writer in writers.values():
            writer.discard()
        (out_dir / "progress.json").unlink()
        raise InputError(
            f"of {documents} documents none fell into {' and '.join(empty)} with val_fraction={job.val_fraction}: pass a "
            "larger one, such as --val_fraction=0.1, or cut text files into documents with --separator"
        )
    splits = {split: writer.finish() for split, writer in writers.items()}
    meta = write_meta(
        out_dir,
        vocab_size=tokenizer.vocab_size,
        tokenizer={"name": tokenizer.name, "length": tokenizer.length, "sha256": tokenizer.sha256},
        eot_id=tokenizer.eot_id,
        splits=splits,
        source=in_words,
        preparation={
            "identity": identity,
            "rows": state["rows"],
            "bad_rows": bad_rows.count,
            "statistics": state["statistics"],
        },
    )
    (out_dir / "progress.json").unlink()
    seconds = time.monotonic() - started_at
    say(
        f"{seconds:.1f} s; summed over processes: "
        + ", ".join(f"{name[:-2]} {s:.1f} s" for name, s in times.items())
    )
    return meta


def available_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _finished(out_dir: Path, identity: dict[str, Any], say: Callable[[str], None]) -> dict[str, Any]:
    meta = read_meta(out_dir)
    own = meta.get("preparation", {}).get("identity")
    if own != identity:
        raise InputError(
            f"{out_dir} holds a finished dataset of {_differences(own, identity)}: pass another --out_dir, or remove it first"
        )
    (out_dir / "progress.json").unlink(missing_ok=True)
    say(f"{out_dir} is complete already; --verify reads it again")
    return meta


def _warn(message: str) -> None:
    logging.getLogger("nanofoundry").warning(message)


@contextlib.contextmanager
def _alone_in(out_dir: Path) -> Iterator[None]:
    """Two that write the same shards would mix their bytes. The lock is the folder's own and ends with the
    process."""
    descriptor = os.open(out_dir, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"another prepare.py is at work in {out_dir}: wait for it, or pass another --out_dir"
            ) from None
        except OSError as error:  # some network file systems have no locks
            _warn(
                f"{out_dir} cannot be locked ({error.strerror}): see to it that no other prepare.py writes there"
            )
        yield
    finally:
        os.close(descriptor)


def _read_progress(out_dir: Path, identity: dict[str, Any]) -> dict[str, Any] | None:
    path = out_dir / "progress.json"
    if not path.is_file():
        if any(out_dir.glob("*.bin")):
            raise InputError(
                f"{out_dir} holds .bin files without a meta.json: pass another --out_dir, or remove them first"
            )
        return None
    try:
        progress = json.loads(path.read_bytes())
    except ValueError as e:
        raise InputError(f"{path} is damaged ({e}): remove {out_dir} and prepare it again") from None
    if progress["identity"] != identity:
        raise InputError(
            f"{out_dir} holds the beginning of a dataset of {_differences(progress['identity'], identity)}: pass another "
            "--out_dir, repeat the first command, or remove the folder"
        )
    return progress


def _differences(own: dict[str, Any] | None, other: dict[str, Any]) -> str:
    if not own:
        return "another preparation"
    names = [name for name in other if own.get(name) != other[name]]
    return "another " + " and another ".join(names)


def _condensed(identity: dict[str, Any]) -> dict[str, Any]:
    """A source's identity without its list of files, which may have a hundred thousand: their number, size
    and digest."""
    if "files" not in identity:
        return identity
    files = identity["files"]
    digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()
    return {
        **identity,
        "files": {"count": len(files), "bytes": sum(size for _, size in files), "sha256": digest},
    }


@dataclass
class Sample:
    texts: list[str] = field(default_factory=list)
    rows: int = 0
    problem: str | None = None  # of the first bad row
    text_bytes: int = 0  # of all rows that were read, more than are in texts
    read_bytes: int = 0  # of the files, as they are compressed


def _sample(source: Source) -> Sample:
    """Documents of the run: the beginnings of up to eight files, spread over them."""
    sample = Sample()
    parts: list[Source] = [source]
    if isinstance(source, FileSource):
        spread = np.unique(np.linspace(0, len(source.files) - 1, 8).astype(int))
        parts = [replace(source, files=[source.files[i]]) for i in spread]
    for part in parts:
        room = SAMPLE_BYTES // len(parts)
        batch = next(part.batches(None), None)
        if batch is None:
            continue
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
    return sample


def _is_unicode(text: str) -> bool:
    """Whether it has a UTF-8 form: half of a surrogate pair has none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_engine(engine: str, tokenizer_json: bytes, texts: list[str]) -> tuple[str, str | None, int]:
    """choose_engine in a process of its own: (the engine, a warning, tokens of the texts with end-of-text
    ids)."""
    chosen, encode, warning = engines.choose_engine(engine, tokenizer_json, texts)
    return chosen, warning, len(encode(texts)[0]) + len(texts)


def _check_disk(
    out_dir: Path,
    source: Source,
    sample: Sample,
    sample_tokens: int,
    job: Job,
    expected_tokens: int | None,
    progress: dict[str, Any] | None,
    say: Callable[[str], None],
) -> None:
    """Estimates the dataset's size from the sample, prints it, and refuses where the disk is too small."""
    per_text_byte = sample_tokens / max(1, sum(len(text.encode()) for text in sample.texts))
    if source.total_bytes is not None:
        text_bytes = source.total_bytes * sample.text_bytes / max(1, sample.read_bytes)
        tokens = int(text_bytes * per_text_byte)
    elif expected_tokens is not None:
        tokens = expected_tokens
    else:
        say("the source does not tell its size: the disk is not checked")
        return
    if job.limit is not None and sample.texts:
        tokens = min(tokens, int(job.limit * sample.text_bytes / sample.rows * per_text_byte))
    done = sum(_tokens_of(w) for w in progress["writers"].values()) if progress else 0
    exists = next(folder for folder in (out_dir, *out_dir.parents) if folder.exists())
    needed, free = 4 * max(0, tokens - done), shutil.disk_usage(exists).free
    say(f"estimate: {tokens:,} tokens, {4 * tokens / 1e9:.2f} GB of shards; {free / 1e9:.1f} GB are free")
    if needed > free:
        raise InputError(
            f"{out_dir} needs about {needed / 1e9:.1f} GB for {tokens:,} tokens, {free / 1e9:.1f} GB are free: choose another "
            "disk with --out_dir, or less with --limit"
        )


def _tokens_of(state: dict[str, Any] | None) -> int:
    if not state:
        return 0
    return sum(s["tokens"] for s in state["shards"]) + (state["partial"] or {"tokens": 0})["tokens"]


def _limited(batches: Iterator[Batch], rows_before: int, limit: int | None) -> Iterator[Batch]:
    """Batches up to the limit; of the last one only the first rows."""
    rows = rows_before
    for batch in batches:
        if limit is not None and rows + batch.n_rows > limit:
            if limit > rows:
                yield FirstRows(limit - rows, batch.read_bytes, batch.next_position, batch)
            return
        rows += batch.n_rows
        yield batch


@dataclass
class FirstRows:
    """The first n_rows of a batch. Nothing is read behind it."""

    n_rows: int
    read_bytes: int
    next_position: dict[str, Any]
    batch: Batch

    def rows(self) -> Iterator[Any]:
        first = self.batch.first_row
        for row in self.batch.rows():
            if int(row.where.rpartition(":")[2]) > first + self.n_rows:
                return
            yield row


@contextlib.contextmanager
def _pool(
    workers: int, engine: str, tokenizer: TokenizerFiles, job: Job
) -> Iterator[Callable[[Batch], Future]]:
    """submit(batch) to `workers` processes, each with one thread: they share the cores by being as many.
    They start at once."""
    threads = {
        "RAYON_NUM_THREADS": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "ARROW_NUM_THREADS": "1",
    }
    before = {name: os.environ.get(name) for name in threads}
    os.environ.update(threads)
    context = multiprocessing.get_context("spawn")  # the engines have threads, which do not survive a fork
    settings = (engine, tokenizer.json, tokenizer.eot_id, tokenizer.length, job.val_fraction)
    pool = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=settings)
    try:
        for _ in range(workers):
            pool.submit(_work, None)
        yield lambda batch: pool.submit(_work, batch)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a tokenizing process died, of memory perhaps: the same command goes on; --workers=1 takes the least memory"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _in_order(
    batches: Iterator[Batch], submit: Callable[[Batch], Future], ahead: int, times: dict[str, float]
) -> Iterator[tuple[Batch, Tokenized | None]]:
    """(batch, what the workers made of it) in the order of the batches, at most `ahead` of them under way
    at once. Batches without rows are passed on in their place."""
    pending: deque[tuple[Batch, Future | None]] = deque()
    while True:
        while len(pending) < ahead:
            t = time.perf_counter()
            batch = next(batches, None)
            times["read_s"] += time.perf_counter() - t
            if batch is None:
                break
            future = submit(batch) if batch.n_rows else None
            pending.append((_Position(batch.n_rows, batch.read_bytes, batch.next_position), future))
        if not pending:
            return
        batch, future = pending.popleft()
        yield batch, future.result() if future else None


@dataclass
class _Position:
    """What is left to know of a batch once its content is with a worker."""

    n_rows: int
    read_bytes: int
    next_position: dict[str, Any]


def add_statistics(total: dict[str, dict[str, int]], more: dict[str, dict[str, int]]) -> None:
    for source, s in more.items():
        t = total.setdefault(source, dict.fromkeys(STATISTICS, 0))
        for name, value in s.items():
            t[name] = max(t[name], value) if name.startswith("longest") else t[name] + value
