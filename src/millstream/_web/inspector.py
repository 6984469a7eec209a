"""The inspector's access to other servers: a proxy for each server named by the operator, and sign-in."""

import asyncio
import hmac
import time
from contextlib import AbstractAsyncContextManager
from functools import partial
from hashlib import sha256

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from millstream._confidential import Confidential
from millstream._http.client.connection import HttpReply
from millstream._http.client.pool import ConnectionPool
from millstream._http.client.request import encode_headers, encode_request
from millstream._http.client.url import Url
from millstream._http.message import HttpRequest, Response, Sink, header_lines, plain_problem, refusal
from millstream._parts import PartHost
from millstream._server.calls.call import scopes_of
from millstream._server.calls.services import Services, principal_id
from millstream._server.calls.vault import Vault, new_state
from millstream._web.live import reply
from millstream.auth._pages import (
    browser_cookie,
    continue_page,
    get_cookie,
    is_same_origin,
    not_signed_in_page,
    quote_foreign,
)
from millstream.client import (
    AccessDenied,
    ClientError,
    MemoryTokenStore,
    OAuth,
    StoredCredentials,
    TargetError,
    Tokens,
    parse_url,
)
from millstream.client._oauth.flow import PendingAuthorization
from millstream.client._oauth.loopback import parse_redirect
from millstream.protocol import MALFORMED, Json
from millstream.stores import Claim

CALLBACK = "/inspect/callback"
_COOKIE = "millstream-inspect"
_SESSION_TTL = 12 * 3600.0
_PENDING_TTL = 600.0
_TIMEOUT = 30.0
"""Maximum seconds for all requests per sign-in step."""
_REFRESH_MARGIN = 30.0
_MAX_FORM = 16 * 1024
_STATE, _PENDING = b"inspect state", "inspect-pending"
_NOT_OWN_PAGE = plain_problem(
    403, "This request must come from the inspector's own page. Reload the page and try again."
)
_MALFORMED = plain_problem(400, "The request is malformed. Reload the page.")
_EXPIRED = (
    "This sign-in was already used, took more than ten minutes, or began in another browser. Go back to the inspector "
    "and sign in again."
)


class PendingSignIn(Struct, frozen=True):
    """A sign-in whose user was redirected and hasn't returned."""

    url: str
    owner: str
    key: str
    authorization: PendingAuthorization


class SignInRequest(Confidential, Struct):
    """The page's request to begin a sign-in."""

    status: int = 401
    challenge: str = ""
    client_id: str = ""
    client_secret: str = ""
    scope: str = ""


