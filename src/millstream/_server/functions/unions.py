"""Unions that msgspec cannot tell apart, read by shape: two dataclasses, two models, ``list[int] | list[str]``."""

from types import NoneType
from typing import Any, Union

import msgspec

from millstream._protocol.json_schema import Schema, is_object, schema_of, shown
from millstream._server.functions.argument_errors import NO_ALTERNATIVE, in_words
from millstream._server.functions.pydantic_types import dec_hook, schema_hook
from millstream._server.functions.stand_ins import stand_in


def union_of(members: list[Any]) -> Any:
    """A union of types that msgspec understands one by one.

    A value becomes what it fits; of several, the one that knows most of its members, and of these the first.
    """
    union: Any = Union
    try:
        msgspec.json.Decoder(union[tuple(members)], dec_hook=dec_hook)
    except TypeError:
        options = [member for member in members if member is not NoneType]
        made = _by_shape(options)
        return made | None if len(options) < len(members) else made
    return union[tuple(members)]


def _by_shape(options: list[Any]) -> Any:
    schemas = [schema_of(option, hook=schema_hook) for option in options]
    names: list[set[str]] = [set(schema.get("properties", ())) for schema in schemas]

    titles = [shown(option) for option in options]

    def read(value: Any) -> Any:
        fitting: list[tuple[int, Any]] = []
        problems: list[str] = []
        for option, known in zip(options, names, strict=True):
            try:
                found = msgspec.convert(value, option, dec_hook=dec_hook)
            except msgspec.ValidationError as error:
                problems.append(_why(error))
            else:
                fitting.append((len(known & value.keys()) if is_object(value) else 0, found))
        if not fitting:
            each = [f"{name} ({problem})" for name, problem in zip(titles, problems, strict=True)]
            raise ValueError(NO_ALTERNATIVE + " or ".join(each))
        return max(fitting, key=lambda each: each[0])[1]

    schema: Schema = {"anyOf": schemas}
    return stand_in(" | ".join(titles), read, schema)


def _why(error: Exception) -> str:
    """Why a value is not one of the alternatives, in a few words."""
    problem, _, place = str(error).partition(" - at `$")
    name = place.rstrip("`").removeprefix(".")
    return in_words(problem, f"'{name}'" if name else "it", {}, b"", name)
