"""What the pages hear and ask while they are open: the stream of the dashboard, and who is in the chat.

The dashboard's stream brings the server's facts once, a snapshot each second, and log lines as they are written. A
snapshot is taken and encoded once for all who watch, and not at all while nobody does. Nothing here knows what a
snapshot holds.
"""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from millstream._http.message import JSON_HEAD, STREAM_HEAD, HttpRequest, Response, Sink, last_event_id, query_value
from millstream._http.problems import plain_problem
from millstream._protocol import sse
from millstream._protocol.jsonrpc import encode
from millstream._server.calls.services import expiry_of
from millstream._telemetry.logs import JsonLines
from millstream._transports.open_streams import OpenStreams
from millstream.hub import Forbidden, InvalidName, TooMany

logger = logging.getLogger("millstream")

INTERVAL = 1.0
LOG_INTERVAL = 0.2
LOG_LINES = 500
MAX_BUFFERED = 256 * 1024
"""A watcher further behind than this is cut; its page comes back and continues."""

_BUSY = plain_problem(503, "Too many open streams. Close another page or try again later.", b"retry-after: 5\r\n")


class LogTail(logging.Handler):
    """The newest log lines, as the structured log writes them; older ones are dropped. Any thread may log."""

    def __init__(self, size: int = LOG_LINES) -> None:
        super().__init__()
        self.setFormatter(JsonLines())
        self._lines: deque[bytes] = deque(maxlen=size)
        self.written: int = 0
        """How many lines there ever were. The number of a line counts from 1."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record).encode()
        except Exception:  # as every handler of the logging module: a bad record must not break who logs
            self.handleError(record)
            return
        # `Handler.handle` holds the lock: the two stay in step.
        self._lines.append(line)
        self.written += 1

    def after(self, number: int) -> tuple[list[bytes], int]:
        """The lines behind a number that are still held, and the number of the last one."""
        self.acquire()
        try:
            lines, last = list(self._lines), self.written
        finally:
            self.release()
        return lines[max(0, len(lines) - max(0, last - number)) :], last


class LogFeed:
    """The handler of `GET /inspect/log`: every log line, for the person who writes the server."""

    __slots__ = ("_instance", "_log", "_streams")

    def __init__(self, log: LogTail, streams: OpenStreams) -> None:
        self._log = log
        self._streams = streams
        self._instance = secrets.token_hex(4)

    async def events(self, request: HttpRequest) -> Response | None:
        """Send the lines that are held, then new ones, as JSON arrays. ``Last-Event-ID`` leaves out known lines."""
        if self._streams.full(request):
            return _BUSY
        sink = request.open(200, STREAM_HEAD)
        self._streams.add(sink, request, ("inspect", ""), until=expiry_of(request.principal))
        instance, _, number = last_event_id(request).partition("-")
        told = int(number) if instance == self._instance and number.isdecimal() and len(number) < 16 else 0
        try:
            while not sink.closed and sink.buffered <= MAX_BUFFERED:
                lines, last = self._log.after(told)
                if lines:
                    sink.write(sse.encode_event(b"[%b]" % b",".join(lines), id=f"{self._instance}-{last}"))
                    told = last
                await asyncio.sleep(LOG_INTERVAL)
        finally:
            sink.close()
        return None


class DashboardFeed:
    """The handler of `GET /dashboard/events`, and what it sends."""

    __slots__ = ("_behind", "_info", "_instance", "_latest", "_measure", "_snapshot", "_streams", "_watched",
                 "_watchers", "log")  # fmt: skip

    def __init__(
        self,
        snapshot: Callable[[], Mapping[str, Any]],
        log: LogTail,
        streams: OpenStreams,
        *,
        info: Mapping[str, Any],
        measure: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """It sends nothing before `run`.

        Args:
            snapshot: the figures now, as the page shows them.
            log: the newest lines; it is a handler of the root logger while the server runs.
            streams: the server's open streams.
            info: ``name``, ``title``, ``version``, ``started`` (seconds since 1970) and ``facts``, a mapping from
                what a person reads to its value.
            measure: awaited before each snapshot, for what is known only by asking.
        """
        # Configuration
        self._snapshot = snapshot
        self._measure = measure
        self.log: LogTail = log
        self._streams = streams
        self._instance = secrets.token_hex(4)
        """Log lines count from 1 in each process: an id of another one is void."""
        self._info = sse.encode_event(encode({**info, "instance": self._instance}), event="server")
        # Process
        self._watchers: list[Sink] = []
        self._watched = asyncio.Event()
        self._behind = 0
        """The number of the last line that the watchers got."""
        self._latest = b""

    def __len__(self) -> int:
        return len(self._watchers)

    async def run(self) -> None:
        """Tell the watchers, each second, until cancelled. The runtime owns the task."""
        while True:
            await self._watched.wait()
            try:
                if self._measure is not None:
                    await self._measure()
                self.tell()
            except Exception:
                logger.exception("Could not send the figures to the dashboard; trying again in a second")
            await asyncio.sleep(INTERVAL)

    def tell(self) -> None:
        """One snapshot and the new lines to everyone who watches."""
        lines, last = self.log.after(self._behind)
        self._behind = last
        self._latest = sse.encode_event(encode(self._snapshot()), event="snapshot")
        chunk = self._log_event(lines, last) + self._latest
        for sink in tuple(self._watchers):
            if sink.buffered > MAX_BUFFERED:
                sink.close()
            else:
                sink.write(chunk)

    async def events(self, request: HttpRequest) -> Response | None:
        """`GET` of the stream. ``Last-Event-ID``, or ``?last_event_id=``, spares lines that were already told."""
        if self._streams.full(request):
            return _BUSY
        sink = request.open(200, STREAM_HEAD)
        self._streams.add(sink, request, ("dashboard", ""), until=expiry_of(request.principal))
        try:
            self._welcome(sink, last_event_id(request))
            await sink.wait_closed()
        finally:
            sink.close()
        return None

    def _welcome(self, sink: Sink, last_id: str) -> None:
        instance, _, number = last_id.partition("-")
        told = int(number) if instance == self._instance and number.isdecimal() and len(number) < 16 else 0
        if not self._watchers:
            # Nobody was told anything for a while: what was said last is old.
            self._latest = b""
            self._behind = self.log.written
        lines, last = self.log.after(told)
        # What is behind `_behind` comes with the next snapshot, to this watcher too.
        lines = lines[: max(0, len(lines) - (last - self._behind))]
        sink.write(self._info + self._log_event(lines, self._behind) + self._latest)
        self._watchers.append(sink)
        self._watched.set()
        sink.on_close(lambda: self._leave(sink))

    def _leave(self, sink: Sink) -> None:
        self._watchers.remove(sink)
        if not self._watchers:
            self._watched.clear()

    def _log_event(self, lines: Sequence[bytes], last: int) -> bytes:
        if not lines:
            return b""
        return sse.encode_event(b"[%b]" % b",".join(lines), event="log", id=f"{self._instance}-{last}")


class Room(Protocol):
    """The hub, as the chat sees it."""

    admission: Any
    """`AccessRules`."""

    async def presence(self, channel: str) -> Sequence[Any]:
        """The members of a channel."""
        ...


class ChatMembers:
    """The handler of `GET /chat/members`: who is on a channel now."""

    __slots__ = ("_hub",)

    def __init__(self, hub: Room) -> None:
        self._hub = hub

    async def get(self, request: HttpRequest) -> Response:
        """A JSON array of ``{client_id, name, since}``, in the order of arrival. ``?channel=`` is ``chat`` by default.

        Whoever may not listen to the channel gets 403: the hub's rules hold here, too.
        """
        channel = query_value("channel", request.query) or "chat"
        try:
            self._hub.admission.subscribe((f"$presence.{channel}",), principal=request.principal, address=request.peer)
            members = await self._hub.presence(channel)
        except Forbidden as exc:
            return plain_problem(403, str(exc))
        except InvalidName as exc:
            return plain_problem(400, str(exc))
        except TooMany as exc:
            return plain_problem(503, str(exc), b"retry-after: 5\r\n")
        return Response(encode(members), 200, JSON_HEAD + b"cache-control: no-store\r\n")
