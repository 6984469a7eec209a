import asyncio
import json
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from auth_world import ALICE, BOB, make_server
from behavior.exchanges import Exchange, LaneHttp
from fleet import EventStream, Worker, real_fleet, settle, until
from four_workers import FOUR, NATS, ON_FOUR, ON_OTHERS, SQLITE, connect_to_four
from patience import WAIT
from security.forged_tokens import FORGED, judging
from store_parts import BACKINGS
from wire import LATEST_HANDSHAKE, POST, per_request, request, routing

JSON = {"content-type": "application/json"}
STREAM = {"accept": "text/event-stream"}
BOTH = {**JSON, "accept": "application/json, text/event-stream"}
CALLERS = 20
TURNS = max(12, int(os.environ.get("REPLIES", "0")) * 5 // 4 // CALLERS)
"""REPLIES=100000 makes it a long run."""
PING = json.dumps(request("ping", id=5)).encode()


class Sockets(LaneHttp):
    """Sends each request on a new connection."""

    async def fetch(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Exchange:
        given = {name: value for name, value in (headers or {}).items() if name != "host"}
        return await super().fetch(method, path, given, body)


@asynccontextmanager
async def processes(kind: str) -> AsyncIterator[list[Any]]:
    """Yield the workers of `millstream run`; the kernel selects one for each connection."""
    running = connect_to_four(kind)
    yield [SimpleNamespace(http=Sockets(running))] * 4
    running.drop_connections()


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.server), ON_FOUR, *ON_OTHERS])
async def workers(request: pytest.FixtureRequest) -> AsyncIterator[list[Worker]]:
    """Yield one worker, or several."""
    if request.param in (FOUR, SQLITE, NATS):
        async with processes(request.param) as workers:
            yield workers
        return
    backing = BACKINGS[request.param]()
    async with real_fleet(make_server, backing, 1 if request.param == "memory" else 4) as workers:
        yield workers
    await backing.close()


