from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import for_each
from millstream._protocol.errors import LocalError
from millstream._protocol.principal import Principal
from millstream._protocol.seal import (
    KIND,
    MAX_CLIENT_TEXT,
    MAX_SESSION_ID,
    KeyRing,
    SessionToken,
    capabilities_of,
    capability_bits,
    decode,
    encode,
    hash_principal,
)

RING = KeyRing([b"s" * 32])
NONCE = bytes(12)
NOW = 1_800_000_000

TOKEN = SessionToken(
    id="0123456789abcdef" * 2,
    revision="2025-11-25",
    capabilities=capability_bits({"sampling": {}, "roots": {"listChanged": True}})[0],
    client_name="inspector",
    client_version="1.2.3",
    principal_hash=hash_principal(Principal("https://issuer.example alice")),
    issued_at=NOW,
    expires_at=NOW + 86_400,
    epoch="c0ffee",
)

ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=200)  # lone surrogates too
TOKENS = st.builds(
    SessionToken,
    id=st.text("0123456789abcdef", min_size=32, max_size=32),
    revision=st.text("0123456789-", max_size=10),
    capabilities=st.integers(0, 2**63 - 1),
    client_name=ANY_TEXT,
    client_version=ANY_TEXT,
    principal_hash=st.one_of(st.just(b""), st.binary(min_size=16, max_size=16)),
    issued_at=st.integers(0, 2**63 - 1),
    expires_at=st.integers(0, 2**63 - 1),
    epoch=st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=16),
)

