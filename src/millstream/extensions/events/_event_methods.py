"""`events/list`, `events/poll`, and `events/stream`, with pages of a hub channel, and feeds that stay open."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any, Literal

import msgspec
from msgspec import Raw, Struct, field

from millstream import Principal, ProtocolError
from millstream._override import override
from millstream.extensions import CallContext, ServerHost
from millstream.extensions.events._catalog import (
    Arguments,
    EventCatalog,
    EventType,
    FilterIndex,
    forbidden_error,
    invalid,
    sees,
    timestamp,
)
from millstream.hub import Encode, Event, Forbidden, Hub, LimitExceeded
from millstream.protocol import INTERNAL_ERROR, MALFORMED, OVERLOADED, PER_REQUEST, SUBSCRIPTION_KEY, decoder

_LOW_WATER = 64 * 1024
_MAX_CURSOR = 256

Kind = Literal["event", "match", "gap", "place", "cut"]


class Notice(Struct, frozen=True, array_like=True):
    """An entry of a feed: an event, an event that the subscriber's filter accepts, a gap before the next event, the
    worker's read position, or the end.
    """

    kind: Kind
    id: str
    offset: int
    at: float
    data: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Notice).decode
_OVERHEAD = 64
"""Approximate bytes of a notice beside its data."""


def _size(notice: Notice) -> int:
    return len(notice.data) + _OVERHEAD


def encode_notice(event: Event) -> bytes:
    """Return a hub event, encoded as a `Notice`."""
    if event.channel:
        return _encode(Notice("event", event.id, event.offset, event.timestamp, event.data or b""))
    kinds: dict[str | None, Kind] = {"gap": "gap", "cut": "cut"}
    return _encode(Notice(kinds.get(event.event, "place"), "", event.offset, 0.0, b""))


def position(hub: Hub, offset: int) -> str:
    """Return the cursor of an offset in the current epoch."""
    return f"{hub.last_event_id().rpartition('.')[0]}.{offset}"


def split_cursor(cursor: str) -> tuple[str, int]:
    """Return the epoch and the offset of a cursor; offset -1 if the cursor is invalid."""
    epoch, _, digits = cursor.rpartition(".")
    return epoch, int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 20 else -1


class _Closable(Struct, eq=False):
    closed: bool = False
    _callbacks: list[Callable[[], None]] = []

    def close(self) -> None:
        """Discard later events. Idempotent."""
        if not self.closed:
            self.closed = True
            callbacks, self._callbacks = self._callbacks, []
            for callback in callbacks:
                callback()

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, when the outlet closes, or immediately if it's closed."""
        if self.closed:
            callback()
        else:
            self._callbacks.append(callback)


class Feed(_Closable):
    """A hub outlet that queues notices for one task. The hub ends a feed that falls too far behind."""

    _notices: deque[Notice] = field(default_factory=deque)
    _buffered_bytes: int = 0
    _overflowed: bool = False
    _data_event: asyncio.Event = field(default_factory=asyncio.Event)
    _room_event: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def buffered(self) -> int:
        """Bytes written but not read yet."""
        return self._buffered_bytes

    def write(self, data: bytes) -> None:
        """Add an encoded notice."""
        self.put(_decode(data))

    def put(self, notice: Notice) -> None:
        """Add a notice."""
        if not self.closed and (notice.kind == "cut" or not self._overflowed):
            self._notices.append(notice)
            self._buffered_bytes += _size(notice)
            self._data_event.set()

    def overflow(self, max_buffered: int) -> None:
        """Drop all notices but the final one. At its next write, the hub ends the feed, because it reports too much."""
        self._overflowed, self._buffered_bytes = True, max_buffered + 1
        self._notices.clear()

    async def drain(self) -> None:
        """Wait until the task has read most notices."""
        while self._buffered_bytes > _LOW_WATER and not self.closed:
            self._room_event.clear()
            await self._room_event.wait()

    @override
    def close(self) -> None:
        """End the feed. Earlier notices can still be read. Idempotent."""
        self._data_event.set()
        self._room_event.set()
        super().close()

    async def take(self) -> Notice | None:
        """Remove and return the next notice; None at the end."""
        while not self._notices:
            if self.closed:
                return None
            self._data_event.clear()
            await self._data_event.wait()
        notice = self._notices.popleft()
        if not self._overflowed:
            self._buffered_bytes -= _size(notice)
        if self._buffered_bytes <= _LOW_WATER:
            self._room_event.set()
        return notice


