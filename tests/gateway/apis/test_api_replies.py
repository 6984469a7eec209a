"""APIs behind a gateway, as handwritten servers: the requests that reach them, and the results that callers get."""

import asyncio
import gzip
import json
import logging
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from millstream import Client, Image, Server
from millstream.gateway import OpenApi, Secret, ToolPolicy, UpstreamPolicy, bearer, static_headers
from patience import WAIT

PNG = b"\x89PNG\r\n\x1a\n\xff\xfe"
JSON = "content-type: application/json\r\n"
GZIP = f"{JSON}content-encoding: gzip\r\n"
REPLIES: dict[str, tuple[str, str, bytes]] = {
    "png": ("200 OK", "content-type: image/png\r\n", PNG),
    "latin": ("200 OK", "content-type: text/plain; charset=iso-8859-1\r\n", "Zoë".encode("latin-1")),
    "quota": ("429 Too Many", f"{JSON}retry-after: 17\r\n", b'{"error": "monthly quota"}'),
    "key": ("401 Unauthorized", JSON, b'{"error": "key expired"}'),
    "role": ("403 Forbidden", JSON, b'{"error": "needs role admin"}'),
    "empty": ("403 Forbidden", "", b""),
    "unchanged": ("304 Not Modified", "", b""),
    "away": ("302 Found", "location: http://127.0.0.2:9/secret\r\n", b""),
    "gzip": ("200 OK", GZIP, gzip.compress(b'{"a":1}')),
    "deflate": ("200 OK", f"{JSON}content-encoding: deflate\r\n", zlib.compress(b'{"a":1}')[2:-4]),
    "bomb": ("200 OK", GZIP, gzip.compress(b"0" * 5_000_000)),
    "cut": ("200 OK", GZIP, gzip.compress(b'{"a":1}')[:-6]),
    "brotli": ("200 OK", f"{JSON}content-encoding: br\r\n", b"x"),
    "large": ("200 OK", "content-type: text/plain\r\n", b"x" * 1_000_001),
    "pages": ("200 OK", f"{JSON}link: </pages?page=2>\r\n", b"[1]"),
    "head": ("200 OK", JSON, b'{"a":1}'),
    "odd": ("200 OK", JSON, b'{"n":"5"}'),
}


@asynccontextmanager
async def raw_api(
    replies: dict[str, tuple[str, str, bytes]], secrets: dict[str, bool] | None = None
) -> AsyncIterator[tuple[str, list[str]]]:
    """Run a server without any library, and yield its URL and the first lines of its requests.

    Args:
        replies: Status, headers, and body of each path.
        secrets: Gets the paths of the requests, and whether their headers contain a secret.
    """
    asked: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                line, _, head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").partition("\r\n")
                asked.append(line)
                method, target, _ = line.split()
                if secrets is not None:
                    secrets[target[1:]] = "secret" in head
                status, head, content = replies[target[1:].partition("?")[0]]
                writer.write(f"HTTP/1.1 {status}\r\n{head}content-length: {len(content)}\r\n\r\n".encode())
                writer.write(b"" if method == "HEAD" else content)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", asked
        server.close()


def described(*names: str, **operation: Any) -> dict[str, Any]:
    """Return a document with one operation for each name."""
    paths = {
        f"/{name}": {"head" if name == "head" else "get": {"operationId": name, "responses": {}, **operation}}
        for name in names
    }
    return {"openapi": "3.1.0", "info": {"title": "Odd", "version": "1"}, "paths": paths}


@asynccontextmanager
async def gateway(document: Any, url: str, *, hosts: tuple[str, ...] = (), **options: Any) -> AsyncIterator[Client]:
    mcp = Server("front")
    api = OpenApi(document=document, base_url=url, hosts=hosts)
    mcp.upstream("api", openapi=api, prefix="", start_timeout=WAIT, **options)
    async with Client(mcp, timeout=WAIT) as client:
        yield client


