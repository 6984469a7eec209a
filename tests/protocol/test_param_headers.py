"""``x-mcp-header``: annotations, the Base64 sentinel, and the comparison with arguments (MCP 2026-07-28,
server/tools#x-mcp-header).
"""

from base64 import b64encode
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import for_each
from millstream._protocol.errors import HEADER_MISMATCH, ProtocolError
from millstream._protocol.metadata import (
    ParamHeader,
    check,
    decode_name,
    decode_value,
    encode_value,
    find_annotations,
)
from strategies import bytewise, texts, visible_texts

REGION: dict[str, Any] = {"type": "string", "x-mcp-header": "Region"}


def tool(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties}


def decode_error(raw: bytes) -> str:
    with pytest.raises(ProtocolError) as caught:
        decode_value(raw, "mcp-param-x")
    assert (caught.value.code, caught.value.status) == (HEADER_MISMATCH, 400)
    assert "mcp-param-x" in caught.value.message
    return caught.value.message


# annotations


def test_header_annotations_are_found_in_schema_order() -> None:
    """MCP 2026-07-28, server/tools#x-mcp-header."""
    schema = tool(
        region=REGION,
        where={"type": "object", "properties": {"shelf": {"type": "integer", "x-mcp-header": "X-Shelf"}}},
        plain={"type": "string"},
        dry={"type": "boolean", "x-mcp-header": "dry"},
    )
    assert find_annotations(schema) == (
        ParamHeader(("region",), b"mcp-param-region", "string"),
        ParamHeader(("where", "shelf"), b"mcp-param-x-shelf", "integer"),
        ParamHeader(("dry",), b"mcp-param-dry", "boolean"),
    )


@for_each("schema", [{}, {"type": "object"}, tool(), tool(a=True), {"properties": None}])
def test_schemas_without_annotations_have_no_headers(schema: dict[str, Any]) -> None:
    assert find_annotations(schema) == ()


def test_data_that_looks_like_an_annotation_is_ignored() -> None:
    trap = {"x-mcp-header": "No"}
    schema = tool(**{"x-mcp-header": {"type": "number", "default": trap, "enum": [trap], "examples": [trap]}})
    assert find_annotations(schema) == ()


@for_each("token", ["", "a b", "a:b", "a\r\nb", "ä", "a\n", None, 7, ["a"]])
def test_header_names_must_be_tokens(token: Any) -> None:
    """RFC 9110 §5.6.2; a line end in a name would split the client's request."""
    with pytest.raises(ValueError, match=r"inputSchema\.properties\.a: .*token"):
        find_annotations(tool(a={"type": "string", "x-mcp-header": token}))


@for_each("kind", ["number", "object", "array", "null", ["string", "null"], None])
def test_only_strings_integers_and_booleans_may_be_annotated(kind: Any) -> None:
    """MCP 2026-07-28, server/tools#x-mcp-header."""
    with pytest.raises(ValueError, match="string, integer, or boolean"):
        find_annotations(tool(a={"type": kind, "x-mcp-header": "A"}))
    with pytest.raises(ValueError, match="string, integer, or boolean"):
        find_annotations(tool(a={"x-mcp-header": "A"}))


def test_header_names_are_unique_ignoring_case() -> None:
    """MCP 2026-07-28, server/tools#x-mcp-header: header names have no case."""
    with pytest.raises(ValueError, match=r"properties\.b: x-mcp-header 'REGION' is already used by 'a'"):
        find_annotations(tool(a=REGION, b={"type": "string", "x-mcp-header": "REGION"}))


