import asyncio
import sys
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Dict, TypedDict  # noqa: UP035  as in programs

import httpx2
import msgspec
import pytest
from pydantic import BaseModel, Field, validate_call
from starlette.responses import PlainTextResponse

from cases import for_each
from cpu import cpu_seconds_of
from http_peer import serve
from millstream import Audio as SoundBlock
from millstream import Image as PictureBlock
from millstream import Text
from millstream.client import ServerError
from millstream.compat import types
from millstream.compat.fastmcp import (
    AcceptedElicitation,
    Audio,
    Context,
    FastMCP,
    FileResource,
    Image,
    McpError,
    ResourceError,
    TextResource,
    ToolError,
    UrlElicitationRequiredError,
    base,
)
from millstream.compat.fastmcp._auth import AccessToken, AuthSettings
from millstream.testing import connect
from wire import open_pipe

HANDSHAKE = "2025-11-25"
REVISIONS = ["2024-11-05", HANDSHAKE, "2026-07-28"]
OPENING = {"protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}


class Order(BaseModel):
    isbn: str
    copies: int = Field(default=1, ge=1)


class Shelf(TypedDict):
    name: str
    books: int


@for_each("revision", REVISIONS)
async def test_arguments_are_converted_and_json_text_is_decoded(revision: str) -> None:
    mcp = FastMCP("shop")

    @mcp.tool()
    def order(count: int, isbns: list[str], first: Order) -> str:
        return f"{count} {isbns} {first.isbn} {first.copies}"

    async with connect(mcp.engine, revision=revision) as client:
        result = await client.call("order", count="3", isbns='["a", "b"]', first='{"isbn": "c"}', unknown=True)
        assert (await client.call("order", count="many", isbns=[], first={"isbn": "c"}, raise_on_error=False)).is_error
    assert result.text == "3 ['a', 'b'] c 1"
    assert not result.is_error


async def test_decorators_accept_names_titles_and_annotations() -> None:
    mcp = FastMCP("shop", instructions="Buy.", website_url="https://shop.example")

    @mcp.tool(name="buy", title="Buy", description="Buy a book", annotations=types.ToolAnnotations(readOnlyHint=False))
    def first(isbn: str) -> None: ...

    @mcp.tool("sell")
    def second(isbn: str) -> None:
        """Sell a book."""

    @mcp.tool
    def plain(isbn) -> None: ...

    mcp.add_tool(plain, "added", meta={"since": 1})
    mcp.remove_tool("added")
    mcp.add_tool(lambda a: a, name="added", meta={"since": 2})
    async with connect(mcp.engine) as client:
        tools = {tool["name"]: tool for tool in (await client.request("tools/list"))["tools"]}
    assert list(tools) == ["buy", "sell", "plain", "added"]
    assert tools["buy"]["annotations"] == {"readOnlyHint": False}
    assert (tools["buy"]["title"], tools["sell"]["description"]) == ("Buy", "Sell a book.")
    assert list(tools["plain"]["inputSchema"]["properties"]) == ["isbn"]
    assert tools["added"]["_meta"] == {"since": 2}
    with pytest.raises(ToolError, match="Unknown tool"):
        mcp.remove_tool("none")


async def test_values_become_content_and_structured_content() -> None:
    mcp = FastMCP("shop")

    @mcp.tool()
    def books() -> list[dict[str, int]]:
        return [{"a": 1}, {"b": 2}]

    @mcp.tool()
    def order() -> Order:
        return Order(isbn="7")

    @mcp.tool()
    def shelf() -> Shelf:
        return {"name": "top", "books": 3}

    @mcp.tool()
    def counts() -> dict[str, int]:
        return {"top": 3}

    @mcp.tool()
    def found() -> Dict:  # type: ignore[type-arg]  # noqa: UP006  as in programs
        return {"top": 3}

    class Clerk:
        name: Annotated[str, Field(description="Full name")]

        def __init__(self, name: str) -> None:
            self.name = name

    @mcp.tool()
    def clerk() -> Clerk:
        return Clerk("Ada")

    @mcp.tool(structured_output=False)
    def text() -> int:
        return 7

    async with connect(mcp.engine, revision=HANDSHAKE) as client:
        listed = await client.call("books")
        assert [block.text for block in listed.content if isinstance(block, Text)] == [
            '{\n  "a": 1\n}',
            '{\n  "b": 2\n}',
        ]
        assert listed.data == {"result": [{"a": 1}, {"b": 2}]}
        assert (await client.call("order")).data == {"isbn": "7", "copies": 1}
        assert (await client.call("shelf")).data == {"name": "top", "books": 3}
        assert (await client.call("counts")).data == {"top": 3}
        assert (await client.call("found")).data == {"result": {"top": 3}}
        assert (await client.call("clerk")).data == {"name": "Ada"}
        assert "Full name" in str(next(each for each in await mcp.list_tools() if each.name == "clerk").outputSchema)
        plain = await client.call("text")
        assert plain.text == "7"
        assert plain.structured_content is msgspec.UNSET


async def test_media_and_explicit_results_are_returned_unchanged(tmp_path: Path) -> None:
    picture = tmp_path / "dot.png"
    picture.write_bytes(b"\x89PNG")
    mcp = FastMCP("pictures")

    @mcp.tool()
    def show() -> list:  # type: ignore[type-arg]  # for content, without a schema
        return ["a dot", Image(path=picture), Audio(data=b"RIFF", format="wav"), types.TextContent(text="done")]

    @mcp.tool()
    def refuse() -> types.CallToolResult:
        return types.CallToolResult(content=[types.TextContent(text="no")], isError=True, _meta={"why": "closed"})

    async with connect(mcp.engine) as client:
        shown = await client.call("show")
        refused = await client.call("refuse", raise_on_error=False)
    assert [type(block).__name__ for block in shown.content] == ["Text", "Image", "Audio", "Text"]
    assert shown.content[1:3] == [PictureBlock(b"\x89PNG", "image/png"), SoundBlock(b"RIFF", "audio/wav")]
    assert refused.is_error
    assert refused.meta["why"] == "closed"


async def test_errors_match_the_sdk() -> None:
    mcp = FastMCP("errors")

    @mcp.tool()
    def fail() -> str:
        raise ToolError("sold out")

    @mcp.tool()
    def sign_in() -> str:
        raise UrlElicitationRequiredError([types.Root(uri="https://shop.example")])

    @mcp.resource("gone://it")
    def gone() -> str:
        raise McpError(types.ErrorData(code=-32050, message="Gone", data={"since": 1}))

    async with connect(mcp.engine, revision=HANDSHAKE) as client:
        failed = await client.call("fail", raise_on_error=False)
        assert (failed.is_error, failed.text) == (True, "Error executing tool fail: sold out")
        with pytest.raises(ServerError) as caught:
            await client.call("sign_in")
        assert caught.value.code == -32042
        with pytest.raises(ServerError, match="Error reading resource"):
            await client.read("gone://it")


async def test_context_has_meta_headers_and_lifespan() -> None:
    @asynccontextmanager
    async def lifespan(server: FastMCP[Any]) -> AsyncIterator[dict[str, str]]:
        yield {"name": server.name}

    mcp = FastMCP("lifespan", lifespan=lifespan)

    @mcp.resource("config://shop")
    def config() -> dict[str, int]:
        return {"open": 9}

    @mcp.tool()
    async def look(ctx: Context[Any, Any, Any], note: str = "") -> list[str]:
        inside = await ctx.read_resource("config://shop")
        await ctx.report_progress(1, 2, "half")
        await ctx.debug("looking")
        meta = ctx.request_context.meta
        return [ctx.request_context.lifespan_context["name"], inside[0].content, meta.trace, str(ctx.client_id)]

    meta = {"progressToken": 5, "trace": "t-1", "client_id": "me"}
    async with mcp.engine.running() as runtime:
        pipe = open_pipe(runtime)
        pipe.send(_request(1, "initialize", OPENING))
        await pipe.receive()
        pipe.send(_request(2, "tools/call", {"name": "look", "arguments": {"note": "x" * 100_000}, "_meta": meta}))
        progress, log, answer = [msgspec.json.decode(await pipe.receive()) for _ in range(3)]
        await pipe.close()
    assert progress["params"] == {"progressToken": 5, "progress": 1, "total": 2, "message": "half"}
    assert log["params"] == {"level": "debug", "data": "looking"}
    assert answer["result"]["structuredContent"] == {"result": ["lifespan", '{\n  "open": 9\n}', "t-1", "me"]}


def _request(number: int, method: str, params: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"jsonrpc": "2.0", "id": number, "method": method, "params": params})


