"""A client for the hub of another server. Its subscriptions reconnect and resume like those of ``/hub.js``.

A subscription has its own event stream or WebSocket, and reads it only while the program waits for it: at the start of
``async with``, and for the next event. A program that's too slow fills the buffers of its connection, the server
disconnects it, and it resumes, after a gap if it missed events.
"""

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from math import inf
from typing import Any, Literal, Self, TypeVar
from urllib.parse import urlencode
from uuid import uuid4
from weakref import WeakSet

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from millstream._confidential import Confidential
from millstream._copies import NotCopyable
from millstream._http.client import (
    ClientError,
    ConnectFailed,
    ConnectionLost,
    InvalidResponse,
    TargetError,
)
from millstream._http.client.connection import HttpReply
from millstream._http.client.pool import ConnectionPool
from millstream._http.client.request import encode_headers, encode_request
from millstream._http.client.url import parse_url
from millstream._override import override
from millstream._protocol.redaction import redact
from millstream._protocol.sse import SseEvent
from millstream._tasks import retry_delay
from millstream._version import __version__
from millstream.hub._event import CUT, GAP, UNAVAILABLE, HubEvent, PublishResult
from millstream.hub._presence import MemberList
from millstream.hub._streams import (
    MAX_BODY,
    RESPONSE_TIMEOUT,
    TOO_SLOW,
    EventStream,
    HubRefused,
    HubSocket,
    HubStream,
    Problem,
    clean,
    decode,
    open_hub_socket,
)

T = TypeVar("T")
Token = str | Callable[[], str | Awaitable[str]]
HubTransport = Literal["sse", "websocket"]

logger = logging.getLogger("millstream.hub")

_STABLE_SECONDS = 2.0
"""A stream that ends earlier counts as a failure."""
_MAX_RETRY_AFTER = 300.0
_PUBLISH_SECONDS = 60.0
"""Seconds in which requests are retried. Hubs recognize an id for two minutes."""
_MAX_STREAMS = 1000
_REFUSALS = frozenset({400, 401, 403})
_TEMPORARY = (ConnectFailed, ConnectionLost, InvalidResponse)


class EventGap(Struct, frozen=True):
    """Events are missing from a subscription: ``if isinstance(event, EventGap): load_everything_again()``."""

    reason: str
    """``trimmed`` (the hub no longer keeps the events), ``expired``, ``lost``, ``epoch``, or ``unknown``, after which
    events may be repeated.
    """


