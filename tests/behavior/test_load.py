import asyncio
import json
from typing import Any

import pytest
from msgspec.structs import replace

from bad_input.shop import make_shop
from cases import for_each
from millstream import Context, Server
from millstream._http.message import HttpRequest
from millstream._protocol.errors import ProtocolError
from millstream._protocol.revisions import NEWEST_HANDSHAKE
from millstream._server.calls.sessions import Session
from millstream._transports.connection import ClientConnection
from millstream._transports.open_streams import silent_call
from millstream._transports.streamable import HttpSessions
from patience import WAIT
from wire import (
    LATEST_HANDSHAKE,
    POST,
    Reply,
    Wire,
    ask_asgi,
    encode_headers,
    encode_request,
    per_request,
    request,
    routing,
    run_wire,
)

PEER = HttpRequest("DELETE", "/mcp", (), {})
HELD = {"name": "hold", "arguments": {}}


def make_holding_server(**settings: Any) -> tuple[Server, asyncio.Event, list[str]]:
    """A server whose tool `hold` runs until the event is set, and a journal of how its calls ended."""
    mcp, release, journal = make_shop(**settings), asyncio.Event(), list[str]()

    @mcp.tool
    async def hold() -> str:
        """Wait."""
        try:
            await release.wait()
        except asyncio.CancelledError:
            journal.append("cancelled")
            raise
        return "released"

    @mcp.tool
    async def insist(ctx: Context) -> str:
        """Ask."""
        return json.dumps(await ctx.elicit("How many?", {"type": "object", "properties": {"n": {"type": "integer"}}}))

    return mcp, release, journal


async def test_sessionless_calls_end_with_their_connection() -> None:
    mcp, _, journal = make_holding_server()
    async with run_wire(mcp, "lane") as wire:
        assert wire.running is not None
        for headers in (POST, {**POST, "accept": "application/json"}, {**POST, "x-odd": "é"}):
            before = len(journal)
            peer = await wire.running.connect()
            await peer.send(
                encode_request(
                    "POST", "/mcp", encode_headers(headers), json.dumps(request("tools/call", HELD)).encode()
                )
            )
            await wire.until(lambda: len(wire.runtime.dispatcher.calls) == 1)
            peer.close()
            await wire.until(lambda: not wire.runtime.dispatcher.calls)
            assert len(journal) == before + 1


async def test_session_calls_outlive_their_connection() -> None:
    """https://modelcontextprotocol.io/specification/2025-11-25/basic/transports"""
    mcp, release, journal = make_holding_server()
    async with run_wire(mcp, "lane") as wire:
        headers = await wire.initialize()
        assert wire.running is not None
        peer = await wire.running.connect()
        await peer.send(
            encode_request("POST", "/mcp", encode_headers(headers), json.dumps(request("tools/call", HELD)).encode())
        )
        await wire.until(lambda: len(wire.runtime.dispatcher.calls) == 1)
        peer.close()
        await wire.until(lambda: not wire.running.state.connections or len(wire.running.state.connections) == 1)
        assert (len(wire.runtime.dispatcher.calls), journal) == (1, [])
        release.set()
        await wire.until(lambda: not wire.runtime.dispatcher.calls)


async def hold(wire: Wire, count: int, headers: dict[str, str]) -> list[asyncio.Task[Any]]:
    """Calls in flight."""
    before = len(wire.runtime.dispatcher.calls)
    tasks = [asyncio.create_task(wire.post(request("tools/call", HELD, n), headers)) for n in range(count)]
    await wire.until(lambda: len(wire.runtime.dispatcher.calls) == before + count)
    return tasks


async def test_one_caller_gets_at_most_half_of_the_calls() -> None:
    mcp, release, _ = make_holding_server(max_calls=8)
    async with run_wire(mcp, "asgi") as wire:
        headers = await wire.initialize()
        tasks = await hold(wire, 4, headers)
        refused = await wire.post(request("tools/list", id=9), headers)
        assert (refused.status, refused.headers[b"retry-after"]) == (503, b"1")
        assert refused.message["error"]["code"] == -32000
        listing, fields = json.dumps(request("tools/list", id=9)).encode(), encode_headers(headers)
        assert (await ask_asgi(mcp, "POST", "/mcp", fields, listing, peer="192.0.2.1")).status == 200
        release.set()
        await asyncio.gather(*tasks)


