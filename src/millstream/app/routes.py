"""Which handler serves which path, for both HTTP adapters."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from millstream.app.parts import part_routes
from millstream.http import TEXT_HEAD, Handler, Request, Response
from millstream.protocol.jsonrpc import encode
from millstream.transports.http_sessions import HttpSessions
from millstream.transports.http_sse import MESSAGES_PATH, HttpSse
from millstream.transports.streamable import Streamable
from millstream.transports.streamable_get import StreamableGet

if TYPE_CHECKING:
    from millstream.app.runtime import Runtime


class Routes:
    """The paths of one running server."""

    __slots__ = ("_by_path", "_hot", "_prefixes", "_runtime", "_streams")

    def __init__(self, runtime: "Runtime") -> None:
        self._runtime = runtime
        settings = runtime.services.settings
        sessions = HttpSessions(runtime.services) if settings.sessions else None
        streamable = Streamable(runtime.dispatcher, runtime.streams, sessions)
        legacy = HttpSse(runtime.dispatcher, runtime.streams)
        standing = StreamableGet(streamable, runtime.dispatcher, first=legacy.get)
        path = settings.path
        mcp: dict[str, Handler] = {"POST": streamable.post, "GET": standing.get, "DELETE": standing.delete}
        self._by_path: dict[str, Mapping[str, Handler]] = {
            path: mcp,
            path.rstrip("/") + "/": mcp,
            "/sse": {"GET": legacy.get},
            MESSAGES_PATH: {"POST": legacy.post},
            MESSAGES_PATH.rstrip("/"): {"POST": legacy.post},
            "/health": {"GET": self._health},
            "/livez": {"GET": self._live},
            "/readyz": {"GET": self._ready},
        }
        self._streams = {path, path.rstrip("/") + "/", "/sse", "/events", "/dashboard/events"}
        """A HEAD of these would open a stream."""
        exact, self._prefixes = part_routes(runtime)
        self._by_path.update(exact)
        self._hot = {
            (method.encode(), each.encode()): handler
            for each, handlers in self._by_path.items()
            for method, handler in handlers.items()
        }

    def find(self, method: str, path: str) -> Handler | None:
        """The handler of a path below the mount point; None for 404."""
        exact = self._by_path.get(path)
        handlers = exact or self._below(path)
        if handlers is None:
            return None
        handler = handlers.get(method)
        if handler is None and method == "HEAD" and exact is not None and path not in self._streams:
            handler = exact.get("GET")
        return handler if handler is not None else _not_allowed(handlers)

    def _below(self, path: str) -> Mapping[str, Handler] | None:
        return next((handlers for prefix, handlers in self._prefixes if path.startswith(prefix)), None)

    @property
    def hot(self) -> dict[tuple[bytes, bytes], tuple[Handler, str, str]]:
        """What the lane finds by itself: method and path -> handler, and both as text."""
        return {
            (method, path): (handler, method.decode(), path.decode()) for (method, path), handler in self._hot.items()
        }

    def find_hot(self, method: bytes, path: bytes) -> Handler | None:
        """The handler of a path that the lane serves itself."""
        found = self._hot.get((method, path))
        if found is None and self._prefixes:
            below = self._below(path.decode("latin-1"))
            return None if below is None else below.get(method.decode("latin-1"))
        return found

    async def _health(self, request: Request) -> Response:
        return Response(encode(facts(self._runtime)), 503 if self._runtime.draining else 200)

    async def _live(self, request: Request) -> Response:
        return Response(b"ok\n", 200, TEXT_HEAD)

    async def _ready(self, request: Request) -> Response:
        if self._runtime.draining:
            return Response(b"draining\n", 503, TEXT_HEAD + b"retry-after: 5\r\n")
        return Response(b"ok\n", 200, TEXT_HEAD)


def facts(runtime: "Runtime") -> dict[str, Any]:
    """What `/health` tells an operator."""
    return {
        "status": "draining" if runtime.draining else "ok",
        "name": runtime.server.name,
        "version": runtime.server.version,
        "uptime_seconds": round(runtime.clock() - runtime.started, 3),
        "calls": len(runtime.dispatcher.calls),
        "streams": len(runtime.streams),
        "questions": len(runtime.services.questions),
        "store": runtime.server.store.partition(":")[0],
        "serves": ["mcp", *sorted(runtime.parts)],
        **({} if runtime.hub is None else {"subscribers": runtime.hub.stats().subscribers}),
    }


def _not_allowed(handlers: Mapping[str, Handler]) -> Handler:
    allowed = ", ".join([*handlers, "OPTIONS"])
    reply = Response(
        b"Method not allowed. This path takes %b.\n" % allowed.encode(),
        405,
        TEXT_HEAD + b"allow: %b\r\n" % allowed.encode(),
    )

    async def refuse(request: Request) -> Response:
        return reply

    return refuse
