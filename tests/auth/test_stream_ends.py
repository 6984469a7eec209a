import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from account_parts import KeyFile
from auth.test_sign_in import OWN, cookie
from auth_world import ROOT, STREAM, GuardedServer, add_features, make_server, run_guarded
from cases import for_each
from http_peer import Peer
from issuer_world import AUDIENCE, ISSUER, claims, key_set, token
from millstream import Server, auth
from millstream.extensions import CallContext, Extension, method
from millstream.middleware import MessageRequest, Middleware, Next
from redis_parts import until
from wire import POST, per_request, request, routing

KEPT = ["/events", "/mcp/sse/me", "/sse", "/mcp", "/dashboard/events", "subscriptions/listen"]
SCOPES = "orders:write millstream:watch"


@asynccontextmanager
async def world_of_tokens() -> AsyncIterator[GuardedServer]:
    """Yield a server that accepts tokens."""
    server = make_server(auth.jwt(issuer=ISSUER, audience=AUDIENCE, jwks=key_set("ES256")))
    async with run_guarded(server) as world:
        yield world


def lasting(seconds: float) -> str:
    """Return a token that is valid for some seconds."""
    return token(claims(exp=int(time.time() + seconds), scope=SCOPES))


async def open_stream(world: GuardedServer, key: str, kind: str) -> Peer:
    """Open a stream of one kind."""
    if kind == "subscriptions/listen":
        headers = {name.replace("-", "_"): value for name, value in routing(kind).items()}
        body = json.dumps(per_request(kind, {"notifications": {"toolsListChanged": True}})).encode()
        peer = await world.send(key, "POST", "/mcp", body, **headers)
    else:
        more = {"mcp_session_id": await world.initialize(key)} if kind == "/mcp" else {}
        peer = await world.send(key, "GET", kind, **STREAM, **more)
    assert (await peer.head())[0] == 200
    assert await peer.chunk()
    return peer


async def rest_of(peer: Peer) -> bytes:
    """Return the rest of a stream, up to its proper end."""
    body = b""
    while chunk := await peer.chunk():
        body += chunk
    return body


def pass_time(world: GuardedServer, seconds: float) -> None:
    """Advance the clock of a server's streams."""
    world.runtime.streams.wall = lambda: time.time() + seconds


@for_each("kind", KEPT)
async def test_expired_tokens_end_streams_with_a_retry_time(kind: str) -> None:
    async with world_of_tokens() as world:
        short, long = await open_stream(world, lasting(600), kind), await open_stream(world, lasting(6000), kind)
        assert len(world.runtime.streams) == 2
        pass_time(world, 600)
        world.runtime.streams.end_expired()
        assert len(world.runtime.streams) == 2
        pass_time(world, 700)
        body = await rest_of(short)
        assert b"retry: " in body
        assert len(world.runtime.streams) == 1
        await until(lambda: len(world.runtime.dispatcher.calls) == (kind == "subscriptions/listen"))
        long.close()


class Ticker(Extension):
    """Keeps the reply to a method open."""

    name = "com.example/ticker"

    @method("com.example/ticks")
    async def tick(self, ctx: CallContext) -> None:
        """Send one tick, and wait."""
        async with ctx.stream() as stream:
            await stream.send("com.example/tick", {})
            await stream.wait_closed()


class Progress(Middleware):
    """Opens every stream early."""

    async def on_message(self, request: MessageRequest, next: Next) -> Any:
        """Report progress first."""
        await request.context.report_progress(1)
        return await next(request)


@for_each(("name", "first"), [("subscriptions/listen", b"acknowledged"), ("com.example/ticks", b"tick")])
async def test_subscriptions_opened_by_middleware_end_when_their_token_expires(name: str, first: bytes) -> None:
    issuer = auth.jwt(issuer=ISSUER, audience=AUDIENCE, jwks=key_set("ES256"))
    server = Server("guarded", auth=issuer, middleware=[Progress()], extensions=[Ticker()])
    add_features(server)
    async with run_guarded(server) as world:
        body = per_request(name, {"notifications": {"toolsListChanged": True}})
        body["params"]["_meta"]["progressToken"] = 1
        headers = {key.replace("-", "_"): value for key, value in routing(name).items()}
        peer = await world.send(lasting(600), "POST", "/mcp", json.dumps(body).encode(), **headers)
        assert (await peer.head())[0] == 200
        assert b"progress" in await peer.chunk()
        assert first in await peer.chunk()
        pass_time(world, 700)
        world.runtime.streams.end_expired()
        assert not len(world.runtime.streams)
        assert b"retry: " in await rest_of(peer)


