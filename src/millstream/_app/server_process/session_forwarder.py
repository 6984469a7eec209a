"""Forwarding of requests to the worker that holds their session, or their caller's state.

Programs and upstreams keep state for a client's session in one process, so its sealed id names the worker that holds
it. Any worker can receive a request. If it's for another worker's session, it's forwarded unchanged to that worker's
private socket, before any other check, and the reply is streamed back. The holder checks the credential, counts the
call against the limits, and logs it, as for its own connections.

If the holder has exited or is stopping, or if there's none because the session is older than the first upstream that
keeps state, all workers choose the same other one by its number, which its replacement inherits. While that worker
isn't running, they choose the next one. It goes on with the session, whose state at upstreams is lost (see `Links`).
Answers and cancellations reach the calls that a stopping worker still runs through the store.

Upstreams can also keep state for a principal, in a process or session that all of the principal's clients share. So a
principal's requests without a holder go to one worker, too, chosen in the same way. The receiver authenticates them
first, and so does the holder.

The sockets are beside the socket of the parent's store, in a folder that only this user can access.
"""

import asyncio
import os
import socket
import sys
import zlib
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
from millstream._transports.open_streams import error_response
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
_LEFT = "."
"""How the name of a stopping worker's socket begins. The connections to it are still open."""
_CONNECT_TIMEOUT = 5.0
_END_TIMEOUT = 1.0
"""Seconds for the last replies to other workers."""
_BUSY = refusal(503, "The worker that holds this session is busy or restarting. Retry in a second.", retry_after="1")
_GONE = refusal(503, "The worker isn't running. Retry in a second.", retry_after="1")
"""The worker didn't get the request, because it isn't running or takes no more."""
_STOPPED = (
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
        self._home = f"{folder.name}/"
        """How the names of all workers of this server begin. The rest is the name of the socket."""
        self._name = f"{number}-{services.session_holder}"
        services.session_holder = self._home + self._name
        self._leaving = False
        self.read_addresses()
        self._inner = endpoints
        self.endpoints: Endpoints = self._wrap(endpoints, self._pass_on)
        """The endpoints for the public sockets."""
        self._received = self._wrap(endpoints, _receive)
        self._listener = SocketListener(self._received)
        self._holders: Recent[bytes, str] = Recent(MAX_CACHED_SESSIONS)
        """Sealed session id -> the name of its worker, or empty if it has none here."""
        self._pools: dict[str, ConnectionPool] = {}

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
        path = self._folder / self._name
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(os.fspath(path))
        path.chmod(0o600)
        await self._listener.listen(sock)

    def leave(self) -> None:
        """Let other workers take over the sessions, because this one is stopping."""
        self._leaving = True
        with suppress(OSError):
            (self._folder / self._name).rename(self._folder / f"{_LEFT}{self._name}")

    async def close(self) -> None:
        """Stop forwarding and receiving requests when all calls have ended."""
        with suppress(OSError):
            (self._folder / f"{_LEFT}{self._name}").unlink()
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
        def serve(request: HttpRequest) -> Awaitable[Response | Sink | None]:
            sealed = request.headers.get(b"mcp-session-id")
            if sealed is None or request.path not in self._paths:
                return self._serve_anywhere(handler, request, None)
            worker = self._holders.get(sealed)
            worker = self._find_holder(sealed) if worker is None else worker
            if worker == self._name and not self._leaving:
                return handler(request)
            if worker:
                return self._serve_session(handler, request, worker, sealed)
            return self._serve_anywhere(handler, request, None if worker is None else sealed)

        return serve

    async def _serve_session(
        self, handler: Handler, request: HttpRequest, worker: str, sealed: bytes
    ) -> Response | Sink | None:
        reply = await self._forward(worker, request)
        return await self._serve_anywhere(handler, request, sealed) if reply is _GONE else reply

    def _serve_anywhere(
        self, handler: Handler, request: HttpRequest, sealed: bytes | None
    ) -> Awaitable[Response | Sink | None]:
        """Serve a request that no worker holds the state for, in a session with a sealed id, or without one."""
        services = self._services
        is_call = sealed is not None or request.method == "POST" or request.path in self._sse_paths
        if is_call and self._guard is not None and services.keeps_callers is not None and services.keeps_callers():
            return self._serve_caller(handler, request)
        if sealed is not None and services.binds_sessions:
            return self._serve_by_number(handler, request, zlib.crc32(sealed))
        return handler(request)

    async def _serve_caller(self, handler: Handler, request: HttpRequest) -> Response | Sink | None:
        assert self._guard is not None  # noqa: S101  the caller has looked
        found = await self._guard(request)
        if not isinstance(found, Principal):
            return found
        return await self._serve_by_number(handler, request, int.from_bytes(found.binding[:8], "big"))

    async def _serve_by_number(self, handler: Handler, request: HttpRequest, number: int) -> Response | Sink | None:
        for worker in self._workers_for(number):
            if worker == self._name:
                break
            reply = await self._forward(worker, request)
            if reply is not _GONE:
                return reply
        return await handler(request)

    def _workers_for(self, first: int) -> Iterator[str]:
        """Yield the workers for state without a holder, in the order in which to try them: first the one with a number,
        or while that one isn't running, the next one. A killed worker leaves its socket.
        """
        names = os.listdir(self._folder)  # noqa: PTH208  as fast as possible
        for number in range(first, first + self._workers):
            found = [self._folder / name for name in names if name.startswith(f"{number % self._workers + 1}-")]
            if len(found) > 1:
                found.sort(key=_created_at, reverse=True)
            yield from (each.name for each in found)

    def _find_holder(self, sealed: bytes) -> str | None:
        """Return the name of a session's worker, empty if it has none here, or None for an invalid id."""
        services = self._services
        now = services.clock() - services.leeway
        token = seal.decode(sealed.decode("latin-1"), services.ring, now, services.server_name)
        if token is None:
            return None
        worker = token.worker.removeprefix(self._home) if token.worker.startswith(self._home) else ""
        self._holders.keep(sealed, worker)
        return worker

    async def _forward(self, worker: str, request: HttpRequest) -> Response | None:
        """Forward a request. Return `_GONE`, and leave the request as it is, if the worker didn't get it."""
        if not os.path.exists(f"{self._folder}/{worker}"):  # noqa: ASYNC240, PTH110  it's local and fast
            return _GONE  # it's stopping, although its connections may still be open
        if worker not in self._pools:
            await self._drop_pools()
        pool = self._pools.get(worker) or self._make_pool(worker)
        try:
            data = _encode(request)
        except UnsendableRequest as exc:
            return refusal(400, str(exc))
        cancels, request.body, request.cancel_on_disconnect = request.cancel_on_disconnect, b"", True
        try:
            # A worker only closes idle connections, so a request on one of these wasn't processed.
            reply = await pool.send(data, repeatable=True)
        except ConnectFailed as exc:
            if not isinstance(exc.__cause__, FileNotFoundError | ConnectionRefusedError):
                return _BUSY
            request.body, request.cancel_on_disconnect = data.partition(b"\r\n\r\n")[2], cancels
            if isinstance(exc.__cause__, ConnectionRefusedError) and self._pools.pop(worker, None) is not None:
                await pool.close()
            return _GONE
        except ClientError:
            return _refuse(data)
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
        except ClientError:  # the worker has exited
            pass
        finally:
            endings.discard(sink.close)
            stream.close()

    async def _drop_pools(self) -> None:
        """Close the pools of workers that are gone."""
        names = os.listdir(self._folder)  # noqa: PTH208  as above
        for gone in [each for each in self._pools if each not in names and f"{_LEFT}{each}" not in names]:
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


def _refuse(data: bytes) -> Response:
    """Return the error for a request whose worker stopped, from what `_encode` returned, with the id of its message."""
    message = None
    with suppress(ProtocolError):
        message = read(data.partition(b"\r\n\r\n")[2])
    exc = ProtocolError(SERVER_ERROR, _STOPPED, status=502)
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
