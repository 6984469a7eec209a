"""A client's transport to a server object of another library in this process, one session each."""

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context
from importlib import import_module
from typing import TYPE_CHECKING, Any

from anyio import BrokenResourceError, ClosedResourceError, create_memory_object_stream
from anyio.abc import ObjectReceiveStream, ObjectSendStream

from millstream._override import override
from millstream._protocol.errors import METHOD_NOT_FOUND
from millstream._protocol.jsonrpc import Envelope, encode
from millstream._protocol.revisions import Revision
from millstream._tasks import Tasks
from millstream.client._errors import ConnectFailed, ConnectionLost
from millstream.client._transports.transport import DuplexTransport, Listener, TransportRequest

if TYPE_CHECKING:
    from millstream.gateway._programs.program import Program, ProgramRun

logger = logging.getLogger("millstream.gateway")

_MAX_QUEUED = 1000
"""Maximum messages that a program hasn't received yet."""
_GRACE = 2.0
"""Seconds for a session to end by itself."""
_NO_DISCOVERY = encode({"code": METHOD_NOT_FOUND, "message": "Method not found"})


class _Input(ObjectReceiveStream[Any]):
    """Messages for the server."""

    last_context: Context | None = None
    """Context of the last message; mcp 2.x runs its handler there."""

    def __init__(self, messages: ObjectReceiveStream[tuple[Context, Any]]) -> None:
        self._messages = messages

    @override
    async def receive(self) -> Any:
        self.last_context, message = await self._messages.receive()
        return message

    @override
    async def aclose(self) -> None:
        await self._messages.aclose()


class _Output(ObjectSendStream[Any]):
    """Messages from the server, each of which reaches the waiting request within `send`, without another task."""

    def __init__(self, deliver: Callable[[Any], bool]) -> None:
        """Create an open stream.

        Args:
            deliver: receives a message; returns False if the connection is closed.
        """
        self._deliver = deliver
        self._closed = False

    @override
    async def send(self, item: Any) -> None:
        if self._closed:
            raise ClosedResourceError
        if not self._deliver(item):
            raise BrokenResourceError

    @override
    async def aclose(self) -> None:
        self._closed = True


class ProgramTransport(DuplexTransport):
    """One session of a program."""

    name = "memory"

    def __init__(self, program: "Program", caller: str, listener: Listener, background: Tasks) -> None:
        super().__init__(listener, background)
        self._program = program
        self._caller = caller
        self._run: ProgramRun
        self._entered = False
        self._revision: Revision | None = None
        self._input: ObjectSendStream[tuple[Context, Any]] | None = None
        self._session: asyncio.Task[None] | None = None
        """The session; None if the client has only sent requests that need none."""
        self._tasks: set[asyncio.Task[Envelope]] = set()
        """Requests that need no session."""

    @override
    async def open(self) -> None:
        """Start the program if necessary.

        Raises:
            ConnectFailed: the program failed to start.
        """
        try:
            self._run = await self._program.enter()
        except Exception as exc:
            logger.exception("The program %s failed to start", self._program.name)
            raise ConnectFailed(
                f"The program {self._program.name} failed to start: {type(exc).__name__}. See the log."
            ) from exc
        self._entered = True

    def _context_of_caller(self) -> Context:
        """Return a context in which functions of the program see the caller's token."""
        context = self._run.context.copy()
        if self._caller:
            user_variable: Any = import_module("mcp.server.auth.middleware.auth_context").auth_context_var
            context.run(user_variable.set, self._program.user_of(self._caller))
        return context

    async def _serve(self, messages: ObjectReceiveStream[tuple[Context, Any]]) -> None:
        fault = ConnectionLost("The program ended the session.")
        try:
            async with messages:
                await self._run.server.serve(_Input(messages), _Output(self._deliver))
        except Exception as exc:
            logger.exception("A session of the program %s failed", self._program.name)
            fault = ConnectionLost(f"A session of the program failed: {type(exc).__name__}.")
        finally:
            self.end(fault)

    def _deliver(self, message: Any) -> bool:
        if self.fault is None:
            envelope, caused_by = self._program.messages.read(message)
            self.deliver(envelope, caused_by)
        return self.fault is None

    @override
    def set_revision(self, revision: Revision) -> None:
        """Store the revision."""
        self._revision = revision

    @override
    async def exchange(self, request: TransportRequest) -> Envelope:
        """Send a request and wait for the response."""
        if request.method == "server/discover" and self._program.handshake_only:
            return Envelope(request.id, "", b"", error=_NO_DISCOVERY)  # its session would log a warning
        revision = request.revision or self._revision
        single = self._run.server.single
        if single is None or revision is None or revision.handshake:
            return await super().exchange(request)
        if self.fault is not None:
            raise self.fault
        answer = single.answer(request.method, request.body, request.id, self.deliver)
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

    @override
    async def send(self, message: bytes, method: str) -> None:
        """Send a notification or a response. Without a session, there's nothing to send it to."""
        if self._session is not None:
            await self._write(message)

    @override
    async def _write(self, message: bytes) -> None:
        if self.fault is not None:
            raise self.fault
        context = self._context_of_caller()
        if self._input is None:
            self._input, messages = create_memory_object_stream[tuple[Context, Any]](_MAX_QUEUED)
            self._session = context.run(self._background.spawn, self._serve(messages))
        try:
            await self._input.send((context, self._program.messages.make(message)))
        except (BrokenResourceError, ClosedResourceError):
            raise ConnectionLost("The program ended the session.") from None

    @override
    async def close(self) -> None:
        """End the session."""
        self.end(ConnectionLost("The client was closed."))
        tasks: list[asyncio.Task[Any]] = list(self._tasks)
        for task in tasks:
            task.cancel()
        if self._input is not None:
            await self._input.aclose()
        if self._session is not None:
            await asyncio.wait([self._session], timeout=_GRACE)
            self._session.cancel()
            tasks.append(self._session)
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._entered:
            self._entered = False
            await self._run.leave()
