"""Sign-in to other servers from the inspector: an OAuth client for each server and each browser of the operator.

A page requests the authorization URL, sends the user there, and finds them signed in afterwards. Tokens stay on the
server side: sealed in the store, under a key derived from the browser's cookie, the operator, the page's address, and
the URL of the other server. They never appear in a page, a log, or a URL of ours.
"""

import asyncio
import hmac
import json
import time
from base64 import urlsafe_b64decode
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from msgspec import Struct

from millstream._http.client.url import Url, parse
from millstream._http.message import JSON_HEAD, HttpRequest, Response
from millstream._http.problems import plain_problem
from millstream._protocol.jsonrpc import encode
from millstream._server.calls.services import Services, principal_id
from millstream.auth._authorization_server.records import digest, new_secret
from millstream.auth._authorization_server.vault import Vault
from millstream.auth._browser import cookie_of, is_own
from millstream.auth._pages import continue_page, turned_back
from millstream.client._errors import AccessDenied, ClientError
from millstream.client._oauth.authorization_request import PendingAuthorization
from millstream.client._oauth.browser_login import answer_of
from millstream.client._oauth.flow import OAuth
from millstream.client._oauth.store import MemoryTokenStore, Registration, StoredCredentials, Tokens

CALLBACK = "/inspect/callback"
_COOKIE = "millstream-inspect"
_SECONDS = 12 * 3600.0
_AWAY_SECONDS = 600.0
_PATIENCE = 30.0
"""Seconds for all requests to an authorization server together."""
_EARLY = 30.0
_MAX_FORM = 16 * 1024
_MAX_SAID = 400
_HELD, _PENDING = b"inspect held", b"inspect pending"
_HEAD = JSON_HEAD + b"cache-control: no-store\r\n"
_FOREIGN = plain_problem(403, "This request has to come from the inspector's own page. Reload the page and try again.")
_UNREADABLE = plain_problem(400, "The request is malformed. Reload the page.")
_TOO_OLD = (
    "This sign-in is over, took more than ten minutes, or began in another browser. Go back to the inspector and "
    "sign in again."
)


class SignInState(Struct):
    """The state for one server."""

    credentials: StoredCredentials
    client: Registration = msgspec.field(default_factory=Registration)
    """Client that the operator entered; empty if this program registers itself."""
    only: str = ""
    """The only issuer for this client."""


class PendingSignIn(Struct, frozen=True):
    """A user who was redirected to sign in."""

    url: str
    owner: str
    key: str
    authorization: PendingAuthorization
    client: Registration


class SignInRequest(Struct):
    """Request of the page."""

    status: int = 401
    challenge: str = ""
    client_id: str = ""
    client_secret: str = ""
    scope: str = ""


