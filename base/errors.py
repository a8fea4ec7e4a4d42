"""Wrong input, and how a program ends.

    raise InputError(f"{path} is not JSON: copy it again")     # what, where, what to do, in one line

An InputError is the user's: a program ends with its line on stderr and exit code 2. Any other exception is
a fault of ours and keeps its traceback, so a conversion belongs at the edge, where a value or a file of the
user is read, and nowhere else."""

import contextlib
import errno
import importlib
import os
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from base.characters import printable

EXIT_INPUT = 2  # the user's input is wrong
EXIT_INTERRUPTED = 130  # Ctrl-C, as a shell reports it
EXIT_STOPPED = 75  # stopped by a signal after saving: the same command resumes (EX_TEMPFAIL of sysexits.h)


class InputError(ValueError):
    """What the user gave is wrong; the message says what, where and what to do. A ValueError, so that
    Python callers may treat it as one."""


class MissingPackage(InputError):
    """A package that this needs is not installed."""


class MissingFile(InputError):
    """A file or folder that was named is not there."""


class MachineError(OSError):
    """The machine refused, not the input: a program ends with the message and exit code 1, without a traceback."""


# Refusals of the operating system that no change of the program would help, and what would
REFUSALS = {
    errno.ENOSPC: "free space on it, or name another place",
    errno.EDQUOT: "free space within the quota, or name another place",
    errno.EROFS: "name another place",
    errno.EMFILE: "raise the limit of open files, ulimit -n",
    errno.ENFILE: "the machine has too many files open",
    errno.ENOMEM: "a smaller batch, a shorter sequence or a smaller model needs less",
}


def require(module: str, purpose: str, install: str | None = None) -> ModuleType:
    """The imported module. Raises MissingPackage, "`purpose` needs the package …: pip install `install`",
    where it is absent or cannot be loaded."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        why = "" if isinstance(error, ModuleNotFoundError) else f" ({error})"
        how = install or package
        raise MissingPackage(f"{purpose} needs the package {package}{why}: pip install {how}") from error


def one_line(error: BaseException) -> str:
    """The message of an exception on one line; its type where it says nothing."""
    return " ".join(str(error).split()) or type(error).__name__


@contextlib.contextmanager
def input_errors(first_to_say: Callable[[str], bool] = lambda message: True) -> Iterator[None]:
    """Around a program: an InputError ends it with one line on stderr and exit code 2, what the machine refused with
    one and exit code 1, Ctrl-C with 130. Of several processes the one speaks for which first_to_say(message) is
    true. Control characters, which names and files may hold, are made visible."""
    try:
        yield
    except KeyboardInterrupt:
        print(file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    except Exception as error:
        message = one_line(error) if isinstance(error, InputError) else refusal(error)
        if message is None:
            raise
        if first_to_say(message):
            print(f"{Path(sys.argv[0]).name}: {printable(message)}", file=sys.stderr)
        raise SystemExit(EXIT_INPUT if isinstance(error, InputError) else 1) from error


def refusal(error: BaseException) -> str | None:
    """In one line what the machine refused: memory, space, open files. None for any other exception, which is a fault
    of ours."""
    if isinstance(error, MachineError):
        return one_line(error)
    if isinstance(error, OSError) and error.errno in REFUSALS:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{os.strerror(error.errno)}: {REFUSALS[error.errno]}"
    # torch's are RuntimeErrors, that of a CPU without a type of its own
    words = r"out of memory|can.t allocate memory|unable to allocate|not enough memory"
    if isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and re.search(words, str(error), re.I)
    ):
        return f"out of memory ({one_line(error)[:200]}): {REFUSALS[errno.ENOMEM]}"
    return None


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Around what writes to a place that the user named: a full disk and the like become an InputError with the path."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}): choose another place"
        ) from error


@contextlib.contextmanager
def reading(
    path: str | os.PathLike, what_to_do: str = "check the path and its permissions"
) -> Iterator[None]:
    """Around the opening or reading of what the user named: the operating system's refusals become an
    InputError with the path."""
    try:
        yield
    except FileNotFoundError as error:
        raise MissingFile(f"{path} is missing: {what_to_do}") from error
    except OSError as error:
        what_to_do = REFUSALS.get(error.errno, what_to_do)
        raise InputError(f"{path} cannot be read ({error.strerror or error}): {what_to_do}") from error
