"""The authorization code flow of OpenID Connect with PKCE, as a client of an issuer, and sign-in with it."""

import hmac
import logging
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode, urlsplit

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from millstream._confidential import Confidential
from millstream._http.client.pool import OutboundError, allow_any, check_url, fetch
from millstream._oauth import authorization_url, basic_credentials, code_grant, refresh_grant
from millstream._override import override
from millstream._protocol.json_schema import is_array, is_object, members
from millstream._protocol.jsonrpc import MALFORMED, Json
from millstream._server.calls.services import Services
from millstream._server.calls.vault import Vault, new_secret
from millstream._server.functions.description import Names
from millstream._suggestions import suggest_keywords
from millstream.auth._authorization_server.tickets import Tickets, UpstreamPageMethod
from millstream.auth._jose import ASYMMETRIC, TENANT, Claims, FetchedKeys, TokenRules
from millstream.auth._method import AuthMethod, Identity, KnownScopes, NeedsServer, Paths, Rejection, Unavailable
from millstream.auth._tokens import Discovery, TokenMethod, accepted_algorithms, ask_issuer, issuer_keys, rules_of
from millstream.auth.providers import AuthorizationRedirect, Callback, SignInFailed

logger = logging.getLogger("millstream")

_MAX_TEXT = 256
_ERROR = re.compile(r"[A-Za-z0-9_.-]{1,64}")

_decode = msgspec.json.Decoder(Any).decode


async def ask(url: str, title: str, *, form: Mapping[str, str] | None = None, headers: Mapping[str, str]) -> Any:
    """Return the JSON at a URL, or in the response to a form.

    Raises:
        SignInFailed: The request failed. The reason is logged. The message contains only `title`, the upstream's name.
        GrantRefused: The upstream says that the grant has ended.
    """
    body = None if form is None else urlencode(form).encode()
    try:
        return _decode((await fetch(url, form=body, headers=headers, is_allowed=allow_any)).body)
    except (OutboundError, *MALFORMED) as exc:
        logger.error("A sign-in request to %s failed: %s", url, exc)
        reply = None
        with suppress(*MALFORMED):
            reply = _decode(getattr(exc, "body", b""))
        kind = GrantRefused if has_ended(reply) else SignInFailed
        raise kind(f"{title} isn't responding as expected. Try again later.") from None


def access_of(reply: Json) -> str:
    """Return the access token in a reply, or an empty text."""
    token = reply.get("access_token")
    return token if isinstance(token, str) else ""


def has_ended(reply: Any) -> bool:
    """Return whether a reply says that a grant has ended (RFC 6749 §5.2, and GitHub's word for it)."""
    return members(reply).get("error") in ("invalid_grant", "bad_refresh_token")


class GrantRefused(SignInFailed):
    """The grant has ended, so its user has to sign in again."""


def code_of(query: Mapping[str, str], title: str) -> str:
    """Return the code in a callback's query.

    Raises:
        SignInFailed: The query has an error, or no code.
    """
    error, code = query.get("error", ""), query.get("code", "")
    if error == "access_denied":
        raise SignInFailed(f"You didn't allow {title} to identify you. Start again to sign in.")
    if error or not code:
        said = error if _ERROR.fullmatch(error) else "no code"
        logger.error("A sign-in with %s failed: %s", title, said)
        raise SignInFailed(f"{title} didn't sign you in ({said}). Start again, or contact this server's operator.")
    return code


def text(value: object) -> str:
    """Return an untrusted string, or an empty one if it isn't a string or is too long. Truncation could change its
    meaning."""
    return value if isinstance(value, str) and len(value) <= _MAX_TEXT else ""


_TYPES = ("jwt", "")


class _FlowState(Confidential, Struct, frozen=True):
    """State of a pending login, for the callback."""

    nonce: str
    verifier: str