class SignIns:
    """The sign-ins of all users of this server's inspector."""

    __slots__ = ("_kv", "_vault")

    def __init__(self, services: Services) -> None:
        self._vault = Vault(services)
        self._kv = services.store.kv

    # Requests of the page

    async def begin(self, request: HttpRequest, url: Url) -> Response:
        """Return where to send the user: ``{"url": …}``."""
        if not is_own(request):
            return _FOREIGN
        try:
            wanted = msgspec.json.decode(request.body[:_MAX_FORM], type=SignInRequest)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return _UNREADABLE
        browser, cookie = _browser(request)
        key = _key(request, browser, url)
        held = await self._load(key) or SignInState(StoredCredentials({}, {}))
        if wanted.client_id:
            held = SignInState(held.credentials, Registration(wanted.client_id.strip(), wanted.client_secret.strip()))
        try:
            async with asyncio.timeout(_PATIENCE):
                asked = await _client(request, held, wanted.scope.strip()).ask(url, wanted.status, wanted.challenge)
        except TimeoutError:
            return plain_problem(504, f"The authorization server of {url} took too long. Try again.")
        except ClientError as exc:
            return plain_problem(502, _refusal_text(request, exc))
        await self._keep(key, held)  # the client may be registered there by now
        pending = PendingSignIn(str(url), principal_id(request.principal), key, asked, held.client)
        sealed = self._vault.seal(_PENDING, pending, asked.state.encode())
        await self._vault.put(f"inspect-pending:{digest(asked.state)}", sealed.encode(), _AWAY_SECONDS, lossy=True)
        return Response(encode({"url": asked.url}), 200, _HEAD + cookie)

    async def handle_callback(self, request: HttpRequest) -> Response:
        """Handle `GET /inspect/callback`. Each state is valid once, in the browser that left with it."""
        try:
            answer = answer_of("?" + request.query.decode("latin-1"))
        except ClientError as exc:
            return _turned_back(request, f"{exc} Sign in again.", 400)
        pending = await self._take(request, answer.get("state", "")) if request.method == "GET" else None
        if pending is None:
            return _turned_back(request, _TOO_OLD, 403)
        held = await self._load(pending.key) or SignInState(StoredCredentials({}, {}))
        issuer = pending.authorization.issuer.issuer
        held.client, held.only = pending.client, issuer if pending.client.client_id else ""
        try:
            async with asyncio.timeout(_PATIENCE):
                await _client(request, held).exchange_code(parse(pending.url), pending.authorization, answer)
        except TimeoutError:
            return _turned_back(request, f"{_short(issuer)} took too long. Sign in again.", 504)
        except ClientError as exc:
            return _turned_back(request, f"{_short(str(exc))} Sign in again, or ask the operator of that server.", 403)
        await self._keep(pending.key, held)
        return continue_page(request, "/inspect", b"")

    async def leave(self, request: HttpRequest, url: Url) -> Response:
        """Delete the tokens for a server: ``{"revoked": …}`` says whether their issuer has revoked them."""
        if not is_own(request):
            return _FOREIGN
        key = _key(request, cookie_of(request, _COOKIE), url)
        held = await self._load(key)
        await self._vault.delete(_place(key))
        revoked = held is not None and await _revoke(request, held, url)
        return Response(encode({"revoked": revoked}), 200, _HEAD)

    async def signed_in_user(self, request: HttpRequest, url: Url) -> dict[str, Any] | None:
        """Return the user that the token of a server names."""
        held = await self._mine(request, url)
        tokens = None if held is None else held.credentials.tokens.get(str(url))
        if tokens is None:
            return None
        return {"who": _who(tokens.access_token), "issuer": tokens.issuer, "scopes": tokens.scope.split()}

    # Used by the proxy

    async def authorization(self, request: HttpRequest, url: Url, *, refused: str = "") -> str:
        """Return the authorization header for a page's request to a server; empty without a sign-in.

        Args:
            request: request of the page.
            url: URL of the server.
            refused: value that the server rejected, to be replaced.
        """
        held = await self._mine(request, url)
        tokens = None if held is None else held.credentials.tokens.get(str(url))
        if tokens is None:
            return ""
        soon = 0 < tokens.expires_at < time.time() + _EARLY
        if tokens.refresh_token and (soon or refused == _bearer(tokens)):
            tokens = await self._refresh(request, url, tokens) or tokens
        return "" if _bearer(tokens) == refused else _bearer(tokens)

    async def _refresh(self, request: HttpRequest, url: Url, before: Tokens) -> Tokens | None:
        """Return renewed tokens. A refresh token is often valid once, so workers take turns."""
        key = _key(request, cookie_of(request, _COOKIE), url)
        async with self._turn(key):
            kept = await self._vault.raw(_place(key))
            held = self._open(key, kept)
            if held is None or held.credentials.tokens.get(str(url)) != before:
                return None if held is None else held.credentials.tokens.get(str(url))
            try:
                async with asyncio.timeout(_PATIENCE):
                    renewed = await _client(request, held).renew(url)
            except (TimeoutError, ClientError):
                return None
            if not renewed:
                return None
            fresh = held.credentials.tokens[str(url)]
            if await self._vault.exchange(_place(key), kept, self._seal(key, held), _SECONDS):
                return fresh
            await _revoke(request, held, url)  # the user has signed out in the meantime, or in again
            return None

    @asynccontextmanager
    async def _turn(self, key: str) -> AsyncGenerator[None, None]:
        place, mine = f"inspect-turn:{key}", new_secret().encode()
        # Another worker may have the turn, and there's no notification when it's over.
        while not await self._kv.compare_and_set(place, None, mine, 2 * _PATIENCE):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        try:
            yield
        finally:
            # An expired turn may belong to another worker by now.
            await self._kv.compare_and_set(place, mine, None, 1)

    # Stored state

    async def _mine(self, request: HttpRequest, url: Url) -> SignInState | None:
        """Return the state for a request from our own page; browsers send cookies with requests of other pages, too."""
        browser = cookie_of(request, _COOKIE)
        return await self._load(_key(request, browser, url)) if browser and is_own(request) else None

    async def _load(self, key: str) -> SignInState | None:
        return self._open(key, await self._vault.raw(_place(key)))

    def _open(self, key: str, sealed: bytes | None) -> SignInState | None:
        return None if sealed is None else self._vault.open(_HELD, sealed.decode("latin-1"), SignInState, key.encode())

    def _seal(self, key: str, held: SignInState) -> bytes:
        return self._vault.seal(_HELD, held, key.encode()).encode()

    async def _keep(self, key: str, held: SignInState) -> None:
        await self._vault.put(_place(key), self._seal(key, held), _SECONDS)

    async def _take(self, request: HttpRequest, state: str) -> PendingSignIn | None:
        """Return the pending sign-in of a state, for the browser that left with it. Any attempt uses up the state."""
        raw = await self._vault.take(f"inspect-pending:{digest(state)}") if state else None
        pending = (
            None if raw is None else self._vault.open(_PENDING, raw.decode("latin-1"), PendingSignIn, state.encode())
        )
        if pending is None:
            return None
        key = _key(request, cookie_of(request, _COOKIE), parse(pending.url), pending.owner)
        return pending if hmac.compare_digest(key, pending.key) else None


