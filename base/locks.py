"""One writer a folder, over processes and machines.

    with alone_in("out", "run"):        # InputError, which names the holder, where another process holds it
        …

The lock is the file `.lock` in the folder, which says who holds it, locked as a whole (flock), so that it ends
with its process, however that ends. Some file systems lock among the processes of one machine only, some not at
all. So a holder also sets the file's time every few seconds; where the record is that of another machine, whether it
lives is seen by that."""

import contextlib
import fcntl
import json
import logging
import os
import shlex
import socket
import stat
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from base.errors import InputError, writing
from base.text import printable

log = logging.getLogger("nanofoundry")
NAME = ".lock"
WAIT_S = 1.0  # for a holder that is about to end
BEAT_S = 5.0  # between two signs of life
DEAD_S = 60.0  # a holder on another machine that gave none for so long is dead
MAX_BYTES = 1 << 16  # of a record
_held: set["FolderLock"] = set()


@contextlib.contextmanager
def alone_in(folder: str | Path, who: str) -> Iterator[None]:
    """Holds the folder's lock. Raises InputError where another process holds it."""
    lock = FolderLock(folder, who)
    try:
        yield
    finally:
        lock.release()


def is_held(folder: str | Path) -> bool:
    """Whether this process holds the folder's lock."""
    try:
        there = os.stat(Path(folder) / NAME)
    except OSError:
        return False
    return any(os.path.samestat(there, os.fstat(lock.descriptor)) for lock in list(_held))


def check_free(folder: str | Path, who: str) -> None:
    """Raises InputError as FolderLock does where a process holds the folder's lock now; changes nothing."""
    file = Path(folder) / NAME
    _check_regular(file)
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:  # it is not there, or not readable: the lock itself will say what there is to say
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InputError(_in_use(Path(folder), who, _record(descriptor))) from None
    except OSError:
        pass
    finally:
        os.close(descriptor)


class FolderLock:
    """The lock of a folder that is there, from now until release() or the end of this process; children do
    not hold it. Raises InputError where another process holds it, and where the folder cannot be written."""

    def __init__(self, folder: str | Path, who: str) -> None:
        self.folder, self.file, self.who = Path(folder), Path(folder).absolute() / NAME, who
        self.owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "since": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
            "machine": _machine(),
            "started": _started(os.getpid()),
        }
        with writing(folder):
            self.descriptor, locked = self._open()
            try:
                self._claim(locked)
            except BaseException:
                os.close(self.descriptor)
                raise
        _held.add(self)
        self._ended = threading.Event()
        threading.Thread(target=self._beat, name="lock", daemon=True).start()

    def release(self) -> None:
        """Twice is once."""
        if self not in _held:
            return
        _held.discard(self)
        self._ended.set()
        with contextlib.suppress(OSError):
            if os.path.samestat(os.stat(self.file), os.fstat(self.descriptor)):
                self.file.unlink()
        os.close(self.descriptor)

    def _open(self) -> tuple[int, bool]:
        """The file, and whether it could be locked."""
        deadline = time.monotonic() + WAIT_S
        while True:
            _check_regular(self.file)
            descriptor, locked = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666), True
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                record = _record(descriptor)
                os.close(descriptor)
                if time.monotonic() > deadline:
                    raise InputError(_in_use(self.folder, self.who, record)) from None
                time.sleep(0.05)
                continue
            except OSError as error:  # some network file systems have no locks
                locked = False
                log.warning(
                    f"{self.folder} cannot be locked ({error.strerror}): see to it that no other {self.who} "
                    "writes there"
                )
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.stat(self.file), os.fstat(descriptor)):
                    return descriptor, locked
            os.close(descriptor)  # its holder removed it before it let go

    def _claim(self, locked: bool) -> None:
        """Writes who holds it, unless one lives whom the file system's lock does not keep out."""
        record = _record(self.descriptor)
        kept_out = locked and record is not None and record["machine"] == self.owner["machine"]
        if record is not None and not kept_out and _lives(record, self.file):
            raise InputError(_in_use(self.folder, self.who, record))
        content = json.dumps(self.owner).encode()
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, content, 0)
        if not locked:
            time.sleep(WAIT_S)  # of two that came at once the later one's record stands
            if (record := _record(self.descriptor)) not in (None, self.owner):
                raise InputError(_in_use(self.folder, self.who, record))

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            with contextlib.suppress(OSError):
                os.utime(self.file)


def _forget() -> None:
    """A child of a fork has the parent's descriptors, and would hold its locks beyond its death."""
    for lock in list(_held):
        os.close(lock.descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget)


def _check_regular(file: Path) -> None:
    with writing(file.parent), contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(os.lstat(file).st_mode):
            raise InputError(f"{file} is not a file: move it away")


def _record(descriptor: int) -> dict[str, Any] | None:
    """Who wrote itself into the file; None where that cannot be read."""
    try:
        record = json.loads(os.pread(descriptor, MAX_BYTES, 0))
        texts = all(isinstance(record[key], str) for key in ("host", "command", "since", "machine"))
        return record if texts and isinstance(record["pid"], int) else None
    except (OSError, ValueError, RecursionError, KeyError, TypeError):
        return None


def _in_use(folder: Path, who: str, record: dict[str, Any] | None) -> str:
    holder = ""
    if record is not None:
        names = f"process {record['pid']} on {record['host']}, since {record['since']}, {record['command']}"
        holder = f" ({printable(names)[:300]})"
    here = record is not None and (record["pid"], record["machine"]) == (os.getpid(), _machine())
    what = "close it" if here else "wait for it, stop it"
    return f"another {who} is at work in {folder}{holder}: {what}, or choose another folder"


def _lives(record: dict[str, Any], file: Path) -> bool:
    """Whether a holder lives; where that is another machine, by its signs of life."""
    if record["machine"] == _machine() and (started := record.get("started")) is not None:
        return _started(record["pid"]) == started
    with tempfile.TemporaryFile(dir=file.parent) as now:  # by the clock of the file system
        seen = os.stat(file).st_mtime_ns
        if os.fstat(now.fileno()).st_mtime_ns - seen > 1e9 * DEAD_S:
            return False
    wait_s = 3 * BEAT_S
    log.warning(
        f"{file} is of a process on {printable(record['host'])}: {wait_s:.0f} s to see whether it lives"
    )
    deadline = time.monotonic() + wait_s
    while time.monotonic() < deadline:
        time.sleep(min(BEAT_S / 5, 1.0))
        with open(file, "rb") as f:  # a network file system shows what is new to who opens
            if os.fstat(f.fileno()).st_mtime_ns != seen:
                return True
    return False


def _machine() -> str:
    """Where the number of a process means that process: this boot of this machine, in this container."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts += [
            Path("/proc/sys/kernel/random/boot_id").read_text().strip(),
            os.readlink("/proc/self/ns/pid"),
        ]
    return " ".join(parts)


def _started(pid: int) -> str | None:
    """When a process of this machine began, in ticks of its kernel; None where there is none, or no /proc."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if state in "ZX" else fields[18]
    except (OSError, ValueError, IndexError):
        return None
