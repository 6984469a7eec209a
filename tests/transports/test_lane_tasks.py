"""A task belongs to one call: what a handler does to its task, or ties to it, reaches no other client."""

import asyncio
from contextvars import ContextVar
from typing import Any

import pytest

from http_peer import WAIT, Running, ToyApp, request, serve
from millstream.config import Settings
from millstream.http.message import Handler, Request, Response


def app(**handlers: Handler) -> ToyApp:
    """A server of these handlers, each under its name."""
    return ToyApp({("POST", f"/{name}"): handler for name, handler in handlers.items()}, Settings(), lane=True)


async def ask(running: Running, path: str) -> tuple[int, bytes]:
    """One call of a client of its own."""
    peer = await running.connect()
    await peer.send(request(path=path))
    status, _, body = await peer.reply()
    return status, body


async def test_a_handler_that_cancels_its_task_later_never_touches_the_call_of_another_client() -> None:
    """Fixed: a task served one call after another, so `call_later(…, current_task().cancel)` hit whoever came next."""
    kept: list[asyncio.Task[Any]] = []
    began, go = asyncio.Event(), asyncio.Event()

    async def keep(_request: Request) -> Response:
        task = asyncio.current_task()
        assert task is not None
        kept.append(task)
        return Response(b"kept")

    async def wait(_request: Request) -> Response:
        began.set()
        await go.wait()
        return Response(b"whole")

    async with serve(app(keep=keep, wait=wait), lane=True) as running:
        for _ in range(3):
            assert await ask(running, "/keep") == (200, b"kept")
        waiting = asyncio.create_task(ask(running, "/wait"))
        await asyncio.wait_for(began.wait(), WAIT)
        for task in kept:
            task.cancel()
        await asyncio.sleep(0)
        go.set()
        assert await asyncio.wait_for(waiting, WAIT) == (200, b"whole")


@pytest.mark.parametrize("turns", [0, 1])
async def test_what_is_keyed_by_the_current_task_is_not_shared_between_calls(turns: int) -> None:
    """Libraries do this, such as sessions of a database that are scoped to a task."""
    scoped: dict[asyncio.Task[Any] | None, bytes] = {}

    async def scope(request: Request) -> Response:
        for _ in range(turns):
            await asyncio.sleep(0)
        return Response(scoped.setdefault(asyncio.current_task(), b"%d" % len(scoped)))

    async with serve(app(scope=scope), lane=True) as running:
        assert [await ask(running, "/scope") for _ in range(4)] == [(200, b"%d" % number) for number in range(4)]
        peer = await running.connect()
        for number in range(4, 8):
            await peer.send(request(path="/scope"))
            assert (await peer.reply())[2] == b"%d" % number


class Equal:
    """A value that equals every other of its kind, or refuses to be compared."""

    def __init__(self, owner: bytes, *, raises: bool) -> None:
        self.owner = owner
        self._raises = raises

    def __eq__(self, other: object) -> bool:
        if self._raises:
            raise TypeError("Do not compare this.")
        return True

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.parametrize("raises", [False, True])
async def test_a_context_variable_that_a_call_sets_is_gone_with_the_call(raises: bool) -> None:
    """Fixed: changes were found by ``==``, so an equal value leaked and a comparison that raises broke the connection."""
    current: ContextVar[Equal] = ContextVar("current")
    nobody = Equal(b"nobody", raises=raises)

    async def enter(_request: Request) -> Response:
        before = current.get().owner
        current.set(Equal(b"somebody", raises=raises))
        return Response(before)

    token = current.set(nobody)
    try:
        async with serve(app(enter=enter), lane=True) as running:
            peer = await running.connect()
            for _ in range(4):
                await peer.send(request(path="/enter"))
                assert (await peer.reply())[2] == b"nobody"
            assert await ask(running, "/enter") == (200, b"nobody")
    finally:
        current.reset(token)
