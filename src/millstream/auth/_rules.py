"""Checks of token rules in a program's arguments, when the server is created."""

from collections.abc import Collection, Mapping
from typing import cast
from urllib.parse import urlsplit

from millstream._http.client.fetch import OutboundError, check_url
from millstream.auth._claims import TokenRules
from millstream.auth._key_file import check_scopes


def several(name: str, given: Collection[str]) -> tuple[str, ...]:
    """Return a collection of strings as a tuple.

    Raises:
        TypeError: the value is a single string, or contains other types.
    """
    if isinstance(given, str):
        raise TypeError(f"{name} must be a list: {name}=[{given!r}]")
    found = tuple(given)
    if wrong := [each for each in cast("tuple[object, ...]", found) if not isinstance(each, str)]:
        raise TypeError(f"{name} must be a list of strings, but {wrong[0]!r} isn't a string.")
    return found


def inclusions(implied: Mapping[str, Collection[str]] | None) -> dict[str, tuple[str, ...]]:
    """Return the scopes that each scope includes.

    Raises:
        TypeError: `implied` isn't a mapping of scopes to lists.
    """
    if implied is not None and not isinstance(implied, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            'implied must map scopes to the scopes that they include: implied={"orders:write": ["orders:read"]}'
        )
    found: dict[str, tuple[str, ...]] = {}
    for scope, included in (implied or {}).items():
        if isinstance(included, str):
            raise TypeError(f"The scopes included in {scope!r} must be a list: implied={{{scope!r}: [{included!r}]}}")
        found[scope] = several("implied", included)
    return found


def rules_of(
    issuer: str,
    audience: str,
    scopes: Collection[str],
    implied: Mapping[str, Collection[str]] | None,
    *,
    believed: float = 60.0,
) -> TokenRules:
    """Return the rules for tokens of an issuer, from the arguments of ``auth.jwt``.

    Raises:
        ValueError: the issuer, the audience, or a scope is invalid.
        TypeError: `scopes` or `implied` has a string instead of a list.
    """
    try:
        check_url(issuer)
    except OutboundError:
        given = "" if "@" in issuer else f", not {issuer!r}"  # it may contain a password
        raise ValueError(
            f"issuer must be an https URL, or an http URL of this machine, without a user name{given}."
        ) from None
    parts = urlsplit(audience)
    if not audience or parts.fragment or " " in audience or not audience.isprintable() or '"' in audience:
        raise ValueError(
            "audience must be this server's public URL, such as https://mcp.example.com/mcp, without a fragment"
        )
    check_scopes(several("scopes", scopes))
    return TokenRules(issuer, audience, inclusions(implied), believed)
