"""Open a client: choose its server and transport, and initialize it if the revision has a handshake."""

import itertools
import json
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import cache
from pathlib import Path

from uvicorn.server import ServerState

from behavior import world
from behavior.combinations import Combination
from behavior.exchanges import Http, LaneHttp, serve_http
from behavior.harness import EVERYTHING, Answer, Client, Json
from behavior.links import WORLD, MemoryLink, Process, SseLink, StdioLink, StreamableLink
from http_peer import RunningServer
from millstream import Server
from processes import RunState

SHARED_PORT = os.environ.get("BEHAVIOR_PORT", "")
"""Port of a server with several workers, for tests that don't need their own server."""
SETTINGS: dict[str, Json] = {"sessionless": {"sessions": False}, "json": {"json_only": True}}


@cache
def server_for(transport: str) -> Server:
    """Return the server for a transport. Tests share it, each with its own runtime."""
    return world.build(**SETTINGS.get(transport, {}))


class Processes:
    """The stdio servers of a test run: one for each revision and set of capabilities.

    Each use checks the process and replaces it if it ended, if it doesn't answer a call, or if a test has failed since
    it started, which may have left threads, questions, or subscriptions behind.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._by_key: dict[tuple[str, str], Process] = {}
        self._count = itertools.count()

    async def get(self, combination: Combination, capabilities: Json) -> Process:
        """Return the process for a revision and capabilities."""
        key = (combination.revision, json.dumps(capabilities) if combination.handshake else "")
        process = self._by_key.get(key)
        if process is not None and process.clients == 0 and not await is_healthy(process, combination, capabilities):
            process.kill()
            process = None
        if process is None:
            process = self._by_key[key] = self.start()
        return process

    def start(self) -> Process:
        """Start a process that isn't shared."""
        return Process(f"{WORLD}:mcp", self._folder / f"stdio-{next(self._count)}.log")

    def end(self) -> None:
        """Stop all processes."""
        for process in self._by_key.values():
            process.end()


async def is_healthy(process: Process, combination: Combination, capabilities: Json) -> bool:
    """Return whether a process can serve another test: it answers a call and sends nothing else."""
    if process.failures != RunState.failures or process.popen.poll() is not None:
        return False
    probe = Client(combination, capabilities, None)
    probe.process, probe.link = process, StdioLink(process, probe.take)
    try:
        answered = (await probe.call("text")).text == "plain"
    except (AssertionError, TimeoutError, OSError):
        return False
    finally:
        await probe.link.close()
    return answered and not (probe.notes or probe.stray or probe.questions)


def _abort(running: RunningServer) -> None:
    """Abort the connections of a test."""
    for peer in running.peers:
        peer.writer.transport.abort()


@asynccontextmanager
async def open_client(
    combination: Combination,
    processes: Processes,
    *,
    server: Server | None = None,
    capabilities: Json | None = None,
    answer: Answer | None = None,
    handshake: bool = True,
) -> AsyncIterator[Client]:
    """Open a client of the world server, initialized if its revision has a handshake."""
    declared = EVERYTHING if capabilities is None else capabilities
    client = Client(combination, declared, answer)
    transport = combination.transport
    client.server = server or server_for(transport)
    async with AsyncExitStack() as stack:
        if transport == "stdio":
            client.process = await processes.get(combination, declared)
            client.link = StdioLink(client.process, client.take)
        elif transport == "memory":
            runtime = await stack.enter_async_context(client.server.running())
            client.link = MemoryLink(runtime, client.take)
        else:
            if SHARED_PORT and server is None and transport in ("lane", "sse"):
                running = RunningServer(ServerState(), int(SHARED_PORT))
                stack.callback(_abort, running)
                http: Http = LaneHttp(running)
            else:
                http = await stack.enter_async_context(serve_http(client.server, lane=transport == "lane"))
            if transport == "sse":
                client.link = await SseLink(http, client.take).open()
            else:
                version = combination.revision if combination.revision >= "2025-06-18" else ""
                client.link = StreamableLink(http, client.take, version=version)
        stack.push_async_callback(client.close)
        if handshake and combination.handshake:
            if client.process is not None and client.process.initialized is not None:
                client.initialized = client.process.initialized
            else:
                client.initialized = (await client.initialize()).result
                if client.process is not None:
                    client.process.initialized = client.initialized
        yield client
