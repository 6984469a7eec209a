"""How a server of the door runs: `run`, its asynchronous forms, and the ASGI applications."""

import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Mount, Route

from millstream._app.added import route_of
from millstream._app.runtimes import Application
from millstream._app.server import Server
from millstream._app.serving import launch
from millstream._http.hosts import is_loopback
from millstream._http.lane import Lane
from millstream.compat.fastmcp._settings import Settings

logger = logging.getLogger("millstream")

_TRANSPORTS = ("stdio", "sse", "streamable-http", "http")
_HTTP_SETTINGS = ("host", "port", "sse_path", "message_path", "streamable_http_path", "json_response", "stateless_http",
                  "max_request_body_size", "session_idle_timeout", "max_sessions", "transport_security",
                  "log_level", "mount_path")  # fmt: skip


class SessionManager:
    """Runs the server inside ``async with mcp.session_manager.run():``; several blocks may be open at a time."""

    def __init__(self, engine: Server, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._open = 0

    @property
    def session_idle_timeout(self) -> float | None:
        """Seconds after which an idle session may end."""
        return self._settings.session_idle_timeout

    @property
    def max_sessions(self) -> int | None:
        """How many sessions there may be."""
        return self._settings.max_sessions

    @property
    def max_request_body_size(self) -> int:
        """Bytes of the largest body."""
        return self._settings.max_request_body_size

    @asynccontextmanager
    async def run(self) -> AsyncGenerator[None]:
        """The server runs inside the block."""
        await self._engine.start(supervised=True)
        self._open += 1
        try:
            yield
        finally:
            self._open -= 1
            if not self._open:
                await self._engine.stop()

    async def handle_request(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request: an ASGI application."""
        await self._engine(scope, receive, send)


class HttpApp(Starlette):
    """A server as a Starlette application; `lifespan` is for an application that it is mounted in."""

    @property
    def lifespan(self) -> Callable[[Any], AbstractAsyncContextManager[Any]]:
        """Runs the server."""
        return self.router.lifespan_context


class Surrounded:
    """A server inside ASGI middleware of the program, served as our own servers are.

    The HTTP guard stands around both. There are no short cuts, which would pass the middleware by.
    """

    def __init__(self, engine: Server, middleware: Sequence[Any]) -> None:
        app: Any = engine
        for each in reversed(middleware):
            app = each.cls(app, *each.args, **each.kwargs)
        self.runtimes = engine.runtimes
        self._app = app
        self._lane: Lane | None = None

    @property
    def __millstream_lane__(self) -> Lane | None:
        """The limits of the HTTP guard."""
        if self._lane is None and self.runtimes.lane is not None:
            lane = self.runtimes.lane
            self._lane = Lane(_nothing_hot, limits=lane.limits, policy=lane.policy)
        return self._lane

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI 3."""
        await self._app(scope, receive, send)


def _nothing_hot(method: bytes, path: bytes) -> None:
    """All of it goes the long way."""


class Serving:
    """The methods of `FastMCP` that run it."""

    settings: Settings
    engine: Server
    _session_manager: SessionManager | None
    _custom_routes: list[Route]

    @property
    def session_manager(self) -> SessionManager:
        """What runs the server inside a larger application."""
        if self._session_manager is None:
            self._session_manager = SessionManager(self.engine, self.settings)
        return self._session_manager

    def custom_route(
        self, path: str, methods: Sequence[str], name: str | None = None, include_in_schema: bool = True
    ) -> Callable[[Any], Any]:
        """Serve a path of your own: ``async def f(request: starlette.requests.Request) -> Response``. Nobody has to
        sign in for it.

        Raises:
            ValueError: that's no path, or no method of HTTP.
            LocalError: the server runs already.
        """

        def decorate(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
            self.engine.definition.add_path(route_of(path, function, methods=methods, public=True, fixed=True))
            self._custom_routes.append(
                Route(path, function, methods=list(methods), name=name, include_in_schema=include_in_schema)
            )
            return function

        return decorate

    # Applications

    def streamable_http_app(self, **options: Any) -> HttpApp:
        """The server as a Starlette application, at `streamable_http_path`."""
        self._set(options)
        self.configure()
        path = self.settings.streamable_http_path
        return self._app([Route(path, endpoint=self.engine)], options.get("middleware"))

    def sse_app(self, mount_path: str | None = None, **options: Any) -> HttpApp:
        """The server as a Starlette application for clients of HTTP+SSE."""
        self._set(options)
        if mount_path is not None:
            self.settings.mount_path = mount_path
        self.configure()
        routes = [
            Route(self.settings.sse_path, endpoint=self.engine, methods=["GET"]),
            Mount(self.settings.message_path, app=_Unmounted(self.engine)),
        ]
        return self._app(routes, options.get("middleware"))

    def http_app(
        self,
        path: str | None = None,
        middleware: Any = None,
        json_response: bool | None = None,
        stateless_http: bool | None = None,
        transport: str = "http",
        **more: Any,
    ) -> HttpApp:
        """The server as a Starlette application, as fastmcp makes it."""
        given = {"json_response": json_response, "stateless_http": stateless_http}
        options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        options["middleware"] = middleware
        if transport == "sse":
            return self.sse_app(**options, **({} if path is None else {"sse_path": path}))
        return self.streamable_http_app(**options, **({} if path is None else {"streamable_http_path": path}))

    def _app(self, routes: list[Any], middleware: Any) -> HttpApp:
        if self.engine.definition.protected:
            ends = [path for each in self.engine.definition.auth for path in getattr(each, "outer_paths", ())]
            routes = [*routes, *(Route(path, endpoint=self.engine) for path in ("/.well-known/{rest:path}", *ends))]
        app = HttpApp(
            debug=self.settings.debug,
            routes=[*routes, *self._own_routes()],
            middleware=list(middleware or ()),
            lifespan=self._running,
        )
        app.state.fastmcp_server = self
        return app

    def _own_routes(self) -> list[Route]:
        """The routes of this server and of those that are mounted on it."""
        routes = list(self._custom_routes)
        for server, _ in getattr(self, "_mounted", ()):
            routes += server._own_routes()
        return routes

    def _running(self, app: Any) -> AbstractAsyncContextManager[Any]:
        return self.session_manager.run()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """ASGI 3."""
        await self.engine(scope, receive, send)

    def configure(self) -> None:
        """Let our settings say what the program set."""
        self.engine.definition.configure(**self.settings.ours())

    def _set(self, options: dict[str, Any]) -> None:
        for name in _HTTP_SETTINGS:
            if options.get(name) is not None:
                setattr(self.settings, name, options[name])

    # Running

    def run(self, transport: str | None = None, mount_path: str | None = None, **options: Any) -> None:
        """Serve until stopped.

        Args:
            transport: ``stdio`` (the default), ``streamable-http``, ``http`` or ``sse``; over HTTP all of them are
                served.
            mount_path: a path in front of what ``sse`` tells its clients.
            options: `host`, `port`, `path`, `log_level` and the other settings of HTTP.

        Raises:
            ValueError: an unknown transport.
        """
        transport = self._prepare(transport, {**options, "mount_path": mount_path})
        if transport == "stdio":
            launch.launch(self.engine, "stdio", self.settings.host, self.settings.port, 1)
        else:
            launch.launch(self._application(options), "http", self.settings.host, self.settings.port, 1)

    def _prepare(self, transport: str | None, options: dict[str, Any]) -> str:
        transport = transport or "stdio"
        if transport not in _TRANSPORTS:
            raise ValueError(f"Unknown transport: {transport}")
        path = options.get("path")
        if path is not None:
            options = {**options, "sse_path" if transport == "sse" else "streamable_http_path": path}
        self._set(options)
        self.configure()
        if transport != "stdio" and not is_loopback(self.settings.host) and not self.engine.definition.protected:
            logger.warning("%s is an address that others reach, and nobody has to sign in.", self.settings.host)
        return transport

    async def run_async(self, transport: str | None = None, **options: Any) -> None:
        """`run` in a loop that runs already."""
        transport = self._prepare(transport, options)
        if transport == "stdio":
            await self.engine.run_async("stdio")
        else:
            await launch.launch_here(self._application(options), "http", self.settings.host, self.settings.port)

    async def run_stdio_async(self, **options: Any) -> None:
        """Serve over stdio."""
        await self.run_async("stdio", **options)

    async def run_sse_async(self, mount_path: str | None = None, **options: Any) -> None:
        """Serve over HTTP+SSE."""
        await self.run_async("sse", mount_path=mount_path, **options)

    async def run_streamable_http_async(self, **options: Any) -> None:
        """Serve over Streamable HTTP."""
        await self.run_async("streamable-http", **options)

    async def run_http_async(self, transport: str = "http", **options: Any) -> None:
        """Serve over HTTP."""
        await self.run_async(transport, **options)

    def _application(self, options: dict[str, Any]) -> Application:
        """What is served: the server, inside the program's ASGI middleware if there is some."""
        middleware = options.get("middleware")
        return Surrounded(self.engine, middleware) if middleware else self.engine


class _Unmounted:
    """The server below a path that is its own: what Starlette takes off the path is put back."""

    def __init__(self, engine: Server) -> None:
        self._engine = engine

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        root, outer = scope.get("root_path", ""), scope.get("app_root_path", "")
        await self._engine({**scope, "root_path": outer if root.startswith(outer) else root}, receive, send)