async def _revoke(request: HttpRequest, held: SignInState, url: Url) -> bool:
    """Revoke the tokens for a server, and return whether they were. They are deleted here in any case."""
    try:
        async with asyncio.timeout(_PATIENCE):
            return await _client(request, held).sign_out(url)
    except TimeoutError:
        return False


def _client(request: HttpRequest, held: SignInState, scope: str = "") -> OAuth:
    store = MemoryTokenStore()
    store.save(held.credentials)
    who = held.client
    made = OAuth(
        store=store, client_id=who.client_id, client_secret=who.client_secret, name="Millstream inspector",
        scope=scope, redirect_uri=_base(request) + CALLBACK,
    )  # fmt: skip
    return made.bound_to(held.only) if held.only else made


def _base(request: HttpRequest) -> str:
    """Return the base URL of this server, as the browser knows it."""
    return f"{request.scheme}://{request.headers.get(b'host', b'').decode('latin-1')}{request.root_path}"


def _browser(request: HttpRequest) -> tuple[str, bytes]:
    """Return the id of this browser, and the header line that stores it."""
    name = cookie_of(request, _COOKIE)
    name = name if len(name) == 43 else new_secret()
    # Lax, because users return from other sites; all other requests must come from our own page.
    secure = "; Secure" if request.scheme == "https" else ""
    path = f"{request.root_path}/inspect"
    line = f"set-cookie: {_COOKIE}={name}; Path={path}; Max-Age={_SECONDS:.0f}; HttpOnly; SameSite=Lax{secure}\r\n"
    return name, line.encode("latin-1")


def _key(request: HttpRequest, browser: str, url: Url, owner: str | None = None) -> str:
    """Return the key of the state for this browser, operator, page, and server."""
    owner = principal_id(request.principal) if owner is None else owner
    return digest("\n".join((browser, owner, _base(request), str(url))))


def _place(key: str) -> str:
    return f"inspect-session:{key}"


def _bearer(tokens: Tokens) -> str:
    return f"Bearer {tokens.access_token}"


def _who(token: str) -> str:
    """Return the subject of a token that contains one (RFC 9068). Only for display, because it isn't verified."""
    try:
        payload = token.split(".")[1]
        said = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        found = [said.get(name) for name in ("name", "preferred_username", "email", "sub")]
    except (IndexError, ValueError, AttributeError):
        return ""
    return next((each for each in found if isinstance(each, str) and each.isprintable() and len(each) < 128), "")


def _refusal_text(request: HttpRequest, exc: ClientError) -> str:
    if isinstance(exc, AccessDenied) and exc.remedy:
        redirect = _base(request) + CALLBACK
        return f"{exc.message} Register a client there with the redirect URI {redirect}, and enter its id below."
    return _short(str(exc))


def _short(text: str) -> str:
    """Shorten a sentence that may quote another server."""
    plain = "".join(each if each.isprintable() else " " for each in text)
    return plain if len(plain) <= _MAX_SAID else f"{plain[:_MAX_SAID]}…"


def _turned_back(request: HttpRequest, text: str, status: int) -> Response:
    return turned_back(request, "/inspect", text, status)
