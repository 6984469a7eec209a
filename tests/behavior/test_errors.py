import asyncio
import json
import logging
import re

import pytest

from behavior.combinations import Combination, in_combinations
from behavior.conftest import Connect
from cases import for_each
from patience import WAIT

BAD_ARGUMENTS = [({}, "a"), ({"a": "many"}, "a"), ({"a": 1, "b": -1}, "b"), ({"a": 1.5}, "a"), ({"a": None}, "a")]


@in_combinations()
@for_each(("arguments", "named"), BAD_ARGUMENTS, ids=json.dumps)
async def test_invalid_arguments_are_reported_to_the_model(
    connect: Connect, combination: Combination, arguments: dict[str, object], named: str
) -> None:
    """MCP 2025-11-25, changelog."""
    reply = await (await connect(combination)).call("add", **arguments)
    if combination.revision < "2025-11-25":
        assert reply.error["code"] == -32602
        text = reply.error["message"]
    else:
        text = reply.failure
    assert re.search(rf"\b{named}\b", text), text


@in_combinations()
async def test_arguments_must_be_an_object(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, changelog."""
    client = await connect(combination)
    reply = await client.request("tools/call", {"name": "add", "arguments": [1, 2]})
    assert "error" in reply.message or reply.failure


@in_combinations()
async def test_unknown_tool_or_prompt_is_a_protocol_error(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, server/tools and 2025-11-25, server/prompts."""
    client = await connect(combination)
    for method in ("tools/call", "prompts/get"):
        reply = await client.request(method, {"name": "no such", "arguments": {}})
        assert reply.error["code"] == -32602
        assert "no such" in reply.error["message"]
        assert reply.status == (200 if combination.http else 0)


@in_combinations()
async def test_unknown_resource_gets_the_error_code_for_the_revision(
    connect: Connect, combination: Combination
) -> None:
    """MCP 2026-07-28, server/resources."""
    reply = await (await connect(combination)).request("resources/read", {"uri": "note://none"})
    assert reply.error["code"] == (-32002 if combination.handshake else -32602)
    assert reply.error["data"] == {"uri": "note://none"}


@in_combinations()
async def test_missing_params_are_rejected(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, schema."""
    client = await connect(combination)
    for method in ("resources/read", "completion/complete"):
        assert (await client.request(method)).error["code"] == -32602
    assert (await client.request("tools/call")).error["code"] == -32602


@in_combinations()
async def test_a_tool_error_is_text_for_the_model(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, server/tools."""
    assert (await (await connect(combination)).call("fails")).failure == "Nothing left in stock."


@in_combinations()
@pytest.mark.parametrize("tool", ["breaks", "lies"])
async def test_failures_are_logged_and_callers_get_only_an_incident(
    connect: Connect, combination: Combination, tool: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    client = await connect(combination)
    reply = await client.call(tool)
    text = reply.failure if tool == "breaks" else reply.error["message"]
    if tool == "lies":
        assert reply.error["code"] == -32603
    found = re.search(r"\b[0-9a-f]{16}\b", text)
    assert found is not None, text
    log = caplog.text + (client.process.log.read_text("utf-8") if client.process is not None else "")
    assert found[0] in log
    secret = "the secret" if tool == "breaks" else "'x' must be an integer"
    assert secret in log
    assert "secret" not in json.dumps(reply.message)
    assert "Error" not in text.replace("Internal error", "")
    assert "schema" not in text


@in_combinations()
async def test_failing_prompts_and_resources_return_only_an_incident(
    connect: Connect, combination: Combination
) -> None:
    client = await connect(combination)
    for method, params in (("prompts/get", {"name": "broken"}), ("resources/read", {"uri": "note://broken"})):
        reply = await client.request(method, params)
        assert reply.error["code"] == -32603
        assert re.search(r"\b[0-9a-f]{16}\b", reply.error["message"])
        assert "secret" not in json.dumps(reply.message)


@in_combinations()
async def test_tool_timeout_is_an_error_for_the_model(connect: Connect, combination: Combination) -> None:
    assert "sleeps" in (await (await connect(combination)).call("sleeps")).failure


@in_combinations()
async def test_timed_out_threads_keep_their_slot(connect: Connect, combination: Combination) -> None:
    client = await connect(combination)
    key = f"late {combination}"
    async with asyncio.timeout(WAIT):
        while (await client.call("journal", key=key)).text.count("begun") < 2:  # a thread may begin after the timeout
            assert re.search("blocks_too_long|busy", (await client.call("blocks_too_long", key=key)).failure)
    assert "blocks_too_long" in (await client.call("blocks_too_long", key=f"{key} again")).failure
    assert "begun" not in (await client.call("journal", key=f"{key} again")).text  # it has had no thread
    await client.call("open_gate", key=key)
    async with asyncio.timeout(WAIT):
        while (await client.call("text")).result.get("isError"):
            pass


@in_combinations("requests of its own")
async def test_tool_error_reports_the_missing_client_capability(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/versioning: -32021 before anything runs, status 400."""
    able = await connect(combination)
    assert (await able.call("needs_sampling")).text == "sampled"
    unable = await connect(combination, capabilities={})
    reply = await unable.call("needs_sampling")
    assert reply.error["code"] == -32021
    assert reply.error["data"] == {"requiredCapabilities": {"sampling": {}}}
    assert reply.status == (400 if combination.http else 0)


@in_combinations("handshake", "session")
async def test_missing_capability_is_rejected_in_the_handshake_era(connect: Connect, combination: Combination) -> None:
    able = await connect(combination)
    assert (await able.call("needs_sampling")).text == "sampled"
    unable = await connect(combination, capabilities={})
    message = (await unable.call("needs_sampling")).message
    assert "error" in message or message["result"].get("isError"), message
    assert "sampling" in str(message)
