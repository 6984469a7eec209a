"""Redis keys for streams, values, and limits, and the scripts that use them.

In a Cluster, all keys of a script must be in one slot. All streams, limits, and most values share one slot. The slot of
session values depends on the session's id, so sessions spread over the Cluster. The values of a share are in one slot.

The scripts are files of this package. Redis runs each one atomically. Values are passed as arguments, never inserted
into the text.
"""

import re
from functools import cache
from hashlib import sha1, sha256
from pathlib import Path
from typing import NamedTuple

from millstream._stores.rates import owner_for

HUB = "{j0}"
SPREAD = frozenset({"session", "once"})
"""Kinds of values whose second part determines the slot."""
_VALUE = re.compile(r"\{[^{}]+\}:k:(.*)\Z", re.DOTALL)
_SPECIAL = re.compile(r"([*?\[\]\\])")


class RedisKeys:
    """The keys under one prefix."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.hub = f"{prefix}{HUB}:"
        self.generation = f"{self.hub}g"

    def stream(self, name: str) -> list[str]:
        """Return the keys of a stream: its entries, and its metadata (its last offset, and whether it's sealed)."""
        return [f"{self.hub}l:{name}", f"{self.hub}n:{name}"]

    def value(self, name: str) -> str:
        """Return the key of a value."""
        return f"{self._prefix}{tag_of(name)}:k:{name}"

    def values_pattern(self, prefix: str) -> str:
        """Return a pattern that matches values by a literal prefix. `name_of` converts the matches to names."""
        literal = _SPECIAL.sub(r"\\\1", prefix)
        return f"{self._prefix}{{*}}:k:{literal}*"

    def name_of(self, key: str) -> str | None:
        """Return the name of a value."""
        found = _VALUE.match(key, len(self._prefix))
        return None if found is None else found[1]

    def rate(self, kind: str, name: str) -> str:
        """Return the key of a limit's state."""
        return f"{self.hub}t:{kind}:{name}"

    def places(self, connection: str) -> str:
        """Return the key that identifies retries of a connection's commands."""
        return f"{self.hub}d:{connection}"

    def channel(self, name: str) -> str:
        """Return the channel of a stream, or of its topic (`channel_for`)."""
        return f"{self.hub}c:{name}"

    def mark_channel(self, connection: str) -> str:
        """Return the channel on which a connection receives its own marks."""
        return f"{self.hub}p:{connection}"

    def share(self, name: str) -> list[str]:
        """Return the keys of a share's accounting: its values in order, and their sizes."""
        kind, tag = name.partition(":")[0], tag_of(name)
        part = f"{kind}.{owner_for(name)}"
        return [f"{self._prefix}{tag}:o:{part}", f"{self._prefix}{tag}:s:{part}"]

    def rooms(self, stream: str) -> list[str]:
        """Return the keys that count the size of a stream's kind, and of the owner's share if the stream has an
        owner."""
        kind = f"log.{stream.partition(':')[0]}"
        wide = [self.order(kind), self.sizes(kind)]
        return (self.share(stream) if owner_for(stream) else wide) + wide

    def once(self, stream: str, text: str) -> str:
        """Return the key of a string that entries of a stream must not repeat."""
        return f"{self.hub}i:{stream}:{sha256(text.encode()).hexdigest()[:32]}"

    def order(self, kind: str) -> str:
        """Return the key of a kind's lossy values or indexes, ordered by write time."""
        return f"{self.hub}o:{kind}"

    def sizes(self, kind: str) -> str:
        """Return the key that counts the sizes of a kind's values."""
        return f"{self.hub}s:{kind}"


def tag_of(name: str) -> str:
    """Return the part of a value's key that determines its slot."""
    kind, _, rest = name.partition(":")
    if kind not in SPREAD:
        return HUB
    part = owner_for(name) or rest.partition(":")[0]
    if not part or "{" in part or "}" in part or part == "j0":
        part = sha256(part.encode()).hexdigest()[:16]
    return f"{{{part}}}"


_FOLDER = Path(__file__).parent / "lua"


class Script(NamedTuple):
    """A script and its SHA-1 digest, by which Redis caches it."""

    text: bytes
    digest: str


@cache
def script(name: str) -> Script:
    """Return the script in the file of this name."""
    text = (_FOLDER / "shared.lua").read_bytes() + (_FOLDER / f"{name}.lua").read_bytes()
    return Script(text, sha1(text, usedforsecurity=False).hexdigest())
