"""The catalog of an upstream: a copy of its four lists, which outlives connections and workers.

Pinned definitions protect against upstreams that change a tool after it was accepted. With ``trust = "pin"``, an item
is offered only while it has the accepted definition. A new item that looks like a known one isn't offered either.
`millstream gateway accept` writes accepted definitions to a file for version control. For items that aren't in the
file, the store keeps the digest of the first definition. Changes to the file take effect at the next check.
"""

import logging
import re
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from time import time
from typing import Any

import msgspec
from msgspec import Raw, Struct, structs

from millstream._gateway.names import fold
from millstream._gateway.options.policy import UpstreamPolicy
from millstream._gateway.rules.patterns import uri_key
from millstream._protocol.errors import LocalError
from millstream._protocol.foreign import drop_misfits, drop_nulls, foreign_decoder, present
from millstream._protocol.jsonrpc import decode_members, exceeds_limits
from millstream._protocol.notifications import DiscoverResult, ResourceDescription, TemplateDescription
from millstream.client import ClientError, InvalidResponse, ServerError
from millstream.client.lowlevel import Conversation, RawRequest
from millstream.files import stamp_of, write_private
from millstream.protocol import (
    BY_DATE,
    MALFORMED,
    Json,
    PromptDescription,
    ToolDescription,
    decode_object,
    decoder,
    encode,
    is_array,
    is_object,
    members,
    repair_schema,
)
from millstream.stores import Map, MemoryMap, Store, StoreFull, StoreUnavailable

logger = logging.getLogger("millstream.gateway")

Description = Json
"""One item of a list, with all members that the upstream sent."""

METHODS: Mapping[str, tuple[str, str, str]] = {
    "tools": ("tools/list", "tools", "name"),
    "resources": ("resources/list", "resources", "uri"),
    "templates": ("resources/templates/list", "resourceTemplates", "uriTemplate"),
    "prompts": ("prompts/list", "prompts", "name"),
}
"""Kind -> method, member of the result, and the member that identifies an item."""
_ANNOUNCED = frozenset({"tools", "resources", "prompts", "completions", "logging"})
"""Capabilities that are served here."""
MAX_ITEMS = 10_000
"""Maximum items per list."""
MAX_PAGES = 1000
_MAX_SHOWN = 80
_MAX_TEXT = 1024
"""Maximum size of each member in the server information, in bytes."""
_MAX_ICONS = 64 * 1024
_CONTROL_CHARACTERS = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters that could alter what a terminal or a page shows."""
_TIMESTAMP = re.compile(
    r"[0-9]{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12][0-9]|3[01])T(?:[01][0-9]|2[0-3]):[0-5][0-9](?::[0-5][0-9](?:\.[0-9]+)?)?"
    r"(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
"""A date and time with its offset, which clients require (RFC 3339)."""
_SCHEME = re.compile("[A-Za-z][A-Za-z0-9+.-]*:")
_MAX_OMISSIONS = 5
"""Maximum number of mistakes in an upstream's lists to log."""
MAX_ITEM_BYTES = 256 * 1024
"""Maximum size of an item, in bytes."""
_STORED_SECONDS = 30 * 24 * 3600.0
"""Seconds until a stored copy expires unless a worker renews it."""
_TOLD_SECONDS = 60.0
"""Seconds in which all workers read a change that an upstream announces."""
_MAX_STORED = 64 * 1024 * 1024
"""Maximum size of a stored copy, in bytes, decompressed."""


class _Page(Struct, rename="camel"):
    next_cursor: str | None = None
    ttl_ms: int | None = None
    cache_scope: str | None = None


_decode_page = decoder(_Page)
_decode_items = msgspec.json.Decoder(list[Raw] | None).decode
_SHAPES: Mapping[str, type[Struct]] = {
    "tools": ToolDescription,
    "resources": ResourceDescription,
    "templates": TemplateDescription,
    "prompts": PromptDescription,
}


