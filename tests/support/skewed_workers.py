"""Four worker processes, with different wall clocks if they share Redis, and connections to a chosen worker."""

import asyncio
import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import http_peer
from behavior.exchanges import Exchange, LaneHttp
from clocks import Clocks
from fleet import Worker
from millstream._http.server.guard import ServerState
from patience import WAIT
from processes import SharedServer, run_command
from redis_parts import RedisServer
from wire import request

CLOCK_OFFSETS = (90, -90)
"""Seconds by which the workers' clocks are ahead of the store's, in rotation."""
PROGRAM = """
import asyncio, os, time
from dataclasses import dataclass
from pathlib import Path
from millstream import Context, Server

mcp = Server("clocked", serve="hub")


@dataclass
class Name:
    name: str


@mcp.tool
async def who() -> str:
    return f"{os.getpid()} {time.time()}"


@mcp.tool
async def store_time(ctx: Context) -> str:
    return str(ctx._services.store.time())


@mcp.tool
async def ask(ctx: Context) -> str:
    return (await ctx.elicit("Who is there?", Name)).name


@mcp.tool
async def talks(ctx: Context, gate: str) -> str:
    for number in range(3):
        await ctx.info(f"word {number}")
        while not Path(f"{gate}{number}").exists():
            await asyncio.sleep(0.01)
    return "said"


@mcp.tool
async def count(ctx: Context) -> int:
    return await ctx.session_state.update("count", lambda n: n + 1, 0)


@mcp.tool(limit="4/hour")
async def limited() -> str:
    return "taken"


@mcp.tool
async def publish(text: str) -> str:
    return (await mcp.hub.publish("news", text)).id


@mcp.tool
async def send(text: str) -> str:
    return (await mcp.hub.send("ada", text)).id


@mcp.tool
async def present() -> str:
    return " ".join(member.client_id for member in await mcp.hub.presence("news"))


@mcp.tool
async def update(uri: str) -> str:
    await mcp.resource_updated(uri)
    return uri


@mcp.tool
async def switch(on: bool) -> str:
    (mcp.enable if on else mcp.disable)("tool", "limited")
    return ""


for number in range(4):
    mcp.resource(f"shelf://{number}", name=f"shelf{number}")(lambda: "full")
"""


class SkewedWorkers:
    """A server with four workers, and its clocks."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.folder = folder
        self._kind = kind
        self.skewed = kind == "redis"  # processes on one machine have one clock
        self._offsets = CLOCK_OFFSETS if self.skewed else (0,)
        self._program = folder / "clocked.py"
        self._program.write_text(PROGRAM)
        self._redis: RedisServer | None = None
        self._clocks: list[Clocks] = []
        self._shared = SharedServer(self._command, folder)

    def _command(self, port: int) -> list[str]:
        clocks = Clocks(self.folder, str(port))
        clocks.environment["MILLSTREAM_DRAIN_TIMEOUT"] = "1"  # don't wait for calls that never end
        clocks.set(0, self._offsets)
        self._clocks = [clocks]
        if self._redis is not None:
            self._redis.close()
        if self._kind == "redis":
            of_redis = Clocks(self.folder, f"redis{port}")
            self._clocks.append(of_redis)
            self._redis = RedisServer(prefix=of_redis.command([]))
        url = {"memory": "memory://", "sqlite": f"sqlite:///{self.folder}/{port}.db"}.get(self._kind)
        store = url or self._redis.url  # type: ignore[union-attr]
        return clocks.command(run_command(str(self._program), port, "--workers", "4", "--store", store))

    def port(self) -> int:
        return self._shared.port()

    def shift_clocks(self, seconds: int) -> None:
        """Move all clocks by some seconds. The differences between workers stay."""
        for clocks in self._clocks:
            clocks.set(seconds, [each + seconds for each in self._offsets])

    def close(self) -> None:
        self._shared.close()
        if self._redis is not None:
            self._redis.close()


class Pinned(http_peer.RunningServer):
    """Connections to one of several workers on a shared port."""

    def __init__(self, port: int, pid: int) -> None:
        super().__init__(ServerState(), port)
        self.pid = pid

    async def connect(self, first: bytes = b"", *, small_buffer: bool = False) -> http_peer.Peer:
        """Reconnect until the wanted worker accepts."""
        async with asyncio.timeout(WAIT):
            while True:
                peer = await super().connect(first, small_buffer=small_buffer)
                if (await identity(peer))[0] == self.pid:
                    return peer
                peer.close()


async def identity(peer: http_peer.Peer) -> tuple[int, float]:
    """Return the pid of the worker behind a connection, and its clock."""
    body = json.dumps(request("tools/call", {"name": "who", "arguments": {}})).encode()
    head = b"content-type: application/json\r\naccept: application/json, text/event-stream\r\n"
    await peer.send(http_peer.request("POST", "/mcp", body, head))
    _, _, reply = await peer.reply()
    pid, clock = json.loads(reply)["result"]["content"][0]["text"].split()
    return int(pid), float(clock)


class PinnedHttp(LaneHttp):
    """Requests to one of several workers on a shared port."""

    def __init__(self, port: int, pid: int) -> None:
        self.pinned = Pinned(port, pid)
        super().__init__(self.pinned)

    async def fetch(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Exchange:
        """Send a request. The host header is already set."""
        given = {name: value for name, value in (headers or {}).items() if name != "host"}
        return await super().fetch(method, path, given, body)


class PinnedWorker(Worker):
    """One worker."""

    def __init__(self, port: int, pid: int) -> None:
        self.pid = pid
        self.http: Any = PinnedHttp(port, pid)

    def kill(self) -> None:
        """Kill the worker with SIGKILL."""
        os.kill(self.pid, signal.SIGKILL)


async def find_workers(port: int, *, skewed: bool) -> list[PinnedWorker]:
    """Return the workers of a port. Retry while frozen workers are being replaced."""
    found: dict[int, float] = {}
    running = http_peer.RunningServer(ServerState(), port)
    async with asyncio.timeout(WAIT):
        while len(found) < 4:
            try:
                peer = await running.connect()
            except ConnectionRefusedError:
                await asyncio.sleep(0.01)
                continue
            pid, clock = await identity(peer)
            found[pid] = clock
            peer.close()
    behind, second, third, ahead = sorted(found, key=found.__getitem__)
    assert (found[ahead] - found[behind] > 150) is skewed
    return [PinnedWorker(port, pid) for pid in (ahead, behind, third, second)]
