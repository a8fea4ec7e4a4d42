"""Odd flags, JSON files and logs, for a fixed time under a fresh seed: each is taken, passed over or refused as an
InputError, within seconds; nothing else is ever raised.

    FUZZ_SEED=… FUZZ_SECONDS=600 python -m pytest -o addopts= -s tests/faults/test_fuzz.py      # repeats, or runs longer
"""

import copy
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import TINY_FLAGS, write_dataset
from run_logs import write_log

import train
from analysis.groups import config_diff, groups_of
from analysis.logs import join_logs
from analysis.rows import summarise
from analysis.runs import read_runs
from analysis.sentences import notes_on
from analysis.standings import standings
from base.errors import InputError
from inference.hf import load_hf, save_hf
from inference.models import find_model
from model_builder import ConfigurableGPT
from model_config import get_preset_config
from tokenization.text_bytes import text_of_ids
from tokens.reader import open_tokens
from tokens.verify import verify
from training import checkpoint
from training.config import MODEL_FIELDS, TRAIN_FIELDS, load_config
from training.state import check_resumable

SECONDS = float(os.environ.get("FUZZ_SECONDS", 40)) / 4  # of each kind
AT_ONCE_S = 30  # no single input may take longer
pytestmark = pytest.mark.timeout(900)

DEEP: Any = []
for _ in range(150):
    DEEP = [DEEP]
ODD_VALUES = [
    None, True, False, 0, 1, -1, 2**31, 2**63, -(2**63), 2**64, 10**400, 0.5, -0.0, 1e308, float("inf"), float("nan"),
    "", "x", "\x1b[31m", "\ud800", "x" * 10_000, "../../etc/passwd", "0", "step_00000004", [], {},
    [1, "a", None], {"a": {"b": []}}, DEEP,
]  # fmt: skip
ODD_TEXTS = [
    b"", b"{", b"null", b"[]", b"{}", b"\xff\xfe\x00", b"[" * 50_000, b'{"a":' * 50_000, b"9" * 6000, b"\x00" * 99,
    b'{"a": 1, "a": 2}', b"NaN", b'"\\ud800"',
]  # fmt: skip


@pytest.fixture
def dice(request) -> random.Random:
    seed = int(os.environ.get("FUZZ_SEED", time.time_ns() % 2**32))
    print(f"\n{request.node.name}: FUZZ_SEED={seed}")
    return random.Random(seed)


def for_a_while(once: Callable[[], None]) -> int:
    """Calls once() until the time is over, each within AT_ONCE_S; how often."""

    def too_long(number: int, frame: object) -> None:
        raise TimeoutError(f"one input took more than {AT_ONCE_S} s")

    signal.signal(signal.SIGALRM, too_long)
    n, end = 0, time.monotonic() + SECONDS
    while time.monotonic() < end:
        signal.alarm(AT_ONCE_S)
        once()
        n += 1
    signal.alarm(0)
    print(f"{n} inputs")
    return n


def changed(dice: random.Random, value: Any) -> Any:
    """A copy of a JSON value with one place in it replaced, removed, doubled or added."""
    value = copy.deepcopy(value)
    at, parent, key = value, None, None
    while isinstance(at, (dict, list)) and at and (parent is None or dice.random() < 0.7):
        parent, key = at, dice.choice(list(at) if isinstance(at, dict) else range(len(at)))
        at = at[key]
    if parent is None:
        return dice.choice(ODD_VALUES)
    how = dice.choice(["replace", "replace", "replace", "remove", "add", "wrap"])
    if how == "remove":
        del parent[key]
    elif how == "add" and isinstance(parent, dict):
        parent[dice.choice(["", "x", "\x1b[2J", "event", "step"])] = dice.choice(ODD_VALUES)
    elif how == "wrap":
        parent[key] = [at] if dice.random() < 0.5 else {"x": at}
    else:
        parent[key] = dice.choice(ODD_VALUES)
    return value


def spoil(dice: random.Random, file: Path) -> None:
    """Changes a JSON file: a value in it, or its bytes."""
    content = file.read_bytes()
    how = dice.random()
    if how < 0.75:
        value = json.loads(content)
        for _ in range(dice.choice([1, 1, 1, 2, 5])):
            value = changed(dice, value)
        file.write_text(json.dumps(value), errors="surrogatepass")
    elif how < 0.85:
        file.write_bytes(dice.choice(ODD_TEXTS))
    elif how < 0.95:
        cut, bad = dice.randrange(len(content)), bytes([dice.randrange(256)])
        file.write_bytes(content[:cut] + (bad + content[cut + 1 :] if dice.random() < 0.5 else b""))
    else:
        file.unlink()
        if dice.random() < 0.5:
            dice.choice([file.mkdir, lambda: os.mkfifo(file), lambda: file.symlink_to(file.name)])()


def taken_or_refused(*work: Callable[[], Any]) -> None:
    for part in work:
        try:
            part()
        except InputError as error:
            assert len(str(error)) < 20_000


