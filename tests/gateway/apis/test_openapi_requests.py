"""The requests of tools from OpenAPI documents: each place, style, and kind of body."""

from base64 import encodebytes
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI

from api_calls import (
    BASE,
    LIST,
    OBJECT,
    TEXT,
    Api,
    body,
    multipart,
    operation,
    parameter,
    refusal,
    sent,
    sent_json,
    tools,
)
from cases import for_each
from millstream import Client, Server
from patience import WAIT

COLORS = {"type": "object", "properties": {"R": {"type": "integer"}, "G": {"type": "integer"}}}
RGB = {"R": 100, "G": 200}
BOTH = ["blue", "black"]
PATHS: list[tuple[dict[str, Any], Any, str]] = [
    ({}, "blue", "blue"),
    ({}, BOTH, "blue,black"),
    ({}, RGB, "R,100,G,200"),
    ({"explode": True}, BOTH, "blue,black"),
    ({"explode": True}, RGB, "R=100,G=200"),
    ({"style": "label"}, "blue", ".blue"),
    ({"style": "label"}, BOTH, ".blue,black"),
    ({"style": "label", "explode": True}, BOTH, ".blue.black"),
    ({"style": "label"}, RGB, ".R,100,G,200"),
    ({"style": "label", "explode": True}, RGB, ".R=100.G=200"),
    ({"style": "matrix"}, "blue", ";a=blue"),
    ({"style": "matrix"}, "", ";a"),
    ({"style": "matrix"}, BOTH, ";a=blue,black"),
    ({"style": "matrix", "explode": True}, BOTH, ";a=blue;a=black"),
    ({"style": "matrix"}, RGB, ";a=R,100,G,200"),
    ({"style": "matrix", "explode": True}, RGB, ";R=100;G=200"),
    ({}, True, "true"),
    ({}, 1.5, "1.5"),
    ({}, "é/ü?#&=;,", "%C3%A9%2F%C3%BC%3F%23%26%3D%3B%2C"),
    ({}, ["a,b", "c"], "a%2Cb,c"),
    ({}, 0, "0"),
    ({}, False, "false"),
    ({}, 2.0, "2"),
    ({}, "a:b@c", "a%3Ab%40c"),
    ({}, "a%2Fb", "a%252Fb"),
    ({}, "a..b", "a..b"),
    ({}, "...", "..."),
    ({}, "😀", "%F0%9F%98%80"),
]
"""OpenAPI 3.1.1, Style Examples."""


@pytest.mark.parametrize(("how", "value", "segment"), PATHS)
async def test_values_in_paths_follow_their_style(how: dict[str, Any], value: Any, segment: str) -> None:
    request = await sent(operation(parameter("path", {}, **how), path="/p/{a}/q"), {"a": value})
    assert request.url.raw_path.decode() == f"/api/p/{segment}/q"


QUERIES: list[tuple[dict[str, Any], Any, str]] = [
    ({}, "blue", "a=blue"),
    ({}, "", "a="),
    ({}, BOTH, "a=blue&a=black"),
    ({}, [], ""),
    ({}, RGB, "R=100&G=200"),
    ({}, {}, ""),
    ({"explode": False}, BOTH, "a=blue,black"),
    ({"explode": False}, ["x,y", "z"], "a=x%2Cy,z"),
    ({"explode": False}, [], ""),
    ({"explode": False}, RGB, "a=R,100,G,200"),
    ({"style": "spaceDelimited", "explode": False}, BOTH, "a=blue%20black"),
    ({"style": "pipeDelimited", "explode": False}, BOTH, "a=blue%7Cblack"),
    ({"style": "pipeDelimited", "explode": False}, RGB, "a=R%7C100%7CG%7C200"),
    ({"style": "deepObject", "explode": True}, RGB, "a%5BR%5D=100&a%5BG%5D=200"),
    ({"style": "deepObject"}, {"R": {"x": [1, 2]}}, "a%5BR%5D%5Bx%5D=1&a%5BR%5D%5Bx%5D=2"),
    ({"style": "deepObject"}, {"R": [{"x": 1}, {"x": 2}]}, "a%5BR%5D%5B0%5D%5Bx%5D=1&a%5BR%5D%5B1%5D%5Bx%5D=2"),
    ({"style": "deepObject"}, BOTH, "a%5B%5D=blue&a%5B%5D=black"),
    ({}, [1, True, None, {"x": 1}], "a=1&a=true&a=&a=%7B%22x%22%3A1%7D"),
    ({}, "a&b=c+d e%", "a=a%26b%3Dc%2Bd%20e%25"),
    ({"allowReserved": True}, "a/b:c?d&e=f#g+h", "a=a/b:c?d%26e=f%23g%2Bh"),
    ({"allowReserved": True}, ["a/b", "c"], "a=a/b&a=c"),
    ({"allowReserved": True}, "50%25", "a=50%2525"),
    ({"style": "spaceDelimited"}, BOTH, "a=blue%20black"),
    ({"style": "spaceDelimited", "explode": True}, BOTH, "a=blue&a=black"),
    ({"style": "pipeDelimited"}, "blue", "a=blue"),
    ({"style": "deepObject"}, {}, ""),
    ({"style": "deepObject"}, {"R": []}, ""),
    ({"style": "deepObject"}, {"R": {"x": {"y": True}}, "G": None}, "a%5BR%5D%5Bx%5D%5By%5D=true"),
    ({}, {"R": None, "G": 0}, "G=0"),
    ({}, [["x", "y"]], "a=%5B%22x%22%2C%22y%22%5D"),
    ({}, 0, "a=0"),
    ({}, False, "a=false"),
    ({}, 2.0, "a=2"),
    ({}, 1.5, "a=1.5"),
    ({}, "日本", "a=%E6%97%A5%E6%9C%AC"),
]


@pytest.mark.parametrize(("how", "value", "query"), QUERIES)
async def test_values_in_queries_follow_their_style(how: dict[str, Any], value: Any, query: str) -> None:
    schema = {**COLORS, "properties": {"R": {}, "G": {}}} if isinstance(value, dict) else {}
    request = await sent(operation(parameter("query", schema, **how)), {"a": value})
    assert request.url.query.decode() == query


