"""Requests and replies of transport handlers, independent of MCP, sockets, and event loops.

A handler is ``async (HttpRequest) -> Response | Sink | None``. It returns a `Response` for a plain reply, or opens a
`Sink` with ``request.open(...)``. It either writes to the sink and returns ``None`` at the end of the stream, or
returns the open sink, so a stream that only listens needs no waiting task. The adapters (ASGI and our own server)
create the requests and send the replies.

This module also contains limits, media types (RFC 9110 §8.3, §12.5.1), compression, and errors for handlers and
adapters.
"""

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Mapping
from functools import cache, lru_cache, partial
from hashlib import sha256
from ipaddress import IPv6Address, ip_address
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import parse_qs

from msgspec import Struct, convert

from millstream._confidential import Confidential
from millstream._protocol.jsonrpc import encode
from millstream._protocol.principal import Principal

if TYPE_CHECKING:
    from millstream._config import Settings

try:
    from isal.isal_zlib import compress as _deflate  # pyright: ignore[reportUnknownVariableType]  its stub lacks a type
except ImportError:  # there is no wheel for this platform
    from zlib import compress as _deflate

JSON_HEAD = b"content-type: application/json\r\n"
TEXT_HEAD = b"content-type: text/plain; charset=utf-8\r\n"
STREAM_HEAD = b"content-type: text/event-stream\r\ncache-control: no-cache, no-transform\r\nx-accel-buffering: no\r\n"
_IPV6_PREFIX = 64
"""Prefix length of an IPv6 customer's network. The customer chooses the remaining bits of addresses."""


Header = tuple[bytes, bytes]
"""The lower-case name and the value of a header."""
Headers = Mapping[bytes, bytes]
"""Last value of each header, by lower-case name."""
Callback = Callable[[], None]
"""A function without arguments that doesn't block."""


class Response(Struct, gc=False):
    """A complete reply. `head` holds finished header lines, lower-case names, each ending in CRLF.

    The adapter adds ``content-length``, ``date`` and connection headers.

    Example:
        ``Response(b"hello", 200, header_lines(content_type="text/plain"))``
    """

    body: bytes = b""
    status: int = 200
    head: bytes = JSON_HEAD


def header_lines(**headers: str) -> bytes:
    """Encode header lines for `Response.head`. ``retry_after="1"`` becomes ``retry-after: 1``.

    Args:
        headers: Values by name, with underscores in place of hyphens.

    Raises:
        ValueError: A value contains a line break or another character that isn't allowed in headers.
    """
    lines = b""
    for name, value in headers.items():
        if not value.isprintable():
            raise ValueError(f"{value!r} isn't a valid header value.")
        lines += f"{name.replace('_', '-')}: {value}\r\n".encode("latin-1")
    return lines


def refusal(status: int, text: str, **headers: str) -> Response:
    """Return an error response with one line of plain text, and with `headers` as in `header_lines`.

    Args:
        status: HTTP status.
        text: What happened, and what to do.
        headers: See `header_lines`.

    Example:
        ``refusal(429, "Too many orders. Try again in a minute.", retry_after="60")``
    """
    return Response(f"{text}\n".encode(), status, TEXT_HEAD + header_lines(**headers))


@cache
def body_too_large(limit: int, **headers: str) -> Response:
    """Return the error response for a body of more than `limit` bytes, and log the first one:
    ``body_too_large(2**22)``
    """
    _logger.warning(
        "Refused a request whose body has more than %s bytes, with status 413. Further ones aren't logged. To allow "
        "more, set max_body.",
        f"{limit:,}",
    )
    return refusal(413, f"The body has more than {limit:,} bytes. To allow more, set max_body.", **headers)


