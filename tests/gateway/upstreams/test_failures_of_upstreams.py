"""Upstreams that fail after they worked, or end and come back: what the log, `doctor`, `/health`, the gateway page, and
the caller say. At most one call of a client fails.

`doctor` and `/health` show `describe_states`, and the page `describe`.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from app_peer import ask
from cases import for_each
from client.misbehaving_servers import (
    DONE,
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
from millstream import Client, Server
from millstream.client import ServerError
from millstream.gateway import OpenApi, bearer
from millstream.testing import connect
from patience import WAIT
from processes import free_port

TOOL = {"name": "add", "inputSchema": {"type": "object"}}


class Front:
    """A running gateway with one upstream, and what its operator sees."""

    def __init__(self, server: Server, runtime: Any, client: Client, log: pytest.LogCaptureFixture) -> None:
        self._server, self._gateway = server, runtime.host.gateway
        self.client = client
        self.log = log

    @property
    def state(self) -> dict[str, Any]:
        """The facts in `doctor` and `/health`."""
        [found] = self._gateway.describe_states()
        return dict(found)

    @property
    def page(self) -> dict[str, Any]:
        """The row of the gateway page."""
        [found] = self._gateway.describe()
        return dict(found)

    async def health(self) -> dict[str, Any]:
        """Return the members of `/health`."""
        found: dict[str, Any] = json.loads((await ask(self._server, "GET", "/health")).body)
        return found

    async def call(self) -> str:
        """Return the text that a caller reads."""
        return (await self.client.call("up_add", raise_on_error=False)).text


async def open_front(stack: AsyncExitStack, target: Any, log: pytest.LogCaptureFixture, **options: Any) -> Front:
    mcp = Server("front")
    mcp.upstream("up", target, **{"start_timeout": WAIT, "timeout": WAIT, **options})
    runtime = await stack.enter_async_context(mcp.running())
    client = await stack.enter_async_context(Client(mcp, timeout=WAIT))
    return Front(mcp, runtime, client, log)


def make_upstream() -> Server:
    mcp = Server("up", serve="hub")
    mcp.tool(name="add")(lambda: "3")
    return mcp


@for_each("address", ["http://127.0.0.1:{}/mcp", "http://127.0.0.1:{}/sse", "ws://127.0.0.1:{}/ws", ""])
async def test_upstream_that_dies_is_down_with_the_reason_until_it_returns(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    port, options = free_port(), dict[str, Any]()
    if not address:
        responses = {"200": {"description": "ok"}}
        document = {
            "openapi": "3.1.0",
            "info": {},
            "paths": {"/add": {"get": {"operationId": "add", "responses": responses}}},
        }
        options["openapi"] = OpenApi(document=document, base_url=f"http://127.0.0.1:{port}")

    async def reply(asked: ReceivedRequest) -> None:
        await asked.reply(b'"3"')

    async def start(stack: AsyncExitStack) -> None:
        if address:
            mcp = make_upstream()
            await stack.enter_async_context(mcp.running())
            await stack.enter_async_context(serve(mcp, port=port))
        else:
            await stack.enter_async_context(misbehaving(reply, port))

    async with asyncio.timeout(WAIT), AsyncExitStack() as stack:
        first = AsyncExitStack()
        await start(first)
        front = await open_front(stack, address.format(port) or None, caplog, **options)
        assert "3" in await front.call()
        assert front.state["state"] == "ready"
        await first.aclose()
        while front.state["state"] != "degraded":
            text = await front.call()
            assert "server 'up'" in text, text
        assert str(port) in front.state["reason"]
        assert front.state["since"] > 0
        assert front.state["last_error"]
        assert str(port) not in await front.call()  # addresses are the operator's
        assert "The upstream up can't be reached" in caplog.text
        await start(stack)
        while front.state["state"] != "ready":
            await front.call()
        assert "3" in await front.call()
        assert front.state["reason"] == ""
        assert "The upstream up can be reached again" in caplog.text


async def test_tool_that_hangs_is_named_while_the_upstream_stays_ready(caplog: pytest.LogCaptureFixture) -> None:
    upstream = Server("up")

    @upstream.tool
    async def add() -> None:
        await asyncio.Event().wait()

    async with asyncio.timeout(WAIT), AsyncExitStack() as stack:
        await stack.enter_async_context(upstream.running())
        running = await stack.enter_async_context(serve(upstream))
        front = await open_front(stack, f"http://127.0.0.1:{running.port}/mcp", caplog, timeout=0.5)
        assert "didn't respond in time" in await front.call()
        assert front.state["state"] == "ready"
        assert "0.5 seconds" in front.state["last_error"]["text"]
        assert front.page["unanswered"] == 1
        assert "Calls to the upstream up fail: tools/call up_add: " in caplog.text
        assert "1 call failed since" in front.state["reason"]


@for_each("kind", ["API", "MCP"])
async def test_credentials_that_calls_need_and_lists_do_not_are_shown_to_operators(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    revoked = True

    async def refuse(asked: ReceivedRequest) -> None:
        if revoked:
            await asked.reply(b'{"error": "revoked"}', status="401 Unauthorized")
        elif kind == "API":
            await asked.reply(b"{}")
        else:
            await asked.result({"content": []})

    responses = {"200": {"description": "ok"}}
    paths = {"/add": {"get": {"operationId": "add", "responses": responses}}}
    discovered = with_discovery(lambda asked: refuse(asked) if asked.method == "tools/call" else _reply_as_tools(asked))
    async with (
        asyncio.timeout(WAIT),
        AsyncExitStack() as stack,
        misbehaving(refuse if kind == "API" else discovered) as server,
    ):
        document = {"openapi": "3.1.0", "info": {}, "paths": paths}
        base = server.url.removesuffix("/mcp")
        target = None if kind == "API" else server.url
        options = {"openapi": OpenApi(document=document, base_url=base)} if kind == "API" else {}
        front = await open_front(stack, target, caplog, auth=bearer("old"), **options)
        assert "rejected the gateway's credentials" in await front.call()
        assert "401" in front.state["last_error"]["text"]
        assert front.page["last_error"] == front.state["last_error"]
        assert "rejected the gateway's credentials" in await front.call()
        lines = [each for each in caplog.messages if "upstream up fail" in each]
        assert lines == [f"Calls to the upstream up fail: tools/call up_add: {front.state['last_error']['text']}"]
        assert "2 calls failed since" in front.state["reason"]
        health = await front.health()
        assert health["status"] == "degraded"
        assert [(each["what"], each["count"]) for each in health["troubles"]] == [("Calls to the upstream up fail", 2)]
        assert health["troubles"][0]["remedy"]
        revoked = False
        assert "credentials" not in await front.call()
        assert "Calls to the upstream up work again. It failed 2 times since " in caplog.text
        assert (await front.health())["status"] == "ok"


async def test_upstream_that_blocks_as_a_whole_is_down_after_one_timeout(caplog: pytest.LogCaptureFixture) -> None:
    blocked = False

    async def behave(asked: ReceivedRequest) -> None:
        if blocked:
            await asyncio.Event().wait()
        if asked.method == "tools/list":
            await asked.result({"tools": [TOOL]})
        else:
            await asked.result({"content": []})

    greet = with_handshake(behave)

    async def answer(asked: ReceivedRequest) -> None:
        await (behave if blocked else greet)(asked)

    async with asyncio.timeout(WAIT), AsyncExitStack() as stack:
        upstream = await stack.enter_async_context(misbehaving(answer))
        front = await open_front(stack, upstream.url, caplog, timeout=0.5, connect_timeout=0.5)
        assert await front.call() == ""
        blocked = True
        assert "didn't respond in time" in await front.call()
        await until(lambda: front.state["state"] == "degraded")
        assert "0.5 seconds" in front.state["reason"]
        assert "isn't responding, so the call wasn't sent" in await front.call()
        assert "The upstream up can't be reached" in caplog.text


KILLED = """
import os
from millstream import Server
mcp = Server("killed")
@mcp.tool
def add() -> int:
    return os.getpid()
