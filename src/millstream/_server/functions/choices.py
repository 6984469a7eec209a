"""Types that msgspec does not read, and that have one obvious form in JSON: paths, and choices of mixed kinds.

A path is its text. An enum with members of several kinds, or a `Literal` of enum members, is one of the listed values.
"""

import enum
import json
from pathlib import Path, PurePath
from typing import Any, Literal, get_args, get_origin

from millstream._protocol.json_schema import Schema, shown
from millstream._server.functions.stand_ins import stand_in

PATH: Schema = {"type": "string", "format": "path"}
_SCALARS = (str, int, float, bool, type(None))


def is_path(annotation: Any) -> bool:
    """Whether this is `pathlib.Path` or one of its kind."""
    return isinstance(annotation, type) and issubclass(annotation, PurePath)


def path_of(kind: Any, value: Any) -> PurePath:
    """The path that a JSON value stands for.

    Raises:
        ValueError: it stands for none.
    """
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("must be a path as text")
    return Path(value) if kind is Path else kind(value)


def choice_of(annotation: Any) -> Any:
    """What msgspec reads instead of an enum or a `Literal`: the annotation itself, or a class that stands for it."""
    choices: tuple[Any, ...]
    kind: Any = annotation
    if get_origin(annotation) is Literal:
        choices = get_args(annotation)
        if not any(isinstance(each, enum.Enum) for each in choices):
            return annotation
        values = [each.value if isinstance(each, enum.Enum) else each for each in choices]
    elif isinstance(annotation, type) and issubclass(annotation, enum.Enum):
        choices = tuple(kind)
        values = [each.value for each in choices]
        if all(isinstance(each, str) for each in values) or all(type(each) is int for each in values):
            return kind
    else:
        return kind
    if not values or not all(isinstance(each, _SCALARS) for each in values):
        return kind
    return _one_of(shown(annotation), values, choices)


def _one_of(name: str, values: list[Any], choices: tuple[Any, ...]) -> Any:
    by_value: dict[tuple[Any, Any], Any] = {
        (type(value), value): choice for value, choice in zip(values, choices, strict=True)
    }

    def read(value: Any) -> Any:
        if isinstance(value, _SCALARS):
            for kind in (type(value), float):
                if (kind, value) in by_value:
                    return by_value[kind, value]
        raise ValueError(f"must be one of {', '.join(map(json.dumps, values))}")

    return stand_in(name, read, {"enum": values})
