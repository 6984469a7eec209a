"""On Python 3.11 a task stands by for calls: what one does and sees is the same as in a task of its own.

The scenarios run twice, in a plain `asyncio.Task` and started by `Starter`, and leave the same notes.
"""

import asyncio
import gc
import sys
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from http_peer import WAIT, ToyApp, request, serve
from millstream._config import Settings
from millstream._http.lane.standby import StandbyTask, Starter
from millstream._http.message import Request, Response
from task_scenarios import SCENARIOS, Notes, Scenario, current, nothing, turns, variable

pytestmark = pytest.mark.skipif(sys.version_info >= (3, 12), reason="This Python has eager tasks.")


async def in_the_loop(do: Callable[[], object]) -> None:
    """Do something as what a socket brings is done: while no task runs."""
    done = asyncio.Event()

    def act() -> None:
        do()
        done.set()

    asyncio.get_running_loop().call_soon(act)
    await asyncio.wait_for(done.wait(), WAIT)


async def standing_by() -> Starter:
    """A starter whose task stands by."""
    starter = Starter(asyncio.get_running_loop())
    task = starter.start(nothing([]))
    assert task is not None
    await task
    await asyncio.sleep(0)
    return starter


async def plainly(scenario: Scenario) -> tuple[Notes, Notes]:
    """The notes of a scenario in a task of its own, and how the task ended."""
    notes: Notes = []
    task = asyncio.create_task(_noting(scenario, notes, kept := []))
    await asyncio.wait([task], timeout=WAIT)
    await asyncio.sleep(0)
    assert kept == [task]
    return notes, _end(task)


async def by_standby(scenario: Scenario) -> tuple[Notes, Notes]:
    """The same of one that was started in the task that stood by."""
    notes: Notes = []
    kept: list[asyncio.Task[Any]] = []
    starter = await standing_by()
    await in_the_loop(lambda: starter.start(_noting(scenario, notes, kept)))
    (task,) = kept
    assert isinstance(task, StandbyTask)
    await asyncio.wait([task], timeout=WAIT)
    await asyncio.sleep(0)
    return notes, _end(task)


async def _noting(scenario: Scenario, notes: Notes, kept: list[asyncio.Task[Any]]) -> None:
    kept.append(current())
    await scenario(notes)


def _end(task: asyncio.Task[Any]) -> Notes:
    return [task.cancelled(), None if task.cancelled() else repr(task.exception()), task.cancelling()]


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_a_call_does_in_a_task_that_stood_by_what_it_does_in_its_own(scenario: Scenario) -> None:
    """Our choice: nothing that user code can see depends on how its call was started."""
    assert await by_standby(scenario) == await plainly(scenario)


@pytest.mark.parametrize("scenario", SCENARIOS)
async def test_whatever_a_call_did_the_next_one_finds_nothing_of_it(scenario: Scenario) -> None:
    """Our choice: calls share nothing, neither their task nor their context."""
    starter = await standing_by()
    seen: list[asyncio.Task[Any]] = []
    for _ in range(3):
        notes: Notes = []
        await in_the_loop(lambda: starter.start(_noting(scenario, [], seen)))
        await asyncio.wait(seen, timeout=WAIT)
        await in_the_loop(lambda notes=notes: starter.start(_looking(notes)))  # type: ignore[misc]
        await asyncio.sleep(0)
        assert notes == [0, "nothing", (None, None, None)]
    assert len(set(seen)) == 3
    for task in seen:
        assert task.done()
        task.cancelled() or task.exception()
    starter.rest()


async def _looking(notes: Notes) -> None:
    notes += [current().cancelling(), variable.get(), sys.exc_info()]


async def test_calls_that_wait_for_nothing_have_the_same_task_and_no_turn_of_the_loop() -> None:
    """What all of this is for. They see of the task what is no trace: that it's there."""
    starter = await standing_by()
    tasks: set[int] = set()
    there: list[bool] = []
    registered: list[bool] = []

    async def look() -> None:
        tasks.add(id(asyncio.current_task()))
        there.append(asyncio.current_task() is not None)

    def call() -> None:
        registered.extend(starter.start(look()) is not None for _ in range(5))

    await in_the_loop(call)
    assert there == [True] * 5
    assert registered == [False] * 5
    assert len(tasks) == 1
    starter.rest()


def _strongly(task: asyncio.Task[Any], kept: list[object]) -> None:
    kept.append(task)


def _weakly(task: asyncio.Task[Any], kept: list[object]) -> None:
    kept.append(weakref.ref(task))


def _by_key(task: asyncio.Task[Any], kept: list[object]) -> None:
    kept.append(weakref.WeakKeyDictionary({task: 1}))


def _by_method(task: asyncio.Task[Any], kept: list[object]) -> None:
    kept.append(task.cancel)


def _by_name(task: asyncio.Task[Any], kept: list[object]) -> None:
    kept.append(f"{task.get_name()}")


def _by_text(task: asyncio.Task[Any], kept: list[object]) -> None:
    kept.append(repr(task))


def _by_attribute(task: asyncio.Task[Any], kept: list[object]) -> None:
    task.note = 1  # type: ignore[attr-defined]


def _by_callback(task: asyncio.Task[Any], kept: list[object]) -> None:
    task.add_done_callback(kept.append)


def _by_a_cycle(task: asyncio.Task[Any], kept: list[object]) -> None:
    cycle: list[object] = [task]
    cycle.append(cycle)


