"""A server in this process and event loop: the full protocol, without a network."""

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from millstream._override import override
from millstream._tasks import Tasks
from millstream._transports.connection import MemoryPipe
from millstream.client._transports import DuplexTransport, Listener, ServerObject

if TYPE_CHECKING:
    from millstream._server.dispatch import Dispatcher


class MemoryTransport(DuplexTransport):
    """Runs the server while the client is open."""

    name = "memory"

    def __init__(
        self,
        server: ServerObject,
        listener: Listener,
        background: Tasks,
        *,
        pipe: "Callable[[Dispatcher], MemoryPipe]" = MemoryPipe,
    ) -> None:
        super().__init__(listener, background)
        self._server = server
        self._new_pipe = pipe
        self._stack = AsyncExitStack()
        """Closes the pipe and the server."""
        self._pipe: MemoryPipe | None = None

    @override
    async def open(self) -> None:
        """Start the server in this event loop."""
        running = await self._stack.enter_async_context(self._server.running())
        self._pipe = self._new_pipe(running.dispatcher.served[0])
        self._stack.push_async_callback(self._pipe.close)
        self._background.spawn(self._read(self._pipe))

    async def _read(self, pipe: MemoryPipe) -> None:
        while True:
            self.receive(*await pipe.receive_with_id())

    @override
    async def _write(self, message: bytes) -> None:
        assert self._pipe is not None  # noqa: S101  set in `open`
        self._pipe.send(message)

    @override
    async def close(self) -> None:
        """Disconnect and stop the server."""
        self.end()
        await asyncio.sleep(0)  # let the server read the last message
        await self._stack.aclose()
