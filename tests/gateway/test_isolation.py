"""Which callers share an upstream's session: whether Bob can read the value that Ada keeps in hers."""

import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from http_peer import serve
from millstream import Client, Context, Server, Settings, auth
from patience import WAIT

HANDSHAKE, PER_REQUEST = "2025-11-25", "2026-07-28"
ADA, BOB = "ada-has-a-key-of-some-length", "bob-has-another-of-some-length"
ANONYMOUS = ""
"""A client without a key, at a server without sign-in."""

COMMAND = r"""
import json, sys
kept = "nothing"
for line in sys.stdin:
    message = json.loads(line)
    method, params = message.get("method"), message.get("params", {})
    result = {}
    if method == "initialize":
        result = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": {"name": "desk"}}
    elif method == "tools/list":
        result = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in ("keep", "read")]}
    elif method == "tools/call":
        kept = params.get("arguments", {}).get("value", kept)
        result = {"content": [{"type": "text", "text": kept}]}
    if "id" in message:
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}), flush=True)
"""
"""A command that keeps a value in its only session."""


def make_desk() -> Server:
    """Return a server for a URL that keeps a value in each session."""
    desk = Server("desk")

    @desk.tool
    async def keep(value: str, ctx: Context) -> None:
        """Keep a value."""
        await ctx.session_state.set("value", value)

    @desk.tool
    async def read(ctx: Context) -> str:
        """Return the value."""
        return str(await ctx.session_state.get("value", "nothing"))

    return desk


@asynccontextmanager
async def gateway(isolation: str, *, signs_in: bool) -> AsyncIterator[str]:
    """Run a gateway in front of the desk, at a URL or as a command, and yield its URL."""
    async with AsyncExitStack() as stack:
        guard = auth.keys(named_keys={"ada": ADA, "bob": BOB}) if signs_in else None
        mcp = Server("front", auth=guard, settings=Settings(secret_key="a secret of the tests that is long enough"))
        options: dict[str, Any] = {"prefix": "", "revision": HANDSHAKE, "timeout": WAIT}
        if isolation == "url":
            behind = await stack.enter_async_context(serve(make_desk()))
            mcp.upstream("desk", f"http://127.0.0.1:{behind.port}/mcp", **options)
        else:
            command = [sys.executable, "-c", COMMAND]
            mcp.upstream("desk", command, isolation=isolation, start_timeout=WAIT, **options)
        await stack.enter_async_context(mcp.running())
        front = await stack.enter_async_context(serve(mcp))
        yield f"http://127.0.0.1:{front.port}/mcp"


def connect(url: str, key: str, revision: str) -> Client:
    """Return a client with a key."""
    return Client(url, headers={"authorization": f"Bearer {key}"} if key else {}, revision=revision, timeout=WAIT)


@pytest.mark.parametrize("revision", [HANDSHAKE, PER_REQUEST])
@pytest.mark.parametrize("isolation", ["url", "shared", "per_principal", "per_session"])
async def test_one_persons_state_reaches_another_only_in_a_shared_process(isolation: str, revision: str) -> None:
    async with (
        gateway(isolation, signs_in=True) as url,
        connect(url, ADA, revision) as ada,
        connect(url, BOB, revision) as bob,
    ):
        await ada.call("keep", value="Ada's secret")
        assert (await ada.call("read")).text == "Ada's secret"
        assert (await bob.call("read")).text == ("Ada's secret" if isolation == "shared" else "nothing")


@pytest.mark.parametrize("revision", [HANDSHAKE, PER_REQUEST])
@pytest.mark.parametrize("isolation", ["url", "shared", "per_principal", "per_session"])
@pytest.mark.parametrize("key", [ADA, ANONYMOUS], ids=["one person", "without sign-in"])
async def test_only_sessions_separate_clients_of_one_person_and_clients_without_sign_in(
    isolation: str, revision: str, key: str
) -> None:
    async with (
        gateway(isolation, signs_in=bool(key)) as url,
        connect(url, key, revision) as first,
        connect(url, key, revision) as second,
    ):
        await first.call("keep", value="of the first")
        separated = revision == HANDSHAKE and isolation in ("url", "per_session")
        assert (await second.call("read")).text == ("nothing" if separated else "of the first")
