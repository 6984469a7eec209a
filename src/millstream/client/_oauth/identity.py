"""Tokens by a grant that somebody else gives (RFC 7523): nobody is sent to a page.

Enterprise-managed authorization: whoever runs an organization's accounts decides which servers its people may use. The
identity provider, where the person has signed in already, gives a grant for one
authorization server (ID-JAG) in exchange for the ID token that it gave before (RFC 8693), and that server gives a token
for the grant. https://github.com/modelcontextprotocol/ext-auth,
specification/draft/enterprise-managed-authorization.mdx.

Workload identity federation: the platform that runs a program says who it is, and the authorization server trusts that
platform. https://github.com/modelcontextprotocol/modelcontextprotocol/issues/1933.
"""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Protocol

import msgspec
from msgspec import Struct

from millstream._protocol.suggesting import suggesting
from millstream.client._errors import AccessDenied
from millstream.client._oauth.discovery import Issuer, find_issuer
from millstream.client._oauth.endpoints import authenticate
from millstream.client._oauth.issuer_http import Outbound, post_form
from millstream.client._oauth.store import Registration

_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
_JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_GRANT = "urn:ietf:params:oauth:token-type:id-jag"
_ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"  # noqa: S105  it's the name of a kind

Said = str | Callable[[], str | Awaitable[str]]
"""A token that says who somebody is, or what gives one that's still valid."""


class Grants(Protocol):
    """Whoever gives grants."""

    async def grant(self, issuer: Issuer, resource: str, scope: str, outbound: Outbound) -> Mapping[str, str]:
        """The form that buys a token of an authorization server, for a resource.

        Raises:
            AccessDenied: there's none for this one.
        """
        ...


class _Exchanged(Struct):
    """The answer of the identity provider."""

    access_token: str = ""
    issued_token_type: str = ""
    error: str = ""
    error_description: str = ""


@suggesting
class IdentityProvider:
    """Where your organization's people sign in, for ``OAuth(…).managed_by(IdentityProvider(…))``.

    Args:
        issuer: the exact name of the identity provider.
        id_token: the ID token that it gave when the person signed in, or a function that gives one; the function may
            be asynchronous. It goes to this provider only.
        client_id: who you are there.
        client_secret: the secret that goes with it; a public client has none.
    """

    def __init__(self, issuer: str, *, id_token: Said, client_id: str, client_secret: str = "") -> None:
        self._issuer = issuer
        self._id_token = id_token
        self._who = Registration(client_id, client_secret)

    async def grant(self, issuer: Issuer, resource: str, scope: str, outbound: Outbound) -> Mapping[str, str]:
        """Exchange the ID token for a grant (`Grants`)."""
        home = await find_issuer(self._issuer, outbound)
        if home is None:
            raise AccessDenied(f"{self._issuer} has no metadata. Check the issuer of the identity provider.", 401)
        form = {
            "grant_type": _EXCHANGE,
            "requested_token_type": _GRANT,
            "audience": issuer.issuer,
            "resource": resource,
            "subject_token": await _text(self._id_token),
            "subject_token_type": _ID_TOKEN,
            **({"scope": scope} if scope else {}),
        }
        shown, headers = authenticate(home, self._who, form)
        reply = await post_form(home.token_endpoint, shown, headers, outbound)
        try:
            given = msgspec.json.decode(reply.body, type=_Exchanged)
        except (msgspec.MsgspecError, RecursionError):
            given = _Exchanged(error=f"status {reply.status}")
        if given.error or not given.access_token or given.issued_token_type != _GRANT:
            reason = given.error_description or given.error or "it gave something else"
            raise AccessDenied(f"{self._issuer} gives no grant for {issuer.issuer}: {reason}.", 401)
        return _bearer(given.access_token, "", scope)


@suggesting
class WorkloadIdentity:
    """What a platform says of the program that it runs, for ``OAuth(…).managed_by(WorkloadIdentity(…))``.

    Args:
        issuer: the exact name of the authorization server that the token is for. The token goes to no other one,
            whatever a server names.
        token: the JWT that the platform gave, the file in which the platform keeps a valid one, or a function that
            gives one; the function may be asynchronous.

    Example:
        >>> WorkloadIdentity("https://login.example.com", token=Path("/var/run/secrets/tokens/mcp"))
    """

    def __init__(self, issuer: str, *, token: Said | Path) -> None:
        self._issuer = issuer
        self._token = token

    async def grant(self, issuer: Issuer, resource: str, scope: str, outbound: Outbound) -> Mapping[str, str]:
        """The platform's token is the grant (`Grants`)."""
        if issuer.issuer != self._issuer:
            why = f"The server wants tokens of {issuer.issuer}, but this program's identity is for {self._issuer}."
            raise AccessDenied(why, 401)
        if not isinstance(self._token, Path):
            return _bearer(await _text(self._token), resource, scope)
        try:
            return _bearer(self._token.read_text("utf-8").strip(), resource, scope)
        except (OSError, UnicodeDecodeError) as exc:
            raise AccessDenied(f"This program's identity can't be read: {exc}.", 401) from exc


async def _text(said: Said) -> str:
    token = said if isinstance(said, str) else said()
    return await token if inspect.isawaitable(token) else token


def _bearer(assertion: str, resource: str, scope: str) -> dict[str, str]:
    more = {"resource": resource, "scope": scope}
    return {"grant_type": _JWT_BEARER, "assertion": assertion, **{name: value for name, value in more.items() if value}}
