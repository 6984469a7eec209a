"""The items of a server: functions that models call, functions that return messages, and resources with templates.

Resources are text, bytes, functions, files, and folders.
"""

import abc
import json
import logging
import re
from asyncio import to_thread
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, cast
from urllib.parse import unquote

import msgspec
from msgspec import Struct
from pydantic import AfterValidator, AnyUrl, BaseModel, BeforeValidator, ConfigDict, Field

from millstream import ToolResult
from millstream._copies import NotCopyable
from millstream._override import override
from millstream._protocol import revisions
from millstream._protocol.content import Message as EngineMessage
from millstream._protocol.errors import INVALID_PARAMS, Cancelled, Declined, ProtocolError
from millstream._protocol.jsonrpc import Json, decode_object, encode
from millstream._server.calls.call import Call
from millstream._server.features import resources, tools
from millstream._server.features.sources import ItemSource
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

logger: logging.Logger = logging.getLogger("millstream")

_MIME_TYPE = r"^[a-zA-Z0-9]+/[a-zA-Z0-9\-+.]+(;\s*[a-zA-Z0-9\-_.]+=[a-zA-Z0-9\-_.]+)*$"
_VARIABLE = re.compile(r"\{(\w+)\}")
_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:")


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
class Prompt(NotCopyable):
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
            name: Name of the prompt, by default that of the function.
            title: Title that clients show.
            description: Description for the model, by default the docstring.
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
        """Run the function and return its messages.

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

    def describe(self) -> Json:
        """Return the prompt as listed to clients."""
        return description_of(self, arguments=to_wire(self.arguments) or None)

    def item(self, server: Any) -> resources.Prompt:
        """Return the prompt for the registry of a server.

        Args:
            server: The `FastMCP` server.
        """

        async def run(arguments: Json, call: Call) -> list[EngineMessage]:
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


@dataclass(eq=False)
class Tool(NotCopyable):
    """A tool of a server. Create one with `from_function`."""

    signature: Signature
    output: Output | None
    name: str
    title: str | None
    description: str
    annotations: Any
    icons: Sequence[Any] | None
    meta: Json | None

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
        meta: Json | None = None,
        structured_output: bool | None = None,
    ) -> "Tool":
        """Create a tool from a function.

        Args:
            fn: The function.
            name: Name of the tool, by default that of the function.
            title: Title that clients show.
            description: Description for the model, by default the docstring.
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
    def parameters(self) -> Json:
        """JSON Schema of the arguments."""
        return self.signature.schema

    @property
    def output_schema(self) -> Json | None:
        """JSON Schema of structured content."""
        return None if self.output is None else self.output.schema

    async def run(
        self, arguments: Json, context: Any = None, convert_result: bool = False
    ) -> Any:  # the function's value
        """Run the function.

        Args:
            arguments: JSON data for the arguments.
            context: Value of the context parameter.
            convert_result: Whether to return a `ToolResult` instead of the function's own value.

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

    def convert(self, value: Any) -> ToolResult:
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
            return ToolResult(list(value.content), structured, wire.get("isError", False), wire.get("_meta"))
        return ToolResult(to_blocks(value), None if self.output is None else self.output.structure(value))

    def describe(self) -> Json:
        """Return the tool as listed to clients."""
        return description_of(self, inputSchema=self.parameters, outputSchema=self.output_schema)

    def item(self, server: Any) -> "ToolItem":
        """Return the tool for the registry of a server.

        Args:
            server: The `FastMCP` server.
        """

        async def run(arguments: Json, call: Call) -> ToolResult:
            with tool_errors():
                made: ToolResult = await self.run(arguments, Context(server, call), convert_result=True)
            return made

        return ToolItem(ItemSource(self.name, run, decode_object, schema=self.parameters), meta=self.meta)


class ToolItem(tools.Tool):
    """A tool in the registry."""

    @override
    def encode(self, value: Any, call: Call) -> bytes:
        """Encode the members of the result for the call's revision."""
        result: ToolResult = value
        call.meta = result.meta
        made: Json = {"content": to_wire(result.content)}
        if result.structured is not None:
            made["structuredContent"] = result.structured
        if result.is_error:
            made["isError"] = True
        members = encode(made)[1:-1]
        revision = call.revision
        if revision.structured != "none" and revision.content >= revisions.NEWEST.content:
            return members
        return revisions.project_tool_result(members, revision)


class ReadResourceContents(Struct, frozen=True):
    """The content of a resource, from `read_resource`."""

    content: str | bytes
    mime_type: str | None = None
    meta: Json | None = None


