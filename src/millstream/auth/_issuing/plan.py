"""The arguments of ``auth.issuer(…)``, before any server runs."""

from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from msgspec import Struct

from millstream.auth._issuing.provider import Provider
from millstream.auth._issuing.records import Client
from millstream.auth._issuing.ways import IdentityProvider, Passwords, Upstream

ACCESS = 900
"""Seconds for which an access token lives."""
REFRESH = 30 * 86_400
"""Seconds for which a refresh token lives that nobody uses; each use starts them again."""


class Plan(Struct, frozen=True):
    """The settings of an authorization server."""

    url: str
    """Its exact name, as in ``iss``."""
    audience: str
    """The URL of the MCP endpoint that its tokens are for; empty for that of the server it runs in."""
    resources: tuple[str, ...]
    """Other servers that tokens can be for."""
    scopes: tuple[str, ...]
    """What everybody gets, and needs to get in."""
    described: Mapping[str, str]
    """Scope -> what it allows, in words for the person."""
    implied: Mapping[str, Collection[str]]
    passwords: Passwords | None
    upstreams: Mapping[str, Upstream]
    clients: Mapping[str, Client]
    registration: bool
    """Whether clients may register themselves."""
    provider: Provider
    identities: Mapping[str, IdentityProvider] = {}
    """Identity providers whose grants count, by issuer."""

    @property
    def secure(self) -> bool:
        """Whether browsers come by https. Otherwise this is a program under development on their own machine."""
        return self.url.startswith("https:")

    @property
    def path(self) -> str:
        """The path of the issuer, without a slash at its end."""
        return urlsplit(self.url).path.rstrip("/")

    @property
    def base(self) -> str:
        """What the addresses of its endpoints begin with."""
        return self.url.rstrip("/")


def canonical(resource: str) -> str:
    """A resource as it is compared: scheme and host in lower case, no slash at the end (MCP, basic/authorization)."""
    parts = urlsplit(resource)
    rest = resource[len(parts.scheme) + len("://") + len(parts.netloc) :]
    return f"{parts.scheme.lower()}://{parts.netloc.lower()}{rest.rstrip('/')}"
