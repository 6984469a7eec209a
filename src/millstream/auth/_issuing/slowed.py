"""Names and passwords, checked no faster than somebody can type: one count for every page that asks for them."""

from millstream._http.message import neighborhood
from millstream._limits.gcra import Rate
from millstream.auth._issuing.attempts import Attempts
from millstream.auth._issuing.people import People
from millstream.auth._issuing.vault import Vault
from millstream.auth._issuing.ways import SignInFailed, User

SLOW = "Too many attempts. Wait a minute, then try again."
WRONG = "The name or the password is wrong."
_FAILURES, _NAMED = Rate(10, 60), Rate(30, 300)
"""Wrong passwords of an address, and for a name."""


class Slowed:
    """The check."""

    def __init__(self, people: People, vault: Vault) -> None:
        self._people = people
        self._attempts = Attempts({"sign-in-password": _FAILURES, "sign-in-name": _NAMED}, vault)

    async def check(self, peer: str, name: str, password: str) -> User | str:
        """The person of a name and password, or what to say instead."""
        keys = neighborhood(peer), name.casefold()[:128]
        async with self._attempts.trying(*keys) as may:
            if not may:
                return SLOW
            try:
                user = await self._people.check(name, password)
            except SignInFailed as exc:
                return str(exc)
            if user is None:
                await self._attempts.failed(*keys)
        return user or WRONG
