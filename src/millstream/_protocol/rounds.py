"""Multi-round requests: which answers count, and the state that travels sealed through the client.

MCP 2026-07-28, basic/patterns/mrtr.

A function that asks is stopped with `InputRequired` and run again from its start with the answers (replay). Every
question has a slot: its explicit key, or its ordinal. A digest of kind, message and schema tells whether it is
still the same question. Answers of this round count with or without state; those of earlier rounds come only from
the state, which is sealed and bound to principal, method, name and arguments.

No clock and no randomness here: `now` and `nonce` are arguments.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec
from msgspec import Raw, Struct

from millstream._protocol.errors import INVALID_PARAMS, ProtocolError
from millstream._protocol.seal import KeyRing

_KIND = b"request-state"
_LARGE = 16 * 1024


class RoundEntry(Struct, array_like=True):
    """One settled slot: an answer, or the value of a side effect that must not happen again."""

    digest: str
    value: bytes
    """JSON."""


class RoundState(Struct, array_like=True):
    """The answers and open questions after some rounds."""

    expires_at: int
    rounds: int
    entries: dict[str, RoundEntry]
    """By slot, in the order in which they were settled."""
    asked: dict[str, str]
    """Slot -> digest of the questions of the last round."""


class InputRequired(BaseException):
    """Stops the function: the questions travel to the client. Not an `Exception`, so that user code lets it pass."""

    def __init__(self, requests: Mapping[str, Any]) -> None:
        super().__init__("input required")
        self.requests = requests
        """Wire key -> {"method": …, "params": …}."""


_encode_state = msgspec.msgpack.Encoder().encode
_decode_state = msgspec.msgpack.Decoder(RoundState).decode
_encode_sorted = msgspec.json.Encoder(order="deterministic").encode


def digest(method: str, params: Any) -> str:
    """Identity of a question: hash of its method and parameters."""
    return hashlib.sha256(_encode_sorted([method, params])).hexdigest()[:16]


def binding(principal: bytes, method: str, name: str, arguments: bytes) -> bytes:
    """The hash that ties a state to its request.

    Args:
        principal, method, name: of the call.
        arguments: raw JSON as the client sent it, hashed in a canonical form; as it is, where it's large.
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
    """Unseal what the client echoed.

    Raises:
        ProtocolError: INVALID_PARAMS for a state that was changed, is another call's, or has expired.
    """
    plain = ring.open(_KIND, token, bound)
    if plain is None:
        raise ProtocolError(INVALID_PARAMS, "Invalid requestState: start the request again without it")
    try:
        state = _decode_state(plain)
    except msgspec.DecodeError as exc:
        raise ProtocolError(INVALID_PARAMS, "Invalid requestState: start the request again without it") from exc
    if state.expires_at < now:
        raise ProtocolError(INVALID_PARAMS, "Expired requestState: start the request again without it")
    return state


class Rounds:
    """The rounds of one call as its function runs again."""

    __slots__ = ("_asked", "_entries", "_ordinal", "_pending", "_responses", "rounds")

    def __init__(self, state: RoundState | None, responses: Mapping[str, Raw]) -> None:
        self._entries = state.entries if state is not None else {}
        self._asked = state.asked if state is not None else None
        self._responses = responses
        self._ordinal = 0
        self._pending: dict[str, str] = {}
        self.rounds: int = state.rounds if state is not None else 0

    def slot(self, key: str | None) -> str:
        """The slot of the next question: its key, or its ordinal in this run."""
        if key is not None:
            return key
        self._ordinal += 1
        return f"q{self._ordinal}"

    @staticmethod
    def wire_key(slot: str, key: str | None, mark: str) -> str:
        """The key in `inputRequests`: an explicit key as it is, an ordinal with the digest of its question."""
        return slot if key is not None else f"{slot}-{mark[:8]}"

    def find_settled(self, slot: str, mark: str) -> bytes | None:
        """The value of a slot from an earlier round. A changed question drops its answer and the later ones."""
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
        """The answer that came with this request, unless it answers a question that has changed since."""
        raw = self._responses.get(wire_key)
        if raw is None or (self._asked is not None and self._asked.get(slot, mark) != mark):
            return None
        return bytes(raw)

    def settle(self, slot: str, mark: str, value: bytes) -> None:
        """Keep the value of a slot for later rounds."""
        self._entries[slot] = RoundEntry(mark, value)

    def pend(self, slot: str, mark: str) -> None:
        """Note a question of this round."""
        self._pending[slot] = mark

    def seal(self, ring: KeyRing, *, bound: bytes, expires_at: int, nonce: bytes, max_rounds: int) -> str:
        """The state after this round, for the client to echo.

        Raises:
            ProtocolError: INVALID_PARAMS after too many rounds.
        """
        if self.rounds >= max_rounds:
            raise ProtocolError(INVALID_PARAMS, f"Gave up after {max_rounds} rounds of questions")
        return ring.seal(_KIND, _encode_state(self.state(expires_at)), nonce, bound)

    def state(self, expires_at: int) -> RoundState:
        """Return the state after this round, for a server that keeps it itself."""
        return RoundState(expires_at, self.rounds + 1, self._entries, self._pending)
