"""Workers of the lane: one task after another's call, with nothing shared between calls."""

import asyncio
import contextlib
import gc
import sys
import weakref
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any

import pytest

from millstream.http.lane.workers import Worker, Workers
from patience import WAIT

pytestmark = pytest.mark.skipif(sys.version_info >= (3, 12), reason="3.12 has eager tasks; workers are not used there")

Run = Coroutine[Any, Any, None]
secret: ContextVar[str] = ContextVar("secret", default="")


async def nothing() -> None:
    """A call."""


async def idle_worker(workers: Workers) -> Worker:
    """A worker that waits for its second call."""
    worker = Worker(workers, asyncio.get_running_loop(), nothing())
    await until(lambda: workers.idle == [worker])
    return worker


async def until(fact: Callable[[], bool]) -> None:
    """Give the loop turns until something is so."""
    async with asyncio.timeout(WAIT):
        while not fact():  # noqa: ASYNC110  a worker tells nobody what it does
            await asyncio.sleep(0)


def drive(workers: Workers, call: Run) -> bool:
    """As the protocol does it."""
    return workers.idle.pop().drive(call)


async def from_callback(function: Callable[[], Any]) -> Any:
    """Run a function as the loop would run `data_received`: outside any task."""
    done = asyncio.get_running_loop().create_future()

    def run() -> None:
        try:
            done.set_result(function())
        except BaseException as exc:
            done.set_exception(exc)

    asyncio.get_running_loop().call_soon(run)
    return await done


async def test_a_driven_call_runs_at_once_and_in_its_worker_s_task() -> None:
    """Our choice: no turn of the loop is lost, and `asyncio.timeout` works."""
    workers, seen = Workers(), []
    worker = await idle_worker(workers)

    async def run() -> None:
        async with asyncio.timeout(WAIT):  # noqa: ASYNC100  that it can be entered is the point
            seen.append(asyncio.current_task())

    assert await from_callback(lambda: (drive(workers, run()), list(seen))) == (True, [worker.task])
    assert workers.idle == [worker]
    worker.task.cancel()


@pytest.mark.parametrize("waits", ["future", "turn"])
async def test_a_call_that_waits_goes_on_in_the_same_task(waits: str) -> None:
    """What it began before its first suspension (a timeout, a group) belongs to that task."""
    workers = Workers()
    worker = await idle_worker(workers)
    tasks = []
    news: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def run() -> None:
        async with asyncio.timeout(WAIT), asyncio.TaskGroup() as group:
            tasks.append(asyncio.current_task())
            group.create_task(asyncio.sleep(0))
            await (news if waits == "future" else asyncio.sleep(0))
        tasks.append(asyncio.current_task())

    assert not await from_callback(lambda: drive(workers, run()))
    news.set_result(None)
    await until(lambda: workers.idle == [worker])
    assert tasks == [worker.task] * 2
    worker.task.cancel()


async def test_a_timeout_that_was_entered_before_the_call_waited_ends_the_waiting() -> None:
    """The first suspension is taken over by the task like each later one, errors included."""
    workers, seen = Workers(), []
    worker = await idle_worker(workers)

    async def run() -> None:
        for _ in range(2):
            try:
                async with asyncio.timeout(0):
                    await asyncio.Event().wait()
            except TimeoutError:
                seen.append(asyncio.current_task())

    assert not await from_callback(lambda: drive(workers, run()))
    await until(lambda: workers.idle == [worker])
    assert seen == [worker.task] * 2
    worker.task.cancel()


async def test_a_call_that_sets_a_context_variable_does_not_show_it_to_the_next() -> None:
    """Calls share nothing: the worker ends with the call that changed its context."""
    workers, seen = Workers(), []

    async def run(value: str, turns: int) -> None:
        seen.append(secret.get())
        secret.set(value)
        for _ in range(turns):
            await asyncio.sleep(0)

    for turns in (0, 1):
        worker = await idle_worker(workers)
        await from_callback(lambda turns=turns: drive(workers, run("driven", turns)))  # type: ignore[misc]
        async with asyncio.timeout(WAIT):
            await worker.task
        assert workers.idle == []
    await Worker(workers, asyncio.get_running_loop(), run("first", 0)).task
    await Worker(workers, asyncio.get_running_loop(), run("second", 0)).task
    assert seen == [""] * 4


