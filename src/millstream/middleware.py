"""Middleware: hooks around requests. See `Middleware`, and ``Server(middleware=[…])``."""

from millstream._server.features import ListRequest, MessageRequest, Middleware, Next, Request

__all__ = ["ListRequest", "MessageRequest", "Middleware", "Next", "Request"]
