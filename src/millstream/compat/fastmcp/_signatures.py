"""Signatures as pydantic reads them: a model of the arguments, a model of the result, and what is injected.

Arguments are read leniently, as the other libraries do: JSON text for what isn't text, numbers as text, and unknown
names are ignored or refused by the library's ways.
"""

import functools
import inspect
import json
import math
import typing
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import count
from typing import Annotated, Any, get_args, get_origin

from msgspec import Struct

from millstream._protocol.json_schema import is_array, is_object
from millstream._server.functions.docstrings import describe
from millstream.compat._pydantic_parts import (
    BaseModel,
    ConfigDict,
    Field,
    FieldInfo,
    WithJsonSchema,
    create_model,
    to_json,
)
from millstream.compat.fastmcp._exceptions import InvalidSignature
from millstream.compat.fastmcp._injection import Injected, injected_default, is_context
from millstream.compat.fastmcp._resolving import check_resolvers
from millstream.compat.fastmcp._ways import Ways

_ARGUMENTS = ConfigDict(arbitrary_types_allowed=True)
_CLOSED = ConfigDict(arbitrary_types_allowed=True, extra="forbid")


class Signature(Struct, frozen=True):
    """How one function is called."""

    function: Callable[..., Any]
    name: str
    description: str
    model: type[BaseModel]
    names: dict[str, str]
    """Field of the model -> parameter of the function."""
    context: str | None
    injected: dict[str, Injected]
    returns: Any
    """The return annotation; `inspect.Signature.empty` for none."""
    schema: dict[str, Any]
    """JSON Schema of the arguments."""

    opens_json: bool = True

    def read(self, arguments: Mapping[str, Any], *, strict: bool = False) -> dict[str, Any]:
        """Keyword arguments of the function.

        Args:
            arguments: as they came.
            strict: JSON types have to be the right ones: no numbers as text.

        Raises:
            pydantic.ValidationError: they are wrong.
        """
        if strict:
            values = self.model.model_validate_json(to_json(dict(arguments)), strict=True)
        else:
            given = opened(self.model.model_fields, arguments) if self.opens_json else arguments
            values = self.model.model_validate(given)
        return {parameter: getattr(values, field) for field, parameter in self.names.items()}