class Catalog(Struct, kw_only=True):
    """A copy of an upstream's lists."""

    revision: str = ""
    """Revision of the upstream, or empty before the first list."""
    transport: str = ""
    """How the upstream was reached: ``streamable-http``, or ``openapi`` for an API."""
    instructions: str = ""
    server: Json = {}
    """Name, version, title, and other information about the upstream."""
    capabilities: Json = {}
    tools: dict[str, Description] = {}
    """Upstream's name -> description."""
    resources: dict[str, Description] = {}
    templates: dict[str, Description] = {}
    prompts: dict[str, Description] = {}
    hints: dict[str, tuple[int, bool]] = {}
    """Kind, or ``discover`` -> milliseconds until stale, and whether private. Absent without hints."""
    taken_at: float = 0.0
    """Unix time of the copy."""
    asks_by_handshake: bool = False
    """Whether a shared process uses the handshake, because it can't ask questions in the per-request era."""

    @property
    def extensions(self) -> Json:
        """Settings of the extensions that the upstream announces."""
        return members(self.capabilities.get("extensions"))

    @property
    def announced(self) -> Json:
        """The capabilities to announce for the upstream. Until it has responded, all possible ones."""
        if not self.revision:
            return {**{name: {"listChanged": True} for name in ("tools", "resources", "prompts")}, "logging": {}}
        found: Json = {name: members(each) for name, each in self.capabilities.items() if name in _ANNOUNCED}
        if (self.prompts or self.templates) and not BY_DATE[self.revision].completions_capability:
            found["completions"] = {}
        return found

    @property
    def fresh_seconds(self) -> float:
        """Seconds until the first list is stale, or 0 if the upstream doesn't specify it."""
        return min((ttl_ms for ttl_ms, _ in self.hints.values()), default=0) / 1000

    def add_hint(self, kind: str, result: bytes) -> "_Page":
        """Combine the cache hints of one page with earlier pages' hints. Return the page."""
        page = _decode_page(result)
        if page.ttl_ms is not None or page.cache_scope is not None:
            ttl_ms, private = max(0, page.ttl_ms or 0), page.cache_scope != "public"
            before = self.hints.get(kind, (ttl_ms, private))
            self.hints[kind] = min(ttl_ms, before[0]), private or before[1]
        return page

    def items(self) -> Iterator[tuple[str, str, Description]]:
        """Yield kind, upstream's name, and description of each item."""
        for kind in METHODS:
            for name, description in getattr(self, kind).items():
                yield kind, name, description

    def pinned(self) -> Iterator[tuple[str, str, Description]]:
        """Yield kind, upstream's name, and definition of everything that can be pinned."""
        if self.instructions:
            yield *INSTRUCTIONS, {"instructions": self.instructions}
        yield from self.items()


_decode_discover = foreign_decoder(DiscoverResult)
_decode_catalog = decoder(Catalog)


class StoredCatalog:
    """The copy of one upstream's catalog in the store, shared by all workers of a server."""

    _last_hash = b""
    """Hash of the copy that this worker last read or wrote."""

    def __init__(self, store: Store, server: str, name: str, address: str) -> None:
        """Create it without reading anything. See `load`.

        Args:
            store: Store for the copy.
            server: Name of the gateway.
            name: Name of the upstream.
            address: Address of the upstream. Each one has its own copy.
        """
        self._kv = store.kv
        self._key = f"catalog:{sha256(encode([server, name, address])).hexdigest()[:32]}"
        self.shared: bool = store.shared
        """Whether other workers use the same copy."""
        self.time: Callable[[], float] = store.time if store.shared else time
        """Clock for `Catalog.taken_at`, in Unix time."""

    async def load(self) -> Catalog | None:
        """Return the copy, or None if it's missing or unreadable, or the store is unavailable."""
        try:
            raw = await self._kv.get(self._key) or b""
            found = _decode_catalog(zlib.decompressobj().decompress(raw, _MAX_STORED))
        except StoreUnavailable as exc:
            logger.warning("The stored lists of an upstream can't be read: %s", exc)
            return None
        except (zlib.error, *MALFORMED):
            return None  # missing, or written by another version
        if found.revision not in BY_DATE:
            return None
        self._last_hash = _hash_of(found)
        return found

    async def save(self, catalog: Catalog, *, last_at: float) -> None:
        """Write a copy, unless it's stored already.

        Args:
            catalog: Catalog to store.
            last_at: `taken_at` of the catalog before. An old copy is written again before it expires.
        """
        content = _hash_of(catalog)
        if content == self._last_hash and catalog.taken_at - last_at < _STORED_SECONDS / 4:
            return
        try:
            await self._kv.put(self._key, zlib.compress(encode(catalog), 6), _STORED_SECONDS)
            self._last_hash = content
        except (StoreFull, StoreUnavailable) as exc:
            logger.warning("An upstream's lists can't be stored, so new workers have to fetch them: %s", exc)

    async def claim(self, change: str) -> bool:
        """Return whether this worker is the first to log a change."""
        key = f"{self._key}:{sha256(change.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"
        try:
            return await self._kv.compare_and_set(key, None, b"1", _TOLD_SECONDS)
        except (StoreFull, StoreUnavailable):
            return True


