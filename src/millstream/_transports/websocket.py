"""MCP and the hub over WebSocket.

A client speaks JSON-RPC if it offers the subprotocol ``mcp``, else the dialect. Host, Origin, and credentials are
checked before the socket is accepted. Query parameters are never credentials. Messages are text. Close
codes: 1001 the server is stopping (after answering pending requests) or the socket reached its maximum age, 1003 a
binary frame, 1008 the credential has expired or was revoked, 1009 a message over the limit, 1011 an internal error,
1012 another process has the caller's state, 1013 ``slow`` the peer doesn't read. The HTTP server handles malformed
frames, unfinished messages, pings, and the closing handshake (RFC 6455; see `_http/server/websocket.py` for the limits
of our own server).

The dialect is a small JSON protocol for tool calls, channels, and JSON-RPC.

JSON-RPC messages are as in MCP. Each other message is an object with a ``type``. An ``id`` (text or number) is returned
with its answer. ::

    {"type": "mcp_call", "tool", "arguments"?}                    {"type": "mcp_result", "tool", "result"}
    {"type": "subscribe", "channel"?, "last_event_id"?, "client_id"?, "name"?, "history"?}
                                                                  {"type": "subscribed", "channel"}
    {"type": "unsubscribe", "channel"?}                           {"type": "unsubscribed", "channel"}
    {"type": "publish", "data", "channel"?, "event"?, "event_id"?}
                                                                  {"type": "published", "event_id", "subscribers"}
    {"type": "members", "channel"?}                               {"type": "members", "channel", "members", "event"}
    {"type": "ping"}                                              {"type": "pong"}

Errors are ``{"type": "error", "error": {"code", "message"}}``. Unsolicited messages are ``{"type": "event", "channel",
"event"?, "id", "data"}``, ``{"type": "position", "id"}`` (the id to resume from while no events arrive), and ``{"type":
"gap", "reason"}`` (events are missing: of the subscription in progress, or else of all).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, Protocol

import msgspec
from msgspec import Raw, Struct

from millstream._http.hosts import HostPolicy
from millstream._http.message import HttpRequest, Response, refusal
from millstream._http.websocket import (
    GOING_AWAY,
    INTERNAL,
    POLICY_VIOLATION,
    TOO_BIG,
    UNSUPPORTED_DATA,
    Socket,
)
from millstream._protocol import revisions
from millstream._protocol.errors import INVALID_PARAMS, INVALID_REQUEST, METHOD_NOT_FOUND, ProtocolError
from millstream._protocol.foreign import present
from millstream._protocol.jsonrpc import check_text, decoder, encode, require_json
from millstream._protocol.principal import Principal, knows_identities
from millstream._protocol.revisions import NEWEST_HANDSHAKE
from millstream._server.calls.call import Call
from millstream._server.dispatch import Dispatcher
from millstream._server.refusals import REFUSED, RETRY_SECONDS, find_refusal
from millstream._text import shorten
from millstream._transports.connection import ClientConnection, is_batch
from millstream._transports.hub_routes import PUBLICATION
from millstream._transports.open_streams import OpenStreams, silent_call
from millstream.hub import Event, Forbidden, Hub, LimitExceeded, Subscription
from millstream.hub._channels import DEFAULT, SOCKET_CHANNELS, check_encoded_size
from millstream.hub._event import CUT, encode_object

_REFUSED: tuple[type[Exception], ...] = (ProtocolError, msgspec.ValidationError, *REFUSED)
MAX_HISTORY = 1_000
"""Maximum number of past events that a subscription can request."""


class _Head(Struct, gc=False):
    type: str = ""
    id: Raw = Raw(b"")
    jsonrpc: Raw = Raw(b"")
    channel: Raw = Raw(encode(DEFAULT))
    tool: Raw = Raw(b'""')


class _CallMessage(Struct, gc=False):
    tool: str
    arguments: Raw = Raw(b"{}")


class _Subscribe(Struct, gc=False):
    channel: str = DEFAULT
    """Channels and patterns, separated by commas as in `/events`."""
    last_event_id: str = ""
    client_id: str = ""
    name: str = ""
    history: int = 0


class _Channel(Struct, gc=False):
    """A message about a channel."""

    channel: str = DEFAULT


class _Publish(Struct, forbid_unknown_fields=True):
    """A publication. Unknown members are rejected, because a misspelled ``channel`` would reach all subscribers."""

    type: str
    data: Raw
    channel: str = DEFAULT
    event: str | None = None
    event_id: str | None = None
    id: Raw = Raw(b"")


_decode_head = decoder(_Head)
_decode_text = decoder(str)


def encode_event(event: Event, full: bool = False) -> bytes:
    """Return an event of the hub as one message, for a reader as in `visible_part`. The close frame reports that a slow
    subscriber is disconnected.
    """
    if event.data is None:
        return b'{"type":"position","id":%b}' % encode(event.id)
    if not event.channel:
        return b"" if event.event == CUT else b'{"type":%b,%b' % (encode(event.event), event.data[1:])
    return encode_object(event, full)


_encode_full = partial(encode_event, full=True)


class Dialect(Struct, eq=False):
    """One socket that uses the dialect."""

    _dispatcher: Dispatcher
    _hub: Hub | None
    _connection: ClientConnection
    _outbox: Socket
    _peer: HttpRequest
    """The opening handshake."""
    _may_publish: bool
    _publish_scope: str = ""
    """The scope that publishing requires."""
    _subscriptions: dict[str, Subscription] = {}

    def __post_init__(self) -> None:
        most = self._dispatcher.services.settings.max_message
        hello = {"type": "connected", "client_id": self._connection.id, "server": self._dispatcher.info}
        missing = {} if self._may_publish or not self._publish_scope else {"missing_scope": self._publish_scope}
        self._outbox.answer(encode({**hello, "max_message": most, **missing}))

    async def take(self, data: bytes) -> None:
        """Process one message. Calls run concurrently, everything else in order of arrival."""
        head, code, charged = _Head(), 0, False
        try:
            check_text(data)
            require_json(data)
            if is_batch(data) or (head := _decode_head(data)).jsonrpc:
                self._connection.receive(data)
                return
            found = _VERBS.get(head.type)
            if found is None:
                raise ProtocolError(
                    METHOD_NOT_FOUND, f"Unknown type {head.type[:80]!r}. Use one of {', '.join(_VERBS)}, or JSON-RPC."
                )
            decode, verb, _, _ = found
            message = decode(data)
            if head.type != "mcp_call":  # the dispatcher charges calls
                charged = True
                await self._dispatcher.services.request_limits.admit(self._peer)
            await verb(self, message, head.id)
        except _REFUSED as exc:
            if isinstance(exc, ProtocolError) and exc.request_id is not None:  # of JSON-RPC
                self._connection.receive(data)
                return
            code = self._refuse(head, exc, charged=charged)
        if code or head.type != "mcp_call":  # the dispatcher reports calls itself
            self._note(head, code)

    async def close(self) -> None:
        """Do nothing, because the calls belong to the connection."""

    def _reply(self, id: Raw, kind: str, **members: Any) -> None:
        known = {"id": id} if bytes(id)[:1] in _ID_STARTS else {}
        self._outbox.answer(encode({"type": kind, **known, **members}))

    def _refuse(self, head: _Head, exc: Exception, *, charged: bool) -> int:
        # Outside of `take`, because an error kept there would keep its frame and the message.
        over = (
            None if charged else self._dispatcher.services.request_limits.charge(self._peer.principal, self._peer.peer)
        )
        exc = over or exc
        if isinstance(exc, msgspec.ValidationError):
            code = INVALID_PARAMS if head.type else INVALID_REQUEST
            return self._fail(head.id, code, f"Invalid message: {shorten(str(exc))}")
        if not isinstance(exc, ProtocolError):
            refusal, text = find_refusal(exc, PUBLICATION if head.type == "publish" else "")
            exc = ProtocolError(
                refusal.code, text, {"retryAfterMs": 1_000 * RETRY_SECONDS} if refusal.can_retry else None
            )
        error = revisions.error(exc, NEWEST_HANDSHAKE)
        return self._fail(head.id, error.code, error.message, error.data)

    def _fail(self, id: Raw, code: int, message: str, data: Any = None, **about: Any) -> int:
        error = present({"code": code, "message": message, "data": data})
        self._reply(id, "error", **about, error=error)
        return code

    def _note(self, head: _Head, code: int) -> None:
        _, _, method, about = _VERBS.get(head.type, (None, None, "", ""))
        try:
            target = _decode_text(getattr(head, about)) if about else ""
        except ValueError:
            target = ""
        self._dispatcher.services.note(
            method,
            "websocket",
            status=str(code) if code else "",
            target=target,
            principal=self._peer.principal,
            address=self._peer.peer,
        )

    # Tools

    async def start_call(self, message: _CallMessage, id: Raw) -> None:
        """Call a tool. The response is sent when it's done."""
        load = self._dispatcher.load
        load.admit(self._peer)
        call = silent_call(
            NEWEST_HANDSHAKE,
            "tools/call",
            # Copied, so a running call doesn't keep the whole message in memory.
            encode({"name": message.tool, "arguments": message.arguments}),
            origin=self._connection,
            transport="websocket",
            principal=self._peer.principal,
            headers=self._peer.headers,
            client_id=self._connection.id,
        )
        load.take(call, len(call.params) + len(bytes(id)))
        call.stop = self._connection.start(self._call(call, message.tool, id.copy()), call).cancel

    async def _call(self, call: Call, tool: str, id: Raw) -> None:
        result, error = await self._dispatcher.outcome(call)
        if error is not None:
            self._fail(id, error.code, error.message, error.data, tool=shorten(tool))
        elif result:
            self._reply(id, "mcp_result", tool=tool, result=Raw(result))

    # Channels

    def _need_hub(self) -> Hub:
        if self._hub is None:
            is_front = self._dispatcher.address == self._dispatcher.services.addresses[0]
            where = "Start it with --serve hub" if is_front else "Connect to /ws"
            raise ProtocolError(METHOD_NOT_FOUND, f"This server has no channels. {where}.")
        return self._hub

    async def subscribe(self, message: _Subscribe, id: Raw) -> None:
        """Subscribe to channels, from now on or after an event id."""
        hub, channel = self._need_hub(), message.channel
        names = channel.split(",")
        if channel in self._subscriptions:
            raise ProtocolError(INVALID_REQUEST, f"This socket is already subscribed to {channel!r}.")
        most = hub.limits.max_channels_per_subscriber
        others = sum(each.count(",") + 1 for each in self._subscriptions)
        if others and others + len(names) > most:
            raise LimitExceeded(SOCKET_CHANNELS, most)
        self._subscriptions[channel] = await hub.subscribe(
            names,
            self._outbox,
            encode=_encode_full if knows_identities(self._peer.principal) else encode_event,
            last_event_id=message.last_event_id,
            history=min(max(message.history, 0), MAX_HISTORY),
            client_id=message.client_id or (self._connection.id if message.name else ""),
            name=message.name,
            principal=self._peer.principal,
            address=self._peer.peer,
            transport="websocket",
        )
        self._reply(id, "subscribed", channel=channel)

    async def unsubscribe(self, message: _Channel, id: Raw) -> None:
        """Unsubscribe from a channel."""
        subscription = self._subscriptions.pop(message.channel, None)
        if subscription is None:
            raise ProtocolError(INVALID_PARAMS, f"This socket isn't subscribed to {message.channel[:80]!r}.")
        subscription.handle_close()
        self._reply(id, "unsubscribed", channel=message.channel)

    async def publish(self, message: _Publish, id: Raw) -> None:
        """Publish to a channel."""
        hub = self._need_hub()
        if not self._may_publish:
            raise Forbidden("publish", message.channel, self._publish_scope)
        channel, principal = message.channel, self._peer.principal
        hub.admission.publish(channel, principal)
        check_encoded_size(len(message.data), hub.limits.max_event)
        data, event = msgspec.json.decode(message.data), message.event
        done = await hub.publish(channel, data, event=event, id=message.event_id, publisher=principal)
        self._reply(id, "published", channel=channel, event_id=done.id, subscribers=done.subscribers)

    async def members(self, message: _Channel, id: Raw) -> None:
        """Respond with who is on a channel. Presence events that were sent before are included, later ones aren't."""
        hub, peer = self._need_hub(), self._peer
        hub.admission.members(message.channel, principal=peer.principal, address=peer.peer)
        found = (await hub.members(message.channel)).visible(knows_identities(peer.principal))
        self._reply(id, "members", channel=found.channel, members=found.members, event=found.event)

    async def ping(self, message: _Head, id: Raw) -> None:
        """Respond to a ping."""
        self._reply(id, "pong")