class OutputStream(Protocol):
    """An output channel to a peer: a response body or a WebSocket. All implementations follow these rules.

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
        """Bytes written but not yet accepted by the peer's connection, or 0 if the peer has disconnected."""
        ...

    def write(self, data: bytes, /) -> object:
        """Write a chunk without waiting. Do nothing if the outlet is closed or the chunk is empty.

        A reader more than `Settings.stream_buffer` bytes behind is disconnected, so a writer that can't wait (a
        broadcast) doesn't have to check `buffered`. Other writers call `drain`.

        Args:
            data: The chunk.
        """
        ...

    async def drain(self) -> None:
        """Wait until the buffer is below its high-water mark, or until the outlet is closed."""

    def close(self) -> None:
        """Send buffered data and the final chunk, then close. Idempotent."""

    def on_close(self, callback: Callback) -> None:
        """Call `callback` once, when the outlet closes, or immediately if it already has.

        Args:
            callback: A function without arguments that doesn't block.
        """

    def forget(self, callback: Callback) -> None:
        """Don't call `callback` when the outlet closes.

        Args:
            callback: A function that was passed to `on_close`. Any other is ignored.
        """


class Sink(OutputStream, Protocol):
    """An outlet with asynchronous close. The HTTP server, the ASGI adapter, and each WebSocket have one."""

    async def wait_closed(self) -> None:
        """Wait until the sink is closed. Data may still be in transit."""


@lru_cache(maxsize=4096)
def peer_network(address: str) -> str:
    """Return the network that's treated as one client: the address for IPv4, or a customer's network for IPv6."""
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


class HttpRequest(Confidential, Struct, eq=False):
    """An HTTP request with its complete body. It's a Struct, so creating one needs no Python call.

    The adapters' subclasses implement `open`.

    Example:
        ``async def show(request: HttpRequest) -> Response: return Response(request.body, 200)``
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
    is_http_1_0: bool = False
    """Whether the request used HTTP/1.0, which only some proxies and old tools do."""
    cancel_on_disconnect: bool = False
    """Whether to cancel the handler if the peer disconnects before the reply is complete. Set by the handler."""
    cancel: Callable[[str], object] | None = None
    """A function that stops the handler. Set by the adapter when the handler suspends."""
    leave: Callable[[], Coroutine[Any, Any, None]] | None = None
    """Closes a stream or WebSocket for messages in both directions after its running calls. Set by its handler."""
    principal: Principal | None = None
    """The authenticated caller, or None for an anonymous one."""

    @property
    def owner(self) -> str:
        """The owner against whose limits the request counts: the principal, or else the `peer_network`."""
        return peer_network(self.peer) if self.principal is None else self.principal.id

    def ends_call(self) -> bool:
        """Return whether a cancellation of the handler's task ends the call, because the peer has disconnected.

        If not, the peer is still waiting for a reply.
        """
        return False

    def open(self, status: int, head: bytes) -> Sink:
        """Start a streamed reply.

        Args:
            status: HTTP status.
            head: Finished header lines (see `header_lines`).

        Raises:
            RuntimeError: The request was already answered, or doesn't support a streamed reply.
        """
        raise RuntimeError(f"{self.method} {self.path} doesn't support a streamed reply.")


def respond_with_tag(body: bytes, head: bytes) -> Callable[[HttpRequest], Response]:
    """Return a function that answers requests for a document, with 304 if the client has it (RFC 9110 §13.1.2)."""
    tag = b'"%b"' % sha256(body).hexdigest()[:32].encode()
    head += b"etag: %b\r\n" % tag
    whole, unchanged = Response(body, 200, head), Response(b"", 304, head)

    def answer(request: HttpRequest) -> Response:
        known = request.headers.get(b"if-none-match", b"")
        return unchanged if tag in known or known == b"*" else whole

    return answer


def query_values(query: bytes) -> dict[str, list[str]]:
    """Return the values of each name in a query string."""
    return parse_qs(query.decode("latin-1"), keep_blank_values=True) if query else {}


def query_value(name: str, query: bytes) -> str:
    """Return the last value of a name in a query string, or an empty string.

    Args:
        name: Name of the parameter.
        query: Query string of a request, without the question mark.

    Example:
        ``query_value("page", request.query)``
    """
    return query_values(query).get(name, [""])[-1] if query else ""


client_id_of = partial(query_value, "client_id")
"""Return the `client_id` in a query string, or an empty string."""


def last_event_id(request: HttpRequest) -> str:
    """Return the event id to resume from: the header that `EventSource` sends on reconnect, or else the query's."""
    header = request.headers.get(b"last-event-id")
    if header:
        return header.decode("utf-8", "replace").strip()
    # A polyfill appends its parameter to the URL that it was given, so the last one is the newest.
    found = [
        values[-1] for name, values in query_values(request.query).items() if is_last_event_id(name) and values[-1]
    ]
    return found[-1] if found else ""


