"""Signing in to the pages: a form takes a key, a token, or a name and password once, and a cookie stands for it.

The cookie holds the credential, sealed, so that it works with any number of workers and ends when the credential does.
For a name and password it holds who the person is, and ends when they are removed or get another password.
A browser sends it unasked, so it counts only for the pages and what they ask, and only when the request comes from a
page of this very origin (`Sec-Fetch-Site` or `Origin`); scripts cannot read it, and other sites cannot send it.
"""

import html
import time
from collections.abc import Callable, Collection, Mapping
from urllib.parse import parse_qs

from millstream._http.hosts import parse_authority
from millstream._http.message import Request, Response, refusal
from millstream._protocol.principal import Principal
from millstream._protocol.seal import KeyRing
from millstream.auth._browser import cookie_of, is_own
from millstream.auth._guard import Guard, Verdict
from millstream.auth._method import Identity, NotAdmitted, Unavailable, Welcoming

PATH = "/sign-in"
OUT_PATH = "/sign-out"
LIFETIME = 12 * 3600
_CALLED = (
    "/events", "/ws", "/mcp", "/openapi.json", "/publish", "/chat/members", "/dashboard/events", "/dashboard/audit",
    "/tools/", "/mcp/sse/", "/inspect/servers", "/inspect/via/",
)  # fmt: skip
"""What the pages ask, by its whole path or, with a slash at the end, its beginning."""
_SECURE, _PLAIN = "__Host-millstream", "millstream"
_KIND, _PERSON = b"page sign-in", b"page person"
"""A sealed credential, and a sealed person: what somebody types as the one never opens as the other."""
_MAX_CREDENTIAL = 2048
"""A browser keeps cookies of up to 4 KiB."""
_HEAD = (
    b"content-type: text/html; charset=utf-8\r\ncache-control: no-store\r\nx-content-type-options: nosniff\r\n"
    b"content-security-policy: default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; "
    b"base-uri 'none'; frame-ancestors 'none'\r\n"
    # Without an Origin, which other policies take away, nobody could tell whose form this is.
    b"referrer-policy: same-origin\r\ncross-origin-opener-policy: same-origin\r\n"
)
_FORM = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sign in</title>
<link rel="stylesheet" href="{root}/assets/tokens.css">
<link rel="stylesheet" href="{root}/assets/base.css">
<link rel="stylesheet" href="{root}/assets/sign-in.css">
</head>
<body>
<main class="ask card stack">
<h1>Sign in</h1>
<p role="status" class="error">{said}</p>
{forms}</main>
</body>
</html>
"""
_FOR_CREDENTIAL = """<form method="post" action="{root}/sign-in" class="stack">
<input type="hidden" name="next" value="{next}">
<p class="field"><label for="key">Key or token</label>
<input id="key" type="password" name="key" {hint}required{focus}></p>
<p><button{look}>{does}</button></p>
</form>
"""
_FOR_PEOPLE = """<form method="post" action="{root}/sign-in" class="stack">
<input type="hidden" name="next" value="{next}">
<p class="field"><label for="name">Name</label>
<input id="name" name="name" autocomplete="username" autocapitalize="none" spellcheck="false" maxlength="128" required
 autofocus></p>
