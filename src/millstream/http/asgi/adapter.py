"""The ASGI adapter: one HTTP scope in, one `Request` to the transport handler, its reply out as ASGI messages.

It works under any ASGI server, alone or below a ``Mount``. Body size and body time are enforced here; what only the
lane's guard can see (slow headers, connection caps, stalled writes) is not. The plain path starts no task: awaitables
are run to their first suspension by hand, inside the server's own task, and only a call that really waits gets a
watcher for the peer's disconnect. Routing, WebSocket and lifespan belong to `app.py`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Mapping, MutableMapping
from typing import Any, cast

from millstream.config import Settings
from millstream.http.asgi.sink import AsgiSink, Send, header_list, header_lists
from millstream.http.compression import FROM_BYTES, compressed
from millstream.http.hosts import EXEMPT, HostPolicy
from millstream.http.message import TEXT_HEAD, Handler, Request, Response, Sink
from millstream.http.stream_end import failure

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Route = Callable[[str, str], Handler | None]
"""``route(method, path)`` gives the handler for a path below the mount point, or `None` for 404."""

_OVER = object()
_NOT_FOUND = Response(body=b"Not found.\n", status=404, head=TEXT_HEAD)
_CLOSING = TEXT_HEAD + b"connection: close\r\n"
_TOO_LARGE = Response(body=b"The body is too large.\n", status=413, head=_CLOSING)
_TOO_SLOW = Response(body=b"The body came too slowly.\n", status=408, head=_CLOSING)


class AsgiAdapter:
    """An ASGI 3 application for scopes of type ``http``."""

    __slots__ = ("body_timeout", "digits", "hot", "max_body", "policy", "requests", "route", "stream_buffer")

    def __init__(
        self,
        route: Route,
        *,
        settings: Settings,
        policy: HostPolicy,
        hot: Mapping[tuple[str, str], Handler] | None = None,
    ) -> None:
        self.route = route
        self.hot = hot or {}
        """(method, path) -> handler: found without a Python call."""
        self.policy = policy
        self.max_body = settings.max_body
        self.requests = 0
        """How many there were: a server that nobody shuts down closes when there are no more."""
        self.digits = len(str(settings.max_body))
        self.body_timeout = settings.body_timeout
        self.stream_buffer = settings.stream_buffer

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Coroutine[Any, Any, None]:
        """Serve one request. No coroutine of its own: it gives the one that does the work."""
        self.requests += 1
        path: str = scope["path"]
        root: str = scope.get("root_path", "")
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
            client[0] if client else "",
            root,
            scope.get("scheme", "http"),
            adapter=self,
            receive=receive,
            send=send,
        )
        if (
            headers.get(b"host") not in self.policy.good
            or b"origin" in headers
            or b"sec-fetch-site" in headers
            or len(headers) != len(raw_headers)
        ) and path not in EXEMPT:
            refusal = exchange.screen()
            if refusal is not None:
                return exchange.reply(refusal)
        handler = self.hot.get((method, path)) or self.route(method, path)
        if handler is None:
            return exchange.reply(_NOT_FOUND)
        if len(length := headers.get(b"content-length", b"")) >= self.digits and _too_long(length, self.max_body):
            return exchange.reply(_TOO_LARGE)
        return exchange.serve(handler)


def _too_long(length: bytes, limit: int) -> bool:
    """Whether a body declares more than `limit` bytes; what is no number is measured as it comes."""
    return length.isdigit() and (len(length) > 18 or int(length) > limit)


class AsgiExchange(Request, eq=False, kw_only=True):
    """One request and its reply."""

    # request
    adapter: AsgiAdapter
    receive: Receive
    send: Send
    cors: bytes = b""
    # reply
    answer: Response | Sink | None = None
    """What the handler gave."""
    sink: AsgiSink | None = None
    # the body
    arrived: bool = False
    limit: asyncio.Timeout | None = None
    """The time that the body has, once it has to be waited for."""
    # the peer's disconnect
    gone: bool = False
    cancelled: bool = False
    over: bool = False

    def screen(self) -> Response | None:
        """The slow half of the Host and Origin check, and CORS."""
        policy = self.adapter.policy
        refusal = policy.check(self.method, self.headers, self.raw_headers, self.peer)
        origin = self.headers.get(b"origin")
        if refusal is not None or origin is None:
            return refusal
        self.cors = policy.cors_head(origin)
        return policy.preflight(self)

    async def serve(self, handler: Handler) -> None:
        """Read the body, run the handler, send what it gives; without a task unless something has to wait."""
        step = self.work(handler).__await__()
        try:
            pending = next(step, _OVER)
            if pending is not _OVER:
                await (self.wait(step, pending) if self.arrived else self.arrive(step, pending))
        except Exception as exc:
            if not self.arrived:
                raise
            self.answer = self.failed(exc)
        if not self.arrived:
            return
        response = self.answer
        if (
            type(response) is Response
            and self.sink is None
            and not (self.gone or self.cors)
            and self.method == "POST"
            and response.status == 200
            and len(response.body) < FROM_BYTES
        ):
            # `reply`, inline.
            head, body = response.head, response.body
            headers = [*(header_lists.get(head) or header_list(head)), (b"content-length", b"%d" % len(body))]
            await self.send({"type": "http.response.start", "status": response.status, "headers": headers})
            await self.send({"type": "http.response.body", "body": body})
        else:
            await self.end(response)

    async def end(self, response: Response | Sink | None) -> None:
        """Send what the handler gave: a reply, or the rest of a stream."""
        sink = self.sink
        if sink is not None:
            if response is sink and not sink.closed:
                self.over = False
                step = _coroutine(sink.wait_closed()).__await__()
                await self.wait(step, next(step))
            await sink.finish()
        elif not self.gone:
            if not isinstance(response, Response):
                response = self.failed(RuntimeError("The handler gave neither a reply nor a stream."))
            await self.reply(response)

    async def reply(self, response: Response) -> None:
        """Send a complete reply."""
        if len(response.body) >= FROM_BYTES and b"accept-encoding" in self.headers:
            response = compressed(response, self.headers)
        head = response.head + self.cors
        headers = header_lists.get(head) or header_list(head)
        body = response.body
        if response.status not in (204, 304):
            headers = [*headers, (b"content-length", b"%d" % len(body))]
        if self.method == "HEAD":
            body = b""
        await self.send({"type": "http.response.start", "status": response.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    async def work(self, handler: Handler) -> None:
        """Read the body and run the handler. Without `arrived` at its end there is nobody to be answered any more."""
        message = await self.receive()
        self.body = message.get("body", b"")
        if (
            message["type"] != "http.request"
            or message.get("more_body", False)
            or len(self.body) > self.adapter.max_body
        ) and not await self.read(message):
            return
        self.arrived = True
        if self.limit is None:
            self.answer = await handler(self)
            return
        self.limit.reschedule(None)
        step = self.attend(handler).__await__()
        pending = next(step, _OVER)
        if pending is not _OVER:
            await self.wait(step, pending)

    async def attend(self, handler: Handler) -> None:
        """Run the handler once the body has come late."""
        try:
            self.answer = await handler(self)
        except Exception as exc:
            self.answer = self.failed(exc)

    async def read(self, message: Message) -> bool:
        """Read a body that did not come in one message, within its size; False when it never comes."""
        parts = bytearray()
        while message["type"] == "http.request":
            parts += message.get("body", b"")
            if len(parts) > self.adapter.max_body:
                await self.reply(_TOO_LARGE)
                return False
            if not message.get("more_body", False):
                self.body = bytes(parts)
                return True
            message = await self.receive()
        return False

    async def arrive(self, step: Generator[Any, Any, None], pending: Any) -> None:
        """Let `work` go on while the body is on its way, which has its time."""
        self.limit = asyncio.timeout(self.adapter.body_timeout)
        try:
            async with self.limit:
                await _Resumed(step, pending)
        except TimeoutError:
            if not self.limit.expired():
                raise
            await self.reply(_TOO_SLOW)

    async def wait(self, step: Generator[Any, Any, None], pending: Any) -> None:
        """Let suspended work go on, with a watcher for the peer's disconnect beside it."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self.cancel = task.cancel
        watcher = asyncio.create_task(self.watch(task))
        try:
            await _Resumed(step, pending)
        except asyncio.CancelledError:
            if self.sink is not None:
                self.sink.cut()
            if not self.cancelled or task.cancelling() > 1:
                raise
        finally:
            self.over = True
            if self.cancelled:
                task.uncancel()
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)

    async def watch(self, task: asyncio.Task[Any]) -> None:
        """Wait for the disconnect; then the stream is over, and the handler too if it asked for that."""
        while (await self.receive())["type"] == "http.request":
            pass
        if self.over:
            return
        self.gone = True
        if self.sink is not None:
            self.sink.cut()
        if self.cancel_on_disconnect:
            self.cancelled = True
            task.cancel()

    def open(self, status: int, head: bytes) -> Sink:
        """Start a streamed reply."""
        if self.sink is not None:
            raise RuntimeError("This reply is already a stream.")
        self.sink = AsgiSink(self.send, status, head + self.cors, limit=self.adapter.stream_buffer)
        if self.gone:
            self.sink.cut()
        return self.sink

    def failed(self, exc: Exception) -> Response:
        """The reply for a handler that failed; a stream that has begun is cut instead."""
        if self.sink is not None:
            self.sink.cut()
        return failure(exc, self.method, self.path)


async def _coroutine(awaitable: Awaitable[Any]) -> Any:
    """What can be run by hand, of any awaitable."""
    return await awaitable


class _Resumed:
    """Goes on with an awaitable that was run to its first suspension by hand; `pending` is what it waits for."""

    __slots__ = ("_pending", "_step")

    def __init__(self, step: Generator[Any, Any, Any], pending: Any) -> None:
        self._step = step
        self._pending = pending

    def __await__(self) -> Generator[Any, Any, Any]:
        step, pending = self._step, self._pending
        while True:
            try:
                sent = yield pending
            except GeneratorExit:
                step.close()
                raise
            except BaseException as exc:
                pending = exc
                throw = True
            else:
                pending = sent
                throw = False
            try:
                pending = step.throw(pending) if throw else step.send(pending)
            except StopIteration as done:
                return done.value
