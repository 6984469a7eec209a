import asyncio
import json
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millstream._transports.rest import RestRoutes
from property_settings import examples
from rest_world import post, routes, world
from strategies import json_values

MEMBERS = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | json_values,
        "id": st.integers() | st.text() | json_values,
        "method": st.sampled_from(["tools/call", "tools/list"]) | json_values,
        "params": json_values,
        "name": st.sampled_from(list(world().registry.tools)) | json_values,
        "arguments": json_values,
        "cursor": json_values,
    },
)
BODIES = st.binary(max_size=200) | (json_values | MEMBERS).map(lambda value: json.dumps(value).encode())
STATUSES = {200, 400, 404, 409, 415, 422}


@pytest.fixture(scope="module")
def loop() -> Iterator[tuple[asyncio.Runner, RestRoutes]]:
    """One running server for all examples."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        rest = runner.run(stack.enter_async_context(routes(world())))
        yield runner, rest
        runner.run(stack.aclose())


@settings(max_examples=examples(13))
@given(path=st.sampled_from(["list", "call"]), body=BODIES)
def test_dialect_replies_with_json_rpc(loop: tuple[asyncio.Runner, RestRoutes], path: str, body: bytes) -> None:
    runner, rest = loop
    handler = rest.list_tools if path == "list" else rest.call_tool
    response = runner.run(handler(post(f"/mcp/tools/{path}", body)))
    reply = json.loads(response.body)
    assert response.status in {200, 400}
    assert reply["jsonrpc"] == "2.0"
    assert ("result" in reply) != ("error" in reply)
    if response.status == 200:
        assert reply.get("id") == (json.loads(body).get("id") if body else None)


@settings(max_examples=examples(13))
@given(name=st.sampled_from(list(world().registry.tools)) | st.text(max_size=12), body=BODIES)
def test_rest_replies_with_a_value_or_a_problem(
    loop: tuple[asyncio.Runner, RestRoutes], name: str, body: bytes
) -> None:
    runner, rest = loop
    response = runner.run(rest.run_tool(post(f"/tools/{name}", body)))
    reply = json.loads(response.body)
    assert response.status in STATUSES
    if response.status != 200:
        assert reply["status"] == response.status
        assert b"problem+json" in response.head
