"""Names of streams and values as keys of Redis.

A script's keys must be in one slot of a Cluster. All streams, limits, and most values share one. Values of sessions are
in slots by the session's id, so that sessions spread over the Cluster. Those with one share are in the share's slot.
"""

import re
from hashlib import sha256
from typing import Final

from millstream._stores.rates import share_of

HUB: Final = "{j0}"
SPREAD: Final = frozenset({"session", "once"})
"""Kinds of values whose second part determines the slot."""
_VALUE: Final = re.compile(r"\{[^{}]+\}:k:(.*)\Z", re.DOTALL)
_SPECIAL: Final = re.compile(r"([*?\[\]\\])")


class RedisKeys:
    """The keys under one prefix."""

    __slots__ = ("_prefix", "generation", "hub")

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.hub = f"{prefix}{HUB}:"
        self.generation = f"{self.hub}g"

    def stream(self, name: str) -> str:
        """Return the key of a stream's entries."""
        return f"{self.hub}l:{name}"

    def meta(self, name: str) -> str:
        """Return the key of what is known about a stream: its last offset, and whether it's sealed."""
        return f"{self.hub}n:{name}"

    def value(self, name: str) -> str:
        """Return the key of a value."""
        return f"{self._prefix}{tag_of(name)}:k:{name}"

    def values_pattern(self, prefix: str) -> str:
        """Return a pattern for the values whose names start with a text, taken literally; `name_of` gives the names."""
        literal = _SPECIAL.sub(r"\\\1", prefix)
        return f"{self._prefix}{{*}}:k:{literal}*"

    def name_of(self, key: str) -> str | None:
        """Return the name of a value."""
        found = _VALUE.match(key, len(self._prefix))
        return None if found is None else found[1]

    def rate(self, kind: str, name: str) -> str:
        """Return the key of what was taken of a limit."""
        return f"{self.hub}t:{kind}:{name}"

    def places(self, connection: str) -> str:
        """Return the key by which repeated attempts of a connection are recognized."""
        return f"{self.hub}d:{connection}"

    def poked(self, connection: str) -> str:
        """Return the key of the stream by which a connection ends its own read."""
        return f"{self.hub}p:{connection}"

    def share(self, name: str) -> list[str]:
        """Return the keys of what is counted of a value's share: its keys by when they end, and their sizes."""
        kind, tag = name.partition(":")[0], tag_of(name)
        return [f"{self._prefix}{tag}:o:{kind}", f"{self._prefix}{tag}:s:{kind}"]

    def order(self, kind: str) -> str:
        """Return the key of the keys of one kind, by when they were written."""
        return f"{self.hub}o:{kind}"

    def sizes(self, kind: str) -> str:
        """Return the key of their sizes."""
        return f"{self.hub}s:{kind}"


def tag_of(name: str) -> str:
    """Return the part of a value's key that determines its slot."""
    kind, _, rest = name.partition(":")
    if kind not in SPREAD:
        return HUB
    part = share_of(name) or rest.partition(":")[0]
    if not part or "{" in part or "}" in part or part == "j0":
        part = sha256(part.encode()).hexdigest()[:16]
    return f"{{{part}}}"
