"""What fastmcp has beside its server: ready-made middleware, decorators that stand alone, and tools made of tools."""

import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from millstream import Client
from millstream.client import Failure
from millstream.compat._porting.survey import survey
from millstream.compat.fastmcp import McpError, standalone
from millstream.compat.fastmcp._guarding import SlidingWindowRateLimiter, TokenBucketRateLimiter
from patience import WAIT

HANDSHAKE, NEWEST = "2025-11-25", "2026-07-28"
REFUSED, INVALID, NOT_FOUND = -32000, -32602, -32001


def shop(**options: Any) -> standalone.FastMCP[Any]:
    mcp: standalone.FastMCP[Any] = standalone.FastMCP("shop", **options)

    @mcp.tool
    def find(isbn: str, limit: int = 10) -> str:
        """Find a book."""
        if isbn == "wrong":
            raise ValueError("no such number")
        return f"{isbn} {limit}"

    @mcp.resource("books://all")
    def books() -> str:
        raise KeyError("gone")

    return mcp


def client_of(mcp: Any, revision: str = HANDSHAKE) -> Client:
    return Client(mcp.engine, revision=revision, timeout=WAIT)


# Middleware


@pytest.mark.parametrize(
    ("middleware", "called", "listed", "failed"),
    [
        (standalone.TimingMiddleware, "Request tools/call completed in ", "Request tools/list", "Request tools/call"),
        (standalone.DetailedTimingMiddleware, "Tool 'find' completed in ", "List tools", "Tool 'find'"),
    ],
)
async def test_timing_middleware_logs_how_long_calls_and_lists_take(
    middleware: Callable[[], Any], called: str, listed: str, failed: str, caplog: pytest.LogCaptureFixture
) -> None:
    """fastmcp: names of the loggers, and the words."""
    caplog.set_level(logging.INFO, logger="fastmcp.timing")
    mcp = shop(middleware=[middleware()])
    async with client_of(mcp) as client:
        await client.tools()
        assert (await client.call("find", isbn="7")).text == "7 10"
        assert (await client.call("find", isbn="wrong")).is_error
    lines = [record.getMessage() for record in caplog.records if record.name.startswith("fastmcp.timing")]
    assert lines[0].startswith(f"{listed} completed in ")
    assert lines[1].startswith(called)
    assert lines[2].startswith(f"{failed} failed after ")
    assert lines[2].endswith("no such number")


async def test_structured_logging_middleware_writes_a_json_object_for_each_beginning_and_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """fastmcp: the members of each line; a serializer that fails is the program's, and the call goes on."""

    def broken(message: Any) -> str:
        raise RuntimeError("not today")

    caplog.set_level(logging.INFO, logger="fastmcp.middleware")
    one = standalone.StructuredLoggingMiddleware(
        include_payloads=True, include_payload_length=True, estimate_payload_tokens=True, payload_serializer=broken
    )
    mcp = shop(middleware=[one, standalone.LoggingMiddleware(methods=["tools/list"])])
    async with client_of(mcp) as client:
        await client.call("find", isbn="7")
        await client.call("find", isbn="wrong")
        await client.tools()
    lines = [record.getMessage() for record in caplog.records if record.name == "fastmcp.middleware.structured_logging"]
    assert lines[0] == "Failed to serialize payload due to not today: request tools/call client."
    start, success = json.loads(lines[1]), json.loads(lines[2])
    payload = {"name": "find", "arguments": {"isbn": "7"}}
    assert json.loads(start.pop("payload")) == payload
    size = len(json.dumps(payload, separators=(",", ":")))
    assert start == {
        "event": "request_start",
        "method": "tools/call",
        "source": "client",
        "payload_tokens": size // 4,
        "payload_length": size,
        "payload_type": "CallToolRequestParams",
    }
    assert success["event"] == "request_success"
    error = json.loads(lines[5])
    assert (error["event"], "no such number" in error["error"]) == ("request_error", True)
    plain = [record.getMessage() for record in caplog.records if record.name == "fastmcp.middleware.logging"]
    assert plain[0] == "event=request_start method=tools/list source=client"
    assert len(plain) == 2


