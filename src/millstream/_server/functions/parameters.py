"""Parameters that clients fill in, their annotations, and the rules for their schemas in tools, resources, and prompts.

Problems of a parameter are found at registration, here or by the engine. The message shows the parameter and a
replacement. This module doesn't import pydantic, because a program that uses pydantic has already imported it.
"""

import collections
import collections.abc
import inspect
import re
import sys
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import is_dataclass
from decimal import Decimal
from enum import Enum
from functools import partial
from importlib import import_module
from types import GenericAlias, NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Final,
    ForwardRef,
    Literal,
    LiteralString,
    NewType,
    Self,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from msgspec import NODEFAULT, UNSET, Meta, Struct

from millstream._protocol.json_schema import (
    Schema,
    drop_null,
    is_object,
    members,
    type_text,
)
from millstream._server.functions.dependencies import (
    FUNCTIONS,
    Dependency,
    RegistrationError,
    describe_function,
    name_of,
)
from millstream._server.functions.description import CONSTRAINTS, HEADER_KEYWORD, constraint_text

Metadata = tuple[Any, ...]
"""The metadata that an ``Annotated`` adds to a type."""
UNIONS = (Union, UnionType)
COLLECTIONS: tuple[Any, ...] = (list, set, frozenset, tuple, dict)
"""Collections after `normalize`, except for those that only pydantic reads."""
ITERATORS: tuple[Any, ...] = (collections.abc.Iterable, collections.abc.Iterator, collections.abc.Generator)
_READ_AS: Mapping[Any, Any] = {
    **{getattr(collections.abc, name): list for name in ("Iterable", "Collection", "Sequence", "MutableSequence")},
    **dict.fromkeys((collections.abc.Set, collections.abc.MutableSet), set),
    **dict.fromkeys((collections.abc.Mapping, collections.abc.MutableMapping), dict),
}
_WRITTEN_AS: Mapping[Any, Any] = {
    **_READ_AS,
    **dict.fromkeys((*ITERATORS, collections.deque), list),
    **dict.fromkeys((collections.OrderedDict, collections.defaultdict), dict),
    **dict.fromkeys((collections.Counter, collections.ChainMap), dict),
}
_NO_KEYS = (bool, NoneType, list, tuple, set, frozenset, dict)
"""Types that can't be keys of a JSON object."""
_TEXTS = ("title", "description", "examples", "extra_json_schema", "extra")
_NUMBERS = (int, float, Decimal)
_BUILTINS = (str, int, float, bool, bytes, list, dict, set, frozenset, tuple, Decimal)
_PYDANTIC = ("pydantic", "pydantic_core", "pydantic_extra_types", "annotated_types")
_PYDANTIC_MARKS = ("__get_pydantic_core_schema__", "__pydantic_validator__", "__pydantic_config__")


def may_be_type(annotation: Any) -> bool:
    """Return whether an annotation could be a type. A plain value, such as a list or a number, is a mistake."""
    return type(annotation) is not object and not isinstance(
        annotation, list | dict | tuple | set | frozenset | int | float | bytes
    )


def what_to_write(value: object) -> str:
    """Suggest a type to write in place of a value."""
    kind = type(value)
    parts = list(cast("Iterable[object]", value)) if isinstance(value, list | tuple | set | frozenset) else []
    types = [each for each in parts if each is None or isinstance(each, type | GenericAlias | UnionType)]
    if kind is list and len(types) == len(parts):
        return f"it isn't a type. For a list, write list[{' | '.join(map(type_text, types)) or 'str'}]"
    if types and len(types) == len(parts):
        return f"it isn't a type. For a value of one of these types, write {' | '.join(map(type_text, types))}"
    if parts and not types:
        choices = ", ".join(map(repr, parts))
        return f"it isn't a type. For one of these values, write Literal[{choices}]"
    if isinstance(value, dict):
        return "it isn't a type. Write a dataclass, TypedDict, or pydantic model with these fields"
    if value is None:
        return "it isn't a type. To let the user confirm, write bool"
    if kind in _BUILTINS and not parts:
        return f"it isn't a type. Write {kind.__name__}, or Literal[{value!r}] for this value alone"
    return "it isn't a type. Write a type, such as str or a dataclass"


