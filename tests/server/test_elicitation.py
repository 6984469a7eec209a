import datetime as dt
import enum
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypedDict

import msgspec
import pydantic
import pytest
from jsonschema import Draft202012Validator

from cases import for_each
from millstream._protocol.errors import INVALID_PARAMS, ProtocolError
from millstream._protocol.json_schema import Schema
from millstream._protocol.revisions import project_form
from millstream._server.calls.questions import parse_answer, requested_schema
from millstream._server.functions.description import Field
from millstream.protocol import BY_DATE, NEWEST

OLDER = BY_DATE["2025-06-18"]


def inside(path: str) -> str:
    if ".." in path:
        raise ValueError("leaves the folder")
    return path


@dataclass
class Where:
    path: Annotated[str, pydantic.AfterValidator(inside)]


@dataclass
class Copies:
    count: Annotated[int, pydantic.Field(ge=1, le=9)]


@for_each(
    ("answer", "content", "bounds"),
    [
        (Where, {"path": "../../etc/passwd"}, {"type": "string"}),
        (Annotated[str, pydantic.AfterValidator(inside)], {"value": ".."}, {"type": "string"}),
        (Copies, {"count": 5000}, {"type": "integer", "minimum": 1, "maximum": 9}),
        (Annotated[int, pydantic.Field(ge=1, le=9)], {"value": 5000}, {"type": "integer", "minimum": 1, "maximum": 9}),
    ],
)
def test_pydantic_constraints_apply_to_forms_and_answers(answer: Any, content: dict[str, Any], bounds: Schema) -> None:
    assert list(requested_schema(answer)["properties"].values()) == [bounds]
    with pytest.raises(ProtocolError, match="The answer doesn't match the form"):
        parse_answer(content, answer)


def test_answers_become_pydantic_models() -> None:
    assert parse_answer({"path": "a"}, Where) == Where("a")
    assert parse_answer({"value": "a"}, Annotated[str, pydantic.AfterValidator(str.upper)]) == "A"


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


TITLED = {"oneOf": [{"const": "s", "title": "Small"}, {"const": "l", "title": "Large"}]}


@dataclass
class Order:
    name: Annotated[str, Field(title="Your name", min_length=1, max_length=9, pattern="^[A-Z]")]
    mail: Annotated[str, Field(extra={"format": "email"})]
    day: dt.date
    copies: Annotated[int, Field(gt=0, lt=10)] = 3
    price: Annotated[float, Field(ge=0, lt=100)] = 9.5
    gift: bool = True
    color: Color = Color.RED
    tone: Literal["warm", "dry"] = "warm"
    extras: list[Literal["wrap", "card"]] = field(default_factory=list)
    note: str | None = None
    size: Annotated[Literal["s", "l"], Field(extra=TITLED)] = "s"


ORDER: Schema = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "title": "Your name", "minLength": 1, "maxLength": 9},
        "mail": {"type": "string", "format": "email"},
        "day": {"type": "string", "format": "date"},
        "copies": {"type": "integer", "minimum": 1, "maximum": 9, "default": 3},
        "price": {"type": "number", "minimum": 0, "default": 9.5},
        "gift": {"type": "boolean", "default": True},
        "color": {"type": "string", "enum": ["red", "blue"], "default": "red"},
        "tone": {"type": "string", "enum": ["warm", "dry"], "default": "warm"},
        "extras": {"type": "array", "items": {"type": "string", "enum": ["wrap", "card"]}},
        "note": {"type": "string"},
        "size": {"type": "string", **TITLED, "default": "s"},
    },
    "required": ["name", "mail", "day"],
}
ANSWER = {"name": "Ada", "mail": "a@b.c", "day": "2020-02-29"}

TITLED_FORM: Schema = {
    "type": "object",
    "properties": {
        "one": {"type": "string", **TITLED},
        "many": {"type": "array", "title": "T", "items": {"anyOf": TITLED["oneOf"]}, "minItems": 1, "maxItems": 1},
        "age": {"type": "integer", "minimum": 0, "maximum": 9, "default": 3},
        "ratio": {"type": "number"},
        "ok": {"type": "boolean"},
        "code": {"type": "string", "maxLength": 3, "pattern": "^x"},
    },
    "required": ["one"],
}


class Film(TypedDict, total=False):
    title: str


class Point(msgspec.Struct):
    x: float


class Model(pydantic.BaseModel):
    name: str = pydantic.Field(title="Name", description="Yours.")
    kind: Literal["only"] = "only"
    tags: list[Literal["b", "a"]] = []
    note: str | None = None
    color: Color = Color.BLUE


def test_dataclasses_become_flat_forms_in_field_order() -> None:
    """MCP 2025-11-25, client/elicitation."""
    schema = requested_schema(Order)
    assert schema == ORDER
    assert list(schema["properties"]) == list(ORDER["properties"])
    Draft202012Validator.check_schema(schema)