class LiveStreams:
    """The streams of one event type that have caught up. Each gets only the events that it accepts.

    The hub writes what one function encodes to all its streams. For events, this function itself writes to the streams
    that match, and leaves nothing to the hub.
    """

    def __init__(self, kind: EventType, hub: Hub) -> None:
        self._hub = hub
        self._index = FilterIndex[Feed](kind)
        self._feeds: dict[Feed, None] = {}
        self._written = 0
        """Bytes written since the unread bytes were last counted."""
        self.encode: Encode = self._encode
        """The function object by which the hub knows these streams."""

    def add(self, feed: Feed, arguments: Arguments, principal: Principal | None) -> None:
        """Add a stream until it's closed."""
        self._feeds[feed] = None
        self._index.add(feed, arguments, principal)
        feed.on_close(lambda: self._remove(feed))

    def _remove(self, feed: Feed) -> None:
        del self._feeds[feed]
        self._index.discard(feed)

    def _encode(self, event: Event) -> bytes:
        if not event.channel:
            return encode_notice(event)
        most, data = self._hub.limits.max_buffered, event.data or b""
        with suppress(*MALFORMED):
            feeds = self._index.find(data)
            notice = Notice("match", event.id, event.offset, event.timestamp, data)
            for feed in feeds:
                feed.put(notice)
                if feed.buffered > most:
                    feed.overflow(most)
            self._hub.count_delivered(len(feeds))
            self._bound_unread(_size(notice) * len(feeds))
        return b""

    def _bound_unread(self, written: int) -> None:
        """Drop what the slowest streams haven't read if there's too much of it, as the hub does for its own writes."""
        limits = self._hub.limits
        self._written += written
        if self._written * 4 < limits.max_unread:
            return
        self._written, unread = 0, self._hub.queued_bytes()
        for feed in sorted(self._feeds, key=lambda feed: feed.buffered, reverse=True):
            if unread <= limits.max_unread:
                return
            unread -= feed.buffered
            feed.overflow(limits.max_buffered)


class Page(_Closable, kw_only=True):
    """A hub outlet that collects a page of events and then closes."""

    hub: Hub
    """The hub of the channel."""
    most: int
    """Maximum number of events."""
    bytes_left: int
    """Approximate maximum bytes of their data."""
    accepts: Callable[[Notice], bool]
    """Returns whether to include an event."""
    buffered: int = 0
    events: list[Notice] = []
    cursor: str = ""
    """The position after the last event read."""
    gap: bool = False
    """Whether events before the first one are missing."""
    more: bool = False
    """Whether there are more events after `cursor`."""

    def write(self, data: bytes) -> None:
        """Add a notice."""
        if self.closed:
            return
        notice = _decode(data)
        if notice.kind == "gap":
            self.gap = True
        elif notice.kind == "place":
            self.cursor = position(self.hub, notice.offset)
        elif notice.kind == "event":
            if self.accepts(notice):
                if len(self.events) >= self.most or self.bytes_left <= 0:
                    self.more = True
                    self.close()
                    return
                self.events.append(notice)
                self.bytes_left -= len(notice.data)
            self.cursor = position(self.hub, notice.offset)

    async def drain(self) -> None:
        """Return immediately."""


async def read_page(
    hub: Hub,
    channel: str,
    cursor: str,
    *,
    most: int,
    max_bytes: int = 4 * 1024 * 1024,
    accepts: Callable[[Notice], bool] = lambda notice: True,
) -> Page:
    """Return the events of a channel after a cursor. An empty cursor means now."""
    page = Page(hub=hub, most=most, bytes_left=max_bytes, accepts=accepts)
    await hub.follow(channel, page, encode=encode_notice, last_event_id=cursor[:_MAX_CURSOR], transport="events")
    page.close()
    return page


