"""The options of a client, the interface of transports, and their common code.

`DuplexTransport` matches responses to requests on connections that carry whole messages in both directions: stdio,
WebSocket, HTTP+SSE, and memory. `EventReader` reads messages from event streams, across reconnections. Targets without
an address are server objects of this process, and objects that create transports.
"""

import asyncio
import contextlib
import logging
import re
import ssl
from codecs import BOM_UTF8
from collections import deque
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from msgspec import UNSET, Struct, UnsetType, field

from millstream._confidential import Confidential
from millstream._copies import NotCopyable
from millstream._http.client import Body
from millstream._http.client.connection import too_large
from millstream._protocol.errors import ProtocolError
from millstream._protocol.foreign import read_foreign
from millstream._protocol.handlers import NotificationFilters
from millstream._protocol.jsonrpc import MALFORMED, Envelope, decoder, encode, notification_message, split_batch
from millstream._protocol.notifications import CancelledNotificationParams, read_cancellation
from millstream._protocol.redaction import MAX_TEXT, redact_foreign
from millstream._protocol.revisions import Revision
from millstream._protocol.sse import Decoder, SseEvent
from millstream._suggestions import SuggestionMeta
from millstream._tasks import Tasks, cancel_reason, has_failed, retry_delay
from millstream.client._endpoint import Auth, redact_error
from millstream.client._errors import ClientError, ConnectionLost, InvalidResponse, client_logger

if TYPE_CHECKING:
    from millstream._server.dispatch import Dispatcher


class Options(Confidential, Struct, frozen=True, kw_only=True, metaclass=SuggestionMeta):
    """Limits, names, and connection details. ``Client(url, options=Options(connect_timeout=3))``"""

    name: str = "millstream"
    """Name that the client sends to servers."""
    version: str = ""
    """Version of the client. Empty means Millstream's version."""
    connect_timeout: float = 10.0
    """Seconds to wait for a connection, or for a process to start."""
    probe_timeout: float = 3.0
    """Seconds to wait for `server/discover` before also trying the handshake."""
    max_call_seconds: float = 3600.0
    """Maximum seconds for a call, even with progress."""
    max_bytes: int = 64 * 1024 * 1024
    """Maximum size of a message from the server, or of all pages of a list together, in bytes."""
    max_queued_messages: int = 10_000
    """Maximum messages waiting for your handlers. A server that sends more is disconnected."""
    max_connections: int = 100
    """Maximum open HTTP connections. Further calls wait for a free one."""
    max_rounds: int = 32
    """Maximum rounds of questions before the result of a call."""
    max_pages: int = 1000
    """Maximum pages per list."""
    log_level: str = ""
    """Minimum severity of log messages to request. Empty leaves it to the server."""
    cache: bool = True
    """Whether to cache lists and resources for the time that the server allows, up to `max_bytes`."""
    env: Mapping[str, str] = {}
    """Environment variables for a server that the client starts, in addition to `HOME`, `PATH`, and the like."""
    cwd: str | Path | None = None
    """Working directory of a server that the client starts."""
    stderr: Callable[[str], object] | bool | None = None
    """Handling of a server process's standard error: ``True`` prints it to ours, ``False`` drops it, and a function
    receives each line. ``None`` prints it on a terminal and in pytest.
    """
    tls: ssl.SSLContext | None = None
    """Certificates to trust or present, by default those of the system."""
    extra_capabilities: Mapping[str, object] = {}
    """Capabilities to declare in addition to the handlers' capabilities."""
    auth: Auth | None = None
    """Source of credentials that change. Use headers for fixed ones."""


_logger = client_logger(__name__)


class _Id(Struct):
    """The id of a response."""

    id: int
    method: UnsetType = UNSET


_decode_id = decoder(_Id)


def answered_id(data: bytes) -> int:
    """Return the request id in an invalid response, or 0 if there's none. With the id, the caller fails at once instead
    of timing out.
    """
    try:
        return _decode_id(data).id
    except MALFORMED:
        return 0


