"""`events/list`, `events/poll`, and `events/stream`, independent of the transport."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any

from msgspec import Raw, Struct, field

from millstream import Principal, ProtocolError
from millstream.extensions import CallContext, ServerHost
from millstream.extensions.events._catalog import (
    Arguments,
    EventCatalog,
    EventType,
    forbidden_error,
    invalid,
    sees,
    timestamp,
)
from millstream.extensions.events._feed import Feed, LiveStreams, Notice, open_feed, position, read_page
from millstream.hub import Encode, Forbidden, Hub, LimitExceeded
from millstream.protocol import INTERNAL_ERROR, MALFORMED, OVERLOADED, PER_REQUEST, SUBSCRIPTION_KEY, decoder

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


class EventMethods:
    """The methods that read events. They are stateless.

    Args:
        catalog: The event types.
        host: The running server.
        modes: Delivery modes of every event type.
        pause: Seconds between two polls of a client.
    """

    def __init__(self, catalog: EventCatalog, host: ServerHost, modes: list[str], *, pause: float) -> None:
        self._catalog = catalog
        self._hub = host.hub
        self._clock = host.now
        self._modes = modes
        self._pause = pause
        self._streams: dict[str, LiveStreams] = {}

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
        page = await read_page(self._hub, kind.name, params.cursor or "", most=limit, accepts=reader.accepts)
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
        live = self._streams.get(kind.name) or self._streams.setdefault(kind.name, LiveStreams(kind, self._hub))

        def on_live(feed: Feed) -> Encode:
            live.add(feed, reader.arguments, ctx.principal)
            return live.encode

        feed, replay = open_feed(self._hub, kind.name, params.cursor or "", on_live)
        try:
            async with ctx.stream() as reply:
                leaving = asyncio.create_task(reply.wait_closed())
                leaving.add_done_callback(lambda _: feed.close())
                try:
                    async for method, notification in _notifications(self._hub, reader, feed):
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
        oldest = oldest_time(params.max_age_ms, params.cursor, self._clock())
        reader = Reader(kind, kind.read_arguments(params.arguments), ctx.principal, oldest)
        check_admission(self._hub, kind.name, ctx.principal)
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
