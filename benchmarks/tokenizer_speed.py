"""From .jsonl.zst to finished shards with Qwen3's tokenizer, end to end, beside `datasets.map` as the seed
plan writes it.

    python benchmarks/tokenizer_speed.py                 # writes benchmarks/results/tokenizer_speed.json
    python benchmarks/tokenizer_speed.py --small_mb=4 --large_mb=8 --rival_mb=1 --engine_mb=2 --write=False    # a smoke test

The corpus is the text files of this Python and its packages, cut to documents of 8,000 characters; a larger
one repeats them in another order. Rates are megabytes of text a second; whole commands are timed, start of
the processes and loading of the tokenizer included. Peak memory is that of the process tree, pages that are
shared counted once (PSS)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import contextlib
import json
import os
import platform
import random
import re
import subprocess
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from base.fields import knob
from base.files import write_json
from benchmarks import records
from tokenization import engines
from tokenization.tokenizers import find_tokenizer

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCUMENT_CHARACTERS = 8_000
SUFFIXES = {".py", ".pyi", ".md", ".rst", ".txt", ".h", ".hpp", ".c", ".cpp", ".html", ".js", ".json"}

# The plan's way: map in batches, then a Python list of all ids, then one array
RIVAL = """
import sys, time
import numpy as np
from datasets import load_dataset
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(sys.argv[2])
dataset = load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[3])
encode = lambda examples: {"input_ids": tokenizer(examples["text"], truncation=False, padding=False)["input_ids"]}
mapped = dataset.map(encode, batched=True, remove_columns=dataset.column_names)
ids = []
for example in mapped:
    ids.extend(example["input_ids"])
