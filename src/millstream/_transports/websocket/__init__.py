"""MCP and the hub over WebSocket: the route, an ASGI handler.

A client speaks JSON-RPC if it offers the subprotocol ``mcp``, else the dialect. Host, Origin, and credentials are
checked before the socket is accepted. Query parameters are never credentials. Every message is one text frame. Close
codes: 1001 the server stops (after answering pending requests) or the socket reached its maximum age, 1003 a binary
frame, 1008 the credential has expired or was revoked, 1009 a message over the limit, 1011 an internal error, 1013
``slow`` the peer doesn't read. The HTTP server handles malformed frames, unfinished messages, pings, and the closing
handshake (RFC 6455; see `_http/server/websocket.py` for the limits of our own server).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from msgspec import Struct

from millstream._http.asgi import Receive, Scope, Send, header_list, no_peer
from millstream._http.hosts import HostPolicy
from millstream._http.message import TEXT_HEAD, HttpRequest, Response
from millstream._http.websocket import (
    EXTENSION,
    GOING_AWAY,
    INTERNAL,
    POLICY_VIOLATION,
    TOO_BIG,
    UNSUPPORTED_DATA,
    DirectSocket,
    DirectWire,
    QueuedSocket,
    Socket,
)
from millstream._protocol.principal import Principal
from millstream._server.calls.services import expiry_of
from millstream._server.control import RequestGate
from millstream._server.dispatch import Dispatcher
from millstream._transports.connection import ClientConnection
from millstream._transports.open_streams import OpenStreams
from millstream._transports.websocket.dialect import Dialect, SocketPeer
from millstream.hub import Hub

Authenticate = Callable[[HttpRequest], Awaitable[Principal | Response | None]]
"""Returns the caller, None for an anonymous one, or a response that refuses the handshake."""
MakeDialect = Callable[[ClientConnection, Socket, SocketPeer], "SocketDialect"]
MayPublish = Callable[[Principal | None, str, Mapping[bytes, bytes]], bool]

SUBPROTOCOL = "mcp"
_NOTIFICATION = b'{"jsonrpc":"2.0","method"'

_STOPS = "The server is stopping"
_AGED = "The connection reached its maximum age (max_stream_seconds). Reconnect, and resume with the last id."
_BUSY = Response(b"Too many open connections. Try again later.\n", 503, TEXT_HEAD + b"retry-after: 5\r\n")
_LEAVING = Response(b"The server stops. Connect again in a few seconds.\n", 503, TEXT_HEAD + b"retry-after: 5\r\n")
_NOT_A_PAGE = Response(
    b"This is the address of a WebSocket. Connect to it with ws: or wss: instead of http: or https:.\n",
    426,
    TEXT_HEAD + b"upgrade: websocket\r\n",
)


class SocketDialect(Protocol):
    """The handler of a socket's messages."""

    async def take(self, data: bytes) -> None:
        """Process one message."""

    async def close(self) -> None:
        """Stop all work of a closed socket."""


