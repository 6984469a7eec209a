"""The msgspec engine: one typed pass over the arguments, and one over the result, for which clients get a schema."""

import copy
import functools
import inspect
import sys
from collections import UserString
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from functools import lru_cache, wraps
from importlib import import_module
from io import IOBase
from itertools import chain
from math import inf, isfinite
from pathlib import Path, PurePath
from types import UnionType
from typing import Any, Protocol, TypeVar, Union, cast

import msgspec
from msgspec import NODEFAULT, Meta, Struct

from millstream._override import override
from millstream._protocol.errors import LocalError
from millstream._protocol.json_schema import (
    NO_NUMBER,
    REF,
    Schema,
    has_no_number,
    is_array,
    is_object,
    walk,
)
from millstream._protocol.jsonrpc import Json
from millstream._server.functions.dependencies import RegistrationError
from millstream._server.functions.parameters import (
    ArgumentList,
    parts_of,
)
from millstream._server.functions.patterns import check_no_pattern, search
from millstream._server.functions.problems import (
    Problem,
    choices_of,
    engine_problem,
    find_problems,
    kind_of,
    problem_text,
    words,
)

R = TypeVar("R")
_KEPT_TYPES = 512
MAX_VALUES = 100_000
"""Maximum number of values in arguments that are slow to validate or to build."""
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
    """A value that isn't JSON-serializable. The message identifies the value and the alternative."""


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
    if isinstance(value, PurePath | UserString):
        return str(value)
    kind = cast("type[object]", type(value))
    if issubclass(kind, Mapping):
        return dict(value)
    if issubclass(kind, Sequence | AbstractSet) or (kind.__module__ == "builtins" and issubclass(kind, Collection)):
        return list(value)
    pydantic_core = sys.modules.get("pydantic_core")
    is_file = isinstance(value, IOBase)  # pydantic would consume the iterator's lines
    if pydantic_core is not None and not is_file:
        with suppress(ValueError):
            if hasattr(value, "__pydantic_core_schema__") and not isinstance(value, type):
                return import_module("millstream._server.functions.core_forms").jsonable(value)
            return pydantic_core.to_jsonable_python(value)
    instead = "use builtins, a dataclass, TypedDict, Struct, or pydantic model"
    if issubclass(kind, Iterator):
        instead = "return what it contains" if is_file else "convert it to a list with list(…)"
    elif issubclass(kind, BaseException):
        instead = "raise it instead of returning it"
    raise NotJson(f"a value of type {kind.__name__} can't be converted to JSON: {instead}")


encode = msgspec.json.Encoder(enc_hook=enc_hook).encode


def reason(schema: Schema, value: Any, otherwise: str) -> str:
    """Return why a JSON value doesn't match a schema, or the words of the library that refused it."""
    found = find_problems(schema, value, matches=search)
    return problem_text(found, whole="it") if found else otherwise


def output_error(why: str) -> LocalError:
    """Return the error for a result that doesn't match its schema."""
    return LocalError(f"the result doesn't match the output schema: {why}")


def once_per_type(make: Callable[[Any], R]) -> Callable[[Any], R]:
    """Cache a function's results for the newest types, if they can be hashed, because many functions share a type.

    Equal types that are written differently, such as ``int | str`` and ``str | int``, have separate entries, because
    the order is visible in their schemas.
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


_IMMUTABLE = (str, int, float, bool, bytes, type(None))
"""Types of immutable defaults. Other defaults are copied per call."""


def dec_hook(kind: Any, value: Any) -> Any:
    """Return the path for a JSON value.

    Raises:
        ValueError: The value isn't a path.
        TypeError: The class isn't supported, for example that of a member that must be absent.
    """
    if not issubclass(kind, PurePath):
        raise TypeError(f"{kind.__name__} can't be read from JSON")
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("must be a path as a string")
    return Path(value) if kind is Path else kind(value)


def find_fields(kind: Any) -> Any:
    """Return how msgspec reads a class: its fields, its tag, and whether it's an array.

    Raises:
        TypeError: A class in it isn't supported. msgspec would leave it to `dec_hook`.
    """
    info: Any = msgspec.inspect.type_info(kind)
    pending: list[Any] = [info]
    seen = set[int]()
    while pending:
        node = pending.pop()
        if isinstance(node, msgspec.inspect.CustomType):
            cls: type = node.cls  # pyright: ignore[reportUnknownMemberType]  it's a bare `type` there
            if not issubclass(cls, PurePath):
                raise TypeError(f"{cls.__name__} isn't supported")
        elif isinstance(node, tuple):
            pending += node
        elif isinstance(node, msgspec.inspect.Type | msgspec.inspect.Field) and id(node) not in seen:
            seen.add(id(node))
            pending += [getattr(node, name) for name in node.__struct_fields__]
    return info


def check_readable(schema: Schema, definitions: Schema) -> None:
    """Refuse the schema of a Struct that lists values which msgspec refuses.

    Raises:
        PatternError: It has a pattern.
        RegistrationError: It has alternatives that msgspec reads as one.
    """
    pending, seen = [schema], set[str]()
    for node in chain.from_iterable(map(walk, pending)):
        check_no_pattern(node)
        if (name := node.get("$ref", "").removeprefix(REF)) and name not in seen:
            seen.add(name)
            pending.append(definitions[name])
        limits: dict[str, list[bool]] = {}
        for part in node.get("anyOf", ()):
            for kind in {part["type"]} if "type" in part else {*map(kind_of, choices_of(part))}:
                name = "number" if kind == "integer" else kind
                limits.setdefault(name, []).append(not part.keys() <= _UNLIMITED)
        for name in ("string", "number"):
            if len(found := limits.get(name, [])) > 1 and any(found):
                raise RegistrationError(
                    f"msgspec reads alternatives of a union in a Struct as one, if each is {words(name)}, with the "
                    "limits of both. Use a dataclass instead of the Struct"
                )


_UNLIMITED = frozenset(("type", "title", "description", "default", "examples"))


class Engine(Protocol):
    """Reads a function's arguments and encodes its results."""

    input_schema: Schema
    """The schema of the arguments, an object."""
    struct: type[Struct]
    """The class of decoded arguments, with a member per parameter, in order."""
    reads_all: bool = False
    """Whether `decode` reads each text in the arguments. Types with members of their own ignore unknown ones."""
    output: Output | None = None
    """The output schema and encoder, if the result is structured."""
    write: Callable[[Any], Any] | None = None
    """Returns a result as its annotation's serializer writes it, if there's one and the result isn't structured."""
    decode: Callable[[Any], Any]
    """Decodes JSON arguments to `struct`. It raises msgspec.DecodeError."""

    def convert(self, values: Json) -> Any:
        """Return a `struct` from JSON values.

        Args:
            values: Values by their names for clients.

        Raises:
            msgspec.ValidationError: The values don't match the types.
        """
        ...

    def problems(self, error: Exception, values: Any) -> list[Problem]:
        """Return the problems of JSON values, at least one.

        Args:
            error: The error of `decode` or `convert`.
            values: The rejected values.
        """
        return find_problems(self.input_schema, values, matches=search) or [engine_problem(error)]


