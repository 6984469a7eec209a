"""A gateway as another package would write it: with public names, between an official SDK server and any client."""

import ast
import asyncio
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest

from millstream import Client, ProtocolError, Server, ToolError
from millstream.client import Options, ToolFailed
from millstream.client.lowlevel import Conversation, Notification, RawRequest
from millstream.extensions import Extension, Host
from millstream.items import Call, ItemSource, Tool, describe_problems
from millstream.protocol import METHOD_NOT_FOUND, REVISIONS, Revision, encode, notification_message, project_tool_result
from patience import WAIT

OFFICIAL = [sys.executable, str(Path(__file__).parents[1] / "client" / "foreign" / "official_two.py"), "stdio"]


class NoQuestions:
    """Clients of this gateway can't be asked."""

    def capabilities(self, revision: Revision, more: Mapping[str, object]) -> dict[str, Any]:
        """Declare nothing."""
        return {}

    async def answer(self, method: str, params: bytes, request_id: int = 0) -> Any:
        """Refuse the question."""
        raise ProtocolError(METHOD_NOT_FOUND, "This gateway forwards no questions.")


class ForwardedTool(Tool):
    """A tool of the other server, whose results stay JSON."""

    def encode(self, value: Any, call: Call) -> bytes:
        """Return the result for the client's revision."""
        return project_tool_result(value[1:-1], call.revision)


class OtherGateway(Extension):
    """Offers the tools of one server."""

    name = "com.example/gateway"
    settings = None

    def __init__(self, target: list[str]) -> None:
        self._target = target
        self._callers: dict[int, Call] = {}
        self._conversation: Conversation

    async def open(self, host: Host) -> None:
        """Connect, and register the tools."""
        self._conversation = Conversation(
            self._target, NoQuestions(), Options(), revision=None, headers={}, timeout=WAIT, observer=self._report
        )
        await self._conversation.start()
        listed = await self._conversation.requests.ask(RawRequest(method="tools/list", repeatable=True))
        for each in msgspec.json.decode(listed)["tools"]:
            name, schema = each["name"], each["inputSchema"]
            source = ItemSource(name, partial(self._run, name, schema), msgspec.json.decode, schema=schema)
            host.add_item(ForwardedTool(source))

    async def close(self) -> None:
        """Disconnect."""
        await self._conversation.close()

    async def _run(self, name: str, schema: dict[str, Any], arguments: Any, call: Call) -> bytes:
        if problems := describe_problems(schema, arguments):
            raise ToolError(problems)
        requests = self._conversation.requests
        number = next(requests.ids)
        self._callers[number] = call
        params = encode({"name": name, "arguments": arguments})
        try:
            return await requests.ask(
                RawRequest(
                    method="tools/call", params=params, name=name, id=number, owner=call.owner, progress=lambda *_: None
                )
            )
        finally:
            del self._callers[number]

    def _report(self, notification: Notification) -> None:
        """Pass progress on to the client of the call."""
        params = msgspec.json.decode(notification.params)
        caller = self._callers.get(params.get("progressToken"))
        if notification.method == "notifications/progress" and caller is not None and caller.token is not None:
            caller.push_to_caller(notification_message(notification.method, {**params, "progressToken": caller.token}))


@pytest.mark.server
async def test_extension_with_public_names_is_a_gateway_to_an_official_server() -> None:
    mcp = Server("front", extensions=[OtherGateway(OFFICIAL)])
    steps: list[float] = []

    def record(value: float, total: float | None, message: str | None) -> None:
        steps.append(value)

    async with asyncio.timeout(WAIT), mcp.running():
        for revision in REVISIONS:
            async with Client(mcp, revision=revision, timeout=WAIT) as client:
                assert (await client.call("add", a=1, b=2)).text == "3"
                result = await client.call("count", steps=2, progress=record)
                assert result.text == "counted"
                with pytest.raises(ToolFailed, match="missing 'b'"):
                    await client.call("add", a=1)
    assert steps == [1, 2] * len(REVISIONS)


def test_this_gateway_imports_only_public_names() -> None:
    nodes = ast.walk(ast.parse(Path(__file__).read_text("utf-8")))
    assert [node.module for node in nodes if isinstance(node, ast.ImportFrom) and "._" in str(node.module)] == []