class WebSocketRoute(Struct, eq=False):
    """The WebSocket handler of one server."""

    _dispatcher: Dispatcher
    _hub: Hub | None
    _policy: HostPolicy
    _streams: OpenStreams
    guard: Authenticate | None = None
    may_publish: MayPublish = lambda principal, address, headers: True
    """Returns whether the dialect accepts ``publish`` from a caller, by address and handshake headers."""
    gates: Sequence[RequestGate] = ()
    dialect: MakeDialect | None = None
    """Creates the message handler that replaces MCP and the hub's dialect."""
    _sockets: dict[Socket, asyncio.Task[Any] | None] = {}
    _stopping: bool = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one socket until it closes."""
        await receive()
        peer = await self._admit(scope)
        if isinstance(peer, Response):
            await refuse_handshake(peer, scope, send)
            return
        outbox = self._outbox(scope, send, peer.owner)
        connection = ClientConnection(
            self._dispatcher,
            partial(carry, outbox),
            outbox.drain,
            principal=peer.principal,
            peer=peer.address,
            headers=peer.headers,
            transport="websocket",
        )
        self._sockets[outbox] = asyncio.current_task()
        # Pings of the WebSocket protocol keep the socket alive, so SSE comments aren't needed.
        end = partial(self._end, outbox)
        dismiss = partial(outbox.end, POLICY_VIOLATION, "The key or token is no longer valid. Sign in again.")
        self._streams.add(
            outbox, peer, ("websocket", ""), code=_no_form, end=end, dismiss=dismiss,
            finish=connection.finish, until=expiry_of(peer.principal),
        )  # fmt: skip
        speaks = self.dialect is None and SUBPROTOCOL in scope.get("subprotocols", ())
        try:
            try:
                await send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL if speaks else None})
            except OSError:
                return  # The client has disconnected.
            await self._serve(connection, peer, outbox, receive, speaks=speaks)
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            # The close timed out, which isn't a failure to log.
        finally:
            outbox.connection_lost()
            del self._sockets[outbox]

    @staticmethod
    async def plain(request: HttpRequest) -> Response:
        """Respond to `GET` without a handshake (RFC 9110 §15.5.22)."""
        return _NOT_A_PAGE

    async def close(self, seconds: float) -> None:
        """Stop accepting sockets, and close all of them after their queued messages are sent, within a time limit."""
        self._stopping = True
        tasks = [task for task in self._sockets.values() if task is not None]
        for outbox in list(self._sockets):
            outbox.end(GOING_AWAY, _STOPS)
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)

    def _end(self, outbox: Socket) -> None:
        """Close a socket, because the server is stopping or the socket reached its maximum age."""
        outbox.end(GOING_AWAY, _STOPS if self._dispatcher.stopping else _AGED)

    async def _admit(self, scope: Scope) -> SocketPeer | Response:
        """Return the authenticated peer, or the refusal. The rules are those of POST requests."""
        raw_headers = [(bytes(name), bytes(value)) for name, value in scope["headers"]]
        headers = dict(raw_headers)
        client = scope.get("client")
        address = client[0] if client else no_peer(scope)
        refusal = self._policy.check("POST", headers, raw_headers, address)
        if refusal is not None:
            return self._policy.record(refusal)
        principal = None
        if self.guard is not None:
            root, scheme = scope.get("root_path", ""), scope.get("scheme", "ws")
            request = HttpRequest(
                "GET", scope["path"], raw_headers, headers, peer=address, root_path=root, scheme=scheme
            )
            found = await self.guard(request)
            if isinstance(found, Response):
                return found
            principal = found
        if self._stopping:
            return _LEAVING
        peer = SocketPeer(address, headers, principal, self.may_publish(principal, address, headers))
        return _BUSY if self._streams.full(peer) else peer

    def _outbox(self, scope: Scope, send: Send, owner: str) -> Socket:
        """Return the socket for outgoing messages, which writes directly to the transport on our own server."""
        settings = self._dispatcher.services.settings
        limit, grace = settings.stream_buffer, settings.write_timeout
        extensions: dict[str, Any] = scope.get("extensions") or {}
        wire: DirectWire | None = extensions.pop(EXTENSION, None)
        if wire is None:
            return QueuedSocket(send, limit=limit, grace=grace)
        wire.owner = owner
        return DirectSocket(wire, send, limit=limit, grace=grace)

    async def _serve(
        self, connection: ClientConnection, peer: SocketPeer, outbox: Socket, receive: Receive, *, speaks: bool
    ) -> None:
        dialect: SocketDialect | None = None
        if self.dialect is not None:
            dialect = self.dialect(connection, outbox, peer)
        elif not speaks:
            dialect = Dialect(self._dispatcher, self._hub, connection, outbox, peer, self.gates)
        take = dialect.take if dialect is not None else partial(_take, connection)
        try:
            await outbox.run(self._read(receive, outbox, take))
        finally:
            await connection.close()
            if dialect is not None:
                await dialect.close()

    async def _read(self, receive: Receive, outbox: Socket, take: Callable[[bytes], Awaitable[None]]) -> None:
        """Process messages until the peer is gone. Pause while the peer doesn't read its responses."""
        code, reason, most = INTERNAL, "Internal error", self._dispatcher.services.settings.max_message
        try:
            while True:
                message = await receive()
                if outbox.closed or message["type"] != "websocket.receive":
                    outbox.connection_lost()
                    return
                text = message.get("text")
                if text is None:
                    code, reason = UNSUPPORTED_DATA, "Messages must be text"
                    return
                data = text.encode()
                if len(data) > most:
                    code, reason = TOO_BIG, f"A message must have at most {most} bytes"
                    return
                del message, text
                await take(data)
                del data  # the next message may be long in coming
                # A packet may contain thousands of calls. Answer them first, then check whether the peer reads.
                await asyncio.sleep(0)
                await outbox.drain()
        except asyncio.CancelledError:
            code, reason = GOING_AWAY, _STOPS
            raise
        finally:
            outbox.end(code, reason)


def _no_form(data: bytes) -> bytes:
    return b""


def carry(socket: Socket, message: bytes) -> bool:
    """Send a JSON-RPC message. Only notifications count as unsolicited."""
    return socket.write(message) if message.startswith(_NOTIFICATION) else socket.answer(message)


async def _take(connection: ClientConnection, data: bytes) -> None:
    connection.receive(data)


async def refuse_handshake(response: Response, scope: Scope, send: Send) -> None:
    """Refuse the handshake with a response if the ASGI server supports that, else with the server's own 403."""
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = header_list(response.head)
    await send({"type": "websocket.http.response.start", "status": response.status, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": response.body, "more_body": False})
