"""Sealed text, and the session id of the handshake era: the session itself, sealed into at most 400 characters.

Any worker with the key can read a session id, so an idle session takes no memory. Data that doesn't fit (unknown
capabilities, log level, subscriptions, a tombstone) is a record in the store under the token's `id`. The nonce is an
argument: this module generates no random bytes.
"""

from binascii import a2b_base64, b2a_base64
from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Struct

from millstream._protocol.errors import LocalError
from millstream._protocol.json_schema import value_at
from millstream._protocol.principal import Principal

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM


MAX_TOKEN = 1024 * 1024
"""Maximum number of characters. A longer text isn't decoded."""
NONCE_BYTES = 12

_NUMBER_BYTES = 4
_KEY_BYTES = 32
_HEAD_BYTES = _NUMBER_BYTES + NONCE_BYTES
_TAG_BYTES = 16
_LABEL = b"millstream seal v1"
"""Context of the key derivation and version of the format. Another label gives other keys and key numbers."""

_TO_URL = bytes.maketrans(b"+/", b"-_")
# The standard alphabet's "+", "/", and "=" become "!", which the strict decoder refuses.
_FROM_URL = bytes.maketrans(b"-_+/=", b"+/!!!")
# RFC 4648 §3.5: unused bits of the last character must be zero. Indexed by length modulo 4; 1 isn't a valid length.
_LAST = (
    frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"),
    frozenset[str](),
    frozenset("AQgw"),
    frozenset("AEIMQUYcgkosw048"),
)
_PADDING = (b"", b"", b"==", b"=")


class KeyRing:
    """Sealing keys, derived from secrets. The first seals, and all of them open.

    Only the holder of a key can create, read, or change an AES-256-GCM token. A token is unpadded base64url of key
    number (4 bytes), nonce (12), ciphertext, and tag (16). Only the canonical base64 text opens, so each token has one
    spelling. NIST SP 800-38D allows 2**32 random nonces per key.

    The key number is derived from the secret, so secrets can be added, removed, and reordered.

    Raises:
        ValueError: There are no secrets.
    """

    def __init__(self, secrets: Sequence[bytes]) -> None:
        if not secrets:
            raise ValueError("A key ring needs at least one secret.")
        self._secrets = tuple(secrets)
        self._ciphers: dict[bytes, AESGCM] = {}
        self._first = b""
        self._invalid_tag: type[Exception] = ValueError

    def seal(self, kind: bytes, plain: bytes, nonce: bytes, bound: bytes = b"") -> str:
        """Encrypt `plain` for `open` with the same `kind` and `bound`.

        Args:
            kind: The purpose of the token. A token of one kind doesn't open as another.
            plain: The content.
            nonce: 12 bytes that were never used with this ring.
            bound: Data that the token is bound to, such as an owner or a name. It isn't part of the token.

        Raises:
            LocalError: The token would be too long to open again.
            ValueError: The nonce doesn't have 12 bytes.
        """
        if len(nonce) != NONCE_BYTES:
            raise ValueError(f"The nonce must have {NONCE_BYTES} bytes.")
        if (_HEAD_BYTES + len(plain) + _TAG_BYTES) * 4 > MAX_TOKEN * 3:
            raise LocalError(f"The content of {len(plain)} bytes is too long to seal.")
        ciphers = self._ciphers or self._load()
        number = self._first
        sealed = number + nonce + ciphers[number].encrypt(nonce, plain, _associated_data(kind, bound))
        return b2a_base64(sealed, newline=False).translate(_TO_URL).rstrip(b"=").decode("ascii")

    def open(self, kind: bytes, token: str, bound: bytes = b"") -> bytes | None:
        """Return the content that this ring sealed for `kind` and `bound`, or None for any other text."""
        length = len(token)
        if not 0 < length <= MAX_TOKEN or token[-1] not in _LAST[length & 3]:
            return None
        try:
            data = a2b_base64(token.encode("ascii").translate(_FROM_URL) + _PADDING[length & 3], strict_mode=True)
        except ValueError:
            return None
        cipher = (self._ciphers or self._load()).get(data[:_NUMBER_BYTES])
        # The cipher raises different errors for a short nonce, a missing tag, and a wrong tag.
        if cipher is None or len(data) < _HEAD_BYTES + _TAG_BYTES:
            return None
        try:
            return cipher.decrypt(data[_NUMBER_BYTES:_HEAD_BYTES], data[_HEAD_BYTES:], _associated_data(kind, bound))
        except self._invalid_tag:
            return None

    def _load(self) -> "dict[bytes, AESGCM]":
        # Imported here because cryptography takes 30 ms and 9 MiB, and most stdio servers never seal anything.
        from cryptography.exceptions import InvalidTag  # noqa: PLC0415
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415
        from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF  # noqa: PLC0415

        ciphers: dict[bytes, AESGCM] = {}
        for secret in self._secrets:
            derived = HKDF(SHA256(), _NUMBER_BYTES + _KEY_BYTES, salt=None, info=_LABEL).derive(secret)
            ciphers.setdefault(derived[:_NUMBER_BYTES], AESGCM(derived[_NUMBER_BYTES:]))
        self._invalid_tag = InvalidTag
        self._first = next(iter(ciphers))
        self._ciphers = ciphers
        return ciphers


def _associated_data(kind: bytes, bound: bytes) -> bytes:
    # The length prefix separates kind from bound.
    return b"%d:%b%b" % (len(kind), kind, bound)


MAX_SESSION_ID = 400
"""Maximum number of characters."""
MAX_CLIENT_TEXT = 32
"""Maximum UTF-8 bytes kept of the client's name, and of its version."""
KIND = b"session"


_CAPABILITIES: Mapping[str, object] = {
    # The position is the bit, and ids survive deployments: append, never reorder.
    "sampling": {},
    "sampling tools": {},
    "sampling context": {},
    "elicitation": {},
    "elicitation form": {},
    "elicitation url": {},
    "roots": {},
    "roots listChanged": True,
    "experimental": {},
    "tasks": {},
    "tasks list": {},
    "tasks cancel": {},
    "tasks requests": {},
    "tasks requests elicitation": {},
    "tasks requests elicitation create": {},
    "tasks requests sampling": {},
    "tasks requests sampling createMessage": {},
    "extensions": {},
    # MCP Apps is the one extension that many hosts declare, and they declare it this way.
    "extensions io.modelcontextprotocol/ui": {},
    "extensions io.modelcontextprotocol/ui mimeTypes": ["text/html;profile=mcp-app"],
}
"""Path -> value. An empty object stands for any object."""
_BITS = [(1 << bit, path.split(), value) for bit, (path, value) in enumerate(_CAPABILITIES.items())]


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
    for bit, path, value in _BITS:
        if path[0] not in capabilities:
            continue
        found = value_at(capabilities, path)
        if found == value or (value == {} and isinstance(found, dict)):
            bits |= bit
    return bits, capabilities_of(bits) == capabilities


def capabilities_of(bits: int) -> dict[str, Any]:
    """Return the capabilities for bits from `capability_bits`. Bits of later versions are ignored."""
    capabilities: dict[str, Any] = {}
    for bit, path, value in _BITS:
        if bits & bit:
            inner = capabilities
            for name in path[:-1]:
                inner = inner.setdefault(name, {})
            inner[path[-1]] = copy(value)
    return capabilities


def _cut(text: str) -> str:
    # A lone surrogate has no UTF-8 form and becomes "?".
    data = text.encode("utf-8", "replace")
    return data[:MAX_CLIENT_TEXT].decode("utf-8", "ignore")