@pytest.mark.parametrize(
    ("how", "value", "text"),
    [
        ({}, "blue", "blue"),
        ({}, BOTH, "blue,black"),
        ({}, RGB, "R,100,G,200"),
        ({"explode": True}, RGB, "R=100,G=200"),
        ({}, 3, "3"),
        ({}, False, "false"),
        ({}, "a, b; c=d", "a, b; c=d"),
        ({}, [], ""),
    ],
)
async def test_values_in_headers_follow_their_style(how: dict[str, Any], value: Any, text: str) -> None:
    request = await sent(operation(parameter("header", {}, "X-A", **how)), {"X-A": value})
    assert request.headers["x-a"] == text


@pytest.mark.parametrize(
    ("value", "text"),
    [("b", "a=b"), ("b; c", "a=b%3B%20c"), (BOTH, "a=blue,black"), (RGB, "a=R,100,G,200"), (True, "a=true")],
)
async def test_values_in_cookies_cannot_become_other_cookies(value: Any, text: str) -> None:
    request = await sent(operation(parameter("cookie", {})), {"a": value})
    assert request.headers["cookie"] == text


async def test_objects_that_allow_additional_properties_may_have_them() -> None:
    schema = {"type": "object", "properties": {"R": TEXT}, "additionalProperties": {}}
    request = await sent(operation(parameter("query", schema, style="deepObject")), {"a": {"x": 1}})
    assert request.url.query == b"a%5Bx%5D=1"


async def test_headers_outside_ascii_are_rejected_with_a_sentence() -> None:
    document = operation(parameter("header", TEXT, "X-A"))
    for text in ("Zoë", "a\r\nX-B: c"):
        assert "The header X-A contains characters that aren't allowed" in await refusal(document, {"X-A": text})


@pytest.mark.parametrize(
    ("path", "arguments"),
    [
        ("/p/{a}{b}/q", {"a": ".", "b": "."}),
        ("/p/.{a}/q", {"a": "."}),
        ("/p/.{a}/q", {"a": "/"}),
        ("/p/{a}/q", {"a": "%2e%2e"}),
        ("/p/{a}/q", {"a": "x/..%2f.."}),
        ("/p/{a}/q", {"a": ""}),
        ("/p/{a}/q", {"a": []}),
    ],
)
async def test_arguments_cannot_change_the_path_individually_or_together(path: str, arguments: dict[str, Any]) -> None:
    document = operation(*(parameter("path", {}, name) for name in arguments), path=path)
    assert "change the path" in await refusal(document, arguments)


async def test_label_and_dot_values_cannot_escape_the_path() -> None:
    document = operation(parameter("path", {}, style="label"), path="/p/{a}/q")
    assert "change the path" in await refusal(document, {"a": "."})


@pytest.mark.parametrize("value", [{"x": {"y][b": 1}}, {"b]": 1}, {"x": [{"[": 1}]}])
async def test_nested_object_keys_cannot_become_other_parameters(value: Any) -> None:
    document = operation(parameter("query", {"type": "object", "additionalProperties": True}, style="deepObject"))
    assert "can't contain" in await refusal(document, {"a": value})


async def test_long_names_are_not_repeated_for_each_of_their_values() -> None:
    document = operation(parameter("query", {"type": "object", "additionalProperties": True}, style="deepObject"))
    assert "too long for a name" in await refusal(
        document, {"a": {"x" * 10_000: {f"k{number}": 1 for number in range(100)}}}
    )
    assert "too long for a name" in await refusal(document, {"a": {"x": {"y" * 10_000: [{"z": 1}] * 100}}})


VARIABLES = [
    ("/p/{a}.json", "a", "/api/p/x.json"),
    ("/p/{a}:cancel", "a", "/api/p/x:cancel"),
    ("/p/{user-id}", "user-id", "/api/p/x"),
    ("/p/{user.id}/{user.id}", "user.id", "/api/p/x/x"),
    ("/a b/é/{a}", "a", "/api/a%20b/%C3%A9/x"),
]


@pytest.mark.parametrize(("path", "name", "expected"), VARIABLES)
async def test_variables_may_appear_anywhere_in_a_path(path: str, name: str, expected: str) -> None:
    request = await sent(operation(parameter("path", TEXT, name), path=path), {name: "x"})
    assert request.url.raw_path.decode() == expected


async def test_object_members_cannot_become_other_arguments() -> None:
    filters = parameter("query", {"type": "object", "additionalProperties": TEXT})
    document = operation(filters, parameter("query", TEXT, "tenant"))
    for name in ("tenant", "Tenant", "tenant[]"):
        assert "a can't contain" in await refusal(document, {"a": {name: "b"}})
    deep = operation({**filters, "style": "deepObject"}, parameter("query", TEXT, "a[tenant]"))
    assert "a can't contain" in await refusal(deep, {"a": {"tenant": "b"}})


async def test_undeclared_path_variables_are_required_arguments() -> None:
    document = operation(parameter("path", TEXT, "unknown"), path="/p/{id}/{id}")
    assert (await tools(document))["op"].input_schema["required"] == ["id"]
    assert (await sent(document, {"id": "7"})).url.path == "/api/p/7/7"


async def test_path_level_parameters_are_overridden_by_the_operation() -> None:
    document = operation(parameter("query", {"type": "integer"}), parameter("header", TEXT, "X-Own"))
    document["paths"]["/p"]["parameters"] = [
        parameter("query", TEXT),
        parameter("header", TEXT, "x-own"),
        parameter("query", TEXT, "b"),
    ]
    schema = (await tools(document))["op"].input_schema
    assert list(schema["properties"]) == ["a", "X-Own", "b"]
    assert schema["properties"]["a"]["type"] == "integer"


async def test_parameters_and_fields_with_the_same_name_are_distinct() -> None:
    fields = {"type": "object", "properties": {"id": TEXT}}
    places = [parameter(place, TEXT, "id") for place in ("path", "query", "header", "cookie")]
    document = operation(*places, method="post", path="/p/{id}", **body(fields))
    arguments = {"id": "body", "id__path": "path", "id__query": "query", "id__header": "header", "id__cookie": "cookie"}
    request = await sent(document, arguments)
    assert (request.url.path, request.url.query) == ("/api/p/path", b"id=query")
    assert (request.headers["id"], request.headers["cookie"]) == ("header", "id=cookie")
    assert sent_json(request) == {"id": "body"}


@pytest.mark.parametrize(
    ("media", "value", "text"),
    [("application/json", {"x": 1}, '{"x":1}'), ("application/json", "x", '"x"'), ("text/csv", "x,y", "x,y")],
)
async def test_parameters_with_content_are_written_by_its_media_type(media: str, value: Any, text: str) -> None:
    document = operation({"name": "a", "in": "query", "content": {media: {"schema": {}}}})
    assert dict((await sent(document, {"a": value})).url.params) == {"a": text}


