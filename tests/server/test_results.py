import datetime as dt
import json
import sys
from collections import UserString
from dataclasses import dataclass
from io import BytesIO, StringIO
from typing import Any

import msgspec
import pydantic
import pytest
from hypothesis import given
from msgspec.structs import fields

from cases import for_each
from millstream import ToolError
from millstream._protocol.content import BLOCKS, Audio, EmbeddedResource, Image, Message, ResourceLink, Text
from millstream._protocol.errors import LocalError
from millstream._server.functions.engine import (
    ToolResult,
    as_text,
    encode_contents,
    encode_messages,
    encode_result,
    output_from_schema,
)
from millstream._server.functions.plan import plan
from strategies import json_values

PNG = b"\x89PNG\r\n\x1a\nrest"


@dataclass
class Address:
    street: str
    number: int = 1


@dataclass
class Counted:
    """A value with a side effect when it's decoded again, which encoding a result must not cause."""

    made = 0
    value: int

    def __post_init__(self) -> None:
        Counted.made += 1


class Point(msgspec.Struct):
    x: float


class Model(pydantic.BaseModel):
    count: int


def output_of(annotation: Any) -> Any:
    """Return the output of a tool with this return type."""

    def tool() -> Any: ...

    tool.__annotations__["return"] = annotation
    return plan(tool).output


def members(data: bytes) -> Any:
    return json.loads(b"{%b}" % data)


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


NATURAL: list[tuple[Any, Any]] = [
    ("hello", [text("hello")]),
    ("", [text("")]),
    (None, []),
    (Text("t"), [text("t")]),
    (Image(b"abc", "image/png"), [{"type": "image", "data": "YWJj", "mimeType": "image/png"}]),
    (Audio(b"abc", "audio/wav"), [{"type": "audio", "data": "YWJj", "mimeType": "audio/wav"}]),
    (ResourceLink("a:b", "n"), [{"type": "resource_link", "uri": "a:b", "name": "n"}]),
    (["first", Text("second"), {"third": 3}], [text("first"), text("second"), text('{"third":3}')]),
    ((Text("a"), "b"), [text("a"), text("b")]),
    (PNG, [{"type": "image", "data": "iVBORw0KGgpyZXN0", "mimeType": "image/png"}]),
    (b"RIFF....WEBP", [{"type": "image", "data": "UklGRi4uLi5XRUJQ", "mimeType": "image/webp"}]),
    (b"\xff\xd8\xff", [{"type": "image", "data": "/9j/", "mimeType": "image/jpeg"}]),
    (
        b"abc",
        [
            {
                "type": "resource",
                "resource": {"uri": "resource://result", "mimeType": "application/octet-stream", "blob": "YWJj"},
            }
        ],
    ),
]


@for_each(("value", "content"), NATURAL)
def test_text_and_content_have_no_structured_result(value: Any, content: Any) -> None:
    assert members(encode_result(value)) == {"content": content}


STRUCTURED: list[tuple[Any, Any]] = [
    ({"a": 1}, {"a": 1}),
    ([1, "b"], [1, "b"]),
    (["a", "b"], ["a", "b"]),
    ([], []),
    ((1, 2), [1, 2]),
    (3, 3),
    (1.5, 1.5),
    (True, True),
    (Address("s"), {"street": "s", "number": 1}),
    (Point(1.0), {"x": 1.0}),
    (Model(count=2), {"count": 2}),
    ([Model(count=2)], [{"count": 2}]),
]


@for_each(("value", "expected"), STRUCTURED)
def test_other_values_are_structured_and_repeated_as_text(value: Any, expected: Any) -> None:
    """MCP 2025-11-25, server/tools."""
    result = members(encode_result(value))
    assert result["structuredContent"] == expected
    (block,) = result["content"]
    assert json.loads(block["text"]) == expected


@given(json_values)
def test_dict_results_round_trip(value: Any) -> None:
    result = members(encode_result({"value": value}))
    assert result["structuredContent"] == {"value": value} == json.loads(result["content"][0]["text"])


def test_values_that_json_cannot_express_raise_type_error() -> None:
    with pytest.raises(TypeError, match="object"):
        encode_result({"a": object()})


def test_values_that_match_the_output_schema_pass() -> None:
    """MCP 2025-11-25, server/tools: with an output schema the structured content must conform."""
    for annotation, value in [
        (dict[str, int], {"a": 1}),
        (list[Address], [Address("s")]),
        (Address, Address("s")),
        (Address, {"street": "s"}),
        (Point, Point(1)),
        (Model, Model(count=1)),
        (Model, {"count": 1}),
        (int | None, None),
    ]:
        assert b'"structuredContent":' in encode_result(value, output_of(annotation))


