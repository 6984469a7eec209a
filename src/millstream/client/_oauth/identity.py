"""Tokens for assertions of a third party (RFC 7523), without a login page.

Enterprise-managed authorization: an organization decides which servers its members may use. Its identity provider,
where the user has already signed in, exchanges the user's ID token for an assertion for one authorization server
(ID-JAG, RFC 8693), and that server exchanges the assertion for a token.
https://github.com/modelcontextprotocol/ext-auth, specification/draft/enterprise-managed-authorization.mdx.

Workload identity federation: the platform that runs a program identifies it, and the authorization server trusts the
platform. https://github.com/modelcontextprotocol/modelcontextprotocol/issues/1933.
"""

import inspect
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Protocol

from millstream._protocol.errors import suggest_keywords
from millstream.client._errors import AccessDenied
from millstream.client._oauth.discovery import IssuerMetadata, Outbound, find_issuer
from millstream.client._oauth.endpoints import ask_token, brief
from millstream.client._oauth.store import Registration

_EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange"
_JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer"
_GRANT = "urn:ietf:params:oauth:token-type:id-jag"
_ID_TOKEN = "urn:ietf:params:oauth:token-type:id_token"  # noqa: S105  a token type, not a token

TokenSource = str | Callable[[], str | Awaitable[str]]
"""A token that identifies its subject, or a function that returns one that's still valid."""


class GrantSource(Protocol):
    """A source of grants."""

    async def grant(self, issuer: IssuerMetadata, resource: str, scope: str, outbound: Outbound) -> Mapping[str, str]:
        """Return the token request for an authorization server and a resource.

        Raises:
            AccessDenied: There's no grant for this server.
        """
        ...


@suggest_keywords
class IdentityProvider:
    """Your organization's identity provider, for ``OAuth(…).with_identity_provider(IdentityProvider(…))``.

    Args:
        issuer: Exact issuer identifier of the identity provider.
        id_token: The ID token that it issued when the user signed in, or a function that returns one; the function may
            be asynchronous. It's sent to this provider only.
        client_id: Your client id there.
        client_secret: The secret for `client_id`; public clients don't have one.
    """

    def __init__(self, issuer: str, *, id_token: TokenSource, client_id: str, client_secret: str = "") -> None:
        self._issuer = issuer
        self._id_token = id_token
        self._who = Registration(client_id, client_secret)

    async def grant(self, issuer: IssuerMetadata, resource: str, scope: str, outbound: Outbound) -> Mapping[str, str]:
        """Exchange the ID token for a grant (`GrantSource`).

        Args:
            issuer: Metadata of the authorization server that the grant is for.
            resource: Identifier of the MCP server (RFC 8707).
            scope: Requested scopes, separated by spaces; may be empty.
            outbound: How to reach the identity provider.
        """
        home = await find_issuer(self._issuer, outbound)
        if home is None:
            raise AccessDenied(
                f"The metadata of {self._issuer} isn't available. Check the issuer of the identity provider.", 401
            )
        form = {
            "grant_type": _EXCHANGE,
            "requested_token_type": _GRANT,
            "audience": issuer.issuer,
            "resource": resource,
            "subject_token": await _text(self._id_token),
            "subject_token_type": _ID_TOKEN,
            **({"scope": scope} if scope else {}),
        }
        response = await ask_token(home, self._who, form, outbound)
        if response.error or not response.access_token or response.issued_token_type != _GRANT:
            reason = response.error_description or response.error or "the token has an unexpected type"
            raise AccessDenied(f"{self._issuer} didn't issue a grant for {issuer.issuer}: {brief(reason)}.", 401)
        return _bearer(response.access_token, "", scope)


@suggest_keywords
class WorkloadIdentity:
    """The identity that a platform gives a program, for ``OAuth(…).with_identity_provider(WorkloadIdentity(…))``.

    Args:
        issuer: Exact identifier of the authorization server that the token is for. The token is sent to no other
            server, even if an MCP server names one.
        token: The platform's JWT, the file in which the platform stores a valid one, or a function that returns one;
            the function may be asynchronous.

    Example:
        >>> WorkloadIdentity("https://login.example.com", token=Path("/var/run/secrets/tokens/mcp"))
    """

    def __init__(self, issuer: str, *, token: TokenSource | Path) -> None:
        self._issuer = issuer
        self._token = token

    async def grant(self, issuer: IssuerMetadata, resource: str, scope: str, outbound: Outbound) -> Mapping[str, str]:
        """Return the platform's token as a grant (`GrantSource`).

        Args:
            issuer: Metadata of the authorization server that the grant is for.
            resource: Identifier of the MCP server (RFC 8707).
            scope: Requested scopes, separated by spaces; may be empty.
            outbound: Not used, because the token comes from the platform.
        """
        if issuer.issuer != self._issuer:
            why = f"The server requires tokens of {issuer.issuer}, but this program's identity is for {self._issuer}."
            raise AccessDenied(why, 401)
        if not isinstance(self._token, Path):
            return _bearer(await _text(self._token), resource, scope)
        try:
            return _bearer(self._token.read_text("utf-8").strip(), resource, scope)
        except (OSError, UnicodeDecodeError) as exc:
            raise AccessDenied(f"This program's identity can't be read: {exc}.", 401) from exc


async def _text(source: TokenSource) -> str:
    token = source if isinstance(source, str) else source()
    return await token if inspect.isawaitable(token) else token


def _bearer(assertion: str, resource: str, scope: str) -> dict[str, str]:
    more = {"resource": resource, "scope": scope}
    return {"grant_type": _JWT_BEARER, "assertion": assertion, **{name: value for name, value in more.items() if value}}
