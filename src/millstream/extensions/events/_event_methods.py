"""`events/list`, `events/poll`, and `events/stream`, with pages of a hub channel, and feeds that stay open."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Raw, Struct, field
from msgspec.structs import replace

from millstream import ProtocolError
from millstream.extensions import CallContext, Host, ListenSubscription, cancel_all, format_time
from millstream.extensions.events._catalog import (
    EventCatalog,
    EventType,
    FilterIndex,
    Reader,
    forbidden_error,
    invalid,
    sees,
    unknown_event_error,
)
from millstream.hub import Encode, Event, Forbidden, Hub, LimitExceeded
from millstream.protocol import (
    INTERNAL_ERROR,
    MALFORMED,
    OVERLOADED,
    PER_REQUEST,
    SUBSCRIPTION_KEY,
    Json,
    decode_object,
)

_LOW_WATER = 64 * 1024
_MAX_CURSOR = 256

MATCHED = ""
"""The name of an event that the subscriber's filter has accepted. Publishers can't use an empty name."""
USER_KEY = "millstream.hub/user"
"""The member of `_meta` with the publisher, as far as the reader can see it (`Event.user`)."""
_OVERHEAD = 64
"""Approximate size of an event without its data, in bytes."""

encode_event = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Event).decode


def _size(event: Event) -> int:
    return len(event.data or b"") + _OVERHEAD


def epoch_of(hub: Hub) -> str:
    """Return the current epoch."""
    return hub.last_event_id().rpartition(".")[0]


def position(hub: Hub, offset: int) -> str:
    """Return the cursor of an offset in the current epoch."""
    return f"{epoch_of(hub)}.{offset}"


def split_cursor(cursor: str) -> tuple[str, int]:
    """Return a cursor's epoch and offset. The offset is -1 if the cursor is invalid."""
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
        """Call `callback` once when the outlet closes, or immediately if it's already closed."""
        if self.closed:
            callback()
        else:
            self._callbacks.append(callback)

    def forget(self, callback: Callable[[], None]) -> None:
        """Don't call `callback` when the outlet closes."""
        if callback in self._callbacks:
            self._callbacks.remove(callback)


class Feed(_Closable):
    """A hub outlet that queues events and the hub's own messages (gaps, positions, and the final cut) for one task.

    The hub ends a feed that falls too far behind.
    """

    buffered: int = 0
    """Bytes written but not read yet."""
    _events: deque[Event] = field(default_factory=deque[Event])
    _change_event: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.on_close(self._change_event.set)

    def write(self, data: bytes) -> None:
        """Add an encoded event."""
        self.put(_decode(data))

    def put(self, event: Event) -> None:
        """Add an event. The final one drops all others. A reader that resumes gets them again."""
        if self.closed:
            return
        if event.event == "cut":
            self._events.clear()
        self._events.append(event)
        self.buffered += _size(event)
        self._change_event.set()

    async def drain(self) -> None:
        """Wait until the task has read most events."""
        while self.buffered > _LOW_WATER and not self.closed:
            self._change_event.clear()
            await self._change_event.wait()

    async def take(self) -> Event | None:
        """Remove and return the next event, or None at the end. Events from before `close` can still be read."""
        while not self._events:
            if self.closed:
                return None
            self._change_event.clear()
            await self._change_event.wait()
        event = self._events.popleft()
        self.buffered -= _size(event)
        self._change_event.set()
        return event


class LiveStreams:
    """The streams of one event type that have caught up. Each gets only the events that it accepts. The hub writes the
    output of an encoder to all its streams. For events, this encoder itself writes to the matching streams and returns
    nothing to the hub.
    """

    def __init__(self, kind: EventType, hub: Hub) -> None:
        self._hub = hub
        self._index = FilterIndex[Feed](kind)
        self.encode: Encode = self._encode
        """The function object that identifies these streams to the hub."""

    def add(self, feed: Feed, reader: Reader) -> None:
        """Add a stream until it's closed."""
        self._index.add(feed, reader)
        feed.on_close(lambda: self._index.discard(feed))

    def _encode(self, event: Event) -> bytes:
        if not event.channel:
            return encode_event(event)
        hub = self._hub
        with suppress(*MALFORMED):
            feeds = self._index.find(event.data or b"")
            matched = replace(event, event=MATCHED)
            for feed in feeds:
                feed.put(matched)
                if feed.buffered > hub.limits.max_buffered:
                    hub.disconnect(feed)
            hub.count_delivered(len(feeds), _size(event) * len(feeds))
        return b""


