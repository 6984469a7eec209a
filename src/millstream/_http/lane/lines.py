"""Header lines that are read without the parser.

`UsualLines` knows the lines it has seen, and reads new ones in the one form that needs no thought: a common name as
everybody spells it, a colon, a space, printable ASCII (RFC 9112 §5, without folding and without more white space).
Secrets are not kept, except for credentials that were found valid, for as long as whoever found that keeps them, too.
"""

_REPEATED = (
    "accept", "accept-encoding", "accept-language", "cache-control", "connection", "content-length", "content-type",
    "host", "mcp-method", "mcp-name", "mcp-protocol-version", "mcp-session-id", "pragma", "sec-fetch-mode",
    "user-agent",
)  # fmt: skip
"""Lines that a client repeats. They are kept; those of the others are read each time."""
_OTHERS = (
    "authorization", "baggage", "cookie", "dnt", "forwarded", "from", "last-event-id", "priority", "referer",
    "sec-ch-ua", "sec-ch-ua-mobile", "sec-ch-ua-platform", "sec-fetch-dest", "sec-fetch-user", "sec-gpc",
    "traceparent", "tracestate", "via", "x-amzn-trace-id", "x-correlation-id", "x-forwarded-for", "x-forwarded-host",
    "x-forwarded-port", "x-forwarded-proto", "x-forwarded-server", "x-real-ip", "x-request-id",
)  # fmt: skip
"""What proxies and browsers add. None of it changes how a message is framed. `Origin` and ``Sec-Fetch-Site`` are not
here: they decide whether a request is served at all, so its head is for the parser."""

_NAMES = {
    spelling.encode(): name.encode()
    for name in _REPEATED + _OTHERS
    for spelling in (name, name.title(), name.title().replace("Mcp", "MCP"))
}
_KEPT = frozenset(name.encode() for name in _REPEATED)
_PRINTABLE = bytes(range(0x20, 0x7F))
_MAX_LINES = 1024
_MAX_LINE = 512
"""Bytes of a line that is kept: session ids have up to 400."""
_MAX_DIGITS = 15
_AUTHORIZATION = (b"authorization", b"Authorization")
_MAX_CREDENTIAL = 2048
_MAX_CREDENTIALS = 512
"""Lines, two for each credential. Others are read each time."""


class UsualLines(dict[bytes, tuple[bytes, bytes]]):
    """Line without its end -> (lower-case name, value). For all connections; what it takes is bounded."""

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
        if name in _KEPT and len(line) <= _MAX_LINE:
            if len(self) >= _MAX_LINES:
                self.clear()
                self.update(self._credentials)
            self[line] = header
        return header

    def keep_credential(self, value: bytes) -> None:
        """Keep the ``Authorization`` line of a credential that was found valid, until `forget_credentials`."""
        if len(value) <= _MAX_CREDENTIAL and len(self._credentials) < _MAX_CREDENTIALS:
            for spelling in _AUTHORIZATION:
                self._credentials[spelling + b": " + value] = (b"authorization", value)
            self.update(self._credentials)

    def forget_credentials(self) -> None:
        """One of them may not be valid any more."""
        for line in self._credentials:
            self.pop(line, None)
        self._credentials.clear()


usual_lines = UsualLines()
read_line = usual_lines.__getitem__
"""(lower-case name, value) of a line. Raises KeyError for what the parser has to read."""