@for_each("revision", REVISIONS[1:])
async def test_elicit_returns_the_users_action(revision: str) -> None:
    mcp = FastMCP("asking")

    @mcp.tool()
    async def ask(ctx: Context[Any, Any, Any]) -> str:
        answer = await ctx.elicit("Which?", Order)
        return f"{answer.data.isbn} {answer.data.copies}" if isinstance(answer, AcceptedElicitation) else answer.action

    for answers, said in (({"isbn": "a", "copies": 2}, "a 2"), ("decline", "decline"), ("cancel", "cancel")):
        async with connect(mcp.engine, revision=revision, elicit=lambda question, given=answers: given) as client:
            assert (await client.call("ask")).text == said


async def test_sampling_and_capabilities_ask_the_client() -> None:
    mcp = FastMCP("sampling")
    wanted = types.ClientCapabilities(sampling=types.SamplingCapability())

    @mcp.tool()
    async def think(ctx: Context) -> list[str]:
        if not ctx.session.check_client_capability(wanted):
            return ["no model"]
        message = types.SamplingMessage(role="user", content=types.TextContent(text="hi"))
        reply = await ctx.session.create_message([message], max_tokens=5)
        return [(await ctx.sample("hello")).text, reply.content.text, reply.role]

    def sample(*given: Any) -> str:
        return "Hm."

    async with connect(mcp.engine, revision=HANDSHAKE, sample=sample) as client:
        assert (await client.call("think")).data == {"result": ["Hm.", "Hm.", "assistant"]}
    async with connect(mcp.engine, revision=HANDSHAKE) as client:
        assert (await client.call("think")).data == {"result": ["no model"]}


