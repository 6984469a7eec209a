"""What calls do with their task, as coroutines that note what they saw. Where a task is unusual they're run in a plain
one, too, and the notes are compared.
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
    """The task that runs."""
    task = asyncio.current_task()
    assert task is not None
    return task


async def nothing(notes: Notes) -> None:
    """It waits for nothing."""
    notes.append("done")


async def turns(notes: Notes) -> None:
    """The same task before and after it waited."""
    before = current()
    for _ in range(3):
        await asyncio.sleep(0)
        notes.append(current() is before)


async def gathers(notes: Notes) -> None:
    """Futures, other tasks, and their results."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()
    loop.call_soon(future.set_result, 7)
    notes.append(await asyncio.gather(future, asyncio.sleep(0, 8)))
    notes.append(await loop.run_in_executor(None, lambda: 9))


async def expires(notes: Notes) -> None:
    """`asyncio.timeout` cancels its task, and takes that back."""
    try:
        async with asyncio.timeout(0):
            await asyncio.Event().wait()
    except TimeoutError as exc:
        notes.append((str(exc), type(exc.__cause__), current().cancelling()))
    notes.append(sys.exc_info())
    await asyncio.sleep(0)
    notes.append("on")


async def in_time(notes: Notes) -> None:
    """A timeout that nothing waits in."""
    async with asyncio.timeout(WAIT) as limit:  # noqa: ASYNC100  that's the point
        notes.append(limit.expired())
    notes.append(current().cancelling())


async def groups(notes: Notes) -> None:
    """A group whose one task fails cancels the other."""

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
    """It hears of it where it first waits."""
    current().cancel("enough")
    notes.append(current().cancelling())
    try:
        await asyncio.get_running_loop().create_future()
    except asyncio.CancelledError as exc:
        notes.append((exc.args, current().cancelling()))
        raise


async def cancels_itself_in_a_turn(notes: Notes) -> None:
    """The same where it only gives way, and then goes on."""
    current().cancel()
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError as exc:
        notes.append((exc.args, current().cancelling(), current().uncancel()))
    await asyncio.sleep(0)
    notes.append("on")


async def cancels_twice(notes: Notes) -> None:
    """Each one counts."""
    current().cancel("first")
    current().cancel("second")
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError as exc:
        notes.append((exc.args, current().cancelling()))


async def takes_it_back(notes: Notes) -> None:
    """What is taken back no longer counts."""
    current().cancel()
    notes.append(current().uncancel())
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        notes.append("cancelled")
    notes.append(current().cancelling())


async def cancels_at_its_end(notes: Notes) -> None:
    """A task that is asked to stop and is over is a cancelled one."""
    notes.append(current().cancel())


async def waits_for_what_cannot_be_cancelled(notes: Notes) -> None:
    """A future that is done already has its turn."""
    future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.set_result, 1)
    current().cancel()
    try:
        notes.append(await asyncio.shield(future))
    except asyncio.CancelledError:
        notes.append("cancelled")


async def raises(notes: Notes) -> None:
    """An error ends the task."""
    notes.append("raises")
    raise ValueError("at once")


async def raises_later(notes: Notes) -> None:
    """So it does after a turn."""
    await asyncio.sleep(0)
    notes.append("raises")
    raise ValueError("later")


async def stops(notes: Notes) -> None:
    """Nobody cancelled it, and it ends as if."""
    notes.append("stops")
    raise asyncio.CancelledError("of its own")


async def handles(notes: Notes) -> None:
    """An error that was handled is nobody's context."""
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
    """Nor is one of a future."""
    future = asyncio.get_running_loop().create_future()
    future.set_exception(KeyError("of the future"))
    try:
        await asyncio.gather(future, asyncio.sleep(0))
    except KeyError as exc:
        notes.append((exc.args, exc.__context__))
    notes.append(sys.exc_info())


async def sets_avariable(notes: Notes) -> None:
    """It is there after a wait, in callbacks and in tasks, and not outside."""
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
    """Callbacks of the task are called when it is over."""
    current().add_done_callback(lambda task: notes.append((task.done(), task.cancelled())))


async def has_a_name(notes: Notes) -> None:
    """A name is kept while the task works."""
    current().set_name("mine")
    await asyncio.sleep(0)
    notes.append(current().get_name())


async def is_awaited(notes: Notes) -> None:
    """Others wait for the task."""

    async def waits(task: asyncio.Task[Any]) -> None:
        notes.append(await task)

    notes.append(asyncio.create_task(waits(current())).done())
    await asyncio.sleep(0)


async def yields_nonsense(notes: Notes) -> None:
    """What no task can wait for is an error of the coroutine."""

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
