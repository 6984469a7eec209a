"""The composition root: `Server`, which is itself the ASGI application, and the ways to serve it."""

from millstream._app.server import Server

__all__ = ["Server"]
