import asyncio
import json

import pytest

from auth_world import ALICE, BOB, make_server
from bad_input.shop import make_shop
from cases import for_each
from fleet import EventStream, Worker, fleet, settle, until
from http_messages import HttpRequest
from millstream import Principal
from millstream.stores import StoreFull
from wire import LATEST_HANDSHAKE, POST, request

JSON = {"content-type": "application/json"}
OPENING = {"protocolVersion": LATEST_HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}


async def connect(worker: Worker, **headers: str) -> tuple[EventStream, str]:
    """An open stream, and the path for messages."""
    stream = EventStream(await worker.http.fetch("GET", "/sse", {"accept": "text/event-stream", **headers}))
    await until(lambda: stream.events)
    return stream, stream.events.pop(0).data


async def say(worker: Worker, path: str, message: object, **headers: str) -> int:
    """The status that a message gets."""
    reply = await worker.http.fetch("POST", path, {**JSON, **headers}, json.dumps(message).encode())
    await reply.body()
    return reply.status


@for_each("turns", [0, 3])
async def test_messages_to_any_worker_are_answered_on_the_stream(turns: int) -> None:
    async with fleet(make_shop, 4, turns=lambda: turns) as workers:
        stream, path = await connect(workers[0])
        assert await say(workers[1], path, request("initialize", OPENING, 0)) == 202
        await stream.until(1)
        for number in range(1, 9):
            sent = request("tools/call", {"name": "add", "arguments": {"a": 0, "b": number}}, number)
            assert await say(workers[number % 4], path, sent) == 202
        messages = await stream.until(9)
        sums = {each["id"]: each["result"]["content"][0]["text"] for each in messages[1:]}
        assert sums == {number: str(number) for number in range(1, 9)}
        stream.close()


async def test_messages_to_one_worker_arrive_in_order() -> None:
    """MCP 2025-11-25, basic/lifecycle."""
    async with fleet(make_shop, turns=lambda: 5) as (first, second):
        stream, path = await connect(first)
        assert await say(second, path, request("initialize", OPENING, 0)) == 202
        assert await say(second, path, {"jsonrpc": "2.0", "method": "notifications/initialized"}) == 202
        assert await say(second, path, request("resources/subscribe", {"uri": "shop://sign"}, 1)) == 202
        assert [each["id"] for each in await stream.until(2)] == [0, 1]
        await second.server.resource_updated("shop://sign")
        assert (await stream.until(3))[-1]["params"] == {"uri": "shop://sign"}
        first.store.miss()  # updates, perhaps
        assert (await stream.until(4))[-1]["params"] == {"uri": "shop://sign"}
        stream.close()


async def test_messages_for_missing_workers_get_404() -> None:
    async with fleet(make_shop) as (first, second):
        _, path = await connect(first)
        await first.die()
        assert await say(second, path, request("ping")) == 404


async def test_invalid_messages_are_rejected_on_arrival() -> None:
    async with fleet(make_shop) as (first, second):
        stream, path = await connect(first)
        second.store.operations.clear()
        reply = await second.http.fetch("POST", path, JSON, b"{")
        assert reply.status == 400
        assert await say(second, "/messages/?session_id=nonsense", request("ping")) == 404
        assert await say(second, path[:-2], request("ping")) == 404
        assert second.store.operations == {}
        stream.close()


async def test_other_callers_sessions_are_not_found() -> None:
    async with fleet(make_shop) as (first, second):
        stream, path = await connect(first)
        second.store.operations.clear()
        handler = second.runtime.serve_http().find("POST", "/messages/")
        assert handler is not None
        head = {b"content-type": b"application/json"}
        stolen = HttpRequest(
            "POST", "/messages/", list(head.items()), head, b'{"jsonrpc":"2.0","id":1,"method":"ping"}',
            path.partition("?")[2].encode(), principal=Principal("mallory"),
        )  # fmt: skip
        reply = await handler(stolen)
        assert reply is not None
        assert reply.status == 404  # type: ignore[union-attr]
        assert second.store.operations == {}
        stream.close()


async def test_store_outage_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*given: object) -> bool:
        raise StoreFull("It is full.")

    async with fleet(make_shop) as (first, second):
        stream, path = await connect(first)
        with monkeypatch.context() as filled:
            filled.setattr(second.store.bus, "send", full)
            assert await say(second, path, request("ping")) == 503
        second.store.down = True
        assert await say(second, path, request("ping")) == 503
        assert await say(first, path, request("initialize", OPENING, 0)) == 202, "its own streams need no store"
        second.store.down = False
        await settle()
        stream.close()


async def test_streams_end_when_their_worker_is_renamed() -> None:
    async with fleet(make_shop) as (first, second):
        stream, _ = await connect(first)
        first.store.sleep()
        first.store.wake()
        await stream.end()
        stream, path = await connect(first)
        assert await say(second, path, request("initialize", OPENING, 0)) == 202
        await stream.until(1)
        stream.close()


@for_each("size", [0, 20_000])
async def test_messages_are_accepted_once_their_worker_has_received_them(size: int) -> None:
    ping = {**request("ping"), "params": {"_meta": {"note": "x" * size}}}
    async with fleet(make_shop) as (first, second):
        stream, path = await connect(first)
        first.store.pause()
        saying = asyncio.create_task(say(second, path, ping))
        await settle()
        assert not saying.done()
        first.store.resume()
        assert await saying == 202
        assert (await stream.until(1))[0]["id"] == 1
        first.store.pause()
        saying = asyncio.create_task(say(second, path, ping))
        await settle()
        first.store.end_lease()
        assert await saying == 404
        stream.close()


@for_each("size", [0, 20_000])
async def test_messages_from_another_owner_do_not_displace_an_answer(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a worker is busy, one owner sends more than its share to it. Another one's answer still arrives."""
    monkeypatch.setattr("millstream._server.peers.MAX_UNRECEIVED", 20 if size else 6)
    note, alice = {"jsonrpc": "2.0", "method": "notifications/x", "params": {"note": "x" * size}}, f"Bearer {ALICE}"
    async with fleet(make_server) as (first, second):
        first.store.core.kv.max_bytes = 8 * size or 10_000  # all workers' large messages
        stream, path = await connect(first, authorization=alice)
        bob = {"authorization": f"Bearer {BOB}", **POST}
        opening = {**OPENING, "capabilities": {"elicitation": {}}}
        opened = await first.post(request("initialize", opening, 0), bob)
        bob["mcp-session-id"] = opened.headers["mcp-session-id"]
        call = EventStream(await first.post(request("tools/call", {"name": "asks", "arguments": {}}, 7), bob))
        (question,) = await call.until(1)
        first.store.pause()
        saying = [asyncio.create_task(say(second, path, note, authorization=alice)) for _ in range(5)]
        await until(lambda: sum(each.done() for each in saying) == 2)
        assert {each.result() for each in saying if each.done()} == {503}
        result = {"action": "accept", "content": {"n": 1}, "_meta": {"note": "x" * size}}
        answering = asyncio.create_task(second.post({"jsonrpc": "2.0", "id": question["id"], "result": result}, bob))
        await settle()
        first.store.resume()
        assert (await answering).status == 202
        assert (await call.end())[-1]["result"]["content"][0]["text"] == "asked"
        assert sorted([await each for each in saying]) == [202, 202, 202, 503, 503]
        assert await say(second, path, note, authorization=alice) == 202, "its share is free again"
        assert not await first.store.core.kv.keys("letter:")
        stream.close()
