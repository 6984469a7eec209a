"""Prints the standard error of servers that the client starts, so that tracebacks aren't lost."""

import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress

from millstream._protocol.errors import INVISIBLE

_START = re.compile(r"Failed to validate request: \d+\b")
_REST = re.compile(r"$|\w+Request(\.\S*)?$|\s+(?!\s|(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b)")


class ProbeErrors:
    """The report that servers with the official SDK 1.x write about `server/discover`: up to 200 lines.

    It isn't shown, because the connection continues with the handshake.
    """

    def __init__(self) -> None:
        self._started = self._ended = False

    def contain(self, line: str) -> bool:
        """Return whether the next line of standard error belongs to the report."""
        if not self._started:
            self._started = _START.search(line) is not None
            return self._started
        self._ended = self._ended or _REST.match(line) is None
        return not self._ended


def line_printer(chosen: Callable[[str], object] | bool | None) -> Callable[[str], object] | None:
    """Return the function that receives each line, or None to drop the output.

    Args:
        chosen: the value of `Options.stderr`.
    """
    if chosen is None:
        chosen = _is_watched()
    if isinstance(chosen, bool):
        return print_line if chosen else None
    return chosen


def print_line(line: str) -> None:
    """Print one line to our standard error, replacing a progress line on the terminal."""
    out = sys.stderr
    if out is None:  # pyright: ignore[reportUnnecessaryComparison]  it may be closed (2>&-)
        return
    with suppress(OSError, ValueError):
        out.write(f"\r\x1b[K{INVISIBLE.sub(chr(0xFFFD), line)}\n" if out.isatty() else f"{line}\n")
        out.flush()


def _is_watched() -> bool:
    """Return whether a person reads our standard error: on a terminal, or in the output of a failed pytest test."""
    if "PYTEST_CURRENT_TEST" in os.environ:
        return True
    with suppress(AttributeError, ValueError):  # it may be closed
        return sys.stderr.isatty()
    return False
