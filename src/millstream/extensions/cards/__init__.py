"""Server cards (SEP-2127): name, address, and features of a server, for clients to discover.

Experimental: a minor version can change it. See Stability in the documentation.

`Cards` serves a server's card, and a catalog with it, at their well-known paths. See
https://modelcontextprotocol.io/seps/2127-mcp-server-cards, which refers to
https://github.com/modelcontextprotocol/experimental-ext-server-card, docs/discovery.md and schema.ts.
"""

import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from msgspec import Struct

from millstream._override import override
from millstream.extensions import Extension, Host
from millstream.protocol import REVISIONS, Json, encode

__all__ = ["CardError", "CardIdentity", "Cards"]

CARD_TYPE = "application/mcp-server-card+json"
CATALOG_TYPE = "application/ai-catalog+json"
CARD_SCHEMA = "https://static.modelcontextprotocol.io/schemas/v1/server-card.schema.json"
MAX_TEXT = 100
"""Maximum characters of a title or description."""
_NAME = re.compile(r"[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+")
_MAX_NAME = 200
_OPTIONAL_FIELDS = ("title", "websiteUrl", "icons")


class CardError(ValueError):
    """The document can't be generated. The message explains which setting to change."""


class CardIdentity(Struct, frozen=True):
    """The public name and address of a server."""

    name: str
    """``com.example.shop/bookshop``: the host in reverse, a slash, and the server's name."""
    url: str
    """URL of the MCP endpoint."""

    @property
    def urn(self) -> str:
        """The name in a catalog, ``urn:air:shop.example.com:mcp:bookshop``."""
        publisher, _, name = self.name.partition("/")
        return f"urn:air:{'.'.join(reversed(publisher.split('.')))}:mcp:{name}"


def identify(server: str, url: str, name: str = "") -> CardIdentity:
    """Return the identity of a server.

    Args:
        server: Name of the server.
        url: Public URL of its MCP endpoint.
        name: Name in reverse DNS format, by default derived from the URL and the server's name.

    Raises:
        CardError: The URL or the name is invalid.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment or "@" in url:
        raise CardError(
            f"card_url is {url!r}. Set the public URL of the MCP endpoint, such as https://example.com/mcp."
        )
    name = name or f"{_publisher(parts.hostname)}/{re.sub(r'[^A-Za-z0-9._-]+', '-', server).strip('-')}"
    if not _NAME.fullmatch(name) or len(name) > _MAX_NAME:
        raise CardError(
            f"The name {name!r} is invalid. Use your domain in reverse, and a name: com.example/{server or 'shop'}"
        )
    return CardIdentity(name, url.rstrip("/"))


def _publisher(host: str) -> str:
    try:
        ip_address(host)
    except ValueError:
        return ".".join(reversed(host.rstrip(".").split(".")))
    raise CardError(f"card_url has the IP address {host}, so no name can be derived from it. Set card_name as well.")


def server_card(identity: CardIdentity, about: Mapping[str, Any], *, needs_key: bool = False) -> Json:
    """Return the card of a server.

    Args:
        identity: Public name and address of the server.
        about: The server's description of itself (see `Host.about`).
        needs_key: Whether callers need a key.
    """
    remote: Json = {
        "type": "streamable-http",
        "url": identity.url,
        "supportedProtocolVersions": REVISIONS[1:],
    }
    if needs_key:
        remote["headers"] = [_KEY_HEADER]
    text = str(about.get("description") or about.get("title") or about["name"])
    optional = {name: about[name] for name in _OPTIONAL_FIELDS if about.get(name)}
    if "title" in optional:
        optional["title"] = str(optional["title"])[:MAX_TEXT]
    return {
        "$schema": CARD_SCHEMA,
        "name": identity.name,
        "version": str(about["version"])[:255],
        "description": text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…",
        **optional,
        "remotes": [remote],
    }


_KEY_HEADER = {
    "name": "Authorization",
    "description": "Bearer, a space, and a key of this server.",
    "isRequired": True,
    "isSecret": True,
}


def catalog(identity: CardIdentity, about: Mapping[str, Any], card_url: str) -> Json:
    """Return a catalog with one server.

    Args:
        identity: Name and addresses of the server.
        about: The server's description of itself (see `Host.about`).
        card_url: URL of its card.
    """
    entry = {
        "identifier": identity.urn,
        "displayName": str(about.get("title") or about["name"])[:MAX_TEXT],
        "type": CARD_TYPE,
        "url": card_url,
    }
    return {"specVersion": "1.0", "entries": [entry]}


CATALOG_PATH = "/.well-known/ai-catalog.json"
ARD_PATH = "/.well-known/ard.json"
"""Path of the catalog in Agentic Resource Discovery (ARD) since its version 0.91."""
OLD_CARD_PATH = "/.well-known/mcp/server-card.json"
"""Path in earlier drafts."""


class Cards(Extension):
    """Serves the card and the catalog of a server that has the setting `card_url`."""

    name = "io.modelcontextprotocol/server-card"
    settings: Mapping[str, Any] | None = None

    @override
    async def open(self, host: Host) -> None:
        """Register the paths.

        Raises:
            CardError: The settings lack the server's name or address.
        """
        settings = host.settings
        identity = identify(str(host.about["name"]), settings.card_url, settings.card_name)

        def card() -> bytes:
            return encode(server_card(identity, host.about, needs_key=host.needs_key))

        host.serve_document(f"{settings.path.rstrip('/')}/server-card", card, CARD_TYPE)

        def make_catalog() -> bytes:
            return encode(catalog(identity, host.about, f"{identity.url}/server-card"))

        host.serve_document(CATALOG_PATH, make_catalog, CATALOG_TYPE)
        host.serve_document(ARD_PATH, make_catalog, "application/json")
        host.serve_document(OLD_CARD_PATH, card, "application/json")
