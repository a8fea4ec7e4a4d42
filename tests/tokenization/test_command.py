"""The command line of every prepare.py: a wrong one is one line, a right one ends in a trained step."""

import json
import os
import re
import subprocess
import sys

import pytest
from backports import zstd
from preparing import ROOT, TEXTS, custom, refused

from tokenization import command

pytest_plugins = ["preparing_fixtures"]


@pytest.mark.parametrize(
    "flags, message",
    [
        ("", "which tokenizer\\? pass --tokenizer=qwen3"),
        ("--tokenizer=TOY", "which text\\? pass --source=FOLDER"),
        ("--tokenizer=qwen4 --source=IN", "tokenizer 'qwen4' is not one of gpt2, llama2, llama3, qwen3"),
        ("--tokenizer=IN --source=IN", r"tokenizer\.json is missing"),
        ("--tokenizer=TOY --source=nowhere/*.jsonl", "matches nothing"),
        ("--tokenizer=TOY --source=IN --val_fraction=0", "val_fraction=0"),
        ("--tokenizer=TOY --source=IN --val_fraction=1.5", "val_fraction=1.5 must lie in"),
        ("--tokenizer=TOY --source=IN --val_fraction=nan", "val_fraction=nan must lie in"),
        ("--tokenizer=TOY --source=IN --shard_tokens=0", "shard_tokens=0 must be at least 1"),
        ("--tokenizer=TOY --source=IN --limit=0", "limit=0 must be at least 1"),
        ("--tokenizer=TOY --source=IN --workers=0", r"workers=0 must lie in \[1, 1024\]"),
        ("--tokenizer=TOY --source=IN --workers=1e9", r"workers=1000000000 must lie in \[1, 1024\]"),
        ("--tokenizer=TOY --source=IN --max_bad_rows=-1", "max_bad_rows=-1 must be at least 0"),
        ("--tokenizer=TOY --source=IN --limit=many", "limit"),
        ("--tokenizer=TOY --source=IN --engine=fastoken", "engine"),
        ("--tokenizer=TOY --source=IN --task=2/2", "task '2/2' must be i/N"),
        ("--tokenizer=TOY --source=IN --task=1", "task '1' must be i/N"),
        ("--tokenizer=TOY --source=IN --task=0/9", "5 files for 9 tasks"),
        ("--tokenizer=TOY --source=IN --sourse=x", "did you mean"),
        (
            "--tokenizer=TOY --source=IN --text_field=body --max_bad_rows=0",
            r"part_0\.jsonl:1: field 'body' is missing",
        ),
    ],
)
def test_a_wrong_command_is_one_line(corpus, toy_folder, tmp_path, capsys, in_this_process, flags, message):
    flags = flags.replace("TOY", str(toy_folder)).replace("IN", str(corpus)).split()
    line = refused(capsys, *flags, f"--out_dir={tmp_path / 'out'}")
    assert re.search(message, line)
    assert not (tmp_path / "out").exists()


def test_help_names_every_flag(capsys):
    assert custom("--help") == 0
    printed = capsys.readouterr().out
    for name in command.PrepareConfig.__dataclass_fields__:
        assert f"--{name}" in printed


def test_help_shows_the_defaults_of_its_script(capsys, tmp_path):
    assert (
        command.run("doc", tmp_path, ["--help"], tokenizer="qwen3", repo="a/b", source_field="meta.set") == 0
    )
    printed = capsys.readouterr().out
    for default in ("qwen3", str(tmp_path), "meta.set"):
        assert f"(default {default!r})" in printed


def test_without_a_network_the_message_says_what_to_do(tmp_path, qwen3_folder):
    flags = [f"--out_dir={tmp_path / 'out'}", f"--tokenizer={qwen3_folder}"]
    done = subprocess.run(
        [sys.executable, ROOT / "data/slimpajama_6b_qwen3/prepare.py", *flags],
        env=os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert re.search(
        "prepare.py: dataset DKYoon/SlimPajama-6B cannot be read from the hub .* pass local files with --source",
        line,
    )
    assert not (tmp_path / "out").exists()


def test_from_local_files_to_a_trained_step(tmp_path, qwen3_folder):
    """data/slimpajama_6b_qwen3/prepare.py --source=…, then train.py with Qwen3's 0.6B configuration, shrunk
    by flags."""
    (tmp_path / "in").mkdir()
    rows = (
        {"text": text, "meta": {"redpajama_set_name": f"RedPajama{i % 2}"}} for i, text in enumerate(TEXTS)
    )
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (tmp_path / "in/chunk_0.jsonl.zst").write_bytes(zstd.compress(content))

    def call(script, *flags):
        done = subprocess.run(
            [sys.executable, ROOT / script, *flags], capture_output=True, text=True, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    flags = [
        f"--out_dir={tmp_path / 'data'}",
        f"--tokenizer={qwen3_folder}",
        "--val_fraction=0.1",
        "--workers=1",
    ]
    printed = call("data/slimpajama_6b_qwen3/prepare.py", f"--source={tmp_path / 'in'}", *flags)
    assert "RedPajama1: 300 documents" in printed and "engine fastokens" in printed
    assert custom("--verify", f"--out_dir={tmp_path / 'data'}") == 0
    shape = "--n_layer=2 --n_embd=32 --n_head=2 --num_key_value_heads=1 --head_dim=16 --d_ff=64 --block_size=64 --batch_size=2"
    loop = "--gradient_accumulation_steps=1 --max_iters=2 --warmup_iters=1 --eval_interval=2 --eval_iters=1 --log_interval=1"
    machine = "--device=cpu --dtype=float32 --compile=False"
    flags = [
        *shape.split(),
        *loop.split(),
        *machine.split(),
        f"--dataset={tmp_path / 'data'}",
        f"--out_dir={tmp_path / 'run'}",
    ]
    call("train.py", str(ROOT / "config/full_qwen3_0.6b.py"), *flags)
    (log,) = (tmp_path / "run").glob("run_*.jsonl")
    events = [json.loads(line) for line in log.read_text().splitlines()]
    losses = [event["loss"] for event in events if event["event"] == "train"]
    assert len(losses) == 2 and all(11 < loss < 13 for loss in losses)  # ln 151,936 = 11.9
    (evaluation, *_) = [event for event in events if event["event"] == "eval"]
    assert evaluation["val_bits_per_byte"] > 1
