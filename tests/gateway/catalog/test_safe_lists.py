"""A gateway's lists, read by clients that reject a whole list for one mistake."""

import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp import ClientSession, StdioServerParameters, stdio_client

from gateway.strangers import Json, stranger
from millstream import Server
from patience import WAIT
from processes import NODE, ROOT

pytestmark = pytest.mark.server

HERE = Path(__file__).parent.parent
DRAFT_4, DRAFT_7 = (f"http://json-schema.org/draft-0{each}/schema#" for each in (4, 7))
STRING: Json = {"type": "string"}
FIELDS: dict[str, Any] = {
    "missing": {"$ref": "#/$defs/Missing"},
    "elsewhere": {"$ref": "#/components/schemas/X"},
    "host": {"$ref": "https://example.com/s.json"},
    "file": {"$ref": "other.json#/x"},
    "metaschema": {"$ref": DRAFT_7},
    "malformed": {"$ref": "http://["},
    "percent": {"$ref": "#/$defs/100%"},
    "latin": {"$ref": "#/$defs/%E9"},
    "slash": {"$ref": "#/$defs/a%2Fb"},
    "zeros": {"$ref": "#/allOf/00"},
    "data": {"$ref": "#/properties"},
    "loop": {"$ref": "#/$defs/loop"},
    "anchor": {"$ref": "#nowhere"},
    "dynamic": {"$dynamicRef": "#nowhere"},
    "doubled": {"anyOf": [{"$anchor": "twice"}, {"$anchor": "twice", **STRING}]},
    "misnamed": {"$anchor": "9"},
    "unnamed": {"$id": 5},
    "named": {"$id": "http://example.com/named", **STRING},
    "in_anyof": {"anyOf": [{"$ref": "#/$defs/Missing"}, STRING]},
    "in_not": {"not": {"$ref": "#/$defs/Missing"}},
    "in_items": {"type": "array", "items": {"$ref": "#/$defs/Missing"}},
    "in_names": {"propertyNames": {"pattern": "(?i)a"}},
    "in_patterns": {"patternProperties": {"[": STRING, "^a": {"$ref": "#/$defs/Missing"}}},
    "in_dependencies": {"dependencies": {"a": {"$ref": "#/$defs/Missing"}, "b": ["a"]}},
    "in_then": {"if": {"pattern": "\\Aa"}, "then": {"type": "strin"}, "else": {"enum": []}},
    "flags": {"pattern": "(?i)abc"},
    "inner_flags": {"pattern": "([^\\s]+(\\.(?i)(jpeg|tiff|pdf))$)"},
    "possessive": {"pattern": "a*+"},
    "atomic": {"pattern": "(?>a)"},
    "named_group": {"pattern": "(?P<year>\\d{4})"},
    "anchors": {"pattern": "\\A\\d+\\Z"},
    "script": {"pattern": "\\p{IsGreek}"},
    "posix": {"pattern": "[[:alpha:]]"},
    "escape": {"pattern": "^\\d{4}\\-\\d{2}\\_$"},
    "open": {"pattern": "("},
    "kind": {"type": "str"},
    "upper": {"type": "STRING"},
    "kinds": {"type": ["string", "date"]},
    "empty": {"enum": []},
    "counts": {"minLength": -1, "maxLength": "5", "minItems": 1.5},
    "flag": {"uniqueItems": "yes"},
    "format": {"format": 5},
    "exclusive": {"type": "number", "minimum": 1, "exclusiveMinimum": True},
    "tuple": {"type": "array", "items": [STRING, {"type": "int"}], "additionalItems": False},
    "nullable": {"nullable": True, "$ref": "#/$defs/Fine"},
    "not_nullable": {"nullable": False, "type": ["string", "null"]},
    "old_id": {"id": "#x", **STRING},
    "asynchronous": {"$async": True},
    "ordered": {"formatMinimum": "2020-01-01"},
    "unknown": {"x-more": {"$anchor": "9", "$id": "http://["}},
    "yes": True,
    "nothing": None,
    "text": "string",
}
"""Name of a tool -> the schema of a field in it that some client refuses."""
SCHEMAS: dict[str, Any] = {
    "list": ["object"],
    "draft_4": {"$schema": DRAFT_4, "id": "http://example.com/x", "properties": {"a": {"exclusiveMaximum": True}}},
    "dialect": {"$schema": "https://example.com/own", "properties": {"a": STRING}},
    "root": {"$ref": "#/$defs/Out", "$defs": {"Out": {"type": "object"}}},
    "kinds_of_root": {"type": ["object", "null"], "properties": {"a": STRING}},
    "required": {"type": "object", "properties": [], "required": "a"},
    "array": {"type": "array", "items": STRING},
    **{f"same_id_{each}": {"$id": "http://example.com/s", "properties": {"a": {"type": each}}} for each in STRING},
}
ITEMS: list[Any] = [
    {"name": "hints", "inputSchema": {}, "annotations": {"title": None, "readOnlyHint": "true"}, "title": 5},
    {"name": "icons", "inputSchema": None, "icons": [{"src": 5}, {"src": "a:b", "sizes": "48x48", "theme": "pink"}]},
    {"name": "icon", "icons": "x", "_meta": [], "execution": {"taskSupport": "sometimes"}},
    {"name": "executed", "execution": "x", "inputSchema": {"type": ["object"]}},
    {"name": 5, "inputSchema": {}},
    "tool",
]
DEFINITIONS: Json = {"Fine": STRING, "loop": {"$ref": "#/$defs/loop"}, "a": {"b": STRING}, "100%": STRING}


