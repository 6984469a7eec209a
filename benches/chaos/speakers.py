"""Our own client in every revision and over every transport calls during the faults, and loses nothing.

Each call ends with the right result, or with a retryable error. Publications by calls are recorded like all others, so
the history shows whether an event of a failed call appears twice.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

from benches.chaos.clients import RECONNECT
from benches.chaos.history import Publication
from millstream.client import (
    Client,
    ClientError,
    ConnectFailed,
    ConnectionLost,
    RequestTimeout,
    Result,
    ServerError,
    ToolFailed,
)

PATIENCE = 120.0
"""Seconds after which a call counts as hanging. It isn't a measurement."""
CALLS = 30
"""Average calls of one client before the next one replaces it."""
PAUSE = 0.2
"""Seconds between two calls of a client, at random up to this."""
STEPS = 10
SLOW_SECONDS = 0.3
AGAIN = (ConnectionLost, ConnectFailed)
KINDS = {
    "2024-11-05 over HTTP+SSE": ("sse", "2024-11-05"),
    "2025-03-26": ("http", "2025-03-26"),
    "2025-06-18": ("http", "2025-06-18"),
    "2025-11-25": ("http", "2025-11-25"),
    "2026-07-28": ("http", "2026-07-28"),
    "2025-11-25 over WebSocket": ("ws", "2025-11-25"),
    "2026-07-28 over WebSocket": ("ws", "2026-07-28"),
}
"""Kinds of clients: transport and revision."""


def target(way: str, port: int) -> str | Mapping[str, Any]:
    """Return the target for a client."""
    if way == "sse":
        return {"mcpServers": {"chaos": {"type": "sse", "url": f"http://127.0.0.1:{port}/sse"}}}
    return f"ws://127.0.0.1:{port}/ws" if way == "ws" else f"http://127.0.0.1:{port}/mcp"


class Speaker:
    """Runs clients of one kind, one after the other."""

    def __init__(self, port: int, kind: str, name: str, channels: list[str], log: list[Publication]) -> None:
        way, self._revision = KINDS[kind]
        self._target = target(way, port)
        self.kind = kind
        self._name = name
        self._channels = channels
        self._log = log
        self._count = 0
        self._over = False
        self.results = 0
        self.again = Counter[str]()
        """Number of calls and connection attempts that ended with a retryable error."""
        self.wrong: list[str] = []

    def stop(self) -> None:
        """Stop after the current call."""
        self._over = True

    async def run(self) -> None:
        """Call until stopped."""
        while not self._over:
            try:
                async with Client(self._target, revision=self._revision, timeout=PATIENCE) as client:
                    while not self._over:
                        await self._try(client)
                        if random.random() < 1 / CALLS:
                            break
            except ClientError as exc:
                self._ended("opening", exc)
            await asyncio.sleep(random.uniform(*RECONNECT))

    async def _try(self, client: Client) -> None:
        call = random.choice((self._add, self._publish, self._publish, self._slow))
        try:
            await call(client)
        except ClientError as exc:
            self._ended(call.__name__, exc)
            await asyncio.sleep(random.uniform(*RECONNECT))
        else:
            self.results += 1
            await asyncio.sleep(random.uniform(0.0, PAUSE))

    def _ended(self, what: str, exc: ClientError) -> None:
        slow = isinstance(exc, RequestTimeout) and f" {PATIENCE:g} seconds" not in str(exc)  # to open a connection
        if (
            slow
            or isinstance(exc, AGAIN)
            or (isinstance(exc, ServerError | ToolFailed) and "try again" in str(exc).lower())
        ):
            self.again[type(exc).__name__] += 1
        else:
            self.wrong.append(f"A client of {self.kind}: {what.strip('_')} ended in {exc!r}")

    def _expect(self, what: str, result: Result, wanted: str) -> None:
        if result.text != wanted:
            self.wrong.append(f"A client of {self.kind}: {what} gave {result.text!r} instead of {wanted!r}.")

    async def _add(self, client: Client) -> None:
        self._count += 1
        result = await client.call("add", a=self._count, b=1)
        self._expect("add", result, str(self._count + 1))

    async def _publish(self, client: Client) -> None:
        self._count += 1
        publication = Publication(random.choice(self._channels), f"{self._name}-{self._count}")
        self._log.append(publication)
        publication.place = (await client.call("publish", channel=publication.channel, data=publication.data)).text

    async def _slow(self, client: Client) -> None:
        heard: list[float] = []

        def hear(value: float, total: float | None, message: str | None) -> None:
            heard.append(value)

        result = await client.call("slow", seconds=SLOW_SECONDS, progress=hear)
        self._expect("slow", result, "done")
        if heard != [float(step) for step in range(STEPS)]:
            self.wrong.append(f"A client of {self.kind}: slow told its progress as {heard}.")