async def test_client_parameters_are_kept_in_addition_to_call_parameters() -> None:
    api = Api()
    mcp = Server.from_openapi(operation(parameter("query", OBJECT)), api.client(params={"key": "secret"}))
    async with Client(mcp, timeout=WAIT) as client:
        await client.call("op", {"a": {"x": "1", "KEY": "other"}})
    assert api.requests[0].url.query == b"key=secret&x=1"


NULLABLE = {"type": ["string", "null"]}
MAYBE = {"type": "object", "properties": {"note": NULLABLE, "name": TEXT}}


@pytest.mark.parametrize(
    ("schema", "arguments", "expected"),
    [
        (MAYBE, {"note": None}, {"note": None}),
        (MAYBE, {"name": None}, {}),
        (MAYBE, {"name": None, "note": "x"}, {"note": "x"}),
        (MAYBE, {}, {}),
        ({**MAYBE, "required": ["note"]}, {"note": None}, {"note": None}),
        ({"type": "object", "properties": {"in": MAYBE}}, {"in": {"note": None}}, {"in": {"note": None}}),
        ({"type": ["array", "null"]}, {"body": None}, None),
        ({"properties": {"n": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}}, {"n": None}, {"n": None}),
        ({"properties": {"n": {"enum": ["a", None]}}}, {"n": None}, {"n": None}),
        ({"properties": {"n": {"const": None}}}, {"n": None}, {"n": None}),
        ({"properties": {"n": {}}}, {"n": None}, {"n": None}),
        ({"properties": {"n": {"type": "integer"}}}, {"n": "2"}, {"n": 2}),
        ({"properties": {"n": {"type": "integer"}}}, {"n": 2.0}, {"n": 2}),
        ({"properties": {"n": {"type": "boolean"}}}, {"n": "true"}, {"n": True}),
        ({"properties": {"n": {"oneOf": [{"type": "integer"}, TEXT]}}}, {"n": "2"}, {"n": "2"}),
        (
            {"properties": {"a": TEXT}, "additionalProperties": {"type": "integer"}},
            {"a": "x", "b": 2},
            {"a": "x", "b": 2},
        ),
        ({"type": "object", "additionalProperties": TEXT}, {"body": {"a": "x"}}, {"a": "x"}),
        (
            {"allOf": [{"properties": {"a": TEXT}}, {"properties": {"b": TEXT}}]},
            {"a": "1", "b": "2"},
            {"a": "1", "b": "2"},
        ),
        (
            {"properties": {"a": TEXT}, "oneOf": [{"properties": {"b": TEXT}}]},
            {"a": "1", "b": "2"},
            {"a": "1", "b": "2"},
        ),
        (LIST, {"body": ["a"]}, ["a"]),
        ({"type": "integer"}, {"body": 7}, 7),
        ({"type": "integer"}, {"body": 0}, 0),
        ({"type": "boolean"}, {"body": False}, False),
        (TEXT, {"body": ""}, ""),
        ({"properties": {"n": {"type": ["integer", "null"]}}}, {"n": "2"}, {"n": 2}),
        ({"properties": {"n": {"type": ["integer", "string"]}}}, {"n": "2"}, {"n": "2"}),
        ({"properties": {"n": {"anyOf": [{"type": "integer"}, {"type": "null"}]}}}, {"n": "2"}, {"n": 2}),
        ({"properties": {"n": {"properties": {"m": {"type": "number"}}}}}, {"n": {"m": "2.5"}}, {"n": {"m": 2.5}}),
        (
            {"properties": {"n": {"type": "array", "items": {"type": "boolean"}}}},
            {"n": ["true", False]},
            {"n": [True, False]},
        ),
        ({"properties": {"n": LIST, "o": OBJECT}}, {"n": [], "o": {}}, {"n": [], "o": {}}),
        ({"properties": {"n": {"type": "integer"}}}, {"n": 12345678901234567890}, {"n": 12345678901234567890}),
        ({"properties": {"n": {"type": "string", "default": "x"}}}, {}, {}),
        (
            {"properties": {"o": {"properties": {"id": {"readOnly": True}, "n": TEXT}, "required": ["id"]}}},
            {"o": {"n": "x"}},
            {"o": {"n": "x"}},
        ),
        ({"properties": {"p": {"type": "string", "writeOnly": True}}, "required": ["p"]}, {"p": "x"}, {"p": "x"}),
        ({"properties": {"a": TEXT}, "additionalProperties": {}}, {"a": "x", "b": [1]}, {"a": "x", "b": [1]}),
        (
            {"allOf": [{"properties": {"a": TEXT}}, {"additionalProperties": True}]},
            {"a": "x", "b": 1},
            {"a": "x", "b": 1},
        ),
        ({"properties": {"a": TEXT}, "patternProperties": {"^x": TEXT}}, {"a": "x", "xb": "y"}, {"a": "x", "xb": "y"}),
        (
            {"properties": {"v": {"type": ["object", "array"], "properties": {"n": {"type": "integer"}}}}},
            {"v": {"n": "2"}},
            {"v": {"n": 2}},
        ),
    ],
)
async def test_json_bodies_keep_what_the_schema_allows(schema: Any, arguments: dict[str, Any], expected: Any) -> None:
    assert sent_json(await sent(operation(method="patch", **body(schema)), arguments)) == expected


@pytest.mark.parametrize(
    ("schema", "value"),
    [
        ({"type": "string", "nullable": True}, None),
        ({"type": "string", "enum": ["x"], "nullable": True}, None),
        ({"allOf": [{"type": "object"}], "nullable": True}, None),
        ({"type": "integer", "minimum": 0, "exclusiveMinimum": True}, 1),
    ],
)
async def test_version_3_0_json_bodies_keep_what_the_schema_allows(schema: Any, value: Any) -> None:
    document = operation(method="patch", **body({"type": "object", "properties": {"n": schema}}))
    assert sent_json(await sent({**document, "openapi": "3.0.3"}, {"n": value})) == {"n": value}


