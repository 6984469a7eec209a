"""Multi-round requests: the valid answers, and the sealed state that the client returns.

See MCP 2026-07-28, basic/patterns/mrtr. A function that asks is stopped with `InputRequired` and run again from its
start with the answers (replay). Each question has a slot: its explicit key, or its ordinal. A digest of method and
parameters detects a changed question. Answers of this round are valid with or without state. Answers of earlier rounds
come only from the state, which is sealed and bound to principal, method, name, and arguments.

The clock and randomness are arguments: `now` and `nonce`.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw, Struct

from millstream._protocol.errors import INVALID_PARAMS, ProtocolError
from millstream._protocol.session_token import KeyRing

_KIND = b"request-state"
_LARGE = 16 * 1024


class RoundEntry(Struct, array_like=True):
    """A settled slot: an answer, or the stored value of a side effect."""

    digest: str
    value: bytes
    """JSON."""


class RoundState(Struct, array_like=True):
    """The answers and open questions after some rounds."""

    expires_at: int
    rounds: int
    entries: dict[str, RoundEntry]
    """Entries by slot, in the order they were settled."""
    open_marks: dict[str, str]
    """Slot -> digest, for the questions of the last round."""


class InputRequired(BaseException):
    """Stops a function so that its questions go to the client. A `BaseException`, so user code doesn't catch it.

    Example:
        ``except InputRequired: raise`` before cleaning up after a failure.
    """

    def __init__(self, requests: Mapping[str, Any]) -> None:
        super().__init__("input required")
        self.requests = requests
        """Wire key -> {"method": …, "params": …}."""


_encode_state = msgspec.msgpack.Encoder().encode
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
    plain = ring.open(_KIND, token, bound)
    if plain is None:
        raise ProtocolError(INVALID_PARAMS, "Invalid requestState. Start the request again without it.")
    try:
        state = _decode_state(plain)
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

    def slot(self, key: str | None) -> str:
        """Return the slot of the next question: its key, or its ordinal in this run."""
        if key is not None:
            return key
        self._ordinal += 1
        return f"q{self._ordinal}"

    @staticmethod
    def wire_key(slot: str, key: str | None, mark: str) -> str:
        """Return the key in `inputRequests`: an explicit key unchanged, or an ordinal and the digest of its
        question.
        """
        return slot if key is not None else f"{slot}-{mark[:8]}"

    def find_settled(self, slot: str, mark: str) -> bytes | None:
        """Return a slot's value from an earlier round. A changed question invalidates its answer and all later ones."""
        entry = self._entries.get(slot)
        if entry is None:
            return None
        if entry.digest == mark:
            return entry.value
        slots = list(self._entries)
        for later in slots[slots.index(slot) :]:
            del self._entries[later]
        return None

    def response(self, slot: str, wire_key: str, mark: str) -> bytes | None:
        """Return the answer in this request, unless its question has changed."""
        raw = self._responses.get(wire_key)
        if raw is None or self._open_marks.get(slot, mark) != mark:
            return None
        return bytes(raw)

    def settle(self, slot: str, mark: str, value: bytes) -> None:
        """Store the value of a slot for later rounds."""
        self._entries[slot] = RoundEntry(mark, value)

    def pend(self, slot: str, mark: str) -> None:
        """Record a question of this round."""
        self._pending[slot] = mark

    def seal(self, ring: KeyRing, *, bound: bytes, expires_at: int, nonce: bytes, max_rounds: int) -> str:
        """Return the state after this round, for the client to return.

        Raises:
            ProtocolError: INVALID_PARAMS, after too many rounds.
        """
        if self.rounds >= max_rounds:
            raise ProtocolError(INVALID_PARAMS, f"Stopped after {max_rounds} rounds of questions.")
        return ring.seal(_KIND, _encode_state(self.state(expires_at)), nonce, bound)

    def state(self, expires_at: int) -> RoundState:
        """Return the state after this round, for a server that keeps it itself."""
        return RoundState(expires_at, self.rounds + 1, self._entries, self._pending)
