import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from fastapi import FastAPI, Header
from pydantic import BaseModel, ConfigDict
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from auth_world import ALICE, BOB, make_key_auth, run_guarded
from cases import for_each
from http_peer import serve
from millstream import Client, Server, Text, auth, middleware
from millstream._gateway.credentials.source import UpstreamCredentials
from millstream._override import override
from millstream.client import AccessDenied
from millstream.gateway import OpenApi, ToolPolicy, UpstreamConfig, UpstreamPolicy, bearer
from millstream.items import Call
from millstream.protocol import BY_DATE
from patience import WAIT
from wire import request

OBJECT = {"200": {"description": "ok", "content": {"application/json": {"schema": {"type": "object"}}}}}


def query(name: str, place: str = "query", **schema: Any) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": schema or {"type": "string"}}


def operation(name: str, *parameters: Any, tag: str = "items", body: str = "") -> dict[str, Any]:
    made: dict[str, Any] = {"operationId": name, "tags": [tag], "parameters": [*parameters], "responses": OBJECT}
    if body:
        schema = {"type": "object", "properties": {"name": {"type": "string"}, "tags": {"type": "array"}}}
        made["requestBody"] = {"required": True, "content": {body: {"schema": schema}}}
    return made


def document(**changes: Any) -> dict[str, Any]:
    item = query("id", "path")
    headers = [query(name, "header") for name in ("Authorization", "X-Own", "X-Tenant", "X-Bad: 1\r\nX-Tenant")]
    paths: dict[str, Any] = {
        "/items/{id}": {
            "get": operation("get_item", item, query("full", type="boolean"), *headers),
            "patch": operation("change_item", item, body="application/json"),
        },
        "/form": {"post": operation("send_form", body="application/x-www-form-urlencoded")},
        "/parts": {"post": operation("send_parts", body="multipart/form-data")},
        "/away": {"get": operation("go_away")},
        "/near": {"get": operation("go_near")},
        "/locked": {"get": operation("locked", tag="inside")},
        "//evil.example/x": {"get": operation("evil")},
        "/a/../../x": {"get": operation("dots")},
        "/admin": {"get": operation("admin", tag="inside")},
    }
    return {"openapi": "3.1.0", "info": {}, "servers": [{"url": "/v1"}], "paths": paths} | changes


@asynccontextmanager
async def shop(described: Callable[[int], Any] = lambda port: document()) -> AsyncIterator[tuple[str, list[str]]]:
    """Return an API that echoes its requests."""
    mcp, asked = Server("api"), list[str]()

    async def answer(given: Request) -> Response:
        text = (await given.body()).decode()
        seen = given.headers
        asked.append(f"{given.method} {given.url.path}?{given.url.query} {text[:60]}".strip())
        if given.url.path == "/v1/away":
            return RedirectResponse("http://127.0.0.2:9/steal", 307)
        if given.url.path == "/v1/near":
            return RedirectResponse("/v1/items/near")
        if given.url.path == "/v1/locked":
            return Response(status_code=401)
        names = ("authorization", "x-tenant", "x-own", "content-type", "cookie")
        return JSONResponse({name: seen[name] for name in names if name in seen})

    mcp.route("/v1/{rest:path}", methods=["GET", "POST", "PATCH"])(answer)
    mcp.route("/about.json")(lambda given: JSONResponse(described(given.url.port)))
    async with mcp.running(), serve(mcp) as running:
        yield f"http://127.0.0.1:{running.port}", asked