mcp.run()
"""


@pytest.mark.server
async def test_killed_process_is_counted_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    async with asyncio.timeout(WAIT), AsyncExitStack() as stack:
        front = await open_front(stack, [sys.executable, "-c", KILLED], caplog)
        first = int(await front.call())
        os.kill(first, signal.SIGKILL)
        await until(lambda: front.page["processes"]["crashed"] == 1)
        assert f"up: process {first} exited with code -9" in caplog.text
        while not (text := await front.call()).isdecimal():
            pass
        assert int(text) != first
        await until(lambda: front.state["state"] == "ready")


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
    monkeypatch.setattr("millstream._gateway.processes.pool._PING_TIMEOUT", 1.0)
    front = make_gateway([sys.executable, "-c", PROGRAM], timeout=5.0)
    async with asyncio.timeout(WAIT), Client(front, timeout=WAIT) as client:
        first = int((await client.call("up_pid")).text)
        os.kill(first, number)
        failed = await client.call("up_pid", raise_on_error=False)
        assert failed.text != str(first)
        if number == signal.SIGSTOP:
            assert "didn't respond in time" in failed.text
            others = await asyncio.gather(*(client.call("up_pid") for _ in range(3)))  # they wait for the outcome
            assert first not in [int(each.text) for each in others]
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


FORGOTTEN: dict[str, Callable[[ReceivedRequest], Awaitable[None]]] = {
    "an event that isn't JSON-RPC": lambda asked: asked.reply(
        b'event: message\ndata: {"error":"Session not found"}\n\n', type="text/event-stream"
    ),
    "JSON that isn't JSON-RPC": lambda asked: asked.reply(b'{"error":"Session not found"}'),
    "an empty body": lambda asked: asked.reply(b""),
    "an error of the SDK": lambda asked: asked.error(32600, "Session terminated"),
    "401": lambda asked: asked.reply(b'{"error":"unknown client"}', status="401 Unauthorized"),
    "403": lambda asked: asked.reply(b'{"error":"unknown client"}', status="403 Forbidden"),
}


async def works(client: Client) -> bool:
    try:
        return not (await client.call("shop_buy", raise_on_error=False)).is_error
    except ServerError:
        return False


@for_each("how", list(FORGOTTEN))
@pytest.mark.parametrize("signed_in", [False, True])
async def test_session_that_does_not_work_any_more_is_replaced(how: str, signed_in: bool) -> None:
    """Upstreams say in different ways that they don't know a session, but a new one works."""
    newest, broken = 0, False

    async def behave(asked: ReceivedRequest) -> None:
        if asked.headers.get("mcp-session-id") != str(newest):
            await FORGOTTEN[how](asked)
        elif asked.method == "tools/list":
            await asked.result({"tools": [{"name": "buy", "inputSchema": {"type": "object"}}]})
        elif asked.method == "tools/call" and broken:
            await asked.reply(b"")
        else:
            await asked.result(DONE)

    async def count(asked: ReceivedRequest) -> None:
        nonlocal newest
        newest += asked.method == "initialize"
        await with_handshake(behave, str(newest))(asked)

    async with misbehaving(count) as upstream:
        front = Server("front")
        front.upstream("shop", upstream.url, start_timeout=WAIT, timeout=WAIT)
        people = {"principal": "ada"} if signed_in else {}
        async with asyncio.timeout(WAIT), connect(front, revision="2025-11-25", **people) as client:
            assert (await client.call("shop_buy")).text == "done"
            newest += 1  # it has restarted
            while not await works(client):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            opened, broken = newest, True
            for _ in range(3):  # a tool that fails in a session that works
                assert not await works(client)
            broken = False
            assert (await client.call("shop_buy")).text == "done"
            assert upstream.requests[-1].headers["mcp-session-id"] == str(opened)
