"""Print the standard error of servers that the client starts, so that their tracebacks and prints aren't lost."""

import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress

_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Characters that could rewrite what a terminal shows."""


def line_printer(chosen: Callable[[str], object] | bool | None) -> Callable[[str], object] | None:
    """Return the function that gets each line; None drops them.

    Args:
        chosen: `Options.stderr`.
    """
    if chosen is None:
        chosen = _is_watched()
    if isinstance(chosen, bool):
        return print_line if chosen else None
    return chosen


def print_line(line: str) -> None:
    """Print one line to our standard error. A progress line that a terminal shows is replaced."""
    out = sys.stderr
    if out is None:  # pyright: ignore[reportUnnecessaryComparison]  it may be closed (2>&-)
        return
    with suppress(OSError, ValueError):
        out.write(f"\r\x1b[K{_STEERING.sub(chr(0xFFFD), line)}\n" if out.isatty() else f"{line}\n")
        out.flush()


def _is_watched() -> bool:
    """Whether a person reads our standard error: at a terminal, or in what pytest shows of a failed test."""
    if "PYTEST_CURRENT_TEST" in os.environ:
        return True
    with suppress(AttributeError, ValueError):  # it may be closed
        return sys.stderr.isatty()
    return False