def unwrap_alias(annotation: Any) -> Any:
    """Return the target of an outermost `NewType`, `Final`, or alias (``type Age = int``, PEP 695)."""
    while True:
        if get_origin(annotation) is Final:
            (annotation,) = get_args(annotation)
        elif isinstance(annotation, NewType):
            annotation = annotation.__supertype__
        elif is_alias(annotation):
            annotation = resolve_alias(annotation)
        else:
            return annotation


def is_alias(annotation: Any) -> bool:
    """Return whether an annotation is an alias of a ``type`` statement, with or without parameters."""
    return type(get_origin(annotation) or annotation).__name__ == "TypeAliasType"


def resolve_alias(annotation: Any) -> Any:
    """Return the target of an alias."""
    alias, parts = get_origin(annotation) or annotation, get_args(annotation)
    value = alias.__value__
    if isinstance(value, str):  # the form for recursive aliases in pydantic's documentation
        holder = type(alias.__name__, (), {"__annotations__": {"value": value}, "__module__": alias.__module__})
        value = get_type_hints(holder, include_extras=True)["value"]
    return value[parts] if parts else value


class RecursiveAlias(type):
    """The class of placeholders for a recursive alias inside itself, such as ``Json`` in ``list[Json]``.

    Python has no type for it. `target` is the alias.
    """

    target: Any


def _close(
    alias: Any, inside: Mapping[Any, RecursiveAlias], read: Callable[[Mapping[Any, RecursiveAlias]], Any]
) -> Any:
    """Return the target of an alias, or its placeholder inside itself."""
    if alias in inside:
        return inside[alias]
    stand_in = RecursiveAlias(re.sub(r"\W+", "_", str(alias)).strip("_"), (), {})
    stand_in.target = read({**inside, alias: stand_in})
    return stand_in.target


def close_alias(annotation: Any, namespace: Mapping[str, Any], inside: Mapping[Any, RecursiveAlias] = {}) -> Any:
    """Return an annotation with its names resolved, in which aliases may refer to themselves.

    ``Json = dict[str, "Json"] | list["Json"] | str`` does so before Python 3.12.

    Args:
        annotation: The annotation, as it's written.
        namespace: The names of its module.
        inside: The aliases that contain it, each with its placeholder.

    Raises:
        NameError: A name doesn't exist.
    """
    name = annotation.__forward_arg__ if isinstance(annotation, ForwardRef) else annotation
    if isinstance(name, str):
        value = eval(name, dict(namespace))  # noqa: S307  an annotation of the program
        return value if isinstance(value, type) else _close(name, inside, partial(close_alias, value, namespace))
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is None or origin is Literal or not any(map(_has_names, parts)):
        return annotation
    if not inside:  # check whether it's an alias itself
        for each in _names_in(annotation):
            if namespace.get(each) == annotation:
                return _close(each, inside, partial(close_alias, annotation, namespace))
    if origin is Annotated:
        return Annotated[close_alias(parts[0], namespace, inside), *parts[1:]]
    closed = [close_alias(part, namespace, inside) for part in parts]
    return union_of(closed) if origin in UNIONS else origin[*closed]


def _names_in(annotation: Any) -> Iterator[str]:
    if isinstance(annotation, str | ForwardRef):
        yield annotation if isinstance(annotation, str) else annotation.__forward_arg__
    elif get_origin(annotation) is not Literal:
        parts = get_args(annotation)
        for part in parts[:1] if get_origin(annotation) is Annotated else parts:
            yield from _names_in(part)


def _has_names(annotation: Any) -> bool:
    return any(_names_in(annotation))


def refers_to_names(annotation: Any) -> bool:
    """Return whether a resolved annotation still contains names, as the annotations of recursive aliases do."""
    return not isinstance(annotation, str) and _has_names(annotation)


def has_fields(kind: Any) -> bool:
    """Return whether a class is a dataclass, TypedDict, NamedTuple, or Struct."""
    marked = is_dataclass(kind) or hasattr(kind, "__total__") or hasattr(kind, "_fields")
    return isinstance(kind, type) and (marked or issubclass(kind, Struct))


