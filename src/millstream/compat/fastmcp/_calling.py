"""Calls of a server of the door: those of clients, with middleware around them, and direct ones of the program."""

import logging
from collections.abc import Awaitable, Callable
from copy import copy
from functools import partial
from typing import Any

from msgspec import Struct

from millstream._app.tree import prefixed
from millstream._protocol.errors import INTERNAL_ERROR, ProtocolError
from millstream._protocol.messages import CompleteRequestParams, Completion
from millstream._server.calls.call import Call
from millstream.compat import _types as types
from millstream.compat.fastmcp._completion import completed
from millstream.compat.fastmcp._context import Context
from millstream.compat.fastmcp._conversion import as_wire
from millstream.compat.fastmcp._exceptions import FastMCPError, McpError, NotFoundError, ResourceError, ToolError
from millstream.compat.fastmcp._functions import inside
from millstream.compat.fastmcp._injection import current
from millstream.compat.fastmcp._items import telling
from millstream.compat.fastmcp._middleware import Asked, looks_at_lists, run_through
from millstream.compat.fastmcp._prompts import Prompt, PromptResult
from millstream.compat.fastmcp._proxy import Proxy, running
from millstream.compat.fastmcp._registration import Offered, labels_of
from millstream.compat.fastmcp._resources import ResourceContent, ResourceResult
from millstream.compat.fastmcp._tools import Contents, Pair, Tool, ToolResult, WrongArguments
from millstream.compat.fastmcp._ways import Ways

logger = logging.getLogger("millstream")


class ReadResourceContents(Struct, frozen=True):
    """One content of a resource, as `read_resource` gives it."""

    content: str | bytes
    mime_type: str | None = None
    meta: dict[str, Any] | None = None


