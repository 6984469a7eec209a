"""The persons: who has signed in, how, and what they may hand on to a client."""

from collections.abc import Mapping

import msgspec

from millstream.auth._authorization_server.config import IssuerConfig
from millstream.auth._authorization_server.login_methods import Selective, Upstream, User
from millstream.auth._authorization_server.records import Client, Grant

LOCAL = ""
"""The way of those who have a password here."""


class Accounts:
    """Everybody who can sign in."""

    def __init__(self, config: IssuerConfig) -> None:
        self._config = config
        self.passwords = config.passwords
        self.upstreams: Mapping[str, Upstream] = config.upstreams

    async def check(self, name: str, password: str) -> User | None:
        """The person of a name and password."""
        return None if self.passwords is None else await self.passwords.check(name, password)

    def still(self, user: User, login: str) -> User | None:
        """The person as they are now; None for one who may not sign in any more."""
        if login in self._config.identities:
            return user if user.since == self._config.identities[login].number else None
        if login != LOCAL:
            upstream = self.upstreams.get(login)
            stays = upstream is not None and not (isinstance(upstream, Selective) and not upstream.still(user))
            return user if stays else None
        found = None if self.passwords is None else self.passwords.find(user.subject)
        return found if found is not None and found.since == user.since else None

    def again(self, grant: Grant) -> User | None:
        """The person who gave a grant. What an upstream's person may hand on was settled when they came."""
        return self.still(User(grant.subject, grant.name, grant.scopes, grant.since), grant.login)

    async def grantable(self, user: User, client: Client, scopes: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the scopes that the client can have: what everybody gets, and what the person may hand on."""
        allowed = {*self._config.scopes, *await self._config.provider.grantable(user, client, scopes)}
        return tuple(each for each in scopes if each in allowed)

    @staticmethod
    def from_upstream(name: str, user: User) -> User:
        """The person, with a subject that nobody of another way can have."""
        return msgspec.structs.replace(user, subject=f"{name}:{user.subject}")
