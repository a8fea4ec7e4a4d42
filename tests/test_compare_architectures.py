"""compare_architectures.py: its flags, its exit codes, and the files that it leaves. What it compares is in tests/analysis/."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from run_logs import compared, write_log

import compare_architectures as compare

pytestmark = pytest.mark.usefixtures("in_tmp_path")

ROOT = Path(__file__).resolve().parent.parent


def test_logs_that_begin_no_run_are_left_out(capsys):
    write_log("out-a")
    Path("out-b").mkdir()
    Path("out-b/run_x_1.jsonl").touch()
    Path("out-b/run_x_2.jsonl").write_text('{"event": "train", "step": 1, "loss": 3.0, "tokens": 1}\n')
    out, err, report = compared(capsys, "--latest", "3")
    assert [row["out_dir"] for row in report["runs"]] == ["out-a"]
    assert len(err.splitlines()) == 2
    assert "out-b/run_x_1.jsonl is empty" in err and "out-b/run_x_2.jsonl has no run_start" in err
    _, err, report = compared(capsys, "out-a", "out-b/run_x_1.jsonl")
    assert len(report["runs"]) == 1 and len(err.splitlines()) == 1


def test_table_is_not_cut_in_a_pipe_and_nothing_half_written_stays(tmp_path):
    long = "out-" + "x" * 150
    write_log(long)
    env = {**os.environ, "COLUMNS": "40"}
    command = [sys.executable, str(ROOT / "compare_architectures.py"), "--latest", "1"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=True, cwd=tmp_path)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(long)]
    assert line.endswith("done") and done.stderr == ""
    assert sorted(p.name for p in Path("comparison").iterdir()) == [
        "comparison.html", "comparison.json", "comparison.md", "comparison.png"]  # fmt: skip


BAD = {
    "no runs": (["--latest=3"], "out*/run_*.jsonl"),
    "nothing named": ([], "--latest=3"),
    "none wanted": (["--latest", "0"], "latest=0 must be"),
    "negative": (["--latest=-2"], "latest=-2 must be"),
    "no number": (["--latest=three"], "three"),
    "no value": (["--latest"], "--latest"),
    "unknown flag": (["--lastest=3"], "did you mean 'latest'"),
    "missing file": (["out-a/run_nowhere.jsonl"], "out-a/run_nowhere.jsonl is not there"),
    "misspelt folder": (["out-aa"], "did you mean 'out-a'"),
    "pattern without a match": (["out-z*/run_*.jsonl"], "out-z*/run_*.jsonl"),
    "folder without runs": (["empty"], "empty"),
    "only an empty log": (["hollow"], "hollow/run_1.jsonl is empty"),
    "both ways": (["out-a", "--latest=1"], "out-a"),
    "out is a file": (["out-a", "--out=file"], "out='file' cannot"),
    "out is below a file": (["out-a", "--out=file/sub"], "out='file/sub' cannot"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case, tmp_path, capsys):
    if case != "no runs":
        write_log("out-a")
    Path("empty").mkdir()
    Path("hollow").mkdir()
    Path("hollow/run_1.jsonl").touch()
    Path("file").touch()
    before = sorted(tmp_path.rglob("*"))
    argv, named = BAD[case]
    with pytest.raises(SystemExit) as stop:
        compare.main(argv)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out == ""
    assert len(captured.err.splitlines()) == 1 and named in captured.err
    assert sorted(tmp_path.rglob("*")) == before


def test_exit_code_of_the_command(tmp_path):
    command = [sys.executable, str(ROOT / "compare_architectures.py"), "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr.startswith("compare_architectures.py: nowhere is not there")
        and done.stderr.count("\n") == 1
    )


def test_without_matplotlib_the_table_is_there(capsys, monkeypatch):
    write_log("out-a")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SystemExit) as stop:
        compare.main(["out-a", "--out=cmp"])
    captured = capsys.readouterr()
    assert stop.value.code == 2 and captured.out.splitlines()[2].startswith("out-a ")
    assert len(captured.err.splitlines()) == 1 and "pip install matplotlib" in captured.err
    assert Path("cmp/comparison.json").exists() and not Path("cmp/comparison.png").exists()
