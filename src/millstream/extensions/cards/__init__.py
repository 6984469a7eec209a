"""Server cards (SEP-2127, a draft): name, address, and features of a server, for clients to discover."""

from millstream.extensions.cards._documents import CardError, CardIdentity, catalog, registry_entry, server_card
from millstream.extensions.cards._extension import Cards

__all__ = ["CardError", "CardIdentity", "Cards", "catalog", "registry_entry", "server_card"]
