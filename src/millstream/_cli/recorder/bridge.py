"""A bridge between a client on stdio and a server at a URL: each line becomes a POST, and responses become lines.

It only handles the parts of MCP that Streamable HTTP repeats in headers
(https://modelcontextprotocol.io/specification/2026-07-28/basic/transports): session, revision, method, name, and tool
arguments. A broken stream isn't resumed.
"""

import asyncio
import json
from contextlib import suppress
from typing import Any

import msgspec
from msgspec import Struct

from millstream._cli.recorder.standard_input import MAX_LINE, lines, write_stdout
from millstream._cli.recorder.transcript import Writer
from millstream._http.client.connection import HttpReply
from millstream._http.client.connection import lines as lines_of
from millstream._http.client.pool import ConnectionPool
from millstream._protocol.errors import INTERNAL_ERROR
from millstream._protocol.json_schema import members, value_at
from millstream._protocol.messages import ToolDescription
from millstream._protocol.metadata import VERSION_KEY
from millstream._protocol.param_headers import encode_value
from millstream._protocol.revisions import HANDSHAKE
from millstream._tasks import Tasks
from millstream.client._endpoint import Auth, Endpoint
from millstream.client._errors import BadAnswer, ClientError, NotMcp
from millstream.client._targets import Remote
from millstream.client._tool_headers import ToolHeaders
from millstream.client._transports.events import EventReader

_GOODBYE = 2.0
_TAKES = "Accept: application/json, text/event-stream\r\nContent-Type: application/json\r\n"


class _Result(Struct, rename="camel"):
    """The relevant members of a result."""

    protocol_version: str = ""
    tools: list[ToolDescription] = []


class _Answer(Struct):
    result: _Result


_decode_result = msgspec.json.Decoder(_Answer).decode


class Bridge:
    """One client's connection to one server."""

    def __init__(self, place: Remote, headers: dict[str, str], writer: Writer, auth: Auth | None = None) -> None:
        # Configuration
        pool = ConnectionPool(place.url, max_connections=100, max_body=MAX_LINE, connect_timeout=10.0, tls=None)
        self._endpoint = Endpoint(place.url, {**place.headers, **headers}, pool, auth)
        self._writer = writer
        # State
        self._session = ""
        self._revision = ""
        self._tools = ToolHeaders()
        self._tasks = Tasks()

    async def run(self) -> int:
        """Run until the client disconnects."""
        try:
            async for line in lines():
                await self._take(line)
        finally:
            await self._tasks.close()
            if self._session:
                with suppress(ClientError, TimeoutError):
                    async with asyncio.timeout(_GOODBYE):
                        await self._endpoint.send("DELETE", self._about(self._revision), repeatable=False)
            await self._endpoint.close()
        return 0

    async def _take(self, line: bytes) -> None:
        self._writer.line("client", line)
        try:
            found: Any = json.loads(line)
        except ValueError:
            found = None
        message = members(found)
        posting = self._post(line, message)
        if message.get("method") in ("initialize", "notifications/initialized"):
            await posting  # later messages depend on it
        else:
            self._tasks.spawn(posting)
        if message.get("method") == "notifications/initialized":
            self._tasks.spawn(self._listen())

    async def _post(self, line: bytes, message: dict[str, Any]) -> None:
        try:
            reply = await self._endpoint.send("POST", self._headers(message), line, repeatable=False)
            if message.get("method") == "initialize":
                self._session = reply.header(b"mcp-session-id")
            await self._answer(reply)
        except ClientError as exc:
            if "id" in message and "method" in message:
                error = {"code": INTERNAL_ERROR, "message": str(exc)}
                answer = {"jsonrpc": "2.0", "id": message["id"], "error": error}
                await self._pass_on(json.dumps(answer, ensure_ascii=False).encode())

    def _headers(self, message: dict[str, Any]) -> str:
        method = str(message.get("method") or "")
        fields = members(message.get("params"))
        head = f"{_TAKES}Mcp-Method: {encode_value(method)}\r\n" if method else _TAKES
        name = fields.get("name") or fields.get("uri")
        if isinstance(name, str):
            head += f"Mcp-Name: {encode_value(name)}\r\n"
        if method == "tools/call":
            head += lines_of(self._tools.of(str(name), members(fields.get("arguments"))))
        version = value_at(fields, ("_meta", VERSION_KEY))
        return head + self._about(str(version or self._revision))

    def _about(self, version: str) -> str:
        about = f"MCP-Protocol-Version: {encode_value(version)}\r\n" if version else ""
        return f"{about}Mcp-Session-Id: {self._session}\r\n" if self._session else about

    async def _answer(self, reply: HttpReply) -> None:
        if reply.stream is not None:
            await self._follow(reply)
        elif reply.body.lstrip()[:1] in (b"{", b"["):
            await self._pass_on(json.dumps(json.loads(reply.body), ensure_ascii=False).encode())
        elif reply.status >= 300 or reply.body:
            kind = reply.media_type or "nothing"
            raise NotMcp(f"{self._endpoint.url} isn't an MCP endpoint: it responds with {reply.status} and {kind}.")

    async def _follow(self, reply: HttpReply) -> None:
        assert reply.stream is not None  # noqa: S101  checked by the caller
        reader = EventReader(MAX_LINE)
        reader.attach(reply.stream)
        try:
            while (event := await reader.event()) is not None:
                if event.data and event.event == "message":
                    await self._pass_on(event.data.replace("\r", " ").replace("\n", " ").encode())
        finally:
            reader.close()

    async def _listen(self) -> None:
        """Read the stand-alone stream of the handshake era. Servers without one respond with 405."""
        try:
            extra = f"Accept: text/event-stream\r\n{self._about(self._revision)}"
            reply = await self._endpoint.send("GET", extra, repeatable=True)
            if reply.stream is not None:
                await self._follow(reply)
        except (ClientError, BadAnswer):
            return

    async def _pass_on(self, line: bytes) -> None:
        self._note(line)
        self._writer.line("server", line)
        await write_stdout(line + b"\n")

    def _note(self, line: bytes) -> None:
        """Store the revision and the tools' header annotations, for the headers of later requests."""
        try:
            result = _decode_result(line).result
            if result.protocol_version in HANDSHAKE and HANDSHAKE[result.protocol_version].header:
                self._revision = result.protocol_version
            self._tools.learn(result.tools)
        except msgspec.MsgspecError:
            return  # another kind of message
