"""The caller's identity, and the small seams that upper layers fill in."""

from collections.abc import Collection
from hashlib import sha256
from math import inf
from typing import Any, Protocol

from msgspec import Struct
from msgspec.structs import force_setattr

EVERYTHING = "*"
"""A scope that includes all others. Only keys can have it, and people of this server at its own pages: what an issuer
calls its scopes is its own affair."""


class Principal(Struct, frozen=True):
    """An authenticated caller: ``if "admin" in ctx.principal.scopes: …``."""

    subject: str
    """Who it is, as the issuer names them; the name of an API key."""
    issuer: str = ""
    """Who vouches for that: a URL; empty for an API key."""
    client: str = ""
    """The program that acts for the subject, where the credential names one."""
    scopes: frozenset[str] = frozenset()
    claims: dict[str, Any] = {}
    """What else the credential says."""
    until: float = inf
    """When the credential ends, in seconds since 1970, as this server has it: a token's ``exp`` and an allowance for
    clocks that differ. Streams that were opened with it end then."""
    id: str = ""
    """Follows from the others: unique for issuer and subject together. Shares of the server's capacity go by it."""
    bound: bytes = b""
    """Follows from the others: 16 bytes that stand for issuer, subject and client. What a caller owns goes by it."""

    def __post_init__(self) -> None:
        """Work out what follows, once: a principal is kept with its credential and seen by every request."""
        id = f"{self.issuer} {self.subject}" if self.issuer else self.subject
        parts = [part.encode("utf-8", "surrogatepass") for part in (self.issuer, self.subject, self.client)]
        # Lengths in front keep apart what different parts would spell alike.
        digest = sha256(b"".join(b"%d:%b" % (len(part), part) for part in parts)).digest()[:16]
        force_setattr(self, "id", id)
        force_setattr(self, "bound", digest)

    def has(self, scopes: Collection[str]) -> bool:
        """Whether all of these scopes were granted."""
        return EVERYTHING in self.scopes or self.scopes.issuperset(scopes)


class Publisher(Protocol):
    """The hub as tools see it (``ctx.hub``)."""

    async def publish(self, channel: str, data: Any, *, event: str | None = None, id: str | None = None) -> Any: ...
