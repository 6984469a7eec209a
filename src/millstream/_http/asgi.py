"""The two ASGI adapters: one runs our handlers in an ASGI server, the other runs an ASGI application as a handler.

`AsgiAdapter` turns one HTTP scope into one `HttpRequest` to the transport handler, and its reply into ASGI messages. It
works under ASGI servers, alone or below a ``Mount``. It limits the size and time of bodies. Limits that need access to
the socket (slow headers, connection caps, stalled writes) are left to the server. A call that doesn't suspend starts no
task. Otherwise, a task watches for the peer's disconnect. Routing, WebSocket, and lifespan belong to the application.

`HostedApplication` is for the program's own pages and webhooks. A small reply is collected and sent when the
application finishes. Any other reply is streamed.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Generator, MutableMapping
from types import coroutine
from typing import Any, cast

from msgspec import Struct, field

from millstream._http.message import (
    FROM_BYTES,
    CloseSignal,
    CompactEvent,
    Handler,
    Header,
    HttpRequest,
    Response,
    Sink,
    body_too_large,
    compress,
    failure,
    refusal,
)
from millstream._http.server import Endpoints
from millstream._override import override
from millstream._protocol.principal import Share

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_HIGH_WATER = 64 * 1024
_MAX_CACHED = 256


class _HeaderLists(dict[bytes, list[Header]]):
    """Cache of split header lines. Nearly all replies use one of a few heads, found without a Python call."""

    def __missing__(self, head: bytes) -> list[Header]:
        parts = (line.partition(b": ") for line in head.split(b"\r\n")[:-1])
        if len(self) >= _MAX_CACHED:
            self.clear()
        found = self[head] = [(name, value) for name, _, value in parts]
        return found


header_lists = _HeaderLists()
header_list = header_lists.__getitem__
"""Converts header lines to an ASGI header list. Callers must not change the list."""


class AsgiSink(CloseSignal, eq=False):
    """The `Sink` of the ASGI adapter.

    ASGI has no synchronous write and doesn't expose the socket's buffer, so a streamed reply has a bounded buffer,
    which one task sends in order. A reader that falls more than `limit` bytes behind is disconnected: the reply ends
    without the final message, so the peer sees a broken stream.
    """

    send: Send
    status: int
    head: bytes
    limit: int
    buffered: int = 0
    buffer: list[bytes] = []  # noqa: RUF012  a Struct copies it
    news: CompactEvent = field(default_factory=CompactEvent)
    pump: asyncio.Task[None] | None = None

    def __post_init__(self) -> None:
        self.on_close(self.news.notify)
        self.pump = asyncio.create_task(self._run())

    def write(self, data: bytes) -> None:
        """Queue a chunk. Disconnect the peer if it's too far behind."""
        if self.closed or not data:
            return
        if self.buffered > self.limit:
            self.cut()
            return
        self.buffer.append(data)
        self.buffered += len(data)
        self.news.notify()

    async def drain(self) -> None:
        while self.buffered > _HIGH_WATER and not self.closed:
            await self.news.wait_changed()

    def close(self) -> None:
        """End the reply after the buffered bytes are sent."""
        self.connection_lost()

    def cut(self) -> None:
        """End the reply without the final message and drop buffered bytes."""
        self.buffer.clear()
        self.buffered = 0
        if self.pump is not None:
            self.pump.cancel()
        self.connection_lost()

    async def finish(self) -> None:
        """Close and wait until the last byte is passed to the server or the peer has disconnected."""
        pump = self.pump
        assert pump is not None  # noqa: S101  set when the stream began
        self.close()
        try:
            await asyncio.wait((pump,))
        finally:
            pump.cancel()

    async def _run(self) -> None:
        send = self.send
        buffer = self.buffer
        try:
            await send({"type": "http.response.start", "status": self.status, "headers": header_list(self.head)})
            while True:
                if buffer:
                    data = b"".join(buffer)
                    buffer.clear()
                    await send({"type": "http.response.body", "body": data, "more_body": True})
                    self.buffered -= len(data)
                    if self.buffered <= _HIGH_WATER:
                        self.news.notify()
                elif self.closed:
                    break
                else:
                    await self.news.wait_changed()
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:
            # ASGI 2.4 servers raise when the peer has disconnected; older ones ignore the message.
            self.connection_lost()


