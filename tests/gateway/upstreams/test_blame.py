import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from client.misbehaving_servers import ReceivedRequest, misbehaving, with_handshake
from fleet import until
from http_peer import serve
from millstream import Server, auth
from millstream._gateway.upstreams import breaker
from millstream._parts import PartHost
from millstream.client import Client, ServerError
from millstream.extensions import LogOnce
from millstream.gateway import OpenApi
from patience import WAIT, advance_clock
from processes import ROOT

KEYS = {name: f"key-of-{name}-0123456789" for name in ("alice", "bob", "carol")}
PER_REQUEST, HANDSHAKE = "2026-07-28", "2025-11-25"
SECONDS = WAIT / 4
"""Timeout of the upstreams."""

STRANGER = """
import asyncio
import os
from mcp.server.fastmcp import FastMCP

mcp = FastMCP("stranger")
started = []

@mcp.tool()
async def hang() -> str:
    started.append(1)
    await asyncio.Event().wait()

@mcp.tool()
def quick() -> int:
    return len(started)

@mcp.tool()
def large() -> str:
    return "x" * 2**20

@mcp.tool()
def crash() -> None:
    os._exit(7)

@mcp.resource("book://torn")
def torn() -> str:
    raise RuntimeError("A page is torn.")

@mcp.prompt()
def praise() -> str:
    raise RuntimeError("There is nothing to praise.")

mcp.run()
"""


FAULTS = ("deny", "drop", "garble", "large")
"""Tools of `Upstream` whose calls fail without a delay."""


class Upstream:
    """An upstream on HTTP whose tools misbehave, and which may stop responding to everything."""

    def __init__(self, revision: str) -> None:
        self.revision = revision
        self.started = 0
        """Number of calls that hang."""
        self.checks = 0
        """Number of `server/discover` requests."""
        self.free = asyncio.Event()
        """Cleared while it doesn't respond at all."""
        self.free.set()

    async def behave(self, asked: ReceivedRequest) -> None:
        message = asked.message
        self.checks += asked.method == "server/discover"
        if not self.free.is_set():
            self.started += asked.method == "tools/call"
            await self.free.wait()
        if asked.verb != "POST":
            await asked.reply(b"", status="405 Method Not Allowed")
        elif "id" not in message:
            await asked.reply(b"", status="202 Accepted")
        elif asked.method != "tools/call":
            await asked.result({"resultType": "complete", **self.answer(asked.method)})
        elif (tool := message["params"]["name"]) == "hang":
            self.started += 1
            await asyncio.Event().wait()
        elif tool == "deny":
            await asked.reply(b"", status="401 Unauthorized")
        elif tool == "drop":
            raise ConnectionError
        elif tool == "garble":
            await asked.reply(b'{"jsonrpc": "2.0", "result": 5}')
        elif tool == "large":
            await asked.reply(b"x" * 2**20)
        else:
            await asked.result({"resultType": "complete", "content": [{"type": "text", "text": str(self.started)}]})

    def answer(self, method: str) -> dict[str, Any]:
        about = {"capabilities": {"tools": {}}, "serverInfo": {"name": "odd", "version": "1"}}
        if method == "tools/list":
            return {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in ("hang", "quick", *FAULTS)]}
        if self.revision == HANDSHAKE:
            return {"protocolVersion": HANDSHAKE, **about}
        return {"supportedVersions": [PER_REQUEST], **about}


class Gateway:
    """A gateway with one upstream, ``up``, and the clients of several people."""

    def __init__(self, host: PartHost, port: int, stack: AsyncExitStack) -> None:
        self.host = host
        self.port = port
        self._stack = stack

    async def connect(self, person: str, revision: str | None = None, **options: Any) -> Client:
        """Return a client with the key of a person."""
        headers = {"authorization": f"Bearer {KEYS[person]}"}
        url = f"http://127.0.0.1:{self.port}/mcp"
        client = Client(url, headers=headers, revision=revision, timeout=10 * WAIT, **options)
        return await self._stack.enter_async_context(client)

    def figures(self, *names: str) -> list[int]:
        """Return figures of the upstream's report."""
        (report,) = self.host.gateway.describe()
        return [report[name] for name in names]


@asynccontextmanager
async def run_gateway(target: Any, **options: Any) -> AsyncIterator[Gateway]:
    mcp = Server("front", auth=auth.keys(named_keys=KEYS))
    mcp.upstream("up", target, **{"isolation": "shared", "start_timeout": WAIT, "timeout": SECONDS, **options})
    async with mcp.running() as runtime, serve(mcp) as running, AsyncExitStack() as stack:
        yield Gateway(runtime.host, running.port, stack)


