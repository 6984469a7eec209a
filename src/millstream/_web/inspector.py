"""Access of the inspector to other servers: a list of the servers that the operator named, and a proxy for each.

A page can't call a server of another origin without CORS, but this program can. It forwards Streamable HTTP requests
unchanged, only to URLs given at start-up (`Settings.inspect_urls`), and doesn't follow redirects. It doesn't forward
headers that browsers send automatically, such as cookies and `Authorization`. Credentials for the other server arrive
as `Mcp-Inspect-Authorization`, or come from `SignIns` if the operator has signed in there.
"""

from collections.abc import Callable, Mapping, Sequence

from millstream._http.client.connection import HttpReply, lines
from millstream._http.client.pool import ConnectionPool
from millstream._http.client.url import Url, parse
from millstream._http.message import JSON_HEAD, HttpRequest, Response, Sink, header_lines, refusal
from millstream._server.calls.services import Services, expiry_of
from millstream._transports.open_streams import OpenStreams
from millstream._web.inspect_sign_in import SignIns
from millstream.client import ClientError, TargetError
from millstream.protocol import encode

PREFIX = "/inspect/via/"
SIGN_IN = "/inspect/sign-in/"
_CREDENTIALS = b"mcp-inspect-authorization"
_REQUEST_HEADERS = (b"accept", b"content-type", b"last-event-id")
_RESPONSE_HEADERS = (b"content-type", b"mcp-session-id", b"retry-after", b"allow")
_MAX_BODY = 64 * 1024 * 1024
_STREAM_HEADERS = b"cache-control: no-cache, no-transform\r\nx-accel-buffering: no\r\n"
_SANDBOX_HEADERS = b"x-content-type-options: nosniff\r\ncontent-security-policy: default-src 'none'; sandbox\r\n"
"""Keeps browsers from running responses of other servers as pages of this one."""
_BUSY = refusal(503, "Too many open streams. Close another page or try again later.", retry_after="5")
_UNKNOWN = refusal(404, "This server can't be inspected. Start this program with --inspect URL to add it.")


class Inspector:
    """The servers that the inspector can reach, by number."""

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
            services: Services of this server, which store the sign-ins.
            streams: Open streams of this server; streams from other servers count towards their limit.
            shows_log: Whether this server sends its log to the page, as in development.
            tags: Returns the tags of tools, which aren't part of the protocol's tool list.

        Raises:
            ValueError: A URL isn't http or https.
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
        return await (self.sign_ins.sign_out if request.method == "DELETE" else self.sign_ins.begin)(request, url)

    async def relay(self, request: HttpRequest) -> Response | Sink | None:
        """Forward `POST`, `GET`, or `DELETE` to one server, and return its response."""
        url = self._urls.get(request.path.removeprefix(PREFIX))
        if url is None:
            return _UNKNOWN
        if self._streams.full(request):
            return _BUSY
        request.cancel_on_disconnect = True
        pool = ConnectionPool(url, max_connections=1, max_body=_MAX_BODY, connect_timeout=10.0, tls=None)
        try:
            reply = await self._send(request, url, pool)
            if reply.stream is not None:
                return await self._relay_stream(request, reply)
        except ClientError as exc:
            return refusal(502, str(exc))
        finally:
            await pool.close()
        if 300 <= reply.status < 400:
            location = reply.header(b"location")
            return refusal(502, f"{url} redirects to {location[:500]}. If you trust that server, use its URL.")
        return Response(reply.body, reply.status, _head(reply))

    async def _send(self, request: HttpRequest, url: Url, pool: ConnectionPool) -> HttpReply:
        """Forward a request with the page's key or the operator's sign-in; renew a rejected token once."""
        if _CREDENTIALS in request.headers:
            key = request.headers[_CREDENTIALS].decode("latin-1")
            return await pool.send(_request(url, request, key), repeatable=False)
        token = await self.sign_ins.authorization(request, url)
        reply = await pool.send(_request(url, request, token), repeatable=False)
        renewed = (
            await self.sign_ins.authorization(request, url, rejected=token) if reply.status == 401 and token else ""
        )
        if not renewed:
            return reply
        if reply.stream is not None:
            reply.stream.close()
        return await pool.send(_request(url, request, renewed), repeatable=False)

    async def _relay_stream(self, request: HttpRequest, reply: HttpReply) -> Response | None:
        stream = reply.stream
        assert stream is not None  # noqa: S101  checked by the caller
        if self._streams.full(request):  # others may have opened streams while this request waited
            stream.close()
            return _BUSY
        sink = request.open(reply.status, _head(reply) + _STREAM_HEADERS)
        until = expiry_of(request.principal)
        # A keep-alive comment could split an event of the other server, so send none.
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
    """Return the request for the other server, with MCP's headers only."""
    headers = {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in request.headers.items()
        if name in _REQUEST_HEADERS or (name.startswith(b"mcp-") and name != _CREDENTIALS)
    }
    if authorization:
        headers["authorization"] = authorization
    # A body without a length would be read as another request (request smuggling).
    body = request.body if request.method == "POST" else b""
    length = f"content-length: {len(body)}\r\n" if request.method == "POST" else ""
    head = f"{request.method} {url.target} HTTP/1.1\r\nhost: {url.authority}\r\n{lines(headers)}{length}\r\n"
    return head.encode("latin-1") + body


def _head(reply: HttpReply) -> bytes:
    headers = {
        name.decode().replace("-", "_"): reply.header(name) for name in _RESPONSE_HEADERS if name in reply.headers
    }
    challenge = reply.header(b"www-authenticate")
    if challenge.lower().startswith("bearer"):  # a browser would ask the user for a password
        headers["www_authenticate"] = challenge
    return header_lines(**{name: value for name, value in headers.items() if value.isprintable()}) + _SANDBOX_HEADERS
