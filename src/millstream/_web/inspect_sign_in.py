"""Signing in to other servers from the inspector: one OAuth client for each of them, in each browser of the operator.

A page asks where to send the person, sends them there, and finds them signed in when they are back. Tokens stay on
this side: sealed, in the server's store, under a name that is made of the browser's cookie, the operator, the address
of the page and the URL of the other server. None of them gets into a page, a log or an address of ours.
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
from millstream.auth._pages import arrived, turned_back
from millstream.client._errors import AccessDenied, ClientError
from millstream.client._oauth.authorization_request import AuthorizationRequest
from millstream.client._oauth.browser_login import answer_of
from millstream.client._oauth.flow import OAuth
from millstream.client._oauth.store import Kept, MemoryStore, Registration, Tokens

CALLBACK = "/inspect/callback"
_COOKIE = "millstream-inspect"
_SECONDS = 12 * 3600.0
_AWAY_SECONDS = 600.0
_PATIENCE = 30.0
"""Seconds for all that an authorization server is asked at once."""
_EARLY = 30.0
_MAX_FORM = 16 * 1024
_MAX_SAID = 400
_HELD, _PENDING = b"inspect held", b"inspect pending"
_HEAD = JSON_HEAD + b"cache-control: no-store\r\n"
_FOREIGN = plain_problem(403, "This has to come from the inspector's own page.")
_UNREADABLE = plain_problem(400, "That isn't what the inspector's page sends. Reload the page.")
_TOO_OLD = (
    "This sign-in is over, took more than ten minutes, or began in another browser. "
    "Go back to the inspector and sign in again."
)


class Held(Struct):
    """What is kept for one server."""

    kept: Kept
    client: Registration = msgspec.field(default_factory=Registration)
    """As whom the operator wants to come there; empty where this program registers itself."""
    only: str = ""
    """The one issuer that this client is for."""


class PendingSignIn(Struct, frozen=True):
    """A person who was sent away to sign in."""

    url: str
    owner: str
    key: str
    asked: AuthorizationRequest
    client: Registration


class Wanted(Struct):
    """What the page asks for."""

    status: int = 401
    challenge: str = ""
    client_id: str = ""
    client_secret: str = ""
    scope: str = ""


class SignIns:
    """The sign-ins of everybody who uses the inspector of this server."""

    __slots__ = ("_kv", "_vault")

    def __init__(self, services: Services) -> None:
        self._vault = Vault(services)
        self._kv = services.store.kv

    # What the page asks

    async def begin(self, request: HttpRequest, url: Url) -> Response:
        """Where to send the person: ``{"url": …}``."""
        if not is_own(request):
            return _FOREIGN
        try:
            wanted = msgspec.json.decode(request.body[:_MAX_FORM], type=Wanted)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return _UNREADABLE
        browser, cookie = _browser(request)
        key = _key(request, browser, url)
        held = await self._held(key) or Held(Kept({}, {}))
        if wanted.client_id:
            held = Held(held.kept, Registration(wanted.client_id.strip(), wanted.client_secret.strip()))
        try:
            async with asyncio.timeout(_PATIENCE):
                asked = await _client(request, held, wanted.scope.strip()).ask(url, wanted.status, wanted.challenge)
        except TimeoutError:
            return plain_problem(504, f"Whoever gives the tokens for {url} took too long. Try again.")
        except ClientError as exc:
            return plain_problem(502, _refused(request, exc))
        await self._keep(key, held)  # it may be registered there by now
        pending = PendingSignIn(str(url), principal_id(request.principal), key, asked, held.client)
        sealed = self._vault.seal(_PENDING, pending, asked.state.encode())
        await self._vault.put(f"inspect-pending:{digest(asked.state)}", sealed.encode(), _AWAY_SECONDS, lossy=True)
        return Response(encode({"url": asked.url}), 200, _HEAD + cookie)

    async def returned(self, request: HttpRequest) -> Response:
        """`GET /inspect/callback`: somebody is back. Each state counts once, in the browser that left with it."""
        try:
            answer = answer_of("?" + request.query.decode("latin-1"))
        except ClientError as exc:
            return _turned_back(request, f"{exc} Sign in again.", 400)
        pending = await self._take(request, answer.get("state", "")) if request.method == "GET" else None
        if pending is None:
            return _turned_back(request, _TOO_OLD, 403)
        held = await self._held(pending.key) or Held(Kept({}, {}))
        issuer = pending.asked.issuer.issuer
        held.client, held.only = pending.client, issuer if pending.client.client_id else ""
        try:
            async with asyncio.timeout(_PATIENCE):
                await _client(request, held).bring(parse(pending.url), pending.asked, answer)
        except TimeoutError:
            return _turned_back(request, f"{_short(issuer)} took too long. Sign in again.", 504)
        except ClientError as exc:
            return _turned_back(request, f"{_short(str(exc))} Sign in again, or ask whoever runs that server.", 403)
        await self._keep(pending.key, held)
        return arrived(request, "/inspect", b"")

    async def leave(self, request: HttpRequest, url: Url) -> Response:
        """Forget the tokens for a server: ``{"revoked": …}`` says whether their issuer has, too."""
        if not is_own(request):
            return _FOREIGN
        key = _key(request, cookie_of(request, _COOKIE), url)
        held = await self._held(key)
        await self._vault.delete(_place(key))
        revoked = held is not None and await _revoke(request, held, url)
        return Response(encode({"revoked": revoked}), 200, _HEAD)

    async def known(self, request: HttpRequest, url: Url) -> dict[str, Any] | None:
        """Who is signed in at a server, as far as their token says."""
        held = await self._mine(request, url)
        tokens = None if held is None else held.kept.tokens.get(str(url))
        if tokens is None:
            return None
        return {"who": _who(tokens.access_token), "issuer": tokens.issuer, "scopes": tokens.scope.split()}

    # What the way through asks

    async def authorization(self, request: HttpRequest, url: Url, *, refused: str = "") -> str:
        """The header for a request of the page's to a server, empty where nobody is signed in.

        Args:
            request: of the page.
            url: of the server.
            refused: what the server didn't take: give another one, or none.
        """
        held = await self._mine(request, url)
        tokens = None if held is None else held.kept.tokens.get(str(url))
        if tokens is None:
            return ""
        soon = 0 < tokens.expires_at < time.time() + _EARLY
        if tokens.refresh_token and (soon or refused == _bearer(tokens)):
            tokens = await self._renewed(request, url, tokens) or tokens
        return "" if _bearer(tokens) == refused else _bearer(tokens)

    async def _renewed(self, request: HttpRequest, url: Url, before: Tokens) -> Tokens | None:
        """The tokens after these. A refresh token often counts once, so workers take turns."""
        key = _key(request, cookie_of(request, _COOKIE), url)
        async with self._turn(key):
            kept = await self._vault.raw(_place(key))
            held = self._open(key, kept)
            if held is None or held.kept.tokens.get(str(url)) != before:
                return None if held is None else held.kept.tokens.get(str(url))
            try:
                async with asyncio.timeout(_PATIENCE):
                    renewed = await _client(request, held).renew(url)
            except (TimeoutError, ClientError):
                return None
            if not renewed:
                return None
            fresh = held.kept.tokens[str(url)]
            if await self._vault.exchange(_place(key), kept, self._sealed(key, held), _SECONDS):
                return fresh
            await _revoke(request, held, url)  # somebody has signed out meanwhile, or in again
            return None

    @asynccontextmanager
    async def _turn(self, key: str) -> AsyncGenerator[None, None]:
        place, mine = f"inspect-turn:{key}", new_secret().encode()
        # Another worker may have the turn, and nothing here would hear that it's over.
        while not await self._kv.compare_and_set(place, None, mine, 2 * _PATIENCE):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        try:
            yield
        finally:
            # One that took too long is over, and another may have begun.
            await self._kv.compare_and_set(place, mine, None, 1)

    # What is kept

    async def _mine(self, request: HttpRequest, url: Url) -> Held | None:
        """What is kept for a request, if a page of ours makes it: a browser sends its cookies with others', too."""
        browser = cookie_of(request, _COOKIE)
        return await self._held(_key(request, browser, url)) if browser and is_own(request) else None

    async def _held(self, key: str) -> Held | None:
        return self._open(key, await self._vault.raw(_place(key)))

    def _open(self, key: str, sealed: bytes | None) -> Held | None:
        return None if sealed is None else self._vault.open(_HELD, sealed.decode("latin-1"), Held, key.encode())

    def _sealed(self, key: str, held: Held) -> bytes:
        return self._vault.seal(_HELD, held, key.encode()).encode()

    async def _keep(self, key: str, held: Held) -> None:
        await self._vault.put(_place(key), self._sealed(key, held), _SECONDS)

    async def _take(self, request: HttpRequest, state: str) -> PendingSignIn | None:
        """The pending sign-in of a state, for the browser that left with it. Whoever comes with it, it's spent."""
        raw = await self._vault.take(f"inspect-pending:{digest(state)}") if state else None
        pending = (
            None if raw is None else self._vault.open(_PENDING, raw.decode("latin-1"), PendingSignIn, state.encode())
        )
        if pending is None:
            return None
        key = _key(request, cookie_of(request, _COOKIE), parse(pending.url), pending.owner)
        return pending if hmac.compare_digest(key, pending.key) else None


