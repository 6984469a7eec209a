"""Tools, resources and prompts of the door as our registry has them: how they are described, read, run and encoded."""

from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self

import msgspec

from millstream._protocol import projection
from millstream._protocol.content import EmbeddedResource, Message, ResourceContents
from millstream._protocol.errors import INTERNAL_ERROR, INVALID_PARAMS, Cancelled, Declined, ProtocolError, ToolError
from millstream._protocol.jsonrpc import encode
from millstream._server.calls.call import Call
from millstream._server.features import prompts, resources, tools
from millstream._server.features.hooks import Hooks
from millstream._server.features.sources import Item, Source
from millstream.compat.fastmcp._context import Context
from millstream.compat.fastmcp._conversion import as_wire
from millstream.compat.fastmcp._exceptions import FastMCPError, of_protocol
from millstream.compat.fastmcp._functions import inside
from millstream.compat.fastmcp._injection import RunInThread
from millstream.compat.fastmcp._prompts import Prompt, PromptResult
from millstream.compat.fastmcp._resources import Resource, ResourceResult
from millstream.compat.fastmcp._templates import ResourceTemplate, UriPattern
from millstream.compat.fastmcp._tools import Tool, ToolResult


class Runs(Protocol):
    """The server, as far as its items need it."""

    async def run_tool(self, tool: Tool, arguments: dict[str, Any], context: Context[Any, Any, Any]) -> ToolResult:
        """A call of a tool, with everything around it."""
        ...

    async def run_resource(self, uri: str, read: Callable[[], Awaitable[Any]], context: Context[Any, Any, Any]) -> Any:
        """The content of a resource, with everything around it."""
        ...

    async def run_prompt(
        self, prompt: Prompt, arguments: dict[str, Any], context: Context[Any, Any, Any]
    ) -> PromptResult:
        """The messages of a prompt, with everything around it."""
        ...


class _Said(Item):
    """What an item says about itself beyond what our own items do."""

    __slots__ = ()

    if TYPE_CHECKING:
        home: object

    def say(self, **members: Any) -> Self:
        """Add members to the description, where they have a value."""
        self._described = {**self._described, **{name: value for name, value in members.items() if value is not None}}
        return self

    def of(self, home: object) -> Self:
        """Note which server it belongs to: that one's middleware is inside of the item."""
        setattr(self, "home", home)  # noqa: B010  the slot is of the class beside this
        return self

    def within(self, hooks: Hooks) -> Self:
        """The item with the middleware of a server around it, on which its own is mounted."""
        return self if hooks.home is self.home else super().within(hooks)


class ToolItem(_Said, tools.Tool):
    """A tool. Its results are made by the door, and written as they are."""

    __slots__ = ("home",)

    keeps_params = True

    def encode(self, value: Any, call: Call) -> bytes:
        """The members of the result for the call's revision."""
        result: ToolResult = value
        call.meta = result.meta
        members = encode(result.members())[1:-1]
        revision = call.revision
        if revision.structured != "none" and {"audio", "resource_link"} <= set(revision.content):
            return members
        return projection.tool_result(members, revision)


def tool_item(server: Runs, tool: Tool, home: object) -> ToolItem:
    """A tool for the registry."""

    async def run(arguments: Any, call: Call) -> Any:
        context: Context[Any, Any, Any] = Context(server, call=call, home=home)
        with inside(context), telling():
            return await server.run_tool(tool, arguments, context)

    source = Source(
        tool.name,
        run,
        _read_object,
        description=tool.description or "",
        schema={key: value for key, value in tool.parameters.items() if key != "description"},
    )
    item = ToolItem(source, title=tool.title, annotations=as_wire(tool.annotations) or None, meta=_meta(tool))
    return item.of(home).say(
        inputSchema=tool.parameters, outputSchema=tool.output_schema, description=tool.description, icons=_icons(tool)
    )


def _read_object(raw: bytes) -> Any:
    return msgspec.json.decode(raw, type=dict[str, Any])


def _meta(item: Any) -> dict[str, Any] | None:
    meta: dict[str, Any] = dict(item.meta or {})
    ways = getattr(item, "ways", None)
    if item.tags and ways is not None and not ways.titles:
        meta = {**meta, "fastmcp": {"tags": sorted(item.tags), **meta.get("fastmcp", {})}}
    return meta or None


def _icons(item: Any) -> list[Any] | None:
    return [as_wire(icon) for icon in item.icons] if item.icons else None


