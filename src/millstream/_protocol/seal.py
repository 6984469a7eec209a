"""Sealed text: the session id of the handshake era, and the state of multi-round requests, which clients return.

A session id is the session itself, sealed into at most 400 characters. Any worker with the key can read it, so an
ordinary idle session takes no memory. Data that doesn't fit (unknown capabilities, log level, subscriptions, a
tombstone) is a record in the store under the token's `id`.

A call that asks in a multi-round request (MCP 2026-07-28, basic/patterns/mrtr) waits on its worker, and the state has a
`Ticket` that identifies it. If it may run again, the state also has the answers so far (replay). Each question has a
label: its explicit key, or its ordinal. A digest of method and parameters detects a changed question. Answers of this
round are valid with or without state. Answers of earlier rounds come only from the state, which is sealed and bound to
principal, method, name, and arguments.

The clock and randomness are arguments: `now` and `nonce`.
"""

import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import b2a_base64
from collections.abc import Mapping, Sequence
from copy import copy
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import Raw, Struct

from millstream._protocol.errors import INVALID_PARAMS, LocalError, ProtocolError
from millstream._protocol.json_schema import value_at
from millstream._protocol.jsonrpc import Json
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
"""Context of the key derivation, and version of the format. Another label yields other keys and key numbers."""
_TO_URL = bytes.maketrans(b"+/", b"-_")


