"""What programs for the official SDK and for fastmcp rely on, seen by a client of the server behind them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
from pydantic import BaseModel, Field
from starlette.responses import PlainTextResponse

from millstream._transports.memory import MemoryPipe
from millstream.client._errors import Failure
from millstream.compat import types
from millstream.compat.fastmcp import (
    AcceptedElicitation,
    Context,
    FastMCP,
    FileResource,
    Image,
    McpError,
    MCPServer,
    Middleware,
    ResourceResult,
    ToolError,
    UserMessage,
    standalone,
)
from millstream.compat.fastmcp._resources import ResourceContent
from millstream.testing import connect

HANDSHAKE = "2025-11-25"
REVISIONS = ["2024-11-05", HANDSHAKE, "2026-07-28"]


class Order(BaseModel):
    isbn: str
    copies: int = Field(default=1, ge=1)


@pytest.mark.parametrize("revision", REVISIONS)
async def test_arguments_are_read_leniently(revision: str) -> None:
    """Hosts send numbers as text and lists as JSON text, and models add names that nobody asked for."""
    mcp = FastMCP("shop")

    @mcp.tool()
    def order(count: int, isbns: list[str], first: Order) -> str:
        return f"{count} {isbns} {first.isbn} {first.copies}"

    async with connect(mcp.engine, revision=revision) as client:
        result = await client.call("order", count="3", isbns='["a", "b"]', first='{"isbn": "c"}', unknown=True)
    assert result.text == "3 ['a', 'b'] c 1"
    assert not result.is_error


async def test_fastmcp_refuses_unknown_arguments_and_opens_no_json() -> None:
    """Where the libraries differ, the server of each does what its library does."""
    mcp = standalone.FastMCP("shop")

    @mcp.tool
    def order(isbns: list[str]) -> int:
        return len(isbns)

    async with connect(mcp.engine) as client:
        assert (await client.call("order", isbns=["a"], other=1)).is_error
        assert (await client.call("order", isbns='["a"]')).is_error
        assert (await client.call("order", isbns=["a"])).structured == {"result": 1}


async def test_values_become_content_as_the_libraries_do_it() -> None:
    """The SDK has a text for each value of a list and indents JSON; fastmcp has one text."""

    def books() -> list[dict[str, int]]:
        return [{"a": 1}, {"b": 2}]

    servers: list[FastMCP[Any]] = [FastMCP("sdk"), standalone.FastMCP("fastmcp")]
    texts = []
    for mcp in servers:
        mcp.add_tool(books)
        async with connect(mcp.engine, revision=HANDSHAKE) as client:
            result = await client.call("books")
        assert result.structured == {"result": [{"a": 1}, {"b": 2}]}
        texts.append([block["text"] for block in result.content])
    assert texts == [['{\n  "a": 1\n}', '{\n  "b": 2\n}'], ['[{"a":1},{"b":2}]']]


async def test_pictures_blocks_and_whole_results_are_returned_as_they_are(tmp_path: Path) -> None:
    """`Image(path=…)`, content blocks, and a `CallToolResult` that says everything itself."""
    picture = tmp_path / "dot.png"
    picture.write_bytes(b"\x89PNG")
    mcp = FastMCP("pictures")

    @mcp.tool()
    def show() -> list:  # type: ignore[type-arg]  # what holds content has no schema
        return ["a dot", Image(path=picture), types.TextContent(text="done")]

    @mcp.tool()
    def refuse() -> types.CallToolResult:
        return types.CallToolResult(content=[types.TextContent(text="no")], is_error=True, _meta={"why": "closed"})

    async with connect(mcp.engine) as client:
        shown = await client.call("show")
        refused = await client.call("refuse")
    assert [block["type"] for block in shown.content] == ["text", "image", "text"]
    assert shown.content[1] == {"type": "image", "data": "iVBORw==", "mimeType": "image/png"}
    assert refused.is_error
    assert refused.raw["_meta"]["why"] == "closed"


async def test_a_tool_that_raises_says_why_in_the_words_of_the_library() -> None:
    """The texts that models of existing hosts know."""

    def fail() -> str:
        raise ToolError("sold out")

    said = []
    for mcp in (FastMCP("sdk"), standalone.FastMCP("fastmcp")):
        mcp.add_tool(fail)
        async with connect(mcp.engine) as client:
            result = await client.call("fail")
        assert result.is_error
        said.append(result.text)
    assert said == ["Error executing tool fail: sold out", "sold out"]


async def test_the_context_reads_meta_headers_and_the_lifespan() -> None:
    """`request_context` in terms of ours."""

    @asynccontextmanager
    async def lifespan(server: FastMCP[Any]) -> AsyncIterator[dict[str, str]]:
        yield {"name": server.name}

    mcp = FastMCP("lifespan", lifespan=lifespan)

    @mcp.resource("config://shop")
    def config() -> dict[str, int]:
        return {"open": 9}

    @mcp.tool()
    async def look(ctx: Context[Any, Any, Any]) -> list[str]:
        inside = await ctx.read_resource("config://shop")
        await ctx.report_progress(1, 2, "half")
        await ctx.debug("looking")
        meta = ctx.request_context.meta
        return [ctx.request_context.lifespan_context["name"], inside[0].content, meta.trace, str(ctx.client_id)]

    opening = {"protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    meta = {"progressToken": 5, "trace": "t-1", "client_id": "me"}
    async with mcp.engine.running() as runtime:
        pipe = MemoryPipe(runtime.dispatcher)
        pipe.send(_request(1, "initialize", opening))
        await pipe.receive()
        pipe.send(_request(2, "tools/call", {"name": "look", "arguments": {}, "_meta": meta}))
        progress, log, answer = [msgspec.json.decode(await pipe.receive()) for _ in range(3)]
        await pipe.close()
    assert progress["params"] == {"progressToken": 5, "progress": 1, "total": 2, "message": "half"}
    assert log["params"] == {"level": "debug", "data": "looking"}
    assert answer["result"]["structuredContent"] == {"result": ["lifespan", '{\n  "open": 9\n}', "t-1", "me"]}


def _request(number: int, method: str, params: dict[str, Any]) -> bytes:
    return msgspec.json.encode({"jsonrpc": "2.0", "id": number, "method": method, "params": params})


@pytest.mark.parametrize("revision", REVISIONS[1:])
async def test_a_question_gives_what_the_person_did(revision: str) -> None:
    """`ctx.elicit` with a model; the same function asks in both eras."""
    mcp = FastMCP("asking")

    @mcp.tool()
    async def ask(ctx: Context[Any, Any, Any]) -> str:
        answer = await ctx.elicit("Which?", Order)
        return f"{answer.data.isbn} {answer.data.copies}" if isinstance(answer, AcceptedElicitation) else answer.action

    for answers, said in (({"isbn": "a", "copies": 2}, "a 2"), ("decline", "decline"), ("cancel", "cancel")):
        async with connect(
            mcp.engine, revision=revision, elicit=lambda message, schema, given=answers: given
        ) as client:
            assert (await client.call("ask")).text == said


async def test_prompts_resources_templates_and_files_are_read(tmp_path: Path) -> None:
    """Messages, text for JSON, `{path*}` and `{?query}`, and what climbs out of a folder is no match."""
    (tmp_path / "note.txt").write_text("remember")
    mcp = standalone.FastMCP("shelf")
    mcp.add_resource(FileResource(uri="file:///note", path=tmp_path / "note.txt"))  # type: ignore[arg-type]

    @mcp.resource("page://{path*}{?lang}")
    def page(path: str, lang: str = "en") -> ResourceResult:
        return ResourceResult([ResourceContent(f"{path} {lang}", mime_type="text/html")])

    @mcp.prompt
    def review(code: str) -> list[Any]:
        return [UserMessage(f"Review {code}"), {"role": "assistant", "content": "Gladly"}]

    async with connect(mcp.engine) as client:
        assert (await client.read("file:///note"))[0]["text"] == "remember"
        assert (await client.read("page://a/b?lang=de"))[0] == {
            "uri": "page://a/b?lang=de",
            "mimeType": "text/html",
            "text": "a/b de",
        }
        for away in (
            "a/%2e%2e/b",
            "a%5c..%5cb",
            "%2Fetc%2Fpasswd",
            "/etc/passwd",
            "C:secret",
            "a?lang=../b",
            "a?lang=/b",
        ):
            with pytest.raises(Failure, match="not found"):
                await client.read(f"page://{away}")
        messages = await client.prompt("review", code="x")
    assert [(each["role"], each["content"]["text"]) for each in messages] == [
        ("user", "Review x"),
        ("assistant", "Gladly"),
    ]


async def test_one_function_completes_every_argument() -> None:
    """`@mcp.completion()` gets the reference, the argument and what has a value."""
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


async def test_middleware_and_dependencies_stand_around_calls_and_lists() -> None:
    """fastmcp's hooks and `Depends`; clients do not see injected parameters."""
    left: list[str] = []

    async def database() -> AsyncIterator[str]:
        yield "db"
        left.append("closed")

    class Loud(Middleware):
        async def on_call_tool(self, context: Any, call_next: Any) -> Any:
            result = await call_next(context)
            result.content[0].text += "!"
            return result

        async def on_list_tools(self, context: Any, call_next: Any) -> Any:
            return [tool for tool in await call_next(context) if "hidden" not in tool.tags]

    mcp = standalone.FastMCP("around", middleware=[Loud()])

    @mcp.tool
    def say(word: str, connection: str = standalone.Depends(database)) -> str:
        return f"{word} {connection}"

    @mcp.tool(tags={"hidden"})
    def secret() -> str:
        return "psst"

    async with connect(mcp.engine) as client:
        tools = (await client.request("tools/list"))["tools"]
        said = await client.call("say", word="hi")
    assert [(tool["name"], list(tool["inputSchema"]["properties"])) for tool in tools] == [("say", ["word"])]
    assert said.text == "hi db!"
    assert left == ["closed"]


