"""A server object of another library, as a target for clients in this process."""

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from msgspec import Struct

from millstream.gateway._programs.messages import Messages
from millstream.gateway._programs.single_exchange import SingleExchange
from millstream.gateway._programs.transport import ProgramTransport

if TYPE_CHECKING:
    from millstream._protocol.principal import Principal
    from millstream._tasks import Tasks
    from millstream.client._transports.transport import Listener, Transport
    from millstream.gateway._programs.auth import ProgramAuth
    from millstream.gateway._programs.http import HttpSide


class ProgramServer(Struct, frozen=True):
    """A server running in one event loop."""

    serve: Callable[[Any, Any], Awaitable[None]]
    """``await serve(input, output)`` runs one session until the input ends."""
    single: SingleExchange | None = None
    """Answers requests of the per-request era; None if sessions do."""


Open = Callable[[], AbstractAsyncContextManager[ProgramServer]]
"""Runs what a program runs once for all sessions, such as its lifespan."""
MAX_USERS = 10_000
"""Maximum callers that a program remembers."""


class _ProgramRun:
    """A program running in one event loop."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.user_count = 0
        """Number of sessions and other users of the program."""
        self.ready: asyncio.Future[None] = loop.create_future()
        self.stop = asyncio.Event()
        self.context = Context()
        """Context variables set by the program's lifespan."""
        self.server: ProgramServer
        self.task: asyncio.Task[None]


class Program:
    """A program of another library, as a target for `Client` and ``Server.upstream``.

    Its lifespan runs while sessions are open.
    """

    def __init__(
        self, name: str, library: str, open: Open, side: "HttpSide | None" = None, *, handshake_only: bool
    ) -> None:
        """Create the program; it starts with the first session.

        Args:
            name: name of the server.
            library: name and version, for errors and logs.
            open: runs the program.
            side: its HTTP side; None for a low-level server, which has none.
            handshake_only: whether it doesn't support the per-request era.
        """
        self.name: str = name
        self.version: str = ""
        self.library: str = library
        self.side: HttpSide | None = side
        self.handshake_only: bool = handshake_only
        self.messages: Messages = Messages()
        self._open = open
        self._users: OrderedDict[str, Any] = OrderedDict()
        self._running: WeakKeyDictionary[asyncio.AbstractEventLoop, _ProgramRun] = WeakKeyDictionary()

    @property
    def protected(self) -> bool:
        """Whether callers need a token, so that each of them needs a separate session."""
        return self.side is not None and self.side.protected

    def authenticator(self) -> "ProgramAuth":
        """Return the program's token check, for a server in front of it."""
        from millstream.gateway._programs.auth import ProgramAuth  # noqa: PLC0415  few programs check tokens

        assert self.side is not None  # noqa: S101  otherwise it isn't protected
        return ProgramAuth(self.side, self.remember)

    def caller_of(self, principal: "Principal") -> str:
        """Return the caller key of a protected program."""
        from millstream.gateway._programs.auth import caller_of  # noqa: PLC0415  few programs check tokens

        return caller_of(principal)

    def remember(self, caller: str, user: Any) -> None:
        """Store the library's user object for the sessions of a caller.

        Args:
            caller: see `caller_of`.
            user: user object of the library.
        """
        self._users[caller] = user
        self._users.move_to_end(caller)
        if len(self._users) > MAX_USERS:
            self._users.popitem(last=False)

    def user_of(self, caller: str) -> Any:
        """Return what `remember` stored last; None for an unknown caller."""
        return self._users.get(caller)

    def new_transport(self, listener: "Listener", background: "Tasks") -> "Transport":
        """Return a transport to an anonymous session."""
        return self.of("").new_transport(listener, background)

    def of(self, caller: str) -> "ProgramOfCaller":
        """Return the program as a target for the sessions of one caller."""
        return ProgramOfCaller(self, caller)

    async def enter(self) -> Context:
        """Start the program in this event loop if necessary. Return the context for a session.

        Raises:
            Exception: raised by the program's lifespan.
        """
        loop = asyncio.get_running_loop()
        running = self._running.get(loop)
        if running is None:
            running = self._running[loop] = _ProgramRun()
            running.task = loop.create_task(self._run(running, loop), context=Context())
        running.user_count += 1
        try:
            await asyncio.shield(running.ready)
        except BaseException:
            self._leave(running)
            raise
        return running.context.copy()

    def leave(self) -> None:
        """Undo one `enter`. The last one stops the program; see `settle`."""
        running = self._running.get(asyncio.get_running_loop())
        if running is not None:
            self._leave(running)

    @staticmethod
    def _leave(running: _ProgramRun) -> None:
        running.user_count -= 1
        if not running.user_count:
            running.stop.set()

    async def settle(self) -> None:
        """Wait until the program has stopped, if it's stopping."""
        running = self._running.get(asyncio.get_running_loop())
        if running is not None and not running.user_count:
            await asyncio.wait([running.task])

    async def serve(self, input: Any, output: Any) -> None:
        """Run a session until its input ends. Call `enter` first."""
        await self._running[asyncio.get_running_loop()].server.serve(input, output)

    @property
    def single(self) -> SingleExchange | None:
        """Return the handler for requests of the per-request era; None if sessions do. Call `enter` first."""
        return self._running[asyncio.get_running_loop()].server.single

    async def _run(self, running: _ProgramRun, loop: asyncio.AbstractEventLoop) -> None:
        try:
            async with self._open() as server:
                running.server = server
                running.context = copy_context()
                running.ready.set_result(None)
                await running.stop.wait()
        except BaseException as exc:
            if running.ready.done():
                raise
            running.ready.set_exception(exc)
            running.ready.exception()  # already raised to the waiter
        finally:
            if self._running.get(loop) is running:
                del self._running[loop]


class ProgramOfCaller:
    """A program as a target for the sessions of one caller."""

    def __init__(self, program: Program, caller: str) -> None:
        self._program = program
        self._caller = caller

    def new_transport(self, listener: "Listener", background: "Tasks") -> "Transport":
        """Return a transport to a new session."""
        return ProgramTransport(self._program, self._caller, listener, background)