class CodeFlow:
    """The code flow with one issuer.

    The issuer's metadata provides the endpoints. The flow checks `iss` in the response (RFC 9207), and the ID token's
    signature, issuer, audience, nonce, and times (OpenID Connect Core §3.1.3.7). Callers decide whether the user can
    sign in. URLs come from the operator or the upstream's metadata, so they may be on a private network.
    """

    def __init__(
        self,
        issuer: str,
        *,
        client_id: str,
        client_secret: str,
        title: str,
        parameters: Mapping[str, str] = {},
        also: Mapping[str, str] = {},
    ) -> None:
        """Create the flow. `parameters` are sent to the authorization endpoint, and `also` to it and the token
        endpoint."""
        self._title = title
        self._issuer = issuer
        self._client_id = client_id
        self._client_secret = client_secret
        self._also = also
        self._parameters = {**parameters, **also}
        self._discovery = Discovery(issuer)
        keys = FetchedKeys(self._discovery.keys_url, ask_issuer)
        self._tokens = TokenMethod(
            TokenRules(issuer, (client_id,), id_tokens=True), keys, algorithms=ASYMMETRIC, types=_TYPES
        )

    async def prefetch(self) -> None:
        """Fetch the issuer's metadata before anyone signs in."""
        try:
            await self._discovery.metadata()
        except Unavailable as exc:
            self._discovery.retry()
            logger.warning(
                "Users can't sign in with %s at the moment, because it doesn't respond. %s", self._title, exc.why
            )

    # Redirect

    async def begin(self, callback: str, state: str, scope: str, prompt: str = "") -> AuthorizationRedirect:
        """Return the redirect to the issuer. `prompt` applies unless the flow's own parameters set one.

        Raises:
            SignInFailed: The issuer isn't available.
        """
        endpoint = await self.endpoint("authorization_endpoint")
        kept = _FlowState(new_secret(), new_secret())
        more = {"scope": scope, "nonce": kept.nonce, "prompt": prompt, **self._parameters}
        url = authorization_url(endpoint, self._client_id, callback, state, kept.verifier, more)
        return AuthorizationRedirect(url, msgspec.json.encode(kept))

    async def metadata(self) -> Json:
        """Return the issuer's metadata.

        Raises:
            SignInFailed: It isn't available.
        """
        try:
            return await self._discovery.metadata()
        except Unavailable as exc:
            raise SignInFailed(f"{self._title} isn't responding. Try again later.") from exc

    async def endpoint(self, name: str) -> str:
        """Return the URL of an endpoint.

        Raises:
            SignInFailed: The metadata isn't available, or has no valid URL for it.
        """
        url = (await self.metadata()).get(name)
        try:
            return check_url(url if isinstance(url, str) else "").geturl()
        except OutboundError as exc:
            logger.error("The metadata of %s has no usable %s: %s", self._issuer, name, exc)
            raise SignInFailed(f"{self._title} isn't available. Try again later.") from None

    # Callback

    async def userinfo(self, token: str, subject: str) -> Claims:
        """Return more claims about a user.

        Args:
            token: The access token, or empty if there's none.
            subject: The ID token's subject.

        Raises:
            SignInFailed: The request failed, or the response is about another user.
        """
        if not token:
            raise SignInFailed(f"{self._title} didn't identify you. Try again later.")
        headers = {"authorization": f"Bearer {token}"}
        found = await ask(await self.endpoint("userinfo_endpoint"), self._title, headers=headers)
        # OpenID Connect Core §5.3.4: the response could be about another user.
        if not is_object(found) or found.get("sub") != subject:
            raise SignInFailed(f"The response from {self._title} couldn't be verified. Start again.")
        return found

    async def finish(self, callback: Callback) -> tuple[Claims, Json]:
        """Exchange the code from a callback. Return the ID token's claims, and the response with the tokens.

        Raises:
            SignInFailed: The exchange failed, or the response failed verification.
        """
        metadata = await self.metadata()
        # Another server's response isn't accepted for this request (RFC 9207 §2.4).
        named = callback.query.get("iss")
        announced = metadata.get("authorization_response_iss_parameter_supported") is True
        if named != self._issuer and (announced or named is not None):
            raise SignInFailed(f"The response isn't from {self._title}. Start again.")
        code = code_of(callback.query, self._title)
        kept = msgspec.json.decode(callback.state_data, type=_FlowState)
        given = await self._ask_token({**code_grant(code, callback.url, kept.verifier), **self._also})
        return await self._open(given.get("id_token"), kept.nonce), given

    async def refresh(self, token: str) -> Json:
        """Return the response to a refresh token.

        Raises:
            SignInFailed: There was none.
        """
        return await self._ask_token(refresh_grant(token))

    async def _ask_token(self, form: dict[str, str]) -> Json:
        headers: dict[str, str] = {}
        methods = (await self.metadata()).get("token_endpoint_auth_methods_supported")
        if not self._client_secret:
            form["client_id"] = self._client_id
        elif not is_array(methods) or "client_secret_basic" in methods:
            headers["authorization"] = basic_credentials(self._client_id, self._client_secret)
        else:
            form |= {"client_id": self._client_id, "client_secret": self._client_secret}
        return members(await ask(await self.endpoint("token_endpoint"), self._title, form=form, headers=headers))

    async def _open(self, token: object, nonce: str) -> Claims:
        """Return the claims of an ID token."""
        try:
            found = await self._tokens.examine(token) if isinstance(token, str) else Rejection("It's missing.")
        except Unavailable as exc:
            raise SignInFailed(f"{self._title} isn't responding. Try again later.") from exc
        claims = found.principal.claims if isinstance(found, Identity) else {}
        if isinstance(found, Rejection):
            flaw = f"{found.reason} {found.details}".rstrip()
        elif not self._is_ours(claims):
            flaw = "It's for another client."
        elif not hmac.compare_digest(text(claims.get("nonce")).encode("utf-8", "replace"), nonce.encode()):
            flaw = "Its nonce is wrong."
        else:
            return claims
        logger.error("%s returned an ID token that failed verification. %s", self._issuer, flaw)
        raise SignInFailed(f"The response from {self._title} couldn't be verified. Start again.")

    def _is_ours(self, claims: Claims) -> bool:
        """Return whether a token is for this client. With several audiences, `azp` decides."""
        several = isinstance(claims.get("aud"), list) and len(claims["aud"]) > 1
        return bool(claims.get("azp", None if several else self._client_id) == self._client_id)