class Calling:
    """The methods of `FastMCP` that call, read and list."""

    ways: Ways
    offered: Offered
    mask_error_details: bool
    _middleware: list[Any]
    _mounted: "list[tuple[Calling, str]]"
    proxies: list[Proxy]
    lists_fail: bool = False
    """While a server behind can't be reached, lists are errors."""

    def _all_proxies(self) -> list[Proxy]:
        return [*self.proxies, *(proxy for server, _ in self._mounted for proxy in server._all_proxies())]

    def get_context(self) -> Context[Any, Any, Any]:
        """The context of the call that runs; outside of calls, one that can do little."""
        return current.get(None) or Context(self)

    # What items of the registry run

    async def run_tool(self, tool: Tool, arguments: dict[str, Any], context: Context[Any, Any, Any]) -> ToolResult:
        """A call of a tool, inside all middleware."""

        async def work(asked: Asked) -> ToolResult:
            meant = tool if asked.name == tool.name else self._find_tool(asked.name)
            return await self._run_masked(meant, asked.arguments or {}, context)

        result = await run_through(self._middleware, "tools/call", Asked(tool.name, arguments), context, work)
        return result if isinstance(result, ToolResult) else tool.converted(result)

    async def _run_masked(self, tool: Tool, arguments: dict[str, Any], context: Context[Any, Any, Any]) -> ToolResult:
        try:
            made: ToolResult = await tool.run(arguments, context, True, thread=context.run_in_thread)
        except FastMCPError as error:
            if error.__cause__ is not None and not isinstance(error.__cause__, WrongArguments):
                logger.error("Error calling tool %r", tool.name, exc_info=error.__cause__)
                if self.mask_error_details and not isinstance(error.__cause__, FastMCPError):
                    raise ToolError(f"Error calling tool {tool.name!r}") from error
            raise
        return made

    async def run_resource(self, uri: str, read: Callable[[], Awaitable[Any]], context: Context[Any, Any, Any]) -> Any:
        """The content of a resource, inside all middleware."""
        try:
            return await run_through(self._middleware, "resources/read", Asked(uri=uri), context, lambda _: read())
        except ValueError as error:
            _mask(self, error, f"Error reading resource {uri!r}")
            raise

    async def run_prompt(
        self, prompt: Prompt, arguments: dict[str, Any], context: Context[Any, Any, Any]
    ) -> PromptResult:
        """The messages of a prompt, inside all middleware."""

        async def work(asked: Asked) -> PromptResult:
            return await prompt.result(asked.arguments, context=context, thread=context.run_in_thread)

        asked = Asked(prompt.name, arguments)
        try:
            found: PromptResult = await run_through(self._middleware, "prompts/get", asked, context, work)
        except ValueError as error:
            _mask(self, error, f"Error rendering prompt {prompt.name!r}")
            raise
        return found

    async def run_completion(self, call: Call, params: CompleteRequestParams) -> Completion:
        """Values for an argument, inside all middleware."""
        context = Context[Any, Any, Any](self, call=call)

        async def work(asked: Asked) -> Completion:
            for server in [self, *(each for each, _ in self._mounted)]:
                if server.offered.completion is not None:
                    found = await completed(server.offered.completion, params, context.run_in_thread)
                    if found is not None:
                        return found
            return Completion([], 0, False)

        with inside(context), telling():
            made: Completion = await run_through(self._middleware, "completion/complete", Asked(), context, work)
        return made

    async def run_list(self, kind: str, call: Call) -> list[dict[str, Any]] | None:
        """A list for one caller, inside all middleware; None where no middleware is about lists."""
        if problem := _unreachable(self):
            raise ProtocolError(INTERNAL_ERROR, problem)
        if not any(looks_at_lists(each) for each in self._middleware):
            return None

        async def work(asked: Asked) -> list[Any]:
            return self._items(kind)

        context = Context[Any, Any, Any](self, call=call)
        method = f"{'resources/templates' if kind == 'templates' else kind}/list"
        with inside(context), telling():
            found = await run_through(self._middleware, method, Asked(), context, work)
        return [as_wire(labels_of(each)) for each in found]

    def _items(self, kind: str) -> list[Any]:
        found = list(self.offered.visible(kind))
        for server, prefix in self._mounted:
            found += [
                _prefixed(each, kind, prefix)
                for each in server._items(kind)
                if self.offered.sees(kind, prefixed(kind, each.key, prefix), each)
            ]
        return found

    # Direct calls

    async def call_tool(
        self,
        name: str,
        arguments: dict[str, Any] | None = None,
        context: Any = None,
        *,
        run_middleware: bool = True,
        **more: Any,
    ) -> Any:
        """Call a tool.

        Raises:
            ToolError: there is none of that name, or it failed.
        """
        async with running(self._all_proxies()):
            server, tool = self.tool_and_owner(name)
            run = server.run_tool if run_middleware else server._run_masked
            result = await run(tool, arguments or {}, context or self.get_context())
        if not self.ways.pairs:
            return result
        return Pair(result) if tool.promise is not None else Contents(result)

    def _find_tool(self, name: str) -> Tool:
        tool = self.offered.tools.get(name)
        if tool is None or tool not in self.offered.visible("tools"):
            raise ToolError(f"Unknown tool: {name}") if self.ways.pairs else NotFoundError(f"Unknown tool: {name!r}")
        return tool

    async def read_resource(self, uri: Any, context: Any = None, *, run_middleware: bool = True, **more: Any) -> Any:
        """Read a resource.

        Raises:
            ResourceError: there is none, or it cannot be read.
        """
        context, text = context or self.get_context(), str(uri)
        async with running(self._all_proxies()):
            found = self._find_resource(text)
            if found is None:
                raise (ResourceError if self.ways.pairs else NotFoundError)(f"Unknown resource: {text}")
            server, read, mime_type, meta = found
            try:
                around = server if run_middleware else _PLAIN
                value = await around.run_resource(text, lambda: read(context.run_in_thread), context)
            except ValueError as error:
                raise ResourceError(str(error)) from error
        if not self.ways.pairs:
            return value if isinstance(value, ResourceResult) else ResourceResult([ResourceContent(value, mime_type)])
        if isinstance(value, ResourceResult):
            return [ReadResourceContents(each.content, each.mime_type, each.meta) for each in value.contents]
        return [ReadResourceContents(value, mime_type, meta)]

    def _find_resource(self, uri: str) -> Any:
        resource = self.offered.resources.get(uri)
        if resource is not None and resource.enabled:
            return self, resource.read_in, resource.mime_type, resource.meta
        for template in self.offered.visible("templates"):
            values = template.matches(uri)
            if values is not None:
                return self, partial(template.read_in, values), template.mime_type, template.meta
        for server, prefix in self._mounted:
            scheme, _, rest = uri.partition("://")
            if not prefix or rest.startswith(f"{prefix}/"):
                found = server._find_resource(f"{scheme}://{rest.removeprefix(f'{prefix}/')}" if prefix else uri)
                if found is not None:
                    return found
        return None

    async def get_prompt(self, name: str, arguments: dict[str, Any] | None = None, context: Any = None) -> Any:
        """The messages of a prompt.

        Raises:
            ValueError: there is none of that name, or it failed.
        """
        result, prompt = await self._render(name, arguments, context)
        description = result.description or prompt.description
        return types.GetPromptResult(description=description, messages=[_plain(each) for each in result.messages])

    async def render_prompt(
        self, name: str, arguments: dict[str, Any] | None = None, *, run_middleware: bool = True, **more: Any
    ) -> PromptResult:
        """The messages of a prompt, as its function made them."""
        return (await self._render(name, arguments, None, run_middleware=run_middleware))[0]

    async def _render(
        self, name: str, arguments: dict[str, Any] | None, context: Any, *, run_middleware: bool = True
    ) -> tuple[PromptResult, Prompt]:
        async with running(self._all_proxies()):
            server, own = self._owner("prompts", name)
            prompt = server.offered.prompts.get(own)
            if prompt is None:
                raise (ValueError if self.ways.pairs else NotFoundError)(f"Unknown prompt: {name}")
            around = server if run_middleware else _PLAIN
            return await around.run_prompt(prompt, arguments or {}, context or self.get_context()), prompt

    def tool_and_owner(self, name: str) -> "tuple[Calling, Tool]":
        """The server that has a tool, this one or a mounted one, and the tool; `ToolError` for an unknown name."""
        server, own = self._owner("tools", name)
        return server, server._find_tool(own)

    def _owner(self, kind: str, name: str) -> "tuple[Calling, str]":
        """The server that has an item, and what it is called there."""
        if name in getattr(self.offered, kind):
            return self, name
        for server, prefix in self._mounted:
            if not prefix or name.startswith(f"{prefix}_"):
                found, own = server._owner(kind, name.removeprefix(f"{prefix}_") if prefix else name)
                if own in getattr(found.offered, kind):
                    return found, own
        return self, name

    # Lists

    async def list_tools(self, **more: Any) -> list[Any]:
        """The tools that clients see."""
        return await self._listed("tools")

    async def list_resources(self, **more: Any) -> list[Any]:
        """The resources that clients see."""
        return await self._listed("resources")

    async def list_resource_templates(self, **more: Any) -> list[Any]:
        """The resource templates that clients see."""
        return await self._listed("templates")

    async def list_prompts(self, **more: Any) -> list[Any]:
        """The prompts that clients see."""
        return await self._listed("prompts")

    async def _listed(self, kind: str) -> list[Any]:
        async with running(self._all_proxies()):
            if problem := _unreachable(self):
                raise McpError(INTERNAL_ERROR, problem)
            found = self._items(kind)
        return [labels_of(each) for each in found] if self.ways.pairs else found

    async def get_tool(self, name: str, version: Any = None) -> Any:
        """The tool of that name, or None."""
        async with running(self._all_proxies()):
            server, own = self._owner("tools", name)
            return server.offered.tools.get(own)


