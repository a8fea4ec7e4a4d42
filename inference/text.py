"""Text to ids and back, all at once or as tokens come."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from base.errors import InputError, one_line
from base.text import brief
from tokenization.tokenizers import TokenizerFiles

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def check_fits(found: TokenizerFiles, vocab_size: int) -> None:
    """Raises InputError for a tokenizer with more ids than the model has rows."""
    if found.length > vocab_size:
        raise InputError(
            f"tokenizer {found.name!r} has ids up to {found.length - 1}, the model {vocab_size} rows: it "
            "belongs to another model"
        )


def encode(tokenizer: "Tokenizer", text: str, special: bool = False) -> list[int]:
    """The ids of a text; `special`: with what the tokenizer puts around it, as a BOS. Raises InputError
    where it has no ids for it, or is set to cut or pad texts."""
    if tokenizer.truncation is not None or tokenizer.padding is not None:
        raise InputError("the tokenizer cuts or pads texts: call its no_truncation() and no_padding() first")
    try:
        return tokenizer.encode(text, add_special_tokens=special).ids
    except Exception as error:  # the package raises bare Exception, as for a vocabulary without [UNK]
        raise InputError(
            f"the tokenizer cannot encode {brief(text)} ({one_line(error)}): use another"
        ) from None


def decode(tokenizer: "Tokenizer", ids: Sequence[int]) -> str:
    return tokenizer.decode(list(ids), skip_special_tokens=True).strip("\n")


class TextStream:
    """The text of a row as its tokens come. A character may need several tokens; what may yet become a stop
    string is held back, and nothing comes after a stop string."""

    def __init__(
        self, tokenizer: "Tokenizer", prompt_ids: Sequence[int], stop_strings: Sequence[str] = ()
    ) -> None:
        self.tokenizer, self.stop_strings = tokenizer, stop_strings
        # Spaces at the start of a token depend on what came before: the tokens whose text was given out last
        # are decoded again before those that came since
        self.before, self.since = list(prompt_ids)[-64:], []
        self.held, self.stopped = "", False

    def _text_of(self, token: int) -> str:
        """What a token adds to the text; nothing while a character of several tokens is not complete."""
        self.since.append(token)
        ids = [*self.before, *self.since]
        known, text = (self.tokenizer.decode(part, skip_special_tokens=True) for part in (self.before, ids))
        # A decoder that joins tokens may change the text before: what was given out stays
        if len(text) <= len(known) or text.endswith("\ufffd"):
            return ""
        self.before, self.since = self.since, []
        return text[len(known) :]

    def feed(self, token: int) -> str:
        """The text that is certain now."""
        self.held += self._text_of(token)
        ends = [at for stop in self.stop_strings if (at := self.held.find(stop)) >= 0]
        if ends:
            self.stopped = True
            text, self.held = self.held[: min(ends)], ""
            return text
        keep = max(
            (n for stop in self.stop_strings for n in range(1, len(stop)) if self.held.endswith(stop[:n])),
            default=0,
        )
        cut = len(self.held) - keep
        text, self.held = self.held[:cut], self.held[cut:]
        return text