async def say(client: Client, tool: str) -> str:
    """Call a tool and return its text, or the text of its error."""
    return (await client.call(f"up_{tool}", raise_on_error=False)).text


async def time_out(client: Client, watcher: Client, count: int = breaker.FAILURES) -> list[str]:
    """Call the tool that hangs and let the calls time out. Return the errors."""
    before = int(await say(watcher, "quick"))
    calls = [asyncio.create_task(say(client, "hang")) for _ in range(count)]
    while int(await say(watcher, "quick")) < before + count:
        pass
    advance_clock(SECONDS)
    return await asyncio.gather(*calls)


@asynccontextmanager
async def run_target(kind: str) -> AsyncIterator[Any]:
    if kind == "stdio":
        yield [str(ROOT / ".venv-mcp1" / "bin" / "python"), "-c", STRANGER]
        return
    async with misbehaving(Upstream(kind).behave) as server:
        yield server.url


ERAS = pytest.mark.parametrize("revision", [HANDSHAKE, PER_REQUEST])


@pytest.mark.parametrize("kind", [pytest.param("stdio", marks=pytest.mark.server), HANDSHAKE, PER_REQUEST])
async def test_slow_calls_count_only_against_their_caller_and_tool(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "_FIRST_PAUSE", 10 * WAIT)
    async with run_target(kind) as target, run_gateway(target) as gateway:
        alice, bob = await gateway.connect("alice"), await gateway.connect("bob")
        for error in await time_out(alice, bob, 3 * breaker.FAILURES):
            assert "didn't respond in time" in error
        for _ in range(2 * breaker.FAILURES):
            assert (await say(bob, "quick")).isdecimal()
        assert "failed your last 5 calls" in await say(alice, "hang")
        assert (await say(alice, "quick")).isdecimal()
        assert "didn't respond in time" in (await time_out(bob, alice, 1))[0]


