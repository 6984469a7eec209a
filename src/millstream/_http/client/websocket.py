"""WebSockets to a server. This module loads a library, so others import it when they open one."""

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, WebSocketException
from websockets.typing import Subprotocol

from millstream._http.client.connection import too_large
from millstream._http.client.errors import ClientError, ConnectionLost, InvalidResponse, TargetError, TooLarge
from millstream._http.client.inflow import Inflow
from millstream._http.client.pool import connect_error
from millstream._http.client.request import encode_headers
from millstream._http.client.url import Url, parse_url, proxy_for
from millstream._http.message import MAX_FRAGMENTS, MAX_UNREAD, PIECE, USUAL_FRAGMENT
from millstream._override import override

_MESSAGE_TOO_BIG = 1009


class _Connect(connect):
    """Doesn't follow redirects to other servers, because the headers are for this one only."""

    @override
    def process_redirect(self, exc: Exception) -> Exception | str:
        try:
            target = super().process_redirect(exc)
            stays = not isinstance(target, str) or parse_url(target).origin == parse_url(self.uri).origin
        except (ValueError, TargetError):  # not a URL
            return exc
        return target if stays else exc


class ClientSocket(ClientConnection, asyncio.BufferedProtocol):
    """Reads in pieces, so that tiny frames can't block the event loop, and disconnects a server that doesn't read
    pongs. `open_socket` opens it."""

    def __init__(self, inflow: Inflow, max_bytes: int, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._inflow = inflow
        self._max_bytes = max_bytes
        self._piece = bytearray(PIECE)
        self._unfinished_bytes = 0
        """Bytes received since the last complete message."""
        self._pong_bytes = 0
        """Bytes of pongs since the server last read everything."""
        self._fault: ClientError | None = None

    @override
    def get_buffer(self, sizehint: int) -> bytearray:
        return self._piece

    @override
    def buffer_updated(self, nbytes: int) -> None:
        transport = self.transport
        before = transport.get_write_buffer_size()
        self.data_received(bytes(self._piece[:nbytes]))
        unread = transport.get_write_buffer_size()
        self._pong_bytes = self._pong_bytes + max(0, unread - before) if unread else 0
        try:
            self._unfinished_bytes = self._inflow.count(self._unfinished_bytes, self._unfinished_bytes + nbytes)
        except TooLarge as exc:
            self._fault = exc
        if self._fault is not None or self._pong_bytes > MAX_UNREAD:
            transport.abort()

    async def receive(self) -> bytes:
        """Return the next message. Cancel it only to close the socket.

        Raises:
            ClientError: The socket was closed.
        """
        parts: list[bytes] = []
        most = max(MAX_FRAGMENTS, self._max_bytes // USUAL_FRAGMENT)
        try:
            async for part in self.recv_streaming(decode=False):
                parts.append(part)
                if len(parts) > most:
                    self._fault = InvalidResponse("The server sent a message in too many small fragments.")
                    self.transport.abort()
        except ConnectionClosed as exc:
            if exc.sent is not None and exc.sent.code == _MESSAGE_TOO_BIG:
                raise too_large(self._max_bytes) from exc
            reason = f": {' '.join(self.close_reason.split())}" if self.close_reason else ""
            raise self._fault or ConnectionLost(f"The server closed the WebSocket{reason}.") from exc
        self._unfinished_bytes = self._inflow.count(self._unfinished_bytes, 0)
        return b"".join(parts)

    async def send_text(self, message: bytes) -> None:
        """Send a message.

        Raises:
            ConnectionLost: The socket was closed.
        """
        try:
            await self.send(message, text=True)
        except ConnectionClosed as exc:
            raise ConnectionLost("The server closed the WebSocket.") from exc

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        self._unfinished_bytes = self._inflow.count(self._unfinished_bytes, 0)
        super().connection_lost(exc)


async def open_socket(
    url: Url,
    headers: Mapping[str, str],
    *,
    inflow: Inflow,
    max_bytes: int,
    timeout: float,
    tls: ssl.SSLContext | None,
    subprotocols: Sequence[Subprotocol] = (),
) -> ClientSocket:
    """Open a WebSocket, directly or through the proxy of the environment.

    Args:
        url: A ws or wss URL.
        headers: Further headers of the handshake.
        inflow: Counts bytes that arrive.
        max_bytes: Maximum bytes of a message.
        timeout: Seconds for the handshake.
        tls: Certificates to trust or present. By default, the system's.
        subprotocols: Subprotocols to offer.

    Raises:
        ConnectFailed, ConnectionLost: The server can't be reached.
        InvalidStatus: The server sent another response.
        InvalidHandshake, WebSocketException: The response isn't valid, or the proxy refused to connect.
        TimeoutError: There was no response in time.
    """
    encode_headers(headers)  # raises for line breaks
    proxy = proxy_for(url)
    try:
        socket = await _Connect(
            str(url),
            subprotocols=subprotocols or None,
            additional_headers=headers,
            max_size=max_bytes,
            compression=None,  # a small message could become a large one, which isn't counted while it arrives
            open_timeout=timeout,
            ssl=(tls or ssl.create_default_context()) if url.secure else None,
            proxy=None if proxy is None else proxy.address,
            create_connection=cast("Any", partial(ClientSocket, inflow, max_bytes)),
        )
    except (InvalidHandshake, WebSocketException) as exc:
        if isinstance(exc.__cause__, EOFError):
            raise ConnectionLost(f"{url.origin} closed the connection before it responded.") from exc
        raise
    except TimeoutError:
        raise
    except OSError as exc:
        raise connect_error(url, exc) from exc
    return cast("ClientSocket", socket)
