"""Forwarding of requests to the worker that holds their session, or their caller's state.

Programs and upstreams keep state for a client's session in one process, so its sealed id names the worker that holds
it. Any worker can receive a request. If it's for another worker's session, it's forwarded unchanged to that worker's
private socket, before any other check, and the reply is streamed back. The holder checks the credential, counts the
call against the limits, and logs it, as for its own connections. If the holder has exited, the session is lost: 404.

Upstreams can also keep state for a principal, in a process or session that all of the principal's clients share. So a
principal's requests without a session go to one worker, too, chosen by its number, which its replacement inherits.
While that worker isn't running, they go to the next one. The receiver authenticates them first, and so does the holder.

The sockets are beside the socket of the parent's store, in a folder that only this user can access.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec

from millstream._http.client import ClientError, ConnectFailed, UnsendableRequest
from millstream._http.client.connection import HttpConnection, HttpReply
from millstream._http.client.pool import ConnectionPool
from millstream._http.client.request import encode_raw_headers, encode_request
from millstream._http.client.url import Url, parse_url
from millstream._http.message import Handler, HttpRequest, Response, Sink, refusal
from millstream._http.server import Endpoints
from millstream._http.server.listener import TICK, SocketListener
from millstream._protocol import seal
from millstream._protocol.errors import SERVER_ERROR, ProtocolError
from millstream._protocol.jsonrpc import read
from millstream._protocol.principal import Principal
from millstream._recent import Recent
from millstream._server.calls.services import Services
from millstream._transports.open_streams import error_response, unknown_session
from millstream._transports.streamable import MAX_CACHED_SESSIONS

if TYPE_CHECKING:
    from millstream.auth._guard import AuthGuard

_CLIENT = b"millstream-client"
"""Header with the scheme and address of the client."""
_IN_QUERY = "!\"#$%&'()*+,/:;<=>?@[\\]^`{|}"
"""Characters that a query may have as it's forwarded, because it's quoted already."""
_OWN = frozenset({
    b"accept-encoding", b"connection", b"content-length", b"expect", b"keep-alive", b"te", b"trailer",
    b"transfer-encoding", b"upgrade", _CLIENT,
})  # fmt: skip
"""Request headers of one connection. The worker with the client's connection compresses replies."""
_WRITTEN = frozenset({b"connection", b"content-length", b"date", b"keep-alive", b"transfer-encoding"})
"""Reply headers that every connection writes itself, in addition to its CORS headers."""
_CORS = b"access-control-"
_CONNECT_TIMEOUT = 5.0
_END_TIMEOUT = 1.0
"""Seconds for the last replies to other workers."""
_BUSY = refusal(503, "The worker that holds this session is busy or restarting. Retry in a second.", retry_after="1")
_GONE = refusal(503, "The worker isn't running. Retry in a second.", retry_after="1")
"""The worker didn't get the request, because it isn't running."""
_STOPPED = (
    "The worker that holds this session stopped during the request, which may have taken effect. Initialize "
    "again, and check before you repeat the request."
)
_STOPPED_CALL = (
    "The worker that served you stopped during the request, which may have taken effect. Check before you repeat it."
)


