"""A client's transport to a server object of another library in this process, one session each.

The two streams between a client and a server object of another library, with anyio's stream interfaces.

Unlike a pair of memory streams, these need no task to carry messages back: a message that the server sends reaches
the waiting request within `send`.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextvars import Context
from importlib import import_module
from typing import Any, Protocol

from anyio import BrokenResourceError, ClosedResourceError, EndOfStream
from anyio.abc import ObjectReceiveStream, ObjectSendStream

from millstream._override import override
from millstream._protocol.errors import METHOD_NOT_FOUND
from millstream._protocol.jsonrpc import Envelope, encode
from millstream._protocol.revisions import Revision
from millstream._tasks import Tasks
from millstream.client._errors import ConnectFailed, ConnectionLost
from millstream.client._transports.transport import Duplex, Listener, TransportRequest
from millstream.gateway._programs.single_exchange import Messages, SingleExchange


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


logger = logging.getLogger("millstream.gateway")

_MAX_QUEUED = 1000
"""Maximum messages that a program hasn't received yet."""
_GRACE = 2.0
"""Seconds for a session to end by itself."""
_NO_DISCOVERY = encode({"code": METHOD_NOT_FOUND, "message": "Method not found"})


class Sessions(Protocol):
    """A program, from the perspective of its sessions."""

    name: str
    handshake_only: bool
    messages: Messages

    async def enter(self) -> Context:
        """Start the program if necessary. Return the context for a session."""
        ...

    def leave(self) -> None:
        """Undo one `enter`."""

    async def settle(self) -> None:
        """Wait until the program has stopped, if it's stopping."""

    async def serve(self, input: ServerInput, output: ServerOutput, /) -> None:
        """Run a session until its input ends."""

    @property
    def single(self) -> SingleExchange | None:
        """Return the handler for requests of the per-request era; None if sessions do."""

    def user_of(self, caller: str) -> Any:
        """Return the library's user object of a caller."""


class ProgramTransport:
    """One session of a program."""

    name = "memory"

    def __init__(self, program: Sessions, caller: str, listener: Listener, background: Tasks) -> None:
        self._program = program
        self._caller = caller
        self._context = Context()
        self._background = background
        self._duplex = Duplex(self, listener, background, self._write)
        self._input = ServerInput(_MAX_QUEUED)
        self._entered = False
        self._revision: Revision | None = None
        self._session: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[Envelope]] = set()
        """Running requests that need no session."""

    @property
    def lost(self) -> bool:
        """Whether the session has ended."""
        return self._duplex.fault is not None

    async def open(self) -> None:
        """Start a session.

        Raises:
            ConnectFailed: the program failed to start.
        """
        try:
            self._context = await self._program.enter()
        except Exception as exc:
            logger.exception("The program %s failed to start", self._program.name)
            raise ConnectFailed(
                f"The program {self._program.name} failed to start: {type(exc).__name__}. See the log."
            ) from exc
        self._entered = True

    def _context_of_caller(self) -> Context:
        """Return a context in which functions of the program see the caller's token."""
        context = self._context.copy()
        if self._caller:
            user_variable: Any = import_module("mcp.server.auth.middleware.auth_context").auth_context_var
            context.run(user_variable.set, self._program.user_of(self._caller))
        return context

    async def _serve(self) -> None:
        fault = ConnectionLost("The program ended the session.")
        try:
            await self._program.serve(self._input, ServerOutput(self._deliver))
        except Exception as exc:
            logger.exception("A session of the program %s failed", self._program.name)
            fault = ConnectionLost(f"A session of the program failed: {type(exc).__name__}.")
        finally:
            self._duplex.end(fault)

    def _deliver(self, message: Any) -> bool:
        if self._duplex.fault is None:
            envelope, caused_by = self._program.messages.read(message)
            self._duplex.deliver(envelope, caused_by)
        return self._duplex.fault is None

    def set_revision(self, revision: Revision) -> None:
        """Store the revision."""
        self._revision = revision

    async def exchange(self, request: TransportRequest) -> Envelope:
        """Send a request and wait for the response."""
        if request.method == "server/discover" and self._program.handshake_only:
            return Envelope(request.id, "", b"", error=_NO_DISCOVERY)  # its session would log a warning
        revision = request.revision or self._revision
        single = self._program.single
        if single is None or revision is None or revision.handshake:
            return await self._duplex.exchange(request)
        if self._duplex.fault is not None:
            raise self._duplex.fault
        answer = single.answer(request.method, request.body, request.id, self._duplex.deliver)
        task = asyncio.get_running_loop().create_task(answer, context=self._context_of_caller())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            return await task  # canceling the caller cancels it
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if current is not None and current.cancelling():
                raise
            raise ConnectionLost("The client was closed.") from None

    async def send(self, message: bytes, method: str) -> None:
        """Send a notification or a response. Without a session, there's nothing to send it to."""
        if self._session is not None:
            await self._write(message)

    async def _write(self, message: bytes) -> None:
        if self._duplex.fault is not None:
            raise self._duplex.fault
        if self._session is None:
            self._session = self._context_of_caller().run(self._background.spawn, self._serve())
        if not await self._input.put(self._program.messages.make(message), self._context_of_caller()):
            raise ConnectionLost("The program ended the session.")

    async def close(self) -> None:
        """End the session."""
        self._duplex.end(ConnectionLost("The client was closed."))
        self._input.end()
        tasks: list[asyncio.Task[Any]] = list(self._tasks)
        for task in tasks:
            task.cancel()
        session = self._session
        if session is not None and not session.done():
            await asyncio.wait([session], timeout=_GRACE)
            session.cancel()
            tasks.append(session)
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._entered:
            self._entered = False
            self._program.leave()
            await self._program.settle()
