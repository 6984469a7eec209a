"""The fast head reader, which reads header lines without the parser.

MCP clients send the same few header lines with nearly every request. `HeaderLineCache` stores them and reads new lines
in one plain form: a common name in its usual spelling, a colon, a space, and printable ASCII (RFC 9112 §5, without
folding or further white space). Any other line, and any line that changes how a message is framed, raises KeyError. The
HTTP parser then reads that request from its beginning, and all later requests on the connection.

Framing has one case, HTTP/1.1 with a Content-Length of digits, so a message can be read in only one way. The cache
keeps no secrets except valid credentials. ``tests/transports/test_fast_heads.py`` compares both readers.
"""

_CACHED_HEADERS = (
    "accept", "accept-encoding", "accept-language", "cache-control", "connection", "content-length", "content-type",
    "host", "mcp-method", "mcp-name", "mcp-protocol-version", "mcp-session-id", "pragma", "sec-fetch-mode",
    "user-agent",
)  # fmt: skip
"""Lines that a client repeats. The cache keeps them and reads all others each time."""
_UNCACHED_HEADERS = (
    "authorization", "baggage", "cookie", "dnt", "forwarded", "from", "last-event-id", "priority", "referer",
    "sec-ch-ua", "sec-ch-ua-mobile", "sec-ch-ua-platform", "sec-fetch-dest", "sec-fetch-user", "sec-gpc",
    "traceparent", "tracestate", "via", "x-amzn-trace-id", "x-correlation-id", "x-forwarded-for", "x-forwarded-host",
    "x-forwarded-port", "x-forwarded-proto", "x-forwarded-server", "x-real-ip", "x-request-id",
)  # fmt: skip
"""Headers of proxies and browsers. None of them changes how a message is framed. `Origin` and ``Sec-Fetch-Site`` are
excluded, because they decide whether a request is served at all. The parser reads them."""

_NAMES = {
    spelling.encode(): name.encode()
    for name in _CACHED_HEADERS + _UNCACHED_HEADERS
    for spelling in (name, name.title(), name.title().replace("Mcp", "MCP"))
}
_CACHED_NAMES = frozenset(name.encode() for name in _CACHED_HEADERS)
_PRINTABLE = bytes(range(0x20, 0x7F))
_MAX_LINES = 1024
_MAX_LINE = 512
"""Maximum bytes of a cached line. Session ids have up to 400."""
_MAX_DIGITS = 15
_AUTHORIZATION = (b"authorization", b"Authorization")
_MAX_CREDENTIAL = 2048
_MAX_CREDENTIALS = 512
"""Maximum number of cached credential lines, two for each credential. Further ones are read each time."""


class HeaderLineCache(dict[bytes, tuple[bytes, bytes]]):
    """Line without its end -> (lower-case name, value). The connections of a server share one; its size is bounded."""

    __slots__ = ("_credentials",)

    def __init__(self) -> None:
        super().__init__()
        self._credentials: dict[bytes, tuple[bytes, bytes]] = {}

    def __missing__(self, line: bytes) -> tuple[bytes, bytes]:
        spelling, _, value = line.partition(b": ")
        name = _NAMES.get(spelling)
        if (
            name is None
            or value != value.strip(b" ")
            or value.translate(None, _PRINTABLE)
            or (name == b"content-length" and not (value.isdigit() and len(value) <= _MAX_DIGITS))
            or (name == b"connection" and value.lower() != b"keep-alive")
        ):
            raise KeyError(line)
        header = (name, value)
        if name in _CACHED_NAMES and len(line) <= _MAX_LINE:
            if len(self) >= _MAX_LINES:
                self.clear()
                self.update(self._credentials)
            self[line] = header
        return header

    def keep_credential(self, value: bytes) -> None:
        """Cache the ``Authorization`` line of a valid credential until `forget_credentials`."""
        if len(value) <= _MAX_CREDENTIAL and len(self._credentials) < _MAX_CREDENTIALS:
            for spelling in _AUTHORIZATION:
                self._credentials[spelling + b": " + value] = (b"authorization", value)
            self.update(self._credentials)

    def forget_credentials(self) -> None:
        """Forget all credentials, because one of them may no longer be valid."""
        for line in self._credentials:
            self.pop(line, None)
        self._credentials.clear()
