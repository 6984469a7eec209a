"""Validation of token claims: issuer, subject, audience, and times (RFC 7519, 8707, 9068)."""

from collections.abc import Collection, Mapping
from typing import Any, TypeGuard, cast

from msgspec import Struct

from millstream._protocol.json_schema import is_array
from millstream._protocol.principal import EVERYTHING, Principal
from millstream.auth._method import Identity

LEEWAY = 60.0
"""Allowed clock skew in seconds."""
_MAX_TEXT = 512


class TokenRules(Struct, frozen=True):
    """Claims that a token must have."""

    issuer: str
    audience: str
    implied: Mapping[str, Collection[str]] = {}
    """Scope -> the scopes that it includes."""
    believed: float = 60.0
    """Seconds that a verdict is cached."""


def judge(claims: Mapping[str, Any], rules: TokenRules, now: float) -> Identity | None:
    """Return the identity in a token's claims; None if they break a rule. The caller verifies the signature."""
    subject, expires = claims.get("sub"), claims.get("exp")
    if (
        claims.get("iss") != rules.issuer
        or not _is_for(claims.get("aud"), rules.audience)
        or not _is_text(subject)
        or not is_time(expires)
        # Bound to a key (RFC 7800). Proof of possession isn't checked here, so a thief could use the token.
        or claims.get("cnf") is not None
        or not all(_is_past(claims.get(name), now) for name in ("nbf", "iat"))
    ):
        return None
    left = cast("float", expires) + LEEWAY - now
    if left <= 0:
        return None
    client = claims.get("client_id", claims.get("azp", ""))
    principal = Principal(
        cast("str", subject),
        rules.issuer,
        client if _is_text(client) else "",
        scopes=scopes_of(claims, rules.implied),
        claims=dict(claims),
        until=cast("float", expires) + LEEWAY,
    )
    return Identity(principal, min(left, rules.believed))


def scopes_of(claims: Mapping[str, Any], implied: Mapping[str, Collection[str]]) -> frozenset[str]:
    """Return the scopes of a token and the scopes they imply, from `scope` (RFC 8693) or its common variant `scp`."""
    given = claims.get("scope", claims.get("scp", ""))
    names: list[Any] = given.split() if isinstance(given, str) else given if is_array(given) else []
    found = {each for each in names if isinstance(each, str)}
    waiting = list(found)
    while waiting:
        more = set(implied.get(waiting.pop(), ())) - found
        found |= more
        waiting += more
    # An issuer's scope `*` has no special meaning here.
    return frozenset(found - {EVERYTHING})


def _is_for(audience: Any, wanted: str) -> bool:
    return audience == wanted or (isinstance(audience, list) and wanted in audience)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= _MAX_TEXT


def is_time(value: Any) -> TypeGuard[int | float]:
    """Return whether a claim is a plausible number of seconds."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def _is_past(value: Any, now: float) -> bool:
    return value is None or (is_time(value) and value <= now + LEEWAY)
