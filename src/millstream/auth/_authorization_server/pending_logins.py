"""Pending logins: the browser is redirected to an upstream with a `state`, and the callback returns it once.

The state is random, valid once within ten minutes, and bound to the browser by a cookie. This prevents login CSRF:
tricking a user into completing an attacker's login.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

from msgspec import Struct

from millstream._http.message import Handler, HttpRequest, Response, peer_network
from millstream._limits.limiters import Limiter, Rate
from millstream.auth import _pages as pages
from millstream.auth._authorization_server.answers import OAuthError, Parameters
from millstream.auth._authorization_server.login_methods import AuthorizationRedirect, Callback, UpstreamWithPrompt
from millstream.auth._authorization_server.metadata import CALLBACK
from millstream.auth._authorization_server.records import AuthorizationRequest
from millstream.auth._authorization_server.tickets import Tickets, name_of, same_browser
from millstream.auth._authorization_server.vault import Vault, new_state

TOO_OLD = "This page is too old, or was opened in another browser. Go back to the program and start again."
_PENDING_SECONDS = 600.0
_MAX_STATE_BYTES = 2048
_PENDING_KIND = b"oauth pending login"
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
    """Redirects browsers to upstreams, and matches callbacks to pending logins."""

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
            SignInFailed: the upstream isn't available.
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
        sealed = self._vault.seal(_PENDING_KIND, pending)
        await self._vault.put_pending("oauth-pending", state, sealed, _PENDING_SECONDS)
        return pages.lead_on(redirect.url, target.label, cookie)

    def callback_handler(self, name: str, arrive: Arrive) -> Handler:
        """Return the handler of a callback, which calls `arrive` for a valid state."""

        async def handle(request: HttpRequest) -> Response:
            try:
                given = Parameters(request.query)
            except OAuthError as exc:
                return pages.wrong("This link doesn't work", str(exc), exc.status, up="../../")
            pending = await self._take(given.get("state"))
            if pending is None or pending.login != name or given.repeated:
                return pages.wrong("Start again", TOO_OLD, 400, up="../../")
            if not same_browser(pending.browser, self._tickets.known_browser(request)):
                return pages.wrong("Start again", TOO_OLD, 403, up="../../")
            return await arrive(request, pending, Callback(given.values(), self._callback(name), pending.state_data))

        return handle

    def _callback(self, name: str) -> str:
        return f"{self._base}{CALLBACK}{name}"

    async def _take(self, state: str) -> PendingLogin | None:
        sealed = await self._vault.take_pending("oauth-pending", state)
        return self._vault.open(_PENDING_KIND, sealed, PendingLogin)
