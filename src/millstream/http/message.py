"""HTTP without a server: what a transport handler gets and gives.

A handler is ``async (Request) -> Response | Sink | None``. It returns a `Response` for a plain reply, or opens a
`Sink` with ``request.open(...)``. It writes to that and returns ``None`` when the stream is over; or it returns the
open sink, which others write to until it closes: a stream that only listens needs no waiting task. The adapters (ASGI
and the lane) build the one and carry out the other. Nothing here knows MCP, a socket or an event loop.
"""

from collections.abc import Awaitable, Callable, Collection
from typing import Protocol
from urllib.parse import parse_qs

from msgspec import Struct

from millstream.protocol.principal import Principal

JSON_HEAD = b"content-type: application/json\r\n"
TEXT_HEAD = b"content-type: text/plain; charset=utf-8\r\n"
STREAM_HEAD = b"content-type: text/event-stream\r\ncache-control: no-cache, no-transform\r\nx-accel-buffering: no\r\n"


class Response(Struct, gc=False):
    """A complete reply. `head` holds finished header lines, lower-case names, each ending in CRLF.

    The adapter adds ``content-length``, ``date`` and connection headers.
    """

    body: bytes = b""
    status: int = 200
    head: bytes = JSON_HEAD


def refusal(status: int, text: str, **headers: str) -> Response:
    """A refusal in plain text, one line.

    Args:
        status: the HTTP status.
        text: what happened, and what to do about it.
        headers: further headers; ``retry_after="1"`` is written as ``retry-after: 1``.

    Raises:
        ValueError: a header's value would end its line.
    """
    head = TEXT_HEAD
    for name, value in headers.items():
        if not value.isprintable():
            raise ValueError(f"A header cannot hold {value!r}.")
        head += f"{name.replace('_', '-')}: {value}\r\n".encode("latin-1")
    return Response(f"{text}\n".encode(), status, head)


class Sink(Protocol):
    """One open response body. Chunks arrive whole and in order, or the sink is closed.

    `write` never blocks and never raises: after the peer has gone it does nothing. Writers that can wait call
    `drain`; writers that cannot (broadcast) look at `buffered` and cut a slow reader with `close`.
    """

    closed: bool
    """True once the peer has gone or `close` was called."""

    @property
    def buffered(self) -> int:
        """Bytes written but not yet taken by the socket."""
        ...

    def write(self, data: bytes) -> None: ...

    async def drain(self) -> None:
        """Wait until the buffer is below its high-water mark, or the sink is closed."""
        ...

    def close(self) -> None:
        """End the response properly (final chunk). Idempotent."""
        ...

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call back once when the peer goes away or `close` is called; at once when it already happened."""
        ...

    async def wait_closed(self) -> None: ...


class Request(Struct, eq=False):
    """One HTTP request with its whole body. A Struct because one is made for every request, without a Python call.

    The adapters' own kinds of request know how to open a stream.
    """

    method: str
    path: str
    """Decoded path below the mount point (`root_path` taken off)."""
    raw_headers: Collection[tuple[bytes, bytes]]
    """(lower-case name, value) in order of arrival."""
    headers: dict[bytes, bytes]
    """The last value of each name; shorter than `raw_headers` when a name was repeated."""
    body: bytes = b""
    query: bytes = b""
    peer: str = ""
    """The peer's address without the port, or an empty string."""
    root_path: str = ""
    scheme: str = "http"
    cancel_on_disconnect: bool = False
    """Set by the handler: the adapter cancels the handler when the peer goes away before the reply is complete."""
    cancel: Callable[[], object] | None = None
    """Stop the handler; set by the adapter once the handler waits for something."""
    principal: Principal | None = None
    """Who asks, as the guard in front of the handler found out; None for an anonymous caller."""

    @property
    def owner(self) -> str:
        """Whose share of the server's capacity it takes: the principal's, else that of the peer's address."""
        return self.peer if self.principal is None else self.principal.id

    def open(self, status: int, head: bytes) -> Sink:
        """Start a streamed reply with a status and finished header lines.

        Raises:
            RuntimeError: it has been answered already, or cannot be by a stream.
        """
        raise RuntimeError(f"{self.method} {self.path} cannot be answered by a stream.")


def client_id_of(query: bytes) -> str:
    """The `client_id` in a query string, or an empty string."""
    return parse_qs(query.decode("latin-1")).get("client_id", [""])[0] if query else ""


Handler = Callable[[Request], Awaitable[Response | Sink | None]]
