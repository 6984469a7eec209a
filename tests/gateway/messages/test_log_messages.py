"""The caller that a log message from an upstream reaches while several calls are running."""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from mcp.server import MCPServer
from mcp.server.mcpserver import Context as OfficialContext

from http_peer import serve
from millstream import Client, Context, Server, Settings, auth
from millstream.client import Options
from patience import WAIT
from wire import MemoryPipe, per_request

HANDSHAKE, PER_REQUEST = "2025-11-25", "2026-07-28"
ALICE, BOB = "alice-has-a-key-of-some-length", "bob-has-another-of-some-length"

MEETING = r"""
import json, sys

def say(**message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)

calls = []
for line in sys.stdin:
    message = json.loads(line)
    method, result = message.get("method"), {"resultType": "complete"}
    if method == "server/discover":
        result |= {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}, "logging": {}}}
    elif method == "tools/list":
        result["tools"] = [{"name": "meet", "inputSchema": {"type": "object"}}]
    elif method == "tools/call":
        calls.append(message)
        if len(calls) % 2 == 0:
            for each in calls[-2:]:
                name = each["params"]["arguments"]["name"]
                say(method="notifications/message", params={"level": "info", "data": name})
            for each in calls[-2:]:
                say(id=each["id"], result={**result, "content": []})
        continue
    if "id" in message:
        say(id=message["id"], result=result)
"""
"""A server whose tool `meet` waits until it's called twice, logs each caller's name, and then responds."""


class Caller:
    """A client, and the log messages that it received."""

    def __init__(self, target: Any, *, revision: str = PER_REQUEST, level: str = "info", key: str = "") -> None:
        self.logs: list[Any] = []
        self.client = Client(
            target,
            revision=revision,
            headers={"authorization": f"Bearer {key}"} if key else {},
            on_log=(lambda log: self.logs.append(log.data)) if level else None,
            options=Options(log_level=level),
            timeout=WAIT,
        )

    async def meet(self, name: str) -> None:
        incoming = self.client.conversation.requests.incoming
        if incoming.on_log is None:  # which would ask for messages
            incoming.observer = lambda note: self.logs.append(note) if note.method == "notifications/message" else None
        await self.client.call("meet", name=name)


def make_meeting() -> Server:
    """Return a server whose tool `meet` logs its caller's name once it's called twice."""
    upstream, names, both = Server("meeting"), list[str](), asyncio.Event()

    @upstream.tool
    async def meet(name: str, context: Context) -> None:
        names.append(name)
        if len(names) == 2:
            both.set()
        await both.wait()
        await context.log("info", name)

    return upstream


def make_official_meeting() -> MCPServer:
    """Return a program for the official SDK with the same tool."""
    program, names, both = MCPServer("meeting"), list[str](), asyncio.Event()

    @program.tool()
    async def meet(name: str, ctx: OfficialContext[Any, Any]) -> str:
        names.append(name)
        if len(names) == 2:
            both.set()
        await both.wait()
        await ctx.log("info", name)  # pyright: ignore[reportDeprecated]
        return name

    return program


@asynccontextmanager
async def gateway(target: Any, **options: Any) -> AsyncIterator[Server]:
    """Run a gateway with one upstream."""
    mcp = Server("front")
    mcp.upstream("meeting", target, **{"prefix": "", "start_timeout": WAIT, "timeout": WAIT, **options})
    async with asyncio.timeout(WAIT), mcp.running():
        yield mcp


@pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
@pytest.mark.parametrize("make", [make_meeting, make_official_meeting])
@pytest.mark.parametrize("revision", [HANDSHAKE, PER_REQUEST])
async def test_logs_of_a_server_in_this_process_reach_the_client_of_their_call(make: Any, revision: str) -> None:
    for upstream_revision in (None, HANDSHAKE, PER_REQUEST):
        async with gateway(make(), revision=upstream_revision) as mcp:
            ada, ben = Caller(mcp, revision=revision), Caller(mcp, revision=revision)
            async with ada.client, ben.client:
                await asyncio.gather(ada.meet("Ada"), ben.meet("Ben"))
        assert (ada.logs, ben.logs) == (["Ada"], ["Ben"]), upstream_revision


async def test_client_that_asked_for_no_logs_gets_none_of_another_call() -> None:
    async with gateway(make_meeting()) as mcp:
        ada, ben = Caller(mcp), Caller(mcp, level="")
        async with ada.client, ben.client:
            await asyncio.gather(ada.meet("Ada"), ben.meet("Ben"))
    assert (ada.logs, ben.logs) == (["Ada"], [])


@pytest.mark.server
async def test_one_clients_concurrent_calls_of_a_process_lose_no_logs() -> None:
    async with gateway([sys.executable, "-c", MEETING]) as mcp:
        ada = Caller(mcp)
        async with ada.client:
            for _ in range(2):
                await asyncio.gather(ada.meet("Ada"), ada.meet("Eve"))
    assert sorted(ada.logs) == ["Ada", "Ada", "Eve", "Eve"]


