"""Sign-in to the pages: a form accepts a key, a token, or a name and password once, and sets a cookie.

The cookie contains the sealed credential, so any worker can verify it, and it expires with the credential. After a
login with name and password it contains the identity, and ends when the account is removed or its password changes.
External logins, such as with Google, set the same cookie. See `PageMethod`. Browsers send cookies automatically, so
it's accepted only for the pages and their requests, and these only from a page of this origin (`Sec-Fetch-Site` or
`Origin`). The program's own private routes are pages, too, with every method and path. Scripts can't read it, and other
sites can't send it.
"""

import logging
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from msgspec.structs import replace

from millstream._http.hosts import parse_authority
from millstream._http.message import HttpRequest, Response, peer_network, query_value, refusal
from millstream._limits import Limiter, Rate
from millstream._protocol.errors import LocalError
from millstream._protocol.principal import EVERYTHING, Principal, get_profile
from millstream._recent import Recent
from millstream._server.calls.services import Services
from millstream._server.calls.vault import Vault, digest
from millstream._stores.store import Store
from millstream.auth._authorization_server.records import MAX_FORM, reply
from millstream.auth._guard import AuthGuard
from millstream.auth._method import Identity, NotAdmitted, PageMethod, Rejection, Unavailable, Verdict
from millstream.auth._pages import (
    DATA,
    IMAGES,
    brand,
    continue_page,
    cross_origin_text,
    get_cookie,
    is_same_origin,
    render,
)
from millstream.auth.providers import SignInFailed

logger = logging.getLogger("millstream")

PATH = "/sign-in"
OUT_PATH = "/sign-out"
ACCOUNT_PATH = "/sign-in/account"
LIFETIME = 12 * 3600
_SIGN_OUT_RATE = Rate(60, 60)
"""Maximum sign-outs per user, because each is stored for the lifetime of the cookie. Other users at the same address
aren't affected.
"""
_REQUEST_PATHS = (
    "/events", "/ws", "/mcp", "/mcp/tools/call", "/mcp/tools/list", "/openapi.json", "/publish", "/members",
    "/connect/server", "/chat/playground", "/chat/playground/talk",
    "/dashboard/events", "/dashboard/audit",
    "/dashboard/calls", "/dashboard/history", "/dashboard/readers", "/gateway/items", "/gateway/upstreams",
    "/tools/", "/mcp/sse/", "/inspect/servers", "/inspect/app", "/inspect/sign-in/", "/inspect/via/", "/connections",
    "/approvals/",
    ACCOUNT_PATH,
)  # fmt: skip
"""Paths that the pages request. A trailing slash makes it a prefix."""
_READING = ("GET", "HEAD")
_SECURE, _PLAIN = "__Host-millstream", "millstream"
_KIND, _PERSON = b"page credential", b"page user"
"""Kinds of sealed cookies, so that a credential is never read as an identity, or the reverse."""
_MAX_CREDENTIAL = 2048
"""Maximum size of a credential in a cookie, in bytes. Browsers limit the sealed cookie to 4 KiB."""
_LOCAL = re.compile(r"/(?![/\\])[!-~]{0,2047}")
"""A path of this server, with its query. A second slash would begin the name of another one."""
_TOO_MANY = refusal(400, "This form has too many fields.")
_TOO_LARGE = refusal(413, "This form is too large.")
_INSECURE = refusal(403, "Sign in over https. Over plain http, others on the network could read the key.")

_PAGES = {
    "/dashboard": "dashboard",
    "/gateway": "gateway",
    "/inspect": "inspector",
    "/docs": "docs",
    "/chat": "chat",
    "/connections": "connections",
    "/approvals": "approvals",
}
"""Pages that the form names."""
_DEFAULT_PAGES = ("/connect", "/inspect", "/docs", "/dashboard", "/chat")
"""Pages to open by default, in order of preference."""


class _Content(NamedTuple):
    """Content of a cookie: its expiry, the time of its issue, and a credential or an identity."""

    until: float
    issued: float
    kept: bytes


