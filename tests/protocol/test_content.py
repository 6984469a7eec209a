import json
from typing import Any

import msgspec
import pytest

from cases import for_each
from millstream._protocol.content import (
    BLOCKS,
    Annotations,
    Audio,
    Content,
    EmbeddedResource,
    Icon,
    Image,
    Message,
    ResourceContents,
    ResourceLink,
    SamplingContent,
    Text,
    ToolResultBlock,
    ToolUse,
)

WIRE: list[tuple[Any, dict[str, Any]]] = [
    (Text("hi"), {"type": "text", "text": "hi"}),
    (
        Text("hi", annotations=Annotations(["user"], 0.5, "then"), meta={"k": 1}),
        {
            "type": "text",
            "text": "hi",
            "annotations": {"audience": ["user"], "priority": 0.5, "lastModified": "then"},
            "_meta": {"k": 1},
        },
    ),
    (Image(data=b"abc", mime_type="image/png"), {"type": "image", "data": "YWJj", "mimeType": "image/png"}),
    (Audio(b"abc", "audio/wav"), {"type": "audio", "data": "YWJj", "mimeType": "audio/wav"}),
    (
        ResourceLink("a:b", "n", title="T", size=3, icons=[Icon("https://i", "image/png", ["any"], "dark")]),
        {
            "type": "resource_link",
            "uri": "a:b",
            "name": "n",
            "title": "T",
            "size": 3,
            "icons": [{"src": "https://i", "mimeType": "image/png", "sizes": ["any"], "theme": "dark"}],
        },
    ),
    (
        EmbeddedResource("a:b", text="", mime_type="text/plain"),
        {"type": "resource", "resource": {"uri": "a:b", "mimeType": "text/plain", "text": ""}},
    ),
    (
        EmbeddedResource(uri="a:b", blob=b"abc"),
        {"type": "resource", "resource": {"uri": "a:b", "blob": "YWJj"}},
    ),
    (
        ToolUse("1", "add", {}),
        {"type": "tool_use", "id": "1", "name": "add", "input": {}},
    ),
    (
        ToolResultBlock("1", [Text("3")], structured_content=None, is_error=True),
        {
            "type": "tool_result",
            "toolUseId": "1",
            "content": [{"type": "text", "text": "3"}],
            "structuredContent": None,
            "isError": True,
        },
    ),
    (Message("user", "hi"), {"role": "user", "content": {"type": "text", "text": "hi"}}),
    (
        Message("assistant", [ToolUse("1", "add", {"a": 1})]),
        {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "add", "input": {"a": 1}}]},
    ),
]


@for_each(("value", "wire"), WIRE)
def test_content_round_trips_in_the_newest_schema(value: Any, wire: dict[str, Any]) -> None:
    """MCP 2025-11-25, server/tools and 2025-11-25, client/sampling."""
    data = msgspec.json.encode(value)
    assert json.loads(data) == wire
    assert msgspec.json.decode(data, type=type(value)) == value


def test_type_field_comes_first() -> None:
    assert msgspec.json.encode(Text("x")) == b'{"type":"text","text":"x"}'


@for_each("value", [value for value, _ in WIRE if isinstance(value, BLOCKS)])
def test_content_blocks_decode_by_type(value: Any) -> None:
    assert msgspec.json.decode(msgspec.json.encode(value), type=Content) == value


def test_sampling_results_ignore_unknown_members() -> None:
    """MCP 2025-11-25, basic: unknown fields must be tolerated."""
    data = b'{"type":"tool_use","id":"1","name":"n","input":{"a":[1]},"later":true}'
    assert msgspec.json.decode(data, type=SamplingContent) == ToolUse("1", "n", {"a": [1]})


@for_each(
    "arguments",
    [{"uri": "a:b"}, {"uri": "a:b", "text": "x", "blob": b"y"}, {"text": "x"}, {}],
)
def test_embedded_resources_need_exactly_one_content(arguments: dict[str, Any]) -> None:
    with pytest.raises(TypeError, match="text or blob"):
        EmbeddedResource(**arguments)


def test_embedded_resources_without_a_resource_are_invalid() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"type":"resource"}', type=EmbeddedResource)


def test_unknown_members_in_embedded_resources_are_dropped() -> None:
    data = (
        b'{"type":"resource","resource":{"uri":"a:b","text":"x"},"uri":"c:d","text":"y","blob":"YQ==","mimeType":"z"}'
    )
    block = msgspec.json.decode(data, type=EmbeddedResource)
    assert block.resource == ResourceContents("a:b", text="x")
    assert msgspec.json.encode(block) == b'{"type":"resource","resource":{"uri":"a:b","text":"x"}}'
