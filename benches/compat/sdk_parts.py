"""Private parts of the official SDK 1.x, in terms of the door: its tests reach documented behavior through them."""

from typing import Any

from millstream.compat.fastmcp._exceptions import ToolError
from millstream.compat.fastmcp._server import FastMCP
from millstream.compat.fastmcp._signatures import opened
from millstream.compat.fastmcp._tools import Contents, Pair, Tool


class ToolManager:
    """The tools of a server."""

    def __init__(self, warn_on_duplicate_tools: bool = True, *, tools: Any = None, server: Any = None) -> None:
        self.server = server or FastMCP(warn_on_duplicate_tools=warn_on_duplicate_tools)
        for tool in tools or ():
            self.server.add_tool(tool)

    @property
    def warn_on_duplicate_tools(self) -> bool:
        return self.server.offered.on_duplicate["tools"] == "keep"

    @warn_on_duplicate_tools.setter
    def warn_on_duplicate_tools(self, value: bool) -> None:
        self.server.offered.on_duplicate["tools"] = "keep" if value else "quiet"

    @property
    def _tools(self) -> dict[str, Tool]:
        return self.server.offered.tools

    def add_tool(self, fn: Any, name: str | None = None, **options: Any) -> Any:
        return self.server.add_tool(fn, name, **options)

    def list_tools(self) -> list[Tool]:
        return list(self._tools.values())

    def get_tool(self, name: str) -> Tool | None:
        return self._tools.get(name)

    def remove_tool(self, name: str) -> None:
        self.server.remove_tool(name)

    async def call_tool(self, name: str, arguments: Any, context: Any = None, convert_result: bool = False) -> Any:
        tool = self.get_tool(name)
        if tool is None:
            raise ToolError(f"Unknown tool: {name}")
        result = await tool.run(arguments, context, convert_result)
        if not convert_result:
            return result
        return Pair(result) if tool.promise is not None else Contents(result)


class ResourceManager:
    """The resources of a server."""

    def __init__(self, warn_on_duplicate_resources: bool = True, *, server: Any = None) -> None:
        self.server = server or FastMCP(warn_on_duplicate_resources=warn_on_duplicate_resources)

    @property
    def _templates(self) -> Any:
        return self.server.offered.templates

    def add_resource(self, resource: Any) -> Any:
        return self.server.add_resource(resource)

    def add_template(self, fn: Any, uri_template: str, **options: Any) -> Any:
        self.server.resource(uri_template, **options)(fn)
        return self._templates[uri_template]

    def list_resources(self) -> list[Any]:
        return list(self.server.offered.resources.values())

    def list_templates(self) -> list[Any]:
        return list(self._templates.values())

    async def get_resource(self, uri: Any, context: Any = None) -> Any:
        found = self.server.offered.resources.get(str(uri))
        if found is not None:
            return found
        for template in self._templates.values():
            variables = template.matches(str(uri))
            if variables is not None:
                return await template.create_resource(str(uri), variables, context=context)
        raise ValueError(f"Unknown resource: {uri}")


class PromptManager:
    """The prompts of a server."""

    def __init__(self, warn_on_duplicate_prompts: bool = True, *, server: Any = None) -> None:
        self.server = server or FastMCP(warn_on_duplicate_prompts=warn_on_duplicate_prompts)

    def add_prompt(self, prompt: Any) -> Any:
        return self.server.add_prompt(prompt)

    def list_prompts(self) -> list[Any]:
        return list(self.server.offered.prompts.values())

    def get_prompt(self, name: str) -> Any:
        return self.server.offered.prompts.get(name)

    async def render_prompt(self, name: str, arguments: Any = None, context: Any = None) -> Any:
        prompt = self.get_prompt(name)
        if prompt is None:
            raise ValueError(f"Unknown prompt: {name}")
        return await prompt.render(arguments, context=context)


class FuncMetadata:
    """A function's arguments and results, as the SDK's `func_metadata` has them."""

    def __init__(self, made: Tool) -> None:
        self._made = made
        self.arg_model = made.signature.model
        self.output_schema = made.output_schema
        self.output_model = made.promise
        self.wrap_output = made.promise is not None and made.promise.wrapped

    def pre_parse_json(self, data: dict[str, Any]) -> dict[str, Any]:
        return opened(self.arg_model.model_fields, data)

    async def call_fn_with_arg_validation(
        self, fn: Any, fn_is_async: bool, arguments_to_validate: Any, arguments_to_pass_directly: Any = None
    ) -> Any:
        value = fn(**self._made.signature.read(arguments_to_validate), **(arguments_to_pass_directly or {}))
        return await value if fn_is_async else value

    def convert_result(self, value: Any) -> Any:
        result = self._made.converted(value)
        if type(value).__name__ == "CallToolResult":
            return value
        return result.content if self._made.promise is None else (result.content, result.structured_content)


def func_metadata(func: Any, skip_names: Any = (), structured_output: bool | None = None) -> FuncMetadata:
    """What the door finds out about a function."""
    name = "function" if func.__name__ == "<lambda>" else func.__name__
    return FuncMetadata(Tool.from_function(func, name, structured_output=structured_output))
