"""For tests of your server: an in-memory client of any revision, with a person and a model played by you.

``async with connect(mcp, revision=..., elicit=...) as client: await client.call("add", a=1, b=2)``. Everything passes
through the real encoder, ladder and dispatcher; only the network is left out.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from msgspec import UNSET, Struct, UnsetType

from millstream.app.server import Server
from millstream.protocol.metadata import CAPABILITIES_KEY, CLIENT_KEY, VERSION_KEY
from millstream.protocol.revisions import BY_DATE, NEWEST, Revision
from millstream.transports.memory import MemoryPipe

Elicit = Callable[[str, dict[str, Any]], Any]
"""``elicit(message, schema)`` gives the answers as a dict, ``"decline"`` or ``"cancel"``."""
Sample = Callable[[dict[str, Any]], str]
"""``sample(params)`` gives the model's text."""

_WAIT = 30.0
"""Seconds until a test that waits for an answer fails."""


class Failure(Exception):
    """The server answered with a JSON-RPC error."""

    def __init__(self, code: int, message: str, data: Any = None) -> None:
        super().__init__(f"{message} ({code})")
        self.code = code
        self.data = data


class Result(Struct, frozen=True):
    """What a tool gave back."""

    content: list[dict[str, Any]]
    structured: Any | UnsetType = UNSET
    is_error: bool = False
    raw: dict[str, Any] = {}
    """The whole result as on the wire."""

    @property
    def text(self) -> str:
        """The text blocks, joined."""
        return "\n".join(block["text"] for block in self.content if block["type"] == "text")


class TestClient:
    """One client of one server. Made by `connect`."""

    __test__ = False  # pytest: this is no test

    def __init__(
        self, pipe: MemoryPipe, revision: Revision, capabilities: Mapping[str, Any], answer: Callable[[str, Any], Any]
    ) -> None:
        self._pipe = pipe
        self._capabilities = dict(capabilities)
        self._answer = answer
        self._last_id = 0
        self._revision = revision
        self.notifications: list[dict[str, Any]] = []
        """Everything the server said unasked, in order."""
        self.questions: list[dict[str, Any]] = []
        """Everything the server asked, in order: ``{"method": …, "params": …}``."""

    async def call(self, tool: str, /, **arguments: Any) -> Result:
        """Call a tool.

        Raises:
            Failure: the server answered with an error (a tool that fails is a `Result` with `is_error`).
        """
        raw = await self.request("tools/call", {"name": tool, "arguments": arguments}, progress=True)
        return Result(raw["content"], raw.get("structuredContent", UNSET), raw.get("isError", False), raw)

    async def read(self, uri: str) -> list[dict[str, Any]]:
        """The contents of a resource."""
        contents: list[dict[str, Any]] = (await self.request("resources/read", {"uri": uri}))["contents"]
        return contents

    async def prompt(self, name: str, /, **arguments: str) -> list[dict[str, Any]]:
        """The messages of a prompt."""
        params = {"name": name, "arguments": arguments}
        messages: list[dict[str, Any]] = (await self.request("prompts/get", params))["messages"]
        return messages

    async def request(
        self, method: str, params: Mapping[str, Any] | None = None, *, progress: bool = False
    ) -> dict[str, Any]:
        """The result of any request, in as many rounds as it takes; questions are answered on the way.

        Raises:
            Failure: the server answered with an error.
            TimeoutError: it did not answer.
        """
        sent: dict[str, Any] = dict(params or {})
        while True:
            reply = await self._exchange(method, sent, progress)
            if "error" in reply:
                error = reply["error"]
                raise Failure(error["code"], error["message"], error.get("data"))
            result: dict[str, Any] = reply["result"]
            if result.get("resultType", "complete") != "input_required":
                return result
            sent["inputResponses"] = {key: self._reply(asked) for key, asked in result["inputRequests"].items()}
            if "requestState" in result:
                sent["requestState"] = result["requestState"]

    async def open(self) -> None:
        """Shake hands, where the revision does."""
        if self._revision.handshake:
            about = {"name": "test", "version": "1"}
            params = {"protocolVersion": self._revision.date, "capabilities": self._capabilities, "clientInfo": about}
            await self._exchange("initialize", params, False)
            self._send({"jsonrpc": "2.0", "method": "notifications/initialized"})

    def _send(self, message: Mapping[str, Any]) -> None:
        self._pipe.send(msgspec.json.encode(message))

    async def _exchange(self, method: str, params: dict[str, Any], progress: bool) -> dict[str, Any]:
        self._last_id += 1
        meta: dict[str, Any] = {"progressToken": self._last_id} if progress else {}
        if not self._revision.handshake:
            meta |= {
                VERSION_KEY: self._revision.date,
                CAPABILITIES_KEY: self._capabilities,
                CLIENT_KEY: {"name": "test", "version": "1"},
            }
        sent = {**params, "_meta": meta} if meta else params
        self._send({"jsonrpc": "2.0", "id": self._last_id, "method": method, "params": sent})
        while True:
            async with asyncio.timeout(_WAIT):
                message: dict[str, Any] = msgspec.json.decode(await self._pipe.receive())
            if "method" not in message:
                return message
            if "id" in message:
                self._send({"jsonrpc": "2.0", "id": message["id"], "result": self._reply(message)})
            else:
                self.notifications.append(message)

    def _reply(self, asked: Mapping[str, Any]) -> Any:
        params = asked.get("params", {})
        self.questions.append({"method": asked["method"], "params": params})
        return self._answer(asked["method"], params)


@asynccontextmanager
async def connect(
    server: Server,
    *,
    revision: str = NEWEST.date,
    elicit: Elicit | None = None,
    sample: Sample | None = None,
    roots: list[str] | None = None,
) -> AsyncGenerator[TestClient, None]:
    """Run a server in memory and connect to it.

    Args:
        server: your server.
        revision: the date of the protocol revision to speak.
        elicit: plays the person; without it the client does not offer forms.
        sample: plays the model; without it the client does not offer sampling.
        roots: file URIs; without them the client does not offer roots.

    Raises:
        KeyError: an unknown revision.
    """
    capabilities: dict[str, Any] = {}
    if elicit is not None:
        capabilities["elicitation"] = {}
    if sample is not None:
        capabilities["sampling"] = {}
    if roots is not None:
        capabilities["roots"] = {}

    def answer(method: str, params: Any) -> Any:
        if method == "elicitation/create" and elicit is not None:
            given = elicit(params["message"], params.get("requestedSchema", {}))
            return {"action": given} if isinstance(given, str) else {"action": "accept", "content": given}
        if method == "sampling/createMessage" and sample is not None:
            return {"role": "assistant", "content": {"type": "text", "text": sample(params)}, "model": "test"}
        if method == "roots/list":
            return {"roots": [{"uri": uri} for uri in roots or ()]}
        return {}

    async with server.running() as runtime:
        pipe = MemoryPipe(runtime.dispatcher)
        client = TestClient(pipe, BY_DATE[revision], capabilities, answer)
        try:
            await client.open()
            yield client
        finally:
            await pipe.close()