class SignIns:
    """All sign-ins in this server's inspector: an OAuth client for each server and browser.

    The page requests an authorization URL and redirects the user, who returns signed in. Tokens stay on the server
    side, sealed in the store under a key derived from the browser's cookie, the operator, the page's address, and the
    URL of the other server. They never appear in a page, a log, or one of our URLs.
    """

    def __init__(self, services: Services) -> None:
        self._vault = Vault(services)

    # Requests of the page

    async def begin(self, request: HttpRequest, url: Url) -> Response:
        """Begin a sign-in and return the authorization URL: ``{"url": …}``."""
        if not is_same_origin(request):
            return _NOT_OWN_PAGE
        try:
            body = msgspec.json.decode(request.body[:_MAX_FORM], type=SignInRequest)
        except MALFORMED:
            return _MALFORMED
        path, secure = f"{request.root_path}/inspect", request.scheme == "https"
        browser, cookie = browser_cookie(request, _COOKIE, _SESSION_TTL, path=path, secure=secure)
        key = _key(request, browser, url)
        credentials = await self._load(key)
        try:
            async with asyncio.timeout(_TIMEOUT):
                authorization = await _client(request, credentials, body).ask(url, body.status, body.challenge)
            authorization = replace(authorization, state=new_state(request.owner))
        except TimeoutError:
            return plain_problem(504, f"The authorization server of {url} took too long. Try again.")
        except ClientError as exc:
            return plain_problem(502, _refusal_text(request, exc))
        await self._save(key, credentials)  # the client may be registered there by now
        pending = PendingSignIn(str(url), principal_id(request.principal), key, authorization)
        await self._vault.put_pending(_PENDING, authorization.state, pending, _PENDING_TTL)
        return reply({"url": authorization.url}, head=cookie)

    async def handle_callback(self, request: HttpRequest) -> Response:
        """Handle `GET /inspect/callback`. Each state is valid once, in the browser that began the sign-in."""
        try:
            answer = parse_redirect("?" + request.query.decode("latin-1"))
        except ClientError as exc:
            return not_signed_in_page(request, "/inspect", f"{exc} Sign in again.", 400)
        pending = None
        if request.method == "GET":  # any attempt uses up the state
            pending = await self._vault.take_pending(_PENDING, answer.get("state", ""), PendingSignIn)
        browser = get_cookie(request, _COOKIE)
        if pending is None or not hmac.compare_digest(
            _key(request, browser, parse_url(pending.url), pending.owner), pending.key
        ):
            return not_signed_in_page(request, "/inspect", _EXPIRED, 403)
        credentials = await self._load(pending.key)
        issuer = pending.authorization.issuer.issuer
        credentials.registrations[issuer] = pending.authorization.who  # the operator may have entered the client
        try:
            async with asyncio.timeout(_TIMEOUT):
                await _client(request, credentials).exchange_code(parse_url(pending.url), pending.authorization, answer)
        except TimeoutError:
            return not_signed_in_page(
                request, "/inspect", f"{quote_foreign(issuer)} took too long. Sign in again.", 504
            )
        except ClientError as exc:
            return not_signed_in_page(
                request,
                "/inspect",
                f"{quote_foreign(str(exc))} Sign in again, or ask the operator of that server.",
                403,
            )
        await self._save(pending.key, credentials)
        return continue_page(request, "/inspect")

    async def sign_out(self, request: HttpRequest, url: Url) -> Response:
        """Delete the tokens for a server. ``{"revoked": …}`` tells whether the issuer has also revoked them."""
        if not is_same_origin(request):
            return _NOT_OWN_PAGE
        key = _key(request, get_cookie(request, _COOKIE), url)
        credentials = await self._load(key)
        await self._vault.kv.delete(key)
        return reply({"revoked": await _revoke(request, credentials, url)})

    async def signed_in_user(self, request: HttpRequest, url: Url) -> Json | None:
        """Return the signed-in user for a server: ``who``, ``issuer``, and ``scopes``."""
        tokens = await self._own_tokens(request, url)
        if tokens is None:
            return None
        return {"who": _display_name(tokens.access_token), "issuer": tokens.issuer, "scopes": tokens.scope.split()}

    # Used by the proxy

    async def authorization(self, request: HttpRequest, url: Url, *, rejected: str = "") -> str:
        """Return the authorization header for a page's request to a server, or an empty string without a usable
        sign-in.

        Args:
            request: Request of the page.
            url: URL of the server.
            rejected: Value that the server rejected, to be replaced.
        """
        tokens = await self._own_tokens(request, url)
        if tokens is None:
            return ""
        soon = 0 < tokens.expires_at < time.time() + _REFRESH_MARGIN
        if tokens.refresh_token and (soon or rejected == f"Bearer {tokens.access_token}"):
            tokens = await self._refresh(request, url, tokens) or tokens
        found = f"Bearer {tokens.access_token}"
        return "" if found == rejected else found

    async def _refresh(self, request: HttpRequest, url: Url, old: Tokens) -> Tokens | None:
        """Return renewed tokens. Many refresh tokens are valid only once, so one worker at a time uses them."""
        key = _key(request, get_cookie(request, _COOKIE), url)
        async with self._lock(key):
            sealed = await self._vault.kv.get(key)
            credentials = self._open(key, sealed)
            if (current := credentials.tokens.get(str(url))) != old:
                return current
            try:
                async with asyncio.timeout(_TIMEOUT):
                    renewed = await _client(request, credentials).renew(url)
            except (TimeoutError, ClientError):
                return None
            if not renewed:
                return None
            fresh = credentials.tokens[str(url)]
            if await self._vault.exchange(key, sealed, self._seal(key, credentials), _SESSION_TTL):
                return fresh
            await _revoke(request, credentials, url)  # the user has signed out or signed in again in the meantime
            return None

    def _lock(self, key: str) -> AbstractAsyncContextManager[None]:
        return Claim(self._vault.kv, f"inspect-turn:{key}", 2 * _TIMEOUT).hold()

    # Stored state

    async def _own_tokens(self, request: HttpRequest, url: Url) -> Tokens | None:
        """Return the tokens for a request from our own page. Browsers also send cookies with other pages' requests."""
        browser = get_cookie(request, _COOKIE)
        if not browser or not is_same_origin(request):
            return None
        return (await self._load(_key(request, browser, url))).tokens.get(str(url))

    async def _load(self, key: str) -> StoredCredentials:
        return self._open(key, await self._vault.kv.get(key))

    def _open(self, key: str, sealed: bytes | None) -> StoredCredentials:
        """Return stored credentials, or new ones if they can't be opened."""
        return self._vault.open(_STATE, sealed, StoredCredentials, key.encode()) or StoredCredentials()

    def _seal(self, key: str, credentials: StoredCredentials) -> bytes:
        return self._vault.seal(_STATE, credentials, key.encode()).encode()

    async def _save(self, key: str, credentials: StoredCredentials) -> None:
        await self._vault.put(key, self._seal(key, credentials), _SESSION_TTL)


