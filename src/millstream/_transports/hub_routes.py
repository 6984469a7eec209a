"""The hub over HTTP: `GET /events`, `GET /mcp/sse/{client_id}`, `GET /members`, `POST /publish`.

Streams are server-sent events. A plain event has no ``event`` field, so `EventSource.onmessage` receives it. A gap is
``event: gap``, and a stream that the hub ends, because its reader is too slow, closes with ``event: cut``. If there's
no room for a stream, `EventSource` gets ``event: unavailable`` and reconnects. Between events, the position to resume
from is sent as an id alone, which clients store without dispatching an event. Errors are problem details (RFC 9457).
"""

import re
import zlib
from collections.abc import Awaitable, Callable, Sequence
from functools import cache, lru_cache, partial
from itertools import islice
from random import randint
from typing import Any

import msgspec
from msgspec import Struct

from millstream._http.message import (
    GZIP_HEAD,
    JSON_HEAD,
    STREAM_HEAD,
    HttpRequest,
    Response,
    Sink,
    accepts_gzip,
    carries_json,
    is_last_event_id,
    last_event_id,
    parse_accept,
    plain_problem,
    query_values,
)
from millstream._protocol import sse
from millstream._protocol.errors import INVALID_REQUEST, PARSE_ERROR, ProtocolError
from millstream._protocol.jsonrpc import check_text, decoder, encode
from millstream._protocol.principal import knows_identities, visible_part
from millstream._server.calls.services import ObserveMessage, ignore_message
from millstream._server.refusals import REFUSED, RETRY_SECONDS, find_refusal
from millstream._suggestions import closest_name
from millstream._text import shorten
from millstream._transports.open_streams import OpenStreams, drop_head
from millstream.hub import Encode, Event, Hub, InvalidName
from millstream.hub._channels import DEFAULT, check_encoded_size, is_presence
from millstream.hub._event import UNAVAILABLE, encode_object

CLIENT_PATH = "/mcp/sse/"
PUBLICATION = "The event {} published."
"""Whether an event was published, for `find_refusal`."""
MAX_HISTORY = 1_000

_RETRY_AFTER = b"retry-after: %d\r\n" % RETRY_SECONDS
_RETRY_SECONDS = re.compile(rb"^retry-after: (\d+)\r", re.IGNORECASE | re.MULTILINE)
_JITTER_MS = 5_000
_NO_STORE = JSON_HEAD + b"cache-control: no-store\r\n"
_PARTIAL = "Calls handled by the server's other processes don't appear here. The server's log describes the fix."


class Publication(Struct, forbid_unknown_fields=True):
    """The body of `POST /publish`. Unknown members are rejected, because a misspelled ``channel`` would reach all
    subscribers.
    """

    data: Any
    channel: str = DEFAULT
    event: str | None = None
    id: str | None = None


_decode_publication = decoder(Publication)


def encode_sse(event: Event, full: bool = False, envelope: bool = False) -> bytes:
    """Return an event of the hub as a server-sent event, for a reader as in `visible_part`.

    The publisher is in a separate field, which `EventSource` ignores. If `envelope` is set, the data is the event as an
    object, as on a WebSocket, so that pages can also read the publisher. Clients resume from the last id, so that's
    always a position: several events may have a publisher's id.
    """
    if event.data is None:
        return b"id: %b\n\n" % event.id.encode()
    envelope = envelope and bool(event.channel)
    if envelope:
        return sse.encode_event(encode_object(event, full), event=event.event, id=event.position or event.id)
    text, user = sse.encode_event(event.data, event=event.event, id=event.id or None), visible_part(event.user, full)
    if event.position:
        text += b"id: %b\n\n" % event.position.encode()
    return text if user is None else b"user: %b\n%b" % (encode(user), text)


GZIP_START = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
"""Header of a stream's only gzip member (RFC 1952 §2.3). Many clients don't read a second one."""


def deflate(data: bytes) -> bytes:
    """Return data as deflate blocks that don't refer to earlier ones and end on a byte boundary, so all streams share
    them."""
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush(zlib.Z_SYNC_FLUSH)


def encode_sse_gzip(event: Event, full: bool = False, envelope: bool = False) -> bytes:
    """Return `encode_sse` compressed, once for all clients that accept gzip."""
    return deflate(encode_sse(event, full, envelope))


@cache
def _encoder(gzip: bool, full: bool, envelope: bool) -> Encode:
    """Return the encoder for a kind of stream. It encodes a live event once for all streams of that kind."""
    return partial(encode_sse_gzip if gzip else encode_sse, full=full, envelope=envelope)


_gzip = lru_cache(maxsize=64)(deflate)
"""Compresses comments, which are cached because all streams get the same ones, and retry times."""


