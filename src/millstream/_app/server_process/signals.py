"""Signals that stop a server.

The first SIGINT, SIGTERM, or SIGHUP shuts it down gracefully: calls get time to finish, streams end, lifespans close. A
second Ctrl-C stops it at once.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Generator
from types import FrameType

from millstream._app.runtimes import Runtimes
from millstream._app.server_process.runner import LAST_SECONDS
from millstream._http.server.drain import DrainTimes

logger = logging.getLogger("millstream")

INTERRUPTED = 128 + signal.SIGINT
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class StopSignals:
    """Handles signals for the task that creates it."""

    def __init__(self, runtimes: Runtimes, on_stop: Callable[[DrainTimes], None]) -> None:
        """Create it; `handle` installs the handlers.

        Args:
            runtimes: runtimes whose calls are counted for messages.
            on_stop: called in the loop at the first signal.
        """
        self._runtimes = runtimes
        self._on_stop = on_stop
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._stopping = False
        self.forced = False
        """True after a second Ctrl-C: the task was canceled without draining."""

    @contextlib.contextmanager
    def handle(self) -> Generator[None, None, None]:
        """Handle signals inside the block; only possible in the main thread.

        Raises:
            SystemExit: a second signal stopped it without draining.
        """
        main = threading.current_thread() is threading.main_thread()
        before = {number: signal.signal(number, self._receive) for number in (self._signals() if main else ())}
        try:
            yield
        except asyncio.CancelledError:
            if not self.forced:
                raise
            sys.exit(INTERRUPTED)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _signals(self) -> Collection[int]:
        # `nohup` ignores SIGHUP on purpose. Shells ignore SIGINT for every background job of a script, but sending it
        # to one means it should end.
        hangup = getattr(signal, "SIGHUP", None)
        return [each for each in _SIGNALS if each != hangup or signal.getsignal(each) is not signal.SIG_IGN]

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if not self._stopping:
            self._stopping = True
            self._loop.call_soon_threadsafe(self._stop)
        elif number == signal.SIGINT and not self.forced:
            self.forced = True
            logger.warning("Stopping immediately after a second Ctrl-C: %s cut off", self._calls("is", "are"))
            last = threading.Timer(LAST_SECONDS, os._exit, (INTERRUPTED,))
            last.daemon = True
            last.start()
            self._loop.call_soon_threadsafe(self._force)

    def _stop(self) -> None:
        waits = waits_for(self._runtimes)
        calls = f": {waits}" if waits else ""
        times = DrainTimes.for_stop(self._runtimes.definition.settings.drain_delay)
        delay = f" It keeps serving for {times.delay:g} s, but is no longer ready." if times.delay else ""
        logger.info("Stopping%s.%s Press Ctrl-C again to stop immediately.", calls, delay)
        self._on_stop(times)

    def _force(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _calls(self, one: str, several: str) -> str:
        return _count(self._runtimes.calls, f"call {one}", f"calls {several}")


def waits_for(runtimes: Runtimes) -> str:
    """Return what a stopping server waits for, in words; empty for nothing."""
    seconds, calls, streams = runtimes.definition.settings.drain_timeout, runtimes.calls, runtimes.streams
    waits = [f"{_count(calls, 'call has', 'calls have')} up to {seconds:g} s to finish"] if calls else []
    if streams:
        waits.append(_count(streams, "stream ends", "streams end"))
    return ", then ".join(waits)


def _count(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"
