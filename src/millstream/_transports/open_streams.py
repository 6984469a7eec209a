"""Open event streams, calls without a stream, and the HTTP error responses of the MCP endpoint.

Streams are counted against their caps, kept alive by comments, and closed at shutdown. The errors are JSON-RPC errors
that several handlers share.
"""

import asyncio
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from heapq import nlargest
from random import randint
from time import monotonic, time
from typing import Any, NamedTuple, Protocol

from msgspec import Struct, field

from millstream._http.message import (
    JSON_HEAD,
    STREAM_HEAD,
    TEXT_HEAD,
    Callback,
    HttpRequest,
    Response,
    Sink,
    parse_accept,
)
from millstream._protocol.errors import INVALID_REQUEST, SERVER_ERROR, ProtocolError
from millstream._protocol.jsonrpc import RequestId, error_message, refusal_message
from millstream._protocol.principal import Share
from millstream._protocol.revisions import Revision
from millstream._protocol.sse import COMMENT, retry
from millstream._recent import Recent
from millstream._server.address import Address
from millstream._server.calls.call import UNKNOWN_CLIENT, Call, ReplyChannel
from millstream._server.calls.services import expiry_of, principal_id
from millstream._stores.base import Log, StreamSealed
from millstream._stores.memory.log import SLACK, ExpiryHeap


class NullReplyChannel(ReplyChannel):
    """A reply channel that discards everything.

    Use it for callers that receive only the response: REST, and the WebSocket's JSON dialect.
    """


NULL_REPLY = NullReplyChannel()


def silent_call(revision: Revision, method: str, params: bytes, *, id: RequestId = 0, **way: Any) -> Call:
    """Return a call without a client, for `Dispatcher.outcome`. `way` has the transport's fields."""
    return Call(
        revision=revision, id=id, method=method, params=params, client=UNKNOWN_CLIENT, reply_channel=NULL_REPLY, **way
    )


_MAX_UNENDED = 10_000
_AWAY_MS = (1_000, 4_000)
"""Range of reconnection times sent when the server closes streams, with jitter."""
_SAME = 1.0
"""Maximum difference in seconds between the expiry times of a credential's streams."""

Code = Callable[[bytes], bytes]
Finish = Callable[[Callback], None]
"""Ends a stream's subscriptions with their results, then calls back. A second call doesn't wait."""


class TakeoverListener(Protocol):
    """A stream that can be taken over by another connection."""

    def leave(self) -> None:
        """Stop writing. Called when another connection takes over the stream."""


class _OpenStream(NamedTuple):
    """The functions that write to a stream and end it."""

    sink: Sink
    kind: tuple[str, str]
    """Transport and revision."""
    code: Code
    opened: float
    end: Callback
    dismiss: Callback
    """Ends the stream because its owner lost access."""
    owner: str | None
    """The principal, empty for an anonymous caller, or None for the stream of a call."""
    finish: Finish | None
    path: str = ""
    """Path of the request, except for the stream of a call."""


