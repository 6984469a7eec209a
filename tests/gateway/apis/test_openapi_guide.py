"""The requests and results in the tables of the OpenAPI guide."""

import re
from collections.abc import Awaitable, Callable
from typing import Any

import httpx2

from api_calls import LIST, OBJECT, TEXT, Api, body, multipart, operation, parameter, reply, sent, sent_json
from millstream import Audio, EmbeddedResource, Image
from processes import ROOT

FILE = {"type": "string", "format": "binary"}
JSON, FORM = "application/json", "application/x-www-form-urlencoded"
PIXEL = b"\x89PNG\xff"


def table(first: str) -> dict[str, list[str]]:
    """Return the rows of the table whose first column has this title, without their code marks."""
    text = (ROOT / "docs" / "guides" / "openapi.md").read_text("utf-8").partition(f"| {first} |")[2]
    rows = [line.strip("| ").replace("`", "").split(" | ") for line in text.split("\n\n")[0].splitlines()[2:]]
    assert rows
    return {row[0]: row[1:] for row in rows}


PARAMETERS: dict[str, dict[str, Any]] = {
    "path": {"in": "path"},
    "path, label": {"in": "path", "style": "label"},
    "path, matrix": {"in": "path", "style": "matrix"},
    "query": {"in": "query"},
    "query, without explode": {"in": "query", "explode": False},
    "query, pipeDelimited": {"in": "query", "style": "pipeDelimited"},
    "query, deepObject": {"in": "query", "style": "deepObject"},
    "header": {"in": "header"},
    "cookie": {"in": "cookie"},
    "with content": {"in": "query", "content": {JSON: {"schema": {}}}},
}


def part(request: httpx2.Request, described: dict[str, Any]) -> str:
    """Return the part of a request that the guide shows."""
    if "content" in described:
        return request.url.params["id"]
    if described["in"] == "path":
        return request.url.raw_path.decode().removeprefix("/api/p")
    if described["in"] == "query":
        return "?" + request.url.query.decode()
    return request.headers["cookie" if described["in"] == "cookie" else "id"]


async def test_parameters_are_written_as_the_guide_shows() -> None:
    rows = table("parameter")
    assert rows.keys() == PARAMETERS.keys()
    for name, described in PARAMETERS.items():
        whole = {"name": "id", "required": True, "schema": {"properties": {"x": {}}}, **described}
        document = operation(whole, path="/p/{id}" if described["in"] == "path" else "/p")
        found = [part(await sent(document, {"id": value}), described) for value in ([3, 4], {"x": 1})]
        assert found == (["[3,4]", '{"x":1}'] if name == "with content" else rows[name]), name


async def send(schema: Any, media: str, arguments: dict[str, Any]) -> httpx2.Request:
    return await sent(operation(method="post", **body(schema, media)), arguments)


async def sends_json() -> None:
    assert sent_json(await send({"properties": {"a": TEXT}}, JSON, {"a": "b"})) == {"a": "b"}
    assert sent_json(await send(LIST, JSON, {"body": ["b"]})) == ["b"]


async def sends_parts() -> None:
    request = await send({"properties": {"a": TEXT, "b": TEXT}}, "multipart/form-data", {"a": "1", "b": "2"})
    assert [content for _, _, content in multipart(request)] == [b"1", b"2"]


async def sends_files() -> None:
    request = await send({"properties": {"f": FILE}}, "multipart/form-data", {"f": "aGk=", "f__filename": "a.png"})
    assert multipart(request) == [('form-data; name="f"; filename="a.png"', {"Content-Type": "image/png"}, b"hi")]


async def sends_forms() -> None:
    assert (await send({"properties": {"a": TEXT, "b": TEXT}}, FORM, {"a": "1", "b": "2"})).content == b"a=1&b=2"


async def sends_text() -> None:
    for media in ("text/plain", "application/xml", "application/yaml", "text/csv"):
        assert (await send(OBJECT, media, {"body": "a,b"})).content == b"a,b"


async def sends_bytes() -> None:
    assert (await send({}, "application/zip", {"body": "aGk="})).content == b"hi"


BODIES: dict[str, Callable[[], Awaitable[None]]] = {
    "JSON": sends_json,
    "multipart/…": sends_parts,
    "multipart/…, a file": sends_files,
    FORM: sends_forms,
    "text, XML, YAML, CSV": sends_text,
    "all others": sends_bytes,
}


async def test_bodies_are_sent_as_the_guide_describes() -> None:
    assert table("media type").keys() == BODIES.keys()
    for check in BODIES.values():
        await check()


def answer(content: bytes, media: str, status: int = 200, **headers: str) -> httpx2.Response:
    return httpx2.Response(status, headers={"content-type": media, **headers}, content=content)


async def test_responses_become_the_results_in_the_guide() -> None:
    rows = {
        "JSON": [answer(b'{"a":1}', JSON)],
        "image, audio": [answer(PIXEL, "image/png"), answer(PIXEL, "audio/wav")],
        "text": [answer(b"\xe9", "text/plain; charset=latin-1")],
        "other bytes": [answer(PIXEL, "application/zip")],
        "an empty reply": [answer(b"", JSON, 204)],
        "a status outside of 200 to 299": [answer(b"no", "text/plain", 404)],
        "a redirect within the origin": [answer(b"", "text/plain", 302, location="/q")],
    }
    assert table("reply").keys() == rows.keys()
    results = [[await reply(each) for each in replies] for replies in rows.values()]
    [json_result], [image, audio], [text], [other], [empty], [error], [redirected] = results
    assert (json_result.text, json_result.data) == ('{"a":1}', {"a": 1})
    assert isinstance(image.content[0], Image)
    assert isinstance(audio.content[0], Audio)
    assert text.text == "é"
    assert isinstance(other.content[0], EmbeddedResource)
    assert empty.content == []
    assert (error.is_error, error.text) == (True, "HTTP error 404: Not Found - no")
    assert redirected.data == {"ok": True}


async def test_renamed_parameters_in_the_guide_are_sent_under_their_original_names() -> None:
    text = (ROOT / "docs" / "guides" / "openapi.md").read_text("utf-8")
    found = re.search(r"such as `(\S+)` or `(\S+)`, .*? such as `(\S+)` or `(\S+)`, and the API", text, re.DOTALL)
    assert found is not None
    own, other = found.group(1, 2), found.group(3, 4)
    document = operation(*(parameter("query", TEXT, name) for name in own))
    assert dict((await sent(document, dict(zip(other, "ab", strict=True)))).url.params) == dict(
        zip(own, "ab", strict=True)
    )


async def test_operations_without_a_body_are_called_without_one() -> None:
    api = Api()
    await api.call(operation(method="post"), {})
    assert (api.requests[0].content, api.requests[0].headers.get("content-type")) == (b"", None)
