import msgspec
from hypothesis import assume, given
from hypothesis import strategies as st

from millstream import Principal
from millstream._protocol.seal import (
    KeyRing,
    SessionToken,
    binding_hash,
    capability_bits,
    decode,
    encode,
    hash_principal,
)
from strategies import json_values, texts

ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
RING = KeyRing([b"one secret of the tests, long enough"])
OTHER = KeyRing([b"another secret of the tests, as long"])
nonces = st.binary(min_size=12, max_size=12)
NOW = 1_800_000_000


def flip_bit(token: str, place: int, bit: int) -> str:
    """Return the token with one changed bit."""
    place %= len(token)
    return token[:place] + ALPHABET[ALPHABET.index(token[place]) ^ 1 << bit] + token[place + 1 :]


@given(st.binary(max_size=80), nonces, st.binary(max_size=20), st.integers(0, 10_000), st.integers(0, 5))
def test_tokens_with_a_changed_bit_do_not_open(plain: bytes, nonce: bytes, bound: bytes, place: int, bit: int) -> None:
    token = RING.seal(b"kind", plain, nonce, bound)
    assert RING.open(b"kind", token, bound) == plain
    assert RING.open(b"kind", flip_bit(token, place, bit), bound) is None


@given(
    st.binary(max_size=80),
    nonces,
    st.binary(max_size=20),
    st.binary(max_size=20),
    st.binary(max_size=6),
    st.binary(max_size=6),
)
def test_tokens_open_only_for_kind_owner_and_key(
    plain: bytes, nonce: bytes, bound: bytes, other_bound: bytes, kind: bytes, other_kind: bytes
) -> None:
    token = RING.seal(kind, plain, nonce, bound)
    assert OTHER.open(kind, token, bound) is None
    assume((kind, bound) != (other_kind, other_bound))
    assert RING.open(other_kind, token, other_bound) is None


@given(st.text(max_size=400))
def test_random_text_is_not_a_token(text: str) -> None:
    assert RING.open(b"kind", text) is None
    assert decode(text, RING, NOW) is None


@given(texts, texts, nonces, st.integers(0, 10_000), st.integers(0, 5), st.integers(-5, 5))
def test_session_ids_decode_until_they_expire(
    name: str, version: str, nonce: bytes, place: int, bit: int, late: int
) -> None:
    principal = Principal(name)
    token = SessionToken(
        id="0" * 32, revision="2025-11-25", capabilities=capability_bits({"sampling": {}})[0], client_name=name,
        client_version=version, principal_hash=hash_principal(principal), issued_at=NOW, expires_at=NOW + 60, epoch="e",
    )  # fmt: skip
    text = encode(token, RING, nonce)
    read = decode(text, RING, NOW + 60 + late)
    assert (read is not None) == (late < 0)
    assert decode(flip_bit(text, place, bit), RING, NOW) is None
    assert decode(text, OTHER, NOW) is None
    if read is not None:
        assert (read.id, read.principal_hash) == (token.id, token.principal_hash)
        assert name.startswith(read.client_name)


calls = st.tuples(
    st.binary(max_size=3),
    st.sampled_from(["tools/call", "prompts/get"]),
    st.text(max_size=3),
    st.dictionaries(texts, json_values, max_size=2),
)


@given(calls, calls)
def test_calls_with_equal_bindings_are_equal(
    first: tuple[bytes, str, str, dict], second: tuple[bytes, str, str, dict]
) -> None:  # type: ignore[type-arg]
    def bound(call: tuple[bytes, str, str, dict]) -> bytes:  # type: ignore[type-arg]
        principal, method, name, arguments = call
        return binding_hash(principal, method, name, msgspec.json.encode(arguments))

    backwards = dict(reversed(first[3].items()))
    assert bound(first) == bound((*first[:3], backwards))
    assert (bound(first) == bound(second)) == (
        msgspec.json.encode(first, order="sorted") == msgspec.json.encode(second, order="sorted")
    )
