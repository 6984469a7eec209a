"""The authorization server's state: sealed cookies and form fields, and pending logins.

Cookies and form fields (browser ids, logins, known devices, and requests) are sealed instead of stored, so opening a
page needs no storage. A form is bound to the browser that it was shown in. Other browsers can't submit it.
"""

from functools import partial
from typing import Any, TypeVar

from msgspec import Struct, field

from millstream._http.message import HttpRequest, Response, peer_network
from millstream._limits import Limiter, Rate
from millstream._override import override
from millstream._protocol.errors import LocalError
from millstream._server.calls.vault import Vault, digest, new_secret, new_state, pack, read
from millstream.auth import _pages as pages
from millstream.auth._authorization_server.records import CALLBACK, AuthorizationRequest, OAuthError, Parameters, fits
from millstream.auth._method import NotAdmitted, PageMethod, Paths
from millstream.auth._pages import get_cookie, is_at_host
from millstream.auth.providers import (
    Callback,
    RedirectTarget,
    SignInFailed,
    UpstreamWithPrompt,
    User,
)

T = TypeVar("T")

QUESTION_SECONDS = 600.0
DEVICE_SECONDS = 180 * 86_400.0
PERSON_SECONDS = 8 * 3600.0
_QUESTION, _PERSON, _DEVICE = b"oauth question", b"oauth person", b"oauth device"
_MAX = 16 * 1024
TOO_OLD = "This page is too old, or was opened in another browser. Go back to the program and start again."
STORE_AWAY = "The server's store isn't available. Try again later."
_PENDING_SECONDS = 600.0
_MAX_STATE_BYTES = 2048
_PENDING_KIND = "oauth-pending"
_REDIRECT_RATE = Rate(200, 60)
"""Maximum redirects per address. Each stores a record."""


class PendingLogin(Struct, frozen=True, omit_defaults=True):
    """A login in progress at an upstream."""

    browser: str
    login: str
    state_data: bytes
    authorization: AuthorizationRequest | None = None
    """The client's request that the user has consented to, or None for logins without a client."""
    page: str = ""
    """The page of this server to open afterwards."""


class Tickets(Struct, eq=False):
    """Creates and opens tickets, and redirects browsers to upstreams.

    The browser is redirected with a `state`, and the callback returns it. The state is random, valid once within ten
    minutes, and bound to the browser by a cookie. This prevents login CSRF: tricking a user into completing an
    attacker's login.
    """

    vault: Vault
    base: str
    """Base URL of the callbacks."""
    _leaving: Limiter = field(default_factory=lambda: Limiter("upstream", _REDIRECT_RATE))

    def browser(self, request: HttpRequest) -> tuple[str, bytes]:
        """Return the browser's id, and the header line that sets a new one if it had none."""
        name = self.known_browser(request)
        if len(name) == 43:
            return name, b""
        name = new_secret()
        return name, self._cookie("browser", name, PERSON_SECONDS)

    def known_browser(self, request: HttpRequest) -> str:
        """Return the browser's id, or an empty string if it has none."""
        return get_cookie(request, self._name("browser"))

    def seal_request(self, browser: str, authorization: AuthorizationRequest) -> str:
        """Seal a request for a browser."""
        return self._seal(_QUESTION, authorization, QUESTION_SECONDS, browser)

    def open_request(self, browser: str, sealed: str) -> AuthorizationRequest | None:
        """Return a sealed request, or None if it's for another browser or has expired."""
        return self._open(_QUESTION, sealed, AuthorizationRequest, browser) if browser else None

    def person(self, request: HttpRequest) -> User | None:
        """Return the user of the browser, if any."""
        return self._open(_PERSON, get_cookie(request, self._name("person")), User)

    def keep(self, user: User) -> bytes:
        """Return the header line that stores a login in the browser."""
        sealed = self._seal(_PERSON, user, PERSON_SECONDS)
        return self._cookie("person", sealed, PERSON_SECONDS)

    def forget(self) -> bytes:
        """Return the header line that deletes the login."""
        return self._cookie("person", "", 0)

    def device(self, request: HttpRequest, name: str) -> str:
        """Return the device id of the browser, or empty if the user with this name hasn't logged in there before."""
        found = self._open(_DEVICE, get_cookie(request, self._name("device")), tuple[str, str])
        return found[1] if found and found[0] == name.casefold() else ""

    def keep_device(self, name: str) -> bytes:
        """Return the header line that makes a browser a known device for this name."""
        sealed = self._seal(_DEVICE, (name.casefold(), new_secret()[:22]), DEVICE_SECONDS)
        return self._cookie("device", sealed, DEVICE_SECONDS)

    def _seal(self, kind: bytes, value: Any, seconds: float, bound: str = "") -> str:
        """Seal a value that expires."""
        return self.vault.seal(kind, (self.vault.clock() + seconds, pack(value)), bound.encode())

    def _open(self, kind: bytes, sealed: str, want: type[T], bound: str = "") -> T | None:
        found = self.vault.open(kind, sealed, tuple[float, bytes], bound.encode()) if len(sealed) <= _MAX else None
        return read(found[1], want) if found and found[0] > self.vault.clock() else None

    def _name(self, kind: str) -> str:
        return f"{'__Host-' if self.base.startswith('https:') else ''}millstream-{kind}"

    def _cookie(self, kind: str, value: str, seconds: float) -> bytes:
        # Lax, because users come from pages of clients and upstreams.
        secure = "; Secure" if self.base.startswith("https:") else ""
        flags = f"Path=/; Max-Age={seconds:.0f}; HttpOnly; SameSite=Lax{secure}"
        return f"set-cookie: {self._name(kind)}={value}; {flags}\r\n".encode("ascii")

    # Upstreams

    async def begin(
        self,
        request: HttpRequest,
        target: RedirectTarget,
        *,
        authorization: AuthorizationRequest | None = None,
        page: str = "",
    ) -> Response:
        """Return the page that redirects a browser to an upstream.

        Raises:
            SignInFailed: The upstream isn't available.
            LocalError: The store isn't available.
        """
        if self._leaving.take(peer_network(request.peer)) > 0:
            said = "Too many people are signing in from your address. Try again in a minute."
            return pages.wrong("Wait a little", said, 429)
        state = new_state(request.owner)
        browser, cookie = self.browser(request)
        callback = f"{self.base}{CALLBACK}{target.name}"
        if authorization is not None and authorization.renewal and isinstance(target, UpstreamWithPrompt):
            redirect = await target.begin_anew(callback, state, authorization.renewal)
        else:
            redirect = await target.begin(callback, state)
        if len(redirect.state_data) > _MAX_STATE_BYTES:
            raise ValueError(
                f"state_data of {target.name} has {len(redirect.state_data)} bytes; the maximum is {_MAX_STATE_BYTES}."
            )
        pending = PendingLogin(digest(browser), target.name, redirect.state_data, authorization, page)
        await self.vault.put_pending(_PENDING_KIND, state, pending, _PENDING_SECONDS)
        return pages.redirect_page(redirect.url, target.label, cookie)


