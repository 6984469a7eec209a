"""Reads of a hub channel: pages for polls, and feeds that stay open."""

import asyncio
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

import msgspec
from msgspec import Struct

from millstream import Principal
from millstream._override import override
from millstream.extensions.events._catalog import Arguments, EventType, FilterIndex
from millstream.hub import Encode, Event, Hub
from millstream.protocol import MALFORMED

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


class _Closable:
    def __init__(self) -> None:
        self.closed: bool = False
        self._callbacks: list[Callable[[], None]] = []

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

    def __init__(self) -> None:
        super().__init__()
        self._notices: deque[Notice] = deque()
        self._buffered_bytes = 0
        self._overflowed = False
        self._data_event = asyncio.Event()
        self._room_event = asyncio.Event()

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


class Page(_Closable):
    """A hub outlet that collects a page of events and then closes.

    Args:
        hub: The hub of the channel.
        most: Maximum number of events.
        max_bytes: Approximate maximum bytes of their data.
        accepts: Returns whether to include an event.
    """

    buffered: int = 0

    def __init__(self, hub: Hub, *, most: int, max_bytes: int, accepts: Callable[[Notice], bool]) -> None:
        super().__init__()
        self._hub = hub
        self._most = most
        self._bytes_left = max_bytes
        self._accepts = accepts
        self.events: list[Notice] = []
        self.cursor: str = ""
        """The position after the last event read."""
        self.gap: bool = False
        """Whether events before the first one are missing."""
        self.more: bool = False
        """Whether there are more events after `cursor`."""

    def write(self, data: bytes) -> None:
        """Add a notice."""
        if self.closed:
            return
        notice = _decode(data)
        if notice.kind == "gap":
            self.gap = True
        elif notice.kind == "place":
            self.cursor = position(self._hub, notice.offset)
        elif notice.kind == "event":
            if self._accepts(notice):
                if len(self.events) >= self._most or self._bytes_left <= 0:
                    self.more = True
                    self.close()
                    return
                self.events.append(notice)
                self._bytes_left -= len(notice.data)
            self.cursor = position(self._hub, notice.offset)

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
    page = Page(hub, most=most, max_bytes=max_bytes, accepts=accepts)
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
