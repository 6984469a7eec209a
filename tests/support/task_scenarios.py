"""Coroutines that use their task in all ways and note the results.

Tests run them in our tasks and in plain ones, and compare the notes.
"""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

from patience import WAIT

Notes = list[object]
Scenario = Callable[[Notes], Coroutine[Any, Any, None]]

variable: ContextVar[str] = ContextVar("variable", default="nothing")


def current() -> asyncio.Task[Any]:
    """Return the current task."""
    task = asyncio.current_task()
    assert task is not None
    return task


async def nothing(notes: Notes) -> None:
    """Await nothing."""
    notes.append("done")


async def turns(notes: Notes) -> None:
    """Stay the same task after each await."""
    before = current()
    for _ in range(3):
        await asyncio.sleep(0)
        notes.append(current() is before)


async def gathers(notes: Notes) -> None:
    """Await futures, tasks, and executors."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.call_soon(future.set_result, 7)
    notes.append(await asyncio.gather(future, asyncio.sleep(0, 8)))
    notes.append(await loop.run_in_executor(None, lambda: 9))


async def expires(notes: Notes) -> None:
    """Let `asyncio.timeout` cancel the task and uncancel it."""
    try:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
    except TimeoutError as exc:
        notes.append((str(exc), type(exc.__cause__), current().cancelling()))
    notes.append(sys.exc_info())
    await asyncio.sleep(0)
    notes.append("on")


async def in_time(notes: Notes) -> None:
    """Leave `asyncio.timeout` without awaiting."""
    async with asyncio.timeout(WAIT) as limit:  # noqa: ASYNC100  no await on purpose
        notes.append(limit.expired())
    notes.append(current().cancelling())


async def groups(notes: Notes) -> None:
    """Let a failing task cancel the other one in its group."""

    async def fails() -> None:
        await asyncio.sleep(0)
        raise ValueError("of the group")

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            notes.append("cancelled")
            raise

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            group.create_task(waits())
    except* ValueError as exc:
        notes.append([str(each) for each in exc.exceptions])
    notes.append(current().cancelling())


async def cancels_itself(notes: Notes) -> None:
    """Cancel the own task, which raises at the next await."""
    current().cancel("enough")
    notes.append(current().cancelling())
    try:
        await asyncio.get_running_loop().create_future()
    except asyncio.CancelledError as exc:
        notes.append((exc.args, current().cancelling()))
        raise


async def cancels_itself_in_a_turn(notes: Notes) -> None:
    """Cancel the own task, suppress the error at `sleep(0)`, and continue."""
    current().cancel()
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError as exc:
        notes.append((exc.args, current().cancelling(), current().uncancel()))
    await asyncio.sleep(0)
    notes.append("on")


async def cancels_twice(notes: Notes) -> None:
    """Count each cancellation."""
    current().cancel("first")
    current().cancel("second")
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError as exc:
        notes.append((exc.args, current().cancelling()))


async def takes_it_back(notes: Notes) -> None:
    """Uncancel before the next await."""
    current().cancel()
    notes.append(current().uncancel())
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        notes.append("cancelled")
    notes.append(current().cancelling())


async def cancels_at_its_end(notes: Notes) -> None:
    """Cancel the own task just before it returns."""
    notes.append(current().cancel())


async def waits_for_what_cannot_be_cancelled(notes: Notes) -> None:
    """Cancel the own task, then await a shielded future."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, 1)
    current().cancel()
    try:
        notes.append(await asyncio.shield(future))
    except asyncio.CancelledError:
        notes.append("cancelled")


async def raises(notes: Notes) -> None:
    """Raise immediately."""
    notes.append("raises")
    raise ValueError("at once")


async def raises_later(notes: Notes) -> None:
    """Raise after a `sleep(0)`."""
    await asyncio.sleep(0)
    notes.append("raises")
    raise ValueError("later")


async def stops(notes: Notes) -> None:
    """Raise `CancelledError` without a cancellation."""
    notes.append("stops")
    raise asyncio.CancelledError("of its own")


async def handles(notes: Notes) -> None:
    """Raise after a handled error, which must not become the context."""
    try:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
    except TimeoutError:
        notes.append("late")
    try:
        raise ValueError("of the user")
    except ValueError as exc:
        notes.append(exc.__context__)


async def sees_no_error(notes: Notes) -> None:
    """Handle a future's error, which has no context."""
    future = asyncio.get_running_loop().create_future()
    future.set_exception(KeyError("of the future"))
    try:
        await asyncio.gather(future, asyncio.sleep(0))
    except KeyError as exc:
        notes.append((exc.args, exc.__context__))
    notes.append(sys.exc_info())


async def sets_avariable(notes: Notes) -> None:
    """Set a context variable, which callbacks and child tasks see, but the caller doesn't."""
    notes.append(variable.get())
    token = variable.set("here")
    asyncio.get_running_loop().call_soon(lambda: notes.append(variable.get()))
    await asyncio.sleep(0)
    notes.append(variable.get())

    async def inner() -> None:
        notes.append(variable.get())

    await asyncio.create_task(inner())
    variable.reset(token)
    notes.append(variable.get())
    variable.set("left")


async def is_told(notes: Notes) -> None:
    """Add a callback that runs when the task is done."""
    current().add_done_callback(lambda task: notes.append((task.done(), task.cancelled())))


async def has_a_name(notes: Notes) -> None:
    """Name the task, which keeps the name."""
    current().set_name("mine")
    await asyncio.sleep(0)
    notes.append(current().get_name())


async def is_awaited(notes: Notes) -> None:
    """Let another task await this one."""

    async def waits(task: asyncio.Task[Any]) -> None:
        notes.append(await task)

    notes.append(asyncio.create_task(waits(current())).done())
    await asyncio.sleep(0)


async def yields_nonsense(notes: Notes) -> None:
    """Await an object that yields an invalid value."""

    class Nonsense:
        def __await__(self) -> Any:
            yield 7

    try:
        await Nonsense()  # type: ignore[misc]
    except RuntimeError as exc:
        notes.append(str(exc).partition(":")[0])
    await asyncio.sleep(0)


SCENARIOS: list[Scenario] = [
    nothing, turns, gathers, expires, in_time, groups, cancels_itself, cancels_itself_in_a_turn, cancels_twice,
    takes_it_back, cancels_at_its_end, waits_for_what_cannot_be_cancelled, raises, raises_later, stops, handles,
    sees_no_error, sets_avariable, is_told, has_a_name, is_awaited, yields_nonsense,
]  # fmt: skip
