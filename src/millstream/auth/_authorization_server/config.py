"""The configuration of an authorization server and its clients, from ``auth.issuer(…)``, and its metadata.

The configuration also determines which tokens a request may ask for, and which users may still sign in.

The metadata (RFC 8414, OpenID Connect Discovery) lists the endpoints, whose paths are defined here.
"""

import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, TypedDict, cast
from urllib.parse import urlsplit

from msgspec import Struct

from millstream._http.client.pool import check_url
from millstream._oauth import JWT_BEARER
from millstream._protocol.jsonrpc import Json
from millstream._server.calls.vault import digest
from millstream._server.functions.description import Names
from millstream._suggestions import refuse_unknown, suggest_keywords
from millstream.auth._authorization_server.records import (
    CLIENT,
    CODE,
    METHODS,
    REFRESH,
    Grant,
    OAuthClient,
    OAuthError,
    check_redirect,
    fingerprint,
)
from millstream.auth._jose import ASYMMETRIC, from_pem, read_keys
from millstream.auth._key_file import SCOPE, check_scopes
from millstream.auth._method import KnownScopes
from millstream.auth._provider_token import ProviderUser
from millstream.auth._tokens import rules_of, several
from millstream.auth.providers import (
    Callback,
    LoginMethod,
    Passwords,
    Provider,
    RevocableLogin,
    TrustedIdentityProvider,
    UpstreamLogin,
    User,
)

ACCESS_SECONDS = 900
"""Seconds that an access token is valid."""
REFRESH_SECONDS = 30 * 86_400
"""Seconds before an unused refresh token expires."""
LOCAL = ""
"""Login method of users who have a password on this server."""
_MAX_SCOPES = 64


def canonical(resource: str) -> str:
    """Return a resource in the form for comparison: lowercase scheme and host, no trailing slash (MCP,
    basic/authorization).
    """
    return re.sub(r"^[^/?#]*://[^/?#]*", lambda origin: origin[0].lower(), resource).rstrip("/")


KeepTokens = Callable[[User, Json], Awaitable[None]]
"""Stores the tokens in a provider's response for a user."""


async def _discard(user: User, response: Json) -> None:
    """Keep nothing."""


