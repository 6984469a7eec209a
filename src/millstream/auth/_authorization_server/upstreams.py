"""The built-in upstreams: Google, GitHub, and any OpenID provider."""

import os
from collections.abc import Mapping

from msgspec import Struct

from millstream._http.client.fetch import OutboundError, check_url
from millstream.auth._authorization_server.allowlist import EMAIL, Allow, Allowlist
from millstream.auth._authorization_server.login_methods import UpstreamLogin
from millstream.auth._authorization_server.metadata import CALLBACK
from millstream.auth._authorization_server.upstream_github import HERE, ORGANIZATION, GitHubUpstream
from millstream.auth._authorization_server.upstream_oidc import NamesOf, OpenIdUpstream, google_names, verified_names

_EMAILS = "['ada@example.com'], ['@example.com'] for a whole domain"


class KnownService(Struct, frozen=True):
    """The built-in configuration of a service."""

    title: str
    at: str
    names_of: NamesOf = verified_names
    parameters: Mapping[str, str] = {}
    form: str = EMAIL
    examples: str = f"{_EMAILS}, ['*'] for everyone"


KNOWN = {
    # Otherwise users with several accounts can't switch from one that isn't allowed.
    "google": KnownService(
        "Google",
        "https://accounts.google.com",
        google_names,
        {"prompt": "select_account"},
        examples=f"{_EMAILS}, ['*'] for everyone with a Google account",
    ),
    "github": KnownService(
        "GitHub",
        HERE,
        form=rf"{ORGANIZATION}[A-Za-z0-9_-]{{1,39}}|[A-Za-z0-9_-]{{1,39}}|{EMAIL}",
        examples=f"['octocat'], ['org:example'] for an organization, {_EMAILS}, ['*'] for everyone on GitHub",
    ),
}


def upstream_of(
    who: str, *, allow: Allow, client_id: str, client_secret: str, name: str, title: str, at: str
) -> UpstreamLogin:
    """Return an upstream. Arguments and errors are those of ``auth.upstream``."""
    known = KNOWN.get(who)
    if known is None:
        try:
            host = check_url(who).hostname or ""
        except OutboundError as exc:
            raise ValueError(
                f"{who!r} isn't an upstream. Use {', '.join(map(repr, KNOWN))}, or an issuer's URL. {exc}"
            ) from None
        known, name = KnownService(title or host, who), name or "openid"
    name, title, at = name or who, title or known.title, at or known.at
    client_id, client_secret = _credentials(who, name, client_id, client_secret)
    allowlist = Allowlist(allow, at, form=known.form, examples=known.examples)
    if who == "github":
        return GitHubUpstream(at, client_id=client_id, client_secret=client_secret, allowlist=allowlist, name=name)
    return OpenIdUpstream(
        check_url(at).geturl(), client_id=client_id, client_secret=client_secret, allowlist=allowlist, name=name,
        title=title, names_of=known.names_of, parameters=known.parameters,
    )  # fmt: skip


def _credentials(who: str, name: str, client_id: str, client_secret: str) -> tuple[str, str]:
    """Return this server's client id and secret at an upstream; for known services, by default from the environment."""
    said = "pass client_id= and client_secret=, read from the environment"
    if who in KNOWN:
        id_name, secret_name = f"{who.upper()}_CLIENT_ID", f"{who.upper()}_CLIENT_SECRET"
        client_id = client_id or os.environ.get(id_name, "")
        client_secret = client_secret or os.environ.get(secret_name, "")
        said = f"set {id_name} and {secret_name}, or pass client_id= and client_secret="
    if client_id and client_secret:
        return client_id, client_secret
    title = KNOWN[who].title if who in KNOWN else who
    raise ValueError(
        f"Register this server with {title}, using the redirect URI YOUR-SERVER{CALLBACK}{name}. Then {said}."
    )
