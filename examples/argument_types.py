"""What tools may take and return: ``millstream run argument_types.py``."""

import enum
from dataclasses import dataclass, field
from typing import Annotated, Generic, NamedTuple, NewType, TypedDict, TypeVar

import msgspec
from pydantic import BaseModel

from millstream import Field, Server

# region: classes
T = TypeVar("T")
Isbn = NewType("Isbn", str)


class Tone(enum.Enum):
    WARM = "warm"
    DRY = "dry"


class Level(enum.Enum):
    LOW = 1
    HIGH = "high"


@dataclass
class Book:
    title: str
    pages: Annotated[int, Field(ge=1)] = 1
    tags: list[str] = field(default_factory=list)


@dataclass
class Film:
    title: str
    minutes: int


@dataclass
class Box(Generic[T]):
    content: T


class Point(NamedTuple):
    x: float
    y: float = 0.0


class Options(TypedDict, total=False):
    tone: Tone
    limit: int


class Cat(msgspec.Struct, tag="cat"):
    lives: int


class Dog(msgspec.Struct, tag="dog"):
    tricks: list[str]


class Review(BaseModel):
    stars: int
    text: str = ""


# endregion

mcp = Server("types")


@mcp.tool
def heavier(one: Book | Film, other: Book | Film) -> Book | Film:
    """Give the one that takes longer."""
    return max(one, other, key=lambda each: each.pages if isinstance(each, Book) else each.minutes)


if __name__ == "__main__":
    mcp.run()