async def _revoke(request: HttpRequest, held: Held, url: Url) -> bool:
    """Have the tokens for a server revoked; whether they were. They are forgotten here all the same."""
    try:
        async with asyncio.timeout(_PATIENCE):
            return await _client(request, held).sign_out(url)
    except TimeoutError:
        return False


def _client(request: HttpRequest, held: Held, scope: str = "") -> OAuth:
    store = MemoryStore()
    store.save(held.kept)
    who = held.client
    made = OAuth(
        store=store, client_id=who.client_id, client_secret=who.client_secret, name="Millstream inspector",
        scope=scope, redirect_uri=_base(request) + CALLBACK,
    )  # fmt: skip
    return made.bound_to(held.only) if held.only else made


def _base(request: HttpRequest) -> str:
    """What the addresses of this server begin with, as the browser knows it."""
    return f"{request.scheme}://{request.headers.get(b'host', b'').decode('latin-1')}{request.root_path}"


def _browser(request: HttpRequest) -> tuple[str, bytes]:
    """The name of this browser, and the header line with which it keeps it."""
    name = cookie_of(request, _COOKIE)
    name = name if len(name) == 43 else new_secret()
    # Lax, since people come back from other sites; everything else that counts it asks for a page of ours.
    secure = "; Secure" if request.scheme == "https" else ""
    path = f"{request.root_path}/inspect"
    line = f"set-cookie: {_COOKIE}={name}; Path={path}; Max-Age={_SECONDS:.0f}; HttpOnly; SameSite=Lax{secure}\r\n"
    return name, line.encode("latin-1")


