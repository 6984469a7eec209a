"""Ways to sign in: ``Server(auth=auth.keys(…))`` and others. A list combines them.

Each function makes a method (`auth._method`), and loads what that needs; a server without ``auth`` loads none of it.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millstream._protocol.principal import EVERYTHING
from millstream._protocol.suggestions import suggesting
from millstream.auth._issuer_args import client, identity_provider, upstream, users

if TYPE_CHECKING:
    from typing import Unpack

    from millstream._http.client.fetch import FetchedDocument
    from millstream._server.functions.description import Names
    from millstream.auth._authorization_server.allowlist import Allow
    from millstream.auth._authorization_server.config import IssuerOptions
    from millstream.auth._authorization_server.login_methods import LoginMethod
    from millstream.auth._authorization_server.provider import Provider
    from millstream.auth._authorization_server.records import Client
    from millstream.auth._authorization_server.server import Issuer
    from millstream.auth._method import AuthMethod, Unbound

__all__ = [
    "client", "github", "google", "identity_provider", "introspected", "issuer", "jwt", "keys", "oidc", "upstream",
    "users",
]  # fmt: skip


@suggesting
def keys(
    *given: str, named: "Mapping[str, str | tuple[str, Names]] | None" = None, file: str | Path = ""
) -> "AuthMethod":
    """API keys, sent as ``Authorization: Bearer KEY``.

    Args:
        given: keys whose holder may do everything; read them from the environment, not from the program's text.
        named: name -> key, or -> key and scopes. The name is the principal's `subject`.
        file: a file that ``millstream keys`` looks after. What is added or revoked there counts at once.

    Raises:
        ValueError: no key at all, an empty one, or a name or scope that cannot be.
        LocalError: the file cannot be used.

    Example:
        ``Server("shop", auth=auth.keys(named={"desk": os.environ["DESK_KEY"]}))``
    """
    from millstream.auth._api_keys import KeyMethod  # noqa: PLC0415
    from millstream.auth._key_file import KeyFile, StoredKey, check_key, check_name, check_scopes, digest_of  # noqa: PLC0415

    if not (given or named or file):
        raise ValueError("auth.keys() needs a key, or the file that has them: auth.keys(file='keys.json')")
    wanted: list[tuple[str, str, Collection[str]]] = [("key", each, (EVERYTHING,)) for each in given]
    for name, value in (named or {}).items():
        key, scopes = (value, ()) if isinstance(value, str) else value
        wanted.append((check_name(name), key, scopes))
    for name, key, _ in wanted:
        check_key(name, key)
    now = time.time()
    stored = tuple(StoredKey(name, digest_of(key), now, check_scopes(scopes)) for name, key, scopes in wanted)
    return KeyMethod(stored, KeyFile(Path(file)) if file else None)


@suggesting
def jwt(
    *,
    issuer: str,
    audience: str,
    jwks: "str | Mapping[str, Any]" = "",
    secret: str = "",
    algorithms: "Names" = (),
    scopes: "Names" = (),
    implied: "Mapping[str, Names] | None" = None,
) -> "AuthMethod":
    """Signed tokens (JSON Web Tokens) of an issuer.

    Args:
        issuer: its exact name, the claim ``iss``.
        audience: this server's own URL, as clients know it: ``https://mcp.example.com/mcp``. A token for another server
            doesn't count, nor does one for a URL that merely begins the same way.
        jwks: the URL of the issuer's public keys, or the keys themselves as a set.
        secret: a secret shared with the issuer, of at least 32 bytes, instead of public keys.
        algorithms: which signatures count; by default all asymmetric ones, or HS256 with a secret.
        scopes: what everybody needs who gets in.
        implied: scope -> further scopes that it includes.

    Raises:
        ValueError: something is missing, or can't be.

    Example:
        >>> auth.jwt(
        ...     issuer="https://id.example.com",
        ...     audience="https://mcp.example.com/mcp",
        ...     jwks="https://id.example.com/keys",
        ... )
    """
    from millstream._http.client.fetch import check_url  # noqa: PLC0415
    from millstream.auth._issuer_client import ask_issuer  # noqa: PLC0415
    from millstream.auth._jose import ASYMMETRIC, read_keys, shared_secret  # noqa: PLC0415
    from millstream.auth._key_sets import FetchedKeys, GivenKeys  # noqa: PLC0415
    from millstream.auth._rules import rules_of, several  # noqa: PLC0415
    from millstream.auth._tokens import TokenMethod  # noqa: PLC0415

    if bool(jwks) == bool(secret):
        raise ValueError("auth.jwt() needs either the issuer's keys, jwks=, or a shared secret, secret=")
    allowed = several("algorithms", algorithms) or (("HS256",) if secret else ASYMMETRIC)
    possible = ("HS256", "HS384", "HS512") if secret else ASYMMETRIC
    if unknown := [each for each in allowed if each not in possible]:
        raise ValueError(f"The algorithm {unknown[0]!r} isn't possible here: use some of {', '.join(possible)}")
    keys: GivenKeys | FetchedKeys
    if secret:
        keys = GivenKeys([shared_secret(secret)])
    elif isinstance(jwks, str):
        url = check_url(jwks).geturl()

        async def where() -> str:
            return url

        keys = FetchedKeys(where, ask_issuer)
    else:
        keys = GivenKeys(read_keys(jwks))
    return TokenMethod(rules_of(issuer, audience, scopes, implied), keys, algorithms=allowed, scopes=scopes)


@suggesting
def oidc(
    issuer: str,
    *,
    audience: str,
    algorithms: "Names" = (),
    scopes: "Names" = (),
    implied: "Mapping[str, Names] | None" = None,
    client_id: str = "",
    client_secret: str = "",
) -> "AuthMethod | Unbound":
    """Signed tokens of an issuer that says by itself where its keys are (OpenID Connect Discovery, RFC 8414).

    Args:
        issuer: as for `jwt`.
        audience: as for `jwt`.
        algorithms: as for `jwt`.
        scopes: as for `jwt`.
        implied: as for `jwt`.
        client_id: by which the issuer knows this server, so that people can sign in to its pages there. Register it
            with the redirect URL ``YOUR-SERVER/sign-in/callback/oidc``. The issuer has to give signed tokens for
            `audience` when it's asked for them by ``resource`` (RFC 8707).
        client_secret: the secret that belongs to it; a public client has none.

    Raises:
        ValueError: something is missing, or can't be.

    Example:
        ``Server("shop", auth=auth.oidc("https://id.example.com", audience="https://mcp.example.com/mcp"))``
    """
    from millstream.auth._discovery import Discovery  # noqa: PLC0415
    from millstream.auth._issuer_client import ask_issuer  # noqa: PLC0415
    from millstream.auth._jose import ASYMMETRIC  # noqa: PLC0415
    from millstream.auth._key_sets import FetchedKeys  # noqa: PLC0415
    from millstream.auth._rules import rules_of, several  # noqa: PLC0415
    from millstream.auth._tokens import TokenMethod  # noqa: PLC0415

    rules = rules_of(issuer, audience, scopes, implied)
    discovery = Discovery(issuer, ask_issuer)
    keys = FetchedKeys(discovery.keys_url, ask_issuer, retry=discovery.retry)
    allowed = several("algorithms", algorithms) or ASYMMETRIC
    if client_secret and not client_id:
        raise ValueError("auth.oidc() has a client_secret and no client_id")
    if not client_id:
        return TokenMethod(rules, keys, algorithms=allowed, scopes=scopes)
    from millstream.auth._oidc_pages import OidcAtPages  # noqa: PLC0415

    return OidcAtPages(rules, keys, algorithms=allowed, scopes=scopes, client=(client_id, client_secret))


@suggesting
def introspected(
    *,
    issuer: str,
    audience: str,
    endpoint: str,
    client: str,
    secret: str,
    client_tokens: bool = False,
    scopes: "Names" = (),
    implied: "Mapping[str, Names] | None" = None,
) -> "AuthMethod":
    """Tokens that only their issuer can read: its introspection endpoint is asked (RFC 7662).

    Args:
        issuer: its exact name.
        audience: as for `jwt`; the endpoint has to name it.
        endpoint: where to ask.
        client: by which name this server signs in there.
        secret: and with what.
        client_tokens: a token without a person (neither ``sub`` nor ``username``) is its client's own. Only for an
            issuer that always names the person, if there is one: otherwise all people of a client would be one caller.
        scopes: as for `jwt`.
        implied: as for `jwt`.

    Raises:
        ValueError: something is missing, or can't be.

    Example:
        >>> auth.introspected(
        ...     issuer="https://id.example.com",
        ...     audience="https://mcp.example.com/mcp",
        ...     endpoint="https://id.example.com/introspect",
        ...     client="shop",
        ...     secret=os.environ["SHOP_SECRET"],
        ... )
    """
    from millstream._http.client.dial import allow_any  # noqa: PLC0415
    from millstream._http.client.fetch import check_url, fetch  # noqa: PLC0415
    from millstream.auth._introspection import IntrospectedMethod  # noqa: PLC0415
    from millstream.auth._rules import rules_of  # noqa: PLC0415

    url = check_url(endpoint).geturl()
    if not (client and secret):
        raise ValueError("auth.introspected() needs the client and the secret by which it signs in at the endpoint")

    async def post(form: bytes, authorization: str) -> "FetchedDocument":
        return await fetch(url, form=form, headers={"authorization": authorization}, judge=allow_any)

    rules = rules_of(issuer, audience, scopes, implied, believed=30.0)
    return IntrospectedMethod(rules, post, client=client, secret=secret, client_tokens=client_tokens, scopes=scopes)


@suggesting
def issuer(
    url: str,
    *,
    users: "LoginMethod | Sequence[LoginMethod]",
    clients: "Sequence[Client]" = (),
    audience: str = "",
    resources: "Names" = (),
    scopes: "Names" = (),
    described: Mapping[str, str] | None = None,
    implied: "Mapping[str, Names] | None" = None,
    registration: bool = True,
    provider: "Provider | None" = None,
) -> "Issuer":
    """This server gives out its own tokens: it is an OAuth authorization server, too.

    Any MCP client signs in by itself: it describes itself at a URL or registers, the person signs in and agrees in a
    browser, and the client gets a token. People are those of a file that ``millstream users`` looks after, or those of
    an upstream, or those of an organization's identity provider.

    Args:
        url: the server's own URL, without the path of the MCP endpoint: ``https://mcp.example.com``. That is also the
            exact name of the issuer.
        users: who can sign in: ``auth.users(file="users.json")``, an `upstream`, an `identity_provider`, or a list.
        clients: those that need not register, from `client`.
        audience: the URL of the MCP endpoint; by default `url` and the endpoint's path, ``https://mcp.example.com/mcp``.
        resources: the URLs of other servers that tokens can be for.
        scopes: what everybody gets who signs in, and needs to get in.
        described: scope -> what it allows, in words for the person: ``{"orders:write": "order books"}``.
        implied: scope -> further scopes that it includes.
        registration: whether clients may register by themselves. Those that describe themselves need not.
        provider: what you decide yourself; see `millstream.auth.providers`.

    Raises:
        ValueError: something can't be.

    Example:
        ``Server("shop", auth=auth.issuer("https://mcp.example.com", users=auth.users(file="users.json")))``
    """
    from millstream.auth._authorization_server.config import issuer_config  # noqa: PLC0415
    from millstream.auth._authorization_server.server import Issuer  # noqa: PLC0415
    from millstream.auth._rules import rules_of  # noqa: PLC0415

    logins = list(users) if isinstance(users, Sequence) else [users]
    plan = issuer_config(
        url, logins, clients, audience=audience, resources=resources, scopes=scopes, described=described or {},
        implied=implied or {}, registration=registration, provider=provider,
    )  # fmt: skip
    for each in (audience or url, *resources):
        rules_of(url, each, scopes, implied)
    return Issuer(plan)


def google(
    url: str, *, allow: "Allow", client_id: str = "", client_secret: str = "", **more: "Unpack[IssuerOptions]"
) -> "Issuer":
    """An `issuer` whose people sign in with Google. `more` is for `issuer`; the others are those of `upstream`.

    Example:
        ``Server("shop", auth=auth.google("https://mcp.example.com", allow=["@example.com"]))``
    """
    from millstream.auth._authorization_server.config import check_options  # noqa: PLC0415

    check_options("auth.google", more)
    return issuer(url, users=upstream("google", allow=allow, client_id=client_id, client_secret=client_secret), **more)


def github(
    url: str, *, allow: "Allow", client_id: str = "", client_secret: str = "", **more: "Unpack[IssuerOptions]"
) -> "Issuer":
    """An `issuer` whose people sign in with GitHub. `more` is for `issuer`; the others are those of `upstream`.

    Example:
        ``Server("shop", auth=auth.github("https://mcp.example.com", allow=["octocat"]))``
    """
    from millstream.auth._authorization_server.config import check_options  # noqa: PLC0415

    check_options("auth.github", more)
    return issuer(url, users=upstream("github", allow=allow, client_id=client_id, client_secret=client_secret), **more)