class IssuerConfig(Struct, frozen=True):
    """The configuration of an authorization server."""

    url: str
    """Exact issuer identifier, as in ``iss``."""
    audience: str
    """URL of the MCP endpoint for which it issues tokens. Until the server runs, empty for its own endpoint."""
    resources: tuple[str, ...]
    """URLs of other servers that it can issue tokens for."""
    scopes: tuple[str, ...]
    """Scopes of every grant, which every caller needs."""
    described: Mapping[str, str]
    """Scope -> description for users."""
    implied: Mapping[str, Collection[str]]
    passwords: Passwords | None
    upstreams: Mapping[str, UpstreamLogin]
    clients: Mapping[str, OAuthClient]
    registration: bool
    """Whether clients may register themselves."""
    provider: Provider
    metadata_documents: bool
    """Whether clients may describe themselves at a URL, which the server fetches."""
    identities: Mapping[str, TrustedIdentityProvider] = {}
    """Accepted identity providers, by issuer."""
    addresses: Callable[[], Collection[str]] = tuple
    """Returns other URLs of the same server. A request for one is for `audience`."""
    known: KnownScopes = frozenset
    """Returns the scopes that the running server currently uses."""
    keep_tokens: KeepTokens = _discard
    """Stores the tokens of a user who has just signed in, if the server keeps them."""

    @property
    def secure(self) -> bool:
        """Whether browsers use https. If not, this is a development server on the user's machine."""
        return self.url.startswith("https:")

    @property
    def path(self) -> str:
        """Path of the issuer, without a trailing slash."""
        return urlsplit(self.url).path.rstrip("/")

    @property
    def base(self) -> str:
        """Base URL of the endpoints."""
        return self.url.rstrip("/")

    # Tokens

    def existing_scopes(self) -> set[str]:
        """Return all current scopes."""
        return {*self.known(), *self.described, *self.scopes}

    def requested_resources(self, asked: tuple[str, ...]) -> tuple[str, ...]:
        """Return the requested resources, or this server if none are named.

        Raises:
            OAuthError: No tokens are issued for a resource.
        """
        known = {canonical(each): self.audience for each in self.addresses()}
        known |= {canonical(each): each for each in (self.audience, *self.resources)}
        found = tuple(dict.fromkeys(known.get(canonical(each), "") for each in asked))
        if "" in found:
            raise OAuthError(
                "invalid_target", "resource must be the URL of a server for which this server issues tokens."
            )
        return found or (self.audience,)

    def requested_scopes(self, text: str) -> tuple[str, ...]:
        """Return the default scopes and the requested scopes that exist. Others are ignored (RFC 6749 §3.3), because
        clients request scopes such as ``openid`` and ``offline_access`` everywhere. The reply lists the granted ones.

        Raises:
            OAuthError: There are too many, or one is malformed.
        """
        return tuple(dict.fromkeys((*self.scopes, *self.known_scopes(text))))

    def known_scopes(self, text: str, more: Collection[str] = ()) -> tuple[str, ...]:
        """Return the requested scopes that exist, or are in `more`.

        Raises:
            OAuthError: As for `requested_scopes`.
        """
        names = text.split()
        if len(names) > _MAX_SCOPES or not all(SCOPE.fullmatch(each) for each in names):
            raise OAuthError("invalid_scope", f"scope must be a list of at most {_MAX_SCOPES} valid scopes.")
        there = {*self.existing_scopes(), *more}
        return tuple(dict.fromkeys(each for each in names if each in there))

    # Users

    def current_user(self, user: User) -> User | None:
        """Return a user's current state, or None if they may no longer sign in."""
        login = user.login
        if login in self.identities:
            return user if user.since == self.identities[login].number else None
        if login != LOCAL:
            upstream = self.upstreams.get(login)
            stays = upstream is not None and not (isinstance(upstream, RevocableLogin) and not upstream.still(user))
            return user if stays else None
        found = None if self.passwords is None else self.passwords.find(user.subject)
        return found if found is not None and found.since == user.since else None

    def user_of_grant(self, grant: Grant) -> User | None:
        """Return the user who approved a grant, or None if they may no longer sign in. A user with a password has the
        present scopes, and others have those of the grant.
        """
        return self.current_user(User(grant.subject, grant.name, grant.scopes, grant.since, login=grant.login))

    async def grantable(self, user: User, client: OAuthClient, scopes: tuple[str, ...]) -> tuple[str, ...]:
        """Return the scopes that the client can get: the default ones, and the ones that the user can grant."""
        allowed = {*self.scopes, *await self.provider.grantable(user, client, scopes)}
        return tuple(each for each in scopes if each in allowed)

    async def claims(self, user: User, client: OAuthClient) -> Mapping[str, object]:
        """Return the claims about a user. Those of the provider take precedence."""
        known = {"name": user.name, "groups": list(user.groups)}
        return {**{name: value for name, value in known.items() if value}, **await self.provider.claims(user, client)}

    async def from_upstream(self, name: str, callback: Callback) -> User:
        """Return the user who returned from an upstream, with a subject that is unique across login methods.

        Raises:
            SignInFailed: The login failed.
        """
        found = await self.upstreams[name].finish(callback)
        user = User(f"{name}:{found.subject}", found.name, found.scopes, found.since, found.groups, name)
        if isinstance(found, ProviderUser):
            await self.keep_tokens(user, found.response)
        return user


_ID = re.compile(r"[A-Za-z0-9._~:@/-]{1,256}")
_UPSTREAM = re.compile(r"[a-z][a-z0-9-]{0,31}")
_MIN_SECRET = 32


@suggest_keywords
def identity_provider(issuer: str, *, scopes: Names = ()) -> TrustedIdentityProvider:
    """Return an identity provider for `issuer`: an organization admits its members without a login page.

    The provider issues a grant (ID-JAG) to a client that a user has signed in to, and your server exchanges the grant
    for a token. The client needs a secret or keys at your server. The provider decides who can use which client.

    Args:
        issuer: The provider's exact identifier. Its metadata must include its keys.
        scopes: The only scopes that its grants can have, in addition to the default ones; ``["*"]`` allows any.

    Raises:
        ValueError: An argument is invalid.

    Example:
        ``users=[auth.users(file="users.json"), auth.identity_provider("https://login.example.com", scopes=["read"])]``
    """
    if "#" in issuer or "?" in issuer:  # RFC 8414 §2; and "#" separates the issuer in a subject
        raise ValueError("An identity provider's issuer must be a URL without a query or fragment.")
    rules_of(issuer, issuer, (), None)
    names = check_scopes(several("scopes", scopes))
    return TrustedIdentityProvider(issuer, names, fingerprint(names, issuer))


