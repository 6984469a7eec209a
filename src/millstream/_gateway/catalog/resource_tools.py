"""Tools that read resources and prompts, for clients that only know tools: ``Settings(resource_tools="on")``. One of
them, `read_resource`, is also listed beside tools whose results can be shortened. Two more are listed beside tools that
other people approve: `get_approved_result`, which doesn't run itself (see `_gateway/approvals.py`), and
`answer_approval` for approvers.

Each of the others runs the handler of the method that other clients call, with the same caller. So scopes, policies,
hooks, and questions are those of that method, and nothing can be read here that can't be read there.
"""

from base64 import b64decode
from collections.abc import Awaitable, Callable, Collection
from functools import partial
from typing import Annotated, Any, Protocol

import msgspec
from msgspec import Meta, Struct

from millstream import Audio, EmbeddedResource, Image, ProtocolError, Text, ToolError, ToolResult
from millstream._gateway.catalog.search import LISTED_TAG, read_arguments
from millstream._gateway.rules.approval import answer_approval
from millstream._gateway.rules.requests import ANSWER_APPROVAL, GET_APPROVED_RESULT
from millstream._gateway.rules.results import READ_RESOURCE
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
_NO_REQUEST = (
    "You have no such request here. It has expired or was used, or the tool or its rules have changed. Call the tool "
    "again."
)
_MAX_TEXT = 16_000
"""Maximum characters of a resource's text in one result."""


class _Page(Struct, frozen=True):
    cursor: str = ""


class _Resource(Struct, frozen=True):
    uri: str
    offset: Annotated[int, Meta(ge=0)] = 0


class _Request(Struct, frozen=True):
    request: Annotated[str, Meta(pattern="^[0-9a-f]{48}$")]


class _Prompt(Struct, frozen=True):
    name: str
    arguments: dict[str, str] = {}


class _Message(Struct, frozen=True):
    role: str
    content: Content


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
        prompt = {
            "properties": {
                "name": {"type": "string", "description": "Name of the prompt"},
                "arguments": {"type": "object", "additionalProperties": {"type": "string"}},
            },
            "required": ["name"],
        }
        tools = [
            _make_tool("list_resources", "List the resources that read_resource reads, and the templates of their "
             "URIs.", cursor, _Page, _list_resources),
            make_companion(READ_RESOURCE),
            _make_tool("list_prompts", "List the prompts that get_prompt returns.", cursor, _Page, _list_prompts),
            _make_tool("get_prompt", "Get the messages of a prompt.", prompt, _Prompt, _get_prompt),
        ]  # fmt: skip
        for tool in tools:
            host.registry.add("tools", tool.name, tool)
            host.on_close(partial(host.registry.remove, "tools", tool.name))
        self._names = frozenset(tool.name for tool in tools)
        if not self._is_for_all:
            host.at_each_address(lambda each: each.wrap(["tools/list"], self._list_tools))

    async def close(self) -> None:
        """Do nothing, because the host removes the tools."""

    async def _list_tools(self, handler: Handler, call: Call) -> bytes:
        """Leave these tools out for a client that declares capabilities, since it knows more than tools."""
        result = decode_object(b"{%b}" % await handler(call))
        if call.client.capabilities:
            hidden = self._names
            if any(each.companion_of for each in call.dispatcher.registry.templates.values()):
                hidden = hidden - {READ_RESOURCE}  # shortened results name it
            result["tools"] = [each for each in result["tools"] if each["name"] not in hidden]
        if "cacheScope" in result:
            result["cacheScope"] = "private"  # it depends on the client
        return encode(result)[1:-1]


def _make_tool(
    name: str,
    description: str,
    schema: Json,
    kind: type[Struct],
    run: Callable[[Any, Call], Awaitable[ToolResult]],
) -> Tool:
    read = partial(read_arguments, decoder(kind), name)
    source = ItemSource(name, run, read, description=description, schema={"type": "object", **schema}, asks_first=True)
    tool = Tool(source, annotations={"readOnlyHint": kind is not _Request}, tags=[LISTED_TAG])
    tool.companion_of = ()
    return tool


def make_companion(name: str) -> Tool:
    """Return the tool `read_resource`, `get_approved_result`, or `answer_approval`."""
    if name in _ABOUT_REQUESTS:
        description, about, run = _ABOUT_REQUESTS[name]
        schema: Json = {"properties": {"request": {"type": "string", "description": about}}, "required": ["request"]}
        return _make_tool(name, description, schema, _Request, run)
    schema = {
        "properties": {
            "uri": {"type": "string", "description": "URI of the resource"},
            "offset": {"type": "integer", "minimum": 0, "description": "Characters to skip, to read on in a long text"},
        },
        "required": ["uri"],
    }
    description = "Read a resource, a file of a skill, or the whole of a shortened result, by its URI."
    return _make_tool(READ_RESOURCE, description, schema, _Resource, _read_resource)


