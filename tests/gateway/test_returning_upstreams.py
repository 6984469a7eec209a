"""Upstreams that end and come back, as the same server or as another one: at most one call of a client fails."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from cases import for_each
from client.misbehaving_servers import (
    OFFER,
    Behave,
    ReceivedRequest,
    connected,
    misbehaving,
    with_discovery,
    with_handshake,
)
from fleet import until
from http_peer import serve
from millstream import Server
from millstream.client import Client, ServerError
from millstream.gateway import OpenApi
from patience import WAIT
from processes import free_port

TOOL = {"name": "add", "inputSchema": {"type": "object"}}
ERROR_SESSION = {"code": -32600, "message": "Bad Request: Missing session ID"}
Serve = Callable[[int], AbstractAsyncContextManager[Any]]


@asynccontextmanager
async def run_server(port: int) -> AsyncIterator[None]:
    """Run a Millstream server, which supports all transports and revisions."""
    mcp = Server("up", serve="hub")
    mcp.tool(name="add")(lambda: "3")
    async with mcp.running(), serve(mcp, port=port):
        yield


async def _reply_as_tools(asked: ReceivedRequest) -> None:
    if asked.method == "tools/list":
        await asked.result({"resultType": "complete", "tools": [TOOL], "ttlMs": 0, "cacheScope": "public"})
    elif asked.method == "tools/call":
        await asked.result({"resultType": "complete", "content": [{"type": "text", "text": "3"}]})
    elif asked.method in ("ping", "logging/setLevel"):
        await asked.result({})
    else:
        await _refuse(asked, {"code": -32601, "message": "Method not found"}, "200 OK")


async def _refuse(asked: ReceivedRequest, error: dict[str, Any], status: str) -> None:
    body = json.dumps({"jsonrpc": "2.0", "id": asked.message.get("id", "server-error"), "error": error}).encode()
    await asked.reply(body, status=status)


def _with_sessions(behave: Behave) -> Behave:
    """Behave as the official SDK 1.x: requests without a session are rejected with -32600 and status 400."""
    greet = with_handshake(behave, "s1")

    async def both(asked: ReceivedRequest) -> None:
        if asked.verb == "POST" and asked.method != "initialize" and "mcp-session-id" not in asked.headers:
            await _refuse(asked, ERROR_SESSION, "400 Bad Request")
        else:
            await greet(asked)

    return both


def _per_request(behave: Behave) -> Behave:
    discover = with_discovery(behave)

    async def both(asked: ReceivedRequest) -> None:
        if asked.verb != "POST":
            await asked.reply(b"", status="405 Method Not Allowed")
        elif asked.method == "initialize":
            supported = {"supported": OFFER["supportedVersions"]}
            await _refuse(asked, {"code": -32022, "message": "Unsupported", "data": supported}, "400 Bad Request")
        elif asked.message.get("id") is None:
            await asked.reply(b"", status="202 Accepted")
        else:
            await discover(asked)

    return both


SERVERS: dict[str, Serve] = {
    "Millstream": run_server,
    "sessions": lambda port: misbehaving(_with_sessions(_reply_as_tools), port),
    "no sessions": lambda port: misbehaving(with_handshake(_reply_as_tools), port),
    "2026-07-28": lambda port: misbehaving(_per_request(_reply_as_tools), port),
}


def make_gateway(target: Any, *, relayed: bool = False, **options: Any) -> Server:
    """Return a gateway with one upstream. With a prefix, it's a catalog."""
    mcp = Server("front")
    mcp.upstream("up", target, **{"start_timeout": WAIT, "prefix": "" if relayed else "up", **options})
    return mcp


async def call_until_it_works(client: Client, tool: str) -> int:
    """Call a tool until it succeeds, and return the number of calls that failed before."""
    failures = 0
    async with asyncio.timeout(WAIT):
        while (await client.call(tool, raise_on_error=False)).is_error:
            failures += 1
            await asyncio.sleep(0.01)
    return failures


async def restart_and_call(
    target: Any, before: Serve, after: Serve, port: int, *, calls_while_down: bool, **options: Any
) -> int:
    """Call a tool, replace the server, and call again. Return the number of failed calls after the replacement."""
    name = "add" if options.get("relayed") else "up_add"
    async with AsyncExitStack() as stack:
        first = AsyncExitStack()
        await first.enter_async_context(before(port))
        front = make_gateway(target, **options)
        client = await stack.enter_async_context(Client(front, timeout=WAIT))
        assert await call_until_it_works(client, name) == 0
        await first.aclose()
        if calls_while_down:
            for _ in range(2):
                assert (await client.call(name, raise_on_error=False)).is_error
        await stack.enter_async_context(after(port))
        return await call_until_it_works(client, name)


