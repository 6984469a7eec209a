"""A usual head is read without the parser: all of that trick, and its proof.

Clients of this protocol send the same few header lines with nearly every request. `lines` knows those it has seen and
reads new ones in the one form that needs no thought. Whatever else a line is, and whatever changes how a message is
framed, is a KeyError: then the HTTP parser reads the request, from its beginning, and all that follow on the
connection, because a client that sends such a line will send it again.

Framing has one case, HTTP/1.1 with a Content-Length of digits, so there is one reading of each message. The proof is
``tests/transports/test_usual_heads.py``: each connection is made twice, with and without this class's short reading.
See docs/decisions/0007-usual-heads.md.
"""

import asyncio

from millstream._http.lane.call import LaneExchange
from millstream._http.lane.lines import read_line
from millstream._http.lane.protocol import LaneProtocol
from millstream._http.lane.states import IDLE, READ_IN_PART, READ_WHOLE, USUAL_BODY


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
            fields = dict(map(read_line, lines))
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