async def test_error_handling_middleware_gives_errors_codes_by_what_was_raised() -> None:
    """fastmcp: a table of Python's errors; the error of a tool is what the function raised."""
    seen: list[str] = []
    handling = standalone.ErrorHandlingMiddleware(
        error_callback=lambda error, context: seen.append(context.method or "")
    )
    async with client_of(shop(middleware=[handling])) as client:
        with pytest.raises(Failure, match=r"Invalid params: .*no such number") as caught:
            await client.call("find", isbn="wrong")
        assert caught.value.code == INVALID
        with pytest.raises(Failure, match="Resource not found"):
            await client.read("books://all")
    assert seen == ["tools/call", "resources/read"]
    assert handling.get_error_stats() == {"ToolError:tools/call": 1, "ValueError:resources/read": 1}


async def test_retry_middleware_tries_again_what_may_pass_and_nothing_else() -> None:
    """fastmcp: the function's own error counts, and the last one is what the client hears."""
    mcp = shop(middleware=[standalone.RetryMiddleware(max_retries=2, base_delay=0)])
    calls: list[str] = []

    @mcp.tool
    def flaky(kind: str) -> str:
        calls.append(kind)
        if kind == "value":
            raise ValueError("never passes")
        if kind == "always" or len(calls) < 3:
            raise ConnectionError("try again")
        return "there"

    async with client_of(mcp) as client:
        assert (await client.call("flaky", kind="twice")).text == "there"
        assert calls == ["twice"] * 3
        assert "try again" in (await client.call("flaky", kind="always")).text
        assert calls[3:] == ["always"] * 3
        assert "never passes" in (await client.call("flaky", kind="value")).text
        assert calls[6:] == ["value"]


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (lambda: standalone.RateLimitingMiddleware(0.000001, burst_capacity=2), "client: global"),
        (lambda: standalone.RateLimitingMiddleware(0.000001, 2, global_limit=True), "Global rate limit exceeded"),
        (lambda: standalone.SlidingWindowRateLimitingMiddleware(2, window_minutes=600), "2 requests per 600 minutes"),
    ],
)
async def test_rate_limiting_middleware_refuses_calls_and_lists_beyond_the_limit(
    limit: Callable[[], Any], words: str
) -> None:
    """fastmcp: an error of the protocol with code -32000, for lists, too."""
    async with client_of(shop(middleware=[limit()])) as client:
        await client.call("find", isbn="7")
        await client.call("find", isbn="7")
        for asking in (client.call("find", isbn="7"), client.tools(fresh=True)):
            with pytest.raises(Failure, match=words) as caught:
                await asking
            assert caught.value.code == REFUSED


async def test_each_client_that_a_program_tells_apart_has_a_limit_of_its_own() -> None:
    """fastmcp: `get_client_id`, plain or a coroutine; and a bucket fills up again."""

    async def by_isbn(context: Any) -> str:
        return str(context.message.arguments["isbn"])

    limit = standalone.SlidingWindowRateLimitingMiddleware(1, window_minutes=600, get_client_id=by_isbn)
    async with client_of(shop(middleware=[limit])) as client:
        await client.call("find", isbn="7")
        await client.call("find", isbn="8")
        with pytest.raises(Failure, match="client: 7"):
            await client.call("find", isbn="7")
    bucket, window = TokenBucketRateLimiter(1, 1.0), SlidingWindowRateLimiter(1, 60)
    assert await bucket.consume()
    bucket.tokens, bucket.last_refill = 0.0, bucket.last_refill - 60
    assert await bucket.consume()
    assert await window.is_allowed()
    window.requests[0] -= 61
    assert await window.is_allowed()