def _hash_of(catalog: Catalog) -> bytes:
    return digest_of(structs.replace(catalog, taken_at=0.0))


async def _discover(conversation: Conversation, found: Catalog, discovered: bytes) -> None:
    """Update capabilities and instructions. Open sessions keep the ones from their handshake."""
    try:
        raw = discovered or await conversation.requests.ask(RawRequest(method="server/discover", repeatable=True))
        result = _decode_discover(raw)
        found.add_hint("discover", raw)
    except (ServerError, *MALFORMED) as exc:
        logger.debug("An upstream didn't respond to server/discover: %s", exc)
        return
    found.capabilities, found.instructions = present(result.capabilities), result.instructions


async def fetch(
    conversation: Conversation,
    *,
    max_bytes: int,
    discovered: bytes = b"",
    before: Catalog | None = None,
    announced: Collection[str] = (),
    requires_one: bool = True,
    failures: dict[str, ClientError],
    warn: Callable[[str], None] = logger.warning,
) -> Catalog:
    """Fetch all lists of an upstream. If a list fails, the previous one is kept.

    Args:
        conversation: Connection to the upstream.
        max_bytes: Maximum bytes of all lists together. With 0, only the information about the upstream is fetched.
        discovered: The upstream's result of `server/discover`, if it's new; empty to ask again.
        before: The last catalog.
        announced: Kinds of lists that the upstream said have changed. They're fetched even if it didn't declare them:
            a session keeps the capabilities of its start, when the upstream may have had no items of that kind.
        requires_one: Whether it's an error if every list fails.
        failures: Filled with the kinds of lists that fail, and the reasons.
        warn: Logs the reason why an item is left out.

    Raises:
        ClientError: There was no response, or every required list failed.
    """
    negotiated = conversation.negotiated
    found = Catalog(
        revision=negotiated.revision.date,
        transport=conversation.transport.name,
        instructions=negotiated.instructions,
        server={  # results repeat this member
            name: each
            for name, each in msgspec.to_builtins(negotiated.server).items()
            if len(encode(each)) <= (_MAX_ICONS if name == "icons" else _MAX_TEXT)
            and not (isinstance(each, str) and _CONTROL_CHARACTERS.search(each))
        },
        capabilities=dict(negotiated.capabilities),
    )
    if not negotiated.revision.handshake:
        await _discover(conversation, found, discovered)
    omissions: list[str] = []
    fetched = 0
    for kind, (method, _, _) in METHODS.items():
        capability = negotiated.revision.requests.get(method, "")
        is_declared = capability in found.capabilities
        is_known = capability in announced or (before is not None and bool(getattr(before, kind)))
        if not (max_bytes and capability and (is_declared or is_known)):
            continue
        try:
            max_bytes -= await _fetch_list(conversation, found, kind, max_bytes, omissions)
            fetched += 1
            if not is_declared and getattr(found, kind):
                found.capabilities[capability] = {"listChanged": True}
        except (InvalidResponse, ServerError) as exc:
            if is_declared:  # otherwise, another server may have taken its place
                failures[kind] = exc
                setattr(found, kind, getattr(found if before is None else before, kind))
    if omissions:
        more = len(omissions) - _MAX_OMISSIONS
        shown = "; ".join(omissions[:_MAX_OMISSIONS]) + (f"; and {more:,} more" if more > 0 else "")
        warn(f"Left out of its lists, because some clients would reject the whole list: {shown}")
    if requires_one and failures and not fetched:
        raise next(iter(failures.values()))
    return found


async def _fetch_list(
    conversation: Conversation, found: Catalog, kind: str, max_bytes: int, omissions: list[str]
) -> int:
    """Fetch one list and return its size in bytes. Add the items that are left out to `omissions`."""
    method = METHODS[kind][0]
    items: dict[str, Description] = {}
    cursor: str | None = None
    seen: set[str] = set()
    size = 0
    for _ in range(MAX_PAGES):
        result = await conversation.requests.ask(
            RawRequest(method=method, params=encode({} if cursor is None else {"cursor": cursor}), repeatable=True)
        )
        size += len(result)
        if size > max_bytes:
            raise InvalidResponse(f"The lists are larger than {max_bytes:,} bytes.")
        added, cursor = read_page(found, kind, result, omissions)
        items |= added
        if len(items) > MAX_ITEMS:
            raise InvalidResponse(f"{method} has more than {MAX_ITEMS:,} items.")
        if cursor is None or cursor in seen:  # some servers ignore the cursor, and send their only page again
            setattr(found, kind, items)
            return size
        seen.add(cursor)
    raise InvalidResponse(f"{method} doesn't end: it has more than {MAX_PAGES:,} pages.")


