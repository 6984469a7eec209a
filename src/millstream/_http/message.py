"""HTTP without a server: what a transport handler gets and gives.

A handler is ``async (HttpRequest) -> Response | Sink | None``. It returns a `Response` for a plain reply, or opens a
`Sink` with ``request.open(...)``. It writes to that and returns ``None`` when the stream is over; or it returns the
open sink, which others write to until it closes: a stream that only listens needs no waiting task. The adapters (ASGI
and our server) build the one and carry out the other. Nothing here knows MCP, a socket or an event loop.
"""

from collections.abc import Awaitable, Callable, Collection
from functools import lru_cache, partial
from ipaddress import IPv6Address, ip_address
from typing import Protocol
from urllib.parse import parse_qs

from msgspec import Struct

from millstream._protocol.principal import Principal

JSON_HEAD = b"content-type: application/json\r\n"
TEXT_HEAD = b"content-type: text/plain; charset=utf-8\r\n"
STREAM_HEAD = b"content-type: text/event-stream\r\ncache-control: no-cache, no-transform\r\nx-accel-buffering: no\r\n"
_CUSTOMER = 64
"""Bits of an IPv6 address that name a customer; the rest is theirs to choose."""


class Response(Struct, gc=False):
    """A complete reply. `head` holds finished header lines, lower-case names, each ending in CRLF.

    The adapter adds ``content-length``, ``date`` and connection headers.
    """

    body: bytes = b""
    status: int = 200
    head: bytes = JSON_HEAD


def header_lines(**headers: str) -> bytes:
    """Finished header lines for a `Response.head`; ``retry_after="1"`` is written as ``retry-after: 1``.

    Raises:
        ValueError: a value would end its line, or has characters that a header cannot hold.
    """
    lines = b""
    for name, value in headers.items():
        if not value.isprintable():
            raise ValueError(f"A header cannot hold {value!r}.")
        lines += f"{name.replace('_', '-')}: {value}\r\n".encode("latin-1")
    return lines


def refusal(status: int, text: str, **headers: str) -> Response:
    """Return a refusal in one line of plain text, which says what happened and what to do, with further
    `header_lines`.
    """
    return Response(f"{text}\n".encode(), status, TEXT_HEAD + header_lines(**headers))


class Outlet(Protocol):
    """One way out to a peer: the body of a response, or a WebSocket. Every kind keeps this contract.

    - It is open from the start and closes once: by `close`, because the peer went away, or because it fell too far
      behind. It never opens again, and it knows only that it is closed, not why.
    - Chunks reach the peer whole and in the order of the writes, up to some point; nothing is ever left out between
      two chunks. After `close` that point is the end, so the peer sees a complete body. In the other cases the body is
      broken off without its final chunk, so the peer can tell.
    - No method raises because of the peer. Only `drain` and `wait_closed` wait.
    - All of it belongs to the event loop that runs the handler; other threads stay out.
    """

    closed: bool
    """True once the peer has gone or `close` was called."""

    @property
    def buffered(self) -> int:
        """Bytes written but not yet accepted by the peer's connection, or 0 if the peer is gone."""
        ...

    def write(self, data: bytes, /) -> object:
        """Write a chunk without waiting. Nothing happens when it is closed or the chunk is empty.

        A reader who is more than `Settings.stream_buffer` bytes behind is cut off instead, so a writer that can't wait
        (a broadcast) needs no look at `buffered`; one that can calls `drain`.
        """
        ...

    async def drain(self) -> None:
        """Wait until the buffer is below its high-water mark, or it is closed."""

    def close(self) -> None:
        """End it properly: what was written still goes out, then the final chunk. Idempotent."""

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call back once when the peer goes away or `close` is called; at once when it already happened."""


class Sink(Outlet, Protocol):
    """An outlet with asynchronous close. The HTTP server, the ASGI adapter, and each WebSocket have one."""

    async def wait_closed(self) -> None:
        """Wait until it is closed. The bytes may still be on their way."""


@lru_cache(maxsize=4096)
def peer_network(address: str) -> str:
    """Return the network that counts as one address. For IPv6 it's a customer's network, which has many addresses."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    network = int(parsed) >> (128 - _CUSTOMER) << (128 - _CUSTOMER)
    return f"{IPv6Address(network)}/{_CUSTOMER}"


class HttpRequest(Struct, eq=False):
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
    """The caller, as the guard in front of the handler found out; None for an anonymous one."""

    @property
    def owner(self) -> str:
        """The owner whose share of the server's capacity the request uses: the principal, otherwise the peer's
        `peer_network`.
        """
        return peer_network(self.peer) if self.principal is None else self.principal.id

    def ends_call(self) -> bool:
        """Called when the handler's task was cancelled, but not its call. True if the peer has gone; if not, it still
        waits for an answer.
        """
        return False

    def open(self, status: int, head: bytes) -> Sink:
        """Start a streamed reply with a status and finished header lines.

        Raises:
            RuntimeError: it has been answered already, or cannot be by a stream.
        """
        raise RuntimeError(f"{self.method} {self.path} cannot be answered by a stream.")


def query_values(query: bytes) -> dict[str, list[str]]:
    """Return the values of each name in a query string."""
    return parse_qs(query.decode("latin-1"), keep_blank_values=True) if query else {}


def query_value(name: str, query: bytes) -> str:
    """Return the last value of a name in a query string, or an empty string."""
    return query_values(query).get(name, [""])[-1] if query else ""


client_id_of = partial(query_value, "client_id")
"""The `client_id` in a query string, or an empty string."""


def last_event_id(request: HttpRequest) -> str:
    """Return the id to resume an event stream from: the header, which an `EventSource` sends when it reconnects; before
    that only the query can name one.
    """
    header = request.headers.get(b"last-event-id")
    return header.decode("utf-8", "replace").strip() if header else query_value("last_event_id", request.query)


Handler = Callable[[HttpRequest], Awaitable[Response | Sink | None]]
