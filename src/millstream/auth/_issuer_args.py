"""Arguments of ``auth.issuer(…)``: users, upstreams, identity providers, and clients."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millstream._protocol.errors import suggest_keywords

if TYPE_CHECKING:
    from millstream._server.functions.description import Names
    from millstream.auth._authorization_server.clients import Allow
    from millstream.auth._authorization_server.records import OAuthClient
    from millstream.auth._authorization_server.users import UserFile
    from millstream.auth.providers import TrustedIdentityProvider, UpstreamLogin


@suggest_keywords
def users(*, file: str | Path) -> "UserFile":
    """Return the accounts in a file, for `issuer`: ``issuer(users(file="users.json"))``.

    Args:
        file: The file that ``millstream users`` writes. Running servers read changes within a second.

    Raises:
        LocalError: The file can't be read.
    """
    from millstream.auth._authorization_server.users import UserFile  # noqa: PLC0415

    found = UserFile(Path(file))
    found.load()
    return found


@suggest_keywords
def login_provider(
    provider: str,
    *,
    allow: "Allow",
    client_id: str = "",
    client_secret: str = "",
    name: str = "",
    title: str = "",
    base_url: str = "",
) -> "UpstreamLogin":
    """Return an upstream for `issuer`: users sign in with Google, GitHub, or any OpenID provider.

    Register this server with it as a web application with the redirect URI ``URL/sign-in/callback/NAME``.

    Args:
        provider: ``"google"``, ``"github"``, or the exact issuer identifier: ``"https://login.example.com"``.
        allow: Who may sign in: a verified e-mail address ``"ada@example.com"``, a domain ``"@example.com"``, or ``"*"``
            for everyone with an account there. For GitHub, also a login, ``"octocat"``, or an organization,
            ``"org:example"``. To let users grant scopes to clients, map entries to scopes:
            ``{"@example.com": ["orders:write"]}``. The first matching entry applies.
        client_id: Client id of the registration; by default ``$GOOGLE_CLIENT_ID`` or ``$GITHUB_CLIENT_ID``.
        client_secret: Secret for `client_id`; by default ``$GOOGLE_CLIENT_SECRET`` or ``$GITHUB_CLIENT_SECRET``.
        name: Name in the redirect URI and in subjects; by default ``google``, ``github``, or ``openid``.
        title: Name on the button; by default the issuer's host.
        base_url: Base URL, for a GitHub Enterprise server or a test double of Google.

    Raises:
        ValueError: An argument is missing or invalid.

    Example:
        ``users=[auth.users(file="users.json"), auth.login_provider("google", allow=["@example.com"])]``
    """
    from millstream.auth._authorization_server.upstreams import upstream_of  # noqa: PLC0415

    return upstream_of(
        provider, allow=allow, client_id=client_id, client_secret=client_secret, name=name, title=title, at=base_url
    )


@suggest_keywords
def identity_provider(issuer: str, *, scopes: "Names" = ()) -> "TrustedIdentityProvider":
    """Return an identity provider for `issuer`: an organization admits its members without a login page.

    The provider issues a grant (ID-JAG) to a client that a user has signed in to, and your server exchanges the grant
    for a token. The client needs a secret or keys at your server. The provider decides who may use which client.

    Args:
        issuer: The provider's exact identifier. Its metadata must name its keys.
        scopes: Maximum scopes of its grants, in addition to the default ones; ``["*"]`` allows any.

    Raises:
        ValueError: An argument is invalid.

    Example:
        ``users=[auth.users(file="users.json"), auth.identity_provider("https://login.example.com", scopes=["read"])]``
    """
    from millstream.auth._authorization_server.config import provider_config  # noqa: PLC0415

    return provider_config(issuer, scopes)


@suggest_keywords
def client(
    id: str,
    *,
    name: str = "",
    redirect_uris: "Names" = (),
    secret: str = "",
    jwks: "str | Mapping[str, Any]" = "",
    scopes: "Names" = (),
) -> "OAuthClient":
    """Return a preconfigured client for `issuer`.

    Args:
        id: Client id.
        name: Name shown to users.
        redirect_uris: Allowed redirect URIs; a client without any only acts for itself.
        secret: Client secret of at least 32 bytes; read it from the environment.
        jwks: Public keys as a set, the URL of a set, or one key as PEM, instead of a secret (``private_key_jwt``).
        scopes: Allowed scopes when it acts for itself (client credentials), which requires a secret or keys.

    Raises:
        ValueError: An argument is invalid.

    Example:
        >>> auth.client("shop", redirect_uris=["https://shop.example.com/signed-in"])
    """
    from millstream.auth._authorization_server.config import client_config  # noqa: PLC0415

    return client_config(id, name=name, redirect_uris=redirect_uris, secret=secret, jwks=jwks, scopes=scopes)