class OpenStreams(Struct, eq=False):
    """All open streams of one server."""

    _share: Share
    """All streams and subscriptions, but not the streams of calls, which have their own cap."""
    max_age: float = math.inf
    wall: Callable[[], float] = time
    """This machine's clock, which credentials are checked against, not the store's."""
    _numbered: dict[int, _OpenStream] = {}
    _number: int = 0
    _ends: ExpiryHeap[int] = field(default_factory=ExpiryHeap[int])
    """Expiry times of the streams' credentials."""
    by_kind: Counter[tuple[str, ...]] = field(default_factory=Counter[tuple[str, ...]])
    """Number of streams per transport and revision."""
    lines: dict[str, TakeoverListener] = {}
    """Reply channels of running calls, by log name. A channel leaves when another connection resumes its stream."""
    unended: Recent[str, Callable[[], Awaitable[None]]] = field(default_factory=lambda: Recent(_MAX_UNENDED))
    """By log name, functions that write an end that the store hasn't accepted yet. Retried at each heartbeat.
    """

    def __len__(self) -> int:
        return len(self._numbered)

    def by_transport(self) -> dict[str, int]:
        """Return the number of streams by transport."""
        found: Counter[str] = Counter()
        for kind, count in self.by_kind.items():
            found[kind[0]] += count
        return dict(found)

    def slowest(self, count: int) -> list[tuple[str, str, float, int]]:
        """Return the streams with the most unread bytes, then the oldest.

        For each stream: transport, owner (empty for none), age in seconds, and unread bytes. Iterates over all streams.
        """
        now = monotonic()
        found = (
            (each.kind[0], each.owner or "", now - each.opened, each.sink.buffered) for each in self._numbered.values()
        )
        return nlargest(count, found, key=lambda each: (each[3], each[2]))

    def full(self, caller: HttpRequest) -> bool:
        """Return whether a caller has reached its cap of streams."""
        return not self._share.has_room(caller.owner)

    def open(self, request: HttpRequest, kind: tuple[str, str] = ("http", "")) -> Sink | None:
        """Open an event stream as the reply to a request. Return None if the caller has reached the cap."""
        if self.full(request):
            return None
        sink = request.open(200, STREAM_HEAD)
        self.add(sink, request, kind)
        return sink

    def add(
        self,
        sink: Sink,
        caller: HttpRequest | None = None,
        kind: tuple[str, str] = ("http", ""),
        *,
        code: "Code" = bytes,
        end: Callback | None = None,
        dismiss: Callback | None = None,
        finish: Finish | None = None,
    ) -> int:
        """Track a stream until it closes, or the credential of its caller expires. Return its number.

        Args:
            sink: The stream.
            caller: The caller whose cap it counts against, or None for the stream of a call.
            kind: Transport and revision, for `by_kind`.
            code: Applies the content coding of the stream.
            end: Ends the stream, if not by its `close`.
            dismiss: Ends the stream when its owner loses access, if not by `end`.
            finish: Runs before `end` when the stream reaches its maximum age, if it can carry subscriptions.
        """
        end = end or sink.close
        owner, path = (None, "") if caller is None else (principal_id(caller.principal), caller.path)
        self._number = number = self._number + 1
        self._numbered[number] = _OpenStream(sink, kind, code, monotonic(), end, dismiss or end, owner, finish, path)
        self._ends.set(number, math.inf if caller is None else expiry_of(caller.principal))
        self.by_kind[kind] += 1
        counted = caller.owner if caller is not None and self._share.take(caller.owner) else None
        sink.on_close(partial(self._forget, number, counted))
        return number

    def subscribe(self, number: int, caller: HttpRequest, finish: Finish) -> None:
        """End the stream of a call when its caller loses access. The call is now a subscription, which is already
        counted. See `add`.
        """
        if number in self._numbered:
            owner = principal_id(caller.principal)
            stream = self._numbered[number]._replace(owner=owner, finish=finish, path=caller.path)
            self._numbered[number] = stream
            self._ends.set(number, expiry_of(caller.principal))

    def _forget(self, number: int, counted: str | None) -> None:
        self.by_kind[self._numbered.pop(number).kind] -= 1
        self._ends.forget(number)
        if counted is not None:
            self._share.leave(counted)

    def beat(self) -> None:
        """Send a comment to the event streams as a sign of life. End streams over the maximum age.

        Calls have their own time limit.
        """
        oldest = monotonic() - self.max_age
        for each in list(self._numbered.values()):
            if each.opened < oldest and each.owner is not None:
                self._finish(each)
            else:
                each.sink.write(each.code(COMMENT))

    def end_at(self, address: Address) -> None:
        """End the streams of an address, with a reconnection time."""
        for each in list(self._numbered.values()):
            if each.path in address.endpoints:
                self._finish(each)

    def _finish(self, stream: _OpenStream) -> None:
        end = stream.end
        self._send_away(stream, end if stream.finish is None else partial(stream.finish, end))

    def end_of(self, gone: Callable[[str], bool]) -> None:
        """End the streams of owners that have lost access."""
        for each in list(self._numbered.values()):
            if each.owner is not None and gone(each.owner):
                each.dismiss()

    def end_revoked(self, owner: str, until: float) -> None:
        """Close streams whose credential was revoked before its expiry."""
        for number, each in list(self._numbered.items()):
            if each.owner == owner and abs(self._ends.expires_at(number) - until) < _SAME:
                self._send_away(each, each.dismiss)

    def end_expired(self) -> None:
        """End the streams whose credentials have expired. Clients reconnect with new ones."""
        for number in self._ends.due(self.wall(), len(self._numbered) * 2 + SLACK):
            if (each := self._numbered.get(number)) is not None:
                self._send_away(each, each.dismiss)

    async def touch(self, log: Log, ttl: float) -> None:
        """Extend the logs of running calls, so a call that ends later can still be resumed. Write pending ends of
        logs.
        """
        for name, end in list(self.unended.items()):
            with suppress(StreamSealed):
                await end()
            self.unended.pop(name, None)
        done = await asyncio.gather(*(log.touch(name, ttl) for name in self.lines), return_exceptions=True)
        for failure in done:
            if isinstance(failure, BaseException):
                raise failure

    def close(self) -> None:
        """End all streams, with a reconnection time."""
        for each in list(self._numbered.values()):
            self._send_away(each, each.end)

    @staticmethod
    def _send_away(stream: _OpenStream, end: Callback) -> None:
        stream.sink.write(stream.code(retry(randint(*_AWAY_MS))))  # noqa: S311  spreads load, hides nothing
        end()


