"""The HTTP/1.1 and WebSocket server that owns its sockets.

`ServerConnection` turns bytes into requests without I/O, `HttpProtocol` puts it on a socket, `WebSocketProtocol`
continues after an upgrade, `ConnectionGuard` enforces time limits with one timer, and `SocketListener` accepts.
`Endpoints` connects all of that to an application.

The fast head reader accepts head lines in one strict form, without the parser: any name, a colon, a space, and
printable ASCII (RFC 9112 §5, with no folding or extra whitespace). Any other line, and any line that changes how a
message is framed, raises KeyError. The HTTP parser then reads that request from its beginning. Framing has two cases,
so a message can be read in only one way: HTTP/1.1 with a Content-Length of digits, or a body received in full in one
chunk (`read_chunk`). ``tests/transports/test_fast_heads.py`` compares both readers.
"""

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from msgspec import Struct, field

from millstream._confidential import Confidential
from millstream._http.hosts import HostPolicy
from millstream._http.message import Handler, Header, HttpLimits

_CACHED_NAMES = frozenset({
    b"accept", b"accept-encoding", b"accept-language", b"cache-control", b"cdn-loop", b"cf-connecting-ip",
    b"cf-ipcountry", b"cf-visitor", b"connection", b"content-length", b"content-type", b"host", b"mcp-method",
    b"mcp-name", b"mcp-protocol-version", b"mcp-session-id", b"origin", b"pragma", b"sec-ch-ua", b"sec-ch-ua-mobile",
    b"sec-ch-ua-platform", b"sec-fetch-dest", b"sec-fetch-mode", b"sec-fetch-site", b"user-agent", b"x-forwarded-for",
    b"x-forwarded-host", b"x-forwarded-port", b"x-forwarded-proto", b"x-real-ip",
})  # fmt: skip
"""Names of header lines that a client or proxy repeats. All others are read each time."""
_PARSED_NAMES = frozenset({b"expect", b"proxy-connection", b"upgrade"})
"""Headers that only the parser reads: they need an event other than a request, or llhttp treats them as such
headers."""
_HEX = b"0123456789abcdefABCDEF"
_MAX_HEX = 8
_TOKEN = b"!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""The characters of a name (RFC 9110 §5.6.2)."""
_PRINTABLE = bytes(range(0x20, 0x7F))
_MAX_LINES = 16 * 1024
"""Maximum number of cached lines. The line of a session id takes about 600 bytes, and the longest line 1.3 KiB."""
_MAX_LINE = 512
"""Maximum size of a cached line, in bytes. Session ids have up to 400."""
_MAX_DIGITS = 15
_AUTHORIZATION = (b"authorization", b"Authorization")
_MAX_CREDENTIAL = 2048
_MAX_CREDENTIALS = 512
"""Maximum number of cached credential lines, two for each credential. Further ones are read each time."""


class HeaderLineCache(Confidential, OrderedDict[bytes, Header]):
    """Maps a line without its end to (lower-case name, value). A server's connections share one, of bounded size.

    It stores lines that clients send with nearly every request, and no secrets except session ids and valid
    credentials.
    """

    def __init__(self) -> None:
        super().__init__()
        self._credentials: dict[bytes, Header] = {}

    def __missing__(self, line: bytes) -> Header:
        spelling, colon, value = line.partition(b": ")
        name = spelling.lower()
        if (
            not (spelling and colon)
            or spelling.translate(None, _TOKEN)
            or value != value.strip(b" ")
            or value.translate(None, _PRINTABLE)
            or name in _PARSED_NAMES
            or (name == b"transfer-encoding" and value != b"chunked")
            or (name == b"content-length" and not (value.isdigit() and len(value) <= _MAX_DIGITS))
            or (name == b"connection" and value != b"close" and value.lower() != b"keep-alive")
        ):
            raise KeyError(line)
        header = (name, value)
        if name in _CACHED_NAMES and len(line) <= _MAX_LINE:
            self[line] = header
            while len(self) > _MAX_LINES:
                oldest, its = self.popitem(last=False)
                if oldest in self._credentials:
                    self[oldest] = its
        return header

    def keep_credential(self, value: bytes) -> None:
        """Cache the ``Authorization`` line of a valid credential until `forget_credentials`."""
        if len(value) <= _MAX_CREDENTIAL and len(self._credentials) < _MAX_CREDENTIALS:
            for spelling in _AUTHORIZATION:
                self._credentials[spelling + b": " + value] = (b"authorization", value)
            self.update(self._credentials)

    def forget_credentials(self) -> None:
        """Forget all credentials. Called when one may no longer be valid."""
        for line in self._credentials:
            self.pop(line, None)
        self._credentials.clear()


def read_chunk(body: bytes) -> bytes | None:
    """Return a body that arrived as one chunk and the last chunk, without extensions or trailers (RFC 9112 §7.1), or
    None for any other body.
    """
    digits, _, rest = body.partition(b"\r\n")
    if not 0 < len(digits) <= _MAX_HEX or digits.translate(None, _HEX):
        return None
    size = int(digits, 16)
    return rest[:size] if size and rest[size:] == b"\r\n0\r\n\r\n" else None


Target = tuple[Handler, str, str]
"""A handler with its method and its path."""


class Endpoints(Struct, eq=False):
    """The endpoints of one application, with its limits and its Host and Origin rules."""

    find: Callable[[str, str], Handler | None]
    """Returns the handler for a method and a decoded path below the mount point, or `None` for 404."""
    limits: HttpLimits
    policy: HostPolicy
    hot: Mapping[tuple[bytes, bytes], Target] = {}
    """(method, path) to handler, for the endpoints that the fast head reader finds without a call."""
    websocket: Callable[[Any], Awaitable[None]] | None = None
    """Serves a WebSocket from its handshake on (`millstream._http.websocket`), or `None` to ignore upgrades."""
    max_message: int = 4 * 1024 * 1024
    """Maximum size of a WebSocket message, in bytes."""
    heartbeat: float = 15.0
    """Seconds from a WebSocket's pong, or its handshake, to the next ping."""
    root_path: str = ""
    """The path prefix that a proxy has removed."""
    header_lines: HeaderLineCache | None = None
    """The cache of header lines that `AuthGuard` adds credentials to, or `None` without one."""
    by_line: dict[bytes, Target] = {}
    """Endpoints by complete request line."""
    read_line: Callable[[bytes], Header] = field(default_factory=lambda: HeaderLineCache().__getitem__)
    """Return (lower-case name, value) of a line. Raises KeyError for lines that need the parser."""

    def __post_init__(self) -> None:
        self.use(self.hot)
        if self.header_lines is not None:
            self.read_line = self.header_lines.__getitem__

    def use(self, hot: Mapping[tuple[bytes, bytes], Target]) -> None:
        """Use other endpoints for the fast head reader from the next request on."""
        self.hot = hot
        self.by_line = {b"%b %b HTTP/1.1" % key: found for key, found in hot.items()}


LINGER = 2.0
"""Seconds that an idle connection stays open for one more request, whose reply has ``connection: close``."""


class DrainTimes(Struct, frozen=True):
    """Time limits for clients and load balancers at shutdown. Calls have a separate time limit."""

    delay: float = 0.0
    """Seconds to keep serving after readiness checks begin to fail, so load balancers notice."""
    linger: float = 0.0
    """Seconds that an idle connection stays open after that."""

    @classmethod
    def for_stop(cls, delay: float) -> "DrainTimes":
        """Return the times for a server that isn't replaced. Without `delay`, it doesn't linger."""
        return cls(delay, min(delay, LINGER))
