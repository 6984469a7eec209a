"""Handling of Ctrl-C, SIGTERM, and a closed terminal in commands that use a server.

They cancel the work, so that connections close and started servers exit. The second signal interrupts work that blocks
the event loop, usually on a full pipe. `run` and `dev` handle signals themselves, and let calls finish.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Coroutine, Generator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, ParamSpec, TypeVar

INTERRUPTED = 130
"""Exit status after Ctrl-C."""

T = TypeVar("T")
P = ParamSpec("P")


class TerminationSignal(KeyboardInterrupt):
    """SIGTERM or SIGHUP. Unlike Ctrl-C, it always ends the whole command."""


class _Signals:
    """The signals received by this process. There's one instance per process."""

    _loop: Any = None
    _task: Any = None
    has_handlers = False
    """Whether the handlers are installed."""
    number = 0
    """The last signal, or 0."""
    reading = False
    """Whether the main thread is reading from the terminal."""

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal that ends the command."""
        is_first, self.number = self.number == 0, number
        if self._task is None or self.reading or not is_first:
            raise self.as_error()
        self._loop.call_soon_threadsafe(self._task.cancel)

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
            self._task = None
            if self.number:
                from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  as above

                self._loop.set_default_executor(ThreadPoolExecutor())


_signals = _Signals()


@contextmanager
def ending_in_order() -> Generator[None]:
    """Exit gracefully on signals inside the block. Ignored signals (`nohup`) stay ignored."""
    ends = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    before = {each: signal.signal(each, _signals.receive) for each in ends if signal.getsignal(each) != signal.SIG_IGN}
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
def interrupt_reads() -> Generator[None]:
    """Let SIGINT, SIGTERM, and SIGHUP end a read from the terminal inside the block.

    Raises:
        KeyboardInterrupt: A signal ended the read.
    """
    _signals.reading = True
    try:
        yield
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
