"""A table on stdout: for a person in colour and in blocks that fit the terminal, for a pipe in whole rows."""

import sys
from collections.abc import Sequence

from analysis.tables import Table
from base import text

COLOURS = {"crashed": "red", "running": "yellow", "stopped": "yellow"}


def show(table: Table) -> None:
    """With rich where it is installed and a person reads it, in blocks of columns where the terminal is
    narrow; else as plain text, a row as long as it needs to be."""
    if not sys.stdout.isatty() or not show_in_colour(table):
        print(text.table(table.rows, table.left), flush=True)


def show_in_colour(table: Table) -> bool:
    """Whether there is rich to do so."""
    try:
        from rich.console import Console
        from rich.table import Table as RichTable
    except ImportError:
        return False
    console = Console()
    for block in blocks_of(table.rows, console.width):
        shown = RichTable()
        for i in block:
            justify = "left" if table.left[i] else "right"
            shown.add_column(escaped(table.rows[0][i]), justify=justify, overflow="fold")
        for row in table.rows[1:]:
            shown.add_row(*(escaped(row[i]) for i in block), style=COLOURS.get(row[-1]))
        console.print(shown)
    return True


def escaped(cell: str) -> str:
    """Not to be read as rich's markup."""
    return cell.replace("[", r"\[")


def blocks_of(rows: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """The columns, the first of them in every block, in blocks no wider than this where that can be."""
    widths = [max(map(len, column)) + 3 for column in zip(*rows, strict=True)]
    blocks, used = [[0]], widths[0] + 1
    for i in range(1, len(widths)):
        if used + widths[i] > width and len(blocks[-1]) > 1:
            blocks.append([0])
            used = widths[0] + 1
        blocks[-1].append(i)
        used += widths[i]
    return blocks
