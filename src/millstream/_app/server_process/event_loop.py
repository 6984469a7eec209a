"""The event loop of a server: the signals that stop it, and a deadline for its shutdown."""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Coroutine, Generator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from millstream._app.lifecycle import Runtimes
from millstream._http.server import DrainTimes
from millstream._telemetry.logs import is_foreign

LAST_SECONDS = 2.0
"""Seconds for canceled tasks, generators, and threads to end."""

logger = logging.getLogger("millstream")


def run(main: Coroutine[Any, Any, None], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
    """Run a coroutine like `asyncio.run`, and exit the process if something is still running `LAST_SECONDS` later.

    `asyncio.run` cancels remaining tasks after the main coroutine and waits for them indefinitely, including generators
    and threads. A function that ignores cancellation would keep the process alive after its lifespan has closed. Here
    its location is logged before the process exits.

    In threads other than the main one, wait like `asyncio.run`, because the process belongs to the caller.
    """
    status = 1
    deadline = threading.Timer(LAST_SECONDS, lambda: _exit(loop, status))
    deadline.daemon = True
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            loop = runner.get_loop()
            try:
                runner.run(main)
                status = 0
            except SystemExit as exc:
                status = exc.code if isinstance(exc.code, int) else 1
                raise
            finally:
                if threading.current_thread() is threading.main_thread():
                    deadline.start()
    finally:
        deadline.cancel()


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Return uvloop's factory if it's installed: it makes serving, and the workers' store, a third faster."""
    try:
        import uvloop  # noqa: PLC0415  there is none on Windows
    except ImportError:
        return None
    return uvloop.new_event_loop


def _exit(loop: asyncio.AbstractEventLoop, status: int) -> None:
    places = sorted({place for task in asyncio.all_tasks(loop) if (place := where(task))} | blocking_places())
    what = ", ".join(places) or "a thread or a generator"
    logger.error("Stopping without waiting for code that is still running: %s", what)
    last = threading.Timer(LAST_SECONDS, os._exit, (status,))  # printed text may wait for a reader forever
    last.daemon = True
    last.start()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


_AWAITABLES = (("cr", "cr_await"), ("gi", "gi_yieldfrom"), ("ag", "ag_await"))
"""Attribute prefix of coroutines and generators -> attribute for the object that they await."""


def blocking_places() -> set[str]:
    """Return the innermost function of the program that the main thread runs, with its file and line."""
    frames_of = sys._current_frames()  # pyright: ignore[reportPrivateUsage]
    frame = frames_of.get(threading.main_thread().ident or 0)
    frames: list[FrameType] = []
    while frame is not None:
        frames.insert(0, frame)
        frame = frame.f_back
    return {place} if (place := _innermost(frames)) else set()


def where(task: asyncio.Task[Any]) -> str:
    """Return the innermost function of the program in which a task waits, with its file and line."""
    frames: list[FrameType] = []
    waiting: Any = task.get_coro()
    while waiting is not None:
        kind, below = next((each for each in _AWAITABLES if hasattr(waiting, f"{each[0]}_frame")), ("", ""))
        frame = getattr(waiting, f"{kind}_frame", None)
        if frame is not None:
            frames.append(frame)
        waiting = getattr(waiting, below, None)
    return _innermost(frames)


def _innermost(frames: Sequence[FrameType]) -> str:
    for frame in reversed(frames):
        if frame.f_code.co_filename.endswith(".py") and not is_foreign(frame.f_code.co_filename):
            return f"{frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
    return ""


def has_terminal() -> bool:
    """Return whether this process has a terminal. A SIGHUP without one that it had means that it was closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


INTERRUPTED = 128 + signal.SIGINT
_HANGUP = getattr(signal, "SIGHUP", None)
_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextlib.contextmanager
def receive_signals(
    receive: Callable[[int, FrameType | None], None], numbers: Collection[int] = _SIGNALS
) -> Generator[None]:
    """Call a function for signals inside the block. Works only in the main thread."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        # `nohup` ignores SIGHUP on purpose. Shells ignore SIGINT for background jobs in scripts, but a signal sent to
        # one should still end it.
        handled = [each for each in numbers if each != _HANGUP or signal.getsignal(each) is not signal.SIG_IGN]
        before = {number: signal.signal(number, receive) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class StopSignals:
    """Handles signals for the task that creates it.

    The first SIGINT, SIGTERM, or SIGHUP shuts the server down gracefully: calls get time to finish, streams end, and
    lifespans close. A second Ctrl-C stops it at once. Before the server is ready, there's nothing to drain, so the
    first signal cancels the task.

    A gateway with a configuration file reads it at SIGHUP, unless its terminal has closed.
    """

    _numbers: Collection[int] = _SIGNALS

    def __init__(self, runtimes: Runtimes, on_stop: Callable[[DrainTimes], None]) -> None:
        """Prepare the handlers, which `handle` installs.

        Args:
            runtimes: Runtimes whose calls are counted for messages.
            on_stop: Called in the loop at the first signal.
        """
        self._runtimes = runtimes
        self._on_stop = on_stop
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._stopping = False
        self._had_terminal = has_terminal()
        self._status: int | None = None
        """Exit status after the task was canceled without draining."""
        self._has_reacted = threading.Event()
        """Set when the event loop has handled the first signal."""
        self._is_over = threading.Event()
        """Set when the server is ready, or has stopped."""

    @property
    def forced(self) -> bool:
        """Whether the task was canceled without draining."""
        return self._status is not None

    def set_ready(self) -> None:
        """Drain after the next signal, because the server is ready."""
        self._is_over.set()

    @contextlib.contextmanager
    def handle(self) -> Generator[None]:
        """Handle signals inside the block. Works only in the main thread.

        Raises:
            SystemExit: A second signal stopped it without draining.
        """
        with receive_signals(self._receive, self._numbers):
            try:
                yield
            except asyncio.CancelledError:
                if self._status is None or self._task is None:
                    raise
                if self._status:
                    sys.exit(self._status)
                self._task.uncancel()
            finally:
                self._has_reacted.set()
                self._is_over.set()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        live = self._runtimes.definition.live
        if live is not None and number == _HANGUP and (has_terminal() or not self._had_terminal):
            self._loop.call_soon_threadsafe(live.read_again)
        elif not self._stopping:
            self._stopping = True
            self._limit_start(number)
            self._loop.call_soon_threadsafe(self._stop, number)
        elif number == signal.SIGINT and self._status != INTERRUPTED:
            logger.warning(
                "Stopping immediately after a second Ctrl-C: %s cut off",
                _count(self._runtimes.calls, "call is", "calls are"),
            )
            last = threading.Timer(LAST_SECONDS, os._exit, (INTERRUPTED,))
            last.daemon = True
            last.start()
            self._loop.call_soon_threadsafe(self._force)

    def _limit_start(self, number: int) -> None:
        """End the process if the server is still starting, and blocks the event loop or doesn't end in time."""
        if not self._is_over.is_set():
            seconds = self._runtimes.definition.settings.drain_timeout + 2 * LAST_SECONDS

            def leave() -> None:
                if not (self._has_reacted.wait(LAST_SECONDS) and self._is_over.wait(seconds)):
                    _exit(self._loop, _status_of(number))

            threading.Thread(target=leave, name="millstream-stop", daemon=True).start()

    def _cancel_start(self, number: int) -> bool:
        """Cancel the task if the server isn't ready. Return whether it was canceled."""
        self._has_reacted.set()
        if self._is_over.is_set():
            return False
        logger.info("Stopping before the server was ready.")
        self._status = _status_of(number)
        if self._task is not None:
            self._task.cancel()
        return True

    def _stop(self, number: int) -> None:
        if self._cancel_start(number):
            return
        waits = waits_for(self._runtimes)
        calls = f": {waits}" if waits else ""
        times = DrainTimes.for_stop(self._runtimes.definition.settings.drain_delay)
        delay = f" It keeps serving for {times.delay:g} s, but is no longer ready." if times.delay else ""
        logger.info("Stopping%s.%s Press Ctrl-C again to stop immediately.", calls, delay)
        self._on_stop(times)

    def _force(self) -> None:
        self._status = INTERRUPTED
        if self._task is not None:
            self._task.cancel()


def waits_for(runtimes: Runtimes) -> str:
    """Describe what a stopping server is waiting for. Return an empty string if it isn't waiting."""
    seconds, calls, streams = runtimes.definition.settings.drain_timeout, runtimes.calls, runtimes.streams
    waits = [f"{_count(calls, 'call has', 'calls have')} up to {seconds:g} s to finish"] if calls else []
    if streams:
        waits.append(_count(streams, "stream ends", "streams end"))
    return ", then ".join(waits)


def _status_of(number: int) -> int:
    """Return the exit status for a signal before the server was ready."""
    return INTERRUPTED if number == signal.SIGINT else 0


def _count(count: int, one: str, several: str) -> str:
    return f"{count} {one if count == 1 else several}"
