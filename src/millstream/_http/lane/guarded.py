"""uvicorn's HTTP protocol class with a guard around it: what a request may look like.

Limits are checked while a request is parsed; what exceeds them is answered in its turn (`order`), and the connection
closed. The guard's sweep replaces uvicorn's keep-alive timers. Everything else about ASGI is uvicorn's own code.
`protocol.py` adds the short cut.
"""

import asyncio
from functools import partial
from typing import Any, cast

from httptools import HttpParserCallbackError, HttpParserError, HttpParserInvalidURLError, HttpParserUpgrade, parse_url
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from millstream._http.hosts import EXEMPT, parse_authority
from millstream._http.lane.order import OrderedProtocol
from millstream._http.lane.reply import (
    BAD_HOST,
    BAD_REQUEST,
    BAD_TARGET,
    BODY_TOO_LARGE,
    CHUNKS_TOO_SMALL,
    HEADERS_TOO_LARGE,
    TARGET_TOO_LONG,
    TOO_MANY_BODIES,
    TOO_MANY_CONNECTIONS,
    UPGRADE_WITH_BODY,
)
from millstream._http.lane.states import BEGINS, ENDS, GOES_TO_ASGI, HEAD, IDLE, OVERFLOWS, REFUSED
from millstream._http.message import Response
from millstream._http.stream_end import failure

MAX_FRAMING = 64 * 1024
"""What the framing of a body may take, besides an eighth of the body: each of its pieces costs as much as a large one,
whatever is in it.
"""
MAX_PIPELINE = 64
"""Requests that may wait behind a running one; a chunk that brings more is not read to its end."""

_PROBES = frozenset(path.encode() for path in EXEMPT)