@pytest.mark.parametrize(
    "keep",
    [_strongly, _weakly, _by_key, _by_method, _by_name, _by_text, _by_attribute, _by_callback, _by_a_cycle],
)
async def test_a_task_of_which_anything_is_kept_serves_no_other_call(
    keep: Callable[[asyncio.Task[Any], list[object]], None],
) -> None:
    """Fixed before: a tool that kept its task and cancelled it later cancelled the call of another client."""
    starter = await standing_by()
    kept: list[object] = []
    numbers: list[int] = []
    standby: Any = starter._standby

    async def call() -> None:
        keep(current(), kept)
        numbers.append(1)

    gc.disable()  # a cycle has to count, too
    try:
        await in_the_loop(lambda: starter.start(call()))
        assert numbers == [1]
        assert starter._standby is None
        assert standby.over
    finally:
        gc.enable()
    await asyncio.sleep(0)
    assert len(kept) == (keep not in (_by_attribute, _by_a_cycle))


async def test_all_tasks_may_be_looked_at_and_cancelled_between_calls() -> None:
    """Tools for debugging look at them; `asyncio.run` cancels them at its end."""
    starter = await standing_by()
    notes: Notes = []
    mine = current()
    for how in ("look", "cancel", "look", "cancel"):
        standby: Any = starter._standby
        for task in asyncio.all_tasks():
            if task is not mine and how == "cancel":
                task.cancel()
        if how == "cancel":
            starter.start(turns(notes))  # before the cancelled one has heard of it
            await asyncio.sleep(0)
        await in_the_loop(lambda: starter.start(nothing(notes)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert standby.over
        assert starter._standby is not None
        assert starter._standby.ready
    await asyncio.sleep(0)
    assert notes.count("done") == 4
    assert notes.count(True) == 6
    starter.rest()


async def test_a_call_that_is_started_within_another_has_a_task_of_its_own() -> None:
    """No task can be entered within another, and the one that stands by is still good for the next."""
    starter = await standing_by()
    standby = starter._standby
    notes: Notes = []
    started: list[asyncio.Task[Any] | None] = []

    async def outer() -> None:
        started.append(starter.start(nothing(notes)))

    await in_the_loop(lambda: starter.start(outer()))
    await started[0]  # type: ignore[misc]
    started.append(starter.start(nothing(notes)))  # from the task of this test
    await started[1]  # type: ignore[misc]
    assert notes == ["done", "done"]
    assert starter._standby is standby
    starter.rest()


async def test_nothing_of_a_call_is_kept_when_it_is_over() -> None:
    """Neither when it was over at once, nor when it waited or failed: no cycle, and no frame that goes on."""
    starter = await standing_by()

    class Held:
        """One call, which refers to this."""

        def __init__(self, starter: Starter, how: str) -> None:
            self._starter = starter
            self._how = how
            self._task: asyncio.Task[None] | None = None

        def start(self) -> None:
            self._task = self._starter.start(self._work())

        async def over(self) -> None:
            task, self._task = self._task, None
            if task is not None:
                await asyncio.wait([task], timeout=WAIT)

        async def _work(self) -> None:
            if "wait" in self._how:
                await asyncio.sleep(0)
            if "fail" in self._how:
                raise ValueError(self)
            if "cancel" in self._how:
                current().cancel()
                await asyncio.sleep(0)

    asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # a log keeps what it was told
    gc.collect()
    gc.disable()
    try:
        for how in ("", "wait", "fail", "wait and fail", "cancel", "wait and cancel"):
            await in_the_loop(lambda: starter.start(nothing([])))
            await asyncio.sleep(0)
            gone = weakref.ref(held := Held(starter, how))
            await in_the_loop(held.start)
            await held.over()
            del held
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert gone() is None, how
    finally:
        gc.enable()
    starter.rest()


async def test_the_last_connection_takes_the_task_that_stands_by_with_it() -> None:
    """A server without clients has no task, so nothing is pending when its loop is closed."""

    async def reply(_request: Request) -> Response:
        return Response(b"ok")

    before = asyncio.all_tasks()
    app = ToyApp({("POST", "/echo"): reply}, Settings(), lane=True)
    async with serve(app, lane=True) as running:
        for _ in range(2):
            peers = [await running.connect() for _ in range(2)]
            for _ in range(3):
                for peer in peers:
                    await peer.send(request())
                    assert (await peer.reply())[0] == 200
            assert len(asyncio.all_tasks() - before) == 1
            peers[0].writer.transport.abort()
            await running.left(1)
            assert len(asyncio.all_tasks() - before) == 1
            peers[1].writer.transport.abort()
            await running.left(0)
            await asyncio.sleep(0)
            assert asyncio.all_tasks() == before


@pytest.mark.parametrize("wait", [asyncio.sleep, asyncio.shield])
async def test_a_client_that_leaves_cancels_a_call_which_began_in_the_task_that_stood_by(
    wait: Callable[[Any], Awaitable[None]],
) -> None:
    """The request asked for it, and the call is over for its handler, too."""
    began, ended = asyncio.Event(), asyncio.Event()

    async def works(request: Request) -> Response:
        if request.body:
            request.cancel_on_disconnect = True
            began.set()
            try:
                await (asyncio.Event().wait() if wait is asyncio.sleep else asyncio.shield(asyncio.sleep(0)))
                await asyncio.Event().wait()
            finally:
                ended.set()
        return Response(b"ok")

    app = ToyApp({("POST", "/echo"): works}, Settings(), lane=True)
    async with serve(app, lane=True) as running:
        peer = await running.connect()
        for _ in range(2):
            await peer.send(request())
            assert (await peer.reply())[0] == 200
        await peer.send(request(body=b"wait"))
        await asyncio.wait_for(began.wait(), WAIT)
        assert {type(task) for task in running.state.tasks} == {StandbyTask}
        peer.writer.transport.abort()
        await asyncio.wait_for(ended.wait(), WAIT)
        await running.left(0)
