"""The HTTP/1.1 and WebSocket server that owns its sockets.

`Connection` turns bytes into requests without I/O, `HttpProtocol` puts it on a socket, `WebSocketProtocol` continues
after an upgrade, `ConnectionGuard` enforces every time limit with one timer, and `Listener` accepts. `Endpoints`
connects all of that to an application.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from millstream._http.hosts import HostPolicy
from millstream._http.message import Handler, HttpLimits
from millstream._http.server.fast_head import HeaderLineCache

Target = tuple[Handler, str, str]
"""A handler with its method and its path."""


class Endpoints:
    """The endpoints of one application, with its limits and its Host and Origin rules.

    Args:
        find: Returns the handler for a method and a decoded path, or `None` for 404.
        limits: Limits of connections and requests.
        policy: The Host and Origin rules.
        hot: (method, path) to handler, for the endpoints that the fast head reader finds without a call.
        websocket: An ASGI application for WebSockets, or `None` to ignore upgrades.
        max_message: Maximum bytes of a WebSocket message.
        heartbeat: Seconds between two WebSocket pings.
        root_path: The path prefix that a proxy has removed.
        header_lines: The cache of header lines that `AuthGuard` adds credentials to, or `None` without one.
    """

    def __init__(
        self,
        find: Callable[[str, str], Handler | None],
        *,
        limits: HttpLimits,
        policy: HostPolicy,
        hot: Mapping[tuple[bytes, bytes], Target] | None = None,
        websocket: Callable[[Any, Any, Any], Awaitable[None]] | None = None,
        max_message: int = 4 * 1024 * 1024,
        heartbeat: float = 15.0,
        root_path: str = "",
        header_lines: HeaderLineCache | None = None,
    ) -> None:
        self.find: Callable[[str, str], Handler | None] = find
        self.limits: HttpLimits = limits
        self.policy: HostPolicy = policy
        self.hot: Mapping[tuple[bytes, bytes], Target] = hot or {}
        self.by_line: dict[bytes, Target] = {b"%b %b HTTP/1.1" % key: found for key, found in self.hot.items()}
        """Endpoints by complete request line."""
        self.websocket: Callable[[Any, Any, Any], Awaitable[None]] | None = websocket
        self.max_message: int = max_message
        self.heartbeat: float = heartbeat
        self.root_path: str = root_path
        self.read_line: Callable[[bytes], tuple[bytes, bytes]] = (
            HeaderLineCache() if header_lines is None else header_lines
        ).__getitem__
        """Return (lower-case name, value) of a line. Raises KeyError for lines that need the parser."""
