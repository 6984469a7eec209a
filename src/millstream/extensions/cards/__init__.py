"""Server cards (SEP-2127, a draft): what a server is and where, for clients that don't know it yet."""

from millstream.extensions.cards._documents import CardError, CardIdentity, catalog, registry_entry, server_card
from millstream.extensions.cards._extension import Cards

__all__ = ["CardError", "CardIdentity", "Cards", "catalog", "registry_entry", "server_card"]