class SessionForwarder:
    """Forwards requests for sessions on other workers and receives requests for this worker's own sessions.

    Args:
        services: The services of this worker.
        endpoints: All endpoints of the server.
        folder: The folder with the private sockets.
        guard: Authenticates callers, if they have to sign in.
        number: Number of this worker, from 1.
        workers: Number of workers.
    """

    def __init__(
        self,
        services: Services,
        endpoints: Endpoints,
        folder: Path,
        *,
        guard: "AuthGuard | None" = None,
        number: int = 1,
        workers: int = 1,
    ) -> None:
        self._services = services
        self._folder = folder
        self._guard = guard
        self._workers = workers
        services.session_holder = f"{number}-{services.session_holder}"
        self.read_addresses()
        self._inner = endpoints
        self.endpoints: Endpoints = self._wrap(endpoints, self._pass_on)
        """The endpoints for the public sockets."""
        self._received = self._wrap(endpoints, _receive)
        self._listener = SocketListener(self._received)
        self._holders: Recent[bytes, str] = Recent(MAX_CACHED_SESSIONS)
        """Sealed session id -> its worker, or empty for an invalid one."""
        self._pools: dict[str, ConnectionPool] = {}
        self._lost: set[str] = set()
        """Workers that closed a connection during a request and haven't responded since. They may be exiting."""

    def update(self) -> None:
        """Forward requests for the addresses of MCP that there are now."""
        self.read_addresses()
        self.endpoints.use(self._wrap(self._inner, self._pass_on).hot)
        self._received.use(self._wrap(self._inner, _receive).hot)

    def read_addresses(self) -> None:
        addresses = self._services.addresses
        self._paths = frozenset(path for each in addresses for path in (each.path, each.path.rstrip("/") + "/"))
        self._sse_paths = frozenset(each.sse for each in addresses)
        self._call_paths = ("/mcp/tools/call", *(each.tools for each in addresses))
        """Beginnings of paths that call tools without MCP."""

    def _wrap(self, endpoints: Endpoints, around: Callable[[Handler], Handler]) -> Endpoints:
        """Return the endpoints with other handlers for MCP."""

        def find(method: str, path: str) -> Handler | None:
            handler = endpoints.find(method, path)
            return handler if handler is None or not self._is_forwarded(path) else around(handler)

        hot = {
            key: (around(handler) if self._is_forwarded(path) else handler, method, path)
            for key, (handler, method, path) in endpoints.hot.items()
        }
        return msgspec.structs.replace(endpoints, find=find, hot=hot)

    def _is_forwarded(self, path: str) -> bool:
        return path in self._paths or path in self._sse_paths or path.startswith(self._call_paths)

    async def listen(self) -> None:
        """Receive requests from other workers.

        Raises:
            OSError: The socket can't be created.
        """
        path = self._folder / self._services.session_holder
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(os.fspath(path))
        path.chmod(0o600)
        await self._listener.listen(sock)

    async def close(self) -> None:
        """Stop forwarding and receiving requests when all calls have ended."""
        with suppress(OSError):
            (self._folder / self._services.session_holder).unlink()
        await self._listener.accept_backlog()
        self._listener.close()
        clock, state = asyncio.get_running_loop().time, self._listener.state
        until = clock() + _END_TIMEOUT
        while any(each.answering for each in state.connections) and clock() < until:  # noqa: ASYNC110  as in the drain
            await asyncio.sleep(TICK)
        await self._listener.shut_down(_END_TIMEOUT)
        for pool in self._pools.values():
            await pool.close()

    # To other workers

    def _pass_on(self, handler: Handler) -> Handler:
        services, holder, guard = self._services, self._services.session_holder, self._guard

        def serve(request: HttpRequest) -> Awaitable[Response | Sink | None]:
            sealed, worker = request.headers.get(b"mcp-session-id"), ""
            if sealed is not None and request.path in self._paths:
                worker = self._holders.get(sealed) or self._find_holder(sealed)
            if worker:
                return handler(request) if worker == holder else self._forward(worker, request)
            is_call, keeps = request.method == "POST" or request.path in self._sse_paths, services.keeps_callers
            if guard is None or not is_call or keeps is None or not keeps():
                return handler(request)
            return self._serve_caller(handler, request)

        return serve

    async def _serve_caller(self, handler: Handler, request: HttpRequest) -> Response | Sink | None:
        assert self._guard is not None  # noqa: S101  the caller has looked
        found = await self._guard(request)
        if not isinstance(found, Principal):
            return found
        body, cancels = request.body, request.cancel_on_disconnect
        for worker in self._workers_for(found):
            if worker == self._services.session_holder:
                break
            reply = await self._forward(worker, request, is_session=False)
            if reply is not _GONE:
                return reply
            request.body, request.cancel_on_disconnect = body, cancels
        return await handler(request)

    def _workers_for(self, principal: Principal) -> Iterator[str]:
        """Yield the workers for a principal's state, in the order in which to try them: first the one with the
        principal's number, or while that one isn't running, the next one. A killed worker leaves its socket.
        """
        first = int.from_bytes(principal.binding[:8], "big")
        names = os.listdir(self._folder)  # noqa: PTH208  as fast as possible
        for number in range(first, first + self._workers):
            found = [self._folder / name for name in names if name.startswith(f"{number % self._workers + 1}-")]
            if len(found) > 1:
                found.sort(key=_created_at, reverse=True)
            yield from (each.name for each in found)

    def _find_holder(self, sealed: bytes) -> str:
        services = self._services
        token = seal.decode(sealed.decode("latin-1"), services.ring, services.clock() - services.leeway)
        worker = "" if token is None else token.worker
        if worker:
            self._holders.keep(sealed, worker)
        return worker

    async def _forward(self, worker: str, request: HttpRequest, *, is_session: bool = True) -> Response | None:
        if worker not in self._pools:
            await self._drop_pools()
        pool = self._pools.get(worker) or self._make_pool(worker)
        try:
            data, request.body = _encode(request), b""
        except UnsendableRequest as exc:
            return refusal(400, str(exc))
        request.cancel_on_disconnect = True
        lost = worker in self._lost
        try:
            # A worker only closes idle connections, so a request on one of these wasn't processed.
            reply = await pool.send(data, repeatable=True)
        except ConnectFailed as exc:
            if not isinstance(exc.__cause__, FileNotFoundError | ConnectionRefusedError):
                return _BUSY
            reply = None
        except ClientError:  # a worker that has finished all calls removes its socket before it closes connections
            if is_session and (lost or not (self._folder / worker).exists()):
                return _refuse(data, unknown_session())
            self._lost.add(worker)
            return _refuse(data, ProtocolError(SERVER_ERROR, _STOPPED if is_session else _STOPPED_CALL, status=502))
        self._lost.discard(worker)
        if reply is None:
            if self._pools.pop(worker, None) is not None:
                await pool.close()
            return _refuse(data, unknown_session()) if is_session else _GONE
        head = b"".join(
            b"%b: %b\r\n" % each
            for each in reply.headers.items()
            if each[0] not in _WRITTEN and not each[0].startswith(_CORS)
        )
        if reply.stream is None:
            return Response(reply.body, reply.status, head)
        await self._stream(reply, request.open(reply.status, head), is_call=request.method == "POST")
        return None

    async def _stream(self, reply: HttpReply, sink: Sink, *, is_call: bool) -> None:
        """Forward a stream until either side closes it. A stopping worker waits only for streams of calls."""
        stream, endings = reply.stream, self._services.endings
        assert stream is not None  # noqa: S101  the caller has looked
        sink.on_close(stream.close)
        if not is_call:
            endings.add(sink.close)
        try:
            while data := await stream.read():
                sink.write(data)
                await sink.drain()
        except ClientError:  # the worker has exited, so the client finds that the session is lost
            pass
        finally:
            endings.discard(sink.close)
            stream.close()

    async def _drop_pools(self) -> None:
        """Close the pools of workers that are gone."""
        for gone in [each for each in self._pools if not (self._folder / each).exists()]:
            self._lost.discard(gone)
            await self._pools.pop(gone).close()

    def _make_pool(self, worker: str) -> ConnectionPool:
        path = os.fspath(self._folder / worker)

        async def dial(make: Callable[[], HttpConnection], url: Url, tls: Any) -> HttpConnection:
            _, connection = await asyncio.get_running_loop().create_unix_connection(make, path)
            return connection

        pool = self._pools[worker] = ConnectionPool(
            parse_url("http://worker"),
            max_connections=self._services.settings.max_connections,
            max_body=sys.maxsize,
            connect_timeout=_CONNECT_TIMEOUT,
            dial=dial,
        )
        return pool


