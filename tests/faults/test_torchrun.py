"""Two ranks under torchrun, under SLURM's srun, and what may happen to them in three weeks. Run by `make
test-faults`."""

import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from conftest import TINY_FLAGS, read_events, write_dataset

from training import checkpoint

ROOT = Path(__file__).resolve().parents[2]
TORCHRUN = [str(Path(sys.executable).with_name("torchrun")), "--standalone", "--nproc_per_node=2"]
ENV = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("data") / "dataset")


def flags(dataset: Path, out_dir: Path, *more: str) -> list[str]:
    return [*TINY_FLAGS, f"--dataset={dataset}", f"--out_dir={out_dir}", *more]


class Process(subprocess.Popen):
    """A command in a session of its own, whose output goes to a file: a pipe that nobody reads would stop
    it."""

    def __init__(self, command: list[str], **env: str) -> None:
        self.file = tempfile.TemporaryFile("w+")  # noqa: SIM115 as long as the process
        where = dict(stdout=self.file, stderr=subprocess.STDOUT, start_new_session=True)
        super().__init__(command, cwd=ROOT, env=ENV | env, **where)

    def output(self) -> str:
        self.file.seek(0)
        return self.file.read()

    def finish(self, timeout_s: float = 300) -> tuple[int, str]:
        try:
            return self.wait(timeout_s), self.output()
        finally:
            if self.poll() is None:
                os.killpg(self.pid, signal.SIGKILL)


def finish(command: list[str], **env: str) -> tuple[int, str]:
    return Process(command, **env).finish()


def digests(out_dir: Path, step: int) -> dict[str, str]:
    manifest = checkpoint.read_manifest(checkpoint.checkpoint_path(out_dir, step))
    return {file: r["sha256"] for file, r in manifest.items() if file.endswith(".safetensors")}


def wait_for_step(process: Process, out_dir: Path, step: int) -> None:
    while not any(e.get("step", 0) >= step for e in complete_events(out_dir)):
        assert process.poll() is None, process.output()
        time.sleep(0.05)


def complete_events(out_dir: Path) -> list[dict]:
    """Those of a run that is being written, or was killed while it wrote a line."""
    try:
        return read_events(out_dir)
    except ValueError:
        return []


def ranks_of(process: Process) -> list[int]:
    """The pids of the two ranks, when both are there."""
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    try:
        return [int(pid) for pid in children if "train.py" in Path(f"/proc/{pid}/cmdline").read_text()]
    except OSError:  # one of them has just ended
        return []


@pytest.mark.parametrize("strategy", ["--use_zero1=True", "--use_fsdp=True"])
def test_ctrl_c_leaves_a_resumable_run(dataset, tmp_path, strategy):
    """As README.md starts it. torchrun passes SIGINT on and itself ends with 1; run_end says what
    happened."""
    long = ["--max_iters=400", "--eval_interval=200", strategy]
    process = Process([*TORCHRUN, "train.py", *flags(dataset, tmp_path / "parts", *long)])
    wait_for_step(process, tmp_path / "parts", 5)
    os.killpg(process.pid, signal.SIGINT)  # a terminal sends it to all
    _, out = process.finish(120)
    assert "stopped by signal SIGINT" in out
    end = read_events(tmp_path / "parts")[-1]
    assert end["event"] == "run_end" and end["reason"] == "signal SIGINT"
    assert checkpoint.find_checkpoint(tmp_path / "parts") == checkpoint.checkpoint_path(
        tmp_path / "parts", end["step"]
    )
    assert finish([*TORCHRUN, "train.py", *flags(dataset, tmp_path / "parts", *long)])[0] == 0
    assert finish([*TORCHRUN, "train.py", *flags(dataset, tmp_path / "whole", *long)])[0] == 0
    assert digests(tmp_path / "whole", 400) == digests(tmp_path / "parts", 400)


