"""The periodic work of a server goes on, whatever one peer does."""

import asyncio
import json
import os
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import pytest

from millstream import Context, Server
from millstream.transports.memory import MemoryPipe
from patience import WAIT
from processes import free_port, millstream, serving

SERVER = Path(__file__).with_name("slow_peers.py")
META = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
    "progressToken": 1,
}


def call(tool: str) -> bytes:
    """A call as bytes of HTTP/1.1."""
    params = {"name": tool, "arguments": {}, "_meta": META}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode()
    head = (
        "POST /mcp HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
        "accept: application/json, text/event-stream\r\nmcp-protocol-version: 2026-07-28\r\n"
        f"mcp-method: tools/call\r\nmcp-name: {tool}\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


@pytest.mark.server
async def test_a_peer_that_never_reads_does_not_keep_others_from_their_heartbeats(tmp_path: Path) -> None:
    """A fixed defect: the sweep waited for the slow peer, and silent calls of others never became streams."""
    port = free_port()
    settings = {"MILLSTREAM_SILENCE": "1", "MILLSTREAM_HEARTBEAT": "1", "MILLSTREAM_DRAIN_TIMEOUT": "0.1"}
    with patch.dict(os.environ, settings), serving(millstream(SERVER, port), port, tmp_path / "log"):
        _, stalled = await asyncio.open_connection("127.0.0.1", port, limit=1)
        stalled.write(call("floods"))
        await asyncio.sleep(0)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(call("silent"))
        async with asyncio.timeout(WAIT):
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"text/event-stream" in head
            assert b":\n\n" in await reader.readuntil(b":\n\n")
        for each in (writer, stalled):
            each.transport.abort()
            with suppress(OSError):
                await each.wait_closed()


async def test_only_a_call_that_was_silent_for_a_whole_heartbeat_reports_progress_on_its_own() -> None:
    """A fixed defect: a heartbeat between two reports of a lively tool put a step of its own between them."""
    mcp, told, go_on = Server("lively"), asyncio.Event(), asyncio.Event()

    @mcp.tool
    async def works(ctx: Context) -> str:
        await ctx.progress(1)
        told.set()
        await go_on.wait()
        await ctx.progress(2)
        return "done"

    async with mcp.running() as runtime, asyncio.timeout(WAIT):
        pipe = MemoryPipe(runtime.dispatcher)
        params = {"name": "works", "arguments": {}, "_meta": META}
        pipe.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode())
        await told.wait()
        runtime.sweep.report_progress()
        await asyncio.sleep(0)
        go_on.set()
        steps = [json.loads(await pipe.receive())["params"]["progress"] for _ in range(2)]
        assert steps == [1, 2]
        await pipe.close()


async def test_a_call_that_stays_silent_reports_small_steps_that_only_grow() -> None:
    """Our choice: values increase and stay below what the tool reports next."""
    mcp, told, go_on = Server("silent"), asyncio.Event(), asyncio.Event()

    @mcp.tool
    async def works(ctx: Context) -> str:
        await ctx.progress(1, 3)
        told.set()
        await go_on.wait()
        await ctx.progress(2, 3)
        return "done"

    async with mcp.running() as runtime, asyncio.timeout(WAIT):
        pipe = MemoryPipe(runtime.dispatcher)
        params = {"name": "works", "arguments": {}, "_meta": META}
        pipe.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}).encode())
        await told.wait()
        first = json.loads(await pipe.receive())["params"]["progress"]
        steps = [first]
        for _ in range(3):
            runtime.sweep.report_progress()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        steps += [json.loads(await pipe.receive())["params"]["progress"] for _ in range(2)]
        go_on.set()
        steps.append(json.loads(await pipe.receive())["params"]["progress"])
        assert steps == sorted(set(steps))
        assert (steps[0], steps[-1]) == (1, 2)
        await pipe.close()
