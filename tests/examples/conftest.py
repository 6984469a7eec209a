"""A client in memory that simulates a user, for calling the examples at any revision."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest

from millstream import Server
from millstream._protocol.revisions import ALL
from patience import WAIT
from wire import MemoryPipe

CAPABILITIES: dict[str, Any] = {"sampling": {}, "elicitation": {}, "roots": {}}
META = "io.modelcontextprotocol/"
Answer = Callable[[str, dict[str, Any]], Any]


def person(method: str, params: dict[str, Any]) -> Any:
    """Accept every form with the first valid value, let the model say hello, and have one folder."""
    if method == "sampling/createMessage":
        return {"role": "assistant", "content": {"type": "text", "text": "Paris, hello"}, "model": "m"}
    if method == "roots/list":
        return {"roots": [{"uri": "file:///home", "name": "home"}]}
    return {"action": "accept", "content": {key: fitting(part) for key, part in fields(params).items()}}


def fields(params: dict[str, Any]) -> dict[str, Any]:
    return params["requestedSchema"]["properties"]


def fitting(schema: dict[str, Any]) -> Any:
    if "default" in schema:
        return schema["default"]
    if "enum" in schema or "oneOf" in schema:
        return schema["enum"][0] if "enum" in schema else schema["oneOf"][0]["const"]
    return {"string": "Ann", "integer": 3, "number": 1.5, "boolean": True, "array": []}[schema["type"]]


class Caller:
    """One client of one server, at one revision."""

    def __init__(self, pipe: MemoryPipe, revision: str, capabilities: dict[str, Any], answer: Answer) -> None:
        self._pipe = pipe
        self._capabilities = capabilities
        self._answer = answer
        self._last_id = 0
        self.revision = revision
        self.handshake = next(each for each in ALL if each.date == revision).handshake
        self.asked: list[tuple[str, dict[str, Any]]] = []
        """Questions of the server, in order."""
        self.rounds = 0
        """How often the last call was answered with questions."""
        self.notifications: list[dict[str, Any]] = []

    async def open(self) -> None:
        if self.handshake:
            client = {"name": "t", "version": "1"}
            await self.request(
                "initialize", protocolVersion=self.revision, capabilities=self._capabilities, clientInfo=client
            )
            self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def _send(self, message: dict[str, Any]) -> None:
        self._pipe.send(json.dumps(message).encode())

    async def reply(self, method: str, params: dict[str, Any], meta: dict[str, Any] | None = None) -> dict[str, Any]:
        """Return the response to one request, answering questions."""
        self._last_id += 1
        about = {} if self.handshake else {
            f"{META}protocolVersion": self.revision,
            f"{META}clientInfo": {"name": "t", "version": "1"},
            f"{META}clientCapabilities": self._capabilities,
        }  # fmt: skip
        meta = {**about, **(meta or {})}
        sent = {**params, "_meta": meta} if meta else params
        self._send({"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": sent})
        while True:
            message = json.loads(await asyncio.wait_for(self._pipe.receive(), WAIT))
            if "method" not in message:
                return message
            if "id" in message:
                result = self._ask(message["method"], message.get("params", {}))
                self._send({"jsonrpc": "2.0", "id": message["id"], "result": result})
            else:
                self.notifications.append(message)

    def _ask(self, method: str, params: dict[str, Any]) -> Any:
        self.asked.append((method, params))
        return self._answer(method, params)

    async def request(self, method: str, *, meta: dict[str, Any] | None = None, **params: Any) -> dict[str, Any]:
        """Return the result of a request, in as many rounds as necessary."""
        self.rounds = 0
        while True:
            reply = await self.reply(method, params, meta)
            assert "result" in reply, reply
            result = reply["result"]
            if result.get("resultType", "complete") == "complete":
                return result
            self.rounds += 1
            wanted = result["inputRequests"]
            params["inputResponses"] = {key: self._ask(q["method"], q.get("params", {})) for key, q in wanted.items()}
            if "requestState" in result:
                params["requestState"] = result["requestState"]

    async def call(self, tool: str, /, *, meta: dict[str, Any] | None = None, **arguments: Any) -> dict[str, Any]:
        """Return the result of a tool."""
        return await self.request("tools/call", meta=meta, name=tool, arguments=arguments)

    async def text(self, tool: str, /, **arguments: Any) -> str:
        """Return the first text of a tool's result, which must not be an error."""
        result = await self.call(tool, **arguments)
        assert not result.get("isError"), result
        return result["content"][0]["text"]


Connect = Callable[..., AbstractAsyncContextManager[Caller]]


@pytest.fixture
def connect() -> Connect:
    """``async with connect(server, revision) as caller``."""

    @asynccontextmanager
    async def connected(
        server: Server, revision: str, *, capabilities: dict[str, Any] = CAPABILITIES, answer: Answer = person
    ) -> AsyncIterator[Caller]:
        async with server.running() as runtime:
            pipe = MemoryPipe(runtime.dispatcher)
            caller = Caller(pipe, revision, capabilities, answer)
            try:
                await caller.open()
                yield caller
            finally:
                await pipe.close()

    return connected


REVISIONS = [each.date for each in ALL]


@pytest.fixture(params=REVISIONS)
def revision(request: pytest.FixtureRequest) -> str:
    """Every revision."""
    return request.param


@pytest.fixture(params=[each.date for each in ALL if each.date >= "2025-06-18"])
def asking_revision(request: pytest.FixtureRequest) -> str:
    """Every revision in which a server can ask the user."""
    return request.param