class Resource(BaseModel, abc.ABC):
    """Base class of all resources. Subclasses implement ``async def read(self) -> str | bytes``."""

    model_config: ClassVar[ConfigDict] = ConfigDict(validate_default=True, arbitrary_types_allowed=True)

    uri: Annotated[AnyUrl, BeforeValidator(lambda value: AnyUrl(str(value)))]
    name: str | None = None
    title: str | None = None
    description: str | None = None
    mime_type: str = Field(default="text/plain", pattern=_MIME_TYPE)
    icons: list[Any] | None = None
    annotations: Any = None
    meta: Json | None = None

    @abc.abstractmethod
    async def read(self) -> Any:  # a subclass's value
        """Return the content: text, bytes, or a value for JSON."""

    async def read_for(self, context: Any) -> str | bytes:
        """Return the content for one call.

        Args:
            context: Context of the call.
        """
        return _to_content(await self.read())

    def describe(self) -> Json:
        """Return the resource as listed to clients."""
        return description_of(self, uri=str(self.uri), mimeType=self.mime_type)

    def item(self, server: Any) -> resources.Resource:
        """Return the resource for the registry of a server.

        Args:
            server: The `FastMCP` server.
        """

        async def run(arguments: Any, call: Call) -> Any:
            with errors_as(as_protocol_error):
                return await self.read_for(Context(server, call))

        source = ItemSource(self.name or str(self.uri), run, lambda _: None)
        return resources.Resource(str(self.uri), source, mime_type=self.mime_type, meta=self.meta)


class TextResource(Resource):
    """A resource with fixed text."""

    text: str

    @override
    async def read(self) -> str:
        """Return the text."""
        return self.text


class BinaryResource(Resource):
    """A resource with fixed bytes."""

    data: bytes

    @override
    async def read(self) -> bytes:
        """Return the bytes."""
        return self.data


class FunctionResource(Resource):
    """A resource with content from a function: text, bytes, a resource, or a JSON-serializable value."""

    fn: Callable[..., Any] = Field(exclude=True)

    @classmethod
    def from_function(
        cls, fn: Callable[..., Any], uri: str, name: str | None = None, **options: Any
    ) -> "FunctionResource":
        """Create a resource from a function without parameters other than the context.

        Args:
            fn: The function.
            uri: URI of the resource.
            name: Name of the resource, by default that of the function.
            options: Other fields of `Resource`.

        Raises:
            ValueError: The function is a lambda without a name.
        """
        signature = signature_of(fn, name)
        given = {key: value for key, value in options.items() if value is not None}
        return cls.model_validate(
            {"uri": uri, "name": signature.name, "fn": fn, "description": signature.description, **given}
        )

    @cached_property
    def _signature(self) -> Signature:
        return signature_of(self.fn, self.name)

    @override
    async def read(self) -> str | bytes:
        """Return the content. Raises ValueError if the function fails."""
        return await self.read_for(Context())

    @override
    async def read_for(self, context: Any) -> str | bytes:
        """Return the content for one call. Raises ValueError if the function fails."""
        with errors_as(lambda error: ValueError(f"Error reading resource {self.uri}: {error}")):
            return await _read_value(self._signature, {}, context)


def _absolute(path: Path) -> Path:
    if not path.is_absolute():
        raise ValueError("Path must be absolute")
    return path


_AbsolutePath = Annotated[Path, AfterValidator(_absolute)]


class FileResource(Resource):
    """A file, read for each call. `path` must be absolute."""

    path: _AbsolutePath
    is_binary: bool = False

    @override
    def model_post_init(self, context: Any, /) -> None:
        """Set `is_binary` if the media type isn't text."""
        self.is_binary = self.is_binary or not self.mime_type.startswith("text/")

    @override
    async def read(self) -> str | bytes:
        """Return the content of the file. Raises ValueError if it can't be read."""
        try:
            return await to_thread(self.path.read_bytes if self.is_binary else self.path.read_text)
        except (OSError, UnicodeError) as error:
            raise ValueError(f"Error reading file {self.path}: {error}") from error


class DirectoryResource(Resource):
    """The list of files in a directory, as JSON. `path` must be absolute."""

    path: _AbsolutePath
    recursive: bool = False
    pattern: str | None = None
    mime_type: str = Field(default="application/json", pattern=_MIME_TYPE)

    def list_files(self) -> list[Path]:
        """Return the paths in the directory. Raises NotADirectoryError if it isn't one."""
        if not self.path.is_dir():
            raise NotADirectoryError(f"Not a directory: {self.path}")
        return list((self.path.rglob if self.recursive else self.path.glob)(self.pattern or "*"))

    @override
    async def read(self) -> str:
        """Return the list. Raises ValueError if the directory can't be read."""
        try:
            files = await to_thread(self.list_files)
        except OSError as error:
            raise ValueError(f"Error reading directory {self.path}: {error}") from error
        names = [str(each.relative_to(self.path)) for each in files if each.is_file()]
        return json.dumps({"files": names}, indent=2)