MAX_PIECES = 1024
"""Maximum messages per body, plus one for each 64 bytes of it."""

_NOT_FOUND = refusal(404, "Not found.")
_PIECES_TOO_SMALL = refusal(400, "The body arrived in too many small pieces. Send larger ones.", connection="close")
_TOO_SLOW = refusal(408, "The body arrived too slowly.", connection="close")
_TOO_MANY = refusal(
    503, "The server is receiving too much data. Retry the request.", retry_after="1", connection="close"
)


_FINISHED: Any = object()
_current_task = cast("Callable[[], asyncio.Task[Any]]", asyncio.current_task)


def no_peer(scope: Scope) -> str:
    """Return the address to use for a peer without one: empty on a Unix socket.

    Over TCP, such a peer has reset its connection. All such peers share one name, so limits apply to them.
    """
    server = scope.get("server")
    return "" if server is None or server[1] is None else "reset"


class AsgiAdapter:
    """An ASGI 3 application for scopes of type ``http``."""

    def __init__(self, table: Endpoints) -> None:
        self.route = table.find
        self.use(table)
        self.policy = table.policy
        self.root_path = table.root_path
        """The prefix that a proxy removed, if the ASGI server doesn't know it."""
        self.limits = limits = table.limits
        self.body_budget = Share(limits.max_incoming_bytes)
        self.body_budget.fit(limits.max_body)
        """The budget for incomplete bodies that arrive in several messages."""
        self.digits = len(str(limits.max_body))

    def use(self, table: Endpoints) -> None:
        """Use the endpoints of a table from the next request on."""
        self.hot = {(method, path): handler for handler, method, path in table.hot.values()}
        """Handlers by (method, path), found without a Python call."""

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """Serve one request. Returns the coroutine that does the work instead of adding one."""
        path: str = scope["path"]
        root: str = scope.get("root_path") or self.root_path
        # Servers and Starlette since 0.33 leave root_path in front of path; older mounts take it off.
        if root and path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
            path = path[len(root) :] or "/"
        client = scope.get("client")
        raw_headers = scope["headers"]
        headers = dict(raw_headers)
        method = scope["method"]
        exchange = AsgiExchange(
            method,
            path,
            raw_headers,
            headers,
            b"",
            scope.get("query_string", b""),
            client[0] if client else no_peer(scope),
            root,
            scope.get("scheme", "http"),
            scope.get("http_version") == "1.0",
            adapter=self,
            receive=receive,
            send=send,
        )
        if (
            headers.get(b"host") not in self.policy.good
            or b"origin" in headers
            or b"sec-fetch-site" in headers
            or len(headers) != len(raw_headers)
        ):
            screened, exchange.cors = self.policy.screen(exchange)
            if screened is not None:
                return exchange.reply(screened)
        handler = self.hot.get((method, path)) or self.route(method, path)
        if handler is None:
            return exchange.reply(_NOT_FOUND)
        length = headers.get(b"content-length", b"")
        # A body without a declared length is measured on arrival.
        if len(length) >= self.digits and length.isdigit() and (len(length) > 18 or int(length) > self.limits.max_body):
            return exchange.reply(body_too_large(self.limits.max_body, connection="close"))
        return exchange.serve(handler)


