"""Output of commands: tables on a terminal, tab-separated lines in a pipe, or JSON."""

import json
import os
import re
import shutil
import sys
from collections.abc import Sequence
from typing import Any, TextIO

import msgspec

from millstream._protocol.invisible import INVISIBLE, escape

_LONGEST = 2000
"""Maximum characters of a line."""


def safe(text: str) -> str:
    """Replace characters that control a terminal, or that it doesn't show."""
    return INVISIBLE.sub("\ufffd", text)


def print_json(value: Any) -> None:
    """Print a value as JSON, indented on a terminal."""
    indent = 2 if sys.stdout.isatty() else None
    # Escape characters outside of the encoding, as JSON allows.
    plain = not str(sys.stdout.encoding).lower().startswith("utf")
    text = json.dumps(msgspec.to_builtins(value), indent=indent, ensure_ascii=plain)
    sys.stdout.write(color_json(safe_json(text)) + "\n" if indent else text + "\n")
    sys.stdout.flush()  # a program may wait for this line


def safe_json(text: str) -> str:
    """Return JSON for standard output. On a terminal, escape characters that control it, or that it doesn't show."""
    return escape(text) if sys.stdout.isatty() else text


def print_text(text: str, to: TextIO | None = None) -> None:
    """Print text of a server, without control characters on a terminal."""
    out = to or sys.stdout
    out.write((safe(text) if out.isatty() else text) + "\n")
    out.flush()


def print_block(text: str, to: TextIO | None = None) -> None:
    """Print text of a server. On a terminal, indent and color JSON."""
    out = to or sys.stdout
    if out.isatty() and text[:1] in "{[":
        try:
            text = json.dumps(json.loads(text), indent=2, ensure_ascii=False)
        except (ValueError, RecursionError):
            pass
        else:
            out.write(color_json(safe_json(text) if out is sys.stdout else safe(text)) + "\n")
            out.flush()
            return
    print_text(text, to)


_TOKEN = re.compile(
    r'(?P<key>"(?:[^"\\]|\\.)*")(?=\s*:)|(?P<text>"(?:[^"\\]|\\.)*")|(?P<word>\btrue\b|\bfalse\b|\bnull\b|-?\d[\d.eE+-]*)'
)


def color_json(text: str) -> str:
    """Color the keys, strings, and other values of JSON, if standard output is a terminal without NO_COLOR."""

    def colorize(found: re.Match[str]) -> str:
        return style(found[0], "cyan" if found["key"] else "green" if found["text"] else "yellow")

    return _TOKEN.sub(colorize, text)


def print_rows(rows: Sequence[Sequence[str]], header: Sequence[str]) -> None:
    """Print a table that fits the terminal, truncating its last column, or tab-separated lines in a pipe."""
    if not sys.stdout.isatty():
        for row in rows:
            sys.stdout.write("\t".join(one_line(cell) for cell in row) + "\n")
        return
    width = shutil.get_terminal_size().columns
    table = [[safe(one_line(cell)) for cell in row] for row in (header, *rows)]
    # Otherwise, a single huge value would widen all lines.
    sizes = [min(max(len(row[column]) for row in table), width) for column in range(len(header))]
    room = width - sum(sizes[:-1]) - 2 * (len(sizes) - 1)
    for number, row in enumerate(table):
        cells = [cell.ljust(size) for cell, size in zip(row[:-1], sizes[:-1], strict=True)]
        last = row[-1] if len(row[-1]) <= room or room < 10 else row[-1][: room - 1] + "…"
        line = "  ".join([*cells, last]).rstrip()
        sys.stdout.write(f"{style(line, 'bold') if number == 0 else line}\n")


_COLORS = {"bold": "1", "green": "32", "red": "31", "yellow": "33", "cyan": "36", "dim": "2"}


def style(text: str, color: str) -> str:
    """Color text, or make it bold, if standard output is a terminal and NO_COLOR isn't set (https://no-color.org)."""
    if not color or not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\x1b[{_COLORS[color]}m{text}\x1b[0m"


def one_line(text: str) -> str:
    """Replace line ends and tabs."""
    return " ".join(text.split())


def brief(text: str) -> str:
    """Return text on one line of limited length."""
    line = one_line(text)
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}… ({len(line):,} characters)"


class Progress:
    """Progress of a call on standard error: one changing line on a terminal, or a line per step in a pipe."""

    def __init__(self) -> None:
        self._open = False
        self._live = sys.stderr.isatty()

    def step(self, value: float, total: float | None, message: str | None) -> None:
        """Show a step. Used as a progress handler of `Client.call`."""
        share = f"{value:g}/{total:g}" if total else f"{value:g}"
        text = one_line(f"{share} {message or ''}")
        if not self._live:
            sys.stderr.write(f"progress {text}\n")
            return
        bar = ""
        if total:
            done = round(max(0.0, min(20.0, 20 * value / total)))
            bar = "█" * done + "░" * (20 - done) + " "
        sys.stderr.write(f"\r\x1b[K{bar}{safe(text)}")
        sys.stderr.flush()
        self._open = True

    def close(self) -> None:
        """Clear the line."""
        if self._open:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