NAME = "oidc"
"""Name in the redirect URI: ``…/sign-in/callback/oidc``."""


class OidcAtPages(Struct, frozen=True):
    """The method before the server starts. Created by ``auth.oidc(…, client_id=…)``."""

    rules: TokenRules
    keys: FetchedKeys
    algorithms: Collection[str]
    client: tuple[str, str]
    """This server's client id and secret at the issuer. The secret may be empty."""

    @property
    def resource(self) -> str:
        """URL of the MCP endpoint."""
        return self.rules.url

    def bind(self, services: Services, name: str, known: KnownScopes) -> "RunningOidc":
        """Return the sign-in method bound to a running server."""
        return RunningOidc(self, services, known)


class RunningOidc(TokenMethod, UpstreamPageMethod):
    """The sign-in method of a running server: accepts tokens like `TokenMethod`, and signs users in to the pages.

    For the pages, the issuer returns an access token, which gets the same checks and scopes as in an API request. The
    cookie contains the sealed token, as if the user had entered it in the sign-in form.
    """

    def __init__(self, config: OidcAtPages, services: Services, known: KnownScopes) -> None:
        rules = config.rules
        super().__init__(rules, config.keys, algorithms=config.algorithms)
        self.name: str = NAME
        title = urlsplit(rules.issuer).netloc
        self.label: str = f"Continue with {title}"
        self.logins = {NAME: self}
        self._title = title
        self._known = known
        parts = urlsplit(self.resource)
        base = f"{parts.scheme}://{parts.netloc}" + parts.path.rstrip("/").removesuffix(
            services.settings.path.rstrip("/")
        )
        vault = Vault(services)
        self._clock = vault.clock
        self._flow = CodeFlow(
            rules.issuer,
            client_id=config.client[0],
            client_secret=config.client[1],
            title=title,
            # RFC 8707. An issuer with another name for this server wouldn't recognize the URL.
            also={"resource": self.resource} if self.resource in rules.audiences else {},
        )
        self._tickets = Tickets(vault, base)

    # HTTP

    @override
    def paths(self) -> Paths:
        """Return the callback's handler, below the server's path and at the root."""
        prefixes = {"", urlsplit(self._tickets.base).path}
        return {prefix + path: each for prefix in prefixes for path, each in self.callbacks().items()}

    # At the server's own pages

    async def begin(self, callback: str, state: str) -> AuthorizationRedirect:
        """Return the redirect to the issuer, with the scopes in our metadata."""
        wanted = ("openid", *(self.scope_prefix + each for each in (*self.scopes, *sorted(self._known()))))
        return await self._flow.begin(callback, state, " ".join(dict.fromkeys(wanted)))

    @override
    async def finish_login(self, login: str, callback: Callback) -> tuple[bytes, float]:
        """Return the user's token and its remaining lifetime."""
        token = access_of((await self._flow.finish(callback))[1])
        try:
            found = await self.examine(token)
        except Unavailable as exc:
            raise SignInFailed(str(exc)) from None
        if isinstance(found, Rejection):
            logger.error("The token from %s isn't valid here. %s %s", self._title, found.reason, found.details)
            raise SignInFailed(f"The token from {self._title} isn't valid for this server. Contact its operator.")
        if not found.principal.has(self.scopes):
            raise SignInFailed("Your account lacks permissions that this server requires. Contact its operator.")
        return token.encode(), float(found.principal.claims["exp"]) - self._clock()


