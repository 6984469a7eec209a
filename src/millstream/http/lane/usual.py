"""A usual head is read without the parser: all of that trick, and its proof.

Clients of this protocol send the same few header lines with nearly every request. `UsualLines` knows the lines it has
seen and reads new ones in the one form that needs no thought: a common name as everybody spells it, a colon, a space,
printable ASCII (RFC 9112 §5, without folding and without more white space). Whatever else a line is, and whatever
changes how a message is framed, is a KeyError: then the HTTP parser reads the request, from its beginning, and all that
follow on the connection, because a client that sends such a line will send it again.

Framing has one case, HTTP/1.1 with a Content-Length of digits, so there is one reading of each message. The proof is
``tests/transports/test_usual_heads.py``: each connection is made twice, with and without this class's short reading.
See docs/decisions/0007-usual-heads.md.
"""

import asyncio

from millstream.http.lane.call import LaneExchange
from millstream.http.lane.protocol import LaneProtocol
from millstream.http.lane.states import IDLE, READ_IN_PART, READ_WHOLE, USUAL_BODY

_REPEATED = (
    "accept", "accept-encoding", "accept-language", "cache-control", "connection", "content-length", "content-type",
    "host", "mcp-method", "mcp-name", "mcp-protocol-version", "mcp-session-id", "pragma", "sec-fetch-mode",
    "user-agent",
)  # fmt: skip
"""Lines that a client repeats. They are kept; those of the others are read anew each time."""
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


class UsualLines(dict[bytes, tuple[bytes, bytes]]):
    """Line without its end -> (lower-case name, value). For all connections; what it takes is bounded."""

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


_lines = UsualLines()


class UsualProtocol(LaneProtocol):
    """One HTTP/1 connection: the lane, and usual heads."""

    __slots__ = ("missing", "usual")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Every connection begins by trying."""
        super().connection_made(transport)
        self.usual = None if self.guard.leaving else self.short
        """The lane, as long as every head was usual."""
        self.missing = 0
        """Bytes still to come of a body behind a usual head."""

    def announce(self) -> None:
        """The short reading knows no last replies: from now on the parser reads."""
        self.usual = None
        super().announce()

    def data_received(self, data: bytes) -> None:
        """Read a request with a usual head at once, and leave everything else to the parser."""
        lane = self.usual
        if lane is None or self.phase > IDLE or self.current is not None:
            if self.phase == USUAL_BODY:
                self._go_on(data)
            else:
                self._parse(data)
            return
        head, end, body = data.partition(b"\r\n\r\n")
        lines = head.split(b"\r\n")
        found = lane.by_line.get(lines.pop(0))
        if found is None or not end or self.flow.write_paused:
            self._parse(data)
            return
        try:
            fields = dict(map(_lines.__getitem__, lines))
            size = int(fields[b"content-length"])
        except KeyError:
            # Nothing else happens in here: user code must not see this error as the context of its own.
            self.usual = None
            fields, size = dict[bytes, bytes](), 0
        limits = self.limits
        if (
            fields.get(b"host") not in lane.policy.good
            or len(fields) != len(lines)
            or size > limits.max_body
            or len(lines) > limits.max_header_count
            or len(head) > limits.max_header_bytes
        ):
            self._parse(data)
            return
        self.cycle = call = LaneExchange(
            found[1],
            found[2],
            fields.items(),
            fields,
            body,
            b"",
            self.peer,
            self.root_path,
            self.scheme or "http",
            connection=self,
            handler=found[0],
        )
        if self.proxied and self.proxy is not None and (b"x-forwarded-for" in fields or b"x-forwarded-proto" in fields):
            call.forwarded(self.proxy)
        if size == len(body):
            self.phase = READ_WHOLE[self.phase]
            self.begin(call)
        else:
            call.body = b""
            self.phase = READ_IN_PART[self.phase]
            self.since = self.guard.clock
            self.received = 0
            self.missing = size
            self._go_on(body)

    _parse = LaneProtocol.data_received

    def _go_on(self, data: bytes) -> None:
        """Read a body of which the parser has not seen the head; what stands behind it is for the parser."""
        body = data[: self.missing]
        self.missing -= len(body)
        self.on_body(body)
        if self.missing:
            self.count()
            return
        self.on_message_complete()
        if len(data) > len(body):
            self._parse(data[len(body) :])