np.array(ids, dtype=np.uint32).tofile(sys.argv[4])
"""


@dataclass(kw_only=True)
class BenchmarkConfig:
    small_mb: int = knob(200, "of text", bounds="[1, inf)")
    large_mb: int = knob(2000, "of text of the long preparation", bounds="[1, inf)")
    rival_mb: int = knob(25, "of text of the rival's", bounds="[1, inf)")
    engine_mb: int = knob(50, "of text for the engines alone", bounds="[1, inf)")
    workers: int = knob(2, "tokenizing processes", bounds="[1, inf)")
    write: bool = knob(True, "store the result under benchmarks/results/")


def documents() -> Iterator[str]:
    """Pieces of text files, in the order of their paths; without end: later rounds have another order."""
    files = sorted(
        p for p in Path(sysconfig.get_paths()["stdlib"]).rglob("*") if p.suffix in SUFFIXES and p.is_file()
    )
    purelib = Path(sysconfig.get_paths()["purelib"])
    files += sorted(p for p in purelib.rglob("*") if p.suffix in SUFFIXES and p.is_file())
    while True:
        for file in files:
            try:
                text = file.read_text()
            except (OSError, UnicodeDecodeError):
                continue
            for i in range(0, min(len(text), 3_000_000), DOCUMENT_CHARACTERS):
                yield text[i : i + DOCUMENT_CHARACTERS]
        random.Random(len(files)).shuffle(files)


def write_corpus(path: Path, megabytes: int) -> int:
    """Writes .jsonl.zst; returns the bytes of text."""
    from backports import zstd

    n_bytes = 0
    with zstd.open(path, "wt", encoding="utf-8") as f:
        for text in documents():
            f.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
            n_bytes += len(text.encode())
            if n_bytes >= megabytes * 1_000_000:
                return n_bytes


def run(command: list[str]) -> tuple[float, int, str]:
    """(seconds, peak bytes of the process tree, stdout)."""
    import psutil

    started, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile("w+") as stdout:
        process = psutil.Popen(command, stdout=stdout, stderr=subprocess.DEVNULL)
        while process.poll() is None:
            total = 0
            for p in [process, *process.children(recursive=True)]:
                with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                    total += p.memory_full_info().pss
            peak = max(peak, total)
            time.sleep(0.2)
        seconds = time.perf_counter() - started
        stdout.seek(0)
        text = stdout.read()
    if process.returncode:
        raise RuntimeError(f"{command} ended with {process.returncode}")
    return seconds, peak, text


def ours(folder: Path, name: str, megabytes: int, tokenizer: Path, workers: int) -> dict:
    corpus = folder / f"{name}.jsonl.zst"
    n_bytes = write_corpus(corpus, megabytes)
    command = [
        "data/custom/prepare.py",
        f"--source={corpus}",
        f"--tokenizer={tokenizer}",
        f"--out_dir={folder / name}",
    ]
    seconds, peak, text = run([sys.executable, *command, f"--workers={workers}"])
    parts = re.search(r"([\d.]+) s; summed over processes: (.*)", text)
    return {
        "text_mb": n_bytes / 1e6,
        "corpus_mb": corpus.stat().st_size / 1e6,
        "seconds": seconds,
        "mb_per_s": n_bytes / 1e6 / seconds,
        "seconds_without_start": float(parts[1]),
        "mb_per_s_without_start": n_bytes / 1e6 / float(parts[1]),
        "seconds_by_part": {k: float(v) for k, v in re.findall(r"(\w+) ([\d.]+) s", parts[2])},
        "peak_memory_mb": peak / 1e6,
        "tokens": json.loads((folder / name / "meta.json").read_text())["splits"]["train"]["tokens"],
    }


def rival(folder: Path, megabytes: int, tokenizer: Path) -> dict:
    corpus = folder / "rival.jsonl.zst"
    n_bytes = write_corpus(corpus, megabytes)
    command = [
        sys.executable,
        "-c",
        RIVAL,
        str(corpus),
        str(tokenizer),
        str(folder / "cache"),
        str(folder / "rival.bin"),
    ]
    seconds, peak, _ = run(command)
    return {
        "text_mb": n_bytes / 1e6,
        "seconds": seconds,
        "mb_per_s": n_bytes / 1e6 / seconds,
        "peak_memory_mb": peak / 1e6,
    }


def engine_rates(megabytes: int, tokenizer_json: bytes) -> dict:
    """Each engine alone, on one thread, and whether its ids are the reference's."""
    texts, n_bytes = [], 0
    for text in documents():
        texts.append(text)
        n_bytes += len(text.encode())
        if n_bytes >= megabytes * 1_000_000:
            break
    result, reference = {}, None
    for name in ("tokenizers", "fastokens", "gigatoken"):
        encode = engines.ENGINES[name](tokenizer_json)
        part = texts if name != "tokenizers" else texts[: max(1, len(texts) // 5)]  # slow
        started = time.perf_counter()
        done = [encode(part[i : i + 500]) for i in range(0, len(part), 500)]
        seconds = time.perf_counter() - started
        ids = np.concatenate([ids for ids, _ in done])
        if reference is None:
            reference = ids
        size = sum(len(text.encode()) for text in part)
        agrees = bool(np.array_equal(ids[: len(reference)], reference))
        difference = engines.first_difference(
            encode, engines.ENGINES["tokenizers"](tokenizer_json), engines.HARD_CASES
        )
        result[name] = {
            "mb_per_s": size / 1e6 / seconds,
            "same_ids": agrees,
            "same_ids_on_hard_cases": difference is None,
        }
    return result


def main(argv: Sequence[str]) -> int:
    return records.run(argv, __doc__, BenchmarkConfig, bench)


def bench(c: BenchmarkConfig, argv: Sequence[str]) -> None:
    os.environ.update(RAYON_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", HF_HUB_OFFLINE="1")
    os.chdir(ROOT)
    found = find_tokenizer("qwen3")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tokenizer = found.save(folder / "qwen3")
        result = {"engines_one_thread": engine_rates(c.engine_mb, found.json)}
        os.environ.pop("RAYON_NUM_THREADS"), os.environ.pop("TOKENIZERS_PARALLELISM")
        result["datasets_map"] = rival(folder, c.rival_mb, tokenizer)
        result["small"] = ours(folder, "small", c.small_mb, tokenizer, c.workers)
        result["large"] = ours(folder, "large", c.large_mb, tokenizer, c.workers)
    result["times_the_rival"] = result["large"]["mb_per_s"] / result["datasets_map"]["mb_per_s"]
    machine = {
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
    }
    record = {"command": "python benchmarks/tokenizer_speed.py", "machine": machine, **result}
    print(json.dumps(record, indent=2))
    if c.write:
        write_json(RESULTS / "tokenizer_speed.json", record)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
