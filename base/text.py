"""Numbers and tables for people, and what of a text a terminal may see."""

import logging
import reprlib
from collections.abc import Sequence

from base.characters import printable
from base.errors import InputError


def human(number: float) -> str:
    """Four significant digits and a unit: 124337664 -> 124.3M."""
    for unit, size in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("K", 1e3)):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:.4g}"


def clock(seconds: float) -> str:
    """h:mm:ss: 3661 -> 1:01:01."""
    s = round(seconds)
    return f"{s // 3600}:{s // 60 % 60:02}:{s % 60:02}"


def duration(seconds: float) -> str:
    """The two largest units: 90 -> 1m30s."""
    hours, rest = divmod(round(seconds), 3600)
    minutes, rest = divmod(rest, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def table(
    rows: Sequence[Sequence[str]], left: Sequence[bool], markdown: bool = False, rule: bool = True
) -> str:
    """Rows of cells, the header first, as aligned text or as Markdown. A column is flush left where `left`
    says so, else flush right. A row is as long as it needs to be, whatever the terminal. `rule`: a line of
    dashes beneath the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [
        [c.ljust(w) if flush else c.rjust(w) for c, w, flush in zip(row, widths, left, strict=True)]
        for row in rows
    ]
    if markdown:
        cells = [[in_markdown(c) for c in row] for row in cells]
        rules = ["-" * (w - 1) + ("-" if flush else ":") for w, flush in zip(widths, left, strict=True)]
        return "\n".join(f"| {' | '.join(row)} |" for row in [cells[0], rules, *cells[1:]])
    lines = [cells[0], *([["-" * w for w in widths]] if rule else []), *cells[1:]]
    return "\n".join("  ".join(row).rstrip() for row in lines)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120


def shown(value: object) -> str:
    """repr of a value from outside, cut short whatever its type, size and nesting."""
    return _SHORT.repr(value)


def brief(value: object, limit: int = 40) -> str:
    """A value from outside on one short line, in quotes, whatever its type, size and nesting."""
    text = value if isinstance(value, str) else reprlib.repr(value)
    return repr(text[:limit])


def in_markdown(text: str) -> str:
    """The text as it may stand in a cell or a line of Markdown: without what ends a cell or begins HTML."""
    return text.replace("|", "\\|").replace("<", "&lt;")


class PlainFormatter(logging.Formatter):
    """Of log lines, which hold names of files and words of others."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


def log_to_terminal() -> None:
    """Warnings as plain lines on stderr, unless logging is set up already."""
    if not logging.root.handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(PlainFormatter("%(message)s"))
        logging.root.addHandler(handler)


def check_utf8(**texts: str) -> None:
    """Raises InputError for text that has no UTF-8 form, which no tokenizer takes: a command line may hold
    any bytes."""
    for name, text in texts.items():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(
                f"{name} is not UTF-8 at character {error.start}: check the terminal's encoding"
            ) from None