class SkipLog(Struct):
    """Logs only the first skipped message of a connection, because servers that send one often send many."""

    _logged: bool = False

    def __call__(self, why: str, data: bytes = b"") -> None:
        """Log why a message was skipped, unless another one was logged."""
        if not self._logged:
            self._logged = True
            _logger.warning(
                "Skipped a message from the server; others like it will be skipped without a warning. %s: %.80s",
                why,
                redact_foreign(repr(data[:MAX_TEXT])),
            )


_LINE_BREAKS = bytes.maketrans(b"\r\n", b"  ")


def one_line(message: bytes) -> bytes:
    """Return a message without line breaks, which end messages on stdio and data in event streams.

    JSON has them only between tokens, and a gateway forwards parts of messages as they were received.
    """
    return message.translate(_LINE_BREAKS) if b"\n" in message or b"\r" in message else message


def messages_in(data: bytes) -> list[bytes]:
    """Return one message, or those of a batch, which 2025-03-26 allows and some servers always send.

    Raises:
        ProtocolError: The batch is malformed.
    """
    data = one_line(data)
    start = data.removeprefix(BOM_UTF8).lstrip()
    return split_batch(start, _MAX_BATCH) if start[:1] == b"[" else [data]


_messages = logging.getLogger("millstream.client.messages")


def log_message(direction: str, message: bytes) -> None:
    """Log a message as it's sent or received, at level DEBUG of ``millstream.client.messages``."""
    if _messages.isEnabledFor(logging.DEBUG):
        _messages.debug("%s %s", direction, message.decode("utf-8", "replace"))


class TransportRequest(Struct, gc=False):
    """One request to send: ``await transport.exchange(TransportRequest(1, "ping", body))``."""

    id: int
    method: str
    body: bytes
    """The encoded message."""
    name: str = ""
    """Value of `Mcp-Name`, for transports with headers."""
    params: Mapping[str, str] = {}
    """`Mcp-Param-…` headers."""
    revision: Revision | None = None
    """Revision of the message, before one is negotiated."""
    repeatable: bool = False
    """Whether the request only reads, so it can be sent again after a broken connection."""
    owner: str = ""
    """See `RawRequest.owner`."""
    said: bytes = b""
    """See `RawRequest.said`."""


class StreamReopened(ConnectionLost):
    """Why the server may have lost subscriptions, but not the session: after a restart, it may have kept only that."""


class Listener(Protocol):
    """Receives what the server sends outside of responses."""

    subscribed: asyncio.Event
    """Set while there are subscribers for messages outside calls."""

    @property
    def filters(self) -> NotificationFilters | None:
        """Notification filters, if there are extensions."""
        ...

    def receive(self, message: Envelope, transport: "Transport", request_id: int = 0) -> None:
        """Receive a request or notification.

        Args:
            message: The message.
            transport: The connection that it arrived on.
            request_id: The request on whose stream it arrived, or 0 if it's unknown.
        """

    def on_interruption(self, transport: "Transport", fault: ClientError | None) -> None:
        """Report that messages outside of calls have stopped or were missed.

        Args:
            transport: The connection.
            fault: Why they have stopped, or None if some were missed.
        """


class Transport(Protocol):
    """A connection to one server. Exchanges can run concurrently."""

    @property
    def name(self) -> str:
        """Name, as in `Client.transport`."""
        ...

    @property
    def lost(self) -> bool:
        """Whether the connection is lost for good, so a new one is needed."""
        ...

    @property
    def has_session(self) -> bool:
        """Whether the server has a session for this client. Without one, a handshake-era server can't ask questions."""
        return True

    async def open(self) -> None:
        """Connect, if this transport has a connection.

        Raises:
            ClientError: The connection failed.
        """

    def set_revision(self, revision: Revision) -> None:
        """Use the negotiated revision from now on.

        Args:
            revision: The revision.
        """

    async def exchange(self, request: TransportRequest) -> Envelope:
        """Send a request and wait for the response. Canceling the caller cancels the request.

        Args:
            request: The request.

        Raises:
            ClientError: There was no response.
        """
        ...

    async def send(self, message: bytes, method: str) -> None:
        """Send a notification, or a response to a server request.

        Args:
            message: The encoded message.
            method: Method of the notification, or empty for a response.

        Raises:
            ClientError: The message couldn't be sent.
        """

    async def close(self) -> None:
        """End the session and close connections and processes."""