class Turns:
    """Sends each request to the next worker."""

    def __init__(self, workers: list[Worker]) -> None:
        self._workers = workers
        self._next = 0

    def worker(self) -> Worker:
        self._next += 1
        return self._workers[self._next % len(self._workers)]

    async def ask(self, key: str, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> Any:
        """Return the status, header names, and body of a reply; the body is empty for a stream."""
        given = {**headers, "authorization": f"Bearer {key}"}
        reply = await self.worker().http.fetch(method, path, given, body)
        if reply.streaming and reply.status == 200 and method == "GET":
            reply.close()
            return reply.status, sorted(reply.headers), b""
        return reply.status, sorted(reply.headers), await reply.body()

    async def stream(self, key: str, path: str, headers: dict[str, str]) -> EventStream:
        given = {**headers, **STREAM, "authorization": f"Bearer {key}"}
        return EventStream(await self.worker().http.fetch("GET", path, given))

    async def session(self, key: str) -> dict[str, str]:
        """Return the headers of a new session."""
        about = {"name": "t", "version": "1"}
        params = {"protocolVersion": LATEST_HANDSHAKE, "capabilities": {"elicitation": {}}, "clientInfo": about}
        body = json.dumps(request("initialize", params, 0)).encode()
        reply = await self.worker().http.fetch("POST", "/mcp", {**POST, "authorization": f"Bearer {key}"}, body)
        await reply.body()
        return {"mcp-session-id": reply.headers["mcp-session-id"], "mcp-protocol-version": LATEST_HANDSHAKE}


async def test_sessions_and_events_are_bound_to_their_owner(workers: list[Worker]) -> None:
    turns = Turns(workers)
    alice, bob = await turns.session(ALICE), await turns.session(BOB)
    made_up = {**alice, "mcp-session-id": "Q" * len(alice["mcp-session-id"])}
    params = {"name": "counts", "arguments": {}, "_meta": {"progressToken": 1}}
    call = json.dumps(request("tools/call", params)).encode()
    status, _, said = await turns.ask(ALICE, "POST", "/mcp", {**BOTH, **alice}, call)
    assert status == 200
    last = next(line[4:].decode() for line in said.split(b"\n") if line.startswith(b"id: "))
    for method, body, more in (
        ("POST", PING, BOTH), ("POST", call, BOTH), ("GET", b"", STREAM), ("DELETE", b"", {}),
        ("GET", b"", {**STREAM, "last-event-id": last}),
    ):  # fmt: skip
        for _ in range(len(workers)):
            stolen = await turns.ask(BOB, method, "/mcp", {**more, **alice}, body)
            assert stolen == await turns.ask(BOB, method, "/mcp", {**more, **made_up}, body)
            assert stolen[0] == 404
    foreign = await turns.ask(BOB, "GET", "/mcp", {**STREAM, **bob, "last-event-id": last})
    assert foreign == await turns.ask(BOB, "GET", "/mcp", {**STREAM, **bob, "last-event-id": last[::-1]})
    assert foreign[0] == 400
    assert (await turns.ask(ALICE, "POST", "/mcp", {**BOTH, **alice}, PING))[0] == 200
    resumed = await turns.ask(ALICE, "GET", "/mcp", {**STREAM, **alice, "last-event-id": last})
    assert resumed[0] == 200


async def test_messages_for_foreign_streams_get_404(workers: list[Worker]) -> None:
    turns = Turns(workers)
    stream = await turns.stream(ALICE, "/sse", {})
    await until(lambda: stream.events)
    path = stream.events.pop(0).data
    unknown = path[:-6] + "000000"
    for _ in range(len(workers)):
        stolen = await turns.ask(BOB, "POST", path, JSON, PING)
        assert stolen == await turns.ask(BOB, "POST", unknown, JSON, PING)
        assert stolen[0] == 404
    assert (await turns.ask(ALICE, "POST", path, JSON, PING))[0] == 202
    assert (await stream.until(1))[0]["id"] == 5
    stream.close()


async def test_equal_mailbox_names_are_separate_per_caller(workers: list[Worker]) -> None:
    turns = Turns(workers)
    thief = await turns.stream(BOB, "/mcp/sse/desk", {})
    body, named = b'{"stream":true}', {**JSON, "x-client-id": "desk"}
    assert (await turns.ask(ALICE, "POST", "/tools/counts", named, body))[0] == 200
    owner = await turns.stream(ALICE, "/mcp/sse/desk", {})
    await until(lambda: any('"result"' in event.data for event in owner.events))
    await settle()
    assert not any("result" in event.data or "progress" in event.data for event in thief.events)
    owner.close()
    thief.close()


async def test_questions_are_answered_only_by_their_session(workers: list[Worker]) -> None:
    turns = Turns(workers)
    alice, bob = await turns.session(ALICE), await turns.session(BOB)
    call = json.dumps(request("tools/call", {"name": "asks", "arguments": {}}, 7)).encode()
    given = {**BOTH, **alice, "authorization": f"Bearer {ALICE}"}
    stream = EventStream(await turns.worker().http.fetch("POST", "/mcp", given, call))
    (question,) = await stream.until(1)
    answer = {"jsonrpc": "2.0", "id": question["id"], "result": {"action": "accept", "content": {"n": 6}}}
    body = json.dumps(answer).encode()
    for session, status in ((alice, 404), (bob, 202)):
        for _ in range(len(workers)):
            assert (await turns.ask(BOB, "POST", "/mcp", {**BOTH, **session}, body))[0] == status
    await settle()
    assert len(stream.messages) == 1
    assert (await turns.ask(ALICE, "POST", "/mcp", {**BOTH, **alice}, body))[0] == 202
    assert (await stream.end())[-1]["result"]["content"][0]["text"] == "asked"


async def test_request_state_is_bound_to_its_caller(workers: list[Worker]) -> None:
    turns = Turns(workers)

    async def call(key: str, **more: Any) -> Any:
        params = {"name": "asks", "arguments": {}, **more}
        body = json.dumps(per_request("tools/call", params, elicitation={})).encode()
        return json.loads((await turns.ask(key, "POST", "/mcp", routing("tools/call", "asks"), body))[2])

    asked = (await call(ALICE))["result"]
    (name,) = asked["inputRequests"]
    more = {"requestState": asked["requestState"],
            "inputResponses": {name: {"action": "accept", "content": {"n": 1}}}}  # fmt: skip
    assert (await call(BOB, **more))["error"]["code"] == -32602
    assert (await call(ALICE, **more))["result"]["content"][0]["text"] == "asked"


async def test_replies_never_cross_between_callers(workers: list[Worker]) -> None:
    turns = Turns(workers)
    compared = 0

    async def caller(number: int) -> None:
        nonlocal compared
        key, name = (ALICE, "alice") if number % 2 else (BOB, "bob")
        session = await turns.session(key)
        for turn in range(TURNS):
            body = json.dumps(request("tools/call", {"name": "who", "arguments": {}}, turn)).encode()
            if turn % 5 == 4:
                left = asyncio.ensure_future(turns.ask(key, "POST", "/mcp", {**BOTH, **session}, body))
                await asyncio.sleep(0)
                left.cancel()
                continue
            status, _, said = await turns.ask(key, "POST", "/mcp", {**BOTH, **session}, body)
            reply = json.loads(said)
            assert (status, reply["id"], reply["result"]["content"][0]["text"]) == (200, turn, name)
            compared += 1

    async with asyncio.timeout(WAIT * TURNS):
        await asyncio.gather(*(caller(number) for number in range(CALLERS)))
    assert compared == CALLERS * (TURNS - TURNS // 5)


@pytest.fixture(params=["memory", pytest.param("redis", marks=pytest.mark.server), ON_FOUR])
async def judges(request: pytest.FixtureRequest) -> AsyncIterator[list[Worker]]:
    """Yield one worker that accepts tokens, or four."""
    if request.param == FOUR:
        async with processes(FOUR) as workers:
            yield workers
        return
    backing = BACKINGS[request.param]()
    count = 1 if request.param == "memory" else 4
    async with real_fleet(lambda: make_server(judging()), backing, count) as workers:
        yield workers
    await backing.close()


async def test_forged_tokens_are_rejected_by_every_worker(judges: list[Worker]) -> None:
    turns = Turns(judges)
    for what, forged in FORGED.items():
        for _ in range(len(judges)):
            assert (await turns.ask(forged, "POST", "/mcp", BOTH, PING))[0] in (401, 429), what
