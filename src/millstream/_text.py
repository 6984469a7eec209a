"""Text in messages: shortened and escaped text of a peer, numbers with their nouns, and lines that fit a terminal."""

import json
import re
import textwrap

MAX_SHOWN = 200
"""Maximum number of characters of a peer's text that an error repeats, so long input doesn't make long errors."""


def shorten(text: str, most: int = MAX_SHOWN) -> str:
    """Return the beginning of a peer's text for an error message: ``f"There is no book {shorten(isbn)!r}."``.

    Args:
        text: Text of any length.
        most: Maximum number of characters to keep. A longer text ends with an ellipsis.
    """
    return text if len(text) <= most else f"{text[:most]}…"


_HIDDEN = (
    "\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_JOINED = f"[^\x00-\u02ff\u200c\u200d{_HIDDEN}]"
"""Characters that joiners shape: letters of many scripts, and emoji. Between others, joiners are invisible."""
INVISIBLE = re.compile(rf"[{_HIDDEN}]|(?<!{_JOINED})[\u200c\u200d]|[\u200c\u200d](?!{_JOINED})")
r"""Control and format characters except ``\n`` and ``\t``: bidirectional and line marks, zero-width characters, and
tags."""


def escape(text: str) -> str:
    """Return the text with these characters as JSON escapes."""
    if text.isascii() and text.isprintable():
        return text
    return INVISIBLE.sub(lambda found: json.dumps(found[0])[1:-1], text)


def pluralize(number: float, noun: str) -> str:
    """Return a number with its noun: ``pluralize(1, "second")``."""
    return f"{f'{number:,.3f}'.rstrip('0').rstrip('.')} {noun}{'' if number == 1 else 's'}"


def add_article(noun: str) -> str:
    """Return a noun with its indefinite article, by its first letter: ``add_article("int")``."""
    return f"an {noun}" if noun[:1].lower() in tuple("aeio") else f"a {noun}"


_NARROWEST = 20
"""Minimum width of a text beside its label, in columns."""


def fit(label: str, text: str, columns: int | None) -> str:
    """Return a labeled text, wrapped between words and indented like its first line.

    Args:
        label: What the first line begins with: ``"  Fix:   "``.
        columns: Width of the terminal, or None for a pipe, where lines don't break.
    """
    if columns is None:
        return label + text
    indent, width = " " * len(label), max(columns, len(label) + _NARROWEST)
    lines = [
        textwrap.fill(
            line, width, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
        )
        for line in text.splitlines()
    ]
    return label + "\n".join(lines)[len(label) :]


def fit_command(command: str, columns: int) -> str:
    """Return a shell command on lines that end with a backslash where they're broken, between words.

    Args:
        columns: Width of the terminal.
    """
    first, *words = re.findall(r"""(?:[^\s"']|"[^"]*"|'[^']*')+""", command)
    lines = [first]
    for word in words:
        if len(lines[-1]) + len(word) > columns - 3:
            lines.append(f"    {word}")
        else:
            lines[-1] += f" {word}"
    return " \\\n".join(lines)
