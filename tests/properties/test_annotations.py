"""Schemas and codecs of generated annotations: values that a schema allows are decoded, encoded values match the
schema, and a pydantic model in a signature doesn't change how other parameters are read and written.
"""

import asyncio
import base64
import datetime as dt
import enum
import random
import string
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from uuid import UUID

from hypothesis import example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import BaseModel
from typing_extensions import TypedDict

from millstream import Field, Server
from millstream.testing import TestClient, connect
from property_settings import examples

Json = dict[str, Any]


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


@dataclass(slots=True)
class Point:
    x: int
    y: float = 0.5
    data: bytes = b"x"


class Movie(TypedDict, total=False):
    title: str
    scores: dict[int, bool]


class Pair(NamedTuple):
    first: str
    second: int | None


class Model(BaseModel):
    n: int = 1
    data: bytes = b"\x89"
    names: dict[Color, bytes] = {}


LEAVES: list[Any] = [
    *(int, float, str, bool, bytes, bytearray, UUID, dt.date, Path, Decimal, Color, Level, Any),
    *(Literal["a", "b"], Literal[1, 2], Point, Movie, Pair, list, dict, set),
    Annotated[int, Field(ge=0, le=9)],
    Annotated[str, Field(min_length=2, max_length=3)],
]
KEYS: list[Any] = [str, int, Color, Level, Literal["a", "b"], Literal[1, 2], UUID, dt.date]


def _wrap(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        inner.map(lambda each: list[each]),
        inner.map(lambda each: each | None),
        st.tuples(st.sampled_from(KEYS), inner).map(lambda each: dict[each]),
        st.tuples(inner, inner).map(lambda each: tuple[each]),
        inner.map(lambda each: tuple[each, ...]),
    )


ANNOTATIONS = st.recursive(st.sampled_from(LEAVES), _wrap, max_leaves=3)
OF_PYDANTIC = st.recursive(st.sampled_from([Model, bytes, Color]), _wrap, max_leaves=3).map(
    lambda each: tuple[each, Model]
)
DAYS = 700_000


class Draw:
    """Draws JSON values that a schema allows."""

    def __init__(self, schema: Json, seed: int) -> None:
        self.root = schema
        self.random = random.Random(seed)

    def value(self, node: Any) -> Any:
        pick = self.random.choice
        if not isinstance(node, dict) or not node.keys() - {"title", "description", "default"}:
            return pick([None, 1, "x", [1], {"a": 1}])
        if "$ref" in node:
            node = reduce(lambda each, name: each[name], node["$ref"].split("/")[1:], self.root)
        for keyword in ("anyOf", "oneOf"):
            if keyword in node:
                return self.value(pick(node[keyword]))
        if "enum" in node:
            return pick(node["enum"])
        if "const" in node:
            return node["const"]
        return getattr(self, f"{node.get('type', 'string')}_value")(node)

    def null_value(self, node: Json) -> None:
        return None

    def boolean_value(self, node: Json) -> bool:
        return self.random.random() < 0.5

    def integer_value(self, node: Json) -> int:
        return self.random.randint(node.get("minimum", -5), node.get("maximum", 10))

    def number_value(self, node: Json) -> float:
        return self.random.choice([0, 1.5, -2, 1e9])

    def string_value(self, node: Json) -> str:
        if "contentEncoding" in node:
            return base64.b64encode(self.random.randbytes(self.random.randint(0, 9))).decode()
        if "format" in node:
            return self.formatted(node["format"])
        if "pattern" in node:
            return self.random.choice(["1", "0", "-12"])
        size = self.random.randint(node.get("minLength", 0), node.get("maxLength", 4))
        return "".join(self.random.choices(string.printable + "äé", k=size))

    def formatted(self, kind: str) -> str:
        if kind == "uuid":
            return str(UUID(int=self.random.getrandbits(128)))
        day = dt.date.fromordinal(self.random.randint(1, DAYS)).isoformat()
        return {"date": day, "duration": "P1DT2H", "path": "/tmp/a"}[kind]

    def array_value(self, node: Json) -> list[Any]:
        first = node.get("prefixItems", [])
        least = max(node.get("minItems", 0), len(first))
        size = self.random.randint(least, max(least, node.get("maxItems", least + 2)))
        made = [self.value(first[at] if at < len(first) else node["items"]) for at in range(size)]
        if node.get("uniqueItems"):
            return [each for at, each in enumerate(made) if isinstance(each, str | int) and each not in made[:at]]
        return made

    def object_value(self, node: Json) -> Json:
        properties, required = node.get("properties", {}), node.get("required", ())
        chosen = [name for name in properties if name in required or self.boolean_value(node)]
        made = {name: self.value(properties[name]) for name in chosen}
        if not properties:
            for _ in range(self.random.randint(0, 2)):
                name = self.value({"type": "string", **node.get("propertyNames", {})})
                made[name] = self.value(node.get("additionalProperties", {}))
        return made


def _echo(annotation: Any, **more: Any) -> Callable[..., Any]:
    def echo(a: Any, model: Any = None) -> Any:
        return a

    def echo_alone(a: Any) -> Any:
        return a

    function = echo if more else echo_alone
    function.__name__ = "echo"
    function.__annotations__ = {"a": annotation, **more, "return": annotation}
    return function


async def _call(client: TestClient, value: Any) -> Any:
    result = await client.request("tools/call", {"name": "echo", "arguments": {"a": value}})
    assert not result.get("isError"), (result, value)
    return result.get("structuredContent", result["content"])


async def _check(annotation: Any, seed: int, *functions: Callable[..., Any]) -> None:
    schemas: list[Any] = []
    answers: list[Any] = []
    values: list[Any] = []
    for function in functions:
        mcp = Server("drawn")
        mcp.add_tool(function)
        async with connect(mcp) as client:
            tool = (await client.request("tools/list"))["tools"][0]
            Draft202012Validator.check_schema(tool["inputSchema"])
            schema = tool["inputSchema"]["properties"]["a"]
            values = values or [Draw(tool["inputSchema"], seed + at).value(schema) for at in range(3)]
            found = [await _call(client, value) for value in values]
        output = tool.get("outputSchema")
        for each in found if output else ():
            Draft202012Validator(output).validate(each)
        schemas.append((schema, output))
        answers.append(found)
    assert all(each == schemas[0] for each in schemas), (annotation, schemas)
    assert all(each == answers[0] for each in answers), (annotation, answers)


@given(ANNOTATIONS, st.integers(0, 2**32))
@example(tuple[dict[str, int], dict[int, int]], 0)
@example(bytearray, 0)
@settings(max_examples=examples(40))
def test_schema_and_codec_agree_in_both_engines(annotation: Any, seed: int) -> None:
    asyncio.run(_check(annotation, seed, _echo(annotation), _echo(annotation, model=Model | None)))


@given(OF_PYDANTIC, st.integers(0, 2**32))
@settings(max_examples=examples(15))
def test_schema_and_codec_agree_in_models(annotation: Any, seed: int) -> None:
    asyncio.run(_check(annotation, seed, _echo(annotation)))