def test_structs_typed_dicts_and_pydantic_models_become_forms() -> None:
    assert requested_schema(Point) == {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}
    assert requested_schema(Film) == {"type": "object", "properties": {"title": {"type": "string"}}, "required": []}
    assert requested_schema(Model) == {
        "type": "object",
        "properties": {
            "name": {"type": "string", "title": "Name", "description": "Yours."},
            "kind": {"type": "string", "enum": ["only"], "default": "only"},
            "tags": {"type": "array", "items": {"type": "string", "enum": ["b", "a"]}, "default": []},
            "note": {"type": "string"},
            "color": {"type": "string", "enum": ["red", "blue"], "default": "blue"},
        },
        "required": ["name"],
    }


def test_default_of_none_makes_a_field_optional_but_not_nullable() -> None:
    made = msgspec.defstruct("Form", [("part", str, None)])
    assert requested_schema(made) == {"type": "object", "properties": {"part": {"type": "string"}}, "required": []}


def test_schemas_written_by_hand_are_sent_unchanged() -> None:
    assert requested_schema(TITLED_FORM) is TITLED_FORM


def form(annotation: Any) -> type:
    return msgspec.defstruct("Form", [("part", annotation)])


@for_each(
    "annotation",
    [
        Point, list[str], list[int], list[int | str], dict[str, str], list[Point], list[Any], list, Any, str | int,
        bytes, Literal[1, 2], None, dt.timedelta, tuple[str, str], Annotated[str, Field(extra={"format": "ipv4"})],
    ],
)  # fmt: skip
def test_unsupported_form_fields_are_rejected_before_the_question_is_sent(annotation: Any) -> None:
    """MCP 2025-11-25, client/elicitation."""
    with pytest.raises(TypeError, match="can't contain the field 'part'"):
        requested_schema(form(annotation))


def test_forms_must_be_objects() -> None:
    with pytest.raises(TypeError, match="can't contain the field 'value'"):
        requested_schema(bytes)
    with pytest.raises(TypeError, match="can't contain the field 'value'"):
        requested_schema(list[Point])


@for_each(
    ("answer", "field", "given", "value"),
    [
        (str, {"type": "string"}, "Ada", "Ada"),
        (int, {"type": "integer"}, 3.0, 3),
        (bool, {"type": "boolean"}, True, True),
        (Color, {"type": "string", "enum": ["red", "blue"]}, "blue", Color.BLUE),
        (Literal["a", "b"], {"type": "string", "enum": ["a", "b"]}, "b", "b"),
        (Annotated[int, Field(ge=1)], {"type": "integer", "minimum": 1}, 2, 2),
        (dt.date, {"type": "string", "format": "date"}, "2020-02-29", dt.date(2020, 2, 29)),
    ],
)
def test_scalar_questions_become_a_form_with_one_field(answer: Any, field: Schema, given: Any, value: Any) -> None:
    assert requested_schema(answer) == {"type": "object", "properties": {"value": field}, "required": ["value"]}
    assert parse_answer({"value": given}, answer) == value
    with pytest.raises(ProtocolError):
        parse_answer({"value": []}, answer)


def test_alternatives_in_forms_written_by_hand_stay_unchanged() -> None:
    node: Schema = {"anyOf": [{"type": "string"}, {"type": "null"}], "title": "Note"}
    schema = {"type": "object", "properties": {"note": node}}
    assert project_form(schema, OLDER)["properties"]["note"] == node
    assert parse_answer({"note": "x"}, schema) == {"note": "x"}


def test_titled_list_choices_appear_in_the_items() -> None:
    """MCP 2025-11-25, client/elicitation."""
    made = form(list[Annotated[Literal["s", "l"], Field(extra=TITLED)]])
    assert requested_schema(made)["properties"]["part"] == {"type": "array", "items": {"anyOf": TITLED["oneOf"]}}
    assert parse_answer({"part": ["l"]}, made) == made(part=["l"])


def test_integer_bounds_may_be_exclusive_on_either_side() -> None:
    assert requested_schema(form(Annotated[int, Field(gt=1)]))["properties"]["part"] == {
        "type": "integer",
        "minimum": 2,
    }
    assert requested_schema(form(Annotated[int, Field(lt=1)]))["properties"]["part"] == {
        "type": "integer",
        "maximum": 0,
    }


def test_forms_for_the_newest_revisions_are_unchanged() -> None:
    """MCP 2025-11-25, changelog."""
    assert project_form(ORDER, BY_DATE["2025-11-25"]) is project_form(ORDER, NEWEST) is ORDER


