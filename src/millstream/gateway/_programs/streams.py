"""The two streams between a client and a server object of another library, with anyio's stream interfaces.

Unlike a pair of memory streams, these need no task to carry messages back: a message that the server sends reaches
the waiting request within `send`.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any

from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ObjectReceiveStream, ObjectSendStream

from millstream._override import override


class ServerInput(ObjectReceiveStream[Any]):
    """Messages for the server."""

    def __init__(self, limit: int) -> None:
        """Create an empty stream.

        Args:
            limit: maximum unread messages; `put` waits for room.
        """
        self._limit = limit
        self._messages: deque[tuple[Context, Any]] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._writers: deque[asyncio.Future[None]] = deque()
        self._ended = False
        self._closed = False
        self.last_context: Context | None = None
        """Context of the last message; mcp 2.x runs its handler there."""

    async def put(self, message: Any, context: Context) -> bool:
        """Add a message. Return False if the server has closed the stream, or `end` was called.

        Args:
            message: message of the library's type.
            context: context for its handler, in libraries that run each message in its own.
        """
        while len(self._messages) >= self._limit and not (self._ended or self._closed):
            room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._writers.append(room)
            await room
        if self._ended or self._closed:
            return False
        self._messages.append((context, message))
        self._wake()
        return True

    def end(self) -> None:
        """End the stream after the unread messages. The server then ends its session."""
        self._ended = True
        self._wake()
        self._admit(len(self._writers))

    @override
    async def receive(self) -> Any:
        """Return the next message.

        Raises:
            EndOfStream: `end` was called.
            ClosedResourceError: the server has closed the stream.
        """
        while not self._messages:
            if self._closed:
                raise ClosedResourceError
            if self._ended:
                raise EndOfStream
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        self.last_context, message = self._messages.popleft()
        self._admit(1)
        return message

    @override
    async def aclose(self) -> None:
        """Close the stream, discarding unread messages."""
        self._closed = True
        self._messages.clear()
        self._wake()
        self._admit(len(self._writers))

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    def _admit(self, number: int) -> None:
        while self._writers and number:
            writer = self._writers.popleft()
            if not writer.done():
                writer.set_result(None)
                number -= 1


class ServerOutput(ObjectSendStream[Any]):
    """Messages from the server."""

    def __init__(self, deliver: Callable[[Any], bool]) -> None:
        """Create an open stream.

        Args:
            deliver: receives a message; returns False if the connection is closed.
        """
        self._deliver = deliver
        self._closed = False

    @override
    async def send(self, item: Any) -> None:
        """Deliver a message.

        Raises:
            ClosedResourceError: the server has closed the stream.
            BrokenResourceError: the client has closed the connection.
        """
        if self._closed:
            raise ClosedResourceError
        if not self._deliver(item):
            raise BrokenResourceError

    @override
    async def aclose(self) -> None:
        """Close the stream."""
        self._closed = True