class HubRoutes(Struct, frozen=True):
    """The HTTP handlers of the hub."""

    hub: Hub
    streams: OpenStreams
    gzip: bool = False
    note: ObserveMessage = ignore_message
    is_partial: Callable[[], object] = bool
    """Returns whether this process misses messages from other processes."""

    @staticmethod
    def match(path: str) -> str | None:
        """Return the client id in a path of `client_stream`, or None for other paths."""
        client_id = path.removeprefix(CLIENT_PATH)
        return client_id if client_id and client_id != path and "/" not in client_id else None

    async def events(self, request: HttpRequest) -> Response | Sink:
        """Stream channels: ``?channel=`` (repeated, or separated by commas), ``?client_id= ?name= ?history= ?members=
        ?envelope=``.
        """
        query, principal, address = query_values(request.query), request.principal, request.peer
        channels = [part for value in query.get("channel", ()) for part in value.split(",")] or [DEFAULT]
        client_id, name = _last(query, "client_id"), _last(query, "name")

        def admit() -> int:
            # Refuse misspelled parameters: without its ``channel``, a stream would stay open and empty.
            for each in islice(query, 8):  # each costs a comparison with all names
                if each in _NAMES or is_last_event_id(each):
                    continue
                if near := closest_name(each, _NAMES):
                    raise InvalidName(f"There is no parameter {each[:20]!r}. Did you mean {near!r}?")
            self.hub.admission.subscribe(channels, client_id=client_id, name=name, principal=principal, address=address)
            _flag(query, "envelope")
            if _flag(query, "members") and not any(map(is_presence, channels)):
                raise InvalidName(
                    "The parameter 'members' needs a channel such as '$presence.room', without wildcards."
                )
            return _count(query)

        async def begin(sink: Sink, gzip: bool, full: bool) -> None:
            await self.hub.subscribe(
                channels,
                sink,
                encode=_encoder(gzip, full, _flag(query, "envelope")),
                last_event_id=last_event_id(request),
                history=_count(query),
                members=_flag(query, "members"),
                client_id=client_id,
                name=name,
                principal=principal,
                address=address,
                transport="events",
            )

        return await self._serve(request, admit, begin, channels)

    async def client_stream(self, request: HttpRequest) -> Response | Sink:
        """Stream the messages of one client: progress and results of its streamed calls."""
        client_id, principal, address = self.match(request.path), request.principal, request.peer
        if client_id is None:
            return plain_problem(404, "The path must be /mcp/sse/ followed by a client id.")

        async def begin(sink: Sink, gzip: bool, full: bool) -> None:
            warning = {"warning": _PARTIAL} if self.is_partial() else {}
            first = sse.encode_event(encode({"client_id": client_id, **warning}), event="connected")
            sink.write(deflate(first) if gzip else first)
            await self.hub.receive(
                client_id,
                sink,
                encode=_encoder(gzip, full, False),
                last_event_id=last_event_id(request),
                principal=principal,
                address=address,
                transport="events",
            )

        receive = self.hub.admission.receive
        return await self._serve(request, partial(receive, client_id, principal=principal, address=address), begin)

    async def _serve(
        self,
        request: HttpRequest,
        admit: Callable[[], object],
        begin: Callable[[Sink, bool, bool], Awaitable[None]],
        channels: Sequence[str] = (),
    ) -> Response | Sink:
        """Open a stream. All checks run before the hub is involved. `begin` learns whether the stream is compressed,
        and whether its reader can see whole profiles. The stream gets events that are published to the channels after
        the client receives the response's head.
        """
        try:
            admit()
        except REFUSED as exc:
            return _refuse(exc)
        if not parse_accept(request.headers.get(b"accept")).stream:
            return plain_problem(406, "This is a stream. Accept content-type text/event-stream.")
        sink: Sink | None = None
        gzip = self.gzip and accepts_gzip(request.headers.get(b"accept-encoding", b""))
        try:
            async with self.hub.hold_interest(channels):
                if self.streams.full(request):
                    return plain_problem(503, "Too many open streams. Close some, or try again later.", _RETRY_AFTER)
                sink = request.open(200, STREAM_HEAD + GZIP_HEAD if gzip else STREAM_HEAD)
                if gzip:
                    sink.write(GZIP_START)
                self.streams.add(sink, request, ("events", ""), code=_gzip if gzip else bytes)
                await begin(sink, gzip, knows_identities(request.principal))
                drop_head(request)
                return sink
        except REFUSED as exc:
            refused = _refuse(exc)
            if sink is None:
                return refused
            event = _encode_refusal(refused)
            sink.write(deflate(event) if gzip else event)
            sink.close()
            return sink
        except BaseException:
            if sink is not None:
                sink.close()
            raise

    async def members(self, request: HttpRequest) -> Response:
        """Return who is on ``?channel=``: ``{"channel", "members", "event"}``."""
        principal, address = request.principal, request.peer
        channel = _last(query_values(request.query), "channel")
        try:
            self.hub.admission.members(channel, principal=principal, address=address)
            found = (await self.hub.members(channel)).visible(knows_identities(principal))
            reply = Response(encode(found), 200, _NO_STORE)
        except REFUSED as exc:
            reply = _refuse(exc)
        status = "" if reply.status == 200 else str(reply.status)
        self.note("hub/members", "http", status=status, target=channel, principal=principal, address=address)
        return reply

    async def publish(self, request: HttpRequest) -> Response:
        """Publish the event in a JSON body: ``{"channel"?, "data", "event"?, "id"?}``."""
        channel, principal = "", request.principal
        try:
            given = self._read_publication(request)
            channel = given.channel
            self.hub.admission.publish(channel, principal)
            published = await self.hub.publish(channel, given.data, event=given.event, id=given.id, publisher=principal)
            reply = Response(encode({"id": published.id, "subscribers": published.subscribers}), 200, JSON_HEAD)
        except ProtocolError as exc:
            reply = plain_problem(max(exc.status, 400), exc.message)
        except REFUSED as exc:
            reply = _refuse(exc, PUBLICATION)
        status = "" if reply.status == 200 else str(reply.status)
        self.note("hub/publish", "http", status=status, target=channel, principal=principal, address=request.peer)
        return reply

    def _read_publication(self, request: HttpRequest) -> Publication:
        """Read the body of `publish`.

        Raises:
            ProtocolError: The body isn't an event. `status` is the HTTP status.
            EventTooLarge: The body is larger than any event.
        """
        if not carries_json(request.headers):
            text = "Send the event with content-type application/json, without a content coding."
            raise ProtocolError(INVALID_REQUEST, text, status=415)
        if not request.body.strip():
            raise ProtocolError(INVALID_REQUEST, f"The body is empty. {_USAGE}")
        if query_values(request.query).keys() & set(Publication.__struct_fields__):
            raise ProtocolError(INVALID_REQUEST, f"The event must be in the body, not in the query. {_USAGE}")
        check_encoded_size(len(request.body), self.hub.limits.max_event)
        check_text(request.body)
        try:
            return _decode_publication(request.body)
        except msgspec.ValidationError as exc:
            raise ProtocolError(
                INVALID_REQUEST, f"The body isn't a valid event: {shorten(str(exc))}. {_USAGE}"
            ) from exc
        except msgspec.DecodeError as exc:
            # The decoder's message for half a surrogate pair is misleading: it says that the data was truncated.
            text = f"The body isn't JSON, or a string in it has half of a surrogate pair. {_USAGE}"
            raise ProtocolError(PARSE_ERROR, text) from exc


