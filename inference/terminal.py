"""A conversation on a terminal: questions as they are typed, an answer as it is drawn, thinking dimmed or
hidden."""

import sys
from collections.abc import Iterator, Sequence
from typing import Literal

from base.text import printable
from inference.chat import ChatTemplate


def read_questions() -> Iterator[str]:
    """The lines that are typed, or piped in."""
    while True:
        print("> " if sys.stdin.isatty() else "", end="", flush=True)
        try:
            line = sys.stdin.readline()
        except KeyboardInterrupt:  # as the end of the input
            print()
            return
        if not line:
            return
        if line.strip():
            yield line.strip()


DIM, PLAIN = "\033[2m", "\033[0m"


class Display:
    """An answer on the terminal as it comes, thinking dimmed, or hidden. Where the output is not a terminal,
    thinking is marked by its tags alone."""

    def __init__(
        self,
        prompt_ids: Sequence[int],
        template: ChatTemplate,
        show_thinking: Literal["dim", "hide"] = "dim",
        silent: bool = False,
    ) -> None:
        self.template, self.silent, self.hide = template, silent, show_thinking == "hide"
        self.colour, self.hidden = sys.stdout.isatty(), ""
        ends = [i for i in prompt_ids if i is not None and i in (template.think_id, template.end_think_id)]
        self.thinking = self.opened_by_prompt = bool(ends) and ends[-1] == template.think_id
        if self.thinking and self.colour:
            print(DIM, end="")

    def write(self, token: int | None, text: str) -> None:
        if self.silent:
            return
        text = printable(text)
        if token is not None and token == self.template.think_id:
            self.thinking = True
            text = DIM + text if self.colour else text
        hidden = self.thinking and self.hide
        if token is not None and token == self.template.end_think_id:
            self.thinking = False
            text = text + PLAIN if self.colour else text
        self.hidden = self.hidden + text if self.thinking and hidden else ""
        print("" if hidden else text, end="", flush=True)

    def close(self) -> None:
        """Thinking that never ended is the answer, as split_thinking has it: it is shown after all."""
        if not self.silent:
            print(self.hidden + (PLAIN if self.colour else ""), flush=True)