@contextmanager
def telling() -> Generator[None]:
    """Errors of a tool inside the block are texts for the model, or what the protocol has for them."""
    try:
        yield
    except FastMCPError as error:
        raise ToolError(str(error)) from error
    except Exception as error:
        if of_protocol(error):
            raise _refused(error, INTERNAL_ERROR) from error
        raise


@contextmanager
def refusing(code: int = INTERNAL_ERROR) -> Generator[None]:
    """Errors inside the block are errors of the protocol; what our engine says itself passes."""
    try:
        yield
    except (ProtocolError, Declined, Cancelled):
        raise
    except Exception as error:
        raise _refused(error, code) from error


def _refused(error: Any, code: int) -> ProtocolError:
    if of_protocol(error):
        return ProtocolError(error.error.code, str(error), error.error.data)
    return ProtocolError(code, str(error))


async def _read(
    server: Runs,
    context: Context[Any, Any, Any],
    uri: str,
    call: Call,
    read_in: Callable[[RunInThread], Awaitable[Any]],
) -> Any:
    """What a resource gives, with all that stands around it."""
    with inside(context), refusing():
        value = await server.run_resource(uri, lambda: read_in(context.run_in_thread), context)
        return contents(value, uri, call)


def contents(value: Any, uri: str, call: Call) -> Any:
    """What was read, as our encoder takes it."""
    if not isinstance(value, ResourceResult):
        return value
    call.meta = value.meta
    return [
        EmbeddedResource(
            resource=ResourceContents(
                uri,
                each.mime_type,
                text=each.content if isinstance(each.content, str) else None,
                blob=each.content if isinstance(each.content, bytes) else None,
                meta=each.meta,
            )
        )
        for each in value.contents
    ]


def resource_item(server: Runs, resource: Resource, home: object) -> resources.Resource:
    """A resource for the registry."""
    uri = str(resource.uri)

    async def run(arguments: Any, call: Call) -> Any:
        return await _read(server, Context(server, call=call, home=home), uri, call, resource.read_in)

    source = Source(resource.name or uri, run, lambda _: None, description=resource.description or "")
    item = ResourceItem(
        uri,
        source,
        title=resource.title,
        annotations=as_wire(resource.annotations),
        mime_type=resource.mime_type,
        meta=_meta(resource),
    )
    return item.of(home).say(icons=_icons(resource), description=resource.description)


class ResourceItem(_Said, resources.Resource):
    """A resource."""

    __slots__ = ("home",)


class TemplateItem(_Said, resources.Template):
    """A template. Its variables are matched as the other libraries do."""

    __slots__ = ("home",)


def template_item(server: Runs, template: ResourceTemplate, home: object) -> TemplateItem:
    """A template for the registry."""

    async def run(variables: Any, call: Call) -> Any:
        read_in = partial(template.read_in, variables)
        return await _read(server, Context(server, call=call, home=home), call.name, call, read_in)

    schema = {"properties": {name: {"type": "string"} for name in template.variables}}
    source = Source(template.name, run, dict, description=template.description or "", schema=schema)
    item = TemplateItem(
        template.uri_template,
        source,
        pattern=partial(UriPattern, lists=template.lists),
        title=template.title,
        description=template.description,
        annotations=as_wire(template.annotations),
        mime_type=template.mime_type,
        meta=_meta(template),
    )
    return item.of(home).say(icons=_icons(template))


def prompt_item(server: Runs, prompt: Prompt, home: object) -> prompts.Prompt:
    """A prompt for the registry."""

    async def run(arguments: Any, call: Call) -> Any:
        context: Context[Any, Any, Any] = Context(server, call=call, home=home)
        with inside(context), refusing(INVALID_PARAMS):
            result = await server.run_prompt(prompt, arguments, context)
        return written_prompt(result, call)

    source = Source(
        prompt.name,
        run,
        dict,
        description=prompt.description or "",
        schema={"properties": {each.name: {"type": "string"} for each in prompt.arguments}},
    )
    item = PromptItem(source, title=prompt.title, meta=_meta(prompt))
    arguments = [as_wire(each) for each in prompt.arguments]
    return item.of(home).say(description=prompt.description, arguments=arguments or None, icons=_icons(prompt))


class PromptItem(_Said, prompts.Prompt):
    """A prompt."""

    __slots__ = ("home",)


def written_prompt(result: PromptResult, call: Call) -> list[Message]:
    """The messages of a prompt, as our encoder takes them."""
    call.meta = result.meta
    return [msgspec.convert(_message(each), Message) for each in result.messages]


def _message(value: Any) -> dict[str, Any]:
    return {"role": value.role, "content": as_wire(value.content)}
