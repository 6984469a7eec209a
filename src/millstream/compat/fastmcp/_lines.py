"""A connection to the server behind a proxy for each session in front of it."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from msgspec import Struct

from millstream.client._client import Client
from millstream.client._errors import ClientError

_MOST = 1000
"""Connections at a time; the one that was used longest ago, and isn't in use, makes room."""
_IDLE = 3600.0
"""Seconds without a call, after which a connection is closed when another one begins."""


class _Line(Struct):
    client: asyncio.Task[Client]
    calls: int = 0
    used: float = 0.0


class Lines:
    """The connections, by session.

    Args:
        connect: makes one.
    """

    def __init__(self, connect: Callable[[str], Awaitable[Client]]) -> None:
        self._connect = connect
        self._lines: OrderedDict[str, _Line] = OrderedDict()

    async def take(self, session: str) -> Client:
        """The connection of a session, for one call; `release` ends that.

        Raises:
            ClientError: it can't be made, or all are in use.
        """
        line = self._lines.get(session)
        if line is None:
            await self._make_room()
            line = self._lines[session] = _Line(asyncio.ensure_future(self._made(session)))
        line.calls += 1
        line.used = time.monotonic()
        self._lines.move_to_end(session)
        try:
            return await asyncio.shield(line.client)
        except BaseException:
            line.calls -= 1
            if line.client.done() and self._lines.get(session) is line:
                del self._lines[session]
            raise

    async def _made(self, session: str) -> Client:
        return await self._connect(session)

    def release(self, session: str) -> None:
        """A call has ended."""
        line = self._lines.get(session)
        if line is not None:
            line.calls -= 1

    async def _make_room(self) -> None:
        idle = [session for session, line in self._lines.items() if not line.calls]
        late = time.monotonic() - _IDLE
        gone = [session for session in idle if self._lines[session].used < late]
        if not gone and len(self._lines) >= _MOST:
            if not idle:
                raise ClientError(f"{_MOST} sessions are calling the server behind this proxy. Try again later.")
            gone = idle[:1]
        for line in [self._lines.pop(session) for session in gone]:
            await _closed(line)

    async def close(self) -> None:
        """Close all."""
        while self._lines:
            await _closed(self._lines.popitem()[1])


async def _closed(line: _Line) -> None:
    line.client.cancel()
    await asyncio.wait((line.client,))
    if not line.client.cancelled() and line.client.exception() is None:
        await line.client.result().__aexit__(None, None, None)
