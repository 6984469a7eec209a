import json

import pytest

from cases import for_each
from millstream import ProtocolError
from millstream._protocol.jsonrpc import (
    MAX_ID,
    Envelope,
    check_text,
    error_message,
    notification_message,
    read,
    request_message,
    require_json,
    result_message,
    split_batch,
)
from millstream.protocol import INVALID_REQUEST

PARSE_ERROR = -32700


def code_of(body: bytes) -> int:
    with pytest.raises(ProtocolError) as raised:
        read(body)
    return raised.value.code


def test_requests_keep_the_id_type_and_raw_params() -> None:
    """JSON-RPC 2.0, section 5: identifiers are echoed with their type."""
    assert read(b'{"jsonrpc":"2.0","id":0,"method":"a","params":{"x": 1}}') == Envelope(0, "a", b'{"x": 1}')
    assert read(b'{"jsonrpc":"2.0","id":"0","method":"a"}') == Envelope("0", "a", b"")
    assert read(b'{"jsonrpc":"2.\\u0030","id":1,"method":"a"}').is_request


def test_the_last_of_duplicate_keys_wins_and_unknown_keys_are_ignored() -> None:
    assert read(b'{"jsonrpc":"2.0","id":1,"id":2,"Method":"x","method":"a","method":"b"}') == Envelope(2, "b", b"")


def test_notifications_and_responses_are_distinguished() -> None:
    """JSON-RPC 2.0 §4.1."""
    notification = read(b'{"jsonrpc":"2.0","method":"notifications/initialized"}')
    assert not notification.is_request
    assert not notification.is_answer
    assert read(b'{"jsonrpc":"2.0","id":1,"result":{}}') == Envelope(1, "", b"", b"{}")
    assert read(b'{"jsonrpc":"2.0","id":null,"error":{"code":1,"message":"x"}}').is_answer


@for_each(
    ("body", "message"),
    [
        (b'{"jsonrpc":"2.0","id":1,"result":{},"error":null}', Envelope(1, "", b"", b"{}")),
        (b'{"jsonrpc":"2.0","id":1,"result":null,"error":{}}', Envelope(1, "", b"", b"", b"{}")),
        (b'{"jsonrpc":"2.0","id":1,"method":null,"params":null,"result":{},"error":null}', Envelope(1, "", b"", b"{}")),
        (b'{"jsonrpc":"2.0","id":1,"result":null,"error":null}', Envelope(1, "", b"", b"null")),
        (b'{"jsonrpc":"2.0","id":null,"result":null,"error":{}}', Envelope(None, "", b"", b"", b"{}")),
        (b'{"jsonrpc":"2.0","id":1,"method":"a","result":null,"error":null}', Envelope(1, "a", b"")),
        (b'{"jsonrpc":"2.0","method":"a","params":null}', Envelope(None, "a", b"")),
        (
            b'{"jsonrpc":"2.0","id":null,"method":"notifications/a","params":{}}',
            Envelope(None, "notifications/a", b"{}"),
        ),
    ],
)
def test_null_members_are_treated_as_absent(body: bytes, message: Envelope) -> None:
    assert read(body) == message


def test_an_empty_array_is_read_as_no_parameters() -> None:
    """PHP encodes an empty object in this way."""
    assert read(b'{"jsonrpc":"2.0","method":"a","params":[]}') == Envelope(None, "a", b"")


def test_ids_written_as_whole_floats_are_read_as_integers() -> None:
    """As Gson does after it has read a number without a type."""
    assert read(b'{"jsonrpc":"2.0","id":7.0,"result":{}}').id == 7
    assert read(b'{"jsonrpc":"2.0","id":"7.0","method":"a"}').id == "7.0"


def test_a_byte_order_mark_is_ignored() -> None:
    """RFC 8259 §8.1. PowerShell and some Windows programs write one."""
    assert read(b'\xef\xbb\xbf{"jsonrpc":"2.0","id":1,"method":"a"}') == Envelope(1, "a", b"")