callback_error = partial(pages.wrong, up="../../")
"""Returns an error page of a callback, which is two levels below the authorization server."""


class UpstreamPageMethod(PageMethod):
    """A method where users sign in to the pages at an upstream."""

    _tickets: Tickets

    def callbacks(self) -> Paths:
        """Return the handler of each upstream's callback, by path and method."""
        return {CALLBACK + name: {"GET": partial(self._return, name)} for name in self.logins}

    async def _return(self, name: str, request: HttpRequest) -> Response:
        """Find the pending login for an upstream's callback, by the state."""
        try:
            given = Parameters(request.query)
        except OAuthError as exc:
            return callback_error("This link doesn't work", str(exc), exc.status)
        tickets = self._tickets
        try:
            pending = await tickets.vault.take_pending(_PENDING_KIND, given.get("state"), PendingLogin)
        except LocalError:
            return callback_error("Start again", STORE_AWAY, 503)
        if pending is None or pending.login != name or given.repeated:
            return callback_error("Start again", TOO_OLD)
        if not fits(tickets.known_browser(request), pending.browser):
            return callback_error("Start again", TOO_OLD, 403)
        callback = Callback(given.values(), f"{tickets.base}{CALLBACK}{name}", pending.state_data)
        return await self.handle_callback(request, pending, callback)

    @override
    async def redirect_to_login(self, request: HttpRequest, login: str, page: str) -> Response:
        """See `PageMethod.redirect_to_login`. Refuses another host, such as another name of this machine."""
        base = self._tickets.base
        if not is_at_host(request, base):
            raise NotAdmitted(f"You can only sign in at {base}{page}. Open that address.", 400)
        try:
            return await self._tickets.begin(request, self.logins[login], page=page)
        except (SignInFailed, LocalError) as exc:
            said = str(exc) if isinstance(exc, SignInFailed) else STORE_AWAY
            raise NotAdmitted(said, 503) from None

    async def finish_login(self, login: str, callback: Callback) -> tuple[bytes, float]:
        """Return the content and maximum lifetime of a cookie for the user who returned from a login.

        Raises:
            SignInFailed: The login failed.
        """
        raise NotImplementedError

    async def handle_callback(self, request: HttpRequest, pending: PendingLogin, callback: Callback) -> Response:
        """Handle an upstream's callback to one of our pages. No client is involved, so no consent is needed."""
        if self.landing is None:
            return callback_error("Start again", TOO_OLD)
        return await self.landing(request, self, pending.page, self.finish_login(pending.login, callback))