def split_annotation(annotation: Any) -> tuple[Any, Metadata]:
    """Return the type and metadata of the outermost ``Annotated``, with aliases resolved."""
    annotation = unwrap_alias(annotation)
    if get_origin(annotation) is Annotated:
        return get_args(annotation)[0], get_args(annotation)[1:]
    return annotation, ()


def join_annotation(annotation: Any, metadata: Metadata) -> Any:
    """Return a type with metadata. The reverse of `split_annotation`."""
    return Annotated[annotation, *metadata] if metadata else annotation


def normalize(annotation: Any, *, received: bool = False, inside: Mapping[Any, RecursiveAlias] = {}) -> Any:
    """Return an annotation in the form that engines read.

    `object` and pydantic's `JsonValue` mean anything, a string in ``Annotated`` is a description, and our bounds on a
    union go to the members that they fit.

    Args:
        received: Whether clients send the value. An `Iterable` then arrives as a list, so its items are checked before
            the function runs.
        inside: The aliases that contain it, each with its placeholder.

    Raises:
        RegistrationError: A bound doesn't apply to the type.
        TypeError: Clients can't send a value of the type.
    """
    normalize_part: Callable[..., Any] = partial(normalize, received=received, inside=inside)
    if _is_json_value(annotation):
        return Any
    if is_alias(annotation):  # PEP 695
        target = resolve_alias(annotation)
        return _close(annotation, inside, lambda inside: normalize(target, received=received, inside=inside))
    annotation, metadata = split_annotation(annotation)
    annotation = (_receive if received else _as_builtin)(_replace(annotation))
    texts = (each if isinstance(each, str) else getattr(each, "documentation", None) for each in metadata)  # `Doc`
    metadata = tuple(
        Meta(description=text) if isinstance(text, str) else each for each, text in zip(metadata, texts, strict=True)
    )
    origin = get_origin(annotation)
    if origin in UNIONS:
        members = [normalize_part(part) for part in get_args(annotation)]
        for meta in metadata:
            members = _distribute_bounds(members, meta)
        annotation = union_of(members)
        metadata = tuple(
            Meta(**{name: getattr(each, name) for name in _TEXTS}) if isinstance(each, Meta) else each
            for each in metadata
        )
    elif origin in COLLECTIONS or origin in _WRITTEN_AS:
        parts = [part if part is ... else normalize_part(part) for part in get_args(annotation)]
        annotation = origin[*parts] if hasattr(annotation, "__args__") else origin  # such as `List`
    if annotation in _BUILTINS:
        for meta in metadata:
            _distribute_bounds([annotation], meta)
    return join_annotation(annotation, metadata)


def _replace(annotation: Any) -> Any:
    """Return the type that stands for an annotation such as `object` or a type variable."""
    if annotation is object:
        return Any
    if annotation is LiteralString:
        return str
    if not isinstance(annotation, TypeVar):
        return annotation
    if annotation.__constraints__:
        return union_of([*annotation.__constraints__])
    has_default: Any = getattr(annotation, "has_default", None)  # from Python 3.13
    default = getattr(annotation, "__default__", Any) if has_default and has_default() else Any
    return getattr(annotation, "__bound__", None) or default


def _receive(annotation: Any) -> Any:
    kind, parts = get_origin(annotation) or annotation, get_args(annotation)
    if kind is type or kind is Callable:
        raise TypeError(f"clients can't send a {'class' if kind is type else 'function'}")
    if isinstance(kind, FUNCTIONS):
        raise RegistrationError(describe_function(kind))
    if annotation is Self:
        raise TypeError("Self isn't known outside a class. Write the class name")
    if isinstance(kind, type) and issubclass(kind, collections.abc.Mapping) and parts:
        key = split_annotation(parts[0])[0]
        if (get_origin(key) or key) in _NO_KEYS or has_fields(key):
            raise TypeError(f"clients can't send {type_text(annotation)}, because the names of JSON objects are text")
    return _as_builtin(annotation, _READ_AS)


def _as_builtin(annotation: Any, kinds: Mapping[Any, Any] = _WRITTEN_AS) -> Any:
    """Return the builtin type that replaces a collection type, or any other annotation unchanged."""
    kind, parts = get_origin(annotation) or annotation, get_args(annotation)
    written: Any = kinds.get(kind) if isinstance(kind, Hashable) else None
    if written is None:
        return annotation
    if kind is collections.abc.Generator:
        parts = parts[:1]
    return written[(*parts, int) if kind is collections.Counter else parts] if parts else written