async def test_overload_code_is_outside_the_reserved_range() -> None:
    """https://modelcontextprotocol.io/specification/2026-07-28/basic: new code does not use -32000."""
    mcp, release, _ = make_holding_server(max_calls=1)
    async with run_wire(mcp, "asgi") as wire:
        headers = await wire.initialize()
        tasks = await hold(wire, 1, headers)
        refused = await wire.post(per_request("tools/list"), routing("tools/list"))
        assert refused.error == (503, -31503, 1)
        release.set()
        await asyncio.gather(*tasks)


async def test_calls_waiting_for_their_session_count_toward_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, go, find = asyncio.Semaphore(0), asyncio.Event(), HttpSessions.find

    async def find_late(self: HttpSessions, request: HttpRequest, address: str) -> Session:
        waiting.release()
        await go.wait()
        return await find(self, request, address)

    mcp, release, _ = make_holding_server(max_calls=4)
    async with run_wire(mcp, "asgi") as wire:
        headers = await wire.initialize()
        monkeypatch.setattr(HttpSessions, "find", find_late)
        tasks = [asyncio.create_task(wire.post(request("tools/call", HELD, n), headers)) for n in range(5)]
        async with asyncio.timeout(WAIT):
            for _ in tasks:
                await waiting.acquire()
        go.set()
        await wire.until(lambda: sum(task.done() for task in tasks) + len(wire.runtime.dispatcher.calls) == 5)
        release.set()
        replies = await asyncio.gather(*tasks)
        assert sorted(reply.status for reply in replies) == [200, 200, 503, 503, 503]


@for_each("way", ["asgi", "lane"])
async def test_full_server_accepts_answers_and_cancellations(way: str) -> None:
    mcp, _, _ = make_holding_server(max_calls=2)
    async with run_wire(mcp, way) as wire:
        headers = await wire.initialize(capabilities={"elicitation": {}})
        open_questions = wire.runtime.services.questions._open
        call = request("tools/call", {"name": "insist"}, "first")
        if wire.running is None:
            asking = asyncio.create_task(wire.post(call, headers))
        else:
            peer = await wire.running.connect()
            await peer.send(encode_request("POST", "/mcp", encode_headers(headers), json.dumps(call).encode()))
            asking = asyncio.create_task(peer.reply())
        await wire.until(lambda: len(open_questions) == 1)
        assert (await wire.post(request("tools/list", id=2), headers)).status == 503
        (question,) = open_questions
        answer = {"jsonrpc": "2.0", "id": question, "result": {"action": "accept", "content": {"n": 3}}}
        assert (await wire.post(answer, headers)).status == 202
        cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "first"}}
        assert (await wire.post(cancel, headers)).status == 202
        await asking


@for_each("way", ["asgi", "lane"])
async def test_full_server_answers_pings(way: str) -> None:
    mcp, release, _ = make_holding_server(max_calls=1)
    async with run_wire(mcp, way) as wire:
        headers, batches = await wire.initialize(), await wire.initialize("2025-03-26")
        calls = wire.runtime.dispatcher.calls
        held: list[Any] = []
        for number in range(1):
            if wire.running is None:
                held.append(asyncio.create_task(wire.post(request("tools/call", HELD, number), headers)))
            else:
                peer = await wire.running.connect()
                body = json.dumps(request("tools/call", HELD, number)).encode()
                await peer.send(encode_request("POST", "/mcp", encode_headers(headers), body))
                held.append(peer)
        await wire.until(lambda: len(calls) == 1)
        refused = await wire.post(request("tools/list", id=3), headers)
        answered = await wire.post(request("ping", id=4), headers)
        assert (refused.status, answered.status, answered.message["result"]) == (503, 200, {})
        both = (await wire.post([request("ping", id=5), request("tools/list", id=6)], batches)).message
        assert {each["id"]: "result" in each for each in both} == {5: True, 6: False}
        release.set()