async def test_a_mounted_server_is_part_of_the_other() -> None:
    """Prefix and underscore; the first of two names wins; what is hidden by a tag is gone."""
    shop, books = standalone.FastMCP("shop"), standalone.FastMCP("books")
    books.tool(lambda: "books", name="list")
    books.tool(lambda: "old", name="archive", tags={"old"})
    shop.tool(lambda: "shop", name="b_list")
    shop.disable(tags=["old"])
    shop.mount(books, "b")
    books.tool(lambda: "late", name="late")

    async with connect(shop.engine) as client:
        names = [tool["name"] for tool in (await client.request("tools/list"))["tools"]]
        listed = await client.call("b_list")
    assert names == ["b_list", "b_late"]
    assert listed.text == "shop"
    books.remove_tool("list")
    assert [tool.name for tool in await shop.list_tools()] == ["b_list", "b_late"]


async def test_direct_calls_have_the_shapes_of_their_libraries() -> None:
    """SDK 1.x gives content or a pair, 2.x reads attributes, fastmcp a `ToolResult`."""
    servers = [FastMCP("one"), MCPServer("two", "Title"), standalone.FastMCP("three")]
    for mcp in servers:
        mcp.tool("add")(lambda a, b: a + b)
        mcp.tool("typed")(_typed)
    content = await servers[0].call_tool("add", {"a": 1, "b": 2})
    assert content[0].text == "3"
    pair, structured = await servers[0].call_tool("typed", {})
    assert (pair[0].text, structured) == ("7", {"result": 7})
    assert (await servers[1].call_tool("typed", {})).structured_content == {"result": 7}
    assert (await servers[2].call_tool("typed", {})).data == 7
    assert servers[1].title == "Title"
    with pytest.raises(ToolError, match="Unknown tool"):
        await servers[0].call_tool("none", {})


