"""Authentication methods: ``Server(auth=auth.keys(…))`` and others. A list combines them.

Each function returns an `AuthMethod` and imports only the modules for it. A server without ``auth`` imports none.
"""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millstream._protocol.errors import suggest_keywords
from millstream._protocol.principal import EVERYTHING
from millstream.auth._issuer_args import client, identity_provider, login_provider, users

if TYPE_CHECKING:
    from typing import Unpack

    from millstream._server.functions.description import Names
    from millstream.auth._authorization_server.clients import Allow
    from millstream.auth._authorization_server.config import IssuerOptions
    from millstream.auth._authorization_server.login_methods import LoginMethod
    from millstream.auth._authorization_server.provider import Provider
    from millstream.auth._authorization_server.records import OAuthClient
    from millstream.auth._authorization_server.server import Issuer
    from millstream.auth._method import AuthMethod, Unbound

__all__ = [
    "client",
    "github",
    "google",
    "identity_provider",
    "introspection",
    "issuer",
    "jwt",
    "keys",
    "login_provider",
    "oidc",
    "users",
]


@suggest_keywords
def keys(
    *given: str, named_keys: "Mapping[str, str | tuple[str, Names]] | None" = None, file: str | Path = ""
) -> "AuthMethod":
    """Accept API keys, sent as ``Authorization: Bearer KEY``.

    Args:
        given: Keys with full access, of at least 16 characters. Read them from the environment; don't write them in
            source code.
        named_keys: Mapping of a name to a key, or to a key and its scopes. The name becomes the principal's `subject`.
        file: A file managed by ``millstream keys``. Changes to it take effect within a second.

    Raises:
        ValueError: No keys are passed, or a key, name, or scope is invalid.
        LocalError: The file can't be read.

    Example:
        ``Server("shop", auth=auth.keys(named_keys={"desk": os.environ["DESK_KEY"]}))``
    """
    from millstream.auth._api_keys import key_method  # noqa: PLC0415
    from millstream.auth._key_file import check_name, check_strength  # noqa: PLC0415

    if not (given or named_keys or file):
        raise ValueError("auth.keys() requires a key, or a file with keys: auth.keys(file='keys.json')")
    wanted: list[tuple[str, str, Collection[str]]] = [("key", each, (EVERYTHING,)) for each in given]
    for name, value in (named_keys or {}).items():
        key, scopes = (value, ()) if isinstance(value, str) else value
        wanted.append((check_name(name), key, scopes))
    method = key_method(wanted, file)
    for name, key, _ in wanted:
        check_strength(name, key)
    return method


@suggest_keywords
def jwt(
    *,
    issuer: str,
    audience: str,
    jwks: "str | Mapping[str, Any]" = "",
    secret: str = "",
    algorithms: "Names" = (),
    scopes: "Names" = (),
    scope_includes: "Mapping[str, Names] | None" = None,
) -> "AuthMethod":
    """Accept signed tokens (JSON Web Tokens, RFC 7519) from an issuer.

    Args:
        issuer: The issuer's exact identifier, as in the claim ``iss``.
        audience: This server's public URL, such as ``https://mcp.example.com/mcp``. Tokens for any other URL are
            refused, even if it starts with this one.
        jwks: URL of the issuer's public keys, or the key set itself.
        secret: A secret shared with the issuer, at least 32 bytes long, instead of public keys.
        algorithms: Accepted signature algorithms; by default all asymmetric ones, or HS256 with a secret.
        scopes: Scopes that every caller needs.
        scope_includes: Mapping of a scope to the scopes that it includes.

    Raises:
        ValueError: An argument is missing or invalid.

    Example:
        >>> auth.jwt(
        ...     issuer="https://id.example.com",
        ...     audience="https://mcp.example.com/mcp",
        ...     jwks="https://id.example.com/keys",
        ... )
    """
    from millstream._http.client.fetch import check_url  # noqa: PLC0415
    from millstream.auth._discovery import ask_issuer  # noqa: PLC0415
    from millstream.auth._guard import rules_of, several  # noqa: PLC0415
    from millstream.auth._jose import ASYMMETRIC, FetchedKeys, FixedKeys, read_keys, shared_secret  # noqa: PLC0415
    from millstream.auth._tokens import TokenMethod  # noqa: PLC0415

    if bool(jwks) == bool(secret):
        raise ValueError("auth.jwt() requires either jwks=, the issuer's keys, or secret=, a shared secret")
    allowed = several("algorithms", algorithms) or (("HS256",) if secret else ASYMMETRIC)
    possible = ("HS256", "HS384", "HS512") if secret else ASYMMETRIC
    if unknown := [each for each in allowed if each not in possible]:
        raise ValueError(f"The algorithm {unknown[0]!r} isn't supported here. Supported: {', '.join(possible)}")
    keys: FixedKeys | FetchedKeys
    if secret:
        keys = FixedKeys([shared_secret(secret)])
    elif isinstance(jwks, str):
        keys = FetchedKeys(check_url(jwks).geturl(), ask_issuer)
    else:
        keys = FixedKeys(read_keys(jwks))
    return TokenMethod(rules_of(issuer, audience, scopes, scope_includes), keys, algorithms=allowed, scopes=scopes)


