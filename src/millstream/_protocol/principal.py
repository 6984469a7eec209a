"""The caller's identity, and protocols that upper layers implement."""

from collections.abc import Collection
from hashlib import sha256
from math import inf
from typing import Any, Protocol

from msgspec import Struct
from msgspec.structs import force_setattr

EVERYTHING = "*"
"""The scope that includes all others. Only API keys, and users of this server's own pages, can have it; in the tokens
of an issuer it has no special meaning.
"""


class Principal(Struct, frozen=True):
    """An authenticated caller: ``if "admin" in ctx.principal.scopes: …``."""

    subject: str
    """The subject as the issuer names it, or the name of an API key."""
    issuer: str = ""
    """The URL of the issuer; empty for an API key."""
    client: str = ""
    """The OAuth client that acts for the subject, if the credential names one."""
    scopes: frozenset[str] = frozenset()
    claims: dict[str, Any] = {}
    """Other claims of the credential."""
    until: float = inf
    """Expiry in seconds since 1970: a token's ``exp`` plus an allowance for clock skew. Streams opened with the
    credential end then.
    """
    id: str = ""
    """Derived: unique for issuer and subject. Per-caller shares of the server's capacity use it."""
    binding: bytes = b""
    """Derived: a 16-byte hash of issuer, subject, and client. Ownership of sessions and state uses it."""

    def __post_init__(self) -> None:
        """Compute the derived fields once, because a principal is cached with its credential."""
        id = f"{self.issuer} {self.subject}" if self.issuer else self.subject
        parts = [part.encode("utf-8", "surrogatepass") for part in (self.issuer, self.subject, self.client)]
        # Length prefixes separate parts that would otherwise concatenate to the same bytes.
        digest = sha256(b"".join(b"%d:%b" % (len(part), part) for part in parts)).digest()[:16]
        force_setattr(self, "id", id)
        force_setattr(self, "binding", digest)

    def has(self, scopes: Collection[str]) -> bool:
        """Return whether all of these scopes were granted."""
        return EVERYTHING in self.scopes or self.scopes.issuperset(scopes)


class Publisher(Protocol):
    """The hub's interface for tools (``ctx.hub``)."""

    async def publish(self, channel: str, data: Any, *, event: str | None = None, id: str | None = None) -> Any: ...