def _is_json_value(annotation: Any) -> bool:
    return (
        type(annotation).__name__ == "TypeAliasType"
        and annotation.__name__ == "JsonValue"
        and annotation.__module__.partition(".")[0] == "pydantic"
    )


def union_of(members: list[Any]) -> Any:
    """Return the union of types."""
    union: Any = Union
    return union[tuple(members)]


def _distribute_bounds(members: list[Any], meta: Any) -> list[Any]:
    """Put the bounds of our `Field` on the union members that they fit."""
    bounds = {name: value for name in CONSTRAINTS if (value := getattr(meta, name, None)) is not None}
    if not isinstance(meta, Meta) or not bounds:
        return members
    fitting = [_makes_sense(bounds, member) for member in members]
    if not any(fitting):
        raise RegistrationError(
            f"{constraint_text(meta)} doesn't apply to any of the types {' | '.join(map(type_text, members))}"
        )
    return [
        Annotated[member, Meta(**bounds)] if fits else member for member, fits in zip(members, fitting, strict=True)
    ]


def _makes_sense(bounds: Mapping[str, Any], member: Any) -> bool:
    kind: Any = split_annotation(member)[0]
    kind = get_origin(kind) or kind
    if not isinstance(kind, type) or kind is NoneType:
        return False
    if "pattern" in bounds:
        return kind is str
    if "min_length" in bounds or "max_length" in bounds:
        return issubclass(kind, collections.abc.Sized)
    return kind in _NUMBERS


def default_in(metadata: Metadata) -> Any:
    """Return the default in our `Field`, or `NODEFAULT`. A default in ``pydantic.Field`` stays there."""
    given = [(each.extra or {}).get("default", NODEFAULT) for each in metadata if isinstance(each, Meta)]
    return next((each for each in given if each is not NODEFAULT), NODEFAULT)


def alias_in(metadata: Metadata) -> str | None:
    """Return the alias in ``pydantic.Field``.

    Raises:
        TypeError: The alias isn't a name.
    """
    for item in metadata:
        if is_pydantic_field(item):
            alias = item.validation_alias if item.validation_alias is not None else item.alias
            if isinstance(alias, str):
                return alias
            if alias is not None:
                raise TypeError("an alias must be one name, not a path or choices")
    return None


def is_pydantic_field(item: Any) -> bool:
    """Return whether an object is a ``pydantic.Field``."""
    fields = sys.modules.get("pydantic.fields")  # pydantic loads it with the first field.
    return fields is not None and isinstance(item, fields.FieldInfo)


def is_struct(kind: Any) -> bool:
    """Return whether only msgspec reads a class."""
    known = hasattr(kind, "__attrs_attrs__") or kind in (bytearray, memoryview)
    return isinstance(kind, type) and (known or issubclass(kind, Struct))


def is_tagged(kind: Any) -> bool:
    """Return whether a class is a Struct with a tag, by which msgspec finds it in a union."""
    return isinstance(kind, type) and issubclass(kind, Struct) and kind.__struct_config__.tag is not None


def is_simple(annotation: Any) -> bool:
    """Return whether msgspec reads a type exactly as pydantic does, which tests prove, or alone.

    That's `str`, `int`, `float`, `bool`, and lists and dicts of these, each with our bounds or with None, and Structs
    of types that msgspec reads exactly and quickly.
    """
    annotation, metadata = split_annotation(annotation)
    kind, parts = get_origin(annotation) or annotation, get_args(annotation)
    if not all(isinstance(each, Meta) and each.pattern is None for each in metadata):
        return False
    if kind in UNIONS:
        return len(parts) == 2 and NoneType in parts and all(map(is_simple, parts))
    if kind in (list, dict):
        return (kind is list or parts[:1] in ((), (str,))) and all(map(is_simple, parts))
    return kind in _SIMPLE or (is_struct(kind) and not any(map(_is_checked, parts_of(annotation))))


def _is_checked(part: tuple[Any, Any]) -> bool:
    """Return whether a class is pydantic's, is a number for which Python accepts more text, or is slow to build."""
    return part[1] in _CHECKED or is_pydantic(part[1])