async def test_an_error_of_the_protocol_that_a_program_derives_its_own_from_is_one() -> None:
    """Only the exact class counted, so its code and text were lost in an internal error."""

    class Paused(McpError):
        def __init__(self) -> None:
            super().__init__(REFUSED, "back at nine")

    mcp = shop()

    @mcp.tool
    def buy() -> str:
        raise Paused

    async with client_of(mcp) as client:
        with pytest.raises(Failure, match="back at nine") as caught:
            await client.call("buy")
    assert caught.value.code == REFUSED


# Decorators that stand alone


async def test_decorators_that_stand_alone_note_what_a_server_takes_later() -> None:
    """fastmcp: the function stays what it is, and `add_tool`, `add_prompt` and `add_resource` know what was said."""

    @standalone.tool("seek", description="Seek a book", tags={"books"}, run_in_thread=False)
    def find(isbn: str) -> str:
        return isbn.upper()

    @standalone.prompt
    def review(isbn: str) -> str:
        """Review it."""
        return f"Review {isbn}"

    @standalone.resource("books://{isbn}", mime_type="text/markdown")
    def book(isbn: str) -> str:
        return f"# {isbn}"

    @standalone.resource("books://all")
    def books() -> str:
        return "7"

    assert find("a") == "A"
    mcp: standalone.FastMCP[Any] = standalone.FastMCP("later")
    mcp.add_tool(find)
    mcp.add_prompt(review)
    mcp.add_resource(book)
    mcp.add_resource(books)
    async with client_of(mcp) as client:
        [tool] = await client.tools()
        assert (tool.name, tool.description) == ("seek", "Seek a book")
        assert (await client.call("seek", isbn="x")).text == "X"
        assert [each.name for each in await client.prompts()] == ["review"]
        assert (await client.templates())[0].mime_type == "text/markdown"
        assert (await client.read("books://7"))[0].text == "# 7"
        assert (await client.read("books://all"))[0].text == "7"


def test_a_decorator_that_stands_alone_says_what_it_cannot_take() -> None:
    """fastmcp refuses these, too; and who is let in is never left out silently."""
    with pytest.raises(TypeError, match="requires a URI"):
        standalone.resource(lambda: "x")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="both"):
        standalone.tool("a", name="b")
    with pytest.raises(TypeError, match="classmethod"):
        standalone.prompt(classmethod(lambda cls: "x"))

    @standalone.tool(auth=object())
    def guarded() -> str:
        return "x"

    with pytest.raises(TypeError, match="without it more would be allowed"):
        standalone.FastMCP("shop").add_tool(guarded)


# Tools made of tools


async def test_a_tool_made_of_a_tool_has_other_names_and_hides_what_is_always_the_same() -> None:
    """fastmcp: `Tool.from_tool` with `ArgTransform`; the tool itself gets its own names."""

    def find(q: str, limit: int = 10, key: str = "", unit: str = "book") -> str:
        """Find."""
        return f"{q} {limit} {key} {unit}"

    change = standalone.ArgTransform
    mcp: standalone.FastMCP[Any] = standalone.FastMCP("made")
    mcp.add_tool(
        standalone.Tool.from_tool(
            find,
            name="search",
            description="Search for books",
            transform_args={
                "q": change(name="query", description="What to look for", examples=["Dune"]),
                "limit": change(default=3),
                "key": change(hide=True, default_factory=lambda: "secret"),
                "unit": change(required=True),
            },
        )
    )
    async with client_of(mcp) as client:
        [tool] = await client.tools()
        assert (tool.name, tool.description) == ("search", "Search for books")
        assert tool.input_schema == {
            "type": "object",
            "properties": {
                "query": {"type": "string", "description": "What to look for", "examples": ["Dune"]},
                "limit": {"type": "integer", "default": 3},
                "unit": {"type": "string"},
            },
            "required": ["query", "unit"],
            "additionalProperties": False,
        }
        assert (await client.call("search", query="Dune", unit="page")).text == "Dune 3 secret page"
        for wrong, words in (({"query": "x"}, "Missing"), ({"query": "x", "unit": "y", "key": "z"}, "unexpected")):
            result = await client.call("search", **wrong)
            assert result.is_error
            assert words in result.text


