"""Several machines: each prepares a share of the files, a task, into a folder of its own; merging renames their
shards into one dataset."""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from base.errors import InputError, MissingFile, writing
from base.files import alone_in, entry, read_json, size_of, write_json
from base.text import shown
from tokenization.documents import SPLITS
from tokenization.progress import check_preparation, remove_partial
from tokenization.worker import add_statistics
from tokens.format import SHARD_DTYPE, check_meta, read_meta

SUMS = ("tokens", "documents", "text_bytes")
Meta = dict[str, Any]


def parse_task(text: str) -> tuple[int, int]:
    """(i, N) of "i/N". Raises InputError."""
    found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
    if not found or int(found[1]) >= int(found[2]):
        raise InputError(f"task {shown(text)} must be i/N with 0 <= i < N, such as 0/8")
    return int(found[1]), int(found[2])


def task_folder(out_dir: Path, task: int, n_tasks: int) -> Path:
    return out_dir / f"task_{task:05d}_of_{n_tasks:05d}"


def task_files(files: Sequence[Path], task: int, n_tasks: int) -> list[Path]:
    """A task's share of the files: consecutive ones, at least one, of about the same size for all, so that
    the tasks' tokens one after the other are the tokens of one run over all files. Raises InputError where
    there are fewer files than tasks."""
    if len(files) < n_tasks:
        raise InputError(
            f"{len(files)} files for {n_tasks} tasks: pass a smaller N in --task=i/N, or cut the files smaller"
        )
    ends = np.cumsum([size_of(file) for file in files])
    cuts = [0]
    for t in range(1, n_tasks):
        cut = int(np.searchsorted(ends, ends[-1] * t / n_tasks, "left")) + 1
        cuts.append(min(max(cut, cuts[-1] + 1), len(files) - (n_tasks - t)))
    cuts.append(len(files))
    return list(files[cuts[task] : cuts[task + 1]])


def merge(out_dir: str | Path) -> Meta:
    """Joins the folders of all tasks into one dataset by renaming their shards; no token is copied. It may
    be killed and repeated. Returns what meta.json holds. Raises InputError, before anything is moved, where
    a task is missing or differs."""
    out_dir = Path(out_dir)
    plan_path = out_dir / "merge.json"
    if os.path.lexists(plan_path):
        plan = _read_plan(plan_path)
    elif os.path.lexists(out_dir / "meta.json"):
        raise InputError(f"{out_dir} is merged already: --verify reads it again")
    else:
        plan = _plan(out_dir)
    with writing(out_dir), alone_in(out_dir, "prepare.py"):
        remove_partial(out_dir)
        write_json(plan_path, plan)
        _carry_out(plan, out_dir)
        plan_path.unlink()
    return plan["meta"]


def _read_plan(path: Path) -> dict[str, Any]:
    """What _plan gave. Raises InputError for anything else, and for names that lead out of the folder."""
    again = "remove it, and prepare again the tasks that are not whole"
    plan = read_json(path, again)
    folders = entry(plan, "folders", list, path, again)
    for pair in entry(plan, "renames", list, path, again):
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(name, str) for name in pair)):
            raise InputError(f"{path}: {shown(pair)} is not an old and a new name: {again}")
        folder, _, old = pair[0].partition("/")
        if folder not in folders or not (_is_shard(old) and _is_shard(pair[1])):
            raise InputError(f"{path}: {shown(pair)} are not shards of this folder: {again}")
    for folder in folders:
        if not (isinstance(folder, str) and TASK_FOLDER.fullmatch(folder)):
            raise InputError(f"{path}: {shown(folder)} is not the folder of a task: {again}")
    check_meta(plan.get("meta"), f"{path}: meta")
    check_preparation(plan["meta"], f"{path}: meta")
    return plan


def _is_shard(name: str) -> bool:
    return Path(name).name == name and name.endswith(".bin")


def _is_a_tokenizers(name: str) -> bool:
    """Among the files of a task's folder."""
    return not name.startswith(".") and not name.endswith(".bin") and name != "meta.json"


