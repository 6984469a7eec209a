"""A server object of another library, as a target for clients in this process.

Adapters run the server objects of the libraries. `ProgramApplication` is a program's HTTP application: its token check,
and its paths other than MCP. With the SDK 2.x, a request of the per-request era becomes one call, without a session and
its streams, because it depends on no earlier one. The SDK's own HTTP transport does the same.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from contextvars import Context, copy_context
from functools import partial
from hashlib import sha256
from importlib import import_module, metadata
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from anyio import BrokenResourceError, ClosedResourceError, create_memory_object_stream
from anyio.abc import ObjectReceiveStream, ObjectSendStream
from msgspec import Struct, field

from millstream import Principal
from millstream._gateway.programs.libraries import ProgramError, UnsupportedVersion, library_of
from millstream._override import override
from millstream._protocol.jsonrpc import Envelope
from millstream._recent import Recent
from millstream._tasks import Tasks, cancel_all, is_canceled
from millstream.client import ConnectFailed, ConnectionLost, Listener, TransportRequest
from millstream.client.lowlevel import DuplexTransport
from millstream.protocol import METHOD_NOT_FOUND, Json, Revision, decode_object, decoder, encode


def message_maker() -> Callable[[bytes], Any]:
    """Return a function that converts a complete JSON-RPC message to an object of the installed SDK."""
    types: Any = import_module("mcp.types")
    session_message: Any = import_module("mcp.shared.message").SessionMessage
    # In 1.x, the type is a model around the kinds of messages; in 2.x, their union.
    parse: Any = import_module("pydantic").TypeAdapter(types.JSONRPCMessage).validate_python
    return lambda data: session_message(parse(decode_object(data)))


def encode_members(value: Any) -> bytes:
    """Encode an object of the SDK as JSON."""
    try:
        return encode(value)
    except (TypeError, ValueError):  # it contains a value that only pydantic can encode
        pass
    from pydantic_core import to_json  # noqa: PLC0415  few messages need it

    return to_json(value, by_alias=True, inf_nan_mode="null")


def encode_error(error: Any) -> bytes:
    """Encode an error from the SDK, with its code, message, and data, as JSON."""
    members: Json = {"code": error.code, "message": error.message}
    if error.data is not None:
        members["data"] = error.data
    return encode_members(members)


Deliver = Callable[[Envelope, int], None]
"""Delivers a notification: ``deliver(notification, request id)``."""


class _Request(Struct):
    params: Json = {}


_decode = decoder(_Request)


class SingleExchange:
    """Answers requests independently of each other."""

    def __init__(self, server: Any, lifespan_state: Any) -> None:
        """Prepare to call a low-level server.

        Args:
            server: Server of the SDK 2.x.
            lifespan_state: State that its lifespan yielded.

        Raises:
            ImportError, AttributeError: This version has a different structure.
        """
        runner: Any = import_module("mcp.server.runner")
        inbound: Any = import_module("mcp.shared.inbound")
        self._handle: Any = runner.modern_on_request(server, lifespan_state)
        self._error_of: Any = runner.modern_error_data
        self._classify: Any = inbound.classify_inbound_request
        self._rejection: Any = inbound.InboundLadderRejection
        transport: Any = import_module("mcp.shared.transport_context").TransportContext
        self._transport: Any = transport(kind="memory", can_send_request=False)

    async def answer(self, method: str, body: bytes, request_id: int, deliver: Deliver) -> Envelope:
        """Return the response to a request.

        Args:
            method: Method of the request.
            body: Complete message.
            request_id: Id of the request.
            deliver: Receives the notifications that precede the response.
        """
        params = _decode(body).params
        route = self._classify({"method": method, "params": params})
        if isinstance(route, self._rejection):
            return Envelope(request_id, "", b"", error=encode_error(route))
        token = params.get("_meta", {}).get("progressToken")
        context = _DispatchContext(self._transport, request_id, token, deliver)
        try:
            result = await self._handle(context, method, params)
        except Exception as exc:  # handlers can raise anything
            return Envelope(request_id, "", b"", error=encode_error(self._error_of(exc)))
        finally:
            context.closed = True
        return Envelope(request_id, "", b"", encode_members(result))


class _DispatchContext(Struct):
    """One request as the SDK's handlers see it: `mcp.shared.dispatcher.DispatchContext`.

    The SDK refuses requests to the client before they arrive here.
    """

    transport: Any
    request_id: int
    token: Any
    """Progress token of the request, or None without one."""
    deliver: Deliver
    cancel_requested: asyncio.Event = field(default_factory=asyncio.Event)
    """Never set: canceling a request cancels its task."""
    closed: bool = False
    message_metadata: ClassVar[None] = None

    async def notify(self, method: str, params: Mapping[str, Any] | None, opts: Any = None) -> None:
        if not self.closed:
            data = b"" if params is None else encode_members(params)
            self.deliver(Envelope(None, method, data), self.request_id)

    async def progress(self, progress: float, total: float | None = None, message: str | None = None) -> None:
        if self.token is None:
            return
        members = {"progressToken": self.token, "progress": progress, "total": total, "message": message}
        present = {name: value for name, value in members.items() if value is not None}
        await self.notify("notifications/progress", present)


logger = logging.getLogger("millstream.gateway")

_MAX_QUEUED = 1000
"""Maximum messages that a program hasn't received yet."""
_GRACE = 2.0
"""Seconds for a session to end on its own."""
_NO_DISCOVERY = encode({"code": METHOD_NOT_FOUND, "message": "Method not found"})