_SIMPLE = (str, int, float, bool, NoneType, Any)
_CHECKED = (Decimal, set, frozenset, collections.abc.Set, collections.abc.MutableSet)


def is_pydantic(item: Any) -> bool:
    """Return whether a class or a value in ``Annotated`` is pydantic's, or made for it."""
    home = (item if isinstance(item, type) else type(item)).__module__.partition(".")[0]
    return home in _PYDANTIC or any(hasattr(item, mark) for mark in _PYDANTIC_MARKS)


def is_pydantics(kind: type) -> bool:
    """Return whether a class is pydantic's, or has pydantic validators or configuration."""
    return is_pydantic(kind) or any(map(is_pydantic, members_of(kind)))


VALIDATORS = frozenset(("function-before", "function-after", "function-wrap", "function-plain"))
"""Types of core schemas with a function."""


def is_programs(function: Any) -> bool:
    """Return whether the program wrote a function in a core schema."""
    module = getattr(getattr(function, "func", function), "__module__", None) or ""
    return not module.startswith(("pydantic.", "pydantic_core.", "millstream."))


def has_validators(node: Any) -> bool:
    """Return whether a core schema runs the program's own validators."""
    if is_object(node):
        if node.get("type") in VALIDATORS and is_programs(members(node["function"]).get("function")):
            return True
        return any(map(has_validators, node.values()))
    return isinstance(node, list | tuple) and any(map(has_validators, cast("list[Any]", node)))


def members_of(kind: type) -> list[Any]:
    """Return the values in the bodies of a class and its bases."""
    return [value for each in kind.__mro__ for value in vars(each).values()]


def parts_of(annotation: Any, holder: Any = None, seen: set[Any] | None = None) -> Iterator[tuple[Any, Any]]:
    """Yield the classes in a type and their ``Annotated`` metadata, each with the class that has it in a field."""
    seen = set() if seen is None else seen
    alias = (get_origin(annotation) or annotation) if is_alias(annotation) else None
    if alias is not None and alias in seen:  # the type refers to itself
        for part in get_args(annotation):
            yield from parts_of(part, holder, seen)
        return
    seen.add(alias)
    annotation = unwrap_alias(annotation)
    kind, parts = get_origin(annotation) or annotation, get_args(annotation)
    if kind is Literal:
        return
    if kind is Annotated:
        yield from ((holder, item) for item in parts[1:])
        parts = parts[:1]
    for part in parts:
        yield from parts_of(part, holder, seen)
    if isinstance(kind, type) and kind not in seen:
        seen.add(kind)
        yield holder, kind
        for hint, items in _fields_of(kind):
            yield from ((kind, item) for item in items)
            yield from parts_of(hint, kind, seen)


def choice_value(choice: Any) -> Any:
    """Return the JSON of a choice."""
    value = choice.value if isinstance(choice, Enum) else choice
    if isinstance(value, str | int | float | None):
        return value
    return import_module("pydantic_core").to_jsonable_python(value, serialize_unknown=True)


def attributes_in(annotation: Any) -> Iterator[tuple[type, Any]]:
    """Yield the attributes of the attrs classes in a type, each with its class."""
    for _, kind in parts_of(annotation):
        yield from ((kind, each) for each in getattr(kind, "__attrs_attrs__", ()))


def _fields_of(kind: Any) -> Iterator[tuple[Any, list[Any]]]:
    """Yield the type of each field in a class, with its other values."""
    if hasattr(kind, "__pydantic_fields__"):
        for info in kind.__pydantic_fields__.values():
            yield info.annotation, [*info.metadata, info.default]
    elif has_fields(kind) or hasattr(kind, "__attrs_attrs__"):
        try:
            hints = get_type_hints(kind, include_extras=True)
        except NameError:
            return  # for a class inside a function: the engine reports it
        yield None, members_of(kind)  # defaults, `field_validator`
        yield from ((hint, []) for hint in hints.values())


Kind = Literal["tool", "resource", "prompt"]