@pytest.mark.parametrize(
    "schema",
    [
        {"properties": {"a": TEXT}},
        {"properties": {"a": TEXT}, "additionalProperties": False, "allOf": [{"additionalProperties": True}]},
        {"properties": {"a": TEXT, "b": {"type": "string", "readOnly": True}}},
    ],
)
async def test_unknown_arguments_are_rejected_by_name(schema: Any) -> None:
    text = await refusal(operation(method="patch", **body(schema)), {"a": "x", "b": 1})
    assert "unknown 'b'. Expected: {\"a\": string (optional)}" in text


async def test_optional_bodies_without_members_are_not_sent() -> None:
    request = await sent(operation(method="patch", **body(MAYBE, required=False)), {})
    assert (request.content, request.headers.get("content-type")) == (b"", None)


async def test_nulls_outside_json_bodies_are_omitted() -> None:
    document = operation(
        parameter("query", NULLABLE, "q"), parameter("header", NULLABLE, "X-H"), parameter("cookie", NULLABLE, "c"),
        method="post", **body(MAYBE, "application/x-www-form-urlencoded"),
    )  # fmt: skip
    request = await sent(document, {"q": None, "X-H": None, "c": None, "note": None, "name": "n"})
    assert (request.url.query, request.content) == (b"", b"name=n")
    assert not {"x-h", "cookie"} & set(request.headers)


@pytest.mark.parametrize(
    ("media", "text", "sent_bytes", "sent_as"),
    [
        ("text/csv", "a,b", b"a,b", "text/csv"),
        ("application/xml", "<a/>", b"<a/>", "application/xml"),
        ("application/soap+xml", "<a/>", b"<a/>", "application/soap+xml"),
        ("application/x-ndjson", '{"a":1}\n', b'{"a":1}\n', "application/x-ndjson"),
        ("application/yaml", "a: 1", b"a: 1", "application/yaml"),
        ("application/graphql", "{a}", b"{a}", "application/graphql"),
        ("text/plain; charset=iso-8859-1", "é", b"\xe9", "text/plain; charset=iso-8859-1"),
        ("text/*", "x", b"x", "text/plain"),
        ("application/octet-stream", "aGVsbG8=", b"hello", "application/octet-stream"),
        ("application/pdf", "aGVsbG8=", b"hello", "application/pdf"),
        ("image/*", "data:image/png;base64,aGVsbG8=", b"hello", "image/png"),
        ("image/*", "aGVsbG8=", b"hello", "application/octet-stream"),
        ("image/png", "data:,hello", b"hello", "image/png"),
        ("application/zip", "-_8=", b"\xfb\xff", "application/zip"),
        ("application/zip", "-_8", b"\xfb\xff", "application/zip"),
        ("application/pdf", "aGVsbG8", b"hello", "application/pdf"),
        ("application/pdf", " aGVs\n  bG8=\n", b"hello", "application/pdf"),
        ("application/pdf", "aGVs bG8=\t", b"hello", "application/pdf"),
        ("application/pdf", encodebytes(bytes(90)).decode(), bytes(90), "application/pdf"),
        ("application/pdf", encodebytes(bytes(90)).decode().replace("\n", " "), bytes(90), "application/pdf"),
        ("image/*", "data:image/png;base64,aGVsbG8", b"hello", "image/png"),
    ],
)
async def test_other_bodies_are_text_or_base64(media: str, text: str, sent_bytes: bytes, sent_as: str) -> None:
    for schema in (OBJECT, {"type": "string", "format": "binary"}, {}):
        request = await sent(operation(method="post", **body(schema, media)), {"body": text})
        assert (request.content, request.headers["content-type"]) == (sent_bytes, sent_as)


async def test_bodies_of_any_type_can_be_declared_as_files() -> None:
    request = await sent(
        operation(method="post", **body({"type": "string", "format": "binary"}, "*/*")), {"body": "aGk="}
    )
    assert (request.content, request.headers["content-type"]) == (b"hi", "application/octet-stream")


@pytest.mark.parametrize(
    "text",
    ["not base64", "abc", "Report", "letters", "Read this", "Some\nText", "the 1984 data", "data:image/png;base64,***"],
)
async def test_text_in_place_of_base64_is_rejected_with_the_reason(text: str) -> None:
    document = operation(method="post", **body({}, "application/octet-stream"))
    assert "must be base64" in await refusal(document, {"body": text})


FILE = {"type": "string", "format": "binary"}


PDF = {"type": "string", "contentMediaType": "application/pdf"}
DATA = "data:image/webp;base64,aGk="


async def test_file_names_that_cannot_be_sent_are_explained() -> None:
    document = operation(method="post", **body({"type": "object", "properties": {"f": FILE}}, "multipart/form-data"))
    assert "file name of f" in await refusal(document, {"f": "aGk=", "f__filename": "a\x0b.txt"})


@pytest.mark.parametrize(
    ("schema", "allowed", "value", "file_name", "expected"),
    [
        (FILE, "", "aGk=", "", ("f.bin", "application/octet-stream")),
        (FILE, "", "aGk=", "é.png", ("é.png", "image/png")),
        (FILE, "image/png, image/gif", "aGk=", "a.gif", ("a.gif", "image/gif")),
        (FILE, "image/png", "aGk=", "a.gif", ("a.gif", "image/png")),
        (FILE, "image/*", DATA, "a", ("a", "image/webp")),
        (TEXT, "image/png", "aGk=", "", ("f.png", "image/png")),
        ({"anyOf": [FILE, {"type": "null"}]}, "", "aGk=", 'a".txt', ("a%22.txt", "text/plain")),
        (PDF, "", "aGk=", "a.pdf", ("a.pdf", "application/pdf")),
    ],
)
async def test_files_are_parts_with_a_name_and_a_type(
    schema: Any, allowed: str, value: str, file_name: str, expected: tuple[str, str]
) -> None:
    encoding = {"f": {"contentType": allowed}} if allowed else {}
    fields = {"type": "object", "properties": {"f": schema}}
    document = operation(method="post", **body(fields, "multipart/form-data", encoding=encoding))
    request = await sent(document, {"f": value, **({"f__filename": file_name} if file_name else {})})
    name, kind = expected
    assert multipart(request) == [(f'form-data; name="f"; filename="{name}"', {"Content-Type": kind}, b"hi")]


