"""`Tool`: a function with its signature as the other libraries read it, and `ToolResult`: what a call of it gives."""

import asyncio
import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Any, Self, cast

from millstream._protocol.errors import Cancelled, Declined, ProtocolError
from millstream._protocol.json_schema import is_object
from millstream.compat import _types as types
from millstream.compat._pydantic_parts import ValidationError as PydanticError
from millstream.compat._pydantic_parts import to_jsonable_python
from millstream.compat.fastmcp._conversion import as_wire, blocks_of, is_content, is_result, wire_blocks
from millstream.compat.fastmcp._exceptions import FastMCPError, ToolError, ValidationError, asks_for_url, of_protocol
from millstream.compat.fastmcp._functions import OfFunction, call_function, inside
from millstream.compat.fastmcp._injection import RunInThread
from millstream.compat.fastmcp._outputs import Promise, promise_by_hand, promise_of
from millstream.compat.fastmcp._signatures import Signature, signature_of
from millstream.compat.fastmcp._ways import SDK, Ways

logger = logging.getLogger("millstream")

NotSet: Any = ...
"""An option that was not given."""


class ToolResult:
    """What a call gives: content, structured content, ``_meta``; or what a function returns to say all of it."""

    def __init__(
        self,
        content: Any = None,
        structured_content: Any = None,
        meta: dict[str, Any] | None = None,
        is_error: bool = False,
    ) -> None:
        if content is None and structured_content is None:
            raise ValueError("Either content or structured_content must be provided")
        if structured_content is not None:
            structured_content = to_jsonable_python(structured_content, fallback=str)
            if not isinstance(structured_content, dict):
                raise ValueError(f"structured_content must be a dict or None, not {type(structured_content).__name__}")
        self.content: list[Any] = blocks_of(structured_content if content is None else content, _RESULT_WAYS)
        self.structured_content: dict[str, Any] | None = structured_content
        self.meta = meta
        self.is_error = is_error

    @property
    def structuredContent(self) -> dict[str, Any] | None:  # noqa: N802  the SDK's name
        """The same as `structured_content`."""
        return self.structured_content

    @property
    def isError(self) -> bool:  # noqa: N802  the SDK's name
        """The same as `is_error`."""
        return self.is_error

    @property
    def data(self) -> Any:
        """Structured content; what stands alone under `result`, without that."""
        found = self.structured_content
        return found["result"] if found is not None and found.keys() == {"result"} else found

    def members(self) -> dict[str, Any]:
        """The members of the result on the wire."""
        made: dict[str, Any] = {"content": wire_blocks(self.content)}
        if self.structured_content is not None:
            made["structuredContent"] = self.structured_content
        if self.is_error:
            made["isError"] = True
        return made


class Contents(list[Any]):
    """The content of a call without structured content, in the shape of SDK 1.x; the attributes are those of 2.x."""

    def __init__(self, result: ToolResult) -> None:
        super().__init__(result.content)
        self.content = result.content
        self.structured_content = self.structuredContent = result.structured_content
        self.is_error = self.isError = result.is_error
        self.meta = result.meta


class Pair(tuple[Any, Any]):  # noqa: SLOT001  it has attributes
    """Content and structured content of a call, in the shape of SDK 1.x; the attributes are those of 2.x."""

    content: list[Any]
    structured_content: Any
    is_error: bool

    def __new__(cls, result: ToolResult) -> Self:
        made = super().__new__(cls, (result.content, result.structured_content))
        made.content = result.content
        made.structured_content = result.structured_content
        made.is_error = result.is_error
        return made


_RESULT_WAYS = SDK


