"""Logins to the server's own pages, by name and password or with an upstream. Users get the scopes that they could
grant to a client.

Like a grant, the cookie identifies the account and its state at login. The account and its scopes are looked up again
for each verdict.
"""

from collections.abc import Callable, Mapping
from typing import Any

from millstream._http.message import HttpRequest, Response
from millstream._override import override
from millstream._protocol.principal import EVERYTHING, Principal
from millstream.auth import _pages as pages
from millstream.auth._authorization_server.config import IssuerConfig
from millstream.auth._authorization_server.login_methods import Callback, SignInFailed, User
from millstream.auth._authorization_server.login_throttle import SLOW, WRONG, LoginThrottle
from millstream.auth._authorization_server.records import Grant, OAuthClient
from millstream.auth._authorization_server.signing import pack, read
from millstream.auth._authorization_server.tickets import TOO_OLD, PendingLogin, PendingLogins, Tickets
from millstream.auth._authorization_server.users import LOCAL, Accounts
from millstream.auth._browser import is_at
from millstream.auth._jose import TokenRules, scopes_of
from millstream.auth._method import Identity, NotAdmitted, PageMethod


class PageLogin(PageMethod):
    """An authorization server whose users sign in to the pages."""

    recalls = True

    def __init__(
        self,
        config: IssuerConfig,
        accounts: Accounts,
        rules: TokenRules,
        there: Callable[[], frozenset[str]],
        *,
        throttle: LoginThrottle,
        tickets: Tickets,
        pending_logins: PendingLogins,
    ) -> None:
        self.by_password: bool = config.passwords is not None
        self.logins: Mapping[str, str] = {name: each.label for name, each in config.upstreams.items()}
        self._config = config
        self._accounts = accounts
        self._throttle = throttle
        self._tickets = tickets
        self._pending_logins = pending_logins
        self._rules = rules
        self._there = there
        """All current scopes."""
        # The client that providers see; no other client has the issuer's identifier as its id.
        self._pages = OAuthClient(config.url, "The pages of this server")

    @override
    async def admit(self, request: HttpRequest, name: str, password: str) -> tuple[bytes, bytes]:
        """See `PageMethod.admit`."""
        device = self._tickets.device(request, name)
        user = await self._throttle.check(request.peer, name, password, device=device)
        if isinstance(user, str):
            raise NotAdmitted(user, 429 if user == SLOW else 403, wrong=user == WRONG)
        kept = pack(Grant(self._pages.id, user.subject, user.name, LOCAL, (), (), since=user.since))
        return kept, self._tickets.keep_device(name)

    @override
    def forget(self) -> bytes:
        """See `PageMethod.forget`. The consent page asks for the password again."""
        return self._tickets.forget()

    @override
    async def redirect_to_login(self, request: HttpRequest, login: str, page: str) -> Response:
        """See `PageMethod.redirect_to_login`."""
        upstream = self._accounts.upstreams.get(login)
        if upstream is None:
            raise NotAdmitted("This way to sign in is no longer available.", 400, wrong=False)
        check_here(request, self._config.base, page)
        try:
            return await self._pending_logins.begin(request, upstream, page=page)
        except SignInFailed as exc:
            raise NotAdmitted(str(exc), 503, wrong=False) from None

    async def _finish_login(self, request: HttpRequest, pending: PendingLogin, callback: Callback) -> Response:
        """Handle an upstream's callback to one of our pages. No client is involved, so no consent is needed."""
        landing = self.landing
        if landing is None:
            return pages.wrong("Start again", TOO_OLD, 400, up="../../")
        try:
            user = await self._accounts.upstreams[pending.login].finish(callback)
        except SignInFailed as exc:
            return landing.refuse(request, pending.page, str(exc))
        who = self._accounts.from_upstream(pending.login, user)
        grant = Grant(self._pages.id, who.subject, who.name, pending.login, who.scopes, (), since=who.since)
        return landing.complete(request, pending.page, pack(grant))

    async def _open_cookie(self, kept: bytes) -> tuple[Identity, Grant] | None:
        """Return the identity and the grant in a cookie's content; None if the user may no longer sign in."""
        grant = read(kept, Grant)
        user = self._accounts.user_of_grant(grant) if grant is not None else None
        if grant is None or user is None:
            return None
        scopes = await self._scopes(user)
        claims: Mapping[str, Any] = {"name": user.name, **await self._config.provider.claims(user, self._pages)}
        # The account may have been removed in the meantime, and the result is cached.
        if self._accounts.user_of_grant(grant) != user:
            return None
        said = {**claims, "iss": self._config.url, "sub": user.subject}
        return Identity(
            Principal(user.subject, self._config.url, scopes=scopes, claims=said), self._rules.believed
        ), grant

    async def _scopes(self, user: User) -> frozenset[str]:
        wanted = self._there().union(user.scopes)
        granted = set(await self._accounts.grantable(user, self._pages, tuple(sorted(wanted))))
        found = scopes_of({"scope": list(granted)}, self._config.implied)
        # A user gets `*` only if no scope was denied.
        return found | {EVERYTHING} if EVERYTHING in granted and granted >= wanted else found


def check_here(request: HttpRequest, base: str, page: str) -> None:
    """Check that the browser uses the host of the callback.

    Raises:
        NotAdmitted: The browser uses another host, such as another name of this machine.
    """
    if not is_at(request, base):
        raise NotAdmitted(f"You can only sign in at {base}{page}. Open that address.", 400, wrong=False)
