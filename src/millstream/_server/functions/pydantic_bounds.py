"""Types that pydantic reads, with parts that it would pass over or can't read: bounds of our `Field`, and Structs.

pydantic ignores whatever it doesn't know in ``Annotated``, so a bound would be checked by nobody. Such a type is
refused when it's registered. This module doesn't import pydantic, and only programs that use it load this one.
"""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, cast, get_args, get_origin, get_type_hints

from msgspec import Meta, Struct
from msgspec.structs import fields

from millstream._server.functions.callables import Refused
from millstream._server.functions.fields import CONSTRAINTS, as_written
from millstream._server.functions.stand_ins import has_fields, unaliased


def check_bounds(annotation: Any) -> None:
    """Make sure that pydantic sees every bound in a type; those around fields are translated for it.

    Raises:
        Refused: a field has one of ours, or our `Field` for its default.
    """
    for field, item in _parts(annotation, "", set()):
        if field and isinstance(item, Meta) and any(getattr(item, name) is not None for name in CONSTRAINTS):
            raise Refused(
                f"pydantic checks {field}, and passes over millstream's {as_written(item)}: write "
                f"pydantic.{as_written(item)} there"
            )


def struct_in(annotation: Any) -> type[Struct] | None:
    """A Struct that a type is or holds."""
    kinds = (item for _, item in _parts(annotation, "", set()) if isinstance(item, type))
    return next((kind for kind in kinds if issubclass(kind, Struct)), None)


def _parts(annotation: Any, field: str, seen: set[Any]) -> Iterator[tuple[str, Any]]:
    """The classes in a type and what ``Annotated`` says of them, each with the field that it belongs to."""
    annotation = unaliased(annotation)
    kind, parts = get_origin(annotation) or annotation, get_args(annotation)
    if kind is Literal:
        return
    if kind is Annotated:
        yield from ((field, item) for item in parts[1:])
        parts = parts[:1]
    for part in parts:
        yield from _parts(part, field, seen)
    if isinstance(kind, type) and kind not in seen:
        seen.add(kind)
        yield field, kind
        for name, hint, items in _fields_of(kind):
            yield from ((f"{kind.__name__}.{name}", item) for item in items)
            yield from _parts(hint, f"{kind.__name__}.{name}", seen)


def _fields_of(kind: Any) -> Iterator[tuple[str, Any, list[Any]]]:
    """Name, type, and what pydantic keeps beside the type of each field of a model or a class that has some."""
    if hasattr(kind, "__pydantic_fields__"):
        for name, info in kind.__pydantic_fields__.items():
            if isinstance(info.default, Meta):
                what = as_written(info.default)
                raise Refused(
                    f"the default of {kind.__name__}.{name} is millstream's {what}, which pydantic doesn't know: "
                    f"write pydantic.{what}"
                )
            yield name, info.annotation, info.metadata
    elif has_fields(kind):
        own = cast("Mapping[str, Any]", vars(kind))
        try:
            hints = get_type_hints(kind, include_extras=True)
        except NameError:
            return  # of a class inside a function; pydantic has resolved its names, or says so in its own words
        defaults = {each.name: each.default for each in fields(kind)} if issubclass(kind, Struct) else own
        for name, hint in hints.items():
            default = defaults.get(name)
            if isinstance(default, Meta):
                raise Refused(
                    f"the default of {kind.__name__}.{name} is {as_written(default)}: in a field it belongs to the "
                    f"type, {name}: Annotated[…, {as_written(default)}]"
                )
            yield name, hint, []
