"""A client's transport to a server object of another library, in this process: one session of theirs each."""

import asyncio
import logging
from contextvars import Context
from importlib import import_module
from typing import Any, Protocol

from millstream._protocol.errors import METHOD_NOT_FOUND
from millstream._protocol.jsonrpc import Envelope, encode
from millstream._protocol.revisions import Revision
from millstream.client._background import Background
from millstream.client._errors import ConnectFailed, ConnectionLost
from millstream.client._transports.duplex import Duplex
from millstream.client._transports.transport import Listener, Request
from millstream.gateway.programs.messages import Messages
from millstream.gateway.programs.streams import ServerInput, ServerOutput

logger = logging.getLogger("millstream.gateway")

_WAITING = 1000
"""Messages that wait until a program receives them."""
_GRACE = 2.0
"""Seconds that a session has to end by itself."""
_NO_DISCOVERY = encode({"code": METHOD_NOT_FOUND, "message": "Method not found"})


class Sessions(Protocol):
    """A program, as far as its sessions need it."""

    name: str
    handshake_only: bool
    messages: Messages

    async def enter(self) -> Context:
        """Start the program unless it runs. Return the context for a session."""
        ...

    def leave(self) -> None:
        """Take back one `enter`."""

    async def settle(self) -> None:
        """Wait until the program has stopped, if it's about to."""

    async def serve(self, input: ServerInput, output: ServerOutput, /) -> None:
        """Run a session until its input ends."""

    def user_of(self, principal: str) -> Any:
        """Return what the library knows of a caller."""


class ProgramTransport:
    """One session of a program."""

    __slots__ = ("_background", "_context", "_duplex", "_input", "_principal", "_program", "_session")

    name = "memory"

    def __init__(self, program: Sessions, principal: str, listener: Listener, background: Background) -> None:
        self._program = program
        self._principal = principal
        self._context = Context()
        self._background = background
        self._duplex = Duplex(self, listener, background, self._write)
        self._input = ServerInput(_WAITING)
        self._session: asyncio.Task[None] | None = None

    @property
    def lost(self) -> bool:
        """Whether the session is over."""
        return self._duplex.fault is not None

    async def open(self) -> None:
        """Start a session.

        Raises:
            ConnectFailed: the program doesn't start.
        """
        try:
            self._context = await self._program.enter()
        except Exception as exc:
            logger.exception("The program %s doesn't start", self._program.name)
            raise ConnectFailed(f"The program {self._program.name} doesn't start: {type(exc).__name__}.") from exc
        self._session = self._caller().run(self._background.start, self._serve())

    def _caller(self) -> Context:
        """Return a context in which functions of the program see the caller's token."""
        context = self._context.copy()
        if self._principal:
            user_variable: Any = import_module("mcp.server.auth.middleware.auth_context").auth_context_var
            context.run(user_variable.set, self._program.user_of(self._principal))
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
            self._program.leave()

    def _deliver(self, message: Any) -> bool:
        if self._duplex.fault is None:
            envelope, caused_by = self._program.messages.read(message)
            self._duplex.deliver(envelope, caused_by)
        return self._duplex.fault is None

    def agreed(self, revision: Revision) -> None:
        """Nothing changes."""

    async def exchange(self, request: Request) -> Envelope:
        """Send a request and wait for its answer."""
        if request.method == "server/discover" and self._program.handshake_only:
            return Envelope(request.id, "", b"", error=_NO_DISCOVERY)  # its session would log a complaint
        return await self._duplex.exchange(request)

    async def send(self, message: bytes, method: str) -> None:
        """Send a notification or an answer."""
        await self._write(message)

    async def _write(self, message: bytes) -> None:
        if self._duplex.fault is not None:
            raise self._duplex.fault
        if not await self._input.put(self._program.messages.make(message), self._caller()):
            raise ConnectionLost("The program ended the session.")

    async def close(self) -> None:
        """End the session."""
        self._duplex.end(ConnectionLost("The client was closed."))
        self._input.end()
        session = self._session
        if session is not None and not session.done():
            await asyncio.wait([session], timeout=_GRACE)
            session.cancel()
            await asyncio.wait([session])
        await self._program.settle()
