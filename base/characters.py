"""Which characters of a text from outside a terminal may see."""

import unicodedata

# Control characters, marks that nobody sees or that turn the direction of what follows, surrogates, which no encoding
# takes, and two more line breaks
UNSEEN = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Of these, what people write: joiners of scripts and emoji, marks of direction that turn nothing, Arabic signs
WRITTEN = set("\u200c\u200d\u200e\u200f\u061c\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u08e2\n\t")


def printable(text: str) -> str:
    """The text with what could move a terminal's cursor, change its colours, hide or turn what follows as escapes;
    line breaks and tabs stay."""
    return "".join(
        c if c in WRITTEN or unicodedata.category(c) not in UNSEEN else c.encode("unicode_escape").decode()
        for c in text
    )