def is_last_event_id(parameter: str) -> bool:
    """Return whether a query parameter is the event id to resume from: our own, or one from an `EventSource` polyfill,
    such as ``lastEventId``, ``Last-Event-ID``, or ``evs_last_event_id``.
    """
    plain = parameter[:32].translate(_SEPARATORS).lower()
    return plain.removeprefix("evs") == "lasteventid"


_SEPARATORS = {ord("-"): None, ord("_"): None}


Handler = Callable[[HttpRequest], Awaitable[Response | Sink | None]]


LARGE = 64 * 1024
"""Size above which transports write a piece at once, in bytes. All of it counts toward `max_outgoing_bytes` until the
last byte is sent."""
_logger = logging.getLogger("millstream")


class CompactEvent:
    """An `asyncio.Event` with `notify`, for waiters with other conditions.

    Like `CompactQueue`, it uses little memory while idle. `asyncio.Event` has one deque for its waiters and
    `asyncio.Queue` has four. An empty deque takes 760 bytes, and each idle connection would have five of them.
    """

    __slots__ = ("_open", "_waiters")

    def __init__(self) -> None:
        self._open = False
        self._waiters: tuple[asyncio.Future[None], ...] = ()

    def is_set(self) -> bool:
        """Return whether the event is set."""
        return self._open

    def set(self) -> None:
        """Set the event and wake all waiters."""
        self._open = True
        self.notify()

    def clear(self) -> None:
        """Clear the event, so later waiters block."""
        self._open = False

    def notify(self) -> None:
        """Wake all waiters to check their conditions."""
        waiters, self._waiters = self._waiters, ()
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def wait_changed(self) -> None:
        """Wait until something may have changed."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters = (*self._waiters, waiter)
        await waiter

    async def wait(self) -> bool:
        """Wait until it is set."""
        while not self._open:
            await self.wait_changed()
        return True


class CloseSignal(Struct, eq=False, kw_only=True):
    """A signal that calls its registered callbacks once, when it closes."""

    closed: bool = False
    _callbacks: list[Callback] = []

    def on_close(self, callback: Callback) -> None:
        """Call `callback` once, when the signal closes, or immediately if it already has."""
        if self.closed:
            callback()
        else:
            self._callbacks.append(callback)

    def forget(self, callback: Callback) -> None:
        """Remove a callback, if it's still registered."""
        if callback in self._callbacks:
            self._callbacks.remove(callback)

    def connection_lost(self) -> None:
        """Close. Idempotent. If a callback raises, the others still run."""
        if self.closed:
            return
        self.closed = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            try:
                callback()
            except Exception:
                _logger.exception("A callback at the end of a stream failed.")

    async def wait_closed(self) -> None:
        """Wait until the signal closes."""
        closed = CompactEvent()
        self.on_close(closed.set)
        try:
            await closed.wait()
        finally:
            self.forget(closed.set)


class LastFrame(Struct, gc=False):
    """A cache of the last frame, because a broadcast writes the same bytes to every client."""

    data: bytes = b""
    framed: bytes = b""


def failure(exc: BaseException, method: str, path: str) -> Response:
    """Log a handler's exception under an identifier and return a reply that shows only the identifier."""
    identifier = token_hex(8)
    _logger.error("%s %a failed [%s]", method, path, identifier, exc_info=exc)
    return refusal(500, f"Internal error {identifier}.")


FROM_BYTES = 4 * 1024
"""Minimum size of a body to compress, in bytes."""

GZIP_HEAD = b"content-encoding: gzip\r\nvary: accept-encoding\r\n"

_LEVEL = 1
"""The lowest level with a dynamic code, for both libraries."""
_GZIP_BITS = 31
"""Window bits: a gzip member with the largest window."""
_KINDS = (b"content-type: application/json", b"content-type: text/", b"content-type: application/problem+json")
_LOOPBACK = re.compile(r"(::ffff:)?127\.|::1$")
"""Matches a peer on this machine."""
_FORWARDING_HEADERS = frozenset({b"x-forwarded-for", b"forwarded", b"via"})


