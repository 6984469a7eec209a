"""Results are compared with the output schemas that the client has listed (MCP, server/tools#output-schema)."""

from typing import Any

import pytest

from cases import for_each
from client.misbehaving_servers import (
    Behave,
    ReceivedRequest,
    assert_readable,
    connected,
    with_discovery,
    with_handshake,
)
from millstream.client import InvalidResponse

NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TEXT = {"type": "object", "properties": {"n": {"type": "string"}}, "required": ["n"]}


def listing(*schemas: Any, **result: Any) -> Behave:
    """List one tool, each time with the next schema, and give every call the same result."""
    left = list(schemas)

    async def behave(asked: ReceivedRequest) -> None:
        about = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
        if asked.method == "tools/list":
            schema = left.pop(0) if len(left) > 1 else left[0]
            tool = {"name": "count", "inputSchema": {"type": "object"}, **({"outputSchema": schema} if schema else {})}
            await asked.result({**about, "tools": [tool]})
        else:
            await asked.result({"resultType": "complete", "content": [{"type": "text", "text": "x"}], **result})

    return behave


@for_each("era", [with_discovery, with_handshake])
@for_each(
    ("result", "says"),
    [
        ({"structuredContent": {"n": "three"}}, "'n' must be an integer"),
        ({"structuredContent": {}}, "missing 'n'"),
        ({}, "it has no structured content"),
    ],
)
async def test_results_that_do_not_match_the_listed_schema_raise(era: Any, result: Any, says: str) -> None:
    async with connected(era(listing(NUMBER, **result))) as (_, client):
        assert (await client.call("count")).text == "x"  # nothing is listed yet
        await client.tools()
        for _ in range(2):
            with pytest.raises(InvalidResponse) as caught:
                await client.call("count")
            assert_readable(caught.value, "The result of 'count' doesn't match its output schema: ", says)
        assert (await client.call("count", raise_on_error=False)).text == "x"


@for_each(
    ("schemas", "result"),
    [
        ([NUMBER], {"structuredContent": {"n": 3, "more": [1]}}),
        ([NUMBER], {"isError": False, "structuredContent": {"n": 3}}),
        ([None], {"structuredContent": {"n": "three"}}),
        ([NUMBER, TEXT], {"structuredContent": {"n": "three"}}),
        ([NUMBER, None], {}),
        ([{"anyOf": [True, NUMBER]}], {"structuredContent": {"n": "three"}}),
    ],
    ids=["more", "flag", "no schema", "changed", "dropped", "boolean"],
)
async def test_results_that_match_the_current_schema_are_returned(schemas: Any, result: Any) -> None:
    async with connected(with_discovery(listing(*schemas, **result))) as (_, client):
        await client.tools()
        assert (await client.call("count")).text == "x"


async def test_errors_need_no_structured_content() -> None:
    result = {"isError": True, "content": [{"type": "text", "text": "sold out"}]}
    async with connected(with_discovery(listing(NUMBER, **result))) as (_, client):
        await client.tools()
        assert (await client.call("count", raise_on_error=False)).is_error
