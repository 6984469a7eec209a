"""Callers on keep-alive connections, which count failures. They never retry a request."""

import asyncio
import json
import random
import time
from collections import Counter

from benches.wire import COMMON, META

SLOW_SECONDS = 0.5
SLOW_SHARE = 0.02
"""Share of calls to a slow tool."""


def request(port: int, tool: str, **arguments: object) -> bytes:
    """Return a tool call as bytes."""
    params = {"name": tool, "arguments": arguments, "_meta": META}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
    head = f"{COMMON}mcp-protocol-version: 2026-07-28\r\nmcp-method: tools/call\r\nmcp-name: {tool}\r\n"
    length = f"content-length: {len(body)}\r\n"
    return f"POST /mcp HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n{head}{length}\r\n{body}".encode()


class Caller:
    """One keep-alive connection at a time."""

    def __init__(self, port: int) -> None:
        self.calls = 0
        self.failures = Counter[str]()
        self._port = port
        self._fast = request(port, "add", a=1, b=2)
        self._slow = request(port, "slow", seconds=SLOW_SECONDS)
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def run(self, rate: float) -> None:
        """Call at a rate per second, as far as the server keeps up, until canceled."""
        try:
            await self._go_on(rate)
        finally:
            self.close()

    async def _go_on(self, rate: float) -> None:
        due = time.monotonic() + random.random() / rate
        while True:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due = max(due + 1 / rate, time.monotonic() - 1.0)
            try:
                await self._call(self._slow if random.random() < SLOW_SHARE else self._fast)
            except (OSError, EOFError) as exc:
                self.failures[repr(exc)] += 1
                self.close()
            self.calls += 1

    async def _call(self, request: bytes) -> None:
        # A client may see that the server has closed an idle connection, and must not use it then.
        if self._streams is None or self._streams[0].at_eof():
            self.close()
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(request)
        lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        length = next(int(line.partition(b":")[2]) for line in lines if line.startswith(b"content-length:"))
        body = await reader.readexactly(length)
        if b" 200 " not in lines[0] or b'"result"' not in body or b'"isError":true' in body:
            self.failures[f"{lines[0]!r} {body[:200]!r}"] += 1
        if b"connection: close" in lines:
            self.close()

    def close(self) -> None:
        """Break the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
