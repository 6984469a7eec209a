"""Names of streams, values and groups as keys of Redis.

A script's keys must be in one slot of a Cluster. Everything of the hub and of the workers shares one; what belongs to
one session has its own, by the session's id, so that sessions spread over the Cluster; the values of sessions that have
one share are in the slot of that share.
"""

import re
from binascii import crc_hqx
from hashlib import sha256
from typing import Final

from millstream._stores.rates import share_of

HUB: Final = "{j0}"
SPREAD: Final = frozenset({"session", "call", "once"})
"""Kinds of names whose second part says in which slot they are."""
SLOTS: Final = 16384
_VALUE: Final = re.compile(r"\{[^{}]+\}:k:(.*)\Z", re.DOTALL)
_SPECIAL: Final = re.compile(r"([*?\[\]\\])")


class Keys:
    """The keys under one prefix."""

    __slots__ = ("_prefix", "generation", "hub", "leases", "repair")

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.hub = f"{prefix}{HUB}:"
        self.generation = f"{self.hub}g"
        self.leases = f"{self.hub}w"
        self.repair = f"{self.hub}r"

    def stream(self, name: str) -> str:
        """The entries of a stream."""
        return f"{self._prefix}{tag_of(name)}:l:{name}"

    def meta(self, name: str) -> str:
        """What is known about a stream: its last offset, and whether it's sealed."""
        return f"{self._prefix}{tag_of(name)}:n:{name}"

    def followers(self, name: str) -> str:
        """The workers that follow a stream outside the hub's slot."""
        return f"{self._prefix}{tag_of(name)}:f:{name}"

    def value(self, name: str) -> str:
        return f"{self._prefix}{tag_of(name)}:k:{name}"

    def values_pattern(self, prefix: str) -> str:
        """A pattern that finds the values whose names start with a text, taken literally; `name_of` gives the names."""
        literal = _SPECIAL.sub(r"\\\1", prefix)
        return f"{self._prefix}{{*}}:k:{literal}*"

    def name_of(self, key: str) -> str | None:
        """The name of a value."""
        found = _VALUE.match(key, len(self._prefix))
        return None if found is None else found[1]

    def group(self, name: str) -> str:
        return f"{self.hub}m:{name}"

    def rate(self, kind: str, name: str) -> str:
        """What was taken of a limit."""
        return f"{self.hub}t:{kind}:{name}"

    def inbox(self, worker: str, run: str) -> str:
        """What others send to a worker. Each run of the server begins a new one: what the last one had of it, the new
        one may lack, and a reader would wait behind that.
        """
        return f"{self.hub}i:{worker}:{run}"

    def places(self, worker: str) -> str:
        """By which a worker's repeated attempts are recognized."""
        return f"{self.hub}d:{worker}"

    def vouched(self, worker: str) -> str:
        """For whom a worker vouches."""
        return f"{self.hub}v:{worker}"

    def share(self, name: str) -> list[str]:
        """What is counted of the share that a value belongs to: its keys by when they end, and their sizes."""
        kind, tag = name.partition(":")[0], tag_of(name)
        return [f"{self._prefix}{tag}:o:{kind}", f"{self._prefix}{tag}:s:{kind}"]

    def order(self, kind: str) -> str:
        """The keys of one kind, by when they were written."""
        return f"{self.hub}o:{kind}"

    def sizes(self, kind: str) -> str:
        """Their sizes."""
        return f"{self.hub}s:{kind}"


def tag_of(name: str) -> str:
    """The part of a key that says which slot it's in."""
    kind, _, rest = name.partition(":")
    if kind not in SPREAD:
        return HUB
    part = share_of(name) or rest.partition(":")[0]
    if not part or "{" in part or "}" in part or part == "j0":
        part = sha256(part.encode()).hexdigest()[:16]
    return f"{{{part}}}"


def in_hub(name: str) -> bool:
    """Whether a stream is in the hub's slot, where every worker reads along."""
    return name.partition(":")[0] not in SPREAD


def slot_text(key: str) -> str:
    """The part of a key that says its slot: what stands in the first braces, or all of it."""
    start = key.find("{")
    if start >= 0:
        end = key.find("}", start + 1)
        if end > start + 1:
            return key[start + 1 : end]
    return key


def slot_of(text: str) -> int:
    """The slot (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/)."""
    return crc_hqx(text.encode(), 0) % SLOTS
