"""Which callers share an upstream's session: whether Bob can read the value that Ada keeps in hers."""

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count, product
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cases import for_each
from client.misbehaving_servers import OFFER, ReceivedRequest, misbehaving, with_handshake
from fleet import until
from http_peer import serve
from millstream import Client, Context, Server, Settings, auth
from millstream.client import ToolFailed
from patience import WAIT
from processes import free_port

HANDSHAKE, PER_REQUEST = "2025-11-25", "2026-07-28"
ADA, BOB = "ada-has-a-key-of-some-length", "bob-has-another-of-some-length"
ANONYMOUS = ""
"""A client without a key, at a server without sign-in."""

COMMAND = r"""
import json, os, sys
kept = "nothing"
for line in sys.stdin:
    message = json.loads(line)
    method, params = message.get("method"), message.get("params", {})
    result = {}
    if method == "initialize":
        result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "desk"}}
    elif method == "tools/list":
        result = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in ("keep", "read", "pid")]}
    elif method == "tools/call":
        kept = params.get("arguments", {}).get("value", kept)
        result = {"content": [{"type": "text", "text": str(os.getpid()) if params["name"] == "pid" else kept}]}
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""
"""A command that keeps a value in its only session."""


def make_desk(**options: Any) -> Server:
    """Return a server for a URL that keeps a value in each session."""
    desk = Server("desk", **options)

    @desk.tool
    async def keep(value: str, ctx: Context) -> None:
        """Keep a value."""
        await ctx.session_state.set("value", value)

    @desk.tool
    async def read(ctx: Context) -> str:
        """Return the value."""
        return str(await ctx.session_state.get("value", "nothing"))

    @desk.tool
    async def ask(ctx: Context) -> str:
        """Keep the answer to a question."""
        answer = await ctx.elicit("Whose?", str)
        await ctx.session_state.set("value", answer)
        return f"{answer}, {await ctx.session_state.get('value')}"

    return desk


PEOPLE = {"ada": ADA, "bob": BOB}


@asynccontextmanager
async def gateway(
    isolation: str | None,
    *,
    at_url: bool = False,
    people: Mapping[str, str] | None = None,
    store: str = "memory://",
    **more: Any,
) -> AsyncIterator[str]:
    """Run a gateway in front of the desk, at a URL or as a command, and yield its URL."""
    async with AsyncExitStack() as stack:
        guard = auth.keys(named_keys=people) if people else None
        mcp = Server(
            "front", auth=guard, settings=Settings(store=store, secret_key="a secret of the tests that is long")
        )
        options: dict[str, Any] = {"prefix": "", "timeout": WAIT, "start_timeout": WAIT, **more}
        if at_url:
            behind = await stack.enter_async_context(serve(make_desk()))
            mcp.upstream("desk", f"http://127.0.0.1:{behind.port}/mcp", isolation=isolation, **options)
        else:
            mcp.upstream("desk", [sys.executable, "-c", COMMAND], isolation=isolation, **options)
        await stack.enter_async_context(mcp.running())
        front = await stack.enter_async_context(serve(mcp))
        yield f"http://127.0.0.1:{front.port}/mcp"


def connect(url: str, key: str, revision: str) -> Client:
    """Return a client with a key."""
    return Client(url, headers={"authorization": f"Bearer {key}"} if key else {}, revision=revision, timeout=WAIT)


async def until_exited(pid: int) -> None:
    """Wait until a process has exited and was reaped."""
    await until(lambda: not Path(f"/proc/{pid}").exists())


for_each_revision = pytest.mark.parametrize("revision", [HANDSHAKE, PER_REQUEST])
CATALOG = {"revision": HANDSHAKE}
"""Options of an upstream that isn't relayed, and that uses the handshake."""


@pytest.mark.server
@for_each_revision
@pytest.mark.parametrize(
    ("isolation", "more"),
    [
        *product((None, "shared", "per_principal", "per_session"), ({}, CATALOG)),
        *product((None, "shared"), [{"at_url": True, **CATALOG}]),
    ],
)
async def test_one_persons_state_reaches_another_only_in_a_shared_process(
    isolation: str | None, revision: str, more: dict[str, Any]
) -> None:
    async with (
        gateway(isolation, people=PEOPLE, **more) as url,
        connect(url, ADA, revision) as ada,
        connect(url, BOB, revision) as bob,
    ):
        await ada.call("keep", value="Ada's secret")
        assert (await ada.call("read")).text == "Ada's secret"
        is_shared = isolation == "shared" and "at_url" not in more
        assert (await bob.call("read")).text == ("Ada's secret" if is_shared else "nothing")