async def _list_resources(arguments: _Page, call: Call) -> ToolResult:
    found: Json = {}
    cursor = arguments.cursor
    if not cursor.startswith(_TEMPLATES):
        found = await _list(call, "resources/list", "resources", cursor)
        cursor = found.get("nextCursor", _TEMPLATES)
    if cursor.startswith(_TEMPLATES):
        cursor = cursor.removeprefix(_TEMPLATES)
        templates = await _list(call, "resources/templates/list", "resourceTemplates", cursor)
        found |= {name: value for name, value in templates.items() if name != "nextCursor"}
        if "nextCursor" in templates:
            found["nextCursor"] = _TEMPLATES + templates["nextCursor"]
    return ToolResult(encode(found).decode(), found)


async def _list_prompts(arguments: _Page, call: Call) -> ToolResult:
    found = await _list(call, "prompts/list", "prompts", arguments.cursor)
    return ToolResult(encode(found).decode(), found)


async def _read_resource(arguments: _Resource, call: Call) -> ToolResult:
    """Return a page of the resource's text, counted over all of its contents. Others are on the last page."""
    contents = (await _ask(call, "resources/read", {"uri": arguments.uri}))["contents"]
    total = sum(len(each["text"]) for each in contents if "text" in each)
    start, end = arguments.offset, min(arguments.offset + _MAX_TEXT, total)
    if start > total:
        raise ToolError(f"The resource has {total:,} characters. Use a smaller offset.")
    blocks, position = list[str | Content](), 0
    for each in contents:
        if "text" in each:
            part = each["text"][max(start - position, 0) : max(end - position, 0)]
            position += len(each["text"])
            if part or not total:
                blocks.append(Text(part))
        elif end == total:
            blocks.append(_block_of(each))
    if end < total:
        blocks.append(Text(f"[Up to here, {end:,} of {total:,} characters. To read on, use offset {end}.]"))
    return ToolResult(blocks)


async def _refuse(arguments: _Request, call: Call) -> ToolResult:
    raise ToolError(_NO_REQUEST)


async def _answer(arguments: _Request, call: Call) -> ToolResult:
    return ToolResult(f"You answered the request. It's {await answer_approval(arguments.request, call)}.")


_ABOUT_REQUESTS = {
    GET_APPROVED_RESULT: (
        "Send a call of yours that another person has approved, and get its result.",
        "The request that the text about the waiting call named",
        _refuse,
    ),
    ANSWER_APPROVAL: (
        "Show a call that waits for approval to the user, who approves or declines it. You can't answer for them.",
        "The request",
        _answer,
    ),
}


async def _get_prompt(arguments: _Prompt, call: Call) -> ToolResult:
    found = await _ask(call, "prompts/get", msgspec.to_builtins(arguments))
    return ToolResult([_say(each) for each in found["messages"]])


async def _ask(call: Call, method: str, params: Json) -> Json:
    call.read = params.get("uri") or params.get("name", "")
    try:
        return decode_object(b"{%b}" % await call.dispatcher.run_inside(call, method, encode(params)))
    except ProtocolError as exc:
        if exc.code not in (RESOURCE_NOT_FOUND, INVALID_PARAMS):
            raise
        raise ToolError(f"{exc.message}: {params['uri']}" if "uri" in params else exc.message) from None


async def _list(call: Call, method: str, member: str, cursor: str) -> Json:
    """Return a page of a list, with what a model needs of its items."""
    page = await _ask(call, method, {"cursor": cursor} if cursor else {})
    found: Json = {member: [{key: each[key] for key in _SHOWN if key in each} for each in page[member]]}
    return found | ({"nextCursor": page["nextCursor"]} if page.get("nextCursor") else {})


def _block_of(contents: Json) -> Content:
    """Return contents without text as the block that most clients understand.

    Raises:
        ToolError: An upstream's contents are malformed.
    """
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
        said = msgspec.convert(message, _Message)
    except msgspec.ValidationError as exc:
        raise ToolError(f"The prompt has a message that can't be shown: {exc}.") from None
    block = said.content
    return Text(f"[{said.role}] {block.text}") if said.role != "user" and isinstance(block, Text) else block