async def _revoke(request: HttpRequest, credentials: StoredCredentials, url: Url) -> bool:
    """Revoke the tokens for a server at their issuer and return whether that succeeded."""
    try:
        async with asyncio.timeout(_TIMEOUT):
            return await _client(request, credentials).sign_out(url)
    except TimeoutError:
        return False


_ENTERED_NOTHING = SignInRequest()


def _client(request: HttpRequest, credentials: StoredCredentials, entered: SignInRequest = _ENTERED_NOTHING) -> OAuth:
    store = MemoryTokenStore()
    store.save(credentials)
    return OAuth(
        store=store,
        client_id=entered.client_id.strip(),
        client_secret=entered.client_secret.strip(),
        scope=entered.scope.strip(),
        name="Millstream inspector",
        redirect_uri=_base(request) + CALLBACK,
    )


def _base(request: HttpRequest) -> str:
    """Return the base URL of this server, as seen by the browser."""
    return f"{request.scheme}://{request.headers.get(b'host', b'').decode('latin-1')}{request.root_path}"


def _key(request: HttpRequest, browser: str, url: Url, owner: str | None = None) -> str:
    """Return the key of the state for this browser, operator, page, and server."""
    owner = principal_id(request.principal) if owner is None else owner
    parts = "\n".join((browser, owner, _base(request), str(url)))
    return f"inspect-session:{sha256(parts.encode('utf-8', 'surrogatepass')).hexdigest()}"


def _display_name(token: str) -> str:
    """Return the user's name from a JWT (RFC 9068). Only for display, because the token isn't verified."""
    from millstream.auth._jose import InvalidToken, read_payload  # noqa: PLC0415  its import is slow, and rarely needed

    try:
        claims = read_payload(token)
    except InvalidToken:
        return ""
    found = [claims.get(name) for name in ("name", "preferred_username", "email", "sub")]
    return next((each for each in found if isinstance(each, str) and each.isprintable() and len(each) < 128), "")


def _refusal_text(request: HttpRequest, exc: ClientError) -> str:
    if isinstance(exc, AccessDenied) and exc.remedy:
        redirect = _base(request) + CALLBACK
        return f"{exc.message} Register a client there with the redirect URI {redirect}, and enter its id below."
    return quote_foreign(str(exc))