@suggest_keywords
def oidc(
    issuer: str,
    *,
    audience: str,
    algorithms: "Names" = (),
    scopes: "Names" = (),
    scope_includes: "Mapping[str, Names] | None" = None,
    client_id: str = "",
    client_secret: str = "",
) -> "AuthMethod | Unbound":
    """Accept signed tokens from an issuer that publishes its metadata (OpenID Connect Discovery, RFC 8414).

    Args:
        issuer: As for `jwt`.
        audience: As for `jwt`.
        algorithms: As for `jwt`.
        scopes: As for `jwt`.
        scope_includes: As for `jwt`.
        client_id: This server's client id at the issuer, which lets people sign in to the server's pages. Register it
            with the redirect URI ``YOUR-SERVER/sign-in/callback/oidc``. The issuer must return signed tokens for
            `audience` when it's requested as ``resource`` (RFC 8707).
        client_secret: Secret for `client_id`; public clients have none.

    Raises:
        ValueError: An argument is missing or invalid.

    Example:
        ``Server("shop", auth=auth.oidc("https://id.example.com", audience="https://mcp.example.com/mcp"))``
    """
    from millstream.auth._discovery import issuer_keys  # noqa: PLC0415
    from millstream.auth._guard import rules_of, several  # noqa: PLC0415
    from millstream.auth._jose import ASYMMETRIC  # noqa: PLC0415
    from millstream.auth._tokens import TokenMethod  # noqa: PLC0415

    rules = rules_of(issuer, audience, scopes, scope_includes)
    keys = issuer_keys(issuer)
    allowed = several("algorithms", algorithms) or ASYMMETRIC
    if client_secret and not client_id:
        raise ValueError("auth.oidc() requires client_id= with client_secret=")
    if not client_id:
        return TokenMethod(rules, keys, algorithms=allowed, scopes=scopes)
    from millstream.auth._oidc_pages import OidcAtPages  # noqa: PLC0415

    return OidcAtPages(rules=rules, keys=keys, algorithms=allowed, scopes=scopes, client=(client_id, client_secret))


@suggest_keywords
def introspection(
    *,
    issuer: str,
    audience: str,
    endpoint: str,
    client: str,
    secret: str,
    client_tokens: bool = False,
    scopes: "Names" = (),
    scope_includes: "Mapping[str, Names] | None" = None,
) -> "AuthMethod":
    """Accept tokens that the issuer verifies at its introspection endpoint (RFC 7662).

    Args:
        issuer: The issuer's exact identifier.
        audience: As for `jwt`; the endpoint's response must contain it.
        endpoint: URL of the introspection endpoint.
        client: This server's client id at the issuer.
        secret: Secret for `client`.
        client_tokens: Whether a token without a user (neither ``sub`` nor ``username``) belongs to its client. Set it
            only if the issuer includes the user in every user's token; otherwise all users of a client would share
            one identity.
        scopes: As for `jwt`.
        scope_includes: As for `jwt`.

    Raises:
        ValueError: An argument is missing or invalid.

    Example:
        >>> auth.introspection(
        ...     issuer="https://id.example.com",
        ...     audience="https://mcp.example.com/mcp",
        ...     endpoint="https://id.example.com/introspect",
        ...     client="shop",
        ...     secret=os.environ["SHOP_SECRET"],
        ... )
    """
    from millstream._http.client.fetch import check_url  # noqa: PLC0415
    from millstream.auth._guard import rules_of  # noqa: PLC0415
    from millstream.auth._introspection import IntrospectedMethod  # noqa: PLC0415

    url = check_url(endpoint).geturl()
    if not (client and secret):
        raise ValueError("auth.introspection() requires client= and secret=, this server's credentials at the endpoint")

    rules = rules_of(issuer, audience, scopes, scope_includes, believed=30.0)
    return IntrospectedMethod(rules, url, client=client, secret=secret, client_tokens=client_tokens, scopes=scopes)


