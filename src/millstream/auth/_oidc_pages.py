"""People of a foreign issuer at the pages: they sign in there, and come back with a token that any client could have.

That token opens the pages as it opens everything else: the same checks, the same scopes, until it expires. What a
browser keeps is the token, sealed, as if somebody had typed it.
"""

from collections.abc import Callable, Collection, Mapping
from urllib.parse import urlsplit

from millstream._http.message import Handler, Request, Response
from millstream._server.calls.services import Services
from millstream.auth._claims import Rules
from millstream.auth._issuing import pages
from millstream.auth._issuing.code_flow import CodeFlow
from millstream.auth._issuing.metadata import CALLBACK
from millstream.auth._issuing.tickets import Tickets
from millstream.auth._issuing.trips import TOO_OLD, Trip, Trips
from millstream.auth._issuing.vault import Vault
from millstream.auth._issuing.visitors import check_here
from millstream.auth._issuing.ways import Away, Returned, SignInFailed
from millstream.auth._method import Landing, NotAdmitted, Unavailable
from millstream.auth._tokens import Keys, TokenMethod

NAME = "oidc"
"""In the redirect URL: ``…/sign-in/callback/oidc``."""


class OidcAtPages:
    """The method, before a server runs. ``auth.oidc(…, client_id=…)`` makes it."""

    def __init__(
        self, rules: Rules, keys: Keys, *, algorithms: Collection[str], scopes: Collection[str], client: tuple[str, str]
    ) -> None:
        """`client` is the id and secret by which the issuer knows this server; a public client has no secret."""
        self._rules = rules
        self._keys = keys
        self._algorithms = algorithms
        self._scopes = scopes
        self._client = client

    def bind(self, services: Services, name: str, known: Callable[[], Collection[str]]) -> "RunningOidc":
        """The method of one running server."""
        tokens = TokenMethod(self._rules, self._keys, algorithms=self._algorithms, scopes=self._scopes)
        return RunningOidc(tokens, self._rules, self._client, services, known)


class RunningOidc:
    """The method of one running server: tokens as `TokenMethod` has them, and people at the pages."""

    def __init__(
        self,
        tokens: TokenMethod,
        rules: Rules,
        client: tuple[str, str],
        services: Services,
        known: Callable[[], Collection[str]],
    ) -> None:
        # Configuration
        self.resource: str = tokens.resource
        self.issuers: tuple[str, ...] = tokens.issuers
        self.scopes: tuple[str, ...] = tokens.scopes
        self.name: str = NAME
        title = urlsplit(rules.issuer).netloc
        self.label: str = f"Continue with {title}"
        self.ways: Mapping[str, str] = {NAME: self.label}
        self.landing: Landing | None = None
        self.identify = tokens.identify
        self.holds = tokens.holds
        self.epoch = tokens.epoch
        self.binds = True
        self.shows = False
        self.prefetch = tokens.prefetch
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
            client_id=client[0],
            client_secret=client[1],
            title=title,
            also={"resource": rules.audience},  # RFC 8707
        )
        self._trips = Trips(vault, Tickets(vault, secure=parts.scheme == "https"), self._base)

    # Over HTTP

    def paths(self) -> Mapping[str, Mapping[str, Handler]]:
        """The place where people come back to: below the path of the server, and at the root."""
        handler = self._trips.returning(NAME, self._returned)
        prefixes = {"", urlsplit(self._base).path}
        return {f"{prefix}{CALLBACK}{NAME}": {"GET": handler} for prefix in prefixes}

    def shared_paths(self) -> frozenset[str]:
        """None."""
        return frozenset()

    def close(self) -> None:
        """Nothing is open."""

    # At the server's own pages

    async def begin(self, callback: str, state: str) -> Away:
        """Where to send the browser: for the scopes that our metadata name to clients."""
        wanted = ("openid", *self.scopes, *sorted(self._known()))
        return await self._flow.begin(callback, state, " ".join(dict.fromkeys(wanted)))

    async def lead(self, request: Request, way: str, page: str) -> Response:
        """See `Leading.lead`."""
        check_here(request, self._base, page)
        try:
            return await self._trips.begin(request, self, page=page)
        except SignInFailed as exc:
            raise NotAdmitted(str(exc), 503, wrong=False) from None

    async def _returned(self, request: Request, trip: Trip, returned: Returned) -> Response:
        landing = self.landing
        if landing is None:
            return pages.wrong("Start again", TOO_OLD, 400, up="../../")
        try:
            token, seconds = await self._token(returned)
        except SignInFailed as exc:
            return landing.refuse(request, trip.page, str(exc))
        return landing.land(request, trip.page, token.encode(), seconds)

    async def _token(self, returned: Returned) -> tuple[str, float]:
        """The token of whoever came back, and for how long it counts.

        Raises:
            SignInFailed: it wouldn't open anything here.
        """
        token = (await self._flow.finish(returned)).access_token
        try:
            found = await self.identify(token) if isinstance(token, str) else None
        except Unavailable as exc:
            raise SignInFailed(str(exc)) from None
        if found is None or found.thumbprint or not isinstance(token, str):
            raise SignInFailed(f"The token that {self._title} gave isn't for this server. Ask whoever runs it.")
        if not found.principal.has(self.scopes):
            raise SignInFailed(
                "Your account may not do here what everybody needs to get in. Ask whoever runs this server."
            )
        return token, float(found.principal.claims["exp"]) - self._clock()
