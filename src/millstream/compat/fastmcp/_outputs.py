"""The output schema of a tool's return annotation, and the conversion of values to structured content."""

import inspect
from typing import Annotated, Any, ClassVar, Final, get_args, get_origin, get_type_hints, is_typeddict

import msgspec
from msgspec import Struct
from pydantic import BaseModel, ConfigDict, create_model
from typing_extensions import TypedDict

from millstream._server.functions import outputs
from millstream._server.functions.pydantic_engine import output_of as engine_output_of
from millstream.compat.fastmcp._exceptions import InvalidSignature

_PLAIN = (str, int, float, bool, bytes, type(None))


class Output(Struct, frozen=True):
    """The output type of a tool."""

    output: outputs.Output
    wrapped: bool
    """Whether values are wrapped in `result`."""

    @property
    def schema(self) -> dict[str, Any]:
        """JSON Schema of structured content."""
        return self.output.schema

    def structure(self, value: Any) -> dict[str, Any]:
        """Convert a value to structured content. Raises LocalError if it doesn't match the schema."""
        return msgspec.json.decode(
            self.output.encode({"result": value} if self.wrapped else value), type=dict[str, Any]
        )


def output_of(returns: Any, name: str, *, structured: bool | None = None) -> Output | None:
    """Return the output type for a return annotation; None for unstructured output.

    Args:
        returns: the annotation; `inspect.Signature.empty` if it's missing.
        name: name of the function.
        structured: whether structured output is required (True) or disabled (False); None lets the annotation decide.

    Raises:
        InvalidSignature: structured output is required, but the annotation doesn't support it.
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
    return None if output is None else Output(output, wrapped)


def _is_result(annotation: Any) -> bool:
    return isinstance(annotation, type) and annotation.__name__ == "CallToolResult"


def _described_class(annotation: type[Any]) -> Any:
    """Return the type for a class's schema: itself, or a model of its annotations; None without annotations."""
    if issubclass(annotation, BaseModel) or is_typeddict(annotation):
        return annotation
    hints = get_type_hints(annotation, include_extras=True) if annotation is not object else {}
    fields: dict[str, Any] = {
        name: (hint, getattr(annotation, name, ...)) for name, hint in hints.items() if not name.startswith("_")
    }
    if not fields:
        return None
    return create_model(annotation.__name__, __config__=ConfigDict(from_attributes=True), **fields)
