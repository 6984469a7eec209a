import asyncio
import datetime as dt
import math
import signal
import socket
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

import msgspec
import pydantic
import pytest

from cases import for_each
from client.misbehaving_servers import (
    DONE,
    Behave,
    ReceivedRequest,
    assert_readable,
    connected,
    with_discovery,
    with_handshake,
)
from client.shop import mcp
from millstream import Client, Context, Server, Text, ToolResult
from millstream._protocol.revisions import BY_DATE
from millstream._tasks import LoopThread
from millstream.client import Options
from millstream.client._blocking_client import BlockingClient
from millstream.client._errors import ClientError, InvalidResponse, NotSupported, ServerError, TargetError, ToolFailed
from millstream.client._questions import Question
from millstream.client._server_messages import Change, LogMessage, Notification
from millstream.testing import connect
from patience import WAIT, advance_clock

HANDSHAKE = "2025-11-25"


class TypedOrder(TypedDict):
    isbn: str
    copies: int


class StructOrder(msgspec.Struct):
    isbn: str
    copies: int


class ModelOrder(pydantic.BaseModel):
    isbn: str
    copies: int


class NumberedOrder(pydantic.BaseModel):
    isbn: pydantic.StrictInt


@dataclass
class Wrapping:
    paper: str = "red"


@for_each("revision", BY_DATE)
@for_each("wanted", [TypedOrder, StructOrder, ModelOrder, dict[str, Any], ModelOrder | None])
async def test_results_decode_to_the_requested_type(revision: str, wanted: Any) -> None:
    async with Client(mcp, revision=revision) as client:
        given = await client.call("order", isbn="1", result_type=wanted)
        assert msgspec.to_builtins(given.model_dump() if isinstance(given, ModelOrder) else given) == {
            "isbn": "1",
            "copies": 1,
        }


async def test_texts_are_converted_if_they_are_json_and_described_as_texts_otherwise() -> None:
    texts = Server("texts")

    @texts.tool
    def say(text: str) -> ToolResult:
        return ToolResult([Text(text)])

    async with Client(texts) as client:
        assert await client.call("say", text="5", result_type=int) == 5
        for text in ("five", "5 pieces", "5.", "{"):
            with pytest.raises(InvalidResponse, match=r"isn't an int: must be an integer, got the string"):
                await client.call("say", text=text, result_type=int)
        with pytest.raises(InvalidResponse, match=r"isn't a list\[int\]: must be an array, got the integer 5"):
            await client.call("say", text="5", result_type=list[int])


async def test_lists_of_objects_decode_to_models() -> None:
    shop = Server("shop")

    @shop.tool
    def orders() -> list[TypedOrder]:
        return [TypedOrder(isbn="1", copies=2)]

    async with Client(shop) as client:
        assert await client.call("orders", result_type=list[ModelOrder]) == [ModelOrder(isbn="1", copies=2)]
        with pytest.raises(InvalidResponse, match=r"\[0\].isbn must be an integer"):
            await client.call("orders", result_type=list[NumberedOrder])


@for_each("revision", BY_DATE)
async def test_results_with_the_wrong_type_raise(revision: str) -> None:
    async with Client(mcp, revision=revision) as client:
        with pytest.raises(InvalidResponse, match="isn't a list"):
            await client.call("order", isbn="1", result_type=list[int])
        with pytest.raises(ToolFailed):
            await client.call("fail", result_type=str)
        assert (await client.call("count", a=1, b=2)).data in (3, {"result": 3}, "3")


@for_each(("wanted", "text"), [(Literal["red"], "red"), (dt.date, "2024-05-01"), (str | None, "5 pounds")])
async def test_text_decodes_to_types_based_on_text(wanted: Any, text: str) -> None:
    async with Client(mcp) as client:
        found = await client.call("say", text=text, result_type=wanted)
    assert str(found) == text


