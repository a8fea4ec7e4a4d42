"""Where the documents of a file end: its lines, what lies between separators, paragraphs, pieces of a size,
records of CSV, values of JSON.

A splitter sees a file in parts, each of which begins where a document does. `complete` and `documents` give
the same documents however the file is parted, so that any end of one is a place to resume from."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol


class Splitter(Protocol):
    def complete(self, content: bytes) -> tuple[int, int]:
        """(where the last document that is whole ends, whatever follows, how many there are up to it)"""

    def documents(self, content: bytes) -> list[bytes]:
        """The documents of a content that ends where one does. After the last end there is no empty one."""

    def first_end(self, content: bytes) -> int:
        """Where a document ends that is too long to keep, of which only the last bytes are seen; -1 while it
        does not, None where that cannot be told."""


@dataclass(frozen=True)
class Whole:
    """The whole file is one document."""

    def complete(self, content: bytes) -> tuple[int, int]:
        return 0, 0

    def documents(self, content: bytes) -> list[bytes]:
        return [content]

    def first_end(self, content: bytes) -> int:
        return -1


@dataclass(frozen=True)
class Separated:
    """Documents with a separator after each."""

    separator: bytes

    def complete(self, content: bytes) -> tuple[int, int]:
        """Cut from the left, as the whole file would be: in three line breaks rfind sees other pairs than split."""
        if (
            len(self.separator) == 1
        ):  # lines are counted without being made: the process that reads is the busiest
            return content.rfind(self.separator) + 1, content.count(self.separator)
        *whole, rest = content.split(self.separator)
        return len(content) - len(rest), len(whole)

    def documents(self, content: bytes) -> list[bytes]:
        found = content.split(self.separator)
        return found if found[-1] else found[:-1]

    def first_end(self, content: bytes) -> int:
        at = content.find(self.separator)
        return at + len(self.separator) if at >= 0 else -1


LINES = Separated(b"\n")
SPACE_AFTER_LINE = re.compile(rb"\n\s+")


@dataclass(frozen=True)
class Paragraphs:
    """Documents with blank lines after each, which are left out with the spaces before them; the indentation of
    the next one is its own."""

    def ends(self, content: bytes) -> Iterator[tuple[int, int]]:
        """(where a paragraph's text ends, where the next one begins), for those whose next one is seen."""
        for space in SPACE_AFTER_LINE.finditer(content):
            if space.end() < len(content) and (lines := space[0].rfind(b"\n")):
                yield space.start(), space.start() + lines + 1

    def complete(self, content: bytes) -> tuple[int, int]:
        begin, n = 0, 0
        for end, following in self.ends(content):
            n += bool(content[begin:end].strip())
            begin = following
        return begin, n

    def documents(self, content: bytes) -> list[bytes]:
        found, begin = [], 0
        for end, following in self.ends(content):
            found.append(content[begin:end])
            begin = following
        found.append(content[begin:])
        return [text.rstrip() for text in found if text.strip()]

    def first_end(self, content: bytes) -> int:
        return next((following for _, following in self.ends(content)), -1)


@dataclass(frozen=True)
class Pieces:
    """Documents of about n_bytes, at least half of that but for the last: they end after a blank line, else a
    line, else a space, else anywhere between two characters. Nothing is left out."""

    n_bytes: int

    def end(self, content: bytes, begin: int) -> int:
        """Of the piece at `begin`, where n_bytes follow."""
        for mark in (b"\n\n", b"\n", b" "):
            if (at := content.rfind(mark, begin + self.n_bytes // 2, begin + self.n_bytes)) >= 0:
                return at + len(mark)
        at = begin + self.n_bytes
        while at > begin + 1 and at < len(content) and content[at] & 0xC0 == 0x80:  # inside a character
            at -= 1
        return at

    def complete(self, content: bytes) -> tuple[int, int]:
        end, n = 0, 0
        while end + self.n_bytes < len(content):
            end, n = self.end(content, end), n + 1
        return end, n

    def documents(self, content: bytes) -> list[bytes]:
        found, begin = [], 0
        while begin + self.n_bytes < len(content):
            found.append(content[begin : (end := self.end(content, begin))])
            begin = end
        return [*found, content[begin:]] if begin < len(content) else found

    def first_end(self, content: bytes) -> int:
        raise AssertionError("a piece is never too long")


@lru_cache
def _record(delimiter: bytes) -> re.Pattern[bytes]:
    """A record of CSV with the line break after it. In a field that begins with a quote, line breaks and
    delimiters are text until the quote is closed."""
    d = re.escape(delimiter)
    field = rb'(?:"(?:[^"]++|"")*+"[^%s\n]*+|(?!")[^%s\n]*+)' % (d, d)
    return re.compile(rb"(?:%s%s)*+%s\n" % (field, d, field))


@dataclass(frozen=True)
class Records:
    """Records of CSV."""

    delimiter: bytes

    def complete(self, content: bytes) -> tuple[int, int]:
        end, n, record = 0, 0, _record(self.delimiter)
        while found := record.match(content, end):
            end, n = found.end(), n + 1
        return end, n

    def documents(self, content: bytes) -> list[bytes]:
        found, end, record = [], 0, _record(self.delimiter)
        while one := record.match(content, end):
            found.append(one[0])
            end = one.end()
        return [*found, content[end:]] if end < len(content) else found

    def first_end(self, content: bytes) -> None:
        return None


# A string, or the quote of one that does not end here; brackets; commas
JSON_TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|["{}\[\],]', re.DOTALL)


@dataclass(frozen=True)
class Values:
    """Values of JSON one after the other, with commas or white space between them: what is in an array, whose
    opening bracket has been read, or in a file of several values."""

    def spans(self, content: bytes) -> tuple[list[tuple[int, int]], int]:
        """(of each value its begin and end, where the last one ends with what follows it)"""
        found, depth, begin = [], 0, 0
        for token in JSON_TOKENS.finditer(content):
            kind, at = content[token.start()], token.start()
            if kind == ord('"'):
                if token.end() - at == 1:
                    break  # it goes on beyond this content
            elif kind in b"{[":
                depth += 1
            elif kind in b"}]":
                depth -= 1
                if depth == 0:
                    found.append((begin, token.end()))
                    begin = token.end()
            if depth < 0 or (kind == ord(",") and depth == 0):  # the end of the array, or of a number or text
                if content[begin:at].strip():
                    found.append((begin, at))
                depth, begin = 0, token.end()
        return found, begin

    def complete(self, content: bytes) -> tuple[int, int]:
        found, end = self.spans(content)
        return end, len(found)

    def documents(self, content: bytes) -> list[bytes]:
        spans, end = self.spans(content)
        found = [content[begin:end].strip() for begin, end in spans]
        return [*found, content[end:]] if content[end:].strip() else found

    def first_end(self, content: bytes) -> None:
        return None
