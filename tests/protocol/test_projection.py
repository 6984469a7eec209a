import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec import Raw
from msgspec.structs import fields, replace

from cases import for_each
from millstream import Client, Server, Settings, ToolResult
from millstream._protocol import revisions
from millstream._protocol.content import BLOCKS, Audio, Content, EmbeddedResource, Image, ResourceLink, Text
from millstream._protocol.errors import (
    INVALID_PARAMS,
    MISSING_CLIENT_CAPABILITY,
    RESOURCE_NOT_FOUND,
    ProtocolError,
)
from millstream._protocol.jsonrpc import encode
from millstream._protocol.revisions import ALL
from millstream.compat import types
from millstream.compat.fastmcp import FastMCP

L1, L2, L3, L4, M = ALL
SCHEMAS = Path(__file__).resolve().parent.parent / "schemas"
TOOL = {
    "name": "t", "title": "T", "inputSchema": {"type": "object"}, "outputSchema": {"type": "integer"},
    "annotations": {"readOnlyHint": True}, "icons": [{"src": "https://x/i.png"}], "_meta": {"a": 1},
}  # fmt: skip


def test_tools_drop_members_that_the_revision_lacks() -> None:
    """MCP 2025-06-18, server/tools and 2025-11-25, changelog."""
    assert revisions.tool(TOOL, M) == TOOL
    assert revisions.tool(TOOL, L4)["outputSchema"]["properties"] == {"result": {"type": "integer"}}
    assert "icons" not in revisions.tool(TOOL, L3)
    assert revisions.tool(TOOL, L2) == {key: TOOL[key] for key in ("name", "inputSchema", "annotations")}
    assert revisions.tool(TOOL, L1) == {key: TOOL[key] for key in ("name", "inputSchema")}
    assert revisions.tool({"name": "u", "outputSchema": {"type": "object"}}, L4)["outputSchema"] == {"type": "object"}


def test_every_revision_gets_names_and_titles() -> None:
    """MCP 2025-06-18, changelog."""
    item = {
        "uri": "a:b",
        "annotations": {"priority": 1, "lastModified": "x"},
        "arguments": [{"name": "a", "title": "A"}],
    }
    assert revisions.project_item(item, L2) == {
        "uri": "a:b",
        "annotations": {"priority": 1},
        "arguments": [{"name": "a"}],
    }
    assert revisions.project_item(item, L3) == item
    assert revisions.tool({"name": "plain"}, L4) == {"name": "plain"}
    assert revisions.project_tool_result(b'"content":[]', L1) == b'"content":[]'


def test_server_info_matches_the_revision() -> None:
    """MCP 2025-11-25, changelog."""
    info = {"name": "n", "version": "1", "title": "T", "description": "d", "websiteUrl": "u", "icons": []}
    assert revisions.implementation(info, L1) == {"name": "n", "version": "1"}
    assert revisions.implementation(info, L3) == {"name": "n", "version": "1", "title": "T"}
    assert revisions.implementation(info, M) == info
    assert revisions.capabilities({"completions": {}, "tools": {}}, L1) == {"tools": {}}
    assert "completions" in revisions.capabilities({"completions": {}}, L2)


def test_content_that_a_revision_lacks_becomes_text_or_a_resource() -> None:
    def show(block: Content, revision: revisions.Revision) -> object:
        return msgspec.json.decode(revisions.block(Raw(encode(block)), revision), type=Content)

    link, audio = ResourceLink(uri="a:b", name="n", description="d"), Audio(b"x", "audio/wav")
    assert show(link, L1) == Text("n: a:b\nd")
    assert show(audio, L1) == EmbeddedResource(uri="attachment:audio", blob=b"x", mime_type="audio/wav")
    for each in (Image(b"y", "image/png"), Text("t")):
        assert show(each, L1) == each
    assert show(link, L3) == link
    assert show(ResourceLink(uri="a:b", name="n", title="T"), L2) == Text("T: a:b")


def test_each_revision_has_the_content_of_its_schema() -> None:
    for revision in ALL:
        schema = json.loads((SCHEMAS / f"{revision.date}.schema.json").read_text("utf-8"))
        kinds = schema.get("$defs") or schema["definitions"]
        content = kinds.get("ContentBlock") or kinds["CallToolResult"]["properties"]["content"]["items"]
        names = [each["$ref"].rpartition("/")[2] for each in content["anyOf"]]
        official = {kinds[name]["properties"]["type"]["const"] for name in names}
        assert revision.content == official, (
            f"In the schema of {revision.date}, the kinds of content are {sorted(official)}. Each is a class of "
            "_protocol/content.py, and in `content` of the revisions that have it (_protocol/revisions.py)."
        )


