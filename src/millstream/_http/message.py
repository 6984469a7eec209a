"""Requests and replies of transport handlers, independent of MCP, sockets, and event loops.

A handler is ``async (HttpRequest) -> Response | Sink | None``. It returns a `Response` for a plain reply, or opens a
`Sink` with ``request.open(...)``. It either writes to the sink and returns ``None`` at the end of the stream, or
returns the open sink, so a stream that only listens needs no waiting task. The adapters (ASGI and our own server)
create the requests and send the replies.
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
_IPV6_PREFIX = 64
"""Prefix length of IPv6 networks. A customer can choose the remaining bits of an address."""


class Response(Struct, gc=False):
    """A complete reply. `head` holds finished header lines, lower-case names, each ending in CRLF.

    The adapter adds ``content-length``, ``date`` and connection headers.
    """

    body: bytes = b""
    status: int = 200
    head: bytes = JSON_HEAD


def header_lines(**headers: str) -> bytes:
    """Encode header lines for `Response.head`. ``retry_after="1"`` becomes ``retry-after: 1``.

    Raises:
        ValueError: a value contains a line break or another character that isn't allowed in headers.
    """
    lines = b""
    for name, value in headers.items():
        if not value.isprintable():
            raise ValueError(f"{value!r} can't be the value of a header.")
        lines += f"{name.replace('_', '-')}: {value}\r\n".encode("latin-1")
    return lines


def refusal(status: int, text: str, **headers: str) -> Response:
    """Return an error response with one line of plain text, and with `headers` as in `header_lines`.

    The text says what happened and what to do.
    """
    return Response(f"{text}\n".encode(), status, TEXT_HEAD + header_lines(**headers))


class Outlet(Protocol):
    """An output channel to a peer: the body of a response, or a WebSocket. All implementations follow these rules.

    - It's open from the start and closes once: by `close`, because the peer disconnected, or because the peer fell too
      far behind. It never reopens and doesn't report why it closed.
    - Chunks reach the peer complete and in order, without gaps, up to some point. After `close`, that point is the end,
      so the peer sees a complete body. Otherwise the body ends without its final chunk, which the peer can detect.
    - No method raises because of the peer. Only `drain` and `wait_closed` wait.
    - It isn't thread-safe: use it only in the event loop that runs the handler.
    """

    closed: bool
    """Whether the peer has disconnected or `close` was called."""

    @property
    def buffered(self) -> int:
        """Bytes written but not yet accepted by the peer's connection, or 0 if the peer is gone."""
        ...

    def write(self, data: bytes, /) -> object:
        """Write a chunk without waiting. Do nothing if the outlet is closed or the chunk is empty.

        A reader more than `Settings.stream_buffer` bytes behind is cut off instead, so a writer that can't wait (a
        broadcast) doesn't have to check `buffered`. Other writers call `drain`.
        """
        ...

    async def drain(self) -> None:
        """Wait until the buffer is below its high-water mark, or until the outlet is closed."""

    def close(self) -> None:
        """Close after sending buffered data and the final chunk. Idempotent."""

    def on_close(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, when the outlet closes, or immediately if it already has."""


class Sink(Outlet, Protocol):
    """An outlet with asynchronous close. The HTTP server, the ASGI adapter, and each WebSocket have one."""

    async def wait_closed(self) -> None:
        """Wait until the sink is closed. Data may still be in transit."""


@lru_cache(maxsize=4096)
def peer_network(address: str) -> str:
    """Return the network to count as one client: the address for IPv4, or a customer's network for IPv6."""
    try:
        parsed = ip_address(address)
    except ValueError:
        return address
    if not isinstance(parsed, IPv6Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    network = int(parsed) >> (128 - _IPV6_PREFIX) << (128 - _IPV6_PREFIX)
    return f"{IPv6Address(network)}/{_IPV6_PREFIX}"


class HttpRequest(Struct, eq=False):
    """An HTTP request with its complete body. It's a Struct, so creating one needs no Python call.

    The adapters' subclasses implement `open`.
    """

    method: str
    path: str
    """Decoded path below the mount point, without `root_path`."""
    raw_headers: Collection[tuple[bytes, bytes]]
    """Headers as (lower-case name, value), in order of arrival."""
    headers: dict[bytes, bytes]
    """Last value of each header, by lower-case name."""
    body: bytes = b""
    query: bytes = b""
    peer: str = ""
    """The peer's address without the port, or an empty string."""
    root_path: str = ""
    scheme: str = "http"
    cancel_on_disconnect: bool = False
    """Whether to cancel the handler if the peer disconnects before the reply is complete. Set by the handler."""
    cancel: Callable[[], object] | None = None
    """Function that stops the handler. Set by the adapter once the handler suspends."""
    principal: Principal | None = None
    """The authenticated caller, or None for an anonymous one."""

    @property
    def owner(self) -> str:
        """The owner whose limits the request counts against: the principal, or else the `peer_network`."""
        return peer_network(self.peer) if self.principal is None else self.principal.id

    def ends_call(self) -> bool:
        """Return whether the peer has disconnected, after the handler's task was cancelled but not its call.

        If not, the peer is still waiting for a reply.
        """
        return False

    def open(self, status: int, head: bytes) -> Sink:
        """Start a streamed reply with a status and finished header lines.

        Raises:
            RuntimeError: the request was already answered, or doesn't support a streamed reply.
        """
        raise RuntimeError(f"{self.method} {self.path} doesn't support a streamed reply.")


def query_values(query: bytes) -> dict[str, list[str]]:
    """Return the values of each name in a query string."""
    return parse_qs(query.decode("latin-1"), keep_blank_values=True) if query else {}


def query_value(name: str, query: bytes) -> str:
    """Return the last value of a name in a query string, or an empty string."""
    return query_values(query).get(name, [""])[-1] if query else ""


client_id_of = partial(query_value, "client_id")
"""The `client_id` in a query string, or an empty string."""


def last_event_id(request: HttpRequest) -> str:
    """Return the event id to resume from: the header that `EventSource` sends on reconnect, or else the query's."""
    header = request.headers.get(b"last-event-id")
    return header.decode("utf-8", "replace").strip() if header else query_value("last_event_id", request.query)


Handler = Callable[[HttpRequest], Awaitable[Response | Sink | None]]
