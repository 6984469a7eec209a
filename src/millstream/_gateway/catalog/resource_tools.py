"""Tools that read resources and prompts, for clients that only know tools: ``Settings(resource_tools="on")``.

Each of them runs the handler of the method that other clients call, with the same caller. So scopes, policies, hooks,
and questions are those of that method, and nothing can be read here that can't be read there.
"""

from base64 import b64decode
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Any, Protocol

import msgspec
from msgspec import Struct

from millstream import Audio, EmbeddedResource, Image, ProtocolError, Text, ToolError, ToolResult
from millstream._gateway.catalog.search import LISTED_TAG, read_arguments
from millstream._parts import PartHost
from millstream._protocol.content import Content
from millstream._protocol.errors import RESOURCE_NOT_FOUND
from millstream._server.calls.call import Call
from millstream._server.features.registry import Handler
from millstream._server.features.sources import ItemSource
from millstream._server.features.tools import Tool
from millstream.protocol import INVALID_PARAMS, Json, decode_object, decoder, encode

_TEMPLATES = "templates:"
"""Beginning of the cursor of a page of templates, which follow the resources."""
_SHOWN = ("uri", "uriTemplate", "name", "title", "description", "mimeType", "size", "arguments")
_CURSOR = {"type": "string", "description": "nextCursor of the page before"}


class _Page(Struct, frozen=True):
    cursor: str = ""


class _Resource(Struct, frozen=True):
    uri: str


class _Prompt(Struct, frozen=True):
    name: str
    arguments: dict[str, str] = {}


class ResourceToolsDefinition(Protocol):
    """The part of the server's definition that chooses the clients."""

    @property
    def settings(self) -> Any: ...


