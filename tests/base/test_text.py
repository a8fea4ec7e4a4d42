"""Numbers, tables, and what of a text a terminal may see."""

import pytest

from base.text import clock, human, printable, shown, table


@pytest.mark.parametrize(
    "number, said",
    [(0, "0"), (999, "999"), (1000, "1K"), (124_337_664, "124.3M"), (1.5e9, "1.5B"), (2e12, "2T")],
)
def test_human(number, said):
    assert human(number) == said


def test_shown():
    assert shown("word") == "'word'" and shown(4) == "4" and shown({"bits": 4}) == "{'bits': 4}"
    deep = []
    for _ in range(5000):
        deep = [deep]
    assert all(len(shown(value)) < 200 for value in (deep, "x" * 9999, [1] * 9999, 10**4000))


@pytest.mark.parametrize(
    "seconds, said", [(0, "0:00:00"), (3661, "1:01:01"), (59.6, "0:01:00"), (1e6, "277:46:40")]
)
def test_clock(seconds, said):
    assert clock(seconds) == said


def test_table():
    rows = [["run", "loss"], ["a", "2.5"], ["long", "10.25"]]
    text = "run    loss\n----  -----\na       2.5\nlong  10.25"
    assert table(rows, [True, False]) == text
    markdown = "| run  |  loss |\n| ---- | ----: |\n| a    |   2.5 |\n| long | 10.25 |"
    assert table(rows, [True, False], markdown=True) == markdown
    assert table(rows, [True, False], rule=False).splitlines()[1] == "a       2.5"


@pytest.mark.parametrize(
    "text, shown",
    [
        ("a\tb\nä😀", "a\tb\nä😀"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x00\x85", "\\x00\\x85"),
        ("x\ud800\udcff", "x\\ud800\\udcff"),
    ],
)
def test_printable(text, shown):
    assert printable(text) == shown
    printable(text).encode()
