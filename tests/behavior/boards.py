"""Shared state of the behavior tests' functions: journals, gates, and call counts.

It's kept in this process, or with several workers, in the folder `BEHAVIOR_FOLDER`.
"""

import asyncio
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from patience import WAIT

FOLDER = os.environ.get("BEHAVIOR_FOLDER")
_NEWS: set[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = set()
"""Event loops and events that wait for a journal or a gate."""


class _Lines:
    """A journal in a file. Workers append whole lines."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def append(self, text: str) -> None:
        with self._path.open("a") as file:
            file.write(text + "\n")

    def __iter__(self) -> Any:
        return iter(self._path.read_text().splitlines() if self._path.exists() else [])

    def __len__(self) -> int:
        return sum(1 for _ in self)


class _Gate:
    """A gate that is open if its file exists."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def set(self) -> None:
        self._path.touch()

    def is_set(self) -> bool:
        return self._path.exists()

    def wait(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while not self.is_set() and time.monotonic() < deadline:
            time.sleep(0.01)
        return self.is_set()


class _Files(dict[str, Any]):
    """Journals or gates by key."""

    def __init__(self, make: Callable[[Path], Any], suffix: str) -> None:
        super().__init__()
        self._make = make
        self._suffix = suffix

    def __missing__(self, key: str) -> Any:
        assert FOLDER is not None
        found = self[key] = self._make(Path(FOLDER, sha256(key.encode()).hexdigest() + self._suffix))
        return found


class _Gates(dict[str, threading.Event]):
    """Gates by key. Concurrent threads get the same gate."""

    def __missing__(self, key: str) -> threading.Event:
        return self.setdefault(key, threading.Event())


JOURNAL: dict[str, Any] = defaultdict(list) if FOLDER is None else _Files(_Lines, ".journal")
GATES: dict[str, Any] = _Gates() if FOLDER is None else _Files(_Gate, ".gate")
_TURNS: dict[str, Any] = defaultdict(list) if FOLDER is None else _Files(_Lines, ".turns")


def count_call(key: str) -> int:
    """Count a call and return the total so far."""
    _TURNS[key].append("x")
    return len(_TURNS[key])


def notify_waiters() -> None:
    """Wake up everything that waits for a journal or a gate."""
    for loop, event in list(_NEWS):
        with suppress(RuntimeError):  # the test's event loop has ended
            loop.call_soon_threadsafe(event.set)


async def until(fact: Callable[[], bool]) -> None:
    """Wait until a condition on journals or gates is true."""
    entry = (asyncio.get_running_loop(), asyncio.Event())
    _NEWS.add(entry)
    try:
        while not fact():
            with suppress(TimeoutError):  # other processes send no notification
                async with asyncio.timeout(WAIT if FOLDER is None else 0.01):
                    await entry[1].wait()
            entry[1].clear()
    finally:
        _NEWS.discard(entry)
