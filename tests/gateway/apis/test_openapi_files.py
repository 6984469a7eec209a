"""Documents in JSON and YAML, in one file or several, of versions 2.0 to 3.1, and rejected documents."""

import builtins
import json
from pathlib import Path
from typing import Any

import pytest

from api_calls import BASE, Api, body, multipart, operation, sent, sent_json, tools
from cases import for_each
from millstream import Server
from millstream._gateway.apis.document import Document
from millstream._override import override

YAML = """\
openapi: 3.0.3
info: {title: Shop, version: 1.0}
x-paging: &paging
  in: query
  schema: {type: integer}
paths:
  /on:
    get:
      operationId: on
      parameters:
        - {name: mode, in: query, schema: {type: string, enum: [on, off, yes, 2020-01-01, 12:30:00, 1, 010, ~]}}
        - <<: *paging
          name: page
      responses: {200: {description: ok}}
"""


async def test_yaml_values_have_yaml_1_2_types(tmp_path: Path) -> None:
    file = tmp_path / "api.yaml"
    file.write_text(YAML, "utf-8")
    for path in (file, str(file)):
        schema = (await tools(path))["on"].input_schema
        assert schema["properties"]["mode"]["enum"] == ["on", "off", "yes", "2020-01-01", "12:30:00", "1", "10"]
        assert schema["properties"]["page"] == {"type": "integer"}


FILES = {
    "api.yaml": "openapi: 3.1.0\npaths:\n  /pets/{id}: {$ref: ./paths/pet.yaml}\n",
    "paths/pet.yaml": """\
parameters: [{$ref: '../shared.json#/Id'}]
put:
  operationId: put_pet
  requestBody: {required: true, content: {application/json: {schema: {$ref: ../schemas/pet%20type.json}}}}
  responses: {}
""",
    "shared.json": '{"Id": {"name": "id", "in": "path", "required": true, "schema": {"type": "integer"}}}',
    "schemas/pet type.json": """\
{"type": "object", "properties": {"name": {"type": "string"}, "friend": {"$ref": "#"},
 "owner": {"$ref": "owner.yaml#/~0Own~1er"}}}""",
    "schemas/owner.yaml": "~Own/er: {type: object, properties: {age: {type: integer}}}",
}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return folder / "api.yaml"


async def test_documents_split_into_several_files_are_joined(tmp_path: Path) -> None:
    path = write(tmp_path, FILES)
    schema = (await tools(path))["put_pet"].input_schema
    assert schema["properties"]["id"] == {"type": "integer"}
    assert schema["properties"]["owner"]["properties"] == {"age": {"type": "integer"}}
    assert str(tmp_path) not in json.dumps(schema)
    assert sent_json(await sent(path, {"id": 7, "name": "a", "friend": {"name": "b"}})) == {
        "name": "a",
        "friend": {"name": "b"},
    }


async def test_files_outside_the_folder_are_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "secret.json").write_text(FILES["shared.json"], "utf-8")
    text = FILES["api.yaml"]
    for name in ("../secret", "link"):
        where = f"parameters: [{{$ref: '{name}.json#/Id'}}]"
        text += f"  /{name.strip('./')}/{{id}}: {{get: {{{where}, responses: {{}}}}}}\n"
    path = write(tmp_path / "api", {**FILES, "api.yaml": text})
    (tmp_path / "api" / "link.json").symlink_to(tmp_path / "secret.json")
    assert list(await tools(path)) == ["put_pet"]
    assert "skipped GET /secret/{id}" in caplog.text
    assert "skipped GET /link/{id}" in caplog.text


SECRET = '{"description": "a secret", "type": "string"}'
NOT_PART = {
    ".hidden.json": SECRET,
    ".vscode/mcp.json": SECRET,
    "sub/.env.yaml": SECRET,
    "prod.env": SECRET,
    "gateway.toml": SECRET,
    "store.db": SECRET,
    "api.json.lock": SECRET,
    "audit.jsonl": SECRET,
    "key": SECRET,
    "servers.json": f'{{"mcpServers": {{"x": {{"command": "uvx", "env": {SECRET}}}}}, "a": {SECRET}}}',
    "zed.json": f'{{"context_servers": {{"x": {{"url": "http://127.0.0.1:9"}}}}, "a": {SECRET}}}',
    "code.json": f'{{"servers": {{"x": {{"args": []}}}}, "a": {SECRET}}}',
    "opencode.yaml": f"mcp: {{x: {{command: [uvx]}}}}\na: {SECRET}",
    "users.json": f'{{"users": [{{"name": "ada", "password": "$argon2id$"}}], "a": {SECRET}}}',
    "keys.json": f'{{"keys": [{{"name": "ada", "hash": "00", "created": 0}}], "a": {SECRET}}}',
    "jwks.json": f'{{"keys": [{{"kty": "EC", "d": "x"}}], "a": {SECRET}}}',
    "environment.json": f'{{"mcpServers": {{"shop": {{"env": {{"KEY": "x"}}}}}}, "a": {SECRET}}}',
    "tokens.json": f'{{"tokens": {{"https://a.test": {{"access_token": "x"}}}}, "a": {SECRET}}}',
    "a%00.json": "",
    "a.json?b": "",
}


