"""Trips to somebody else who signs people in: a browser goes away with a state, and comes back with it once.

The state is random, counts once and for ten minutes, and belongs to the browser that went away, which a cookie names.
Whoever was talked into finishing what somebody else has begun, in another browser, ends here.
"""

from collections.abc import Awaitable, Callable
from typing import Protocol

from msgspec import Struct

from millstream._http.message import Handler, HttpRequest, Response, peer_network
from millstream._limits.gcra import Limiter, Rate
from millstream.auth import _pages as pages
from millstream.auth._authorization_server.answers import OAuthError, Parameters
from millstream.auth._authorization_server.login_methods import AuthorizationRedirect, Callback, Renewing
from millstream.auth._authorization_server.metadata import CALLBACK
from millstream.auth._authorization_server.records import AuthorizationRequest, digest, new_secret
from millstream.auth._authorization_server.tickets import Tickets, name_of, same_browser
from millstream.auth._authorization_server.vault import Vault

TOO_OLD = "This page is too old, or was opened in another browser. Go back to the program and start again."
_PENDING_SECONDS = 600.0
_MAX_KEPT = 2048
_PENDING_KIND = b"oauth pending login"
_LEAVING = Rate(200, 60)
"""Those of one address who go away: each leaves something here, and a flood would displace the others'."""


class PendingLogin(Struct, frozen=True, omit_defaults=True):
    """A browser that was sent away."""

    browser: str
    login: str
    kept: bytes
    authorization: AuthorizationRequest | None = None
    """What a client asks for, and the person has agreed to; None where no client asks."""
    page: str = ""
    """The page of ours that they want to open then."""


class RedirectTarget(Protocol):
    """Where browsers are sent."""

    name: str
    label: str

    async def begin(self, callback: str, state: str) -> AuthorizationRedirect:
        """See `Upstream.begin`."""
        ...


Arrive = Callable[[HttpRequest, PendingLogin, Callback], Awaitable[Response]]


class PendingLogins:
    """Sends browsers away, and knows those that come back."""

    def __init__(self, vault: Vault, tickets: Tickets, base: str) -> None:
        """`base` is what the addresses of the callbacks begin with."""
        self._vault = vault
        self._tickets = tickets
        self._base = base
        # Process
        self._leaving = Limiter("upstream", _LEAVING)

    async def begin(
        self,
        request: HttpRequest,
        target: RedirectTarget,
        *,
        authorization: AuthorizationRequest | None = None,
        page: str = "",
    ) -> Response:
        """The page that leads a browser away.

        Raises:
            SignInFailed: it can't be sent there now.
        """
        if self._leaving.take(peer_network(request.peer)) > 0:
            said = "Too many people sign in from your address. Try again in a minute."
            return pages.wrong("Wait a little", said, 429)
        state = new_secret()
        browser, cookie = self._tickets.browser(request)
        callback = self._callback(target.name)
        if authorization is not None and authorization.renewal and isinstance(target, Renewing):
            redirect = await target.begin_anew(callback, state, authorization.renewal)
        else:
            redirect = await target.begin(callback, state)
        if len(redirect.kept) > _MAX_KEPT:
            raise ValueError(f"{target.name} keeps {len(redirect.kept)} bytes; {_MAX_KEPT} are allowed.")
        pending = PendingLogin(name_of(browser), target.name, redirect.kept, authorization, page)
        sealed = self._vault.seal(_PENDING_KIND, pending)
        await self._vault.put(f"oauth-pending:{digest(state)}", sealed.encode(), _PENDING_SECONDS, lossy=True)
        return pages.lead_on(redirect.url, target.label, cookie)

    def callback_handler(self, name: str, arrive: Arrive) -> Handler:
        """The handler of a callback: `arrive` gets those who come back to it by the browser in which they went."""

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
            return await arrive(request, pending, Callback(given.values(), self._callback(name), pending.kept))

        return handle

    def _callback(self, name: str) -> str:
        return f"{self._base}{CALLBACK}{name}"

    async def _take(self, state: str) -> PendingLogin | None:
        if not state:
            return None
        sealed = await self._vault.take(f"oauth-pending:{digest(state)}")
        return self._vault.open(_PENDING_KIND, sealed.decode("latin-1"), PendingLogin) if sealed else None