@for_each("revision", REVISIONS)
async def test_validate_call_functions_receive_the_context(revision: str) -> None:
    mcp = FastMCP("shop")

    class Desk:
        @validate_call
        async def greet(self, ctx: Context[Any, Any], name: str = Field(min_length=2)) -> str:
            return f"{name} at {ctx.fastmcp.name}"

    mcp.tool()(Desk().greet)
    async with connect(mcp.__millstream_server__, revision=revision) as client:
        assert (await client.call("greet", name="Ada")).text == "Ada at shop"
        assert (await client.call("greet", name="A", raise_on_error=False)).is_error


async def test_resource_functions_are_inspected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    mcp = FastMCP("shelf")

    @mcp.resource("shelf://count")
    def count() -> str:
        return "3"

    async with connect(mcp.engine) as client:
        assert (await client.read("shelf://count", fresh=True))[0].text == "3"
        monkeypatch.delattr("millstream.compat.fastmcp._items.signature_of")
        assert (await client.read("shelf://count", fresh=True))[0].text == "3"


async def test_several_variables_in_a_segment_are_matched_in_linear_time() -> None:
    mcp = FastMCP("weather")

    @mcp.resource("weather://{city}-{day}-{hour}.{unit}")
    def weather(city: str, day: str, hour: str, unit: str) -> str:
        return f"{city} {day} {hour} {unit}"

    async with connect(mcp.engine) as client:
        assert (await client.read("weather://new-york-1-2.a.c"))[0].text == "new-york 1 2.a c"

        async def read(size: int) -> None:
            with pytest.raises(ServerError):
                await client.read("weather://" + "-" * size + ".c/")

        assert await cpu_seconds_of(lambda: read(800)) < 24 * await cpu_seconds_of(lambda: read(100))


async def test_resources_and_templates_are_read(tmp_path: Path) -> None:
    (tmp_path / "note.txt").write_text("remember")
    mcp = FastMCP("shelf")
    mcp.add_resource(FileResource(uri="file:///note", path=tmp_path / "note.txt"))  # type: ignore[arg-type]
    mcp.add_resource(TextResource(uri="text://hi", text="hi"))  # type: ignore[arg-type]

    @mcp.resource("page://{book}/{number}", mime_type="text/html", title="A page")
    def page(book: str, number: int, ctx: Context) -> str:
        return f"{book} {number + 1} {ctx.request_id != ''}"

    async with connect(mcp.engine) as client:
        assert (await client.read("file:///note"))[0].text == "remember"
        assert (await client.read("text://hi"))[0].text == "hi"
        found = (await client.read("page://momo%20a/6"))[0]
        assert (found.uri, found.mime_type, found.text) == ("page://momo%20a/6", "text/html", "momo a 7 True")
        for value in ("%2e%2e", "a%5c..%5cb", "%2Fetc%2Fpasswd", "C:secret"):
            with pytest.raises(ServerError, match="not found"):
                await client.read(f"page://{value}/1")
        templates = (await client.request("resources/templates/list"))["resourceTemplates"]
    assert [(each["uriTemplate"], each["title"]) for each in templates] == [("page://{book}/{number}", "A page")]
    with pytest.raises(ValueError, match="Mismatch between URI parameters"):
        mcp.resource("page://{isbn}", name="wrong")(lambda book: book)