@pytest.mark.parametrize(
    ("schema", "value", "contents"),
    [
        ({"type": "array", "items": FILE}, [], []),
        (LIST, [], []),
        (LIST, BOTH, [b"blue", b"black"]),
        ({"type": "array", "items": {"type": "integer"}}, [1, 2], [b"1", b"2"]),
        ({"type": "array", "items": OBJECT}, [{"x": 1}, {"x": 2}], [b'{"x":1}', b'{"x":2}']),
    ],
)
async def test_lists_become_one_part_per_item(schema: Any, value: Any, contents: list[bytes]) -> None:
    fields = {"type": "object", "properties": {"f": schema, "a": TEXT}}
    request = await sent(operation(method="post", **body(fields, "multipart/form-data")), {"f": value, "a": "x"})
    assert [content for _, _, content in multipart(request)] == [*contents, b"x"]


async def test_files_under_any_name_are_parts_with_a_name() -> None:
    fields = {"type": "object", "additionalProperties": FILE}
    request = await sent(operation(method="post", **body(fields, "multipart/form-data")), {"body": {"f": "aGk="}})
    assert multipart(request) == [
        ('form-data; name="f"; filename="f.bin"', {"Content-Type": "application/octet-stream"}, b"hi")
    ]


async def test_several_files_have_their_own_names() -> None:
    fields = {"type": "object", "properties": {"f": {"type": "array", "items": FILE}}}
    document = operation(method="post", **body(fields, "multipart/form-data"))
    request = await sent(document, {"f": ["aGk=", "aGk="], "f__filename": ["a.txt"]})
    assert [each for each, _, _ in multipart(request)] == [
        'form-data; name="f"; filename="a.txt"', 'form-data; name="f"; filename="f.bin"',
    ]  # fmt: skip


@pytest.mark.parametrize("schema", [LIST, {"$ref": "#/components/schemas/Photos"}])
async def test_lists_whose_parts_have_the_type_of_a_file_are_files(schema: Any) -> None:
    fields = {"type": "object", "properties": {"f": schema}}
    encoding = {"f": {"contentType": "image/png, image/jpeg"}}
    document = operation(method="post", **body(fields, "multipart/form-data", encoding=encoding))
    document["components"] = {"schemas": {"Photos": LIST}}
    request = await sent(document, {"f": ["aGk=", "eW8="], "f__filename": ["a.jpeg"]})
    assert [(each["Content-Type"], content) for _, each, content in multipart(request)] == [
        ("image/jpeg", b"hi"), ("image/png", b"yo"),
    ]  # fmt: skip


@pytest.mark.parametrize("keyword", ["oneOf", "anyOf"])
async def test_files_in_alternatives_are_parts_with_a_name(keyword: str) -> None:
    alternatives = [{"properties": {"f": FILE}, "required": ["f"]}, {"properties": {"url": TEXT}, "required": ["url"]}]
    document = operation(method="post", **body({keyword: alternatives}, "multipart/form-data"))
    (part,) = multipart(await sent(document, {"f": "aGk="}))
    assert part == ('form-data; name="f"; filename="f.bin"', {"Content-Type": "application/octet-stream"}, b"hi")
    assert [content for _, _, content in multipart(await sent(document, {"url": "u"}))] == [b"u"]


ENCODED = {"type": "string", "contentEncoding": "base64", "contentMediaType": "image/png"}


@pytest.mark.parametrize(
    ("schema", "encoding", "value", "name", "headers", "content"),
    [
        (OBJECT, {}, {"x": 1}, "f", {"Content-Type": "application/json"}, b'{"x":1}'),
        (TEXT, {"contentType": "text/csv"}, "a", "f", {"Content-Type": "text/csv"}, b"a"),
        (OBJECT, {"style": "deepObject"}, {"x": {"y": 1}}, "f[x][y]", {}, b"1"),
        (ENCODED, {}, "aGk=", "f", {}, b"aGk="),
        ({"type": "integer"}, {}, 3, "f", {}, b"3"),
        (TEXT, {}, "é\r\n--x", "f", {}, "é\r\n--x".encode()),
    ],
)
async def test_other_parts_follow_schema_and_encoding(
    schema: Any, encoding: dict[str, Any], value: Any, name: str, headers: dict[str, str], content: bytes
) -> None:
    fields = {"type": "object", "properties": {"f": schema}}
    document = operation(method="post", **body(fields, "multipart/form-data", encoding={"f": encoding}))
    assert multipart(await sent(document, {"f": value})) == [(f'form-data; name="{name}"', headers, content)]


@pytest.mark.parametrize(
    ("encoding", "value", "form"),
    [
        ({}, BOTH, b"f=blue&f=black"),
        ({}, {"x": 1}, b"f=%7B%22x%22%3A1%7D"),
        ({"explode": False}, BOTH, b"f=blue,black"),
        ({"style": "deepObject", "explode": True}, {"x": 1, "y": {"z": 2}}, b"f%5Bx%5D=1&f%5By%5D%5Bz%5D=2"),
        ({"style": "deepObject", "explode": True}, [{"x": 1}], b"f%5B0%5D%5Bx%5D=1"),
        ({"style": "form"}, {"x": 1}, b"x=1"),
        ({"contentType": "application/json"}, BOTH, b"f=%5B%22blue%22%2C%22black%22%5D"),
        ({"allowReserved": True}, "a/b", b"f=a/b"),
        ({}, "é&=", b"f=%C3%A9%26%3D"),
        ({}, "x y", b"f=x%20y"),
        ({}, True, b"f=true"),
        ({}, [], b""),
        ({"style": "pipeDelimited", "explode": False}, BOTH, b"f=blue%7Cblack"),
        ({"style": "deepObject"}, {"k": None, "l": "x"}, b"f%5Bl%5D=x"),
    ],
)
async def test_forms_follow_their_encoding(encoding: dict[str, Any], value: Any, form: bytes) -> None:
    media = "application/x-www-form-urlencoded"
    fields = {"type": "object", "properties": {"f": {}}}
    request = await sent(operation(method="post", **body(fields, media, encoding={"f": encoding})), {"f": value})
    assert (request.content, request.headers["content-type"]) == (form, media)


async def test_form_members_cannot_become_other_fields() -> None:
    fields = {"type": "object", "properties": {"f": OBJECT, "tenant": TEXT}}
    media, encoding = "application/x-www-form-urlencoded", {"f": {"style": "form", "explode": True}}
    document = operation(method="post", **body(fields, media, encoding=encoding))
    assert "can't contain 'tenant'" in await refusal(document, {"tenant": "a", "f": {"tenant": "b"}})


