"""Stands between a client on stdio and a server on one connection: HTTP+SSE, or a WebSocket.

Such a connection carries whole messages both ways, so nothing needs to be known of MCP. When it breaks, the recording
ends: neither transport takes a connection up again.
"""

import asyncio
from collections.abc import Mapping
from typing import cast

from millstream._cli.recording.standard_input import lines, say
from millstream._cli.recording.transcript import Writer
from millstream._protocol.jsonrpc import Envelope
from millstream.client._background import Background
from millstream.client._errors import ClientError, ConnectionLost, Flood
from millstream.client._http.auth import Auth
from millstream.client._http.endpoint import Endpoint
from millstream.client._http.pool import Pool
from millstream.client._targets import Remote
from millstream.client._transports.duplex import Duplex
from millstream.client._transports.http_sse import HttpSseTransport
from millstream.client._transports.transport import Listener, Transport
from millstream.client._transports.websocket import WebSocketTransport

_MAX_BYTES = 64 * 1024 * 1024
_MAX_WAITING = 10_000
_SECONDS = 10.0


def on_one_connection(place: Remote) -> bool:
    """Whether a URL is one of a WebSocket, or of HTTP+SSE: by its path, or because a configuration says so."""
    path = place.url.target.partition("?")[0].rstrip("/")
    return place.url.scheme in ("ws", "wss") or place.kind == "sse" or path.endswith("/sse")


class _Said(Listener):
    """What the server says, until it's passed on."""

    def __init__(self) -> None:
        self.wanted = asyncio.Event()
        self._messages: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._bytes = 0
        self._fault: ClientError | None = None

    def receive(self, message: Envelope, transport: Transport) -> None:
        """Nothing comes here: `_Passing` takes every message as it is."""

    def interrupted(self, transport: Transport, fault: ClientError | None) -> None:
        """`end` hears of it, too."""

    def add(self, message: bytes) -> bool:
        """Take one more; False when too much waits."""
        waiting = self._messages.qsize()
        if waiting >= _MAX_WAITING or (waiting and self._bytes + len(message) > _MAX_BYTES):
            return False
        self._bytes += len(message)
        self._messages.put_nowait(message)
        return True

    def end(self, fault: ClientError | None) -> None:
        """Nothing more comes, and whoever passes on what waits hears of it behind that."""
        self._fault = fault
        self._messages.put_nowait(None)

    async def next(self) -> bytes | None:
        """The next one; None at the end.

        Raises:
            ClientError: the server has broken the connection.
        """
        message = await self._messages.get()
        if message is None and self._fault is not None and not isinstance(self._fault, ConnectionLost):
            raise self._fault
        self._bytes -= len(message or b"")
        return message


class _Passing(Duplex):
    """Passes everything on, answers too, where its base would look for who waits for them."""

    __slots__ = ()

    def receive(self, data: bytes) -> None:
        """Take one message of the server."""
        if self.fault is None and not cast("_Said", self._listener).add(data):
            self.end(Flood(f"The client is slower than the server: {_MAX_WAITING:,} messages or 64 MiB wait for it."))

    def end(self, fault: ClientError | None = None) -> None:
        """The connection is over."""
        if self.fault is None:
            super().end(fault)
            cast("_Said", self._listener).end(self.fault)


async def relay(place: Remote, headers: Mapping[str, str], writer: Writer, auth: Auth | None = None) -> int:
    """Run until the client or the server ends.

    Raises:
        ClientError: there's no connection, or the server broke it.
    """
    said, background = _Said(), Background()
    transport = _transport(place, {**place.headers, **headers}, said, background, auth)
    try:
        await transport.open()
        ended = await asyncio.wait(
            [asyncio.create_task(_inward(transport, writer)), asyncio.create_task(_outward(said, writer))],
            return_when=asyncio.FIRST_COMPLETED,
        )
        for task in ended[1]:
            task.cancel()
        await asyncio.gather(*ended[1], return_exceptions=True)
        for task in ended[0]:
            task.result()
    finally:
        await transport.close()
        await background.close()
    return 0


def _transport(
    place: Remote, headers: Mapping[str, str], said: _Said, background: Background, auth: Auth | None
) -> Transport:
    if place.url.scheme in ("ws", "wss"):
        return WebSocketTransport(
            place.url, headers, said, background, max_bytes=_MAX_BYTES, connect_timeout=_SECONDS, tls=None,
            duplex=_Passing,
        )  # fmt: skip
    pool = Pool(place.url, max_connections=100, max_body=_MAX_BYTES, connect_timeout=_SECONDS, tls=None)
    endpoint = Endpoint(place.url, dict(headers), pool, auth)
    return HttpSseTransport(endpoint, said, background, _MAX_BYTES, _SECONDS, duplex=_Passing)


async def _inward(transport: Transport, writer: Writer) -> None:
    async for line in lines():
        writer.line("client", line)
        await transport.send(line, "")


async def _outward(said: _Said, writer: Writer) -> None:
    while (message := await said.next()) is not None:
        line = message.replace(b"\r", b" ").replace(b"\n", b" ")
        writer.line("server", line)
        await say(line + b"\n")
