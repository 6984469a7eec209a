"""Middleware: hooks around requests. See `Middleware`, and ``Server(middleware=[…])``."""

from millstream._limits import Limiter, Rate
from millstream._server.features import ListRequest, MessageRequest, Middleware, Next, Request

__all__ = ["Limiter", "ListRequest", "MessageRequest", "Middleware", "Next", "Rate", "Request"]
