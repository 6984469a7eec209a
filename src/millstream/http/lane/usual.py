"""Header lines of the usual form, read without the parser.

Clients of this protocol send the same few header lines with nearly every request. `UsualLines` knows the lines it has
seen and reads new ones in the one form that needs no thought: a common name as everybody spells it, a colon, a space,
printable ASCII (RFC 9112 §5, without folding and without more white space). Whatever else a line is, and
whatever changes how a message is framed, is a KeyError: then the HTTP parser reads the request, from its beginning.
See docs/decisions/0007-usual-heads.md.
"""

_REPEATED = (
    "accept", "accept-encoding", "accept-language", "cache-control", "connection", "content-length", "content-type",
    "host", "mcp-method", "mcp-name", "mcp-protocol-version", "mcp-session-id", "pragma", "sec-fetch-mode",
    "user-agent",
)  # fmt: skip
"""Lines that a client repeats. They are kept; those of the others are read anew each time."""
_OTHERS = ("authorization", "baggage", "last-event-id", "traceparent", "tracestate", "x-request-id")

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


class UsualLines(dict[bytes, tuple[bytes, bytes]]):
    """Line without its end -> (lower-case name, value). For all connections of a server; what it takes is bounded."""

    __slots__ = ()

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
            self[line] = header
        return header
