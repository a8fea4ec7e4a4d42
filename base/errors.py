"""Wrong input, and how a program ends.

    raise InputError(f"{path} is not JSON: copy it again")     # what, where, what to do, in one line

An InputError is the user's: a program ends with its line on stderr and exit code 2. Any other exception is
a fault of ours and keeps its traceback, so a conversion belongs at the edge, where a value or a file of the
user is read, and nowhere else."""

import contextlib
import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

EXIT_INPUT = 2  # the user's input is wrong
EXIT_STOPPED = 75  # stopped by a signal after saving: the same command resumes (EX_TEMPFAIL of sysexits.h)


class InputError(ValueError):
    """What the user gave is wrong; the message says what, where and what to do. A ValueError, so that
    Python callers may treat it as one."""


class MissingPackage(InputError):
    """A package that this needs is not installed."""


class MissingFile(InputError):
    """A file or folder that was named is not there."""


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
    """Around a program: an InputError ends it with one line on stderr and exit code 2. Of several processes
    the one speaks for which first_to_say(message) is true."""
    try:
        yield
    except InputError as error:
        message = one_line(error)
        if first_to_say(message):
            print(f"{Path(sys.argv[0]).name}: {message}", file=sys.stderr)
        raise SystemExit(EXIT_INPUT) from error


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
        raise InputError(f"{path} cannot be read ({error.strerror or error}): {what_to_do}") from error
