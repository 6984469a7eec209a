"""Grants from identity providers: members of an organization use a client here without a login page.

draft-ietf-oauth-identity-assertion-authz-grant (ID-JAG), as profiled by MCP's extension:
https://github.com/modelcontextprotocol/ext-auth, specification/stable/enterprise-managed-authorization.mdx. A grant is
a JWT signed by a configured provider for this issuer and one client, valid once within a few minutes.
"""

from collections.abc import Mapping
from typing import Any, cast

from msgspec import Struct

from millstream._protocol.json_schema import is_array
from millstream.auth._authorization_server.answers import OAuthError
from millstream.auth._authorization_server.login_methods import TrustedIdentityProvider
from millstream.auth._authorization_server.records import OAuthClient, digest
from millstream.auth._authorization_server.signing import Vault
from millstream.auth._discovery import issuer_keys
from millstream.auth._jose import (
    ASYMMETRIC,
    LEEWAY,
    InvalidToken,
    is_time,
    read_header,
    read_payload,
    verify_any,
)
from millstream.auth._method import Unavailable, prefetch_all

_TYPE = "oauth-id-jag+jwt"
_MAX_GRANT_SECONDS = 600.0
"""Maximum lifetime of a grant in seconds."""
_MAX_TEXT = 255


class IdentityGrant(Struct, frozen=True):
    """The content of a verified grant."""

    provider: str
    subject: str
    """Subject on this server, unique across providers and local accounts."""
    name: str
    scopes: tuple[str, ...]
    resources: tuple[str, ...]
    """Resources that the grant names; may be empty."""
    once: str
    """Store key that records that the grant was used."""
    until: float


class Identities:
    """Verifies grants."""

    def __init__(self, own: str, providers: Mapping[str, TrustedIdentityProvider], vault: Vault) -> None:
        self._own = own
        self._vault = vault
        self._keys = {issuer: issuer_keys(issuer) for issuer in providers}

    async def prefetch(self) -> None:
        """See `Prefetchable.prefetch`."""
        await prefetch_all(self._keys.values())

    async def read(self, assertion: str, client: OAuthClient) -> IdentityGrant:
        """Verify a grant and return its content.

        Args:
            assertion: The grant.
            client: The authenticated client.

        Raises:
            OAuthError: The grant isn't valid here.
        """
        try:
            issuer, claims = await self._open(assertion)
        except InvalidToken as exc:
            raise _invalid_grant(f"The grant is malformed. {exc}") from None
        except Unavailable as exc:
            raise OAuthError("temporarily_unavailable", str(exc), 503) from None
        self._check(claims, client)
        if claims.get("cnf") is not None:
            raise _invalid_grant("The grant is bound to a key, and proof of possession isn't supported.")
        return _read_grant(issuer, claims)

    async def count(self, granted: IdentityGrant) -> None:
        """Mark a grant as used.

        Raises:
            OAuthError: The grant was already used.
        """
        seconds = granted.until - self._vault.clock() + 2 * LEEWAY
        if not await self._vault.exchange(granted.once, None, b"1", seconds):
            raise _invalid_grant("The grant has already been used.")

    async def _open(self, assertion: str) -> tuple[str, dict[str, Any]]:
        header = read_header(assertion)
        if header.typ != _TYPE or header.alg not in ASYMMETRIC:
            raise _invalid_grant(f"The grant must be a signed JWT of the type {_TYPE}.")
        issuer = read_payload(assertion).get("iss")
        keys = self._keys.get(issuer) if isinstance(issuer, str) else None
        if keys is None:
            raise _invalid_grant("This server doesn't accept grants from this identity provider.")
        claims = verify_any(assertion, await keys.find(header.kid, header.alg), header.alg)
        if claims is None:
            raise _invalid_grant("The grant's signature is wrong.")
        return cast("str", issuer), claims

    def _check(self, claims: Mapping[str, Any], client: OAuthClient) -> None:
        audience = claims.get("aud")
        if is_array(audience) and len(audience) == 1:
            audience = audience[0]
        if audience != self._own:
            raise _invalid_grant("The grant is for another authorization server.")
        if claims.get("client_id") != client.id:
            raise _invalid_grant("The grant is for another client.")
        _check_time(claims, self._vault.clock())
        if not _is_text(claims.get("jti")):
            raise _invalid_grant("The grant has no jti, so it could be replayed.")
        if not _is_text(claims.get("sub")):
            raise _invalid_grant("The grant has no subject.")
        if "tenant" in claims:
            # Subjects are unique only within a tenant, and anyone can create a tenant at such a provider.
            raise _invalid_grant(
                "The grant names a tenant. Use a provider that has a separate issuer for each organization."
            )


def _check_time(claims: Mapping[str, Any], now: float) -> None:
    begins, until = claims.get("iat"), claims.get("exp")
    if not (is_time(begins) and is_time(until)):
        raise _invalid_grant("The grant has no validity period.")
    if not all(is_time(each) and each <= now + LEEWAY for each in (begins, claims.get("nbf", begins))):
        raise _invalid_grant("The grant isn't valid yet.")
    if until <= now - LEEWAY:
        raise _invalid_grant("The grant has expired.")
    if until - begins > _MAX_GRANT_SECONDS:
        raise _invalid_grant("The grant's lifetime exceeds ten minutes.")


def _read_grant(issuer: str, claims: Mapping[str, Any]) -> IdentityGrant:
    scope, resource, name = claims.get("scope", ""), claims.get("resource", []), claims.get("name", claims.get("email"))
    resources = [resource] if isinstance(resource, str) else resource
    if not isinstance(scope, str) or not is_array(resources) or not all(isinstance(each, str) for each in resources):
        raise _invalid_grant("The grant's scope must be a string, and its resource one or more URLs.")
    return IdentityGrant(
        issuer,
        f"{issuer}#{claims['sub']}",
        name if _is_text(name) else "",
        tuple(dict.fromkeys(scope.split())),
        tuple(str(each) for each in resources),
        "oauth-jag:" + digest(f"{issuer} {claims['jti']}"),
        float(claims["exp"]),
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_TEXT and value.isprintable()


def _invalid_grant(text: str) -> OAuthError:
    return OAuthError("invalid_grant", text)
