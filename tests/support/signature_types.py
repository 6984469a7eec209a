"""Parameter types for the signature tests, and a helper that calls functions with decoded arguments."""

import enum
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec
import pydantic

from millstream._server.functions.plan import plan


class Context:
    """A stand-in for the real context: the plan only compares classes."""


class SyncContext:
    """A stand-in for the blocking context."""


CONTEXTS = (Context, SyncContext)
CONTEXT = Context()


@dataclass
class Address:
    street: str
    number: int = 1


class Point(msgspec.Struct):
    x: float
    y: float = 0.0


class Movie(TypedDict, total=False):
    title: str
    year: int


class Model(pydantic.BaseModel):
    count: int = pydantic.Field(ge=1)
    names: list[str] = []


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Node:
    value: int
    next: "Node | None" = None


def run(function: Callable[..., Any], arguments: Any = None, **options: Any) -> Any:
    """Plan a function, decode arguments for it and call it."""
    made = plan(function, contexts=CONTEXTS, **options)
    return made.call(made.decode(json.dumps(arguments or {}).encode()), CONTEXT)