def test_flags(dice, in_tmp_path):
    names = [*MODEL_FIELDS, *TRAIN_FIELDS]
    texts = [str(v)[:5000] for v in ODD_VALUES] + [
        "none",
        "TRUE",
        "1e9",
        "1e400",
        "0x10",
        "1_000",
        "٣",
        "qwen3",
        "=",
        "--",
        "-1",
    ]

    def once() -> None:
        argv = []
        for _ in range(dice.randint(1, 6)):
            name = dice.choice(names)
            if dice.random() < 0.2:
                name = name[: dice.randrange(len(name))] + dice.choice(["", "x", "-", "\x00"])
            text = dice.choice(texts)
            argv += dice.choice([[f"--{name}={text}"], [f"--{name}", text], [f"--{name}"], [text]])
        taken_or_refused(lambda: [config.notes() for config in load_config(argv)])

    assert for_a_while(once) > 100


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """data: a dataset; run: a run of it with two checkpoints; hf: a model folder; logs of others."""
    folder = tmp_path_factory.mktemp("made")
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    write_dataset(folder / "data")
    flags = [*TINY_FLAGS, f"--dataset={folder}/data", f"--out_dir={folder}/run", "--max_iters=4"]
    assert train.main([*flags, "--checkpoint_interval=2", "--always_save_checkpoint"]) == 0
    for number, handler in handlers.items():
        signal.signal(number, handler)
    shape = dict(
        n_layer=1,
        n_embd=32,
        n_head=2,
        num_key_value_heads=1,
        head_dim=16,
        d_ff=32,
        vocab_size=97,
        block_size=16,
    )
    save_hf(ConfigurableGPT(get_preset_config("qwen3", **shape)), folder / "hf")
    pieces = {"<end>": 0, **{chr(97 + i): i + 1 for i in range(26)}}
    (folder / "data" / "text.json").write_text(json.dumps({
        "added_tokens": [{"id": 0, "content": "<end>"}], "normalizer": None, "pre_tokenizer": None,
        "model": {"type": "BPE", "vocab": pieces, "merges": []},
    }))  # fmt: skip
    return folder


def test_json_files(dice, made, tmp_path, caplog):
    """meta.json of data; manifest, state and configuration of a checkpoint, where another one is still whole; files of
    a model and of a tokenizer."""
    config = load_config([*TINY_FLAGS, f"--dataset={made}/data"])
    resolved = {"model": vars(config[0]), "train": vars(config[1])}

    def once() -> None:
        there = tmp_path / "there"
        shutil.rmtree(there, ignore_errors=True)
        shutil.copytree(made, there)
        newest = there / "run" / "checkpoints" / "step_00000004"
        files = [
            there / "data" / "meta.json",
            *newest.glob("*.json"),
            *(there / "hf").glob("*.json"),
            there / "data" / "text.json",
        ]
        file = dice.choice(files)
        spoil(dice, file)
        if file.name == "text.json":
            file.rename(there / "data" / "tokenizer.json") if file.is_file() else None
            text = text_of_ids(there / "data", 0)
            assert text is None or text.count(np.zeros(3, int), np.arange(3)) >= 0
        elif file.parent.name == "data":
            taken_or_refused(
                lambda: open_tokens(there / "data", "train", 97).read(0, 9),
                lambda: list(verify(there / "data")),
            )
        elif file.parent.name == "hf":
            taken_or_refused(lambda: load_hf(there / "hf"))
        else:
            found = checkpoint.find_checkpoint(there / "run")
            assert found is not None  # the older one is whole
            taken_or_refused(
                lambda: check_resumable(found, *checkpoint.load_state(found), resolved, "f"),
                lambda: find_model(out_dir=str(there / "run")).load(torch.device("cpu"), torch.float32),
            )
        caplog.clear()

    assert for_a_while(once) > 20


def test_logs(dice, in_tmp_path):
    """A comparison of a whole log with one whose lines were changed."""
    whole = write_log("out-a", measurement={}, data={"train_bytes_per_token": 4.0})
    lines = write_log("out-b", measurement={}, started=1_700_000_001).read_text().splitlines()

    def once() -> None:
        some = list(lines)
        for _ in range(dice.choice([1, 2, 5])):
            i = dice.choice([0, 0, dice.randrange(len(some))])
            some[i] = json.dumps(changed(dice, json.loads(lines[i])))
            if dice.random() < 0.2:
                some[i] = some[i][: dice.randrange(len(some[i]) + 1)]
        bad = Path("out-b/run_x.jsonl")
        bad.write_text("\n".join(some), errors="surrogatepass")

        def compare() -> None:
            chains, _ = join_logs([bad])
            runs = read_runs([[whole], *(files for _, files in chains)])
            groups, leads = groups_of(runs), standings(runs)
            notes_on(runs, None, groups, config_diff(groups), leads)
            json.dumps([summarise(run, 1e4, 1e12) for run in runs], allow_nan=False)

        taken_or_refused(compare)

    assert for_a_while(once) > 20