def open_feed(
    hub: Hub, channel: str, cursor: str, on_live: Callable[[Feed], Encode] | None = None
) -> tuple[Feed, "asyncio.Task[Any]"]:
    """Return a feed of the events after a cursor, and the task that replays earlier events into it.

    The task replays as fast as the feed is read. Await it, or cancel it and close the feed. When it has caught up,
    `on_live` returns the encoder of later events.
    """
    feed = Feed()

    async def follow() -> None:
        subscription = await hub.follow(
            channel, feed, encode=encode_notice, last_event_id=cursor[:_MAX_CURSOR], transport="events"
        )
        # Nothing is awaited between the last replayed event and this line.
        if on_live is not None and not feed.closed:
            subscription.encode = on_live(feed)

    return feed, asyncio.get_running_loop().create_task(follow())


MAX_EVENTS = 100
"""Maximum events of one page."""
PAGE_SIZE = 100
"""Maximum event types of one page of `events/list`."""
PREFIX = "notifications/events/"
_MAX_AGE_MS = 10**15
"""Limit for ages, longer than any history, because JSON integers can exceed the range of floats."""

_decode_data = decoder(dict[str, Any])


class ListParams(Struct):
    cursor: str | None = None


class ReadParams(Struct, rename="camel"):
    """Params of `events/poll` and `events/stream`."""

    name: str
    arguments: Raw = field(default_factory=lambda: Raw(b""))
    cursor: str | None = None
    max_age_ms: int | None = None
    max_events: int | None = None


class Reader(Struct, eq=False):
    """Filters the events of one subscription."""

    kind: EventType
    arguments: Arguments
    principal: Principal | None
    oldest: float = 0.0
    """Events published before this Unix time are skipped."""
    has_skipped: bool = False
    """Whether an event was skipped because it was too old."""

    def accepts(self, notice: Notice) -> bool:
        """Return whether the subscription receives an event. Data that doesn't match the schema is ignored."""
        if notice.at < self.oldest:
            self.has_skipped = True
            return False
        try:
            payload, data = self.kind.read(notice.data), _decode_data(notice.data)
        except MALFORMED:
            return False
        return self.kind.matches(payload, data, self.arguments, self.principal)


def occurrence(name: str, notice: Notice, cursor: str | None) -> dict[str, Any]:
    """Return an event in the wire format. Omit `cursor` if the delivery has its own."""
    written = {"eventId": notice.id, "name": name, "timestamp": timestamp(notice.at), "data": Raw(notice.data)}
    return written if cursor is None else {**written, "cursor": cursor}


def read_occurrence(name: str, notice: Notice) -> dict[str, Any]:
    """Return an event in the wire format, with decoded data."""
    return {**occurrence(name, notice, None), "data": _decode_data(notice.data)}


