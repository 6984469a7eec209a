"""Functions, their return values, and their errors: signatures, output schemas, content blocks, and exceptions.

A signature decides which engine decodes the arguments, and which parameter receives the context. The return annotation
of a tool decides whether its output is structured. Blocks are recognized by class name, so blocks of an installed
``mcp.types`` also work.

Programs raise and catch exceptions with the official SDK's names.
"""

import base64
import functools
import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, cast, get_args, get_origin, get_type_hints, is_typeddict

import msgspec
from msgspec import Struct
from pydantic import BaseModel, ConfigDict, create_model
from pydantic_core import to_json
from typing_extensions import TypedDict

from millstream._copies import CopyableError
from millstream._protocol.errors import (
    INTERNAL_ERROR,
    URL_ELICITATION_REQUIRED,
    Cancelled,
    Declined,
    ProtocolError,
)
from millstream._protocol.errors import ToolError as EngineToolError
from millstream._server.functions import msgspec_engine
from millstream._server.functions.core_engine import output_of as engine_output_of
from millstream._server.functions.dependencies import context_in, hints_of, name_of
from millstream._server.functions.engine import engine_of
from millstream._server.functions.parameters import ArgumentList, parameter_of
from millstream._server.functions.plan import convert_texts, decode_json_texts
from millstream._server.functions.problems import explain
from millstream.compat import types
from millstream.protocol import Json


class FastMCPError(CopyableError):
    """Base class of these errors."""


class ValidationError(FastMCPError):
    """Arguments or results are invalid."""


class ResourceError(FastMCPError):
    """A resource can't be read. Clients see the message."""


class ToolError(FastMCPError):
    """A tool failed. The model sees the message."""


class InvalidSignature(CopyableError):
    """A function has an unsupported signature."""


class McpError(CopyableError):
    """A protocol error: ``McpError(ErrorData(code=-32602, message="…"))``."""

    def __init__(self, error: Any) -> None:
        super().__init__(error.message)
        self.error: Any = error


class UrlElicitationRequiredError(McpError):
    """The user has to open URLs before the call can succeed."""

    def __init__(self, elicitations: Sequence[Any], message: str | None = None) -> None:
        urls = [each.model_dump(mode="json", by_alias=True, exclude_none=True) for each in elicitations]
        text = message or f"URL elicitation{'s' if len(urls) > 1 else ''} required"
        super().__init__(types.ErrorData(code=URL_ELICITATION_REQUIRED, message=text, data={"elicitations": urls}))


def is_error(error: BaseException, kind: type[McpError]) -> bool:
    """Return whether an error is of a kind, ours or an installed SDK's."""
    return hasattr(error, "error") and any(each.__name__ == kind.__name__ for each in type(error).__mro__)


def as_protocol_error(error: Any, code: int = INTERNAL_ERROR) -> ProtocolError:
    """Convert an error to a protocol error. An `McpError` keeps its code and data."""
    if is_error(error, McpError):
        return ProtocolError(error.error.code, str(error), error.error.data)
    return ProtocolError(code, str(error))


@contextmanager
def tool_errors() -> Generator[None]:
    """Convert a tool's errors to text for the model, or to a protocol error."""
    try:
        yield
    except FastMCPError as error:
        raise EngineToolError(str(error)) from error
    except Exception as error:
        if is_error(error, UrlElicitationRequiredError):
            raise as_protocol_error(error) from error
        raise


@contextmanager
def errors_as(convert: Callable[[Exception], Exception]) -> Generator[None]:
    """Convert errors inside the block, except errors that the server handles itself."""
    try:
        yield
    except (ProtocolError, Declined, Cancelled):
        raise
    except Exception as error:
        raise convert(error) from error


_BLOCK_NAMES = frozenset(each.__name__ for each in get_args(types.ContentBlock))
_SUFFIXES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
    ".wav": "audio/wav",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
    ".flac": "audio/flac",
    ".aac": "audio/aac",
    ".m4a": "audio/mp4",
}


