"""The in-memory transport: a client and a server in one process and event loop. For tests and embedding."""

import asyncio
from collections import deque
from collections.abc import Mapping

from millstream._protocol.principal import Principal
from millstream._server.dispatch import Dispatcher
from millstream._transports.connection import ClientConnection

_MAX_WAITING = 10_000
"""Maximum number of unread messages before a client is cut."""


class MemoryPipe:
    """An in-memory connection: `send` a message to the server, and `receive` its messages."""

    __slots__ = ("_connection", "_news", "_waiting", "closed")

    def __init__(
        self,
        dispatcher: Dispatcher,
        *,
        principal: Principal | None = None,
        peer: str = "",
        headers: Mapping[bytes, bytes] | None = None,
        transport: str = "memory",
    ) -> None:
        """Open a connection.

        Args:
            dispatcher: Runs the calls.
            principal: The caller, or None for an anonymous one.
            peer: The caller's address.
            headers: Headers of the caller's request.
            transport: The transport name of calls. ``memory`` has full access; any other name needs scopes.
        """
        self._connection = ClientConnection(
            dispatcher, self._take, self._no_wait, principal=principal, peer=peer, headers=headers, transport=transport
        )
        self._waiting: deque[bytes] = deque()
        self._news = asyncio.Event()
        self.closed = False

    def _take(self, message: bytes) -> bool:
        if self.closed or len(self._waiting) >= _MAX_WAITING:
            return False
        self._waiting.append(message)
        self._news.set()
        return True

    async def _no_wait(self) -> None:
        return None

    def send(self, message: bytes) -> None:
        """Pass a message or batch to the server."""
        self._connection.receive(message)

    async def receive(self) -> bytes:
        """Return the next message from the server. Waits until there is one."""
        while not self._waiting:
            self._news.clear()
            await self._news.wait()
        return self._waiting.popleft()

    async def close(self) -> None:
        """Disconnect the client."""
        self.closed = True
        await self._connection.close()
