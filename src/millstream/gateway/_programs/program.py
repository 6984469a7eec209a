"""A server object of another library, as a target for clients in this process.

Adapters that run the server objects of each library through its public interface.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from contextvars import Context, copy_context
from functools import partial
from importlib import import_module, metadata
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from msgspec import Struct

from millstream.gateway._programs.classes import ProgramError, UnsupportedVersion, library_of
from millstream.gateway._programs.http import HttpSide
from millstream.gateway._programs.single_exchange import Messages, SingleExchange
from millstream.gateway._programs.transport import ProgramTransport

if TYPE_CHECKING:
    from millstream._protocol.principal import Principal
    from millstream._tasks import Tasks
    from millstream.client._transports.transport import Listener, Transport
    from millstream.gateway._programs.auth import ProgramAuth


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


def program_of(value: Any) -> Program:
    """Return a server object of another library as a target.

    Raises:
        ProgramError: it isn't one, or this version of its library isn't supported.
    """
    library = library_of(value)
    if not library:
        raise ProgramError(f"{type(value).__name__} isn't a server of mcp or fastmcp.")
    library_version = f"{library} {metadata.version(library)}"
    name = str(getattr(value, "name", "") or "") or "server"
    if library == "fastmcp":
        side, open = HttpSide(value.http_app()), partial(_fastmcp, value, library_version)
    elif isinstance(value, _low_level_class()):
        side, open = None, partial(_low_level, value)
    elif not hasattr(value, "streamable_http_app"):
        raise UnsupportedVersion(f"{library_version} is too old to run here. Update it.")
    else:
        side = HttpSide(value.streamable_http_app())
        open = partial(_low_level, _check_low_level(side.low_level, library_version))
    unknown = side.unknown_middleware() if side is not None else []
    if unknown:
        raise ProgramError(
            f"{name} has its own HTTP middleware, which can't run here: {', '.join(unknown)}. Run its command "
            "instead, or serve it as before and use its URL: millstream run URL"
        )
    program = Program(name, library_version, open, side, handshake_only=not _has_per_request_era())
    low_level = value if side is None else side.low_level
    # fastmcp 3 and newer expose it only while their lifespan runs.
    options = None if low_level is None else low_level.create_initialization_options()
    program.version = str(options.server_version if options is not None else value.version or "")
    return program


def upstream_of(value: Any) -> Program:
    """Return a server object as an upstream of a server that may admit other callers than the program does.

    Raises:
        ProgramError: as `program_of`, or the program checks tokens.
    """
    program = value if isinstance(value, Program) else program_of(value)
    if program is not value and program.protected:
        raise ProgramError(
            f"{program.name} checks the tokens of its callers, but as an upstream it would serve every caller of "
            "this server. Serve it on its own with millstream run, or use its URL as the upstream."
        )
    return program


def _has_per_request_era() -> bool:
    return hasattr(_optional("mcp.server.runner"), "serve_dual_era_loop")


def _optional(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError:
        return None


def _low_level_class() -> type:
    return cast("type", import_module("mcp.server.lowlevel").Server)


def _check_low_level(server: Any, library_version: str) -> Any:
    """Return `server` if it's a low-level server.

    Raises:
        ProgramError: it isn't one, because this version structures its application differently.
    """
    if not isinstance(server, _low_level_class()):
        raise UnsupportedVersion(
            f"{library_version} doesn't expose the server behind its HTTP application. Run the program as a command "
            'instead: millstream run "python FILE"'
        )
    return server


@asynccontextmanager
async def _low_level(server: Any) -> AsyncGenerator[ProgramServer]:
    """Run a low-level server as its own HTTP transport would: 1.x runs the lifespan per session, 2.x once."""
    options = server.create_initialization_options()
    if not _has_per_request_era():
        yield ProgramServer(lambda input, output: server.run(input, output, options))
        return
    serve = import_module("mcp.server.runner").serve_dual_era_loop
    async with server.lifespan(server) as state:
        try:
            single = SingleExchange(server, state)
        except (ImportError, AttributeError):  # sessions support this era as well
            single = None
        yield ProgramServer(
            lambda input, output: serve(server, input, output, lifespan_state=state, init_options=options), single
        )


@asynccontextmanager
async def _fastmcp(server: Any, library_version: str) -> AsyncGenerator[ProgramServer]:
    """Run a fastmcp server: its application's lifespan once, and its low-level server for each session."""
    application = server.http_app()  # its session manager runs only once
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(application.router.lifespan_context(application))
        # Known only now, because fastmcp 3 and newer create the session manager in the lifespan.
        yield await stack.enter_async_context(
            _low_level(_check_low_level(HttpSide(application).low_level, library_version))
        )
