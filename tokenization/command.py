"""The command line of every data/<name>/prepare.py, and what joins the work of several machines.

raise SystemExit(run(__doc__, Path(__file__).resolve().parent, sys.argv[1:], tokenizer="qwen3", repo="…"))
"""

import argparse
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tokenization import engines
from tokenization.pipeline import SPLITS, Job, add_statistics, prepare
from tokenization.sources import FileSource, HubSource, find_files
from tokenization.tokenizers import find_tokenizer
from training.config import user_errors
from training.data import tokenizer_files
from training.shards import read_meta, verify, write_json

EXIT_STOPPED = 75


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
    """The whole of a prepare.py. `folder` is where it lies and where the dataset goes, `tokenizer` its default, `repo` and
    `config` the hub dataset that it reads without --source, of about `expected_tokens` tokens. Returns the exit code."""
    args = _arguments(doc, folder, argv, tokenizer, source_field)
    logging.basicConfig(format="%(message)s")
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    with user_errors():
        if args.verify:
            return verify_folder(args.out_dir)
        if args.merge:
            return _report(args.out_dir, merge(args.out_dir))
        task = _task(args.task)
        job = Job(args.val_fraction, args.shard_tokens, args.limit)
        if args.workers is not None and args.workers < 1:
            raise ValueError(f"workers={args.workers} must be at least 1")
        if args.tokenizer is None:
            raise ValueError("which tokenizer? pass --tokenizer=qwen3, llama3, llama2, gpt2, a folder or a hub id")
        found = find_tokenizer(args.tokenizer)
        if args.source:
            files = find_files(args.source)
            out_dir = args.out_dir
            if task is not None:
                files, out_dir = task_files(files, *task), task_folder(args.out_dir, *task)
            source = FileSource(files, args.text_field, args.source_field, args.separator)
            in_words = f"{len(files)} files of {', '.join(args.source)}"
        elif repo is None:
            raise ValueError(
                "which text? pass --source=FOLDER, files or a pattern (.jsonl, .jsonl.zst, .jsonl.gz, .parquet, .txt)"
            )
        else:
            if task is not None:
                raise ValueError("--task shares out local files: download the dataset and pass --source=FILES")
            out_dir, in_words = args.out_dir, f"{repo} of the Hugging Face hub"
            source = HubSource(repo, config, "train", args.revision, args.text_field, args.source_field, args.download)
        try:
            meta = prepare(
                source,
                found,
                out_dir,
                job,
                engine=args.engine,
                workers=args.workers,
                max_bad_rows=args.max_bad_rows,
                commit_interval=args.commit_interval,
                expected_tokens=expected_tokens,
                in_words=in_words,
                allow_empty=task is not None,
                show_progress=True,
            )
        except KeyboardInterrupt:
            print(f"stopped; the same command goes on with {out_dir}", file=sys.stderr)
            return EXIT_STOPPED
    return _report(out_dir, meta)


def _arguments(
    doc: str, folder: Path, argv: Sequence[str], tokenizer: str | None, source_field: str | None
) -> argparse.Namespace:
    parser = _Parser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    add = parser.add_argument
    add("--source", action="append", help="a file, folder or pattern; may be repeated")
    add("--tokenizer", default=tokenizer, help=f"a name, folder or hub id; default {tokenizer}")
    add("--out_dir", type=Path, default=folder, help="default: the folder of this script")
    add("--workers", type=int, help="tokenizing processes; default: the cores")
    add("--limit", type=int, help="rows to take")
    add("--engine", choices=("auto", *engines.ENGINES), default="auto", help="default auto: the fastest that is right")
    add("--val_fraction", type=float, default=Job.val_fraction, help="of the documents; default %(default)s")
    add("--shard_tokens", type=int, default=Job.shard_tokens, help="default %(default)s")
    add("--text_field", default="text", help="the column or key with the text, with dots where nested; default %(default)s")
    add("--source_field", default=source_field, help="the one by which statistics are kept")
    add("--separator", type=_unescaped, help="cuts text files into documents, such as '\\n\\n'; else a file is one")
    add("--max_bad_rows", type=int, default=100, help="default %(default)s")
    add("--commit_interval", type=float, default=20.0, help="seconds of work that a kill may cost; default %(default)s")
    add("--task", help="i/N: the i-th of N shares of the files, from 0; --merge joins them")
    add("--merge", action="store_true", help="joins the folders of all tasks")
    add("--download", action="store_true", help="download the hub dataset first instead of streaming it")
    add("--revision", help="of the hub dataset")
    add("--verify", action="store_true", help="reads everything again and compares it with meta.json")
    return parser.parse_args(argv)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        print(f"{self.prog}: {message}; --help lists the flags", file=sys.stderr)
        raise SystemExit(2)


