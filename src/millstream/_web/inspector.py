"""Access of the inspector to other servers: a list of those that the operator named, and a proxy for each.

A page can't call a server of another origin unless that server allows it, but this program can. It passes on requests
of Streamable HTTP unchanged, only to URLs given at start-up (`Settings.inspect`), without following redirects. Headers
that browsers send automatically, such as cookies and `Authorization`, stay here; credentials for the other server
arrive as `Mcp-Inspect-Authorization`, or come from `SignIns` if the operator has signed in there.
"""

from collections.abc import Callable, Mapping, Sequence

from millstream._http.client.connection import HttpReply, lines
from millstream._http.client.pool import ConnectionPool
from millstream._http.client.url import Url, parse
from millstream._http.message import JSON_HEAD, HttpRequest, Response, Sink, header_lines, refusal
from millstream._protocol.jsonrpc import encode
from millstream._server.calls.services import Services, expiry_of
from millstream._transports.open_streams import OpenStreams
from millstream._web.inspect_sign_in import SignIns
from millstream.client._errors import ClientError, TargetError

PREFIX = "/inspect/via/"
SIGN_IN = "/inspect/sign-in/"
_CREDENTIALS = b"mcp-inspect-authorization"
_PASSED = (b"accept", b"content-type", b"last-event-id")
_RETURNED = (b"content-type", b"mcp-session-id", b"retry-after", b"allow")
_MAX_BODY = 64 * 1024 * 1024
_STREAM = b"cache-control: no-cache, no-transform\r\nx-accel-buffering: no\r\n"
_NO_PAGE = b"x-content-type-options: nosniff\r\ncontent-security-policy: default-src 'none'; sandbox\r\n"
"""Responses of other servers are data for our page. This keeps browsers from running them as pages."""
_BUSY = refusal(503, "Too many open streams. Close another page or try again later.", retry_after="5")
_UNKNOWN = refusal(404, "This server can't be inspected. Add it when you start this program: --inspect URL")


class Inspector:
    """The servers that the inspector may reach, by number."""

    __slots__ = ("_shows_log", "_streams", "_tags", "_urls", "sign_ins")

    def __init__(
        self,
        urls: Sequence[str],
        services: Services,
        streams: OpenStreams,
        *,
        shows_log: bool = False,
        tags: Callable[[], Mapping[str, Sequence[str]]] = dict,
    ) -> None:
        """Create it without connecting.

        Args:
            urls: URLs from the operator.
            services: services of this server, which store the sign-ins.
            streams: streams of this server, whose limit includes those of other servers.
            shows_log: whether this server sends its log to the page, as in development.
            tags: gives those of the tools that have some; clients don't see them in the list.

        Raises:
            ValueError: a URL isn't http or https.
        """
        self._urls: dict[str, Url] = {str(number): _parse_url(each) for number, each in enumerate(urls, 1)}
        self._streams = streams
        self._shows_log = shows_log
        self._tags = tags
        self.sign_ins = SignIns(services)

    async def servers(self, request: HttpRequest) -> Response:
        """Handle `GET`: return the list of servers."""
        known = [
            {"name": name, "url": str(url), "signed_in": await self.sign_ins.signed_in_user(request, url)}
            for name, url in self._urls.items()
        ]
        about = {"servers": known, "log": self._shows_log, "tags": self._tags()}
        return Response(encode(about), 200, JSON_HEAD + b"cache-control: no-store\r\n")

    async def sign_in(self, request: HttpRequest) -> Response:
        """Handle `POST` to begin a sign-in at one server, and `DELETE` to sign out."""
        url = self._urls.get(request.path.removeprefix(SIGN_IN))
        if url is None:
            return _UNKNOWN
        request.cancel_on_disconnect = True
        return await (self.sign_ins.leave if request.method == "DELETE" else self.sign_ins.begin)(request, url)

    async def relay(self, request: HttpRequest) -> Response | Sink | None:
        """Handle `POST`, `GET`, or `DELETE` for one server: return its response to the same request."""
        url = self._urls.get(request.path.removeprefix(PREFIX))
        if url is None:
            return _UNKNOWN
        if self._streams.full(request):
            return _BUSY
        request.cancel_on_disconnect = True
        pool = ConnectionPool(url, max_connections=1, max_body=_MAX_BODY, connect_timeout=10.0, tls=None)
        try:
            reply = await self._ask(request, url, pool)
            if reply.stream is not None:
                return await self._follow(request, reply)
        except ClientError as exc:
            return refusal(502, str(exc))
        finally:
            await pool.close()
        if 300 <= reply.status < 400:
            where = reply.header(b"location")
            return refusal(502, f"{url} redirects to {where[:500]}. If you trust that server, use its URL.")
        return Response(reply.body, reply.status, _head(reply))

    async def _ask(self, request: HttpRequest, url: Url, pool: ConnectionPool) -> HttpReply:
        """Send a request to a server, with the page's key or the operator's sign-in there."""
        if _CREDENTIALS in request.headers:
            key = request.headers[_CREDENTIALS].decode("latin-1")
            return await pool.send(_request(url, request, key), repeatable=False)
        token = await self.sign_ins.authorization(request, url)
        reply = await pool.send(_request(url, request, token), repeatable=False)
        again = await self.sign_ins.authorization(request, url, refused=token) if reply.status == 401 and token else ""
        if not again:
            return reply
        if reply.stream is not None:
            reply.stream.close()
        return await pool.send(_request(url, request, again), repeatable=False)

    async def _follow(self, request: HttpRequest, reply: HttpReply) -> Response | None:
        stream = reply.stream
        assert stream is not None  # noqa: S101  the caller looked
        if self._streams.full(request):  # many requests may have waited for the other server
            stream.close()
            return _BUSY
        sink = request.open(reply.status, _head(reply) + _STREAM)
        until = expiry_of(request.principal)
        # A comment inside an event would corrupt it, so write only what the server sends.
        self._streams.add(sink, request, ("inspect", ""), code=lambda data: b"", until=until)
        sink.on_close(stream.close)
        try:
            while not sink.closed and (data := await stream.read()):
                sink.write(data)
                await sink.drain()
        finally:
            stream.close()
            sink.close()
        return None


def _parse_url(text: str) -> Url:
    try:
        url = parse(text)
    except TargetError as exc:
        raise ValueError(str(exc)) from exc
    if url.scheme not in ("http", "https"):
        raise ValueError(f"{text} can't be inspected. Use an http or https URL.")
    return url


def _request(url: Url, request: HttpRequest, authorization: str) -> bytes:
    """Return the request for the other server, with only the headers that MCP defines."""
    passed = {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in request.headers.items()
        if name in _PASSED or (name.startswith(b"mcp-") and name != _CREDENTIALS)
    }
    if authorization:
        passed["authorization"] = authorization
    # Bytes after a head without a length would be read as another request, with any path and headers.
    body = request.body if request.method == "POST" else b""
    length = f"content-length: {len(body)}\r\n" if request.method == "POST" else ""
    head = f"{request.method} {url.target} HTTP/1.1\r\nhost: {url.authority}\r\n{lines(passed)}{length}\r\n"
    return head.encode("latin-1") + body


def _head(reply: HttpReply) -> bytes:
    found = {name.decode().replace("-", "_"): reply.header(name) for name in _RETURNED if name in reply.headers}
    challenge = reply.header(b"www-authenticate")
    if challenge.lower().startswith("bearer"):  # a browser would ask the user for a password
        found["www_authenticate"] = challenge
    return header_lines(**{name: value for name, value in found.items() if value.isprintable()}) + _NO_PAGE
