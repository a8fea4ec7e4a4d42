"""A tiny dataset and a tiny run for the tests that train."""

import hashlib
import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tokens.format import write_meta
from tokens.writer import ShardWriter

# Tiny matrices gain nothing from a second thread and lose much to it when the machine is busy. For
# subprocesses too.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

VOCAB = 97


def write_dataset(
    folder: Path, train_tokens: int = 2000, val_tokens: int = 600, vocab_size: int = VOCAB, seed: int = 0
) -> Path:
    """Documents of 50 ids in which each id follows from the one before, so that there is something to
    learn."""
    rng = np.random.default_rng(seed)
    splits = {}
    for split, n in (("train", train_tokens), ("val", val_tokens)):
        writer = ShardWriter(folder, split, shard_tokens=700)
        for _ in range(n // 50):
            ids = (np.arange(50) * 3 + rng.integers(vocab_size)) % (vocab_size - 1) + 1
            ids[-1] = 0
            writer.add(ids, text_bytes=150)
        splits[split] = writer.finish()
    tokenizer = {"name": "synthetic", "length": vocab_size, "sha256": "0" * 64}
    write_meta(folder, vocab_size=vocab_size, tokenizer=tokenizer, eot_id=0, splits=splits)
    return folder


def record_tokenizer(folder: Path) -> None:
    """Makes the tokenizer.json that was put into a dataset the one that its meta.json names."""
    meta = json.loads((folder / "meta.json").read_text())
    meta["tokenizer"]["sha256"] = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    (folder / "meta.json").write_text(json.dumps(meta))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "dataset")


@pytest.fixture
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test runs in a folder of its own."""
    monkeypatch.chdir(tmp_path)


TINY_FLAGS = (
    "--n_layer=2 --n_embd=32 --n_head=4 --d_ff=64 --block_size=16 --vocab_size=97 --weight_tying=True --batch_size=2 "
    "--gradient_accumulation_steps=2 --max_iters=6 --warmup_iters=2 --learning_rate=3e-3 --min_lr=3e-4 --eval_interval=3 "
    "--eval_tokens=64 --log_interval=1 --device=cpu --dtype=float32 --compile=False --seed=7"
).split()


@pytest.fixture
def run(dataset: Path, tmp_path: Path) -> Callable[..., int]:
    """run("name", "--flag=value", …): trains into tmp_path/name in this process and returns the exit code. Keywords are those
    of train.main: schedule, through which a test has its say at a step."""
    import train

    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}

    def call(name: str, *flags: str, **options: object) -> int:
        return train.main(
            [*TINY_FLAGS, f"--dataset={dataset}", f"--out_dir={tmp_path / name}", *flags], **options
        )

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)
    logging.getLogger("nanofoundry").handlers.clear()


def read_events(out_dir: Path, event: str | None = None) -> list[dict]:
    """The lines of every log in a run folder, oldest log first."""
    files = sorted(out_dir.glob("run_*.jsonl"), key=lambda f: f.stat().st_mtime_ns)
    events = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    return [e for e in events if event in (None, e["event"])]


@pytest.fixture(scope="session")
def qwen3():
    """Qwen3's tokenizer, rebuilt from the package that ships its vocabulary (3 s)."""
    from tokenization.tokenizers import find_tokenizer

    return find_tokenizer("qwen3")


@pytest.fixture(scope="session")
def llama3():
    """LLaMA 3's, likewise."""
    from tokenization.tokenizers import find_tokenizer

    return find_tokenizer("llama3")


@pytest.fixture(scope="session")
def qwen3_folder(qwen3, tmp_path_factory) -> Path:
    return qwen3.save(tmp_path_factory.mktemp("qwen3_tokenizer"))


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory) -> Path:
    """The folder of a byte-level tokenizer of 400 tokens, which loads at once."""
    from tokenization.embedded import train_tokenizer

    folder = tmp_path_factory.mktemp("toy_tokenizer")
    tokenizer = train_tokenizer(["def f(x):\n    return [x, 'ä€😀', \"word wort слово\"]\n" * 20], 400)
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    return folder