async def test_results_and_errors_contain_the_api_response() -> None:
    async with raw_api(REPLIES) as (url, _), gateway(described(*REPLIES), url, max_bytes=1_000_000) as client:
        replies = {name: await client.call(name, raise_on_error=False) for name in REPLIES}
    assert replies["png"].content == [Image(PNG, "image/png")]
    assert {name: replies[name].data for name in ("latin", "gzip", "deflate", "head")} == {
        "latin": "Zoë", "gzip": {"a": 1}, "deflate": {"a": 1}, "head": "",
    }  # fmt: skip
    assert (replies["pages"].meta or {})["millstream.gateway/headers"] == {"link": "</pages?page=2>"}
    expected = {
        "quota": 'HTTP error 429: Too Many Requests - {"error":"monthly quota"} - Try again in 17 seconds.',
        "key": "rejected the gateway's credentials. Its operator has to replace them. HTTP error 401: Unauthorized - "
        '{"error":"key expired"}',
        "role": 'HTTP error 403: Forbidden - {"error":"needs role admin"}',
        "empty": "HTTP error 403: Forbidden",
        "unchanged": "HTTP error 304: Not Modified",
        "away": "HTTP error 302: Found - It redirects to another server, or drops the request.",
        "bomb": "sent a response that's too large",
        "cut": "sent an invalid response",
        "brotli": "compressed its response with 'br', and it can't be read",
        "large": "sent a response that's too large",
    }
    for name, text in expected.items():
        assert (replies[name].is_error, text in replies[name].text) == (True, True), replies[name].text
    assert not any("127.0.0.2" in each.text for each in replies.values())


async def test_paths_outside_ascii_are_encoded() -> None:
    document = described("odd", parameters=[{"name": "名", "in": "path", "schema": {"type": "string"}}])
    document["paths"] = {"/用 户/é%20{名}": document["paths"]["/odd"]}
    target = "/%E7%94%A8%20%E6%88%B7/%C3%A9%20%C3%9F%2F"
    async with raw_api({target[1:]: REPLIES["odd"]}) as (url, asked), gateway(document, url) as client:
        await client.call("odd", {"value": "ß/"})
    assert asked == [f"GET {target} HTTP/1.1"]


async def test_keys_in_the_query_stay_out_of_logs_and_errors(caplog: pytest.LogCaptureFixture) -> None:
    schema = {"type": "object", "additionalProperties": True}
    parameters = [
        {"name": "key", "in": "query", "schema": {"type": "string"}},
        {"name": "more", "in": "query", "schema": schema},
    ]
    document = described("odd", "away", "role", parameters=parameters)
    async with raw_api(REPLIES) as (url, asked):
        secret = static_headers(query={"key": Secret(text=None, env="API_KEY_FOR_TEST")})
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("API_KEY_FOR_TEST", "s3&cret")
            async with gateway(document, url, auth=secret) as client:
                listed = {each.name: each.input_schema["properties"].keys() for each in await client.tools()}
                results = [
                    await client.call(name, {**key, "more": {"KEY": "x", "a": "b"}}, raise_on_error=False)
                    for name in listed
                    for key in ({"key": "mine"}, dict[str, str]())
                ]
    assert listed["odd"] == {"more"}
    assert "unknown 'key'" in results[0].text
    assert asked[0] == "GET /odd?a=b&key=s3%26cret HTTP/1.1"
    assert "s3" not in caplog.text + "".join(each.text for each in results)


async def test_secrets_in_queries_are_allowed_only_for_apis() -> None:
    mcp = Server("front")
    mcp.upstream("tools", "http://127.0.0.1:9/mcp", auth=static_headers(query={"key": "a"}))
    with pytest.raises(Exception, match="only an API can have"):
        async with mcp.running():
            pass


async def test_configured_hosts_get_requests_and_credentials() -> None:
    async with (
        raw_api({"a": ("200 OK", JSON, b'{"a":1}')}) as (url, _),
        raw_api({"up/b": ("200 OK", JSON, b"{}")}) as other,
    ):
        document = described("a", "b", "c")
        document["paths"]["/b"]["servers"] = [{"url": f"{other[0]}/up"}]
        document["paths"]["/c"]["servers"] = [{"url": "http://127.0.0.2:9"}]
        async with gateway(document, url, hosts=(other[0],), auth=bearer("secret")) as client:
            assert [each.name for each in await client.tools()] == ["a", "b"]
            assert not (await client.call("b")).is_error
    assert other[1] == ["GET /up/b HTTP/1.1"]