class ResourceToolsPart:
    """Adds the tools `list_resources`, `read_resource`, `list_prompts`, and `get_prompt`."""

    name: str = "resource_tools"
    needs: Collection[str] = ()

    def __init__(self, definition: ResourceToolsDefinition) -> None:
        self._is_for_all = definition.settings.resource_tools == "on"

    async def open(self, host: PartHost) -> None:
        """Register the tools.

        Raises:
            ValueError: The server has a tool with one of these names.
        """
        cursor = {"properties": {"cursor": _CURSOR}}
        uri = {"properties": {"uri": {"type": "string", "description": "URI of the resource"}}, "required": ["uri"]}
        prompt = {
            "properties": {
                "name": {"type": "string", "description": "Name of the prompt"},
                "arguments": {"type": "object", "additionalProperties": {"type": "string"}},
            },
            "required": ["name"],
        }
        tools: tuple[tuple[str, str, Json, type[Struct], Callable[[Any, Call], Awaitable[ToolResult]]], ...] = (
            ("list_resources", "List the resources that read_resource reads, and the templates of their URIs.",
             cursor, _Page, self._list_resources),
            ("read_resource", "Read a resource, a file of a skill, or the whole of a shortened result, by its URI.",
             uri, _Resource, self._read_resource),
            ("list_prompts", "List the prompts that get_prompt returns.", cursor, _Page, self._list_prompts),
            ("get_prompt", "Get the messages of a prompt.", prompt, _Prompt, self._get_prompt),
        )  # fmt: skip
        for name, description, schema, kind, run in tools:
            read = partial(read_arguments, decoder(kind), name)
            source = ItemSource(name, run, read, description=description, schema={"type": "object", **schema})
            tool = Tool(source, annotations={"readOnlyHint": True}, tags=[LISTED_TAG])
            tool.is_companion = True
            host.registry.add("tools", name, tool)
            host.on_close(partial(host.registry.remove, "tools", name))
        self._names = frozenset(name for name, *_ in tools)
        if not self._is_for_all:
            host.at_each_address(lambda each: each.wrap(["tools/list"], self._list_tools))

    async def close(self) -> None:
        """Do nothing, because the host removes the tools."""

    async def _list_tools(self, handler: Handler, call: Call) -> bytes:
        """Leave these tools out for a client that declares capabilities, since it knows more than tools."""
        result = decode_object(b"{%b}" % await handler(call))
        if call.client.capabilities:
            result["tools"] = [each for each in result["tools"] if each["name"] not in self._names]
        if "cacheScope" in result:
            result["cacheScope"] = "private"  # it depends on the client
        return encode(result)[1:-1]

    async def _list_resources(self, arguments: _Page, call: Call) -> ToolResult:
        found: Json = {}
        cursor = arguments.cursor
        if not cursor.startswith(_TEMPLATES):
            page = await self._ask(call, "resources/list", {"cursor": cursor} if cursor else {})
            found = _page_of(page, "resources")
            cursor = found.get("nextCursor", _TEMPLATES)
        if cursor.startswith(_TEMPLATES):
            cursor = cursor.removeprefix(_TEMPLATES)
            page = await self._ask(call, "resources/templates/list", {"cursor": cursor} if cursor else {})
            templates = _page_of(page, "resourceTemplates")
            found |= {name: value for name, value in templates.items() if name != "nextCursor"}
            if "nextCursor" in templates:
                found["nextCursor"] = _TEMPLATES + templates["nextCursor"]
        return ToolResult(encode(found).decode(), found)

    async def _list_prompts(self, arguments: _Page, call: Call) -> ToolResult:
        page = await self._ask(call, "prompts/list", {"cursor": arguments.cursor} if arguments.cursor else {})
        found = _page_of(page, "prompts")
        return ToolResult(encode(found).decode(), found)

    async def _read_resource(self, arguments: _Resource, call: Call) -> ToolResult:
        found = await self._ask(call, "resources/read", {"uri": arguments.uri})
        return ToolResult([_block_of(each) for each in found["contents"]])

    async def _get_prompt(self, arguments: _Prompt, call: Call) -> ToolResult:
        found = await self._ask(call, "prompts/get", msgspec.to_builtins(arguments))
        return ToolResult([_say(each) for each in found["messages"]])

    async def _ask(self, call: Call, method: str, params: Json) -> Json:
        try:
            return decode_object(b"{%b}" % await call.dispatcher.run_inside(call, method, encode(params)))
        except ProtocolError as exc:
            if exc.code not in (RESOURCE_NOT_FOUND, INVALID_PARAMS):
                raise
            raise ToolError(f"{exc.message}: {params['uri']}" if "uri" in params else exc.message) from None


def _page_of(page: Json, member: str) -> Json:
    found: Json = {member: [{key: each[key] for key in _SHOWN if key in each} for each in page[member]]}
    return found | ({"nextCursor": page["nextCursor"]} if page.get("nextCursor") else {})


def _block_of(contents: Json) -> Content:
    """Return contents as the block that most clients understand.

    Raises:
        ToolError: An upstream's contents are malformed.
    """
    if "text" in contents:
        return Text(contents["text"])
    uri = str(contents.get("uri", ""))
    try:
        data = b64decode(contents["blob"])
    except (ValueError, TypeError, KeyError):
        raise ToolError(f"The contents of {uri} are malformed.") from None
    kind = str(contents.get("mimeType") or "")
    if kind.startswith("image/"):
        return Image(data, kind)
    if kind.startswith("audio/"):
        return Audio(data, kind)
    return EmbeddedResource(uri, blob=data, mime_type=kind or None)


def _say(message: Json) -> Any:
    """Return a message's block. What the model said before is marked, because a result has no roles.

    Raises:
        ToolError: An upstream's message is malformed, or its block is of an unknown kind.
    """
    try:
        block = msgspec.convert(message["content"], Content)
    except (msgspec.ValidationError, KeyError) as exc:
        raise ToolError(f"The prompt has a message that can't be shown: {exc}.") from None
    is_text = message["role"] != "user" and isinstance(block, Text)
    return Text(f"[{message['role']}] {block.text}") if is_text else block