_USAGE = 'Send an event: {"channel": "news", "data": …}.'


def _refuse(exc: Exception, change: str = "") -> Response:
    refusal, text = find_refusal(exc, change)
    return plain_problem(refusal.status, text, refusal.head)


def keep_event_source(request: HttpRequest, refusal: Response) -> Response:
    """Return a temporary refusal as a stream with one event, if the client sent ``Accept: text/event-stream``.

    An `EventSource` then reconnects. It fails permanently if the status isn't 200 (HTML standard, 9.2.3).
    """
    accept = request.headers.get(b"accept", b"").lower()
    if refusal.status not in (429, 503) or b"text/event-stream" not in accept:
        return refusal
    return Response(_encode_refusal(refusal), 200, STREAM_HEAD)


def _encode_refusal(refusal: Response) -> bytes:
    """Return a temporary refusal as the last event of a stream."""
    found = _RETRY_SECONDS.search(refusal.head)
    wait = 1_000 * int(found[1] if found else 0) + randint(0, _JITTER_MS)  # noqa: S311  spreads load
    return sse.retry(wait) + sse.encode_event(refusal.body, event=UNAVAILABLE)


_NAMES = ("channel", "client_id", "name", "history", "members", "last_event_id", "envelope")
"""Parameters of `HubRoutes.events`."""


def _last(query: dict[str, list[str]], name: str) -> str:
    return query[name][-1] if name in query else ""


def _flag(query: dict[str, list[str]], name: str) -> bool:
    text = _last(query, name)
    if text not in ("", "0", "1"):
        raise InvalidName(f"The parameter {name!r} must be 0 or 1, not {text[:20]!r}.")
    return text == "1"


def _count(query: dict[str, list[str]]) -> int:
    text = _last(query, "history") or "0"
    if not text.isascii() or not text.isdigit() or len(text) > 4 or int(text) > MAX_HISTORY:
        raise InvalidName(f"The history must be a number up to {MAX_HISTORY}, not {text[:20]!r}.")
    return int(text)
