"""The threads of `asyncio.to_thread` and of `run_in_executor(None, …)`, for which the end of a process doesn't wait.

Those of the standard library are waited for without end: by the loop, and by the interpreter once more. A function in
one of them that never returns would keep the process alive after its lifespan has closed.
"""

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from time import monotonic
from typing import Any, ParamSpec, TypeVar

from millstream._server.calls.threads import Jobs, work

T = TypeVar("T")
P = ParamSpec("P")

logger = logging.getLogger("millstream")


class DefaultThreads(ThreadPoolExecutor):
    """As many threads as the standard library would have. Jobs without one wait for it."""

    def __init__(self, patience: float) -> None:
        """`patience` is what functions have to end, in seconds, when the loop does."""
        super().__init__(thread_name_prefix="asyncio")
        self._patience = patience
        self._guard = threading.Lock()
        self._ended = False
        self._open = 0
        """Jobs that run or wait."""
        self._own: list[threading.Thread] = []
        self._jobs = Jobs()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Run in a thread, soon."""
        future: Future[Any] = Future()
        with self._guard:
            if self._ended:
                raise RuntimeError("cannot schedule new futures after shutdown")
            self._open += 1
            if len(self._own) < min(self._open, self._max_workers):
                name = f"asyncio_{len(self._own)}"
                self._own.append(threading.Thread(target=work, args=(self._jobs,), name=name, daemon=True))
                self._own[-1].start()
        future.add_done_callback(self._done)
        self._jobs.put((future, partial(fn, *args, **kwargs)))
        return future

    def _done(self, _: "Future[Any]") -> None:
        with self._guard:
            self._open -= 1

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take nothing more, and wait for a moment."""
        with self._guard:
            self._ended = True
        for _ in self._own:
            self._jobs.put(None)
        until = monotonic() + (self._patience if wait else 0)
        for each in self._own:
            each.join(max(0, until - monotonic()))
        busy = sum(each.is_alive() for each in self._own)
        if busy and wait:
            threads = "1 thread still runs a function" if busy == 1 else f"{busy} threads still run functions"
            logger.warning("%s. The server stops without waiting for that.", threads)