async def test_a_cancelled_worker_is_not_used_again() -> None:
    """A cancel that the call swallowed still counts in the task."""
    workers = Workers()
    worker = await idle_worker(workers)

    async def run() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    assert not await from_callback(lambda: drive(workers, run()))
    worker.task.cancel()
    async with asyncio.timeout(WAIT):
        await worker.task
    assert workers.idle == []


@pytest.mark.parametrize("waits", ["future", "done", "turn"])
async def test_a_call_that_cancels_its_own_task_is_cancelled_where_it_first_waits(waits: str) -> None:
    """As in any task: the cancel comes at the next suspension, and reaches what is waited for."""
    workers, seen = Workers(), []
    worker = await idle_worker(workers)
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    class Ready:
        """It waits for a future that is done."""

        def __await__(self) -> Any:
            future.set_result(None)
            future._asyncio_future_blocking = True
            yield future

    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        try:
            await (asyncio.sleep(0) if waits == "turn" else Ready() if waits == "done" else future)
        except asyncio.CancelledError:
            seen.append(future.cancelled())
            await asyncio.sleep(0)
            seen.append("cleaned up")

    assert not await from_callback(lambda: drive(workers, run()))
    async with asyncio.timeout(WAIT):
        await worker.task
    assert seen == [waits == "future", "cleaned up"]
    assert workers.idle == []


@pytest.mark.parametrize("uncancels", [False, True])
async def test_a_call_that_cancels_its_own_task_and_ends_takes_the_worker_with_it(uncancels: bool) -> None:
    """The cancel is not for the next call."""
    workers = Workers()
    worker = await idle_worker(workers)

    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if uncancels:
            task.uncancel()

    assert await from_callback(lambda: drive(workers, run()))
    async with asyncio.timeout(WAIT):
        await worker.task
    assert workers.idle == []


async def test_what_a_driven_call_raises_ends_its_worker() -> None:
    """A cancelled call is over; what must end the process comes through."""
    workers = Workers()

    async def run(exc: BaseException) -> None:
        raise exc

    worker = await idle_worker(workers)
    assert await from_callback(lambda: drive(workers, run(asyncio.CancelledError())))
    await until(worker.task.done)
    worker = await idle_worker(workers)
    with pytest.raises(KeyError):
        await from_callback(lambda: drive(workers, run(KeyError())))
    await until(worker.task.done)
    assert workers.idle == []


async def test_an_idle_worker_ends_when_it_is_cancelled() -> None:
    """The loop closes: `asyncio.run` cancels what is left."""
    workers = Workers()
    worker = await idle_worker(workers)
    worker.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await worker.task
    assert workers.idle == []


async def test_an_idle_worker_keeps_no_connection_alive() -> None:
    """A call belongs to a connection."""

    class Connection:
        pass

    async def run(connection: Connection, turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)

    async def gone(connection: Connection, turns: int) -> weakref.ref[Connection]:
        await from_callback(lambda: drive(workers, run(connection, turns)))
        await until(lambda: workers.idle == [worker])
        return weakref.ref(connection)

    workers = Workers()
    worker = await idle_worker(workers)
    for turns in (0, 1, 2):
        left = await gone(Connection(), turns)
        gc.collect()
        assert left() is None
    worker.task.cancel()


async def test_a_call_driven_within_a_task_starts_in_the_next_turn() -> None:
    """No task can be entered while another runs."""
    workers, seen = Workers(), []
    worker = await idle_worker(workers)

    async def run() -> None:
        seen.append(asyncio.current_task())

    assert not drive(workers, run())
    assert seen == []
    await until(lambda: workers.idle == [worker])
    assert seen == [worker.task]
    worker.task.cancel()
