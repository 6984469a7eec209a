"""What a token has to say, as a program gives it: checked when the server is made, not when the first token comes."""

from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from millstream._http.outbound import OutboundError, check_url
from millstream.auth._claims import Rules
from millstream.auth._key_file import check_scopes


def rules_of(
    issuer: str,
    audience: str,
    scopes: Collection[str],
    implied: Mapping[str, Collection[str]] | None,
    *,
    believed: float = 60.0,
) -> Rules:
    """The rules for tokens of an issuer; the arguments are those of ``auth.jwt``.

    Raises:
        ValueError: the issuer, the audience or a scope can't be one.
        TypeError: the scopes are a text.
    """
    try:
        check_url(issuer)
    except OutboundError:
        given = "" if "@" in issuer else f", not {issuer!r}"  # there may be a password before the @
        raise ValueError(
            f"The issuer is an https URL, or an http URL of this machine, without a user name{given}."
        ) from None
    parts = urlsplit(audience)
    if not audience or parts.fragment or " " in audience or not audience.isprintable() or '"' in audience:
        raise ValueError("audience is this server's own URL, such as https://mcp.example.com/mcp, without a fragment")
    if isinstance(scopes, str):
        raise TypeError(f"scopes is a list: [{scopes!r}]")
    check_scopes(tuple(scopes))
    return Rules(issuer, audience, dict(implied or {}), believed)
