"""Matching of responses to requests, for connections that carry whole messages in both directions.

Shared by stdio, WebSocket, HTTP+SSE, and memory. It does no framing and no I/O.
"""

import asyncio
import contextlib
import re
from collections.abc import Callable, Coroutine
from typing import Any

from millstream._protocol.errors import ProtocolError
from millstream._protocol.jsonrpc import Envelope, encode, notification_message, read, split_batch
from millstream._tasks import Tasks
from millstream.client._errors import BadAnswer, ClientError, ConnectionLost
from millstream.client._transports.transport import Listener, SkipLog, Transport, TransportRequest, answered_id

_MAX_BATCH = 1000
_CLIPPED_RESPONSE = re.compile(
    rb"""\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*([0-9]{1,18})\s*,\s*"(?:result|error)".*
    | \{\s*"(?:result|error)".*,\s*"id"\s*:\s*([0-9]{1,18})\s*\}""",
    re.DOTALL | re.VERBOSE,
)
"""Official SDKs write the id before the result, or at the end. Elsewhere it could belong to the result."""

Write = Callable[[bytes], Coroutine[Any, Any, None]]
"""Sends one message, waiting while the peer reads slowly."""


class Duplex:
    """The pending requests of one connection."""

    def __init__(self, transport: Transport, listener: Listener, background: Tasks, write: Write) -> None:
        self._transport = transport
        self._listener = listener
        self._background = background
        self._write = write
        self._waiting: dict[int, asyncio.Future[Envelope]] = {}
        self._last_id = 0
        self.skip = SkipLog()
        self.fault: ClientError | None = None
        """Why the connection has ended."""

    async def exchange(self, request: TransportRequest) -> Envelope:
        """Send a request and wait for the response. Notify the server if the caller is canceled."""
        if self.fault is not None:
            raise self.fault
        waiter: asyncio.Future[Envelope] = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = waiter
        self._last_id = max(self._last_id, request.id)
        try:
            await self._write(request.body)
            return await waiter
        except asyncio.CancelledError:
            # `initialize` can't be canceled:
            # https://modelcontextprotocol.io/specification/2025-11-25/basic/utilities/cancellation
            if request.method != "initialize" and self.fault is None:
                self._background.spawn(self._send_cancellation(request.id))
            raise
        finally:
            del self._waiting[request.id]
            if waiter.done() and not waiter.cancelled():
                waiter.exception()  # retrieve it, in case the write failed first

    async def _send_cancellation(self, request_id: int) -> None:
        with contextlib.suppress(ClientError):  # the request ended with the connection
            message = notification_message("notifications/cancelled", {"requestId": request_id})
            filters = self._listener.filters
            if filters is None or (message := filters.filter_outgoing(message)):
                await self._write(message)

    def receive(self, data: bytes) -> None:
        """Receive one message or a batch. Invalid messages are skipped, as official clients do."""
        try:
            items = split_batch(data, _MAX_BATCH) if data[:1] == b"[" else [data]
        except ProtocolError as exc:
            self.skip(exc.message, data)
            return
        for item in items:
            try:
                self.deliver(read(item, allow_null=True))
            except ProtocolError as exc:
                waiter = self._waiting.get(answered_id(item))
                if waiter is not None and not waiter.done():
                    waiter.set_exception(BadAnswer(f"The server sent an invalid response. {exc.message}."))
                self.skip(exc.message, item)

    def refuse(self, clipped: bytes, error: ClientError) -> bool:
        """Fail the request of a response whose start and end are known. Return whether they name the request."""
        match = _CLIPPED_RESPONSE.fullmatch(clipped)
        if match is None:
            return False
        waiter = self._waiting.get(int(match[1] or match[2]))
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
        return True

    def deliver(self, message: Envelope, request_id: int = 0) -> None:
        """Receive one decoded message. `request_id` is the request it belongs to, if known."""
        try:
            self._process(message, request_id)
        except ClientError as exc:
            self.end(exc)

    def _process(self, message: Envelope, caused_by: int = 0) -> None:
        if not message.is_answer:
            self._listener.receive(message, self._transport, caused_by)
            return
        request_id = message.id
        if request_id is None and len(self._waiting) == 1:
            request_id = next(iter(self._waiting))  # the server couldn't parse the only request
        waiter = self._waiting.get(request_id) if isinstance(request_id, int) else None
        if waiter is not None:
            if not waiter.done():
                waiter.set_result(message)
        elif not isinstance(request_id, int) or request_id > self._last_id:
            # A smaller id is a late response to a canceled request.
            self.skip("Unknown id of a response", encode(request_id))

    @property
    def waiting(self) -> int:
        """Number of pending requests."""
        return len(self._waiting)

    def end(self, fault: ClientError | None = None) -> None:
        """End the connection and fail all pending requests."""
        first = self.fault is None
        if self.fault is None:
            self.fault = fault or ConnectionLost("The server closed the connection.")
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(self.fault)
        if first:
            self._listener.on_interruption(self._transport, self.fault)
