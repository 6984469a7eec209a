import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import pydantic
import pytest

from bad_input.shop import make_shop
from cases import for_each
from millstream._protocol.admission import admit_per_request
from millstream._protocol.errors import PARSE_ERROR, UNSUPPORTED_VERSION, ProtocolError
from millstream._protocol.jsonrpc import (
    MAX_CONTAINERS,
    MAX_ID,
    MAX_LONG_NUMBERS,
    MAX_MEMBERS,
    Envelope,
    check_text,
    exceeds_limits,
    split_batch,
)
from millstream._server.calls.questions import Elicit, read_answer
from millstream._server.functions.msgspec_engine import MAX_VALUES
from millstream._server.functions.plan import ArgumentError, plan, read_arguments
from millstream._transports.rest import _read_envelope
from wire import POST, per_request, request, routing, run_wire

MIB = 1024 * 1024
RECURSIVE = {
    "type": "object",
    "properties": {"v": {"$ref": "#/$defs/n"}},
    "$defs": {"n": {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/n"}}, {"type": "integer"}]}},
}


class Sizes(pydantic.BaseModel):
    sizes: list[int]


def add(a: int, b: int = 1) -> int:
    return a + b


def total(of: list[int]) -> int:
    return sum(of)


def measure(of: Sizes) -> int:
    return sum(of.sizes)


def free(arguments: dict[str, Any]) -> int:
    return len(arguments)


def refusal(made: Any, raw: bytes) -> str:
    with pytest.raises(ArgumentError) as refused:
        read_arguments(made, raw)
    return str(refused.value)


def python_calls(work: Callable[[], object]) -> int:
    count = 0

    def note(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def peak(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def many(item: bytes, count: int) -> bytes:
    return b"[%b]" % b",".join([item] * count)


REFUSED = {
    "unknown": (add, b'{"a":1,"x":%b}', b"1.0"),
    "unknown after a whole float": (add, b'{"a":1.0,"x":%b}', b"1.0"),
    "a text among numbers": (total, b'{"of":%b}', b'"1"'),
    "floats for integers": (total, b'{"of":%b}', b"1.5"),
}


@for_each("case", REFUSED)
def test_rejecting_large_arguments_costs_no_more_than_small_ones(case: str) -> None:
    function, arguments, item = REFUSED[case]
    made = plan(function)
    small, large = (arguments % many(item, count) for count in (10, 200_000))
    few = python_calls(lambda: refusal(made, small))
    # Of several counts the lowest, since what other tests left behind may be cleared away meanwhile.
    assert min(python_calls(lambda: refusal(made, large)) for _ in range(3)) <= few


@for_each("case", ["unknown", "unknown after a whole float"])
def test_unknown_members_in_large_arguments_are_never_built(case: str) -> None:
    function, arguments, item = REFUSED[case]
    large = arguments % many(item, 500_000)
    assert peak(lambda: refusal(plan(function), large)) < MIB


def test_errors_list_every_unknown_name_unless_the_arguments_are_large() -> None:
    made = plan(add)
    names = b",".join(b'"k%d":1' % index for index in range(100_000))
    assert "unknown 'y', 'z'." in refusal(made, b'{"a":1,"y":1,"z":2}')
    assert "unknown field `k0`." in refusal(made, b'{"a":1,%b}' % names)


@for_each("options", [{}, {"input_schema": RECURSIVE}])
def test_slow_checks_limit_the_number_of_values(options: dict[str, Any]) -> None:
    made = plan(free, **options) if options else plan(measure)
    shape = b'{"v":%b}' if options else b'{"of":{"sizes":%b}}'
    assert f"at most {MAX_VALUES:,} values" in refusal(made, shape % many(b"1", MAX_VALUES + 2))
    assert read_arguments(made, shape % many(b"1", 50_000))


def distinct(words: set[str], note: str = "") -> int:
    return len(words)


def average(values: list[float]) -> float:
    return sum(values) / len(values)


@for_each("item", [b'""', b'"a"'])
def test_value_count_is_limited_for_slow_types(item: bytes) -> None:
    assert f"at most {MAX_VALUES:,} values" in refusal(plan(distinct), b'{"words":%b}' % many(item, MAX_VALUES + 2))


def test_value_limit_ignores_float_lists_and_commas_in_strings() -> None:
    assert len(read_arguments(plan(average), b'{"values":%b}' % many(b"1.5", MAX_VALUES + 2)).values) == MAX_VALUES + 2
    table = b'{"%b":%b,"note":"%b"}'
    assert read_arguments(plan(distinct), table % (b"words", many(b'"a"', 1), b"1,2,3\\n" * MAX_VALUES)).note
    models = b'{"of":{"sizes":[1],"note":"%b"}}' % (b"1,2,3\\n" * MAX_VALUES)
    assert read_arguments(plan(measure), models).of.sizes == [1]


def test_pydantic_problems_are_not_built_for_large_arguments() -> None:
    made = plan(measure)
    text = refusal(made, b'{"of":{"sizes":%b}}' % many(b'"x"', 50_000))
    assert "50000 problems" in text
    few = refusal(made, b'{"of":{"sizes":%b}}' % many(b'"x"', 25))
    assert few.count("must be an integer") == 5
    assert "and 20 more" in few


TOO_MANY_NUMBERS = "more than 5,000 numbers with very many digits or very large exponents"


@for_each(
    ("item", "most", "reason"),
    [
        *((item, MAX_CONTAINERS, "more than 100,000 arrays and objects") for item in (b"[]", b"{}", b'{"a":"["}')),
        *((item, MAX_LONG_NUMBERS + 1, TOO_MANY_NUMBERS)
          for item in (b"1.5e300", b"-5E-324", b"1.5e+0300", b"1.2345678901234567890123456789e-30")),
    ],
)  # fmt: skip
def test_messages_with_too_many_containers_or_slow_numbers_are_rejected_before_parsing(
    item: bytes, most: int, reason: str
) -> None:
    check_text(many(item, most - 1))
    with pytest.raises(ProtocolError) as refused:
        check_text(many(item, most))
    assert (refused.value.code, refused.value.status) == (PARSE_ERROR, 400)
    assert refused.value.message.startswith(f"Parse error: {reason}")


def test_brackets_in_strings_are_not_counted() -> None:
    """RFC 8259 §7."""
    assert not exceeds_limits(b'{"text":"%b"}' % (b"[{" * MAX_CONTAINERS))


@for_each(
    "item",
    [
        b'"1.5e300"',
        b'"\\"1.5e300"',
        b"1.5e100",
        b"-1.2345678901234567e-05",
        b"1.234567890123456789e-30",
        b"0.3000000000000000444089209850062616169452667236328125",
        b"7" * 400,
    ],
)
def test_fast_numbers_and_digits_in_strings_are_not_counted(item: bytes) -> None:
    assert not exceeds_limits(many(item, MAX_LONG_NUMBERS * 2))


def test_oversized_batches_are_rejected_at_the_first_excess_item() -> None:
    body = many(b"1", 1_000_000)

    def refuse() -> None:
        with pytest.raises(ProtocolError, match="at most 50 messages"):
            split_batch(body, 50)

    refuse()
    assert peak(refuse) < MIB


@for_each("tool", ["ask", "add"])
async def test_excess_answers_are_rejected_before_parsing(tool: str) -> None:
    mcp = make_shop()
    async with run_wire(mcp, "asgi") as wire:
        responses = {f"k{number}": number for number in range(60_000)}
        params = {"name": tool, "arguments": {}, "inputResponses": responses}
        reply = await wire.post(per_request("tools/call", params, elicitation={}), routing("tools/call", tool))
        assert reply.error[1] == -32602
        assert "inputResponses" in reply.message["error"]["message"]


MANY = {f"k{number}": "" for number in range(MAX_MEMBERS + 1)}


@for_each(
    ("method", "params"),
    [
        ("prompts/get", {"name": "greet", "arguments": {**MANY, "name": "Ada"}}),
        (
            "completion/complete",
            {
                "ref": {"type": "ref/prompt", "name": "greet"},
                "argument": {"name": "name", "value": ""},
                "context": {"arguments": MANY},
            },
        ),
    ],
)
async def test_excess_prompt_arguments_are_rejected_before_parsing(method: str, params: dict[str, Any]) -> None:
    async with run_wire(make_shop(), "asgi") as wire:
        reply = await wire.post(request(method, params))
        assert reply.message["error"] == {"code": -32602, "message": "Invalid params: more than 50,000 members"}
        few = {"context": {}, "arguments": {"name": "Ada"}}
        assert "result" in (await wire.post(request(method, {**params, **few}))).message


def test_websocket_dialect_parameters_are_not_parsed() -> None:
    members = b",".join(b'"k%d":1' % number for number in range(200_000))
    body = b'{"params":{%b}}' % members
    assert peak(lambda: _read_envelope(body, "tools/list")) < 2 * len(body)


def test_answers_with_too_many_fields_are_rejected_before_parsing() -> None:
    form = Elicit("Who?", {"type": "object", "properties": {"name": {"type": "string"}}})
    members = b",".join(b'"k%d":1' % number for number in range(MAX_MEMBERS + 1))
    assert read_answer(form, b'{"action":"accept","content":{"name":"Ada","more":1}}') == {"name": "Ada", "more": 1}
    with pytest.raises(ProtocolError, match="content has more than 50,000 members"):
        read_answer(form, b'{"action":"accept","content":{%b}}' % members)


LONG = "x" * MIB
WITH_TOKEN = {"name": "add", "arguments": {"a": 1, "b": 2}}


@for_each(
    ("method", "params"),
    [
        (LONG, {}),
        ("tools/call", {"name": LONG}),
        ("prompts/get", {"name": LONG}),
        ("resources/read", {"uri": LONG}),
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": LONG}, "argument": {"name": "", "value": ""}}),
        ("completion/complete", {"ref": {"type": "ref/resource", "uri": LONG}, "argument": {"name": "", "value": ""}}),
        (
            "completion/complete",
            {"ref": {"type": "ref/prompt", "name": "greet"}, "argument": {"name": LONG, "value": ""}},
        ),
        ("logging/setLevel", {"level": LONG}),
        ("tools/list", {"cursor": LONG}),
        ("tools/call", {"name": "add", "arguments": {LONG: 1}}),
        ("tools/call", {"name": "add", "arguments": {"a": LONG, "b": 1}}),
    ],
)
async def test_rejections_quote_only_the_beginning_of_the_input(method: str, params: dict[str, Any]) -> None:
    async with run_wire(make_shop(), "asgi") as wire:
        reply = await wire.post(request(method, params))
        assert "error" in reply.message or reply.message["result"]["isError"]
        assert len(reply.body) < 10_000


def test_rejected_versions_are_quoted_in_part() -> None:
    params = (
        b'{"_meta":{"io.modelcontextprotocol/protocolVersion":"%b","io.modelcontextprotocol/clientCapabilities":{}}}'
    )
    message = Envelope(1, "ping", params % LONG.encode())
    with pytest.raises(ProtocolError) as refused:
        admit_per_request(message, serves=lambda *_: True, requires=lambda *_: {})
    assert refused.value.code == UNSUPPORTED_VERSION
    assert refused.value.data["requested"] == "x" * 200 + "…"


@for_each("length", [MAX_ID + 1, MIB])
async def test_progress_tokens_have_the_same_length_limit_as_ids(length: int) -> None:
    params = {**WITH_TOKEN, "_meta": {"progressToken": "t" * length}}
    later = per_request("tools/call", WITH_TOKEN)
    later["params"]["_meta"]["progressToken"] = "t" * length
    async with run_wire(make_shop(), "asgi") as wire:
        for reply in (
            await wire.post(request("tools/call", params)),
            await wire.post(later, routing("tools/call", "add")),
            await wire.post(later, {**routing("tools/call", "add"), "accept": POST["accept"] + ", */*"}),
        ):
            assert reply.error[1:] == (-32602, 1)
            assert f"{MAX_ID}" in reply.message["error"]["message"]
            assert len(reply.body) < 1000
        session = await wire.initialize("2025-03-26")
        (batched,) = (await wire.post([request("tools/call", params)], session)).message
        assert (batched["id"], batched["error"]["code"]) == (1, -32602)
        params["_meta"]["progressToken"] = later["params"]["_meta"]["progressToken"] = "t" * MAX_ID
        assert "result" in (await wire.post(request("tools/call", params))).message
        assert "result" in (await wire.post(later, routing("tools/call", "add"))).message
