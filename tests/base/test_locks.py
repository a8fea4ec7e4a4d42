"""A folder has one writer: who holds it is named, and death frees it."""

import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from base import locks
from base.errors import InputError
from base.locks import FolderLock, alone_in, check_free, is_held

ROOT = Path(__file__).resolve().parents[2]
HOLDER = (
    "import sys, time; from base.locks import FolderLock; lock = FolderLock(sys.argv[1], 'run'); "
    "print('held', flush=True); time.sleep(100)"
)
FOREIGN = {"host": "node7", "pid": 1, "command": "train.py\x1b[2J", "since": "noon", "machine": "node7 1 2"}


@pytest.fixture(autouse=True)
def in_haste(monkeypatch):
    monkeypatch.setattr(locks, "WAIT_S", 0.05)
    monkeypatch.setattr(locks, "BEAT_S", 0.1)


def test_the_holder_is_named_and_its_death_frees_the_folder(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        for take in (FolderLock, check_free):
            with pytest.raises(InputError) as error:
                take(tmp_path, "run")
            said = str(error.value)
            assert f"another run is at work in {tmp_path}" in said and "\n" not in said
            assert f"process {holder.pid} on {os.uname().nodename}, since 2" in said and "UTC, -c" in said
    finally:
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        holder.stdout.close()
    assert (tmp_path / ".lock").is_file()  # nobody could tidy up
    check_free(tmp_path, "run")
    with alone_in(tmp_path, "run"):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid() and is_held(tmp_path)
    assert not list(tmp_path.iterdir()) and not is_held(tmp_path)
    assert not is_held(tmp_path / "none")


def test_a_child_of_the_holder_does_not_hold_it(tmp_path):
    """As a process that tokenizes, which may outlive the one that writes for a moment."""
    read, write = os.pipe()
    lock = FolderLock(tmp_path, "run")
    if (child := os.fork()) == 0:
        os.read(read, 1)
        os._exit(0)
    try:
        os.close(lock.descriptor)  # what death would do, without the tidying up
        locks._held.discard(lock)
        with alone_in(tmp_path, "run"):
            pass
    finally:
        os.write(write, b"x")
        os.waitpid(child, 0)
        os.close(read)
        os.close(write)


def test_where_only_its_own_machine_sees_the_lock_a_living_holder_keeps_it(tmp_path, caplog):
    """The file system lets both lock the file, as Lustre with localflock: the record is another machine's."""
    (tmp_path / ".lock").write_text(json.dumps(FOREIGN))
    lock = FolderLock(tmp_path, "run")  # it gave no sign for three beats
    assert "node7: 0 s to see whether it lives" in caplog.text
    lock.release()

    (tmp_path / ".lock").write_text(json.dumps(FOREIGN))
    start = time.monotonic()
    os.utime(tmp_path / ".lock", (1, 1))  # nor for a minute
    FolderLock(tmp_path, "run").release()
    assert time.monotonic() - start < 0.2

    (tmp_path / ".lock").write_text(json.dumps(FOREIGN))
    beating = FolderLock.__new__(FolderLock)
    beating.file, beating._ended = tmp_path / ".lock", locks.threading.Event()
    thread = locks.threading.Thread(target=beating._beat)
    thread.start()
    try:
        with pytest.raises(InputError, match=re.escape(r"process 1 on node7, since noon, train.py\x1b[2J)")):
            FolderLock(tmp_path, "run")
    finally:
        beating._ended.set()
        thread.join()
    assert json.loads((tmp_path / ".lock").read_text()) == FOREIGN


def test_without_locks_in_the_file_system_the_record_decides(tmp_path, monkeypatch, caplog):
    def no_locks(*args: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    check_free(tmp_path, "run")
    lock = FolderLock(tmp_path, "run")
    assert "cannot be locked (No locks available): see to it that no other run" in caplog.text
    with pytest.raises(InputError, match="another run is at work"):
        FolderLock(tmp_path, "run")
    record = json.loads((tmp_path / ".lock").read_text())
    for dead in (record | {"started": "1"}, record | {"pid": 2**22 + 5}):
        (tmp_path / ".lock").write_text(json.dumps(dead))
        FolderLock(tmp_path, "run").release()
    lock.release()
    assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff" * 99, b'{"pid": 3}', b"[" * 99999])
def test_a_record_of_something_else_is_not_in_the_way(tmp_path, content):
    (tmp_path / ".lock").write_bytes(content)
    with alone_in(tmp_path, "run"):
        pass


@pytest.mark.timeout(20)  # a pipe would block whoever opens it
@pytest.mark.parametrize("put", [os.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_not_a_file_is_not_opened(tmp_path, put):
    put(tmp_path / ".lock")
    for take in (FolderLock, check_free):
        with pytest.raises(InputError, match=r"\.lock is not a file: move it away"):
            take(tmp_path, "run")


def test_a_folder_that_is_not_there_is_said(tmp_path):
    with pytest.raises(InputError, match="none cannot be written"):
        FolderLock(tmp_path / "none", "run")
    check_free(tmp_path / "none", "run")
