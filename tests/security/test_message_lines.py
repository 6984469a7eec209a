"""Texts of a caller or an upstream stay inside of their JSON-RPC message, on stdio, where a line is a message, and in
event streams, where a line break ends a field.
"""

import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from cases import for_each
from client.misbehaving_servers import ReceivedRequest, misbehaving, with_handshake
from millstream import Client, Server
from patience import WAIT
from wire import Wire, request, run_wire

PROGRAM = r"""
import json, sys
log = open(sys.argv[1], "a", encoding="utf-8")
for line in sys.stdin:
    print(line, end="", file=log, flush=True)
    try:
        message = json.loads(line)
    except ValueError:
        continue
    if "id" not in message:
        continue
    method, reply = message["method"], {"jsonrpc": "2.0", "id": message["id"]}
    if method == "initialize":
        about = {"name": "a", "version": "1"}
        reply["result"] = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": about}
    elif method == "tools/list":
        reply["result"] = {"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]}
    elif method == "tools/call":
        reply["result"] = {"content": [{"type": "text", "text": json.dumps(message["params"].get("arguments"))}]}
    else:
        reply["error"] = {"code": -32601, "message": "Method not found"}
    print(json.dumps(reply), flush=True)
"""
SMUGGLED = '{"jsonrpc":"2.0","id":99,"method":"tools/call","params":{"name":"hidden"}}'
METHODS = [
    f"x\n{SMUGGLED}\n",
    f"notifications/x\r{SMUGGLED}\r",
    'x","method":"tools/call","params":{"name":"hidden"},"y":"',
    'x","id":99,"y":"',
    'notifications/x","id":99,"y":"',
    "x\\",
    "x\u2028y\x85",
]


@asynccontextmanager
async def relay(folder: Path) -> AsyncIterator[tuple[Wire, Path]]:
    """Run a gateway in front of a program that records the lines it gets."""
    log, gateway = folder / "lines", Server("gateway")
    gateway.upstream("up", [sys.executable, "-c", PROGRAM, str(log)], prefix="", start_timeout=WAIT)
    async with run_wire(gateway, "lane") as wire:
        yield wire, log
    await gateway.stop()


def read_lines(log: Path) -> list[dict[str, Any]]:
    """Return the messages that the program got, each with every member once."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len(dict(pairs)) == len(pairs), pairs
        return dict(pairs)

    lines = log.read_text("utf-8").split("\n")[:-1]
    return [json.loads(line, object_pairs_hook=unique) for line in lines]


@pytest.mark.server
async def test_methods_of_callers_do_not_become_messages_of_a_program(tmp_path: Path) -> None:
    async with relay(tmp_path) as (wire, log):
        headers = await wire.initialize()
        for number, method in enumerate(METHODS, 5):
            reply = await wire.post(request(method, {}, number), headers)
            assert reply.message["error"]["code"] == -32601
            assert reply.message["id"] == number
            await wire.post({"jsonrpc": "2.0", "method": method}, headers)
        reply = await wire.post(request("tools/call", {"name": "echo", "arguments": {"a": 1}}, 90), headers)
        assert reply.message["result"]["content"][0]["text"] == '{"a": 1}'
        asked = [message["method"] for message in read_lines(log) if "id" in message]
        assert [each for each in asked if each in METHODS] == METHODS
        assert {*asked} <= {"server/discover", "initialize", "tools/list", "tools/call", *METHODS}
        assert asked.count("tools/call") == 1


@pytest.mark.server
@for_each("break_", ["\n", "\r", "\r\n", "\n\n"])
async def test_line_breaks_in_requests_do_not_become_messages_of_a_program(break_: str, tmp_path: Path) -> None:
    log = tmp_path / "lines"
    log.unlink(missing_ok=True)
    async with relay(tmp_path) as (wire, _):
        headers = await wire.initialize()
        arguments = f'{{"a":{break_}{SMUGGLED}{break_}}}'
        body = f'{{"jsonrpc":"2.0","id":5,"method":"tools/call","params":{{"name":"echo","arguments":{arguments}}}}}'
        reply = await wire.post(body.encode(), headers)
        assert json.loads(reply.message["result"]["content"][0]["text"]) == {"a": json.loads(SMUGGLED)}
        assert [each["id"] for each in read_lines(log) if each.get("method") == "tools/call"] != [99]
        assert 99 not in [each.get("id") for each in read_lines(log)]


FORGED = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "error", "data": "forged"}}


def spread(message: Any) -> str:
    """Return JSON over several lines, of which one is a message itself, and some are empty."""
    text = json.dumps(message, indent=1)
    return text.replace('"FORGED"', json.dumps(FORGED)).replace("\n", "\n\n")


async def behave(asked: ReceivedRequest) -> None:
    """Serve a tool whose response is spread over lines: as a body, or as an event after progress."""
    if asked.method == "tools/list":
        await asked.result({"tools": [{"name": "t", "inputSchema": {"type": "object"}}]})
        return
    result = {"content": [{"type": "text", "text": "done"}], "structuredContent": {"a": ["FORGED", 2]}}
    reply = {"jsonrpc": "2.0", "id": asked.message["id"], "result": result}
    token = asked.message.get("params", {}).get("_meta", {}).get("progressToken")
    if token is None:
        await asked.reply(spread(reply).encode())
        return
    await asked.stream()
    progress = {"progressToken": token, "progress": 1, "x": ["FORGED", 2]}
    note = {"jsonrpc": "2.0", "method": "notifications/progress", "params": progress}
    for each in (note, reply):
        await asked.event(spread(each).replace("\n", "\ndata: ").encode())
    await asked.end()


async def test_line_breaks_in_responses_do_not_end_events() -> None:
    async with misbehaving(with_handshake(behave)) as upstream:
        gateway = Server("gateway")
        gateway.upstream("up", upstream.url, prefix="")
        async with run_wire(gateway, "lane") as wire:
            headers = await wire.initialize("2025-06-18")
            for meta in ({}, {"progressToken": 1}):
                reply = await wire.post(request("tools/call", {"name": "t", "_meta": meta}), headers)
                assert reply.message["result"]["structuredContent"] == {"a": [FORGED, 2]}
                assert {line.partition(b":")[0] for line in reply.body.split(b"\n")} <= {
                    b"", b"id", b"event", b"data", b'{"jsonrpc"',
                }  # fmt: skip
        await gateway.stop()


@pytest.mark.server
async def test_line_breaks_in_responses_do_not_become_messages_on_stdio(tmp_path: Path) -> None:
    heard: list[Any] = []
    async with misbehaving(with_handshake(behave)) as upstream:
        file = tmp_path / "front.py"
        file.write_text(
            "from millstream import Server\n"
            "mcp = Server('front')\n"
            f"mcp.upstream('up', {upstream.url!r}, prefix='')\n"
            "mcp.run('stdio')\n",
            "utf-8",
        )
        async with Client([sys.executable, str(file)], timeout=WAIT, on_log=heard.append) as client:
            for progress in (None, lambda value, total, text: None):
                result = await client.call("t", progress=progress)
                assert json.loads(bytes(result.structured_content)) == {"a": [FORGED, 2]}
    assert heard == []
