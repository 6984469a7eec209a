"""Ways to a token: a login in a browser, and assertions of a third party. Each results in a token request.

A login opens a browser, with a redirect to a local port (RFC 8252), or another URL that the program handles. Assertions
need no login page (RFC 7523):

- Enterprise-managed authorization: an organization decides which servers its members may use. Its identity provider,
  where the user has already signed in, exchanges the user's ID token for an assertion for one authorization server
  (ID-JAG, RFC 8693), and that server exchanges the assertion for a token.
  https://github.com/modelcontextprotocol/ext-auth, specification/draft/enterprise-managed-authorization.mdx.
- Workload identity federation: the platform that runs a program identifies it, and the authorization server trusts the
  platform. https://github.com/modelcontextprotocol/modelcontextprotocol/issues/1933.
"""

import asyncio
import html
import inspect
import logging
import secrets
import webbrowser
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Protocol
from urllib.parse import parse_qsl, urlsplit

from msgspec import Struct

from millstream._oauth import authorization_url, s256
from millstream._protocol.errors import suggest_keywords
from millstream.client._errors import AccessDenied
from millstream.client._oauth import Registration
from millstream.client._oauth.discovery import IssuerMetadata, Outbound, find_issuer
from millstream.client._oauth.endpoints import ask_token, brief


class PendingAuthorization(Struct, frozen=True):
    """One authorization request (RFC 6749 §4.1.1, RFC 7636), kept until the user returns."""

    issuer: IssuerMetadata
    who: Registration
    target: str
    """The resource that the token is for (RFC 8707)."""
    scope: str
    redirect_uri: str
    state: str
    verifier: str

    @property
    def url(self) -> str:
        """The URL to open in the user's browser."""
        query = {
            "response_type": "code",
            "client_id": self.who.client_id,
            "redirect_uri": self.redirect_uri,
            "state": self.state,
            "code_challenge": s256(self.verifier),
            "code_challenge_method": "S256",
            "resource": self.target,
            **({"scope": self.scope} if self.scope else {}),
            **({"prompt": "consent"} if "offline_access" in self.scope.split() else {}),
        }
        return authorization_url(self.issuer.authorization_endpoint, query)

    def form(self, answer: Mapping[str, str]) -> dict[str, str]:
        """Return the token request for the parameters of the redirect.

        Raises:
            AccessDenied: The parameters don't answer this request.
        """
        return {
            "grant_type": "authorization_code",
            "code": code_of(answer, self.state, self.issuer),
            "redirect_uri": self.redirect_uri,
            "code_verifier": self.verifier,
            "resource": self.target,
        }


def code_of(answer: Mapping[str, str], state: str, issuer: IssuerMetadata) -> str:
    """Return the authorization code after checking `state` and `iss` (RFC 9207).

    Raises:
        AccessDenied: A check failed, or the login did.
    """
    named = answer.get("iss")
    if named is not None and named != issuer.issuer:
        raise AccessDenied(f"The sign-in response is from {brief(named)}, but the request went to {issuer.issuer}.")
    if named is None and issuer.authorization_response_iss_parameter_supported:
        raise AccessDenied(f"The sign-in response lacks the iss parameter, although {issuer.issuer} announces it.")
    if not secrets.compare_digest(answer.get("state", "").encode(), state.encode()):
        raise AccessDenied("The sign-in response belongs to another sign-in.")
    if "code" not in answer:
        reason = answer.get("error_description") or answer.get("error") or "no reason given"
        raise AccessDenied(f"The sign-in failed: {brief(reason)}.")
    return answer["code"]


_logger = logging.getLogger(__name__)

Visit = Callable[[str], Awaitable[str]]
"""Opens a URL in the user's browser, and returns the URL that the browser was redirected to."""

_LOGIN_TIMEOUT = 300.0
"""Seconds to wait for the login."""
_PAGE = "<!doctype html><meta charset=utf-8><title>Millstream</title><p>{}</p>"


class Loopback:
    """A local HTTP server that receives the redirect."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._redirect: asyncio.Future[str] | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def open(self) -> str:
        """Start listening, and return the redirect URI."""
        self._redirect = asyncio.get_running_loop().create_future()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=16 * 1024)
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/callback"

    async def visit(self, url: str) -> str:
        """Open the browser and wait for the redirect.

        Raises:
            AccessDenied: The login wasn't completed in time.
        """
        assert self._redirect is not None  # noqa: S101  set in `open`
        if await asyncio.to_thread(webbrowser.open, url) is False:
            _logger.warning("The browser couldn't be opened. Open this address in a browser on this machine: %s", url)
        try:
            async with asyncio.timeout(_LOGIN_TIMEOUT):
                return await self._redirect
        except TimeoutError as exc:
            raise AccessDenied(f"The sign-in wasn't completed within {_LOGIN_TIMEOUT:g} seconds. Try again.") from exc

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            for each in self._writers:
                each.transport.abort()  # browsers keep idle connections open, and Python 3.12 waits for them
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            async with asyncio.timeout(10):
                words = (await reader.readline()).decode("latin-1").split()
            target = words[1] if len(words) == 3 and words[0] == "GET" else ""
            ours = urlsplit(target).path == "/callback"
            text = "You can close this page." if ours else "There is nothing here."
            body = _PAGE.format(html.escape(text)).encode()
            status = "200 OK" if ours else "404 Not Found"
            head = f"HTTP/1.1 {status}\r\nContent-Type: text/html\r\nContent-Length: {len(body)}\r\n"
            writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
            await writer.drain()
            if ours and self._redirect is not None and not self._redirect.done():
                self._redirect.set_result(target)
        except (TimeoutError, ValueError, ConnectionError):
            pass  # another program connected
        finally:
            self._writers.discard(writer)
            writer.close()


def answer_of(url: str) -> dict[str, str]:
    """Return the query parameters of the redirect.

    Raises:
        AccessDenied: A parameter is repeated, or the URL is malformed.
    """
    try:
        found = parse_qsl(urlsplit(url).query, keep_blank_values=True)
    except ValueError as exc:
        raise AccessDenied("The browser was redirected to an invalid URL.") from exc
    if len({name for name, _ in found}) != len(found):
        raise AccessDenied("The authorization server sent a parameter twice.")
    return dict(found)


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
                f"The metadata of {self._issuer} isn't available. Check the issuer of the identity provider."
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
            raise AccessDenied(f"{self._issuer} didn't issue a grant for {issuer.issuer}: {brief(reason)}.")
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
            why = f"The server requires tokens from {issuer.issuer}, but this program's identity is for {self._issuer}."
            raise AccessDenied(why)
        if not isinstance(self._token, Path):
            return _bearer(await _text(self._token), resource, scope)
        try:
            return _bearer(self._token.read_text("utf-8").strip(), resource, scope)
        except (OSError, UnicodeDecodeError) as exc:
            raise AccessDenied(f"This program's identity can't be read: {exc}.") from exc


async def _text(source: TokenSource) -> str:
    token = source if isinstance(source, str) else source()
    return await token if inspect.isawaitable(token) else token


def _bearer(assertion: str, resource: str, scope: str) -> dict[str, str]:
    more = {"resource": resource, "scope": scope}
    return {"grant_type": _JWT_BEARER, "assertion": assertion, **{name: value for name, value in more.items() if value}}