class GuardedProtocol(OrderedProtocol):
    """One HTTP/1 connection, guarded."""

    __slots__ = ("framing", "over_cap", "peer", "received", "seen", "size", "unsent", "unsent_since", "url")

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # connection
        self.peer = ""
        self.unsent_since = self.since
        self.unsent = 0
        self.over_cap = False
        """Above the cap on connections: it gets one answer, which is a refusal unless it probes."""
        # request
        self.url = b""
        self.size = 0
        """Bytes of the chunk being parsed."""
        self.seen = 0
        """Bytes since this request began, or in its body since the last piece of it."""
        self.received = 0
        """Bytes of its body."""
        self.framing = 0
        """Bytes that came with the body and are not of it, since the second chunk."""

    @property
    def held(self) -> bool:
        """We have stopped reading, so the peer cannot go on."""
        return self.flow.read_paused

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection, and refuse it when there are too many."""
        super().connection_made(transport)
        self.peer = self.client[0] if self.client else ""
        if not self.client and self.server and self.server[1] is not None:
            # Over TCP, only one that was reset has no peer: what it sent would run for nobody, outside of all limits.
            transport.abort()
        elif not self.guard.admit(self):
            if self.guard.overrun:
                transport.abort()
            else:
                self.refuse(TOO_MANY_CONNECTIONS)

    def leave(self) -> None:
        """Nobody has to watch this connection any more."""
        self.guard.release(self)
        super().leave()

    def data_received(self, data: bytes) -> None:
        """Parse a chunk; whatever is wrong with it becomes a refusal."""
        if self.phase >= REFUSED:
            return
        self.size = size = len(data)
        self.seen = self.seen + size if self.phase > IDLE else size
        ahead = None
        try:
            self.parser.feed_data(data)
        except HttpParserCallbackError as exc:
            # Ours or uvicorn's fault, not the peer's; the parser hides what was raised.
            self.refuse(failure(exc.__context__ or exc, "Parsing", self.url.decode("latin-1")))
        except HttpParserError:
            self.refuse(BAD_REQUEST)
        except HttpParserUpgrade as exc:
            ahead = data[exc.args[0] :]
        if ahead is not None:
            self._upgrade(ahead)
        elif IDLE < self.phase < REFUSED:
            if self.seen > self.limits.max_header_bytes:
                self.refuse(HEADERS_TOO_LARGE)
            elif self.received and self.phase > HEAD:
                self._weigh()

    def _weigh(self) -> None:
        """Count what a chunk brought of an unfinished body, and how much of it was not the body."""
        self.framing = self.framing + self.size - (self.received - self.counted) if self.counted else 0
        if self.framing > MAX_FRAMING + self.received // 8:
            self.refuse(CHUNKS_TOO_SMALL)
        else:
            self.count()

    def count(self) -> None:
        """Count what has come of an unfinished body, which all connections together have room for."""
        size = self.received - self.counted
        self.counted = self.received
        if not self.guard.unfinished.take(self.peer, size):
            self.refuse(TOO_MANY_BODIES)

    # Parser callbacks.

    def on_message_begin(self) -> None:
        """A request begins. uvicorn's scope is made later, only for requests that need one."""
        self.url = b""
        self.headers = []
        self.phase = BEGINS[self.phase]
        self.since = self.guard.clock

    def on_url(self, url: bytes) -> None:
        """A piece of the request target."""
        self.url += url
        if len(self.url) > self.limits.max_url:
            self.refuse(TARGET_TOO_LONG)

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or after the body a trailer."""
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Check the head as a whole and hand the request to uvicorn's own cycle."""
        if self.phase >= REFUSED or self.excessive():
            return
        refusal = self._unfit()
        if refusal is not None:
            self.refuse(refusal)
            return
        url, headers, previous, waiting = self.url, self.headers, self.cycle, len(self.waiting)
        super().on_message_begin()
        self.url = url
        self.headers = self.scope["headers"] = headers
        self.expect_100_continue = any(
            name == b"expect" and value.strip().lower() == b"100-continue" for name, value in headers
        )
        super().on_headers_complete()
        self.phase = GOES_TO_ASGI[self.phase]
        cycle = self.cycle
        if cycle is None or cycle is previous:
            return  # A WebSocket: `_upgrade` goes on with it, and needs the headers.
        if len(self.waiting) > waiting:
            # uvicorn queued it as (cycle, app), at the left.
            entry = cast("tuple[RequestResponseCycle, ASGI3Application]", self.waiting.popleft())
            self.waiting.append(partial(self.start_cycle, *entry))
        else:
            self.current = cycle
        if self.over_cap or self.guard.leaving:
            cycle.keep_alive = False
        if self.parser.should_upgrade():
            # An upgrade that nobody speaks: what comes behind it is not parsed.
            cycle.keep_alive = False
        else:
            # Trailers come through on_header; they must not become headers.
            self.headers = []

    def on_body(self, body: bytes) -> None:
        if self.phase < REFUSED:
            self.seen = 0
            self.received += len(body)
            if self.received > self.limits.max_body:
                self.refuse(BODY_TOO_LARGE)
            else:
                super().on_body(body)

    def on_message_complete(self) -> None:
        if self.phase < REFUSED:
            self.phase = ENDS[self.phase]
            self.seen = 0
            if self.counted:
                self.drop_body()
            super().on_message_complete()

    # Limits.

    def excessive(self) -> bool:
        """Refuse a head that is too large, or one too many in the pipeline."""
        limits, headers = self.limits, self.headers
        if len(self.waiting) >= MAX_PIPELINE and self.cycle is not None:
            # Those that wait are answered; the last of them says that this connection ends.
            self.cycle.keep_alive = False
            self.phase = OVERFLOWS[self.phase]
        elif len(headers) > limits.max_header_count or (
            self.seen + self.size > limits.max_header_bytes
            and sum(len(name) + len(value) + 4 for name, value in headers) > limits.max_header_bytes
        ):
            self.refuse(HEADERS_TOO_LARGE)
        self.seen = self.received = 0
        return self.phase >= REFUSED

    def _unfit(self) -> Response | None:
        """What is wrong with a request for uvicorn's cycle, if anything is."""
        url, fields = self.url, dict(self.headers)
        hosts = [value for name, value in self.headers if name == b"host"]
        size = int(fields.get(b"content-length", 0))
        if self.over_cap and (size or b"transfer-encoding" in fields or not self._probes()):
            return TOO_MANY_CONNECTIONS
        if (len(hosts) != 1 or parse_authority(hosts[0]) is None) and url.partition(b"?")[0] not in _PROBES:
            return BAD_HOST
        if size > self.limits.max_body:
            return BODY_TOO_LARGE
        if not url.startswith(b"/") and not _has_path(url):
            return BAD_TARGET
        if not self.parser.should_upgrade():
            return None
        if size or b"transfer-encoding" in fields:
            return UPGRADE_WITH_BODY
        return BAD_REQUEST if self.busy else None

    def _probes(self) -> bool:
        """Whether the request asks how the server is."""
        return self.url.partition(b"?")[0] in _PROBES and self.parser.get_method() in (b"GET", b"HEAD")

    def _upgrade(self, ahead: bytes) -> None:
        """Hand the connection on, with frames that the client sent without waiting for the answer."""
        if self.phase >= REFUSED or not self._should_upgrade():
            return
        self.leave()
        self.handle_websocket_upgrade()
        if ahead and not self.transport.is_closing():
            cast("asyncio.Protocol", self.transport.get_protocol()).data_received(ahead)


def _has_path(url: bytes) -> bool:
    try:
        return bool(parse_url(url).path)
    except HttpParserInvalidURLError:
        return False