@for_each(
    ("annotation", "value", "place"),
    [
        (dict[str, int], {"ordered": "x"}, "'ordered'"),
        (Address, Address(street=1), "street"),  # type: ignore[arg-type]  # the subject
        (list[Address], [Address("s"), Address("s", "x")], r"\[1\]\.number"),  # type: ignore[arg-type]
        (Address, {"number": 1}, "street"),
        (Point, Point(float("nan")), "x"),
        (Model, {"count": "many"}, "count"),
        (int, "text", "int"),
        (dict[str, int], None, "object"),
        (dict[str, int], Text("t"), "int"),
    ],
)
def test_values_that_violate_the_output_schema_name_the_field(annotation: Any, value: Any, place: str) -> None:
    with pytest.raises(LocalError, match=place):
        encode_result(value, output_of(annotation))


def test_times_have_no_format_in_output_schemas() -> None:
    for loose in (dt.datetime, dt.time, dt.timedelta):
        assert output_of(list[loose]).schema["items"] == {"type": "string"}


def test_model_instances_are_not_validated_again() -> None:
    value = Counted(1)
    encode_result(value, output_of(Counted))
    assert Counted.made == 1


def test_tools_may_have_no_output_schema() -> None:
    def count() -> int:
        return 1

    assert plan(count).output is not None
    assert plan(count, output_schema=None).output is None


def test_results_must_match_hand_written_output_schemas() -> None:
    output = output_from_schema({"type": "object", "properties": {"a": {"type": "integer"}}})
    assert members(encode_result({"a": 1}, output))["structuredContent"] == {"a": 1}
    with pytest.raises(LocalError, match="schema: 'a' must be an integer, got the string"):
        encode_result({"a": "x"}, output)
    with pytest.raises(LocalError, match="the result must be an object, got the array"):
        encode_result([1], output)
    with pytest.raises(LocalError, match="'a' must be an integer"):
        encode_result(ToolResult("done", {"a": None}), output)
    encode_result(ToolResult("failed", {"a": None}, is_error=True), output)
    several = output_from_schema({"type": ["number", "null"]})
    for value in (1, -1.5, None):
        encode_result(value, several)
    with pytest.raises(LocalError, match="a number or null"):
        encode_result("1", several)
    assert encode_result([1], output_from_schema({}))


@for_each(
    ("schema", "text"), [({"type": "text"}, '#/type: "text" is not valid'), ({"$ref": "https://x"}, "never fetched")]
)
def test_unsupported_hand_written_output_schemas_are_rejected(schema: dict[str, Any], text: str) -> None:
    """MCP 2025-11-25, basic."""
    with pytest.raises(ValueError, match=text):
        output_from_schema(schema)


def test_tool_result_sets_every_member() -> None:
    assert members(encode_result(ToolResult("done", {"n": 1}, meta={"k": 1}))) == {
        "content": [text("done")],
        "structuredContent": {"n": 1},
    }
    assert members(encode_result(ToolResult(["a", Text("b")]))) == {"content": [text("a"), text("b")]}
    assert members(encode_result(ToolResult(structured=None))) == {"content": [text("null")], "structuredContent": None}
    assert members(encode_result(ToolResult("no", is_error=True))) == {"content": [text("no")], "isError": True}
    assert members(encode_result(ToolResult())) == {"content": []}


def test_content_may_be_written_as_dicts() -> None:
    image = {"type": "image", "data": "aGk=", "mimeType": "image/png"}
    found = members(encode_result(ToolResult([text("a"), image, {"type": "sunny"}, {"n": 1}])))
    assert found["content"] == [text("a"), image, text('{"type":"sunny"}'), text('{"n":1}')]


def test_tool_results_must_match_the_output_schema_unless_they_are_errors() -> None:
    """MCP 2025-11-25, server/tools: conforming is not required when `isError`."""
    output = output_of(dict[str, int])
    assert members(encode_result(ToolResult(structured={"a": 1}), output))["structuredContent"] == {"a": 1}
    assert members(encode_result(ToolResult("no", is_error=True), output))["isError"] is True
    with pytest.raises(LocalError, match="no structured value"):
        encode_result(ToolResult("x"), output)
    with pytest.raises(LocalError, match="int"):
        encode_result(ToolResult(structured={"a": ""}), output)


def test_yielded_values_become_progress_messages() -> None:
    assert [as_text(value) for value in ("a", Text("b"), {"c": 1}, Model(count=1))] == [
        "a", "b", '{"c":1}', '{"count":1}'
    ]  # fmt: skip


