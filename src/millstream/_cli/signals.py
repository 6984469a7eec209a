"""How Ctrl-C, SIGTERM and a terminal that goes away end a command that uses a server.

All three take the same way: the work is cancelled, so that connections close, and servers that were started end. Where
the work can't hear that, since it waits for something outside of the event loop (a full pipe, mostly), it's interrupted
there. `run` and `dev` have their own way, which lets calls finish.
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
"""The exit status of a command that Ctrl-C ended."""
_STUCK = 0.5
"""Seconds after which an event loop that hasn't heard of a signal counts as blocked."""

T = TypeVar("T")
P = ParamSpec("P")


class Terminated(KeyboardInterrupt):
    """SIGTERM or SIGHUP: like Ctrl-C, and yet it never means that only an answer should stop."""


class _Signals:
    """What this process has heard. One for the process, as signals are."""

    __slots__ = ("_loop", "_task", "_telling", "heard", "number")

    def __init__(self) -> None:
        self._loop: Any = None
        self._task: Any = None
        self._telling: Any = None
        self.heard = False
        """Signals come here."""
        self.number = 0
        """The last that has ended work or a wait; 0 for none."""

    def receive(self, number: int, frame: FrameType | None) -> None:
        """A signal that ends the command."""
        self.number = number
        if self._task is None:
            raise self.as_error()
        self._telling = self._loop.call_soon_threadsafe(self._cancel)
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, _STUCK)

    def _cancel(self) -> None:
        self._telling = None
        if hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
        if self._task is not None:
            self._task.cancel()

    def interrupt(self, number: int, frame: FrameType | None) -> None:
        """The loop doesn't turn: something blocks it."""
        if self._telling is not None:
            self._telling.cancel()  # or it would cut off what closes the connections now
            raise self.as_error()

    def as_error(self) -> KeyboardInterrupt:
        """What tells of the last signal."""
        return KeyboardInterrupt() if self.number == signal.SIGINT else Terminated()

    async def during(self, work: Coroutine[Any, Any, T]) -> T:
        """Have signals cancel this task. Threads that it leaves behind aren't waited for."""
        import asyncio  # noqa: PLC0415  `millstream --help` needs none

        self._loop, self._task = asyncio.get_running_loop(), asyncio.current_task()
        try:
            return await work
        finally:
            self._task = self._telling = None
            if self.number:
                from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415  as above

                self._loop.set_default_executor(ThreadPoolExecutor())


_signals = _Signals()


@contextmanager
def ending_in_order() -> Generator[None, None, None]:
    """Inside, signals end this process in order. What somebody has it ignore (`nohup`) stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {"SIGINT": _signals.receive, "SIGTERM": _signals.receive, "SIGHUP": _signals.receive}
    numbers = {getattr(signal, name, None): each for name, each in {**handlers, "SIGALRM": _signals.interrupt}.items()}
    heard = {number: each for number, each in numbers.items() if number and signal.getsignal(number) != signal.SIG_IGN}
    before = {number: signal.signal(number, each) for number, each in heard.items()}
    _signals.heard = True
    try:
        yield
    except (KeyboardInterrupt, SystemExit, OSError) as exc:
        gone = isinstance(exc, OSError) and _signals.number not in (0, signal.SIGINT)  # nobody sees what's printed
        if gone or isinstance(exc, KeyboardInterrupt) or getattr(exc, "code", 0) == INTERRUPTED:
            _leave()
        raise
    finally:
        _signals.heard = False
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


def carry_out(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run`, for a process that hears signals.

    Raises:
        KeyboardInterrupt: one has ended the work.
    """
    import asyncio  # noqa: PLC0415  see above

    if not _signals.heard or threading.current_thread() is not threading.main_thread():
        return asyncio.run(work)
    _signals.number = 0
    try:
        done = asyncio.run(_signals.during(work))
    except BaseException:
        if _signals.number:
            raise _signals.as_error() from None
        raise
    if _signals.number:
        raise _signals.as_error()
    return done


@contextmanager
def unread() -> Generator[Callable[[Callable[P, None]], Callable[P, None]], None, None]:
    """What a handler of the client writes ends the work inside when nobody reads it, as if the work wrote it.

    Gives what to put around such a handler.
    """
    import asyncio  # noqa: PLC0415  see above

    work = asyncio.current_task()
    assert work is not None  # noqa: S101  a coroutine runs in one
    failed: list[OSError] = []

    def told(show: Callable[P, None]) -> Callable[P, None]:
        def shown(*given: P.args, **more: P.kwargs) -> None:
            try:
                show(*given, **more)
            except OSError as exc:
                failed.append(exc)
                work.cancel()

        return shown

    try:
        yield told
    except asyncio.CancelledError:
        if failed:
            raise failed[0] from None
        raise


def _leave() -> NoReturn:
    """End this process as the signal wants it, without a wait for threads, or for whoever reads the output.

    Raises:
        SystemExit: with the status of Ctrl-C.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # what's left for a full pipe
    if _signals.number not in (0, signal.SIGINT):
        signal.signal(_signals.number, signal.SIG_DFL)
        os.kill(os.getpid(), _signals.number)
    if any(not each.daemon for each in threading.enumerate() if each is not threading.main_thread()):
        os._exit(INTERRUPTED)
    sys.exit(INTERRUPTED)
