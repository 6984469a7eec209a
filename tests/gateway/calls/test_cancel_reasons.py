"""The reason of a cancellation, between clients and servers behind a gateway."""

import asyncio
import json
import sys
from contextlib import AsyncExitStack
from typing import Any

import pytest

from http_peer import serve
from millstream import Server
from patience import WAIT
from wire import MemoryPipe

UPSTREAM = r"""
import json, sys

def say(**message):
    print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)

def answer(call):
    say(id=call["id"], result={"content": [{"type": "text", "text": json.dumps(reasons)}]})

reasons = []
for line in sys.stdin:
    message = json.loads(line)
    method, params = message.get("method"), message.get("params", {})
    if method == "initialize":
        about = {"name": "patient", "version": "1"}
        offer = {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}}, "serverInfo": about}
        say(id=message["id"], result=offer)
    elif method == "tools/list":
        names = "wait", "tell", "ask", "withdraw"
        say(id=message["id"], result={"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in names]})
    elif method == "notifications/cancelled":
        reasons.append(params.get("reason"))
    elif method == "tools/call" and params["name"] == "wait":
        say(method="notifications/progress", params={"progressToken": params["_meta"]["progressToken"], "progress": 1})
    elif method == "tools/call" and params["name"] == "ask":
        schema = {"type": "object", "properties": {"name": {"type": "string"}}}
        say(id="question", method="elicitation/create", params={"message": "Who?", "requestedSchema": schema})
    elif method == "tools/call":
        if params["name"] == "withdraw":
            say(method="notifications/cancelled", params={"requestId": "question", "reason": "Found it"})
        answer(message)
    elif method and "id" in message:
        say(id=message["id"], error={"code": -32601, "message": "Method not found"})
"""
"""A server that lists the reasons it received, and cancels its question when it's told to."""


class Caller:
    """A handshake client that writes its own messages."""

    def __init__(self, pipe: MemoryPipe) -> None:
        self._pipe = pipe

    def send(self, method: str, params: Any, number: int = 0) -> None:
        message = {"jsonrpc": "2.0", "method": method, "params": params} | ({"id": number} if number else {})
        self._pipe.send(json.dumps(message).encode())

    async def wait_for(self, **wanted: Any) -> Any:
        while True:
            message = json.loads(await self._pipe.receive())
            if wanted.items() <= message.items():
                return message


async def connect(stack: AsyncExitStack, kind: str) -> Caller:
    """Connect a client to a gateway before `UPSTREAM`, or before another gateway that serves it over HTTP."""
    command: list[str] | str = [sys.executable, "-c", UPSTREAM]
    if "http" in kind:
        inner = Server("inner")
        inner.upstream("patient", command, prefix="", start_timeout=WAIT, timeout=WAIT)
        await stack.enter_async_context(inner.running())
        command = f"http://127.0.0.1:{(await stack.enter_async_context(serve(inner))).port}/mcp"
    gateway = Server("gateway")
    prefix = "" if "relay" in kind else "p"
    gateway.upstream("patient", command, prefix=prefix, revision="2025-11-25", start_timeout=WAIT, timeout=WAIT)
    running = await stack.enter_async_context(gateway.running())
    pipe = MemoryPipe(running.dispatcher)
    stack.push_async_callback(pipe.close)
    caller = Caller(pipe)
    offer = {"protocolVersion": "2025-11-25", "capabilities": {"elicitation": {}}}
    caller.send("initialize", {**offer, "clientInfo": {"name": "c", "version": "1"}}, 1)
    await caller.wait_for(id=1)
    caller.send("notifications/initialized", {})
    return caller


KINDS = ("relay stdio", "catalog stdio", "relay http", "catalog http")


@pytest.mark.server
@pytest.mark.parametrize("kind", KINDS)
async def test_upstream_receives_the_reason_of_a_cancellation(kind: str) -> None:
    name = "" if "relay" in kind else "p_"
    async with asyncio.timeout(WAIT), AsyncExitStack() as stack:
        caller = await connect(stack, kind)
        caller.send("tools/call", {"name": f"{name}wait", "arguments": {}, "_meta": {"progressToken": 2}}, 2)
        await caller.wait_for(method="notifications/progress")
        caller.send("notifications/cancelled", {"requestId": 2, "reason": "She changed her mind"})
        told, number = "[]", 2
        while told == "[]":
            number += 1
            caller.send("tools/call", {"name": f"{name}tell", "arguments": {}}, number)
            told = (await caller.wait_for(id=number))["result"]["content"][0]["text"]
    assert json.loads(told) == ["She changed her mind"]


@pytest.mark.server
@pytest.mark.parametrize("kind", KINDS)
async def test_client_receives_the_reason_why_a_question_was_withdrawn(kind: str) -> None:
    name = "" if "relay" in kind else "p_"
    async with asyncio.timeout(WAIT), AsyncExitStack() as stack:
        caller = await connect(stack, kind)
        caller.send("tools/call", {"name": f"{name}ask", "arguments": {}}, 2)
        question = await caller.wait_for(method="elicitation/create")
        caller.send("tools/call", {"name": f"{name}withdraw", "arguments": {}}, 3)
        withdrawn = await caller.wait_for(method="notifications/cancelled")
    assert withdrawn["params"] == {"requestId": question["id"], "reason": "Found it"}
