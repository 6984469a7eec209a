"""The order of replies on one connection, over uvicorn's HTTP protocol class.

`current` is the call being answered, `waiting` starts those behind it, and a refusal goes out after them, as the last
thing on the connection. What a connection reads is `phase` (`states`). When a connection is over, nothing here refers
to a call any more: whatever holds a body is freed at once, and not when a garbage collector finds a cycle.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol, cast

from httptools import HttpRequestParser
from uvicorn._types import ASGI3Application
from uvicorn.config import Config
from uvicorn.middleware.message_logger import MessageLoggerMiddleware
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from millstream._config import Settings
from millstream._http.lane import ATTRIBUTE, Lane
from millstream._http.lane.guard import guard_of
from millstream._http.lane.states import ASGI_BODY, DISMISSED, HEAD, IDLE, IS_REFUSED, LEAVES, NEW, REFUSED
from millstream._http.limits import HttpLimits
from millstream._http.message import Response

_DEFAULTS = HttpLimits.of(Settings())


class Cycle(Protocol):
    """What uvicorn looks at in ``protocol.cycle``: its own cycle, or a stand-in."""

    response_complete: bool
    keep_alive: bool
    disconnected: bool
    message_event: asyncio.Event

    @property
    def response_started(self) -> bool:
        """The head of the reply is written."""
        ...


class OrderedProtocol(HttpToolsProtocol):
    """One HTTP/1 connection whose replies keep one order."""

    # uvicorn's own attributes stay in its dict; more than thirty there would no longer be shared between connections.
    __slots__ = (
        "body", "counted", "current", "guard", "lane", "limits", "phase", "proxy", "since", "traced", "waiting",
    )  # fmt: skip

    app: Any
    peer: str
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
        self.limits = _DEFAULTS if self.lane is None else self.lane.limits
        # process
        self.guard = guard_of(server_state, self.limits, self.loop)
        # connection
        self.phase = NEW
        self.since = self.guard.clock
        self.current: Cycle | None = None
        self.waiting: deque[Callable[[], None]] = cast("Any", self.pipeline)
        """uvicorn's deque, in use for both kinds of call: oldest first, each entry starts its call."""
        # request
        self.body: bytes | bytearray = b""
        """What has come of the body of a lane call."""
        self.counted = 0
        """Bytes of this unfinished body in the guard's count of all."""

    @property
    def busy(self) -> bool:
        """A call runs, so the peer owes nothing."""
        return self.current is not None or bool(self.waiting)

    @property
    def idle(self) -> bool:
        """Nothing is owed on this connection, and nothing of a request has come."""
        return self.phase <= IDLE and not self.busy

    @property
    def arriving(self) -> bool:
        """A request has begun to come, and nothing is owed."""
        return HEAD <= self.phase < REFUSED and not self.busy

    @property
    def answering(self) -> bool:
        """A request has come whole, and its reply isn't out."""
        return self.busy and not (self.phase == ASGI_BODY and self.current is self.cycle)

    def announce(self) -> None:
        """The server ends soon. The last reply that is owed says so, or the next one if that has its head already."""
        self.guard.leaving = True
        newest = self.cycle
        if newest is not None and not (newest.response_complete or newest.response_started):
            newest.keep_alive = False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the newest cycle (uvicorn does) and the one being answered."""
        super().connection_lost(exc)
        if self.current is not None:
            self.current.disconnected = True
            self.current.message_event.set()
        self.leave()

    def leave(self) -> None:
        """Let go of everything that belongs to a request: the connection is over, or speaks another protocol."""
        self.phase = LEAVES[self.phase]
        self.drop_body()
        self.waiting.clear()
        self.current = self.cycle = self.parser = None  # type: ignore[assignment]  # as uvicorn does with its parser

    def drop_body(self) -> None:
        """Nothing of an unfinished body is held any more."""
        self.body = b""
        if self.counted:
            self.guard.unfinished.give(self.peer, self.counted)
            self.counted = 0

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
        if self.transport.is_closing():
            return  # Over TLS, it waits for its peer; a second close() would have it fail whoever asks it something.
        if newest is None or newest.response_complete or (self.phase >= REFUSED and not self.busy):
            self.transport.close()
        else:
            newest.keep_alive = False

    def start_cycle(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        """Answer a request through ASGI, now that it's its turn."""
        self.current = cycle
        self._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """uvicorn's cycle has written its reply."""
        self.server_state.total_requests += 1
        self.current = None
        self.proceed()

    def proceed(self) -> None:
        """Go on with what waited behind the reply that is now complete. A loop: calls may be over as they begin."""
        self.since = self.guard.clock
        waiting, flow = self.waiting, self.flow
        while not (self.transport.is_closing() or flow.write_paused):
            if not waiting:
                flow.resume_reading()
                return
            if self.current is not None:
                return
            waiting.popleft()()

    def refuse(self, response: Response) -> None:
        """Answer what cannot go on, after the replies that are owed, and close."""
        phase = self.phase
        if phase >= REFUSED:
            return
        self.phase = IS_REFUSED[phase]
        self.drop_body()
        newest = self.cycle
        if phase == ASGI_BODY and isinstance(newest, RequestResponseCycle):
            # uvicorn started or queued it before its body came.
            newest.disconnected = True
            newest.waiting_for_100_continue = False  # it would write that behind the refusal, which is the last thing
            newest.message_event.set()
            if newest is not self.current and not newest.response_complete:
                self.waiting.pop()
            elif newest.response_started:
                self.phase = DISMISSED[self.phase]
                self.transport.close()
                return
            else:
                self.current = None
        self.waiting.append(partial(self._dismiss, self.guard.heads.reply(response, keep_alive=False)))
        if self.current is None:
            self.proceed()

    def _dismiss(self, reply: bytes) -> None:
        """Write the last bytes, then read on for a moment: closing on unread input would destroy them."""
        self.phase = DISMISSED[self.phase]
        self.transport.write(reply)
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.flow.resume_reading()
        else:
            self.transport.close()
