"""Finding a client by its id: given by the program, described at its own URL, or registered by itself."""

from collections.abc import Callable

from millstream.auth._authorization_server.config import IssuerConfig
from millstream.auth._authorization_server.documents import Documents, Lookups, is_document
from millstream.auth._authorization_server.records import Client
from millstream.auth._authorization_server.vault import Vault

UNUSED = 86_400.0
"""Seconds for which a registration is kept that nobody has used."""
USED = 90 * 86_400.0
"""And one that a person has agreed to, from its last use on."""
_MAX_ID = 2048


class Clients:
    """Every client that there is."""

    def __init__(self, config: IssuerConfig, vault: Vault, documents: Documents | None) -> None:
        """`documents` is None where clients can't describe themselves."""
        self.lookups: Lookups = Lookups(here=not config.secure, pool=lambda: vault.pool)
        self._config = config
        self._vault = vault
        self._documents = documents

    async def find(self, client_id: str, may_fetch: Callable[[], bool] = lambda: True) -> Client | None:
        """A client; None when there is none of that id.

        Args:
            client_id: as it calls itself.
            may_fetch: whether its document may be asked for now, if it has one.

        Raises:
            Unavailable: its document cannot be had, which says why.
        """
        if not client_id or len(client_id) > _MAX_ID or not client_id.isascii() or not client_id.isprintable():
            return None
        found = await self._config.provider.find_client(client_id) or self._config.clients.get(client_id)
        if found is not None:
            return found
        if self._documents is None:
            return None  # the provider knows all of them
        if is_document(client_id):
            return await self._documents.find(client_id, may_fetch)
        for kind in ("oauth-client", "oauth-new"):
            found = await self._vault.get(f"{kind}:{client_id}", Client)
            if found is not None:
                return found
        return None

    async def add(self, client: Client) -> None:
        """A client has registered. Nobody has used it, so a flood of them displaces it, and nothing else."""
        await self._vault.put(f"oauth-new:{client.id}", client, UNUSED, lossy=True)

    async def used(self, client: Client) -> None:
        """A person has agreed to a client, or it goes on to work for them: it stays."""
        if client.source == "registered":
            await self._vault.put(f"oauth-client:{client.id}", client, USED)
            await self._vault.delete(f"oauth-new:{client.id}")
