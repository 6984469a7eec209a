"""The composition root: `Server`, which is itself the ASGI application, and the ways to serve it."""

from typing import TYPE_CHECKING, Any

from millstream._app.server import Server

if TYPE_CHECKING:
    from millstream._app.server_process.http_server import serve

__all__ = ["Server", "serve"]


def __getattr__(name: str) -> Any:
    # Serving HTTP imports an HTTP server, which a stdio program doesn't need.
    if name == "serve":
        from millstream._app.server_process.http_server import serve  # noqa: PLC0415

        return serve
    raise AttributeError(name)
