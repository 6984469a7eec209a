"""The paths of a server's card and catalog, as a part of the server."""

import hashlib
from collections.abc import Collection
from typing import Any, Protocol

from millstream._config import Settings
from millstream._http.message import Handler, HttpRequest, Response
from millstream._parts import Host, Route
from millstream._protocol.jsonrpc import encode
from millstream.extensions.cards._documents import CARD_TYPE, CATALOG_TYPE, catalog, identify, server_card

CATALOG_PATH = "/.well-known/ai-catalog.json"
OLD_CARD_PATH = "/.well-known/mcp/server-card.json"
"""Where earlier drafts had it."""


class Definition(Protocol):
    """The part of the server's definition that a card uses."""

    name: str
    settings: Settings

    def describe(self) -> dict[str, Any]: ...


class CardsPart:
    """Serves the documents of one server."""

    name: str = "cards"
    needs: Collection[str] = ()

    def __init__(self, definition: Definition) -> None:
        self._definition = definition

    async def open(self, host: Host) -> None:
        """Add the paths.

        Raises:
            CardError: the settings don't say who the server is.
        """
        settings = host.settings
        identity = identify(self._definition.name, settings.card_url, settings.card_name)
        path = f"{settings.path.rstrip('/')}/server-card"

        def documents() -> None:
            guard = host.guard
            needs_key = guard is not None and not any(each.issuers for each in guard.methods)
            card = server_card(identity, self._definition.describe(), needs_key=needs_key)
            listed = catalog(identity, f"{identity.url}/server-card")
            for place, document, kind in (
                (path, card, CARD_TYPE),
                (CATALOG_PATH, listed, CATALOG_TYPE),
                (OLD_CARD_PATH, card, "application/json"),
            ):
                host.routes.add(place, Route({"GET": _handler(encode(document), kind)}, public=True))

        host.shared_paths |= {path, CATALOG_PATH, OLD_CARD_PATH}
        host.on_http(documents)

    async def close(self) -> None:
        """Do nothing."""


def _handler(body: bytes, kind: str) -> Handler:
    tag = b'"%b"' % hashlib.sha256(body).hexdigest()[:32].encode()
    head = (
        b"content-type: %b\r\netag: %b\r\ncache-control: public, max-age=3600\r\n"
        b"access-control-expose-headers: ETag\r\n" % (kind.encode(), tag)
    )
    whole, same = Response(body, 200, head), Response(b"", 304, head)

    async def answer(request: HttpRequest) -> Response:
        known = [each.strip().removeprefix(b"W/") for each in request.headers.get(b"if-none-match", b"").split(b",")]
        return same if tag in known or known == [b"*"] else whole

    return answer