TRANSPORTS = {
    "Streamable HTTP": lambda port: f"http://127.0.0.1:{port}/mcp",
    "HTTP+SSE": lambda port: f"http://127.0.0.1:{port}/sse",
    "HTTP+SSE by type": lambda port: {
        "mcpServers": {"it": {"type": "sse", "url": f"http://127.0.0.1:{port}/sse"}},
    },
    "WebSocket": lambda port: f"ws://127.0.0.1:{port}/ws",
}


@for_each("calls_while_down", [False, True])
@for_each("transport", TRANSPORTS)
async def test_upstream_that_restarts_is_found_again(transport: str, *, calls_while_down: bool) -> None:
    port = free_port()
    target = TRANSPORTS[transport](port)
    failures = await restart_and_call(target, run_server, run_server, port, calls_while_down=calls_while_down)
    assert failures <= 1


@for_each("relayed", [False, True])
@for_each("before", ["Millstream", "sessions", "no sessions"])
@for_each("revision", ["2024-11-05", "2025-11-25"])
async def test_clients_of_the_handshake_era_are_served_after_their_upstream_drops_that_era(
    revision: str, before: str, *, relayed: bool
) -> None:
    port = free_port()
    name = "add" if relayed else "up_add"
    async with AsyncExitStack() as stack:
        first = AsyncExitStack()
        await first.enter_async_context(SERVERS[before](port))
        front = make_gateway(f"http://127.0.0.1:{port}/mcp", relayed=relayed)
        old = await stack.enter_async_context(Client(front, revision=revision, timeout=WAIT))
        assert await call_until_it_works(old, name) == 0
        await first.aclose()
        await stack.enter_async_context(SERVERS["2026-07-28"](port))
        new = await stack.enter_async_context(Client(front, revision=revision, timeout=WAIT))
        for client in (new, old):
            assert await call_until_it_works(client, name) <= 1


@for_each("after", SERVERS)
@for_each("before", SERVERS)
@for_each("relayed", [False, True])
async def test_upstream_that_comes_back_as_another_server_is_negotiated_again(
    before: str, after: str, *, relayed: bool
) -> None:
    port = free_port()
    target = f"http://127.0.0.1:{port}/mcp"
    failures = await restart_and_call(
        target, SERVERS[before], SERVERS[after], port, calls_while_down=False, relayed=relayed
    )
    assert failures <= 1


async def test_changed_revision_is_logged_and_shown(caplog: pytest.LogCaptureFixture) -> None:
    port = free_port()
    caplog.set_level("INFO", "millstream.gateway")
    async with asyncio.timeout(WAIT), AsyncExitStack() as stack:
        first = AsyncExitStack()
        await first.enter_async_context(SERVERS["2026-07-28"](port))
        front = make_gateway(f"http://127.0.0.1:{port}/mcp")
        gateway: Any = (await stack.enter_async_context(front.running())).host.gateway
        client = await stack.enter_async_context(Client(front, timeout=WAIT))
        [before] = gateway.describe_states()
        await first.aclose()
        await stack.enter_async_context(SERVERS["sessions"](port))
        await call_until_it_works(client, "up_add")
        await until(lambda: gateway.describe_states()[0]["revision"] == "2025-11-25")
        assert (before["revision"], before["transport"]) == ("2026-07-28", "streamable-http")
        assert "The upstream up now uses the revision 2025-11-25 instead of 2026-07-28" in caplog.text


async def test_call_waits_for_an_attempt_that_began_after_the_upstream_returned() -> None:
    """Other attempts, which began before, fail while it waits."""
    holds: dict[str, asyncio.Event] = {}
    held: list[str] = []
    is_down = False

    async def behave(asked: ReceivedRequest) -> None:
        if not (is_down and asked.message and asked.verb == "POST"):
            await _with_sessions(_reply_as_tools)(asked)
            return
        kind = asked.method if asked.method != "tools/call" else asked.message["params"]["arguments"]["text"]
        if (gate := holds.get(kind)) is not None:
            held.append(kind)
            await gate.wait()
        await asked.reply(b"", status="503 Service Unavailable")

    async with (
        misbehaving(behave) as server,
        Client(make_gateway(server.url), revision="2025-11-25", timeout=WAIT) as client,
    ):
        assert await call_until_it_works(client, "up_add") == 0
        is_down = True
        holds["late"] = asyncio.Event()
        late = asyncio.create_task(client.call("up_add", text="late", raise_on_error=False))
        await until(lambda: "late" in held)
        holds["tools/list"] = asyncio.Event()
        assert (await client.call("up_add", text="early", raise_on_error=False)).is_error
        await until(lambda: "tools/list" in held)  # the gateway knows that the upstream is down, and tries again
        holds["initialize"] = asyncio.Event()
        holds["late"].set()
        assert (await late).is_error
        await until(lambda: "initialize" in held)  # it checks whether the late failure affects all callers
        call = asyncio.create_task(client.call("up_add", text="new", raise_on_error=False))
        await client.ping()  # the call has arrived at the gateway
        is_down = False
        holds["tools/list"].set()
        holds["initialize"].set()
        assert (await call).text == "3"


