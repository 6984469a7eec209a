import asyncio
import contextlib
import json
from collections.abc import MutableMapping
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from cases import for_each
from fleet import until
from millstream._http.message import HttpRequest
from millstream._http.websocket import GOING_AWAY, SLOW, TRY_AGAIN_LATER, AsgiSocket
from millstream._protocol.sse import COMMENT
from millstream._transports.websocket import carry
from millstream.hub import HubLimits
from socket_world import GATES, TEXT, TRANSPORTS, WAIT, World, ask, frame, recv_json, send_json, wait_for_close, world
from wire import LATEST_HANDSHAKE, per_request, request

EVENT = "x" * 200_000
INITIALIZE = {
    "protocolVersion": LATEST_HANDSHAKE,
    "capabilities": {"elicitation": {}},
    "clientInfo": {"name": "t", "version": "1"},
}


class HeldSend:
    """An ASGI `send` of a peer that reads when it is let."""

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.reads = asyncio.Event()
        self.gone = False

    async def __call__(self, message: MutableMapping[str, Any]) -> None:
        """Take a message, once the peer reads."""
        await self.reads.wait()
        if self.gone:
            raise OSError("gone")
        self.sent.append(message.get("text") or (message["code"], message["reason"]))


HANDSHAKE = HttpRequest("GET", "/ws", (), {})


async def receive_nothing() -> Any:
    """An ASGI `receive` that nothing may wait for."""
    raise AssertionError


async def silence() -> None:
    """The reading from a peer that says nothing."""
    await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def held_outbox(limit: int = 1000, grace: float = WAIT) -> Any:
    """An outbox whose first message is held up by its peer."""
    send = HeldSend()
    outbox = AsgiSocket(receive_nothing, send, request=HANDSHAKE, limit=limit, grace=grace)
    writer = asyncio.create_task(outbox.run(silence()))
    outbox.write(b"held")
    await until(lambda: outbox._held)
    yield outbox, send, writer
    send.reads.set()
    outbox.connection_lost()
    await asyncio.wait_for(writer, WAIT)


async def slow_reader(app: World) -> Any:
    """A subscriber that takes nothing after its subscription."""
    socket = await app.raw(small_buffer=True)
    await socket.send(frame(TEXT, b'{"type":"subscribe"}'))
    assert [(await socket.message())["type"] for _ in range(2)] == ["position", "subscribed"]
    return socket


async def publish_until_cut(app: World, listener: Any) -> None:
    """Publish, with one listener that takes everything in order, until the other is cut."""
    for n in range(200):
        await app.hub.publish("broadcast", EVENT, id=f"n{n}")
        while (message := await recv_json(listener))["type"] != "event":
            pass
        assert message["id"] == f"n{n}"
        if app.hub.stats().disconnected:
            return
    raise AssertionError("nobody was cut")


@for_each("way", TRANSPORTS)
async def test_slow_readers_are_closed_with_a_reason(way: str) -> None:
    async with world(way, limits=HubLimits(max_buffered=400_000)) as app, app.client(max_size=None) as listener:
        await send_json(listener, {"type": "subscribe"})
        slow = await slow_reader(app)
        await publish_until_cut(app, listener)
        assert app.hub.stats().disconnected == {"slow": 1}
        assert len(app.runtime.streams) == 1
        assert await slow.wait_for_close() == (TRY_AGAIN_LATER, SLOW)
        assert (await app.hub.publish("broadcast", "more")).subscribers == 1
        assert (await recv_json(listener))["data"] == "more"


async def test_stalled_readers_are_dropped() -> None:
    limits = HubLimits(max_buffered=400_000)
    async with world(limits=limits, write_timeout=0.05) as app, app.client(max_size=None) as listener:
        await send_json(listener, {"type": "subscribe"})
        await slow_reader(app)
        await publish_until_cut(app, listener)
        await app.until(lambda: len(app.running.state.connections) == 1)


@pytest.mark.many
@for_each("way", TRANSPORTS)
async def test_pipelined_requests_are_all_answered(way: str) -> None:
    async with world(way) as app:
        socket = await app.raw(small_buffer=True)
        call = b'{"type":"mcp_call","tool":"text","arguments":{"size":300000},"id":%d}'
        done: list[int] = []
        app.runtime.dispatcher.observe = lambda call, seconds, answer: done.append(len(answer))
        await socket.send(*(frame(TEXT, call % n) for n in range(60)))
        await app.until(lambda: bool(done))
        answers = [await socket.message() for _ in range(60)]
        assert sorted(answer["id"] for answer in answers) == list(range(60))
        assert {len(answer["result"]["content"][0]["text"]) for answer in answers} == {300_000}


async def test_bytes_that_wait_for_the_event_loop_do_not_make_a_reader_slow() -> None:
    send = HeldSend()
    send.reads.set()
    outbox = AsgiSocket(receive_nothing, send, request=HANDSHAKE, limit=10, grace=WAIT)
    assert all(outbox.write(b"x" * 1000) for _ in range(50))
    assert outbox.buffered == 0
    outbox.end(1000)
    await asyncio.wait_for(outbox.run(silence()), WAIT)
    assert send.sent == ["x" * 1000] * 50 + [(1000, "")]


