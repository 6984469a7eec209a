import json
import os
import signal
from pathlib import Path

import pytest
from uvicorn.server import ServerState

from behavior.exchanges import Exchange, LaneHttp
from fleet import STREAM, EventStream
from http_peer import RunningServer
from wire import LATEST_HANDSHAKE, POST, request
from workers_world import run_workers

pytestmark = pytest.mark.server
PROGRAM = """
import asyncio, os
from millstream import Context, Server

mcp = Server("shop")


@mcp.tool
async def talks(ctx: Context) -> str:
    await ctx.info(os.getpid())
    await asyncio.Event().wait()
    return "never"
"""
OPENING = {"protocolVersion": LATEST_HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}


class Clients:
    """Clients of one port, each request on a connection of its own."""

    def __init__(self, port: int) -> None:
        self.running = RunningServer(ServerState(), port)
        self.http = LaneHttp(self.running)

    async def post(self, message: object, headers: dict[str, str]) -> Exchange:
        """Send a message."""
        given = {name: value for name, value in headers.items() if name != "host"}
        return await self.http.fetch("POST", "/mcp", given, json.dumps(message).encode())

    async def get(self, headers: dict[str, str], last: str) -> EventStream:
        """What follows an event."""
        given = {name: value for name, value in headers.items() if name not in ("host", "content-type")}
        return EventStream(await self.http.fetch("GET", "/mcp", {**given, **STREAM, "last-event-id": last}))

    def close(self) -> None:
        """Close every connection."""
        for peer in self.running.peers:
            peer.writer.transport.abort()


async def test_calls_on_killed_workers_fail_with_a_retry_error(tmp_path: Path) -> None:
    # Calls that never end have no part in the stop.
    environment = {**os.environ, "MILLSTREAM_DRAIN_TIMEOUT": "1"}
    with run_workers(tmp_path, 4, program=PROGRAM, env=environment) as served:
        clients = Clients(served.port)
        opened = await clients.post(request("initialize", OPENING, 0), POST)
        await opened.body()
        headers = {
            **POST,
            "mcp-session-id": opened.headers["mcp-session-id"],
            "mcp-protocol-version": LATEST_HANDSHAKE,
        }
        calls: dict[int, EventStream] = {}
        by_pid: dict[int, list[int]] = {}
        for number in range(1, 17):
            stream = EventStream(
                await clients.post(request("tools/call", {"name": "talks", "arguments": {}}, number), headers)
            )
            (word,) = await stream.until(1)
            calls[number] = stream
            by_pid.setdefault(word["params"]["data"], []).append(number)
        killed, *others = by_pid
        os.kill(killed, signal.SIGKILL)
        for number in by_pid[killed]:
            followed = await clients.get(headers, calls[number].last_id)
            assert followed.status == 200
            (error,) = await followed.end()
            assert error["id"] == number
            assert "may have taken effect" in error["error"]["message"]
        assert not any(calls[number].ended for pid in others for number in by_pid[pid])
        clients.close()