_VERBS: dict[str, tuple[Callable[[bytes], Any], Callable[[Dialect, Any, Raw], Awaitable[None]], str, str]] = {
    "mcp_call": (decoder(_CallMessage), Dialect.start_call, "tools/call", "tool"),
    "subscribe": (decoder(_Subscribe), Dialect.subscribe, "hub/subscribe", "channel"),
    "unsubscribe": (decoder(_Channel), Dialect.unsubscribe, "hub/unsubscribe", "channel"),
    "publish": (decoder(_Publish), Dialect.publish, "hub/publish", "channel"),
    "members": (decoder(_Channel), Dialect.members, "hub/members", "channel"),
    "ping": (_decode_head, Dialect.ping, "ping", ""),
}
"""Type -> decoder, handler, method name for observers, and the member with its target."""


_ID_STARTS = frozenset(bytes((each,)) for each in b'"-0123456789')
"""How strings and numbers begin. Only such an id is returned."""


Authenticate = Callable[[HttpRequest], Awaitable[Principal | Response | None]]
"""Returns the caller, None for an anonymous one, or a response that rejects the handshake."""
MakeDialect = Callable[[ClientConnection, Socket, HttpRequest], "SocketDialect"]
MayPublish = Callable[[Principal | None, str, Mapping[bytes, bytes]], bool]

