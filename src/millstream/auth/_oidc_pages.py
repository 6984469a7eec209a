"""Logins to the pages with an external issuer.

The issuer returns an access token, which gets the same checks and scopes as in an API request. The cookie contains the
sealed token, as if the user had entered it in the sign-in form.
"""

from collections.abc import Callable, Collection, Mapping
from urllib.parse import urlsplit

from msgspec import Struct

from millstream._http.message import Handler, HttpRequest, Response
from millstream._override import override
from millstream._server.calls.services import Services
from millstream.auth import _pages as pages
from millstream.auth._authorization_server.code_flow import CodeFlow
from millstream.auth._authorization_server.login_methods import AuthorizationRedirect, Callback, SignInFailed
from millstream.auth._authorization_server.metadata import CALLBACK
from millstream.auth._authorization_server.page_login import check_here
from millstream.auth._authorization_server.signing import Vault
from millstream.auth._authorization_server.tickets import TOO_OLD, PendingLogin, PendingLogins, Tickets
from millstream.auth._jose import TokenRules
from millstream.auth._method import NotAdmitted, PageMethod, Unavailable
from millstream.auth._tokens import Keys, TokenMethod

NAME = "oidc"
"""Name in the redirect URI: ``…/sign-in/callback/oidc``."""


class OidcAtPages(Struct, frozen=True, kw_only=True):
    """The method before the server starts. Created by ``auth.oidc(…, client_id=…)``."""

    rules: TokenRules
    keys: Keys
    algorithms: Collection[str]
    scopes: Collection[str]
    client: tuple[str, str]
    """This server's client id and secret at the issuer; the secret may be empty."""

    def bind(self, services: Services, name: str, known: Callable[[], Collection[str]]) -> "RunningOidc":
        """Return the method of a running server."""
        return RunningOidc(self, services, known)


class RunningOidc(TokenMethod, PageMethod):
    """The method of a running server: accepts tokens like `TokenMethod`, and signs users in to the pages."""

    def __init__(self, config: OidcAtPages, services: Services, known: Callable[[], Collection[str]]) -> None:
        rules = config.rules
        super().__init__(rules, config.keys, algorithms=config.algorithms, scopes=config.scopes)
        self.name: str = NAME
        title = urlsplit(rules.issuer).netloc
        self.label: str = f"Continue with {title}"
        self.logins = {NAME: self.label}
        self._title = title
        self._known = known
        parts = urlsplit(rules.audience)
        self._base = f"{parts.scheme}://{parts.netloc}" + parts.path.rstrip("/").removesuffix(
            services.settings.path.rstrip("/")
        )
        vault = Vault(services)
        self._clock = vault.clock
        self._flow = CodeFlow(
            rules.issuer,
            client_id=config.client[0],
            client_secret=config.client[1],
            title=title,
            also={"resource": rules.audience},  # RFC 8707
        )
        self._pending_logins = PendingLogins(vault, Tickets(vault, secure=parts.scheme == "https"), self._base)

    # HTTP

    @override
    def paths(self) -> Mapping[str, Mapping[str, Handler]]:
        """Return the callback's handler, below the server's path and at the root."""
        handler = self._pending_logins.callback_handler(NAME, self._handle_callback)
        prefixes = {"", urlsplit(self._base).path}
        return {f"{prefix}{CALLBACK}{NAME}": {"GET": handler} for prefix in prefixes}

    # At the server's own pages

    async def begin(self, callback: str, state: str) -> AuthorizationRedirect:
        """Return the redirect, with the scopes of our metadata."""
        wanted = ("openid", *self.scopes, *sorted(self._known()))
        return await self._flow.begin(callback, state, " ".join(dict.fromkeys(wanted)))

    @override
    async def redirect_to_login(self, request: HttpRequest, login: str, page: str) -> Response:
        """See `PageMethod.redirect_to_login`."""
        check_here(request, self._base, page)
        try:
            return await self._pending_logins.begin(request, self, page=page)
        except SignInFailed as exc:
            raise NotAdmitted(str(exc), 503, wrong=False) from None

    async def _handle_callback(self, request: HttpRequest, pending: PendingLogin, callback: Callback) -> Response:
        landing = self.landing
        if landing is None:
            return pages.wrong("Start again", TOO_OLD, 400, up="../../")
        try:
            token, seconds = await self._token(callback)
        except SignInFailed as exc:
            return landing.refuse(request, pending.page, str(exc))
        return landing.complete(request, pending.page, token.encode(), seconds)

    async def _token(self, callback: Callback) -> tuple[str, float]:
        """Return the user's token and its remaining lifetime.

        Raises:
            SignInFailed: The token isn't valid here.
        """
        token = (await self._flow.finish(callback)).access_token
        try:
            found = await self.identify(token) if isinstance(token, str) else None
        except Unavailable as exc:
            raise SignInFailed(str(exc)) from None
        if found is None or not isinstance(token, str):
            raise SignInFailed(f"The token from {self._title} isn't valid for this server. Contact its operator.")
        if not found.principal.has(self.scopes):
            raise SignInFailed("Your account lacks permissions that this server requires. Contact its operator.")
        return token, float(found.principal.claims["exp"]) - self._clock()
