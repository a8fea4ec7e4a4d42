"""The command line of every data/<name>/prepare.py, and what joins the work of several machines.

raise SystemExit(run(__doc__, Path(__file__).resolve().parent, sys.argv[1:], tokenizer="qwen3", repo="…"))
"""

import inspect
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import numpy as np

from base.cli import parse_flags
from base.errors import InputError, MissingFile, input_errors
from base.files import write_json
from tokenization.pipeline import SPLITS, Job, add_statistics, prepare
from tokenization.sources import FileSource, HubSource, find_files
from tokenization.tokenizers import find_tokenizer
from tokens.format import SHARD_DTYPE, read_meta
from tokens.verify import verify

EXIT_STOPPED = 75


@dataclass(kw_only=True)
class PrepareConfig:
    """The flags of every prepare.py, as --key=value or --key value:"""

    source: list[str] = field(default_factory=list)  # files, folders or patterns; without it the hub dataset
    tokenizer: str | None = None  # gpt2, llama2, llama3, qwen3, a folder or a hub id
    out_dir: str = ""  # default: the folder of the script
    workers: int | None = None  # tokenizing processes; default: the cores
    limit: int | None = None  # rows to take, of each task where there are several
    engine: str = "auto"  # fastokens, gigatoken, tokenizers; auto is the fastest that is right
    val_fraction: float = Job.val_fraction  # of the documents
    shard_tokens: int = Job.shard_tokens
    text_field: str = "text"  # the column or key with the text, with dots where nested
    source_field: str | None = None  # the one by which statistics are kept, where it is there
    separator: str | None = None  # cuts text files into documents, such as '\n\n'; else a file is one
    max_bad_rows: int = 100  # before it stops
    commit_interval: float = 20.0  # seconds of work that a kill may cost
    task: str | None = None  # i/N: the i-th of N shares of the files, from 0
    merge: bool = False  # joins the folders of all tasks
    verify: bool = False  # reads everything again and compares it with meta.json
    download: bool = False  # download the hub dataset first instead of streaming it
    revision: str | None = None  # of the hub dataset

    def __post_init__(self) -> None:
        for name, least in (("workers", 1), ("max_bad_rows", 0), ("commit_interval", 0)):
            if getattr(self, name) is not None and not getattr(self, name) >= least:  # NaN is not either
                raise InputError(f"{name}={getattr(self, name)} must be at least {least}")


def _flags_help() -> str:
    """The fields as they stand above, with their comments."""
    lines = (
        inspect.getsource(PrepareConfig).split('"""')[2].split("def __post_init__")[0].strip().splitlines()
    )
    return "\n".join("  --" + line.strip().replace(" = field(default_factory=list)", "") for line in lines)


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
    """The whole of a prepare.py. `folder` is where it lies and where the dataset goes, `tokenizer` its
    default, `repo` and `config` the hub dataset that it reads without --source, of about `expected_tokens`
    tokens. Returns the exit code."""
    if "--help" in argv or "-h" in argv:
        print(f"{doc}\n{PrepareConfig.__doc__}\n{_flags_help()}")
        return 0
    logging.basicConfig(format="%(message)s")
    signals: list[int] = []

    def stop(number: int, frame: object) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    with input_errors():
        words, flags = parse_flags(argv, get_type_hints(PrepareConfig))
        c = PrepareConfig(
            **{"tokenizer": tokenizer, "out_dir": str(folder), "source_field": source_field, **flags}
        )
        sources = [*c.source, *words]  # an unquoted pattern arrives as several words
        out_dir = Path(c.out_dir).expanduser()
        if c.verify:
            return verify_folder(out_dir)
        if c.merge:
            return _report(out_dir, merge(out_dir))
        job = Job(c.val_fraction, c.shard_tokens, c.limit)
        task = _task(c.task)
        if c.tokenizer is None:
            raise InputError(
                "which tokenizer? pass --tokenizer=qwen3, llama3, llama2, gpt2, a folder or a hub id"
            )
        if not sources and repo is None:
            raise InputError(
                "which text? pass --source=FOLDER, files or a pattern (.jsonl, .jsonl.zst, .jsonl.gz, .parquet, .txt)"
            )
        found = find_tokenizer(c.tokenizer)
        if sources:
            files = find_files(sources)
            if task is not None:
                files, out_dir = task_files(files, *task), task_folder(out_dir, *task)
            # As typed on a command line, \\n and \\t mean what they mean in Python
            separator = c.separator.replace("\\n", "\n").replace("\\t", "\t") if c.separator else None
            source = FileSource(files, c.text_field, c.source_field, separator)
            in_words = f"{len(files)} files of {', '.join(sources)}"
        elif task is not None:
            raise InputError("--task shares out local files: download the dataset and pass --source=FILES")
        else:
            source = HubSource(repo, config, "train", c.revision, c.text_field, c.source_field, c.download)
            in_words = f"{repo} of the Hugging Face hub"
        try:
            meta = prepare(
                source,
                found,
                out_dir,
                job,
                engine=c.engine,
                workers=c.workers,
                max_bad_rows=c.max_bad_rows,
                commit_interval=c.commit_interval,
                expected_tokens=expected_tokens,
                in_words=in_words,
                allow_empty=task is not None,
                show_progress=True,
                stopping=lambda: bool(signals),
            )
        except KeyboardInterrupt:
            print(f"stopped; the same command goes on with {out_dir}", file=sys.stderr)
            return EXIT_STOPPED
    return _report(out_dir, meta)