class _Media:
    """A file or bytes, with a media type.

    Args:
        path: The file, read for each result.
        data: The content, instead of `path`.
        format: The media subtype, such as ``png``, by default from the suffix of `path`.

    Raises:
        ValueError: Neither `path` nor `data` is given.
    """

    kind = ""
    default = ""

    def __init__(self, path: str | Path | None = None, data: bytes | None = None, format: str | None = None) -> None:
        if path is None and data is None:
            raise ValueError("Either path or data must be provided")
        self.path: Path | None = None if path is None else Path(path)
        self.data = data
        self._format = format

    @property
    def _mime_type(self) -> str:
        if self._format:
            return f"{self.kind}/{self._format.lower()}"
        if self.path is None:
            return self.default
        return _SUFFIXES.get(self.path.suffix.lower(), "application/octet-stream")

    def _base64(self) -> str:
        data = self.path.read_bytes() if self.path is not None else self.data or b""
        return base64.b64encode(data).decode()


class Image(_Media):
    """An image: ``Image(path="chart.png")`` or ``Image(data=png, format="png")``."""

    kind = "image"
    default = "image/png"

    def to_image_content(self) -> types.ImageContent:
        """Return the image as a content block."""
        return types.ImageContent(data=self._base64(), mimeType=self._mime_type)


class Audio(_Media):
    """An audio clip: ``Audio(path="ping.wav")`` or ``Audio(data=wav, format="wav")``."""

    kind = "audio"
    default = "audio/wav"

    def to_audio_content(self) -> types.AudioContent:
        """Return the audio clip as a content block."""
        return types.AudioContent(data=self._base64(), mimeType=self._mime_type)


def is_result(value: Any) -> bool:
    """Return whether a value is the protocol's `CallToolResult`."""
    return isinstance(value, BaseModel) and _is_result(type(value))


def is_content(value: Any) -> bool:
    """Return whether a value is a content block, or converts to one."""
    return isinstance(value, Image | Audio) or (isinstance(value, BaseModel) and type(value).__name__ in _BLOCK_NAMES)


def to_wire(value: Any) -> Any:
    """Convert a protocol object to JSON data."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", by_alias=True, exclude_none=True)
    if isinstance(value, msgspec.Struct):
        return msgspec.to_builtins(value)
    return [to_wire(each) for each in cast("list[Any]", value)] if isinstance(value, list | tuple) else value


def description_of(item: Any, **more: Any) -> Json:
    """Return an item as listed to clients, without members that it doesn't have."""
    members: Json = {
        "name": item.name,
        "title": item.title,
        "description": item.description,
        **more,
        "annotations": to_wire(getattr(item, "annotations", None)),
        "icons": to_wire(item.icons),
        "_meta": getattr(item, "meta", None),
    }
    return {name: value for name, value in members.items() if value is not None}


def to_blocks(value: Any) -> list[Any]:
    """Convert a function's return value to content blocks, one for each item of a list."""
    if value is None:
        return []
    if isinstance(value, list | tuple):
        return [block for item in cast("list[Any]", value) for block in to_blocks(item)]
    if isinstance(value, Image):
        return [value.to_image_content()]
    if isinstance(value, Audio):
        return [value.to_audio_content()]
    return [value if is_content(value) else types.TextContent(text=to_text(value))]


def to_text(value: Any) -> str:
    """Convert a value to text: a `str` unchanged, anything else as indented JSON."""
    return value if isinstance(value, str) else to_json(value, fallback=str, indent=2).decode()


_PLAIN = (str, int, float, bool, bytes, type(None))


class Output(msgspec_engine.Output, frozen=True):
    """The output type of a tool."""

    wrapped: bool
    """Whether values are wrapped in `result`."""

    def structure(self, value: Any) -> Json:
        """Convert a value to structured content. Raises LocalError if it doesn't match the schema."""
        return msgspec.json.decode(self.encode({"result": value} if self.wrapped else value), type=Json)


def output_of(returns: Any, name: str, *, structured: bool | None = None) -> Output | None:
    """Return the output type for a return annotation, or None for unstructured output.

    Args:
        returns: The annotation; `inspect.Signature.empty` if it's missing.
        name: Name of the function.
        structured: Whether structured output is required (True) or disabled (False); None lets the annotation decide.

    Raises:
        InvalidSignature: Structured output is required, but the annotation doesn't support it.
    """
    if structured is False:
        return None
    if returns is inspect.Signature.empty:
        if structured:
            raise InvalidSignature(f"Function {name}: return annotation required for structured output")
        return None
    made = _output(returns, name)
    if made is None and structured:
        raise InvalidSignature(f"Function {name}: return type {returns} is not serializable for structured output")
    return made