@for_each("after", SERVERS)
@for_each("before", SERVERS)
async def test_client_negotiates_again_with_a_replaced_server(before: str, after: str) -> None:
    port = free_port()
    async with AsyncExitStack() as stack:
        first = AsyncExitStack()
        await first.enter_async_context(SERVERS[before](port))
        client = await stack.enter_async_context(Client(f"http://127.0.0.1:{port}/mcp", timeout=WAIT))
        assert (await client.call("add")).text == "3"
        await first.aclose()
        await stack.enter_async_context(SERVERS[after](port))
        assert (await client.call("add")).text == "3"


async def test_error_of_a_server_that_was_not_replaced_reaches_its_caller() -> None:
    sent: list[str] = []

    async def behave(asked: ReceivedRequest) -> None:
        sent.append(asked.method)
        if asked.method == "tools/call":
            await _refuse(asked, {"code": -32600, "message": "Too young"}, "400 Bad Request")
        else:
            await _reply_as_tools(asked)

    async with connected(_per_request(behave)) as (_, client):
        with pytest.raises(Exception, match="Too young"):
            await client.call("add")
        assert sent.count("tools/call") == 1


async def test_api_that_restarts_is_found_again() -> None:
    port = free_port()
    responses = {"200": {"description": "ok", "content": {"application/json": {"schema": {"type": "object"}}}}}
    paths = {"/sum": {"get": {"operationId": "add", "responses": responses}}}
    document = {"openapi": "3.1.0", "info": {}, "paths": paths}

    about = OpenApi(document=document, base_url=f"http://127.0.0.1:{port}")
    serve_api: Serve = lambda at: misbehaving(lambda asked: asked.reply(b'{"sum": 3}'), at)  # noqa: E731
    assert await restart_and_call(None, serve_api, serve_api, port, calls_while_down=False, openapi=about) <= 1


PROGRAM = """
import os
from millstream import Server
mcp = Server("stopping")
@mcp.tool
def pid() -> int:
    return os.getpid()
mcp.run()
"""


@pytest.mark.server
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_process_that_ends_or_hangs_is_replaced_after_one_failed_call(
    number: signal.Signals, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("millstream.gateway._processes._PING_TIMEOUT", 1.0)
    front = make_gateway([sys.executable, "-c", PROGRAM], timeout=5.0)
    async with asyncio.timeout(WAIT), Client(front, timeout=WAIT) as client:
        first = int((await client.call("up_pid")).text)
        os.kill(first, number)
        failed = await client.call("up_pid", raise_on_error=False)
        assert failed.text != str(first)
        if number == signal.SIGSTOP:
            assert "didn't respond in time" in failed.text
            await until(lambda: "The process stopped responding" in caplog.text)
            await until(lambda: "can be reached again" in caplog.text)
            assert caplog.text.count("The process stopped responding") <= 2  # the state, and a call's error
        while not (text := (await client.call("up_pid", raise_on_error=False)).text).isdecimal():
            pass
        assert int(text) != first


async def test_client_of_a_relay_stays_usable_through_several_replacements() -> None:
    port = free_port()
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(AsyncExitStack())
        await running.enter_async_context(SERVERS["2026-07-28"](port))
        relay = make_gateway(f"http://127.0.0.1:{port}/mcp", relayed=True)
        client = await stack.enter_async_context(Client(relay, timeout=WAIT))
        for name in ("sessions", "2026-07-28", "no sessions", "sessions", "2026-07-28"):
            await running.aclose()
            await running.enter_async_context(SERVERS[name](port))
            failures = [
                text for _ in range(30) if (text := await failure_of(client))
            ]  # until the gateway knows the new server
            assert len(failures) <= 2, (name, failures)
            assert not any("keeps a session" in each for each in failures)


async def failure_of(client: Client) -> str:
    try:
        result = await client.call("add", raise_on_error=False)
    except ServerError as exc:
        return str(exc)
    return result.text if result.is_error else ""