class Page(_Closable, kw_only=True):
    """A hub outlet that collects a page of events and then closes."""

    hub: Hub
    """The hub of the channel."""
    most: int
    """Maximum number of events."""
    accepts: Callable[[Event], bool]
    """Returns whether to include an event."""
    bytes_left: int = 4 * 1024 * 1024
    """Approximate maximum bytes of their data."""
    buffered: int = 0
    events: list[Event] = []
    cursor: str = ""
    """The position after the last event read."""
    gap: bool = False
    """Whether events before the first one are missing."""
    more: bool = False
    """Whether there are more events after `cursor`."""

    def write(self, data: bytes) -> None:
        """Add an encoded event."""
        if self.closed:
            return
        event = _decode(data)
        if event.event == "gap":
            self.gap = True
            return
        if event.channel and self.accepts(event):
            if len(self.events) >= self.most or self.bytes_left <= 0:
                self.more = True
                self.close()
                return
            self.events.append(event)
            self.bytes_left -= len(event.data or b"")
        self.cursor = position(self.hub, event.offset)

    async def drain(self) -> None:
        """Do nothing: nothing is buffered."""


async def read_page(
    hub: Hub, channel: str, cursor: str, *, most: int, accepts: Callable[[Event], bool] = lambda event: True
) -> Page:
    """Return the events of a channel after a cursor. An empty cursor means now."""
    page = Page(hub=hub, most=most, accepts=accepts)
    await hub.follow(channel, page, encode=encode_event, last_event_id=cursor[:_MAX_CURSOR], transport="events")
    page.close()
    return page


def open_feed(
    hub: Hub, channel: str, cursor: str, on_live: Callable[[Feed], Encode] | None = None
) -> tuple[Feed, "asyncio.Task[Any]"]:
    """Return a feed of the events after a cursor, and the task that replays earlier events into it.

    The task replays as fast as the feed is read. Await it, or cancel it and close the feed. When it has caught up,
    `on_live` returns the encoder of later events. If it fails, it closes the feed.
    """
    feed = Feed()

    async def follow() -> None:
        try:
            subscription = await hub.follow(
                channel, feed, encode=encode_event, last_event_id=cursor[:_MAX_CURSOR], transport="events"
            )
        except BaseException:
            feed.close()  # otherwise, the reader would wait forever
            raise
        # Nothing is awaited between the last replayed event and this line.
        if on_live is not None and not feed.closed:
            subscription.encode = on_live(feed)

    return feed, asyncio.create_task(follow())


MAX_EVENTS = 100
"""Maximum events per page."""
PAGE_SIZE = 100
"""Maximum event types per page of `events/list`."""
PREFIX = "notifications/events/"
_MAX_AGE_MS = 10**15
"""Limit for ages, longer than any history, because JSON integers can exceed the range of floats."""


class ListParams(Struct):
    cursor: str | None = None


class ReadParams(Struct, rename="camel"):
    """Params of `events/poll` and `events/stream`."""

    name: str
    arguments: Raw = field(default_factory=lambda: Raw(b""))
    cursor: str | None = None
    max_age_ms: int | None = None
    max_events: int | None = None


def occurrence(reader: Reader, event: Event, cursor: str | None) -> Json:
    """Return an event in the wire format. Omit `cursor` if the delivery has its own."""
    written: Json = {
        "eventId": event.id,
        "name": reader.kind.name,
        "timestamp": format_time(event.timestamp),
        "data": Raw(event.data or b""),
    }
    if event.user is not None:
        written["_meta"] = {USER_KEY: event.visible_user(reader.principal)}
    return written if cursor is None else {**written, "cursor": cursor}


def read_occurrence(reader: Reader, event: Event) -> Json:
    """Return an event in the wire format, with decoded data."""
    return {**occurrence(reader, event, None), "data": decode_object(event.data or b"")}


def describe_error(error: ProtocolError) -> Json:
    """Return the error that ends a subscription in the wire format."""
    return {"code": error.code, "message": error.message, "data": error.data}


def open_reader(catalog: EventCatalog, params: ReadParams, ctx: CallContext, now: float) -> Reader:
    """Return the reader of a request.

    Raises:
        ProtocolError: NOT_FOUND, or INVALID_PARAMS for invalid arguments or a negative age.
    """
    kind, age, oldest = catalog.visible(params.name, ctx.scopes), params.max_age_ms, 0.0
    if age is not None and params.cursor:
        if age < 0:
            raise invalid("maxAgeMs must be 0 or more")
        oldest = max(0.0, now - min(age, _MAX_AGE_MS) / 1000)
    return Reader(kind, kind.read_arguments(params.arguments), ctx.principal, oldest)