PREFIX = "/inspect/via/"
SIGN_IN = "/inspect/sign-in/"
_CREDENTIALS = b"mcp-inspect-authorization"
_REQUEST_HEADERS = (b"accept", b"content-type", b"last-event-id")
_RESPONSE_HEADERS = (b"content-type", b"mcp-session-id", b"retry-after", b"allow")
_MAX_BODY = 64 * 1024 * 1024
_STREAM_HEADERS = b"cache-control: no-cache, no-transform\r\nx-accel-buffering: no\r\n"
_SANDBOX_HEADERS = b"x-content-type-options: nosniff\r\ncontent-security-policy: default-src 'none'; sandbox\r\n"
"""Headers that keep browsers from running other servers' responses as pages of this one."""
_BUSY = refusal(503, "Too many open streams. Close another page or try again later.", retry_after="5")
_UNKNOWN = refusal(404, "This server can't be inspected. Start this program with --inspect URL to add it.")
_COMMANDS = (
    'A page can\'t start a command. Serve it in a terminal, `millstream run "COMMAND" --port 8001`, and enter '
    "http://127.0.0.1:8001/mcp."
)
_MAX_SERVERS = 100


class AddServerRequest(Struct):
    """The page's request to add a server."""

    url: str


class Inspector:
    """The servers that the inspector can reach, by number, and a proxy for each.

    A page can't call a server of another origin without CORS, but this program can. It forwards the bodies and MCP
    headers of Streamable HTTP requests, only to URLs given at start-up (`Settings.inspect_urls`) or, in development,
    entered in the page (`add`), and doesn't follow redirects. It doesn't forward headers that browsers send
    automatically, such as cookies and `Authorization`. Credentials for the other server arrive as
    `Mcp-Inspect-Authorization`, or come from `SignIns` if the operator has signed in there.
    """

    def __init__(self, host: PartHost) -> None:
        """Create it without connecting.

        Args:
            host: The running server. It stores the sign-ins, and streams from other servers count toward its limit.

        Raises:
            ValueError: A URL isn't http or https.
        """
        urls = enumerate(host.settings.inspect_urls, 1)
        self._urls: dict[str, Url] = {str(number): _parse_url(each) for number, each in urls}
        self._host = host
        self.sign_ins = SignIns(host.services)

    async def servers(self, request: HttpRequest) -> Response:
        """Handle `GET`: return the list of servers."""
        known = [
            {"name": name, "url": str(url), "signed_in": await self.sign_ins.signed_in_user(request, url)}
            for name, url in self._urls.items()
        ]
        # Tags aren't part of the protocol's tool list.
        registry, who = self._host.registry, request.principal
        tools = registry.visible("tools", registry.audience("tools", who, partial(scopes_of, who)))
        tags = {name: sorted(tool.tags) for name, tool in tools.items() if tool.tags}
        return reply({"servers": known, "development": self._host.settings.show_errors, "tags": tags})

    async def add(self, request: HttpRequest) -> Response:
        """Handle `POST {"url": …}`: add a server until this worker stops, and return its `name` and `url`.

        Only in development, and only for our own page: other pages, and apps in the inspector's frames, could otherwise
        reach what this machine can reach. Commands can't be added, because they'd run with this program's rights:
        other users' programs on this machine can send the headers of our page, and a link to it can name a server.
        """
        if not is_same_origin(request):
            return _NOT_OWN_PAGE
        if not self._host.settings.show_errors:
            return plain_problem(403, "Servers can be added only with `millstream dev`, or at the start: --inspect URL")
        try:
            url = _parse_url(msgspec.json.decode(request.body[:_MAX_FORM], type=AddServerRequest).url.strip())
        except msgspec.MsgspecError:
            return _MALFORMED
        except ValueError as exc:
            return plain_problem(400, f"{exc} {_COMMANDS}")
        known = {str(each): name for name, each in self._urls.items()}
        name = known.get(str(url)) or sha256(str(url).encode()).hexdigest()[:16]  # the same after a restart
        if name not in self._urls and len(self._urls) >= _MAX_SERVERS:
            return plain_problem(503, "Too many servers were added. Restart this program.")
        self._urls[name] = url
        return reply({"name": name, "url": str(url)})

    async def sign_in(self, request: HttpRequest) -> Response:
        """Handle `POST` to begin a sign-in at one server, and `DELETE` to sign out."""
        url = self._urls.get(request.path.removeprefix(SIGN_IN))
        if url is None:
            return _UNKNOWN
        request.cancel_on_disconnect = True
        return await (self.sign_ins.sign_out if request.method == "DELETE" else self.sign_ins.begin)(request, url)

    async def forward(self, request: HttpRequest) -> Response | Sink | None:
        """Forward `POST`, `GET`, or `DELETE` to one server, and return its response."""
        url = self._urls.get(request.path.removeprefix(PREFIX))
        if url is None:
            return _UNKNOWN
        if self._host.streams.full(request):
            return _BUSY
        request.cancel_on_disconnect = True
        pool = ConnectionPool(url, max_connections=1, max_body=_MAX_BODY, connect_timeout=10.0, tls=None)
        try:
            found = await self._send(request, url, pool)
            if found.stream is not None:
                return await self._forward_stream(request, found)
        except ClientError as exc:
            return refusal(502, str(exc))
        finally:
            await pool.close()
        if 300 <= found.status < 400:
            location = found.header(b"location")
            return refusal(502, f"{url} redirects to {location[:500]}. If you trust that server, use its URL.")
        return Response(found.body, found.status, _head(found))

    async def _send(self, request: HttpRequest, url: Url, pool: ConnectionPool) -> HttpReply:
        """Forward a request with the page's key or the operator's sign-in. Renew a rejected token once."""
        key = request.headers.get(_CREDENTIALS)
        token = await self.sign_ins.authorization(request, url) if key is None else key.decode("latin-1")
        reply = await pool.send(_request(url, request, token), repeatable=False)
        if key is not None or reply.status != 401 or not token:
            return reply
        renewed = await self.sign_ins.authorization(request, url, rejected=token)
        if not renewed:
            return reply
        reply.discard()
        return await pool.send(_request(url, request, renewed), repeatable=False)

    async def _forward_stream(self, request: HttpRequest, reply: HttpReply) -> Response | None:
        stream = reply.stream
        assert stream is not None  # noqa: S101  checked by the caller
        if self._host.streams.full(request):  # others may have opened streams while this request waited
            stream.close()
            return _BUSY
        sink = request.open(reply.status, _head(reply) + _STREAM_HEADERS)
        # A keep-alive comment could split the other server's event, so don't send any.
        self._host.streams.add(sink, request, ("inspect", ""), code=lambda data: b"")
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
        url = parse_url(text)
    except TargetError as exc:
        raise ValueError(str(exc)) from exc
    if url.scheme not in ("http", "https"):
        raise ValueError(f"{text} can't be inspected. Use an http or https URL.")
    return url


def _request(url: Url, request: HttpRequest, authorization: str) -> bytes:
    """Return the request for the other server, with only MCP's headers."""
    headers = {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in request.headers.items()
        if name in _REQUEST_HEADERS or (name.startswith(b"mcp-") and name != _CREDENTIALS)
    }
    if authorization:
        headers["authorization"] = authorization
    body = request.body if request.method == "POST" else b""
    return encode_request(request.method, url.target, encode_headers({"host": url.authority, **headers}), body)


def _head(reply: HttpReply) -> bytes:
    headers = {
        name.decode().replace("-", "_"): reply.header(name) for name in _RESPONSE_HEADERS if name in reply.headers
    }
    challenge = reply.header(b"www-authenticate")
    if challenge.lower().startswith("bearer"):  # a browser would ask the user for a password
        headers["www_authenticate"] = challenge
    return header_lines(**{name: value for name, value in headers.items() if value.isprintable()}) + _SANDBOX_HEADERS