def get_secrets(transport: Transport) -> Collection[str]:
    """Return the credentials that a transport sends, or that it started the server with. Errors must not contain them.

    Transports of programs, which only have the methods of `Transport`, have none.
    """
    found: Collection[str] = getattr(transport, "secrets", ())
    return found


_MAX_BATCH = 1000
_UNKNOWN_METHOD = re.compile(rb'"code"\s*:\s*-32601\b')
_CLIPPED_RESPONSE = re.compile(
    rb"""\{\s*(?:"jsonrpc"\s*:\s*"2\.0"\s*,\s*)?"id"\s*:\s*([0-9]{1,18})\s*,\s*"(?:result|error)".*
    | \{\s*"(?:result|error)".*,\s*"id"\s*:\s*([0-9]{1,18})\s*\}""",
    re.DOTALL | re.VERBOSE,
)
"""Matches an id before the result or at the end, where official SDKs write it. Elsewhere, it could belong to the
result."""


async def send_cancellation(transport: Transport, listener: Listener, request_id: int, reason: str) -> None:
    """Notify the server that the caller of a request has stopped waiting."""
    method, params = "notifications/cancelled", CancelledNotificationParams(request_id, reason or None)
    message = notification_message(method, params)
    if listener.filters is not None:
        message = listener.filters.filter_outgoing(message)
    if message:
        with contextlib.suppress(ClientError):  # the request ended with the connection
            await transport.send(message, method)


