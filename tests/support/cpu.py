"""Measures the cost of code independently of the machine's load: CPU time, and calls of our functions."""

import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import millstream

_OURS = str(Path(millstream.__file__).parent)
DEAR_TEXT = {
    "marks": "\u0301\u0316",
    "starters": "\u0f73",
    "katakana": "\uff9e\uff9f",
    "growing": "\ufdfa",
    "letters": "".join(map(chr, range(0x4E00, 0x9C20))),
    "labels": "\u0f73.",
}
"""Text that takes quadratic time to compose or to encode, or that becomes many times as long."""


def cpu_seconds(run: Callable[[], object], times: int = 3) -> float:
    """Return the CPU time of the fastest of several runs."""
    found: list[float] = []
    for _ in range(times):
        started = time.process_time()
        run()
        found.append(time.process_time() - started)
    return min(found)


async def cpu_seconds_of(run: Callable[[], Awaitable[object]], times: int = 3) -> float:
    """Return the CPU time of the fastest of several runs."""
    found: list[float] = []
    for _ in range(times):
        started = time.process_time()
        await run()
        found.append(time.process_time() - started)
    return min(found)


def repeat(unit: str, size: int) -> str:
    """Return some characters of repeated text."""
    return (unit * (size // len(unit) + 1))[:size]


def check_linear(run: Callable[[int], object], size: int) -> None:
    """Fail if eight times the input takes more than 24 times the CPU time.

    Args:
        run: Handles an input of a size.
        size: The smaller size.
    """
    short = cpu_seconds(lambda: run(size))
    assert cpu_seconds(lambda: run(8 * size), times=1) < 24 * max(short, 0.001)


@contextmanager
def count_calls() -> Iterator[list[str]]:
    """Collect the names of our Python functions that the block enters."""
    names: list[str] = []

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(_OURS):
            names.append(frame.f_code.co_qualname)

    sys.setprofile(note)
    try:
        yield names
    finally:
        sys.setprofile(None)