class AsgiExchange(HttpRequest, eq=False, kw_only=True):
    """One request and its reply."""

    # request
    adapter: AsgiAdapter
    receive: Receive
    send: Send
    cors: bytes = b""
    # reply
    answer: Response | Sink | None = None
    """The handler's result, or the response that rejects the body."""
    sink: AsgiSink | None = None
    # waiting
    body_complete: bool = False
    """Whether the body is complete."""
    watcher: asyncio.Handle | asyncio.Task[None] | None = None
    """The body's timeout while the body is awaited, then the watcher for the peer's disconnect."""
    cancelled_itself: bool = False
    """Whether the exchange has canceled its own task."""
    disconnected: bool = False
    finished: bool = False
    interrupted: bool = False
    """Whether the handler itself or the server canceled the task."""

    async def serve(self, handler: Handler) -> None:  # noqa: C901, PLR0912  one frame for each request
        """Read the body, run the handler, and send its result."""
        step = self.work(handler).__await__()
        try:
            pending = next(step, _FINISHED)
            if pending is not _FINISHED:
                self.start_watching(_current_task())
                await _resume(step, pending)
            response = self.answer
        except asyncio.CancelledError:
            if self.sink is not None:
                self.sink.cut()
            if not self.cancelled_itself or _current_task().cancelling() > 1:
                raise  # something other than this exchange canceled the task
            response = None if self.body_complete else _TOO_SLOW
        except Exception as exc:
            if not self.body_complete:
                raise
            response = self.fail(exc)
        finally:
            if self.watcher is not None:
                self.finished = True
                # A canceled task's traceback refers to this exchange. Dropping the reference to it avoids a cycle.
                waiting, self.watcher, self.cancel = self.watcher, None, None
                if self.cancelled_itself:
                    _current_task().uncancel()
                waiting.cancel()
                if isinstance(waiting, asyncio.Task):
                    await asyncio.gather(waiting, return_exceptions=True)
                del waiting
        if (
            type(response) is Response
            and self.sink is None
            and not (self.disconnected or self.cors)
            and self.method == "POST"
            and response.status == 200
        ):
            # `reply`, inline.
            head, body = response.head, response.body
            headers = [*header_list(head), (b"content-length", b"%d" % len(body))]
            await self.send({"type": "http.response.start", "status": response.status, "headers": headers})
            await self.send({"type": "http.response.body", "body": body})
        elif self.sink is not None:
            await self.sink.finish()
        elif not self.disconnected:
            if not isinstance(response, Response):
                response = self.fail(RuntimeError("The handler returned neither a reply nor an open stream."))
            await self.reply(response)
        if self.interrupted:
            # The reply is sent, but the server that canceled its task expects the cancellation.
            raise asyncio.CancelledError

    async def work(self, handler: Handler) -> None:
        """Read the body, run the handler, and serve the stream if it returns an open one."""
        message = await self.receive()
        self.body = message.get("body", b"")
        if (
            message["type"] != "http.request"
            or message.get("more_body", False)
            or len(self.body) > self.adapter.limits.max_body
        ):
            self.answer = await self.read(message)
            if self.answer is not None:
                return
        del message  # so the handler can release the body
        self.body_complete = True
        if self.watcher is not None:
            self.watcher.cancel()
            task = _current_task()
            self.watcher = task.get_loop().call_soon(self.start_watching, task)
        response = await handler(self)
        if isinstance(response, Response) and len(response.body) >= FROM_BYTES and b"accept-encoding" in self.headers:
            response = await compress(response, self, self.adapter.limits.compression)
        self.answer = response
        if self.sink is not None and response is self.sink:
            await self.sink.wait_closed()

    async def reply(self, response: Response) -> None:
        """Send a complete reply."""
        head = response.head + self.cors
        headers = header_list(head)
        body = response.body
        if response.status not in (204, 304) and (body or self.method != "HEAD"):
            headers = [*headers, (b"content-length", b"%d" % len(body))]
        if self.method == "HEAD":
            body = b""
        await self.send({"type": "http.response.start", "status": response.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    async def read(self, message: Message) -> Response | None:
        """Read a body that arrives in several messages. Return the refusal if it's too large or incomplete."""
        adapter, parts, pieces, counted = self.adapter, bytearray(), 0, 0
        try:
            while message["type"] == "http.request":
                piece = message.get("body", b"")
                parts += piece
                pieces += 1
                if room := adapter.body_budget.take(self.peer, len(piece)):
                    counted += len(piece)
                if len(parts) > adapter.limits.max_body:
                    return body_too_large(adapter.limits.max_body, connection="close")
                if not message.get("more_body", False):
                    self.body = bytes(parts)
                    return None
                if not room:
                    return _TOO_MANY
                if pieces > MAX_PIECES + len(parts) // 64:
                    return _PIECES_TOO_SMALL
                message = await self.receive()
        finally:
            adapter.body_budget.leave(self.peer, counted)
        self.disconnected = True
        return _TOO_SLOW

    def start_watching(self, task: asyncio.Task[Any]) -> None:
        """Wait for the body, which has a time limit, or for the handler while watching for a disconnect."""
        loop = task.get_loop()
        if not self.body_complete:
            self.watcher = loop.call_later(self.adapter.limits.body_timeout, self.stop, task)
        else:
            self.cancel = task.cancel
            self.watcher = loop.create_task(self.watch(task))

    @override
    def ends_call(self) -> bool:
        """Return whether a cancellation ends the call, like `HttpRequest.ends_call`."""
        self.interrupted = not self.disconnected
        return self.disconnected

    def stop(self, task: asyncio.Task[Any]) -> None:
        """Cancel the exchange's own task."""
        self.cancelled_itself = True
        task.cancel()

    async def watch(self, task: asyncio.Task[Any]) -> None:
        """Wait for the disconnect, then end the stream. Cancel the handler if it asked for that."""
        while (await self.receive())["type"] == "http.request":
            pass
        if self.finished:
            return
        self.disconnected = True
        if self.sink is not None:
            self.sink.cut()
        if self.cancel_on_disconnect:
            self.stop(task)

    @override
    def open(self, status: int, head: bytes) -> Sink:
        """Start a streamed reply."""
        if self.sink is not None:
            raise RuntimeError("This reply was already opened as a stream.")
        self.sink = AsgiSink(self.send, status, head + self.cors, limit=self.adapter.limits.stream_buffer)
        if self.disconnected:
            self.sink.cut()
        return self.sink

    def fail(self, exc: Exception) -> Response:
        """Return the reply for a failed handler. Cut the stream instead if it has begun."""
        if self.sink is not None:
            self.sink.cut()
        return failure(exc, self.method, self.path)


@coroutine
def _resume(step: Generator[Any, Any, None], pending: Any) -> Generator[Any, Any, None]:
    """Continue a coroutine that was driven manually up to its first suspension."""
    while True:
        thrown: BaseException | None = None
        try:
            yield pending
        except BaseException as exc:
            thrown = exc
        if thrown is None:
            yield from step
            return
        # Outside of `except`, so the coroutine's errors don't get this one as their context.
        try:
            pending = step.throw(thrown)
        except StopIteration:
            return
        finally:
            del thrown  # the error's traceback refers to this frame


Application = Callable[[Scope, Any, Any], Awaitable[None]]

MAX_COLLECTED = 256 * 1024
"""Maximum size of a reply with a known length to collect, in bytes."""
_SENDER_HEADERS = frozenset((b"content-length", b"connection", b"transfer-encoding", b"keep-alive", b"date", b"server"))
"""Headers that the sender of the reply sets."""
_LINE_BREAKS = (b"\r", b"\n", b"\0")


class HostedApplication(Struct, frozen=True):
    """A handler that runs an ASGI application: ``Route({"GET": HostedApplication(app).serve})``."""

    application: Application
    """An ASGI 3 application, for scopes of type ``http``."""
    mount_path: str = ""
    """The path at which the application is mounted."""
    parameters: Callable[[HttpRequest], dict[str, Any]] | None = None
    """Path parameters, passed to the application as ``path_params``."""

    async def serve(self, request: HttpRequest) -> Response | Sink | None:
        """Respond to one request.

        Raises:
            BrokenReply: The application failed while it was sending its reply.
            Exception: The application failed before that.
        """
        reply = _Reply(request)
        path = request.root_path + request.path
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "GET" if request.method == "HEAD" else request.method,
            "scheme": request.scheme,
            "path": path,
            "raw_path": path.encode(),
            "root_path": request.root_path + self.mount_path,
            "query_string": request.query,
            "headers": list(request.raw_headers),
            "client": (request.peer, 0) if request.peer else None,
            "server": None,
            "state": {"principal": request.principal},
        }
        if self.parameters is not None:
            scope["path_params"] = self.parameters(request)
        try:
            with contextlib.suppress(_StopApplication):
                await self.application(scope, reply.receive, reply.send)
            if reply.response is None and not reply.disconnected:
                raise RuntimeError("The application didn't send a complete reply.")
        except Exception as exc:
            if reply.disconnected:
                return None
            if reply.sink is not None:
                raise BrokenReply(str(exc)) from exc
            raise
        return reply.response


class BrokenReply(Exception):
    """An application failed in the middle of its reply."""


class _StopApplication(Exception):
    """Raised to stop the application: the reply to a HEAD needs no body."""


class _Reply(Struct, eq=False):
    """A reply in progress, which converts ASGI messages to a `Response` or to chunks of a stream."""

    request: HttpRequest
    request_sent: bool = False
    status: int = 0
    head: bytes = b""
    parts: list[bytes] = []
    collects: bool = False
    sink: Sink | None = None
    decided: asyncio.Event = field(default_factory=asyncio.Event)
    response: Response | None = None
    """The complete reply, unless it was streamed."""

    @property
    def disconnected(self) -> bool:
        """Whether the stream is complete, or the client disconnected."""
        return self.sink is not None and self.sink.closed

    async def receive(self) -> Message:
        if not self.request_sent:
            self.request_sent = True
            return {"type": "http.request", "body": self.request.body, "more_body": False}
        await self.decided.wait()
        if self.sink is not None:
            await self.sink.wait_closed()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._start(message["status"], message.get("headers", ()))
        elif message["type"] == "http.response.body":
            await self._body(message.get("body", b""), more=message.get("more_body", False))

    def _start(self, status: int, headers: Any) -> None:
        pairs = [(bytes(name).lower(), bytes(value)) for name, value in headers]
        if any(each in part for pair in pairs for part in pair for each in _LINE_BREAKS):
            raise ValueError("A header of the reply contains a line break.")
        fields = dict(pairs)
        length = fields.get(b"content-length", b"")
        # Replies whose head begins with a text type may be compressed later, but parts of a file must not be.
        may_compress = status == 200 and b"content-encoding" not in fields
        pairs.sort(key=lambda pair: (pair[0] == b"content-type") != may_compress)
        self.status = status
        self.head = b"".join(b"%b: %b\r\n" % pair for pair in pairs if pair[0] not in _SENDER_HEADERS)
        self.collects = length.isdigit() and int(length) <= MAX_COLLECTED

    async def _body(self, body: bytes, *, more: bool) -> None:
        sink = self.sink
        if sink is None and (self.collects or not more):
            self.parts.append(body)
            if not more:
                self.response = Response(b"".join(self.parts), self.status, self.head)
        else:
            if sink is None:
                sink = self.sink = self.request.open(self.status, self.head)
                self.decided.set()
                if self.request.method == "HEAD":
                    sink.close()
                    raise _StopApplication
            if sink.closed:
                raise OSError("The client has disconnected.")
            sink.write(body)
            await sink.drain()
            if not more:
                sink.close()
        if not more:
            self.decided.set()