_READ_WHOLE = (str, int, float, bool, list, dict, type(None), Union, UnionType)


class MsgspecEngine(Engine):
    """The engine of functions with simple types only.

    Raises:
        TypeError, RecursionError, NameError: msgspec doesn't support a type.
        RegistrationError: A default doesn't match its type.
    """

    def __init__(self, arguments: ArgumentList, schema: Schema) -> None:
        self.reads_all = arguments.closed and all(
            isinstance(kind, Meta) or kind in _READ_WHOLE
            for each in arguments.parameters
            for _, kind in parts_of(each.annotation)
        )
        self.struct = _struct_of(arguments)
        self.decode = msgspec.json.Decoder(self.struct, dec_hook=dec_hook).decode
        self.input_schema = schema

    @override
    def convert(self, values: Json) -> Any:
        """See `Engine`."""
        return msgspec.convert(values, self.struct, dec_hook=dec_hook, str_keys=True)


def _struct_of(arguments: ArgumentList) -> type[Struct]:
    """Return the struct that arguments are decoded into, in the order of the signature."""
    members: list[Any] = []
    for parameter in arguments.parameters:
        options: dict[str, Any] = {"name": parameter.wire}
        if isinstance(parameter.default, _IMMUTABLE):
            options["default"] = parameter.default
        elif parameter.default is not NODEFAULT:
            options["default_factory"] = functools.partial(_copy_mutable, parameter.default)
        members.append((parameter.name, parameter.annotation, msgspec.field(**options)))
    # The struct exists for one call and is in no reference cycle.
    return msgspec.defstruct(
        arguments.function, members, kw_only=True, gc=False, forbid_unknown_fields=arguments.closed
    )


def _copy_mutable(default: Any) -> Any:
    """Return the default for one call: a copy, unless it's hashable, because it may be a sentinel, which is compared by
    identity."""
    try:
        hash(default)
    except TypeError:
        return copy.deepcopy(default)
    return default


def checked_encoder(annotation: Any, schema: Schema) -> Callable[[Any], bytes]:
    """Return an encoder that validates its output by decoding it."""
    decode = msgspec.json.Decoder(annotation, dec_hook=dec_hook).decode
    # Values of such a class aren't decoded again, because it validates itself or decoding has side effects.
    self_validating = annotation if hasattr(annotation, "__post_init__") else None
    can_be_null = any("null" in _kinds(each) for each in walk(schema))  # as which NaN is encoded

    def encode_checked(value: Any) -> bytes:
        data = encode(value)
        if type(value) is not self_validating:
            try:
                decode(data)
            except (msgspec.ValidationError, ValueError) as error:
                unwritable = b"null" in data and has_no_number(msgspec.to_builtins(value, enc_hook=enc_hook))
                why = reason(schema, msgspec.json.decode(data), str(error))
                raise output_error(f"{NO_NUMBER}: {why}" if unwritable else why) from None
        if can_be_null and b"null" in data:
            check_numbers(schema, msgspec.to_builtins(value, enc_hook=enc_hook))
        return data

    return encode_checked


def check_numbers(schema: Schema, value: Any) -> None:
    """Refuse NaN and infinite numbers that a schema describes. It needs the value before it's JSON.

    Raises:
        LocalError: There's one.
    """
    if has_no_number(value) and find_problems(schema, _mark_numbers(value), steps=inf, first=True):
        raise output_error(NO_NUMBER)


def _mark_numbers(value: Any) -> Any:
    """Return a value in which a tuple, which is of no JSON type, replaces NaN and infinite numbers."""
    if isinstance(value, float) and not isfinite(value):
        return ()
    if is_object(value):
        return {key: _mark_numbers(each) for key, each in value.items()}
    return [*map(_mark_numbers, value)] if is_array(value) else value