@for_each(
    "schema",
    [
        REGION,
        {"$defs": {"a": REGION}},
        {"patternProperties": {"a": REGION}},
        {"dependentSchemas": {"a": tool(b=REGION)}},
        {"dependencies": {"a": ["b"], "c": tool(b=REGION)}},
        {"allOf": [True, tool(b=REGION)]},
        {"if": tool(b=REGION)},
        {"additionalProperties": REGION},
        tool(a={"type": "array", "items": REGION}),
        tool(a={"type": "array", "items": [REGION]}),
        tool(a={"anyOf": [REGION, {"type": "null"}]}),
    ],
)
def test_annotations_outside_of_properties_are_rejected(schema: dict[str, Any]) -> None:
    """MCP 2026-07-28, server/tools#x-mcp-header."""
    with pytest.raises(ValueError, match="properties reached through 'properties' alone"):
        find_annotations(schema)


# the text of values


@for_each("value", ["", "us-east 1", "a\tb", "~", "=?base64?", "?=", "=?base64?=", "=?BASE64?QQ==?="])
def test_plain_values_are_sent_unchanged(value: str) -> None:
    """MCP 2026-07-28, server/tools#x-mcp-header."""
    assert encode_value(value) == value
    assert decode_value(value.encode()) == value


@for_each("value", [" a", "a ", "\ta", "ä", "a\nb", "\x7f", "\0", "=?base64?QQ==?=", "=?base64??="])
def test_values_that_headers_cannot_hold_are_sent_encoded(value: str) -> None:
    """MCP 2026-07-28, server/tools#x-mcp-header."""
    assert encode_value(value) == f"=?base64?{b64encode(value.encode()).decode()}?="
    assert decode_value(encode_value(value).encode()) == value


def test_whitespace_around_header_values_is_stripped() -> None:
    """RFC 9110 §5.5."""
    assert decode_value(b" \t a b\t ") == "a b"
    assert decode_value(b" =?base64?IA==?= ") == " "


@for_each(
    "payload", [b"Q", b"QQ", b"QQ=", b"QQ===", b"QR==", b"Q Q==", b"QQ==QQ==", b"=QQ=", b"Q-_=", b"QQ\t==", b"/w=="]
)
def test_base64_is_decoded_strictly(payload: bytes) -> None:
    """Conformance §4.4: padding and alphabet; ``QR==`` is a second spelling of ``QQ==``, and ``/w==`` is not UTF-8."""
    assert "Base64" in decode_error(b"=?base64?" + payload + b"?=")


@for_each("raw", [b"\xc3\xa4", b"a\x00", b"a\nb", b"\x7f", b"=?base64?\xff?="])
def test_characters_outside_visible_ascii_are_rejected(raw: bytes) -> None:
    """MCP 2026-07-28, server/tools#x-mcp-header."""
    assert "visible ASCII" in decode_error(raw)


def test_mcp_name_is_decoded_like_parameter_headers() -> None:
    """MCP 2026-07-28, basic/transports/streamable-http."""
    assert decode_name(b"=?base64?w6Q=?=") == "ä"
    with pytest.raises(ProtocolError, match="Mcp-Name"):
        decode_name(b"\xff")


@given(texts | visible_texts)
def test_strings_round_trip_through_headers(value: str) -> None:
    text = encode_value(value)
    assert text.isascii()
    assert text == text.strip()
    assert all(character.isprintable() or character == "\t" for character in text)
    assert decode_value(text.encode()) == value


@given(st.binary() | st.binary().map(lambda raw: b"=?base64?" + raw + b"?="))
def test_arbitrary_header_bytes_decode_or_mismatch(raw: bytes) -> None:
    for piece in (raw, *bytewise(raw), raw + b"?="):
        try:
            value = decode_value(piece)
        except ProtocolError:
            decode_error(piece)
        else:
            assert decode_value(encode_value(value).encode()) == value


# comparison

PARAMS = (
    ParamHeader(("s",), b"mcp-param-s", "string"),
    ParamHeader(("o", "i"), b"mcp-param-i", "integer"),
    ParamHeader(("b",), b"mcp-param-b", "boolean"),
)


def mismatch(headers: dict[bytes, bytes], arguments: dict[str, Any]) -> str:
    with pytest.raises(ProtocolError) as caught:
        check(PARAMS, headers, arguments)
    assert (caught.value.code, caught.value.status) == (HEADER_MISMATCH, 400)
    return caught.value.message


