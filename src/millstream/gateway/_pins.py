"""Pinned definitions, which protect against upstreams that change a tool after it was accepted.

With ``trust = "pin"``, an item is offered only while its definition is the accepted one. A new item that looks like a
known one isn't offered, either. `millstream gateway accept` writes accepted definitions to a file for version control.
For items that aren't in it, the store keeps the digest of the first definition. Changes to the file take effect at the
next check.
"""

from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
from msgspec import Struct

from millstream._files import stamp_of, write_private
from millstream._protocol.errors import LocalError
from millstream._stores.memory.store import MemoryMap
from millstream.client import ClientError
from millstream.gateway._catalog import METHODS, Catalog, Description
from millstream.gateway._names import fold
from millstream.gateway._policy import UpstreamPolicy, canonical_uri
from millstream.protocol import MALFORMED, decoder
from millstream.stores import Map, StoreFull

_PIN_SECONDS = 10 * 365 * 24 * 3600.0
"""Seconds that the store keeps a digest."""
_BATCH_SIZE = 500
_MAX_DEFINITION = 16 * 1024
"""Maximum bytes of a definition that is stored with its digest, to show what has changed."""
_DIGEST_LENGTH = 64

AcceptedDefinitions = dict[str, dict[str, Description]]
"""Kind -> upstream's name -> definition."""


INSTRUCTIONS = "server", "instructions"
"""Kind and name of the upstream's instructions, which models follow like tool descriptions."""


class PinsUnavailable(ClientError):
    """The accepted definitions can't be read at the moment."""


class QuarantinedItem(Struct, frozen=True):
    """An item that isn't offered, because its definition isn't the accepted one."""

    kind: str
    name: str
    """Upstream's name or URI."""
    offered: Description
    """Current definition."""
    accepted: Description | None
    """Accepted definition; None if there's none, or only its digest is known."""


def pinned_items(catalog: Catalog) -> Iterator[tuple[str, str, Description]]:
    """Yield kind, upstream's name, and definition of everything that can be pinned."""
    if catalog.instructions:
        yield *INSTRUCTIONS, {"instructions": catalog.instructions}
    yield from catalog.items()


class AcceptedFile:
    """The file of accepted definitions: upstream -> kind -> name -> definition."""

    def __init__(self, path: str | Path) -> None:
        self.path: Path = Path(path)
        self._stamp: object = None
        self._definitions: dict[str, AcceptedDefinitions] = {}

    def of(self, upstream: str) -> AcceptedDefinitions:
        """Return the accepted definitions of an upstream.

        Raises:
            LocalError: The file is malformed or can't be read.
        """
        stamp = stamp_of(self.path)
        if stamp != self._stamp:
            try:
                data = self.path.read_bytes() if stamp is not None else b"{}"
                self._definitions = msgspec.json.decode(data, type=dict[str, AcceptedDefinitions])
            except (OSError, *MALFORMED) as exc:
                raise LocalError(f"The accepted definitions in {self.path} can't be read: {exc}") from exc
            self._stamp = stamp
        return self._definitions.get(upstream, {})

    def accept(self, upstream: str, kind: str, definitions: Mapping[str, Description | None]) -> None:
        """Write the definitions of some items; None removes one.

        Raises:
            LocalError, OSError: The file can't be read or written.
        """
        self.of(upstream)
        accepted = self._definitions.setdefault(upstream, {}).setdefault(kind, {})
        for name, definition in definitions.items():
            if definition is None:
                accepted.pop(name, None)
            else:
                accepted[name] = definition
        text = msgspec.json.format(msgspec.json.encode(self._definitions, order="sorted"), indent=2) + b"\n"
        write_private(self.path, text)
        self._stamp = stamp_of(self.path)