class KeyRing:
    """Sealing keys, derived from secrets. The first key seals, and all of them open.

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
        return b2a_base64(sealed, newline=False).translate(_TO_URL).rstrip(b"=").decode()

    def open(self, kind: bytes, token: str, bound: bytes = b"") -> bytes | None:
        """Return the content that this ring sealed for `kind` and `bound`, or None for any other text."""
        if len(token) > MAX_TOKEN:
            return None
        try:
            data = urlsafe_b64decode(f"{token}==")
        except ValueError:
            return None
        cipher = (self._ciphers or self._load()).get(data[:_NUMBER_BYTES])
        # The cipher raises different errors for a short nonce, a missing tag, and a wrong tag. The decoder ignores
        # unused bits and other characters, which would give one token several spellings (RFC 4648 §3.5).
        if (
            cipher is None
            or len(data) < _HEAD_BYTES + _TAG_BYTES
            or urlsafe_b64encode(data).rstrip(b"=") != token.encode()
        ):
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
    # MCP Apps is the only extension that many hosts declare, and they declare it like this.
    "extensions io.modelcontextprotocol/ui": {},
    "extensions io.modelcontextprotocol/ui mimeTypes": ["text/html;profile=mcp-app"],
}
"""Path and value of each capability. An empty object matches any object."""
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
    worker: str = ""
    """The worker that holds state of the session, or empty if any worker can serve it."""
    address: str = ""
    """The set whose address the session belongs to, or empty for the main address."""


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(SessionToken).decode


def encode(token: SessionToken, ring: KeyRing, nonce: bytes, server: str = "") -> str:
    """Return the session id for a token, in visible ASCII. The client's name and version are cut to `MAX_CLIENT_TEXT`
    bytes.

    Args:
        token: The session.
        ring: The keys.
        nonce: 12 bytes that were never used before (see `KeyRing.seal`).
        server: The name of the server. One with the same keys and another name doesn't know the session.

    Raises:
        LocalError: A field set by this server is too long or too large.
    """
    cut = msgspec.structs.replace(token, client_name=_cut(token.client_name), client_version=_cut(token.client_version))
    try:
        text = ring.seal(KIND, _encode(cut), nonce, server.encode())
    except OverflowError as exc:
        raise LocalError("A number in the session token has more than 64 bits.") from exc
    if len(text) > MAX_SESSION_ID:
        raise LocalError(f"The session id has {len(text)} characters, more than {MAX_SESSION_ID}.")
    return text


def decode(text: str, ring: KeyRing, now: float, server: str = "") -> SessionToken | None:
    """Return the token of a session id, or None if it's another server's, changed, or expired at Unix time `now`."""
    if len(text) > MAX_SESSION_ID:
        return None
    try:
        token = _decode(ring.open(KIND, text, server.encode()) or b"")
    except msgspec.DecodeError:
        # The token may come from a version with other fields. The client treats it as an unknown session and begins a
        # new one.
        return None
    return token if now < token.expires_at else None


def hash_principal(principal: Principal | None) -> bytes:
    """Return a 16-byte hash of the principal, or empty bytes for an anonymous caller."""
    return b"" if principal is None else principal.binding


def capability_bits(capabilities: Json) -> tuple[int, bool]:
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


def capabilities_of(bits: int) -> Json:
    """Return the capabilities for bits from `capability_bits`. Bits of later versions are ignored."""
    capabilities: Json = {}
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


_KIND = b"request-state"
_LARGE = 16 * 1024


class RoundEntry(Struct, array_like=True):
    """The value of a settled label: an answer, or the stored result of a side effect."""

    digest: str
    value: bytes
    """JSON."""


class Ticket(Struct, array_like=True, frozen=True):
    """Identifies the call that a retry continues."""

    worker: str
    id: str
    round: int
    again: bool
    """Whether the state has the answers so far, so the call can run again if the worker is gone."""


class RoundState(Struct, array_like=True):
    """The answers and open questions after some rounds."""

    expires_at: int
    rounds: int
    entries: dict[str, RoundEntry]
    """Entries by label, in the order they were settled."""
    open_marks: dict[str, str]
    """Label -> digest, for the questions of the last round."""
    id: str = ""
    """Id that the rounds of a call share, in records."""
    ticket: Ticket | None = None


class InputRequired(BaseException):
    """Stops a function so that its questions go to the client. A `BaseException`, so user code doesn't catch it.

    Example:
        ``except InputRequired: raise`` before cleaning up after a failure.
    """

    def __init__(self, requests: Mapping[str, Any], rounds: "Rounds | None" = None) -> None:
        super().__init__("input required")
        self.requests = requests
        """Wire key -> {"method": …, "params": …}."""
        self.rounds = rounds
        """The rounds to seal for a call that waits, or None for those of the call."""


_decode_state = msgspec.msgpack.Decoder(RoundState).decode
_encode_sorted = msgspec.json.Encoder(order="deterministic").encode


def digest(method: str, params: Any) -> str:
    """Return the identity of a question: a hash of its method and parameters."""
    return hashlib.sha256(_encode_sorted([method, params])).hexdigest()[:16]


def binding_hash(principal: bytes, method: str, name: str, arguments: bytes) -> bytes:
    """Return the hash that binds a state to its request.

    Args:
        principal, method, name: The caller, the method, and the name of the item.
        arguments: Raw JSON from the client, hashed in a canonical form. Large arguments are hashed as they are.
    """
    if arguments in (b"", b"null"):
        arguments = b"{}"
    canonical = arguments if len(arguments) > _LARGE else _encode_sorted(msgspec.json.decode(arguments))
    hasher = hashlib.sha256()
    for part in (principal, method.encode(), name.encode(), canonical):
        hasher.update(len(part).to_bytes(8, "big"))
        hasher.update(part)
    return hasher.digest()


def open_state(token: str, ring: KeyRing, bound: bytes, now: int) -> RoundState:
    """Unseal a state that the client returned.

    Raises:
        ProtocolError: INVALID_PARAMS, for a state that was changed, has expired, or belongs to another call.
    """
    try:
        state = _decode_state(ring.open(_KIND, token, bound) or b"")
    except msgspec.DecodeError as exc:
        raise ProtocolError(INVALID_PARAMS, "Invalid requestState. Start the request again without it.") from exc
    if state.expires_at < now:
        raise ProtocolError(INVALID_PARAMS, "Expired requestState. Start the request again without it.")
    return state


class Rounds:
    """The rounds of one call, for one run of its function."""

    def __init__(self, state: RoundState | None, responses: Mapping[str, Raw]) -> None:
        state = state or RoundState(0, 0, {}, {})
        self._entries = state.entries
        self._open_marks = state.open_marks
        self._responses = responses
        self._ordinal = 0
        self._pending: dict[str, str] = {}
        self.rounds: int = state.rounds
        self.id: str = state.id
        """Id that the rounds of a call share, once it has asked."""
        self.ticket: Ticket | None = state.ticket

    def take(self, responses: Mapping[str, Raw]) -> None:
        """Read answers from another request, for a function that waits."""
        self._responses, self._open_marks, self._pending = responses, {**self._open_marks, **self._pending}, {}

    @classmethod
    def from_state(cls, state: RoundState) -> "Rounds":
        """Return rounds that seal this state."""
        rounds = cls(state, {})
        rounds._pending, rounds.rounds = state.open_marks, state.rounds - 1
        return rounds

    def snapshot(self, ticket: Ticket) -> "Rounds":
        """Return these rounds as they are now, with the answers only if the call can run again from them."""
        entries, pending = (dict(self._entries), dict(self._pending)) if ticket.again else ({}, {})
        self.id = self.id or ticket.id
        return Rounds.from_state(RoundState(0, self.rounds + 1, entries, pending, self.id, ticket))

    def label(self, key: str | None) -> str:
        """Return the label of the next question: its key, or its ordinal in this run."""
        if key is not None:
            return key
        self._ordinal += 1
        return f"q{self._ordinal}"

    @staticmethod
    def wire_key(label: str, key: str | None, mark: str) -> str:
        """Return the key in `inputRequests`: an explicit key unchanged, or an ordinal and the digest of its
        question.
        """
        return label if key is not None else f"{label}-{mark[:8]}"

    def find_settled(self, label: str, mark: str) -> bytes | None:
        """Return a value from an earlier round. A changed question invalidates its answer and all later ones."""
        entry = self._entries.get(label)
        if entry is None:
            return None
        if entry.digest == mark:
            return entry.value
        labels = list(self._entries)
        for later in labels[labels.index(label) :]:
            del self._entries[later]
        return None

    def response(self, label: str, wire_key: str, mark: str) -> bytes | None:
        """Return the answer in this request, unless its question has changed."""
        raw = self._responses.get(wire_key)
        if raw is None or self._open_marks.get(label, mark) != mark:
            return None
        return bytes(raw)

    def has_asked(self, label: str, mark: str) -> bool:
        """Return whether the last round asked this question. An answer without a state counts for other questions."""
        return self._open_marks.get(label) == mark

    def settle(self, label: str, mark: str, value: bytes) -> None:
        """Store the value of a label for later rounds."""
        self._entries[label] = RoundEntry(mark, value)

    def pend(self, label: str, mark: str) -> None:
        """Record a question of this round."""
        self._pending[label] = mark

    def seal(self, ring: KeyRing, *, bound: bytes, expires_at: int, nonce: bytes, max_rounds: int) -> str:
        """Return the state after this round, for the client to return.

        Raises:
            ProtocolError: INVALID_PARAMS, after too many rounds.
        """
        self.check(max_rounds)
        self.id = self.id or nonce.hex()
        return ring.seal(_KIND, _encode(self.state(expires_at)), nonce, bound)

    def check(self, max_rounds: int) -> None:
        """Raise an error if there can't be another round.

        Raises:
            ProtocolError: INVALID_PARAMS, after too many rounds.
        """
        if self.rounds >= max_rounds:
            raise ProtocolError(INVALID_PARAMS, f"Stopped after {max_rounds} rounds of questions.")

    def state(self, expires_at: int) -> RoundState:
        """Return the state after this round, for a server that keeps it itself."""
        return RoundState(expires_at, self.rounds + 1, self._entries, self._pending, self.id, self.ticket)