def _key(request: HttpRequest, browser: str, url: Url, owner: str | None = None) -> str:
    """The name of what is kept for this browser, operator, page and server."""
    owner = principal_id(request.principal) if owner is None else owner
    return digest("\n".join((browser, owner, _base(request), str(url))))


def _place(key: str) -> str:
    return f"inspect-session:{key}"


def _bearer(tokens: Tokens) -> str:
    return f"Bearer {tokens.access_token}"


def _who(token: str) -> str:
    """Whom a token stands for, where it's one that says so (RFC 9068). Only shown, never believed."""
    try:
        payload = token.split(".")[1]
        said = json.loads(urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        found = [said.get(name) for name in ("name", "preferred_username", "email", "sub")]
    except (IndexError, ValueError, AttributeError):
        return ""
    return next((each for each in found if isinstance(each, str) and each.isprintable() and len(each) < 128), "")


def _refused(request: HttpRequest, exc: ClientError) -> str:
    if isinstance(exc, AccessDenied) and exc.remedy:
        redirect = _base(request) + CALLBACK
        return f"{exc.message} Register a client there with the redirect URI {redirect}, and enter its id below."
    return _short(str(exc))


def _short(text: str) -> str:
    """A sentence that somebody else has a part in."""
    plain = "".join(each if each.isprintable() else " " for each in text)
    return plain if len(plain) <= _MAX_SAID else f"{plain[:_MAX_SAID]}…"


def _turned_back(request: HttpRequest, text: str, status: int) -> Response:
    return turned_back(request, "/inspect", text, status)