SIGN_IN = "/.well-known/oauth-"
"""Prefix of the sign-in metadata paths."""
_KNOWN_MIDDLEWARE = (
    "AuthContextMiddleware",
    "AuthenticationMiddleware",
    "CORSMiddleware",
    "HostOriginGuardMiddleware",
    "RequestContextMiddleware",
)
"""Middleware that may wrap MCP. This server replaces it: it checks tokens, Host, and Origin, and sends CORS headers
to the origins that the program allows.
"""


class ProgramPath(Struct, frozen=True):
    """A path of the program other than MCP."""

    path: str
    methods: frozenset[str]
    """HTTP methods, or empty for all."""
    below: bool
    """Whether it includes everything under the path."""


class ProgramApplication:
    """The application that a program would serve over HTTP, inspected through Starlette's public attributes."""

    def __init__(self, application: Any) -> None:
        """Inspect an application.

        Args:
            application: Starlette application that the library creates.
        """
        self.application: Any = application
        self._mcp: Any = next((route for route in application.routes if _holder_of(route) is not None), None)
        self.mcp_path: str = getattr(self._mcp, "path", "")
        """Path of MCP."""
        endpoint = getattr(self._mcp, "endpoint", None)
        self.required_scopes: tuple[str, ...] = tuple(getattr(endpoint, "required_scopes", None) or ())
        """Scopes that every caller needs."""
        options: list[Mapping[str, Any]] = [each.kwargs for each in application.user_middleware]
        backends = (each["backend"] for each in options if hasattr(each.get("backend"), "authenticate"))
        self.backend: Any = next(backends, None)
        """Starlette's `AuthenticationBackend` that checks tokens, or None if the program doesn't."""
        self.protected: bool = hasattr(endpoint, "app") or self.backend is not None
        """Whether callers need a token."""
        self.cors_origins: tuple[str, ...] = tuple(
            str(origin) for each in options for origin in each.get("allow_origins", ())
        )
        """Origins that the program's CORS middleware allows."""
        names = [str(getattr(each.cls, "__name__", each.cls)) for each in application.user_middleware]
        self.unknown_middleware: list[str] = [name for name in names if name not in _KNOWN_MIDDLEWARE]
        """Names of middleware classes that can't run in front of MCP here."""

    @property
    def session_manager(self) -> Any:
        """The object that serves sessions, or None if the library doesn't expose it."""
        return getattr(_holder_of(self._mcp), "session_manager", None)

    @property
    def low_level(self) -> Any:
        """The low-level server behind the application, or None if the library doesn't expose it."""
        return getattr(self.session_manager, "app", None)

    def own_paths(self) -> Iterator[ProgramPath]:
        """Yield the paths other than MCP: sign-in metadata, and the program's own."""
        for route in self.application.routes:
            if route is self._mcp or not hasattr(route, "path"):
                continue
            below = not hasattr(route, "methods")  # Starlette's `Mount`
            yield ProgramPath(route.path or "/", frozenset(getattr(route, "methods", None) or ()), below)