def test_usr1_reaches_the_ranks_through_torchrun(dataset, tmp_path):
    run = flags(dataset, tmp_path / "a", "--max_iters=4000", "--eval_interval=2000")
    process = Process([*TORCHRUN, "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1", "train.py", *run])
    wait_for_step(process, tmp_path / "a", 5)
    process.send_signal(signal.SIGUSR1)
    process.finish(120)
    assert read_events(tmp_path / "a")[-1]["reason"] == "signal SIGUSR1"


def test_a_signal_by_two_ways_is_one(dataset, tmp_path):
    """To the launcher, which passes it on, and to the ranks themselves: no save is lost."""
    run = flags(dataset, tmp_path / "a", "--max_iters=100000", "--eval_interval=50000")
    for start in range(4):
        process = Process([*TORCHRUN, "--signals-to-handle=SIGTERM,SIGINT,SIGUSR1", "train.py", *run])
        while len(list((tmp_path / "a").glob("run_*.jsonl"))) <= start:
            time.sleep(0.05)
        wait_for_step(process, tmp_path / "a", 5)
        for pid in (process.pid, *ranks_of(process)):
            os.kill(pid, signal.SIGUSR1)
        process.finish(120)
        assert read_events(tmp_path / "a")[-1]["reason"] == "signal SIGUSR1"


@pytest.mark.parametrize("strategy", ["--use_zero1=True", "--use_fsdp=True"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR1])
def test_ranks_end_with_their_launcher(dataset, tmp_path, number, strategy):
    """Which dies by either signal, and has no time to tell them: they save, and end."""
    run = flags(dataset, tmp_path / "a", "--max_iters=100000", "--eval_interval=50000", strategy)
    process = Process([*TORCHRUN, "train.py", *run])
    wait_for_step(process, tmp_path / "a", 5)
    ranks = ranks_of(process)
    assert len(ranks) == 2
    process.send_signal(number)
    process.wait(10)
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{pid}").exists() for pid in ranks):
        assert time.monotonic() < deadline, process.output()
        time.sleep(0.05)
    end = read_events(tmp_path / "a")[-1]
    assert end["reason"] == "signal SIGTERM"
    assert checkpoint.list_checkpoints(tmp_path / "a")[-1][0] == end["step"]
    assert not (tmp_path / "a" / ".lock").exists()


@pytest.mark.parametrize("kind", ["kill", "die"])
def test_a_lost_rank_brings_the_run_back_from_its_last_checkpoint(dataset, tmp_path, kind):
    faulty = [*TORCHRUN, "--max-restarts=1", "tests/faults/faulty_train.py"]
    code, out = finish([*faulty, f"{kind}:1:4", *flags(dataset, tmp_path / "parts", "--use_fsdp=True")])
    assert code == 0, out
    assert finish([*TORCHRUN, "train.py", *flags(dataset, tmp_path / "whole", "--use_fsdp=True")])[0] == 0
    assert [e["start_step"] for e in read_events(tmp_path / "parts", "run_start")] == [0, 3]
    assert digests(tmp_path / "whole", 6) == digests(tmp_path / "parts", 6)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_hung_rank_ends_the_job_and_is_named(dataset, tmp_path, rank):
    run = flags(dataset, tmp_path / "a", "--dist_timeout_s=8")
    start = time.monotonic()
    code, out = finish(
        [*TORCHRUN, "tests/faults/faulty_train.py", f"hang:{rank}:4", *run],
        TORCH_ELASTIC_SHUTDOWN_TIMEOUT="2",
    )
    assert code == 1 and f"rank {1 - rank}: rank {rank} does not answer" in out, out
    assert time.monotonic() - start < 120
    assert checkpoint.find_checkpoint(tmp_path / "a") == checkpoint.checkpoint_path(tmp_path / "a", 3)