async def test_policies_use_the_apis_own_names() -> None:
    names = ("$top", "filter[tenant]", "filter[name]", "Filter[tenant]")
    parameters = [{"name": name, "in": "query", "schema": {"type": "string"}} for name in names]
    rules = ToolPolicy(hidden={"filter[tenant]": "acme"}, defaults={"$top": "5"})
    async with raw_api(REPLIES) as (url, asked):
        policy = UpstreamPolicy(tools={"odd": rules})
        async with gateway(described("odd", parameters=parameters), url, policy=policy) as client:
            (tool,) = await client.tools()
            assert tool.input_schema["properties"].keys() == {"top", "filter_name", "Filter_tenant"}
            for name in ("filter[tenant]", "FILTER[TENANT]"):
                refused = await client.call("odd", {"filter_name": "x", name: "other"}, raise_on_error=False)
                assert f"unknown {name!r}. Expected: " in refused.text
            await client.call("odd", {"filter_name": "x"})
            await client.call("odd", {"top": "9", "Filter_tenant": "y"})
    assert sorted(asked[0].split()[1][5:].split("&")) == ["%24top=5", "filter%5Bname%5D=x", "filter%5Btenant%5D=acme"]
    assert "%24top=9" in asked[1]
    assert "Filter%5Btenant%5D=y" in asked[1]


@pytest.mark.filterwarnings("ignore:.*argument name")
async def test_argument_names_from_other_servers_work_with_every_model() -> None:
    inner = Server("inner")
    schema = {"type": "object", "properties": {"$top": {"type": "integer"}, "q": {}}, "required": ["$top"]}

    @inner.tool(input_schema=schema)
    async def find(arguments: dict[str, Any]) -> str:
        """Return the arguments."""
        return json.dumps(arguments)

    mcp = Server("front")
    mcp.upstream("inner", inner, prefix="", policy=UpstreamPolicy(tags=("all",)), start_timeout=WAIT)  # not relayed
    async with Client(mcp, timeout=WAIT) as client:
        (tool,) = await client.tools()
        assert tool.input_schema["required"] == ["top"]
        assert json.loads((await client.call("find", {"top": 3, "q": "x"})).text) == {"$top": 3, "q": "x"}


def in_parts(*addresses: str) -> bytes:
    """Return a document with an operation for each address of a path item."""
    items = {f"/p{number}": {"$ref": address} for number, address in enumerate(addresses)}
    return json.dumps({"openapi": "3.1.0", "servers": [{"url": "/"}], "paths": items}).encode()


def part(name: str) -> tuple[str, str, bytes]:
    return "200 OK", JSON, json.dumps({"get": {"operationId": name, "responses": {}}}).encode()


@asynccontextmanager
async def asked_with_key(
    document: bytes, address: str, parts: dict[str, tuple[str, str, bytes]], **options: Any
) -> AsyncIterator[tuple[set[str], dict[str, bool]]]:
    """Yield the operations of a document, and whether each of its files was requested with the upstream's key."""
    with_key: dict[str, bool] = {}
    async with raw_api({address: ("200 OK", JSON, document), **parts}, with_key) as (url, _):
        mcp = Server("front")
        api = OpenApi(
            document=f"{url}/{address}", **{name: [f"{url}{each}" for each in value] for name, value in options.items()}
        )
        mcp.upstream(
            "api",
            openapi=api,
            prefix="",
            auth=static_headers({"x-api-key": "secret"}),
            headers={"x-own": "secret"},
            start_timeout=WAIT,
        )
        async with Client(mcp, timeout=WAIT) as client:
            yield {each.name for each in await client.tools()}, with_key