@suggest_keywords
def issuer(  # noqa: PLR0913  the options of an issuer
    url: str,
    *,
    users: "LoginMethod | Sequence[LoginMethod]",
    clients: "Sequence[OAuthClient]" = (),
    audience: str = "",
    resources: "Names" = (),
    scopes: "Names" = (),
    scope_descriptions: Mapping[str, str] | None = None,
    scope_includes: "Mapping[str, Names] | None" = None,
    registration: bool = True,
    metadata_documents: bool = True,
    provider: "Provider | None" = None,
) -> "Issuer":
    """Make this server an OAuth 2.1 authorization server (draft-ietf-oauth-v2-1) that issues its own tokens.

    Any MCP client can connect: it describes itself at a URL or registers, the user signs in and consents in a browser,
    and the client gets a token. Users come from a file managed by ``millstream users``, from an upstream, or from an
    organization's identity provider.

    Args:
        url: The server's public URL, without the path of the MCP endpoint: ``https://mcp.example.com``. It's also the
            exact issuer identifier.
        users: Who can sign in: ``auth.users(file="users.json")``, an `upstream`, an `identity_provider`, or a list.
        clients: Clients that don't need to register, from `client`.
        audience: URL of the MCP endpoint; by default `url` and the endpoint's path, ``https://mcp.example.com/mcp``.
        resources: URLs of other servers for which it may issue tokens.
        scopes: Scopes that every user gets, and that every caller needs.
        scope_descriptions: Descriptions of scopes for users: ``{"orders:write": "order books"}``.
        scope_includes: Mapping of a scope to the scopes that it includes.
        registration: Whether clients may register themselves. Clients with a metadata document don't need to.
        metadata_documents: Whether clients may describe themselves at a URL, which this server fetches. Set it to False
            if the server has no access to the internet, so that clients such as Claude Code register instead.
        provider: Custom decisions; see `millstream.auth.providers`.

    Raises:
        ValueError: An argument is invalid.

    Example:
        ``Server("shop", auth=auth.issuer("https://mcp.example.com", users=auth.users(file="users.json")))``
    """
    from millstream.auth._authorization_server.config import issuer_config  # noqa: PLC0415
    from millstream.auth._authorization_server.server import Issuer  # noqa: PLC0415
    from millstream.auth._guard import rules_of  # noqa: PLC0415

    logins = list(users) if isinstance(users, Sequence) else [users]
    plan = issuer_config(
        url,
        logins,
        clients,
        audience=audience,
        resources=resources,
        scopes=scopes,
        described=scope_descriptions or {},
        implied=scope_includes or {},
        registration=registration,
        metadata_documents=metadata_documents,
        provider=provider,
    )
    for each in (audience or url, *resources):
        rules_of(url, each, scopes, scope_includes)
    return Issuer(plan)


def google(
    url: str, *, allow: "Allow", client_id: str = "", client_secret: str = "", **more: "Unpack[IssuerOptions]"
) -> "Issuer":
    """Return an `issuer` whose users sign in with Google.

    Args:
        url: The public URL of this server.
        allow: Who may sign in: verified addresses, or ``@example.com`` for everyone with an address there. See
            `login_provider`.
        client_id: Id of the OAuth client that you registered at Google; by default ``$GOOGLE_CLIENT_ID``.
        client_secret: Its secret; by default ``$GOOGLE_CLIENT_SECRET``.
        more: Options of `issuer`, such as ``scopes``.

    Example:
        ``Server("shop", auth=auth.google("https://mcp.example.com", allow=["@example.com"]))``
    """
    from millstream.auth._authorization_server.config import check_options  # noqa: PLC0415

    check_options("auth.google", more)
    return issuer(
        url, users=login_provider("google", allow=allow, client_id=client_id, client_secret=client_secret), **more
    )


def github(
    url: str, *, allow: "Allow", client_id: str = "", client_secret: str = "", **more: "Unpack[IssuerOptions]"
) -> "Issuer":
    """Return an `issuer` whose users sign in with GitHub.

    Args:
        url: The public URL of this server.
        allow: Who may sign in: a login, an organization as ``org:example``, or a verified address. See
            `login_provider`.
        client_id: Id of the OAuth application that you registered at GitHub; by default ``$GITHUB_CLIENT_ID``.
        client_secret: Its secret; by default ``$GITHUB_CLIENT_SECRET``.
        more: Options of `issuer`, such as ``scopes``.

    Example:
        ``Server("shop", auth=auth.github("https://mcp.example.com", allow=["octocat"]))``
    """
    from millstream.auth._authorization_server.config import check_options  # noqa: PLC0415

    check_options("auth.github", more)
    return issuer(
        url, users=login_provider("github", allow=allow, client_id=client_id, client_secret=client_secret), **more
    )
