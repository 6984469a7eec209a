import ast
import asyncio
import sys
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

import millstream
from cases import for_each
from http_messages import Handler, HttpRequest, Response
from http_peer import WAIT, Peer, RunningServer, ToyApp, request, serve
from millstream import Settings


def app(**handlers: Handler) -> ToyApp:
    """A server of these handlers, each under its name."""
    return ToyApp({("POST", f"/{name}"): handler for name, handler in handlers.items()}, Settings())


async def ask(running: RunningServer, path: str) -> tuple[int, bytes]:
    """One call of a client of its own."""
    peer = await running.connect()
    await peer.send(request(path=path))
    status, _, body = await peer.reply()
    return status, body


async def test_late_task_cancellation_never_affects_another_call() -> None:
    kept: list[asyncio.Task[Any]] = []
    began, go = asyncio.Event(), asyncio.Event()

    async def keep(_request: HttpRequest) -> Response:
        task = asyncio.current_task()
        assert task is not None
        kept.append(task)
        return Response(b"kept")

    async def wait(_request: HttpRequest) -> Response:
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


@for_each("turns", [0, 1])
async def test_task_local_state_is_not_shared_between_calls(turns: int) -> None:
    scoped: dict[asyncio.Task[Any] | None, bytes] = {}

    async def scope(request: HttpRequest) -> Response:
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


@for_each("raises", [False, True])
async def test_context_variables_do_not_leak_between_calls(raises: bool) -> None:
    current: ContextVar[Equal] = ContextVar("current")
    nobody = Equal(b"nobody", raises=raises)

    async def enter(_request: HttpRequest) -> Response:
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


@pytest.mark.parametrize("way", ["lane", "asgi"])
@pytest.mark.parametrize(
    "odd", [b"", b"X-Odd:1\r\n", b"Content-Type:application/json\r\n", b"Expect: 100-continue\r\n"]
)
@pytest.mark.parametrize("eager", [False, True])
async def test_user_code_sees_no_internal_exception_context(way: str, odd: bytes, eager: bool) -> None:
    if eager and sys.version_info < (3, 12):
        pytest.skip("This Python has no eager tasks.")

    async def look(_request: HttpRequest) -> Response:
        seen = sys.exc_info()[0]
        try:
            raise ValueError("of the user")
        except ValueError as exc:
            return Response(f"{seen} {exc.__context__}".encode())

    if eager:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
    lane = way == "lane"
    async with serve(ToyApp({("POST", "/look"): look}, Settings()), lane=lane) as running:
        peer = await running.connect()
        for extra in (b"", odd, odd):
            await peer.send(request(path="/look", extra=extra, body=b"{}"))
            status, _, body = await peer.reply() if b"Expect" not in extra else await _after_permission(peer)
            assert (status, body) == (200, b"None None")


async def _after_permission(peer: Peer) -> tuple[int, dict[bytes, bytes], bytes]:
    """A reply, behind the interim one that a peer may get which asked for it."""
    found = await peer.head()
    if found[0] == 100:
        return await peer.reply()
    return *found, await peer.reader.readexactly(int(found[1][b"content-length"]))


AWAITED_IN_EXCEPT = {
    **dict.fromkeys(("hub/_replay.py", "_limits.py"), "asks the store again, or waits for it"),
    "auth/_authorization_server/authorize.py": "shows the form of consent again, for a person who is not signed in",
    "_app/server_process/session_forwarder.py": "closes its connections to a worker that isn't running",
    "hub/_mailbox.py": "saves its position after the gap",
    **dict.fromkeys(("extensions/events/_webhook.py", "extensions/events/_delivery.py"), "deletes a record"),
    "extensions/tasks/_runner.py": "deletes what a refused task has left",
    "_server/calls/parked_calls.py": "waits for the end of a canceled call, which runs in a task of its own",
    "_server/calls/session_state.py": "gives its lease back before the user's own error goes on",
    "_server/calls/pending_questions.py": "writes a message to the client, which no code of the user sees",
}
"""Where no code of a user can be reached."""
WITHOUT_USER_CODE = {"_cli", "_gateway", "_stores", "agent", "client"}
"""Packages that run nothing of a server's."""


@pytest.mark.check
def test_no_await_inside_an_except_block() -> None:
    root = Path(millstream.__file__ or "").parent
    found = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if path.relative_to(root).parts[0] not in WITHOUT_USER_CODE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ExceptHandler)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Await | ast.AsyncWith | ast.AsyncFor)
    }
    assert found == AWAITED_IN_EXCEPT.keys()
