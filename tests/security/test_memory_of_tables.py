"""One caller's share of a table over HTTP, behind a gateway, or in the store takes the memory that is counted."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cases import for_each
from client.misbehaving_servers import ReceivedRequest, misbehaving, with_handshake
from extensions.event_shop import BOB, make_shop, run_shop
from extensions.receiver import run_receiver
from fleet import until
from growth import MIB, measured
from guard_peer import run_guarded_servers
from http_messages import HttpRequest, Response
from http_peer import Peer
from millstream import Context, Principal, Server, Settings
from millstream.protocol import TASKS
from patience import WAIT
from wire import MemoryPipe, Wire, encode_headers, encode_request, per_request, request, routing, run_wire

EVE = Principal("eve")
SECRET = "a key of this test that is long enough"


def make_server(**settings: Any) -> Server:
    return Server("shop", settings=Settings(secret_key=SECRET, **settings))


@asynccontextmanager
async def opened(wire: Wire, data: bytes) -> AsyncIterator[Peer]:
    assert wire.running is not None
    peer = await wire.running.connect(data)
    try:
        yield peer
    finally:
        peer.writer.transport.abort()


async def test_memory_for_http_session_capabilities_matches_the_counted_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._transports.streamable._CAPABILITIES_ROOM", MIB // 2)
    about = {"protocolVersion": "2025-11-25", "clientInfo": {"name": "t", "version": "1"}}
    capabilities = {"experimental": {f"e{number}": {} for number in range(300)}}
    body = json.dumps(request("initialize", {**about, "capabilities": capabilities})).encode()
    size = len(json.dumps(capabilities, separators=(",", ":")))
    async with asyncio.timeout(20), run_wire(make_server(), "asgi") as wire:
        await wire.post(json.loads(body))
        with measured() as growth:
            number = 0
            while number * size < MIB * 5 // 8:  # more than the total, which a single caller may have
                number += 1
                await wire.post(json.loads(body))
        assert growth.bytes < MIB // 2 * 1.25 + number * 2048  # and the sessions themselves


@for_each("path", ["/events?channel=news", "/mcp/sse/ada", "/mcp"])
async def test_open_streams_do_not_keep_the_headers_of_their_request(path: str) -> None:
    server = Server("shop", serve="all", settings=Settings(secret_key=SECRET))
    large = {f"x-{number}": f"{number}" * 1_000 for number in range(10, 40)}
    async with asyncio.timeout(WAIT), run_wire(server, "http") as wire, AsyncExitStack() as stack:
        assert wire.running is not None
        sessions = [await wire.initialize() for _ in range(22)] if path == "/mcp" else [dict[str, str]()] * 22
        usual = {"host": "127.0.0.1", **large, "accept": "text/event-stream"}
        requests = [encode_request("GET", path, encode_headers({**usual, **each}), b"") for each in sessions]

        async def open_stream(data: bytes) -> None:
            peer = await stack.enter_async_context(opened(wire, data))
            assert (await peer.head())[0] == 200

        for data in requests[:2]:
            await open_stream(data)
        with measured() as growth:
            for data in requests[2:]:
                await open_stream(data)
        assert growth.bytes < 20 * 25_000  # the headers have 60,000


async def test_memory_for_incoming_bodies_matches_the_counted_size() -> None:
    length = MIB
    data = encode_request("POST", "/mcp", encode_headers(routing("tools/list")), b"x" * length)[:-1]
    server = make_server(max_incoming_bytes=16 * MIB, max_body=2 * MIB)
    async with asyncio.timeout(20), run_wire(server, "http") as wire, AsyncExitStack() as stack:
        assert wire.running is not None
        unfinished = wire.running.guard.unfinished
        with measured() as growth:
            for number in range(1, 30):
                peer = await stack.enter_async_context(opened(wire, data))
                done = asyncio.ensure_future(peer.reader.read(1))
                stack.callback(done.cancel)
                await until(lambda: done.done() or unfinished.used >= number * (length - 1))  # noqa: B023
                if done.done():
                    break
        assert 6 * MIB < unfinished.used <= 16 * MIB
        assert growth.bytes == pytest.approx(unfinished.used, rel=0.25)


async def test_memory_for_unread_replies_matches_the_counted_size() -> None:
    async def large(_: HttpRequest) -> Response:
        return Response(body=b"x" * 5 * MIB)

    async with asyncio.timeout(20), run_guarded_servers() as start, AsyncExitStack() as stack:
        server = await start({("POST", "/large"): large}, max_outgoing_bytes=16 * MIB)
        unsent = server.guard.unsent
        with measured() as growth:
            for _ in range(6):
                cut, before = server.state.cut, unsent.used
                post = encode_request("POST", "/large", [(b"host", b"127.0.0.1")], b"")
                peer = await server.connect(post, small_buffer=True)
                stack.callback(peer.writer.transport.abort)
                await until(lambda: unsent.used > before or server.state.cut > cut)  # noqa: B023
        assert 0 < unsent.used <= 8 * MIB
        assert growth.bytes < unsent.used * 1.25


async def test_memory_for_parked_calls_matches_the_counted_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._server.calls.parked_calls.MAX_BYTES", 8 * MIB)

    async def behave(asked: ReceivedRequest) -> None:
        server.requests.clear()  # they are in this process, too
        if "error" in asked.message:
            refused.append(asked.message["error"]["message"])
        if asked.method == "tools/list":
            await asked.result({"tools": [{"name": "ask", "inputSchema": {"type": "object"}}]})
            return
        form = {"type": "object", "properties": {"x": {"type": "integer"}}}
        question = {"id": f"q{asked.message['id']}", "params": {"message": "Well?", "requestedSchema": form}}
        asked.body = b""
        await asked.stream()
        await asked.event(json.dumps({"jsonrpc": "2.0", "method": "elicitation/create", **question}).encode())
        await asyncio.Event().wait()

    refused: list[str] = []
    mcp = make_server(max_pending_inputs=1_000)
    params = {"name": "ask", "arguments": {"text": "x" * 200_000}}
    async with asyncio.timeout(20), misbehaving(with_handshake(behave, "s1")) as server:
        mcp.upstream("there", server.url, prefix="", start_timeout=WAIT, timeout=WAIT)
        async with mcp.running() as runtime:
            pipe = MemoryPipe(runtime.dispatcher, principal=EVE)
            body = per_request("tools/call", params, elicitation={"form": {}})

            async def call(number: int) -> None:
                pipe.send(json.dumps({**body, "id": number}).encode())
                assert b"input_required" in await pipe.receive()

            await call(0)  # loads modules
            with measured() as growth:
                for number in range(1, 6):
                    await call(number)
            assert growth.bytes == pytest.approx(5 * 600_000, rel=0.25)
            pipe.send(json.dumps({**body, "id": 6}).encode())
            await until(lambda: refused != [])
            assert "6 of them yours" in refused[0]
            await pipe.close()


@for_each("length", [20_000, 10_000])
async def test_memory_for_running_tasks_matches_the_counted_size_and_their_arguments(length: int) -> None:
    mcp = make_server(max_tasks=200, max_tasks_per_caller=100)

    @mcp.tool(task="required")
    async def work(text: str) -> str:
        await asyncio.Event().wait()
        return text

    async with asyncio.timeout(20), mcp.running() as runtime:
        pipe = MemoryPipe(runtime.dispatcher, principal=EVE)
        body = per_request("tools/call", {"name": "work", "arguments": {"text": "x" * length}}, extensions={TASKS: {}})
        with measured() as growth:
            started, refused = 0, ""
            while not refused:
                pipe.send(json.dumps({**body, "id": started}).encode())
                reply = json.loads(await pipe.receive())
                started += "result" in reply and reply["result"].get("resultType") == "task"
                refused = json.dumps(reply.get("error", ""))[2:-1] or str(reply["result"].get("content", ""))
        assert "100 of your tasks are already running" in refused
        assert started == 100
        stored = runtime.services.store.kv.kinds["taskcall"].shares  # type: ignore[attr-defined]
        (counted,) = stored.values()
        assert growth.bytes == pytest.approx(2 * counted + started * 8192, rel=0.25)
        await pipe.close()


async def test_memory_for_waiting_webhook_deliveries_matches_the_counted_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.extensions.events._outbox.MAX_QUEUED", 16 * MIB)
    async with asyncio.timeout(WAIT), run_receiver(tmp_path) as receiver:

        def refuse(_: object) -> int:
            receiver.messages.clear()  # they're in this process, too
            return 500

        receiver.answer = refuse
        shop = make_shop(private_callbacks=True, tls=receiver.tls, retry_delay=lambda _: 3600.0)
        async with run_shop(shop) as world:
            eve = world.client(BOB)
            start = (await eve.request("events/poll", name="order.noted"))["cursor"]
            for number in range(45):
                await world.events.publish("order.noted", {"order": str(number) + "x" * 200_000})
            outbox = world.events._outbox
            assert outbox is not None
            with measured() as growth:
                for number in range(2):
                    wanted = {"arguments": {"above": number}, "cursor": start}
                    await eve.subscribe(receiver.url(f"/{number}"), receiver.secret(), name="order.noted", **wanted)
                    await until(lambda: outbox.share.used > 4 * MIB and not outbox._running and not outbox._due)
            assert 7.7 * MIB < outbox.share.used <= 8 * MIB
            assert growth.bytes < outbox.share.used * 1.25  # less, because both wait for some of the events


async def test_arguments_of_running_tasks_count_like_those_of_calls() -> None:
    mcp, held = make_server(max_call_bytes=MIB), asyncio.Event()

    @mcp.tool(task="required")
    async def work(objects: list[int]) -> int:
        await held.wait()
        return len(objects)

    async with asyncio.timeout(20), mcp.running() as runtime:
        bodies = runtime.services.bodies
        bodies.maximum, bodies.each = MIB, MIB // 2
        pipe = MemoryPipe(runtime.dispatcher, principal=EVE)
        body = per_request(
            "tools/call", {"name": "work", "arguments": {"objects": [1_000] * 15_000}}, extensions={TASKS: {}}
        )
        ids, refused = list[str](), ""
        while not refused:
            pipe.send(json.dumps({**body, "id": len(ids)}).encode())
            reply = json.loads(await pipe.receive())
            if "error" in reply:
                refused = reply["error"]["message"]
            else:
                ids.append(reply["result"]["taskId"])
        assert refused == "Too many calls are running. Try again later."
        assert 0.8 * bodies.each < bodies.count(EVE.id) <= bodies.each
        other = MemoryPipe(runtime.dispatcher, principal=Principal("ada"))
        other.send(json.dumps(body).encode())
        assert "taskId" in json.loads(await other.receive())["result"]
        pipe.send(json.dumps(per_request("tasks/cancel", {"taskId": ids[0]}, extensions={TASKS: {}})).encode())
        await pipe.receive()
        await until(lambda: bodies.count(EVE.id) < 0.8 * bodies.each)
        pipe.send(json.dumps(body).encode())
        assert "taskId" in json.loads(await pipe.receive())["result"]
        held.set()
        await until(lambda: bodies.used == 0)
        await pipe.close()
        await other.close()


async def test_task_that_resumes_waits_for_room_for_its_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.extensions._calls._RETRY_DELAY", 0.01)
    mcp = make_server(max_call_bytes=MIB)

    @mcp.tool(task="required")
    async def work(text: str, ctx: Context) -> str:
        return f"{await ctx.elicit('How many?', int)} of {len(text)}"

    declared: Any = {"extensions": {TASKS: {}}, "elicitation": {"form": {}}}

    async with asyncio.timeout(20), mcp.running() as runtime:
        pipe = MemoryPipe(runtime.dispatcher, principal=EVE)

        async def ask(method: str, params: Any) -> Any:
            pipe.send(json.dumps(per_request(method, params, **declared)).encode())
            return json.loads(await pipe.receive())["result"]

        async def wait_for(status: str) -> Any:
            while (task := await ask("tasks/get", {"taskId": id}))["status"] != status:  # noqa: ASYNC110
                await asyncio.sleep(0)
            return task

        id = (await ask("tools/call", {"name": "work", "arguments": {"text": "x" * 100_000}}))["taskId"]
        (key,) = (await wait_for("input_required"))["inputRequests"]
        bodies = runtime.services.bodies
        assert bodies.used == 0
        bodies.take("", bodies.maximum)
        answer = {"action": "accept", "content": {"value": 3}}
        await ask("tasks/update", {"taskId": id, "inputResponses": {key: answer}})
        await wait_for("working")
        for _ in range(20):
            assert (await ask("tasks/get", {"taskId": id}))["status"] == "working"
        bodies.leave("", bodies.maximum)
        done = await wait_for("completed")
        assert done["result"]["content"][0]["text"] == "3 of 100000"
        await pipe.close()
