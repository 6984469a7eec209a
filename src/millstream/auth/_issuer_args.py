"""Who comes to an authorization server: people, by a file or somebody else, and clients. For ``auth.issuer(…)``."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from millstream._protocol.suggestions import suggesting

if TYPE_CHECKING:
    from millstream._server.functions.description import Names
    from millstream.auth._authorization_server.allowlist import Allow
    from millstream.auth._authorization_server.login_methods import IdentityProvider, Upstream
    from millstream.auth._authorization_server.records import Client
    from millstream.auth._authorization_server.user_file import UserFile


@suggesting
def users(*, file: str | Path) -> "UserFile":
    """Return the accounts in a file, for `issuer`: ``issuer(users(file="users.json"))``.

    Args:
        file: the file that ``millstream users`` writes. Running servers read changes within a second.

    Raises:
        LocalError: the file can't be used.
    """
    from millstream.auth._authorization_server.user_file import UserFile  # noqa: PLC0415

    found = UserFile(Path(file))
    found.load()
    return found


@suggesting
def upstream(
    who: str,
    *,
    allow: "Allow",
    client_id: str = "",
    client_secret: str = "",
    name: str = "",
    title: str = "",
    at: str = "",
) -> "Upstream":
    """Somebody else who signs people in, for `issuer`: Google, GitHub, or any OpenID provider.

    Register this server there as a web application with the redirect URL ``URL/sign-in/callback/NAME``.

    Args:
        who: ``"google"``, ``"github"``, or the issuer's exact name: ``"https://login.example.com"``.
        allow: who may sign in: a verified e-mail address ``"ada@example.com"``, all of a domain ``"@example.com"``, or
            ``"*"`` for everybody who has an account there. GitHub also knows a login, ``"octocat"``, and an
            organization, ``"org:example"``. With the scopes that they may hand on to clients: ``{"@example.com":
            ["orders:write"]}``; the first entry that fits counts.
        client_id: what the registration gave; by default ``$GOOGLE_CLIENT_ID`` or ``$GITHUB_CLIENT_ID``.
        client_secret: and its secret; by default ``$GOOGLE_CLIENT_SECRET`` or ``$GITHUB_CLIENT_SECRET``.
        name: in the redirect URL and in subjects; by default ``google``, ``github`` or ``openid``.
        title: what people call it, for the button; by default the issuer's host.
        at: where it is instead: the URL of a GitHub Enterprise server, or of what stands in for Google in tests.

    Raises:
        ValueError: something is missing, or can't be.

    Example:
        ``users=[auth.upstream("google", allow=["@example.com"]), auth.upstream("github", allow=["org:example"])]``
    """
    from millstream.auth._authorization_server.upstreams import upstream_of  # noqa: PLC0415

    return upstream_of(
        who, allow=allow, client_id=client_id, client_secret=client_secret, name=name, title=title, at=at
    )


@suggesting
def identity_provider(issuer: str, *, scopes: "Names" = ()) -> "IdentityProvider":
    """An organization's identity provider that lets its people in without a page, for `issuer`.

    It gives a grant (ID-JAG) to a client in which a person has signed in, and your server gives a token for the grant.
    The client needs a secret or keys here. Which people may use which client, the provider decides.

    Args:
        issuer: its exact name. Its keys are asked for where its metadata say.
        scopes: what its grants give at most, besides what everybody gets; ``["*"]`` for all that a grant names.

    Raises:
        ValueError: something can't be.

    Example:
        ``users=[auth.users(file="users.json"), auth.identity_provider("https://login.example.com", scopes=["read"])]``
    """
    from millstream.auth._authorization_server.config import provider_config  # noqa: PLC0415

    return provider_config(issuer, scopes)


@suggesting
def client(
    id: str,
    *,
    name: str = "",
    redirect_uris: "Names" = (),
    secret: str = "",
    jwks: "str | Mapping[str, Any]" = "",
    scopes: "Names" = (),
) -> "Client":
    """A client that `issuer` knows beforehand.

    Args:
        id: how it calls itself.
        name: what people know it by.
        redirect_uris: where it may have people sent back; without any, it only acts for itself.
        secret: what it shows at the token endpoint, of at least 32 bytes; read it from the environment.
        jwks: its public keys as a set, the URL of one, or one key as PEM, instead of a secret (``private_key_jwt``).
        scopes: what it may have when it acts for itself (client credentials), which takes a secret or keys.

    Raises:
        ValueError: something can't be.

    Example:
        >>> auth.client("shop", redirect_uris=["https://shop.example.com/signed-in"])
    """
    from millstream.auth._authorization_server.config import client_config  # noqa: PLC0415

    return client_config(id, name=name, redirect_uris=redirect_uris, secret=secret, jwks=jwks, scopes=scopes)