SUBPROTOCOL = "mcp"
_NOTIFICATION = b'{"jsonrpc":"2.0","method"'

_STOPS = "The server is stopping"
_AGED = "The connection reached its maximum age (max_stream_seconds). Reconnect, and resume with the last id."
_BUSY = refusal(503, "Too many open connections. Close some, or try again later.", retry_after="5")
_LEAVING = refusal(503, "The server is stopping. Connect again in a few seconds.", retry_after="5")
_NOT_A_PAGE = refusal(
    426,
    "This is a WebSocket address. Connect to it with ws: or wss: instead of http: or https:.",
    upgrade="websocket",
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
    publish_scope: str = ""
    """The scope that publishing requires, for refusals."""
    dialect: MakeDialect | None = None
    """Creates the message handler that replaces MCP and the hub's dialect."""
    _sockets: dict[Socket, asyncio.Task[Any] | None] = {}
    _stopping: bool = False

    async def __call__(self, outbox: Socket) -> None:
        """Serve one socket until it closes."""
        peer, subprotocols = outbox.request, outbox.subprotocols
        if (refused := await self._admit(peer)) is not None:
            await outbox.refuse(refused)
            return
        connection = ClientConnection(
            self._dispatcher,
            partial(carry, outbox),
            outbox.drain,
            principal=peer.principal,
            peer=peer.peer,
            headers=peer.headers,
            transport="websocket",
        )
        self._sockets[outbox] = asyncio.current_task()
        peer.leave = partial(connection.leave, partial(outbox.end, GOING_AWAY, _STOPS))
        # Pings of the WebSocket protocol keep the socket alive, so SSE comments aren't needed.
        end = partial(self._end, outbox)
        dismiss = partial(outbox.end, POLICY_VIOLATION, "The key or token is no longer valid. Sign in again.")
        self._streams.add(
            outbox, peer, ("websocket", ""), code=lambda _: b"", end=end, dismiss=dismiss,
            finish=connection.finish,
        )  # fmt: skip
        speaks = self.dialect is None and SUBPROTOCOL in subprotocols
        dialect: SocketDialect | None = None
        try:
            await outbox.accept(SUBPROTOCOL if speaks else "")
            if self.dialect is not None:
                dialect = self.dialect(connection, outbox, peer)
            elif not speaks:
                may_publish = self.may_publish(peer.principal, peer.peer, peer.headers)
                dialect = Dialect(
                    self._dispatcher, self._hub, connection, outbox, peer, may_publish, self.publish_scope
                )
            take = partial(_take, connection) if dialect is None else dialect.take
            try:
                await outbox.run(self._read(outbox, take))
            finally:
                await connection.close()
                if dialect is not None:
                    await dialect.close()
        except asyncio.CancelledError:
            if not self._stopping:
                raise
            # The close timed out, which isn't a failure to log.
        finally:
            peer.leave = None  # it refers to the socket
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
        """Close a socket when the server stops or the socket has reached its maximum age."""
        outbox.end(GOING_AWAY, _STOPS if self._dispatcher.stopping else _AGED)

    async def _admit(self, peer: HttpRequest) -> Response | None:
        """Authenticate a handshake, or return a refusal. The same rules apply as for POST requests."""
        refused = self._policy.check(peer, "POST")
        if refused is not None:
            return self._policy.record(refused)
        peer.query = b""  # it never has credentials
        if self.guard is not None:
            found = await self.guard(peer)
            if isinstance(found, Response):
                return found
            peer.principal = found
        peer.raw_headers = ()  # the socket can be open for a day
        if self._stopping:
            return _LEAVING
        return _BUSY if self._streams.full(peer) else None

    async def _read(self, outbox: Socket, take: Callable[[bytes], Awaitable[None]]) -> None:
        """Process messages until the peer has disconnected. Pause while the peer doesn't read its responses."""
        code, reason, most = INTERNAL, "Internal error", self._dispatcher.services.settings.max_message
        try:
            while True:
                message = await outbox.receive()
                if outbox.closed or message is None:
                    outbox.connection_lost()
                    return
                if isinstance(message, bytes):
                    code, reason = UNSUPPORTED_DATA, "Messages must be text"
                    return
                data = message.encode()
                if len(data) > most:
                    code, reason = TOO_BIG, f"A message must have at most {most} bytes"
                    return
                del message
                await take(data)
                del data  # the next message may take long to arrive
                # A packet may contain thousands of calls. Answer them first, then check whether the peer reads.
                await asyncio.sleep(0)
                await outbox.drain()
        except asyncio.CancelledError:
            code, reason = GOING_AWAY, _STOPS
            raise
        finally:
            outbox.end(code, reason)


def carry(socket: Socket, message: bytes) -> bool:
    """Send a JSON-RPC message. Only notifications are treated as unsolicited."""
    return socket.write(message) if message.startswith(_NOTIFICATION) else socket.answer(message)


async def _take(connection: ClientConnection, data: bytes) -> None:
    connection.receive(data)
