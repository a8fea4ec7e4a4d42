"""Wrong input ends train.py with one line and exit code 2, before a file is touched."""

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import write_dataset
from run_folders import exit_code

import train
from training import keeping

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("flags, said", [
    (["--n_layers=3"], "did you mean 'n_layer'"),
    (["--n_layer=two"], "n_layer"),
    (["--n_embd=30"], "n_embd=30 is not divisible by n_head=4"),
    (["--batch_size=0"], "batch_size=0"),
    (["--vocab_size=50"], "vocab_size=50"),
    (["--block_size=5000"], "block_size=5000"),
    (["--dataset=no_such_data"], "no_such_data"),
    (["--device=cuda:99"], "cuda:99"),
    (["--device=tpu"], "tpu"),
    (["--init_from=resume"], "init_from='resume'"),
    (["--init_from=hf:/no/such/model"], "/no/such/model"),
    (["--use_zero1", "--use_fsdp"], "exclude each other"),
    (["--data_dtype=uint16"], "uint16"),
    (["--n_embd=1000000000000000000"], "a model of this size is not possible"),
    ([f"--n_embd={10**400}"], "n_embd is beyond 64 bits"),
    ([f"--max_iters={10**400}"], "max_iters is beyond 64 bits"),
])  # fmt: skip
def test_bad_input_is_one_line_and_touches_nothing(run, tmp_path, capsys, flags, said):
    assert exit_code(run, "a", *flags) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
    assert not (tmp_path / "a").exists()


def test_bad_data_is_one_line_and_touches_nothing(run, tmp_path, dataset, capsys):
    def refused(said: str) -> None:
        assert exit_code(run, "a") == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1
        assert not (tmp_path / "a").exists()

    shard, meta = dataset / "train_00001.bin", dataset / "meta.json"
    good, good_meta = shard.read_bytes(), meta.read_text()
    shard.write_bytes(good[:-4])
    refused("train_00001.bin")
    shard.unlink()
    refused("train_00001.bin")
    shard.write_bytes(np.uint32(97).tobytes() + good[4:])
    refused("id 97")
    shard.write_bytes(good)
    meta.write_text(good_meta.replace('"uint32"', '"uint16"'))
    refused("uint16")
    meta.write_text(good_meta)
    (tmp_path / "file").write_text("")
    assert exit_code(run, "file/a") == 2
    assert "cannot be written" in capsys.readouterr().err


def test_a_world_without_torchrun_is_refused(run, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert exit_code(run, "a") == 2
    assert re.search(r"WORLD_SIZE=2.*start with torchrun", capsys.readouterr().err)


def test_no_room_for_a_checkpoint_is_said_before_the_run(run, tmp_path, monkeypatch, capsys):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(keeping.shutil, "disk_usage", lambda path: usage._replace(free=100_000))
    assert exit_code(run, "a") == 2 and not (tmp_path / "a").exists()
    assert "one checkpoint takes" in capsys.readouterr().err
    monkeypatch.setattr(keeping.shutil, "disk_usage", lambda path: usage._replace(free=600_000))
    assert run("a") == 0 and "more checkpoints take" in capsys.readouterr().out


def test_a_dataset_that_is_not_prepared_names_the_command(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(train, "ROOT", tmp_path)
    (tmp_path / "data" / "slimpajama").mkdir(parents=True)
    (tmp_path / "data" / "slimpajama" / "prepare.py").write_text("")
    for name, said in (
        ("slimpajama", "run python data/slimpajama/prepare.py"),
        ("slimpyjama", "data/: slimpajama"),
    ):
        assert exit_code(run, "a", f"--dataset={name}") == 2
        err = capsys.readouterr().err
        assert said in err and err.count("\n") == 1 and not (tmp_path / "a").exists()


def test_eval_only_of_a_run_that_is_not_there(run, tmp_path, capsys):
    for flags in ([], ["--init_from=resume"]):
        assert exit_code(run, "a", "--eval_only", *flags) == 2
        err = capsys.readouterr().err
        assert "a/checkpoints holds none: " in err and err.count("\n") == 1
        assert not (tmp_path / "a").exists()
    run("b", "--max_iters=3")
    before = sorted(p.relative_to(tmp_path) for p in (tmp_path / "b").rglob("*"))
    assert run("b", "--eval_only", "--init_from=scratch") == 0
    after = sorted(p.relative_to(tmp_path) for p in (tmp_path / "b").rglob("*"))
    assert len(after) == len(before) + 1 and set(before) < set(after)  # one more run log


def test_a_prompt_that_is_no_text_is_one_line(run, capsys):
    assert exit_code(run, "a", "--sample_prompt=\udcff") == 2
    assert "sample_prompt is not UTF-8 at character 0" in capsys.readouterr().err


def test_data_that_cannot_be_read_so_is_one_line(run, tmp_path, dataset, capsys):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "executed"),)

    def foreign(name: str) -> Path:
        meta_file = write_dataset(tmp_path / name, seed=2) / "meta.json"
        meta = json.loads(meta_file.read_text())
        meta["tokenizer"]["sha256"] = "1" * 64
        meta_file.write_text(json.dumps(meta))
        return meta_file.parent

    nanogpt = tmp_path / "nanogpt"
    nanogpt.mkdir()
    for split in ("train", "val"):
        np.random.default_rng(0).integers(1, 97, 500).astype(np.uint16).tofile(nanogpt / f"{split}.bin")
    hostile = Path(shutil.copytree(nanogpt, tmp_path / "hostile"))
    (hostile / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": Hostile()}))
    for flags, said in (
        ([f"--dataset={dataset}:0.5,{tmp_path / 'nowhere'}:0.5"], "neither a folder nor one of data/"),
        ([f"--dataset={dataset}:0.5,{dataset}"], "is not name:weight"),
        ([f"--dataset={dataset}:0.5,{foreign('foreign')}:0.5"], "different tokenizers"),
        (
            [f"--dataset={nanogpt}", "--data_dtype=uint16", "--document_masking"],
            "has no meta.json and so no eot_id",
        ),
        (
            [f"--dataset={write_dataset(tmp_path / 'short', val_tokens=50)}", "--block_size=50"],
            "needs 51 tokens",
        ),
        ([f"--dataset={hostile}", "--data_dtype=uint16"], "meta.pkl holds more than plain values"),
    ):
        with pytest.raises(SystemExit) as stopped:
            run("never", *flags)
        error = capsys.readouterr().err
        assert stopped.value.code == 2 and said in error and error.count("\n") == 1
    assert not (tmp_path / "executed").exists() and not (tmp_path / "never").exists()
