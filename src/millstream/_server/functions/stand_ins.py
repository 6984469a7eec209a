"""What stands for a type: names, and classes where msgspec cannot read a type by itself.

msgspec gives values of a class it does not know to a hook. So a class of our own can stand for anything at all: a type
with pydantic's validators, or a union that msgspec cannot tell apart.
"""

from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, NewType, get_args, get_origin

from msgspec import Struct

from millstream._protocol.json_schema import Schema


class StandIn(type):
    """The class of such classes."""

    read: Callable[[Any], Any]
    """The value that a JSON value stands for. Raises ValueError, which says why there is none."""
    schema: Schema

    def __instancecheck__(cls, instance: Any) -> bool:
        return True  # msgspec asks whether what the hook made is one; it is whatever `read` says


def stand_in(name: str, read: Callable[[Any], Any], schema: Schema) -> Any:
    """A class for annotations whose values `read` makes."""
    return StandIn(name, (), {"read": staticmethod(read), "schema": schema})


def has_fields(kind: Any) -> bool:
    """Whether this is a dataclass, TypedDict, NamedTuple or Struct."""
    marked = is_dataclass(kind) or hasattr(kind, "__total__") or hasattr(kind, "_fields")
    return isinstance(kind, type) and (marked or issubclass(kind, Struct))


def unaliased(annotation: Any) -> Any:
    """What an annotation stands for, where a `NewType` or an alias (``type Age = int``, PEP 695) stands outermost."""
    while True:
        alias = get_origin(annotation) or annotation
        if isinstance(annotation, NewType):
            annotation = annotation.__supertype__
        elif type(alias).__name__ == "TypeAliasType":
            parts = get_args(annotation)
            annotation = alias.__value__[parts] if parts else alias.__value__
        else:
            return annotation