def login_methods_of(
    url: str, users: LoginMethod | Sequence[LoginMethod]
) -> tuple[Passwords | None, Mapping[str, UpstreamLogin], Mapping[str, TrustedIdentityProvider]]:
    """Return the file of users, the upstreams by name, and the identity providers by issuer.

    Raises:
        ValueError: There are none, or two have the same name.
        TypeError: An object isn't a login method.
    """
    passwords: list[Passwords] = []
    upstreams: dict[str, UpstreamLogin] = {}
    identities: dict[str, TrustedIdentityProvider] = {}
    for each in users if isinstance(users, Sequence) else [users]:
        if isinstance(each, TrustedIdentityProvider):
            if each.issuer.rstrip("/") == url.rstrip("/"):
                raise ValueError(
                    "A server can't be its own identity provider, because a client could exchange its tokens "
                    "for new ones forever."
                )
            if each.issuer in identities:
                raise ValueError(f"The identity provider {each.issuer} is listed twice.")
            identities[each.issuer] = each
        elif isinstance(each, UpstreamLogin):
            if not _UPSTREAM.fullmatch(each.name) or each.name in (
                "http",
                "https",
            ):  # it would make subjects look like URLs
                raise ValueError(
                    f"{each.name!r} isn't a valid name for an upstream. Use lower-case letters, digits, and dashes."
                )
            if each.name in upstreams:
                raise ValueError("Two upstreams have the same name. Rename one with name=.")
            upstreams[each.name] = each
        elif isinstance(cast("object", each), str) or not (hasattr(each, "find") or hasattr(each, "begin")):
            raise TypeError("users must be auth.users(file=…), auth.login_provider(…), or a list of them.")
        else:
            passwords.append(each)
    if len(passwords) > 1 or not (passwords or upstreams or identities):
        raise ValueError("auth.issuer() requires ways to sign in, with at most one user file: users=auth.users(file=…)")
    return next(iter(passwords), None), upstreams, identities


@suggest_keywords
def client(
    id: str,
    *,
    name: str = "",
    redirect_uris: Names = (),
    secret: str = "",
    jwks: str | Mapping[str, Any] = "",
    scopes: Names = (),
) -> OAuthClient:
    """Return a preconfigured client for `issuer`.

    Args:
        id: Client id.
        name: Name shown to users.
        redirect_uris: Allowed redirect URIs; a client without any can't sign in users.
        secret: Client secret of at least 32 bytes. Read it from the environment.
        jwks: Public keys as a set, the URL of a set, or one key as PEM, instead of a secret (``private_key_jwt``).
        scopes: Allowed scopes when it acts for itself (client credentials), which requires a secret or keys.

    Raises:
        ValueError: An argument is invalid.

    Example:
        >>> auth.client("shop", redirect_uris=["https://shop.example.com/signed-in"])
    """
    if not _ID.fullmatch(id):
        raise ValueError(f"{id!r} isn't a valid client id. Use up to 256 letters, digits, and some of . _ ~ : @ / -")
    redirect_uris, scopes = several("redirect_uris", redirect_uris), several("scopes", scopes)
    if secret and jwks:
        raise ValueError(f"The client {id} can have either a secret or keys, not both.")
    if secret and len(secret.encode()) < _MIN_SECRET:
        raise ValueError(f"The secret for the client {id} must have at least {_MIN_SECRET} bytes.")
    for each in redirect_uris:
        check_redirect(each)
    itself = bool(secret or jwks)
    if not (itself or redirect_uris):
        raise ValueError(
            f"The client {id} needs redirect_uris to sign in users, or a secret or keys to use the "
            "client_credentials grant."
        )
    keys = _keys(id, jwks) if jwks else None
    return OAuthClient(
        id,
        name=name or id,
        redirect_uris=redirect_uris,
        method="client_secret_basic" if secret else "private_key_jwt" if jwks else "none",
        secret_hash=digest(secret) if secret else "",
        grant_types=((CODE, REFRESH) if redirect_uris else ()) + ((CLIENT, JWT_BEARER) if itself else ()),
        scopes=check_scopes(scopes),
        keys=keys,
        keys_url=jwks if isinstance(jwks, str) and keys is None else "",
    )


