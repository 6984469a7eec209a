"""Signing in to the pages: a form takes a key or token once, and a cookie stands for it from then on.

The cookie holds the credential, sealed, so that it works with any number of workers and ends when the credential does.
A browser sends it unasked, so it counts only for the pages and what they ask, and only when the request comes from a
page of this very origin (`Sec-Fetch-Site` or `Origin`); scripts cannot read it, and other sites cannot send it.
"""

import html
import time
from collections.abc import Callable, Collection
from urllib.parse import parse_qs

from millstream.auth.browser import cookie_of, is_own
from millstream.auth.guard import Guard, Verdict
from millstream.auth.method import Unavailable
from millstream.http.hosts import parse_authority
from millstream.http.message import Request, Response, refusal
from millstream.protocol.principal import Principal
from millstream.protocol.seal import KeyRing

PATH = "/sign-in"
OUT_PATH = "/sign-out"
LIFETIME = 12 * 3600
_CALLED = (
    "/events", "/ws", "/mcp", "/openapi.json", "/publish", "/chat/members", "/dashboard/events", "/dashboard/audit",
    "/tools/", "/mcp/sse/", "/inspect/servers", "/inspect/via/",
)  # fmt: skip
"""What the pages ask, by its whole path or, with a slash at the end, its beginning."""
_SECURE, _PLAIN = "__Host-millstream", "millstream"
_KIND = b"page sign-in"
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
<form method="post" action="{root}/sign-in" class="stack">
<input type="hidden" name="next" value="{next}">
<p class="field"><label for="key">Key or token</label>
<input id="key" type="password" name="key" autocomplete="current-password" required autofocus></p>
<p><button class="primary">Sign in</button></p>
</form>
</main>
</body>
</html>
"""
_FOREIGN = refusal(403, "This form has to be sent from this server's own page.")
_INSECURE = refusal(403, "Sign in over https: over plain http, others on the way would read the key.")


class SignIn:
    """The form, its cookie, and what the cookie is worth. One for each running server."""

    __slots__ = ("_clock", "_guard", "_nonce", "_pages", "_ring")

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
        slow = self._guard.slow(request.peer)
        if slow is not None:
            return slow
        given = parse_qs(request.body.decode("latin-1"), max_num_fields=4)
        credential, wanted = given.get("key", [""])[-1].strip(), given.get("next", [""])[-1]
        try:
            found = (await self._guard.identify(credential))[0] if 0 < len(credential) <= _MAX_CREDENTIAL else None
        except Unavailable as exc:
            return self._form(request, wanted, str(exc), 503)
        if found is None:
            self._guard.failed(request.peer)
            return self._form(request, wanted, "That isn't valid here, or not any more.", 403)
        until = int(self._clock()) + LIFETIME
        sealed = self._ring().seal(_KIND, f"{until}:{credential}".encode(), self._nonce())
        target = wanted if wanted in self._pages else min(self._pages)
        return _go(request, target, sealed, LIFETIME)

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
        plain = self._ring().open(_KIND, sealed)
        until, _, credential = (plain or b"0:").decode("latin-1").partition(":")
        left = int(until) - self._clock()
        if left <= 0:
            return None
        try:
            found, lacking = await self._guard.identify(credential)
        except Unavailable as exc:
            return self._guard.challenges.unavailable(str(exc))
        if found is None or lacking:
            return None
        self._guard.keep(known, Verdict(found.principal, self._guard.clock() + min(left, found.seconds)))
        return found.principal

    def _counts(self, request: Request) -> bool:
        """Whether a request may be made by a cookie at all."""
        path = request.path
        if path in self._pages and request.method in ("GET", "HEAD"):
            return request.headers.get(b"sec-fetch-site", b"none") in (b"none", b"same-origin")
        called = any(path.startswith(each) if each.endswith("/") else path == each for each in _CALLED)
        return called and is_own(request)

    def _form(self, request: Request, wanted: str, said: str, status: int) -> Response:
        values = {"root": request.root_path, "next": wanted if wanted in self._pages else "", "said": said}
        body = _FORM.format(**{name: html.escape(value) for name, value in values.items()})
        return Response(body.encode(), status, _HEAD)


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
    """The cookie; empty when there is none, or more than one of the name: a neighbour domain may have set the other."""
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