class SignIn:
    """The form and its cookie, one instance for each running server."""

    def __init__(
        self,
        guard: AuthGuard,
        pages: Collection[str],
        services: Services,
        *,
        server: str,
        icon: str,
        opens: Callable[[str], bool],
    ) -> None:
        self._guard = guard
        self.signed_out: SignedOut = SignedOut(services.store, guard.verdicts)
        guard.on_refresh.append(self.signed_out.end)
        self._pages = frozenset(pages)
        self._opens = opens
        """Whether a path is one of the program's own private routes with a GET."""
        self._vault = Vault(services)
        self._clock = services.clock
        self._name_claims = services.settings.display_name_claims
        people = [each for each in guard.methods if isinstance(each, PageMethod)]
        host = self._host = next((each for each in people if each.recalls), None)
        self._issuer = b"" if host is None else " ".join(host.issuers).encode()
        """Context that seals identities to an issuer, because another server with the same key has other users."""
        self._login_methods: dict[str, PageMethod] = {}
        for each in people:
            each.landing = self._land
            self._login_methods |= dict.fromkeys(each.logins, each)
        self._sign_out_limiter = Limiter("sign-out", _SIGN_OUT_RATE)
        others = [each for each in guard.methods if each not in people]
        passwords = any(each.by_password for each in people)
        self._values: Mapping[str, Any] = {
            "passwords": passwords,
            "logins": {name: login for each in people for name, login in each.logins.items()},
            "credentials": bool(others),
            # Issuers without a login for these pages
            "unknown": dict.fromkeys(
                urlsplit(issuer).netloc for each in others if not each.paths() for issuer in each.issuers
            ),
            "images": DATA if icon else IMAGES,
            "focused": passwords or not self._login_methods,
            **brand(server, icon),
        }
        """Values for all forms."""

    def page(self, request: HttpRequest) -> Response | None:
        """Return the form in place of a page if the browser isn't signed in, or None for other requests."""
        wanted = quote(request.path) + (f"?{request.query.decode('latin-1')}" if request.query else "")
        if request.method in _READING and self._is_page(wanted) and b"html" in request.headers.get(b"accept", b""):
            return self._form(request, wanted, "", 401)
        return None

    async def show(self, request: HttpRequest) -> Response:
        """Handle `GET /sign-in`; ``?next=`` is the page to open afterwards."""
        return self._form(request, query_value("next", request.query), "", 200)

    async def take(self, request: HttpRequest) -> Response:
        """Handle `POST /sign-in`: check the submitted form."""
        if not is_same_origin(request):
            return refusal(403, cross_origin_text(request))
        if not _is_safe(request):
            return _INSECURE
        if len(request.body) > MAX_FORM:
            return _TOO_LARGE
        try:
            # If a field is repeated, the last one is used.
            given = dict(parse_qsl(request.body.decode("latin-1"), max_num_fields=4, keep_blank_values=True))
        except ValueError:
            return _TOO_MANY
        wanted = given.get("next", "")
        try:
            async with self._guard.verification_slot(request.peer):
                refused = self._guard.refuse_throttled(request.peer)
                return await self._judge(request, given, wanted) if refused is None else refused
        except Unavailable as exc:
            return self._form(request, wanted, str(exc), 503)

    async def _judge(self, request: HttpRequest, given: Mapping[str, str], wanted: str) -> Response:
        """Sign the user in, or show the form again."""
        host, head = self._host, b""
        try:
            if "way" in given:
                method = self._login_methods.get(given["way"])
                if method is None:
                    raise NotAdmitted("This login method is no longer available.", 400)
                return await method.redirect_to_login(request, given["way"], self._target(wanted))
            if host is not None and host.by_password and "key" not in given:
                kept, head = await host.admit(request, given.get("name", ""), given.get("password", ""))
            else:
                host, credential = None, given.get("key", "").strip()
                kept = credential.encode()
                found: Identity | Rejection | None = Rejection()
                if 0 < len(credential) <= _MAX_CREDENTIAL:
                    found, _ = await self._guard.check(request.peer, credential)
                if not isinstance(found, Identity):
                    why = found.reason if found is not None else ""
                    raise NotAdmitted(why or "This key or token is invalid or has expired.", 403)
        except NotAdmitted as exc:
            if exc.wrong:
                self._guard.record_failure(request.peer)
            return self._form(request, wanted, str(exc), exc.status, typed=given.get("name", "")[:128])
        return _redirect(request, self._target(wanted), self._seal(host, kept, LIFETIME), LIFETIME, head)

    def _target(self, wanted: str) -> str:
        """Return the requested page if it's one of ours, or the default page."""
        if self._is_page(wanted):
            return wanted
        return next((each for each in _DEFAULT_PAGES if each in self._pages), min(self._pages))

    def _seal(self, method: PageMethod | None, kept: bytes, seconds: float) -> str:
        """Return the value of a cookie."""
        now = self._clock()
        kind, bound = (_PERSON, self._issuer) if method is not None and method.recalls else (_KIND, b"")
        return self._vault.seal(kind, _Content(now + seconds, now, kept), bound)

    def _is_page(self, wanted: str) -> bool:
        """Return whether the cookie gives access to the page at a URL path."""
        path = unquote(wanted.partition("?")[0])
        return bool(_LOCAL.fullmatch(wanted)) and (path in self._pages or self._opens(path))

    async def leave(self, request: HttpRequest) -> Response:
        """Handle `POST /sign-out`: delete the cookie and invalidate its copies, and with `everywhere`, all cookies of
        the user.
        """
        if not is_same_origin(request):
            return refusal(403, cross_origin_text(request))
        sealed = _cookie(request)
        try:
            found, left = await self._open(sealed)
        except Unavailable:
            found, left = None, LIFETIME
        if left > 0:
            id, until = "", self._clock() + left
            if found is not None:
                id, until = found.principal.id, min(found.principal.expires_at, until)
            if self._sign_out_limiter.take(id or peer_network(request.peer)) <= 0:
                await self.signed_out.add(digest(sealed), id, until, left)
                if id and b"everywhere" in request.body:
                    await self.signed_out.add(EVERYWHERE, id, self._clock(), LIFETIME)
        return _redirect(request, PATH, "", 0, b"" if self._host is None else self._host.forget())

    async def account(self, request: HttpRequest) -> Response:
        """Handle `GET /sign-in/account`: return who is signed in, with their scopes and display name."""
        principal = request.principal
        assert principal is not None  # noqa: S101  the guard is in front
        name = principal.claims.get("name")
        scopes = ["everything"] if EVERYTHING in principal.scopes else sorted(principal.scopes)
        shown = name if isinstance(name, str) and name else principal.subject
        known_as = get_profile(principal, self._name_claims).name
        return reply({"name": shown, "scopes": scopes, "known_as": known_as})

    async def ambient(self, request: HttpRequest, own: bool) -> Principal | Response | None:
        """Authenticate a request by its sign-in cookie. Return None if no cookie applies.

        Args:
            request: A request without a credential.
            own: Whether it's for one of the program's own routes.
        """
        seal = _cookie(request)
        if not seal:
            return None
        if not self._accepts_cookie(request, own):
            if own and request.method not in _READING:
                return refusal(403, cross_origin_text(request))
            return self._guard.challenges.for_missing(request, ignored=True)
        key = verdict_key(seal)
        if (verdict := self._guard.cached_verdict(key)) is not None:
            return verdict.principal
        try:
            found, left = await self._open(seal)
        except Unavailable as exc:
            return self._guard.challenges.unavailable(str(exc))
        if found is None:
            return None
        principal = found.principal
        principal = replace(principal, expires_at=min(principal.expires_at, self._clock() + left))
        self._guard.verdicts.keep(key, Verdict(principal, self._guard.clock() + min(left, found.seconds)))
        self.signed_out.note_use(principal.id, principal.expires_at)
        return principal

    async def _open(self, sealed: str) -> tuple[Identity | None, float]:
        """Return the identity in a cookie, and its remaining lifetime in seconds."""
        host = self._host
        person = host and self._vault.open(_PERSON, sealed, _Content, self._issuer)
        until, issued, kept = person or self._vault.open(_KIND, sealed, _Content) or _Content(0.0, 0.0, b"")
        left = until - self._clock()
        if left <= 0:
            return None, 0
        if host is not None and person is not None:
            found = await host.recall(kept)
        else:
            known, lacking = await self._guard.identify(kept.decode("latin-1"))
            found = None if lacking or isinstance(known, Rejection) else known
        # Last, because the result is cached, and the user may have signed out in the meantime.
        id = "" if found is None else found.principal.id
        return (None, 0) if await self.signed_out.has(sealed, id, issued) else (found, left)

    def _accepts_cookie(self, request: HttpRequest, own: bool) -> bool:
        """Return whether a cookie may authenticate this request: from an address bar or a bookmark only to read a page,
        and from a page only of this origin.
        """
        path, headers = request.path, request.headers
        if (own or path in self._pages) and request.method in _READING:
            return headers.get(b"sec-fetch-site", b"none") in (b"none", b"same-origin")
        called = own or any(path.startswith(each) if each.endswith("/") else path == each for each in _REQUEST_PATHS)
        return called and is_same_origin(request)

    def _form(self, request: HttpRequest, wanted: str, said: str, status: int, *, typed: str = "") -> Response:
        """Return the page with the sign-in form.

        Args:
            request: Request of the page, or of the form.
            wanted: Page to open afterwards, if it's one of ours.
            said: Error of the previous attempt.
            status: Status of the response.
            typed: Name from the previous attempt.
        """
        page = wanted if self._is_page(wanted) else ""
        return render(
            "sign_in.html",
            status,
            root=f"{request.root_path}/",
            page=page,
            notice=said,
            typed=typed,
            purpose=f" to open the {_PAGES[page]}" if page in _PAGES else "",
            **self._values,
        )

    async def _land(
        self, request: HttpRequest, method: PageMethod, page: str, finished: Awaitable[tuple[bytes, float]]
    ) -> Response:
        """Sign a user in after an external login, and continue to the requested page. See `PageLanding`."""
        try:
            kept, seconds = await finished
            if not _is_safe(request):
                return _INSECURE
            if len(kept) > _MAX_CREDENTIAL:
                raise SignInFailed("Your identity is too large for a cookie. Sign in with a key or token instead.")
        except SignInFailed as exc:
            return self._form(request, page, str(exc), 403)
        seconds = int(min(seconds, LIFETIME))
        cookie = _cookie_line(request, self._seal(method, kept, seconds), seconds)
        return continue_page(request, self._target(page), cookie)