async def compress(response: Response, request: "HttpRequest", mode: str) -> Response:
    """Compress a reply with a text type if the client accepts gzip. A large one is compressed in a thread.

    Compression is gzip (RFC 9110 §12.5.3), including event streams if configured (docs/decisions/0049). Small replies,
    which are the common case, aren't compressed: the adapters check the length first.

    Args:
        response: The reply.
        mode: See `Settings.compression`.
    """
    headers, body = request.headers, response.body
    if (
        mode == "off"
        or not response.head.startswith(_KINDS)
        or not accepts_gzip(headers.get(b"accept-encoding", b""))
        or (mode == "auto" and _LOOPBACK.match(request.peer) and _FORWARDING_HEADERS.isdisjoint(headers))
    ):
        return response
    # A strong entity tag identifies the uncompressed bytes (RFC 9110 §8.8.3).
    head = response.head.replace(b'etag: "', b'etag: W/"') + GZIP_HEAD
    packed = gzip_member(body) if len(body) <= LARGE else await asyncio.to_thread(gzip_member, body)
    return Response(packed, response.status, head)


def gzip_member(data: bytes) -> bytes:
    """Return a complete gzip member (RFC 1952 §2.2). Members can be concatenated, so all streams can share it."""
    return _deflate(data, _LEVEL, _GZIP_BITS)


@lru_cache(maxsize=64)
def accepts_gzip(value: bytes) -> bool:
    """Return whether an `Accept-Encoding` header accepts gzip."""
    return b"gzip" in _accepted_names(value)


PIECE = 8192
"""Maximum bytes to parse before yielding to the event loop, where a few bytes can take a lot of work."""
MAX_FRAMING = 64 * 1024
"""Maximum size of a body's chunk framing, in bytes, plus an eighth of the body. Small chunks cost as much as large
ones."""
MAX_FRAGMENTS = 256
"""Maximum number of fragments in a WebSocket message, unless it's large."""
USUAL_FRAGMENT = 4096
"""Typical fragment size, in bytes. The largest message can arrive in fragments of this size."""
MAX_UNREAD = 1024 * 1024
"""Maximum bytes of pongs that a WebSocket peer may leave unread."""


class HttpLimits(Struct, frozen=True):
    """Counts, sizes in bytes, and times in seconds, most from the setting of the same name."""

    max_body: int
    max_incoming_bytes: int
    max_outgoing_bytes: int
    header_timeout: float
    body_timeout: float
    write_timeout: float
    keep_alive: float
    max_connections: int
    max_connections_per_address: int
    stream_buffer: int
    compression: str
    max_header_count: int = 100
    max_header_bytes: int = 64 * 1024
    max_url: int = 8 * 1024

    @classmethod
    def of(cls, settings: "Settings") -> "HttpLimits":
        """Return the limits for these settings."""
        return convert(settings, cls, from_attributes=True)


class AcceptedTypes(Struct, frozen=True, gc=False):
    """The reply types that a client accepts, of the two that the server sends."""

    json: bool
    stream: bool
    page: bool = False
    """Whether the request is a browser navigation: it lists HTML and would also accept a stream."""


_MEMO_SIZE = 256
_MAX_MEMO = 1024
"""Maximum bytes of a cached `Accept` value. Clients can make up any number of values."""


class _AcceptCache(dict[bytes | None, AcceptedTypes]):
    """Parsed `Accept` values. A known value is found without a Python call."""

    def __missing__(self, value: bytes | None) -> AcceptedTypes:
        names = set(_accepted_names(value)) if value else {b"*/*"}
        json = not names.isdisjoint((b"application/json", b"application/*", b"*/*"))
        stream = not names.isdisjoint((b"text/event-stream", b"text/*", b"*/*"))
        page = b"text/html" in names and stream and b"text/event-stream" not in names
        if len(self) >= _MEMO_SIZE:
            self.clear()
        found = AcceptedTypes(json, stream, page)
        if value is None or len(value) <= _MAX_MEMO:
            self[value] = found
        return found


parse_accept = _AcceptCache().__getitem__
"""Returns the reply types that an `Accept` header allows. Without the header (None), or if it's empty, all are
allowed. Quality 0 excludes a type.
"""


