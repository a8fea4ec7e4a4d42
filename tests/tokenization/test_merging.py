"""Several machines: tasks share the files, and merged they are one run."""

import os
import random
import shutil
import subprocess
import sys

import numpy as np
import pytest
from preparing import ROOT, custom, files_of, ids_of, refused

from base.files import alone_in
from tokenization import merging
from tokens.format import read_meta
from tokens.verify import verify

pytest_plugins = ["preparing_fixtures"]


@pytest.mark.parametrize("n_tasks", [1, 2, 5])
def test_tasks_merged_are_one_run(prepare_custom, in_this_process, tmp_path, n_tasks, capsys):
    whole = prepare_custom("whole")
    for task in random.Random(0).sample(range(n_tasks), n_tasks):
        prepare_custom("merged", f"--task={task}/{n_tasks}")
    assert custom("--merge", f"--out_dir={tmp_path / 'merged'}") == 0
    merged, meta, whole_meta = tmp_path / "merged", read_meta(tmp_path / "merged"), read_meta(whole)
    for split in ("train", "val"):
        assert np.array_equal(ids_of(merged, split), ids_of(whole, split))
        for key in ("tokens", "documents", "text_bytes"):
            assert meta["splits"][split][key] == whole_meta["splits"][split][key]
    assert meta["preparation"]["statistics"] == whole_meta["preparation"]["statistics"]
    assert verify(merged) == []
    assert {p.suffix for p in merged.iterdir()} == {".bin", ".json"} and not [
        p for p in merged.iterdir() if p.is_dir()
    ]
    assert "is merged already" in refused(capsys, "--merge", f"--out_dir={merged}")


def test_a_merge_killed_anywhere_and_repeated(prepare_custom, in_this_process, tmp_path, monkeypatch):
    for task in range(3):
        prepare_custom("tasks", f"--task={task}/3")
    shutil.copytree(tmp_path / "tasks", tmp_path / "undisturbed")
    merging.merge(tmp_path / "undisturbed")
    whole = files_of(tmp_path / "undisturbed")

    class Killed(BaseException):
        pass

    for k in range(100):
        out, left = tmp_path / f"killed_{k}", k

        def once(function):
            def call(*arguments, **keywords):
                nonlocal left
                if left == 0:
                    raise Killed
                left -= 1
                return function(*arguments, **keywords)

            return call

        shutil.copytree(tmp_path / "tasks", out)
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", once(os.replace))
            patch.setattr(shutil, "rmtree", once(shutil.rmtree))
            try:
                merging.merge(out)
                break
            except Killed:
                pass
        merging.merge(out)
        assert files_of(out) == whole
        shutil.rmtree(out)
    assert k > 15  # every rename was the last of a run


def test_what_merge_refuses(prepare_custom, in_this_process, tmp_path, capsys):
    out = tmp_path / "tasks"
    assert "holds no task_*_of_* folders" in refused(capsys, "--merge", f"--out_dir={out}")
    prepare_custom("tasks", "--task=0/2")
    line = refused(capsys, "--merge", f"--out_dir={out}")
    assert "task_00001_of_00002/meta.json is missing, so task 1/2 is not finished" in line
    prepare_custom("tasks", "--task=1/2", "--val_fraction=0.2")
    assert "task_00001_of_00002: its val_fraction differs from that of" in refused(
        capsys, "--merge", f"--out_dir={out}"
    )
    shutil.rmtree(out / "task_00001_of_00002")
    prepare_custom("tasks", "--task=1/2")
    prepare_custom("tasks", "--task=1/3")
    assert "several numbers of tasks" in refused(capsys, "--merge", f"--out_dir={out}")
    shutil.rmtree(out / "task_00001_of_00003")
    shard = out / "task_00001_of_00002/train_00001.bin"
    content = shard.read_bytes()
    for damage in (lambda: shard.write_bytes(content[:-4]), shard.unlink):
        damage()
        assert "train_00001.bin is not there with" in refused(capsys, "--merge", f"--out_dir={out}")
    assert not (out / "merge.json").exists() and len(list(out.iterdir())) == 2
    shard.write_bytes(content)
    assert custom("--merge", f"--out_dir={out}") == 0 and verify(out) == []


@pytest.mark.parametrize("sizes", [[100, 1, 1], [1, 1, 100], [0, 0, 0, 0], [5] * 7, [1, 100, 1, 100, 1]])
def test_tasks_share_the_files_in_order(tmp_path, sizes):
    files = [tmp_path / str(i) for i in range(len(sizes))]
    for file, size in zip(files, sizes, strict=True):
        file.write_bytes(b"x" * size)
    for n_tasks in range(1, len(sizes) + 1):
        shares = [merging.task_files(files, task, n_tasks) for task in range(n_tasks)]
        assert [file for share in shares for file in share] == files and all(shares)
    with pytest.raises(ValueError, match="smaller N"):
        merging.task_files(files, 0, len(sizes) + 1)


def test_the_slurm_array(corpus, toy_folder, tmp_path, prepare_custom):
    script, out = ROOT / "scripts/prepare_array.slurm", tmp_path / "out"
    flags = [
        f"--source={corpus}",
        f"--tokenizer={toy_folder}",
        f"--out_dir={out}",
        "--shard_tokens=1000",
        "--val_fraction=0.1",
    ]
    for task in (3, 4):  # an array need not begin at 0
        slurm = {
            "SLURM_ARRAY_TASK_ID": task,
            "SLURM_ARRAY_TASK_MIN": 3,
            "SLURM_ARRAY_TASK_COUNT": 2,
            "SLURM_CPUS_PER_TASK": 1,
        }
        env = os.environ | {name: str(value) for name, value in slurm.items()} | {"PYTHON": sys.executable}
        env["SLURM_SUBMIT_DIR"] = str(ROOT)
        subprocess.run(
            ["bash", script, "custom", *flags], env=env, cwd=tmp_path, check=True, capture_output=True
        )
    assert custom("--merge", f"--out_dir={out}") == 0
    whole = prepare_custom("whole", "--workers=1")
    assert all(np.array_equal(ids_of(out, split), ids_of(whole, split)) for split in ("train", "val"))


def test_a_merge_has_its_folder_to_itself(prepare_custom, in_this_process, tmp_path, capsys):
    prepare_custom("tasks", "--task=0/1")
    out = tmp_path / "tasks"
    before = files_of(out)
    with alone_in(out, "test"):
        assert "another prepare.py is at work in" in refused(capsys, "--merge", f"--out_dir={out}")
    assert files_of(out) == before


def test_what_kills_left_is_not_merged(prepare_custom, in_this_process, tmp_path):
    for task in range(2):
        prepare_custom("tasks", f"--task={task}/2")
    out = tmp_path / "tasks"
    for left in (".merge.json.17", ".meta.json.17", "task_00000_of_00002/.progress.json.17"):
        (out / left).write_bytes(b"{")
    assert custom("--merge", f"--out_dir={out}") == 0 and verify(out) == []
    assert not [p.name for p in out.iterdir() if p.name.startswith(".")]
