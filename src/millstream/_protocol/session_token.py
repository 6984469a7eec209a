"""The session id of the handshake era: the session itself, sealed into at most 400 characters.

Any worker with the key can read it, so an idle session takes no memory. Data that doesn't fit (unknown capabilities,
log level, subscriptions, a tombstone) is a record in the store under the token's `id`.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Struct

from millstream._protocol.errors import LocalError
from millstream._protocol.json_schema import value_at
from millstream._protocol.principal import Principal
from millstream._protocol.seal import KeyRing

MAX_SESSION_ID = 400
"""Maximum number of characters."""
MAX_CLIENT_TEXT = 32
"""Maximum UTF-8 bytes kept of the client's name, and of its version."""
KIND = b"session"


def _true() -> bool:
    return True


def _app_types() -> list[str]:
    return ["text/html;profile=mcp-app"]


_CAPABILITIES: Final[tuple[tuple[tuple[str, ...], Callable[[], object]], ...]] = (
    # (path, constructor of the value). The index is the bit, and ids survive deployments: append, never reorder.
    (("sampling",), dict),
    (("sampling", "tools"), dict),
    (("sampling", "context"), dict),
    (("elicitation",), dict),
    (("elicitation", "form"), dict),
    (("elicitation", "url"), dict),
    (("roots",), dict),
    (("roots", "listChanged"), _true),
    (("experimental",), dict),
    (("tasks",), dict),
    (("tasks", "list"), dict),
    (("tasks", "cancel"), dict),
    (("tasks", "requests"), dict),
    (("tasks", "requests", "elicitation"), dict),
    (("tasks", "requests", "elicitation", "create"), dict),
    (("tasks", "requests", "sampling"), dict),
    (("tasks", "requests", "sampling", "createMessage"), dict),
    (("extensions",), dict),
    # MCP Apps is the one extension that many hosts declare, and they declare it this way.
    (("extensions", "io.modelcontextprotocol/ui"), dict),
    (("extensions", "io.modelcontextprotocol/ui", "mimeTypes"), _app_types),
)


class SessionToken(Struct, frozen=True, gc=False, array_like=True):
    """The data about a session that any worker can read from its id."""

    id: str
    """128 random bits as 32 hexadecimal digits: the name of the session's record, log, and topics. A prefix before a
    dot can name the owner whose share of record space the session uses.
    """
    revision: str
    capabilities: int
    """Bits from `capability_bits`."""
    client_name: str
    client_version: str
    principal_hash: bytes
    """The result of `hash_principal`. The reader of a token must compare it with the caller's."""
    issued_at: int
    """Unix time in seconds."""
    expires_at: int
    """Unix time in seconds. The session has expired from this second on."""
    epoch: str
    """The `Store.epoch` when the session began."""
    recorded: bool = False
    """Whether the session has had a record from the start. A worker that finds none must not assume that it's empty."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(SessionToken).decode


def encode(token: SessionToken, ring: KeyRing, nonce: bytes) -> str:
    """Return the session id for a token, in visible ASCII. The client's name and version are cut to `MAX_CLIENT_TEXT`
    bytes.

    Args:
        token: The session.
        ring: The keys.
        nonce: 12 bytes that were never used before, see `KeyRing.seal`.

    Raises:
        LocalError: A field set by this server is too long or too large.
    """
    cut = msgspec.structs.replace(token, client_name=_cut(token.client_name), client_version=_cut(token.client_version))
    try:
        text = ring.seal(KIND, _encode(cut), nonce)
    except OverflowError as exc:
        raise LocalError("A number in the session token has more than 64 bits.") from exc
    if len(text) > MAX_SESSION_ID:
        raise LocalError(f"The session id has {len(text)} characters, more than {MAX_SESSION_ID}.")
    return text


def decode(text: str, ring: KeyRing, now: float) -> SessionToken | None:
    """Return the token of a session id, or None if it's foreign, changed, or expired at Unix time `now`."""
    if len(text) > MAX_SESSION_ID:
        return None
    plain = ring.open(KIND, text)
    if plain is None:
        return None
    try:
        token = _decode(plain)
    except msgspec.DecodeError:
        # Sealed by a version with other fields. The client treats it as an unknown session and begins a new one.
        return None
    return token if now < token.expires_at else None


def hash_principal(principal: Principal | None) -> bytes:
    """Return a 16-byte hash of the principal, or empty bytes for an anonymous caller."""
    return b"" if principal is None else principal.binding


def capability_bits(capabilities: dict[str, Any]) -> tuple[int, bool]:
    """Return client capabilities as bits, and whether the bits are complete.

    If they aren't (an unknown capability or extension, or a setting with a value), the caller must store the
    capabilities.
    """
    bits = 0
    for bit, (path, make) in enumerate(_CAPABILITIES):
        if path[0] not in capabilities:
            continue
        found = value_at(capabilities, path)
        if isinstance(found, dict) if make is dict else found == make():
            bits |= 1 << bit
    return bits, capabilities_of(bits) == capabilities


def capabilities_of(bits: int) -> dict[str, Any]:
    """Return the capabilities for bits from `capability_bits`. Bits of later versions are ignored."""
    capabilities: dict[str, Any] = {}
    for bit, (path, make) in enumerate(_CAPABILITIES):
        if bits & 1 << bit:
            inner = capabilities
            for name in path[:-1]:
                inner = inner.setdefault(name, {})
            inner[path[-1]] = make()
    return capabilities


def _cut(text: str) -> str:
    # A lone surrogate has no UTF-8 form and becomes "?".
    data = text.encode("utf-8", "replace")
    return data[:MAX_CLIENT_TEXT].decode("utf-8", "ignore")