@for_each(
    "body",
    [
        b'{"id":1,"method":"a"}',
        b'{"jsonrpc":2.0,"id":1,"method":"a"}',
        b'{"jsonrpc":"2.0","id":null,"method":"a"}',
        b'{"jsonrpc":"2.0","id":null,"result":{}}',
        b'{"jsonrpc":"2.0","id":1.5,"method":"a"}',
        b'{"jsonrpc":"2.0","id":true,"method":"a"}',
        b'{"jsonrpc":"2.0","id":{},"method":"a"}',
        b'{"jsonrpc":"2.0","id":1,"method":7}',
        b'{"jsonrpc":"2.0","id":1,"method":""}',
        b'{"jsonrpc":"2.0","id":1,"method":"a","params":[1]}',
        b'{"jsonrpc":"2.0","id":1,"method":"a","result":{}}',
        b'{"jsonrpc":"2.0","id":1}',
        b'{"jsonrpc":"2.0","id":1,"result":{},"error":{}}',
        b'{"jsonrpc":"2.0","result":{}}',
        b"[]",
        b'"text"',
        b"7",
    ],
)
def test_json_that_is_not_a_message_is_an_invalid_request(body: bytes) -> None:
    assert code_of(body) == INVALID_REQUEST


@for_each("body", [b"", b"{", b'{"id":NaN}', b"\xef\xbb\xbf", b"{} {}", b'"unclosed', b"nul", b"[" * 9999])
def test_invalid_json_is_a_parse_error(body: bytes) -> None:
    assert code_of(body) == PARSE_ERROR


def test_utf8_is_checked_in_undecoded_parts() -> None:
    check_text(b'{"a":"\xc3\xa9"}')
    for body in (b'{"a":"\xff"}', b"[" * 65 + b"]" * 65):
        with pytest.raises(ProtocolError) as raised:
            check_text(body)
        assert raised.value.code == PARSE_ERROR
    with pytest.raises(ProtocolError):
        require_json(b"[1,")


def test_batch_is_split_into_raw_elements() -> None:
    """MCP 2025-03-26, basic."""
    assert split_batch(b'[ {"a":1} ,7]', 2) == [b'{"a":1}', b"7"]
    for body, code in ((b"[]", INVALID_REQUEST), (b"[1,2,3]", INVALID_REQUEST), (b"[1", PARSE_ERROR)):
        with pytest.raises(ProtocolError) as raised:
            split_batch(body, 2)
        assert raised.value.code == code


def test_messages_are_compact_json() -> None:
    """HTML, server-sent events: no raw newline can be in a data line."""
    assert result_message("a\n", b"{}") == b'{"jsonrpc":"2.0","id":"a\\n","result":{}}'
    assert json.loads(error_message(None, -1, "x")) == {"jsonrpc": "2.0", "error": {"code": -1, "message": "x"}}
    assert json.loads(error_message(1, -1, "x", {"a": 1}))["error"]["data"] == {"a": 1}
    assert notification_message("n") == b'{"jsonrpc":"2.0","method":"n"}'
    assert notification_message("n", {"a": 1}) == b'{"jsonrpc":"2.0","method":"n","params":{"a":1}}'
    assert request_message(1, "m", None) == b'{"jsonrpc":"2.0","id":1,"method":"m"}'
    assert request_message(1, "m", {}) == b'{"jsonrpc":"2.0","id":1,"method":"m","params":{}}'


def test_ids_are_bounded() -> None:
    fits = '"' + "x" * (MAX_ID - 2) + '"'
    assert read(b'{"jsonrpc":"2.0","id":%b,"method":"ping"}' % fits.encode()).id == "x" * (MAX_ID - 2)
    with pytest.raises(ProtocolError):
        read(b'{"jsonrpc":"2.0","id":"x%b,"method":"ping"}' % fits.encode()[1:])
