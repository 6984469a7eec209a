"""The event loop of a server, with a deadline for its shutdown.

`asyncio.run` cancels remaining tasks after the main coroutine and waits for them indefinitely, including generators and
threads. A function that ignores cancellation would keep the process alive after its lifespan has closed. Here it has
`LAST_SECONDS`; then its location is logged, and the process exits.
"""

import asyncio
import logging
import os
import sys
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import FrameType
from typing import Any

from millstream._telemetry.user_frames import is_foreign

LAST_SECONDS = 2.0
"""Seconds for canceled tasks, generators, and threads to end."""

logger = logging.getLogger("millstream")


def run(main: Coroutine[Any, Any, None], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None = None) -> None:
    """Run a coroutine like `asyncio.run`, and exit the process if something is still running `LAST_SECONDS` later.

    In other threads than the main one, wait like `asyncio.run`, because the process belongs to the caller.
    """
    deadline: threading.Timer | None = None
    status = 0
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            loop = runner.get_loop()
            try:
                runner.run(main)
            except SystemExit as exc:
                status = exc.code if isinstance(exc.code, int) else 1
                raise
            except BaseException:
                status = 1
                raise
            finally:
                if threading.current_thread() is threading.main_thread():
                    deadline = threading.Timer(LAST_SECONDS, _exit, (loop, status))
                    deadline.daemon = True
                    deadline.start()
    finally:
        if deadline is not None:
            deadline.cancel()


def _exit(loop: asyncio.AbstractEventLoop, status: int) -> None:
    places = sorted({place for task in asyncio.all_tasks(loop) if (place := where(task))})
    what = ", ".join(places) or "a thread or a generator"
    logger.error("The server stops without waiting for code that is still running: %s", what)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def where(task: asyncio.Task[Any]) -> str:
    """Return the innermost function of the program in which a task waits, with its file and line."""
    frames: list[FrameType] = []
    waiting: Any = task.get_coro()
    while waiting is not None:
        names = ("cr", "gi", "ag")
        frame = next((found for name in names if (found := getattr(waiting, f"{name}_frame", None)) is not None), None)
        if frame is not None:
            frames.append(frame)
        waiting = next(
            (
                found
                for name in ("cr_await", "gi_yieldfrom", "ag_await")
                if (found := getattr(waiting, name, None)) is not None
            ),
            None,
        )
    for frame in reversed(frames):
        if frame.f_code.co_filename.endswith(".py") and not is_foreign(frame.f_code.co_filename):
            return f"{frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
    return ""
