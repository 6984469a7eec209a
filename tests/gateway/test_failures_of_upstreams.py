"""What the log, `doctor`, `/health`, the gateway page, and the caller say about an upstream that fails after it worked.

`doctor` and `/health` show `describe_states`, and the page `describe`.
"""

import asyncio
import os
import signal
import sys
from contextlib import AsyncExitStack
from typing import Any

import pytest

from cases import for_each
from client.misbehaving_servers import ReceivedRequest, misbehaving, with_handshake
from fleet import until
from http_peer import serve
from millstream import Client, Server
from millstream.gateway import OpenApi
from patience import WAIT
from processes import free_port

TOOL = {"name": "add", "inputSchema": {"type": "object"}}


class Front:
    """A running gateway with one upstream, and what its operator sees."""

    def __init__(self, runtime: Any, client: Client, log: pytest.LogCaptureFixture) -> None:
        self._gateway = runtime.host.gateway
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

    async def call(self) -> str:
        """Return the text that a caller reads."""
        return (await self.client.call("up_add", raise_on_error=False)).text


async def open_front(stack: AsyncExitStack, target: Any, log: pytest.LogCaptureFixture, **options: Any) -> Front:
    mcp = Server("front")
    mcp.upstream("up", target, **{"start_timeout": WAIT, "timeout": WAIT, **options})
    runtime = await stack.enter_async_context(mcp.running())
    client = await stack.enter_async_context(Client(mcp, timeout=WAIT))
    return Front(runtime, client, log)


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
        assert "tools/call up_add of the upstream up failed" in caplog.text


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