async def test_private_files_in_the_folder_are_not_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "api"
    text = "openapi: 3.1.0\npaths:\n"
    names = [*NOT_PART, "link.json", "linked/key.json", "file:///etc/hostname", "//host.test/x.json"]
    for number, name in enumerate(names):
        for end in ("", "#/a"):
            field = f"{{type: object, properties: {{v: {{$ref: '{name}{end}'}}}}}}"
            content = f"requestBody: {{content: {{application/json: {{schema: {field}}}}}}}"
            text += f"  /p{number}{'a' * len(end)}: {{post: {{{content}, responses: {{}}}}}}\n"
    files = {name: each for name, each in NOT_PART.items() if each}
    path = write(folder, {"api.yaml": text, **files})
    (folder / "link.json").symlink_to(folder / ".hidden.json")
    (tmp_path / "key.json").write_text(SECRET, "utf-8")
    (folder / "linked").symlink_to(tmp_path)
    found = await tools(path)
    assert len(found) == 2 * len(names)
    assert "a secret" not in json.dumps([each.input_schema for each in found.values()])
    assert f"skipped the reference to {(folder / 'servers.json').as_uri()}, because it's a conf" in caplog.text
    assert f"skipped the reference to {(folder / 'key').as_uri()}, because it isn't a visible .json" in caplog.text


async def test_members_that_are_not_schema_keywords_are_left_out(tmp_path: Path) -> None:
    schema = '{"type": "object", "env": {"KEY": "a secret"}, "password": "x", "args": [1], "x-a": 1, "title": "T"}'
    files = {"part.json": f'{{"Part": {schema}, "Service": {{"environment": {{"KEY": "a secret"}}}}}}'}
    fields = "{v: {$ref: 'part.json#/Part'}, w: {$ref: 'part.json#/Service/environment'}, t: {type: string, env: 1}}"
    body_of = f"requestBody: {{content: {{application/json: {{schema: {{type: object, properties: {fields}}}}}}}}}"
    responses = "{'200': {description: ok, content: {application/json: {schema: {$ref: 'part.json#/Part'}}}}}"
    text = f"openapi: 3.1.0\npaths: {{/p: {{post: {{operationId: op, {body_of}, responses: {responses}}}}}}}\n"
    tool = (await tools(write(tmp_path, {**files, "api.yaml": text}), output_schemas=True))["op"]
    assert tool.input_schema["properties"] == {"v": {"type": "object", "title": "T"}, "w": {}, "t": {"type": "string"}}
    assert tool.output_schema == {"type": "object", "title": "T"}


