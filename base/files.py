"""Files that are whole or not there: atomic writes, digests, JSON that is read with suspicion, locks."""

import contextlib
import fcntl
import glob
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from base.errors import InputError, one_line, reading
from base.locks import alone_in as alone_in  # who writes files also sees to it that nobody else does
from base.text import brief

MAX_JSON_BYTES = 1 << 30  # of a file that is read as a whole


def write_durably(
    file: Path, parts: Iterable[bytes | memoryview], digest: Callable[[], Any] = hashlib.sha256
) -> dict[str, Any]:
    """The parts as a file that is on the disk when this returns; its {"bytes", "sha256"}."""
    n_bytes, taken = 0, digest()
    with open(file, "wb") as f:
        for part in parts:
            f.write(part)
            taken.update(part)
            n_bytes += len(part)
        f.flush()
        os.fsync(f.fileno())
    return {"bytes": n_bytes, "sha256": taken.hexdigest()}


def write_atomically(file: str | Path, content: bytes) -> None:
    """Write, fsync, rename: at any moment the file holds one whole content, the old or the new. What a
    process that died left of an earlier attempt is removed."""
    file = Path(file)
    with _scratch(file) as partial:
        write_durably(partial, [content])
        os.replace(partial, file)
    fsync(file.parent)


@contextlib.contextmanager
def _scratch(file: Path) -> Iterator[Path]:
    """A new, empty file beside `file`, under a name of its own, which is gone at the end. This process holds
    its lock: what can be locked is left over from one that died, on whatever machine."""
    for left in file.parent.glob(f".{glob.escape(file.name)}.*"):
        if re.fullmatch(r"[0-9a-f]{12}", left.name[len(file.name) + 2 :]) and not left.is_symlink():
            with contextlib.suppress(OSError), open(left, "rb") as f:
                fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
                left.unlink()
    while True:
        partial = file.with_name(f".{file.name}.{secrets.token_hex(6)}")
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            with contextlib.suppress(OSError):  # a file system without locks: nothing is removed there
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.fstat(descriptor).st_nlink:  # else another took it for left over before it was locked
                yield partial
                return
        finally:
            partial.unlink(missing_ok=True)
            os.close(descriptor)


def json_bytes(content: Any, indent: int | None = 2) -> bytes:
    # Half a surrogate pair, which JSON can spell, is spelled so again
    return (json.dumps(content, indent=indent, ensure_ascii=False) + "\n").encode(errors="backslashreplace")


def write_json(file: str | Path, content: Any, indent: int | None = 2) -> None:
    """As UTF-8, atomically."""
    write_atomically(file, json_bytes(content, indent))


def fsync(path: str | Path) -> None:
    """Brings a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(file: str | Path) -> str:
    with open(file, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def size_of(file: str | Path, what_to_do: str = "check the path") -> int:
    """The bytes of a file. Raises InputError where it is missing, cannot be reached, or is a folder, a pipe
    (which would block whoever opens it) or a device."""
    with reading(file, what_to_do):
        status = os.stat(file)
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{file} is not a file: {what_to_do}")
    return status.st_size


def describe(file: str | Path) -> dict[str, Any]:
    """{"bytes", "sha256"} of a file, as write_durably gives them."""
    return {"bytes": os.path.getsize(file), "sha256": sha256_of(file)}


def parse_json(content: bytes | str, where: object, what_to_do: str = "copy it again") -> Any:
    """The value. Raises InputError, which begins with `where`, for whatever is not JSON: bad syntax, bad
    UTF-8, nesting beyond Python's stack, numbers beyond its digits."""
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise InputError(f"{where} is damaged or not JSON ({one_line(error)}): {what_to_do}") from None


def read_bytes(file: str | Path, what_to_do: str = "copy it again", max_bytes: int = MAX_JSON_BYTES) -> bytes:
    """The content of a file. Raises InputError, which names the file, where it is missing, not a file,
    cannot be read or is larger than max_bytes."""
    size = size_of(file, what_to_do)
    if size > max_bytes:
        raise InputError(
            f"{file} has {size:,} bytes, more than a file that is read as a whole may have: {what_to_do}"
        )
    with reading(file, what_to_do):
        return Path(file).read_bytes()


def read_json(
    file: str | Path, what_to_do: str = "copy it again", max_bytes: int = MAX_JSON_BYTES
) -> dict[str, Any]:
    """The JSON object in a file. Raises InputError for what read_bytes refuses, for what is not JSON, and
    for something other than an object."""
    value = parse_json(read_bytes(file, what_to_do, max_bytes), file, what_to_do)
    if not isinstance(value, dict):
        raise InputError(f"{file} holds {type(value).__name__}, not a JSON object: {what_to_do}")
    return value


def read_text(file: str | Path, what_to_do: str = "check the path") -> str:
    """UTF-8 text. Raises InputError where it cannot be read or is something else."""
    content = read_bytes(file, what_to_do)
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"{file} is not UTF-8 at byte {error.start}: {what_to_do}") from None


def entry(
    record: Mapping[str, Any], key: str, kind: type | tuple[type, ...], where: object, what_to_do: str
) -> Any:
    """record[key], of the type that is expected. Raises InputError, which begins with `where`, for a
    missing key, another type, a bool in place of a number, and a record that is not an object."""
    if not isinstance(record, Mapping) or key not in record:
        raise InputError(f"{where} lacks {key!r}: {what_to_do}")
    value = record[key]
    kinds = kind if isinstance(kind, tuple) else (kind,)
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        wanted = " or ".join("null" if k is type(None) else k.__name__ for k in kinds)
        raise InputError(f"{where}: {key!r} is {brief(value)}, expected {wanted}: {what_to_do}")
    return value


def count_entry(record: Mapping[str, Any], key: str, where: object, what_to_do: str) -> int:
    """record[key], a number of things. Raises InputError as entry does, and for a number below 0 or beyond what
    64 bits hold."""
    value = entry(record, key, int, where, what_to_do)
    if not 0 <= value < 2**63:
        raise InputError(f"{where}: {key!r} is {brief(value)}, expected int in [0, 2^63): {what_to_do}")
    return value


def writable_folder(path: str, name: str = "out_dir") -> Path:
    """The folder, not yet made. Raises InputError where it cannot be made or written to."""
    folder = Path(path)
    try:
        there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    except OSError as error:  # a name too long, a link that points at itself
        raise InputError(f"{name}={path!r} cannot be a folder ({error.strerror}): choose another") from error
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(
            f"{name}={path!r} cannot be written to: {there} is not a folder that you may write to"
        )
    return folder
