"""Session hijacking (CVE-2026-52869, CVE-2026-33946): other principals can't use a session id on any transport."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from auth_world import ALICE, BOB
from bad_input.shop import make_shop
from cases import for_each
from four_workers import ADMIN_KEY, FOUR, ON_FOUR, connect_to_four
from http_peer import Peer, RunningServer, ToyApp, serve
from millstream import Server
from millstream._app.runtime import Runtime
from millstream._http.message import HttpRequest
from millstream._protocol.principal import Principal
from millstream._transports.http_sse import HttpSse
from millstream._transports.streamable import HttpSessions, StreamableEndpoint
from millstream._transports.streamable.get import SessionStreams
from millstream._transports.streamable.post import Streamable
from stub_auth import protect
from wire import LATEST_HANDSHAKE, POST, Reply, encode_headers, encode_request, request

PING = json.dumps(request("ping", id=5)).encode()
FORGED = "Q" * 120


async def authenticate(request: HttpRequest) -> Principal | None:
    """Identify the caller by the header `x-user`."""
    user = request.headers.get(b"x-user")
    return None if user is None else Principal(user.decode())


class Front:
    """A server that identifies its callers."""

    def __init__(
        self, server: Server, runtime: Runtime, running: RunningServer, keys: dict[str, str] | None = None
    ) -> None:
        self.server = server
        self.runtime = runtime
        self.running = running
        self.keys = keys
        """User -> API key; without keys, the header `x-user` identifies users."""

    async def ask(self, user: str, method: str, path: str, body: bytes = b"", **headers: str) -> Reply:
        """Send a request of a user on a new connection, and return the reply."""
        peer = await self.send(user, method, path, body, **headers)
        reply = Reply(*await peer.reply())
        peer.close()
        return reply

    async def send(self, user: str, method: str, path: str, body: bytes = b"", **headers: str) -> Peer:
        """Send a request of a user; the caller reads the reply."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        who = {"x-user": user} if user else {}
        if self.keys is not None:
            who = {"authorization": f"Bearer {self.keys[user]}"}
        peer = await self.running.connect()
        await peer.send(encode_request(method, path, encode_headers({**POST, **who, **given}), body))
        return peer

    async def initialize(self, user: str) -> str:
        """Return the id of a new session."""
        params = {"protocolVersion": LATEST_HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
        reply = await self.ask(user, "POST", "/mcp", json.dumps(request("initialize", params)).encode())
        return reply.headers[b"mcp-session-id"].decode()


@asynccontextmanager
async def fronted(way: str = "lane") -> AsyncIterator[Front]:
    """Yield one server with authentication, or a server with four workers."""
    if way == FOUR:
        running, missing = connect_to_four(), cast("Any", None)
        yield Front(missing, missing, running, {"alice": ALICE, **dict.fromkeys(THIEVES, BOB), "": ADMIN_KEY})
        running.drop_connections()
        return
    shop = make_shop()
    async with shop.running() as runtime:
        dispatcher, streams = runtime.dispatcher, runtime.streams
        endpoint = StreamableEndpoint(dispatcher, streams, HttpSessions(runtime.services))
        streamable = Streamable(endpoint)
        standing = SessionStreams(endpoint)
        legacy = HttpSse(dispatcher, streams)
        handlers: dict[tuple[str, str], Any] = {
            ("POST", "/mcp"): streamable.post, ("GET", "/mcp"): standing.get, ("DELETE", "/mcp"): standing.delete,
            ("GET", "/sse"): legacy.get, ("POST", "/messages/"): legacy.post,
        }  # fmt: skip
        routes = {place: protect(handler, authenticate) for place, handler in handlers.items()}
        async with serve(ToyApp(routes, runtime.services.settings), lane=True) as running:
            yield Front(shop, runtime, running)


THIEVES = ["bob", "", "alice ", "Alice", "alic"]


@pytest.mark.parametrize("way", ["lane", ON_FOUR])
@for_each("thief", THIEVES)
async def test_stolen_session_ids_are_treated_as_unknown(thief: str, way: str) -> None:
    async with fronted(way) as front:
        session = await front.initialize("alice")
        for method, body in (("POST", PING), ("GET", b""), ("DELETE", b"")):
            accept = "text/event-stream, application/json"
            stolen = await front.ask(thief, method, "/mcp", body, mcp_session_id=session, accept=accept)
            unknown = await front.ask(thief, method, "/mcp", body, mcp_session_id=FORGED, accept=accept)
            assert stolen.status == 404
            assert stolen.body == unknown.body
            assert stolen.headers.keys() == unknown.headers.keys()
        own = await front.ask("alice", "POST", "/mcp", PING, mcp_session_id=session)
        assert (own.status, own.message["result"]) == (200, {})


async def test_session_streams_cannot_be_stolen_or_ended() -> None:
    async with fronted() as front:
        session = await front.initialize("alice")
        stream = await front.send("alice", "GET", "/mcp", accept="text/event-stream", mcp_session_id=session)
        assert (await stream.head())[0] == 200
        assert (await stream.chunk()).startswith(b"id: ")
        stolen = await front.ask("bob", "GET", "/mcp", accept="text/event-stream", mcp_session_id=session)
        assert stolen.status == 404
        front.server.tool(name="news")(lambda: "new")
        assert b"notifications/tools/list_changed" in await stream.chunk()
        assert len(front.runtime.streams) == 1


@pytest.mark.parametrize("way", ["lane", ON_FOUR])
async def test_event_ids_from_other_sessions_get_400(way: str) -> None:
    async with fronted(way) as front:
        first, second = await front.initialize("alice"), await front.initialize("alice")
        stream = await front.send("alice", "GET", "/mcp", accept="text/event-stream", mcp_session_id=first)
        await stream.head()
        epoch = (await stream.chunk()).split(b"\n")[0].removeprefix(b"id: ").decode().split(".")[0]
        for last in (f"{epoch}.{'0' * 32}.1", f"{epoch}.call.1"):
            reply = await front.ask(
                "alice", "GET", "/mcp", accept="text/event-stream", mcp_session_id=second, last_event_id=last
            )
            assert reply.status == 400


@pytest.mark.parametrize("way", ["lane", ON_FOUR])
async def test_http_sse_streams_accept_only_their_owner(way: str) -> None:
    async with fronted(way) as front:
        stream = await front.send("alice", "GET", "/sse", accept="text/event-stream")
        await stream.head()
        path = (await stream.chunk()).split(b"data: ")[1].strip().decode()
        unknown = await front.ask("bob", "POST", f"/messages/?session_id={'0' * 32}", PING)
        for thief in THIEVES:
            stolen = await front.ask(thief, "POST", path, PING)
            assert (stolen.status, stolen.body) == (404, unknown.body)
        assert (await front.ask("alice", "POST", path, PING)).status == 202
        while b"data: " not in (event := await stream.chunk()):
            pass  # skip heartbeats on a slow machine
        assert json.loads(event.split(b"data: ")[1]) == {"jsonrpc": "2.0", "id": 5, "result": {}}


@pytest.mark.parametrize("way", ["lane", ON_FOUR])
async def test_session_ids_are_random_and_opaque(way: str) -> None:
    async with fronted(way) as front:
        sessions = [await front.initialize("alice") for _ in range(50)]
        assert len({session[8:40] for session in sessions}) == 50
        assert len({session[-40:] for session in sessions}) == 50
        assert not any("alice" in session for session in sessions)