async def test_a_function_around_a_tool_calls_it_by_new_or_own_names() -> None:
    """fastmcp: `transform_fn` with `forward` and `forward_raw`; ``**kwargs`` takes whatever comes."""

    def add(x: int, y: int = 10) -> int:
        return x + y

    async def positive(a: int, note: str = "none") -> str:
        if a <= 0:
            raise standalone.ToolError("a must be positive")
        return f"{(await standalone.forward(a=a)).data} {(await standalone.forward_raw(x=1, y=1)).data} {note}"

    async def whatever(**given: Any) -> Any:
        return await standalone.forward(**given)

    hidden = {"x": standalone.ArgTransform(name="a"), "y": standalone.ArgTransform(hide=True)}
    made = standalone.Tool.from_tool
    mcp: standalone.FastMCP[Any] = standalone.FastMCP("around", tools=[
        made(add, "positive", transform_fn=positive, transform_args=hidden),
        made(add, "whatever", transform_fn=whatever, transform_args=hidden),
    ])  # fmt: skip
    async with client_of(mcp, NEWEST) as client:
        tools = {tool.name: tool for tool in await client.tools()}
        assert list(tools["positive"].input_schema["properties"]) == ["a", "note"]
        assert (await client.call("positive", a=5)).text == "15 2 none"
        assert "a must be positive" in (await client.call("positive", a=-1)).text
        result = await client.call("whatever", a=5)
        assert (result.text, result.data) == ("15", {"result": 15})
        assert "unexpected" in (await client.call("whatever", a=5, b=1)).text
    with pytest.raises(RuntimeError, match="within a transformed tool"):
        await standalone.forward(a=1)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda change, made: change(default=1, default_factory=int), "both 'default'"),
        (lambda change, made: change(default_factory=int), "hide=True"),
        (lambda change, made: change(required=False), "required=False"),
        (lambda change, made: change(required=True, default=1), "required=True"),
        (lambda change, made: change(required=True, hide=True), "nobody could"),
        (lambda change, made: made({"z": change(name="a")}), "Unknown arguments"),
        (lambda change, made: made({"x": change(hide=True)}), "no default value"),
        (lambda change, made: made({"x": change(name="y")}), "same names"),
    ],
)
def test_changes_that_nobody_could_call_are_refused(make: Callable[..., Any], words: str) -> None:
    """fastmcp refuses these when the tool is made, not when it is called."""

    def add(x: int, y: int = 10) -> int:
        return x + y

    with pytest.raises(ValueError, match=words):
        make(standalone.ArgTransform, lambda changes: standalone.Tool.from_tool(add, transform_args=changes))


def test_port_knows_where_these_parts_are_imported_from() -> None:
    """Each module of fastmcp has its names in the one that stands for it here."""
    found = survey(
        "from fastmcp.server.middleware.timing import TimingMiddleware\n"
        "from fastmcp.server.middleware.logging import StructuredLoggingMiddleware\n"
        "from fastmcp.server.middleware.error_handling import ErrorHandlingMiddleware, RetryMiddleware\n"
        "from fastmcp.server.middleware.rate_limiting import RateLimitingMiddleware, RateLimitError\n"
        "from fastmcp.tools import Tool, tool, forward\n"
        "from fastmcp.tools.tool_transform import ArgTransform, forward_raw\n"
        "from fastmcp.resources import resource\n"
        "from fastmcp.prompts import prompt\n"
        "from fastmcp.server.providers.proxy import StatefulProxyClient\n"
    )
    assert not found.missing
    assert {change.ours for change in found.changes} == {"millstream.compat.fastmcp.standalone"}
    lacking = survey("from fastmcp.server.middleware.caching import ResponseCachingMiddleware\n").missing
    assert [use.differs for use in lacking] == [
        "clients keep lists for MILLSTREAM_LIST_TTL_MS; keep results in the tool"
    ]