async def test_prompts_return_messages() -> None:
    mcp = FastMCP("shop")

    @mcp.prompt(title="Review")
    def review(code: str, tone: str = "kind") -> list[Any]:
        return [base.UserMessage(f"Review {code}"), {"role": "assistant", "content": "Gladly"}, tone]

    async with connect(mcp.engine) as client:
        messages = (await client.prompt("review", code="x")).messages
        (prompt,) = (await client.request("prompts/list"))["prompts"]
        with pytest.raises(ServerError, match="Missing required arguments"):
            await client.prompt("review")
    assert [(each.role, each.blocks[0].text) for each in messages if isinstance(each.blocks[0], Text)] == [
        ("user", "Review x"),
        ("assistant", "Gladly"),
        ("user", "kind"),
    ]
    assert [(each["name"], each["required"]) for each in prompt["arguments"]] == [("code", True), ("tone", False)]
    assert len((await mcp.get_prompt("review", {"code": "x"})).messages) == 3
    with pytest.raises(ValueError, match="Unknown prompt: revue"):
        await mcp.get_prompt("revue")


async def test_one_function_completes_every_argument() -> None:
    mcp = FastMCP("completing")

    @mcp.prompt()
    def greet(language: str, name: str) -> str:
        return f"{language} {name}"

    @mcp.completion()
    async def complete(ref: Any, argument: Any, context: Any) -> Any:
        known = context.arguments if context else {}
        return types.Completion(values=[f"{ref.name}.{argument.name}.{known.get('language')}"], total=7)

    request = {
        "ref": {"type": "ref/prompt", "name": "greet"},
        "argument": {"name": "name", "value": "A"},
        "context": {"arguments": {"language": "de"}},
    }
    async with connect(mcp.engine) as client:
        found = (await client.request("completion/complete", request))["completion"]
    assert found["values"] == ["greet.name.de"]
    assert found["total"] == 7


async def test_completion_functions_may_return_nothing() -> None:
    mcp = FastMCP("completing")

    @mcp.prompt()
    def greet(name: str) -> str:
        return name

    @mcp.completion()
    def complete(ref: Any, argument: Any, context: Any) -> None:
        return None

    request = {"ref": {"type": "ref/prompt", "name": "greet"}, "argument": {"name": "name", "value": "A"}}
    async with connect(mcp.engine) as client:
        found = (await client.request("completion/complete", request))["completion"]
    assert found == {"values": [], "total": 0, "hasMore": False}


async def test_direct_calls_return_sdk_shapes() -> None:
    mcp = FastMCP("direct")
    mcp.tool("add")(lambda a, b: a + b)

    @mcp.tool()
    def seven() -> int:
        return 7

    @mcp.resource("text://{name}")
    def text(name: str) -> str:
        return name

    assert (await mcp.call_tool("add", {"a": 1, "b": 2}))[0].text == "3"
    content, structured = await mcp.call_tool("seven", {})
    assert (content[0].text, structured) == ("7", {"result": 7})
    assert (await mcp.read_resource("text://hi"))[0].content == "hi"
    assert [tool.name for tool in await mcp.list_tools()] == ["add", "seven"]
    assert [each.uriTemplate for each in await mcp.list_resource_templates()] == ["text://{name}"]
    with pytest.raises(ToolError, match="Unknown tool"):
        await mcp.call_tool("none", {})
    with pytest.raises(ResourceError, match="Unknown resource"):
        await mcp.read_resource("none://")


def test_error_for_a_form_route_suggests_the_form_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    async def respond(request: object) -> PlainTextResponse:
        return PlainTextResponse("")

    mcp = FastMCP("forms")
    monkeypatch.setitem(sys.modules, "python_multipart", None)
    with pytest.warns(UserWarning, match="'/login' can't read forms.* pip install 'millstream.compat.") as warned:
        mcp.custom_route("/login", methods=["GET", "post"])(respond)
    assert warned[0].filename == __file__
    with warnings.catch_warnings(action="error"):
        mcp.custom_route("/hi", methods=["GET"])(respond)
        monkeypatch.undo()
        mcp.custom_route("/send", methods=["POST"])(respond)


async def test_first_of_two_tools_with_the_same_name_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    mcp = FastMCP("twins")
    mcp.add_tool(lambda: "first", name="twin")
    mcp.add_tool(lambda: "second", name="twin")
    assert "Tool already exists: twin" in caplog.text
    async with connect(mcp.engine) as client:
        assert (await client.call("twin")).text == "first"