async def test_skewed_store_clock_does_not_end_streams() -> None:
    async with world_of_tokens() as world:
        stream = await open_stream(world, lasting(600), "/mcp")
        world.runtime.services.clock = lambda: time.time() + 700
        world.runtime.sweep.tick(0.0)
        assert len(world.runtime.streams) == 1
        stream.close()


@for_each("speaks", ["", "mcp"])
async def test_websockets_close_when_their_token_expires(speaks: str) -> None:
    async with world_of_tokens() as world:
        async with world.socket(lasting(600), speaks) as socket:
            pass_time(world, 700)
            await socket.wait_closed()
        assert (socket.close_code, "Sign in again" in (socket.close_reason or "")) == (1008, True)


async def test_running_calls_finish_after_their_token_expires() -> None:
    async with world_of_tokens() as world:
        session = await world.initialize(lasting(600))
        given = {name.replace("-", "_"): value for name, value in POST.items()}
        ask = json.dumps(request("tools/call", {"name": "asks"}, 7)).encode()
        peer = await world.send(lasting(600), "POST", "/mcp", ask, mcp_session_id=session, **given)
        assert (await peer.head())[0] == 200
        last, question = b"", b""
        while b"elicitation/create" not in question:
            question = await peer.chunk()
            last = question.partition(b"id: ")[2].partition(b"\n")[0] or last
        resumed = await world.send(
            lasting(600), "GET", "/mcp", **STREAM, mcp_session_id=session, last_event_id=last.decode()
        )
        assert (await resumed.head())[0] == 200
        pass_time(world, 700)
        assert b"retry: " in await rest_of(resumed)
        assert len(world.runtime.dispatcher.calls) == 1
        id = json.loads(question.partition(b"data: ")[2].partition(b"\n")[0])["id"]
        answer = {"jsonrpc": "2.0", "id": id, "result": {"action": "accept", "content": {"n": 1}}}
        assert (await world.post(lasting(6000), answer, mcp_session_id=session)).status == 202
        again = await world.send(
            lasting(6000), "GET", "/mcp", **STREAM, mcp_session_id=session, last_event_id=last.decode()
        )
        assert (await again.head())[0] == 200
        assert b'"text":"asked"' in await rest_of(again)


async def test_streams_end_when_their_cookie_expires() -> None:
    async with world_of_tokens() as world:
        for seconds, passes in ((600, 700), (10**6, 12 * 3600 + 1)):
            jar = await cookie(world, lasting(seconds))
            own = {**STREAM, **OWN, "cookie": jar}
            peer = await world.send(None, "GET", "/dashboard/events", **own)
            assert (await peer.head())[0] == 200
            pass_time(world, passes - 120)
            world.runtime.streams.end_expired()
            assert len(world.runtime.streams) == 1
            pass_time(world, passes)
            world.runtime.streams.end_expired()
            assert b"retry: " in await rest_of(peer)


async def test_sign_out_ends_only_streams_opened_with_the_cookie() -> None:
    async with run_guarded() as world:
        copied, other = await cookie(world), await cookie(world)
        opened = await world.send(None, "GET", "/dashboard/events", **STREAM, **OWN, cookie=copied)
        by_key = await open_stream(world, ROOT, "/events")
        assert (await opened.head())[0] == 200
        for _ in range(2):
            reply = await world.ask(None, "POST", "/sign-out", b"", cookie=copied, **OWN)
            assert (reply.status, reply.headers[b"location"]) == (303, b"/sign-in")
        assert (await world.ask(None, "GET", "/docs", cookie=copied, **OWN)).status == 401
        assert (await world.ask(None, "GET", "/docs", cookie=other, **OWN)).status == 200
        world.runtime.sweep.tick(0.0)
        assert b"retry: " in await rest_of(opened)
        assert len(world.runtime.streams) == 1
        by_key.close()


async def test_streams_opened_with_rotated_keys_end_after_the_grace_period(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys.json")
    old = file.add("ci", (), 0.0, None)
    new = file.rotate("ci", 0.0, time.time() + 600)
    async with run_guarded(make_server(auth.keys(file=file.path))) as world:
        streams = [await open_stream(world, key, "/mcp/sse/me") for key in (old, new)]
        pass_time(world, 601)
        assert b"retry: " in await rest_of(streams[0])
        assert len(world.runtime.streams) == 1


async def test_closed_streams_leave_nothing_behind() -> None:
    async with world_of_tokens() as world:
        key = lasting(3e7)
        for _ in range(150):
            peer = await open_stream(world, key, "/mcp/sse/me")
            peer.close()
        await until(lambda: not len(world.runtime.streams))
        streams = world.runtime.streams
        assert len(streams._ends._heap) <= 64
        assert not streams._numbered