def _holder_of(route: Any) -> Any:
    """Return the endpoint of a route that has a session manager, unwrapping a token check."""
    endpoint = getattr(route, "endpoint", None)
    for each in (endpoint, getattr(endpoint, "app", None)):
        if hasattr(each, "session_manager"):
            return each
    return None


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
    """Messages from the server. `send` passes each one on without another task: a response to the waiting request, and
    others to the listener.
    """

    _closed = False

    def __init__(self, deliver: Callable[[Any], bool]) -> None:
        """Create an open stream.

        Args:
            deliver: Receives a message; returns False if the connection is closed.
        """
        self._deliver = deliver

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
    _run: "ProgramRun"
    _revision: Revision | None = None
    _input: ObjectSendStream[tuple[Context, Any]] | None = None
    """Messages for the session, or None if the client has only sent requests that don't need a session."""

    def __init__(self, program: "Program", listener: Listener, background: Tasks) -> None:
        super().__init__(listener, background)
        self._program = program
        self._stack = AsyncExitStack()
        self._requests = Tasks()
        """Requests that need no session."""

    @override
    async def open(self) -> None:
        """Start the program if necessary.

        Raises:
            ConnectFailed: The program failed to start.
        """
        try:
            self._run = await self._stack.enter_async_context(self._program.use())
        except Exception as exc:
            logger.exception("The program %s failed to start", self._program.name)
            raise ConnectFailed(
                f"The program {self._program.name} failed to start: {type(exc).__name__}. See the log."
            ) from exc

    def _context_of_caller(self) -> Context:
        """Return a context in which functions of the program see the caller's token."""
        context = self._run.context.copy()
        if self._program.caller:
            user_variable: Any = import_module("mcp.server.auth.middleware.auth_context").auth_context_var
            context.run(user_variable.set, self._program.users.get(self._program.caller))
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
            related = str(getattr(message.metadata, "related_request_id", None))  # mcp 1.x makes the number a text
            text: str = message.message.model_dump_json(by_alias=True, exclude_none=True)  # as on the SDK's stdio
            self.receive(text.encode(), int(related) if related.isdecimal() else 0)
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
        try:
            # Canceling the caller cancels it.
            return await self._context_of_caller().run(self._requests.spawn, answer)
        except asyncio.CancelledError:
            if is_canceled():
                raise
            raise ConnectionLost("The client was closed.") from None

    @override
    async def send(self, message: bytes, method: str) -> None:
        """Send a notification or a response. Without a session, there's nothing to send it to."""
        if self._input is not None:
            await super().send(message, method)

    @override
    async def _write(self, message: bytes) -> None:
        context = self._context_of_caller()
        if self._input is None:
            self._input, messages = create_memory_object_stream[tuple[Context, Any]](_MAX_QUEUED)
            session = context.run(self._background.spawn, self._serve(messages))
            # In reverse order: the session ends on its own once it has no more messages.
            self._stack.push_async_callback(cancel_all, session)
            self._stack.push_async_callback(asyncio.wait, [session], timeout=_GRACE)
            self._stack.push_async_callback(self._input.aclose)
        try:
            await self._input.send((context, self._program.make_message(message)))
        except (BrokenResourceError, ClosedResourceError):
            raise ConnectionLost("The program ended the session.") from None

    @override
    async def close(self) -> None:
        """End the session."""
        self.end(ConnectionLost("The client was closed."))
        await self._requests.close()
        await self._stack.aclose()


class ProgramServer(Struct, frozen=True):
    """A server running in one event loop."""

    serve: Callable[[Any, Any], Awaitable[None]]
    """``await serve(input, output)`` runs one session until the input ends."""
    single: SingleExchange | None = None
    """Answers per-request era requests, or None if sessions do."""


