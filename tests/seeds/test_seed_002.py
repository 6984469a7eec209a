import re
from typing import Any

import pytest
import requests

from seeds import snippets_002 as seed
from seeds.programs import WAIT, shell, shell_json, shell_program

pytestmark = pytest.mark.server


@pytest.mark.parametrize("command", [seed.INITIALIZE, seed.INITIALIZE_SHORT], ids=["long", "short"])
async def test_initialize_needs_no_parameters(hub: int, command: str) -> None:
    reply = await shell_json(command, hub)
    assert reply["id"] == "1"
    assert reply["result"]["serverInfo"]["name"] == "hub"
    assert reply["result"]["capabilities"]["tools"] is not None


async def test_tools_are_listed_without_a_handshake(hub: int) -> None:
    reply = await shell_json(seed.LIST, hub)
    tools = {tool["name"]: tool["inputSchema"] for tool in reply["result"]["tools"]}
    for name in ("add_numbers", "multiply_numbers"):
        assert set(tools[name]["properties"]) >= {"a", "b", "stream"}
        assert set(tools[name]["required"]) == {"a", "b"}


async def test_tools_are_called_without_a_handshake(hub: int) -> None:
    reply = await shell_json(seed.CALL, hub)
    assert reply["id"] == "3"
    assert "15" in reply["result"]["content"][0]["text"]
    assert not reply["result"].get("isError")


async def test_streamed_calls_return_their_stream_url(hub: int) -> None:
    reply = await shell(seed.CALL_STREAMED, hub)
    found = re.search(r"/mcp/sse/([\w.~-]+)", reply)
    assert found, reply
    async with shell_program(seed.LISTEN.replace("{client_id}", found[1]), hub) as stream:
        await stream.until(lambda line: line.startswith("data:") and '"text":"15"' in line)
    assert any("progress" in line for line in stream.lines)


async def test_clients_that_listen_first_receive_their_results(hub: int) -> None:
    async with shell_program(seed.LISTEN.replace("{client_id}", "seed-002"), hub) as stream:
        call = seed.CALL_STREAMED.replace("/mcp ", "/mcp?client_id=seed-002 ")
        await stream.until(lambda line: line.startswith("data:") and '"text":"15"' in line, lambda: shell(call, hub))


async def test_health_answers_json(hub: int) -> None:
    assert (await shell_json(seed.HEALTH, hub))["status"] == "ok"


@pytest.mark.parametrize("path", ["/docs", "/health"])
def test_named_pages_exist(hub: int, path: str) -> None:
    assert requests.get(f"http://localhost:{hub}{path}", timeout=WAIT).status_code == 200


def test_python_client_requests_are_answered(hub: int) -> None:
    answers: list[Any] = []
    with requests.Session() as session:
        for number, (method, params) in enumerate(seed.CLIENT_CALLS, 1):
            body: dict[str, Any] = {"jsonrpc": "2.0", "method": method, "id": str(number)}
            if params is not None:
                body["params"] = params
            reply = session.post(f"http://localhost:{hub}/mcp", json=body, timeout=WAIT)
            assert reply.status_code == 200
            assert reply.headers["content-type"].startswith("application/json")
            answers.append(reply.json())
    assert [answer["id"] for answer in answers] == ["1", "2", "3", "4"]
    assert all("result" in answer for answer in answers)