def wants_page(request: HttpRequest) -> bool:
    """Return whether the request is a browser navigation. Scripts don't list HTML among other types."""
    return parse_accept(request.headers.get(b"accept")).page


def _accepted_names(value: bytes) -> Iterator[bytes]:
    """Yield the names that a header lists, in lower case, except names with quality 0 (RFC 9110 §12.4.2)."""
    for item in value.lower().split(b","):
        name, *parameters = item.split(b";")
        if not any(map(_EXCLUDES.fullmatch, parameters)):
            yield name.strip()


_EXCLUDES = re.compile(rb"\s*q\s*=\s*(?=[0.])0*+(?:\.0*+)?\s*")


def media_type(headers: Headers) -> bytes:
    """Return the declared media type without parameters, in lower case: empty if none is declared, ``?`` for a body
    with a content coding.
    """
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        return b"?"
    return headers.get(b"content-type", b"").partition(b";")[0].strip().lower()


def carries_json(headers: Headers) -> bool:
    """Return whether a body is declared as uncompressed JSON."""
    return media_type(headers) == b"application/json"


PROBLEM_TYPE = "application/problem+json"
_HEAD = b"content-type: application/problem+json\r\n"


class ProblemKind(Struct, frozen=True):
    """A kind of problem details (RFC 9457), for errors of plain REST operations.

    Each kind has one status and one title. Its `type` is a URL in the server's own `/docs` page that explains it. 422
    is for arguments that don't match the schema, and 409 for a call with valid arguments that can't be done in the
    current state.
    """

    slug: str
    status: int
    title: str
    meaning: str
    """Cause and advice, for the OpenAPI document."""
    head: bytes = _HEAD


MALFORMED = ProblemKind(
    "malformed-body", 400, "Malformed body", "The body isn't UTF-8 JSON, or it's nested too deeply."
)
UNKNOWN_TOOL = ProblemKind("unknown-tool", 404, "Unknown tool", "This server has no tool with that name.")
TOOL_ERROR = ProblemKind(
    "tool-error", 409, "The tool failed",
    "The arguments are valid, but the tool couldn't complete the call. The detail is the tool's own explanation.",
)  # fmt: skip
NEEDS_ANSWERS = ProblemKind(
    "needs-answers", 409, "The tool needs input",
    "The tool asks the user or the client's model while it runs, which isn't possible in a REST call. Call it "
        "over MCP.",
)  # fmt: skip
WRONG_TYPE = ProblemKind(
    "unsupported-type", 415, "Unsupported media type", "The body must be application/json, without a content coding."
)
INVALID_ARGUMENTS = ProblemKind(
    "invalid-arguments", 422, "Invalid arguments",
    "The arguments don't match the tool's schema. The detail explains what to fix.",
)  # fmt: skip
REFUSED = ProblemKind("refused", 403, "Refused", "The call was rejected before it ran.")
INTERNAL = ProblemKind(
    "internal-error", 500, "Internal error",
    "The server failed. Its log has the details under the incident identifier.",
)  # fmt: skip
BUSY = ProblemKind(
    "busy", 503, "Too many calls are running", "Retry after the time in Retry-After.", _HEAD + b"retry-after: 1\r\n"
)


def plain_problem(status: int, detail: str, head: bytes = b"") -> Response:
    """Return an error that needs no kind, because its status is sufficient."""
    return Response(encode({"status": status, "detail": detail}), status, _HEAD + head)


def problem(
    kind: ProblemKind, detail: str, *, root_path: str, status: int = 0, incident: str = "", head: bytes = b""
) -> Response:
    """Return a problem response.

    Args:
        kind: The kind of problem.
        detail: Explanation of this occurrence, for the caller.
        root_path: The server's mount path, for the URL of the explanation.
        status: Status to use instead of the kind's own.
        incident: Identifier of the log entry with details.
        head: Further header lines.
    """
    body: dict[str, str | int] = {
        "type": f"{root_path}/docs#{kind.slug}",
        "title": kind.title,
        "status": status or kind.status,
        "detail": detail,
    }
    if incident:
        body["incident"] = incident
    return Response(encode(body), status or kind.status, kind.head + head)