def _refuse(data: bytes, exc: ProtocolError) -> Response:
    """Return the error for a request that `_encode` returned, with the id of its message."""
    message = None
    with suppress(ProtocolError):
        message = read(data.partition(b"\r\n\r\n")[2])
    return error_response(exc, message.id if message is not None and message.is_request else None)


def _created_at(path: Path) -> float:
    with suppress(OSError):
        return path.stat().st_ctime
    return 0.0


def _encode(request: HttpRequest) -> bytes:
    query = quote(request.query, safe=_IN_QUERY)
    target = f"{quote(request.path)}?{query}" if query else quote(request.path)
    client = (_CLIENT, f"{request.scheme} {request.peer}".encode())
    head = encode_raw_headers([*(each for each in request.raw_headers if each[0] not in _OWN), client])
    return encode_request(request.method, target, head, request.body)


def _receive(handler: Handler) -> Handler:
    """Serve a request from another worker as if it had come from the client."""

    def serve(request: HttpRequest) -> Awaitable[Response | Sink | None]:
        scheme, _, peer = request.headers.pop(_CLIENT, b"").partition(b" ")
        request.raw_headers = [each for each in request.raw_headers if each[0] != _CLIENT]
        request.scheme, request.peer = scheme.decode() or request.scheme, peer.decode()
        return handler(request)

    return serve
