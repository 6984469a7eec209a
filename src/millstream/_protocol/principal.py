"""The caller's identity, protocols that upper layers implement, and fair shares of resources.

A `Share` bounds a table, a queue, or a number of bytes, so that no owner can use all of it.
"""

import re
import sys
import unicodedata
from collections.abc import Collection
from hashlib import sha256
from math import inf
from typing import Any

from msgspec import Struct
from msgspec.structs import force_setattr

from millstream._protocol.compose import UNSEEN, compose
from millstream._protocol.json_schema import is_array

EVERYTHING = "*"
"""The scope that includes all others. API keys, users of this server's own pages, and callers that a program's own
`AuthMethod` identifies can have it. In the tokens of an issuer it has no special meaning.
"""


class Principal(Struct, frozen=True):
    """An authenticated caller: ``if "admin" in ctx.principal.scopes: …``."""

    subject: str
    """The subject as the issuer specifies it, or the name of an API key."""
    issuer: str = ""
    """The URL of the issuer, or empty for an API key."""
    client: str = ""
    """The OAuth client that acts for the subject, if the credential names one."""
    scopes: frozenset[str] = frozenset()
    claims: dict[str, Any] = {}
    """The credential's claims."""
    expires_at: float = inf
    """Expiry in seconds since 1970: a token's ``exp`` plus an allowance for clock skew. Streams opened with the
    credential end then.
    """
    id: str = ""
    """Derived: unique for issuer and subject, and different for a machine and a person with the same name. Per-caller
    shares of the server's capacity use it.
    """
    binding: bytes = b""
    """Derived: a 16-byte hash of issuer, subject, and client. Ownership of sessions and state uses it."""

    def __post_init__(self) -> None:
        """Compute the derived fields once, because a principal is cached with its credential."""
        # A machine's token has its client id as the subject (RFC 9068 §5), and a user may have the same name. An issuer
        # has no fragment.
        issuer = f"{self.issuer}#client" if self.issuer and self.client == self.subject else self.issuer
        id = f"{issuer} {self.subject}" if issuer else self.subject
        parts = [part.encode("utf-8", "surrogatepass") for part in (self.issuer, self.subject, self.client)]
        # Length prefixes separate parts that would otherwise concatenate to the same bytes.
        digest = sha256(b"".join(b"%d:%b" % (len(part), part) for part in parts)).digest()[:16]
        force_setattr(self, "id", id)
        force_setattr(self, "binding", digest)

    def has(self, scopes: Collection[str]) -> bool:
        """Return whether all of these scopes were granted: ``ctx.principal.has(["orders:write"])``.

        Args:
            scopes: Names of scopes. An empty collection is always granted.
        """
        return EVERYTHING in self.scopes or self.scopes.issuperset(scopes)

    def in_group(self, groups: Collection[str]) -> bool:
        """Return whether the claim `groups` has one of these: ``ctx.principal.in_group(["staff"])``.

        Args:
            groups: Names of groups.
        """
        claim = self.claims.get("groups")
        return any(isinstance(each, str) and each in groups for each in (claim if is_array(claim) else (claim,)))


IDENTITIES = "millstream:identities"
"""The scope for readers who can see the subjects and e-mail addresses of others."""
SHARED_KEY = "key"
"""The subject for keys that weren't given a name. Several people can use such a key, so it identifies none of them."""
_MAX_NAME = 80
_UNSEEN = re.compile(f"{UNSEEN}|(?<=[\u0300-\u036f]{{2}})[\u0300-\u036f]")
"""Characters that make different names look the same: invisible ones, and stacked accents."""


_LOOKALIKES = frozenset(("LATIN", "CYRILLIC", "GREEK", "COPTIC", "ARMENIAN", "CHEROKEE", "LISU"))
"""Scripts with letters of the same shape."""


class Profile(Struct, frozen=True, omit_defaults=True, gc=False):
    """A caller's identity, as shown to others: ``if event.user: print(event.user.name)``. Taken from the credential."""

    name: str = ""
    """The display name, or empty if the credential has none that every reader can see."""
    subject: str = ""
    """`Principal.subject`. Like `issuer` and `email`, only for the program, and for readers with the scope
    ``millstream:identities``.
    """
    issuer: str = ""
    email: str = ""


def knows_identities(reader: Principal | None) -> bool:
    """Return whether a reader can see the subjects and e-mail addresses of others. It's None without sign-in."""
    return reader is not None and reader.has((IDENTITIES,))


def visible_part(user: Profile | None, full: bool) -> Profile | None:
    """Return the members of a user that a reader can see. `full` is the result of `knows_identities`."""
    return user if full or user is None else Profile(user.name)