def read_page(
    found: Catalog, kind: str, result: bytes, omissions: list[str]
) -> tuple[dict[str, Description], str | None]:
    """Return the items of one page by name, and the next cursor.

    Add the page's hints to `found`, and the items that are left out to `omissions`.

    Raises:
        InvalidResponse: The result is malformed.
    """
    method, member, key = METHODS[kind]
    items: dict[str, Description] = {}
    try:
        cursor = found.add_hint(kind, result).next_cursor
        raw_items: list[Raw] = _decode_items(decode_members(result).get(member, b"null")) or []
    except MALFORMED as exc:
        raise InvalidResponse(f"The result of {method} is malformed: {exc}.") from exc
    for raw in raw_items:
        try:
            item = _read_item(kind, bytes(raw), found.revision, omissions)
        except MALFORMED as exc:
            omissions.append(f"one of its {kind}, {bytes(raw)[:_MAX_SHOWN]!r}: {exc}")
        else:
            items[item[key]] = item
    return items, cursor


def _read_item(kind: str, raw: bytes, revision: str, omissions: list[str]) -> Description:
    """Return a description without what clients can't decode. A single malformed item makes clients reject the whole
    list.

    Raises:
        ValueError: The item is malformed or too large.
    """
    if len(raw) > MAX_ITEM_BYTES:
        raise ValueError(f"it has more than {MAX_ITEM_BYTES:,} bytes")
    if reason := exceeds_limits(raw):
        raise ValueError(reason)
    found: Description = drop_nulls(decode_object(raw), _SHAPES[kind])
    left_out: list[str] = []
    if kind == "tools":
        _repair_tool(found, revision, left_out)
    try:
        msgspec.convert(found, _SHAPES[kind])
    except msgspec.ValidationError:
        found = drop_misfits(found, _SHAPES[kind], left_out.append)
        msgspec.convert(found, _SHAPES[kind])
    changed = members(found.get("annotations")).get("lastModified")
    if changed is not None and not _TIMESTAMP.fullmatch(changed):
        left_out.append(f"lastModified {changed!r:.{_MAX_SHOWN}}")
        found["annotations"] = {name: each for name, each in found["annotations"].items() if name != "lastModified"}
    name = found[METHODS[kind][2]]
    if _CONTROL_CHARACTERS.search(name):
        raise ValueError("its name has control characters")
    if kind == "resources" and "://" in name and not _SCHEME.match(name):
        raise ValueError("its URI has a malformed scheme")
    if left_out:
        omissions.append(f"{', '.join(left_out[:_MAX_OMISSIONS])} of {name[:_MAX_SHOWN]!r}")
    return found


def _repair_tool(found: Description, revision: str, left_out: list[str]) -> None:
    schema, output = found.pop("inputSchema", None), found.pop("outputSchema", None)
    found["inputSchema"] = schema = repair_schema(_as_object_schema(schema), left_out.append)
    if not is_object(schema) or schema.setdefault("type", "object") != "object":
        raise ValueError("its inputSchema must describe an object")
    if output is not None:
        objects_only = BY_DATE[revision].structured == "object"
        repaired = repair_schema(_as_object_schema(output) if objects_only else output, left_out.append)
        if not is_object(repaired) or (objects_only and repaired.get("type") != "object"):
            left_out.append("outputSchema")
        else:
            found["outputSchema"] = repaired
    execution = found.get("execution")
    if execution is not None and not (
        is_object(execution) and execution.get("taskSupport", "optional") in ("forbidden", "optional", "required")
    ):
        left_out.append("execution")
        del found["execution"]


def _as_object_schema(schema: Any) -> Any:
    """Return a schema for arguments or for object results, with the type that all clients look for."""
    if schema is None:
        return {"type": "object"}
    kinds = schema.get("type", "object") if is_object(schema) else ""
    return {**schema, "type": "object"} if kinds == "object" or (is_array(kinds) and "object" in kinds) else schema


_PIN_SECONDS = 10 * 365 * 24 * 3600.0
"""Seconds that the store keeps a digest."""
_BATCH_SIZE = 500
_MAX_DEFINITION = 16 * 1024
"""Maximum size of a definition that is stored with its digest, in bytes, to show what has changed."""
_DIGEST_LENGTH = 64