def _keys(id: str, jwks: str | Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return a client's key set, or None if `jwks` is a URL."""
    if isinstance(jwks, str) and not jwks.lstrip().startswith("-----BEGIN"):
        if "://" not in jwks:
            forms = "the URL of a key set, a key as PEM, or a key set as a dict: json.loads(text)"
            raise ValueError(f"The jwks of the client {id} must be {forms}.")
        check_url(jwks)
        return None
    keys = {"keys": [from_pem(jwks)]} if isinstance(jwks, str) else jwks
    if not read_keys(keys):
        raise ValueError(f"None of the keys for the client {id} can verify signatures.")
    return keys


class IssuerOptions(TypedDict, total=False):
    """See `millstream.auth.issuer`."""

    clients: Sequence[OAuthClient]
    audience: str
    resources: Names
    scopes: Names
    scope_descriptions: Mapping[str, str]
    scope_includes: Mapping[str, Names]
    registration: bool
    metadata_documents: bool
    provider: Provider | None


_OWN = ("url", "allow", "client_id", "client_secret")


def check_options(where: str, given: Collection[str]) -> None:
    """Check the names of options.

    Raises:
        TypeError: An option is unknown; the message suggests a similar one.
    """
    refuse_unknown(where, given, (*_OWN, *IssuerOptions.__annotations__), {})


AUTHORIZE, TOKEN, REGISTER = "/authorize", "/token", "/register"
REVOKE, INTROSPECT, KEYS = "/revoke", "/introspect", "/.well-known/jwks.json"
OAUTH, OPENID = "/.well-known/oauth-authorization-server", "/.well-known/openid-configuration"
PROFILE = "urn:ietf:params:oauth:grant-profile:id-jag"
SHARED = (TOKEN, REGISTER, REVOKE, KEYS, OPENID, OAUTH)
"""Paths that pages of any origin may request, because they ignore cookies."""


def places(config: IssuerConfig) -> list[str]:
    """Return the paths where clients look for this issuer's metadata."""
    path = config.path
    return list(dict.fromkeys([OAUTH, OPENID, OAUTH + path, OPENID + path, path + OPENID]))


def metadata(config: IssuerConfig) -> Json:
    """Return the metadata document."""
    base = config.base
    algorithms = [each for each in ASYMMETRIC if each != "EdDSA"]
    methods = list(METHODS)
    members: Json = {
        "issuer": config.url,
        "authorization_endpoint": base + AUTHORIZE,
        "token_endpoint": base + TOKEN,
        "jwks_uri": base + KEYS,
        "revocation_endpoint": base + REVOKE,
        "introspection_endpoint": base + INTROSPECT,
        "scopes_supported": sorted(config.existing_scopes() - {"offline_access"}),
        "response_types_supported": ["code"],
        "response_modes_supported": ["query"],
        "grant_types_supported": [CODE, REFRESH, CLIENT],
        "token_endpoint_auth_methods_supported": methods,
        "token_endpoint_auth_signing_alg_values_supported": algorithms,
        "revocation_endpoint_auth_methods_supported": methods,
        "revocation_endpoint_auth_signing_alg_values_supported": algorithms,
        "introspection_endpoint_auth_methods_supported": methods[1:],
        "introspection_endpoint_auth_signing_alg_values_supported": algorithms,
        "code_challenge_methods_supported": ["S256"],
        "authorization_response_iss_parameter_supported": True,
    }
    if config.metadata_documents:
        members["client_id_metadata_document_supported"] = True
    if config.identities:
        members["grant_types_supported"].append(JWT_BEARER)
        members["authorization_grant_profiles_supported"] = [PROFILE]
    if config.registration:
        members["registration_endpoint"] = base + REGISTER
    return members