def get_profile(principal: Principal, name_claims: Collection[str]) -> Profile:
    """Return the profile of a caller.

    An e-mail address is never used as the display name, even if a name claim has one.

    Args:
        principal: The caller.
        name_claims: Claims that can have the display name, in order of preference. If none has it, the name of the API
            key is used. Without claims, no caller has a display name.
    """
    claims, issuer, subject = principal.claims, principal.issuer, principal.subject
    own = () if issuer or subject == SHARED_KEY or not name_claims else (subject,)
    names = (_clean(each) for each in (*map(claims.get, name_claims), *own))
    email = _clean(claims.get("email"))
    # Some issuers send `email_verified` as text. An address that was cleaned could be that of another person.
    if email != claims.get("email") or claims.get("email_verified", True) not in (True, "true"):
        email = ""
    name = next((each for each in names if each and "@" not in each and not _mixes_scripts(each)), "")
    return Profile(name, subject, issuer, email)


def _mixes_scripts(name: str) -> bool:
    """Return whether a word of a name has letters of two similar scripts (UTS 39)."""
    return any(
        len({unicodedata.name(each, "").partition(" ")[0] for each in word if each.isalpha()} & _LOOKALIKES) > 1
        for word in name.split()
    )


def _clean(text: object) -> str:
    """Return a claim as one line without control and invisible characters, or an empty string if it isn't text."""
    if not isinstance(text, str):
        return ""
    text = compose("NFKC", text[: 2 * _MAX_NAME])
    shown = "".join(each if each.isprintable() else " " for each in _UNSEEN.sub("", text))
    return " ".join(shown.split())[:_MAX_NAME]


class Share:
    """Counts each owner's use of a bounded resource, and rejects use beyond the owner's share.

    An owner is a principal; without sign-in, an address; or a session. A share evicts nothing itself. In
    the error, say what is full, how much the owner holds (`count`), and when to try again. The empty owner is the
    server itself, or a caller that has the server to itself: it can hold everything. A share counts for one process.

    Args:
        maximum: Total that all owners can hold, in entries or bytes. By default, there's no limit for it.
        each: Maximum for one owner. By default, half of `maximum`.

    Example:
        >>> watches = Share(1_000)
        >>> if not watches.take(call.owner):
        ...     raise ToolError(f"You follow {watches.count(call.owner)} resources. Unsubscribe from one first.")
    """

    def __init__(self, maximum: int = sys.maxsize, *, each: int | None = None) -> None:
        self.maximum: int = maximum
        self.each: int = max(1, maximum // 2) if each is None else each
        self.used: int = 0
        """The total that all owners hold."""
        self._held: dict[str, int] = {}

    def fit(self, largest: int) -> None:
        """Grow, if needed, so two owners can take this amount at once.

        Args:
            largest: The largest amount that one owner takes at once.
        """
        self.maximum = max(self.maximum, 2 * largest)
        self.each = max(self.each, self.maximum // 2)

    def count(self, owner: str) -> int:
        """Return the amount an owner holds.

        Args:
            owner: The owner.
        """
        return self._held.get(owner, 0)

    def counts(self) -> dict[str, int]:
        """Return the amounts that owners hold, without those that hold nothing."""
        return dict(self._held)

    def has_room(self, owner: str, amount: int = 1) -> bool:
        """Return whether `take` would succeed.

        Args:
            owner: The owner.
            amount: Number of entries, or of bytes.
        """
        within = not owner or self._held.get(owner, 0) + amount <= self.each
        return within and self.used + amount <= self.maximum

    def take(self, owner: str, amount: int = 1) -> bool:
        """Add to an owner's amount. Return False, and add nothing, if it would exceed the share or the maximum.

        Args:
            owner: The owner.
            amount: Number of entries, or of bytes.
        """
        if not self.has_room(owner, amount):
            return False
        if amount:
            self._held[owner] = self._held.get(owner, 0) + amount
            self.used += amount
        return True

    def resize(self, maximum: int) -> None:
        """Change the maximum, also for one owner.

        Args:
            maximum: Total that all owners can hold, and each of them.
        """
        self.maximum, self.each = maximum, maximum

    def force(self, owner: str) -> None:
        """Add one to an owner's amount, even beyond the share.

        Args:
            owner: The owner.
        """
        self._held[owner] = self._held.get(owner, 0) + 1
        self.used += 1

    def leave(self, owner: str, amount: int = 1) -> None:
        """Give back an amount that was taken.

        Args:
            owner: The owner.
            amount: Number of entries, or of bytes.
        """
        self.used -= amount
        held = self._held.get(owner, 0) - amount
        if held:
            self._held[owner] = held
        else:
            self._held.pop(owner, None)