class EventMethods(Struct, eq=False):
    """The methods that read events. They are stateless."""

    _catalog: EventCatalog
    _host: ServerHost
    _modes: list[str]
    """Delivery modes of every event type."""
    _pause: float
    """Seconds between two polls of a client."""
    _streams: dict[str, LiveStreams] = {}

    async def list_types(self, params: ListParams, ctx: CallContext) -> dict[str, Any]:
        """Return one page of the event types visible to the caller, with the available delivery modes.

        Raises:
            ProtocolError: INVALID_PARAMS for an invalid cursor.
        """
        kinds = sorted((kind for kind in self._catalog if sees(kind, ctx.scopes)), key=lambda each: each.name)
        after = params.cursor or ""
        if after and self._catalog.get(after) is None:
            raise invalid("unknown cursor")
        rest = [kind for kind in kinds if kind.name > after]
        page = rest[:PAGE_SIZE]
        unusable = {"webhook" if ctx.principal is None else "", "" if ctx.revision in PER_REQUEST else "push"}
        modes = [mode for mode in self._modes if mode not in unusable]
        result: dict[str, Any] = {"events": [kind.describe(modes) for kind in page]}
        return {**result, "nextCursor": page[-1].name} if len(rest) > PAGE_SIZE else result

    async def poll(self, params: ReadParams, ctx: CallContext) -> dict[str, Any]:
        """Return the events after a cursor, or without one, only the current cursor.

        Raises:
            ProtocolError: The caller lacks permission, or the request is invalid.
        """
        kind, reader = self._open(params, ctx)
        limit = MAX_EVENTS if params.max_events is None else min(max(1, params.max_events), MAX_EVENTS)
        page = await read_page(self._host.hub, kind.name, params.cursor or "", most=limit, accepts=reader.accepts)
        return {
            "events": [read_occurrence(kind.name, each) for each in page.events],
            "cursor": page.cursor,
            "truncated": page.gap or reader.has_skipped,
            "hasMore": page.more,
            "nextPollMs": int(self._pause * 1000),
        }

    async def stream(self, params: ReadParams, ctx: CallContext) -> dict[str, Any]:
        """Send notifications until the client disconnects, and then an empty result.

        Raises:
            ProtocolError: The caller lacks permission, or the request is invalid.
        """
        kind, reader = self._open(params, ctx)
        mark = {"_meta": {SUBSCRIPTION_KEY: ctx.request_id}}
        live = self._streams.get(kind.name) or self._streams.setdefault(kind.name, LiveStreams(kind, self._host.hub))

        def on_live(feed: Feed) -> Encode:
            live.add(feed, reader.arguments, ctx.principal)
            return live.encode

        feed, replay = open_feed(self._host.hub, kind.name, params.cursor or "", on_live)
        try:
            async with ctx.stream() as reply:
                leaving = asyncio.create_task(reply.wait_closed())
                leaving.add_done_callback(lambda _: feed.close())
                try:
                    async for method, notification in _notifications(self._host.hub, reader, feed):
                        await reply.send(method, {**notification, **mark})
                finally:
                    leaving.cancel()
        finally:
            feed.close()
            replay.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await replay
        return mark

    def _open(self, params: ReadParams, ctx: CallContext) -> tuple[EventType, Reader]:
        kind = self._catalog.visible(params.name, ctx.scopes)
        oldest = oldest_time(params.max_age_ms, params.cursor, self._host.now())
        reader = Reader(kind, kind.read_arguments(params.arguments), ctx.principal, oldest)
        check_admission(self._host.hub, kind.name, ctx.principal)
        return kind, reader


async def _notifications(hub: Hub, reader: Reader, feed: Feed) -> AsyncGenerator[tuple[str, dict[str, Any]]]:
    """Yield the method and params of each notification until the hub or the caller closes the feed."""
    active = gap = False
    while (notice := await feed.take()) is not None:
        if notice.kind == "cut":
            text = "The stream fell behind. Open it again with the last cursor."
            yield f"{PREFIX}error", {"error": {"code": INTERNAL_ERROR, "message": text}}
        if notice.kind == "gap":
            gap = True
        if notice.kind in ("gap", "cut"):
            continue
        counts = notice.kind == "match" or (notice.kind == "event" and reader.accepts(notice))
        truncated, cursor = gap or reader.has_skipped, position(hub, notice.offset)
        if truncated or not active:
            start = position(hub, notice.offset - 1) if counts else cursor
            yield f"{PREFIX}active", {"cursor": start, "truncated": truncated}
            active, gap, reader.has_skipped = True, False, False
        elif notice.kind == "place":
            yield f"{PREFIX}heartbeat", {"cursor": cursor}
        if counts:
            yield f"{PREFIX}event", occurrence(reader.kind.name, notice, cursor)


def oldest_time(max_age_ms: int | None, cursor: str | None, now: float) -> float:
    """Return the Unix time of the oldest event to replay.

    Raises:
        ProtocolError: INVALID_PARAMS for a negative age.
    """
    if max_age_ms is None or not cursor:
        return 0.0
    if max_age_ms < 0:
        raise invalid("maxAgeMs must be 0 or more")
    return max(0.0, now - min(max_age_ms, _MAX_AGE_MS) / 1000)


def check_admission(hub: Hub, channel: str, principal: Principal | None) -> None:
    """Check the hub's authorization hook and limits.

    Raises:
        ProtocolError: FORBIDDEN or OVERLOADED.
    """
    try:
        hub.admission.subscribe([channel], principal=principal, direct=False)
    except Forbidden as error:
        raise forbidden_error(str(error)) from error
    except LimitExceeded as error:
        raise ProtocolError(OVERLOADED, str(error), status=503) from error