_SHARED_ISSUER = re.compile(r"/(common|organizations)(/|\Z)")


@suggest_keywords
def oidc(  # noqa: PLR0913  the options of an issuer
    issuer: str,
    *,
    audience: str | Names = (),
    algorithms: Names = (),
    scopes: Names = (),
    scope_includes: Mapping[str, Names] | None = None,
    tenants: Names = (),
    client_id: str = "",
    client_secret: str = "",
    resource: str = "",
    client_ids: Names = (),
    scope_claims: Names = (),
    scope_prefix: str = "",
) -> AuthMethod | NeedsServer:
    """Accept signed tokens from an issuer that publishes its metadata (OpenID Connect Discovery, RFC 8414).

    Args:
        issuer: As for `jwt`.
        audience: As for `jwt`.
        algorithms: As for `jwt`.
        scopes: As for `jwt`.
        scope_includes: As for `jwt`.
        tenants: Ids of the tenants whose tokens are accepted, if the issuer is ``common`` or ``organizations`` at Entra
            ID; ``["*"]`` for all. A token's issuer must be that of its tenant.
        client_id: This server's client id at the issuer, which lets people sign in to the server's pages. Register it
            with the redirect URI ``YOUR-SERVER/sign-in/callback/oidc``. The issuer must return signed tokens for
            `audience` when it's requested as ``resource`` (RFC 8707).
        client_secret: Secret for `client_id`; public clients have none.
        resource: As for `jwt`.
        client_ids: As for `jwt`.
        scope_claims: As for `jwt`.
        scope_prefix: As for `jwt`.

    Raises:
        ValueError: An argument is missing or invalid.

    Example:
        ``Server("shop", auth=auth.oidc("https://id.example.com", audience="https://mcp.example.com/mcp"))``
    """
    template = _SHARED_ISSUER.sub(f"/{TENANT}\\2", issuer, 1) if tenants else issuer
    if tenants and template == issuer:
        raise ValueError(
            "tenants= is for an issuer with several tenants, such as https://login.microsoftonline.com/organizations/v2.0."
        )
    if tenants and client_id:
        raise ValueError("Users can sign in to the pages only with one tenant. Use the issuer of that tenant.")
    rules = rules_of(
        issuer,
        audience,
        scopes,
        scope_includes,
        tenants=tenants,
        resource=resource,
        client_ids=client_ids,
        scope_claims=scope_claims,
        scope_prefix=scope_prefix,
    )
    rules = replace(rules, issuer=template)
    keys = issuer_keys(issuer, template if tenants else "")
    allowed = accepted_algorithms(algorithms) or ASYMMETRIC
    if client_secret and not client_id:
        raise ValueError("auth.oidc() requires client_id if you set client_secret.")
    if not client_id:
        return TokenMethod(rules, keys, algorithms=allowed)
    return OidcAtPages(rules, keys, allowed, (client_id, client_secret))
