"""An adapter that runs an ASGI application as a handler, for the program's own pages and webhooks.

A small reply is collected and sent when the application finishes. Any other reply is streamed.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from millstream._http.message import HttpRequest, Response, Sink

Application = Callable[[MutableMapping[str, Any], Any, Any], Awaitable[None]]

MAX_COLLECTED = 256 * 1024
"""Maximum bytes of a reply with a known length to collect."""
_SENDER_HEADERS = frozenset((b"content-length", b"connection", b"transfer-encoding", b"keep-alive", b"date", b"server"))
"""Headers that the sender of the reply sets."""
_LINE_BREAKS = (b"\r", b"\n", b"\0")


class HostedApplication:
    """A handler that runs an ASGI application."""

    def __init__(
        self,
        application: Application,
        *,
        mount_path: str = "",
        parameters: Callable[[HttpRequest], dict[str, Any]] | None = None,
    ) -> None:
        """Create a handler for an application.

        Args:
            application: An ASGI 3 application, for scopes of type ``http``.
            mount_path: The path at which the application is mounted.
            parameters: Path parameters, passed to the application as ``path_params``.
        """
        self._application = application
        self._mount_path = mount_path
        self._parameters = parameters

    async def serve(self, request: HttpRequest) -> Response | Sink | None:
        """Respond to one request.

        Raises:
            BrokenReply: The application failed while it was sending its reply.
            Exception: The application failed before that.
        """
        reply = _Reply(request)
        scope = _scope(request, self._mount_path)
        if self._parameters is not None:
            scope["path_params"] = self._parameters(request)
        try:
            with contextlib.suppress(_StopApplication):
                await self._application(scope, reply.receive, reply.send)
            if not reply.complete and not reply.disconnected:
                raise RuntimeError("The application didn't send a complete reply.")
        except Exception as exc:
            if reply.disconnected:
                return None
            if reply.has_started:
                raise BrokenReply(str(exc)) from exc
            raise
        return reply.response


class BrokenReply(Exception):
    """An application failed in the middle of its reply."""


class _StopApplication(Exception):
    """Raised to stop the application: the reply to a HEAD needs no body."""


class _Reply:
    """A reply in progress, which converts ASGI messages to a `Response` or to chunks of a stream."""

    def __init__(self, request: HttpRequest) -> None:
        self._request = request
        self._request_sent = False
        self._status = 0
        self._head = b""
        self._parts: list[bytes] = []
        self._collects = False
        self._sink: Sink | None = None
        self._decided = asyncio.Event()
        self.complete = False
        self.response: Response | None = None
        """The complete reply, unless it was streamed."""

    @property
    def has_started(self) -> bool:
        """Whether part of the reply has been sent."""
        return self._sink is not None

    @property
    def disconnected(self) -> bool:
        """Whether the client disconnected during the reply."""
        return self._sink is not None and self._sink.closed

    async def receive(self) -> dict[str, Any]:
        if not self._request_sent:
            self._request_sent = True
            return {"type": "http.request", "body": self._request.body, "more_body": False}
        await self._decided.wait()
        if self._sink is not None:
            await self._sink.wait_closed()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self._start(message["status"], message.get("headers", ()))
        elif message["type"] == "http.response.body":
            await self._body(message.get("body", b""), more=message.get("more_body", False))

    def _start(self, status: int, headers: Any) -> None:
        pairs = [(bytes(name).lower(), bytes(value)) for name, value in headers]
        if any(each in part for pair in pairs for part in pair for each in _LINE_BREAKS):
            raise ValueError("A header of the reply contains a line break.")
        length = next((value for name, value in pairs if name == b"content-length"), b"")
        names = {name for name, _ in pairs}
        # Replies whose head begins with a text type may be compressed later, but parts of a file must not be.
        if status == 200 and b"content-encoding" not in names:
            pairs.sort(key=lambda pair: pair[0] != b"content-type")
        else:
            pairs.sort(key=lambda pair: pair[0] == b"content-type")
        self._status = status
        self._head = b"".join(b"%b: %b\r\n" % pair for pair in pairs if pair[0] not in _SENDER_HEADERS)
        self._collects = length.isdigit() and int(length) <= MAX_COLLECTED

    async def _body(self, body: bytes, *, more: bool) -> None:
        if self._sink is None and (self._collects or not more):
            self._parts.append(body)
            if not more:
                self._finish(Response(b"".join(self._parts), self._status, self._head))
            return
        if self._sink is None:
            self._sink = self._request.open(self._status, self._head)
            self._decided.set()
            if self._request.method == "HEAD":
                self._sink.close()
                self._finish(None)
                raise _StopApplication
        sink = self._sink
        if sink.closed:
            raise OSError("The client has disconnected.")
        sink.write(body)
        await sink.drain()
        if not more:
            sink.close()
            self._finish(None)

    def _finish(self, response: Response | None) -> None:
        self._decided.set()
        self.complete, self.response = True, response


def _scope(request: HttpRequest, mount_path: str) -> dict[str, Any]:
    path = request.root_path + request.path
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET" if request.method == "HEAD" else request.method,
        "scheme": request.scheme,
        "path": path,
        "raw_path": path.encode(),
        "root_path": request.root_path + mount_path,
        "query_string": request.query,
        "headers": list(request.raw_headers),
        "client": (request.peer, 0) if request.peer else None,
        "server": None,
        "state": {"principal": request.principal},
    }