def _is_safe(request: HttpRequest) -> bool:
    """Return whether the connection is protected from eavesdropping: by TLS, or because it's on this machine."""
    host = parse_authority(request.headers.get(b"host", b""))
    return request.scheme == "https" or (host is not None and host.loopback)


def _cookie_name(request: HttpRequest) -> str:
    """Return the cookie's name. Browsers reject `Secure` cookies over plain http on this machine."""
    return _SECURE if request.scheme == "https" else _PLAIN


def _cookie(request: HttpRequest) -> str:
    """Return the cookie, or an empty string if it's missing, repeated, or not acceptable over this connection."""
    return get_cookie(request, _cookie_name(request)) if _is_safe(request) else ""


def _redirect(request: HttpRequest, path: str, value: str, seconds: int, more: bytes = b"") -> Response:
    head = f"location: {request.root_path}{path}\r\ncache-control: no-store\r\n".encode("latin-1")
    return Response(b"", 303, head + _cookie_line(request, value, seconds) + more)


def _cookie_line(request: HttpRequest, value: str, seconds: int) -> bytes:
    name = _cookie_name(request)
    secure = "; Secure" if name == _SECURE else ""
    return f"set-cookie: {name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}\r\n".encode()


_TOPIC = "signed-out"
_MARK = b"\0"
EVERYWHERE = "*"
"""Replaces a cookie's digest for a user who signs out in every browser."""
_MAX_SIGN_OUTS = 4096


