"""Data of open pages: the dashboard's stream and audit records, and the connect page's facts."""

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from millstream._http.message import (
    JSON_HEAD,
    Handler,
    HttpRequest,
    Response,
    Sink,
    last_event_id,
    plain_problem,
    query_value,
)
from millstream._override import override
from millstream._parts import WATCH, PartHost
from millstream._protocol.sse import encode_event
from millstream._telemetry.logs import JsonLines
from millstream._telemetry.messages import newest
from millstream._transports.open_streams import OpenStreams
from millstream._troubles import LogOnce
from millstream._web.pages import PRIVATE
from millstream.protocol import encode

_MAX_WORDS = 200


def reply(data: Any, status: int = 200, head: bytes = b"") -> Response:
    """Return data as JSON that isn't cached."""
    return Response(encode(data), status, JSON_HEAD + b"cache-control: no-store\r\n" + head)


def audit_handler(path: str) -> Handler:
    """Return the handler of `GET /dashboard/audit`. `path` is the log file, or empty if there's no audit log."""

    async def get(request: HttpRequest) -> Response:
        """Return ``{"kept": bool, "records": [...]}``, the newest record first.

        ``?q=`` selects records that contain all of its words, ``?failed=1`` selects failures.
        """
        records = []
        if path:
            words, failed = query_value("q", request.query)[:_MAX_WORDS], query_value("failed", request.query) == "1"
            records = await asyncio.to_thread(newest, Path(path), words=words, failed=failed)
        return reply({"kept": bool(path), "records": records})

    return get


def connect_handler(host: PartHost, pages: Collection[str], *, public: Collection[str]) -> Handler:
    """Return the handler of `GET /connect/server`.

    It provides what the connect page can't get over MCP: the endpoint, and how callers sign in.

    Args:
        host: The running server.
        pages: Names of the pages that it serves.
        public: Names of the pages that other machines can reach without sign-in.
    """
    path, guard, addresses = host.settings.path, host.guard, host.services.addresses
    methods = () if guard is None else guard.methods
    resource = next((each.resource for each in methods if each.resource), "")
    facts = {
        "path": path,
        "url": resource if resource.endswith(path) else "",
        "keys": any(not each.issuers for each in methods),
        "oauth": any(each.issuers for each in methods),
    }
    open_pages = pages if guard is not None else [each for each in pages if each in public]
    unwatched = [each for each in pages if PRIVATE.get(f"/{each}") != WATCH]
    local, remote, limited = ({**facts, "pages": list(each)} for each in (pages, open_pages, unwatched))

    async def get(request: HttpRequest) -> Response:
        """Return the ``path`` of the MCP endpoint, its public ``url`` if sign-in is for that URL only, whether ``keys``
        and ``oauth`` are accepted, and the ``pages`` and the paths of ``sets`` that the caller can reach.
        """
        found = local if host.is_local(request.peer, request.headers, request.is_http_1_0) else remote
        if request.principal is not None and not request.principal.has((WATCH,)):
            found = limited
        return reply({**found, "sets": [each.path for each in addresses[1:] if host.refuse(each, request) is None]})

    return get


logger = logging.getLogger("millstream")

INTERVAL = 1.0
LOG_INTERVAL = 0.2
LOG_LINES = 500
MAX_BUFFERED = 256 * 1024
"""Maximum backlog of a watcher in bytes. A slower watcher is disconnected. Its page reconnects and continues."""

_BUSY = plain_problem(503, "Too many open streams. Close another page or try again later.", b"retry-after: 5\r\n")


class LogTail(logging.Handler):
    """Buffer of the newest structured log lines. Thread-safe."""

    def __init__(self, size: int = LOG_LINES) -> None:
        super().__init__()
        self.setFormatter(JsonLines())
        self._lines: deque[bytes] = deque(maxlen=size)
        self.total: int = 0
        """Number of lines so far. Lines are numbered from 1."""
        self.instance: str = secrets.token_hex(4)
        """Identifies the process in event ids, because each process numbers its lines from 1."""

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

    def event_after(self, number: int, event: str | None = None) -> tuple[bytes, int]:
        """Return an event with the buffered lines after line `number`, if there are any, and the newest line's
        number.
        """
        lines, last = self.after(number)
        data = b"[%b]" % b",".join(lines)
        return encode_event(data, event=event, id=f"{self.instance}-{last}") if lines else b"", last

    def number_of(self, last_id: str) -> int:
        """Return the number of the last line that a reader has, from the reader's last event id."""
        begin, _, number = last_id.partition("-")
        return int(number) if begin == self.instance and number.isdecimal() and len(number) < 16 else 0


