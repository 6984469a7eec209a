"""HTTP requests for the soak test, one per connection: complete, truncated, or not HTTP at all."""

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from benches.wire import COMMON, INITIALIZE, INITIALIZED, META

_METRICS = {"tasks": "millstream_event_loop_tasks", "fds": "process_open_fds"}


class Wrong(Exception):
    """The server misbehaved."""


class Peer:
    """A client that opens a connection for each request."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def ask(self, method: str, path: str, head: str, body: bytes) -> tuple[int, bytes]:
        """Send one request, and return the status and body of the reply."""
        status, _, found = await self._ask(method, path, head, body)
        return status, found

    async def call(self, tool: str, arguments: Mapping[str, object], id: int, session: str = "") -> dict[str, Any]:
        """Call a tool, in a session or, without one, in the newest revision."""
        status, found = await self.ask("POST", "/mcp", *_call(tool, arguments, id, session))
        if status != 200:
            raise Wrong(f"a call was answered with {status} {found!r}")
        answer: dict[str, Any] = json.loads(found)
        if answer["id"] != id:
            raise Wrong(f"the answer {answer['id']} for the call {id}")
        return answer

    async def initialize(self, message: bytes = INITIALIZE) -> str:
        """Create a session, and return its id."""
        _, head, _ = await self._ask("POST", "/mcp", COMMON, message)
        session = re.search(rb"mcp-session-id: (\S+)", head)
        if session is None:
            raise Wrong("initialize gave no session id")
        found = session[1].decode()
        await self.ask("POST", "/mcp", in_session(found), INITIALIZED)
        return found

    async def break_off(
        self, tool: str, arguments: Mapping[str, object], id: int, session: str = "", *, seconds: float = 0.05
    ) -> None:
        """Begin a call, and close the connection after a while, whatever has arrived."""
        head, body = _call(tool, arguments, id, session)
        async with self.connection() as (reader, writer):
            writer.write(self.request("POST", "/mcp", head, body))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await reader.read()

    async def throw(self, data: bytes) -> None:
        """Send bytes that aren't a request, and wait for the end of the connection or disconnect."""
        async with self.connection() as (reader, writer):
            writer.write(data)
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(0.2):
                    await reader.read()

    async def hold(self, data: bytes, seconds: float) -> None:
        """Send bytes, read for some seconds, and disconnect."""
        async with self.connection() as (reader, writer):
            writer.write(data)
            with contextlib.suppress(TimeoutError, ConnectionError):
                async with asyncio.timeout(seconds):
                    while await reader.read(65536):
                        pass

    async def listen(self, path: str, last_id: str, seconds: float) -> tuple[list[int], str]:
        """Return the numbered events of a stream within some seconds, and the last id."""
        head = "accept: text/event-stream\r\n" + (f"last-event-id: {last_id}\r\n" if last_id else "")
        numbers: list[int] = []
        pending = ""
        async with self.connection() as (reader, writer):
            writer.write(self.request("GET", path, head, b""))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    while line := (await reader.readline()).strip().decode():
                        if line.startswith("HTTP/1.1 ") and " 200 " not in line:
                            raise Wrong(f"a stream was refused: {line}")
                    while line := (await reader.readline()).decode():
                        if line.startswith("id: "):
                            pending = line[4:].strip()
                        elif line.startswith("data: ") and line[6:].strip().isdecimal():
                            numbers.append(int(line[6:]))
                        elif line == "\n":
                            last_id = pending or last_id
        return numbers, last_id

    async def figures(self) -> dict[str, float]:
        """Return the server's figures."""
        _, metrics = await self.ask("GET", "/metrics", "", b"")
        _, health = await self.ask("GET", "/health", "", b"")
        found = {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", metrics.decode(), re.MULTILINE)}
        facts = json.loads(health)
        named = {name: found[metric] for name, metric in _METRICS.items()}
        return named | {name: float(facts[name]) for name in ("calls", "streams", "subscribers")}

    async def _ask(self, method: str, path: str, head: str, body: bytes) -> tuple[int, bytes, bytes]:
        async with self.connection() as (reader, writer):
            writer.write(self.request(method, path, f"{head}connection: close\r\n", body))
            reply_head, _, reply = (await reader.read()).partition(b"\r\n\r\n")
        if not reply_head:
            raise Wrong(f"no answer to {method} {path} {body[:80]!r}")
        return int(reply_head.split(b" ", 2)[1]), reply_head, reply

    def request(self, method: str, path: str, head: str, body: bytes) -> bytes:
        """Return the bytes of a request."""
        lines = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{self._port}\r\n{head}"
        return f"{lines}content-length: {len(body)}\r\n\r\n".encode() + body

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Open a connection, and close it after the block."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def in_session(session: str) -> str:
    """Return the headers of a request in a session."""
    return f"{COMMON}mcp-protocol-version: 2025-11-25\r\nmcp-session-id: {session}\r\n"


def _call(tool: str, arguments: Mapping[str, object], id: int, session: str) -> tuple[str, bytes]:
    params: dict[str, object] = {"name": tool, "arguments": arguments}
    if session:
        head = in_session(session)
    else:
        head = f"{COMMON}mcp-protocol-version: 2026-07-28\r\nmcp-method: tools/call\r\nmcp-name: {tool}\r\n"
        params["_meta"] = META
    return head, json.dumps({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params}).encode()
