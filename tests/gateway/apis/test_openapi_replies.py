"""The results for an API's responses: each status, content type, and deviation from the document."""

import asyncio
import base64
import gzip
import itertools
import json
from http import HTTPStatus
from typing import Any

import httpx2
import pytest

from api_calls import OBJECT, TEXT, Api, operation, reply, tools
from cases import for_each
from cpu import check_linear
from growth import measured
from millstream import Audio, Client, EmbeddedResource, Image, Server, Text
from patience import WAIT

PNG = b"\x89PNG\r\n\x1a\n\xff\xfe"


def answer(content: bytes, media: str = "application/json", status: int = 200, **headers: str) -> httpx2.Response:
    fields = {"content-type": media} if media else {}
    return httpx2.Response(status, headers={**fields, **headers}, content=content)


@pytest.mark.parametrize(
    ("content", "media", "text", "structured"),
    [
        (b'{ "a" : 1.10 }', "application/json", '{"a":1.10}', {"a": 1.1}),
        (b'{"a":123456789012345678901234567890}', "application/json", '{"a":123456789012345678901234567890}', ...),
        (b"[1, 2]", "application/json", "[1,2]", None),
        (b"null", "application/json", "null", None),
        (b'"a"', "application/json", '"a"', None),
        (b'{"a":1}', "application/vnd.api+json; charset=utf-8", '{"a":1}', {"a": 1}),
        (b'{"a":1}', "Application/JSON", '{"a":1}', {"a": 1}),
        (b'{"a":1}', "text/plain", '{"a":1}', {"a": 1}),
        (b'{"a":1}', "", '{"a":1}', {"a": 1}),
        (b'\xef\xbb\xbf{"a":1}', "application/json", '{"a":1}', {"a": 1}),
        ('{"a":"é"}'.encode("utf-16"), "application/json", '{"a":"é"}', {"a": "é"}),
        (b'{"a":"\xe9"}', "application/json; charset=latin-1", '{"a":"é"}', {"a": "é"}),
        (b'{"a":"\xe9"}', "application/json", '{"a":"\ufffd"}', {"a": "\ufffd"}),
        (b'{"a": NaN, "b": "\\ud83d"}', "application/json", '{"a":null,"b":"\ufffd"}', {"a": None, "b": "\ufffd"}),
        (b"{not json", "application/json", "{not json", None),
        (b"", "application/json", "", None),
        (b"1.10", "text/plain", "1.10", None),
        (b"1e3", "text/csv", "1e3", None),
        ("Zoë".encode("latin-1"), 'text/plain; charset="ISO-8859-1"', "Zoë", None),
        ("Zoë".encode(), "text/plain; charset=unknown", "Zoë", None),
        ("Zoë".encode(), "text/plain; charset=base64", "Zoë", None),
        (b"MNCHEN-3YA", "text/plain; charset=punycode", "MNCHEN-3YA", None),
        (b"xn--mnchen-3ya", "text/plain; charset=idna", "xn--mnchen-3ya", None),
        (b"a\\u00e9", "text/plain; charset=unicode_escape", "a\\u00e9", None),
        (b"+AOk-", "text/plain; charset=utf-7", "+AOk-", None),
        (b"~{VPND~}", "text/plain; charset=hz", "~{VPND~}", None),
        (b"abc", "text/plain; charset=rot13", "abc", None),
        ("Zoë".encode("utf-32"), "text/plain; charset=utf-32", "Zoë", None),
        ("Zoë".encode("utf-16"), "text/plain; charset=UTF-16", "Zoë", None),
        ("\ufeffZoë".encode("utf-16-be"), "text/plain; charset=utf-16", "Zoë", None),
        ("\ufeffZoë".encode("utf-16-le"), "text/plain; charset=utf-16le", "Zoë", None),
        ("Zoë".encode("utf-16-be"), "text/plain; charset=utf-16be", "Zoë", None),
        ("日本".encode("iso2022_jp"), "text/plain; charset=ISO-2022-JP", "日本", None),
        ("日本".encode("euc_jp"), "text/plain; charset=x-euc-jp", "日本", None),
        ("①".encode("cp932"), "text/plain; charset=Shift_JIS", "①", None),
        ("한".encode("cp949"), "text/plain; charset=ks_c_5601-1987", "한", None),
        ("中".encode("gb18030"), "text/plain; charset=gb2312", "中", None),
        ("中".encode("big5"), "text/plain; charset=big5", "中", None),
        ("ш".encode("koi8-r"), "text/plain; charset=koi8-r", "ш", None),
        (b"\x93a\x94", "text/plain; charset=iso-8859-1", "“a”", None),
        (b"<a/>", "application/xml", "<a/>", None),
        (b"<svg/>", "image/svg+xml", "<svg/>", None),
        (b'{"a":1}\n{"a":2}\n', "application/x-ndjson", '{"a":1}\n{"a":2}\n', None),
        (b"data: 1\n\n", "text/event-stream", "data: 1\n\n", None),
        (b"plain", "application/octet-stream", "plain", None),
        (b"", "image/png", "", None),
        (b"[" * 70 + b"]" * 70, "application/json", "[" * 70 + "]" * 70, None),
        ("中文".encode("gbk"), "text/plain; charset=GBK", "中文", None),
        ("a;€".encode("cp1252"), "text/csv; charset=windows-1252", "a;€", None),
        (b'{"_links":{}}', "application/hal+json", '{"_links":{}}', {"_links": {}}),
        (b'{"a":1}', "text/json", '{"a":1}', {"a": 1}),
        (b'{"a":Infinity}', "application/json", '{"a":null}', {"a": None}),
        (b"true", "application/json", "true", None),
        (b"a: 1", "application/yaml", "a: 1", None),
        (b"cb({})", "application/javascript", "cb({})", None),
        (b'\x1e{"a":1}\n', "application/json-seq", '\x1e{"a":1}\n', None),
    ],
)
async def test_bodies_become_text_and_structured_content(
    content: bytes, media: str, text: str, structured: Any
) -> None:
    result = await reply(answer(content, media))
    assert (result.is_error, result.text) == (False, text)
    if structured is not ...:
        assert result.data == (text if structured is None else structured)


