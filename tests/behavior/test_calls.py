import base64
import json
import re

from behavior.combinations import ALL, EXCLUSIONS, Combination, in_combinations
from behavior.conftest import Connect
from behavior.functions import PNG, WAV
from cases import for_each
from millstream.protocol import PER_REQUEST

STRUCTURED = {
    "point": {"x": 1, "y": 2},
    "size": {"width": 3, "height": 4},
    "person": {"name": "Ada", "age": 36},
    "mapping": {"a": 1},
    "number": 42,
    "numbers": [1, 2, 3],
}


def test_exclusions_have_a_reason_and_match_a_combination() -> None:
    for need, revision, transport, reason in EXCLUSIONS:
        assert reason, need
        assert any(revision in ("*", each.revision) and transport in ("*", each.transport) for each in ALL), need


@in_combinations()
async def test_server_info_has_name_and_version(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, basic/lifecycle and 2026-07-28, basic."""
    client = await connect(combination)
    if combination.handshake:
        assert client.initialized["protocolVersion"] == combination.revision
        info, instructions = client.initialized["serverInfo"], client.initialized["instructions"]
        capabilities = client.initialized["capabilities"]
    else:
        result = (await client.request("server/discover")).result
        assert result["supportedVersions"] == list(PER_REQUEST)
        info, instructions = result["_meta"]["io.modelcontextprotocol/serverInfo"], result["instructions"]
        capabilities = result["capabilities"]
    assert (info["name"], info["version"], instructions) == ("world", "1.2.3", "Ask for anything.")
    assert ("title" in info) == (combination.revision >= "2025-06-18")
    assert ("icons" in info) == ("websiteUrl" in info) == (combination.revision >= "2025-11-25")
    assert {"tools", "resources", "prompts"} <= set(capabilities)
    assert ("completions" in capabilities) == (combination.revision >= "2025-03-26")


@in_combinations("handshake")
async def test_ping_returns_an_empty_result(connect: Connect, combination: Combination) -> None:
    """MCP 2025-11-25, basic/utilities/ping."""
    client = await connect(combination)
    assert (await client.request("ping")).result == {}


@in_combinations("requests of its own")
@for_each("method", ["ping", "initialize", "logging/setLevel", "resources/subscribe", "no/such"])
async def test_methods_removed_from_the_revision_are_not_found(
    connect: Connect, combination: Combination, method: str
) -> None:
    """MCP 2026-07-28, changelog and 2026-07-28, basic/transports/streamable-http."""
    client = await connect(combination)
    reply = await client.request(method)
    assert reply.error["code"] == -32601
    assert reply.status == (404 if combination.http else 0)


@in_combinations("handshake")
async def test_methods_from_other_revisions_are_not_found(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, changelog and 2026-07-28, basic/transports/streamable-http."""
    client = await connect(combination)
    for method in ("server/discover", "subscriptions/listen", "no/such"):
        reply = await client.request(method)
        assert reply.error["code"] == -32601
        assert reply.status == (200 if combination.http else 0)


@in_combinations()
async def test_text_results_become_one_text_block(connect: Connect, combination: Combination) -> None:
    result = (await (await connect(combination)).call("text")).result
    assert result["content"] == [{"type": "text", "text": "plain"}]
    assert "structuredContent" not in result
    assert not result.get("isError")


@in_combinations()
@for_each("tool", STRUCTURED)
async def test_values_are_structured_if_the_revision_supports_it(
    connect: Connect, combination: Combination, tool: str
) -> None:
    """MCP 2025-06-18, server/tools."""
    value = STRUCTURED[tool]
    reply = await (await connect(combination)).call(tool)
    assert [block["type"] for block in reply.result["content"]] == ["text"]
    assert re.sub(r"\s", "", reply.text) == re.sub(r"\s", "", str(value).replace("'", '"'))
    structured = reply.result.get("structuredContent", "absent")
    if combination.revision < "2025-06-18":
        assert structured == "absent"
    elif combination.revision < "2026-07-28" and not isinstance(value, dict):
        assert structured == {"result": value}
    else:
        assert structured == value


@in_combinations()
async def test_tool_without_a_python_function_is_listed_and_called(connect: Connect, combination: Combination) -> None:
    client = await connect(combination)
    pages = await client.pages("tools/list", "tools")
    (tool,) = [each for page in pages for each in page if each["name"] == "weigh"]
    assert (tool["description"], tool["inputSchema"]["required"]) == ("Weigh.", ["of"])
    result = (await client.call("weigh", of="salt")).result
    assert json.loads(result["content"][0]["text"]) == ["salt", 4, "tools/call"]
    refused = await client.call("weigh", to=1)
    text = refused.result["content"][0]["text"] if combination.revision >= "2025-11-25" else refused.error["message"]
    assert text.startswith("Invalid arguments for tool 'weigh': missing 'of'; unknown 'to'.")


@in_combinations()
async def test_none_results_have_empty_content(connect: Connect, combination: Combination) -> None:
    result = (await (await connect(combination)).call("nothing")).result
    assert result["content"] == []
    assert "structuredContent" not in result


@in_combinations()
async def test_bytes_become_an_image_or_embedded_resource(connect: Connect, combination: Combination) -> None:
    client = await connect(combination)
    picture = {"type": "image", "data": base64.b64encode(PNG).decode(), "mimeType": "image/png"}
    assert (await client.call("picture_bytes")).result["content"] == [picture]
    assert (await client.call("image")).result["content"] == [picture]
    (block,) = (await client.call("other_bytes")).result["content"]
    assert block["type"] == "resource"
    assert block["resource"]["blob"] == base64.b64encode(b"\x00\x01").decode()
    (block,) = (await client.call("embedded")).result["content"]
    assert block == {"type": "resource", "resource": {"uri": "note://one", "mimeType": "text/plain", "text": "inside"}}


def sound(revision: str) -> tuple[str, str]:
    """Return the type and data of the block for a sound."""
    return ("audio" if revision >= "2025-03-26" else "resource", base64.b64encode(WAV).decode())


@in_combinations()
async def test_content_is_converted_for_older_revisions(connect: Connect, combination: Combination) -> None:
    """MCP 2025-06-18, changelog."""
    client = await connect(combination)
    kind, data = sound(combination.revision)
    (block,) = (await client.call("audio")).result["content"]
    assert block["type"] == kind
    assert data in (block.get("data"), block.get("resource", {}).get("blob"))
    (block,) = (await client.call("link")).result["content"]
    if combination.revision >= "2025-06-18":
        assert block["type"] == "resource_link"
        assert (block["uri"], block["name"], block["title"]) == ("note://one", "one", "The first")
    else:
        assert block["type"] == "text"
        assert "note://one" in block["text"]
    types = [block["type"] for block in (await client.call("mixed")).result["content"]]
    assert types == ["text", "image", kind, "resource_link" if combination.revision >= "2025-06-18" else "text"]


@in_combinations()
async def test_tools_may_return_explicit_results(connect: Connect, combination: Combination) -> None:
    reply = await (await connect(combination)).call("spelled_out")
    assert reply.text == "done"
    assert reply.result["_meta"]["example.com/cost"] == 2
    assert reply.result.get("structuredContent") == ({"n": 1} if combination.revision >= "2025-06-18" else None)


@in_combinations()
async def test_context_describes_client_and_transport(connect: Connect, combination: Combination) -> None:
    client = await connect(combination)
    text = (await client.call("who")).text
    assert f'"revision":"{combination.revision}"' in text.replace(" ", "")
    has_session = combination.handshake and combination.transport != "sessionless"
    assert f'"session":{str(has_session).lower()}' in text.replace(" ", "")


@in_combinations()
async def test_results_have_the_fields_of_their_era(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, changelog."""
    client = await connect(combination)
    for method in ("tools/list", "prompts/list", "resources/list", "resources/templates/list"):
        result = (await client.request(method)).result
        new = not combination.handshake
        assert ("resultType" in result) == ("ttlMs" in result) == ("cacheScope" in result) == new
    read = (await client.request("resources/read", {"uri": "note://one"})).result
    assert ("ttlMs" in read) == new
    called = (await client.call("text")).result
    assert "ttlMs" not in called
    assert (called.get("resultType") == "complete") == new


@in_combinations("requests of its own", "streamable http")
async def test_parameter_headers_must_match_their_arguments(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, server/tools#x-mcp-header."""
    client = await connect(combination)
    params = {"name": "routed", "arguments": {"region": "eu"}}
    good = await client.request("tools/call", params, headers={"mcp-param-region": "eu"})
    assert good.text == "eu"
    for headers in ({}, {"mcp-param-region": "us"}):
        reply = await client.request("tools/call", params, headers=headers)
        assert (reply.error["code"], reply.status) == (-32020, 400)


@in_combinations("handshake")
async def test_parameter_headers_are_not_required_of_older_clients(connect: Connect, combination: Combination) -> None:
    """MCP 2026-07-28, basic/transports/streamable-http."""
    client = await connect(combination)
    assert (await client.call("routed", region="eu")).text == "eu"
