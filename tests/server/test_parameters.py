from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import pydantic
import pytest

from cases import for_each
from millstream import Field
from plans import plan, schema_of_result
from signature_types import CONTEXTS, Address, Color, Context, Model, run

if TYPE_CHECKING:
    from nowhere import Missing  # type: ignore[import-not-found]  # what a user imports for type checkers only


def test_signatures_become_closed_object_schemas() -> None:
    def order(isbn: str, copies: Annotated[int, Field(ge=1, description="How many.")] = 1) -> dict[str, int]:
        """Order a book."""
        return {isbn: copies}

    made = plan(order)
    assert (made.name, made.kind, made.description) == ("order", "tool", "Order a book.")
    assert tuple(made.input_schema["properties"]) == ("isbn", "copies")
    assert made.input_schema == {
        "type": "object",
        "properties": {
            "isbn": {"type": "string"},
            "copies": {"type": "integer", "minimum": 1, "description": "How many.", "default": 1},
        },
        "required": ["isbn"],
        "additionalProperties": False,
    }
    assert schema_of_result(made) == {"type": "object", "additionalProperties": {"type": "integer"}}


def test_functions_without_parameters_accept_only_an_empty_object() -> None:
    """MCP 2025-11-25, server/tools."""

    def now(ctx: Context) -> str:
        return "now"

    made = plan(now, contexts=CONTEXTS)
    assert made.input_schema == {"type": "object", "properties": {}, "additionalProperties": False}
    with pytest.raises(msgspec.ValidationError):
        made.decode(b'{"a":1}')


def test_descriptions_prefer_field_then_annotated_then_docstring() -> None:
    def tool(
        a: Annotated[int, Field(description="field")],
        b: Annotated[int, "text"],
        c: int,
        d: Annotated[int, pydantic.Field(description="pydantic")],
    ) -> None:
        """Do it.

        Args:
            a: docstring
            b: docstring
            c: docstring
            d: docstring
        """

    made = plan(tool)
    assert made.description == "Do it."
    texts = {name: node["description"] for name, node in made.input_schema["properties"].items()}
    assert texts == {"a": "field", "b": "text", "c": "docstring", "d": "pydantic"}


def test_defaults_are_listed_and_not_shared_between_calls() -> None:
    def tool(
        tags: list[str] = ["a"],  # noqa: B006 - the subject
        where: Address = Address("x"),  # noqa: B008
        model: Model = Model(count=2),  # noqa: B008
        color: Color = Color.RED,
        marker: Any = object(),  # noqa: B008
    ) -> Any:
        tags.append("b")
        return tags, where, model, color

    made = plan(tool)
    listed = {name: node.get("default") for name, node in made.input_schema["properties"].items()}
    assert listed == {
        "tags": ["a"],
        "where": {"street": "x", "number": 1},
        "model": {"count": 2, "names": []},
        "color": "red",
        "marker": None,
    }
    assert "required" not in made.input_schema
    expected = (["a", "b"], Address("x"), Model(count=2), Color.RED)
    assert run(tool) == expected
    assert made.call(made.decode(b"{}"), None) == expected


def test_default_of_none_makes_a_parameter_nullable() -> None:
    def tool(x: int = None) -> Any:  # type: ignore[assignment]  # noqa: RUF013 - the subject
        return x

    assert plan(tool).input_schema["properties"]["x"]["default"] is None
    assert run(tool, {"x": None}) is None


def test_fields_as_default_values_set_constraints_and_default() -> None:
    def tool(
        a: int = pydantic.Field(ge=1),
        b: int = pydantic.Field(default=3, le=9),
        c: list[int] = pydantic.Field(default_factory=lambda: [1]),  # noqa: B008
        d: int = Field(default=4, multiple_of=2),
        e: Annotated[int, Field(default=5)] = 6,
    ) -> Any:
        return a, b, c, d, e

    made = plan(tool)
    assert made.input_schema["required"] == ["a"]
    assert made.input_schema["properties"]["b"] == {"type": "integer", "maximum": 9, "default": 3}
    assert run(tool, {"a": 1}) == (1, 3, [1], 4, 6)


def test_pydantic_constraints_apply_inside_collections_and_unions() -> None:
    def tool(
        a: list[Annotated[int, pydantic.Field(ge=1)]],
        b: dict[str, Annotated[str, "just text", pydantic.Field(pattern="^x")]] | None = None,
        c: tuple[Annotated[int, object()], ...] = (),
    ) -> Any:
        return a, b, c

    properties = plan(tool).input_schema["properties"]
    assert properties["a"]["items"] == {"type": "integer", "minimum": 1}
    assert properties["b"]["anyOf"][0]["additionalProperties"]["pattern"] == "^x"
    assert properties["c"]["items"] == {"type": "integer"}
    assert run(tool, {"a": [1], "c": [2]}) == ([1], None, (2,))


def test_union_constraints_apply_to_matching_members() -> None:
    def tool(
        a: Annotated[int | str | None, Field(ge=1, description="d"), Field(le=5)] = None,
        b: Annotated[str, Field(title="T", pattern="x")] = None,  # type: ignore[assignment]  # noqa: RUF013 - the subject
    ) -> None: ...

    assert plan(tool).input_schema["properties"] == {
        "a": {
            "anyOf": [{"type": "integer", "minimum": 1, "maximum": 5}, {"type": "string"}, {"type": "null"}],
            "description": "d",
            "default": None,
        },
        "b": {"anyOf": [{"type": "string", "pattern": "x"}, {"type": "null"}], "title": "T", "default": None},
    }


def test_invalid_parameter_headers_are_rejected_at_registration() -> None:
    """MCP 2026-07-28, server/tools#x-mcp-header."""

    def good(region: Annotated[str, Field(header="Region")]) -> None: ...

    def optional(region: Annotated[str | None, Field(header="Region")] = None) -> Any:
        return region

    assert plan(optional).input_schema["properties"]["region"] == {"type": "string", "x-mcp-header": "Region"}
    assert [run(optional), run(optional, {"region": None})] == [None, None]

    def bad(ratio: Annotated[float, Field(header="Ratio")]) -> None: ...

    made = plan(good)
    assert made.input_schema["properties"]["region"]["x-mcp-header"] == "Region"
    assert [header.header for header in made.headers] == [b"mcp-param-region"]
    with pytest.raises(ValueError, match="ratio"):
        plan(bad)


# What cannot be served.


def stars(*numbers: int) -> None: ...


def named(**numbers: int) -> None: ...


class Opaque: ...


def opaque(x: Opaque) -> None: ...


def unresolved(x: "Missing") -> None: ...


def contradicting(x: Annotated[str, Field(ge=1)]) -> None: ...


def fitting_none(x: Annotated[str | None, Field(ge=1)]) -> None: ...


@for_each(
    ("function", "texts"),
    [
        (stars, ["'numbers'", "any number of arguments"]),
        (named, ["'numbers'", "any number of arguments"]),
        (opaque, ["'x'", "Opaque", "dataclasses"]),
        (unresolved, ["'x'", "'Missing' can't be resolved"]),
        (contradicting, ["'x'", "ge"]),
        (fitting_none, ["'x'", "ge=1", "doesn't apply to any"]),
    ],
)
def test_unsupported_parameters_are_rejected_at_registration(function: Callable[..., Any], texts: list[str]) -> None:
    with pytest.raises(TypeError) as caught:
        plan(function)
    for text in (function.__name__, *texts):
        assert text in str(caught.value)