SESSION_NOT_FOUND = -32001
"""The usual code in the body of the 404. Clients act on the status."""


def rpc_refusal(status: int, code: int, message: str, *, head: bytes = b"") -> Response:
    """Return an HTTP response with a JSON-RPC error without an id."""
    return Response(error_message(None, code, message), status, JSON_HEAD + head)


def error_response(exc: ProtocolError, request_id: RequestId | None = None) -> Response:
    """Return an error as an HTTP response. If it has no header lines of its own, a 503 includes a retry time."""
    head = JSON_HEAD + (exc.head or (b"retry-after: 1\r\n" if exc.status == 503 else b""))
    return Response(refusal_message(request_id, exc), exc.status, head)


NOT_JSON = rpc_refusal(
    415,
    INVALID_REQUEST,
    "Unsupported media type. Send a JSON-RPC message with content-type application/json, without a content coding.",
)
_NO_STREAM = rpc_refusal(
    406, INVALID_REQUEST, "Not acceptable. GET opens a stream: accept text/event-stream. Send messages with POST."
)
_FOR_CLIENTS = Response(
    b"This is the address of an MCP server. Add it to an MCP client, or look at it with: millstream list URL\n",
    406,
    TEXT_HEAD,
)
"""The response to browsers, which can't show the stream."""
TOO_MANY_STREAMS = rpc_refusal(
    503, SERVER_ERROR, "Too many open streams. Close some, or try again later.", head=b"retry-after: 5\r\n"
)


def drop_head(request: HttpRequest) -> None:
    """Drop the headers and query of a request that nothing reads anymore. Its stream can be open for a day."""
    request.raw_headers, request.headers, request.query = (), {}, b""


def no_stream(accept: bytes | None) -> Response | None:
    """Return the error for a GET by a client that can't read a stream, or by a browser, or None for others."""
    known = parse_accept(accept)
    if known.page:
        return _FOR_CLIENTS
    return None if known.stream else _NO_STREAM


def unknown_session() -> ProtocolError:
    """Return the error for a session that doesn't exist or has ended."""
    text = "Session not found. The connection was reset by a restart. Connect again."
    return ProtocolError(SESSION_NOT_FOUND, text, status=404)


def missing_session() -> ProtocolError:
    """Return the error for a request without the session that it needs."""
    text = "Bad request: Mcp-Session-Id is missing. Send the id from the result of initialize."
    return ProtocolError(INVALID_REQUEST, text, status=400)
