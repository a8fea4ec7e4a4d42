"""The command line of every data/<name>/prepare.py.

raise SystemExit(run(__doc__, Path(__file__).resolve().parent, sys.argv[1:], tokenizer="qwen3", repo="…"))
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base import cli
from base.errors import EXIT_INPUT, EXIT_STOPPED, InputError
from base.fields import SET, knob, notes, with_defaults
from base.text import printable
from tokenization.batches import Source
from tokenization.byte_bpe import parse_special_tokens, train_tokenizer
from tokenization.cutting import on_a_line
from tokenization.file_source import FileSource, parse_split_documents
from tokenization.hub_source import HubSource
from tokenization.job import Job, Settings
from tokenization.merging import merge, parse_task, task_files, task_folder
from tokenization.pipeline import prepare
from tokenization.searching import KNOWN, Found, find_files, format_of, parse_ext
from tokenization.tokenizer_files import TokenizerFiles
from tokenization.tokenizers import find_tokenizer
from tokens.format import read_meta
from tokens.verify import verify

FEW_VAL_TOKENS = 12 * 1024  # of a validation split: 12 windows of 1,024, what eval_iters=1 means


@dataclass(frozen=True)
class Texts:
    """What is read, and where the dataset goes."""

    source: list[str] = knob(
        [], "files, folders or patterns; none: the dataset of the hub, if there is one", takes_words=True
    )
    tokenizer: str | None = knob(None, "gpt2, llama2, llama3, qwen3, a folder or a hub id")
    train_tokenizer: int | None = knob(
        None, "trains a byte-level BPE of so many tokens on the text instead", bounds="[257, 2^24]"
    )
    special_tokens: list[str] = knob(
        [], "of a tokenizer that is trained, with commas; none: <|endoftext|>", needs={"train_tokenizer": SET}
    )
    out_dir: str = knob("", "the folder of the dataset")
    text_field: str = knob("text", "the column or key with the text, with dots where nested")
    source_field: str | None = knob(None, "the one by which statistics are kept, where it is there")
    separator: str | None = knob(
        None, "cuts text files into documents, such as '\\n\\n'; none: a file is one"
    )
    split_documents: str | None = knob(
        None, "cuts text files into documents of about so many bytes, or into paragraphs; none: a file is one"
    )
    ext: list[str] = knob([], "more suffixes of text, such as .tex,.c")
    download: bool = knob(False, "download the dataset of the hub first instead of streaming it")
    revision: str | None = knob(None, "of the dataset of the hub")


@dataclass(frozen=True)
class PrepareConfig(Settings, Job, Texts):
    """The flags of every prepare.py: texts, the job, its settings, and what else it can do."""

    task: str | None = knob(None, "i/N: the i-th of N shares of the files, from 0")
    merge: bool = knob(False, "join the folders of all tasks")
    verify: bool = knob(False, "read everything again and compare it with meta.json")


@dataclass(frozen=True)
class Hub:
    """The dataset that a prepare.py reads without --source, of about `expected_tokens` tokens."""

    repo: str
    config: str | None = None
    expected_tokens: int | None = None


def run(
    doc: str,
    folder: Path,
    argv: Sequence[str],
    tokenizer: str | None = None,
    repo: str | None = None,
    config: str | None = None,
    source_field: str | None = None,
    expected_tokens: int | None = None,
) -> int:
    """The whole of a prepare.py. `folder` is where it lies and where the dataset goes, `tokenizer` and
    `source_field` are its defaults, `repo`, `config` and `expected_tokens` its Hub. Returns the exit code."""
    hub = Hub(repo, config, expected_tokens) if repo else None
    kind = with_defaults(PrepareConfig, tokenizer=tokenizer, out_dir=str(folder), source_field=source_field)
    return cli.run(argv, doc, kind, lambda c: work(c, hub, tokenizer))


def work(c: PrepareConfig, hub: Hub | None, default_tokenizer: str | None) -> int:
    if not c.out_dir.strip():
        raise InputError("--out_dir= is empty: name a folder")
    out_dir = Path(os.path.expanduser(c.out_dir))
    if c.verify:
        return verify_folder(out_dir)
    if c.merge:
        return report(out_dir, merge(out_dir))
    for note in notes(c):
        print(note, file=sys.stderr)
    task = parse_task(c.task) if c.task is not None else None
    check_tokenizer(c, default_tokenizer)
    if task is not None:
        out_dir = task_folder(out_dir, *task)
    stopping = stopped_by_signals()
    try:
        found = find_tokenizer(c.tokenizer) if c.train_tokenizer is None else None
        source, in_words, files = open_source(c, hub, task)
        found = found or trained_tokenizer(source, c)
        meta = prepare(
            source,
            found,
            out_dir,
            job=c,
            settings=c,
            in_words=in_words,
            allow_empty=task is not None,
            show_progress=True,
            stopping=stopping,
        )
    except KeyboardInterrupt:
        print(f"stopped; the same command resumes {out_dir}", file=sys.stderr)
        return EXIT_STOPPED
    return report(out_dir, meta, files)


def stopped_by_signals() -> Callable[[], bool]:
    """SIGTERM and SIGINT raise KeyboardInterrupt from now on; whether one came."""
    signals: list[int] = []

    def stop(number: int, frame: object) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    return lambda: bool(signals)


def check_tokenizer(c: PrepareConfig, default: str | None) -> None:
    """Raises InputError where the flags name no tokenizer, or two."""
    if c.train_tokenizer is None and (c.tokenizer is None or not c.tokenizer.strip()):
        raise InputError(
            "which tokenizer? pass --tokenizer=qwen3, llama3, llama2, gpt2, a folder or a hub id, or train one with "
            "--train_tokenizer=8192"
        )
    if c.train_tokenizer is None:
        return
    if c.tokenizer != default:
        raise InputError("--tokenizer and --train_tokenizer exclude each other: pass one of them")
    if c.task is not None:
        raise InputError(
            "--task sees its own share of the files alone: train the tokenizer on some of them first, and pass its "
            "folder with --tokenizer"
        )
    parse_special_tokens(c.special_tokens, c.train_tokenizer)


def trained_tokenizer(source: Source, c: PrepareConfig) -> TokenizerFiles:
    """A tokenizer of the source's own; says what it was trained on, and where the text gives fewer tokens."""
    size = c.train_tokenizer
    print(f"training a tokenizer of {size:,} tokens", file=sys.stderr)
    found = train_tokenizer(source, size, parse_special_tokens(c.special_tokens, size), c)
    if found.length < size:
        print(
            f"the text gives no more than {found.length:,} tokens of {size:,}: the other rows stay unused",
            file=sys.stderr,
        )
    return found