class Tool(OfFunction):
    """A tool of a server."""

    def __init__(
        self,
        signature: Signature,
        ways: Ways,
        *,
        promise: Promise | None,
        annotations: Any = None,
        timeout: float | None = None,
        run_in_thread: bool = True,
        serializer: Callable[[Any], str] | None = None,
        strict: bool = False,
        **shared: Any,
    ) -> None:
        super().__init__(signature, ways, **shared)
        # fastmcp leaves an empty one out.
        self.description: str | None = self.description if self.description or ways.empty_description else None
        self.strict = strict
        self.promise = promise
        self.parameters: dict[str, Any] = signature.schema
        self.annotations: Any = annotations_of(annotations)
        self.timeout = timeout
        self.run_in_thread = run_in_thread
        self.serializer = serializer

    @classmethod
    def from_function(  # noqa: PLR0913, PLR0917  in the order of the SDK
        cls,
        fn: Callable[..., Any],
        name: str | None = None,
        title: str | None = None,
        description: str | None = None,
        context_kwarg: str | None = None,
        annotations: Any = None,
        icons: Sequence[Any] | None = None,
        meta: dict[str, Any] | None = None,
        structured_output: bool | None = None,
        *,
        output_schema: Any = NotSet,
        exclude_args: Sequence[str] | None = None,
        ways: Ways = SDK,
        **more: Any,
    ) -> "Tool":
        """A tool of a function. `more` are the options that only fastmcp has.

        Raises:
            InvalidSignature, ValueError: the function cannot be a tool.
        """
        signature = signature_of(fn, ways, name=name, hidden=exclude_args or ())
        if more.get("timeout") is not None and more.get("run_in_thread") is False and not _waits(signature.function):
            raise ValueError(f"{signature.name}: a timeout cannot be enforced on a plain function in the event loop")
        if output_schema is None:
            structured_output = False
        if is_object(output_schema):
            promise: Promise | None = promise_by_hand(output_schema, ways)
        else:
            promise = promise_of(signature.returns, signature.name, ways, structured=structured_output)
        return cls(
            signature,
            ways,
            promise=promise,
            title=title,
            description=description,
            annotations=annotations,
            icons=icons,
            meta=meta,
            **more,
        )

    @property
    def is_async(self) -> bool:
        """The function is a coroutine function."""
        return inspect.iscoroutinefunction(self.fn)

    @property
    def output_schema(self) -> dict[str, Any] | None:
        """What the result promises."""
        return None if self.promise is None else self.promise.schema

    @property
    def inputSchema(self) -> dict[str, Any]:  # noqa: N802  the SDK's name
        """The same as `parameters`."""
        return self.parameters

    @property
    def outputSchema(self) -> dict[str, Any] | None:  # noqa: N802  the SDK's name
        """The same as `output_schema`."""
        return self.output_schema

    def enable(self) -> None:
        """Offer the tool."""
        self.enabled = True

    def disable(self) -> None:
        """Do not offer the tool."""
        self.enabled: bool = False

    def to_mcp_tool(self) -> types.Tool:
        """The tool as clients see it."""
        return types.Tool(
            name=self.name,
            title=self.title,
            description=self.description,
            input_schema=self.parameters,
            output_schema=self.output_schema,
            annotations=as_wire(self.annotations),
            icons=None if self.icons is None else [as_wire(icon) for icon in self.icons],
            _meta=self.meta,
        )

    async def run(
        self, arguments: dict[str, Any], context: Any = None, convert_result: bool | None = None, *, thread: Any = None
    ) -> Any:
        """Run the function.

        Args:
            arguments: as a client sends them.
            context: for the parameter that wants it; by default that of the call around this one.
            convert_result: give a `ToolResult`, not what the function returned; by default as the library does.
            thread: what runs a function in a thread.

        Raises:
            ToolError: the arguments are wrong, or the function raised.
        """
        with inside(context):
            try:
                async with asyncio.timeout(self.timeout):
                    value = await self._call(arguments, thread or asyncio.to_thread)
                wanted = not self.ways.pairs if convert_result is None else convert_result
                return self.converted(value) if wanted else value
            except (ProtocolError, Declined, Cancelled):
                raise
            except FastMCPError as error:
                if self.ways.plain_failures:
                    raise
                raise self.failed(error) from error
            except Exception as error:
                if asks_for_url(error) or (self.ways.plain_failures and of_protocol(error)):
                    raise
                raise self.failed(error) from error

    def failed(self, error: Exception) -> FastMCPError:
        """What is said of an error of the function."""
        if isinstance(error, TimeoutError) and self.timeout is not None:
            return ToolError(f"Tool {self.name!r} execution timed out after {self.timeout}s")
        if isinstance(error, WrongArguments) and self.ways.plain_failures:
            return ValidationError(str(error))
        return ToolError(self.ways.failure.format(name=self.name, error=error))

    async def _call(self, arguments: dict[str, Any], thread: RunInThread) -> Any:
        try:
            values = self.signature.read(arguments, strict=self.strict)
        except PydanticError as error:
            raise WrongArguments(str(error)) from error
        return await call_function(self.signature, values, thread if self.run_in_thread else None)

    def converted(self, value: Any) -> ToolResult:
        """A function's value as a result.

        Raises:
            pydantic.ValidationError: it is not what the annotation promises.
        """
        if isinstance(value, ToolResult):
            return value
        if is_result(value):
            return self._spelled_out(value)
        made = ToolResult.__new__(ToolResult)
        made.meta, made.is_error, made.structured_content = None, False, None
        made.content = blocks_of(self.serializer(value) if self.serializer is not None else value, self.ways)
        if self.promise is not None:
            made.structured_content = structured = self.promise.structure(value)
            if self.ways.one_text and self.serializer is None and not _holds_content(value):
                made.content = blocks_of(structured["result"] if self.promise.wrapped else structured, self.ways)
            if self.promise.wrapped and self.ways.wrap_mark:
                made.meta = {"fastmcp": {"wrap_result": True}}
        elif self.ways.structured_dicts and not is_content(value) and not isinstance(value, list | tuple | bytes | str):
            found = to_jsonable_python(value, fallback=str)
            made.structured_content = found if isinstance(found, dict) else None
        return made

    def _spelled_out(self, value: Any) -> ToolResult:
        wire = as_wire(value)
        structured = wire.get("structuredContent")
        if self.promise is not None and self.promise.check is not None:
            self.promise.check(structured)
        return ToolResult(list(value.content), structured, wire.get("_meta"), wire.get("isError", False))


def _holds_content(value: Any) -> bool:
    return is_content(value) or (isinstance(value, list | tuple) and any(map(is_content, cast("list[Any]", value))))


def annotations_of(given: Any) -> Any:
    """Hints about a tool, as a model where they came as a dict."""
    return types.ToolAnnotations.model_validate(given) if is_object(given) else given


def _waits(function: Callable[..., Any]) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)


class WrongArguments(Exception):
    """Arguments that the function does not take."""
