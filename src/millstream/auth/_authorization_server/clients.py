"""Lookup of clients by id: configured ones, metadata documents, and registrations."""

from collections.abc import Callable

from millstream.auth._authorization_server.config import IssuerConfig
from millstream.auth._authorization_server.documents import Documents, Lookups, is_document
from millstream.auth._authorization_server.records import OAuthClient
from millstream.auth._authorization_server.vault import Vault
from millstream.auth._method import Unavailable

UNUSED = 86_400.0
"""Seconds before an unused registration expires."""
USED = 90 * 86_400.0
"""Seconds after its last use before a registration with a consent expires."""
_MAX_ID = 2048


class Clients:
    """All clients."""

    def __init__(self, config: IssuerConfig, vault: Vault, documents: Documents | None) -> None:
        """Create the lookup. `documents` is None if metadata documents aren't supported."""
        self.lookups: Lookups = Lookups(here=not config.secure, pool=lambda: vault.pool)
        self._config = config
        self._vault = vault
        self._documents = documents

    async def find(self, client_id: str, may_fetch: Callable[[], bool] = lambda: True) -> OAuthClient | None:
        """Return a client; None if the id is unknown.

        Args:
            client_id: the client's id.
            may_fetch: returns whether the client's metadata document may be fetched now.

        Raises:
            Unavailable: the client's document can't be fetched, or none are; the message gives the reason.
        """
        if not client_id or len(client_id) > _MAX_ID or not client_id.isascii() or not client_id.isprintable():
            return None
        found = await self._config.provider.find_client(client_id) or self._config.clients.get(client_id)
        if found is not None:
            return found
        if self._documents is None:
            return None  # the provider finds all clients
        if is_document(client_id):
            if not self._config.metadata_documents:
                raise Unavailable("This server doesn't fetch metadata documents. Register the client instead.")
            return await self._documents.find(client_id, may_fetch)
        for kind in ("oauth-client", "oauth-new"):
            found = await self._vault.get(f"{kind}:{client_id}", OAuthClient)
            if found is not None:
                return found
        return None

    async def add(self, client: OAuthClient) -> None:
        """Store a new registration. A flood of registrations displaces only unused ones."""
        await self._vault.put(f"oauth-new:{client.id}", client, UNUSED, lossy=True)

    async def renew(self, client: OAuthClient) -> None:
        """Extend a registration that a user has approved, or that refreshes a token."""
        if client.source == "registered":
            await self._vault.put(f"oauth-client:{client.id}", client, USED)
            await self._vault.delete(f"oauth-new:{client.id}")