Open = Callable[[str | None], AbstractAsyncContextManager[ProgramServer]]
"""Runs the code that a program runs once for all sessions, such as its lifespan: ``open(transport)``."""
MAX_USERS = 10_000
"""Maximum callers that a program remembers."""
TOKEN = "access_token"  # noqa: S105  the name of a claim
"""Claim that holds the token as the program's library represents it."""


class ProgramRun:
    """A program running in one event loop, for as long as it has users."""

    user_count = 0
    """Number of sessions and other users of the program."""
    context: Context
    """Context variables set by the program's lifespan."""
    server: ProgramServer

    def __init__(self, open: Open, transport: str | None) -> None:
        loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[None] = loop.create_future()
        """Done when the program has started, or failed to."""
        self.stop: asyncio.Event = asyncio.Event()
        """Set to stop the program."""
        self.task: asyncio.Task[None] = loop.create_task(self._run(open(transport)), context=Context())

    async def _run(self, opening: AbstractAsyncContextManager[ProgramServer]) -> None:
        try:
            async with opening as self.server:
                self.context = copy_context()
                self.ready.set_result(None)
                await self.stop.wait()
        except BaseException as exc:
            if self.ready.done():
                raise
            self.ready.set_exception(exc)
            self.ready.exception()  # already raised to the waiter


class Program(Struct, eq=False):
    """A program of another library, as a target for `Client` and ``Server.upstream``.

    Its lifespan runs while sessions are open. It starts with the first one.
    """

    name: str
    """Name of the server."""
    version: str
    """Version of the server."""
    open: Open
    """Runs the program."""
    side: ProgramApplication | None
    """Its HTTP side, or None for a low-level server, which has none."""
    handshake_only: bool
    """Whether it doesn't support the per-request era."""
    transport: str | None = None
    """Transport that its functions see. From ``stdio``, fastmcp concludes that one client has the server to itself."""
    caller: str = ""
    """The caller that its sessions belong to (see `caller_of`), or empty for an anonymous one."""
    make_message: Callable[[bytes], Any] = field(default_factory=message_maker)
    users: Recent[str, Any] = field(default_factory=lambda: Recent(MAX_USERS))
    """The library's user objects for the sessions of callers (see `caller_of`)."""
    runs: WeakKeyDictionary[asyncio.AbstractEventLoop, ProgramRun] = field(
        default_factory=WeakKeyDictionary[asyncio.AbstractEventLoop, ProgramRun]
    )

    @property
    def protected(self) -> bool:
        """Whether callers need a token, so each of them needs a separate session."""
        return self.side is not None and self.side.protected

    def new_transport(self, listener: Listener, background: Tasks) -> ProgramTransport:
        """Return a transport to a new session."""
        return ProgramTransport(self, listener, background)

    @asynccontextmanager
    async def use(self) -> AsyncGenerator[ProgramRun]:
        """Start the program in this event loop if necessary. After its last user, it stops.

        Raises:
            Exception: Raised by the program's lifespan.
        """
        loop = asyncio.get_running_loop()
        await self.settle()
        run = self.runs.get(loop)
        if run is None:
            run = self.runs[loop] = ProgramRun(self.open, self.transport)
            run.task.add_done_callback(lambda _: self.runs.pop(loop))
        run.user_count += 1
        try:
            await asyncio.shield(run.ready)
            yield run
        finally:
            run.user_count -= 1
            if not run.user_count:
                run.stop.set()
        if not run.user_count:
            await asyncio.wait([run.task])

    async def settle(self) -> None:
        """Wait until the program has stopped, if it's stopping."""
        run = self.runs.get(asyncio.get_running_loop())
        if run is not None and not run.user_count:
            await asyncio.wait([run.task])


def caller_of(principal: Principal) -> str:
    """Return the caller key: each token has its own sessions, because tokens may have different scopes."""
    credential: object = getattr(principal.claims.get(TOKEN), "token", None)
    return sha256(credential.encode()).hexdigest() if isinstance(credential, str) else principal.id


