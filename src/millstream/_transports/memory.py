"""In-memory: a client and a server in one process and one loop, as whole messages. For tests and embedding."""

import asyncio
from collections import deque
from collections.abc import Mapping

from millstream._protocol.principal import Principal
from millstream._server.dispatch import Dispatcher
from millstream._transports.connection import ClientConnection

_MAX_WAITING = 10_000
"""Messages a client may leave unread before it is cut off."""


class MemoryPipe:
    """One connection: `send` a message to the server, `receive` what it says."""

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
            dispatcher: carries out the calls.
            principal: the caller; None for an anonymous one.
            peer: the caller's address.
            headers: of the request that stands for the caller.
            transport: what calls name as theirs. ``memory`` may do everything; others need the scopes of what they use.
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
        """Give the server one message (or one batch)."""
        self._connection.receive(message)

    async def receive(self) -> bytes:
        """Return the next message from the server; waits until there is one."""
        while not self._waiting:
            self._news.clear()
            await self._news.wait()
        return self._waiting.popleft()

    async def close(self) -> None:
        """The client goes away."""
        self.closed = True
        await self._connection.close()
