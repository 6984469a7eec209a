"""What a developer may decide otherwise: subclass `Provider`, override some of its methods, give it to ``auth.issuer``.

The authorization server stays responsible for the protocol: redirect URIs, PKCE, codes, rotation and revocation are not
here, so that no subclass can weaken them. ::

    class Ours(Provider):
        async def find_client(self, client_id: str) -> Client | None:
            row = await database.client(client_id)
            return row and auth.client(row.id, name=row.name, redirect_uris=row.uris)

        async def grantable(self, user: User, client: Client, scopes: tuple[str, ...]) -> tuple[str, ...]:
            return scopes if user.subject in await database.staff() else ()
"""

from collections.abc import Mapping

from millstream._protocol.principal import EVERYTHING
from millstream.auth._authorization_server.login_methods import User
from millstream.auth._authorization_server.records import Client


class Refused(Exception):
    """What somebody asked for is not allowed; the text is shown to them."""


class Provider:
    """What happens unless somebody decides otherwise."""

    async def find_client(self, client_id: str) -> Client | None:
        """A client that is known from elsewhere; None to look among those of ``auth.issuer(clients=…)``, those that
        describe themselves, and those that have registered.
        """
        return None

    async def registering(self, client: Client) -> None:
        """A client registers itself.

        Raises:
            Refused: it may not.
        """

    async def grantable(self, user: User, client: Client, scopes: tuple[str, ...]) -> tuple[str, ...]:
        """Which of these scopes a person may hand on to a client; asked when they consent and at each refresh."""
        return scopes if EVERYTHING in user.scopes else tuple(each for each in scopes if each in user.scopes)

    async def remembers(self, user: User, client: Client, scopes: tuple[str, ...]) -> bool:
        """Whether a consent that the person gave before may count again. A consent page is shown where it may not.

        It is asked only where nobody but the client gets the answer, and the person has agreed to these scopes.
        """
        return True

    async def claims(self, user: User, client: Client) -> Mapping[str, object]:
        """Further claims for access tokens; those of the protocol can't be replaced."""
        return {}