class EventMethods(Struct):
    """The methods that read events. They are stateless."""

    _catalog: EventCatalog
    _host: Host
    _modes: list[str]
    """Delivery modes of every event type."""
    _pause: float
    """Seconds between two polls of a client."""
    _streams: dict[EventType, LiveStreams] = {}
    _list_followers: dict[ListenSubscription, frozenset[str] | None] = {}
    """Subscriptions to changes to the list of event types, with their callers' scopes."""

    async def list_types(self, params: ListParams, ctx: CallContext) -> Json:
        """Return one page of the event types visible to the caller, with the available delivery modes.

        Raises:
            ProtocolError: INVALID_PARAMS for an invalid cursor.
        """
        kinds = sorted((kind for kind in self._catalog if sees(kind, ctx.scopes)), key=lambda each: each.name)
        after = params.cursor or ""
        if after and after not in {kind.name for kind in self._catalog}:
            raise invalid("unknown cursor")
        rest = [kind for kind in kinds if kind.name > after]
        page = rest[:PAGE_SIZE]
        unusable = {"webhook" if ctx.principal is None else "", "" if ctx.revision in PER_REQUEST else "push"}
        modes = [mode for mode in self._modes if mode not in unusable]
        result: Json = {"events": [kind.describe(modes) for kind in page]}
        return {**result, "nextCursor": page[-1].name} if len(rest) > PAGE_SIZE else result

    async def follow_list(self, wanted: Any, subscription: ListenSubscription, ctx: CallContext) -> bool | None:
        """Notify a `subscriptions/listen` with ``eventsListChanged`` about changes to the list of event types."""
        if wanted is not True:
            return None
        self._list_followers[subscription] = ctx.scopes

        def stop() -> None:
            self._list_followers.pop(subscription, None)

        subscription.closes.append(stop)
        return True

    def notify_list_changed(self, kind: EventType) -> None:
        """Notify the clients that can see an event type that it was added or removed."""
        if kind.is_removed:
            self._streams.pop(kind, None)
        for subscription, scopes in list(self._list_followers.items()):
            if sees(kind, scopes):
                subscription.push(f"{PREFIX}list_changed")

    async def poll(self, params: ReadParams, ctx: CallContext) -> Json:
        """Return the events after a cursor, or without one, only the current cursor.

        Raises:
            ProtocolError: The caller lacks permission, or the request is invalid.
        """
        reader = self._open(params, ctx)
        name = reader.kind.name
        limit = MAX_EVENTS if params.max_events is None else min(max(1, params.max_events), MAX_EVENTS)
        page = await read_page(self._host.hub, name, params.cursor or "", most=limit, accepts=reader.accepts)
        return {
            "events": [read_occurrence(reader, each) for each in page.events],
            "cursor": page.cursor,
            "truncated": page.gap or reader.has_skipped,
            "hasMore": page.more,
            "nextPollMs": int(self._pause * 1000),
        }

    async def stream(self, params: ReadParams, ctx: CallContext) -> Json:
        """Send notifications until the client disconnects, and then an empty result.

        Raises:
            ProtocolError: The caller lacks permission, or the request is invalid.
        """
        reader, hub = self._open(params, ctx), self._host.hub
        kind, mark = reader.kind, {"_meta": {SUBSCRIPTION_KEY: ctx.request_id}}
        live = self._streams.setdefault(kind, LiveStreams(kind, hub))

        def on_live(feed: Feed) -> Encode:
            live.add(feed, reader)
            return live.encode

        async with ctx.stream() as reply:
            feed, replay = open_feed(hub, kind.name, params.cursor or "", on_live)
            leaving = asyncio.create_task(reply.wait_closed())
            leaving.add_done_callback(lambda _: feed.close())
            kind.on_removal.add(feed.close)
            try:
                async for method, notification in _notifications(hub, reader, feed):
                    meta = {**notification.get("_meta", {}), **mark["_meta"]}
                    await reply.send(method, {**notification, "_meta": meta})
                if kind.is_removed:
                    error = describe_error(unknown_event_error(kind.name))
                    await reply.send(f"{PREFIX}terminated", {"error": error, **mark})
            finally:
                kind.on_removal.discard(feed.close)
                feed.close()
                await cancel_all(leaving, replay)
        return mark

    def _open(self, params: ReadParams, ctx: CallContext) -> Reader:
        reader = open_reader(self._catalog, params, ctx, self._host.now())
        check_admission(self._host.hub, reader)
        return reader


async def _notifications(hub: Hub, reader: Reader, feed: Feed) -> AsyncGenerator[tuple[str, Json]]:
    """Yield the method and params of each notification until the hub or the caller closes the feed."""
    active = gap = False
    while (event := await feed.take()) is not None:
        if event.event == "cut":
            text = "The stream fell behind. Open it again with the last cursor."
            yield f"{PREFIX}error", {"error": {"code": INTERNAL_ERROR, "message": text}}
            continue
        if event.event == "gap":
            gap = True
            continue
        counts = event.event == MATCHED or (bool(event.channel) and reader.accepts(event))
        truncated, cursor = gap or reader.has_skipped, position(hub, event.offset)
        if truncated or not active:
            start = position(hub, event.offset - 1) if counts else cursor
            yield f"{PREFIX}active", {"cursor": start, "truncated": truncated}
            active, gap, reader.has_skipped = True, False, False
        elif not event.channel:
            yield f"{PREFIX}heartbeat", {"cursor": cursor}
        if counts:
            yield f"{PREFIX}event", occurrence(reader, event, cursor)


def check_admission(hub: Hub, reader: Reader) -> None:
    """Check the hub's authorization hook and limits.

    Raises:
        ProtocolError: FORBIDDEN or OVERLOADED.
    """
    try:
        hub.admission.subscribe([reader.kind.name], principal=reader.principal, direct=False)
    except Forbidden as error:
        raise forbidden_error(str(error)) from error
    except LimitExceeded as error:
        raise ProtocolError(OVERLOADED, str(error), status=503) from error