def _task(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    task, _, n_tasks = text.partition("/")
    if not (task.isdecimal() and n_tasks.isdecimal() and int(task) < int(n_tasks)):
        raise InputError(f"task {text!r} must be i/N with 0 <= i < N, such as 0/8")
    return int(task), int(n_tasks)


def verify_folder(folder: Path) -> int:
    """Reads the dataset again and prints what is wrong, a line each. Returns the exit code."""
    meta = read_meta(folder)
    problems = verify(folder, say=print)
    for problem in problems:
        print(problem, file=sys.stderr)
    if problems:
        print(
            f"{folder}: {len(problems)} problem{'s' * (len(problems) > 1)}: restore the files or prepare it again",
            file=sys.stderr,
        )
        return 2
    sums = ", ".join(
        f"{s} {e['tokens']:,} tokens in {len(e['shards'])} shards" for s, e in meta["splits"].items()
    )
    print(f"{folder} is as it was written: {sums}")
    return 0


def _report(folder: Path, meta: dict[str, Any]) -> int:
    for split, entry in meta["splits"].items():
        ratio = entry["text_bytes"] / max(1, entry["tokens"])
        print(
            f"{split}: {entry['documents']:,} documents, {entry['tokens']:,} tokens, {entry['text_bytes']:,} bytes of text, "
            f"{ratio:.3f} bytes/token, {len(entry['shards'])} shards"
        )
    for source, s in sorted(meta["preparation"]["statistics"].items()):
        print(
            f"  {source or 'all'}: {s['documents']:,} documents, {s['tokens']:,} tokens, "
            f"{s['text_bytes'] / max(1, s['tokens']):.3f} bytes/token, longest {s['longest_document_bytes']:,} bytes"
        )
    if meta["preparation"]["bad_rows"]:
        print(f"  {meta['preparation']['bad_rows']:,} bad rows were left out")
    print(f"{folder} is ready")
    return 0


def task_folder(out_dir: Path, task: int, n_tasks: int) -> Path:
    return out_dir / f"task_{task:05d}_of_{n_tasks:05d}"


def task_files(files: Sequence[Path], task: int, n_tasks: int) -> list[Path]:
    """A task's share of the files: consecutive ones, at least one, of about the same size for all, so that
    the tasks' tokens behind each other are the tokens of one run over all files. Raises InputError where
    there are fewer files than tasks."""
    if len(files) < n_tasks:
        raise InputError(
            f"{len(files)} files for {n_tasks} tasks: pass a smaller N in --task=i/N, or cut the files smaller"
        )
    ends = np.cumsum([file.stat().st_size for file in files])
    cuts = [0]
    for t in range(1, n_tasks):
        cut = int(np.searchsorted(ends, ends[-1] * t / n_tasks, "left")) + 1
        cuts.append(min(max(cut, cuts[-1] + 1), len(files) - (n_tasks - t)))
    cuts.append(len(files))
    return list(files[cuts[task] : cuts[task + 1]])


def merge(out_dir: str | Path) -> dict[str, Any]:
    """Joins the folders of all tasks into one dataset by renaming their shards; no token is copied. It may
    be killed and repeated. Raises InputError or FileNotFoundError, before anything is moved, where a task
    is missing or differs."""
    out_dir = Path(out_dir)
    plan_path = out_dir / "merge.json"
    if not plan_path.is_file():
        if (out_dir / "meta.json").is_file():
            raise InputError(f"{out_dir} is merged already: --verify reads it again")
        write_json(plan_path, _merge_plan(out_dir))
    plan = json.loads(plan_path.read_bytes())
    for old, new in plan["renames"]:
        if (out_dir / old).exists():
            os.replace(out_dir / old, out_dir / new)
    for folder in plan["folders"]:
        if not (out_dir / folder).is_dir():
            continue
        for file in [f for f in (out_dir / folder).iterdir() if f.suffix != ".bin" and f.name != "meta.json"]:
            os.replace(file, out_dir / file.name)  # the tokenizer's
    write_json(out_dir / "meta.json", plan["meta"])
    for folder in plan["folders"]:
        shutil.rmtree(out_dir / folder, ignore_errors=True)
    plan_path.unlink()
    return plan["meta"]


def _settings(meta: dict[str, Any]) -> dict[str, Any]:
    """What the tasks of one dataset have in common: all but their files."""
    identity = dict(meta["preparation"]["identity"])
    source = {key: value for key, value in identity.pop("source").items() if key != "files"}
    return {**{key: meta[key] for key in ("tokenizer", "eot_id", "vocab_size")}, **identity, **source}


def _merge_plan(out_dir: Path) -> dict[str, Any]:
    folders = sorted(out_dir.glob("task_*_of_*"))
    if not folders:
        raise MissingFile(
            f"{out_dir} holds no task_*_of_* folders: run the tasks first, with --task=i/N and this --out_dir"
        )
    n_tasks = int(folders[0].name.rpartition("_")[2])
    metas = []
    for task in range(n_tasks):
        folder = task_folder(out_dir, task, n_tasks)
        if not (folder / "meta.json").is_file():
            raise MissingFile(
                f"{folder}/meta.json is missing, so task {task}/{n_tasks} is not finished: run it again"
            )
        metas.append(read_meta(folder))
    if len(folders) != n_tasks:
        raise InputError(
            f"{out_dir} holds task folders of several numbers of tasks: remove those that do not belong"
        )
    merged, renames = dict(metas[0]), []
    for meta, folder in zip(metas[1:], folders[1:], strict=True):
        first = _settings(merged)
        for key, value in _settings(meta).items():
            if value != first[key]:
                raise InputError(
                    f"{folder}: its {key} differs from that of {folders[0].name}: prepare it again"
                )
    statistics: dict[str, dict[str, int]] = {}
    for meta in metas:
        add_statistics(statistics, meta["preparation"]["statistics"])
    splits = {}
    for split in SPLITS:
        shards = []
        for meta, folder in zip(metas, folders, strict=True):
            for shard in meta["splits"].get(split, {"shards": []})["shards"]:
                file, n_bytes = folder / shard["file"], shard["tokens"] * SHARD_DTYPE.itemsize
                if not file.is_file() or file.stat().st_size != n_bytes:
                    raise InputError(
                        f"{file} is not there with {n_bytes} bytes as its meta.json says: run that task again"
                    )
                name = f"{split}_{len(shards):05d}.bin"
                renames.append([f"{folder.name}/{shard['file']}", name])
                shards.append({**shard, "file": name})
        sums = {
            key: sum(m["splits"][split][key] for m in metas if split in m["splits"])
            for key in ("tokens", "documents", "text_bytes")
        }
        if not shards:
            raise InputError(
                f"{out_dir}: no task has a document in {split}: prepare it with a larger --val_fraction"
            )
        splits[split] = {**sums, "shards": shards}
    preparation = {"rows": sum(m["preparation"]["rows"] for m in metas), "statistics": statistics}
    preparation |= {"bad_rows": sum(m["preparation"]["bad_rows"] for m in metas), "tasks": n_tasks}
    preparation["identity"] = [m["preparation"]["identity"] for m in metas]
    merged |= {"splits": splits, "preparation": preparation}
    return {"renames": renames, "folders": [f.name for f in folders], "meta": merged}
