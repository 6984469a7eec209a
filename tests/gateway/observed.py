"""A server's features as seen by an official SDK client, as lines to compare between two runs."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import mcp_types
from mcp.client.client import Client
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel

from patience import WAIT

Connect = Callable[[], AbstractAsyncContextManager[Any]]
"""Opens a transport to the server."""


def text_of(value: Any) -> str:
    """Return the JSON of a result or message."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", by_alias=True, exclude_none=True)
    return json.dumps(value, sort_keys=True)


class Observer:
    """Uses one connection, and writes down what it sees."""

    def __init__(self, connect: Connect, era: str) -> None:
        self.lines: dict[str, str] = {}
        self._connect = connect
        self._handshake = era < "2026"
        self._mode = "legacy" if self._handshake else era
        self._messages: list[str] = []
        self._arrived = asyncio.Event()

    def client(self, **options: Any) -> Client:
        """Return a client that declares nothing, unless the options do, and can be told apart."""
        info = mcp_types.Implementation(
            name="ada", version="7", title="Ada", website_url="https://example.com/ada", description="A reader.",
            icons=[mcp_types.Icon(src="https://example.com/ada.png")],
        )  # fmt: skip
        return Client(
            self._connect(),
            mode=self._mode,
            client_info=info,
            logging_callback=self._log,
            log_level=None if self._handshake else "info",
            message_handler=self._take,
            read_timeout_seconds=WAIT,
            **options,
        )

    async def _log(self, params: Any) -> None:
        self._messages.append(f"log {text_of(params)}")

    async def _take(self, message: Any) -> None:
        if not isinstance(message, Exception):
            self._messages.append(text_of(message))
            self._arrived.set()

    async def note(self, label: str, work: Awaitable[Any]) -> None:
        """Write down a result or an error."""
        try:
            async with asyncio.timeout(WAIT):
                self.lines[label] = text_of(await work)
        except MCPError as error:
            self.lines[label] = f"error {text_of(error.error)}"

    async def heard(self, label: str, work: Awaitable[Any], *, count: int = 0) -> None:
        """Write down the result, and the messages until then, or until there are `count`."""
        self._messages.clear()
        await self.note(label, work)
        async with asyncio.timeout(WAIT):
            while len(self._messages) < count:
                self._arrived.clear()
                await self._arrived.wait()
        self.lines[f"{label}, heard"] = "\n".join(sorted(set(self._messages)))

    async def observe(self) -> dict[str, str]:
        """Use everything, and return the lines."""
        async with self.client() as client:
            await self._introduce(client)
            await self._call(client)
            await self._read(client)
            await self._remember(client)
            await self._listen(client)
            await self._change(client)
            if not self._handshake:
                await self.note("follow", self._follow(client))
        async with self.client(elicitation_callback=self._answer) as able:
            await self.note("ask, answered", able.call_tool("ask", {}))
        return self.lines

    async def _answer(self, ctx: Any, question: Any) -> mcp_types.ElicitResult:
        self.lines["question"] = text_of(question)
        return mcp_types.ElicitResult(action="accept", content={"name": "Ada"})

    async def _follow(self, client: Client) -> str:
        """Subscribe, and return what's granted and reported."""
        uris = ["book://Emma"]
        async with client.listen(tools_list_changed=True, resource_subscriptions=uris) as changes:
            published = await client.call_tool("publish", {})
            count = 0 if published.is_error else 2
            events = [repr(await anext(changes)) for _ in range(count)]
        return text_of([text_of(changes.honored), text_of(published), sorted(events)])

    async def _change(self, client: Client) -> None:
        """Change what the program shows to this client and to others, and send a notification of the client's own."""
        await self.note("place", client.call_tool("place", {}))
        for step in ("promote", "demote"):
            await self.note(step, client.call_tool(step, {}))
            await self.note(f"tools after {step}", client.list_tools())
            async with self.client() as other:
                await self.note(f"another client's tools after {step}", other.list_tools())
        for text in ("Sell more books.", "Sell books."):
            await self.note(f"instruct: {text}", client.call_tool("instruct", {"text": text}))
            async with self.client() as other:
                self.lines[f"instructions after {text}"] = str(other.instructions)
        if self._handshake:
            hello: Any = mcp_types.Notification[dict[str, Any], str](
                method="notifications/com.example/hello", params={}
            )
            await client.session.send_notification(hello)
            await self.note("greet", client.call_tool("greet", {}))

    async def _introduce(self, client: Client) -> None:
        lines = self.lines
        lines["server"] = text_of(client.server_info)
        lines["capabilities"] = text_of(client.server_capabilities)
        lines["instructions"] = str(client.instructions)
        lines["revision"] = client.protocol_version
        if not self._handshake:
            await self.note("discover", client.session.send_discover(self._mode))
        await self.note("tools", client.list_tools())
        await self.note("resources", client.list_resources())
        await self.note("templates", client.list_resource_templates())
        await self.note("prompts", client.list_prompts())
        await self.note("tools from a cursor", client.list_tools(cursor="none"))

    async def _call(self, client: Client) -> None:
        steps: list[Any] = []

        async def progress(*step: Any) -> None:
            steps.append(step)

        await self.note("find", client.call_tool("find", {"title": "Emma"}))
        await self.note("find, without arguments", client.call_tool("find", {}))
        await self.note("find, with a wrong type", client.call_tool("find", {"title": ["Emma"]}))
        await self.note("find, with more", client.call_tool("find", {"title": "Emma", "no": 1}))
        await self.note("fail", client.call_tool("fail", {}))
        await self.note("refuse", client.call_tool("refuse", {}))
        await self.note("unknown tool", client.call_tool("nothing", {}))
        await self.note("ask", client.call_tool("ask", {}))
        await self.note("who", client.call_tool("who", {}))
        await self.note("meta", client.call_tool("meta", {}, meta={"com.example/trace": {"id": 7}}))
        if self._handshake:
            await self.note("level", client.set_logging_level("debug"))
            await self.note("ping", client.send_ping())
        await self.heard("work", client.call_tool("work", {}, progress_callback=progress))
        self.lines["progress"] = text_of(steps)

    async def _read(self, client: Client) -> None:
        await self.note("read", client.read_resource("book://list"))
        await self.note("read a template", client.read_resource("book://Emma"))
        await self.note("read, which fails", client.read_resource("book://none"))
        await self.note("unknown resource", client.read_resource("shelf://1"))
        await self.note("prompt", client.get_prompt("review", {"title": "Emma"}))
        await self.note("prompt, without arguments", client.get_prompt("review", {}))
        await self.note("unknown prompt", client.get_prompt("nothing", {}))
        prompt = mcp_types.PromptReference(name="review")
        await self.note("completion", client.complete(prompt, {"name": "title", "value": "Em"}))
        unknown = mcp_types.PromptReference(name="nothing")
        await self.note("completion of an unknown prompt", client.complete(unknown, {"name": "title", "value": "Em"}))

    async def _remember(self, client: Client) -> None:
        await self.note("put", client.call_tool("put", {"value": 7}))
        await self.note("take", client.call_tool("take", {}))
        async with self.client() as other:
            await self.note("take in another session", other.call_tool("take", {}))
        await self.note("take again", client.call_tool("take", {}))

    async def _listen(self, client: Client) -> None:
        if self._handshake:
            await self.note("subscribe", client.subscribe_resource("book://Emma"))
            await self.note("subscribe to nothing", client.subscribe_resource("shelf://1"))
        count = int(self._handshake)
        await self.heard("touch", client.call_tool("touch", {}), count=count)
        await self.heard("grow", client.call_tool("grow", {}), count=count)
        await self.note("tools, grown", client.list_tools())
        await self.note("grown", client.call_tool("grown", {}))
        await self.note("shrink", client.call_tool("shrink", {}))
        await self.note("tools, shrunk", client.list_tools())