async def test_result_without_content_is_null_and_empty_text_is_text() -> None:
    server = Server("empty")
    server.tool(lambda: None, name="nothing")
    server.tool(lambda: "", name="say")
    async with Client(server) as client:
        assert await client.call("nothing", result_type=int | None) is None  # type: ignore[arg-type]
        assert await client.call("say", result_type=str | None) == ""  # type: ignore[arg-type]
        assert await client.call("say", result_type=int | None) is None  # type: ignore[arg-type]


async def test_models_and_paths_are_sent_as_arguments() -> None:
    server = Server("echo")

    @server.tool
    def echo(order: Any, folder: Any) -> list[Any]:
        """Echo."""
        return [order, folder]

    async with Client(server) as client:
        found = await client.call("echo", order=ModelOrder(isbn="1", copies=2), folder=Path("/books"))
    assert found.data == [{"isbn": "1", "copies": 2}, "/books"]


async def test_prompt_arguments_are_sent_as_text() -> None:
    server = Server("prompts")

    @server.prompt
    def plan(days: int, sunny: bool, places: str) -> str:
        """Plan a trip."""
        return f"{days!r} {sunny!r} {places!r}"

    async with Client(server) as client:
        found = await client.prompt("plan", {"days": 3}, sunny=True, places=["Bath", 5])
    assert found.text == """3 True '["Bath",5]'"""


async def test_arguments_may_be_named_like_options() -> None:
    server = Server("s")

    @server.tool
    async def wait(timeout: int, into: str, progress: bool) -> str:
        """Echo."""
        return f"{timeout} {into} {progress}"

    async with Client(server) as client:
        given = {"timeout": 3, "into": "x", "progress": True}
        assert await client.call("wait", given, timeout=WAIT, result_type=str) == "3 x True"


@for_each("revision", [HANDSHAKE, "2026-07-28"])
@for_each("answer", ["decline", "cancel", False, None])
async def test_handlers_can_decline(revision: str, answer: Any) -> None:
    async with Client(mcp, revision=revision, elicit=lambda question: answer) as client:
        assert (await client.call("deliver", raise_on_error=False)).is_error


@for_each("revision", [HANDSHAKE, "2026-07-28"])
@for_each("answer", [True, "accept"])
async def test_forms_can_be_accepted_as_they_are(revision: str, answer: Any) -> None:
    server = Server("shop")

    @server.tool
    async def choose(ctx: Context) -> str:
        """Ask for the wrapping."""
        return str(await ctx.elicit("Wrap it?", Wrapping))

    async with Client(server, revision=revision, elicit=lambda question: answer) as client:
        assert (await client.call("choose")).text == "Wrapping(paper='red')"


@for_each("revision", [HANDSHAKE, "2026-07-28"])
async def test_question_handler_errors_are_logged(revision: str, caplog: pytest.LogCaptureFixture) -> None:

    def broken(question: Question) -> dict[str, Any]:
        raise ZeroDivisionError("no answer")

    async with Client(mcp, revision=revision, elicit=broken) as client:
        with pytest.raises(ClientError):
            await client.call("deliver")
    assert "ZeroDivisionError: no answer" in caplog.text


@for_each("revision", [HANDSHAKE, "2026-07-28"])
async def test_failing_handlers_do_not_end_the_connection(revision: str) -> None:

    def broken(question: Question) -> dict[str, Any]:
        raise ZeroDivisionError

    async with Client(mcp, revision=revision, elicit=broken) as client:
        if BY_DATE[revision].handshake:
            assert (await client.call("deliver", raise_on_error=False)).is_error
        else:
            with pytest.raises(InvalidResponse, match="ZeroDivisionError"):
                await client.call("deliver")
        assert await client.call("count", a=1, b=1, result_type=int) == 2


