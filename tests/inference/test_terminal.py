"""A conversation on a terminal: its end, and what of an answer a terminal may see."""

import io
import sys
from types import SimpleNamespace

from inference.terminal import Display, read_questions


class Interrupted(io.StringIO):
    """One question, then Ctrl-C."""

    def readline(self, *size: int) -> str:
        if line := super().readline():
            return line
        raise KeyboardInterrupt


def test_ctrl_c_at_the_prompt_ends_the_conversation(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", Interrupted("what?\n"))
    assert list(read_questions()) == ["what?"] and capsys.readouterr().out == "\n"


def test_an_answer_moves_no_cursor(capsys):
    display = Display([1], SimpleNamespace(think_id=None, end_think_id=None))
    for text in ("a\x1b[2J", "b\u202e", "\n\tc\x9b"):
        display.write(5, text)
    display.close()
    assert capsys.readouterr().out == "a\\x1b[2Jb\\u202e\n\tc\\x9b\n"
