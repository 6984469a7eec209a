import base64
import json
from typing import Any

from cases import for_each
from examples import everything

MCP = everything.mcp
QUESTIONS = {
    "test_input_required_result_elicitation": (["user_name"], "Hello, Ann!"),
    "test_input_required_result_sampling": (["capital_question"], "The model says: Paris, hello"),
    "test_input_required_result_list_roots": (["client_roots"], "1 roots: file:///home"),
    "test_input_required_result_request_state": (["confirm"], "state-ok, confirmed: True"),
    "test_input_required_result_tampered_state": (["confirm"], "Confirmed: True"),
    "test_input_required_result_multiple_inputs": (
        ["client_roots", "greeting", "user_name"],
        "Paris, hello Ann, 1 roots.",
    ),
    "test_streaming_elicitation": (None, "It is Ann."),
    "test_sampling": (None, "LLM response: Paris, hello"),
    "test_elicitation": (None, "User response: Ann <Ann>"),
}
ARGUMENTS = {"test_sampling": {"prompt": "hi"}, "test_elicitation": {"message": "Who?"}}
NEWEST = "2026-07-28"


async def test_first_listed_items_can_be_used(connect: Any, revision: str) -> None:
    async with connect(MCP, revision) as client:
        tools = (await client.request("tools/list"))["tools"]
        assert not tools[0]["inputSchema"].get("required")
        assert await client.text(tools[0]["name"])
        resources = (await client.request("resources/list"))["resources"]
        assert (await client.request("resources/read", uri=resources[0]["uri"]))["contents"]


async def test_listed_items_have_descriptions(connect: Any, revision: str) -> None:
    async with connect(MCP, revision) as client:
        for kind in ("tools", "prompts"):
            listed = (await client.request(f"{kind}/list"))[kind]
            assert listed
            assert all(item["description"] for item in listed)


async def test_hand_written_schema_is_listed_unchanged(connect: Any, revision: str) -> None:
    async with connect(MCP, revision) as client:
        tools = {tool["name"]: tool for tool in (await client.request("tools/list"))["tools"]}
    assert tools["json_schema_2020_12_tool"]["inputSchema"] == everything.SCHEMA_2020_12


async def test_every_content_type_arrives(connect: Any, revision: str) -> None:
    async with connect(MCP, revision) as client:
        assert await client.text("test_simple_text") == "This is a simple text response for testing."
        (image,) = (await client.call("test_image_content"))["content"]
        assert (image["mimeType"], base64.b64decode(image["data"])) == ("image/png", everything.PNG)
        if revision != "2024-11-05":
            (audio,) = (await client.call("test_audio_content"))["content"]
            assert (audio["type"], audio["mimeType"]) == ("audio", "audio/wav")
        (embedded,) = (await client.call("test_embedded_resource"))["content"]
        assert embedded["resource"] == {
            "uri": "test://embedded-resource",
            "mimeType": "text/plain",
            "text": "This is an embedded resource content.",
        }
        several = (await client.call("test_multiple_content_types"))["content"]
        assert [block["type"] for block in several] == ["text", "image", "resource"]
        failed = await client.call("test_error_handling")
        assert failed["isError"] is True
        assert failed["content"][0]["text"] == "This tool intentionally returns an error for testing"


async def test_progress_precedes_the_result(connect: Any, revision: str) -> None:
    async with connect(MCP, revision) as client:
        await client.call("test_tool_with_progress", meta={"progressToken": "progress-test-1"})
        told = [each["params"] for each in client.notifications]
    assert [(each["progressToken"], each["progress"]) for each in told] == [
        ("progress-test-1", 0), ("progress-test-1", 50), ("progress-test-1", 100)
    ]  # fmt: skip


@for_each("tool", QUESTIONS)
async def test_tools_that_ask_behave_the_same_in_every_revision(connect: Any, asking_revision: str, tool: str) -> None:
    _, text = QUESTIONS[tool]
    async with connect(MCP, asking_revision) as client:
        assert await client.text(tool, **ARGUMENTS.get(tool, {})) == text


@for_each("tool", [tool for tool, (keys, _) in QUESTIONS.items() if keys])
async def test_questions_have_the_keys_that_the_suite_expects(connect: Any, tool: str) -> None:
    async with connect(MCP, NEWEST) as client:
        result = (await client.reply("tools/call", {"name": tool, "arguments": {}}))["result"]
    assert result["resultType"] == "input_required"
    assert sorted(result["inputRequests"]) == QUESTIONS[tool][0]
    assert isinstance(result["requestState"], str)


async def test_each_round_has_its_own_state(connect: Any) -> None:
    async with connect(MCP, NEWEST) as client:
        call: dict[str, Any] = {"name": "test_input_required_result_multi_round", "arguments": {}}
        states: list[str] = []
        for key, answer in (("step1", {"name": "Ann"}), ("step2", {"color": "blue"})):
            result = (await client.reply("tools/call", call))["result"]
            assert list(result["inputRequests"]) == [key]
            states.append(result["requestState"])
            responses = {key: {"action": "accept", "content": answer}}
            call = {**call, "inputResponses": responses, "requestState": result["requestState"]}
        result = (await client.reply("tools/call", call))["result"]
    assert len(set(states)) == 2
    assert result["content"][0]["text"] == "Ann likes blue."


async def test_tampered_state_is_an_error(connect: Any) -> None:
    async with connect(MCP, NEWEST) as client:
        call: dict[str, Any] = {"name": "test_input_required_result_tampered_state", "arguments": {}}
        state = (await client.reply("tools/call", call))["result"]["requestState"]
        answer = {"confirm": {"action": "accept", "content": {"ok": True}}}
        reply = await client.reply(
            "tools/call", {**call, "inputResponses": answer, "requestState": f"{state}-TAMPERED"}
        )
    assert reply["error"]["code"] == -32602