@for_each("revision", [HANDSHAKE, "2026-07-28"])
async def test_open_questions_pause_the_call_timeout(revision: str) -> None:
    shown = asyncio.Event()

    async def slow(question: Question) -> dict[str, Any]:
        shown.set()
        advance_clock(2 * WAIT)
        await asyncio.sleep(0.01)  # timers that are due have run
        return {"street": "a", "copies": 1}

    async with Client(mcp, revision=revision, elicit=slow, timeout=WAIT) as client:
        assert (await client.call("deliver")).text == "a, 1"
        assert shown.is_set()


@for_each("revision", BY_DATE)
@for_each(("level", "expected"), [("", [("info", "hello")]), ("info", [("info", "hello")]), ("error", [])])
async def test_log_messages_of_the_requested_level_are_handled(revision: str, level: Any, expected: Any) -> None:
    heard: list[LogMessage] = []
    async with Client(mcp, revision=revision, on_log=heard.append, options=Options(log_level=level)) as client:
        await client.call("say", text="hello")
        await client.conversation.requests.incoming.wait_for_handlers()
    assert [(message.level, message.data) for message in heard] == expected


async def test_test_client_takes_the_handlers_and_options_of_clients() -> None:
    mcp = Server("loud")

    @mcp.tool
    async def speak(ctx: Context) -> str:
        await ctx.debug("quiet")
        await ctx.info("loud")
        return ctx.client.name

    for options, name, lines in (
        (None, "test", ["loud"]),
        (Options(name="me", log_level="debug"), "me", ["quiet", "loud"]),
    ):
        heard: list[LogMessage] = []
        async with connect(mcp, on_log=heard.append, timeout=WAIT, options=options) as client:
            assert (await client.call("speak")).text == name
        assert [message.data for message in heard] == lines


async def test_log_level_requires_a_session() -> None:
    async with Client(mcp, revision=HANDSHAKE) as client:
        await client.set_log_level("error")
        with pytest.raises(ValueError, match="Unknown log level"):
            await client.set_log_level("loud")
    async with Client(mcp) as client:
        with pytest.raises(NotSupported, match="log_level"):
            await client.set_log_level("error")


async def test_async_handlers_run_in_order_before_the_call_returns() -> None:
    steps: list[float] = []

    async def slow(value: float, total: float | None, text: str | None) -> None:
        await asyncio.sleep(0)
        steps.append(value)

    async with Client(mcp) as client:
        await client.call("slowly", steps=20, progress=slow, timeout=math.inf)
    assert steps == list(range(1, 21))


async def test_handlers_can_call_the_server() -> None:
    sums: list[int] = []

    async with Client(mcp) as client:

        async def more(value: float, total: float | None, text: str | None) -> None:
            sums.append(await client.call("count", a=int(value), b=1, result_type=int))

        async with asyncio.timeout(WAIT):
            await client.call("slowly", steps=2, progress=more)
    assert sums == [2, 3]


def counting(server: Server) -> tuple[Client, list[str]]:
    """A client, and the notifications it receives."""
    client = Client(server)
    heard: list[str] = []

    def note(notification: Notification) -> None:
        heard.append(notification.method)

    client.conversation.requests.incoming.observer = note
    return client, heard


async def test_lists_are_cached_for_their_ttl() -> None:
    """https://modelcontextprotocol.io/specification/2026-07-28/server/utilities/caching"""
    server = Server("s", settings=None)
    reads = 0

    @server.resource("x://1")
    async def one() -> str:
        """One."""
        nonlocal reads
        reads += 1
        return "1"

    async with Client(server) as client:
        cache = client.conversation._cache
        assert cache is not None
        await client.read("x://1")
        kept = cache.get("resources/read", b'{"uri":"x://1"}')
        await client.read("x://1")
        await client.read("x://1", fresh=True)
        assert reads == (3 if kept is None else 2)
        cache.put("resources/read", b'{"uri":"x://2"}', "kept", 60_000, 4)
        assert cache.get("resources/read", b'{"uri":"x://2"}') == "kept"
        cache.invalidate(Change("resource", "x://1"), None)
        assert cache.get("resources/read", b'{"uri":"x://2"}') is None


