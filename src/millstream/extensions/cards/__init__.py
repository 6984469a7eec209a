"""Server cards (SEP-2127, a draft): name, address, and features of a server, for clients to discover."""

from millstream.extensions.cards._extension import CardError, CardIdentity, Cards, catalog, registry_entry, server_card

__all__ = ["CardError", "CardIdentity", "Cards", "catalog", "registry_entry", "server_card"]