async def test_only_declared_questions_are_asked(connect: Any) -> None:
    async with connect(MCP, NEWEST, capabilities={"sampling": {}}) as client:
        call = {"name": "test_input_required_result_capabilities", "arguments": {}}
        result = (await client.reply("tools/call", call))["result"]
    assert [asked["method"] for asked in result["inputRequests"].values()] == ["sampling/createMessage"]


async def test_a_missing_capability_is_reported(connect: Any) -> None:
    async with connect(MCP, NEWEST, capabilities={}) as client:
        error = (await client.reply("tools/call", {"name": "test_missing_capability", "arguments": {}}))["error"]
    assert error["code"] == -32021
    assert error["data"] == {"requiredCapabilities": {"sampling": {}}}


async def test_defaults_and_enumerations_reach_the_form(connect: Any) -> None:
    async with connect(MCP, "2025-11-25") as client:
        await client.call("test_elicitation_sep1034_defaults")
        defaults = {key: part["default"] for key, part in client.asked[0][1]["requestedSchema"]["properties"].items()}
        kinds = {key: part["type"] for key, part in client.asked[0][1]["requestedSchema"]["properties"].items()}
        await client.call("test_elicitation_sep1330_enums")
        assert client.asked[1][1]["requestedSchema"]["properties"] == everything.ENUMS["properties"]
    assert defaults == {"name": "John Doe", "age": 30, "score": 95.5, "status": "active", "verified": True}
    assert (kinds["age"], kinds["score"]) == ("integer", "number")


async def test_log_messages_are_sent_on_request(connect: Any, revision: str) -> None:
    async with connect(MCP, revision) as client:
        if client.handshake:
            await client.request("logging/setLevel", level="debug")
        await client.call("test_tool_with_logging")
        told = [each["params"]["data"] for each in client.notifications]
        expected = ["Tool execution started", "Tool processing data", "Tool execution completed"]
        assert told == (expected if client.handshake else [])


async def test_list_changes_are_announced(connect: Any) -> None:
    async with connect(MCP, "2025-11-25") as client:
        for tool, kind in (("test_trigger_tool_change", "tools"), ("test_trigger_prompt_change", "prompts")):
            before = await client.request(f"{kind}/list")
            client.notifications.clear()
            assert "changed" in await client.text(tool)
            assert await client.request(f"{kind}/list") == before
            assert f"notifications/{kind}/list_changed" in [each["method"] for each in client.notifications]


async def test_header_parameter_is_marked_and_optional(connect: Any) -> None:
    async with connect(MCP, NEWEST) as client:
        tools = {tool["name"]: tool for tool in (await client.request("tools/list"))["tools"]}
        assert tools["test_x_mcp_header"]["inputSchema"]["properties"]["region"]["x-mcp-header"] == "Region"
        assert await client.text("test_x_mcp_header") == "Region: none"


async def test_streams_that_cannot_close_stay_open(connect: Any, revision: str) -> None:
    async with connect(MCP, revision) as client:
        assert await client.text("test_reconnection") == "Reconnection test completed."


async def test_resources_match_the_list(connect: Any, revision: str) -> None:
    async with connect(MCP, revision) as client:
        static = (await client.request("resources/read", uri="test://static-text"))["contents"][0]
        assert static["text"] == "This is the content of the static text resource."
        assert static["mimeType"] == "text/plain"
        binary = (await client.request("resources/read", uri="test://static-binary"))["contents"][0]
        assert base64.b64decode(binary["blob"]) == everything.PNG
        data = (await client.request("resources/read", uri="test://template/123/data"))["contents"][0]
        assert (data["uri"], data["mimeType"]) == ("test://template/123/data", "application/json")
        assert json.loads(data["text"]) == {"id": "123", "templateTest": True, "data": "Data for ID: 123"}
        assert (await client.request("resources/read", uri="test://watched-resource"))["contents"][0]["text"]


async def test_prompts_match_the_list(connect: Any, revision: str) -> None:
    async with connect(MCP, revision) as client:

        async def blocks(name: str, **arguments: str) -> list[dict[str, Any]]:
            prompt = await client.request("prompts/get", name=name, arguments=arguments)
            assert {message["role"] for message in prompt["messages"]} == {"user"}
            return [message["content"] for message in prompt["messages"]]

        assert (await client.request("prompts/get", name="test_simple_prompt"))["messages"][0]["content"]["text"]
        (text,) = await blocks("test_prompt_with_arguments", arg1="one", arg2="two")
        assert text["text"] == "Prompt with arguments: arg1='one', arg2='two'"
        resource, text = await blocks("test_prompt_with_embedded_resource", resourceUri="test://x")
        assert resource["resource"]["uri"] == "test://x"
        assert text["text"] == "Please process the embedded resource above."
        image, text = await blocks("test_prompt_with_image")
        assert (image["mimeType"], text["text"]) == ("image/png", "Please analyze the image above.")
        completed = await client.request(
            "completion/complete",
            ref={"type": "ref/prompt", "name": "test_prompt_with_arguments"},
            argument={"name": "arg1", "value": "test"},
        )
        assert completed["completion"]["values"] == ["test", "testing", "tested"]


async def test_prompts_can_ask(connect: Any) -> None:
    async with connect(MCP, NEWEST) as client:
        call = {"name": "test_input_required_result_prompt", "arguments": {}}
        result = (await client.reply("prompts/get", call))["result"]
        assert list(result["inputRequests"]) == ["user_context"]
        done = await client.request("prompts/get", **call)
    assert done["messages"][0]["content"]["text"] == "Use this context: Ann"
