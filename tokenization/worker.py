"""The work of one tokenizing process, the pool of such processes, and their results in the order of the
batches."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

import numpy as np

from base.errors import InputError
from tokenization import engines
from tokenization.batches import Batch, Row
from tokenization.documents import end_documents, fraction_up_to, is_below, place_of
from tokenization.tokenizer_files import TokenizerFiles

STATISTICS = ("documents", "tokens", "text_bytes", "longest_document_bytes")


def add_statistics(total: dict[str, dict[str, int]], more: dict[str, dict[str, int]]) -> None:
    for source, s in more.items():
        t = total.setdefault(source, dict.fromkeys(STATISTICS, 0))
        for name, value in s.items():
            t[name] = max(t[name], value) if name.startswith("longest") else t[name] + value


@dataclass
class Tokenized:
    """What a worker makes of a batch. For each split: ids [N] with end-of-text ids, lengths [D], bytes of
    text."""

    splits: dict[str, tuple[np.ndarray, np.ndarray, int]]
    statistics: dict[str, dict[str, int]]
    bad_rows: list[tuple[str, str]]  # (where, problem)
    least_fraction: float | None  # the least val_fraction that would hold out one of the documents
    parse_s: float
    tokenize_s: float


@dataclass
class Parsed:
    """The documents of a batch, and what could not be used."""

    texts: list[str]
    sources: list[str]
    sizes: list[int]  # in bytes of UTF-8
    places: list[int]
    bad_rows: list[tuple[str, str]]


@dataclass
class Worker:
    """Parses and tokenizes batches. One for each process; `encode` is an engine."""

    encode: engines.Encode
    eot_id: int
    length: int  # of the tokenizer
    val_fraction: float

    def __call__(self, batch: Batch) -> Tokenized:
        started = time.perf_counter()
        parsed = self.parse(batch.rows())
        parsed_at = time.perf_counter()
        ids, lengths = self.tokenize(parsed.texts)
        tokenized_at = time.perf_counter()
        held_out = [is_below(place, self.val_fraction) for place in parsed.places]
        return Tokenized(
            by_split(ids, lengths, np.array(parsed.sizes, np.int64), np.array(held_out, bool)),
            statistics_of(parsed, lengths),
            parsed.bad_rows,
            fraction_up_to(min(parsed.places)) if parsed.places else None,
            parsed_at - started,
            tokenized_at - parsed_at,
        )

    def parse(self, rows: Iterable[Row]) -> Parsed:
        parsed = Parsed([], [], [], [], [])
        for row in rows:
            try:
                encoded = row.text.encode()
            except UnicodeEncodeError:
                row.problem = "invalid Unicode: half of a surrogate pair"
            if row.problem:
                parsed.bad_rows.append((row.where, row.problem))
                continue
            parsed.texts.append(row.text)
            parsed.sources.append(row.source)
            parsed.sizes.append(len(encoded))
            parsed.places.append(place_of(encoded))
        return parsed

    def tokenize(self, texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids [N] with end-of-text ids, lengths [D]. Raises InputError for ids beyond the tokenizer's."""
        ids, lengths = self.encode(texts) if texts else (np.empty(0, np.uint32), np.empty(0, np.int64))
        assert len(lengths) == len(texts) and lengths.sum() == len(ids), "the engine lost documents"
        if len(ids) and ids.max() >= self.length:
            raise InputError(
                f"the tokenizer gave id {ids.max()}, but its length is {self.length}: its files do not "
                "belong together"
            )
        return end_documents(ids, lengths, self.eot_id)


def by_split(
    ids: np.ndarray, lengths: np.ndarray, sizes: np.ndarray, val: np.ndarray
) -> dict[str, tuple[np.ndarray, np.ndarray, int]]:
    """{split: its ids, lengths and bytes of text} of documents of lengths and sizes [D], held out where val
    [D] is
    true. Without any that are held out there is no val."""
    if not val.any():
        return {"train": (ids, lengths, int(sizes.sum()))}
    in_val = np.repeat(val, lengths)
    return {
        "train": (ids[~in_val], lengths[~val], int(sizes[~val].sum())),
        "val": (ids[in_val], lengths[val], int(sizes[val].sum())),
    }


def statistics_of(parsed: Parsed, lengths: np.ndarray) -> dict[str, dict[str, int]]:
    """{source: STATISTICS} of documents of these lengths [D] in tokens."""
    statistics: dict[str, dict[str, int]] = {}
    for source, size, n_ids in zip(parsed.sources, parsed.sizes, lengths.tolist(), strict=True):
        one = dict(zip(STATISTICS, (1, n_ids, size, size), strict=True))
        add_statistics(statistics, {source: one})
    return statistics


_worker: Worker | BaseException | None = None  # of this process, where it is one of the pool


def _start_worker(engine: str, tokenizer_json: bytes, eot_id: int, length: int, val_fraction: float) -> None:
    global _worker
    watch_parent()
    try:
        _worker = Worker(engines.ENGINES[engine](tokenizer_json), eot_id, length, val_fraction)
    except (
        BaseException
    ) as error:  # a Rust panic is not an Exception. The check in another process will say it
        _worker = error


def watch_parent() -> None:
    """For a process of a pool: it leaves Ctrl-C to its parent, and ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """A pool does not notice that its parent was killed with -9; its processes would wait for ever."""
    connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


def _work(batch: Batch | None) -> Tokenized | None:
    if isinstance(_worker, InputError):
        raise _worker
    if isinstance(_worker, BaseException):
        raise RuntimeError(f"the engine cannot be loaded: {_worker}") from _worker
    return _worker(batch) if batch else None


@contextlib.contextmanager
def pool(
    workers: int, engine: str, tokenizer: TokenizerFiles, val_fraction: float
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
    settings = (engine, tokenizer.json, tokenizer.eot_id, tokenizer.length, val_fraction)
    executor = ProcessPoolExecutor(workers, context, initializer=_start_worker, initargs=settings)
    try:
        for _ in range(workers):
            executor.submit(_work, None)
        yield lambda batch: executor.submit(_work, batch)
    except BrokenProcessPool as error:
        raise RuntimeError(
            "a tokenizing process died, of memory perhaps: the same command resumes; --workers=1 takes the "
            "least memory"
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def in_another_process(function: Callable[..., Any], *arguments: object) -> Any:
    """What function(*arguments) returns. The memory that it takes is free again afterwards."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context, initializer=watch_parent) as executor:
        return executor.submit(function, *arguments).result()


def in_order(
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
