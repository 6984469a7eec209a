"""The session id of the handshake era: the session itself, sealed into at most 400 characters.

Any worker with the key reads it, so a session that opens nothing takes no memory anywhere. What does not fit here
(unknown capabilities, log level, subscriptions, a tombstone) is a record in the store, under the token's `id`.
"""

from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec import Struct

from millstream._protocol.errors import LocalError
from millstream._protocol.json_schema import value_at
from millstream._protocol.principal import Principal
from millstream._protocol.seal import KeyRing

MAX_SESSION_ID: Final = 400
"""Characters."""
MAX_CLIENT_TEXT: Final = 32
"""Bytes of UTF-8 that are kept of the client's name, and of its version."""
KIND: Final = b"session"


def _true() -> bool:
    return True


def _app_types() -> list[str]:
    return ["text/html;profile=mcp-app"]


_CAPABILITIES: Final[tuple[tuple[tuple[str, ...], Callable[[], object]], ...]] = (
    # (path, makes the value there). The index is the bit, and sealed ids outlive a deploy: append, never reorder.
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
    # MCP Apps, the one extension that many hosts declare, in the one way they do.
    (("extensions", "io.modelcontextprotocol/ui"), dict),
    (("extensions", "io.modelcontextprotocol/ui", "mimeTypes"), _app_types),
)


class SessionToken(Struct, frozen=True, gc=False, array_like=True):
    """The facts about a session that every worker reads from its id alone."""

    id: str
    """128 random bits as 32 hexadecimal digits: the name of the session's record, log and topics. Before them, and a
    dot, may stand whose share of the room for records it takes."""
    revision: str
    capabilities: int
    """Bits as `capability_bits` gives them."""
    client_name: str
    client_version: str
    principal_hash: bytes
    """As `hash_principal` gives it. Whoever decodes a token compares it with the caller's."""
    issued_at: int
    """Unix time in seconds."""
    expires_at: int
    """Unix time in seconds; the session is over from this second on."""
    epoch: str
    """`Store.epoch` when the session began."""
    recorded: bool = False
    """The session had a record from its beginning, so no worker takes it for one without."""


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(SessionToken).decode


def encode(token: SessionToken, ring: KeyRing, nonce: bytes) -> str:
    """The session id for a token: visible ASCII. The client's name and version are cut to `MAX_CLIENT_TEXT` bytes.

    Args:
        token: the session.
        ring: the keys.
        nonce: 12 bytes never used before, see `KeyRing.seal`.

    Raises:
        LocalError: a field that is ours to choose is too long or too large.
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
    """The token of a session id; None when it is not ours, was changed, or has expired at Unix time `now`."""
    if len(text) > MAX_SESSION_ID:
        return None
    plain = ring.open(KIND, text)
    if plain is None:
        return None
    try:
        token = _decode(plain)
    except msgspec.DecodeError:
        # Sealed with our key by a version with other fields: for the client an unknown session, so it begins a new one.
        return None
    return token if now < token.expires_at else None


def hash_principal(principal: Principal | None) -> bytes:
    """16 bytes that stand for the principal; empty for an anonymous caller."""
    return b"" if principal is None else principal.bound


def capability_bits(capabilities: dict[str, Any]) -> tuple[int, bool]:
    """Client capabilities as bits, and whether the bits say all of it.

    Where they do not (an unknown capability or extension, a setting with a value), the caller stores the capabilities.
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
    """The capabilities that `capability_bits` turned into these bits. Bits of a later version are passed over."""
    capabilities: dict[str, Any] = {}
    for bit, (path, make) in enumerate(_CAPABILITIES):
        if bits & 1 << bit:
            inner = capabilities
            for name in path[:-1]:
                inner = inner.setdefault(name, {})
            inner[path[-1]] = make()
    return capabilities


def _cut(text: str) -> str:
    # Not every str has a UTF-8 form: a lone surrogate becomes "?".
    data = text.encode("utf-8", "replace")
    return data[:MAX_CLIENT_TEXT].decode("utf-8", "ignore")
