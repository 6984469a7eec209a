"""OpenID Connect as a way to sign in: the code flow, of which only the ID token is believed.

What the issuer gives besides, such as an access token, is used for its userinfo endpoint where the ID token doesn't say
what we need, and forgotten.
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
"""The names that an issuer vouches for, in its claims about somebody."""


def verified_names(claims: Mapping[str, Any]) -> frozenset[str]:
    """A verified e-mail address, and its domain."""
    email = text(claims.get("email"))
    # Some write the text. Without the claim, people may have any address that they like.
    if "@" not in email or claims.get("email_verified") not in (True, "true"):
        return frozenset()
    return frozenset((email, f"@{email.rpartition('@')[2]}"))


def google_names(claims: Mapping[str, Any]) -> frozenset[str]:
    """The same for Google, which only knows whose an address is where it has the mailbox, or manages the account.

    Anybody can have a Google account with an address of another domain, and keep it after they lost that address. So a
    domain is that of the organization that manages the account, which is in `hd`.
    """
    names = {each for each in verified_names(claims) if not each.startswith("@")}
    if names and (organization := text(claims.get("hd"))):
        return frozenset((*names, f"@{organization}"))
    return frozenset(each for each in names if each.lower().endswith("@gmail.com"))


class OpenIdUpstream:
    """The people of one OpenID provider."""

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
        """See `Fetching.prefetch`."""
        await self._flow.prefetch()

    def still(self, user: User) -> bool:
        """Whether the entry by which somebody came still lets them in."""
        return self._allowlist.still(user.since)

    async def begin(self, callback: str, state: str) -> AuthorizationRedirect:
        """Where to send the browser."""
        return await self._flow.begin(callback, state, _SCOPE)

    async def begin_anew(self, callback: str, state: str, prompt: str) -> AuthorizationRedirect:
        """See `Renewing.begin_anew`."""
        return await self._flow.begin(callback, state, _SCOPE, prompt)

    async def finish(self, callback: Callback) -> User:
        """Who came back."""
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
            raise SignInFailed(f"{self._title} doesn't say who you are.")
        headers = {"authorization": f"Bearer {token}"}
        found = await ask(self._flow.endpoint(metadata, "userinfo_endpoint"), self._title, headers=headers)
        # OpenID Connect Core §5.3.4: it would be about somebody else.
        if not is_object(found) or found.get("sub") != subject:
            raise SignInFailed(f"What {self._title} says about you can't be believed. Start again.")
        return found
