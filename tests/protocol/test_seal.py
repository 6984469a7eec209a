import base64
import os
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cases import for_each
from millstream._protocol.seal import MAX_TOKEN, KeyRing
from millstream.extensions import LocalError
from patience import WAIT

OLD, NEW = b"o" * 32, b"n" * 32
NONCE = bytes(range(12))
RING = KeyRing([NEW])
TOKEN = RING.seal(b"state", b"plain text", NONCE, b"owner")

TEXTS = st.one_of(
    st.text(max_size=100),
    st.text("ABCxyz019-_", max_size=100),
    st.binary(max_size=100).map(lambda data: base64.urlsafe_b64encode(data).decode().rstrip("=")),
    st.binary(max_size=100).map(lambda data: TOKEN[:6] + base64.urlsafe_b64encode(data).decode().rstrip("=")),
)


@given(st.binary(max_size=500), st.binary(max_size=20), st.binary(max_size=20), st.binary(min_size=12, max_size=12))
def test_sealed_tokens_open_and_fit_in_a_header(plain: bytes, kind: bytes, bound: bytes, nonce: bytes) -> None:
    token = RING.seal(kind, plain, nonce, bound)
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")
    assert RING.open(kind, token, bound) == plain


@given(TEXTS)
@example("")
@example("\ud800")
@example("é" * 40)
@example("A" * 5)
@example(TOKEN[:6])
@example(TOKEN[:20])
@example(TOKEN[:40])
def test_invalid_tokens_return_none(text: str) -> None:
    assert RING.open(b"state", text, b"owner") is None


@given(st.integers(0, len(TOKEN) - 1), st.characters())
def test_tokens_with_a_changed_character_do_not_open(index: int, char: str) -> None:
    text = TOKEN[:index] + char + TOKEN[index + 1 :]
    assert RING.open(b"state", text, b"owner") == (b"plain text" if text == TOKEN else None)


@given(st.integers(0, len(TOKEN)), st.text(min_size=1, max_size=4))
@example(4, "    ")
@example(4, "\r\n\r\n")
@example(4, "!!!!")
@example(4, "====")
def test_tokens_with_inserted_characters_do_not_open(index: int, more: str) -> None:
    assert RING.open(b"state", TOKEN[:index] + more + TOKEN[index:], b"owner") is None


@for_each("more", ["=", "==", "\n", "\r\n", " ", "\0", "A", "AA", "AAA", "AAAA"])
def test_trailing_characters_invalidate_a_token(more: str) -> None:
    for length in range(4):
        token = RING.seal(b"state", bytes(length), NONCE)
        assert RING.open(b"state", token) == bytes(length)
        assert RING.open(b"state", token + more) is None


def test_unused_bits_in_the_last_character_must_be_zero() -> None:
    """RFC 4648 §3.5."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for length in range(3):
        token = RING.seal(b"state", bytes(length), NONCE)
        opens = [char for char in alphabet if RING.open(b"state", token[:-1] + char) is not None]
        assert opens == [token[-1]]


def test_tokens_in_the_other_base64_alphabet_do_not_open() -> None:
    tokens = [RING.seal(b"state", b"", bytes([n]) * 12) for n in range(256)]
    with_dash = next(token for token in tokens if "-" in token)
    with_line = next(token for token in tokens if "_" in token)
    assert RING.open(b"state", with_dash.replace("-", "+")) is None
    assert RING.open(b"state", with_line.replace("_", "/")) is None


def test_tokens_open_only_for_their_kind_and_owner() -> None:
    assert RING.open(b"state", TOKEN, b"owner") == b"plain text"
    assert RING.open(b"state", TOKEN, b"other") is None
    assert RING.open(b"state", TOKEN) is None
    assert RING.open(b"session", TOKEN, b"owner") is None


@given(st.binary(max_size=4), st.binary(max_size=4), st.binary(max_size=4), st.binary(max_size=4))
@example(b"a", b"bc", b"ab", b"c")
@example(b"", b"1:a", b"a", b"")
def test_kind_and_owner_cannot_be_confused(kind: bytes, bound: bytes, kind2: bytes, bound2: bytes) -> None:
    opened = RING.open(kind2, RING.seal(kind, b"x", NONCE, bound), bound2)
    assert opened == (b"x" if (kind, bound) == (kind2, bound2) else None)


def test_rotation_encrypts_with_the_first_secret_and_decrypts_with_all() -> None:
    before, during, after = KeyRing([OLD]), KeyRing([NEW, OLD]), KeyRing([NEW])
    old, new = before.seal(b"k", b"old", NONCE), during.seal(b"k", b"new", NONCE)
    assert during.open(b"k", old) == b"old"
    assert KeyRing([OLD, NEW]).open(b"k", new) == b"new"
    assert after.open(b"k", new) == b"new"
    assert before.open(b"k", new) is None
    assert after.open(b"k", old) is None


def test_tokens_with_another_key_number_do_not_open() -> None:
    ring = KeyRing([NEW, OLD])
    token, other = ring.seal(b"k", b"plain", NONCE), KeyRing([OLD]).seal(b"k", b"plain", NONCE)
    data, number = base64.urlsafe_b64decode(token + "=="), base64.urlsafe_b64decode(other + "==")[:4]
    swapped = base64.urlsafe_b64encode(number + data[4:]).decode().rstrip("=")
    assert ring.open(b"k", swapped) is None


def test_repeated_secret_counts_as_one_key() -> None:
    assert KeyRing([NEW, NEW]).open(b"state", TOKEN, b"owner") == b"plain text"


def test_tokens_stay_readable_across_versions() -> None:
    assert TOKEN == "zda8HwABAgMEBQYHCAkKC3NL-kA21ZcpgMbJRGmMpkA6TH0GowzgQJoh"


def test_overlong_values_are_rejected_on_both_sides() -> None:
    largest = MAX_TOKEN * 3 // 4 - 32
    token = RING.seal(b"k", bytes(largest), NONCE)
    assert len(token) <= MAX_TOKEN
    assert RING.open(b"k", token) == bytes(largest)
    assert RING.open(b"k", "A" * (MAX_TOKEN + 4)) is None
    with pytest.raises(LocalError):
        RING.seal(b"k", bytes(largest + 1), NONCE)


@for_each("length", [0, 11, 13, 16])
def test_a_nonce_with_the_wrong_length_is_rejected(length: int) -> None:
    with pytest.raises(ValueError, match="12 bytes"):
        RING.seal(b"k", b"", bytes(length))


def test_a_ring_without_a_secret_is_rejected() -> None:
    with pytest.raises(ValueError, match="at least one"):
        KeyRing([])


def test_fresh_ring_opens_tokens_before_sealing_any() -> None:
    assert KeyRing([NEW]).open(b"state", TOKEN, b"owner") == b"plain text"
    assert KeyRing([OLD]).open(b"state", TOKEN, b"owner") is None


@pytest.mark.server
def test_cryptography_is_not_loaded_before_the_first_use() -> None:
    program = (
        "import sys; from millstream._protocol.seal import KeyRing; ring = KeyRing([b'n' * 32]);"
        "assert 'cryptography' not in sys.modules; ring.open(b'k', 'A' * 44); assert 'cryptography' in sys.modules"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    subprocess.run([sys.executable, "-c", program], check=True, timeout=WAIT, env=environ)