async def test_references_below_the_folder_of_the_document_are_fetched_with_credentials() -> None:
    parts = {
        "docs/a.json": part("a"),
        "docs/b/c.yaml": part("c"),
        "docs/moved.json": ("302 Found", "location: a.json\r\n", b""),
    }
    document = in_parts("a.json", "./b/c.yaml", "/docs/moved.json")
    async with asked_with_key(document, "docs/api.json", parts) as (found, with_key):
        assert found == {"a", "c", "a_2"}
        assert with_key == dict.fromkeys(["docs/api.json", *parts], True)


async def test_references_at_the_root_are_fetched_without_credentials() -> None:
    async with asked_with_key(in_parts("a.json"), "api.json", {"a.json": part("a")}) as (found, with_key):
        assert found == {"a"}
        assert with_key == {"api.json": True, "a.json": False}


async def test_references_outside_of_the_folder_of_the_document_are_not_fetched(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    addresses = (
        "/private.json", "../private.json", "%2e%2e/private.json", "..%2fprivate.json", "%252e%252e/private.json",
        "..;/private.json", "..\\private.json", "..%5cprivate.json", "a.json?all=1", "a.json;x", "a", "a.txt",
        ".a.json", ".git/a.json", "%2ea.json", "b/.a.json", "//127.0.0.2:9/docs/a.json", "http://127.0.0.2:9/docs/a.json",
        "a%00.json", "file:///docs/a.json", "ftp://a/docs/b.json", "http://[", "/docs", "/docs/", "/docsa/a.json",
        "//docs/a.json",
    )  # fmt: skip
    parts = dict.fromkeys([each.strip("./") for each in addresses] + ["docs/a.json"], part("a"))
    leaving = {
        "docs/out.json": "/private.json",
        "docs/far.json": "http://127.0.0.2:9/docs/a.json",
        "docs/up.json": "%2e%2e/private.json",
    }
    parts |= {name: ("302 Found", f"location: {where}\r\n", b"") for name, where in leaving.items()}
    document = in_parts(*addresses, *(f"/{each}" for each in leaving))
    async with asked_with_key(document, "docs/api.json", parts) as (found, with_key):
        assert found == set()
        assert with_key == dict.fromkeys(["docs/api.json", *leaving], True)
    assert "private.json, because it isn't a .json, .yaml, or .yml file below the document's folder, or" in caplog.text
    assert "out.json, because it redirects to a file outside of its folder" in caplog.text


async def test_allowed_references_are_fetched_without_credentials() -> None:
    parts = {
        "common/a.json": part("a"),
        "common/b/c.json": part("c"),
        "commonly/d.json": part("d"),
        "e.json": part("e"),
    }
    parts["common/out.json"] = "302 Found", "location: /e.json\r\n", b""
    document = in_parts(*(f"/{each}" for each in parts), "/common/%2e%2e/e.json", "/common/a.json?b")
    async with asked_with_key(document, "docs/api.json", parts, references=["/common"]) as (found, with_key):
        assert found == {"a", "c"}
        without = ["common/a.json", "common/b/c.json", "common/out.json"]
        assert with_key == {"docs/api.json": True, **dict.fromkeys(without, False)}


async def test_documents_in_several_files_are_read_only_from_their_origin() -> None:
    pages = {
        "api.yaml": "openapi: 3.1.0\nservers: [{url: /}]\npaths: {/odd: {$ref: 'odd.yaml#/it'}, /b: {$ref: 'http://127.0.0.2:9/x'}}",
        "odd.yaml": "it: {get: {operationId: odd, responses: {}}}",
    }
    replies = REPLIES | {name: ("200 OK", "content-type: text/yaml\r\n", text.encode()) for name, text in pages.items()}
    async with raw_api(replies) as (url, asked):
        mcp = Server("front")
        mcp.upstream("api", openapi=f"{url}/api.yaml", prefix="", start_timeout=WAIT)
        async with Client(mcp, timeout=WAIT) as client:
            assert [each.name for each in await client.tools()] == ["odd"]
            assert (await client.call("odd")).data == {"n": "5"}
    assert asked[:2] == ["GET /api.yaml HTTP/1.1", "GET /odd.yaml HTTP/1.1"]
