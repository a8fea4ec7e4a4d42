"""A preparation that is stopped, killed or dies resumes, with the same bytes; two never write one folder."""

import json
import os
import random
import shutil
import signal
import subprocess
import time

import pytest
from preparing import FORMATS, PREPARE, SEPARATOR, TEXTS, custom, files_of, jsonl, write_files

from tokenization import pipeline
from tokenization.file_source import FileSource
from tokenization.job import Job, Settings
from tokenization.pipeline import prepare
from tokens.verify import verify

pytest_plugins = ["preparing_fixtures"]


def test_a_worker_that_dies_costs_nothing(toy, tmp_path, corpus):
    """As the kernel does where memory is short. The same command resumes."""

    class Deadly(FileSource):
        def batches(self, position):
            for i, batch in enumerate(super().batches(position)):
                yield Suicide(batch) if i == 20 else batch

    files = sorted(corpus.iterdir())
    with pytest.raises(RuntimeError, match=r"a tokenizing process died.*the same command resumes"):
        prepare(
            Deadly(files, batch_bytes=900),
            toy,
            tmp_path / "out",
            Job(0.1, 1000),
            Settings(2, commit_interval=0),
        )
    assert json.loads((tmp_path / "out/progress.json").read_bytes())["rows"] > 0
    prepare(FileSource(files, batch_bytes=900), toy, tmp_path / "out", Job(0.1, 1000), Settings(2))
    prepare(FileSource(files), toy, tmp_path / "other", Job(0.1, 1000), Settings(1))
    assert files_of(tmp_path / "out") == files_of(tmp_path / "other")


class Suicide:
    """A batch that ends the process that works on it."""

    def __init__(self, batch):
        self.n_rows, self.read_bytes, self.next_position = batch.n_rows, batch.read_bytes, batch.next_position

    def rows(self):
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("name", ["jsonl", "jsonl.zst", "jsonl.gz", "parquet", "txt", "txt.zst"])
def test_stopped_anywhere_and_resumed(toy, tmp_path, in_this_process, monkeypatch, name):
    """Each call into the file system that changes something is the last of a run in turn."""
    files = write_files(tmp_path / "in", name, TEXTS, parts=3)

    def attempt(out, batch_bytes):
        source = FileSource(files, separator=SEPARATOR, source_field="meta.set", batch_bytes=batch_bytes)
        return prepare(source, toy, out, Job(0.1, 2500), Settings(commit_interval=0))

    attempt(tmp_path / "whole", 3000)
    whole, random_ = files_of(tmp_path / "whole"), random.Random(name)

    class Killed(BaseException):
        pass

    calls, last_call = 0, 0

    def counted(function):
        def call(*arguments, **keywords):
            nonlocal calls
            calls += 1
            if calls > last_call:
                raise Killed
            return function(*arguments, **keywords)

        return call

    for name_ in ("replace", "fsync", "truncate"):
        monkeypatch.setattr(os, name_, counted(getattr(os, name_)))
    out, kills = tmp_path / "out", 0
    while True:
        calls, last_call = 0, random_.randrange(1, 60)
        try:
            attempt(out, random_.choice([1, 500, 3000, 50_000]))
            break
        except Killed:
            kills += 1
    assert kills >= 2
    assert files_of(out) == whole


def processes_of(group):
    """Those of a process group that still live."""
    lines = subprocess.run(
        ["ps", "-A", "-o", "pgid=,stat=,args="], capture_output=True, text=True, check=True
    ).stdout
    return [
        line
        for line in lines.splitlines()
        if line.split()[0] == str(group) and not line.split()[1].startswith("Z")
    ]


def wait_for_the_end_of(group, seconds=20):
    until = time.monotonic() + seconds
    while (left := processes_of(group)) and time.monotonic() < until:
        time.sleep(0.05)
    return left


KILLS = 20 if "SLOW" in os.environ else 4  # make test-faults has time


