"""The connections of a `HubClient`: an event stream, or a WebSocket that uses the hub's dialect.

Whoever waits for a message of a WebSocket reads it, without a task in between, so a program that's slow slows down the
server.
"""

import asyncio
import ssl
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, TypeVar

import msgspec
from msgspec import Struct, field

from millstream._http.client import Body, ClientError, ConnectFailed, ConnectionLost, Inflow, InvalidResponse, TooLarge
from millstream._http.client.connection import HttpReply
from millstream._http.client.url import Url
from millstream._protocol.errors import OVERLOADED, ProtocolError
from millstream._protocol.jsonrpc import MALFORMED
from millstream._protocol.redaction import redact
from millstream._protocol.sse import MAX_EVENT_BYTES, Decoder, SseEvent
from millstream._tasks import has_failed
from millstream._text import INVISIBLE
from millstream.hub._event import GAP

if TYPE_CHECKING:
    from millstream._http.client.websocket import ClientSocket

T = TypeVar("T")

_SILENCE_TIMEOUT = 45.0
"""Seconds after which a stream without any bytes is dead. By default, servers send something every 15 seconds."""
RESPONSE_TIMEOUT = 15.0
MAX_BODY = 16 * 1024 * 1024
_MAX_DETAIL = 500
_UNREACHABLE = frozenset({502, 503, 504})
"""Statuses of a proxy that can't connect to the server now."""
TOO_SLOW = "The program was too slow, so the server disconnected it."


class HubRefused(ClientError):
    """The hub refuses a request, and repeating it won't help: ``except HubRefused as error: print(error.status)``.

    If `retry_after` isn't None, the request can be repeated after that many seconds.
    """


class Problem(Struct):
    """The body of an error (RFC 9457), or the data of `EventGap` and of the hub's other own events."""

    detail: str = ""
    reason: str = ""


def decode(data: bytes, kind: type[T]) -> T:
    """Return what the server sent."""
    try:
        # As text, because the decoder doesn't check what it skips.
        return msgspec.json.decode(data if data.isascii() else data.decode(), type=kind)
    except MALFORMED as exc:
        raise InvalidResponse("The server sent something that a hub doesn't send. Check the URL.") from exc


def clean(text: str) -> str:
    """Return a server's text for an error and the log, on one line."""
    return " ".join(INVISIBLE.sub(" ", text[:_MAX_DETAIL]).split())


class HubStream(Protocol):
    """A connection that receives the events of a subscription."""

    @property
    def position(self) -> str:
        """The position after everything that was read, if the server has sent one."""
        ...

    @property
    def retry_ms(self) -> int | None:
        """The reconnection time that the server asked for."""
        ...

    async def read(self) -> list[SseEvent]:
        """Wait for data, and return the events that it completes. A canceled call loses nothing."""
        ...

    def close(self) -> None:
        """Disconnect."""


class EventStream:
    """An event stream over HTTP."""

    def __init__(self, body: Body) -> None:
        self._body = body
        self._decoder = Decoder()

    @property
    def position(self) -> str:
        return self._decoder.last_event_id

    @property
    def retry_ms(self) -> int | None:
        return self._decoder.retry_ms

    async def read(self) -> list[SseEvent]:
        try:
            async with asyncio.timeout(_SILENCE_TIMEOUT):
                chunk = await self._body.read()
        except TimeoutError as exc:
            raise ConnectionLost("The server stopped responding.") from exc
        if not chunk:
            raise ConnectionLost("The server ended the stream.")
        try:
            return self._decoder.feed(chunk)
        except ProtocolError as exc:
            raise TooLarge(f"The server sent an event of more than {MAX_EVENT_BYTES:,} bytes.") from exc

    def close(self) -> None:
        self._body.close()


class _Wait(Struct, rename="camel"):
    retry_after_ms: float | None = None


class _Error(Struct):
    code: int
    message: str = ""
    data: _Wait = field(default_factory=_Wait)