@pytest.mark.timeout(1800)  # 21 starts of two ranks, on a machine that may be busy
def test_twenty_random_kills_change_nothing(dataset, tmp_path):
    """kill -9 of a random rank at a random moment, twenty times: in steps, evaluations, saves and while
    starting."""
    long = ["--max_iters=3000", "--eval_interval=40", "--checkpoint_interval=10", "--use_zero1=True"]
    assert finish([*TORCHRUN, "train.py", *flags(dataset, tmp_path / "whole", *long)])[0] == 0
    process = Process(
        [*TORCHRUN, "--max-restarts=25", "train.py", *flags(dataset, tmp_path / "parts", *long)]
    )
    rng, kills, logs, dead = random.Random(0), 0, 0, set()
    while kills < 20:
        assert process.poll() is None, process.output()
        alive = [pid for pid in ranks_of(process) if pid not in dead]
        begun = len(list((tmp_path / "parts").glob("run_*.jsonl"))) > logs
        if len(alive) < 2 or (kills % 5 and not begun):  # every fifth time it strikes while they start
            time.sleep(0.02)
            continue
        time.sleep(rng.uniform(0, 3))
        os.kill(rng.choice(alive), signal.SIGKILL)
        logs = len(list((tmp_path / "parts").glob("run_*.jsonl")))
        dead |= set(alive)
        kills += 1
    code, out = process.finish(900)
    assert code == 0, out
    assert len(read_events(tmp_path / "whole", "checkpoint")) == 300
    assert digests(tmp_path / "whole", 3000) == digests(tmp_path / "parts", 3000)


def test_two_nodes_by_the_script(dataset, tmp_path):
    port = free_port()
    env = {"NODES": "2", "GPUS": "1", "ENDPOINT": f"127.0.0.1:{port}", "TORCHRUN": TORCHRUN[0]}
    run = ["scripts/torchrun_nodes.sh", *flags(dataset, tmp_path / "a", "--use_fsdp=True")]
    nodes = [Process(run, **env) for _ in range(2)]
    for node in nodes:
        code, out = node.finish(200)
        assert code == 0, out
    start, *_, end = read_events(tmp_path / "a")
    assert start["hardware"]["world_size"] == 2 and end["reason"] == "done"


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


SRUN = """#!/usr/bin/env bash
# Two tasks of one node, as srun starts them; USR1 goes to the tasks.
echo "$SRUN_CPUS_PER_TASK $1 $2" >> "$FAKE_SLURM/srun.log"
shift 2
for i in 0 1; do SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NTASKS=2 "$@" & pids[$i]=$!; done
trap 'kill -USR1 "${pids[@]}"' USR1
code=0
for pid in "${pids[@]}"; do
    wait $pid; c=$?
    while [ $c -gt 128 ]; do wait $pid; c=$?; done  # the trap interrupts it
    [ $c -gt $code ] && code=$c
done
exit $code
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> "$FAKE_SLURM/scontrol.log"; fi
"""


def test_slurm_queues_the_job_again_until_it_is_done(dataset, tmp_path):
    """scripts/train.slurm with stand-ins for srun and scontrol: USR1 before the time limit, then a second
    allocation."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "FAKE_SLURM": str(tmp_path), "PYTHON": sys.executable}
    env |= {
        "SLURM_JOB_ID": str(free_port() - 20000),
        "SLURM_JOB_NODELIST": "node0",
        "SLURM_SUBMIT_DIR": str(ROOT),
    }
    env["SLURM_CPUS_PER_TASK"] = "1"
    run = ["scripts/train.slurm", *flags(dataset, tmp_path / "a", "--max_iters=400", "--eval_interval=200")]
    first = Process(run, **env)
    wait_for_step(first, tmp_path / "a", 5)
    subprocess.run(["pkill", "-USR1", "-f", f"{tmp_path}/srun"], check=True)
    code, out = first.finish(120)
    assert code == 0, out
    assert re.fullmatch(r"requeue \d+\n", (tmp_path / "scontrol.log").read_text())
    # srun must not answer the first task's 75 by killing the others: the worst code of all tasks is its own
    assert (tmp_path / "srun.log").read_text() == "1 --kill-on-bad-exit=0 --wait=60\n"
    assert read_events(tmp_path / "a")[-1]["reason"] == "signal SIGUSR1"
    code, out = finish(run, **env)
    assert code == 0, out
    assert read_events(tmp_path / "a")[-1]["reason"] == "done"
    assert (tmp_path / "scontrol.log").read_text().count("requeue") == 1
