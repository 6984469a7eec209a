"""Login with OpenID Connect, based on the ID token of the code flow.

The access token is used only to get claims that the ID token lacks from the userinfo endpoint, and then discarded.
"""

from collections.abc import Callable, Mapping
from typing import Any

from millstream._protocol.json_schema import is_object
from millstream.auth._authorization_server.allowlist import Allowlist
from millstream.auth._authorization_server.code_flow import CodeFlow
from millstream.auth._authorization_server.login_methods import AuthorizationRedirect, Callback, SignInFailed, User
from millstream.auth._authorization_server.upstream_http import ask, text

_SCOPE = "openid email profile"

NamesOf = Callable[[Mapping[str, Any]], frozenset[str]]
"""Returns the verified names in an issuer's claims about a user."""


def verified_names(claims: Mapping[str, Any]) -> frozenset[str]:
    """Return the verified e-mail address and its domain, if any."""
    email = text(claims.get("email"))
    # Some issuers send a string. Without the claim, the address may be unverified.
    if "@" not in email or claims.get("email_verified") not in (True, "true"):
        return frozenset()
    return frozenset((email, f"@{email.rpartition('@')[2]}"))


def google_names(claims: Mapping[str, Any]) -> frozenset[str]:
    """Return the verified names of a Gmail or managed Google account.

    Anyone can create a Google account with an address of another domain, and keep it after losing that address.
    Therefore the domain is taken from `hd`, the organization that manages the account.
    """
    names = {each for each in verified_names(claims) if not each.startswith("@")}
    if names and (organization := text(claims.get("hd"))):
        return frozenset((*names, f"@{organization}"))
    return frozenset(each for each in names if each.lower().endswith("@gmail.com"))


class OpenIdUpstream:
    """Login with one OpenID provider."""

    def __init__(
        self,
        issuer: str,
        *,
        client_id: str,
        client_secret: str,
        allowlist: Allowlist,
        name: str,
        title: str,
        names_of: NamesOf = verified_names,
        parameters: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.label = f"Continue with {title}"
        self._title = title
        self._allowlist = allowlist
        self._names_of = names_of
        self._flow = CodeFlow(
            issuer, client_id=client_id, client_secret=client_secret, title=title, parameters=parameters
        )

    async def prefetch(self) -> None:
        """See `Prefetchable.prefetch`."""
        await self._flow.prefetch()

    def still(self, user: User) -> bool:
        """Return whether the user's `allow` entry still exists."""
        return self._allowlist.has_entry(user.since)

    async def begin(self, callback: str, state: str) -> AuthorizationRedirect:
        """Return the redirect to the provider."""
        return await self._flow.begin(callback, state, _SCOPE)

    async def begin_anew(self, callback: str, state: str, prompt: str) -> AuthorizationRedirect:
        """See `UpstreamWithPrompt.begin_anew`."""
        return await self._flow.begin(callback, state, _SCOPE, prompt)

    async def finish(self, callback: Callback) -> User:
        """Return the user who signed in."""
        found = await self._flow.finish(callback)
        claims = found.claims
        subject = str(claims["sub"])
        if "email_verified" not in claims and "userinfo_endpoint" in found.metadata:
            claims = await self._userinfo(found.metadata, found.access_token, subject)
        name, email = text(claims.get("name")), text(claims.get("email"))
        entry = self._allowlist.find(self._names_of(claims), email or name or subject)
        return User(subject, name or email or subject, entry.scopes, entry.number)

    async def _userinfo(self, metadata: Mapping[str, Any], token: object, subject: str) -> Mapping[str, Any]:
        if not isinstance(token, str):
            raise SignInFailed(f"{self._title} didn't identify you. Try again later.")
        headers = {"authorization": f"Bearer {token}"}
        found = await ask(self._flow.endpoint(metadata, "userinfo_endpoint"), self._title, headers=headers)
        # OpenID Connect Core §5.3.4: the response could be about another user.
        if not is_object(found) or found.get("sub") != subject:
            raise SignInFailed(f"The response from {self._title} could not be verified. Start again.")
        return found
