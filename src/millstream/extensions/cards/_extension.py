"""`Cards`: serves the card and the catalog of a server at their well-known paths."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from millstream._override import override
from millstream._protocol.jsonrpc import encode
from millstream.extensions import Extension, ServerHost
from millstream.extensions.cards._documents import CARD_TYPE, CATALOG_TYPE, CardIdentity, catalog, identify, server_card

CATALOG_PATH = "/.well-known/ai-catalog.json"
OLD_CARD_PATH = "/.well-known/mcp/server-card.json"
"""Path in earlier drafts."""


class Cards(Extension):
    """Serves the card and the catalog of a server that has the setting `card_url`."""

    name = "io.modelcontextprotocol/server-card"
    settings = None

    @override
    async def open(self, host: ServerHost) -> None:
        """Register the paths.

        Raises:
            CardError: the settings lack the server's name or address.
        """
        settings = host.settings
        identity = identify(str(host.about["name"]), settings.card_url, settings.card_name)
        card = partial(_card, host, identity)
        host.serve_document(f"{settings.path.rstrip('/')}/server-card", card, CARD_TYPE)
        host.serve_document(CATALOG_PATH, partial(_catalog, identity), CATALOG_TYPE)
        host.serve_document(OLD_CARD_PATH, card, "application/json")


def _card(host: ServerHost, identity: CardIdentity) -> bytes:
    about: Mapping[str, Any] = host.about
    return encode(server_card(identity, about, needs_key=host.needs_key))


def _catalog(identity: CardIdentity) -> bytes:
    return encode(catalog(identity, f"{identity.url}/server-card"))