def test_equal_headers_pass_and_unknown_ones_are_ignored() -> None:
    """MCP 2026-07-28, server/tools#x-mcp-header."""
    headers = {
        b"mcp-param-s": b" =?base64?w6Q=?=",
        b"mcp-param-i": b"-7",
        b"mcp-param-b": b"true",
        b"mcp-param-z": b"\0",
    }
    check(PARAMS, headers, {"s": "ä", "o": {"i": -7}, "b": True})
    check(PARAMS, {b"mcp-param-b": b"false", b"mcp-param-s": b""}, {"b": False, "s": ""})


@for_each("arguments", [{}, {"s": None, "o": None}, {"o": {}}, {"o": {"i": None}}, {"o": [1]}])
def test_absent_and_null_arguments_have_no_header(arguments: dict[str, Any]) -> None:
    """MCP 2026-07-28, server/tools#x-mcp-header."""
    check(PARAMS, {}, arguments)
    assert "mcp-param-i is present" in mismatch({b"mcp-param-i": b"1"}, arguments)


@for_each("arguments", [{"s": ""}, {"s": "x"}, {"s": [1]}])
def test_an_argument_without_its_header_is_rejected(arguments: dict[str, Any]) -> None:
    """MCP 2026-07-28, server/tools#x-mcp-header."""
    assert "mcp-param-s is missing" in mismatch({}, arguments)


@for_each(
    ("raw", "value"),
    [(b"42", 42), (b"42.0", 42), (b"42", 42.0), (b"42.000", 42), (b"-0", 0), (b"042", 42),
     (b"9007199254740991", 2**53 - 1), (b"-9007199254740991", 1 - 2**53)],
)  # fmt: skip
def test_integers_compare_by_value(raw: bytes, value: float) -> None:
    """MCP 2026-07-28, server/tools#x-mcp-header: ``42.0`` = ``42``."""
    check(PARAMS, {b"mcp-param-i": raw}, {"o": {"i": value}})


@for_each(
    ("raw", "value"),
    [(b"42", 43), (b"42.5", 42), (b"42.5", 42.5), (b"", 0), (b"4_2", 42), (b"+42", 42), (b"0x2a", 42), (b"42.", 42),
     (b"=?base64?2aQ=?=", 4), (b"true", 1), (b"1", True), (b"9007199254740992", 2**53),
     (b"-9007199254740992", -(2**53)), (b"9007199254740990.6", 2**53 - 1), (b"1" * 5000, 1),
     (b"1", [1]), (b"1", {"a": 1}), (b"inf", float("inf"))],
)  # fmt: skip
def test_unusual_spellings_and_large_integers_never_match(raw: bytes, value: Any) -> None:
    """MCP 2026-07-28, server/tools#x-mcp-header."""
    assert "mcp-param-i doesn't match" in mismatch({b"mcp-param-i": raw}, {"o": {"i": value}})


@for_each("raw", [b"True", b"1", b"", b"false"])
def test_booleans_have_exactly_one_spelling(raw: bytes) -> None:
    """MCP 2026-07-28, server/tools#x-mcp-header."""
    assert "mcp-param-b doesn't match" in mismatch({b"mcp-param-b": raw}, {"b": True})


def test_strings_are_compared_exactly_and_invalid_sentinels_are_rejected() -> None:
    """MCP 2026-07-28, server/tools#x-mcp-header: values are case-sensitive."""
    assert "mcp-param-s doesn't match argument 's'" in mismatch({b"mcp-param-s": b"EU"}, {"s": "eu"})
    assert "mcp-param-s isn't Base64" in mismatch({b"mcp-param-s": b"=?base64?Q?="}, {"s": "eu"})


def test_arguments_of_the_wrong_type_are_left_to_the_validator() -> None:
    check(PARAMS, {b"mcp-param-i": b"many"}, {"o": {"i": "many"}})