def describe_tool(name: str, field: Any) -> Json:
    schema = {"type": "object", "properties": {"field": field}, "$defs": DEFINITIONS}
    return {"name": name, "inputSchema": schema, "outputSchema": schema}


LISTS: Json = {
    "tools/list": {
        "tools": [
            *[describe_tool(name, field) for name, field in FIELDS.items()],
            *[{"name": name, "inputSchema": {}, "outputSchema": each} for name, each in SCHEMAS.items()],
            *ITEMS,
        ]
    },
    "resources/list": {
        "resources": [
            {"uri": "memo://1", "name": "one", "size": "12", "mimeType": 5, "annotations": {"priority": 5}},
            {"uri": "memo://2", "name": "two", "annotations": {"audience": ["robot"], "lastModified": "yesterday"}},
            {"uri": "memo://3", "name": None},
            {"uri": 4, "name": "four"},
        ]
    },
    "resources/templates/list": {
        "resourceTemplates": [{"uriTemplate": "memo://{a}", "name": "t", "annotations": [], "icons": [None]}]
    },
    "prompts/list": {
        "prompts": [
            {"name": "p", "arguments": [{"name": 5}, {"name": "a", "required": "yes"}], "description": ["x"]},
            {"name": "q", "arguments": {"a": {}}},
        ]
    },
}
REPLIES = {method: {"result": result} for method, result in LISTS.items()}
CALLED: Json = {"tools/call": {"result": {"content": [], "structuredContent": {}}}}
FINE: Json = {"name": "hello", "inputSchema": {"type": "object"}}
COMMANDS = {
    "odd": stranger({"tools": {}, "resources": {}, "prompts": {}}, {**REPLIES, **CALLED}),
    "ok": stranger({"tools": {}}, {"tools/list": {"result": {"tools": [FINE]}}, **CALLED}),
}
TOOLS = sorted([*FIELDS, *SCHEMAS, "hints", "icons", "icon", "executed"])


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of a gateway in front of a server with mistakes in all lists, and of one without."""
    file = tmp_path_factory.mktemp("gateway") / "servers.json"
    file.write_text(
        json.dumps({"mcpServers": {name: {"command": argv[0], "args": argv[1:]} for name, argv in COMMANDS.items()}})
    )
    return [str(ROOT / ".venv" / "bin" / "millstream"), "gateway", str(file), "--transport", "stdio"]


@pytest.mark.parametrize(("line", "packages"), [("1", "conformance"), ("2", "interop")])
def test_typescript_sdk_lists_and_calls_every_tool(gateway: list[str], line: str, packages: str) -> None:
    command = [NODE, str(HERE / "foreign" / "list.mjs"), str(ROOT / "tests" / packages), line, *gateway]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT, check=True)
    report = json.loads(done.stdout)
    assert sorted(each["name"] for each in report["tools"].get("tools", [])) == sorted(
        ["ok_hello", *[f"odd_{each}" for each in TOOLS]]
    ), report["tools"]
    assert [each["name"] for each in report["resources"]["resources"]] == ["odd_one", "odd_two"]
    assert [each["name"] for each in report["resourceTemplates"]["resourceTemplates"]] == ["odd_t"]
    assert [each["name"] for each in report["prompts"]["prompts"]] == ["odd_p", "odd_q"]
    assert report["failed"] == {}


async def test_python_sdk_lists_and_calls_every_tool(gateway: list[str]) -> None:
    parameters = StdioServerParameters(command=gateway[0], args=gateway[1:])
    async with stdio_client(parameters, errlog=sys.__stderr__) as streams, ClientSession(*streams) as session:
        await session.initialize()
        names = [each.name for each in (await session.list_tools()).tools]
        assert len(names) == len(TOOLS) + 1
        assert len((await session.list_resources()).resources) == 2
        assert len((await session.list_resource_templates()).resource_templates) == 1
        assert len((await session.list_prompts()).prompts) == 2
        for name in names:
            assert not (await session.call_tool(name, {})).is_error


def make_gateway() -> Server:
    mcp = Server("front", serve="rest")
    for name, command in COMMANDS.items():
        mcp.upstream(name, command, prefix=name, start_timeout=WAIT)
    return mcp


async def test_openapi_document_for_repaired_tools_has_no_dangling_reference() -> None:
    mcp = make_gateway()
    async with mcp.running(), httpx2.AsyncClient(transport=httpx2.ASGITransport(mcp)) as http:
        document = (await http.get("http://127.0.0.1/openapi.json")).json()
    assert "/tools/odd_missing" in document["paths"]
    pending: list[Any] = [document]
    while pending:
        node = pending.pop()
        pending += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        reference = node.get("$ref") if isinstance(node, dict) else None
        if isinstance(reference, str):
            target: Any = document
            for part in reference.removeprefix("#").split("/")[1:]:
                target = target[part.replace("~1", "/").replace("~0", "~")]
            assert isinstance(target, dict), reference


async def test_mistakes_in_an_upstreams_lists_are_logged_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "millstream.gateway"):
        async with make_gateway().running():
            pass
    lines = [each.getMessage() for each in caplog.records if "reject" in each.getMessage()]
    assert len(lines) == 1
    assert "#/$defs/Missing" in lines[0]
    assert len(lines[0]) < 2000