def program_of(value: Any) -> Program:
    """Return a server object of another library as a target.

    Raises:
        ProgramError: It isn't one, or this version of its library isn't supported.
    """
    library = library_of(value)
    if not library:
        raise ProgramError(f"{type(value).__name__} isn't an mcp or fastmcp server.")
    library_version = f"{library} {metadata.version(library)}"
    name = str(getattr(value, "name", "") or "") or "server"
    side: ProgramApplication | None = None
    low_level = value
    if library == "fastmcp":
        side = ProgramApplication(value.http_app())
        low_level = side.low_level  # fastmcp 3 and newer expose it only while their lifespan runs
        if low_level is None and not hasattr(value, "version"):
            raise ProgramError(f"{library_version} is too old to run here. Update it to 2.11 or newer.")
    elif not isinstance(value, import_module("mcp.server.lowlevel").Server):
        if not hasattr(value, "streamable_http_app"):
            raise UnsupportedVersion(f"{library_version} is too old to run here. Update it.")
        side = ProgramApplication(value.streamable_http_app())
        low_level = _check_low_level(side.low_level, library_version)
    if side is not None and side.unknown_middleware:
        raise ProgramError(
            f"{name} has its own HTTP middleware, which can't run here: {', '.join(side.unknown_middleware)}. Run its "
            "command instead, or serve it as before and use its URL: millstream run URL"
        )
    version = value.version if low_level is None else low_level.create_initialization_options().server_version
    serve = _dual_era_loop()
    open = (
        partial(_fastmcp, value, serve, library_version)
        if library == "fastmcp"
        else partial(_low_level, low_level, serve)
    )
    return Program(name, str(version or ""), open, side, serve is None)


def upstream_of(value: Any) -> Program:
    """Return a server object as an upstream of a server that may admit other callers than the program does.

    Raises:
        ProgramError: As `program_of`, or the program checks tokens.
    """
    program = value if isinstance(value, Program) else program_of(value)
    if program is not value and program.protected:
        raise ProgramError(
            f"{program.name} checks its callers' tokens, but as an upstream it would serve every caller of "
            "this server. Serve it on its own with millstream run, or use its URL as the upstream."
        )
    return program


def _dual_era_loop() -> Any:
    """Return the SDK 2.x function that serves a session of either era, or None in 1.x."""
    try:
        return import_module("mcp.server.runner").serve_dual_era_loop
    except (ImportError, AttributeError):
        return None


def _check_low_level(server: Any, library_version: str) -> Any:
    """Return `server` if it's a low-level server.

    Raises:
        ProgramError: It isn't one, because this version structures its application differently.
    """
    if not isinstance(server, import_module("mcp.server.lowlevel").Server):
        raise UnsupportedVersion(
            f"{library_version} doesn't expose the server behind its HTTP application. Run the program as a command "
            'instead: millstream run "python FILE"'
        )
    return server


@asynccontextmanager
async def _low_level(server: Any, serve: Any, transport: str | None) -> AsyncGenerator[ProgramServer]:
    """Run a low-level server as its own HTTP transport would: 1.x runs the lifespan per session, 2.x once."""
    describe = server.create_initialization_options  # per session, because programs change their instructions
    if serve is None:
        yield ProgramServer(lambda input, output: server.run(input, output, describe()))
        return
    async with server.lifespan(server) as state:
        try:
            single = SingleExchange(server, state)
        except (ImportError, AttributeError):  # sessions support this era as well
            single = None
        yield ProgramServer(
            lambda input, output: serve(server, input, output, lifespan_state=state, init_options=describe()), single
        )


@asynccontextmanager
async def _fastmcp(
    server: Any, serve: Any, library_version: str, transport: str | None
) -> AsyncGenerator[ProgramServer]:
    """Run a fastmcp server: its application's lifespan once, and its low-level server for each session."""
    set_transport: Any = getattr(import_module("fastmcp.server.context"), "set_transport", None)
    if set_transport is not None:  # else this version doesn't tell its functions
        set_transport(transport)
    application = server.http_app()  # its session manager runs only once
    async with application.router.lifespan_context(application):
        # Known only now, because fastmcp 3 and newer create the session manager in the lifespan.
        low_level = _check_low_level(ProgramApplication(application).low_level, library_version)
        async with _low_level(low_level, serve, transport) as running:
            yield running