@ERAS
async def test_faults_count_only_against_their_caller_and_tool(revision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(breaker, "_FIRST_PAUSE", 10 * WAIT)
    texts: dict[str, str] = {}
    async with run_target(revision) as target, run_gateway(target, max_bytes=2**16) as gateway:
        alice, bob = await gateway.connect("alice"), await gateway.connect("bob")
        for tool in FAULTS:
            found = {await say(alice, tool) for _ in range(breaker.FAILURES)}
            assert len(found) == 1
            texts[tool] = found.pop()
            assert ("failed your last 5 calls" in await say(alice, tool)) is (tool != "deny")
            assert (await say(bob, tool)) == texts[tool]
            assert (await say(bob, "quick")).isdecimal()
    for tool, words in (
        ("deny", "requires credentials. Its operator has to add them"),
        ("drop", "closed the connection during the call"),
        ("garble", "sent an invalid response"),
        ("large", "Ask for less"),
    ):
        assert words in texts[tool]


@ERAS
async def test_unanswered_check_opens_the_breaker_until_the_upstream_responds(revision: str) -> None:
    upstream = Upstream(revision)
    async with misbehaving(upstream.behave) as server, run_gateway(server.url, connect_timeout=SECONDS) as gateway:
        alice, bob = await gateway.connect("alice"), await gateway.connect("bob")
        assert await say(bob, "quick") == await say(alice, "quick") == "0"
        upstream.free.clear()
        assert "didn't respond in time" in await give_up(alice, upstream)
        while "isn't responding" not in (error := await give_up(bob, upstream)):
            assert "didn't respond in time" in error
        upstream.free.set()
        while not (text := await say(bob, "quick")).isdecimal():
            assert "isn't responding" in text
        assert (await say(alice, "quick")).isdecimal()


async def test_rejected_handshake_for_one_caller_does_not_affect_others() -> None:
    upstream, handshakes, is_full = Upstream(PER_REQUEST), [], False

    async def behave(asked: ReceivedRequest) -> None:
        if asked.method != "initialize":
            await upstream.behave(asked)
            return
        handshakes.append(asked.message)
        if is_full:
            await asked.error(-32000, "You have too many sessions.")
        else:
            about = {"capabilities": {"tools": {}}, "serverInfo": {"name": "odd", "version": "1"}}
            await asked.result({"protocolVersion": HANDSHAKE, **about}, more=f"Mcp-Session-Id: {len(handshakes)}\r\n")

    async with misbehaving(behave) as server, run_gateway(server.url) as gateway:
        alice, bob, carol = [await gateway.connect(name, HANDSHAKE, elicit=lambda _: {}) for name in KEYS]
        assert await say(alice, "quick") == "0"
        count = len(handshakes)
        is_full = True
        with pytest.raises(ServerError, match="too many sessions"):
            await say(bob, "quick")
        is_full = False
        assert await say(carol, "quick") == "0"
        assert len(handshakes) == count + 2


async def give_up(client: Client, upstream: Upstream) -> str:
    """Call a tool of an upstream that's stuck, and let the call time out. Return the error."""
    before, call = upstream.started, asyncio.create_task(say(client, "quick"))
    await until(lambda: call.done() or upstream.started > before)
    advance_clock(SECONDS)
    return await call


async def test_check_does_not_wait_for_connections_in_use_by_callers() -> None:
    upstream = Upstream(PER_REQUEST)
    most = 100 * 7 // 8  # an eighth is kept for others
    options: dict[str, Any] = {"connect_timeout": SECONDS / 4, "max_connections": 100}
    async with misbehaving(upstream.behave) as server, run_gateway(server.url, **options) as gateway:
        alice, bob = await gateway.connect("alice"), await gateway.connect("bob")
        calls = [asyncio.create_task(say(alice, "hang")) for _ in range(breaker.FAILURES)]
        await until(lambda: upstream.started == breaker.FAILURES)
        advance_clock(SECONDS / 2)
        calls += [asyncio.create_task(say(alice, "hang")) for _ in range(most)]
        await until(lambda: upstream.started == most)
        checks = upstream.checks
        advance_clock(SECONDS / 2)
        await until(lambda: upstream.checks > checks)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        assert (await say(bob, "quick")).isdecimal()


@ERAS
async def test_tool_that_hangs_for_two_callers_stays_available_to_others(
    revision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(breaker, "_FIRST_PAUSE", 10 * WAIT)
    async with run_target(revision) as target, run_gateway(target) as gateway:
        alice, bob, carol = [await gateway.connect(each) for each in KEYS]
        for other in (alice, bob):
            await time_out(other, carol)
            assert "failed your last" in await say(other, "hang")
        await time_out(carol, alice, 1)  # it's sent
        assert (await say(carol, "quick")).isdecimal()


@pytest.mark.server
async def test_too_large_response_does_not_stop_a_shared_process() -> None:
    async with run_target("stdio") as target, run_gateway(target, max_bytes=2**20) as gateway:
        alice, bob = await gateway.connect("alice"), await gateway.connect("bob")
        hanging = asyncio.create_task(say(bob, "hang"))
        while await say(bob, "quick") != "1":
            pass
        assert "Ask for less" in await say(alice, "large")
        assert await say(bob, "quick") == "1"  # the same process
        assert not hanging.done()
        hanging.cancel()
        await asyncio.wait([hanging])


@pytest.mark.server
async def test_crash_of_a_shared_process_fails_only_the_calls_that_it_ran() -> None:
    async with run_target("stdio") as target, run_gateway(target) as gateway:
        alice, bob = await gateway.connect("alice"), await gateway.connect("bob")
        assert "exited during the call" in await say(alice, "crash")
        assert await say(bob, "quick") == "0"


@pytest.mark.server
@ERAS
async def test_errors_with_any_code_count_as_responses_from_the_upstream(revision: str) -> None:
    async with run_target("stdio") as target, run_gateway(target) as gateway:
        client = await gateway.connect("alice", revision)
        with pytest.raises(ServerError, match="A page is torn") as resource:
            await client.read("book://up/torn")
        with pytest.raises(ServerError, match="There is nothing to praise") as prompt:
            await client.prompt("up_praise")
        assert resource.value.code == prompt.value.code == 0
        assert gateway.figures("unanswered") == [0]


async def test_refused_connection_opens_the_breaker_immediately() -> None:
    upstream = Upstream(PER_REQUEST)
    async with AsyncExitStack() as servers, AsyncExitStack() as first, AsyncExitStack() as stack:
        server = await first.enter_async_context(misbehaving(upstream.behave))
        gateway = await stack.enter_async_context(run_gateway(server.url))
        alice, bob = await gateway.connect("alice"), await gateway.connect("bob")
        assert await say(alice, "quick") == "0"
        await first.aclose()
        assert "can't be reached" in await say(alice, "quick")
        assert "can't be reached" in await say(bob, "quick")
        await servers.enter_async_context(misbehaving(upstream.behave, server.port))
        while not (text := await say(bob, "quick")).isdecimal():
            assert "can't be " in text


async def test_api_calls_are_counted_and_rejected_like_others() -> None:
    responses = {"200": {"description": "ok", "content": {"application/json": {"schema": {"type": "object"}}}}}
    paths = {f"/{name}": {"get": {"operationId": name, "responses": responses}} for name in ("hang", "quick")}
    document = {"openapi": "3.1.0", "info": {}, "paths": paths}

    async def behave(asked: ReceivedRequest) -> None:
        if asked.path.endswith("/hang"):
            await asyncio.Event().wait()
        await asked.reply(b"{}")

    async with AsyncExitStack() as servers, AsyncExitStack() as first, AsyncExitStack() as stack:
        server = await first.enter_async_context(misbehaving(behave))
        about = OpenApi(document=document, base_url=server.url)
        gateway = await stack.enter_async_context(run_gateway(None, openapi=about))
        alice, bob = await gateway.connect("alice"), await gateway.connect("bob")
        assert await say(alice, "quick") == "{}"
        calls = [asyncio.create_task(say(alice, "hang")) for _ in range(breaker.FAILURES)]
        await until(lambda: len(server.requests) == 1 + breaker.FAILURES)
        advance_clock(SECONDS)
        for error in await asyncio.gather(*calls):
            assert "didn't respond in time" in error
        assert "failed your last 5 calls" in await say(alice, "hang")
        assert await say(bob, "quick") == "{}"
        assert gateway.figures("calls", "unanswered", "refused") == [7, 5, 1]
        await first.aclose()
        assert "can't be reached" in await say(alice, "quick")
        assert "can't be reached" in await say(bob, "quick")
        await servers.enter_async_context(misbehaving(behave, server.port))
        while (text := await say(bob, "quick")) != "{}":
            assert "can't be " in text


def test_pauses_for_a_caller_grow_until_it_gets_a_response() -> None:
    now = 0.0
    rules = breaker.Breaker(LogOnce(None, "", ""), clock=lambda: now)
    alice, bob, carol = (SimpleNamespace(owner=each, name="hang", principal=each) for each in KEYS)
    for caller in (alice, bob):
        for _ in range(breaker.FAILURES):
            assert not rules.refusal(carol, "tools/call", "hang")
            rules.fail(caller, "tools/call", "hang")
    assert not rules.refusal(carol, "tools/call", "hang")
    rules.succeed(0.1, carol, "tools/call", "hang")
    assert not rules.refusal(carol, "tools/call", "hang")
    assert rules.refusal(alice, "tools/call", "hang")
    now = 2.0
    assert not rules.refusal(alice, "tools/call", "hang")
    rules.fail(alice, "tools/call", "hang")
    now = 3.0  # the second pause is longer than the first
    assert rules.refusal(alice, "tools/call", "hang")
    rules.succeed(0.1, alice, "tools/call", "hang")
    rules.succeed(0.1, bob, "tools/call", "hang")
    assert not rules.records


async def test_log_has_only_the_beginning_of_a_relayed_method(caplog: pytest.LogCaptureFixture) -> None:
    async def behave(asked: ReceivedRequest) -> None:
        if asked.method.startswith("com.example/"):
            raise ConnectionError
        if asked.method == "tools/list":
            await asked.result({"tools": []})
        elif asked.method == "ping":
            await asked.result({})
        else:
            await with_handshake(behave, "session")(asked)

    async with asyncio.timeout(WAIT), misbehaving(behave) as server:
        mcp = Server("front")
        mcp.upstream("up", server.url, prefix="", start_timeout=WAIT)
        async with mcp.running(), Client(mcp, revision="2025-11-25") as client:
            with pytest.raises(ServerError, match="closed the connection"):
                await client.request("com.example/" + "x" * 1_000_000, {})
    assert "com.example/xxx" in caplog.text
    assert len(caplog.text) < 10_000


def test_failures_are_remembered_without_the_rest_of_a_long_method() -> None:
    rules = breaker.Breaker(LogOnce(None, "", ""))
    alice = SimpleNamespace(owner="alice", name="", principal="alice")
    method = "com.example/" + "x" * 1_000_000
    for _ in range(breaker.FAILURES):
        rules.fail(alice, method, "")
    assert [len(kept) for kept, _ in rules.records] == [200]
    assert rules.refusal(alice, method, "")
    rules.succeed(0.1, alice, method, "")
    assert not rules.records


def test_one_caller_fills_at_most_half_of_the_failure_table() -> None:
    now = 0.0
    rules = breaker.Breaker(LogOnce(None, "", ""), clock=lambda: now)
    alice, bob = (SimpleNamespace(owner=each, name="", principal=each) for each in ("alice", "bob"))
    for number in range(1000):
        rules.fail(alice, "resources/read", f"book://{number}")
    assert len(rules.records) == 500
    for _ in range(breaker.FAILURES):
        rules.fail(bob, "tools/call", "hang")
    assert rules.refusal(bob, "tools/call", "hang")
    now = 3600.0
    rules.fail(alice, "tools/call", "hang")
    assert len(rules.records) == 1
