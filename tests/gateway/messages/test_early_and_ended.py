"""What a command says before its client listens, and after it has ended a subscription."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cases import for_each
from http_peer import serve
from millstream import Client, Server
from patience import WAIT

START = r"""
import json, sys

def say(**message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)

def log(text):
    say(method="notifications/message", params={"level": "info", "data": text})
"""
EARLY = (
    START
    + r"""
with open(sys.argv[2], "a") as starts:
    starts.write("started\\n")
for line in sys.stdin:
    message = json.loads(line)
    method, result = message.get("method"), {}
    if method == sys.argv[1] == "notifications/initialized":
        for text in "abc":
            log(text)
    if "id" not in message:
        continue
    if method == "initialize":
        result = {
            "protocolVersion": message["params"]["protocolVersion"], "capabilities": {"tools": {}, "logging": {}},
            "serverInfo": {"name": "early", "version": "1"},
        }
    elif method == "tools/list":
        result = {"tools": [{"name": "one", "inputSchema": {"type": "object"}}]}
    say(id=message["id"], result=result)
    if method == sys.argv[1]:
        for text in "abc":
            log(text)
"""
)
ENDING = (
    START
    + r"""
tools, listen = ["one"], None
for line in sys.stdin:
    message = json.loads(line)
    method, id, result = message.get("method"), message.get("id"), {"resultType": "complete"}
    if id is None:
        continue
    if method == "server/discover":
        result |= {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {"listChanged": True}}}
    elif method == "tools/list":
        result |= {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in tools]}
    elif method == "subscriptions/listen":
        listen = id
        meta = {"io.modelcontextprotocol/subscriptionId": id}
        say(method="notifications/subscriptions/acknowledged", params={"_meta": meta, **message["params"]})
    if method != "subscriptions/listen":
        say(id=id, result=result)
    if method == sys.argv[2] and listen is not None and tools == ["one"]:
        tools.append("two")  # nobody hears of this
        say(method="notifications/cancelled", params={"requestId": str(listen) if sys.argv[1] == "text" else listen})
"""
)


def gateway(program: str, *arguments: str, **options: Any) -> Server:
    front = Server("front")
    front.upstream("up", [sys.executable, "-c", program, *arguments], start_timeout=WAIT, **options)
    return front


@pytest.mark.server
@for_each("when", ["initialize", "notifications/initialized"])
async def test_messages_of_a_command_arrive_in_order_although_the_client_listens_later(
    when: str, tmp_path: Path
) -> None:
    """They arrive on the stream of the call, if the command says them during a call, and otherwise, on a GET stream."""
    starts = tmp_path / when.rpartition("/")[2]
    front, heard = gateway(EARLY, when, str(starts), prefix="", isolation="per_session"), list[str]()

    def hear(line: str) -> None:
        if line.startswith("data:") and "notifications/message" in line:
            heard.append(json.loads(line[5:])["params"]["data"])

    headers = {"accept": "application/json, text/event-stream", "mcp-protocol-version": "2025-11-25"}
    client = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    async with asyncio.timeout(WAIT), serve(front) as served, httpx2.AsyncClient(timeout=WAIT) as http:
        url = f"http://127.0.0.1:{served.port}/mcp"
        for number, method in enumerate(["initialize", "notifications/initialized", "tools/list"]):
            message = {"jsonrpc": "2.0", "method": method, "params": client if method == "initialize" else {}}
            if not method.startswith("notifications/"):
                message["id"] = number
            reply = await http.post(url, json=message, headers=headers)
            headers["mcp-session-id"] = reply.headers.get("mcp-session-id", headers.get("mcp-session-id", ""))
        assert "one" in reply.text  # what the command said before has arrived
        for line in reply.text.splitlines():
            hear(line)
        async with http.stream("GET", url, headers=headers) as stream:
            lines = stream.aiter_lines()
            while len(heard) < 3:
                hear(await anext(lines))
    assert heard == ["a", "b", "c"]
    assert starts.read_text().count("started") <= 2  # one for the lists, and one for the session


@pytest.mark.server
@for_each("id_type", ["number", "text"])
async def test_lists_are_read_again_after_a_command_has_canceled_the_subscription(id_type: str) -> None:
    async with asyncio.timeout(WAIT), Client(gateway(ENDING, id_type, "tools/list")) as client:
        while [tool.name async for tool in client.tools(fresh=True)] != ["up_one", "up_two"]:
            pass


@pytest.mark.server
async def test_client_of_a_relay_hears_that_a_command_has_canceled_its_subscription() -> None:
    front = gateway(ENDING, "number", "subscriptions/listen", prefix="", isolation="per_session")
    async with asyncio.timeout(WAIT), Client(front, revision="2026-07-28") as client:
        result = await client.request("subscriptions/listen", {"notifications": {"toolsListChanged": True}})
    assert json.loads(json.dumps(result))["resultType"] == "complete"
