"""Login with GitHub, which supports OAuth but not OpenID Connect: its API identifies the user.

Users are identified by their numeric id, which GitHub never reuses; logins can change owners. The access token has only
the scopes that `allow` needs, and is discarded after the login.
"""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from millstream._http.client.fetch import check_url
from millstream._protocol.json_schema import is_array, is_object, members
from millstream.auth._authorization_server.allowlist import Allowlist
from millstream.auth._authorization_server.login_methods import AuthorizationRedirect, Callback, SignInFailed, User
from millstream.auth._authorization_server.records import new_secret
from millstream.auth._authorization_server.upstream_http import ask, challenge_of, code_of, link, text

HERE = "https://github.com"
ORGANIZATION = "org:"
"""Prefix of `allow` entries for the members of an organization."""
_TITLE = "GitHub"


class GitHubUpstream:
    """Login with GitHub or a GitHub Enterprise Server."""

    def __init__(self, at: str, *, client_id: str, client_secret: str, allowlist: Allowlist, name: str) -> None:
        self.name = name
        self.label = f"Continue with {_TITLE}"
        self._at = check_url(at).geturl().rstrip("/")
        self._api = _api_of(self._at)
        self._client_id = client_id
        self._client_secret = client_secret
        self._allowlist = allowlist
        self._wants_organizations = allowlist.some(ORGANIZATION)
        self._wants_emails = allowlist.some(containing="@")
        wanted = (("read:org", self._wants_organizations), ("user:email", self._wants_emails))
        self._scope = " ".join(scope for scope, is_wanted in wanted if is_wanted)

    def still(self, user: User) -> bool:
        """Return whether the user's `allow` entry still exists."""
        return self._allowlist.has_entry(user.since)

    async def begin(self, callback: str, state: str) -> AuthorizationRedirect:
        """Return the redirect to GitHub."""
        verifier = new_secret()
        asked = {
            "client_id": self._client_id, "redirect_uri": callback, "scope": self._scope, "state": state,
            "code_challenge": challenge_of(verifier), "code_challenge_method": "S256", "prompt": "select_account",
        }  # fmt: skip
        return AuthorizationRedirect(link(f"{self._at}/login/oauth/authorize", asked), verifier.encode())

    async def finish(self, callback: Callback) -> User:
        """Return the user who signed in."""
        form = {
            "client_id": self._client_id, "client_secret": self._client_secret, "redirect_uri": callback.url,
            "code": code_of(callback.query, _TITLE), "code_verifier": callback.state_data.decode(),
        }  # fmt: skip
        given = await ask(f"{self._at}/login/oauth/access_token", _TITLE, form=form, headers={})
        # GitHub returns errors with status 200, too.
        answer = members(given)
        token = text(answer.get("access_token"))
        if not token:
            code_of({"error": text(answer.get("error"))}, _TITLE)
        person = members(await self._ask("/user", token))
        number, login = person.get("id"), text(person.get("login"))
        if not isinstance(number, int) or isinstance(number, bool) or not login:
            raise SignInFailed(f"{_TITLE} didn't identify you. Try again later.")
        entry = self._allowlist.find({login, *await self._more(token)}, login)
        return User(str(number), text(person.get("name")) or login, entry.scopes, entry.number)

    async def _more(self, token: str) -> set[str]:
        """Return the user's organizations and verified e-mail addresses, if `allow` needs them."""
        found: set[str] = set()
        if self._wants_organizations:
            for each in await self._list("/user/memberships/orgs?state=active&per_page=100", token):
                if each.get("state") == "active" and is_object(each.get("organization")):
                    found.add(ORGANIZATION + text(each["organization"].get("login")))
        if self._wants_emails:
            for each in await self._list("/user/emails?per_page=100", token):
                if each.get("verified") is True and "@" in (email := text(each.get("email"))):
                    found |= {email, f"@{email.rpartition('@')[2]}"}
        return found

    async def _list(self, path: str, token: str) -> list[Mapping[str, Any]]:
        found = await self._ask(path, token)
        return [each for each in found if is_object(each)] if is_array(found) else []

    async def _ask(self, path: str, token: str) -> Any:
        headers = {"authorization": f"Bearer {token}", "accept": "application/vnd.github+json"}
        return await ask(self._api + path, _TITLE, headers=headers)


def _api_of(at: str) -> str:
    """Return the API's base URL, for github.com, a tenant of ghe.com, or a GitHub Enterprise Server."""
    parts = urlsplit(at)
    if at == HERE or parts.netloc.endswith(".ghe.com"):
        return f"{parts.scheme}://api.{parts.netloc}"
    return f"{at}/api/v3"
