"""Signals to the parent of workers: stop, stop at once, restart all workers.

SIGHUP has two meanings. Sent by a person who has installed a new version, it requests a restart. Sent by the kernel,
the terminal is gone, and a server started in it ends, as it does without workers.
"""

import asyncio
import contextlib
import logging
import os
import signal
import threading
from collections.abc import Generator
from types import FrameType

logger = logging.getLogger("millstream")

_STOP = [signal.SIGINT, signal.SIGTERM]


class ParentSignals:
    """Events that signals set."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.force = asyncio.Event()
        self.restart = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._had_terminal = _has_terminal()

    @contextlib.contextmanager
    def handle(self) -> "Generator[ParentSignals, None, None]":
        """Handle signals inside the block; only possible in the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield self
            return
        # `nohup` ignores SIGHUP on purpose.
        hears_hangup = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
        numbers = [*_STOP, signal.SIGHUP] if hears_hangup else _STOP
        before = {number: signal.signal(number, self._receive) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._loop.call_soon_threadsafe(self._take, number)

    def _take(self, number: int) -> None:
        if number == signal.SIGHUP and not (self._had_terminal and not _has_terminal()):
            if not self.stop.is_set():
                logger.info("Restarting all workers. The current ones stop when the new ones are ready.")
                self.restart.set()
        elif not self.stop.is_set():
            logger.info("Stopping. Press Ctrl-C again to stop immediately.")
            self.stop.set()
        elif number == signal.SIGINT and not self.force.is_set():
            logger.warning("Stopping immediately after a second Ctrl-C")
            self.force.set()


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
