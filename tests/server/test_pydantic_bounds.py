"""Bounds of our `Field`, and Structs, in what pydantic reads: refused with what to write instead."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Generic, TypeVar

import msgspec
import pydantic
import pytest
from pydantic import AfterValidator
from typing_extensions import TypedDict

from millstream import Field
from millstream._server.functions.plan import plan
from millstream._server.questions.forms import requested_schema
from planned_types import run

T = TypeVar("T")


def tool_with(annotation: Any) -> Callable[..., Any]:
    """A tool whose parameter `x` has a type."""

    def tool(x: Any) -> Any:
        return x

    tool.__annotations__["x"] = annotation
    return tool


def stripped(value: Any) -> Any:
    return value.strip() if isinstance(value, str) else value


@dataclass
class Box(Generic[T]):
    content: T
    path: Annotated[str, AfterValidator(stripped)] = "a"


@dataclass
class Mixed:
    path: Annotated[str, AfterValidator(stripped)]
    depth: Annotated[int, Field(ge=3)] = 3


class Packed(msgspec.Struct):
    name: str


class Lent(pydantic.BaseModel):
    copies: Annotated[int, Field(ge=3)]


class Shelf(pydantic.BaseModel):
    lent: list[Lent]


class Listed(pydantic.BaseModel, Generic[T]):
    items: list[T]


class Deep(pydantic.BaseModel):
    names: dict[str, list[Annotated[str, Field(min_length=2, pattern="^a")]]]


@dataclass
class Bound:
    copies: Annotated[int, Field(ge=3)]


class Around(pydantic.BaseModel):
    bound: Bound


@dataclass
class Beside:
    lent: Lent | None = None


@pydantic.dataclasses.dataclass
class Theirs:
    copies: Annotated[int, Field(ge=3)]


class Chain(pydantic.BaseModel):
    next: "Chain | None" = None
    copies: Annotated[int, Field(ge=3)] = 3


OF_OURS = [
    (Mixed, "Mixed.depth"), (list[Mixed], "Mixed.depth"), (Box[Mixed], "Mixed.depth"), (Lent, "Lent.copies"),
    (list[Lent], "Lent.copies"), (Lent | None, "Lent.copies"), (Shelf, "Lent.copies"), (Listed[Lent], "Lent.copies"),
    (Around, "Bound.copies"), (Beside, "Lent.copies"), (Theirs, "Theirs.copies"), (Chain, "Chain.copies"),
    (Listed[Bound], "Bound.copies"), (dict[str, Shelf], "Lent.copies"), (Annotated[Lent, Field(title="t")], "Lent."),
]  # fmt: skip


@pytest.mark.parametrize(("annotation", "field"), OF_OURS)
def test_bounds_of_ours_in_what_pydantic_reads_are_refused_because_it_passes_over_them(
    annotation: Any, field: str
) -> None:
    """A fixed defect: pydantic read the whole, and the field had no bound, without a word."""
    with pytest.raises(TypeError, match=f"parameter 'x': pydantic checks {field}") as refused:
        plan(tool_with(annotation))
    assert str(refused.value).endswith("passes over millstream's Field(ge=3): write pydantic.Field(ge=3) there")


@pytest.mark.parametrize("annotation", [Lent, list[Lent], Shelf, Listed[Lent], Beside, Around, Chain])
def test_bounds_of_ours_in_models_are_refused_in_results_too(annotation: Any) -> None:
    """Nobody would check them there either."""

    def tool() -> Any: ...

    tool.__annotations__["return"] = annotation
    with pytest.raises(TypeError, match=r"tool: the return type: pydantic checks .* write pydantic.Field\(ge=3\)"):
        plan(tool)


def test_bounds_of_ours_in_models_are_refused_in_forms_too() -> None:
    """Before anyone is asked."""
    with pytest.raises(TypeError, match=r"pydantic checks Lent.copies.* write pydantic.Field\(ge=3\) there"):
        requested_schema(Lent)


def test_a_bound_deep_in_a_model_is_refused_with_all_that_was_written() -> None:
    """In the words that pydantic's own `Field` has, too."""
    text = "write pydantic.Field(min_length=2, pattern='^a') there"
    with pytest.raises(TypeError, match=re.escape(text)):
        plan(tool_with(Deep))


def test_a_field_of_ours_for_a_default_is_refused() -> None:
    """As pydantic's own is written; it became the default value, and had no bound."""

    class Counted(pydantic.BaseModel):
        copies: int = Field(ge=3)

    with pytest.raises(TypeError, match=r"default of Counted.copies is millstream's Field\(ge=3\), .* write pydantic"):
        plan(tool_with(Counted))

    @dataclass
    class Plain:
        copies: int = Field(ge=3)

    class Packed(msgspec.Struct):
        copies: int = Field(ge=3)

    for kind in (Plain, Packed):
        text = f"{kind.__name__}.copies is Field(ge=3): in a field it belongs to the type, copies: Annotated[…, Field"
        with pytest.raises(TypeError, match=re.escape(text)):
            plan(tool_with(kind))


def test_texts_of_ours_in_models_and_bounds_of_pydantics_are_served() -> None:
    """What isn't a bound is no promise; what pydantic knows, it checks."""

    class Told(pydantic.BaseModel):
        copies: Annotated[int, Field(description="how many"), pydantic.Field(ge=3)]

    schema = plan(tool_with(Told)).input_schema["properties"]["x"]
    assert schema["properties"]["copies"]["minimum"] == 3
    assert run(tool_with(Listed[Annotated[int, pydantic.Field(ge=3)]]), {"x": {"items": [3]}}).items == [3]


@pytest.mark.parametrize("annotation", [Lent, Mixed, Annotated[Packed, AfterValidator(stripped)]])
def test_a_refusal_of_what_pydantic_cannot_read_says_what_to_write_and_lists_no_types(annotation: Any) -> None:
    """A fixed defect: it showed ``Meta(ge=3)``, which nobody wrote, and all types that work."""
    with pytest.raises(TypeError, match="pydantic") as refused:
        plan(tool_with(annotation))
    text = str(refused.value)
    assert not any(each in text for each in ("Meta", "use builtins", "function", "0x"))


def test_bounds_that_fit_no_type_are_shown_as_they_were_written() -> None:
    """A fixed defect: it showed ``Meta(min_length=3)``."""
    with pytest.raises(TypeError, match=re.escape("Field(min_length=3) fits none of the types int | NoneType")):
        plan(tool_with(Annotated[int | None, Field(min_length=3)]))


@pytest.mark.parametrize("listed", [False, True])
def test_a_model_with_classes_that_only_a_function_knows_is_served(listed: bool) -> None:
    """Fixed: where annotations are texts it was a bare NameError, though pydantic had found what they name."""

    @dataclass
    class Item:
        a: int

    @dataclass
    class Cart:
        item: "Item"

    class Bag(TypedDict):
        item: "Item"

    class Order(pydantic.BaseModel):
        cart: "Cart"
        bag: "Bag"

    tool = tool_with(list[Order] if listed else Order)
    given: Any = {"cart": {"item": {"a": 1}}, "bag": {"item": {"a": 2}}}
    read = run(tool, {"x": [given] if listed else given})
    order = read[0] if listed else read
    assert order.cart.item.a == 1
    assert order.bag["item"].a == 2