WHAT_WORKS = (
    "use builtins, dataclasses, TypedDict, msgspec Structs, enums, Literal, Path, unions of these, or pydantic models"
)
_EVALUATING_KEYWORDS = {
    *("patternProperties", "additionalProperties", "$ref", "$dynamicRef", "allOf", "anyOf", "oneOf", "if", "then"),
    *("else", "dependentSchemas"),
}
_CLOSING_KEYWORDS = {"additionalProperties": {"patternProperties"}, "unevaluatedProperties": _EVALUATING_KEYWORDS}
"""Keywords that exclude unlisted properties if they're false, and the keywords that prevent this."""
TEXT_TYPES = frozenset(("string", "integer", "number", "boolean", "null"))


class Parameter(Struct, frozen=True):
    """A parameter in the form that engines read."""

    name: str
    wire: str
    """The name for clients."""
    annotation: Any
    """The result of `normalize`."""
    default: Any
    """The default, or `NODEFAULT` if the argument is required or ``pydantic.Field`` has the default."""


class ArgumentList(Struct, frozen=True):
    """The properties of a function's arguments that an engine needs."""

    function: str
    """The function's name, for messages."""
    parameters: list[Parameter]
    closed: bool = False
    """Whether unknown arguments are rejected."""
    max_values: int = sys.maxsize
    """Maximum number of values in large arguments, if they're slow to validate."""


class ParameterError(TypeError):
    """No engine supports the parameter. The text identifies it."""


class PatternError(ParameterError):
    """Matching the pattern could take a very long time. The message suggests a replacement."""


def unpack_keywords(signature: inspect.Signature, hints: dict[str, Any]) -> inspect.Signature:
    """Return a signature in which ``**options: Unpack[Options]`` is a keyword for each member of the TypedDict.

    Keywords that needn't be sent have the default `UNSET`. The annotations are added to `hints`.
    """
    others = list(signature.parameters.values())
    if not others or not _is_named(hints.get(others[-1].name), "Unpack"):
        return signature
    last = others.pop()
    (kind,) = get_args(hints[last.name])
    for name, annotation, required in typed_dict_members(kind, hints_in(kind)):
        hints[name] = annotation
        others.append(inspect.Parameter(name, last.KEYWORD_ONLY, default=last.empty if required else UNSET))
    return signature.replace(parameters=others)


def hints_in(kind: Any) -> dict[str, Any]:
    """Return the annotations of a class, which can refer to itself inside a function.

    Raises:
        TypeError: A name in them doesn't exist.
    """
    try:
        return get_type_hints(kind, localns={kind.__name__: kind}, include_extras=True)
    except NameError as error:
        raise TypeError(f"an annotation inside {type_text(kind)} can't be resolved: {error}") from error


def typed_dict_members(kind: Any, hints: Mapping[str, Any]) -> Iterator[tuple[str, Any, bool]]:
    """Yield a TypedDict's members, whose annotations are given: name, type, and whether the member is required.

    With postponed annotations, only the annotations show what `Required` and `NotRequired` mark.
    """
    for name, annotation in hints.items():
        required = name in kind.__required_keys__
        while _is_named(annotation, "Required", "NotRequired", "ReadOnly"):
            required = _is_named(annotation, "Required") or (required and not _is_named(annotation, "NotRequired"))
            (annotation,) = get_args(annotation)  # noqa: PLW2901  what it marks
        yield name, annotation, required


def _is_named(annotation: Any, *names: str) -> bool:
    """Return whether an annotation is one of those forms of `typing` or `typing_extensions`."""
    return getattr(get_origin(annotation), "_name", None) in names


