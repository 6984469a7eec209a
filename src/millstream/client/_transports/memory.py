"""A server in this process and event loop: the full protocol, without a network."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from millstream._protocol.jsonrpc import Envelope
from millstream._protocol.revisions import Revision
from millstream._tasks import Tasks
from millstream._transports.connection import MemoryPipe
from millstream.client._transports.in_process import RunningServer, ServerObject
from millstream.client._transports.transport import Duplex, Listener, TransportRequest

if TYPE_CHECKING:
    from millstream._server.dispatch import Dispatcher


class MemoryTransport:
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
        self._server = server
        self._new_pipe = pipe
        self._background = background
        self._duplex = Duplex(self, listener, background, self._write)
        self._running: AbstractAsyncContextManager[RunningServer] | None = None
        self._pipe: MemoryPipe | None = None

    @property
    def lost(self) -> bool:
        """Whether the server has closed the connection."""
        return self._duplex.fault is not None

    async def open(self) -> None:
        """Start the server."""
        running = self._server.running()
        runtime = await running.__aenter__()
        self._running = running
        self._pipe = self._new_pipe(runtime.dispatcher)
        self._background.spawn(self._read(self._pipe))

    async def _read(self, pipe: MemoryPipe) -> None:
        while True:
            self._duplex.receive(await pipe.receive())

    def set_revision(self, revision: Revision) -> None:
        """Do nothing: this transport doesn't depend on the revision."""

    async def exchange(self, request: TransportRequest) -> Envelope:
        """Send a request and wait for the response."""
        return await self._duplex.exchange(request)

    async def send(self, message: bytes, method: str) -> None:
        """Send a notification or a response."""
        await self._write(message)

    async def _write(self, message: bytes) -> None:
        if self._duplex.fault is not None:
            raise self._duplex.fault
        assert self._pipe is not None  # noqa: S101  set in `open`
        self._pipe.send(message)

    async def close(self) -> None:
        """Disconnect and stop the server."""
        self._duplex.end()
        if self._pipe is not None:
            await asyncio.sleep(0)  # let the server read the last message
            await self._pipe.close()
        if self._running is not None:
            await self._running.__aexit__(None, None, None)