class Pins:
    """Checks the definitions of one upstream.

    Args:
        upstream: Name of the upstream.
        policy: Policy with the file of accepted definitions, and the handling of new ones.
        kv: Key-value store.
    """

    def __init__(self, upstream: str, policy: UpstreamPolicy, kv: Map) -> None:
        self._upstream = upstream
        self._accepts_new = policy.new_items == "accept"
        self._kv = kv
        self.file: AcceptedFile | None = AcceptedFile(policy.pins) if policy.pins else None

    @property
    def is_volatile(self) -> bool:
        """Whether the accepted first definitions are lost when this process ends."""
        lasts = not isinstance(self._kv, MemoryMap) or (self.file is not None and stamp_of(self.file.path) is not None)
        return self._accepts_new and not lasts

    async def split(self, catalog: Catalog) -> tuple[Catalog, list[QuarantinedItem]]:
        """Split a catalog into accepted items and quarantined ones.

        Raises:
            PinsUnavailable: The store or the file can't be read.
        """
        try:
            accepted = self.file.of(self._upstream) if self.file is not None else {}
            seen = await self._read_pins([(kind, name) for kind, name, _ in pinned_items(catalog)])
            alike = {(kind, _fold(kind, name)) for kind, names in accepted.items() for name in names}
            found: list[QuarantinedItem] = []
            for kind, name, definition in pinned_items(catalog):
                pinned, digest = accepted.get(kind, {}).get(name), digest_of(definition)
                if pinned is not None:
                    matches = digest_of(pinned) == digest
                elif (first := seen.get((kind, name))) is not None:
                    matches, pinned = first.startswith(digest), _read_definition(first)
                else:
                    matches = (
                        self._accepts_new
                        and (kind, _fold(kind, name)) not in alike
                        and await self._pin_first(kind, name, definition)
                    )
                if not matches:
                    found.append(QuarantinedItem(kind, name, definition, pinned))
        except LocalError as exc:
            raise PinsUnavailable(str(exc)) from exc
        if not found:
            return catalog, found
        quarantined = {(each.kind, each.name) for each in found}
        lists = {
            kind: {name: each for name, each in getattr(catalog, kind).items() if (kind, name) not in quarantined}
            for kind in METHODS
        }
        instructions = "" if INSTRUCTIONS in quarantined else catalog.instructions
        return msgspec.structs.replace(catalog, instructions=instructions, **lists), found

    async def _read_pins(self, items: list[tuple[str, str]]) -> dict[tuple[str, str], bytes]:
        found: dict[tuple[str, str], bytes] = {}
        for start in range(0, len(items), _BATCH_SIZE):
            batch = items[start : start + _BATCH_SIZE]
            values = await self._kv.get_many([self._key(kind, name) for kind, name in batch])
            found |= {item: value for item, value in zip(batch, values, strict=True) if value is not None}
        return found

    async def _pin_first(self, kind: str, name: str, definition: Description) -> bool:
        """Accept the first definition of an item.

        Return False if another worker has just accepted a different one, or if its name looks like that of another
        item, even one that is no longer listed.
        """
        folded, own = self._key(f"{kind} alike", _fold(kind, name)), name.encode("utf-8", "surrogatepass")
        if not await self._kv.compare_and_set(folded, None, own, _PIN_SECONDS) and await self._kv.get(folded) != own:
            return False
        key, digest = self._key(kind, name), digest_of(definition)
        text = msgspec.json.encode(definition)
        try:
            won = await self._kv.compare_and_set(key, None, digest + text[:_MAX_DEFINITION], _PIN_SECONDS)
        except StoreFull:  # the digest is enough to compare
            won = await self._kv.compare_and_set(key, None, digest, _PIN_SECONDS)
        return won or (await self._kv.get(key) or b"").startswith(digest)

    def _key(self, kind: str, name: str) -> str:
        """Return the store key, hashed because upstreams choose the names, which may be long."""
        text = f"{self._upstream}\n{kind}\n{name}"
        return f"pin:{sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"


def _fold(kind: str, name: str) -> str:
    """Return the part of an item's name or URI that a reader sees."""
    return canonical_uri(name) if kind in ("resources", "templates") else fold(name)


def _read_definition(value: bytes) -> Description | None:
    """Return the definition stored with a digest; None if it was too large."""
    try:
        return _decode_definition(value[_DIGEST_LENGTH:])
    except MALFORMED:
        return None


_decode_definition = decoder(Description)


def digest_of(definition: Mapping[str, Any]) -> bytes:
    """Return the digest of a definition, independent of the order of its members."""
    return sha256(msgspec.json.encode(definition, order="sorted")).hexdigest().encode()