OBJECTS = st.sampled_from([{}, {}, {"setting": 1}])
CAPABILITIES = st.fixed_dictionaries(
    {},
    optional={
        "sampling": st.fixed_dictionaries({}, optional={"tools": OBJECTS, "context": OBJECTS}),
        "elicitation": st.fixed_dictionaries({}, optional={"form": OBJECTS, "url": OBJECTS}),
        "roots": st.fixed_dictionaries({}, optional={"listChanged": st.booleans()}),
        "experimental": OBJECTS,
        "tasks": st.fixed_dictionaries(
            {},
            optional={
                "list": OBJECTS,
                "cancel": OBJECTS,
                "requests": st.fixed_dictionaries(
                    {},
                    optional={
                        "elicitation": st.fixed_dictionaries({}, optional={"create": OBJECTS}),
                        "sampling": st.fixed_dictionaries({}, optional={"createMessage": OBJECTS}),
                    },
                ),
            },
        ),
        "extensions": st.fixed_dictionaries({}, optional={"com.example/other": OBJECTS}),
        "unknown": OBJECTS,
    },
)
NAMES = st.sampled_from(["sampling", "tools", "elicitation", "url", "roots", "listChanged", "tasks", "requests", "x"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


@given(TOKENS, st.binary(min_size=12, max_size=12))
def test_session_ids_have_at_most_400_visible_ascii_characters(token: SessionToken, nonce: bytes) -> None:
    text = encode(token, RING, nonce)
    assert len(text) <= MAX_SESSION_ID
    assert all("!" <= char <= "~" for char in text)
    opened = decode(text, RING, -1)
    assert opened is not None
    assert msgspec.structs.replace(opened, client_name="", client_version="") == msgspec.structs.replace(
        token, client_name="", client_version=""
    )
    for kept, given_ in [(opened.client_name, token.client_name), (opened.client_version, token.client_version)]:
        assert len(kept.encode()) <= MAX_CLIENT_TEXT
        assert given_.encode("utf-8", "replace").decode().startswith(kept)


def test_longest_session_id_is_below_the_limit() -> None:
    largest = SessionToken(
        f"{'s' * 12}.{'f' * 32}", "2025-11-25", 2**64 - 1, "x" * 40, "y" * 40, b"h" * 16, 2**64 - 1, 2**64 - 1, "e" * 16
    )
    assert len(encode(largest, RING, NONCE)) <= 300


def test_session_ids_decode_on_any_worker_with_the_key() -> None:
    assert decode(encode(TOKEN, RING, NONCE), KeyRing([b"new" * 11, b"s" * 32]), NOW) == TOKEN


@for_each(
    ("text", "kept"),
    [
        ("a" * 32, "a" * 32),
        ("a" * 33, "a" * 32),
        ("é" * 17, "é" * 16),
        ("a" + "é" * 16, "a" + "é" * 15),
        ("a" * 31 + "😀", "a" * 31),
        ("a\ud800b", "a?b"),
    ],
)
def test_long_client_names_are_truncated_between_characters(text: str, kept: str) -> None:
    token = msgspec.structs.replace(TOKEN, client_name=text, client_version=text)
    opened = decode(encode(token, RING, NONCE), RING, NOW)
    assert opened is not None
    assert opened.client_name == opened.client_version == kept


def test_sessions_end_in_the_second_of_their_expiry() -> None:
    text = encode(TOKEN, RING, NONCE)
    assert decode(text, RING, TOKEN.expires_at - 0.5) == TOKEN
    assert decode(text, RING, TOKEN.expires_at) is None


@given(st.text(max_size=500))
def test_invalid_session_ids_are_rejected(text: str) -> None:
    assert decode(text, RING, NOW) is None


def test_ids_with_other_keys_and_kinds_are_rejected() -> None:
    plain = msgspec.msgpack.encode(TOKEN)
    assert decode(RING.seal(KIND, plain, NONCE), RING, NOW) == TOKEN
    assert decode(RING.seal(b"state", plain, NONCE), RING, NOW) is None
    assert decode(encode(TOKEN, KeyRing([b"x" * 32]), NONCE), RING, NOW) is None


@for_each("content", [b"", b"\xc1", b"\x90", b"\x99" + b"\xc0" * 9, b"\xa1x"])
def test_malformed_sealed_content_is_rejected(content: bytes) -> None:
    assert decode(RING.seal(KIND, content, NONCE), RING, NOW) is None


def test_overlong_session_ids_are_rejected_before_decryption() -> None:
    longer = RING.seal(KIND, msgspec.msgpack.encode(msgspec.structs.replace(TOKEN, client_name="x" * 400)), NONCE)
    assert len(longer) > MAX_SESSION_ID
    assert decode(longer, RING, NOW) is None


@for_each("change", [{"epoch": "e" * 300}, {"id": "0" * 300}, {"issued_at": 2**64}, {"capabilities": 2**70}])
def test_oversized_session_fields_raise(change: dict[str, Any]) -> None:
    with pytest.raises(LocalError):
        encode(msgspec.structs.replace(TOKEN, **change), RING, NONCE)


def test_session_ids_identify_principals_by_16_bytes() -> None:
    alice, bob = hash_principal(Principal("alice")), hash_principal(Principal("bob"))
    assert len(alice) == len(bob) == 16
    assert alice != bob
    assert hash_principal(None) == b""
    assert hash_principal(Principal("")) != b""
    assert len(hash_principal(Principal("\ud800"))) == 16


@given(CAPABILITIES)
def test_capability_bits_round_trip_or_are_marked_inexact(capabilities: dict[str, Any]) -> None:
    bits, exact = capability_bits(capabilities)
    assert exact == (capabilities_of(bits) == capabilities)
    has_more = "unknown" in capabilities or "setting" in repr(capabilities) or "com.example" in repr(capabilities)
    assert exact is not (has_more or capabilities.get("roots") == {"listChanged": False})


@given(CAPABILITIES)
def test_inexact_bits_contain_known_capabilities(capabilities: dict[str, Any]) -> None:
    kept = capabilities_of(capability_bits(capabilities)[0])
    for name, parts in {"sampling": ["tools", "context"], "elicitation": ["form", "url"]}.items():
        assert (name in kept) == (name in capabilities)
        for part in parts:
            assert (part in kept.get(name, {})) == (part in capabilities.get(name, {}))


@given(st.dictionaries(NAMES, JSON))
def test_malformed_capabilities_do_not_raise(capabilities: dict[str, Any]) -> None:
    bits, exact = capability_bits(capabilities)
    assert exact == (capabilities_of(bits) == capabilities)


def test_common_client_capabilities_fit_in_the_id() -> None:
    apps = {"extensions": {"io.modelcontextprotocol/ui": {"mimeTypes": ["text/html;profile=mcp-app"]}}}
    usual: list[dict[str, Any]] = [{}, {"roots": {"listChanged": True}}, {"sampling": {}, "elicitation": {}}, apps]
    for capabilities in usual:
        assert capability_bits(capabilities)[1]


def test_capabilities_must_be_objects() -> None:
    assert capability_bits({"sampling": True, "elicitation": None, "roots": []}) == (0, False)


def test_capability_bits_never_change_their_meaning() -> None:
    assert [capabilities_of(1 << bit) for bit in range(21)] == [
        {"sampling": {}},
        {"sampling": {"tools": {}}},
        {"sampling": {"context": {}}},
        {"elicitation": {}},
        {"elicitation": {"form": {}}},
        {"elicitation": {"url": {}}},
        {"roots": {}},
        {"roots": {"listChanged": True}},
        {"experimental": {}},
        {"tasks": {}},
        {"tasks": {"list": {}}},
        {"tasks": {"cancel": {}}},
        {"tasks": {"requests": {}}},
        {"tasks": {"requests": {"elicitation": {}}}},
        {"tasks": {"requests": {"elicitation": {"create": {}}}}},
        {"tasks": {"requests": {"sampling": {}}}},
        {"tasks": {"requests": {"sampling": {"createMessage": {}}}}},
        {"extensions": {}},
        {"extensions": {"io.modelcontextprotocol/ui": {}}},
        {"extensions": {"io.modelcontextprotocol/ui": {"mimeTypes": ["text/html;profile=mcp-app"]}}},
        {},
    ]


def test_changing_decoded_capabilities_does_not_affect_later_ones() -> None:
    every = (1 << 20) - 1
    capabilities_of(every)["extensions"]["io.modelcontextprotocol/ui"]["mimeTypes"].append("other")
    capabilities_of(every)["sampling"]["tools"]["other"] = 1
    assert capability_bits(capabilities_of(every)) == (every, True)
