"""Structured output of tools, and JSON of values that msgspec can't encode."""

import inspect
import sys
from collections.abc import Callable, Iterator
from functools import lru_cache, wraps
from pathlib import PurePath
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin

import msgspec
from msgspec import Struct

from millstream._protocol.content import BLOCKS
from millstream._protocol.errors import LocalError
from millstream._protocol.json_schema import Schema
from millstream._server.functions.annotations import UNIONS

R = TypeVar("R")
_KEPT_TYPES = 512
STRUCTURED_TYPES = frozenset(("object", "array", "integer", "number", "boolean", "null"))


class Output(Struct, frozen=True, eq=False):
    """The output of a tool."""

    schema: Schema
    encode: Callable[[Any], bytes]
    """Returns the JSON of a value. Raises LocalError if the value doesn't match the schema, with the name of the field,
    and TypeError if it isn't JSON-serializable.
    """


class OutputError(TypeError):
    """A return type that can't be described to clients."""


class NotJson(TypeError):
    """A value that isn't JSON-serializable. The message names the value and the alternative."""


def enc_hook(value: Any) -> Any:
    """Convert a value that msgspec doesn't support to JSON values.

    Raises:
        NotJson: The value can't be converted.
    """
    if inspect.isawaitable(value):
        if inspect.iscoroutine(value):
            value.close()  # Otherwise Python emits a second warning, later and elsewhere.
        raise NotJson(
            f"the function returned {getattr(value, '__qualname__', type(value).__name__)!r} without awaiting "
            "it. Write `await` before the call, and make the function `async def`"
        )
    if isinstance(value, PurePath):
        return str(value)
    pydantic_core = sys.modules.get("pydantic_core")
    try:
        if pydantic_core is not None:
            return pydantic_core.to_jsonable_python(value)
    except ValueError:
        pass
    kind = cast("type[object]", type(value))
    instead = "use builtins, a dataclass, TypedDict, Struct, or pydantic model"
    if issubclass(kind, Iterator):
        instead = "convert it to a list with list(…)"
    raise NotJson(f"a value of type {kind.__name__} can't be converted to JSON: {instead}")


encode = msgspec.json.Encoder(enc_hook=enc_hook).encode


def output_error(why: str) -> LocalError:
    """Return the error for a result that doesn't match its schema."""
    return LocalError(f"the result doesn't match the output schema: {why}")


def may_be_content(annotation: Any, content: tuple[Any, ...]) -> bool:
    """Return whether values of a type are or can contain content. They have no output schema then."""
    return _is_content(annotation, (bytes, *content, *BLOCKS)) or _may_hold_content(annotation)


def _is_content(annotation: Any, content: tuple[Any, ...]) -> bool:
    if annotation in content:
        return True
    return get_origin(annotation) is not dict and any(_is_content(part, content) for part in get_args(annotation))


def _may_hold_content(annotation: Any) -> bool:
    """Return whether a type is, or has as an alternative, a list or tuple of unknown items."""
    if annotation in (list, tuple):
        return True
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin in (list, tuple):
        return any(part in (Any, object) for part in parts)
    return origin in (*UNIONS, Annotated) and any(_may_hold_content(part) for part in parts)


def once_per_type(make: Callable[[Any], R]) -> Callable[[Any], R]:
    """Decorate a function of a type, so that it's computed once for all functions with that type.

    Types that are equal but written differently, such as ``int | str`` and ``str | int``, are kept apart, because the
    order shows in their schemas.
    """

    @lru_cache(_KEPT_TYPES)
    def find(annotation: Any, _written: str) -> R:
        return make(annotation)

    @wraps(make)
    def once(annotation: Any) -> R:
        try:
            hash(annotation)
        except TypeError:  # for example of an `Annotated` with a list
            return make(annotation)
        return find(annotation, repr(annotation))

    return once


def is_structured(schema: Schema) -> bool:
    """Return whether no alternative of a schema is text, and not all are null."""
    kinds = set(_kinds(schema))
    return kinds <= STRUCTURED_TYPES and kinds != {"null"}


def _kinds(schema: Schema) -> Iterator[str | None]:
    for part in schema.get("anyOf", ()):
        yield from _kinds(part)
    if "anyOf" not in schema:
        yield schema.get("type", "object" if "$ref" in schema else None)
