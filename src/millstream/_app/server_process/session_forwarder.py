"""Forwarding of requests to the worker that holds their session, or their caller's state.

Programs and upstreams keep state for a client's session in one process, so its sealed id names the worker that holds
it. Any worker can receive a request. If it's for another worker's session, it's forwarded unchanged to that worker's
private socket, before any other check, and the reply is streamed back. The holder checks the credential, counts the
call against the limits, and logs it, as for its own connections.

If the holder has exited or is stopping, or if there's none because the session is older than the first upstream that
keeps state, the worker that claims the session goes on with it (see `Holders`). Its state at upstreams is lost (see
`Links`). Answers and cancellations reach the calls that a stopping worker still runs through the store.

Upstreams can also keep state for a principal, in a process or session that all of the principal's clients share. So a
principal's requests without a holder go to the worker that has claimed the principal. The receiver authenticates them
first, and so does the holder. A WebSocket's handshake is such a request. If the holder accepts it, the receiver passes
on the bytes in both directions without reading the messages, so pings and close frames are the holder's. When the
receiver is about to stop, the holder closes the socket after its calls, and it does so at once if another worker claims
the principal. Then the client connects again. It closes a stream of HTTP+SSE in the same way.

A request ends with its holder's lease, because a frozen process doesn't close its connections. The sockets are beside
the socket of the parent's store, in a folder that only this user can access. With the setting `peer`, workers on other
machines are reached the same way over TLS (see `PeerPort`).
"""

import asyncio
import errno
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

import msgspec

from millstream._app.server_process.holders import Holders
from millstream._http.client import ClientError, ConnectFailed, UnsendableRequest
from millstream._http.client.body import Body
from millstream._http.client.connection import HttpConnection, HttpReply
from millstream._http.client.pool import ConnectionPool
from millstream._http.client.request import encode_raw_headers, encode_request
from millstream._http.client.url import Url, parse_url
from millstream._http.message import Handler, HttpRequest, Response, Sink, refusal
from millstream._http.server import Endpoints
from millstream._http.server.connection import NOT_FOUND
from millstream._http.server.listener import TICK, SocketListener
from millstream._http.websocket import SERVICE_RESTART, DirectSocket
from millstream._protocol import seal
from millstream._protocol.errors import SERVER_ERROR, LocalError, ProtocolError
from millstream._protocol.jsonrpc import read
from millstream._protocol.principal import Principal
from millstream._recent import Recent
from millstream._server.calls.services import Services
from millstream._stores.workers import LeasedWorker
from millstream._tasks import Tasks
from millstream._transports.open_streams import error_response, unknown_session
from millstream._transports.streamable import MAX_CACHED_SESSIONS

if TYPE_CHECKING:
    from millstream._app.server_process.machines import PeerPort
    from millstream.auth._guard import AuthGuard

_CLIENT = b"millstream-client"
"""Header with the scheme and address of the client, and the worker that has its connection."""
_HOLDER = b"millstream-worker"
"""Header with the worker that holds the state for a forwarded request. It's empty if the receiver has to find it."""
_LOST = b"millstream-lost"
"""Header with the owner of state that the receiver has lost, and the upstreams where it was."""
_IN_QUERY = "!\"#$%&'()*+,/:;<=>?@[\\]^`{|}"
"""Characters that a query may have as it's forwarded, because it's quoted already."""
_OWN = frozenset({
    b"accept-encoding", b"connection", b"content-length", b"expect", b"keep-alive", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", _CLIENT, _HOLDER, _LOST,
})  # fmt: skip
"""Request headers of one connection. The worker with the client's connection compresses replies."""
_MORE_HEADERS, _MORE_HEADER_BYTES = 8, 8192
"""What a worker may add to a client's headers: the address, the body's length, and names, also of upstreams."""
_UPGRADE = (b"connection", b"upgrade"), (b"upgrade", b"websocket")
_WRITTEN = frozenset({b"connection", b"content-length", b"date", b"keep-alive", b"transfer-encoding"})
"""Reply headers that every connection writes itself, in addition to its CORS headers."""
_CORS = b"access-control-"
_UNREACHABLE = frozenset({errno.EHOSTUNREACH, errno.ENETUNREACH})
_RETRY = 10.0
"""Seconds after which a worker is tried again if the network to it was cut."""
_ATTEMPTS = 5
"""Maximum workers that are tried for one request."""
_END_TIMEOUT = 1.0
"""Seconds for the last replies to other workers, and for telling them that this one stops."""
_BUSY = refusal(503, "The worker that holds this session is busy or restarting. Retry in a second.", retry_after="1")
_GONE = refusal(503, "The worker isn't running. Retry in a second.", retry_after="1")
"""The worker didn't get the request, because it isn't running or takes no more."""
_NOT_HERE = Response(b"", 421, b"millstream-worker: none\r\n")
"""The reply to a request whose state another worker holds by now."""
_STOPPED = (
    "The worker that served you stopped during the request, which may have taken effect. Check before you repeat it."
)


