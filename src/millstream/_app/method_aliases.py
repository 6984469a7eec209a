"""Aliases of `Server` methods, under the names that other MCP libraries use."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from millstream._protocol.errors import no_attribute

_ELSEWHERE = {
    "add_middleware": "Write `Server(middleware=[…])`, or wrap the application.",
    "add_prompt": "Write `mcp.prompt(function)`.",
    "add_resource": "Write `mcp.resource(uri)(function)`.",
    "add_resource_fn": "Write `mcp.resource(uri)(function)`.",
    "app": "The server is the ASGI application: `app = mcp`.",
    "as_proxy": "Write `mcp.upstream(…)`.",
    "asgi": "The server is the ASGI application: `app = mcp`.",
    "call_tool": "Write `async with Client(mcp) as client: await client.call(name, arguments)`.",
    "from_fastapi": "Write `Server.from_fastapi(app)`.",
    "get": "Write `@mcp.route(path)`.",
    "get_context": "Add a parameter to your function: `ctx: Context`.",
    "get_prompts": "Write `async with Client(mcp) as client: await client.prompts()`.",
    "get_resources": "Write `async with Client(mcp) as client: await client.resources()`.",
    "get_tools": "Write `async with Client(mcp) as client: await client.tools()`.",
    "import_server": "Write `mcp.mount(other, prefix=…)`.",
    "list_prompts": "Write `async with Client(mcp) as client: await client.prompts()`.",
    "list_resources": "Write `async with Client(mcp) as client: await client.resources()`.",
    "list_tools": "Write `async with Client(mcp) as client: await client.tools()`.",
    "middleware": "Write `Server(middleware=[…])`, or wrap the application.",
    "on_event": "Write `Server(lifespan=…)`.",
    "post": "Write `@mcp.route(path, methods=['POST'])`.",
    "read_resource": "Write `async with Client(mcp) as client: await client.read(uri)`.",
    "run_http_async": "Write `await mcp.run_async('http')`.",
    "run_sse_async": "Write `await mcp.run_async('http')`, which serves /sse, too.",
    "run_stdio_async": "Write `await mcp.run_async('stdio')`.",
    "run_streamable_http_async": "Write `await mcp.run_async('http')`.",
    "router": "Write `@mcp.route(path)`.",
    "session_manager": "A mounted server needs none: write `FastAPI(lifespan=mcp.lifespan)`.",
    "state": "Write `Server(lifespan=…)`: what it yields is `ctx.lifespan`.",
}
"""Name of another package -> what to write here."""

F = TypeVar("F", bound=Callable[..., Any])


class ServerAliases:
    """Base class of `Server`. New programs should use `tool`, `route`, and the server itself as the ASGI
    application.
    """

    def add_tool(self, function: F, /, **options: Any) -> F:
        """Register a function as a tool, like ``@mcp.tool``: ``mcp.add_tool(order, title="Order")``."""
        register: Callable[[F], F] = cast("Any", self).tool(**options)
        return register(function)

    def custom_route(self, path: str, methods: list[str], **options: Any) -> Callable[[F], F]:
        """Handle requests to a path, like ``@mcp.route``: ``@mcp.custom_route("/health", methods=["GET"])``.

        If callers have to sign in, this path requires it as well, unless ``public=True``.
        """
        register: Callable[[F], F] = cast("Any", self).route(path, methods=methods, **options)
        return register

    def http_app(self, path: str | None = None, *, transport: str = "http", **options: Any) -> Self:
        """Return the server, which is an ASGI application: ``app = mcp.http_app()`` is ``app = mcp``.

        It serves Streamable HTTP at /mcp and HTTP+SSE at /sse. To mount it: ``FastAPI(lifespan=mcp.lifespan)``.

        Args:
            path: Path of Streamable HTTP.
            transport: Ignored, because all HTTP transports are served at once.
            options: Not supported; use the settings of the server.

        Raises:
            TypeError: An option of another library was passed; see `Settings` for Millstream's.
        """
        if options:
            raise TypeError(
                f"http_app doesn't support {', '.join(options)}. Use Server(settings=Settings(…)); see Settings."
            )
        if path is not None:
            cast("Any", self).definition.configure(path="/" + path.strip("/"))
        return self

    def streamable_http_app(self) -> Self:
        """Return the server; see `http_app`: ``app = mcp.streamable_http_app()``."""
        return self

    def sse_app(self, mount_path: str | None = None) -> Self:
        """Return the server, which serves HTTP+SSE at /sse; see `http_app`: ``app = mcp.sse_app()``."""
        return self

    if not TYPE_CHECKING:  # type checkers would take every name for one that exists

        def __getattr__(self, name: str) -> Any:
            raise no_attribute(self, name, _ELSEWHERE)