async def test_operations_become_tools_with_named_headers() -> None:
    async with shop() as (url, asked):
        mcp = Server("front", auth=make_key_auth())
        mcp.upstream(
            "shop",
            openapi=OpenApi(document=f"{url}/about.json", tags=("items",)),
            auth=bearer("sesame"),
            forward_headers=["x-tenant"],
            policy=UpstreamPolicy(deny=("go_away",), tools={"get_item": ToolPolicy(name="item")}),
            start_timeout=WAIT,
        )
        async with run_guarded(mcp) as world:
            reply = await world.modern(ALICE, "tools/list")
            names = [each["name"] for each in reply.message["result"]["tools"]]
            assert names == ["shop_item", "shop_change_item", "shop_send_form", "shop_send_parts", "shop_go_near"]

            async def call(tool: str, **arguments: Any) -> dict[str, Any]:
                reply = await world.modern(ALICE, "tools/call", {"name": tool, "arguments": arguments}, tool)
                result: dict[str, Any] = reply.message["result"]
                return result

            others = {"X-Tenant": "south", "X-Bad: 1\r\nX-Tenant": "south"}
            refused = await call("shop_item", id="a b/c", Authorization="mine", **others)
            assert "unknown 'Authorization', 'X-Tenant', 'X-Bad: 1" in refused["content"][0]["text"]
            seen = await call("shop_item", id="a b/c", full=True, **{"X-Own": "x"})
            assert seen["structuredContent"] == {"authorization": "Bearer sesame", "x-own": "x"}
            assert (await call("shop_change_item", id="1", name="n"))["structuredContent"][
                "content-type"
            ] == "application/json"
            await call("shop_send_form", name="a&b", tags=[1, True])
            assert "boundary=" in (await call("shop_send_parts", name="x"))["structuredContent"]["content-type"]
            assert not (await call("shop_go_near")).get("isError")
            for wrong in ("..", "a/../b", "..%2f..", "%2e%2e", "a\\..\\b"):
                assert (await call("shop_item", id=wrong))["isError"]
            assert (await call("shop_item", id="1", **{"X-Own": "a\r\nb: c"}))["isError"]
            session = await world.initialize(BOB)
            message = request("tools/call", {"name": "shop_item", "arguments": {"id": "2"}})
            headers = {"x_tenant": "north", "x_other": "no", "cookie": "c=1", "mcp_session_id": session}
            reply = await world.post(BOB, message, mcp_protocol_version="2025-11-25", **headers)
            seen = reply.message["result"]["structuredContent"]
            assert seen == {"authorization": "Bearer sesame", "x-tenant": "north"}
    assert asked[0] == "GET /v1/items/a b/c?full=true"
    assert "POST /v1/form? name=a%26b&tags=1&tags=true" in asked
    assert 'PATCH /v1/items/1? {"name":"n"}' in asked
    assert not any("evil" in each or each.startswith("GET /x") for each in asked)


async def test_arguments_cannot_override_values_fixed_by_the_operator() -> None:
    """Policies hide `Tenant` and `filter[tenant]`, and the operator configures the headers."""
    any_object = {"type": "object", "additionalProperties": {"type": "string"}}
    paging = {"type": "object", "properties": {"page": {}, "tenant": {}}}
    find = operation(
        "find",
        *(query(name) for name in ("Tenant", "filter[tenant]", "words")),
        query("labels", **any_object),
        query("paging", **paging),
        {**query("filter", **any_object), "style": "deepObject"},
        {**query("loose"), "schema": {}},
        query("X_Tenant", "header"),
        query("session", "cookie"),
        query("a=1; session", "cookie"),
    )
    async with shop(lambda port: document(paths={"/find": {"get": find}})) as (url, asked):
        mcp = Server("front")
        hidden = {"Tenant": "acme", "filter[tenant]": "acme"}
        mcp.upstream(
            "shop",
            openapi=f"{url}/about.json",
            headers={"X-Tenant": "acme", "Cookie": "session=acme"},
            policy=UpstreamPolicy(tools={"find": ToolPolicy(hidden=hidden)}),
            start_timeout=WAIT,
        )
        async with Client(mcp, timeout=WAIT) as client:
            (tool,) = await client.tools()
            assert set(tool.input_schema["properties"]) == {"words", "labels", "paging", "filter", "loose"}
            for arguments in (
                {"words": {"Tenant": "victim", "admin": "true"}},
                {"words": ["x"]},
                *(
                    {"labels": {name: "victim"}}
                    for name in ("Tenant", "TENANT[]", "tenant[0]", "filter[tenant]", "filter")
                ),
                {"filter": {"Tenant": "victim"}},
                {"filter": {"tenant][": "victim"}},
                {"paging": {"tenant": "victim"}},
                {"paging": {"admin": "true"}},
            ):
                refused = await client.call("shop_find", arguments, raise_on_error=False)
                assert refused.is_error, arguments
                assert not asked, arguments
            hidden_names = "Tenant", "filter[tenant]", "X_Tenant", "session", "a=1; session"
            texts = {
                (await client.call("shop_find", {name: "x"}, raise_on_error=False)).text.replace(repr(name), "NAME")
                for name in ("nonexistent", *hidden_names)
            }
            assert len(texts) == 1  # callers can't tell names that are hidden from names that don't exist
            assert "unknown NAME. Expected: {" in texts.pop()
            assert not asked
            fine = {"labels": {"color": "red"}, "paging": {"page": 2}, "filter": {"size": "9"}, "loose": {"a": 1}}
            seen = (await client.call("shop_find", {"words": "a&Tenant=b", **fine})).data
    assert seen == {"x-tenant": "acme", "cookie": "session=acme"}
    pairs = parse_qsl(urlsplit(asked[0].removeprefix("GET ")).query)
    assert sorted(pairs) == [
        ("Tenant", "acme"), ("color", "red"), ("filter[size]", "9"), ("filter[tenant]", "acme"),
        ("loose", '{"a":1}'), ("page", "2"), ("words", "a&Tenant=b"),
    ]  # fmt: skip