def _unescaped(text: str) -> str:
    """A separator as it is typed: \\n and \\t mean what they mean in Python."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


def _task(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    task, _, n_tasks = text.partition("/")
    if not (task.isdecimal() and n_tasks.isdecimal() and int(task) < int(n_tasks)):
        raise ValueError(f"task {text!r} must be i/N with 0 <= i < N, such as 0/8")
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
    sums = ", ".join(f"{s} {e['tokens']:,} tokens in {len(e['shards'])} shards" for s, e in meta["splits"].items())
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
    """A task's share of the files: consecutive ones, at least one, of about the same size for all, so that the tasks' tokens
    behind each other are the tokens of one run over all files. Raises ValueError where there are fewer files than tasks."""
    if len(files) < n_tasks:
        raise ValueError(f"{len(files)} files for {n_tasks} tasks: pass a smaller N in --task=i/N, or cut the files smaller")
    ends = np.cumsum([file.stat().st_size for file in files])
    cuts = [0]
    for t in range(1, n_tasks):
        cut = int(np.searchsorted(ends, ends[-1] * t / n_tasks, "left")) + 1
        cuts.append(min(max(cut, cuts[-1] + 1), len(files) - (n_tasks - t)))
    cuts.append(len(files))
    return list(files[cuts[task] : cuts[task + 1]])


def merge(out_dir: str | Path) -> dict[str, Any]:
    """Joins the folders of all tasks into one dataset by renaming their shards; no token is copied. It may be killed and
    repeated. Raises ValueError or FileNotFoundError, before anything is moved, where a task is missing or differs."""
    out_dir = Path(out_dir)
    plan_path = out_dir / "merge.json"
    if not plan_path.is_file():
        if (out_dir / "meta.json").is_file():
            raise ValueError(f"{out_dir} is merged already: --verify reads it again")
        write_json(plan_path, _merge_plan(out_dir))
    plan = json.loads(plan_path.read_bytes())
    for old, new in plan["renames"]:
        if (out_dir / old).exists():
            os.replace(out_dir / old, out_dir / new)
    for folder in map(Path, plan["folders"]):
        for file in tokenizer_files(out_dir / folder):
            os.replace(file, out_dir / file.name)
    write_json(out_dir / "meta.json", plan["meta"])
    for folder in plan["folders"]:
        shutil.rmtree(out_dir / folder, ignore_errors=True)
    plan_path.unlink()
    return plan["meta"]


def _merge_plan(out_dir: Path) -> dict[str, Any]:
    folders = sorted(out_dir.glob("task_*_of_*"))
    if not folders:
        raise FileNotFoundError(
            f"{out_dir} holds no task_*_of_* folders: run the tasks first, with --task=i/N and this --out_dir"
        )
    n_tasks = int(folders[0].name.rpartition("_")[2])
    metas = []
    for task in range(n_tasks):
        folder = task_folder(out_dir, task, n_tasks)
        if not (folder / "meta.json").is_file():
            raise FileNotFoundError(f"{folder}/meta.json is missing, so task {task}/{n_tasks} is not finished: run it again")
        metas.append(read_meta(folder))
    if len(folders) != n_tasks:
        raise ValueError(f"{out_dir} holds task folders of several numbers of tasks: remove those that do not belong")
    merged, renames = dict(metas[0]), []
    for meta, folder in zip(metas[1:], folders[1:], strict=True):
        for key in ("tokenizer", "eot_id", "vocab_size"):
            if meta[key] != merged[key]:
                raise ValueError(f"{folder}: its {key} differs from that of {folders[0].name}: prepare it again")
    statistics: dict[str, dict[str, int]] = {}
    for meta in metas:
        add_statistics(statistics, meta["preparation"]["statistics"])
    splits = {}
    for split in SPLITS:
        shards = []
        for meta, folder in zip(metas, folders, strict=True):
            for shard in meta["splits"].get(split, {"shards": []})["shards"]:
                name = f"{split}_{len(shards):05d}.bin"
                renames.append([f"{folder.name}/{shard['file']}", name])
                shards.append({**shard, "file": name})
        sums = {
            key: sum(m["splits"][split][key] for m in metas if split in m["splits"])
            for key in ("tokens", "documents", "text_bytes")
        }
        if not shards:
            raise ValueError(f"{out_dir}: no task has a document in {split}: prepare it with a larger --val_fraction")
        splits[split] = {**sums, "shards": shards}
    preparation = {"rows": sum(m["preparation"]["rows"] for m in metas), "statistics": statistics}
    preparation |= {"bad_rows": sum(m["preparation"]["bad_rows"] for m in metas), "tasks": n_tasks}
    preparation["identity"] = [m["preparation"]["identity"] for m in metas]
    merged |= {"splits": splits, "preparation": preparation}
    return {"renames": renames, "folders": [f.name for f in folders], "meta": merged}