async def test_json_is_preferred_among_media_types() -> None:
    content = {
        media: {"schema": OBJECT} for media in ("application/xml", "multipart/form-data", "application/vnd.a+json")
    }
    document = operation(method="post", requestBody={"content": content, "required": True})
    assert (await sent(document, {"body": {"a": 1}})).headers["content-type"] == "application/vnd.a+json"


@pytest.mark.parametrize(
    ("servers", "own", "url"),
    [
        ([{"url": BASE}], [{"url": f"{BASE}/v2"}], f"{BASE}/v2/p"),
        ([{"url": "/api"}], [{"url": "/api/v2/"}], f"{BASE}/v2/p"),
        ([{"url": "https://elsewhere.test/v1"}], [{"url": "https://elsewhere.test/v1/beta"}], f"{BASE}/beta/p"),
        ([], [{"url": f"{BASE}/{{v}}", "variables": {"v": {"default": "3"}}}], f"{BASE}/3/p"),
        ([{"url": BASE}], [{"url": "v9"}], f"{BASE}/v9/p"),
        ([{"url": "//cluster.local"}], [{"url": "https://cluster.local/v1"}], f"{BASE}/v1/p"),
        ([{"url": BASE}], [{"url": "./v9/"}], f"{BASE}/v9/p"),
        ([{"url": BASE}], [], f"{BASE}/p"),
        ([{"url": BASE}], [{"url": "https://upload.test/up"}], "https://upload.test/up/p"),
        ([{"url": BASE}], [{"url": "HTTPS://Upload.test:443/up"}], "https://upload.test/up/p"),
        ([{"url": BASE}], [{"url": "http://shop.test:80/api/v2"}], f"{BASE}/v2/p"),
        ([{"url": BASE}], [{"url": "/other"}, {"url": "/api/v2"}], f"{BASE}/v2/p"),
        ([{"url": BASE}], [{"url": "https://a.test"}, {"url": "https://upload.test/"}], "https://upload.test/p"),
        ([{"url": BASE}], [{"url": "https://a.test"}, {"url": f"{BASE}/v2"}], f"{BASE}/v2/p"),
    ],
)
async def test_operations_with_their_own_server_are_called_there(servers: Any, own: Any, url: str) -> None:
    document = {**operation(servers=own), "servers": servers}
    if not servers:
        document["paths"]["/q"] = {"get": {"operationId": "q", "responses": {}}}
        document["servers"] = [{"url": BASE}]
    assert str((await sent(document, {}, hosts=["https://upload.test"])).url) == url


async def test_paths_without_a_slash_cannot_change_the_host() -> None:
    for path in ("@evil.test/p", ".evil.test/p", ":80@evil.test/p"):
        request = await sent(operation(path=path), {})
        assert str(request.url) == f"{BASE}/{path}"


@pytest.mark.parametrize("base", ["http://shop.test", "http://shop.test/v3", "http://mock.test"])
async def test_base_urls_replace_only_the_origin_of_servers_that_operations_have(base: str) -> None:
    api = Api()
    mcp = Server.from_openapi(operation(servers=[{"url": "http://shop.test/v3"}]), api.client(base_url=base))
    async with Client(mcp, timeout=WAIT) as client:
        await client.call("op")
    assert str(api.requests[0].url) == f"{base.removesuffix('/v3')}/v3/p"


@for_each("url", [
    "https://upload.test/up", "http://shop.test/other", "/other", "/", "../v9", "/api/../v9", "/apiary",
    "v1/%2e%2e/%2E%2e/v9", f"{BASE}/../v9", f"{BASE}/v1/../../v9", f"{BASE}/%2e%2e/v9", f"{BASE}/%252e%252e/v9",
    f"{BASE}/..%2fv9", f"{BASE}/..\\v9", f"{BASE}/..;x/v9", "http://shop.test:8080/api", "http://a@shop.test/api", "http://shop.test\\@evil.test/api",
])  # fmt: skip
@for_each("has_path", [False, True])
async def test_servers_outside_of_the_base_url_are_skipped_with_the_reason(
    url: str, has_path: bool, caplog: pytest.LogCaptureFixture
) -> None:
    document = {**operation(), "servers": [{"url": BASE}]}
    item = document["paths"]["/p"]
    (item if has_path else item["get"])["servers"] = [{"url": url}]
    assert await tools(document) == {}
    reason = (
        f"skipped GET /p, because it has its own server, {url}, which isn't below the base URL. "
        "To use it, add its origin to hosts"
    )
    assert reason in caplog.text


async def test_hosts_can_contain_the_origin_of_the_api() -> None:
    document = {**operation(servers=[{"url": "/other"}]), "servers": [{"url": BASE}]}
    assert str((await sent(document, {}, hosts=["http://shop.test"])).url) == "http://shop.test/other/p"
    document = {**operation(servers=[{"url": "http://shop.test/a/../b"}]), "servers": [{"url": BASE}]}
    assert await tools(document, hosts=["http://shop.test"]) == {}


@for_each("charset", ["punycode", "unicode_escape", "utf-7", "base64", "no-such-charset", "iso-8859-1", "us-ascii"])
async def test_bodies_that_a_charset_lacks_are_not_sent(charset: str) -> None:
    media = f"text/plain; charset={charset}"
    error = await refusal(operation(method="post", **body(TEXT, media)), {"body": "5 €"})
    assert f"body has characters that can't be sent as {media}." in error


@for_each(
    ("charset", "text", "content"),
    [("windows-1252", "€", b"\x80"), ("X-SJIS", "∠", b"\x81\xda"), ("utf-16le", "€", b"\xac\x20")],
)
async def test_bodies_are_sent_in_the_charset_of_their_media_type(charset: str, text: str, content: bytes) -> None:
    document = operation(method="post", **body(TEXT, f"text/plain; charset={charset}"))
    assert (await sent(document, {"body": text})).content == content


@for_each("path", ["/a/../b", "/%2e%2e/b", "/..;/b", "/a\\..\\b"])
async def test_paths_with_dot_segments_are_skipped(path: str) -> None:
    assert await tools(operation(path=path)) == {}