async def test_canceled_calls_stop_on_the_server() -> None:
    server = Server("s")
    begun, ended = asyncio.Event(), asyncio.Event()

    @server.tool
    async def forever(ctx: Context) -> str:
        """Never returns."""
        begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()
        return ""

    @server.tool
    async def hello() -> str:
        """Greet."""
        return "hello"

    for revision in BY_DATE:
        begun.clear()
        ended.clear()
        async with Client(server, revision=revision) as client:
            call = asyncio.create_task(client.call("forever", timeout=math.inf))
            await begun.wait()
            call.cancel()
            async with asyncio.timeout(WAIT):
                await ended.wait()
            assert (await client.call("hello")).text == "hello"
            with pytest.raises(asyncio.CancelledError):
                await call


async def test_unknown_tools_raise() -> None:
    """https://modelcontextprotocol.io/specification/2026-07-28/server/tools#error-handling"""
    async with Client(mcp) as client:
        with pytest.raises(ServerError) as caught:
            await client.call("nothing")
        assert caught.value.code == -32602


async def test_any_request_can_be_sent() -> None:
    async with Client(mcp) as client:
        raw = await client.request("tools/call", {"name": "count", "arguments": {"a": 1, "b": 2}})
        assert raw["resultType"] == "complete"


async def test_using_a_client_outside_its_block_raises() -> None:
    client = Client(mcp)
    with pytest.raises(ClientError, match="async with"):
        _ = client.revision


async def test_client_can_be_entered_again_in_and_after_its_block() -> None:
    client = Client(mcp, timeout=WAIT)
    for n in (1, 2):
        async with client:
            connection = client.conversation.negotiated
            async with client:
                assert client.conversation.negotiated is connection
            assert await client.call("count", a=n, b=1, result_type=int) == n + 1
    with pytest.raises(ClientError, match="async with"):
        await client.call("count", a=1, b=1)


def test_client_can_be_used_in_several_event_loops() -> None:
    client = Client(mcp, timeout=WAIT)

    async def count(n: int) -> int:
        async with client:
            return await client.call("count", a=n, b=1, result_type=int)

    assert [asyncio.run(count(n)) for n in (1, 2)] == [2, 3]


async def test_concurrent_blocks_share_a_client() -> None:
    client = Client(mcp, timeout=WAIT)

    async def count(n: int) -> int:
        async with client:
            return await client.call("count", a=n, b=0, result_type=int)

    assert await asyncio.gather(*map(count, range(20))) == list(range(20))


async def test_block_entered_while_another_ends_can_answer_questions() -> None:
    mcp = Server("asker")

    @mcp.tool
    async def ask(ctx: Context) -> str:
        return str(await ctx.elicit("Name?", str))

    client = Client(mcp, revision="2025-11-25", elicit=lambda _: {"value": "Ada"}, timeout=WAIT)
    await client.__aenter__()
    ending = asyncio.create_task(client.__aexit__(None, None, None))
    await asyncio.sleep(0)
    async with client:
        await ending
        assert (await client.call("ask")).text == "Ada"


async def test_reentered_client_requests_lists_again() -> None:
    mcp = Server("shop")
    mcp.tool(lambda: "x", name="one")
    client = Client(mcp, timeout=WAIT)
    async with client:
        assert [tool.name for tool in await client.tools()] == ["one"]
    mcp.tool(lambda: "x", name="two")
    async with client:
        assert [tool.name for tool in await client.tools()] == ["one", "two"]


async def test_client_is_usable_after_a_block_could_not_be_entered() -> None:
    running = False

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncGenerator[None, None]:
        if not running:
            raise OSError("the database is away")
        yield

    client = Client(Server("late", lifespan=lifespan), timeout=WAIT)
    with pytest.raises(OSError, match="away"):
        async with client:
            pass
    running = True
    async with client:
        await client.ping()


