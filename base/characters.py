"""Which characters of a text from outside a terminal may see."""

import unicodedata

# Marks that turn the direction of what follows, so that it reads as something else, and two more line breaks
MISLEADING = set("\u202a\u202b\u202c\u202d\u202e\u2028\u2029\u2066\u2067\u2068\u2069")


def printable(text: str) -> str:
    """The text with control characters, which could move a terminal's cursor or change its colours, marks that turn
    its direction, and surrogates, which no encoding takes, as escapes; line breaks and tabs stay."""
    return "".join(
        c
        if c in "\n\t" or not (c in MISLEADING or unicodedata.category(c) in ("Cc", "Cs"))
        else c.encode("unicode_escape").decode()
        for c in text
    )
