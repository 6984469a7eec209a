import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import for_each
from millstream._protocol.errors import ProtocolError
from millstream._protocol.foreign import read_foreign
from millstream._protocol.jsonrpc import (
    _NOT_COLONS,
    MAX_CONTAINERS,
    MAX_MEMBERS,
    _outside_strings,
    exceeds_limits,
    too_many_members,
)
from strategies import bytewise, json_values


def depth_of(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max((depth_of(member) for member in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((depth_of(member) for member in value), default=0)
    return 0


def test_bodies_with_few_brackets_skip_the_depth_scan() -> None:
    assert not exceeds_limits(b"[" * 64)
    assert not exceeds_limits(b"")


@for_each("opening", [b"[", b'{"a":', b'[{"a":'])
def test_depth_64_passes_and_65_is_rejected(opening: bytes) -> None:
    levels = opening.count(b"[") + opening.count(b"{")
    closing = {b"[": b"]", b'{"a":': b"}", b'[{"a":': b"}]"}[opening]
    times = 64 // levels
    assert not exceeds_limits(b"[" + (opening * times + b"0" + closing * times)[1:] + b"[]" * 80)
    assert exceeds_limits(b"[" + opening * times + b"0" + closing * times + b"]")


def test_many_shallow_arrays_are_not_deep() -> None:
    assert not exceeds_limits(b"[" + b",".join([b'{"a":[]}'] * 1000) + b"]")


@for_each(
    "text",
    [
        '"' + "[" * 100 + '"',
        '"\\"' + "[" * 100 + '"',
        '"\\\\\\"' + "{" * 100 + '"',
        '["' + "[" * 50 + '","' + "{" * 50 + '"]',
        '{"' + "[" * 100 + '":"","":"\\\\"}',
    ],
)
def test_brackets_inside_strings_do_not_count(text: str) -> None:
    """RFC 8259 §7: a string may hold brackets, and a quote after an odd run of backslashes."""
    json.loads(text)
    assert not exceeds_limits(text.encode())


def test_brackets_count_after_a_string_with_an_escaped_backslash_at_the_end() -> None:
    """RFC 8259 §7: the quote after an even run of backslashes closes the string."""
    text = '["\\\\",' + "[" * 64 + "]" * 64 + "]"
    json.loads(text)
    assert exceeds_limits(text.encode())


def test_unbalanced_input_is_not_deep() -> None:
    assert not exceeds_limits(b'"' + b"[" * 100)
    assert not exceeds_limits(b'"' + b"[" * 100 + b"\\")
    assert not exceeds_limits(b"]" * 100 + b"[" * 100)


@given(json_values, st.integers(0, 6))
def test_depth_check_agrees_with_a_recursive_count(value: Any, limit: int) -> None:
    for ascii_only in (True, False):
        body = json.dumps(value, ensure_ascii=ascii_only).encode()
        assert bool(exceeds_limits(body, limit)) == (depth_of(value) > limit)


@given(st.text('[]{}"\\a'), st.integers(0, 3))
def test_json_depth_is_measured_exactly(text: str, limit: int) -> None:
    try:
        value = json.loads(text)
    except ValueError:
        exceeds_limits(text.encode(), limit)
    else:
        assert bool(exceeds_limits(text.encode(), limit)) == (depth_of(value) > limit)


@given(st.binary())
def test_depth_check_accepts_any_bytes(body: bytes) -> None:
    for piece in (body, *bytewise(body), body + b"\xff]"):
        assert isinstance(exceeds_limits(piece, 0), str)


def test_depth_scan_runs_no_python_loop() -> None:

    def lines(body: bytes) -> int:
        count = 0

        def trace(frame: Any, event: str, arg: Any) -> Any:
            nonlocal count
            count += 1
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            exceeds_limits(body)
        finally:
            sys.settrace(before)
        return count

    for text in (b'["]\\"",{}]', b'["]\\"",1.5e300]', b'["e300",1.5e30]'):
        assert lines(text * 10_000) == lines(text * 40_000)


def test_colons_inside_strings_are_not_counted_as_members() -> None:
    members = b",".join(b'"%d":{}' % number for number in range(MAX_MEMBERS))
    assert not too_many_members(b"{%b}" % members)
    assert too_many_members(b'{%b,"\\"":0}' % members)
    log = json.dumps('at 12:34:56 \\ "one": two\n' * MAX_MEMBERS).encode()
    assert not too_many_members(b'{"text":%b,"more":%b}' % (log, log))


@given(json_values)
def test_every_member_is_counted(value: Any) -> None:
    def count(value: Any) -> int:
        if isinstance(value, dict):
            return len(value) + sum(map(count, value.values()))
        return sum(map(count, value)) if isinstance(value, list) else 0

    body = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert len(_outside_strings(body, None, _NOT_COLONS)) == count(value)


@for_each("items", [b"{}," * (MAX_CONTAINERS + 1), b"1," * 2**20])
def test_only_messages_that_are_cheap_to_repair_are_repaired(items: bytes) -> None:
    around = b'{"jsonrpc":"2.0","id":1,"result":{"a":[%bNaN]}}'
    assert read_foreign(around % b"{},").id == 1
    with pytest.raises(ProtocolError, match="malformed"):
        read_foreign(around % items)