async def test_plain_functions_run_in_a_thread() -> None:
    mcp = FastMCP("threads")

    @mcp.tool()
    def where() -> str:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return "thread"
        return "loop"

    async with connect(mcp.engine) as client:
        assert (await client.call("where")).text == "thread"


def test_unknown_options_are_rejected() -> None:
    with pytest.raises(TypeError, match="statless_http"):
        FastMCP("wrong", statless_http=True)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="auth settings"):
        FastMCP("half", token_verifier=object())


async def test_application_serves_the_programs_paths() -> None:
    mcp = FastMCP("paths", host="shop.example", streamable_http_path="/talk", json_response=True, stateless_http=True)

    @mcp.custom_route("/hi", methods=["GET"])
    async def hi(request: Any) -> PlainTextResponse:
        return PlainTextResponse(f"hi {request.query_params['name']}")

    async with _http(mcp) as http:
        assert (await http.get("/hi?name=Ada")).text == "hi Ada"
        opened = await http.post("/talk", content=_request(1, "initialize", OPENING), headers=_JSON)
        assert (await http.post("/mcp", json={})).status_code == 404
    assert opened.json()["result"]["serverInfo"]["name"] == "paths"
    assert "mcp-session-id" not in opened.headers


async def test_client_id_of_a_token_is_known_to_tools() -> None:
    class Verifier:
        async def verify_token(self, token: str) -> AccessToken:
            return AccessToken(token=token, client_id="desk", scopes=[])

    settings = AuthSettings(issuer_url="https://shop.example", resource_server_url="https://shop.example/mcp")
    mcp = FastMCP(
        "desk", host="shop.example", token_verifier=Verifier(), auth=settings, json_response=True, stateless_http=True
    )

    @mcp.tool()
    def whose(ctx: Context[Any, Any, Any]) -> str:
        return str(ctx.client_id)

    call = _request(1, "tools/call", {"name": "whose", "arguments": {}})
    async with _http(mcp) as http:
        reply = await http.post("/mcp", content=call, headers={**_JSON, "Authorization": "Bearer a"})
    assert reply.json()["result"]["content"] == [{"type": "text", "text": "desk"}]


async def test_public_servers_send_no_cors_headers() -> None:
    mcp = FastMCP("public", host="shop.example")
    called: list[str] = []

    @mcp.tool()
    def note() -> None:
        called.append("called")

    page = {"origin": "https://evil.example"}
    ask = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    async with _http(mcp) as http:
        preflight = await http.options("/mcp", headers={**page, **ask})
        assert preflight.status_code == 405
        plain = {**page, "content-type": "text/plain", "accept": _JSON["accept"]}
        simple = await http.post(
            "/mcp", content=_request(1, "tools/call", {"name": "note", "arguments": {}}), headers=plain
        )
        assert simple.status_code == 403
        opened = await http.post("/mcp", content=_request(1, "initialize", OPENING), headers={**page, **_JSON})
        assert opened.status_code == 200
    for reply in (preflight, simple, opened):
        assert not [name for name in reply.headers if name.startswith("access-control-")]
    assert not called


_JSON = {"accept": "application/json, text/event-stream", "content-type": "application/json"}


@asynccontextmanager
async def _http(mcp: FastMCP[Any]) -> AsyncIterator[httpx2.AsyncClient]:
    app = mcp.streamable_http_app()
    async with (
        mcp.session_manager.run(),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://shop.example") as http,
    ):
        yield http


async def test_public_server_without_sign_in_admits_programs_and_own_pages_but_no_pages_of_other_origins() -> None:
    own, app = (FastMCP("shop", host="0.0.0.0") for _ in range(2))  # noqa: S104  only the settings matter
    opening = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": OPENING}
    accept = {"accept": "application/json, text/event-stream"}
    for serving, foreign in ((serve(own.__millstream_server__), 403), (serve(app.streamable_http_app()), 200)):
        async with serving as running, httpx2.AsyncClient(base_url=f"http://127.0.0.1:{running.port}") as http:
            for headers, status in (
                ({"host": "catalog:8000"}, 200),
                ({"host": "shop.example:8000", "origin": "http://shop.example:8000"}, 200),
                ({"host": "catalog", "origin": "https://shop.example", "sec-fetch-site": "same-origin"}, 200),
                ({"host": "catalog:8000", "origin": "http://evil.example"}, foreign),
            ):
                reply = await http.post("/mcp", json=opening, headers=accept | headers)
                assert (reply.status_code, reply.headers.get("access-control-allow-origin")) == (status, None), headers
