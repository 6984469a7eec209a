"""Methods of `Server` under the names that other MCP packages use for the same thing."""

from collections.abc import Callable
from typing import Any, Self, TypeVar, cast

F = TypeVar("F", bound=Callable[..., Any])


class FamiliarNames:
    """A base of `Server`. New programs use `tool`, `route`, and the server itself as the ASGI application."""

    def add_tool(self, function: F, /, **options: Any) -> F:
        """Register a function as a tool, as ``@mcp.tool`` does: ``mcp.add_tool(order, title="Order")``."""
        register: Callable[[F], F] = cast("Any", self).tool(**options)
        return register(function)

    def custom_route(self, path: str, methods: list[str], **options: Any) -> Callable[[F], F]:
        """Answer requests to a path, as ``@mcp.route`` does: ``@mcp.custom_route("/health", methods=["GET"])``.

        Where callers sign in, they have to for this path too, unless ``public=True``.
        """
        register: Callable[[F], F] = cast("Any", self).route(path, methods=methods, **options)
        return register

    def http_app(self, path: str | None = None, *, transport: str = "http", **options: Any) -> Self:
        """Return the server, which is an ASGI application: ``app = mcp.http_app()`` is ``app = mcp``.

        It serves Streamable HTTP at /mcp and HTTP+SSE at /sse. To mount it: ``FastAPI(lifespan=mcp.lifespan)``.

        Args:
            path: where to serve Streamable HTTP.
            transport: any; all of HTTP are served at once.
            options: none; settings are those of the server.

        Raises:
            TypeError: an option of another package; settings have those that Millstream knows.
        """
        if options:
            raise TypeError(f"http_app takes no {', '.join(options)}: use Server(settings=Settings(…)); see Settings.")
        if path is not None:
            cast("Any", self).definition.configure(path="/" + path.strip("/"))
        return self

    def streamable_http_app(self) -> Self:
        """Return the server; see `http_app`: ``app = mcp.streamable_http_app()``."""
        return self

    def sse_app(self, mount_path: str | None = None) -> Self:
        """Return the server, which serves HTTP+SSE at /sse; see `http_app`: ``app = mcp.sse_app()``."""
        return self
