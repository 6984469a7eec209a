"""Live data of open pages: the stream of the dashboard, and the members of the chat.

The dashboard's stream sends the server's facts once, then a snapshot each second and new log lines. A snapshot is taken
and encoded once for all watchers, and only if there are any. This module doesn't depend on the content of a snapshot.
"""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from millstream._http.message import (
    JSON_HEAD,
    STREAM_HEAD,
    HttpRequest,
    Response,
    Sink,
    last_event_id,
    plain_problem,
    query_value,
)
from millstream._override import override
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
"""Maximum backlog of a watcher in bytes. A slower watcher is disconnected; its page reconnects and continues."""

_BUSY = plain_problem(503, "Too many open streams. Close another page or try again later.", b"retry-after: 5\r\n")


class LogTail(logging.Handler):
    """Buffer of the newest lines of the structured log. Thread-safe."""

    def __init__(self, size: int = LOG_LINES) -> None:
        super().__init__()
        self.setFormatter(JsonLines())
        self._lines: deque[bytes] = deque(maxlen=size)
        self.total: int = 0
        """Number of lines so far. Lines are numbered from 1."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        try:
            line = self.format(record).encode()
        except Exception:  # like all logging handlers: a bad record must not break the caller
            self.handleError(record)
            return
        # `Handler.handle` holds the lock.
        self._lines.append(line)
        self.total += 1

    def after(self, number: int) -> tuple[list[bytes], int]:
        """Return the buffered lines after line `number`, and the number of the newest line."""
        self.acquire()
        try:
            lines, last = list(self._lines), self.total
        finally:
            self.release()
        return lines[max(0, len(lines) - max(0, last - number)) :], last


class LogFeed:
    """The handler of `GET /inspect/log`: the server's log, for its developer."""

    def __init__(self, log: LogTail, streams: OpenStreams) -> None:
        self._log = log
        self._streams = streams
        self._instance = secrets.token_hex(4)

    async def events(self, request: HttpRequest) -> Response | None:
        """Send the buffered lines, then new ones, as JSON arrays. ``Last-Event-ID`` skips known lines."""
        if self._streams.full(request):
            return _BUSY
        sink = request.open(200, STREAM_HEAD)
        self._streams.add(sink, request, ("inspect", ""), until=expiry_of(request.principal))
        instance, _, number = last_event_id(request).partition("-")
        sent = int(number) if instance == self._instance and number.isdecimal() and len(number) < 16 else 0
        try:
            while not sink.closed and sink.buffered <= MAX_BUFFERED:
                lines, last = self._log.after(sent)
                if lines:
                    sink.write(sse.encode_event(b"[%b]" % b",".join(lines), id=f"{self._instance}-{last}"))
                    sent = last
                await asyncio.sleep(LOG_INTERVAL)
        finally:
            sink.close()
        return None


class DashboardFeed:
    """The handler of `GET /dashboard/events`, and its stream."""

    def __init__(
        self,
        snapshot: Callable[[], Mapping[str, Any]],
        log: LogTail,
        streams: OpenStreams,
        *,
        info: Mapping[str, Any],
        refresh: Callable[[], Awaitable[object]] | None = None,
    ) -> None:
        """Create the feed; `run` starts it.

        Args:
            snapshot: returns the current figures.
            log: newest log lines; a handler of the root logger while the server runs.
            streams: open streams of the server.
            info: ``name``, ``title``, ``version``, ``started`` (seconds since 1970), and ``facts``, labels with their
                values.
            refresh: awaited before each snapshot, to query other workers.
        """
        # Configuration
        self._snapshot = snapshot
        self._refresh = refresh
        self.log: LogTail = log
        self._streams = streams
        self._instance = secrets.token_hex(4)
        """Part of event ids, because each process numbers its log lines from 1."""
        self._info = sse.encode_event(encode({**info, "instance": self._instance}), event="server")
        # State
        self._watchers: list[Sink] = []
        self._has_watchers = asyncio.Event()
        self._last_line = 0
        """Number of the last line sent to the watchers."""
        self._latest = b""

    def __len__(self) -> int:
        return len(self._watchers)

    async def run(self) -> None:
        """Send updates to the watchers each second, until canceled. The runtime owns the task."""
        while True:
            await self._has_watchers.wait()
            try:
                if self._refresh is not None:
                    await self._refresh()
                self.broadcast()
            except Exception:
                logger.exception("Could not send the figures to the dashboard; retrying in a second")
            await asyncio.sleep(INTERVAL)

    def broadcast(self) -> None:
        """Send a snapshot and the new log lines to all watchers."""
        lines, last = self.log.after(self._last_line)
        self._last_line = last
        self._latest = sse.encode_event(encode(self._snapshot()), event="snapshot")
        chunk = self._log_event(lines, last) + self._latest
        for sink in tuple(self._watchers):
            if sink.buffered > MAX_BUFFERED:
                sink.close()
            else:
                sink.write(chunk)

    async def events(self, request: HttpRequest) -> Response | None:
        """Handle `GET` of the stream. ``Last-Event-ID``, or ``?last_event_id=``, skips lines that were already sent."""
        if self._streams.full(request):
            return _BUSY
        sink = request.open(200, STREAM_HEAD)
        self._streams.add(sink, request, ("dashboard", ""), until=expiry_of(request.principal))
        try:
            self._add_watcher(sink, last_event_id(request))
            await sink.wait_closed()
        finally:
            sink.close()
        return None

    def _add_watcher(self, sink: Sink, last_id: str) -> None:
        instance, _, number = last_id.partition("-")
        sent = int(number) if instance == self._instance and number.isdecimal() and len(number) < 16 else 0
        if not self._watchers:
            # Without watchers, no snapshots were taken: the last one is outdated.
            self._latest = b""
            self._last_line = self.log.total
        lines, last = self.log.after(sent)
        # Lines after `_last_line` are sent with the next snapshot.
        lines = lines[: max(0, len(lines) - (last - self._last_line))]
        sink.write(self._info + self._log_event(lines, self._last_line) + self._latest)
        self._watchers.append(sink)
        self._has_watchers.set()
        sink.on_close(lambda: self._remove_watcher(sink))

    def _remove_watcher(self, sink: Sink) -> None:
        self._watchers.remove(sink)
        if not self._watchers:
            self._has_watchers.clear()

    def _log_event(self, lines: Sequence[bytes], last: int) -> bytes:
        if not lines:
            return b""
        return sse.encode_event(b"[%b]" % b",".join(lines), event="log", id=f"{self._instance}-{last}")


class Room(Protocol):
    """The part of the hub that the chat uses."""

    admission: Any
    """`AccessRules`."""

    async def presence(self, channel: str) -> Sequence[Any]:
        """Return the members of a channel."""
        ...


class ChatMembers:
    """The handler of `GET /chat/members`: the members of a channel."""

    def __init__(self, hub: Room) -> None:
        self._hub = hub

    async def get(self, request: HttpRequest) -> Response:
        """Return a JSON array of ``{client_id, name, since}``, in order of arrival. ``?channel=`` is ``chat`` by
        default.

        Callers who may not subscribe to the channel get 403, because the hub's access rules apply here as well.
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
