import json
from typing import Any

import pytest

from seeds import snippets_001 as seed
from seeds.programs import Program, at, browser_script, python_program, running, shell, shell_json, shell_program

pytestmark = pytest.mark.server


async def heard(stream: Program, port: int, name: str) -> str:
    """Run a broadcasting command until a listener prints its message, and return the line."""
    command = seed.COMMANDS[name]
    message = message_of(command)
    return await stream.until(lambda line: message in line, lambda: shell_json(command, port))


def message_of(command: str) -> str:
    """Return the message that a command broadcasts."""
    body = json.loads(command.partition("-d '")[2].removesuffix("'"))
    return body["params"]["arguments"]["message"]


@pytest.mark.parametrize("name", ["health", "health_again"])
async def test_health_answers_json(hub: int, name: str) -> None:
    assert (await shell_json(seed.COMMANDS[name], hub))["status"] == "ok"


async def test_docker_health_check_passes(hub: int) -> None:
    await shell(seed.COMMANDS["docker_health_check"], hub)


@pytest.mark.parametrize("name", ["list_bare", "list", "list_again"])
async def test_tools_are_listed(hub: int, name: str) -> None:
    reply = await shell_json(seed.COMMANDS[name], hub)
    assert reply["jsonrpc"] == "2.0"
    assert reply.get("id") == (None if name == "list_bare" else 1)
    tools = {tool["name"]: tool for tool in reply["result"]["tools"]}
    assert {"get_server_info", "send_sse_message"} <= set(tools)
    assert tools["get_server_info"]["inputSchema"]["type"] == "object"
    message = tools["send_sse_message"]["inputSchema"]
    assert message["properties"]["message"]["type"] == "string"
    assert message["required"] == ["message"]


@pytest.mark.parametrize(("name", "request_id"), [("broadcast", 2), ("broadcast_again", 2), ("chat_one", None)])
async def test_broadcasts_are_acknowledged(hub: int, name: str, request_id: int | None) -> None:
    reply = await shell_json(seed.COMMANDS[name], hub)
    assert reply.get("id") == request_id
    assert not reply["result"].get("isError")
    assert reply["result"]["content"][0]["type"] == "text"


async def test_server_describes_itself(hub: int) -> None:
    reply = await shell_json(seed.COMMANDS["server_info"], hub)
    assert reply["id"] == 3
    assert "hub" in reply["result"]["content"][0]["text"]


async def test_documentation_page_opens(hub: int) -> None:
    page = await shell(seed.COMMANDS["docs"].replace("open ", "curl -sS -f "), hub)
    assert page.lower().startswith("<!doctype html>")


async def test_curl_receives_messages_as_data_lines(hub: int) -> None:
    async with shell_program(seed.COMMANDS["listen"], hub) as stream:
        for name in ("broadcast", "chat_one", "chat_two", "broadcast_again"):
            assert (await heard(stream, hub, name)).startswith("data:")


async def test_event_source_receives_broadcasts(hub: int) -> None:
    async with browser_script(seed.EVENTS_JS, hub) as page:
        line = await heard(page, hub, "broadcast")
    assert line.startswith("Received SSE message:")
    assert not any("SSE connection error" in line for line in page.lines)


async def test_dashboard_script_shows_status_and_log(hub: int) -> None:
    async with browser_script(seed.DASHBOARD_JS, hub) as page:
        status = await page.until(lambda line: line.startswith("#server-status: "))
        assert "Server: " in status
        assert "hub" in status
        wanted = message_of(seed.COMMANDS["broadcast"])
        await page.until(
            lambda line: line.startswith("#logs: ") and wanted in line,
            lambda: shell_json(seed.COMMANDS["broadcast"], hub),
        )


async def test_websocket_script_calls_a_tool(hub: int) -> None:
    async with shell_program(seed.COMMANDS["listen"], hub) as stream:
        await heard(stream, hub, "broadcast")
        async with browser_script(seed.WEBSOCKET_JS, hub) as page:
            assert await page.until(lambda line: line.startswith("WebSocket connected"))
            assert await page.until(lambda line: line.startswith("Received:"))
        assert await stream.until(lambda line: "Hello from WebSocket client!" in line)


async def test_python_client_lists_and_calls(hub: int) -> None:
    report = '\nprint(json.dumps({"tools": tools, "result": result}))\n'
    async with python_program(seed.CLIENT_PY + report, hub) as program:
        found: dict[str, Any] = json.loads(await program.until(lambda line: True))
    assert "get_server_info" in {tool["name"] for tool in found["tools"]["result"]["tools"]}
    assert "hub" in found["result"]["result"]["content"][0]["text"]


async def test_load_test_completes_with_ten_listeners(hub: int) -> None:
    async with python_program(seed.LOAD_PY, hub) as program:
        await program.until(lambda line: line.startswith("Completed 100 calls"))
        wanted = message_of(seed.COMMANDS["broadcast"])
        silent = {f"Client {number}:" for number in range(10)}

        def all_heard(line: str) -> bool:
            if wanted in line:
                silent.discard(line[: line.index(":") + 1])
            return not silent

        await program.until(all_heard, lambda: shell_json(seed.COMMANDS["broadcast"], hub))


async def test_other_services_can_notify(hub: int) -> None:
    async with shell_program(seed.COMMANDS["listen"], hub) as stream:

        async def order() -> None:
            async with python_program(seed.ORDERS_PY + "\nprint('ordered')\n", hub) as service:
                await service.until(lambda line: line == "ordered\n")

        await stream.until(lambda line: "Order ORDER-123 processed successfully" in line, order)


async def test_curl_may_omit_the_content_type_only_for_tools(hub: int) -> None:
    command = at("curl -s -o /dev/null -w '%{http_code}\\n' http://localhost:8000/mcp -d '{}'", hub)
    async with running("bash", "-c", command) as program:
        assert await program.line() == "415\n"