def test_prompts_become_messages() -> None:
    """MCP 2025-11-25, server/prompts."""

    def said(role: str, content: Any) -> dict[str, Any]:
        return {"role": role, "content": content}

    assert members(encode_messages("hi")) == {"messages": [said("user", text("hi"))]}
    same = [{"role": "assistant", "content": "hi"}, {"role": "user", "content": {"type": "text", "text": "yo"}}]
    assert members(encode_messages(same)) == {"messages": [said("assistant", text("hi")), said("user", text("yo"))]}
    assert members(encode_messages(Message("assistant", "hi"))) == {"messages": [said("assistant", text("hi"))]}
    assert members(encode_messages(["a", Message("assistant", "b"), Text("c"), {"d": 1}, PNG])) == {
        "messages": [
            said("user", text("a")),
            said("assistant", text("b")),
            said("user", text("c")),
            said("user", text('{"d":1}')),
            said("user", {"type": "image", "data": "iVBORw0KGgpyZXN0", "mimeType": "image/png"}),
        ]
    }
    assert members(encode_messages(())) == {"messages": []}
    for wrong in (said("system", "hi"), said("user", {"type": "image_url"}), said("user", 1), [said("", "")]):
        with pytest.raises(LocalError, match="a message has the role user or assistant, and text or content blocks: "):
            encode_messages(wrong)


@for_each(
    ("value", "mime_type", "expected"),
    [
        ("t", None, {"mimeType": "text/plain", "text": "t"}),
        ("<p>", "text/html", {"mimeType": "text/html", "text": "<p>"}),
        (b"abc", None, {"mimeType": "application/octet-stream", "blob": "YWJj"}),
        (Image(b"abc", "image/png"), None, {"mimeType": "image/png", "blob": "YWJj"}),
        (Audio(b"abc", "audio/wav"), "audio/x-wav", {"mimeType": "audio/x-wav", "blob": "YWJj"}),
        ({"a": 1}, None, {"mimeType": "application/json", "text": '{"a":1}'}),
        (Address("s"), "application/ld+json", {"mimeType": "application/ld+json", "text": '{"street":"s","number":1}'}),
        ([], None, {"mimeType": "application/json", "text": "[]"}),
        ([1, 2], None, {"mimeType": "application/json", "text": "[1,2]"}),
    ],
)
def test_resource_results_become_one_content_with_the_requested_uri(value: Any, mime_type: Any, expected: Any) -> None:
    """MCP 2025-11-25, server/resources: text or blob, with uri and mimeType."""
    assert members(encode_contents(value, "a:b", mime_type)) == {"contents": [{"uri": "a:b", **expected}]}


def test_resources_return_the_bytes_of_each_block_that_has_some() -> None:
    kinds = [kind for kind in BLOCKS if any(each.required and each.type is bytes for each in fields(kind))]
    assert {Image, Audio} <= set(kinds)
    for kind in kinds:
        found = members(encode_contents(kind(data=b"abc", mime_type="a/b"), "a:b"))
        assert found == {"contents": [{"uri": "a:b", "mimeType": "a/b", "blob": "YWJj"}]}, (
            f"{kind.__name__} has bytes, so derive it from `Media` in _protocol/content.py."
        )


def test_resources_return_several_contents_as_embedded_resources() -> None:
    """MCP 2025-11-25, server/resources: `resources/read` may return several contents."""
    several = [EmbeddedResource("a:1", text="x"), EmbeddedResource("a:2", blob=b"abc")]
    assert members(encode_contents(several, "a:b")) == {
        "contents": [{"uri": "a:1", "text": "x"}, {"uri": "a:2", "blob": "YWJj"}]
    }
    assert members(encode_contents(several[0], "a:b")) == {"contents": [{"uri": "a:1", "text": "x"}]}


@for_each("value", ["x", b"x", {"a": 1}])
def test_contents_include_their_resource_meta(value: Any) -> None:
    ui = {"ui": {"csp": {}}}
    assert members(encode_contents(value, "a:b", None, ui))["contents"][0]["_meta"] == ui


def test_embedded_resources_merge_their_meta_with_the_resource() -> None:
    own = EmbeddedResource("a:1", text="x", meta={"b": 2})
    content = members(encode_contents(own, "a:b", None, {"a": 1, "b": 1}))["contents"][0]
    assert content == {"uri": "a:1", "text": "x", "_meta": {"a": 1, "b": 2}}


def test_resources_that_return_none_fail() -> None:
    """MCP 2025-11-25, server/resources."""
    with pytest.raises(LocalError, match="a:b returned nothing"):
        encode_contents(None, "a:b")


