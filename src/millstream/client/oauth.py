"""Sign in to other servers for the users of a web page: for gateways, dashboards, and other programs with pages.

`millstream.client.OAuth` signs in by itself, at a port of this machine. A page divides that sign-in into two requests:
`OAuth.ask` returns a `PendingAuthorization` to store, and `OAuth.exchange_code` takes it with the answer that
`parse_redirect` reads. For grants without a browser, `find_issuer` and `ask_token` are the requests to an issuer.

Example:
    >>> pending = await oauth.ask(url, 401, challenge)  # redirect the browser to pending.url
    >>> await oauth.exchange_code(url, pending, parse_redirect(f"?{query}"))
"""

from millstream.client._oauth.endpoints import (
    IssuerMetadata,
    Outbound,
    ParsedChallenges,
    Proofs,
    TokenResponse,
    ask_token,
    fetch,
    find_issuer,
    parse_secure,
    read_challenges,
    wants_nonce,
    with_private_key,
)
from millstream.client._oauth.flow import PendingAuthorization, parse_redirect

__all__ = [
    "IssuerMetadata",
    "Outbound",
    "ParsedChallenges",
    "PendingAuthorization",
    "Proofs",
    "TokenResponse",
    "ask_token",
    "fetch",
    "find_issuer",
    "parse_redirect",
    "parse_secure",
    "read_challenges",
    "wants_nonce",
    "with_private_key",
]
