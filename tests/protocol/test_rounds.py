import msgspec
import pytest

from millstream._protocol.errors import INVALID_PARAMS, ProtocolError
from millstream._protocol.seal import InputRequired, KeyRing, Rounds, RoundState, binding_hash, digest, open_state

RING = KeyRing([b"k" * 32])
NONCE = b"n" * 12
BOUND = binding_hash(b"p", "tools/call", "t", b'{"a":1,"b":2}')


def code_of(token: str, bound: bytes = BOUND, now: int = 0) -> int:
    with pytest.raises(ProtocolError) as raised:
        open_state(token, RING, bound, now)
    return raised.value.code


def seal_state(replay: Rounds) -> str:
    return replay.seal(RING, bound=BOUND, expires_at=10, nonce=NONCE, max_rounds=8)


def test_sealed_state_round_trips() -> None:
    """MCP 2026-07-28, basic/patterns/mrtr."""
    replay = Rounds(None, {})
    replay.settle("q1", "mark", b"1")
    replay.pend("q2", "other")
    state = open_state(seal_state(replay), RING, BOUND, 10)
    assert (state.rounds, state.entries["q1"].value, state.open_marks) == (1, b"1", {"q2": "other"})


def test_state_is_bound_to_its_call_and_time() -> None:
    """MCP 2026-07-28, basic/patterns/mrtr."""
    token = seal_state(Rounds(None, {}))
    assert code_of(token, now=11) == INVALID_PARAMS
    assert code_of(token + "x") == INVALID_PARAMS
    for other in ((b"q", "tools/call", "t"), (b"p", "prompts/get", "t"), (b"p", "tools/call", "u")):
        assert code_of(token, binding_hash(*other, b'{"a":1,"b":2}')) == INVALID_PARAMS
    assert code_of(token, binding_hash(b"p", "tools/call", "t", b'{"a":1}')) == INVALID_PARAMS
    assert binding_hash(b"p", "tools/call", "t", b'{"b":2, "a":1}') == BOUND, "the order of members is no difference"
    assert binding_hash(b"p", "m", "n", b"") == binding_hash(b"p", "m", "n", b"{}")


def test_malformed_sealed_state_is_rejected() -> None:
    assert code_of(RING.seal(b"request-state", b"\xc1", NONCE, BOUND)) == INVALID_PARAMS
    assert code_of(RING.seal(b"request-state", msgspec.msgpack.encode([1]), NONCE, BOUND)) == INVALID_PARAMS


def test_answers_are_accepted_with_or_without_a_state() -> None:
    replay = Rounds(None, {"a": msgspec.Raw(b"1")})
    assert replay.response("a", "a", "m") == b"1"
    assert replay.response("b", "b", "m") is None
    asked = Rounds(RoundState(10, 1, {}, {"a": "old"}), {"a": msgspec.Raw(b"1")})
    assert asked.response("a", "a", "new") is None, "the question has changed since"


def test_changed_questions_drop_their_answer_and_later_ones() -> None:
    replay = Rounds(None, {})
    for slot in ("q1", "q2", "q3"):
        replay.settle(slot, "m", b"1")
    assert replay.find_settled("q1", "m") == b"1"
    assert replay.find_settled("q2", "changed") is None
    assert replay.find_settled("q3", "m") is None
    assert replay.find_settled("q1", "m") == b"1"


def test_questions_without_a_key_are_numbered_and_marked() -> None:
    replay = Rounds(None, {})
    first, second = replay.label(None), replay.label(None)
    assert (first, second, replay.label("own")) == ("q1", "q2", "own")
    mark = digest("elicitation/create", {"message": "x"})
    assert replay.wire_key("q1", None, mark) == f"q1-{mark[:8]}"
    assert replay.wire_key("own", "own", mark) == "own"
    assert mark != digest("elicitation/create", {"message": "y"})


def test_rounds_are_limited() -> None:
    with pytest.raises(ProtocolError):
        seal_state(Rounds(RoundState(10, 8, {}, {}), {}))


def test_open_questions_stop_the_function() -> None:
    stop = InputRequired({"q1": {"method": "roots/list", "params": {}}})
    assert stop.requests["q1"]["method"] == "roots/list"
    assert not isinstance(stop, Exception)