def _carry_out(plan: dict[str, Any], out_dir: Path) -> None:
    for old, new in plan["renames"]:
        if (out_dir / old).exists():
            os.replace(out_dir / old, out_dir / new)
    for folder in plan["folders"]:
        if not (out_dir / folder).is_dir():
            continue
        for file in [f for f in (out_dir / folder).iterdir() if _is_a_tokenizers(f.name)]:
            os.replace(file, out_dir / file.name)
    write_json(out_dir / "meta.json", plan["meta"])
    for folder in plan["folders"]:
        shutil.rmtree(out_dir / folder, ignore_errors=True)


def _plan(out_dir: Path) -> dict[str, Any]:
    """{renames, folders, meta}, JSON, of a merge. Raises InputError where a task is missing or differs."""
    folders = _task_folders(out_dir)
    metas = [read_meta(folder) for folder in folders]
    for meta, folder in zip(metas, folders, strict=True):
        check_preparation(meta, folder / "meta.json")
    _check_alike(metas, folders)
    renames: list[list[str]] = []
    splits = {split: _merged_split(split, metas, folders, renames) for split in SPLITS}
    for split, merged in splits.items():
        if not merged["shards"]:
            raise InputError(
                f"{out_dir}: no task has a document in {split}: prepare it with a larger --val_fraction"
            )
    preparations = [meta["preparation"] for meta in metas]
    statistics: dict[str, dict[str, int]] = {}
    for preparation in preparations:
        add_statistics(statistics, preparation["statistics"])
    preparation = {
        "rows": sum(p["rows"] for p in preparations),
        "statistics": statistics,
        "bad_rows": sum(p["bad_rows"] for p in preparations),
        "tasks": len(folders),
        "identity": [p["identity"] for p in preparations],
    }
    meta = {**metas[0], "splits": splits, "preparation": preparation}
    return {"renames": renames, "folders": [f.name for f in folders], "meta": meta}


TASK_FOLDER = re.compile(r"task_(\d{5,9})_of_(\d{5,9})")


def _task_folders(out_dir: Path) -> list[Path]:
    """Those of all tasks, in order. Raises InputError where one is missing, unfinished or of another number of
    tasks."""
    there = sorted(f for f in out_dir.glob("task_*_of_*") if TASK_FOLDER.fullmatch(f.name))
    if not there:
        raise MissingFile(
            f"{out_dir} holds no task_*_of_* folders: run the tasks first, with --task=i/N and this --out_dir"
        )
    n_tasks = int(TASK_FOLDER.fullmatch(there[0].name)[2])
    folders = []
    for task in range(n_tasks):
        folders.append(task_folder(out_dir, task, n_tasks))
        if not os.path.isfile(folders[-1] / "meta.json"):
            raise MissingFile(
                f"{folders[-1]}/meta.json is missing, so task {task}/{n_tasks} is not finished: run it again"
            )
    if len(there) != n_tasks:
        raise InputError(
            f"{out_dir} holds task folders of several numbers of tasks: remove those that do not belong"
        )
    return folders


def _check_alike(metas: Sequence[Meta], folders: Sequence[Path]) -> None:
    first = _settings(metas[0], folders[0])
    for meta, folder in zip(metas[1:], folders[1:], strict=True):
        own = _settings(meta, folder)
        for key in {**first, **own}:
            if own.get(key) != first.get(key):
                raise InputError(
                    f"{folder}: its {key} differs from that of {folders[0].name}: prepare it again"
                )


def _settings(meta: Meta, folder: Path) -> dict[str, Any]:
    """What the tasks of one dataset have in common: all but their files."""
    where = folder / "meta.json"
    identity = dict(entry(meta["preparation"], "identity", dict, where, "prepare it again"))
    source = dict(entry(identity, "source", dict, where, "prepare it again"))
    identity.pop("source")
    source.pop("files", None)
    return {**{key: meta[key] for key in ("tokenizer", "eot_id", "vocab_size")}, **identity, **source}


def _merged_split(
    split: str, metas: Sequence[Meta], folders: Sequence[Path], renames: list[list[str]]
) -> dict[str, Any]:
    """The split's entry of meta.json; the renames of its shards are appended."""
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
    own = [meta["splits"][split] for meta in metas if split in meta["splits"]]
    return {**{key: sum(s[key] for s in own) for key in SUMS}, "shards": shards}