async def test_redirects_and_other_servers_are_rejected(caplog: pytest.LogCaptureFixture) -> None:
    async with shop() as (url, _):
        mcp = Server("front")
        mcp.upstream("shop", openapi=f"{url}/about.json", start_timeout=WAIT, prefix="")
        async with Client(mcp, timeout=WAIT) as client:
            away = await client.call("go_away", raise_on_error=False)
            assert away.is_error
            assert "127.0.0.2" not in away.text
    broken = {
        "isn't the document's own origin": lambda port: document(servers=[{"url": "http://127.0.0.2:9/v1"}]),
        "nested deeper": lambda port: {"x": json.loads("[" * 80 + "]" * 80), **document()},
        "must be version 2.0": lambda port: {"swagger": "1.2", "paths": {}},
        "has more than 16,777,216 bytes. To allow more, set max_catalog_bytes.": (
            lambda port: {"x": "a" * 17_000_000, **document()}
        ),
    }
    for reason, described in broken.items():
        async with shop(described) as (url, _):
            mcp = Server("front")
            mcp.upstream("shop", openapi=f"{url}/about.json", start_timeout=0.1)
            async with mcp.running() as runtime, asyncio.timeout(WAIT):
                while not runtime.host.degraded_reasons():  # noqa: ASYNC110  no event says so
                    await asyncio.sleep(0.01)
            assert reason in caplog.text