def opened(fields: Mapping[str, FieldInfo], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments, where JSON that came as text is what it says: some hosts send lists and objects so."""
    by_key = {**{info.alias: info for info in fields.values() if info.alias}, **fields}
    opened = dict(arguments)
    for key, value in arguments.items():
        info = by_key.get(key)
        if isinstance(value, str) and info is not None and info.annotation is not str:
            try:
                found = json.loads(value)
            except ValueError:
                continue
            if not isinstance(found, str | int | float):
                opened[key] = found
    return opened


def signature_of(
    function: Callable[..., Any], ways: Ways, *, name: str | None = None, hidden: Sequence[str] = ()
) -> Signature:
    """Read a function once.

    Args:
        function: the function.
        ways: of the library.
        name: instead of the function's own.
        hidden: parameters that always have their default: no client sees or sends them.

    Raises:
        InvalidSignature: an annotation cannot be resolved, or a parameter has a name that pydantic cannot have.
        ValueError: parameters that cannot be sent or hidden, or a lambda without a name.
    """
    called = _callable(function)
    own = name or _name_of(function)
    if own == "<lambda>":
        raise ValueError("You must provide a name for lambda functions")
    try:
        signature = inspect.signature(called, eval_str=True)
    except NameError as error:
        raise InvalidSignature(f"Unable to evaluate type annotations for callable {own!r}") from error
    context = next((each.name for each in signature.parameters.values() if is_context(each.annotation)), None)
    injected = {
        each.name: made
        for each in signature.parameters.values()
        if each.name != context and (made := injected_default(each)) is not None
    } | _hidden(signature, hidden)
    text, texts = ("", {}) if ways.titles else _described(function, called)
    fields: dict[str, Any] = {}
    names: dict[str, str] = {}
    for parameter in signature.parameters.values():
        if parameter.name == context or parameter.name in injected:
            continue
        field = _field_name(parameter, own, ways)
        names[field] = parameter.name
        fields[field] = _field(parameter, field, texts.get(parameter.name), ways)
    check_resolvers(called, own, injected, names.values())
    model = create_model(f"{own}Arguments", __config__=_CLOSED if ways.closed else _ARGUMENTS, **fields)
    schema = model.model_json_schema(by_alias=True)
    return Signature(
        called,
        own,
        (function.__doc__ or "") if ways.titles else text,
        model,
        names,
        context,
        injected,
        signature.return_annotation,
        schema if ways.titles else inlined(untitled(schema)),
        ways.opens_json,
    )


def _hidden(signature: inspect.Signature, names: Sequence[str]) -> dict[str, Injected]:
    made: dict[str, Injected] = {}
    for name in names:
        parameter = signature.parameters.get(name)
        if parameter is None:
            raise ValueError(f"Parameter {name!r} in exclude_args does not exist in function.")
        if parameter.default is inspect.Parameter.empty:
            raise ValueError(f"Parameter {name!r} in exclude_args must have a default value.")
        made[name] = injected_default(parameter) or Injected(partial(_default_of, parameter.default))
    return made


def _default_of(default: Any) -> Any:
    return default.get_default(call_default_factory=True) if isinstance(default, FieldInfo) else default


def _callable(function: Any) -> Callable[..., Any]:
    if isinstance(function, staticmethod):
        function = function.__func__
    if inspect.isroutine(function) or isinstance(function, functools.partial) or inspect.isclass(function):
        return typing.cast("Callable[..., Any]", function)
    return typing.cast("Callable[..., Any]", function.__call__)


def _name_of(function: Any) -> str:
    while isinstance(function, functools.partial):
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def _described(function: Any, called: Any) -> tuple[str, dict[str, str]]:
    while isinstance(function, functools.partial):  # its own text is that of the class
        function = called = function.func
    outer: Any = function if called is function else typing.cast("object", type(function))
    text, texts = describe(called)
    return (inspect.cleandoc(outer.__doc__ or "") if outer is not called else text) or text, texts


def _field_name(parameter: inspect.Parameter, name: str, ways: Ways) -> str:
    if parameter.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD) and not ways.titles:
        stars = "*args" if parameter.kind is inspect.Parameter.VAR_POSITIONAL else "**kwargs"
        raise ValueError(f"Functions with {stars} are not supported as tools")
    if parameter.name.startswith("_"):
        raise InvalidSignature(f"Parameter {parameter.name} of {name} cannot start with '_'")
    return f"field_{parameter.name}" if hasattr(BaseModel, parameter.name) else parameter.name


def _field(parameter: inspect.Parameter, field: str, text: str | None, ways: Ways) -> Any:
    annotation: Any = Any if parameter.annotation is inspect.Parameter.empty else parameter.annotation
    about: list[Any] = []
    if parameter.annotation is inspect.Parameter.empty and ways.titles:
        about.append(WithJsonSchema({"title": parameter.name, "type": "string"}))
    if get_origin(annotation) is Annotated and isinstance(get_args(annotation)[1], str):
        text = get_args(annotation)[1]  # fastmcp takes a bare text for a description
    keywords: dict[str, Any] = {} if field == parameter.name else {"alias": parameter.name}
    if text is not None and not ways.titles and not _has_description(parameter):
        about.append(Field(description=text, **keywords))
    else:
        about.append(Field(**keywords))
    made: Any = Annotated[(annotation, *about)]
    return made if parameter.default is inspect.Parameter.empty else (made, parameter.default)


def _has_description(parameter: inspect.Parameter) -> bool:
    said = [*get_args(parameter.annotation)[1:], parameter.default]
    return any(isinstance(each, FieldInfo) and each.description for each in said)


def untitled(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema without the titles that follow from names, and with the definitions it uses."""

    def strip(node: Any, name: str = "") -> Any:
        if is_array(node):
            return [strip(each) for each in node]
        if not is_object(node):
            return node
        kept: dict[str, Any] = {}
        for key, value in node.items():
            if key in ("properties", "$defs") and is_object(value):
                kept[key] = {each: strip(inner, each) for each, inner in value.items()}
            elif key == "title" and isinstance(value, str) and _follows(value, name):
                continue
            elif key in ("default", "const", "enum", "examples"):
                kept[key] = value
            else:
                kept[key] = strip(value)
        return kept

    made: dict[str, Any] = strip({key: value for key, value in schema.items() if key != "title"})
    return made


def _follows(title: str, name: str) -> bool:
    return not name or title in (name, name.title().replace("_", " ").strip())


def inlined(schema: dict[str, Any], *, most: float = math.inf) -> dict[str, Any]:
    """A schema whose definitions stand where they are used; one that contains itself stays a definition.

    Args:
        schema: that.
        most: parts of the result; a schema that would have more stays as it is.
    """
    definitions: dict[str, Any] = schema.get("$defs", {})
    kept: dict[str, Any] = {}
    parts = count(1)

    def put(node: Any, inside: tuple[str, ...]) -> Any:
        if next(parts) > most:
            raise OverflowError
        if is_array(node):
            return [put(each, inside) for each in node]
        if not is_object(node):
            return node
        name = str(node.get("$ref", "")).rpartition("/")[2]
        if name in definitions:
            if name in inside:
                kept[name] = definitions[name]
                return node
            rest = {key: value for key, value in node.items() if key != "$ref"}
            return {**put(definitions[name], (*inside, name)), **rest}
        return {key: put(value, inside) for key, value in node.items() if key != "$defs" or inside}

    try:
        made: dict[str, Any] = put({key: value for key, value in schema.items() if key != "$defs"}, ())
    except OverflowError:
        return schema
    return {**made, "$defs": definitions} if kept else made
