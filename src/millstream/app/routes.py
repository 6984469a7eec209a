"""Which handler serves which path, for both HTTP adapters."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from millstream.app.parts import part_routes
from millstream.app.probes import Probes
from millstream.http.hosts import EXEMPT, of_this_site
from millstream.http.message import TEXT_HEAD, Handler, Request, Response
from millstream.transports.http_sse import MESSAGES_PATH, HttpSse
from millstream.transports.streamable.exchange import Endpoint
from millstream.transports.streamable.get import SessionStreams
from millstream.transports.streamable.post import Streamable
from millstream.transports.streamable.sessions import HttpSessions

if TYPE_CHECKING:
    from millstream.app.runtime import Runtime


class Routes:
    """The paths of one running server."""

    __slots__ = ("_by_path", "_hot", "_prefixes", "_streams")

    def __init__(self, runtime: "Runtime") -> None:
        settings = runtime.services.settings
        sessions = HttpSessions(runtime.services) if settings.sessions else None
        endpoint = Endpoint(runtime.dispatcher, runtime.streams, sessions)
        streamable = Streamable(endpoint)
        legacy = HttpSse(runtime.dispatcher, runtime.streams)
        standing = SessionStreams(endpoint, first=legacy.get)
        probes = Probes(runtime)
        path = settings.path
        mcp: dict[str, Handler] = {"POST": streamable.post, "GET": standing.get, "DELETE": standing.delete}
        self._by_path: dict[str, Mapping[str, Handler]] = {
            path: mcp,
            path.rstrip("/") + "/": mcp,
            "/sse": {"GET": legacy.get},
            MESSAGES_PATH: {"POST": legacy.post},
            MESSAGES_PATH.rstrip("/"): {"POST": legacy.post},
            "/health": {"GET": probes.health},
            "/livez": {"GET": probes.live},
            "/readyz": {"GET": probes.ready},
        }
        self._streams = {path, path.rstrip("/") + "/", "/sse", "/events", "/dashboard/events"}
        """A HEAD of these would open a stream."""
        exact, self._prefixes = part_routes(runtime)
        self._by_path.update(exact)
        for each in self._streams & self._by_path.keys():
            handlers = self._by_path[each]
            self._by_path[each] = {**handlers, "GET": of_this_site(handlers["GET"])}
        self._hot = {
            (method.encode(), each.encode()): handler
            for each, handlers in self._by_path.items()
            for method, handler in handlers.items()
            if each not in EXEMPT
        }
        """What the lane serves. Probes go the long way, where Host and Origin are not checked but CORS is kept."""

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