@pytest.mark.server
async def test_log_that_only_the_later_of_two_calls_wants_is_not_lost() -> None:
    async with gateway([sys.executable, "-c", MEETING], prefix="a") as mcp, mcp.running() as running:
        pipe = MemoryPipe(running.dispatcher)
        for number, level in ((1, "emergency"), (2, "info")):
            asked = per_request("tools/call", {"name": "a_meet", "arguments": {"name": level}}, number)
            asked["params"]["_meta"]["io.modelcontextprotocol/logLevel"] = level
            pipe.send(json.dumps(asked).encode())
        received = [json.loads(await pipe.receive()) for _ in range(4)]
        await pipe.close()
    heard = [each["params"]["data"] for each in received if each.get("method") == "notifications/message"]
    assert heard == ["emergency", "info"]


@pytest.mark.server
async def test_logs_of_a_process_reach_no_other_client(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "millstream.gateway")
    async with gateway([sys.executable, "-c", MEETING]) as mcp:
        ada, ben = Caller(mcp), Caller(mcp)
        async with ada.client, ben.client:
            await asyncio.gather(ada.meet("Ada"), ben.meet("Ben"))
    assert (ada.logs, ben.logs) == ([], [])
    assert json.dumps("Ada") in caplog.text


@pytest.mark.server
@pytest.mark.parametrize("keys", [(ALICE, ALICE), (ALICE, BOB), ("", "")], ids=["one", "two", "anonymous"])
async def test_logs_of_a_process_reach_concurrent_requests_of_one_principal(keys: tuple[str, str]) -> None:
    guard = auth.keys(named_keys={"alice": ALICE, "bob": BOB}) if any(keys) else None
    mcp = Server("front", auth=guard, settings=Settings(secret_key="a secret of the tests that is long enough"))
    mcp.upstream("meeting", [sys.executable, "-c", MEETING], prefix="", start_timeout=WAIT, timeout=WAIT)
    async with asyncio.timeout(WAIT), mcp.running(), serve(mcp) as running:
        one, other = (Caller(f"http://127.0.0.1:{running.port}/mcp", key=key) for key in keys)
        async with one.client, other.client:
            await asyncio.gather(one.meet("Ada"), other.meet("Ben"))
    heard = sorted([*one.logs, *other.logs])
    assert heard == (["Ada", "Ben"] if keys == (ALICE, ALICE) else [])


MANY = 3000
CHATTER = r"""
import json, sys

for line in sys.stdin:
    message = json.loads(line)
    method, params, result = message.get("method"), message.get("params", {}), {}
    if method == "server/discover":
        result = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}, "logging": {}}}
    elif method == "initialize":
        about = {"name": "chatter", "version": "1"}
        result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}, "logging": {}}, "serverInfo": about}
    elif method == "tools/list":
        result["tools"] = [{"name": "talk", "inputSchema": {"type": "object"}}]
    texts = []
    if method == "tools/call":
        result["content"] = []
        token = params["_meta"]["progressToken"]
        for number in range(1, params["arguments"]["count"] + 1):
            step, log = {"progressToken": token, "progress": number}, {"level": "info", "data": number}
            texts += [("notifications/progress", step), ("notifications/message", log)]
    said = [{"jsonrpc": "2.0", "method": name, "params": params} for name, params in texts]
    if "id" in message:
        said.append({"jsonrpc": "2.0", "id": message["id"], "result": {"resultType": "complete", **result}})
    sys.stdout.write("".join(json.dumps(each) + "\n" for each in said))
    sys.stdout.flush()
"""
"""A server of both eras whose tool `talk` writes all its messages and its result at once."""


def make_chatter() -> Server:
    upstream = Server("chatter")

    @upstream.tool
    async def talk(count: int, context: Context) -> None:
        for number in range(1, count + 1):
            await context.progress(number)
            await context.log("info", number)

    return upstream


def make_official_chatter() -> MCPServer:
    program = MCPServer("chatter")

    @program.tool()
    async def talk(count: int, ctx: OfficialContext[Any, Any]) -> None:
        for number in range(1, count + 1):
            await ctx.report_progress(number)
            await ctx.log("info", number)  # pyright: ignore[reportDeprecated]

    return program


@pytest.mark.filterwarnings("ignore::mcp.shared.exceptions.MCPDeprecationWarning")
@pytest.mark.parametrize("revision", [HANDSHAKE, PER_REQUEST])
@pytest.mark.parametrize("prefix", ["", "far"], ids=["relay", "catalog"])
@pytest.mark.parametrize("kind", ["server", "program", pytest.param("command", marks=pytest.mark.server), "URL"])
async def test_every_message_of_a_call_arrives_in_order(kind: str, prefix: str, revision: str) -> None:
    async with AsyncExitStack() as stack:
        target: Any = {"program": make_official_chatter, "command": lambda: [sys.executable, "-c", CHATTER]}.get(
            kind, make_chatter
        )()
        if kind == "URL":
            running = await stack.enter_async_context(serve(target))
            target = f"http://127.0.0.1:{running.port}/mcp"
        mcp = await stack.enter_async_context(gateway(target, prefix=prefix))
        front = await stack.enter_async_context(serve(mcp))
        caller, steps = Caller(f"http://127.0.0.1:{front.port}/mcp", revision=revision), list[float]()
        async with caller.client as client:
            name = "far_talk" if prefix else "talk"
            await client.call(name, count=MANY, progress=lambda step, *_: steps.append(step))
    assert caller.logs == list(range(1, MANY + 1))
    assert steps == list(range(1, MANY + 1))