async def test_queue_behind_a_held_message_is_bounded() -> None:
    async with held_outbox(limit=1000) as (outbox, send, writer):
        ended: list[str] = []
        outbox.on_close(lambda: ended.append("outbox"))
        accepted = [outbox.write(b"x" * 400) for _ in range(4)]
        assert accepted == [True, True, True, False]
        assert outbox.closed
        assert ended == ["outbox"]
        assert not outbox.write(b"late")
        send.reads.set()
        await asyncio.wait_for(writer, WAIT)
        assert send.sent == ["held", (TRY_AGAIN_LATER, SLOW)]


async def test_replies_and_questions_do_not_count_as_backlog() -> None:
    async with held_outbox(limit=1000) as (outbox, _, _):
        for message in (b'{"jsonrpc":"2.0","id":1,"result":{}}', b'{"jsonrpc":"2.0","id":1,"method":"ping"}', b"[]"):
            assert all(carry(outbox, message + b" " * 400) for _ in range(10))
        assert outbox.buffered == 0
        change = b'{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}' + b" " * 400
        assert [carry(outbox, change) for _ in range(4)] == [True, True, True, False]


async def test_drain_waits_for_the_peer() -> None:
    async with held_outbox(limit=2**20) as (outbox, send, _):
        outbox.write(b"x" * 100_000)
        waiting = asyncio.create_task(outbox.drain())
        await asyncio.sleep(0)
        assert not waiting.done()
        send.reads.set()
        await asyncio.wait_for(waiting, WAIT)
        assert send.sent == ["held", "x" * 100_000]


@for_each("fails", [True, False])
async def test_disconnect_during_a_write_ends_the_outbox(fails: bool) -> None:
    async with held_outbox(grace=0.01) as (outbox, send, writer):
        if fails:
            send.gone = True
            send.reads.set()
        else:
            outbox.end(1000)
        await asyncio.wait_for(writer, WAIT)
        assert outbox.closed
        await asyncio.wait_for(outbox.wait_closed(), WAIT)
        assert send.sent == []


async def test_hub_closes_slow_readers_with_a_different_code_than_others() -> None:
    async with held_outbox() as (outbox, send, writer):
        outbox.write(b'{"a":1}')
        assert outbox.buffered == 7
        outbox.close()
        outbox.write(b"late")
        send.reads.set()
        await asyncio.wait_for(writer, WAIT)
        assert send.sent[-1] == (TRY_AGAIN_LATER, SLOW)
    async with held_outbox() as (outbox, send, writer):
        outbox.close()
        send.reads.set()
        await asyncio.wait_for(writer, WAIT)
        assert send.sent == ["held", (GOING_AWAY, "")]


# Stopping


@for_each("way", TRANSPORTS)
async def test_stopping_server_replies_before_closing(way: str) -> None:
    async with world(way) as app, app.client() as busy, app.client("mcp") as idle:  # type: ignore[arg-type]
        await recv_json(busy)
        await send_json(busy, {"type": "mcp_call", "tool": "waits", "id": 1})
        await app.until(lambda: len(app.runtime.dispatcher.calls) == 1)
        draining = asyncio.create_task(app.runtime.drain(WAIT))
        await asyncio.sleep(0)
        GATES[app.server].set()
        await asyncio.wait_for(draining, WAIT)
        await asyncio.wait_for(app.route.close(WAIT), WAIT)
        assert (await recv_json(busy))["result"]["content"][0]["text"] == "through"
        assert await wait_for_close(busy) == (GOING_AWAY, "The server is stopping")
        assert await wait_for_close(idle) == (GOING_AWAY, "The server is stopping")
        with pytest.raises(InvalidStatus) as refused:
            async with app.client():
                pass
        assert refused.value.response.status_code == 503


@for_each("way", TRANSPORTS)
async def test_calls_that_outlast_shutdown_are_answered_before_closing(way: str) -> None:
    stopped = "The server stopped before the call was complete. Try again."
    async with world(way) as app, app.client() as plain, app.client("mcp") as mcp:  # type: ignore[arg-type]
        await recv_json(plain)
        await send_json(plain, {"type": "mcp_call", "tool": "forever", "id": 1})
        await send_json(mcp, request("initialize", INITIALIZE, 0))
        assert (await recv_json(mcp))["id"] == 0
        await send_json(mcp, request("tools/call", {"name": "name"}, 2))
        asked = await recv_json(mcp)
        await app.until(lambda: len(app.runtime.dispatcher.calls) == 2)
        await app.runtime.drain(0)
        assert (await recv_json(plain))["error"] == {"code": -32000, "message": stopped}
        cancelled, answer = [await recv_json(mcp) for _ in range(2)]
        assert (cancelled["method"], cancelled["params"]["requestId"]) == ("notifications/cancelled", asked["id"])
        assert (answer["id"], answer["error"]["message"]) == (2, stopped)
        assert (await wait_for_close(plain))[0] == (await wait_for_close(mcp))[0] == GOING_AWAY