async def test_full_server_answers_pings_on_a_connection() -> None:
    mcp, release, _ = make_holding_server(max_calls=1)
    async with mcp.running() as runtime:
        sent = list[bytes]()

        async def drain() -> None:
            """Do nothing, because no data is buffered."""

        connection = ClientConnection(runtime.dispatcher, lambda message: not sent.append(message), drain)
        opening = {"protocolVersion": LATEST_HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        connection.receive(json.dumps(request("initialize", opening, 1)).encode())
        connection.receive(json.dumps(request("tools/call", HELD, 2)).encode())
        while not runtime.dispatcher.calls:  # noqa: ASYNC110  no event signals it
            await asyncio.sleep(0)
        for number, method in ((3, "tools/list"), (4, "ping")):
            connection.receive(json.dumps(request(method, id=number)).encode())
        while len(sent) < 3:  # noqa: ASYNC110
            await asyncio.sleep(0)
        answers = {each["id"]: each for each in map(json.loads, sent)}
        assert (answers[3]["error"]["code"], answers[4]["result"]) == (-32000, {})
        release.set()
        await connection.close()


async def test_waiting_pings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._server.control.SPARE", 2)
    mcp, _, _ = make_holding_server(max_calls=1)
    async with mcp.running() as runtime:
        load = runtime.dispatcher.load
        asking = HttpRequest("POST", "/mcp", (), {}, peer="192.0.2.1")
        calls: list[Any] = []
        for _ in range(3):
            load.admit(asking, "ping")
            call = silent_call(NEWEST_HANDSHAKE, "ping", b"", origin=asking, transport="http")
            calls.append(call)
            runtime.dispatcher.calls.add(call)
        with pytest.raises(ProtocolError, match="Too many calls"):
            load.admit(asking, "ping")
        runtime.dispatcher.calls.clear()


async def test_one_caller_gets_at_most_half_of_the_open_questions() -> None:
    mcp, _, _ = make_holding_server(max_pending_inputs=4)
    async with run_wire(mcp, "asgi") as wire:
        headers = await wire.initialize(capabilities={"elicitation": {}})
        open_questions = wire.runtime.services.questions._open

        async def ask(id: int, peer: str) -> Reply:
            body = json.dumps(request("tools/call", {"name": "insist"}, id)).encode()
            return await ask_asgi(mcp, "POST", "/mcp", encode_headers(headers), body, peer=peer)

        asking = [asyncio.create_task(ask(id, "127.0.0.1")) for id in (1, 2)]
        await wire.until(lambda: len(open_questions) == 2)
        assert b"Too many questions are open, 2 of them yours." in (await ask(3, "127.0.0.1")).body
        asking.append(asyncio.create_task(ask(4, "192.0.2.1")))
        await wire.until(lambda: len(open_questions) == 3)
        assert (await wire.ask("DELETE", "/mcp", headers)).status == 204
        await asyncio.gather(*asking)
        assert not open_questions
        headers = await wire.initialize(capabilities={"elicitation": {}})
        again = asyncio.create_task(ask(5, "127.0.0.1"))
        await wire.until(lambda: len(open_questions) == 1)
        again.cancel()
        await asyncio.wait([again])


async def test_ended_sessions_from_one_address_do_not_affect_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._transports.streamable.MAX_DELETES", 1)
    async with run_wire(make_shop(), "asgi") as wire:
        sessions = [await wire.initialize() for _ in range(3)]
        assert (await wire.ask("DELETE", "/mcp", sessions[0])).status == 204
        assert (await wire.ask("DELETE", "/mcp", sessions[1])).status == 503
        elsewhere = replace(PEER, peer="192.0.2.1", headers=dict(encode_headers(sessions[1])))
        delete: Any = wire.runtime.serve_http().find("DELETE", "/mcp")
        assert (await delete(elsewhere)).status == 204


async def test_finished_calls_release_their_slot_immediately() -> None:
    mcp, release, _ = make_holding_server(max_calls=20)
    async with run_wire(mcp, "asgi") as wire:
        headers = await wire.initialize()
        tasks = await hold(wire, 9, headers)
        for call in wire.runtime.dispatcher.calls:
            assert call.origin is not None
            call.origin.peer = "192.0.2.1"
        tasks += await hold(wire, 3, await wire.initialize())
        for number in range(50):
            assert (await wire.post(request("tools/list", id=number), headers)).status == 200
        release.set()
        await asyncio.gather(*tasks)


@for_each("way", ["asgi", "lane"])
async def test_canceled_call_that_returns_gets_no_response(way: str) -> None:
    mcp, started = make_shop(), asyncio.Event()

    @mcp.tool
    async def stubborn() -> str:
        """Go on."""
        try:
            started.set()
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "done anyway"
        return ""

    async with run_wire(mcp, way) as wire:
        headers = await wire.initialize()
        message = json.dumps(request("tools/call", {"name": "stubborn"}, 7)).encode()
        if wire.running is None:
            asked = asyncio.create_task(wire.ask("POST", "/mcp", headers, message))
        else:
            peer = await wire.running.connect()
            await peer.send(encode_request("POST", "/mcp", encode_headers(headers), message))
        await started.wait()
        cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}
        assert (await wire.post(cancel, headers)).status == 202
        body = (await asked).body if wire.running is None else (await peer.reply())[2]
        assert b"done anyway" not in body
