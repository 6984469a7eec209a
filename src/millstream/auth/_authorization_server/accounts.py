"""User accounts: the login method, current state, and grantable scopes of each user."""

from collections.abc import Mapping

import msgspec

from millstream.auth._authorization_server.config import IssuerConfig
from millstream.auth._authorization_server.login_methods import Selective, UpstreamLogin, User
from millstream.auth._authorization_server.records import Grant, OAuthClient

LOCAL = ""
"""Login method of users who have a password on this server."""


class Accounts:
    """All accounts that can sign in."""

    def __init__(self, config: IssuerConfig) -> None:
        self._config = config
        self.passwords = config.passwords
        self.upstreams: Mapping[str, UpstreamLogin] = config.upstreams

    async def check(self, name: str, password: str) -> User | None:
        """Return the user with a name and password."""
        return None if self.passwords is None else await self.passwords.check(name, password)

    def current_user(self, user: User, login: str) -> User | None:
        """Return a user's current state; None if they may no longer sign in."""
        if login in self._config.identities:
            return user if user.since == self._config.identities[login].number else None
        if login != LOCAL:
            upstream = self.upstreams.get(login)
            stays = upstream is not None and not (isinstance(upstream, Selective) and not upstream.still(user))
            return user if stays else None
        found = None if self.passwords is None else self.passwords.find(user.subject)
        return found if found is not None and found.since == user.since else None

    def user_of_grant(self, grant: Grant) -> User | None:
        """Return the user who approved a grant, with the scopes at that time; None if they may no longer sign in."""
        return self.current_user(User(grant.subject, grant.name, grant.scopes, grant.since), grant.login)

    async def grantable(self, user: User, client: OAuthClient, scopes: tuple[str, ...]) -> tuple[str, ...]:
        """Return the scopes that the client can get: the default ones, and the ones that the user may grant."""
        allowed = {*self._config.scopes, *await self._config.provider.grantable(user, client, scopes)}
        return tuple(each for each in scopes if each in allowed)

    @staticmethod
    def from_upstream(name: str, user: User) -> User:
        """Return the user with a subject that is unique across login methods."""
        return msgspec.structs.replace(user, subject=f"{name}:{user.subject}")
