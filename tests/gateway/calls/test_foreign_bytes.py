"""Upstreams that send bytes that aren't UTF-8, as servers on Windows do."""

import json
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import ClientSession, StdioServerParameters, stdio_client

from client.misbehaving_servers import OFFER, ReceivedRequest, misbehaving
from millstream import Server
from millstream.client import Client, Options, ServerError
from patience import WAIT
from processes import ROOT

pytestmark = pytest.mark.server

PROGRAM = r"""
import json, sys
def send(**message):
    line = json.dumps({"jsonrpc": "2.0", **message}).replace("@", "\udce9")
    sys.stdout.buffer.write(line.encode("ascii", "surrogateescape") + b"\n")
    sys.stdout.buffer.flush()
capabilities = {"tools": {}, "prompts": {}, "logging": {}}
tools = [{"name": name, "description": "caf@", "inputSchema": {"type": "object"}} for name in ("serve", "fail", "talk")]
for line in sys.stdin:
    message = json.loads(line)
    method, id, params = message.get("method"), message.get("id"), message.get("params", {})
    if method == "initialize":
        about = {"name": "caf@", "version": "1"}
        result = {"protocolVersion": "2025-06-18", "capabilities": capabilities, "serverInfo": about}
        send(id=id, result=result)
    elif method == "tools/list":
        send(id=id, result={"tools": tools})
    elif method == "prompts/list":
        send(id=id, result={"prompts": [{"name": "menu"}]})
    elif method == "prompts/get":
        send(id=id, result={"messages": [{"role": "user", "content": {"type": "text", "text": "caf@"}}]})
    elif method == "tools/call" and params["name"] == "fail":
        send(id=id, error={"code": -32000, "message": "caf@", "data": {"caf@": 1}})
    elif method == "tools/call":
        if params["name"] == "talk":
            token = params["_meta"]["progressToken"]
            send(method="notifications/message", params={"level": "error", "data": "caf@"})
            send(method="notifications/progress", params={"progressToken": token, "progress": 1, "message": "caf@"})
        send(id=id, result={"content": [{"type": "text", "text": "caf@"}], "structuredContent": {"caf@": ["@"]}})
    elif id is not None:
        send(id=id, error={"code": -32601, "message": "Method not found"})
"""
COMMAND = [sys.executable, "-c", PROGRAM]
CAFE = "caf\ufffd"


@pytest.mark.parametrize("revision", ["2025-11-25", "2026-07-28"])
async def test_every_message_of_a_process_is_utf_8(revision: str) -> None:
    mcp = Server("front")
    mcp.upstream("odd", COMMAND, prefix="", start_timeout=WAIT)
    heard: list[Any] = []
    options = Options(log_level="error")
    async with Client(
        mcp, revision=revision, timeout=WAIT, on_log=lambda log: heard.append(log.data), options=options
    ) as client:
        assert {each.description for each in await client.tools()} == {CAFE}
        result = await client.call("serve")
        assert (result.text, result.data) == (CAFE, {CAFE: ["\ufffd"]})
        assert (await client.prompt("menu")).text == CAFE
        with pytest.raises(ServerError) as caught:
            await client.call("fail")
        assert (caught.value.message, caught.value.data) == (CAFE, {CAFE: 1})
        messages: list[Any] = []
        await client.call("talk", progress=lambda done, total, text: messages.append(text))
        assert messages == [CAFE]
    assert CAFE in heard


async def test_stdio_session_survives_invalid_bytes(tmp_path: Path) -> None:
    file = tmp_path / "servers.json"
    file.write_text(json.dumps({"mcpServers": {"odd": {"command": COMMAND[0], "args": COMMAND[1:]}}}))
    program = str(ROOT / ".venv" / "bin" / "millstream")
    parameters = StdioServerParameters(command=program, args=["gateway", str(file), "--transport", "stdio"])
    async with stdio_client(parameters, errlog=sys.__stderr__) as streams, ClientSession(*streams) as session:
        await session.initialize()
        for _ in range(2):
            result = await session.call_tool("odd_serve", {})
            assert result.structured_content == {CAFE: ["\ufffd"]}


@pytest.mark.parametrize("kind", ["json", "stream", "error"])
async def test_every_reply_over_http_is_utf_8(kind: str) -> None:
    async def behave(request: ReceivedRequest) -> None:
        results: dict[str, Any] = {
            "server/discover": OFFER,
            "tools/list": {"tools": [{"name": "serve", "inputSchema": {"type": "object"}}]},
            "tools/call": {"resultType": "complete", "content": [{"type": "text", "text": "caf@"}]},
        }
        answer = request.answer(results.get(request.method, {}))
        if request.method == "tools/call" and kind == "error":
            error = {"code": -32000, "message": "caf@"}
            answer = json.dumps({"jsonrpc": "2.0", "id": request.message["id"], "error": error}).encode()
        answer = answer.replace(b"@", b"\xe9")
        if request.method == "tools/call" and kind == "stream":
            await request.stream()
            await request.event(answer)
            await request.end()
        else:
            await request.reply(answer)

    async with misbehaving(behave) as upstream:
        mcp = Server("front")
        mcp.upstream("odd", upstream.url, prefix="", start_timeout=WAIT)
        head = {"accept": "application/json, text/event-stream", "mcp-protocol-version": "2026-07-28"}
        head |= {"mcp-method": "tools/call", "mcp-name": "serve"}
        versions = {f"io.modelcontextprotocol/{name}": {} for name in ("clientInfo", "clientCapabilities")}
        meta = {**versions, "io.modelcontextprotocol/protocolVersion": "2026-07-28"}
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
        async with mcp.running(), httpx2.AsyncClient(transport=httpx2.ASGITransport(mcp)) as http:
            reply = await http.post(
                "http://127.0.0.1/mcp", headers=head, json={**message, "params": {"name": "serve", "_meta": meta}}
            )
        assert CAFE in reply.content.decode("utf-8", "strict")