@dataclass(eq=False)
class ResourceTemplate(NotCopyable):
    """A resource template: the variables in its URI are the arguments of its function."""

    signature: Signature
    uri_template: str
    title: str | None = None
    description: str | None = None
    mime_type: str | None = None
    icons: Sequence[Any] | None = None
    annotations: Any = None
    meta: Json | None = None

    def __post_init__(self) -> None:
        self.name: str = self.signature.name
        if self.description is None:
            self.description = self.signature.description
        self.mime_type = self.mime_type or "text/plain"
        self._pattern = UriPattern(self.uri_template)

    @classmethod
    def from_function(
        cls, fn: Callable[..., Any], uri_template: str, name: str | None = None, **options: Any
    ) -> "ResourceTemplate":
        """Create a template from a function.

        Args:
            fn: The function, with a parameter for each variable.
            uri_template: URI with ``{variables}``.
            name: Name of the template, by default that of the function.
            options: `title`, `description`, `mime_type`, `icons`, `annotations`, `meta`.

        Raises:
            ValueError: The parameters don't match the variables of the URI.
        """
        made = cls(signature_of(fn, name), uri_template, **options)
        variables, parameters = set(made._pattern.variables), set(made.signature.parameters)
        if variables != parameters:
            raise ValueError(f"Mismatch between URI parameters {variables} and function parameters {parameters}")
        return made

    def describe(self) -> Json:
        """Return the template as listed to clients."""
        return description_of(self, uriTemplate=self.uri_template, mimeType=self.mime_type)

    def matches(self, uri: str) -> dict[str, Any] | None:
        """Return the values of the variables in a URI, or None if it doesn't match.

        Args:
            uri: URI that a client wants to read.
        """
        return self._pattern.match(uri)

    async def read_for(self, variables: Mapping[str, Any], context: Any) -> str | bytes:
        """Return the content for variables' values. Raises ValueError if the function fails.

        Args:
            variables: Values of the variables.
            context: Context of the call.
        """
        with errors_as(lambda error: ValueError(f"Error creating resource from template: {error}")):
            return await _read_value(self.signature, self.signature.read(variables), context)

    def item(self, server: Any) -> resources.Template:
        """Return the template for the registry of a server.

        Args:
            server: The `FastMCP` server.
        """

        async def run(variables: dict[str, Any], call: Call) -> Any:
            with errors_as(as_protocol_error):
                return await self.read_for(variables, Context(server, call))

        schema = {"properties": {name: {"type": "string"} for name in self._pattern.variables}}
        return resources.Template(
            self.uri_template,
            ItemSource(self.name, run, dict, schema=schema),
            pattern=UriPattern,
            mime_type=self.mime_type,
            meta=self.meta,
        )


class UriPattern:
    """The URI of a template: ``{name}`` matches a segment without slashes."""

    def __init__(self, template: str) -> None:
        pieces = _VARIABLE.split(template)  # every second part is a name
        self.variables: tuple[str, ...] = tuple(pieces[1::2])
        # The URI is read backwards, up to the nearest occurrence of each literal. If that one doesn't lead to a match,
        # none does, so nothing is tried twice. Variables on the left take as much as possible.
        regex = re.escape(pieces[-1][::-1])
        for name, literal in zip(pieces[-2:1:-2], pieces[-3:1:-2], strict=True):
            regex += f"(?>(?P<{name}>[^/]+?){re.escape(literal[::-1])})"
        if self.variables:
            regex += f"(?P<{pieces[1]}>[^/]+){re.escape(pieces[0][::-1])}"
        self._regex = re.compile(regex)

    def match(self, uri: str) -> dict[str, Any] | None:
        """Return the decoded values of the variables.

        Returns None for a URI that doesn't match, and for path traversal in a value, because functions often use
        values as file names.
        """
        found = self._regex.fullmatch(uri[::-1])
        if found is None:
            return None
        values = {name: unquote(found[name][::-1]) for name in self.variables}
        return None if any(map(_leaves_folder, values.values())) else values


def _leaves_folder(value: str) -> bool:
    return "\0" in value or _ABSOLUTE.match(value) is not None or ".." in re.split(r"[/\\]", value)


async def _read_value(signature: Signature, values: dict[str, Any], context: Any) -> str | bytes:
    value = await signature.call(values, context)
    return _to_content(await value.read() if isinstance(value, Resource) else value)


def _to_content(value: Any) -> str | bytes:
    return value if isinstance(value, bytes) else to_text(value)
