"""Unicode normal forms of a peer's text, in linear time, and characters that nobody sees.

CPython sorts the marks after a letter by insertion, so ``unicodedata.normalize`` takes quadratic time for a long run of
them, and holds the interpreter. Some characters become 18 others. Other modules call `compose`.
"""

import re
import unicodedata
from functools import cache
from typing import Literal

MAX_COMPOSED = 4096
"""Maximum characters of text that's composed. The result can be 18 times as long."""
_MAX_MARKS = 30
"""Maximum marks after a letter in text of any language (UAX #15 §13, Stream-Safe Text Format)."""
_LAST_MARK = 0x1FFFF
_STARTERS_THAT_BECOME_MARKS = "\u0f73\u0f75\u0f81\uff9e\uff9f"
"""Characters that aren't marks until they're decomposed."""


@cache
def _runs() -> re.Pattern[str]:
    marks = "".join(filter(unicodedata.combining, map(chr, range(0x300, _LAST_MARK)))) + _STARTERS_THAT_BECOME_MARKS
    return re.compile(f"([{marks}]{{{_MAX_MARKS}}})[{marks}]+")


def has_long_runs(text: str) -> bool:
    """Return whether text has more marks after a letter than any language."""
    return not text.isascii() and _runs().search(text) is not None


def compose(form: Literal["NFC", "NFD", "NFKC", "NFKD"], text: str) -> str:
    """Return the beginning of text in a normal form, without the marks that no language has."""
    text = text[:MAX_COMPOSED]
    return text if text.isascii() else unicodedata.normalize(form, _runs().sub(r"\1", text))