@for_each("broken", ["!!bool foo", "!!timestamp foo", "!!float '1:'", "!!int x", f"0x{'f' * 5_000}", "[", "!!pairs 1"])
async def test_documents_are_read_again_after_malformed_yaml(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream._gateway.apis.upstream.reconnect_delay", lambda failures: 0)
    mcp, reads = Server("api"), count(1)
    mcp.route("/about.yaml")(
        lambda given: Response(f"paths: {broken}") if next(reads) < 4 else JSONResponse(document(servers=[]))
    )
    async with mcp.running(), serve(mcp) as running:
        front = Server("front")
        front.upstream("shop", openapi=f"http://127.0.0.1:{running.port}/about.yaml", start_timeout=WAIT, prefix="")
        async with Client(front, timeout=WAIT) as client, asyncio.timeout(WAIT):
            while "get_item" not in {each.name for each in await client.tools(fresh=True)}:
                pass


async def test_unexpected_errors_do_not_end_refreshes_and_are_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("millstream._gateway.apis.upstream.reconnect_delay", lambda failures: 0)
    causes = [ZeroDivisionError("one"), ZeroDivisionError("one"), KeyError("two"), KeyError("two"), KeyError("two")]
    async with shop() as (url, _):
        front = Server("front")
        front.upstream("shop", openapi=f"{url}/about.json", start_timeout=WAIT, prefix="")
        with monkeypatch.context() as patch:

            def fail(document: object) -> Any:
                cause = causes.pop(0)
                if not causes:
                    patch.undo()
                raise cause

            patch.setattr("millstream._gateway.apis.document.Document.operations", fail)
            async with Client(front, timeout=WAIT) as client, asyncio.timeout(WAIT):
                while "get_item" not in {each.name for each in await client.tools(fresh=True)}:
                    pass
    traces = [record for record in caplog.records if record.exc_info]
    assert [record.getMessage() for record in traces] == ["The document of shop can't be read"] * 2
    assert caplog.text.count("can't be reached: ZeroDivisionError: one") == 1


async def test_missing_documents_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    mcp, file = Server("front"), tmp_path / "missing.json"
    mcp.upstream("shop", openapi=OpenApi(document=str(file), base_url="http://127.0.0.1:9"), start_timeout=0.1)
    async with mcp.running() as runtime, asyncio.timeout(WAIT):
        while not runtime.host.degraded_reasons():  # noqa: ASYNC110  no event says so
            await asyncio.sleep(0.01)
    assert f"The document {file} can't be read: No such file or directory. Check its path." in caplog.text


async def test_errors_for_denied_access_suggest_the_option(caplog: pytest.LogCaptureFixture) -> None:
    locked = Server("locked", serve="rest", auth=auth.keys("a-key-of-some-length-for-tests"))
    async with serve(locked) as running, asyncio.timeout(WAIT):
        mcp = Server("front")
        mcp.upstream("api", openapi=f"http://127.0.0.1:{running.port}/openapi.json", start_timeout=WAIT)
        mcp.upstream("tools", f"http://127.0.0.1:{running.port}/mcp", start_timeout=WAIT)
        async with mcp.running():
            for path in ("openapi.json", "mcp"):
                assert f"/{path} requires credentials (401): Sign in: send the header Authorization" in caplog.text
            assert caplog.text.count("Send credentials: set auth or headers.") == 2


class RenewedAccount(UpstreamCredentials):
    """Credentials of a user who connects again whenever the upstream denies a call."""

    @override
    async def recover(self, call: Call, denied: AccessDenied) -> bool:
        return True


async def test_call_that_an_api_denies_again_fails() -> None:
    async with shop() as (url, asked):
        mcp = Server("front")
        mcp.upstream("shop", openapi=f"{url}/about.json", start_timeout=WAIT)
        async with mcp.running() as runtime, Client(mcp, timeout=WAIT) as client:
            runtime.host.gateway.upstreams["shop"].credentials = RenewedAccount("shop", ())
            denied = await client.call("shop_locked", raise_on_error=False)
            assert "rejected the gateway's credentials" in denied.text
    assert len(asked) == 2


async def test_application_that_cannot_be_described_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(BaseModel):
        model_config = ConfigDict(arbitrary_types_allowed=True)
        lock: asyncio.Lock

    app = FastAPI()

    @app.post("/odd")
    async def odd(body: Odd) -> None: ...

    mcp = Server("front")
    mcp.upstream("shop", openapi=app, start_timeout=0.1)
    async with mcp.running() as runtime, asyncio.timeout(WAIT):
        while not runtime.host.degraded_reasons():  # noqa: ASYNC110  no event says so
            await asyncio.sleep(0.01)
    assert "The application can't be described (PydanticInvalidForJsonSchema: " in caplog.text


async def test_fastapi_applications_work_as_upstreams() -> None:
    started: list[str] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        started.append("up")
        yield
        started.append("down")

    app = FastAPI(title="Shop", lifespan=lifespan)

    @app.get("/books/{isbn}", operation_id="book")
    async def book(isbn: str, x_tenant: str = Header(default="none")) -> dict[str, str]:
        return {"isbn": isbn, "tenant": x_tenant}

    mcp = Server("front")
    mcp.upstream("shop", openapi=app, forward_headers=["x-tenant"], start_timeout=WAIT)
    for revision in BY_DATE:
        async with Client(mcp, timeout=WAIT, revision=revision) as client:
            (tool,) = await client.tools()
            assert tool.name == "shop_book"
            assert json.loads((await client.call("shop_book", isbn="7")).text) == {"isbn": "7", "tenant": "none"}
    assert started == ["up", "down"] * len(BY_DATE)


async def test_middleware_receives_api_results_as_tool_results() -> None:
    seen: list[Any] = []

    class Watching(middleware.Middleware):
        @override
        async def on_call(self, request: middleware.Request, next: middleware.Next) -> Any:
            seen.append(await next(request))
            return seen[0]

    app = FastAPI()

    @app.get("/books/{isbn}", operation_id="book")
    async def book(isbn: str) -> dict[str, str]:
        return {"isbn": isbn}

    mcp = Server("front", middleware=[Watching()])
    mcp.upstream("shop", openapi=app, start_timeout=WAIT)
    async with Client(mcp, timeout=WAIT) as client:
        assert (await client.call("shop_book", isbn="7")).data == {"isbn": "7"}
    assert [each.content for each in seen] == [[Text('{"isbn":"7"}')]]


def test_upstream_addresses_have_the_same_text_in_all_workers() -> None:
    class OtherServer:
        """A server of another library, whose `repr` differs between processes."""

    def address(target: Any = None, **options: Any) -> str:
        return UpstreamConfig(name="shop", target=target, **options).address

    for described in ("https://shop.example/openapi.json", document()):
        assert address(openapi=described) == address(openapi=OpenApi(document=described)) == repr(described)
    assert not address(openapi=FastAPI())  # it's in this process, so no call can come back over it
    assert not address(openapi=OpenApi(document=FastAPI()))
    assert address(OtherServer()) == address(OtherServer()) == "OtherServer"
    assert address("uvx shop") == "'uvx shop'"
    assert not address(Server("shop"))


def test_invalid_api_options_are_rejected_at_startup() -> None:
    mistakes: list[tuple[dict[str, Any], str]] = [
        ({"openapi": 3}, "takes the URL or file"),
        ({"openapi": "x.json", "target": "http://x/mcp"}, "not both"),
        ({"openapi": FastAPI(), "auth": bearer("x")}, "doesn't support auth and headers"),
    ]
    for options, reason in mistakes:
        with pytest.raises(ValueError, match=reason):
            UpstreamConfig(**{"name": "a", "target": None, **options}).check()