@pytest.mark.parametrize(("place", "style"), [("querystring", "form"), ("cookie", "cookie"), ("formdata", "form")])
async def test_parameters_of_unsupported_kinds_skip_their_operation_with_the_reason(
    place: str, style: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert await tools(operation(parameter(place, TEXT, style=style))) == {}
    assert f"its place or style isn't supported ({place})" in caplog.text


async def test_methods_without_a_name_in_openapi_are_skipped_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    document = operation()
    document["paths"]["/p"]["additionalOperations"] = {"COPY": {"operationId": "copy", "responses": {}}}
    assert list(await tools(document)) == ["op"]
    assert "skipped COPY /p, because additionalOperations aren't supported" in caplog.text


@pytest.mark.parametrize(
    "field",
    [
        {"$ref": "#/components/schemas/Id", "readOnly": True},
        {"$ref": "#/components/schemas/Generated"},
        {"allOf": [{"$ref": "#/components/schemas/Generated"}], "description": "Id"},
        {"allOf": [{"$ref": "#/components/schemas/Id"}], "readOnly": True},
    ],
)
async def test_read_only_fields_are_not_arguments_wherever_they_are_marked(field: Any) -> None:
    schema = {"type": "object", "properties": {"id": field, "n": TEXT}, "required": ["id", "n"]}
    document = operation(method="post", **body(schema))
    document["components"] = {"schemas": {"Id": TEXT, "Generated": {**TEXT, "readOnly": True}}}
    assert list((await tools(document))["op"].input_schema["properties"]) == ["n"]
    assert sent_json(await sent(document, {"n": "x"})) == {"n": "x"}


async def test_operations_beside_a_reference_are_also_offered() -> None:
    document = operation()
    document["paths"] = {"/p": {"$ref": "#/components/pathItems/P", "get": {"operationId": "a", "responses": {}}}}
    document["components"] = {"pathItems": {"P": {"put": {"operationId": "b", "responses": {}}}}}
    assert set(await tools(document)) == {"a", "b"}


async def test_descriptions_of_media_types_can_be_references() -> None:
    content = {"application/json": {"$ref": "#/components/mediaTypes/M"}}
    query = {"name": "q", "in": "query", "content": content}
    document = operation(query, method="post", requestBody={"content": content})
    document["components"] = {"mediaTypes": {"M": {"schema": {"type": "object", "properties": {"a": {}}}}}}
    request = await sent(document, {"a": 1, "q": {"a": 2}})
    assert (sent_json(request), dict(request.url.params)) == ({"a": 1}, {"q": '{"a":2}'})


async def test_parameters_that_contain_keys_are_hidden_from_models() -> None:
    document = operation(parameter("query", TEXT, "key"), parameter("header", TEXT, "x-KEY"), parameter("query", TEXT))
    document["components"] = {
        "securitySchemes": {
            "a": {"type": "apiKey", "in": "query", "name": "key"},
            "b": {"type": "apiKey", "in": "header", "name": "X-Key"},
        }
    }
    assert list((await tools(document))["op"].input_schema["properties"]) == ["a"]


async def test_argument_names_work_with_every_model_and_reach_the_api() -> None:
    names = {
        "$top": "top",
        "filter[name]": "filter_name",
        "größe": "grosse",
        "数": "value",
        "@odata.type": "odata.type",
    }
    names |= {"n" * 70: "n" * 60, "top": "top", "a b": "a_b", "größe": "groe"}
    document = operation(*(parameter("query", TEXT, name) for name in names))
    listed = list((await tools(document))["op"].input_schema["properties"])
    assert listed == ["top_2", "filter_name", "groe", "value", "odata.type", "n" * 60, "top", "a_b"]
    request = await sent(document, dict(zip(listed, map(str, range(len(listed))), strict=True)))
    assert dict(request.url.params) == {name: str(number) for number, name in enumerate(names)}


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (["users__list", "users__create"], ["users_list", "users_create"]),
        (["users__list", "orders__list"], ["users", "orders"]),
        (["获取用户"], ["GET_0"]),
        (["--"], ["GET_0"]),
        (["Bücher zählen"], ["Bucher_zahlen"]),
        (["list", "list"], ["list", "list_2"]),
        ([7], ["GET_0"]),
        (["a.b/c-d"], ["a_b_c_d"]),
    ],
)
async def test_tool_names_are_plain_and_unique(ids: list[Any], expected: list[str]) -> None:
    document = operation()
    document["paths"] = {f"/{n}": {"get": {"operationId": each, "responses": {}}} for n, each in enumerate(ids)}
    assert list(await tools(document)) == expected


async def test_schema_values_are_converted_to_their_declared_type() -> None:
    schemas = {
        "text": {"type": "string", "enum": [True, 1, "on"], "default": False},
        "number": {"type": "integer", "enum": ["1", 2.0], "default": "1"},
        "flag": {"type": "boolean", "default": "true"},
    }
    found = (await tools(operation(*(parameter("query", each, name) for name, each in schemas.items()))))["op"]
    assert found.input_schema["properties"] == {
        "text": {"type": "string", "enum": ["true", "1", "on"], "default": "false"},
        "number": {"type": "integer", "enum": [1, 2], "default": 1},
        "flag": {"type": "boolean", "default": True},
    }


async def test_required_names_are_listed_once() -> None:
    schema = {"type": "object", "properties": {"a": TEXT}, "required": ["a", "a", "id"]}
    document = operation(parameter("path", TEXT, "id"), method="post", path="/p/{id}", **body(schema))
    assert (await tools(document))["op"].input_schema["required"] == ["id", "a"]


async def test_alternatives_with_a_discriminator_require_their_tag() -> None:
    references = [{"$ref": f"#/components/schemas/{name}"} for name in ("Cat", "Dog")]
    mapping = {"cat": "Cat", "dog": "#/components/schemas/Dog"}
    union = {"oneOf": references, "discriminator": {"propertyName": "kind", "mapping": mapping}}
    document = operation(method="post", **body(union))
    pet = {"type": "object", "properties": {"kind": TEXT, "lives": {"type": "integer"}}}
    document["components"] = {"schemas": {"Cat": pet, "Dog": {**pet, "x-internal": True}}}
    schema = (await tools(document))["op"].input_schema
    assert "discriminator" not in str(schema)
    assert "x-internal" not in str(schema)
    assert "missing 'kind'" in await refusal(document, {"body": {"lives": 3}})
    assert await refusal(document, {"body": {"kind": "cow"}})
    assert sent_json(await sent(document, {"body": {"kind": "dog"}})) == {"kind": "dog"}