class SignedOut:
    """A worker's known sign-outs.

    After a sign-out, the cookie becomes invalid on the workers that reach the store, and its streams are closed. The
    store records a sign-out for the cookie's lifetime. A worker queries it for each new cookie, and again when the
    cookie's cached verdict expires. Requests without a cookie cost nothing.

    While the store is unavailable, a worker relies on earlier announcements. Afterward it checks all cookies again and
    closes their streams. Browsers reconnect. An in-memory store loses sign-outs on restart, so copies of their cookies
    are valid again until they expire.
    """

    def __init__(self, store: Store, verdicts: dict[bytes, Any]) -> None:
        """Subscribe to announcements. `verdicts` contains cached verdicts on cookies under `verdict_key`."""
        self._store = store
        self._verdicts = verdicts
        self._known: Recent[str, float] = Recent(_MAX_SIGN_OUTS)
        """Name of a sign-out -> time up to which it invalidates issued cookies. The oldest are dropped first."""
        self._to_close: Recent[tuple[str, float], None] = Recent(_MAX_SIGN_OUTS)
        """Owners and expiries of streams to close. The oldest are dropped first."""
        self._in_use: Recent[tuple[str, int], float] = Recent(_MAX_SIGN_OUTS)
        """Owner and rounded expiry of cookies in use -> exact expiry. The oldest are dropped first."""
        self.stop: Callable[[], None] = store.bus.subscribe(_TOPIC, self._on_announcement, interrupted=self._drop)
        """Unsubscribes from announcements."""

    async def add(self, cookie: str, id: str, when: float, seconds: float) -> None:
        """Record that a user has signed out.

        Args:
            cookie: Digest of the user's cookie, or `EVERYWHERE`.
            id: Id of the principal.
            when: Expiry of the streams opened with the cookie. For all cookies, the present time.
            seconds: Maximum remaining lifetime of the cookie.
        """
        said = f"{cookie} {when} {id}".encode()
        self._on_announcement(said)
        try:
            await self._store.kv.put(f"signed-out:{_name(cookie, id)}", str(when).encode(), max(1.0, seconds))
            await self._store.bus.publish(_TOPIC, said)
        except LocalError as exc:
            logger.warning("A user signed out of the pages, but the other workers can't be notified: %s", exc)

    async def has(self, cookie: str, id: str, issued: float) -> bool:
        """Return whether a user has signed out with a cookie, or everywhere since the cookie was issued."""
        names = (digest(cookie), _name(EVERYWHERE, id))
        try:
            found = [float(await self._store.kv.get(f"signed-out:{name}") or 0) for name in names]
        except LocalError:
            found = []
        return issued <= max(*found, *(self._known.get(name, 0.0) for name in names))

    def note_use(self, id: str, until: float) -> None:
        """Record that a cookie is in use on this worker. `until` is the expiry of the streams opened with it."""
        self._in_use.keep((id, round(until)), until)

    def end(self, opened: Callable[[str, float], None]) -> None:
        """Call `opened` once with the owner and expiry of each signed-out cookie, to close its streams."""
        while self._to_close:
            opened(*self._to_close.popitem(last=False)[0])

    def _on_announcement(self, data: bytes) -> None:
        cookie, when, id = data.decode("utf-8", "replace").split(" ", 2)
        self._known.keep(_name(cookie, id), float(when))
        if cookie == EVERYWHERE:
            self._drop(id)
            return
        self._to_close.keep((id, float(when)), None)
        if (known := _MARK + cookie.encode()) in self._verdicts:
            del self._verdicts[known]

    def _drop(self, owner: str | None = None) -> None:
        """Close streams that were opened with cookies, one owner's or all of them, and check the cookies again.

        All are closed after announcements may have been missed.
        """
        for key, until in [each for each in self._in_use.items() if owner in (None, each[0][0])]:
            self._to_close.keep((key[0], until), None)
            del self._in_use[key]
        for each, verdict in list(self._verdicts.items()):
            if each.startswith(_MARK) and (owner is None or verdict.principal.id == owner):
                del self._verdicts[each]


def _name(cookie: str, id: str) -> str:
    """Return the name of a sign-out in the store."""
    return cookie + id if cookie == EVERYWHERE else cookie


def verdict_key(cookie: str) -> bytes:
    """Return the cache key of a cookie's verdict."""
    # Headers can't contain a zero byte, so no credential equals this key. A sealed value has only one valid encoding.
    return _MARK + digest(cookie).encode()