def open_source(
    c: PrepareConfig, hub: Hub | None, task: tuple[int, int] | None
) -> tuple[Source, str, Found | None]:
    """The source that the flags name, what it is in words, and its files where it has some."""
    if c.source:
        ext = parse_ext(c.ext)
        found = find_files(c.source, ext)
        if task is not None:
            found.files = task_files(found.files, *task)
        # As typed on a command line, \\n and \\t mean what they mean in Python
        separator = c.separator.replace("\\n", "\n").replace("\\t", "\t") if c.separator else None
        cut = parse_split_documents(c.split_documents) if c.split_documents is not None else None
        source = FileSource(
            found.files, c.text_field, c.source_field, separator, split_documents=cut, ext=ext
        )
        cuts = "--separator" if separator else "--split_documents" if cut else None
        if cuts and not any(format_of(file, ext) == "text" for file in found.files):
            print(f"{cuts} has no effect without text files", file=sys.stderr)
        return source, printable(f"{len(found.files)} files of {', '.join(c.source)}"), found
    if hub is None:
        raise InputError(f"which text? pass --source=FOLDER, files or a pattern ({KNOWN})")
    if task is not None:
        raise InputError("--task shares out local files: download the dataset and pass --source=FILES")
    source = HubSource(
        hub.repo,
        hub.config,
        revision=c.revision,
        text_field=c.text_field,
        source_field=c.source_field,
        download=c.download,
        expected_tokens=hub.expected_tokens,
    )
    return source, f"{hub.repo} of the Hugging Face hub", None


def verify_folder(folder: Path) -> int:
    """Reads the dataset again and prints what is wrong, a line each. Returns the exit code."""
    meta = read_meta(folder)
    problems = verify(folder, say=print)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        print(f"{folder}: {count}: restore the files or prepare it again", file=sys.stderr)
        return EXIT_INPUT
    sums = ", ".join(
        f"{on_a_line(s)} {e['tokens']:,} tokens in {len(e['shards'])} shards"
        for s, e in meta["splits"].items()
    )
    print(f"{folder} is as it was written: {sums}")
    return 0


def report(folder: Path, meta: dict[str, Any], files: Found | None = None) -> int:
    """Prints what a dataset holds, and of which files. Returns the exit code."""
    for split, entry in meta["splits"].items():
        print(
            f"{on_a_line(split)}: {entry['documents']:,} documents, {entry['tokens']:,} tokens, "
            f"{entry['text_bytes']:,} bytes of text, {_ratio(entry)}, {len(entry['shards'])} shards"
        )
    if meta["preparation"].get("val_fraction") is not None:
        print("  val is the least that can be held out: --val_fraction alone would have held out nothing")
    if 0 < (tokens := meta["splits"].get("val", {"tokens": 0})["tokens"]) < FEW_VAL_TOKENS:
        print(
            f"  val has {tokens:,} tokens: an evaluation needs more than block_size of them, and says little with "
            "few: hold out more with --val_fraction"
        )
    for source, s in sorted(meta["preparation"]["statistics"].items()):
        print(
            f"  {on_a_line(source) or 'all'}: {s['documents']:,} documents, {s['tokens']:,} tokens, {_ratio(s)}, "
            f"longest {s['longest_document_bytes']:,} bytes"
        )
    if files is not None:
        print(f"  {files.in_words()}")
    if meta["preparation"]["bad_rows"]:
        print(f"  {meta['preparation']['bad_rows']:,} bad rows were left out")
    print(f"{folder} is ready")
    return 0


def _ratio(counts: dict[str, int]) -> str:
    return f"{counts['text_bytes'] / max(1, counts['tokens']):.3f} bytes/token"
