"""Prompts and tools: functions that return messages, and functions that models call."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import msgspec
from msgspec import Struct
from pydantic import BaseModel

from millstream._override import override
from millstream._protocol import revisions
from millstream._protocol.content import Message as EngineMessage
from millstream._protocol.errors import INVALID_PARAMS, Cancelled, Declined, ProtocolError
from millstream._protocol.jsonrpc import encode
from millstream._server.features import resources, tools
from millstream.compat import types
from millstream.compat.fastmcp._context import Context
from millstream.compat.fastmcp._outputs import (
    Output,
    Signature,
    ToolError,
    UrlElicitationRequiredError,
    WrongArguments,
    as_protocol_error,
    description_of,
    errors_as,
    is_content,
    is_error,
    is_result,
    output_of,
    signature_of,
    to_blocks,
    to_text,
    to_wire,
    tool_errors,
)
from millstream.parts import Call, ItemSource


class Message(BaseModel):
    """One message: ``UserMessage("hello")``, ``AssistantMessage("hi")``."""

    role: Literal["user", "assistant"]
    content: Any

    def __init__(self, content: Any, **more: Any) -> None:
        if isinstance(content, Mapping):
            message = {"role": "user", "content": dict(cast("Mapping[str, Any]", content))}
            content = types.PromptMessage.model_validate(message).content
        super().__init__(content=to_blocks(content)[0], **more)


class UserMessage(Message):
    """A message from the user."""

    role: Literal["user", "assistant"] = "user"


class AssistantMessage(Message):
    """A message from the model."""

    role: Literal["user", "assistant"] = "assistant"


@dataclass(eq=False)
class Prompt:
    """A prompt of a server. Create one with `from_function`."""

    signature: Signature
    name: str
    title: str | None
    description: str
    icons: Sequence[Any] | None
    arguments: list[types.PromptArgument]

    @classmethod
    def from_function(
        cls,
        fn: Callable[..., Any],
        name: str | None = None,
        title: str | None = None,
        description: str | None = None,
        icons: Sequence[Any] | None = None,
    ) -> "Prompt":
        """Create a prompt from a function.

        Args:
            fn: The function.
            name: Name of the prompt; by default that of the function.
            title: Title that clients show.
            description: Description for the model; by default the docstring.
            icons: Icons that clients show.

        Raises:
            InvalidSignature, ValueError: The function's signature isn't supported.
        """
        signature = signature_of(fn, name)
        required = signature.schema.get("required", ())
        arguments = [
            types.PromptArgument(name=name, description=schema.get("description"), required=name in required)
            for name, schema in signature.schema.get("properties", {}).items()
        ]
        text = signature.description if description is None else description
        return cls(signature, signature.name, title, text, icons, arguments)

    async def render(self, arguments: Mapping[str, Any] | None = None, context: Any = None) -> list[Any]:
        """Return the messages.

        Args:
            arguments: Values of the arguments, as text.
            context: Value of the context parameter.

        Raises:
            ValueError: Arguments are missing or invalid, or the function raised.
        """
        given = dict(arguments or {})
        missing = {each.name for each in self.arguments if each.required} - given.keys()
        if missing:
            raise ValueError(f"Missing required arguments: {missing}")
        with errors_as(lambda error: ValueError(f"Error rendering prompt {self.name}: {error}")):
            value = await self.signature.call(self.signature.read(given), context or Context())
            items: list[Any] = list(cast("list[Any]", value)) if isinstance(value, list | tuple) else [value]
            return [_message(each) for each in items]

    def describe(self) -> dict[str, Any]:
        """Return the prompt as listed to clients."""
        return description_of(self, arguments=to_wire(self.arguments) or None)

    def item(self, server: Any) -> resources.Prompt:
        """Return the prompt for the registry of a server.

        Args:
            server: The `FastMCP` server.
        """

        async def run(arguments: dict[str, Any], call: Call) -> list[EngineMessage]:
            with errors_as(partial(as_protocol_error, code=INVALID_PARAMS)):
                messages = await self.render(arguments, Context(server, call))
            return [
                msgspec.convert({"role": each.role, "content": to_wire(each.content)}, EngineMessage)
                for each in messages
            ]

        schema = {"properties": {each.name: {"type": "string"} for each in self.arguments}}
        return resources.Prompt(ItemSource(self.name, run, dict, schema=schema))


def _message(value: Any) -> Any:
    if isinstance(value, BaseModel) and {"role", "content"} <= set(type(value).model_fields):
        return value
    if isinstance(value, Mapping) and "content" in value:
        value = cast("Mapping[str, Any]", value)
        return (AssistantMessage if value.get("role") == "assistant" else UserMessage)(content=value["content"])
    return UserMessage(content=value if is_content(value) else to_text(value))


logger: logging.Logger = logging.getLogger("millstream")


class ToolOutput(Struct, frozen=True):
    """The output of a tool call."""

    content: list[Any]
    structured: Any = None
    is_error: bool = False
    meta: dict[str, Any] | None = None


@dataclass(eq=False)
class Tool:
    """A tool of a server. Create one with `from_function`."""

    signature: Signature
    output: Output | None
    name: str
    title: str | None
    description: str
    annotations: Any
    icons: Sequence[Any] | None
    meta: dict[str, Any] | None

    @classmethod
    def from_function(
        cls,
        fn: Callable[..., Any],
        name: str | None = None,
        title: str | None = None,
        description: str | None = None,
        *,
        annotations: Any = None,
        icons: Sequence[Any] | None = None,
        meta: dict[str, Any] | None = None,
        structured_output: bool | None = None,
    ) -> "Tool":
        """Create a tool from a function.

        Args:
            fn: The function.
            name: Name of the tool; by default that of the function.
            title: Title that clients show.
            description: Description for the model; by default the docstring.
            annotations: Hints for clients, as `ToolAnnotations`.
            icons: Icons that clients show.
            meta: Members of ``_meta`` in the list.
            structured_output: Whether results have structured content. By default, the return annotation decides.

        Raises:
            InvalidSignature, ValueError: The function's signature isn't supported.
        """
        signature = signature_of(fn, name)
        output = output_of(signature.returns, signature.name, structured=structured_output)
        text = signature.description if description is None else description
        return cls(signature, output, signature.name, title, text, annotations, icons, meta)

    @property
    def fn(self) -> Callable[..., Any]:
        """The function."""
        return self.signature.function

    @property
    def parameters(self) -> dict[str, Any]:
        """JSON Schema of the arguments."""
        return self.signature.schema

    @property
    def output_schema(self) -> dict[str, Any] | None:
        """JSON Schema of structured content."""
        return None if self.output is None else self.output.schema

    async def run(self, arguments: dict[str, Any], context: Any = None, convert_result: bool = False) -> Any:
        """Run the function.

        Args:
            arguments: JSON data for the arguments.
            context: Value of the context parameter.
            convert_result: Whether to return a `ToolOutput` instead of the function's own value.

        Raises:
            ToolError: The arguments are invalid, or the function failed.
        """
        context = context or Context()
        try:
            value = await self.signature.call(self.signature.read(arguments), context)
            return self.convert(value) if convert_result else value
        except (ProtocolError, Declined, Cancelled):
            raise
        except Exception as error:
            if is_error(error, UrlElicitationRequiredError):
                raise
            if not isinstance(error, ToolError | WrongArguments):
                logger.error("Error calling tool %r", self.name, exc_info=error)
            raise ToolError(f"Error executing tool {self.name}: {error}") from error

    def convert(self, value: Any) -> ToolOutput:
        """Convert a function's value to a result.

        Args:
            value: The value that the function returned.

        Raises:
            LocalError: The value doesn't match the output schema.
        """
        if is_result(value):
            wire = to_wire(value)
            structured = wire.get("structuredContent")
            if self.output is not None:
                structured = self.output.structure(structured)
            return ToolOutput(list(value.content), structured, wire.get("isError", False), wire.get("_meta"))
        return ToolOutput(to_blocks(value), None if self.output is None else self.output.structure(value))

    def describe(self) -> dict[str, Any]:
        """Return the tool as listed to clients."""
        return description_of(self, inputSchema=self.parameters, outputSchema=self.output_schema)

    def item(self, server: Any) -> "ToolItem":
        """Return the tool for the registry of a server.

        Args:
            server: The `FastMCP` server.
        """

        async def run(arguments: dict[str, Any], call: Call) -> ToolOutput:
            with tool_errors():
                made: ToolOutput = await self.run(arguments, Context(server, call), convert_result=True)
            return made

        return ToolItem(ItemSource(self.name, run, _decode_object, schema=self.parameters), meta=self.meta)


def _decode_object(raw: bytes) -> dict[str, Any]:
    return msgspec.json.decode(raw, type=dict[str, Any])


class ToolItem(tools.Tool):
    """A tool in the registry."""

    @override
    def encode(self, value: Any, call: Call) -> bytes:
        """Encode the members of the result for the call's revision."""
        result: ToolOutput = value
        call.meta = result.meta
        made: dict[str, Any] = {"content": to_wire(result.content)}
        if result.structured is not None:
            made["structuredContent"] = result.structured
        if result.is_error:
            made["isError"] = True
        members = encode(made)[1:-1]
        revision = call.revision
        if revision.structured != "none" and {"audio", "resource_link"} <= set(revision.content):
            return members
        return revisions.project_tool_result(members, revision)