def _output(returns: Any, name: str) -> Output | None:
    annotation = get_args(returns)[0] if get_origin(returns) is Annotated else returns
    if get_origin(annotation) in (Final, ClassVar):
        raise InvalidSignature(f"Function {name}: return annotation contains an invalid type qualifier")
    if any(_is_result(part) for part in get_args(annotation)):
        raise InvalidSignature(
            f"Function {name}: CallToolResult cannot be used in Union or Optional types. "
            "To return empty results, use: CallToolResult(content=[])"
        )
    if _is_result(annotation):
        if annotation is returns:
            return None
        first, *others = get_args(returns)[1:]
        annotation, returns = first, Annotated[(first, *others)] if others else first
    wrapped = False
    if get_origin(annotation) is None and isinstance(annotation, type) and annotation not in _PLAIN:
        returns = _described_class(annotation)
    elif get_origin(annotation) is not dict or get_args(annotation)[:1] != (str,):
        returns, wrapped = TypedDict(f"{name}Output", {"result": returns}), True  # type: ignore[operator]  # functional
    if returns is None:
        return None
    try:
        output = engine_output_of(returns)
    except TypeError:
        return None
    return None if output is None else Output(output.schema, output.encode, wrapped)


def _is_result(annotation: Any) -> bool:
    return isinstance(annotation, type) and annotation.__name__ == "CallToolResult"


def _described_class(annotation: type[Any]) -> Any:
    """Return the type for a class's schema: itself, or a model of its annotations, or None without annotations."""
    if issubclass(annotation, BaseModel) or is_typeddict(annotation):
        return annotation
    hints = get_type_hints(annotation, include_extras=True) if annotation is not object else {}
    fields: Json = {
        name: (hint, getattr(annotation, name, ...)) for name, hint in hints.items() if not name.startswith("_")
    }
    if not fields:
        return None
    return create_model(annotation.__name__, __config__=ConfigDict(from_attributes=True), **fields)


current: ContextVar[Any] = ContextVar("millstream_compat_context")
"""The context of the current call."""


class ContextMark:
    """Base class of `Context`. A parameter annotated with a subclass receives the context."""


class WrongArguments(ValueError):
    """The arguments don't match the function's signature."""


class Signature(Struct, frozen=True):
    """The signature of a registered function."""

    function: Callable[..., Any]
    name: str
    description: str
    engine: msgspec_engine.Engine
    context: str | None
    """Name of the parameter that receives the context."""
    returns: Any
    """The return annotation; `inspect.Signature.empty` if it's missing."""

    @property
    def schema(self) -> Json:
        """JSON Schema of the arguments."""
        return self.engine.input_schema

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters, except the context."""
        return self.engine.struct.__struct_fields__

    def read(self, arguments: Mapping[str, Any]) -> Json:
        """Convert arguments to the function's keyword arguments.

        Some hosts send lists and objects as JSON strings, so strings are decoded if the type isn't a string.

        Raises:
            WrongArguments: The arguments don't match.
        """
        values = dict(arguments)
        try:
            decode_json_texts(self.schema, values)
            values = convert_texts(self.schema, values)
            made = self.engine.convert(values)
        except msgspec.ValidationError as error:
            raise WrongArguments(explain(self.engine.problems(error, values), self.schema)) from error
        except msgspec.DecodeError as error:
            raise WrongArguments(str(error)) from error
        return msgspec.structs.asdict(made)

    async def call(self, values: dict[str, Any], context: Any) -> Any:
        """Call the function. Plain functions run in a worker thread."""
        if self.context is not None:
            values[self.context] = context
        token = current.set(context)
        try:
            if inspect.iscoroutinefunction(self.function):
                return await self.function(**values)
            value = await context.run_in_thread(functools.partial(self.function, **values))
            return await value if inspect.isawaitable(value) else value
        finally:
            current.reset(token)


def signature_of(function: Callable[..., Any], name: str | None = None) -> Signature:
    """Return the signature of a function.

    Args:
        function: Any callable.
        name: Name to use instead of the function's name.

    Raises:
        TypeError: Clients can't send a value for a parameter.
        ValueError: The function is a lambda without a name.
    """
    own = name or name_of(function)
    if own == "<lambda>":
        raise ValueError("You must provide a name for lambda functions")
    signature, hints = inspect.signature(function), hints_of(function)
    context, _ = context_in(signature, hints, (ContextMark,), own)
    parameters = [
        parameter_of(each, hints, {}, "tool", own) for each in signature.parameters.values() if each.name != context
    ]
    returns = hints.get("return", inspect.Signature.empty)
    return Signature(function, own, function.__doc__ or "", engine_of(ArgumentList(own, parameters)), context, returns)
