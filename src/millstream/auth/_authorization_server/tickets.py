"""State of a browser at the authorization server: sealed cookies and form fields, and pending logins.

Cookies and form fields (browser ids, logins, known devices, and requests) are sealed instead of stored, so opening a
page needs no storage. A form is bound to the browser that it was shown in; other browsers can't submit it.
"""

import hmac
from collections.abc import Awaitable, Callable
from hashlib import sha256
from typing import Protocol

from msgspec import Struct

from millstream._http.message import Handler, HttpRequest, Response, peer_network
from millstream._limits.limiters import Limiter, Rate
from millstream.auth import _pages as pages
from millstream.auth._authorization_server.answers import OAuthError, Parameters
from millstream.auth._authorization_server.config import CALLBACK
from millstream.auth._authorization_server.records import AuthorizationRequest, new_secret
from millstream.auth._authorization_server.signing import Vault, new_state
from millstream.auth._method import NotAdmitted
from millstream.auth._pages import cookie_of, is_at
from millstream.auth.providers import (
    AuthorizationRedirect,
    Callback,
    UpstreamWithPrompt,
    User,
)

QUESTION_SECONDS = 600.0
DEVICE_SECONDS = 180 * 86_400.0
PERSON_SECONDS = 8 * 3600.0
_QUESTION, _PERSON, _DEVICE = b"oauth question", b"oauth person", b"oauth device"
_MAX = 16 * 1024


class ConsentQuestion(Struct, frozen=True):
    """An authorization request shown to a user."""

    authorization: AuthorizationRequest
    until: float


class BrowserLogin(Struct, frozen=True):
    """The user signed in in a browser."""

    user: User
    login: str
    until: float


class Device(Struct, frozen=True):
    """A browser in which a user has logged in with a password."""

    name: str
    """Name as typed, case-folded."""
    id: str
    until: float


class Tickets:
    """Creates and opens tickets."""

    def __init__(self, vault: Vault, *, secure: bool) -> None:
        """Create the object. `secure` means that browsers use https."""
        self._vault = vault
        prefix, self._flags = ("__Host-", "; Secure") if secure else ("", "")
        self._browser_name = f"{prefix}millstream-browser"
        self._person_name = f"{prefix}millstream-person"
        self._device_name = f"{prefix}millstream-device"

    def browser(self, request: HttpRequest) -> tuple[str, bytes]:
        """Return the browser's id, and the header line that sets a new one if it had none."""
        name = cookie_of(request, self._browser_name)
        if len(name) == 43:
            return name, b""
        name = new_secret()
        return name, self._cookie(self._browser_name, name, PERSON_SECONDS)

    def known_browser(self, request: HttpRequest) -> str:
        """Return the browser's id; empty if it has none."""
        return cookie_of(request, self._browser_name)

    def seal_request(self, browser: str, authorization: AuthorizationRequest) -> str:
        """Seal a request for a browser."""
        question = ConsentQuestion(authorization, self._vault.clock() + QUESTION_SECONDS)
        return self._vault.seal(_QUESTION, question, browser.encode())

    def open_request(self, browser: str, sealed: str) -> AuthorizationRequest | None:
        """Return a sealed request; None if it's for another browser or has expired."""
        if not browser or len(sealed) > _MAX:
            return None
        question = self._vault.open(_QUESTION, sealed, ConsentQuestion, browser.encode())
        return question.authorization if question is not None and question.until > self._vault.clock() else None

    def person(self, request: HttpRequest) -> BrowserLogin | None:
        """Return the user signed in in the browser, if any."""
        sealed = cookie_of(request, self._person_name)
        found = self._vault.open(_PERSON, sealed, BrowserLogin) if 0 < len(sealed) <= _MAX else None
        return found if found is not None and found.until > self._vault.clock() else None

    def keep(self, user: User, login: str) -> bytes:
        """Return the header line that stores a login in the browser."""
        person = BrowserLogin(user, login, self._vault.clock() + PERSON_SECONDS)
        return self._cookie(self._person_name, self._vault.seal(_PERSON, person), PERSON_SECONDS)

    def forget(self) -> bytes:
        """Return the header line that deletes the login."""
        return self._cookie(self._person_name, "", 0)

    def device(self, request: HttpRequest, name: str) -> str:
        """Return the device id of the browser; empty if the user with this name hasn't logged in there before."""
        sealed = cookie_of(request, self._device_name)
        found = self._vault.open(_DEVICE, sealed, Device) if 0 < len(sealed) <= _MAX else None
        known = found is not None and found.name == name.casefold() and found.until > self._vault.clock()
        return found.id if found is not None and known else ""

    def keep_device(self, name: str) -> bytes:
        """Return the header line that makes a browser a known device for this name."""
        device = Device(name.casefold(), new_secret()[:22], self._vault.clock() + DEVICE_SECONDS)
        return self._cookie(self._device_name, self._vault.seal(_DEVICE, device), DEVICE_SECONDS)

    def _cookie(self, name: str, value: str, seconds: float) -> bytes:
        # Lax, because users come from pages of clients and upstreams.
        flags = f"Path=/; Max-Age={seconds:.0f}; HttpOnly; SameSite=Lax{self._flags}"
        return f"set-cookie: {name}={value}; {flags}\r\n".encode("ascii")


