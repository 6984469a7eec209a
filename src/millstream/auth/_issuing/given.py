"""What a program's author says, checked: the plan of an authorization server, and the clients that it knows."""

import re
from collections.abc import Collection, Mapping, Sequence
from hashlib import sha256
from typing import Any, cast
from urllib.parse import urlsplit

from millstream._http.outbound import check_url
from millstream.auth._issuing.plan import Plan
from millstream.auth._issuing.provider import Provider
from millstream.auth._issuing.records import ASSERTED, CLIENT, CODE, REFRESH, Client, digest
from millstream.auth._issuing.redirects import check_redirect
from millstream.auth._issuing.ways import IdentityProvider, Upstream, Way
from millstream.auth._jose import from_pem, read_keys
from millstream.auth._key_file import check_scopes
from millstream.auth._rules import inclusions, rules_of, several

_ID = re.compile(r"[A-Za-z0-9._~:@/-]{1,256}")
_UPSTREAM = re.compile(r"[a-z][a-z0-9-]{0,31}")
_MIN_SECRET = 32


def plan_of(
    url: str,
    ways: Sequence[Way],
    clients: Sequence[Client],
    *,
    audience: str,
    resources: Collection[str],
    scopes: Collection[str],
    described: Mapping[str, str],
    implied: Mapping[str, Collection[str]],
    registration: bool,
    provider: Provider | None,
) -> Plan:
    """The plan. Arguments are those of ``auth.issuer``.

    Raises:
        ValueError: something can't be.
    """
    parts = urlsplit(url)
    if (
        parts.scheme not in ("http", "https")
        or not parts.netloc
        or parts.path.endswith("//")
        or "?" in url
        or "#" in url
    ):
        raise ValueError(
            f"The issuer is a URL without a query or fragment, such as https://mcp.example.com, not {url!r}."
        )
    for each in ways:
        known = isinstance(each, IdentityProvider) or hasattr(each, "find") or hasattr(each, "begin")
        if isinstance(each, str) or not known:
            raise TypeError("users takes auth.users(file=…), auth.upstream(…), or a list of them.")
    if strange := [each for each in cast("Sequence[object]", clients) if not isinstance(each, Client)]:
        raise TypeError(f"clients is a list of auth.client(…), and {strange[0]!r} isn't one.")
    upstreams = [each for each in ways if isinstance(each, Upstream)]
    passwords = [each for each in ways if not isinstance(each, Upstream | IdentityProvider)]
    if not ways or len(passwords) > 1:
        raise ValueError("auth.issuer() needs somebody who can sign in: users=auth.users(file=…), and one such file.")
    for each in upstreams:
        if not _UPSTREAM.fullmatch(each.name) or each.name in ("http", "https"):  # subjects would look like URLs
            raise ValueError(f"An upstream can't be called {each.name!r}. Use lower-case letters, digits and dashes.")
    if len({each.name for each in upstreams}) < len(upstreams):
        raise ValueError("Two upstreams have the same name.")
    return Plan(
        url=url,
        audience=audience,
        resources=several("resources", resources),
        scopes=check_scopes(several("scopes", scopes)),
        described=dict(described),
        implied=inclusions(implied),
        passwords=passwords[0] if passwords else None,
        upstreams={each.name: each for each in upstreams},
        clients={each.id: each for each in clients},
        registration=registration,
        provider=provider or Provider(),
        identities=_identities(url, ways),
    )


def given_provider(issuer: str, scopes: Collection[str]) -> IdentityProvider:
    """An identity provider. Arguments are those of ``auth.identity_provider``.

    Raises:
        ValueError: something can't be.
    """
    if "#" in issuer or "?" in issuer:  # RFC 8414 §2; and a subject is the issuer, #, and the provider's own name
        raise ValueError("The issuer of an identity provider is a URL without a query or fragment.")
    rules_of(issuer, issuer, (), None)
    names = check_scopes(several("scopes", scopes))
    said = " ".join((issuer, *sorted(names))).encode()
    return IdentityProvider(issuer, names, float(int.from_bytes(sha256(said).digest()[:6])))


def _identities(own: str, ways: Sequence[Way]) -> dict[str, IdentityProvider]:
    found: dict[str, IdentityProvider] = {}
    for each in ways:
        if not isinstance(each, IdentityProvider):
            continue
        if each.issuer.rstrip("/") == own.rstrip("/"):
            raise ValueError("A server can't be its own identity provider: its tokens would become new ones.")
        if each.issuer in found:
            raise ValueError(f"The identity provider {each.issuer} is there twice.")
        found[each.issuer] = each
    return found


def given_client(
    id: str,
    *,
    name: str,
    redirect_uris: Collection[str],
    secret: str,
    jwks: str | Mapping[str, Any],
    scopes: Collection[str],
) -> Client:
    """A client. Arguments are those of ``auth.client``.

    Raises:
        ValueError: something can't be.
    """
    if not _ID.fullmatch(id):
        raise ValueError(f"{id!r} can't be a client's id. Use up to 256 letters, digits, and some of . _ ~ : @ / -")
    redirect_uris, scopes = several("redirect_uris", redirect_uris), several("scopes", scopes)
    if secret and jwks:
        raise ValueError(f"The client {id} has a secret or keys, not both.")
    if secret and len(secret.encode()) < _MIN_SECRET:
        raise ValueError(f"The secret of the client {id} has at least {_MIN_SECRET} bytes.")
    for each in redirect_uris:
        check_redirect(each)
    itself = bool(secret or jwks)
    if not (itself or redirect_uris):
        raise ValueError(f"The client {id} needs redirect_uris, where people are sent back to; or a secret or keys.")
    keys = _keys(id, jwks) if jwks else None
    return Client(
        id,
        name=name or id,
        redirect_uris=redirect_uris,
        method="client_secret_basic" if secret else "private_key_jwt" if jwks else "none",
        secret_hash=digest(secret) if secret else "",
        grant_types=((CODE, REFRESH) if redirect_uris else ()) + ((CLIENT, ASSERTED) if itself else ()),
        scopes=check_scopes(scopes),
        keys=keys,
        keys_url=jwks if isinstance(jwks, str) and keys is None else "",
    )


def _keys(id: str, jwks: str | Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The keys of a client; None where a URL says where they are."""
    if isinstance(jwks, str) and not jwks.lstrip().startswith("-----BEGIN"):
        check_url(jwks)
        return None
    keys = {"keys": [from_pem(jwks)]} if isinstance(jwks, str) else jwks
    if not read_keys(keys):
        raise ValueError(f"The keys of the client {id} have none that verifies signatures.")
    return keys
