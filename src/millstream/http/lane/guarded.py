"""uvicorn's HTTP protocol class with a guard around it: what a request may look like, and the order of replies.

Limits are checked while a request is parsed, refusals are answered and the connection closed. Replies keep one order:
`current` is the call being answered, `waiting` starts those behind it, and a refusal goes out after them, as the last
thing on the connection. The guard's sweep replaces uvicorn's keep-alive timers. Everything else about ASGI is uvicorn's
own code. `protocol.py` adds the short cut.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

from httptools import (
    HttpParserCallbackError,
    HttpParserError,
    HttpParserInvalidURLError,
    HttpParserUpgrade,
    HttpRequestParser,
    parse_url,
)
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.middleware.message_logger import MessageLoggerMiddleware
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from millstream.config import Settings
from millstream.http.hosts import EXEMPT, parse_authority
from millstream.http.lane import ATTRIBUTE, Lane
from millstream.http.lane.guard import BODY, HEADERS, IDLE, Guard
from millstream.http.lane.reply import (
    BAD_HOST,
    BAD_REQUEST,
    BAD_TARGET,
    BODY_TOO_LARGE,
    HEADERS_TOO_LARGE,
    TARGET_TOO_LONG,
    TOO_MANY_CONNECTIONS,
    UPGRADE_WITH_BODY,
)
from millstream.http.message import Response
from millstream.http.stream_end import failure

MAX_PIPELINE = 64
"""Requests that may wait behind a running one; a chunk that brings more is not read to its end."""

_PROBES = frozenset(path.encode() for path in EXEMPT)
_DEFAULTS = Settings()


class Cycle(Protocol):
    """What uvicorn looks at in ``protocol.cycle``: its own cycle, or a stand-in."""

    response_complete: bool
    keep_alive: bool
    disconnected: bool
    message_event: asyncio.Event


class GuardedProtocol(HttpToolsProtocol):
    """One HTTP/1 connection, guarded."""

    # uvicorn's own attributes stay in its dict; more than thirty there would no longer be shared between connections.
    __slots__ = (
        "current",
        "farewell",
        "guard",
        "lane",
        "limits",
        "over_cap",
        "peer",
        "phase",
        "proxy",
        "received",
        "refused",
        "seen",
        "since",
        "size",
        "traced",
        "unsent",
        "unsent_since",
        "waiting",
    )  # fmt: skip

    app: Any
    parser: HttpRequestParser
    cycle: Cycle | None  # type: ignore[assignment]  # the stand-in is not uvicorn's class

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # configuration
        self.proxy = self.app if isinstance(self.app, ProxyHeadersMiddleware) else None
        app: object = self.app if self.proxy is None else self.proxy.app
        self.traced = isinstance(app, MessageLoggerMiddleware)
        lane: object = getattr(app.app if isinstance(app, MessageLoggerMiddleware) else app, ATTRIBUTE, None)
        self.lane = lane if isinstance(lane, Lane) else None
        self.limits = _DEFAULTS if self.lane is None else self.lane.settings
        # process
        guard: Guard | None = server_state.__dict__.get("millstream_guard")
        if guard is None:
            guard = server_state.__dict__["millstream_guard"] = Guard(server_state, self.limits, self.loop)
        self.guard = guard
        # connection
        self.peer = ""
        self.since = self.unsent_since = guard.clock
        self.unsent = 0
        self.current: Cycle | None = None
        self.waiting: deque[Callable[[], None]] = cast("Any", self.pipeline)
        """uvicorn's deque, in use for both kinds of call: oldest first, each entry starts its call."""
        self.refused = False
        self.over_cap = False
        """Above the cap on connections: it gets one answer, which is a refusal unless it probes."""
        self.farewell: bytes | None = None
        # request
        self.url = b""
        self.phase = IDLE
        self.size = 0
        """Bytes of the chunk being parsed."""
        self.seen = 0
        """Bytes since this request began, or in its body since the last piece of it."""
        self.received = 0

    # What the guard asks.

    @property
    def busy(self) -> bool:
        """A call runs, so the peer owes nothing."""
        return self.current is not None or bool(self.waiting)

    @property
    def fresh(self) -> bool:
        """No request has come yet."""
        return self.cycle is None

    @property
    def held(self) -> bool:
        """We have stopped reading, so the peer cannot go on."""
        return self.flow.read_paused

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Count the connection, and refuse it when there are too many."""
        super().connection_made(transport)
        self.peer = self.client[0] if self.client else ""
        if not self.guard.admit(self):
            if self.guard.overrun:
                transport.abort()
            else:
                self.refuse(TOO_MANY_CONNECTIONS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the newest cycle (uvicorn does) and the one being answered."""
        super().connection_lost(exc)
        self.guard.release(self)
        self.waiting.clear()
        if self.current is not None:
            self.current.disconnected = True
            self.current.message_event.set()

    def data_received(self, data: bytes) -> None:
        """Parse a chunk; whatever is wrong with it becomes a refusal."""
        if self.refused:
            return
        self.size = size = len(data)
        self.seen = self.seen + size if self.phase else size
        try:
            self.parser.feed_data(data)
        except HttpParserCallbackError as exc:
            # Ours or uvicorn's fault, not the peer's; the parser hides what was raised.
            self.refuse(failure(exc.__context__ or exc, "Parsing", self.url.decode("latin-1")))
        except HttpParserError:
            self.refuse(BAD_REQUEST)
        except HttpParserUpgrade:
            self._upgrade()
        if self.seen > self.limits.max_header_bytes and self.phase:
            self.refuse(HEADERS_TOO_LARGE)

    def pause_writing(self) -> None:
        """Who does not read replies gets no more requests read."""
        super().pause_writing()
        self.flow.pause_reading()

    def resume_writing(self) -> None:
        """Go on where `pause_writing` stopped."""
        super().resume_writing()
        if self.current is None:
            self.proceed()
        elif not self.waiting:
            self.flow.resume_reading()

    def shutdown(self) -> None:
        """The server ends: close now, or after the last reply that is owed."""
        newest = self.cycle
        if newest is None or newest.response_complete or (self.refused and not self.busy):
            self.transport.close()
        else:
            newest.keep_alive = False

    # Parser callbacks.

    def on_message_begin(self) -> None:
        """A request begins. uvicorn's scope is made later, only for requests that need one."""
        self.url = b""
        self.headers = []
        self.phase = HEADERS
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
        if self.refused or self.excessive():
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
        self.phase = BODY
        cycle = self.cycle
        if cycle is None or cycle is previous:
            return  # A WebSocket: `_upgrade` goes on with it, and needs the headers.
        if len(self.waiting) > waiting:
            # uvicorn queued it as (cycle, app), at the left.
            entry = cast("tuple[RequestResponseCycle, ASGI3Application]", self.waiting.popleft())
            self.waiting.append(partial(self._start_cycle, *entry))
        else:
            self.current = cycle
        if self.over_cap:
            cycle.keep_alive = False
        if self.parser.should_upgrade():
            # An upgrade that nobody speaks: what comes behind it is not parsed.
            cycle.keep_alive = False
        else:
            # Trailers come through on_header; they must not become headers.
            self.headers = []

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        if self.counts(body):
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole."""
        if not self.refused:
            self.phase = IDLE
            self.seen = 0
            super().on_message_complete()

    # Limits.

    def excessive(self) -> bool:
        """Refuse a head that is too large, or one too many in the pipeline."""
        limits, headers = self.limits, self.headers
        if len(self.waiting) >= MAX_PIPELINE and self.cycle is not None:
            # Those that wait are answered; the last of them says that this connection ends.
            self.cycle.keep_alive = False
            self.refused = True
        elif len(headers) > limits.max_header_count or (
            self.seen + self.size > limits.max_header_bytes
            and sum(len(name) + len(value) + 4 for name, value in headers) > limits.max_header_bytes
        ):
            self.refuse(HEADERS_TOO_LARGE)
        self.seen = self.received = 0
        return self.refused

    def counts(self, body: bytes) -> bool:
        """Count a piece of the body; False when it is not wanted any more."""
        self.seen = 0
        self.received += len(body)
        if self.received > self.limits.max_body:
            self.refuse(BODY_TOO_LARGE)
        return not self.refused

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

    def _upgrade(self) -> None:
        if self.refused:
            return
        if self._should_upgrade():
            self.guard.release(self)
            self.handle_websocket_upgrade()
        else:
            self._unsupported_upgrade_warning()

    # The order of replies.

    def _start_cycle(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self.current = cycle
        self._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """uvicorn's cycle has written its reply."""
        self.server_state.total_requests += 1
        self.current = None
        self.proceed()

    def proceed(self) -> None:
        """Go on with what waited behind the reply that is now complete."""
        self.since = self.guard.clock
        if self.transport.is_closing() or self.flow.write_paused:
            return
        if self.waiting:
            self.waiting.popleft()()
        elif self.farewell is not None:
            self._dismiss(self.farewell)
        if not self.waiting:
            self.flow.resume_reading()

    def refuse(self, response: Response) -> None:
        """Answer what cannot go on, after the replies that are owed, and close."""
        if self.refused:
            return
        self.refused = True
        newest = self.cycle
        if self.phase == BODY and isinstance(newest, RequestResponseCycle):
            # uvicorn started or queued it before its body came.
            newest.disconnected = True
            newest.message_event.set()
            if newest is not self.current and not newest.response_complete:
                self.waiting.pop()
            elif newest.response_started:
                self.transport.close()
                return
            else:
                self.current = None
        reply = self.guard.heads.reply(response, keep_alive=False)
        if self.busy:
            self.farewell = reply
        else:
            self._dismiss(reply)

    def _dismiss(self, reply: bytes) -> None:
        """Write the last bytes, then read on for a moment: closing on unread input would destroy them."""
        self.farewell = None
        self.since = self.guard.clock
        self.transport.write(reply)
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.flow.resume_reading()
        else:
            self.transport.close()


def _has_path(url: bytes) -> bool:
    try:
        return bool(parse_url(url).path)
    except HttpParserInvalidURLError:
        return False
