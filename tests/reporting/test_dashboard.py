"""--dashboard on a pseudo-terminal, in a pipe, without rich."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY_FLAGS

from reporting.dashboard import Dashboard, area_chart

TRAIN = Path(__file__).resolve().parents[2] / "train.py"


def test_on_a_terminal(dataset, tmp_path):
    leader, follower = pty.openpty()
    command = [
        sys.executable,
        TRAIN,
        *TINY_FLAGS,
        f"--dataset={dataset}",
        f"--out_dir={tmp_path / 'a'}",
        "--dashboard",
    ]
    env = os.environ | {"COLUMNS": "100", "LINES": "40", "TERM": "xterm"}
    child = subprocess.Popen(command, stdout=follower, stderr=follower, env=env)
    os.close(follower)
    shown = b""
    while True:
        try:
            if not (part := os.read(leader, 65536)):
                break
        except OSError:  # so Linux says that the other side is closed
            break
        shown += part
    assert child.wait() == 0
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown.decode())
    last = text[[m.start() for m in re.finditer(r"step +6 of 6", text)][-1] :]  # the frame that stays
    assert "training loss" in last and "█" in last and "tokens/s" in last and "last events" in last
    assert "step 6: train loss" in last and "| loss" not in text


def test_in_a_pipe_there_are_lines(run, capsys):
    assert run("a", "--dashboard") == 0
    out = capsys.readouterr().out
    assert "dashboard=True gives way to lines" in out and "step 6/6 | loss" in out


def test_without_rich(run, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "rich", None)
    with pytest.raises(SystemExit) as stopped:
        run("a", "--dashboard")
    assert (
        stopped.value.code == 2
        and "pip install rich" in capsys.readouterr().err
        and not (tmp_path / "a").exists()
    )


def test_area_chart():
    assert area_chart([], 4, 2) == ["", ""]
    assert area_chart([1.0, float("nan"), 3.0], 10, 2) == [" █", "▁█"]
    assert area_chart([5.0] * 100, 8, 1) == ["▁" * 8]
    falling = area_chart([float(100 - i) for i in range(1000)], 40, 4)
    assert len(falling) == 4 and all(len(line) == 40 for line in falling)
    assert falling[0].rstrip() != falling[0] and "█" in falling[0] and " " not in falling[-1]


def test_other_ranks_are_silent_and_a_long_run_is_thinned(capfd):
    board = Dashboard(0, 10_000, rank=1)
    m = {
        "loss": 2.0,
        "lr": 1e-3,
        "grad_norm": 1.0,
        "dt_ms": 5.0,
        "tokens": 5,
        "tokens_per_s": 1.0,
        "mfu": None,
        "memory_gb": 1.0,
    }
    for step in range(10_000):
        board.train(step, m)
    board.say("not here")
    board.close()
    assert len(board.losses) < 4096 and set(board.losses) == {2.0} and capfd.readouterr() == ("", "")