@pytest.mark.parametrize(
    ("content", "media", "kind"),
    [
        (PNG, "image/png", Image),
        (PNG, "audio/mpeg", Audio),
        (b"%PDF-1.4\xe2\xe3", "application/pdf", EmbeddedResource),
        (b"%PDF-1.4 only ASCII", "application/pdf", EmbeddedResource),
        (b"v 1.0 2.0 3.0", "model/obj", EmbeddedResource),
        (b"\x00\x00", "video/mp4", EmbeddedResource),
        (b"\x00\xff", "", EmbeddedResource),
    ],
)
async def test_binary_bodies_arrive_with_every_byte(content: bytes, media: str, kind: type) -> None:
    (block,) = (await reply(answer(content, media))).content
    assert isinstance(block, kind)
    found: Any = block
    if isinstance(block, EmbeddedResource):
        assert (block.resource.blob, block.resource.mime_type) == (content, media or "application/octet-stream")
        assert block.resource.uri == "api:/p"
    else:
        assert (found.data, found.mime_type) == (content, media)


@pytest.mark.parametrize(
    ("response", "text"),
    [
        (answer(b'{"detail": "boom"}', status=500), 'HTTP error 500: Internal Server Error - {"detail":"boom"}'),
        (answer(b"<h1>down</h1>", "text/html", 503), "HTTP error 503: Service Unavailable - <h1>down</h1>"),
        (answer(b"", "", 404), "HTTP error 404: Not Found"),
        (answer(b"", "", 599), "HTTP error 599"),
        (answer(PNG, "image/png", 400), "HTTP error 400: Bad Request - (image/png)"),
        (answer("é".encode("latin-1"), "text/plain; charset=latin-1", 400), "HTTP error 400: Bad Request - é"),
        (
            answer(b'{"e":"quota"}', status=429, **{"retry-after": "17"}),
            'HTTP error 429: Too Many Requests - {"e":"quota"} - Try again in 17 seconds.',
        ),
        (
            answer(b"", "", 503, **{"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}),
            "HTTP error 503: Service Unavailable - Try again after Fri, 31 Dec 1999 23:59:59 GMT.",
        ),
        (answer(b"", "", 304), "HTTP error 304: Not Modified"),
        (
            answer(b"", "", 302, location="https://login.test/?next=/p"),
            "HTTP error 302: Found - It redirects to https://login.test/?next=/p.",
        ),
        (answer(b"", "", 300), "HTTP error 300: Multiple Choices"),
        (
            answer(b'{"title": "Nope"}', "application/problem+json", 422),
            f'HTTP error 422: {HTTPStatus(422).phrase} - {{"title":"Nope"}}',
        ),
        (answer(b"<problem/>", "application/problem+xml", 400), "HTTP error 400: Bad Request - <problem/>"),
        (answer(b"", "", 429, **{"retry-after": "0"}), "HTTP error 429: Too Many Requests - Try again in 0 seconds."),
    ],
)
async def test_errors_have_the_api_status_and_message(response: httpx2.Response, text: str) -> None:
    result = await reply(response)
    assert (result.is_error, result.text) == (True, text)


async def test_long_errors_are_truncated() -> None:
    assert len((await reply(answer(b"x" * 100_000, "text/plain", 400))).text) < 5000


@pytest.mark.parametrize(
    ("method", "status", "location", "methods"),
    [
        ("get", 301, "/q", ["GET", "GET"]),
        ("head", 302, "/q", ["HEAD", "HEAD"]),
        ("post", 307, "http://shop.test/q", ["POST", "POST"]),
        ("post", 303, "/q", ["POST"]),
        ("post", 302, "/q", ["POST"]),
        ("get", 302, "http://other.test/q", ["GET"]),
        ("get", 302, "https://shop.test/q", ["GET"]),
    ],
)
async def test_redirects_are_followed_within_the_origin(
    method: str, status: int, location: str, methods: list[str]
) -> None:
    api = Api(answer(b"", "", status, location=location))
    result = await api.call(operation(method=method), {})
    assert [each.method for each in api.requests] == methods
    assert result.is_error == (len(methods) == 1)


async def test_circular_redirects_end_with_an_error() -> None:
    api = Api(*(answer(b"", "", 302, location="/p") for _ in range(20)))
    result = await api.call(operation(), {})
    assert "HTTP error 302" in result.text
    assert len(api.requests) == 4


async def test_paging_headers_are_in_the_result_meta() -> None:
    link = '</p?page=2>; rel="next"'
    result = await reply(answer(b"[]", link=link, **{"X-Total-Count": "90", "set-cookie": "a=b"}))
    assert (result.meta or {})["millstream.gateway/headers"] == {"link": link, "x-total-count": "90"}
    created = await reply(answer(b"", "", 201, location="/p/1"))
    assert (created.is_error, (created.meta or {})["millstream.gateway/headers"]) == (False, {"location": "/p/1"})


async def test_replies_with_unknown_compression_are_errors() -> None:
    for coding, error in (("x-gzip", True), ("compress", True), ("identity", False), ("GZIP", False)):
        data = gzip.compress(b'{"a":1}') if "gzip" in coding.lower() else b'{"a":1}'
        result = await reply(answer(data, **{"content-encoding": coding}))
        assert result.is_error == error
        assert f"compressed its response with '{coding}'" in result.text if error else result.data == {"a": 1}
    failed = await reply(answer(b"\x1f\x8b", status=400, **{"content-encoding": "x-gzip"}))
    assert failed.text == "HTTP error 400: Bad Request - (application/json)"


async def test_endless_compressed_replies_fail_only_their_call() -> None:
    bomb = gzip.compress(b"0" * (65 * 1024 * 1024), 1)
    api = Api(answer(bomb, **{"content-encoding": "gzip"}), answer(b"{}"))
    async with Client(Server.from_openapi(operation(), api.client()), timeout=WAIT) as client:
        first = await client.call("op", raise_on_error=False)
        second = await client.call("op", raise_on_error=False)
    assert (first.is_error, second.is_error) == (True, False)
    assert "larger than" in first.text


RESPONSE = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}


def promising(schema: Any, **codes: Any) -> dict[str, Any]:
    response = {"description": "", "content": {"application/json": {"schema": schema}}}
    return operation(responses={"200": response, **codes})


@pytest.mark.parametrize("content", [b'{"n":"5"}', b'{"n":null}', b"{}", b"[]", b"5", b"", b"<html>", b'{"n":1.5}'])
async def test_unexpected_replies_pass_unless_output_schemas_are_enabled(content: bytes) -> None:
    document = promising(RESPONSE)
    assert (await tools(document))["op"].output_schema is None
    assert not (await reply(answer(content), document)).is_error
    strict = await reply(answer(content), document, output_schemas=True)
    assert strict.is_error
    assert "doesn't match the API's own document" in strict.text
    assert "arguments" not in strict.text
    assert content.decode() in strict.text


@pytest.mark.parametrize(
    ("schema", "content", "structured"),
    [
        (RESPONSE, b'{"n":5,"more":1}', {"n": 5, "more": 1}),
        ({"type": "array", "items": TEXT}, b'["a"]', {"result": ["a"]}),
        (TEXT, b'"a"', {"result": "a"}),
        ({"type": ["object", "null"]}, b"null", {"result": None}),
        ({"type": "string", "pattern": "(?i)x", "format": "date"}, b'"a"', {"result": "a"}),
    ],
)
async def test_replies_that_fit_output_schemas_are_structured(schema: Any, content: bytes, structured: Any) -> None:
    document = promising(schema)
    assert "pattern" not in json.dumps((await tools(document, output_schemas=True))["op"].output_schema)
    assert (await reply(answer(content), document, output_schemas=True)).data == structured


async def test_tools_have_no_output_schema_if_the_document_is_unclear() -> None:
    for document in (promising(RESPONSE, **{"204": {"description": ""}}), promising({}), promising({"title": "Any"})):
        assert (await tools(document, output_schemas=True))["op"].output_schema is None


async def test_output_schemas_that_are_too_large_are_left_out() -> None:
    fields = {f"f{number}": {"type": "string", "description": "x" * 1000} for number in range(300)}
    document = promising({"type": "object", "properties": fields})
    assert (await tools(document, output_schemas=True))["op"].output_schema is None
    assert (await reply(answer(b'{"f1":"x"}'), document, output_schemas=True)).data == {"f1": "x"}
    small = promising({"type": "object", "properties": dict([*fields.items()][:100])})
    assert (await tools(small, output_schemas=True))["op"].output_schema is not None


async def test_resources_keep_bytes_and_charsets() -> None:
    from millstream.gateway import RouteKind, RouteMap  # noqa: PLC0415  only here

    api = Api(answer(PNG, "image/png"), answer("é".encode("latin-1"), "text/plain; charset=latin-1"))
    mcp = Server.from_openapi(operation(), api.client(), routes=[RouteMap(kind=RouteKind.RESOURCE)])
    async with Client(mcp, timeout=WAIT) as client:
        (image,) = await client.read("resource://op")
        (text,) = await client.read("resource://op")
    assert base64.b64encode(image.blob or b"") == base64.b64encode(PNG)
    assert text.text == "é"


async def test_unknown_charsets_are_not_kept() -> None:
    answers = [answer(b"a", f"text/plain; charset={'x' * 20_000}{number}") for number in range(60)]
    api = Api(*answers)
    async with Client(Server.from_openapi(operation(), api.client()), timeout=WAIT) as client:
        for _ in range(10):
            await client.call("op")
        api.requests.clear()
        with measured() as growth:
            for _ in range(50):
                assert (await client.call("op")).text == "a"
            api.requests.clear()
        assert growth.bytes < 25 * 20_000, "half of the names"


CHARSETS = "utf-8", "iso-2022-jp", "hz", "gb18030", "big5", "shift_jis", "euc-jp", "euc-kr", "punycode", "utf-16"


@for_each(("charset", "piece"), itertools.product(CHARSETS, (b"\xff\x81", b"\x1b$B!", b"ba")))
def test_replies_are_decoded_in_linear_time(charset: str, piece: bytes) -> None:
    check_linear(lambda size: asyncio.run(reply(answer(piece * size, f"text/plain; charset={charset}"))), 30_000)


async def test_text_replies_stay_text_blocks() -> None:
    assert (await reply(answer(b"hi", "text/plain"))).content == [Text("hi")]
    for status in (202, 204, 205):
        # Model APIs refuse empty text: HKUDS/nanobot#949.
        assert (await reply(httpx2.Response(status), operation(responses={"204": OBJECT}))).content == []
    assert (await reply(answer(b"hi", "text/plain", 206))).content == [Text("hi")]