@for_each("way", TRANSPORTS)
async def test_subscriptions_on_an_expired_socket_end_with_results(way: str) -> None:
    """MCP 2026-07-28, subscriptions."""
    async with world(way) as app, app.client("mcp") as socket:  # type: ignore[arg-type]
        for n in (7, 8):
            listen = per_request("subscriptions/listen", {"notifications": {"toolsListChanged": True}}, n)
            await send_json(socket, listen)
            assert (await recv_json(socket))["method"] == "notifications/subscriptions/acknowledged"
        await app.until(lambda: len(app.runtime.services.endings) == 2)
        app.runtime.streams.max_age = -1.0
        app.runtime.streams.beat()
        told = [await recv_json(socket) for _ in range(4)]
        assert {each["id"] for each in told if "result" in each} == {7, 8}
        cancelled = {each["params"]["requestId"] for each in told if each.get("method") == "notifications/cancelled"}
        assert cancelled == {7, 8}
        assert (await wait_for_close(socket))[0] == GOING_AWAY


@for_each("way", TRANSPORTS)
async def test_expired_sockets_are_closed_with_a_reason(way: str) -> None:
    async with world(way, max_stream_seconds=1e-6) as app, app.client() as socket:
        await recv_json(socket)
        app.runtime.streams.beat()
        code, reason = await wait_for_close(socket)
        assert code == GOING_AWAY
        assert (
            reason
            == "The connection reached its maximum age (max_stream_seconds). Reconnect, and resume with the last id."
        )


async def test_canceled_socket_task_closes_with_1001() -> None:
    async with world() as app:
        socket = await app.raw()
        (task,) = app.route._sockets.values()
        assert task is not None
        task.cancel()
        assert await socket.wait_for_close() == (GOING_AWAY, "The server is stopping")


async def test_handshake_at_a_stopping_server_is_rejected() -> None:
    async with world() as app:
        await app.route.close(WAIT)
        peer = await app.handshake()
        status, _, body = await peer.reply()
        assert (status, body) == (503, b"The server is stopping. Connect again in a few seconds.\n")


async def test_heartbeats_are_not_sent_as_messages() -> None:
    async with world() as app, app.client() as socket:
        await recv_json(socket)
        app.runtime.streams.beat()
        assert COMMENT
        assert (await ask(socket, {"type": "ping"}))["type"] == "pong"


async def test_internal_failure_closes_with_1011(monkeypatch: pytest.MonkeyPatch) -> None:

    async def broken(*args: Any, **options: Any) -> Any:
        raise ConnectionError("the secret address of the store")

    async with world() as app, app.client() as socket:
        monkeypatch.setattr(app.hub, "publish", broken)
        await recv_json(socket)
        await send_json(socket, {"type": "publish", "data": 1})
        assert await wait_for_close(socket) == (1011, "Internal error")


# Other ASGI servers


async def in_process(app: World, *given: Any, extensions: Any = None, **headers: str) -> list[Any]:
    """Run the route on messages of a server that bounds nothing itself; what it sends."""
    inbox: asyncio.Queue[Any] = asyncio.Queue()
    for message in ({"type": "websocket.connect"}, *given):
        inbox.put_nowait(message)
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    fields = [(name.encode(), value.encode()) for name, value in {"host": "127.0.0.1", **headers}.items()]
    scope = {"type": "websocket", "path": "/ws", "headers": fields, "subprotocols": [], "extensions": extensions}
    await asyncio.wait_for(app(scope, inbox.get, send), WAIT)
    return sent


async def test_rejection_without_the_response_extension_closes_the_socket() -> None:
    async with world() as app:
        assert await in_process(app, origin="https://evil.example") == [{"type": "websocket.close", "code": 1008}]
        start, body = await in_process(app, origin="https://evil.example", extensions={"websocket.http.response": {}})
        assert (start["type"], start["status"]) == ("websocket.http.response.start", 403)
        assert b"evil.example" in body["body"]


async def test_oversized_message_closes_with_1009_under_any_server() -> None:
    async with world() as app:
        large = {"type": "websocket.receive", "text": " " * (2**20 + 1)}
        accepted, hello, close = await in_process(app, large)
        assert (accepted["type"], json.loads(hello["text"])["type"]) == ("websocket.accept", "connected")
        assert (close["type"], close["code"]) == ("websocket.close", 1009)


async def test_disconnect_before_accept_leaves_nothing_behind() -> None:

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        raise OSError("gone")

    async with world() as app:
        scope = {"type": "websocket", "path": "/ws", "headers": [(b"host", b"127.0.0.1")]}
        await asyncio.wait_for(app(scope, receive, send), WAIT)
        assert len(app.runtime.streams) == 0
        assert not app.route._sockets