def parameter_of(
    parameter: inspect.Parameter, hints: dict[str, Any], descriptions: dict[str, str], kind: Kind, name: str
) -> Parameter:
    """Return one parameter of a signature.

    Raises:
        TypeError: Clients couldn't fill in the parameter.
    """
    where = f"{name}: parameter {parameter.name!r}"
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        how = "name each one, so clients know what to send"
        if parameter.name in ("args", "kwargs", "kw"):
            how += ". If a decorator made this function, use @functools.wraps(function) in the decorator"
        raise TypeError(f"{where} takes any number of arguments: {how}.")
    hint = hints.get(parameter.name, Any if kind == "tool" else str)
    _check_hint(hint, where, name)
    default = NODEFAULT if parameter.default is parameter.empty or parameter.default is ... else parameter.default
    if isinstance(default, Meta) or is_pydantic_field(default):
        hint, default = Annotated[hint, default], NODEFAULT
    try:
        annotation, metadata = split_annotation(normalize(hint, received=True))
        _check_attributes(annotation)
        wire = alias_in(metadata) or parameter.name
        default = default_in(metadata) if default is NODEFAULT else default
    except RegistrationError as error:
        raise RegistrationError(f"{where}: {error}.") from error
    except TypeError as error:
        raise TypeError(f"{where}: {error}; {WHAT_WORKS}.") from error
    except RecursionError:
        raise TypeError(
            f"{where}: the alias {type_text(hint)} refers to itself. Use a dataclass that refers to itself."
        ) from None
    marks = (item for _, item in parts_of(join_annotation(annotation, metadata)) if isinstance(item, Dependency))
    if mark := next(marks, None) or _dependency_in(default):
        raise RegistrationError(
            f"{where}: clients could send what Depends fills in, because it's inside the "
            f"{'default' if _dependency_in(default) else 'annotation'}. Mark the whole parameter: "
            f"Annotated[TYPE, Depends({name_of(mark.function)})]."
        )
    if default is None:
        annotation, metadata = split_annotation(normalize(join_annotation(annotation | None, metadata), received=True))
    description = descriptions.get(parameter.name)
    if description and not any(isinstance(getattr(each, "description", None), str) for each in metadata):
        metadata = (*metadata, Meta(description=description))
    return Parameter(parameter.name, wire, join_annotation(annotation, metadata), default)


def _dependency_in(default: Any) -> Dependency | None:
    if isinstance(default, Dependency):
        return default
    parts: Iterable[Any] = default.values() if is_object(default) else ()
    if isinstance(default, list | tuple | set | frozenset):
        parts = cast("Iterable[Any]", default)
    return next(filter(None, map(_dependency_in, parts)), None)


def _check_attributes(annotation: Any) -> None:
    for kind, each in attributes_in(annotation):
        if not each.init or each.converter is not None:
            raise RegistrationError(
                f"{kind.__name__}.{each.name} has a converter or init=False, which attrs applies only in its own "
                "__init__. Use a dataclass with __post_init__"
            )


def _check_hint(hint: Any, where: str, name: str) -> None:
    if isinstance(hint, str):
        raise TypeError(f"{where}: the annotation {hint!r} can't be resolved. Import it where {name} is defined.")
    if not may_be_type(hint):
        shown = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", repr(hint))
        raise TypeError(f"{where} is annotated with {shown}: {what_to_write(hint)}.")


def finish_schema(schema: Schema) -> Schema:
    """Complete the schema of arguments, in place. Parameters in headers can't be null, and clients drop tools that
    allow it.
    """
    properties = schema["properties"]
    for name, node in properties.items():
        if HEADER_KEYWORD in node:
            properties[name] = drop_null(node)
    return schema


def check_described(required: list[str], schema: Schema, name: str) -> None:
    """Check that a handwritten schema allows the arguments that a function requires.

    Args:
        required: Names of required arguments.
        schema: The handwritten schema.
        name: The function's name.

    Raises:
        TypeError: The schema excludes a required property.
    """
    closing = [
        key for key, others in _CLOSING_KEYWORDS.items() if schema.get(key) is False and not others & schema.keys()
    ]
    if not closing:
        return
    for wire in required:
        if wire not in schema.get("properties", {}):
            raise TypeError(
                f"{name}: input_schema doesn't allow the property {wire!r}, because {closing[0]} is false, but "
                'the function requires it. Add it to "properties", or give the parameter a default.'
            )


def check_text_arguments(schema: Schema, kind: Kind, name: str) -> None:
    """Check the arguments of prompts and resources, which arrive as strings (or lists, for an exploded URI variable).

    Raises:
        TypeError: A parameter can't be read from text.
    """
    allowed = TEXT_TYPES | {"array"} if kind == "resource" else TEXT_TYPES
    for parameter, node in schema.get("properties", {}).items():
        kinds = {part.get("type", "string" if "enum" in part else None) for part in node.get("anyOf", [node])}
        if node and not kinds <= allowed:
            raise TypeError(
                f"{name}: parameter {parameter!r} of a {kind} arrives as text. Use str, int, float, bool, an "
                "enum, Literal, or a date."
            )