class _Message(Struct):
    """What the client reads of a message itself."""

    type: str
    id: str = ""
    """The event's."""
    position: str = ""
    error: _Error | None = None


class HubSocket:
    """The stream of one subscription. `open_hub_socket` opens it."""

    retry_ms: int | None = None

    def __init__(self, socket: "ClientSocket", token: str) -> None:
        self._socket = socket
        self._token = token
        self._reading: asyncio.Task[bytes] | None = None
        self.position: str = ""

    async def begin(self, message: bytes) -> None:
        """Read the server's greeting, and send a message."""
        await self._receive()
        await self._socket.send_text(message)

    async def read(self) -> list[SseEvent]:
        """Return the events in the next message of a subscription. A canceled call loses nothing.

        Raises:
            ClientError: The subscription was refused, or the connection lost.
        """
        data, message = await self._receive()
        if message.error is not None:
            raise self._error(message.error)
        if message.type in ("event", "position"):
            self.position = message.position or message.id
        return [SseEvent(data.decode(), message.type, self.position)] if message.type in ("event", GAP) else []

    def _error(self, error: _Error) -> ClientError:
        kind = ConnectionLost if error.code == OVERLOADED else HubRefused
        found = kind(self._quote(error.message))
        if error.data.retry_after_ms is not None:
            found.retry_after = max(0.0, error.data.retry_after_ms / 1000)
        return found

    def _quote(self, text: str) -> str:
        return clean(redact(text, {self._token}))

    async def _receive(self) -> tuple[bytes, _Message]:
        """Return the next message. Its reader may be canceled, the task is kept for the next one."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._socket.receive())
            self._reading.add_done_callback(has_failed)
        await asyncio.wait((self._reading,))
        reading, self._reading = self._reading, None
        try:
            data = reading.result()
        except (TooLarge, InvalidResponse) as exc:  # the socket refers to it, and it must not refer to this call
            raise type(exc)(exc.message) from exc
        except ConnectionLost as exc:
            raise ConnectionLost(TOO_SLOW if self._socket.close_reason == "slow" else self._quote(str(exc))) from exc
        return data, decode(data, _Message)

    def close(self) -> None:
        """Disconnect. Waiting calls raise an error."""
        self._socket.transport.abort()


async def open_hub_socket(
    url: Url, headers: Mapping[str, str], tls: ssl.SSLContext | None, token: str, message: bytes
) -> HubSocket | HttpReply:
    """Return a socket on which a message was sent, or the response without one. 426 means that HTTP can be used.

    Raises:
        ClientError: The server can't be reached, or there's no hub.
        TimeoutError: It didn't respond in time.
    """
    from websockets.exceptions import InvalidProxyStatus, InvalidStatus, WebSocketException  # noqa: PLC0415  as below

    from millstream._http.client.websocket import open_socket  # noqa: PLC0415  loads a library

    try:
        socket = await open_socket(url, headers, inflow=Inflow(), max_bytes=MAX_BODY, timeout=RESPONSE_TIMEOUT, tls=tls)
    except InvalidProxyStatus as exc:  # many proxies have tunnels for https only
        if (status := exc.response.status_code) in _UNREACHABLE:
            raise ConnectFailed(f"The proxy can't connect to {url.origin} ({status}).") from exc
        return HttpReply(426, {})
    except InvalidStatus as exc:
        reply = exc.response
        fields = {name.lower().encode(): value.encode("latin-1") for name, value in reply.headers.raw_items()}
        return HttpReply(reply.status_code, fields, bytes(reply.body or b""))
    except WebSocketException as exc:
        raise InvalidResponse(f"{url} isn't a WebSocket: {clean(redact(str(exc), {token}))}.") from exc
    found = HubSocket(socket, token)
    try:
        await found.begin(message)
    except BaseException:
        found.close()
        raise
    return found