@for_each("within", ["object", "list", "variant", "body"])
async def test_subtypes_of_a_discriminator_show_their_properties_anywhere(within: str) -> None:
    ref = {"$ref": "#/components/schemas/Pet"}
    places = {
        "object": {"properties": {"pet": ref}},
        "list": {"properties": {"pet": {"type": "array", "items": ref}}},
        "variant": {"properties": {"pet": {"anyOf": [ref, {"type": "null"}]}}},
        "body": ref,
    }
    mapping = {"cat": "Cat", "dog": "#/components/schemas/Dog"}
    pet = {
        "type": "object", "properties": {"kind": TEXT, "owner": ref}, "required": ["kind"],
        "discriminator": {"propertyName": "kind", "mapping": mapping},
    }  # fmt: skip
    document = operation(method="post", **body(places[within]))
    document["components"] = {"schemas": {
        "Pet": pet,
        "Cat": {"allOf": [ref, {"properties": {"lives": {"type": "integer"}}}]},
        "Dog": {"allOf": [ref, {"properties": {"bark": TEXT}}]},
    }}  # fmt: skip
    schema = str((await tools(document))["op"].input_schema)
    assert ("lives" in schema, "bark" in schema) == (True, True)
    cat = {"kind": "cat", "lives": 9, "owner": {"kind": "dog", "bark": "wau"}}
    given = cat if within == "body" else {"pet": [cat] if within == "list" else cat}
    assert sent_json(await sent(document, given)) == given


async def test_explicit_alternatives_do_not_get_the_properties_of_other_subtypes() -> None:
    ref = {"$ref": "#/components/schemas/Pet"}
    mapping = {"cat": "Cat", "dog": "Dog"}
    union = {"oneOf": [{"$ref": "#/components/schemas/Cat"}, {"$ref": "#/components/schemas/Dog"}]}
    document = operation(method="post", **body({"properties": {"pet": union}}))
    discriminator = {"propertyName": "kind", "mapping": mapping}
    document["components"] = {"schemas": {
        "Pet": {"type": "object", "properties": {"kind": TEXT}, "discriminator": discriminator},
        "Cat": {"allOf": [ref, {"properties": {"lives": {"type": "integer"}}}]},
        "Dog": {"allOf": [ref, {"properties": {"bark": TEXT}}]},
    }}  # fmt: skip
    schema = str((await tools(document))["op"].input_schema)
    assert (schema.count("lives"), schema.count("bark")) == (1, 1)


@for_each("place", ["query", "header", "path"])
@for_each("schema", [{"type": "string", "default": "v 1"}, {"const": "v 1"}, {"const": "v 1", "default": "other"}])
async def test_required_parameters_with_a_default_can_be_left_out(place: str, schema: dict[str, Any]) -> None:
    path = "/p/{a}" if place == "path" else "/p"
    document = operation(parameter(place, schema, required=True), path=path)
    request = await sent(document, {})
    found = {"query": request.url.query, "header": request.headers.get("a", "").encode(), "path": request.url.raw_path}
    assert found[place].endswith((b"v%201", b"v 1", b"v+1"))


@for_each(
    ("schema", "given", "expected"),
    [
        ({"properties": {"k": {"default": "x"}}, "required": ["k"]}, {}, {"k": "x"}),
        ({"properties": {"k": {"default": ["x"]}}, "required": ["k"]}, {"k": []}, {"k": []}),
        ({"properties": {"k": {"const": 1}, "n": TEXT}, "required": ["k"]}, {"n": "a"}, {"n": "a", "k": 1}),
        (
            {"properties": {"o": {"properties": {"k": {"default": 5}}, "required": ["k"]}}},
            {"o": {}},
            {"o": {"k": 5}},
        ),
        (
            {"properties": {"o": {"properties": {"k": {"default": 5}}, "required": ["k"]}, "n": TEXT}},
            {"n": ""},
            {"n": ""},
        ),
        (
            {"properties": {"l": {"type": "array", "items": {"properties": {"k": {"const": 5}}, "required": ["k"]}}}},
            {"l": [{}, {"k": 5}]},
            {"l": [{"k": 5}, {"k": 5}]},
        ),
        (
            {"properties": {"o": {"allOf": [{"properties": {"k": {"default": 5}}, "required": ["k"]}]}}},
            {"o": {}},
            {"o": {"k": 5}},
        ),
    ],
)
async def test_required_members_with_a_default_are_filled_in(schema: Any, given: Any, expected: Any) -> None:
    document = operation(method="post", **body({"type": "object", **schema}))
    for _ in range(2):
        assert sent_json(await sent(document, given)) == expected


async def test_deprecated_operations_and_parameters_are_marked() -> None:
    (tool,) = (
        await tools(operation(parameter("query", TEXT, deprecated=True), deprecated=True, summary="Find"))
    ).values()
    assert tool.description == "Deprecated. Find"
    assert tool.input_schema["properties"]["a"]["deprecated"] is True


@pytest.mark.parametrize("method", ["get", "head", "options", "trace", "delete", "put", "patch", "post", "query"])
async def test_every_http_method_is_sent(method: str) -> None:
    request = await sent(operation(method=method), {})
    assert (request.method, str(request.url)) == (method.upper(), f"{BASE}/p")


async def test_paths_with_a_query_keep_it() -> None:
    request = await sent(operation(parameter("query", TEXT), path="/p?action=list"), {"a": "b"})
    assert request.url.query == b"action=list&a=b"


async def test_unreachable_apis_fail_the_call() -> None:
    def fail(request: httpx2.Request) -> httpx2.Response:
        raise httpx2.ConnectTimeout("too slow")

    http = httpx2.AsyncClient(base_url=BASE, transport=httpx2.MockTransport(fail))
    async with Client(Server.from_openapi(operation(), http), timeout=WAIT) as client:
        result = await client.call("op", raise_on_error=False)
    assert (result.is_error, result.text) == (True, "ConnectTimeout: too slow")


async def test_errors_inside_an_application_are_logged_and_have_status_500(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()

    @app.get("/p", operation_id="op")
    def fail() -> None:
        raise RuntimeError("a secret")

    async with Client(Server.from_fastapi(app), timeout=WAIT) as client:
        result = await client.call("op", raise_on_error=False)
    assert result.is_error
    assert "secret" not in result.text
    assert "HTTP error 500" in result.text
    assert "a secret" in caplog.text


@for_each("name", ["a\0", "a\x1b"])
async def test_parts_whose_names_cannot_be_sent_are_refused(name: str) -> None:
    schema = {"type": "object", "properties": {name: TEXT}}
    described = operation(method="post", **body(schema, "multipart/form-data"))
    (argument,) = (await tools(described))["op"].input_schema["properties"]
    assert "can't be sent" in await refusal(described, {argument: "x"})