@pytest.mark.server
@for_each_revision
@pytest.mark.parametrize("isolation", [None, "shared", "per_principal", "per_session"])
@pytest.mark.parametrize("people", [{"ada": ADA}, {}], ids=["one person", "without sign-in"])
async def test_clients_of_one_person_and_clients_without_sign_in_share_a_process(
    isolation: str | None, revision: str, people: dict[str, str]
) -> None:
    key = people.get("ada", ANONYMOUS)
    async with (
        gateway(isolation, people=people, **CATALOG) as url,
        connect(url, key, revision) as first,
        connect(url, key, revision) as second,
    ):
        await first.call("keep", value="of the first")
        separated = revision == HANDSHAKE and isolation == "per_session"
        assert (await second.call("read")).text == ("nothing" if separated else "of the first")


@pytest.mark.server
async def test_one_person_uses_the_process_that_lists_the_tools() -> None:
    async with gateway(None, people={"ada": ADA}, max_processes=1) as url, connect(url, ADA, PER_REQUEST) as ada:
        assert (await ada.call("keep", value="mine")).text == "mine"


@pytest.mark.server
@for_each_revision
async def test_process_of_the_only_person_stays_separate_when_the_keys_change(revision: str, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"

    def keys(command: str, name: str) -> str:
        arguments = [sys.executable, "-m", "millstream", "keys", command, name, "--file", str(file)]
        return subprocess.run(arguments, capture_output=True, text=True, check=True).stdout

    def add(name: str) -> str:
        return next(word for word in keys("add", name).split() if word.startswith("ms_"))

    ada = add("ada")
    mcp = Server("front", auth=auth.keys(file=file))
    mcp.upstream("desk", [sys.executable, "-c", COMMAND], prefix="", start_timeout=WAIT, timeout=WAIT)
    async with mcp.running() as runtime, serve(mcp) as running:
        url = f"http://127.0.0.1:{running.port}/mcp"

        async def use(key: str, tool: str, **arguments: str) -> str:
            assert runtime.guard is not None
            runtime.guard.refresh()
            async with connect(url, key, revision) as client:
                return (await client.call(tool, arguments)).text

        await use(ada, "keep", value="Ada's secret")
        cleo = add("cleo")
        assert [await use(each, "read") for each in (cleo, ada)] == ["nothing", "Ada's secret"]
        keys("revoke", "ada")
        keys("revoke", "cleo")
        bob = add("bob")
        assert await use(bob, "read") == "nothing"


async def test_calls_without_sign_in_have_a_session_each_at_a_url_that_keeps_sessions() -> None:
    async with (
        gateway(None, at_url=True, **CATALOG) as url,
        connect(url, ANONYMOUS, PER_REQUEST) as ada,
        connect(url, ANONYMOUS, HANDSHAKE) as bob,
    ):
        await ada.call("keep", value="Ada's secret")
        assert (await ada.call("read")).text == "nothing"
        await bob.call("keep", value="Bob's secret")
        assert (await bob.call("read")).text == "Bob's secret"
        assert (await ada.call("read")).text == "nothing"


async def test_call_that_asks_keeps_its_session_until_it_ends() -> None:
    desk = make_desk()
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(serve(desk))
        mcp = Server("front")
        mcp.upstream("desk", f"http://127.0.0.1:{behind.port}/mcp", prefix="", start_timeout=WAIT, **CATALOG)
        runtime = await stack.enter_async_context(mcp.running())
        front = await stack.enter_async_context(serve(mcp))
        options: dict[str, Any] = {"revision": PER_REQUEST, "timeout": WAIT}
        url = f"http://127.0.0.1:{front.port}/mcp"
        async with (
            Client(url, elicit=lambda _: {"value": "Ada's"}, **options) as ada,
            Client(url, elicit=lambda _: {"value": "Bob's"}, **options) as bob,
        ):
            results = await asyncio.gather(*(each.call("ask") for each in (ada, bob)))
            assert [each.text for each in results] == ["Ada's, Ada's", "Bob's, Bob's"]
            await until(lambda: runtime.host.gateway.describe()[0]["links"] == 1)  # the one for lists


async def test_callers_without_sign_in_share_a_session_at_a_url_if_the_operator_wants_that() -> None:
    async with (
        gateway("shared", at_url=True, **CATALOG) as url,
        connect(url, ANONYMOUS, PER_REQUEST) as ada,
        connect(url, ANONYMOUS, PER_REQUEST) as bob,
    ):
        await ada.call("keep", value="for everyone")
        assert (await bob.call("read")).text == "for everyone"


class Carts:
    """A server at a URL that has only the handshake, and a value in each session."""

    def __init__(self) -> None:
        self.kept: dict[str, str] = {}
        """Open session -> its value."""
        self.numbers = count(1)
        self.asked = asyncio.Event()
        """Set when a client has asked for a session."""
        self.opens = asyncio.Event()
        """Set while sessions are created without delay."""
        self.opens.set()

    async def behave(self, asked: ReceivedRequest) -> None:
        session = asked.headers.get("mcp-session-id", "")
        if session and session not in self.kept:
            await asked.reply(b"", status="404 Not Found")
        elif asked.verb == "DELETE":
            del self.kept[session]
            await asked.reply(b"")
        elif asked.method == "initialize":
            session = f"session-{next(self.numbers)}"
            self.kept[session] = "nothing"
            self.asked.set()
            await self.opens.wait()
            await with_handshake(self.behave, session)(asked)
        elif asked.method == "tools/list":
            await asked.result({"tools": [{"name": each, "inputSchema": {"type": "object"}} for each in TOOLS]})
        elif asked.method == "tools/call":
            self.kept[session] = asked.message["params"].get("arguments", {}).get("value", self.kept[session])
            await asked.result({"content": [{"type": "text", "text": self.kept[session]}]})
        else:
            await with_handshake(self.behave)(asked)


TOOLS = "keep", "read"
ACCEPT = "application/json, text/event-stream"
META = {
    "io.modelcontextprotocol/protocolVersion": PER_REQUEST,
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


@asynccontextmanager
async def relay(**options: Any) -> AsyncIterator[tuple[str, Carts]]:
    """Relay such a server, and yield the URL of the relay."""
    carts = Carts()
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(misbehaving(carts.behave))
        mcp = Server("front", serve="rest")
        mcp.upstream("carts", behind.url, prefix="", start_timeout=WAIT, timeout=WAIT, **options)
        await stack.enter_async_context(mcp.running())
        front = await stack.enter_async_context(serve(mcp))
        yield f"http://127.0.0.1:{front.port}", carts


async def test_relay_offers_the_handshake_to_clients_without_sign_in_if_its_upstream_keeps_sessions() -> None:
    async with relay() as (url, _):
        async with httpx2.AsyncClient(timeout=WAIT) as http:
            for method, name in (("server/discover", ""), ("tools/list", ""), ("tools/call", "read")):
                params = {"_meta": META, **({"name": name} if name else {})}
                head = {"mcp-protocol-version": PER_REQUEST, "mcp-method": method, "mcp-name": name, "accept": ACCEPT}
                message = {"jsonrpc": "2.0", "id": 1, "method": method, "params": params}
                reply = await http.post(f"{url}/mcp", json=message, headers={k: v for k, v in head.items() if v})
                error = reply.json()["error"]
                assert (reply.status_code, error["code"], error["data"]["supported"][-1]) == (400, -32022, HANDSHAKE)
        async with Client(f"{url}/mcp", timeout=WAIT) as ada, Client(f"{url}/mcp", timeout=WAIT) as bob:
            assert ada.revision == bob.revision == HANDSHAKE
            await ada.call("keep", value="Ada's secret")
            assert [(await each.call("read")).text for each in (ada, bob)] == ["Ada's secret", "nothing"]


async def test_relay_serves_clients_without_sign_in_in_one_session_if_the_operator_wants_that() -> None:
    async with (
        relay(isolation="shared") as (url, _),
        connect(f"{url}/mcp", "", PER_REQUEST) as ada,
        connect(f"{url}/mcp", "", PER_REQUEST) as bob,
    ):
        await ada.call("keep", value="for everyone")
        assert (await bob.call("read")).text == "for everyone"


async def test_rest_calls_have_a_session_each_which_ends_with_the_call() -> None:
    async with relay() as (url, carts), httpx2.AsyncClient(base_url=url, timeout=WAIT) as http:
        before = len(carts.kept)
        for name, body in (("keep", {"value": "Ada's secret"}), ("read", {})):
            reply = await http.post(f"/tools/{name}", json=body)
            assert ("secret" in reply.text) == (name == "keep"), reply.text
        await until(lambda: len(carts.kept) == before)


@pytest.mark.parametrize("prefix", ["", "far"], ids=["relay", "catalog"])
async def test_client_of_a_refused_revision_takes_no_session_from_others(prefix: str) -> None:
    carts = Carts()

    async def behave(asked: ReceivedRequest) -> None:
        """Serve both eras, but only one revision of the handshake."""
        if asked.method == "server/discover":
            await asked.result({**OFFER, "capabilities": {"tools": {}}})
        elif asked.method == "subscriptions/listen":
            await asked.error(-32601, "Method not found")
        elif asked.method == "initialize" and asked.message["params"]["protocolVersion"] != HANDSHAKE:
            await asked.error(-32602, "Unsupported protocol version", {"supported": [HANDSHAKE]})
        elif asked.method == "tools/list":
            tools = [{"name": each, "inputSchema": {"type": "object"}} for each in TOOLS]
            await asked.result({"resultType": "complete", "ttlMs": 0, "cacheScope": "public", "tools": tools})
        elif asked.method == "tools/call" and "mcp-session-id" not in asked.headers:
            await asked.result({"resultType": "complete", "content": [{"type": "text", "text": "no session"}]})
        else:
            await carts.behave(asked)

    keep, read = (f"{prefix}_{name}" if prefix else name for name in TOOLS)
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(misbehaving(behave))
        mcp = Server("front")
        mcp.upstream("carts", behind.url, prefix=prefix, start_timeout=WAIT, timeout=WAIT)
        await stack.enter_async_context(mcp.running())
        front = await stack.enter_async_context(serve(mcp))
        url = f"http://127.0.0.1:{front.port}/mcp"
        async with connect(url, ANONYMOUS, HANDSHAKE) as ada, connect(url, ANONYMOUS, "2024-11-05") as eve:
            await ada.call(keep, value="Ada's secret")
            assert (await eve.call(read)).text == "no session"
            assert (await ada.call(read)).text == "Ada's secret"
        async with connect(url, ANONYMOUS, HANDSHAKE) as bob:
            assert (await bob.call(read)).text == "nothing"


@for_each_revision
async def test_session_that_a_caller_gave_up_while_it_was_opened_ends_at_the_upstream(revision: str) -> None:
    async with relay(**CATALOG) as (url, carts), httpx2.AsyncClient(base_url=url, timeout=WAIT) as http:
        before = len(carts.kept)
        carts.asked.clear()
        carts.opens.clear()
        async with connect(f"{url}/mcp", ANONYMOUS, revision) as ada:
            call = asyncio.create_task(ada.call("read"))
            await carts.asked.wait()
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        rest = asyncio.create_task(http.post("/tools/read", json={}))
        await until(lambda: len(carts.kept) == before + 2)
        rest.cancel()
        await asyncio.gather(rest, return_exceptions=True)
        carts.opens.set()
        await until(lambda: len(carts.kept) == before)


@pytest.mark.server
async def test_lost_state_of_a_process_is_reported_once_to_its_principal() -> None:
    async with (
        gateway(None, people=PEOPLE) as url,
        connect(url, ADA, PER_REQUEST) as ada,
        connect(url, BOB, PER_REQUEST) as bob,
    ):
        await ada.call("keep", value="Ada's secret")
        await bob.call("keep", value="Bob's secret")
        pid = int((await ada.call("pid")).text)
        os.kill(pid, signal.SIGKILL)
        await until_exited(pid)
        with pytest.raises(ToolFailed, match="lost its state"):
            await ada.call("read")
        assert (await ada.call("read")).text == "nothing"
        assert (await bob.call("read")).text == "Bob's secret"


@pytest.mark.server
async def test_state_lost_with_an_idle_process_is_reported_once_even_after_a_restart(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/gateway.db"
    async with (
        gateway(None, people=PEOPLE, store=store, idle_seconds=0.01) as url,
        connect(url, ADA, PER_REQUEST) as ada,
    ):
        await until_exited(int((await ada.call("pid")).text))
        with pytest.raises(ToolFailed, match="lost its state"):
            await ada.call("read")
        assert (await ada.call("keep", value="Ada's secret")).text == "Ada's secret"
    async with gateway(None, people=PEOPLE, store=store) as url, connect(url, ADA, PER_REQUEST) as ada:
        with pytest.raises(ToolFailed, match="lost its state"):
            await ada.call("read")
        assert (await ada.call("read")).text == "nothing"


@pytest.mark.server
async def test_process_with_state_is_kept_while_idle_if_the_operator_wants_that() -> None:
    command = [sys.executable, "-c", COMMAND]
    mcp = Server("front", auth=auth.keys(named_keys=PEOPLE))
    for name, seconds in (("kept", 0), ("brief", 0.01)):
        mcp.upstream(name, command, idle_seconds=seconds, start_timeout=WAIT, timeout=WAIT)
    async with mcp.running(), serve(mcp) as front, connect(f"http://127.0.0.1:{front.port}/mcp", ADA, HANDSHAKE) as ada:
        await ada.call("kept_keep", value="Ada's secret")
        await until_exited(int((await ada.call("brief_pid")).text))  # the same check has seen both
        assert (await ada.call("kept_read")).text == "Ada's secret"


async def test_session_at_a_url_that_ended_is_reported_once_to_its_principal() -> None:
    for prefix in ("", "far_"):
        carts = Carts()
        async with misbehaving(carts.behave) as behind:
            mcp = Server("front", auth=auth.keys(named_keys=PEOPLE))
            mcp.upstream("carts", behind.url, prefix=prefix.rstrip("_"), start_timeout=WAIT, timeout=WAIT)
            async with mcp.running(), serve(mcp) as front:
                url = f"http://127.0.0.1:{front.port}/mcp"
                async with connect(url, ADA, PER_REQUEST) as ada:
                    await ada.call(f"{prefix}keep", value="Ada's secret")
                    carts.kept.clear()  # as after a restart
                    lost = await asyncio.gather(*(ada.call(f"{prefix}read") for _ in range(8)), return_exceptions=True)
                    assert all("lost its state" in str(each) for each in lost), lost
                    for value in ("second", "third"):
                        await ada.call(f"{prefix}keep", value=value)
                    assert (await ada.call(f"{prefix}read")).text == "third"


class Gate:
    """Middleware that holds calls until a number of them have arrived."""

    def __init__(self) -> None:
        self.close(1)

    def close(self, number: int) -> asyncio.Event:
        """Hold later calls until there are `number`. Return the event that lets them through."""
        self._number, self.opens, self.calls = number, asyncio.Event(), list[Any]()
        return self.opens

    async def on_call(self, request: Any, call_next: Any) -> Any:
        opens = self.opens
        self.calls.append(request.context._call)
        if len(self.calls) == self._number:
            opens.set()
        await opens.wait()
        return await call_next(request)


@asynccontextmanager
async def over_a_restart(key: str, store: str) -> AsyncIterator[tuple[Client, Gate]]:
    """Yield the client of a session whose state a restart has lost, and a gate that holds calls at the upstream."""
    gate, port = Gate(), free_port()

    @asynccontextmanager
    async def front() -> AsyncIterator[None]:
        settings = Settings(store=store, secret_key="a secret of the tests that is long")
        guard = auth.keys(named_keys=PEOPLE) if key else None
        mcp = Server("front", auth=guard, settings=settings, middleware=[gate])
        mcp.upstream("carts", behind.url, prefix="", start_timeout=WAIT, timeout=WAIT)
        async with mcp.running(), serve(mcp, port=port):
            yield

    async with misbehaving(Carts().behave) as behind, AsyncExitStack() as stack:
        async with front():
            revision = PER_REQUEST if key else HANDSHAKE
            ada = await stack.enter_async_context(connect(f"http://127.0.0.1:{port}/mcp", key, revision))
            await ada.call("keep", value="Ada's secret")
        async with front():
            yield ada, gate
            await stack.aclose()


async def read_text(client: Client) -> str:
    return (await client.call("read", raise_on_error=False)).text


for_each_owner = for_each(
    ("key", "store"),
    [(ANONYMOUS, "memory://"), (ANONYMOUS, "sqlite:///{}/session.db"), (ADA, "sqlite:///{}/principal.db")],
)
"""Owners of a session at a URL: a client's session, and a principal. The gateway's store may be new after a restart."""


@for_each_owner
@for_each("opened", [False, True])
async def test_calls_that_arrive_together_all_fail_if_their_session_was_lost(
    key: str, store: str, opened: bool, tmp_path: Path
) -> None:
    async with over_a_restart(key, store.format(tmp_path)) as (ada, gate):
        if opened:
            await ada.list_tools()
        gate.close(8)
        texts = await asyncio.gather(*(read_text(ada) for _ in range(8)))
        assert all("lost its state" in each for each in texts), texts
        texts = await asyncio.gather(*(read_text(ada) for _ in range(8)))
        assert texts == ["nothing"] * 8


@for_each_owner
async def test_call_that_began_before_another_one_reported_a_loss_fails_too(
    key: str, store: str, tmp_path: Path
) -> None:
    async with over_a_restart(key, store.format(tmp_path)) as (ada, gate):
        opens = gate.close(2)
        early = asyncio.create_task(read_text(ada))
        await until(lambda: any(each.started for each in gate.calls))
        gate.close(1)
        assert "lost its state" in await read_text(ada)
        assert await read_text(ada) == "nothing"
        opens.set()
        assert "lost its state" in await early
        assert await read_text(ada) == "nothing"


@for_each("path", ["/ws", "/sse"])
@for_each("revision", [HANDSHAKE, PER_REQUEST])
async def test_session_that_ends_during_a_call_is_reported_by_its_error(revision: str, path: str) -> None:
    port, started = free_port(), asyncio.Event()

    async def hold() -> None:
        started.set()
        await asyncio.get_running_loop().create_future()

    url = f"{'ws' if path == '/ws' else 'http'}://127.0.0.1:{port}{path}"
    async with AsyncExitStack() as stack:
        behind = await stack.enter_async_context(AsyncExitStack())
        desk = make_desk(serve="hub")
        desk.tool(hold)
        await behind.enter_async_context(serve(desk, port=port))
        mcp = Server("front", auth=auth.keys(named_keys=PEOPLE))
        mcp.upstream("desk", url, prefix="desk", revision=HANDSHAKE, start_timeout=WAIT, timeout=WAIT)
        await stack.enter_async_context(mcp.running())
        front = await stack.enter_async_context(serve(mcp))
        ada = await stack.enter_async_context(connect(f"http://127.0.0.1:{front.port}/mcp", ADA, revision))
        await ada.call("desk_keep", value="Ada's secret")
        call = asyncio.create_task(ada.call("desk_hold", raise_on_error=False))
        await started.wait()
        await behind.aclose()
        text = (await call).text
        assert "closed the connection during the call" in text
        assert text.endswith("Its session with you and its state are lost.")
        await behind.enter_async_context(serve(make_desk(serve="hub"), port=port))
        texts = [(await ada.call("desk_read", raise_on_error=False)).text for _ in range(2)]
        assert texts[1] == "nothing"
        assert not any("lost its state" in each for each in texts)


@pytest.mark.server
async def test_process_with_state_is_not_stopped_for_another_principal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._server.pool.WAIT_TIMEOUT", 0.01)
    async with (
        gateway(None, people=PEOPLE, max_processes=2) as url,
        connect(url, ADA, PER_REQUEST) as ada,
        connect(url, BOB, PER_REQUEST) as bob,
    ):
        await ada.call("keep", value="Ada's secret")
        with pytest.raises(ToolFailed, match=r'raise max_processes, or .* isolation = "shared"'):
            await bob.call("read")
        assert (await ada.call("read")).text == "Ada's secret"


@pytest.mark.server
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"people": PEOPLE}, "each signed-in caller of desk has a process, at most 64 per worker"),
        ({}, "all callers of desk share one process, and what it remembers"),
        ({"people": PEOPLE, "isolation": "shared"}, "all callers of desk share one process, and what it remembers"),
        ({"people": PEOPLE, "isolation": "per_session"}, ""),
    ],
)
async def test_log_describes_what_callers_share(
    options: dict[str, Any], told: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with gateway(**{"isolation": None, **options}):
        found = [each for each in caplog.messages if each.startswith("Isolation: ")]
    assert [told in each and "MiB" in each for each in found] == [True] * bool(told)


@pytest.mark.server
async def test_doctor_describes_what_callers_share() -> None:
    async with gateway(None) as url:
        command = [sys.executable, "-m", "millstream", "doctor", url, "--json"]
        doctor = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        printed, _ = await doctor.communicate()
    steps = {each["name"]: each["found"] for each in json.loads(printed)["steps"]}
    assert "all callers of desk share one process, and what it remembers. Each takes" in steps["isolation"]


async def test_log_says_that_a_url_keeps_sessions(caplog: pytest.LogCaptureFixture) -> None:
    async with relay():
        assert "clients of revision 2026-07-28, which has none, have to use an earlier one" in caplog.text