class DuplexTransport(NotCopyable):
    """A connection that carries whole messages in both directions: ``class PipeTransport(DuplexTransport): …``.

    Subclasses open the connection, write messages, pass incoming data to `receive`, and call `end` when the connection
    ends.

    Args:
        listener: Receives what the server sends outside of responses.
        background: Owns the tasks of the transport.
    """

    name: str
    has_session = True

    def __init__(self, listener: Listener, background: Tasks) -> None:
        self._listener = listener
        self._background = background
        self._waiting: dict[int, asyncio.Future[Envelope]] = {}
        self._subscriptions: dict[str, asyncio.Future[Envelope]] = {}
        """Request id of a `subscriptions/listen` as text -> its response."""
        self._last_id = 0
        self._refusable = 0
        """Notifications that the server may still refuse."""
        self.skip: Callable[[str, bytes], None] = SkipLog()
        self.fault: ClientError | None = None
        """Why the connection has ended."""

    @property
    def secrets(self) -> Collection[str]:
        """The credentials that it sends, or that it started the server with."""
        return ()

    @property
    def lost(self) -> bool:
        """Whether the connection has ended."""
        return self.fault is not None

    async def open(self) -> None:
        """Connect."""
        raise NotImplementedError

    async def close(self) -> None:
        """Disconnect."""
        raise NotImplementedError

    def set_revision(self, revision: Revision) -> None:
        """Do nothing, because most of these transports don't depend on the revision.

        Args:
            revision: The negotiated revision.
        """

    async def send(self, message: bytes, method: str) -> None:
        """Send a notification or a response.

        Args:
            message: The encoded message.
            method: Method of the notification, or empty for a response.
        """
        if self.fault is not None:
            raise self.fault
        self._refusable += bool(method)
        await self._write(message)

    async def _write(self, message: bytes) -> None:
        """Send one message on a connection that hasn't ended, waiting while the peer reads slowly."""
        raise NotImplementedError

    async def exchange(self, request: TransportRequest) -> Envelope:
        """Send a request and wait for the response. Notify the server if the caller is canceled.

        Args:
            request: The request.
        """
        if self.fault is not None:
            raise self.fault
        waiter: asyncio.Future[Envelope] = asyncio.get_running_loop().create_future()
        self._waiting[request.id] = waiter
        if request.method == "subscriptions/listen":
            self._subscriptions[str(request.id)] = waiter
        self._last_id = max(self._last_id, request.id)
        try:
            await self._write(request.body)
            return await waiter
        except asyncio.CancelledError as exc:
            # `initialize` can't be canceled:
            # https://modelcontextprotocol.io/specification/2025-11-25/basic/utilities/cancellation
            if request.method != "initialize" and self.fault is None:
                self._background.spawn(send_cancellation(self, self._listener, request.id, cancel_reason(exc)))
            raise
        finally:
            del self._waiting[request.id]
            self._subscriptions.pop(str(request.id), None)
            has_failed(waiter)  # retrieves its error, in case the write failed first

    def receive(self, data: bytes, request_id: int = 0) -> None:
        """Receive one message or a batch. Invalid messages are skipped, as official clients do.

        Args:
            data: JSON of the message or batch.
            request_id: The request that it belongs to, or 0 if it's unknown.
        """
        try:
            items = messages_in(data)
        except ProtocolError as exc:
            self.skip(exc.message, data)
            return
        for item in items:
            try:
                self.deliver(read_foreign(item), request_id)
            except ProtocolError as exc:
                waiter = self._waiting.get(answered_id(item))
                if waiter is not None and not waiter.done():
                    waiter.set_exception(InvalidResponse(f"The server sent an invalid response. {exc.message}."))
                self.skip(exc.message, item)

    def refuse(self, clipped: bytes, error: ClientError) -> bool:
        """Fail the request of a response when only the start and end of the response are known. Return whether they
        contain the request's id.

        Args:
            clipped: Start and end of the response.
            error: The error of the request.
        """
        match = _CLIPPED_RESPONSE.fullmatch(clipped)
        if match is None:
            return False
        waiter = self._waiting.get(int(match[1] or match[2]))
        if waiter is not None and not waiter.done():
            waiter.set_exception(error)
        return True

    def _end_subscription(self, message: Envelope) -> bool:
        """End the subscription that a server cancels. Return False if the cancellation is about another request.

        https://modelcontextprotocol.io/specification/2026-07-28/basic/patterns/subscriptions
        """
        waiter = self._subscriptions.get(str(read_cancellation(message.params)[0]))
        if waiter is None or waiter.done():
            return False
        filters = self._listener.filters
        if filters is None or filters.filter_incoming(message) is not None:
            waiter.set_result(Envelope(None, "", b"", b'{"resultType":"complete"}'))
        return True

    def deliver(self, message: Envelope, request_id: int = 0) -> None:
        """Receive one decoded message.

        Args:
            message: The message.
            request_id: The request that it belongs to, or 0 if it's unknown.
        """
        if not message.is_answer:
            if self._subscriptions and message.method == "notifications/cancelled" and self._end_subscription(message):
                return
            try:
                self._listener.receive(message, self, request_id)
            except ClientError as exc:
                self.end(exc)
            return
        answered = message.id
        if answered is None and self._refusable and _UNKNOWN_METHOD.search(message.error):
            self._refusable -= 1  # some servers reject notifications that they don't know
        elif answered is None and len(self._waiting) == 1:
            answered = next(iter(self._waiting))  # the server couldn't parse the only request
        waiter = self._waiting.get(answered) if isinstance(answered, int) else None
        if waiter is not None:
            if not waiter.done():
                waiter.set_result(message)
        elif not isinstance(answered, int) or answered > self._last_id:
            # A smaller id is a late response to a canceled request.
            self.skip("Response with an unknown id", encode(answered))

    @property
    def waiting(self) -> int:
        """Number of pending requests."""
        return len(self._waiting)

    def end(self, fault: ClientError | None = None) -> None:
        """End the connection and fail all pending requests.

        Args:
            fault: Why it has ended.
        """
        if self.fault is not None:
            return
        self.fault = fault = fault or ConnectionLost("The server closed the connection.")
        redact_error(fault, self.secrets)
        for waiter in self._waiting.values():
            if not waiter.done():
                waiter.set_exception(fault)
        self._listener.on_interruption(self, fault)


_MIN_WAIT = 0.1
"""Minimum seconds between connections, even if the server requests less."""


