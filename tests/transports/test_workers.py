"""Workers of the lane: one task after another's call, with nothing shared between calls."""

import asyncio
import contextlib
import sys
from contextvars import ContextVar
from typing import Any

import pytest

from millstream.transports.lane.workers import Worker, Workers

pytestmark = pytest.mark.skipif(sys.version_info >= (3, 12), reason="3.12 has eager tasks; workers are not used there")

secret: ContextVar[str] = ContextVar("secret", default="")


async def wait_idle(workers: Workers) -> Worker:
    """The one worker, once it waits."""
    async with asyncio.timeout(5):
        while not workers.idle:  # noqa: ASYNC110  a worker tells nobody that it waits
            await asyncio.sleep(0)
    return workers.idle[0]


def wake(workers: Workers, run: Any, call: Any) -> asyncio.Task[None]:
    """As the protocol does it, from a callback of the loop."""
    worker = workers.idle.pop()
    worker.run, worker.call = run, call
    worker.context.run(worker.wakeup, worker)
    return worker.task


async def from_callback(function: Any) -> Any:
    """Run a function as the loop would run `data_received`: outside any task."""
    done = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(lambda: done.set_result(function()))
    return await done


async def test_a_woken_worker_runs_its_call_at_once_and_in_its_own_task() -> None:
    """Our choice: no turn of the loop is lost, and `asyncio.timeout` works."""
    workers, seen = Workers(), []

    async def run(call: Any) -> None:
        async with asyncio.timeout(5):  # noqa: ASYNC100  that it can be entered is the point
            seen.append((call, asyncio.current_task()))

    task = Worker(workers, asyncio.get_running_loop(), run, 1).task
    await wait_idle(workers)
    assert await from_callback(lambda: (wake(workers, run, 2), list(seen))[1]) == [(1, task), (2, task)]


async def test_a_call_that_sets_a_context_variable_does_not_show_it_to_the_next() -> None:
    """Calls share nothing: the worker ends with the call that changed its context."""
    workers, seen = Workers(), []

    async def run(call: Any) -> None:
        seen.append(secret.get())
        secret.set(call)

    task = Worker(workers, asyncio.get_running_loop(), run, "first").task
    async with asyncio.timeout(5):
        await task
    assert workers.idle == []
    await Worker(workers, asyncio.get_running_loop(), run, "second").task
    assert seen == ["", ""]


async def test_a_cancelled_worker_is_not_used_again() -> None:
    """A cancel that the call swallowed still counts in the task."""
    workers = Workers()
    started = asyncio.Event()

    async def run(call: Any) -> None:
        started.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    task = Worker(workers, asyncio.get_running_loop(), run, None).task
    await started.wait()
    task.cancel()
    async with asyncio.timeout(5):
        await task
    assert workers.idle == []


async def test_an_idle_worker_ends_when_it_is_cancelled() -> None:
    """The loop closes: `asyncio.run` cancels what is left."""
    workers = Workers()

    async def run(call: Any) -> None:
        return None

    task = Worker(workers, asyncio.get_running_loop(), run, None).task
    await wait_idle(workers)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert workers.idle == []


async def test_an_idle_worker_keeps_no_connection_alive() -> None:
    """A call and the method that runs it belong to a connection."""
    workers = Workers()

    async def run(call: Any) -> None:
        return None

    Worker(workers, asyncio.get_running_loop(), run, object())
    worker = await wait_idle(workers)
    assert (worker.run, worker.call) == (None, None)
    worker.task.cancel()


async def test_a_worker_woken_within_a_task_starts_in_the_next_turn() -> None:
    """No task can be entered while another runs."""
    workers, seen = Workers(), []

    async def run(call: Any) -> None:
        seen.append(call)

    Worker(workers, asyncio.get_running_loop(), run, 1)
    worker = await wait_idle(workers)
    workers.idle.clear()
    worker.run, worker.call = run, 2
    with pytest.raises(RuntimeError):
        worker.context.run(worker.wakeup, worker)
    worker.wake_soon()
    await wait_idle(workers)
    assert seen == [1, 2]
    worker.task.cancel()
