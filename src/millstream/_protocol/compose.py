"""Unicode normal forms of a peer's text, in linear time, and characters that nobody sees.

CPython sorts the marks after a letter by insertion, so ``unicodedata.normalize`` takes quadratic time for a long run of
them, and holds the interpreter. Some characters become 18 others. Other modules call `compose`.
"""

import re
import unicodedata
from functools import cache
from typing import Literal

MAX_COMPOSED = 4096
"""Maximum characters of text outside ASCII that's composed. The result can be 18 times as long."""
_MAX_MARKS = 30
"""Maximum marks after a letter in text of any language (UAX #15 §13, Stream-Safe Text Format)."""
_LAST_MARK = 0x1FFFF
_STARTERS_THAT_BECOME_MARKS = "\u0f73\u0f75\u0f81\uff9e\uff9f"
"""Characters that aren't marks until they're decomposed."""
UNSEEN = (
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u2800\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U00016fe4\U0001bca0-\U0001bca3\U0001d159\U0001d173-\U0001d17a"
    "\U000e0000-\U000e0fff]"
)
"""A pattern of characters that nobody sees: Default_Ignorable_Code_Point (UAX #44 §5.7.4), and empty symbols."""
_EMOJI = (
    "[\u00a9\u00ae\u203c\u2049\u2122\u2139\u2194-\u21aa\u231a-\u23fa\u24c2\u25aa-\u25fe\u2600-\u27bf\u2934\u2935"
    "\u2b05-\u2b55\u3030\u303d\u3297\u3299\U0001f004-\U0001f1e5\U0001f200-\U0001f3fa\U0001f400-\U0001faff]"
)
_SELECTOR = f"(?<={_EMOJI})\ufe0f|(?<=[0-9#*])\ufe0f(?=\u20e3)"
"""A variation selector that shows a symbol or a keycap as an emoji (UTS #51 §1.4.3)."""
_MAX_STACKED = 8
"""Maximum marks on a letter that are shown as they are. More cover other lines."""


@cache
def _runs() -> re.Pattern[str]:
    marks = "".join(filter(unicodedata.combining, map(chr, range(0x300, _LAST_MARK)))) + _STARTERS_THAT_BECOME_MARKS
    return re.compile(f"([{marks}]{{{_MAX_MARKS}}})[{marks}]+")


@cache
def _unseen_or_stacked() -> re.Pattern[str]:
    marks = "".join(each for each in map(chr, range(0x300, _LAST_MARK)) if unicodedata.category(each) in ("Mn", "Me"))
    return re.compile(f"(?!{_SELECTOR}){UNSEEN}|(?<=[{marks}]{{{_MAX_STACKED}}})[{marks}]")


def escape_unseen(text: str) -> str:
    """Return text in which each character can be seen, so that none changes how the others look. The selector of an
    emoji stays, as people type it. Joiners and tags between emoji don't, because they can hide more.
    """
    text = "".join(each if each.isprintable() or each == "\n" else _escape(each) for each in text)
    return text if text.isascii() else _unseen_or_stacked().sub(lambda found: _escape(found[0]), text)


def _escape(character: str) -> str:
    return f"\\u{ord(character):04x}"


def has_long_runs(text: str) -> bool:
    """Return whether text has more marks after a letter than any language."""
    return not text.isascii() and _runs().search(text) is not None


def compose(form: Literal["NFC", "NFD", "NFKC", "NFKD"], text: str) -> str:
    """Return text in a normal form, without the marks that no language has. Only ASCII isn't cut at `MAX_COMPOSED`."""
    return text if text.isascii() else unicodedata.normalize(form, _runs().sub(r"\1", text[:MAX_COMPOSED]))