def _mask(server: Calling, error: ValueError, text: str) -> None:
    """Say no more than this of an error, where the server says so."""
    if server.mask_error_details and not isinstance(error.__cause__, FastMCPError):
        logger.error(text, exc_info=error)
        raise ResourceError(text) from error


def _unreachable(server: Calling) -> str:
    """Why a list would lack what is behind, if the program wants an error then; empty for nothing."""
    problem = next((proxy.problem for proxy in server.proxies if proxy.problem), "") if server.lists_fail else ""
    return problem and f"Client failed to connect: {problem}"


class _WithoutMiddleware(Calling):
    """Runs things with nothing around them."""

    def __init__(self) -> None:
        self._middleware = []


_PLAIN = _WithoutMiddleware()


def _plain(message: Any) -> Any:
    return types.PromptMessage(role=message.role, content=message.content)


def _prefixed(item: Any, kind: str, prefix: str) -> Any:
    if not prefix:
        return item
    if kind in ("tools", "prompts"):
        return _renamed(item, "name", f"{prefix}_{item.name}")
    field = "uri" if kind == "resources" else "uri_template"
    scheme, _, rest = str(getattr(item, field)).partition("://")
    return _renamed(item, field, f"{scheme}://{prefix}/{rest}")


def _renamed(item: Any, field: str, value: str) -> Any:
    if hasattr(item, "model_copy"):
        return item.model_copy(update={field: value})
    made: Any = copy(item)
    setattr(made, field, value)
    return made
