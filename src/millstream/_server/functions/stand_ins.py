"""Types that msgspec cannot read by itself: a class stands for each, and the hooks of its decoders ask that class.

msgspec gives values of a class it does not know to a hook. So a class of our own can stand for anything at all: a type
with pydantic's validators, or a union that msgspec cannot tell apart.
"""

from collections.abc import Callable
from typing import Any

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
