"""Reads of a hub channel: pages for polls, and feeds that stay open."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import msgspec
from msgspec import Struct

from millstream._override import override
from millstream.hub import Event, Hub

_LOW_WATER = 64 * 1024
_MAX_CURSOR = 256

Kind = Literal["event", "gap", "place", "cut"]


class Notice(Struct, frozen=True, array_like=True):
    """An entry of a feed: an event, a gap before the next event, the worker's read position, or the end."""

    kind: Kind
    id: str
    offset: int
    at: float
    data: bytes


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Notice).decode


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
        self._notices: deque[bytes] = deque()
        self._buffered_bytes = 0
        self._data_event = asyncio.Event()
        self._room_event = asyncio.Event()

    @property
    def buffered(self) -> int:
        """Bytes written but not read yet."""
        return self._buffered_bytes

    def write(self, data: bytes) -> None:
        """Add a notice."""
        if not self.closed:
            self._notices.append(data)
            self._buffered_bytes += len(data)
            self._data_event.set()

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
        data = self._notices.popleft()
        self._buffered_bytes -= len(data)
        if self._buffered_bytes <= _LOW_WATER:
            self._room_event.set()
        return _decode(data)


class Page(_Closable):
    """A hub outlet that collects a page of events and then closes.

    Args:
        hub: the hub of the channel.
        most: maximum number of events.
        max_bytes: approximate maximum bytes of their data.
        accepts: returns whether to include an event.
    """

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

    @property
    def buffered(self) -> int:
        """Always 0."""
        return 0

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


def open_feed(hub: Hub, channel: str, cursor: str) -> tuple[Feed, "asyncio.Task[Any]"]:
    """Return a feed of the events after a cursor, and the task that replays earlier events into it.

    The task replays as fast as the feed is read. Await it, or cancel it and close the feed.
    """
    feed = Feed()
    replay = asyncio.get_running_loop().create_task(
        hub.follow(channel, feed, encode=encode_notice, last_event_id=cursor[:_MAX_CURSOR], transport="events")
    )
    return feed, replay