@for_each("annotation", [list, list[Any], list[object], tuple, tuple[Any, ...], list[Any] | None])
def test_untyped_lists_have_no_output_schema(annotation: Any) -> None:
    output = output_of(annotation)
    assert output is None
    blocks = members(encode_result(["see", Image(PNG, "image/png")], output))["content"]
    assert [block["type"] for block in blocks] == ["text", "image"]
    assert members(encode_result([1, 2], output))["structuredContent"] == [1, 2]


def test_typed_lists_have_an_output_schema() -> None:
    assert output_of(list[int]) is not None
    assert output_of(list[dict[str, Any]]) is not None
    assert output_of(dict[str, Any]) is not None


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@for_each(
    "value",
    [Model.model_construct(count="many"), Model.model_construct(), Model(count=1).model_copy(update={"count": "many"})],
)
def test_unvalidated_models_must_match_the_output_schema(value: Model) -> None:
    with pytest.raises(LocalError, match="count"):
        encode_result(value, output_of(Model))


def test_model_validators_do_not_run_on_results() -> None:
    class Tagged(pydantic.BaseModel):
        tags: list[str]

        @pydantic.field_validator("tags", mode="before")
        @classmethod
        def split(cls, value: str) -> list[str]:
            return value.split(",")

    made = Tagged.model_validate({"tags": "a,b"})
    assert members(encode_result(made, output_of(Tagged)))["structuredContent"] == {"tags": ["a", "b"]}


async def fetch() -> str:
    return "x"


def test_unawaited_coroutine_results_are_explained() -> None:
    for value in (fetch(), {"page": fetch()}):
        with pytest.raises(TypeError, match=r"returned 'fetch' without awaiting it\. Write `await` before the call"):
            encode_result(value)


def test_iterator_results_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic_core", None)
    with pytest.raises(TypeError, match="can't be converted to JSON: convert it to a list"):
        encode_result(map(int, ["1"]))


@for_each("value", [ToolError("sold out"), {"why": ValueError("sold out")}])
def test_returned_errors_are_explained(value: Any) -> None:
    with pytest.raises(TypeError, match="can't be converted to JSON: raise it instead of returning it"):
        encode_result(value)


@for_each("value", [BytesIO(b"a"), StringIO("a"), {"file": BytesIO(b"a")}])
def test_files_in_results_are_rejected(value: Any) -> None:
    with pytest.raises(TypeError, match="can't be converted to JSON: return what it contains"):
        encode_result(value)


@for_each("key", [None, True, (1, 2), frozenset((1,))])
def test_keys_that_are_not_text_are_explained(key: Any) -> None:
    with pytest.raises(TypeError, match="has a dict whose keys aren't text or numbers"):
        encode_result({"by": {key: 1}})


@for_each("value", [float("nan"), float("inf")])
def test_nan_results_are_reported_in_the_error(value: float) -> None:
    for annotation, result in ((float, value), (dict[str, float], {"x": value}), (list[float], [value])):
        with pytest.raises(LocalError, match="NaN and infinities can't be represented in JSON"):
            encode_result(result, output_of(annotation))


@for_each("annotation", [dict, dict[str, Any], Any])
def test_nan_is_null_where_no_schema_requires_a_number(annotation: Any) -> None:
    result = members(encode_result({"x": float("nan"), "y": [float("inf")]}, output_of(annotation)))
    assert result["structuredContent"] == {"x": None, "y": [None]}


def test_resource_that_returns_a_block_serves_its_content() -> None:
    one = members(encode_contents(Text("a"), "x://a"))["contents"]
    assert one == [{"uri": "x://a", "mimeType": "text/plain", "text": "a"}]
    several = members(encode_contents([Text("a"), Image(b"b", "image/png")], "x://a"))["contents"]
    assert several == [*one, {"uri": "x://a", "mimeType": "image/png", "blob": "Yg=="}]
    assert members(encode_contents(bytearray(b"b"), "x://a"))["contents"][0]["blob"] == "Yg=="
    for value in (ResourceLink("x://b", "b"), ToolResult("a"), [Text("a"), ResourceLink("x://b", "b")]):
        with pytest.raises(LocalError, match=r"returned a (ResourceLink|ToolResult)\. Return text"):
            encode_contents(value, "x://a")


def test_prompt_that_returns_no_messages_is_an_error() -> None:
    for value in (None, ToolResult("a"), ["a", None], [ToolResult("a")]):
        with pytest.raises(LocalError, match=r"the prompt returned (nothing|a ToolResult)\. Return text"):
            encode_messages(value)


def test_bytearrays_and_user_strings_are_content_like_bytes_and_text() -> None:
    assert encode_result(bytearray(b"a")) == encode_result(b"a")
    assert encode_result(UserString("a")) == encode_result("a")
    assert members(encode_result({"a": UserString("b")}))["structuredContent"] == {"a": "b"}
