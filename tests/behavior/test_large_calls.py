import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

from behavior.links import attach
from cases import for_each
from millstream import Server, Settings
from socket_world import ask, recv_json, send_json, world
from wire import POST, MemoryPipe, Wire, per_request, request, routing, run_wire

BODY = 100_000
SIZE = 60_000
"""Two of one caller don't fit: the budget has room for two bodies of the largest size, and half of it is for one."""

Send = Callable[[Wire, Any, dict[str, str]], Awaitable[int]]


def make_holding_server(serve: Any = ()) -> tuple[Server, asyncio.Event]:
    """Return a server whose tool `hold` runs until the event is set, and the event."""
    settings = Settings(secret_key="k" * 40, max_body=BODY, max_call_bytes=1)
    mcp, release = Server("large", settings=settings, serve=serve), asyncio.Event()

    @mcp.tool
    async def hold(text: str = "") -> int:
        await release.wait()
        return len(text)

    return mcp, release


def arguments(size: int) -> dict[str, Any]:
    return {"name": "hold", "arguments": {"text": "x" * size}}


async def newest(wire: Wire, size: int, session: dict[str, str]) -> int:
    reply = await wire.post(per_request("tools/call", arguments(size)), routing("tools/call", "hold"))
    return reply.message.get("error", {}).get("code", 0)


async def in_session(wire: Wire, size: int, session: dict[str, str]) -> int:
    reply = await wire.post(request("tools/call", arguments(size), size), session)
    return reply.message.get("error", {}).get("code", 0)


async def exact(wire: Wire, size: int, session: dict[str, str]) -> int:
    """Return a call with an accent, so it doesn't take the fast path."""
    body = json.dumps(request("tools/call", arguments(size), f"é{size}"), ensure_ascii=False).encode()
    return (await wire.post(body, session)).message.get("error", {}).get("code", 0)


async def in_batch(wire: Wire, size: int, session: dict[str, str]) -> int:
    headers = await wire.initialize("2025-03-26")
    reply = await wire.post([request("tools/call", arguments(size)), request("ping", id=2)], headers)
    return next(each for each in reply.message if each["id"] == 1).get("error", {}).get("code", 0)


async def by_dialect(wire: Wire, size: int, session: dict[str, str]) -> int:
    reply = await wire.post({"params": arguments(size)}, POST, "/mcp/tools/call")
    return reply.message.get("error", {}).get("code", 0)


async def by_rest(wire: Wire, size: int, session: dict[str, str]) -> int:
    reply = await wire.post({"text": "x" * size}, POST, "/tools/hold")
    return 0 if reply.status == 200 else reply.status


SENDERS: dict[str, tuple[Send, int]] = {
    "2026-07-28": (newest, -31503),
    "a session": (in_session, -32000),
    "the exact way": (exact, -32000),
    "a batch": (in_batch, -32000),
    "the REST dialect": (by_dialect, -32000),
    "plain REST": (by_rest, 503),
}


@for_each("way", ["asgi", "lane"])
@for_each(("send", "busy"), SENDERS.values(), ids=SENDERS)
async def test_large_waiting_calls_are_rejected_above_the_budget(way: str, send: Send, busy: int) -> None:
    mcp, release = make_holding_server(serve=("rest",))
    async with run_wire(mcp, way) as wire:
        session = await wire.initialize()
        dispatcher, bodies = wire.runtime.dispatcher, wire.runtime.services.bodies
        other = Wire(wire.server, wire.runtime, wire.running)
        first = asyncio.create_task(
            other.post(per_request("tools/call", arguments(SIZE)), routing("tools/call", "hold"))
        )
        await wire.until(lambda: len(dispatcher.calls) == 1)
        assert SIZE < bodies.used <= BODY
        held = bodies.used
        assert await send(wire, SIZE, session) == busy
        assert (bodies.used, len(dispatcher.calls)) == (held, 1)
        small = asyncio.create_task(send(wire, 10, session))
        await wire.until(lambda: len(dispatcher.calls) == 2)
        assert bodies.used == held
        release.set()
        assert await small == 0
        assert (await first).status == 200
        assert bodies.used == 0
        assert await send(wire, SIZE, session) == 0
        assert bodies.used == 0


async def test_websocket_calls_count_toward_the_body_budget() -> None:
    async with world(max_body=SIZE, max_call_bytes=1) as app, app.client() as socket:
        await recv_json(socket)
        bodies = app.runtime.services.bodies
        large = {"type": "mcp_call", "tool": "waits", "id": "x" * 40_000}
        await send_json(socket, large)
        await app.until(lambda: len(app.runtime.dispatcher.calls) == 1)
        (call,) = app.runtime.dispatcher.calls
        assert (call.owner, bodies.used > 40_000) == ("127.0.0.1", True)
        answer = await ask(socket, large)
        assert answer["error"]["code"] == -32000
    assert bodies.used == 0


async def test_single_connection_can_use_the_whole_budget() -> None:
    mcp, release = make_holding_server()
    async with mcp.running() as runtime:
        pipe = MemoryPipe(runtime.dispatcher)
        for number in range(4):
            pipe.send(json.dumps(request("tools/call", arguments(SIZE), number)).encode())
        refused = json.loads(await pipe.receive())
        assert (refused["id"], refused["error"]["code"]) == (3, -32000)
        release.set()
        assert {json.loads(await pipe.receive())["id"] for _ in range(3)} == {0, 1, 2}
        assert runtime.services.bodies.used == 0
        await pipe.close()


async def test_unstarted_calls_are_dropped_when_the_connection_closes() -> None:
    mcp, _ = make_holding_server()
    async with mcp.running() as runtime:
        sent: list[bytes] = []

        connection = attach(runtime, sent)
        connection.receive(json.dumps(request("tools/call", arguments(SIZE))).encode())
        assert runtime.dispatcher.by_id
        assert runtime.services.bodies.used > SIZE
        await connection.close()
        assert not runtime.dispatcher.by_id
        assert runtime.services.bodies.used == 0
        assert sent == []


async def test_requests_with_the_same_id_are_counted_separately() -> None:
    mcp, release = make_holding_server()
    async with run_wire(mcp, "asgi") as wire:
        session, bodies = await wire.initialize(), wire.runtime.services.bodies
        message = request("tools/call", arguments(30_000), "same")
        first = asyncio.create_task(wire.post(message, session))
        await wire.until(lambda: len(wire.runtime.dispatcher.calls) == 1)
        held = bodies.used
        second = asyncio.create_task(wire.post(message, session))
        await wire.until(lambda: len(wire.runtime.dispatcher.calls) == 2)
        assert bodies.used >= 2 * held
        release.set()
        assert [(await each).message["id"] for each in (first, second)] == ["same", "same"]
        assert bodies.used == 0


async def test_open_subscriptions_release_their_body_budget() -> None:
    mcp, _ = make_holding_server()
    async with run_wire(mcp, "lane") as wire:
        wire.server.tool(len)
        message = per_request("subscriptions/listen", {"notifications": {"toolsListChanged": True}, "x": "x" * SIZE})
        task = asyncio.create_task(wire.post(message, routing("subscriptions/listen")))
        await wire.until(lambda: len(wire.runtime.services.endings) == 1)
        assert wire.runtime.services.bodies.used == 0
        next(iter(wire.runtime.services.endings))()
        await task
        assert wire.runtime.services.bodies.used == 0
