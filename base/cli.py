"""One reader of command lines: --key=value, --key value, a bare --flag. Every program's flags are the
fields of its records.

    def main(argv: Sequence[str]) -> int:
        return cli.run(argv, __doc__, ScoreConfig, score)       # score(config: ScoreConfig) -> exit code or None

--help prints the program's docstring and, from the fields, each flag with type, default and meaning. An
InputError ends a program with one line and exit code 2 (base/errors.py)."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin

from base.errors import InputError, input_errors
from base.fields import Kind, check_names, choices_of, default_of, did_you_mean, knobs, types
from base.text import log_to_terminal

Record = TypeVar("Record")
BOOL_WORDS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}


def run(argv: Sequence[str], doc: str, kind: type[Record], work: Callable[[Record], int | None]) -> int:
    """The whole of a program whose flags are the fields of one record. Returns its exit code."""
    log_to_terminal()
    code = 0
    with reader_may_leave(), input_errors():
        if wants_help(argv):
            print(help_text(doc, kind))
        else:
            code = work(read(argv, kind)) or 0
    return code


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Whoever reads the output, as head, may have enough before its end: that is not a failure."""
    try:
        yield
        sys.stdout.flush()  # while it can still be caught
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def read(argv: Sequence[str], kind: type[Record]) -> Record:
    """The record that a command line gives. Raises InputError."""
    words, flags = parse_flags(argv, types(kind))
    taking = [name for name, k in knobs(kind).items() if k.takes_words]
    if words and not taking:
        raise InputError(not_a_flag(words[0], kind))
    if words:
        flags[taking[0]] = [*flags.get(taking[0], []), *words]
    return kind(**flags)


def parse_flags(argv: Sequence[str], hints: Mapping[str, Any]) -> tuple[list[str], dict[str, Any]]:
    """Splits a command line into words and typed flags: --key=value, --key value, or for a bool a bare
    --key. The last of several wins, but a list[str] collects them. `hints` are the names with their types.
    Raises InputError."""
    words, flags = [], {}
    rest = list(argv)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            words.append(word)
            continue
        name, equals, text = word[2:].partition("=")
        check_names([name], hints, "the flags")
        if not equals:
            if hints[name] is bool:
                text = rest.pop(0) if rest and rest[0].lower() in BOOL_WORDS else "true"
            elif rest and not rest[0].startswith("--"):
                text = rest.pop(0)
            else:
                raise InputError(f"--{name} needs a value: --{name}=...")
        if hints[name] == list[str]:
            flags.setdefault(name, []).append(text)
        else:
            flags[name] = parse_value(name, text, hints[name])
    return words, flags


def parse_value(name: str, text: str, hint: Any) -> Any:
    """The text of a flag as the type of its field. Raises InputError with both."""
    kinds = get_args(hint) if get_origin(hint) is not Literal else (str,)
    kinds = kinds or (hint,)
    if NoneType in kinds and text.lower() in ("none", "null"):
        return None
    if bool in kinds:
        if text.lower() in BOOL_WORDS:
            return BOOL_WORDS[text.lower()]
        raise InputError(f"--{name}={text[:100]} is neither True nor False")
    if str in kinds:
        return text
    try:
        if int not in kinds:
            return float(text)
        try:
            return int(text)
        except ValueError:
            number = float(text)  # 1e6
            if not number.is_integer():
                raise
            return int(number)
    except (ValueError, OverflowError) as error:
        wanted = "a whole number" if int in kinds else "a number"
        raise InputError(f"--{name}={text[:100]} is not {wanted}") from error


def is_run_folder(word: str) -> bool:
    """By what it holds, or by its name where it is not there."""
    holds_run = os.path.isdir(word) and (
        os.path.isdir(Path(word) / "checkpoints") or any(Path(word).glob("run_*.jsonl"))
    )
    return word.startswith("out-") or holds_run


# Which flag a word without one was meant for, by what it names
TELLTALES: dict[str, Callable[[str], bool]] = {
    "out_dir": is_run_folder,
    "model": lambda word: os.path.isfile(Path(word) / "config.json"),
    "file": os.path.isfile,
    "prompt": lambda word: not os.path.exists(word),  # as a text too long for a name
}


def not_a_flag(word: str, *kinds: type) -> str:
    """The message for a word where only flags are taken: the flag that it probably means, by what it names
    on this machine or by its spelling."""
    known = [name for kind in kinds for name in types(kind)]
    if word.partition("=")[0].lstrip("-") in known:
        return f"{word!r} is not a flag: did you mean --{word.lstrip('-')}?"
    meant = next((name for name, fits in TELLTALES.items() if name in known and fits(word)), None)
    meant = meant or next((name for name in known if name in ("model", "out_dir", "out", "to")), None)
    return f"{word!r} is not a flag" + (
        f": did you mean --{meant}={word}?" if meant else did_you_mean(word, known)
    )


def wants_help(argv: Sequence[str]) -> bool:
    return bool({"-h", "--help"} & set(argv))


def help_text(doc: str, *kinds: type) -> str:
    """The docstring, then every flag of the records with type, default and meaning, in groups."""
    lines = [doc.strip()]
    groups: dict[Kind, list[tuple[str, str]]] = {}
    for kind in kinds:
        for name, k in knobs(kind).items():
            groups.setdefault(k.kind, []).append(flag_help(kind, name))
    for group in sorted(groups, key=list(Kind).index, reverse=Kind.OPTION in groups and len(groups) == 1):
        lines += ["", f"{group.value}:"]
        lines += [f"  {flag}\n        {meaning}" for flag, meaning in groups[group]]
    return "\n".join(lines)


def flag_help(kind: type, name: str) -> tuple[str, str]:
    """("--name=TYPE", "meaning (default …)")"""
    k, hint, default = knobs(kind)[name], types(kind)[name], default_of(kind, name)
    if k.choices or get_origin(hint) is Literal:
        shape = "|".join(choices_of(k) or map(str, get_args(hint)))
    elif hint is bool:
        shape = "True|False"
    elif get_origin(hint) is list:
        shape = "str, which may be repeated"
    else:
        shape = "|".join("none" if part is NoneType else part.__name__ for part in get_args(hint) or (hint,))
    within = f", in {k.bounds}" if k.bounds else ""
    shown = "none" if default is None else repr(default) if isinstance(default, str) else default
    if default == []:
        shown = "none"
    return f"--{name}={shape}{within}", f"{k.meaning} (default {shown})"
