"""Handling of Ctrl-C, SIGTERM, and a closed terminal in commands that use a server.

They cancel the work, so that connections close and started servers exit. Work that blocks the event loop, usually on a
full pipe, is interrupted instead. `run` and `dev` handle signals themselves, and let calls finish.

Python runs handlers between steps of the main thread. A signal that arrives just before that thread blocks in a system
call, or in another thread, doesn't interrupt the call. So a thread sends SIGALRM to the main thread after each signal.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, ParamSpec, TypeVar

INTERRUPTED = 130
"""Exit status after Ctrl-C."""
_STUCK = 0.5
"""Seconds after a signal until an unresponsive event loop is treated as blocked."""
_AGAIN = 0.1
"""Seconds between a signal and SIGALRM, and between repetitions of SIGALRM."""

T = TypeVar("T")
P = ParamSpec("P")


class TerminationSignal(KeyboardInterrupt):
    """SIGTERM or SIGHUP. Unlike Ctrl-C, it always ends the whole command."""


class _Signals:
    """The signals received by this process. There's one instance per process."""

    _loop: Any = None
    _task: Any = None
    _cancellation: Any = None
    _handled = False
    """Whether a handler has run since the last signal."""
    _since = 0.0
    has_handlers = False
    """Whether the handlers are installed."""
    number = 0
    """The last signal, or 0."""
    reading = False
    """Whether the main thread is reading from the terminal."""

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal that ends the command."""
        self._handled = True
        self.number = number
        self._since = time.monotonic()
        if self._task is None:
            raise self.as_error()
        self._cancellation = self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        self._cancellation = None
        if self._task is not None:
            self._task.cancel()

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """Handle SIGALRM: interrupt a blocked event loop, or a read that swallowed a signal's exception."""
        self._handled = True
        if not self._has_pending() or time.monotonic() - self._since < _STUCK:
            return
        self.reading = False
        if self._cancellation is not None:
            self._cancellation.cancel()  # otherwise it would interrupt the closing of connections
            self._cancellation = None
        raise self.as_error()

    def _has_pending(self) -> bool:
        """Return whether the last signal has had no effect yet."""
        return self._cancellation is not None or (self.reading and self.number != 0)

    def repeat(self, pipe: int, main: int, over: threading.Event) -> None:
        """Send SIGALRM to the main thread after each signal in the pipe until it's handled. Runs in a thread, until the
        pipe closes.
        """
        while received := os.read(pipe, 4096):
            if set(received) == {signal.SIGALRM}:
                continue
            self._handled = False
            while not over.wait(_AGAIN) and (not self._handled or self._has_pending()):
                signal.pthread_kill(main, signal.SIGALRM)

    def as_error(self) -> KeyboardInterrupt:
        """Return the exception for the last signal."""
        return KeyboardInterrupt() if self.number == signal.SIGINT else TerminationSignal()

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run work that signals cancel. Don't wait for its threads after a signal."""
        import asyncio  # noqa: PLC0415  not needed for `millstream --help`

        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            return await work
        finally:
            self._task = self._cancellation = None
            if self.number:
                from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  as above

                self._loop.set_default_executor(ThreadPoolExecutor())


_signals = _Signals()


@contextmanager
def ending_in_order() -> Generator[None]:
    """Exit gracefully on signals inside the block. Ignored signals (`nohup`) stay ignored."""
    ends = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    with _repeat_signals():
        before = {
            each: signal.signal(each, _signals.receive) for each in ends if signal.getsignal(each) != signal.SIG_IGN
        }
        _signals.has_handlers = True
        try:
            yield
        except (KeyboardInterrupt, SystemExit, OSError) as exc:
            gone = isinstance(exc, OSError) and _signals.number not in (0, signal.SIGINT)  # a closed terminal
            if gone or isinstance(exc, KeyboardInterrupt) or getattr(exc, "code", 0) == INTERRUPTED:
                _leave()
            raise
        finally:
            _signals.has_handlers, _signals.number = False, 0
            for number, handler in before.items():
                signal.signal(number, handler or signal.SIG_DFL)


@contextmanager
def _repeat_signals() -> Generator[None]:
    """Repeat signals inside the block until they're handled, on systems that can signal a thread."""
    if not hasattr(signal, "pthread_kill"):
        yield
        return
    over = threading.Event()
    received, send = os.pipe()
    os.set_blocking(send, False)
    main = threading.get_ident()
    thread = threading.Thread(
        target=_signals.repeat, args=(received, main, over), name="millstream-signals", daemon=True
    )
    thread.start()
    handler = signal.signal(signal.SIGALRM, _signals.interrupt)
    before = signal.set_wakeup_fd(send, warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        over.set()
        os.close(send)
        thread.join()
        os.close(received)
        signal.signal(signal.SIGALRM, handler or signal.SIG_DFL)


@contextmanager
def interrupt_reads() -> Generator[None]:
    """Let SIGINT, SIGTERM, and SIGHUP end a read from the terminal inside the block.

    Raises:
        KeyboardInterrupt: A signal ended the read.
    """
    if _signals.number not in (0, signal.SIGINT):  # the exception was lost, for example in a GC callback
        raise _signals.as_error()
    _signals.number = 0
    _signals.reading = True
    try:
        yield
    except SystemError:  # `input` ran a second handler with an exception set
        if _signals.number:
            raise _signals.as_error() from None
        raise
    finally:
        _signals.reading = False


def carry_out(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine like `asyncio.run`, with signal handling.

    Raises:
        KeyboardInterrupt: A signal ended the work.
    """
    import asyncio  # noqa: PLC0415  see above

    if not _signals.has_handlers:
        return asyncio.run(work)
    _signals.number = 0
    try:
        done = asyncio.run(_signals.run(work))
    except BaseException:
        if _signals.number:
            raise _signals.as_error() from None
        raise
    if _signals.number:
        raise _signals.as_error()
    return done


@contextmanager
def stop_without_reader() -> Generator[Callable[[Callable[P, None]], Callable[P, None]], None, None]:
    """End the work inside the block if a client handler writes to a pipe without a reader.

    Yields a decorator for such handlers.
    """
    import asyncio  # noqa: PLC0415  see above

    work = asyncio.current_task()
    assert work is not None  # noqa: S101  always in a task
    failed: list[OSError] = []

    def stop_on_write_error(show: Callable[P, None]) -> Callable[P, None]:
        def write(*args: P.args, **kwargs: P.kwargs) -> None:
            try:
                show(*args, **kwargs)
            except OSError as exc:
                failed.append(exc)
                work.cancel()

        return write

    try:
        yield stop_on_write_error
    except asyncio.CancelledError:
        if failed:
            raise failed[0] from None
        raise


def _leave() -> NoReturn:
    """Exit with the signal's status, without waiting for threads or a full pipe.

    Raises:
        SystemExit: With the status of Ctrl-C.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # discard buffered output
    if _signals.number not in (0, signal.SIGINT):
        signal.signal(_signals.number, signal.SIG_DFL)
        os.kill(os.getpid(), _signals.number)
    if any(not each.daemon for each in threading.enumerate() if each is not threading.main_thread()):
        os._exit(INTERRUPTED)
    sys.exit(INTERRUPTED)
