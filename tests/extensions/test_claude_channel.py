import asyncio
import json
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import http_peer
from extensions.event_shop import ADA, OrderPaid, events_of, make_shop
from patience import WAIT
from processes import ROOT, kill_with_parent

COMMAND = [sys.executable, "-c", "from millstream._cli import main; main()", "channel"]


class Claude:
    """The client side of the command's standard streams."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    async def send(self, message: dict[str, Any]) -> None:
        """Write one message."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        await self.process.stdin.drain()

    async def read(self) -> dict[str, Any]:
        """Read one message."""
        assert self.process.stdout is not None
        message: dict[str, Any] = json.loads(await self.process.stdout.readline())
        return message


@asynccontextmanager
async def _channel(*arguments: str) -> AsyncGenerator[Claude]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *kill_with_parent([*COMMAND, *arguments]), stdin=pipe, stdout=pipe, stderr=pipe
    )
    try:
        async with asyncio.timeout(WAIT):
            yield Claude(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_events_become_channel_messages() -> None:
    shop = make_shop()
    async with http_peer.serve(shop) as served:
        url = f"http://127.0.0.1:{served.port}/mcp"
        # docs/guides/events.md: the entry for `.mcp.json`
        entry = json.loads((ROOT / "examples/claude-channel.json").read_text("utf-8"))["mcpServers"]["shop-events"]
        command, _, *arguments = entry["args"]
        assert (entry["command"], command) == ("millstream", "channel")
        async with _channel(url, *arguments, "--auth", ADA) as claude:
            params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "c", "version": "1"}}
            await claude.send({"id": 1, "method": "initialize", "params": params})
            opened = (await claude.read())["result"]
            assert opened["capabilities"]["experimental"] == {"claude/channel": {}}
            assert "shop" in opened["instructions"]
            await events_of(shop).publish(OrderPaid("1"))  # published before the session is ready
            await claude.send({"method": "notifications/initialized"})
            await events_of(shop).publish(OrderPaid("2", "bob"))
            await events_of(shop).publish(OrderPaid("3"), id="evt_3")
            first, second = await claude.read(), await claude.read()
            assert first["method"] == second["method"] == "notifications/claude/channel"
            assert [json.loads(each["params"]["content"])["order"] for each in (first, second)] == ["1", "3"]
            assert second["params"]["meta"]["event"] == "order.paid"
            assert second["params"]["meta"]["event_id"] == "evt_3"
            assert claude.process.stdin is not None
            claude.process.stdin.close()
            assert await claude.process.wait() == 0
        await shop.stop()


async def test_unknown_events_end_the_command() -> None:
    shop = make_shop()
    async with http_peer.serve(shop) as served:
        url = f"http://127.0.0.1:{served.port}/mcp"
        for arguments, said in (
            (["--event", "order.payed"], "order.paid"),
            (["--event", "order.paid", "--where", "color=red"], "customer"),
        ):
            async with _channel(url, "--auth", ADA, *arguments) as claude:
                _, error = await claude.process.communicate()
                assert said in error.decode()
                assert claude.process.returncode == 1
        await shop.stop()
