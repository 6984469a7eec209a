"""Customization of ``auth.issuer``: subclass `Provider`, override some of its methods, and pass an instance.

The authorization server remains responsible for the protocol: redirect URIs, PKCE, codes, rotation, and revocation
can't be overridden, so no subclass can weaken them. ::

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
from millstream.auth._authorization_server.records import OAuthClient


class RegistrationDenied(Exception):
    """The request isn't allowed; the message is shown to the client."""


class Provider:
    """Decisions of the authorization server, with defaults."""

    async def find_client(self, client_id: str) -> OAuthClient | None:
        """Return a client, or None to look in ``auth.issuer(clients=…)``, metadata documents, and registrations.

        Args:
            client_id: The ``client_id`` of the request (RFC 6749 §2.2).
        """
        return None

    async def check_registration(self, client: OAuthClient) -> None:
        """Check the registration of a client (RFC 7591).

        Args:
            client: The client as it described itself. Its names and URLs aren't verified.

        Raises:
            RegistrationDenied: The client may not register. The client sees the message.
        """

    async def grantable(self, user: User, client: OAuthClient, scopes: tuple[str, ...]) -> tuple[str, ...]:
        """Return the subset of `scopes` that a user may grant to a client. Called at consent and at each refresh.

        Args:
            user: The user who signed in, with their scopes.
            client: The client that asks.
            scopes: The requested scopes.
        """
        return scopes if EVERYTHING in user.scopes else tuple(each for each in scopes if each in user.scopes)

    async def may_skip_consent(self, user: User, client: OAuthClient, scopes: tuple[str, ...]) -> bool:
        """Return whether an earlier consent may be reused. If not, the consent page is shown.

        Called only if the redirect can't be intercepted and the user has consented to these scopes.

        Args:
            user: The user who signed in.
            client: The client that asks.
            scopes: The scopes that the user consented to before.
        """
        return True

    async def claims(self, user: User, client: OAuthClient) -> Mapping[str, object]:
        """Return additional claims for access tokens. Protocol claims can't be overridden.

        Args:
            user: The user who signed in.
            client: The client that gets the token.
        """
        return {}
