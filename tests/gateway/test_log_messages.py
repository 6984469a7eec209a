"""The caller that a log message from an upstream reaches while several calls are running."""

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
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
            on_log=lambda log: self.logs.append(log.data),
            options=Options(log_level=level),
            timeout=WAIT,
        )

    async def meet(self, name: str) -> None:
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


async def test_one_clients_concurrent_calls_of_a_process_lose_no_logs() -> None:
    async with gateway([sys.executable, "-c", MEETING]) as mcp:
        ada = Caller(mcp)
        async with ada.client:
            for _ in range(2):
                await asyncio.gather(ada.meet("Ada"), ada.meet("Eve"))
    assert sorted(ada.logs) == ["Ada", "Ada", "Eve", "Eve"]


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


async def test_logs_of_a_process_reach_no_other_client(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "millstream.gateway")
    async with gateway([sys.executable, "-c", MEETING]) as mcp:
        ada, ben = Caller(mcp), Caller(mcp)
        async with ada.client, ben.client:
            await asyncio.gather(ada.meet("Ada"), ben.meet("Ben"))
    assert (ada.logs, ben.logs) == ([], [])
    assert json.dumps("Ada") in caplog.text


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