@pytest.mark.timeout(300)
def test_killed_at_many_moments_with_1_2_and_3_workers(toy_folder, tmp_path):
    random_ = random.Random(20)
    (tmp_path / "in").mkdir()
    for i in range(150):
        texts = [TEXTS[(i * 31 + k) % len(TEXTS)] * 4 for k in range(40)]
        suffix = ("jsonl", "jsonl.zst", "jsonl.gz", "parquet")[i % 4]
        (tmp_path / f"in/{i:04d}.{suffix}").write_bytes(FORMATS[suffix][0](texts, i))
    common = [
        f"--source={tmp_path / 'in'}",
        f"--tokenizer={toy_folder}",
        "--shard_tokens=20000",
        "--commit_interval=0",
    ]
    common += ["--val_fraction=0.05", "--source_field=meta.set"]

    def start(out, workers):
        flags = [*common, f"--out_dir={tmp_path / out}", f"--workers={workers}"]
        return subprocess.Popen(
            [*PREPARE, *flags], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
        )

    started = time.monotonic()
    assert start("whole", 2).wait() == 0
    duration = time.monotonic() - started
    whole = files_of(tmp_path / "whole")
    assert len(whole) > 10

    kills = finished = 0
    interrupted_at = set()
    while kills < KILLS or not finished:
        process = start("out", workers=1 + kills % 3)
        try:
            process.wait(random_.uniform(0.1, 1.0) * duration if kills < KILLS else 100)
        except subprocess.TimeoutExpired:
            if kills % 2:
                os.killpg(process.pid, signal.SIGKILL)
            else:
                process.kill()  # its children must notice by themselves
            kills += 1
        process.wait()
        assert wait_for_the_end_of(process.pid) == []
        process.stderr.close()
        if (progress := tmp_path / "out/progress.json").exists():
            interrupted_at.add(json.loads(progress.read_bytes())["rows"])
        if process.returncode == 0:
            finished += 1
            assert files_of(tmp_path / "out") == whole
            assert verify(tmp_path / "out") == []
            shutil.rmtree(tmp_path / "out")
        else:
            assert process.returncode == -signal.SIGKILL
    assert (
        len(interrupted_at) > KILLS // 6
    )  # it was killed in the midst of its work, not only while it started


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_with_75(toy_folder, tmp_path, number):
    (tmp_path / "in").mkdir()
    for i in range(2000):
        (tmp_path / f"in/{i:04d}.jsonl").write_bytes(jsonl(TEXTS[i % 500 : i % 500 + 20]))
    flags = [
        f"--source={tmp_path / 'in'}",
        f"--tokenizer={toy_folder}",
        f"--out_dir={tmp_path / 'out'}",
        "--workers=1",
    ]
    process = subprocess.Popen(
        [*PREPARE, *flags, "--commit_interval=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (tmp_path / "out/progress.json").exists():
        assert process.poll() is None
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGSTOP)  # so that it cannot finish before the signal is there
    assert json.loads((tmp_path / "out/progress.json").read_bytes())["rows"] < 20_000
    os.kill(process.pid, number)
    os.kill(process.pid, signal.SIGCONT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75
    assert errors.splitlines()[-1] == f"stopped; the same command resumes {tmp_path / 'out'}"
    assert "Traceback" not in errors and wait_for_the_end_of(process.pid) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_in_a_destructor_is_not_lost(
    toy_folder, corpus, tmp_path, in_this_process, monkeypatch, number, capsys
):
    """Python throws away what a handler raises there."""

    class Signals:
        def __del__(self):
            signal.raise_signal(number)

    add, left = pipeline.add_statistics, [Signals()]

    def add_and_collect(*arguments):
        left.clear()
        add(*arguments)

    monkeypatch.setattr(pipeline, "add_statistics", add_and_collect)
    flags = f"--source={corpus}", f"--tokenizer={toy_folder}", f"--out_dir={tmp_path / 'out'}", "--workers=1"
    assert custom(*flags, "--val_fraction=0.1") == 75
    assert (tmp_path / "out/progress.json").is_file() and not (tmp_path / "out/meta.json").exists()
    monkeypatch.undo()
    assert custom(*flags, "--val_fraction=0.1") == 0 and verify(tmp_path / "out") == []


def test_two_at_once_in_one_folder(toy_folder, corpus, tmp_path, in_this_process, monkeypatch, capsys):
    flags = (
        f"--source={corpus}",
        f"--tokenizer={toy_folder}",
        f"--out_dir={tmp_path / 'out'}",
        "--val_fraction=0.1",
    )
    add, said = pipeline.add_statistics, []

    def add_and_start_another(*arguments):
        monkeypatch.setattr(pipeline, "add_statistics", add)
        with pytest.raises(SystemExit) as stop:
            custom(*flags)
        said.append((stop.value.code, capsys.readouterr().err))  # behind the progress bar of the first
        add(*arguments)

    monkeypatch.setattr(pipeline, "add_statistics", add_and_start_another)
    assert custom(*flags) == 0 and verify(tmp_path / "out") == []
    ((code, message),) = said
    assert code == 2 and "another prepare.py is at work in" in message