def test_older_forms_have_named_enums_single_choice_and_boolean_defaults() -> None:
    """MCP 2025-11-25, client/elicitation."""
    old = project_form(ORDER, OLDER)
    expected = {name: {**node} for name, node in ORDER["properties"].items()}
    for name, node in expected.items():
        if name != "gift":
            node.pop("default", None)
    expected["extras"] = {"type": "string", "enum": ["wrap", "card"]}
    expected["size"] = {"type": "string", "enum": ["s", "l"], "enumNames": ["Small", "Large"]}
    assert old == {**ORDER, "properties": expected}
    titled = project_form(TITLED_FORM, OLDER)["properties"]
    assert titled["many"] == {"type": "string", "title": "T", "enum": ["s", "l"], "enumNames": ["Small", "Large"]}
    assert "default" in TITLED_FORM["properties"]["age"]
    assert "default" not in titled["age"]


def test_answers_become_values_of_the_requested_type() -> None:
    assert parse_answer(ANSWER, Order) == Order("Ada", "a@b.c", dt.date(2020, 2, 29))
    full = {**ANSWER, "copies": 2.0, "color": "blue", "extras": ["card"], "note": "n", "size": "l", "unknown": 1}
    value = parse_answer(full, Order)
    assert (value.copies, type(value.copies), value.color, value.extras) == (2, int, Color.BLUE, ["card"])
    assert parse_answer({"name": "n"}, Model) == Model(name="n")
    assert parse_answer({"title": "t"}, Film) == {"title": "t"}


def test_single_choice_from_an_older_client_becomes_a_list() -> None:
    assert parse_answer({**ANSWER, "extras": "card"}, Order).extras == ["card"]
    assert parse_answer({"one": "s", "many": "l"}, TITLED_FORM) == {"one": "s", "many": ["l"]}


@for_each(
    ("content", "answer"),
    [
        ({}, Order),
        ({**ANSWER, "name": "ada"}, Order),
        ({**ANSWER, "copies": "3"}, Order),
        ({**ANSWER, "copies": 10}, Order),
        ({**ANSWER, "day": "tomorrow"}, Order),
        ({**ANSWER, "tone": "loud"}, Order),
        ({}, Model),
        ({"name": 1}, Model),
    ],
)
def test_answers_with_the_wrong_type_are_client_errors(content: dict[str, Any], answer: Any) -> None:
    with pytest.raises(ProtocolError, match="doesn't match") as caught:
        parse_answer(content, answer)
    assert caught.value.code == INVALID_PARAMS


def test_answers_to_hand_written_schemas_are_returned_unchanged() -> None:
    content = {"one": "s", "many": ["l"], "age": 3.0, "ratio": 1, "ok": False, "code": "xy", "unknown": [1]}
    assert parse_answer(content, TITLED_FORM) == content
    assert parse_answer({"x": "y"}, {"type": "object"}) == {"x": "y"}
    legacy = {"type": "object", "properties": {"a": {"enum": ["x"], "enumNames": ["X"]}}}
    assert parse_answer({"a": "x"}, legacy) == {"a": "x"}


@for_each(
    ("content", "text"),
    [
        ({}, "missing 'one'"),
        ({"one": 1}, """'one' must be a string, got the integer 1"""),
        ({"one": "m"}, """'one' must be "s" or "l", got the string "m\""""),
        ({"one": "s", "many": ["m"]}, """'many\\[0]' must be "s" or "l", got the string "m\""""),
        ({"one": "s", "many": []}, "'many' must be an array of length >= 1"),
        ({"one": "s", "many": ["s", "l"]}, "'many' must be an array of length <= 1"),
        ({"one": "s", "age": 3.5}, "'age' must be an integer, got the number 3.5"),
        ({"one": "s", "age": True}, "'age' must be an integer, got true"),
        ({"one": "s", "age": 10}, "'age' must be an integer <= 9, got 10"),
        ({"one": "s", "ratio": "1"}, "'ratio' must be a number"),
        ({"one": "s", "ok": 1}, "'ok' must be true or false"),
        ({"one": "s", "code": "xxxx"}, "'code' must be a string of length <= 3"),
        ({"one": "s", "code": "y"}, r"'code' must be a string matching regex '\^x'"),
        ({"age": "3"}, "missing 'one'; 'age' must be an integer"),
    ],
)
def test_errors_for_invalid_answers_list_every_field(content: dict[str, Any], text: str) -> None:
    with pytest.raises(ProtocolError, match=text) as caught:
        parse_answer(content, TITLED_FORM)
    assert caught.value.code == INVALID_PARAMS


def test_forms_are_built_once_per_type() -> None:
    assert requested_schema(Order) is requested_schema(Order)
    assert requested_schema(Annotated[str, Field(max_length=3)]) is requested_schema(
        Annotated[str, Field(max_length=3)]
    )