class HubSubscription(NotCopyable):
    """A subscription to channels of a hub: ``async for event in feed.subscribe("orders.*"): print(event.data)``.

    It connects when the program waits for the first event, or at the start of ``async with``: each event that's
    published afterwards arrives. It reconnects after a failure and resumes, so events are neither lost nor repeated,
    and an `EventGap` reports those that the hub no longer has. It ends when it's closed. Read it in one task at a time.

    It raises `HubRefused` if the server rejects the subscription, and `ClientError` if it isn't a hub.
    """

    _COPY_ADVICE = "Subscribe to the same channels again."

    def __init__(
        self, open: Callable[[str], Awaitable[Any]], title: str, last_event_id: str, max_refusals: int
    ) -> None:
        """`HubClient.subscribe` creates it."""
        self._open = open
        self._title = title
        self._max_refusals = max_refusals
        self._position = last_event_id
        self._stream: HubStream | None = None
        self._events = deque[SseEvent]()
        self._closed = False
        self._failures = 0
        self._refusals = 0
        self._opened_at = inf
        self._retry_at = 0.0
        self._wake = asyncio.Event()

    @property
    def position(self) -> str:
        """The position after the last event that was read, to resume from in another run of the program."""
        return self._position

    @property
    def closed(self) -> bool:
        """Whether it was closed, so that its loop ends."""
        return self._closed

    async def __aenter__(self) -> Self:
        while self._opened_at == inf and not self._closed:
            if self._events:
                self._read(self._events.popleft())
            else:
                await self._advance()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        self._disconnect()  # `break` leaves the loop without closing

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> HubEvent | EventGap:
        while not self._closed:
            if self._events:
                event = self._events.popleft()
                self._position = event.id or self._position
                if (found := self._read(event)) is not None:
                    return found
            else:
                await self._advance()
        self._disconnect()  # it may have been closed while it connected
        raise StopAsyncIteration

    def close(self) -> None:
        """Unsubscribe. A task that waits for the next event stops."""
        self._closed = True
        self._disconnect()
        self._wake.set()

    def retry_now(self) -> None:
        """Reconnect immediately, if it's waiting."""
        self._retry_at = 0.0
        self._wake.set()

    async def _advance(self) -> None:
        """Connect or read. The state stays valid if the task is canceled."""
        try:
            if self._stream is None:
                await self._connect()
            else:
                await self._receive(self._stream)
        except HubRefused as exc:
            self._refusals += exc.retry_after is None
            if self._refusals > self._max_refusals:
                raise
            self._fail(exc)
        except _TEMPORARY as exc:
            if exc.status == HTTPStatus.NOT_FOUND and not self._failures:  # later, a proxy may answer for the server
                raise
            self._fail(exc)

    async def _connect(self) -> None:
        """Wait until the next attempt and connect."""
        self._wake.clear()
        with suppress(TimeoutError):
            if self._retry_at > asyncio.get_running_loop().time():
                async with asyncio.timeout_at(self._retry_at):
                    await self._wake.wait()
        if not self._closed:
            self._stream = await self._open(self._position)

    async def _receive(self, stream: HubStream) -> None:
        self._events.extend(await stream.read())
        if self._opened_at == inf and (self._events or stream.position):
            self._refusals = 0
            if all(event.event != UNAVAILABLE for event in self._events):
                self._opened_at = asyncio.get_running_loop().time()
                logger.info("Subscribed to %s", self._title)
        if not self._events:
            self._position = stream.position or self._position

    def _read(self, event: SseEvent) -> HubEvent | EventGap | None:
        data = event.data.encode()
        if event.event not in (GAP, CUT, UNAVAILABLE):
            return decode(data, HubEvent)
        problem = decode(data, Problem)
        if event.event == GAP:
            return EventGap(problem.reason)
        self._fail(ConnectionLost(clean(problem.detail) or TOO_SLOW))
        return None

    def _fail(self, error: ClientError) -> None:
        """Disconnect and set the time of the next attempt."""
        retry_ms = self._stream.retry_ms if self._stream is not None else None
        self._disconnect()
        if self._closed:
            return
        now = asyncio.get_running_loop().time()
        if now - self._opened_at > _STABLE_SECONDS:
            self._failures = 0
        retry_after = error.retry_after or (retry_ms or 0) / 1000
        delay = min(retry_after, _MAX_RETRY_AFTER) + _back_off(self._failures, error.status)
        self._retry_at = now + delay
        level = logging.INFO if self._failures else logging.WARNING
        # As text, because the error's traceback refers to this subscription, and programs keep records of the log.
        text, more = str(error), {"status": error.status} if error.status else None
        logger.log(level, "Disconnected from %s, retrying in %.1f s: %s", self._title, delay, text, extra=more)
        self._failures += 1
        self._opened_at = inf

    def _disconnect(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None


def _back_off(failures: int, status: int = 0) -> float:
    """Return 0.5, 1, 2, … and at most 15 seconds, ± 50 %. Servers count failed sign-ins, so those wait longer."""
    return retry_delay(failures, 0.75, 90 if status == 401 else 22.5, jitter=2 / 3)


class HubClient(Confidential, NotCopyable):
    """A client of a hub: ``async with hub.connect(url) as feed: await feed.publish("news", "Hello")``.

    Args:
        url: See `connect`.
        token: See `connect`.
        tls: See `connect`.
        transport: See `connect`.
    """

    _COPY_ADVICE = "Connect again with the same arguments."

    def __init__(self, url: str, token: Token, tls: ssl.SSLContext | None, transport: HubTransport) -> None:
        if transport not in ("sse", "websocket"):
            raise ValueError(f'The transport must be "sse" or "websocket", not {transport!r}.')
        self._url = parse_url(url)
        if self._url.scheme not in ("http", "https"):
            raise TargetError(f"{url} isn't the URL of a hub. Use the server's URL, such as https://example.com.")
        self._base = self._url.target.partition("?")[0].rstrip("/")
        self._token = token
        self._tls = tls or (ssl.create_default_context() if self._url.secure else None)
        self._pool: ConnectionPool | None = None
        self._subscriptions = WeakSet[HubSubscription]()
        self._uses_sockets = transport == "websocket"
        self.client_id: str = str(uuid4())
        """The id of this client as a member of channels."""

    @override
    def __str__(self) -> str:
        return self._url.origin + self._base

    async def __aenter__(self) -> Self:
        self._pool = ConnectionPool(
            self._url, max_connections=_MAX_STREAMS, max_body=MAX_BODY, connect_timeout=RESPONSE_TIMEOUT,
            tls=self._tls,
        )  # fmt: skip
        return self

    async def __aexit__(self, *exc: object) -> None:
        pool, self._pool = self._pool, None
        for subscription in list(self._subscriptions):
            subscription.close()
        if pool is not None:
            await pool.close()

    def subscribe(
        self, channel: str, *more: str, history: int = 0, last_event_id: str = "", name: str = ""
    ) -> HubSubscription:
        """Return a subscription to channels or patterns, which share one order of events.

        Args:
            channel: A channel, or a pattern such as ``orders.*``.
            more: Further channels and patterns.
            history: Number of newest events that come first, at most 1,000.
            last_event_id: `HubSubscription.position` of an earlier run, or the id of the last event that you have.
                Later events come first, instead of the history.
            name: Makes this client a member of the channels, with this name.

        Raises:
            ValueError: A channel contains a comma.
        """
        channels = (channel, *more)
        if any("," in each for each in channels):  # the server would split it
            raise ValueError("Pass each channel as a separate argument.")
        member = {"client_id": self.client_id, "name": name} if name else {}
        options = {"channel": ",".join(channels), "history": history, **member}
        title = f"{', '.join(channels)} at {self}"
        # A function may return another token after a refusal.
        subscription = HubSubscription(partial(self._open, options), title, last_event_id, int(callable(self._token)))
        self._subscriptions.add(subscription)
        return subscription

    async def publish(
        self, channel: str, data: object, *, event: str | None = None, id: str | None = None
    ) -> PublishResult:
        """Publish an event, and retry for up to 60 seconds if the server can't be reached or its store fails.

        The hub recognizes a repeated id for two minutes, so a retry doesn't publish the event twice.

        Args:
            channel: The channel.
            data: Text, or anything that msgspec encodes as JSON.
            event: Name of the event.
            id: Your own id for the event, up to 200 characters, by default a random one. Publish it again with the same
                id if this method fails.

        Raises:
            HubRefused: The server rejects the event.
            ClientError: The server didn't confirm the event. It may have been published.
            TypeError: The data can't be encoded as JSON.
        """
        message = {"channel": channel, "data": data, "event": event, "id": id or uuid4().hex}
        try:
            body = msgspec.json.encode(message)
        except UnicodeEncodeError as exc:
            raise HubRefused("The event contains half of a surrogate pair.") from exc
        return await self._request("POST", "publish", PublishResult, body)

    async def members(self, channel: str) -> MemberList:
        """Return the members of a channel. To follow them, subscribe to ``$presence.<channel>`` from `event`.

        Args:
            channel: The channel, without wildcards.

        Raises:
            HubRefused: You may not see them.
            ClientError: The server didn't respond.
        """
        return await self._request("GET", f"members?{urlencode({'channel': channel})}", MemberList)

    def retry_now(self) -> None:
        """Reconnect immediately, if a subscription is waiting."""
        for subscription in self._subscriptions:
            subscription.retry_now()

    async def _open(self, options: dict[str, Any], position: str) -> HubStream:
        """Start a subscription with options of the hub's dialect, which are also those of `/events`."""
        start = options | ({"last_event_id": position} if position else {})
        socket = await self._open_socket(msgspec.json.encode({"type": "subscribe", **start}))
        if socket is not None:
            return socket
        reply, token = await self._send("GET", f"events?{urlencode({**start, 'envelope': 1})}", "text/event-stream")
        if reply.status != 200 or reply.stream is None:
            raise self._failure(reply, token, is_stream=True)
        return EventStream(reply.stream)

    async def _open_socket(self, message: bytes) -> HubSocket | None:
        """Return a WebSocket on which a message was sent, or None to use an event stream."""
        if not self._uses_sockets:
            return None
        headers, token = await self._headers()
        scheme = "wss" if self._url.secure else "ws"
        url = replace(self._url, scheme=scheme, target=f"{self._base}/ws")
        try:
            async with asyncio.timeout(RESPONSE_TIMEOUT):
                found = await open_hub_socket(url, headers, self._tls, token, message)
        except TimeoutError as exc:
            raise self._timed_out() from exc
        if not isinstance(found, HttpReply):
            return found
        if found.status != HTTPStatus.UPGRADE_REQUIRED:
            raise self._failure(found, token, is_stream=True)
        logger.warning("A proxy doesn't pass WebSockets on to %s. Using event streams.", self)
        self._uses_sockets = False
        return None

    async def _headers(self) -> tuple[dict[str, str], str]:
        """Return headers for a request, and the token that they contain."""
        self._require_pool()
        token = self._token() if callable(self._token) else self._token
        token = token if isinstance(token, str) else await token
        authorization = {"Authorization": f"Bearer {token}"} if token else {}
        return {"User-Agent": f"millstream/{__version__}", **authorization}, token

    async def _send(self, method: str, path: str, accept: str, body: bytes = b"") -> tuple[HttpReply, str]:
        """Return the reply, and the token that was sent."""
        common, token = await self._headers()
        headers = {
            "Host": self._url.authority,
            "Accept": accept,
            "Accept-Encoding": "identity",
            **({"Content-Type": "application/json"} if body else {}),
            **common,
        }
        request = encode_request(method, f"{self._base}/{path}", encode_headers(headers), body)
        pool = self._require_pool()
        try:
            async with asyncio.timeout(RESPONSE_TIMEOUT):
                return await pool.send(request, repeatable=True), token
        except TimeoutError as exc:
            raise self._timed_out() from exc

    def _timed_out(self) -> ConnectionLost:
        return ConnectionLost(f"{self} didn't respond within {RESPONSE_TIMEOUT:.0f} seconds.")

    def _require_pool(self) -> ConnectionPool:
        if self._pool is None:
            raise ClientError("The client isn't connected. Use `async with hub.connect(…) as feed:`.")
        return self._pool

    def _failure(self, reply: HttpReply, token: str, *, is_stream: bool) -> ClientError:
        """Return the error for a response that can't be used. Streams are retried unless the hub itself refuses."""
        reply.discard()
        status, detail = reply.status, ""
        is_ours = reply.media_type == "application/problem+json"
        if is_ours:
            with suppress(InvalidResponse):
                detail = decode(reply.body, Problem).detail
        location = reply.header(b"location")
        if location:
            detail = f"{self} redirects to {location}. If you trust that server, use its URL."
        detail = redact(detail, {token})
        is_final = is_ours and status in _REFUSALS if is_stream else status < 500
        kind = HubRefused if location or is_final else ConnectionLost
        missing = f"{self} has no hub. Check the URL, which ends before /mcp, and that the server serves its hub."
        fallback = missing if status == HTTPStatus.NOT_FOUND else f"{self} responded with status {status}."
        error = kind(clean(detail) or fallback)
        error.status, error.detail = status, detail
        error.retry_after = reply.retry_after
        return error

    async def _request(self, method: str, path: str, kind: type[T], body: bytes = b"") -> T:
        now = asyncio.get_running_loop().time
        attempt, end = 0, now() + _PUBLISH_SECONDS
        while True:
            try:
                reply, token = await self._send(method, path, "application/json", body)
                if reply.status != 200:
                    raise self._failure(reply, token, is_stream=False)
                return decode(reply.body, kind)
            except (HubRefused, *_TEMPORARY) as exc:
                delay = (exc.retry_after or 0.0) + _back_off(attempt)
                if (isinstance(exc, HubRefused) and exc.retry_after is None) or now() + delay > end:
                    raise
                if not attempt:
                    logger.warning("Retrying for up to %.0f s: %s", _PUBLISH_SECONDS, exc)
            attempt += 1
            await asyncio.sleep(delay)


def connect(
    url: str, *, token: Token = "", tls: ssl.SSLContext | None = None, transport: HubTransport = "sse"
) -> HubClient:
    """Connect to the hub of a server.

    Args:
        url: The server's URL, such as ``https://example.com``, without ``/mcp``.
        token: A key, an access token, or a function that returns a current one for each request and may be async.
        tls: Certificates to trust or present. By default, the system's.
        transport: How subscriptions receive events: ``"sse"`` for event streams, or ``"websocket"`` for a WebSocket
            each. If a proxy doesn't pass these on, event streams are used.

    Raises:
        TargetError: The URL isn't one of a server.

    Example:
        async with hub.connect("https://example.com", token=key) as feed:
            async for event in feed.subscribe("orders.*", history=10):
                print(event)
    """
    return HubClient(url, token, tls, transport)