<p class="field"><label for="password">Password</label>
<input id="password" type="password" name="password" autocomplete="current-password" maxlength="1024" required></p>
<p><button class="primary">Sign in</button></p>
</form>
"""
_OR = '<p class="or soft small"><span>or</span></p>\n'
_ELSEWHERE = '<p class="soft small">Accounts elsewhere, such as with Google, can\'t be used on this page yet.</p>\n'
_FOREIGN = refusal(403, "This form has to be sent from this server's own page.")
_INSECURE = refusal(403, "Sign in over https: over plain http, others on the way would read the key.")


class SignIn:
    """The form, its cookie, and what the cookie is worth. One for each running server."""

    __slots__ = ("_clock", "_guard", "_host", "_nonce", "_pages", "_ring")

    def __init__(
        self,
        guard: Guard,
        pages: Collection[str],
        ring: Callable[[], KeyRing],
        nonce: Callable[[], bytes],
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._guard = guard
        self._pages = frozenset(pages)
        self._ring = ring
        self._nonce = nonce
        self._clock = clock
        self._host = next((each for each in guard.methods if isinstance(each, Welcoming)), None)

    def page(self, request: Request) -> Response | None:
        """The form, in place of a page that somebody opens without having signed in; None for other requests."""
        if request.method not in ("GET", "HEAD") or request.path not in self._pages:
            return None
        return self._form(request, request.path, "", 401) if b"html" in request.headers.get(b"accept", b"") else None

    async def show(self, request: Request) -> Response:
        """`GET /sign-in`."""
        return self._form(request, "", "", 200)

    async def take(self, request: Request) -> Response:
        """`POST /sign-in`: the form."""
        if not is_own(request):
            return _FOREIGN
        if not _is_safe(request):
            return _INSECURE
        async with self._guard.turn(request.peer):
            slow = self._guard.slow(request.peer)
            return await self._judge(request) if slow is None else slow

    async def _judge(self, request: Request) -> Response:
        """Let somebody in, or show the form again."""
        given = parse_qs(request.body.decode("latin-1"), max_num_fields=4, keep_blank_values=True)
        wanted = given.get("next", [""])[-1]
        try:
            kind, kept, bound = await self._take(request, given)
        except NotAdmitted as exc:
            if exc.wrong:
                self._guard.failed(request.peer)
            return self._form(request, wanted, str(exc), exc.status)
        except Unavailable as exc:
            return self._form(request, wanted, str(exc), 503)
        until = int(self._clock()) + LIFETIME
        sealed = self._ring().seal(kind, f"{until}:".encode() + kept, self._nonce(), bound)
        target = wanted if wanted in self._pages else min(self._pages)
        return _go(request, target, sealed, LIFETIME)

    async def _take(self, request: Request, given: Mapping[str, list[str]]) -> tuple[bytes, bytes, bytes]:
        """What the cookie holds: of which kind, what, and to what it is bound."""
        host = self._host
        if host is not None and host.by_password and "key" not in given:
            name, password = given.get("name", [""])[-1], given.get("password", [""])[-1]
            return _PERSON, await host.admit(request.peer, name, password), _bound(host)
        credential = given.get("key", [""])[-1].strip()
        found = (await self._guard.identify(credential))[0] if 0 < len(credential) <= _MAX_CREDENTIAL else None
        if found is None:
            raise NotAdmitted("That isn't valid here, or not any more.", 403, wrong=True)
        return _KIND, credential.encode(), b""

    async def leave(self, request: Request) -> Response:
        """`POST /sign-out`: take the cookie away."""
        return _go(request, PATH, "", 0) if is_own(request) else _FOREIGN

    async def ambient(self, request: Request) -> Principal | Response | None:
        """Whom the cookie of a request stands for; None where there is none, or it does not count."""
        sealed = _cookie(request)
        if not sealed or not self._counts(request):
            return None
        # No header can have a zero byte: nobody gets here by sending what is kept here as a credential.
        known, verdicts = b"\0" + sealed.encode(), self._guard.verdicts
        verdict = verdicts.get(known)
        if verdict is not None and verdict.until > self._guard.clock():
            return verdict.principal
        try:
            found, left = await self._open(sealed)
        except Unavailable as exc:
            return self._guard.challenges.unavailable(str(exc))
        if found is None:
            return None
        self._guard.keep(known, Verdict(found.principal, self._guard.clock() + min(left, found.seconds)))
        return found.principal

    async def _open(self, sealed: str) -> tuple[Identity | None, float]:
        """Whom a cookie stands for now, and for how many seconds it lives."""
        host, ring = self._host, self._ring()
        person = None if host is None else ring.open(_PERSON, sealed, _bound(host))
        plain = (ring.open(_KIND, sealed) or b"0:") if person is None else person
        until, _, kept = plain.partition(b":")
        left = int(until) - self._clock()
        if left <= 0:
            return None, 0
        if host is not None and person is not None:
            return await host.recall(kept), left
        found, lacking = await self._guard.identify(kept.decode("latin-1"))
        return None if lacking else found, left

    def _counts(self, request: Request) -> bool:
        """Whether a request may be made by a cookie at all."""
        path = request.path
        if path in self._pages and request.method in ("GET", "HEAD"):
            return request.headers.get(b"sec-fetch-site", b"none") in (b"none", b"same-origin")
        called = any(path.startswith(each) if each.endswith("/") else path == each for each in _CALLED)
        return called and is_own(request)

    def _form(self, request: Request, wanted: str, said: str, status: int) -> Response:
        root, page = html.escape(request.root_path), html.escape(wanted if wanted in self._pages else "")
        forms = self._forms().format(root=root, next=page)
        return Response(_FORM.format(root=root, said=html.escape(said), forms=forms).encode(), status, _HEAD)

    def _forms(self) -> str:
        """What is asked for: a name and password where people have one, a key or token where there is such a method."""
        host = self._host
        elsewhere = _ELSEWHERE if host is not None and host.elsewhere else ""
        if host is None or not host.by_password:
            hint, look = 'autocomplete="current-password" ', ' class="primary"'
            values = {"hint": hint, "focus": " autofocus", "look": look, "does": "Sign in"}
            return _filled(values) + elsewhere
        if len(self._guard.methods) == 1 and not host.elsewhere:
            return _FOR_PEOPLE
        # A password manager would take the key for a password of somebody.
        values = {"hint": 'autocomplete="off" ', "focus": "", "look": "", "does": "Use this key or token"}
        return _FOR_PEOPLE + _OR + _filled(values) + elsewhere


def _filled(values: Mapping[str, str]) -> str:
    """The form for a credential; what depends on the request is filled in later."""
    return _FOR_CREDENTIAL.format(root="{root}", next="{next}", **values)


def _bound(host: Welcoming) -> bytes:
    """Another server with the same key has other people."""
    return " ".join(host.issuers).encode()


def _is_here(request: Request) -> bool:
    host = parse_authority(request.headers.get(b"host", b""))
    return host is not None and host.loopback


def _is_safe(request: Request) -> bool:
    """Nobody on the way reads what is sent."""
    return request.scheme in ("https", "wss") or _is_here(request)


def _cookie_name(request: Request) -> str:
    """Over plain http on this machine, browsers keep no cookie that is `Secure`."""
    return _SECURE if request.scheme in ("https", "wss") else _PLAIN


def _cookie(request: Request) -> str:
    """The cookie; empty when there is none, or more than one of the name: a neighbor domain may have set the other."""
    name = _cookie_name(request)
    if name == _PLAIN and not _is_here(request):
        return ""
    return cookie_of(request, name)


def _go(request: Request, path: str, value: str, seconds: int) -> Response:
    name = _cookie_name(request)
    secure = "; Secure" if name == _SECURE else ""
    cookie = f"set-cookie: {name}={value}; Path=/; Max-Age={seconds}; HttpOnly; SameSite=Strict{secure}\r\n"
    head = f"location: {request.root_path}{path}\r\ncache-control: no-store\r\n{cookie}"
    return Response(b"", 303, head.encode("latin-1"))