def same_browser(kept: str, browser: str) -> bool:
    """Return whether a browser id matches its stored form."""
    return bool(browser) and hmac.compare_digest(kept, name_of(browser))


def name_of(browser: str) -> str:
    """Return the stored form of a browser id."""
    return sha256(browser.encode("utf-8", "surrogatepass")).hexdigest()


TOO_OLD = "This page is too old, or was opened in another browser. Go back to the program and start again."
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
    """The client's request that the user has consented to; None for logins without a client."""
    page: str = ""
    """The page of this server to open afterwards."""


class RedirectTarget(Protocol):
    """A target for redirects."""

    name: str
    label: str

    async def begin(self, callback: str, state: str) -> AuthorizationRedirect:
        """See `UpstreamLogin.begin`."""
        ...


Arrive = Callable[[HttpRequest, PendingLogin, Callback], Awaitable[Response]]


class PendingLogins:
    """Redirects browsers to upstreams, and matches callbacks to pending logins.

    The browser is redirected with a `state`, and the callback returns it. The state is random, valid once within ten
    minutes, and bound to the browser by a cookie. This prevents login CSRF: tricking a user into completing an
    attacker's login.
    """

    def __init__(self, vault: Vault, tickets: Tickets, base: str) -> None:
        """Create the object. `base` is the base URL of the callbacks."""
        self._vault = vault
        self._tickets = tickets
        self._base = base
        # State
        self._leaving = Limiter("upstream", _REDIRECT_RATE)

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
        """
        if self._leaving.take(peer_network(request.peer)) > 0:
            said = "Too many people are signing in from your address. Try again in a minute."
            return pages.wrong("Wait a little", said, 429)
        state = new_state(request.owner)
        browser, cookie = self._tickets.browser(request)
        callback = self._callback(target.name)
        if authorization is not None and authorization.renewal and isinstance(target, UpstreamWithPrompt):
            redirect = await target.begin_anew(callback, state, authorization.renewal)
        else:
            redirect = await target.begin(callback, state)
        if len(redirect.state_data) > _MAX_STATE_BYTES:
            raise ValueError(
                f"state_data of {target.name} has {len(redirect.state_data)} bytes; the maximum is {_MAX_STATE_BYTES}."
            )
        pending = PendingLogin(name_of(browser), target.name, redirect.state_data, authorization, page)
        await self._vault.put_pending(_PENDING_KIND, state, pending, _PENDING_SECONDS)
        return pages.lead_on(redirect.url, target.label, cookie)

    def callback_handler(self, name: str, arrive: Arrive) -> Handler:
        """Return the handler of a callback, which calls `arrive` for a valid state."""

        async def handle(request: HttpRequest) -> Response:
            try:
                given = Parameters(request.query)
            except OAuthError as exc:
                return pages.wrong("This link doesn't work", str(exc), exc.status, up="../../")
            pending = await self._vault.take_pending(_PENDING_KIND, given.get("state"), PendingLogin)
            if pending is None or pending.login != name or given.repeated:
                return pages.wrong("Start again", TOO_OLD, 400, up="../../")
            if not same_browser(pending.browser, self._tickets.known_browser(request)):
                return pages.wrong("Start again", TOO_OLD, 403, up="../../")
            return await arrive(request, pending, Callback(given.values(), self._callback(name), pending.state_data))

        return handle

    def _callback(self, name: str) -> str:
        return f"{self._base}{CALLBACK}{name}"


def check_here(request: HttpRequest, base: str, page: str) -> None:
    """Check that the browser uses the host of the callback.

    Raises:
        NotAdmitted: The browser uses another host, such as another name of this machine.
    """
    if not is_at(request, base):
        raise NotAdmitted(f"You can only sign in at {base}{page}. Open that address.", 400, wrong=False)