BOMB = "a: &a [x,x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
BOMB_OF_PAIRS = "a0: &a0 [x]\n" + "".join(
    f"a{number}: &a{number} !!pairs [x: *a{number - 1}, x: *a{number - 1}]\n" for number in range(1, 64)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{" * 100, "nested deeper"),
        ("[" * 100_000, "nested more than 64 levels"),
        ("- " * 100_000, "nested more than 64 levels"),
        ('{"openapi": "3.1.0", "paths": ', "isn't JSON"),
        ("a: [1", "isn't YAML"),
        ("a: !!python/object/apply:os.getcwd []", "isn't YAML"),
        ("just text", "isn't JSON or YAML"),
        ("", "is empty"),
        (" \n", "is empty"),
        ("\ufeff<!DOCTYPE html>\n<title>Swagger UI</title>", "is a web page or XML"),
        ("[]", "must be an object"),
        ("- a: 1", "must be an object"),
        ("paths: !!bool foo", "isn't YAML"),
        ("paths: !!timestamp foo", "isn't YAML"),
        ("paths: !!float '1:" + "1:" * 400 + "1'", "isn't YAML"),
        ("paths: !!int foo", "isn't YAML"),
        ("paths: !!binary é", "isn't YAML"),
        ("paths: 0x" + "f" * 5_000, "isn't YAML"),
        ("paths: " + "1" * 5_000, "isn't YAML"),
        ("\x00\x01", "isn't JSON or YAML"),
        ("a: \x00\x01", "isn't YAML"),
        (BOMB, "has more than"),
        (BOMB_OF_PAIRS, "has no paths"),
        ("a: &a {<<: [*a]}", "has more than"),
        ("a: &a [*a]", "has more than"),
        ("openapi: 1\npaths: {}", "must be version"),
        ('{"swagger": "1.2", "paths": {}}', "must be version"),
    ],
)
def test_error_for_text_that_is_not_a_document_is_a_sentence(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "api.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=reason):
        Server.from_openapi(path, Api().client())


def test_missing_files_are_reported(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.yaml can't be read: No such file or directory\. Check its path\."):
        Server.from_openapi(tmp_path / "none.yaml", Api().client())


def test_error_for_yaml_suggests_the_missing_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = builtins.__import__

    def without_yaml(name: str, *more: Any) -> Any:
        if name == "yaml":
            raise ImportError(name)
        return load(name, *more)

    monkeypatch.setattr(builtins, "__import__", without_yaml)
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    path = write(tmp_path, FILES)
    with pytest.raises(ImportError, match=r"pip install 'millstream\[yaml\]'"):
        Server.from_openapi(path, Api().client())


PET = {"type": "object", "properties": {"name": {"type": "string"}, "tag": {"type": "string", "x-nullable": True}}}
SWAGGER: dict[str, Any] = {
    "swagger": "2.0",
    "info": {"title": "Pets", "version": "1"},
    "host": "shop.test",
    "basePath": "/api",
    "schemes": ["http"],
    "securityDefinitions": {"key": {"type": "apiKey", "in": "query", "name": "key"}},
    "definitions": {"Pet": PET},
    "parameters": {"Limit": {"name": "limit", "in": "query", "type": "integer"}},
    "responses": {"Found": {"description": "", "schema": {"$ref": "#/definitions/Pet"}}},
    "paths": {},
}


def swagger(*parameters: Any, method: str = "post", path: str = "/p", **more: Any) -> dict[str, Any]:
    described = {"operationId": "op", "parameters": [*parameters], "responses": {}, **more}
    return {**SWAGGER, "paths": {path: {method: described}}}


def old(place: str, kind: str = "string", name: str = "a", **more: Any) -> dict[str, Any]:
    items = {"items": {"type": "string"}} if kind == "array" else {}
    return {"name": name, "in": place, "type": kind, "required": place == "path", **items, **more}


@pytest.mark.parametrize(
    ("how", "query"),
    [
        ({}, "a=1,2"),
        ({"collectionFormat": "csv"}, "a=1,2"),
        ({"collectionFormat": "multi"}, "a=1&a=2"),
        ({"collectionFormat": "pipes"}, "a=1%7C2"),
        ({"collectionFormat": "ssv"}, "a=1%202"),
        ({"collectionFormat": "tsv"}, "a=1%092"),
    ],
)
async def test_version_2_collections_keep_their_format(how: dict[str, str], query: str) -> None:
    request = await sent(swagger(old("query", "array", **how)), {"a": ["1", "2"]})
    assert request.url.query.decode() == query
    form = swagger(old("formData", "array", **how), consumes=["application/x-www-form-urlencoded"])
    assert (await sent(form, {"a": ["1", "2"]})).content.decode() == query


@pytest.mark.parametrize(
    ("how", "path", "header"),
    [
        ({}, "1,2", "1,2"),
        ({"collectionFormat": "pipes"}, "1%7C2", "1|2"),
        ({"collectionFormat": "ssv"}, "1%202", "1 2"),
    ],
)
async def test_version_2_collections_work_in_paths_and_headers(how: dict[str, str], path: str, header: str) -> None:
    document = swagger(old("path", "array", **how), old("header", "array", "X-B", **how), method="get", path="/p/{a}")
    request = await sent(document, {"a": ["1", "2"], "X-B": ["1", "2"]})
    assert (request.url.raw_path.decode(), request.headers["x-b"]) == (f"/api/p/{path}", header)


async def test_version_2_form_fields_determine_the_content_type() -> None:
    fields = old("formData"), old("formData", "integer", "n")
    assert (await sent(swagger(*fields), {"a": "x y", "n": 3})).content == b"a=x%20y&n=3"
    parts = multipart(await sent(swagger(*fields, consumes=["multipart/form-data"]), {"a": "x", "n": 3}))
    assert [content for _, _, content in parts] == [b"x", b"3"]
    joined = swagger(old("formData", "array"), consumes=["multipart/form-data"])
    assert [content for _, _, content in multipart(await sent(joined, {"a": ["1", "2"]}))] == [b"1,2"]
    both = {"name": "b", "in": "body", "schema": PET}
    chosen = await sent(swagger(both, consumes=["application/xml", "application/json"]), {"name": "x"})
    assert sent_json(chosen) == {"name": "x"}


async def test_parameters_without_a_schema_keep_their_keywords() -> None:
    document = operation({"name": "n", "in": "query", "type": "integer", "minimum": 1})
    assert (await tools(document))["op"].input_schema["properties"]["n"] == {"type": "integer", "minimum": 1}


async def test_version_2_bodies_are_sent_according_to_their_kind() -> None:
    json_body = swagger({"name": "pet", "in": "body", "required": True, "schema": {"$ref": "#/definitions/Pet"}})
    assert sent_json(await sent(json_body, {"name": "x", "tag": None})) == {"name": "x", "tag": None}
    xml = swagger({"name": "pet", "in": "body", "schema": {"type": "string"}}, consumes=["application/xml"])
    assert (await sent(xml, {"body": "<a/>"})).content == b"<a/>"
    upload = swagger(old("formData", "file", "f", description="The photo"), old("formData"))
    assert "The photo (base64)" in str((await tools(upload))["op"].input_schema)
    parts = multipart(await sent(upload, {"f": "aGk=", "a": "b", "f__filename": "x.txt"}))
    assert [name for name, _, _ in parts] == ['form-data; name="f"; filename="x.txt"', 'form-data; name="a"']


async def test_version_2_shared_parameters_and_keys_are_resolved() -> None:
    document = swagger({"$ref": "#/parameters/Limit"}, old("query", name="key"), method="get", path="/p/{a}")
    document["paths"]["/p/{a}"]["parameters"] = [old("path"), old("query", "string", "limit")]
    schema = (await tools(document))["op"].input_schema
    assert (list(schema["properties"]), schema["properties"]["limit"]["type"]) == (["limit", "a"], "integer")
    assert str((await sent(document, {"a": "x", "limit": 3})).url) == f"{BASE}/p/x?limit=3"


async def test_version_2_responses_have_output_schemas_if_enabled() -> None:
    document = swagger(method="get", responses={"200": {"$ref": "#/responses/Found"}})
    found = (await tools(document, output_schemas=True))["op"].output_schema
    assert found["properties"]["tag"] == {"anyOf": [{"type": "string"}, {"type": "null"}]}


class Cyclic(dict[str, Any]):
    """A value that's its own property, which no file can have."""

    @override
    def __repr__(self) -> str:
        return "Cyclic()"


async def test_operation_with_a_recursive_schema_is_skipped(caplog: pytest.LogCaptureFixture) -> None:
    cyclic = Cyclic(type="object", properties={})
    cyclic["properties"]["self"] = cyclic
    document = operation(method="post", **body(cyclic))
    document["paths"]["/q"] = {"get": {"operationId": "fine", "responses": {}}}
    assert list(await tools(document)) == ["fine"]
    assert "skipped POST /p" in caplog.text


def nested(depth: int, form: str) -> tuple[Any, Any]:
    """Return a schema with so many schemas inside each other, and the definitions that it refers to."""
    inner: Any = {"type": "object", "properties": {"z": {"type": "string"}}}
    definitions: dict[str, Any] = {}
    for number in range(depth):
        if form == "references":
            definitions[f"S{number}"] = inner
            inner = {"type": "object", "properties": {"a": {"$ref": f"#/components/schemas/S{number}"}}}
        else:
            inner = {
                "allOf": {"allOf": [inner]},
                "properties": {"type": "object", "properties": {"a": inner}},
                "items": {"type": "array", "items": inner},
            }[form]
    return inner, definitions


@for_each("form", ["allOf", "properties", "items", "references"])
async def test_deep_schema_nesting_is_given_as_the_reason(form: str, caplog: pytest.LogCaptureFixture) -> None:
    for depth in (80, 300, 5_000):
        caplog.clear()
        inner, definitions = nested(depth, form)
        document = operation(method="post", **body({"type": "object", "properties": {"deep": inner}}))
        document["components"] = {"schemas": definitions}
        document["paths"]["/q"] = {"get": {"operationId": "fine", "responses": {}}}
        assert len(await tools(document)) == (2 if depth == 80 else 1)
        reason = "because its schemas are nested more than 100 levels deep"
        assert ("skipped POST /p, " + reason in caplog.text) == (depth > 80)
        assert "RecursionError" not in caplog.text


async def test_nested_lists_of_types_do_not_grow_exponentially() -> None:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(16):
        schema = {"type": ["object", "array", "null"], "properties": {"a": schema}}
    body = {"content": {"application/json": {"schema": schema}}}
    operation = {"operationId": "op", "requestBody": body, "responses": {}}
    document = {"openapi": "3.1.0", "servers": [{"url": "http://a.example"}], "paths": {"/": {"post": operation}}}
    described = json.dumps((await tools(document))["op"].input_schema)
    assert len(described) < 4000
    assert '"type": [' not in described  # Gemini's API and Cursor refuse several types in one schema


@pytest.mark.parametrize(("schemes", "used"), [(["http", "https"], "https"), (["http"], "http"), ([], "https")])
def test_version_2_servers_prefer_https(schemes: list[str], used: str) -> None:
    document = Document({"swagger": "2.0", "host": "shop.test", "basePath": "/api", "schemes": schemes, "paths": {}})
    assert document.url == f"{used}://shop.test/api"