@pytest.mark.parametrize("block", BLOCKS)
def test_no_block_reaches_a_revision_that_lacks_it(block: type[msgspec.Struct]) -> None:
    kind = block.__struct_config__.tag
    values = {bytes: "", str: "a:b"}
    members = {each.encode_name: values.get(each.type, {}) for each in fields(block) if each.required}
    raw = Raw(encode({"type": kind, **members}))
    for revision in ALL:
        converted = revisions.block(raw, revision)
        assert msgspec.json.decode(converted)["type"] in revision.content
        if kind not in revision.content:
            try:
                msgspec.json.decode(converted, type=Content)
            except msgspec.ValidationError as exc:
                pytest.fail(f"`block` in _protocol/revisions.py makes of {bytes(raw)!r} {bytes(converted)!r}: {exc}")
    foreign = Raw(b'{"type":"hologram"}')
    assert revisions.block(foreign, L1) == foreign


def test_tool_results_with_a_schema_have_only_the_content_of_the_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a revision that adds a kind of content."""
    monkeypatch.setattr(revisions, "HANDSHAKE", {L4.date: replace(L4, content=L4.content - {"image"})})
    own = Server("own", settings=Settings())
    picture = Image(data=b"x", mime_type="image/png")
    own.tool(lambda: ToolResult([picture], {"a": 1}), name="draw", output_schema={"type": "object"})
    other = FastMCP("other")
    other.tool(name="draw")(lambda: types.ImageContent(data="eA==", mimeType="image/png"))

    async def kinds(server: Any) -> list[str]:
        async with Client(server, revision=L4.date) as client:
            return [type(each).__name__ for each in (await client.call("draw")).content]

    for server in (own, other.__millstream_server__):
        assert asyncio.run(kinds(server)) == ["EmbeddedResource"]


@for_each(
    ("members", "revision", "expected"),
    [
        (b'"content":[],"structuredContent":3', L4, {"content": [], "structuredContent": {"result": 3}}),
        (b'"content":[],"structuredContent":{"a":1}', L4, {"content": [], "structuredContent": {"a": 1}}),
        (b'"content":[],"structuredContent":{"a":1}', L1, {"content": [{"type": "text", "text": '{"a":1}'}]}),
        (
            b'"content":[{"type":"text","text":"three"}],"structuredContent":3',
            L2,
            {"content": [{"type": "text", "text": "three"}]},
        ),
        (
            b'"content":[],"structuredContent":3,"isError":true',
            M,
            {"content": [], "structuredContent": 3, "isError": True},
        ),
    ],
)
def test_structured_content_is_wrapped_or_becomes_text(members: bytes, revision: object, expected: object) -> None:
    """MCP 2025-06-18, server/tools."""
    assert json.loads(b"{%b}" % revisions.project_tool_result(members, revision)) == expected  # type: ignore[arg-type]


def test_prompt_messages_are_also_converted() -> None:
    """MCP 2025-06-18, changelog."""
    members = b'"messages":[{"role":"user","content":{"type":"resource_link","uri":"a:b","name":"n"}}]'
    told = json.loads(b"{%b}" % revisions.project_prompt(members, L1))
    assert told["messages"][0]["content"] == {"type": "text", "text": "n: a:b"}


def test_conversion_of_prompts_keeps_other_members() -> None:
    """MCP 2025-06-18, server/prompts."""
    members = (
        b'"description":"Links","messages":[{"role":"user","content":{"type":"audio","data":"","mimeType":"a/b"}}]'
    )
    told = json.loads(b"{%b}" % revisions.project_prompt(members + b',"title":null', L1))
    assert told.keys() == {"description", "messages"}
    assert told["messages"][0]["content"]["type"] == "resource"
    assert revisions.project_prompt(members, L1, L1) == members


def test_errors_have_the_code_of_their_revision() -> None:
    """MCP 2026-07-28, server/resources."""
    missing = ProtocolError(RESOURCE_NOT_FOUND, "x", {"uri": "a:b"})
    assert revisions.error(missing, M).code == INVALID_PARAMS
    assert revisions.error(missing, L4).code == RESOURCE_NOT_FOUND
    capability = ProtocolError(MISSING_CLIENT_CAPABILITY, "x", status=400)
    assert revisions.error(capability, L4).code == INVALID_PARAMS
    assert revisions.error(capability, M) is capability