class EventReader(Struct, eq=False):
    """Reads successive connections of one stream and keeps the last event id and the delay between them."""

    _max: int
    _skip: Callable[[str, bytes], None] = field(default_factory=SkipLog)
    _request_id: int = 0
    _retry_ms: int | None = None
    last_event_id: str = ""
    attempts: int = 0
    """Connection attempts since the last message."""
    _stream: Body | None = None
    _decoder: Decoder | None = None
    """Set while the stream is open."""
    _events: deque[SseEvent] = field(default_factory=deque[SseEvent])
    _batch: deque[bytes] = field(default_factory=deque[bytes])
    """Received messages that haven't been read yet."""
    _counted_bytes: int = 0
    """Counted bytes of the event that's being received."""
    response: Envelope | None = None
    """The response, if it arrived on another stream."""

    def set_response(self, answer: Envelope) -> None:
        """Provide the response from another stream and stop reading."""
        self.response = answer
        self.close()

    def attach(self, stream: Body) -> None:
        """Read from this connection from now on."""
        self.close()
        self._stream = stream
        self._decoder = Decoder(self._max, last_event_id=self.last_event_id)
        self._events.clear()

    def close(self) -> None:
        """Close the current connection."""
        if self._stream is not None:
            self._stream.count(self._counted_bytes, 0)
            self._counted_bytes = 0
            self._stream.close()
            self._stream = None

    async def event(self) -> SseEvent | None:
        """Return the next event, or None when the connection has ended.

        Raises:
            TooLarge: The event is larger than allowed.
            ConnectionLost: The connection broke.
        """
        while not self._events:
            stream, decoder = self._stream, self._decoder
            chunk = await stream.read() if stream is not None else b""
            if stream is None or decoder is None or stream is not self._stream or not chunk:
                return None
            try:
                self._events.extend(decoder.feed(chunk))
            except ProtocolError as exc:
                raise too_large(self._max) from exc
            self._counted_bytes = stream.count(self._counted_bytes, decoder.unfinished_bytes)
            if decoder.retry_ms is not None:
                self._retry_ms = decoder.retry_ms
            if not self._events:
                self.last_event_id = decoder.last_event_id
            lines, decoder.line_count = decoder.line_count, 0
            if pause := stream.inflow.lines.take(lines, asyncio.get_running_loop().time()):
                await asyncio.sleep(pause)
        event = self._events.popleft()
        self.last_event_id = event.id  # an empty id means that there's nothing to resume from
        return event

    async def message(self) -> Envelope | None:
        """Return the next message, or None when the connection has ended. Skips other events.

        Raises:
            InvalidResponse: The response is invalid.
        """
        while True:
            while not self._batch:
                event = await self.event()
                if event is None:
                    return self.response
                if event.data and event.event == "message":
                    self.attempts = 0
                    data = event.data.encode()
                    try:
                        self._batch.extend(messages_in(data))
                    except ProtocolError as exc:
                        self._skip(exc.message, data)
            data = self._batch.popleft()
            try:
                return read_foreign(data)
            except ProtocolError as exc:
                if self._request_id and answered_id(data) == self._request_id:
                    raise InvalidResponse(f"The server sent an invalid response. {exc.message}.") from exc
                self._skip(exc.message, data)

    def wait(self, first: float, longest: float) -> float:
        """Return the seconds until the next connection: the server's `retry`, or exponential backoff, with jitter."""
        if self._retry_ms is not None and self.attempts == 0:
            return max(self._retry_ms / 1000, _MIN_WAIT)
        return max(retry_delay(self.attempts, first, longest), min((self._retry_ms or 0) / 1000, longest))


class RunningServer(Protocol):
    """A running server."""

    @property
    def dispatcher(self) -> "Dispatcher":
        """The dispatcher of the server."""
        ...


class ServerObject(Protocol):
    """A server object, such as `millstream.Server`."""

    def running(self) -> AbstractAsyncContextManager[RunningServer]:
        """Run the server for the duration of the block."""
        ...


@runtime_checkable
class TransportFactory(Protocol):
    """A target that creates its own transport, such as a program for another library."""

    def new_transport(self, listener: Listener, background: Tasks) -> Transport:
        """Return a transport that isn't open yet.

        Args:
            listener: Receives what the server sends outside of responses.
            background: Owns the tasks of the transport.
        """
        ...