class SessionForwarder:
    """Forwards requests for sessions on other workers and receives requests for this worker's own sessions.

    Args:
        services: The services of this worker.
        workers: The workers of its store.
        endpoints: All endpoints of the server.
        folder: The folder with the private sockets, if there are other workers on this machine.
        digest: Returns the digest of the gateway's file in force, or an empty string.
        guard: Authenticates callers, if they have to sign in.
    """

    def __init__(
        self,
        services: Services,
        workers: LeasedWorker,
        endpoints: Endpoints,
        folder: Path | None,
        digest: Callable[[], str],
        *,
        guard: "AuthGuard | None" = None,
    ) -> None:
        self._services = services
        self._workers = workers
        self._guard = guard
        self._path = None if folder is None else folder / workers.me
        self._holders = Holders(services, workers, self._path, digest)
        self._holders.on_change = self._follow_workers
        services.finds_holders = True
        services.handovers.append(self._close_sockets)
        self._sockets: dict[HttpRequest, DirectSocket] = {}
        """Handshake -> WebSocket, of this worker or passed on to another one."""
        self._accepted: dict[HttpRequest, str] = {}
        """Handshake or request for an HTTP+SSE stream -> the worker that has the client's connection."""
        self.read_addresses()
        self._inner = endpoints
        self.endpoints: Endpoints = self._wrap(endpoints, self._pass_on)
        """The endpoints for the public sockets."""
        self._received = self._wrap(endpoints, self._receive, others=False)
        limits = endpoints.limits
        self._received.limits = msgspec.structs.replace(
            limits,
            max_connections_per_address=limits.max_connections,
            max_header_count=limits.max_header_count + _MORE_HEADERS,
            max_header_bytes=limits.max_header_bytes + _MORE_HEADER_BYTES,
        )
        self._listener = SocketListener(self._received)
        self._peer: PeerPort | None = None
        self._sessions: Recent[bytes, tuple[str, str]] = Recent(MAX_CACHED_SESSIONS)
        """Sealed session id -> the name of its worker, or empty if it has none, and the session's id."""
        self._pools: dict[str, ConnectionPool] = {}
        self._lost: Recent[str, bytes] = Recent(MAX_CACHED_SESSIONS)
        """Session or owner -> the header about state that was given up here, until its worker has got it."""
        self._tasks = Tasks()

    def update(self) -> None:
        """Forward requests for the addresses of MCP that there are now."""
        self.read_addresses()
        self.endpoints.use(self._wrap(self._inner, self._pass_on).hot)
        self._received.use(self._wrap(self._inner, self._receive, others=False).hot)

    def read_addresses(self) -> None:
        addresses = self._services.addresses
        self._paths = frozenset(path for each in addresses for path in (each.path, each.path.rstrip("/") + "/"))
        self._sse_paths = frozenset(each.sse for each in addresses)
        self._websocket_paths = frozenset(each.websocket for each in addresses)
        self._call_paths = ("/mcp/tools/call", *(each.tools for each in addresses))
        """Beginnings of paths that call tools without MCP."""

    def _wrap(self, endpoints: Endpoints, around: Callable[[Handler], Handler], *, others: bool = True) -> Endpoints:
        """Return the endpoints with other handlers for MCP, and without the `others` if that's False."""

        def find(method: str, path: str) -> Handler | None:
            handler = endpoints.find(method, path) if others or self._is_forwarded(path) else None
            return handler if handler is None or not self._is_forwarded(path) else around(handler)

        hot = {
            key: (around(handler) if self._is_forwarded(path) else handler, method, path)
            for key, (handler, method, path) in endpoints.hot.items()
            if others or self._is_forwarded(path)
        }
        application = endpoints.websocket

        async def serve(websocket: DirectSocket) -> None:
            async def serve_here(_: HttpRequest) -> None:
                assert application is not None  # noqa: S101  see below
                await application(websocket)

            request = websocket.request
            is_mcp = request.path in self._websocket_paths
            if not (is_mcp or others):
                await websocket.refuse(NOT_FOUND)
                return
            self._sockets[request] = websocket
            try:
                reply = await (around(serve_here) if is_mcp else serve_here)(request)
            finally:
                del self._sockets[request]
            if isinstance(reply, Response):
                await websocket.refuse(reply)

        websocket = None if application is None else serve
        return msgspec.structs.replace(endpoints, find=find, hot=hot, websocket=websocket)

    def _close_sockets(self, owner: str) -> None:
        """Close the WebSockets of a principal that another worker serves now."""
        for request, websocket in list(self._sockets.items()):
            if request.principal is not None and request.principal.binding.hex() == owner:
                websocket.end(SERVICE_RESTART)

    def _is_forwarded(self, path: str) -> bool:
        return path in self._paths or path in self._sse_paths or path.startswith(self._call_paths)

    async def listen(self) -> None:
        """Receive requests from other workers.

        Raises:
            OSError: The socket can't be created.
            CommandError: The address for other machines can't be used.
        """
        services = self._services
        if self._path is not None:
            sock = socket.socket(socket.AF_UNIX)
            sock.bind(os.fspath(self._path))
            self._path.chmod(0o600)
            await self._listener.listen(sock)
        if services.settings.peer:
            from millstream._app.server_process.machines import PeerPort  # noqa: PLC0415  loads cryptography

            self._peer = PeerPort(self._listener, services.settings.peer, services.secrets.values)
            host, port = self._peer.listen(services.settings.header_timeout)
            self._holders.own = msgspec.structs.replace(self._holders.own, host=host, port=port)
        with suppress(LocalError, OSError):  # the next renewal of the lease does it
            await self._holders.announce()

    async def leave(self) -> None:
        """Let other workers take over the sessions, because this one is stopping."""
        self._holders.own = msgspec.structs.replace(self._holders.own, leaving=True)
        with suppress(LocalError, OSError):
            async with asyncio.timeout(_END_TIMEOUT):
                await self._holders.announce()

    async def close(self) -> None:
        """Stop forwarding and receiving requests when the calls have ended, or after `_END_TIMEOUT`."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
        await self._listener.accept_backlog()
        self._listener.close()
        if self._peer is not None:
            await self._peer.close()
        clock, state = asyncio.get_running_loop().time, self._listener.state
        until = clock() + _END_TIMEOUT
        while any(each.answering for each in state.connections) and clock() < until:  # noqa: ASYNC110  as in the drain
            await asyncio.sleep(TICK)
        await self._listener.shut_down(_END_TIMEOUT)
        self._holders.close()
        await self._tasks.close()
        for pool in self._pools.values():
            await pool.close()

    # To other workers

    def _pass_on(self, handler: Handler) -> Handler:
        holders = self._holders

        def serve(request: HttpRequest) -> Awaitable[Response | Sink | None]:
            sealed = request.headers.get(b"mcp-session-id")
            if sealed is None or request.path not in self._paths:
                return self._serve_anywhere(handler, request, None)
            worker, session = self._sessions.get(sealed) or self._read_session(sealed)
            if worker:
                if worker == holders.me and holders.is_certain:
                    return handler(request)
                return self._serve_session(handler, request, worker, session)
            return self._serve_anywhere(handler, request, session or None)

        return serve

    async def _serve_session(
        self, handler: Handler, request: HttpRequest, worker: str, session: str
    ) -> Response | Sink | None:
        holders = self._holders
        if await holders.confirm(worker):
            if worker == holders.me:
                return await handler(request)
            if not holders.can_reach(worker):
                return _refuse(request.body, unknown_session())  # it's on another machine
            reply = await self._forward(worker, request, session)
            if reply is not _GONE:
                return reply
        return await self._serve_anywhere(handler, request, session, is_apart=holders.is_cut(worker))

    def _serve_anywhere(
        self, handler: Handler, request: HttpRequest, session: str | None, *, is_apart: bool = False
    ) -> Awaitable[Response | Sink | None]:
        """Serve a request that names no worker with its state, in a session or without one.

        Args:
            is_apart: Whether the network to the session's worker is cut.
        """
        services = self._services
        is_message = session is not None or request.method == "POST"
        is_call = is_message or request.path in self._sse_paths or request in self._sockets
        if is_call and self._guard is not None and services.keeps_callers is not None and services.keeps_callers():
            return self._serve_caller(handler, request, session if is_apart else None)
        if session is not None and services.binds_sessions:
            return self._serve_owner(handler, request, session, session if is_apart else None)
        return handler(request)

    async def _serve_caller(self, handler: Handler, request: HttpRequest, apart: str | None) -> Response | Sink | None:
        assert self._guard is not None  # noqa: S101  the caller has looked
        found = await self._guard(request)
        if not isinstance(found, Principal):
            return found
        return await self._serve_owner(handler, request, found.binding.hex(), apart)

    async def _serve_owner(
        self, handler: Handler, request: HttpRequest, owner: str, apart: str | None
    ) -> Response | Sink | None:
        """Serve a request where its owner's state is.

        Args:
            apart: Its session, if the network to the session's worker is cut.
        """
        holders = self._holders
        for _ in range(_ATTEMPTS):
            worker = await holders.find(owner)
            if worker == holders.me:
                break
            for each in [worker] if worker else holders.others():
                reply = await self._forward(each, request, owner, find=not worker)
                if reply is not _GONE:
                    return reply
            if not worker:
                break
        if apart is not None:
            holders.apart.keep(apart, owner)
        return await handler(request)

    def _read_session(self, sealed: bytes) -> tuple[str, str]:
        """Return the name of a session's worker, empty if it has none, and the session's id, empty if it's invalid."""
        services = self._services
        now = services.clock() - services.leeway
        token = seal.decode(sealed.decode("latin-1"), services.ring, now, services.server_name)
        if token is None:
            return "", ""
        found = token.worker, token.id
        self._sessions.keep(sealed, found)
        return found

    async def _forward(self, worker: str, request: HttpRequest, state: str, *, find: bool = False) -> Response | None:
        """Forward a request. Return `_GONE`, and leave the request as it is, if the worker didn't get it.

        Args:
            worker: The receiver.
            request: The request.
            state: The session or owner whose state it needs.
            find: Whether the receiver has to find out who holds the state. Otherwise, it does.
        """
        if worker not in self._holders.places:
            return _GONE
        pool, websocket = self._pools.get(worker) or self._make_pool(worker), self._sockets.get(request)
        me = self._holders.me
        try:
            more = [*self._give_up_state(state), *(() if websocket is None else _UPGRADE)]
            data = _encode(request, "" if find else worker, me, more)
        except UnsendableRequest as exc:
            return refusal(400, str(exc))
        cancels, request.body, request.cancel_on_disconnect = request.cancel_on_disconnect, b"", True
        is_cut = False
        try:
            # A worker only closes idle connections, so a request on one of these wasn't processed.
            reply = await pool.send(data, repeatable=True, switches=websocket is not None)
        except ConnectFailed as exc:
            is_closed = self._pools.get(worker) is not pool  # after another request found that the worker is gone
            is_silent = isinstance(exc.__cause__, TimeoutError) or getattr(exc.__cause__, "errno", 0) in _UNREACHABLE
            # Then its time ran out here, which says nothing about the network.
            was_suspended = is_silent and (self._workers.may_be_dead or self._holders.me != me)
            is_gone = is_closed or is_silent or isinstance(exc.__cause__, FileNotFoundError | ConnectionRefusedError)
            if was_suspended or not is_gone:
                request.body, request.cancel_on_disconnect = data.partition(b"\r\n\r\n")[2], cancels
                await self._workers.make_certain()
                return await self._forward(worker, request, state, find=find) if was_suspended else _BUSY
            if not is_closed:
                del self._pools[worker]
                await pool.close()
            reply, is_cut = None, is_silent and not is_closed
        except ClientError:
            stopped = _refuse(data.partition(b"\r\n\r\n")[2], ProtocolError(SERVER_ERROR, _STOPPED, status=502))
            return stopped if websocket is None else _BUSY  # a handshake has no effect
        if reply is None or _HOLDER in reply.headers:
            self._give_up_worker(worker, is_cut=is_cut)
            request.body, request.cancel_on_disconnect = data.partition(b"\r\n\r\n")[2], cancels
            return _GONE
        self._note_loss(state, reply.status)
        if websocket is not None and reply.stream is not None:
            return await self._tunnel(reply.stream, websocket, reply.header(b"sec-websocket-protocol"))
        head = b"".join(
            b"%b: %b\r\n" % each
            for each in reply.headers.items()
            if each[0] not in _WRITTEN and not each[0].startswith(_CORS)
        )
        if reply.stream is None:
            return Response(reply.body, reply.status, head)
        closes = request.method == "POST" or request.path in self._sse_paths
        await self._stream(reply, request.open(reply.status, head), holder_closes=closes)
        return None

    def _give_up_state(self, state: str) -> list[tuple[bytes, bytes]]:
        """Close what this worker has served for a session or owner while the network to its worker was cut. Return the
        header that tells that worker.
        """
        owner = self._holders.apart.pop(state, None)
        if owner is not None and (names := self._services.hand_over(owner)):
            self._lost.keep(state, " ".join([owner, *(quote(each, safe="") for each in names)]).encode())
        return [(_LOST, self._lost[state])] if state in self._lost else []

    def _note_loss(self, state: str, status: int) -> None:
        """Forget the header about a loss that has reached its worker."""
        if status not in (431, 503):  # a listener answers with these before it reads such a header
            self._lost.pop(state, None)

    def _give_up_worker(self, worker: str, *, is_cut: bool) -> None:
        if is_cut and not self._holders.is_cut(worker):
            self._tasks.spawn(self._try_again(worker))
        self._holders.give_up(worker, is_cut=is_cut)

    async def _try_again(self, worker: str) -> None:
        """Wait until a worker can be reached, or its lease has ended."""
        await asyncio.sleep(_RETRY)
        while self._holders.is_cut(worker):
            with suppress(ClientError):
                await (self._pools.get(worker) or self._make_pool(worker)).check()
                break
            await asyncio.sleep(_RETRY)
        self._holders.resume(worker)

    async def _stream(self, reply: HttpReply, sink: Sink, *, holder_closes: bool) -> None:
        """Forward a stream until either side closes it. If this worker stops, the holder closes it after its calls, or
        else it's closed at once.
        """
        stream, endings = reply.stream, self._services.endings
        assert stream is not None  # noqa: S101  the caller has looked
        sink.on_close(stream.close)
        if not holder_closes:
            endings.add(sink.close)
        try:
            while data := await stream.read():
                sink.write(data)
                await sink.drain()
        except ClientError:  # the worker has exited
            pass
        finally:
            endings.discard(sink.close)
            stream.close()

    async def _tunnel(self, stream: Body, websocket: DirectSocket, subprotocol: str) -> Response | None:
        """Pass on the bytes of a WebSocket and its holder until either side closes, or this worker stops."""
        if self._holders.leaving:  # the holder closes the sockets of a stopping worker that it had by then
            stream.close()
            return _BUSY
        websocket.wire.open_tunnel(subprotocol)

        async def pass_up() -> None:
            while isinstance(data := await websocket.receive(), bytes):
                await stream.write(data)
            stream.close()

        up = self._tasks.spawn(pass_up())
        try:
            while data := await stream.read():
                websocket.wire.pass_on(data)
                await websocket.drain()
        except ClientError:  # the holder has exited
            pass
        finally:
            up.cancel()
            stream.close()
            websocket.wire.shutdown()
        return None

    def _receive(self, handler: Handler) -> Handler:
        """Serve a request from another worker as if it had come from the client, if its state is here."""
        holders, find = self._holders, self._pass_on(handler)

        async def take(request: HttpRequest) -> Response | Sink | None:
            scheme, _, rest = request.headers.pop(_CLIENT, b"").partition(b" ")
            peer, _, sender = rest.partition(b" ")
            if sender and (request in self._sockets or request.path in self._sse_paths):
                self._accepted[request] = sender.decode("latin-1")
            holder = request.headers.pop(_HOLDER, b"").decode("latin-1")
            owner, *lost = request.headers.pop(_LOST, b"").decode("latin-1").split(" ")
            request.raw_headers = [each for each in request.raw_headers if each[0] not in (_CLIENT, _HOLDER, _LOST)]
            request.scheme, request.peer = scheme.decode() or request.scheme, peer.decode()
            if not holder:
                return await (handler if holders.leaving else find)(request)
            if holder == holders.me and (holders.is_certain or await holders.confirm(holder)):
                if lost and self._services.lose is not None:
                    self._services.lose(owner, [unquote(each) for each in lost])
                return await handler(request)
            return _NOT_HERE

        async def serve(request: HttpRequest) -> Response | Sink | None:
            try:
                return await take(request)
            finally:
                self._accepted.pop(request, None)

        return serve

    def _follow_workers(self) -> None:
        """End the requests to workers whose lease has ended, and the WebSockets and HTTP+SSE streams that stopping
        workers have accepted.
        """
        for request, worker in self._accepted.items():
            if request.leave is not None and not self._holders.is_serving(worker):
                self._tasks.spawn(request.leave())
                request.leave = None
        for gone in self._pools.keys() - self._holders.places.keys():
            self._tasks.spawn(self._pools.pop(gone).close())

    def _make_pool(self, worker: str) -> ConnectionPool:
        place = self._holders.places[worker]
        peer = None if self._holders.is_sibling(worker) else self._peer

        async def dial(make: Callable[[], HttpConnection], url: Url, tls: Any) -> HttpConnection:
            if peer is not None:
                return await peer.connect(make, place.host, place.port, patience=self._workers.lease)
            _, connection = await asyncio.get_running_loop().create_unix_connection(make, place.path)
            return connection

        pool = self._pools[worker] = ConnectionPool(
            parse_url("http://worker"),
            max_connections=self._services.settings.max_connections,
            max_body=sys.maxsize,
            connect_timeout=self._workers.lease,
            dial=dial,
        )
        return pool


def _refuse(body: bytes, exc: ProtocolError) -> Response:
    """Return an error with the id of the message in a request."""
    message = None
    with suppress(ProtocolError):
        message = read(body)
    return error_response(exc, message.id if message is not None and message.is_request else None)


def _encode(request: HttpRequest, holder: str, sender: str, headers: Collection[tuple[bytes, bytes]]) -> bytes:
    """Return a request as it's forwarded, with further headers."""
    query = quote(request.query, safe=_IN_QUERY)
    target = f"{quote(request.path)}?{query}" if query else quote(request.path)
    client = (_CLIENT, f"{request.scheme} {request.peer} {sender}".encode())
    own = client, (_HOLDER, holder.encode()), *headers
    head = encode_raw_headers([*(each for each in request.raw_headers if each[0] not in _OWN), *own])
    return encode_request(request.method, target, head, request.body)
