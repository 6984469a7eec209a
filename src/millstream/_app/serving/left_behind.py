"""The loop of a server, which ends even if something in it doesn't.

`asyncio.run` cancels what still runs when the main coroutine is over, and waits for it without end; also for generators
and threads. A function that catches its cancellation and goes on would keep the process alive after its lifespan has
closed. Here it has some seconds; then the log says where it stands, and nobody waits for it any longer.
"""

import asyncio
import gc
import logging
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import FrameType
from typing import Any, Final

from millstream._app.serving.default_threads import DefaultThreads
from millstream._telemetry.user_frames import is_foreign

LAST_SECONDS: Final = 2.0
"""What a cancelled task has to end, and lifespans after the second Ctrl-C, should something block the loop."""

_DRIVEN = ("async_generator", "coroutine", "coroutine_wrapper", "generator")
_FRAMES = ("cr_frame", "gi_frame", "ag_frame")
_AWAITED = ("cr_await", "gi_yieldfrom", "ag_await")
_DEEPEST = 100

logger = logging.getLogger("millstream")


def run_to_end(main: Coroutine[Any, Any, None], loop_factory: Callable[[], asyncio.AbstractEventLoop] | None) -> None:
    """`asyncio.run`, but for tasks, generators and threads that go on after their time."""
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.get_loop().set_default_executor(DefaultThreads(LAST_SECONDS))
        try:
            runner.run(main)
        finally:
            runner.get_loop().run_until_complete(_let_go())


async def _let_go() -> None:
    await _end_tasks()
    loop = asyncio.get_running_loop()
    # What generators do at their end may take for ever, too. Their tasks are among those that end next.
    await asyncio.wait([loop.create_task(loop.shutdown_asyncgens())], timeout=LAST_SECONDS)
    await _end_tasks()


async def _end_tasks() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if not tasks:
        return
    _, held = await asyncio.wait(tasks, timeout=LAST_SECONDS)
    for task in held:
        asyncio._unregister_task(task)  # so that the runner doesn't wait for it
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # our line says it better
    if held:
        places = ", ".join(sorted(map(where, held)))
        logger.error("The server stops without waiting for what goes on though it was cancelled: %s", places)


def where(task: asyncio.Task[Any]) -> str:
    """The function in which a task waits, with its file and line: the innermost of the program's own."""
    frames: list[FrameType] = []
    waiting: Any = task.get_coro()
    while waiting is not None and len(frames) < _DEEPEST:
        frame = next((found for name in _FRAMES if (found := getattr(waiting, name, None)) is not None), None)
        if frame is not None:
            frames.append(frame)
        inner = next((found for name in _AWAITED if (found := getattr(waiting, name, None)) is not None), None)
        # A task that stands by for calls (`_http.lane.standby`) drives the one it got without awaiting it.
        waiting = inner or next((each for each in gc.get_referents(waiting) if type(each).__name__ in _DRIVEN), None)
    own = [frame for frame in frames if not is_foreign(frame.f_code.co_filename)]
    for frame in reversed(own or frames):
        return f"{frame.f_code.co_name} ({Path(frame.f_code.co_filename).name}:{frame.f_lineno})"
    return task.get_name()