def _typed() -> int:
    return 7


async def test_errors_of_the_protocol_keep_their_code() -> None:
    """`McpError` in a resource is the answer's error."""
    mcp = FastMCP("errors")

    @mcp.resource("gone://it")
    def gone() -> str:
        raise McpError(types.ErrorData(code=-32050, message="Gone", data={"since": 1}))

    async with connect(mcp.engine) as client:
        with pytest.raises(Failure) as caught:
            await client.read("gone://it")
    assert "Error reading resource" in str(caught.value)


async def test_plain_functions_leave_the_loop_free() -> None:
    """A `def` tool runs in a thread; with run_in_thread=False it has the loop."""
    mcp = FastMCP("threads")
    loops = []

    def where() -> str:
        try:
            loops.append(asyncio.get_running_loop())
        except RuntimeError:
            return "thread"
        return "loop"

    mcp.tool("thread")(where)
    mcp.tool("loop", run_in_thread=False)(where)
    async with connect(mcp.engine) as client:
        assert [(await client.call(name)).text for name in ("thread", "loop")] == ["thread", "loop"]


def test_a_wrong_option_is_refused() -> None:
    """A misspelled option would change nothing, in silence."""
    with pytest.raises(TypeError, match="statless_http"):
        FastMCP("wrong", statless_http=True)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="auth settings"):
        FastMCP("half", token_verifier=object())


async def test_the_application_serves_the_programs_path_and_routes() -> None:
    """`streamable_http_path`, `custom_route`, and `session_manager.run()` around it all."""
    mcp = FastMCP("paths", host="shop.example", streamable_http_path="/talk", json_response=True, stateless_http=True)

    @mcp.custom_route("/hi", methods=["GET"])
    async def hi(request: Any) -> PlainTextResponse:
        return PlainTextResponse(f"hi {request.query_params['name']}")

    app = mcp.streamable_http_app()
    params = {"protocolVersion": HANDSHAKE, "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    async with (
        mcp.session_manager.run(),
        httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://shop.example") as http,
    ):
        assert (await http.get("/hi?name=Ada")).text == "hi Ada"
        opened = await http.post(
            "/talk",
            json={"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params},
            headers={"accept": "application/json, text/event-stream"},
        )
        assert (await http.post("/mcp", json={})).status_code == 404
    assert opened.json()["result"]["serverInfo"]["name"] == "paths"
    assert "mcp-session-id" not in opened.headers