def test_unknown_revisions_are_rejected_immediately() -> None:
    with pytest.raises(TargetError, match="2025-11-25"):
        Client(mcp, revision="2024-01-01")


def test_blocking_client_needs_no_await() -> None:
    with BlockingClient(mcp) as client:
        assert client.call("count", a=1, b=2, result_type=int) == 3
        assert {"order", "count"} <= {tool.name for tool in client.tools()}
        assert client.server.name == "shop"
        with pytest.raises(ServerError):
            client.call("nothing")


def test_blocking_client_can_be_nested_and_reused() -> None:
    client = BlockingClient(mcp)
    for _ in range(2):
        with client:
            with client:
                assert client.call("count", a=1, b=2, result_type=int) == 3
            assert client.call("count", a=1, b=2, result_type=int) == 3
    with pytest.raises(ClientError, match="with BlockingClient"):
        client.call("count", a=1, b=2)


@pytest.mark.server
def test_blocking_client_that_stays_open_does_not_keep_its_program_running() -> None:
    program = """
        from millstream import Server
        from millstream.client import BlockingClient

        client = BlockingClient(Server("shop")).__enter__()
        print(client.server.name)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=WAIT, check=True
    )
    assert done.stdout == "shop\n"


@pytest.mark.server
def test_interrupted_connection_of_a_blocking_client_leaves_no_thread() -> None:
    program = """
        import sys, threading
        from millstream.client import BlockingClient

        try:
            with BlockingClient(sys.argv[1]):
                pass
        except KeyboardInterrupt:
            print([thread.name for thread in threading.enumerate()])
    """
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/mcp"
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(program), url], stdout=subprocess.PIPE, text=True
        ) as process:
            connection, _ = silent.accept()
            with connection:
                process.send_signal(signal.SIGINT)
                printed, _ = process.communicate(timeout=WAIT)
    assert printed == "['MainThread']\n"


def test_client_and_subscription_reprs_hide_credentials() -> None:
    client = Client("https://example.com/mcp", headers={"Authorization": "Bearer not-for-logs"})
    for each in (client, client.watch(), client.events.subscribe("paid"), client.tasks, client.tools()):
        assert "not-for-logs" not in repr(each)


SCHEMA = {
    "type": "object",
    "properties": {
        "region": {"type": "string", "x-mcp-header": "Region"},
        "count": {"type": "integer", "x-mcp-header": "Count"},
        "fast": {"type": "boolean", "x-mcp-header": "Fast"},
    },
}
BROKEN = {"type": "object", "properties": {"a": {"type": "object", "x-mcp-header": "A"}}}


async def behave(asked: ReceivedRequest) -> None:
    """Serve a tool with a required header, which the client only learns from the tool list."""
    if asked.method == "tools/list":
        tools = [{"name": "x", "inputSchema": SCHEMA}, {"name": "broken", "inputSchema": BROKEN}]
        await asked.result({"tools": tools, "ttlMs": 0, "cacheScope": "private"})
    elif "mcp-param-region" not in asked.headers:
        await asked.error(-32020, "Header mismatch", status="400 Bad Request")
    else:
        await asked.result(DONE)


async def test_calls_missing_a_parameter_header_are_repeated() -> None:
    async with connected(with_discovery(behave)) as (server, client):
        for _ in (1, 2):
            assert (await client.call("x", region=" Zürich", count=3, fast=True)).text == "done"
        assert [each.method for each in server.requests][1:] == [
            "tools/call",
            "tools/list",
            "tools/call",
            "tools/call",
        ]
        last = server.requests[-1].headers
        assert last["mcp-param-region"] == "=?base64?IFrDvHJpY2g=?="
        assert (last["mcp-param-count"], last["mcp-param-fast"]) == ("3", "true")
        assert last["mcp-name"] == "x"


async def test_tools_with_invalid_header_annotations_are_dropped() -> None:
    async with connected(with_discovery(behave)) as (_, client):
        assert [tool.name for tool in await client.tools()] == ["x"]


NUMBER = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
TEXT = {"type": "object", "properties": {"n": {"type": "string"}}, "required": ["n"]}


def listing(*schemas: Any, **result: Any) -> Behave:
    """List one tool, each time with the next schema, and give every call the same result."""
    left = list(schemas)

    async def behave(asked: ReceivedRequest) -> None:
        about = {"resultType": "complete", "ttlMs": 0, "cacheScope": "private"}
        if asked.method == "tools/list":
            schema = left.pop(0) if len(left) > 1 else left[0]
            tool = {"name": "count", "inputSchema": {"type": "object"}, **({"outputSchema": schema} if schema else {})}
            await asked.result({**about, "tools": [tool]})
        else:
            await asked.result({"resultType": "complete", "content": [{"type": "text", "text": "x"}], **result})

    return behave


@for_each("era", [with_discovery, with_handshake])
@for_each(
    ("result", "says"),
    [
        ({"structuredContent": {"n": "three"}}, "'n' must be an integer"),
        ({"structuredContent": {}}, "missing 'n'"),
        ({}, "it has no structured content"),
    ],
)
async def test_results_that_do_not_match_the_listed_schema_raise(era: Any, result: Any, says: str) -> None:
    async with connected(era(listing(NUMBER, **result))) as (_, client):
        assert (await client.call("count")).text == "x"  # nothing is listed yet
        await client.tools()
        for _ in range(2):
            with pytest.raises(InvalidResponse) as caught:
                await client.call("count")
            assert_readable(caught.value, "The result of 'count' doesn't match its output schema: ", says)
        assert (await client.call("count", raise_on_error=False)).text == "x"


@for_each(
    ("schemas", "result"),
    [
        ([NUMBER], {"structuredContent": {"n": 3, "more": [1]}}),
        ([NUMBER], {"isError": False, "structuredContent": {"n": 3}}),
        ([None], {"structuredContent": {"n": "three"}}),
        ([NUMBER, TEXT], {"structuredContent": {"n": "three"}}),
        ([NUMBER, None], {}),
        ([{"anyOf": [True, NUMBER]}], {"structuredContent": {"n": "three"}}),
    ],
    ids=["more", "flag", "no schema", "changed", "dropped", "boolean"],
)
async def test_results_that_match_the_current_schema_are_returned(schemas: Any, result: Any) -> None:
    async with connected(with_discovery(listing(*schemas, **result))) as (_, client):
        await client.tools()
        assert (await client.call("count")).text == "x"


async def test_errors_need_no_structured_content() -> None:
    result = {"isError": True, "content": [{"type": "text", "text": "sold out"}]}
    async with connected(with_discovery(listing(NUMBER, **result))) as (_, client):
        await client.tools()
        assert (await client.call("count", raise_on_error=False)).is_error


def test_work_that_begins_while_another_thread_stops_the_loop_ends() -> None:
    started, ending, begun = threading.Event(), threading.Event(), threading.Event()
    refused = list[BaseException]()
    loop = LoopThread("test", lambda: ClientError("The loop has ended."))

    async def run_until_the_end() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ending.set()
            while not (begun.is_set() or refused):  # noqa: ASYNC110  threads set these
                await asyncio.sleep(0)

    async def begin() -> None:
        begun.set()
        await asyncio.Event().wait()

    def wait_for(work: Awaitable[None], errors: list[BaseException]) -> None:
        try:
            loop.wait(work)
        except BaseException as exc:
            errors.append(exc)

    def wait_late() -> None:
        ending.wait(WAIT)
        wait_for(begin(), refused)

    loop.start()
    threads = [
        threading.Thread(target=wait_for, args=(run_until_the_end(), []), daemon=True),
        threading.Thread(target=wait_late, daemon=True),
    ]
    for each in threads:
        each.start()
    assert started.wait(WAIT)
    loop.stop()
    for each in threads:
        each.join(WAIT)
    assert [str(each) for each in refused] == ["The loop has ended."]
