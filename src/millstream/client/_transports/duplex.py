"""One connection that carries whole messages both ways: answers find their requests by id.

stdio, WebSocket, HTTP+SSE and memory share it. It knows nothing of how bytes are framed or carried.
"""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any

from millstream._protocol.errors import ProtocolError
from millstream._protocol.jsonrpc import Envelope, notification_message, read, split_batch
from millstream.client._background import Background
from millstream.client._errors import BadAnswer, ClientError, ConnectionLost
from millstream.client._transports.transport import Listener, Request, Transport

_MAX_BATCH = 1000

Write = Callable[[bytes], Coroutine[Any, Any, None]]
"""Sends one message; waits while the other side reads slowly."""


class Duplex:
    """The requests that wait for an answer on one connection."""

    __slots__ = ("_background", "_last_id", "_listener", "_transport", "_waiting", "_write", "fault")

    def __init__(self, transport: Transport, listener: Listener, background: Background, write: Write) -> None:
        self._transport = transport
        self._listener = listener
        self._background = background
        self._write = write
        self._waiting: dict[int, asyncio.Future[Envelope]] = {}
        self._last_id = 0
        self.fault: ClientError | None = None
        """Why the connection is over."""

    async def exchange(self, request: Request) -> Envelope:
        """Write a request and wait for its answer; if the caller gives up, tell the server."""
        if self.fault is not None:
            raise self.fault
        waiter: asyncio.Future[Envelope] = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = waiter
        self._last_id = max(self._last_id, request.id)
        try:
            await self._write(request.body)
            return await waiter
        except asyncio.CancelledError:
            # https://modelcontextprotocol.io/specification/2025-11-25/basic/utilities/cancellation: not of `initialize`
            if request.method != "initialize" and self.fault is None:
                self._background.start(self._say_cancelled(request.id))
            raise
        finally:
            del self._waiting[request.id]
            if waiter.done() and not waiter.cancelled():
                waiter.exception()  # it may have failed while the write did

    async def _say_cancelled(self, request_id: int) -> None:
        with contextlib.suppress(ClientError):  # the connection is over, and the request with it
            await self._write(notification_message("notifications/cancelled", {"requestId": request_id}))

    def receive(self, data: bytes) -> None:
        """Take one message of the server, or a batch of them. One that can't be read ends the connection: nobody knows
        whose answer it was.
        """
        try:
            if data[:1] == b"[":
                for item in split_batch(data, _MAX_BATCH):
                    self._take(read(item))
            else:
                self._take(read(data))
        except ProtocolError as exc:
            self.end(BadAnswer(f"The server sent something that isn't a message of MCP. {exc.message}."))
        except ClientError as exc:
            self.end(exc)

    def deliver(self, message: Envelope, request_id: int = 0) -> None:
        """Take one message that was read already. `request_id` is the request that it belongs to, if that's known."""
        try:
            self._take(message, request_id)
        except ClientError as exc:
            self.end(exc)

    def _take(self, message: Envelope, caused_by: int = 0) -> None:
        if not message.is_answer:
            self._listener.receive(message, self._transport, caused_by)
            return
        request_id = message.id
        if request_id is None and len(self._waiting) == 1:
            request_id = next(iter(self._waiting))  # the server couldn't read a message, and it was this one
        waiter = self._waiting.get(request_id) if isinstance(request_id, int) else None
        if waiter is not None:
            if not waiter.done():
                waiter.set_result(message)
        elif request_id is not None and (not isinstance(request_id, int) or request_id > self._last_id):
            # A smaller number belongs to a request that was given up: its answer is merely late.
            raise BadAnswer(f"The server answered a request with the id {request_id!r:.64}, which nobody sent.")

    @property
    def waiting(self) -> int:
        """How many requests wait for an answer."""
        return len(self._waiting)

    def end(self, fault: ClientError | None = None) -> None:
        """The connection is over: nobody waits any longer."""
        first = self.fault is None
        if self.fault is None:
            self.fault = fault or ConnectionLost("The server closed the connection.")
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(self.fault)
        if first:
            self._listener.interrupted(self._transport, self.fault)
