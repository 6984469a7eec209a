"""Middleware: hooks around what a server does for a caller. See `Middleware`, and ``Server(middleware=[…])``."""

from millstream._server.features.hooks import ListRequest, MessageRequest, Middleware, Next, Request

__all__ = ["ListRequest", "MessageRequest", "Middleware", "Next", "Request"]
