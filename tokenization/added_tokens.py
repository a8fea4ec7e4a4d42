"""Tokens that are added to a vocabulary, as the package `tokenizers` adds them: which id each gets, and
which of two of the same text stands."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from base.errors import InputError
from base.text import brief

FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


@dataclass(frozen=True)
class AddedToken:
    content: str
    single_word: bool = False
    lstrip: bool = False
    rstrip: bool = False
    normalized: bool = True
    special: bool = False

    def __str__(self) -> str:
        return self.content


def special_token(content: str) -> AddedToken:
    return AddedToken(content, normalized=False, special=True)


def read_added_token(value: Any, where: str, special: bool | None = None) -> AddedToken:
    """A token as the files write it: an object with its content and flags; `special` overrides that flag,
    and what is special is not normalized by default. Raises InputError."""
    flags = {name: value[name] for name in FLAGS if name in value} if isinstance(value, dict) else {}
    content = value.get("content") if isinstance(value, dict) else None
    if not isinstance(content, str) or any(type(flag) is not bool for flag in flags.values()):
        raise InputError(f"{where}: {brief(value)} is not a token with its flags: copy it again")
    if special is not None:
        flags["special"] = special
    return AddedToken(content, **{"normalized": not flags.get("special", False)} | flags)


class AddedTokens:
    """The tokens that were added to a model's own vocabulary, {token: id}."""

    def __init__(self, vocabulary: Mapping[str, int]) -> None:
        self.vocabulary = vocabulary
        self.ids: dict[str, int] = {}
        self.by_id: dict[int, AddedToken] = {}
        self.next_id = len(vocabulary)
        self.once_special: set[str] = set()  # is left out of decoded text, whatever a later one says

    def add(self, tokens: Iterable[AddedToken]) -> None:
        """A token of the vocabulary keeps its id; any other gets the next one after the vocabulary's size
        and after those that were added, whatever a file says of it. A later one of the same text replaces
        the flags of the earlier."""
        for token in tokens:
            i = self.id_of(token.content)
            self.once_special |= {token.content} if token.special else set()
            if not token.content or (token.content in self.ids and self.by_id[i] == token):
                continue
            i = self.next_id if i is None else i
            self.ids[token.content], self.by_id[i] = i, token
            self.next_id = max(self.next_id, i + 1)

    def id_of(self, token: str) -> int | None:
        return self.ids.get(token, self.vocabulary.get(token))

    def listed(self) -> list[dict[str, Any]]:
        """As tokenizer.json lists them."""
        return [
            {"id": i, **asdict(token), "special": token.content in self.once_special}
            for i, token in sorted(self.by_id.items())
        ]

    def add_missing(
        self, named: Mapping[str, Any], extra: list[Any], declared: dict[int, AddedToken]
    ) -> None:
        """Adds what the files beside tokenizer.json know: `declared` tokens in the order of their index, then
        those that have a name (bos_token, …) and `extra` special ones, where they are not there already."""
        tokens: list[Any] = [token for _, token in sorted(declared.items())]
        texts = {*self.ids, *map(str, tokens)}
        for token in (*named.values(), *extra):
            if str(token) not in texts and token not in tokens:
                tokens.append(token)
        names = {str(token) for token in named.values()}
        self.add(
            special_token(token)
            if isinstance(token, str)
            else replace(token, special=token.special or token.content in names)
            for token in tokens
        )