AcceptedDefinitions = dict[str, dict[str, Description]]
"""Kind -> upstream's name -> definition."""


INSTRUCTIONS = "server", "instructions"
"""Kind and name of the upstream's instructions, which models follow like tool descriptions."""


class QuarantinedItem(Struct, frozen=True):
    """An item that isn't offered, because its definition differs from the accepted one."""

    kind: str
    name: str
    """Upstream's name or URI."""
    offered: Description
    """Current definition."""
    accepted: Description | None
    """Accepted definition, or None if there's none, or only its digest is known."""


class AcceptedFile:
    """The file of accepted definitions: upstream -> kind -> name -> definition."""

    _stamp: object = None

    def __init__(self, path: str | Path) -> None:
        self.path: Path = Path(path)
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
                raise LocalError(f"The accepted definitions in {self.path} can't be read: {exc}.") from exc
            self._stamp = stamp
        return self._definitions.get(upstream, {})

    def accept(self, upstream: str, kind: str, definitions: Mapping[str, Description | None]) -> None:
        """Write the definitions of some items. None removes an item.

        Raises:
            LocalError, OSError: The file can't be read or written.
        """
        changed = {**self.of(upstream).get(kind, {}), **definitions}
        kept = {name: each for name, each in changed.items() if each is not None}
        self.replace(upstream, {**self.of(upstream), kind: kept})

    def replace(self, upstream: str, definitions: AcceptedDefinitions) -> None:
        """Write all definitions of an upstream.

        Raises:
            LocalError, OSError: The file can't be read or written.
        """
        self.of(upstream)
        self._definitions[upstream] = definitions
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
            ClientError: The store or the file can't be read at the moment.
        """
        items, found = list(catalog.pinned()), list[QuarantinedItem]()
        kept: dict[str, dict[str, Description]] = {kind: {} for kind in (*METHODS, INSTRUCTIONS[0])}
        try:
            accepted = self.file.of(self._upstream) if self.file is not None else {}
            alike = {(kind, _fold(kind, name)) for kind, names in accepted.items() for name in names}
            seen: list[bytes | None] = []
            for start in range(0, len(items), _BATCH_SIZE):
                keys = [self._key(kind, name) for kind, name, _ in items[start : start + _BATCH_SIZE]]
                seen += await self._kv.get_many(keys)
            for (kind, name, definition), first in zip(items, seen, strict=True):
                pinned, digest = accepted.get(kind, {}).get(name), digest_of(definition)
                if pinned is not None:
                    matches = digest_of(pinned) == digest
                elif first is not None:
                    matches, pinned = first.startswith(digest), _read_definition(first)
                else:
                    matches = (
                        self._accepts_new
                        and (kind, _fold(kind, name)) not in alike
                        and await self._pin_first(kind, name, definition)
                    )
                if matches:
                    kept[kind][name] = definition
                else:
                    found.append(QuarantinedItem(kind, name, definition, pinned))
        except LocalError as exc:
            raise ClientError(str(exc)) from exc
        instructions = catalog.instructions if kept.pop(INSTRUCTIONS[0]) else ""
        return structs.replace(catalog, instructions=instructions, **kept), found

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

    def find_accepted(self, catalog: Catalog) -> frozenset[str]:
        """Return the names of a catalog's tools that the operator has accepted, and not only `split`."""
        try:
            accepted = self.file.of(self._upstream).get("tools", {}) if self.file is not None else {}
        except LocalError:
            return frozenset()
        return frozenset(catalog.tools.keys() & accepted.keys())

    def _key(self, kind: str, name: str) -> str:
        """Return the store key, hashed because upstreams choose the names, which may be long."""
        text = f"{self._upstream}\n{kind}\n{name}"
        return f"pin:{sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()}"


def _fold(kind: str, name: str) -> str:
    """Return the part of an item's name or URI that a reader sees."""
    return (uri_key(name, is_listed=True) or name) if kind in ("resources", "templates") else fold(name)


def _read_definition(value: bytes) -> Description | None:
    """Return the definition stored with a digest, or None if it was too large."""
    try:
        return decode_object(value[_DIGEST_LENGTH:])
    except MALFORMED:
        return None


def digest_of(definition: Mapping[str, Any] | Catalog) -> bytes:
    """Return the digest of a definition or catalog, regardless of the order of members."""
    return sha256(msgspec.json.encode(definition, order="sorted")).hexdigest().encode()