def log_handler(log: LogTail, streams: OpenStreams, failure: Callable[[], Any]) -> Handler:
    """Return the handler of `GET /inspect/log`: the server's log, for its developer.

    `failure` returns why the changed program can't start, or None if it can.
    """

    async def events(request: HttpRequest) -> Response | None:
        """Send the buffered lines, then new ones, as JSON arrays. ``Last-Event-ID`` skips known lines.

        The event ``failure`` gives the reason why the changed program can't start; ``null`` when it has changed again.
        """
        sink = streams.open(request, ("inspect", ""))
        if sink is None:
            return _BUSY
        sent, sent_failure = log.number_of(last_event_id(request)), None
        try:
            while not sink.closed and sink.buffered <= MAX_BUFFERED:
                if (failed := failure()) != sent_failure:
                    sent_failure = failed
                    sink.write(encode_event(encode(failed), event="failure"))
                chunk, sent = log.event_after(sent)
                if chunk:
                    sink.write(chunk)
                await asyncio.sleep(LOG_INTERVAL)
        finally:
            sink.close()
        return None

    return events


class DashboardFeed:
    """The handler of `GET /dashboard/events`, and its stream.

    It sends the server's facts once, then snapshots and new log lines. A snapshot is taken and encoded once for all
    watchers, and only if there are any. The feed doesn't depend on the content of a snapshot.
    """

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
            snapshot: Returns the current figures.
            log: Newest log lines. A handler of the root logger while the server runs.
            streams: Open streams of the server.
            info: ``name``, ``title``, ``version``, ``started`` (seconds since 1970), and ``facts``, labels with their
                values.
            refresh: Awaited before each snapshot, to query other workers.
        """
        self._snapshot = snapshot
        self._refresh = refresh
        self.log: LogTail = log
        self._streams = streams
        self._info = encode_event(encode({**info, "instance": log.instance}), event="server")
        self._watchers: dict[Sink, int] = {}
        """Watcher -> number of the last line sent to it."""
        self._has_watchers = asyncio.Event()
        self._latest = b""

    def __len__(self) -> int:
        return len(self._watchers)

    async def run(self) -> None:
        """Send updates to the watchers about once a second, until canceled. The runtime owns the task."""
        trouble = LogOnce(
            None,  # no call fails
            "Metrics can't be sent to the dashboard; retrying",
            "Metrics can be sent to the dashboard again.",
            catches=Exception,
        )
        while True:
            await self._has_watchers.wait()
            with trouble:
                if self._refresh is not None:
                    await self._refresh()
                self.broadcast()
            await asyncio.sleep(INTERVAL)

    def broadcast(self) -> None:
        """Send the new log lines and a snapshot to all watchers."""
        self._latest = encode_event(encode(self._snapshot()), event="snapshot")
        for sink in tuple(self._watchers):
            if sink.buffered > MAX_BUFFERED:
                sink.close()
            else:
                self._write(sink)

    def _write(self, sink: Sink, head: bytes = b"") -> None:
        chunk, self._watchers[sink] = self.log.event_after(self._watchers[sink], "log")
        sink.write(head + chunk + self._latest)

    async def events(self, request: HttpRequest) -> Response | None:
        """Handle `GET` of the stream. ``Last-Event-ID``, or ``?last_event_id=``, skips lines that were already sent."""
        sink = self._streams.open(request, ("dashboard", ""))
        if sink is None:
            return _BUSY
        try:
            self._watchers[sink] = self.log.number_of(last_event_id(request))
            self._write(sink, self._info)
            self._has_watchers.set()
            sink.on_close(lambda: self._remove_watcher(sink))  # last, because the client may have disconnected
            await sink.wait_closed()
        finally:
            sink.close()
        return None

    def _remove_watcher(self, sink: Sink) -> None:
        del self._watchers[sink]
        if not self._watchers:
            self._has_watchers.clear()
            self._latest = b""  # no more snapshots are taken, so this one becomes outdated
