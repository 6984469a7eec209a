import asyncio
import json
from typing import Any

from bad_input.shop import make_shop, stock
from cases import for_each
from millstream import Context, Server, Settings
from millstream.middleware import MessageRequest, Middleware, Next
from wire import POST, MemoryPipe, Wire, open_sse, per_request, request, routing, run_wire

OVER = "The call has ended, so the client can't answer. Await each question before the function returns."

INITIALIZE = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"elicitation": {}},
    "clientInfo": {"name": "t", "version": "1"},
}
FORM = {"type": "object", "properties": {"n": {"type": "integer"}}}


class Talk:
    """An in-memory client."""

    def __init__(self, wire: Wire) -> None:
        self.pipe = MemoryPipe(wire.runtime.dispatcher)

    def say(self, message: Any) -> None:
        self.pipe.send(json.dumps(message).encode())

    async def hear(self) -> Any:
        return json.loads(await self.pipe.receive())

    async def opened(self) -> "Talk":
        self.say(request("initialize", INITIALIZE, 0))
        assert (await self.hear())["id"] == 0
        return self


def chatty(input_timeout: float = 60.0) -> tuple[Server, list[asyncio.Task[None]]]:
    """Return a server whose tool leaves a task running that reports, logs, and asks."""
    mcp, left = make_shop(input_timeout=input_timeout), list[asyncio.Task[None]]()

    @mcp.tool
    async def leaves(ctx: Context) -> str:
        """Leave a task behind."""
        go = asyncio.Event()

        async def later() -> None:
            await go.wait()
            await ctx.progress(5)
            await ctx.info("still here")

        left.append(asyncio.create_task(later()))
        await ctx.progress(1)
        asyncio.get_running_loop().call_later(0.01, go.set)
        return "answered"

    @mcp.tool
    async def asks(ctx: Context) -> str:
        """Ask."""
        return json.dumps(await ctx.elicit("How many?", FORM))

    return mcp, left


async def test_no_messages_about_a_call_follow_its_response() -> None:
    mcp, left = chatty()
    async with run_wire(mcp, "asgi") as wire:
        talk = await Talk(wire).opened()
        talk.say(request("tools/call", {"name": "leaves", "_meta": {"progressToken": "p"}}, 1))
        assert (await talk.hear())["params"]["progress"] == 1
        assert (await talk.hear())["id"] == 1
        await asyncio.gather(*left)
        talk.say(request("ping", id=2))
        assert (await talk.hear())["id"] == 2


async def test_abandoned_questions_are_canceled_at_the_client() -> None:
    mcp, _ = chatty()
    async with run_wire(mcp, "asgi") as wire:
        talk = await Talk(wire).opened()
        talk.say(request("tools/call", {"name": "asks"}, 1))
        asked = await talk.hear()
        assert asked["method"] == "elicitation/create"
        talk.say({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}})
        cancelled = await talk.hear()
        assert cancelled["method"] == "notifications/cancelled"
        assert cancelled["params"]["requestId"] == asked["id"]


async def test_timed_out_questions_are_canceled_at_the_client() -> None:
    mcp, _ = chatty(input_timeout=0.001)
    async with run_wire(mcp, "asgi") as wire:
        talk = await Talk(wire).opened()
        talk.say(request("tools/call", {"name": "asks"}, 1))
        asked, cancelled, answer = [await talk.hear() for _ in range(3)]
        assert cancelled["params"]["requestId"] == asked["id"]
        assert answer["result"]["isError"] is True


def forgetful() -> tuple[Server, list[asyncio.Task[Any]], asyncio.Event]:
    """Return a server whose tools don't wait for the answers to their questions."""
    mcp, left, go = make_shop(input_timeout=600.0), list[asyncio.Task[Any]](), asyncio.Event()

    def ask(ctx: Context) -> None:
        left.append(asyncio.create_task(ctx.elicit("How many?", FORM)))

    @mcp.tool
    async def leaves(ctx: Context) -> str:
        """Leave two questions open."""
        ask(ctx)
        ask(ctx)
        await go.wait()
        return "answered"

    @mcp.tool
    async def fails(ctx: Context) -> str:
        """Fail beside a question."""

        async def failing() -> None:
            await go.wait()
            raise ValueError("beside it")

        await asyncio.gather(ctx.elicit("How many?", FORM), failing())
        return "never"

    @mcp.tool
    async def drops(ctx: Context) -> str:
        """Cancel a question without waiting for it."""
        ask(ctx)
        await go.wait()
        left[0].cancel()
        return "answered"

    @mcp.tool
    async def asks_later(ctx: Context) -> str:
        """Ask once the call is over."""

        async def later() -> Any:
            await go.wait()
            return await ctx.elicit("How many?", FORM)

        left.append(asyncio.create_task(later()))
        return "answered"

    return mcp, left, go


@for_each(("tool", "questions"), [("leaves", 2), ("fails", 1), ("drops", 1)])
async def test_open_questions_are_withdrawn_before_the_response(tool: str, questions: int) -> None:
    mcp, left, go = forgetful()
    async with run_wire(mcp, "asgi") as wire:
        talk = await Talk(wire).opened()
        talk.say(request("tools/call", {"name": tool}, 1))
        asked = [(await talk.hear())["id"] for _ in range(questions)]
        go.set()
        cancelled = [await talk.hear() for _ in range(questions)]
        assert {each["method"] for each in cancelled} == {"notifications/cancelled"}
        assert sorted(each["params"]["requestId"] for each in cancelled) == sorted(asked)
        assert (await talk.hear())["id"] == 1
        told = await asyncio.gather(*left, return_exceptions=True)
        if tool == "leaves":
            assert [str(each) for each in told] == [OVER, OVER]
        await wire.until(lambda: len(wire.runtime.services.questions) == 0)
        talk.say(request("ping", id=2))
        assert (await talk.hear())["id"] == 2


@for_each("way", ["asgi", "lane"])
async def test_questions_are_withdrawn_on_the_stream_of_their_call(way: str) -> None:
    mcp, left, go = forgetful()
    async with run_wire(mcp, way) as wire:
        headers = await wire.initialize(capabilities={"elicitation": {}})
        asking = asyncio.create_task(wire.post(request("tools/call", {"name": "leaves"}, 1), headers))
        await wire.until(lambda: len(wire.runtime.services.questions) == 2)
        go.set()
        told = [each.get("method", each.get("id")) for each in (await asking).messages]
        assert told == ["elicitation/create"] * 2 + ["notifications/cancelled"] * 2 + [1]
        await asyncio.gather(*left, return_exceptions=True)


async def test_canceling_a_call_withdraws_its_questions() -> None:
    mcp, left, _ = forgetful()
    async with run_wire(mcp, "asgi") as wire:
        talk = await Talk(wire).opened()
        talk.say(request("tools/call", {"name": "leaves"}, 1))
        asked = [(await talk.hear())["id"] for _ in range(2)]
        talk.say({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}})
        assert sorted([(await talk.hear())["params"]["requestId"] for _ in range(2)]) == sorted(asked)
        assert [str(each) for each in await asyncio.gather(*left, return_exceptions=True)] == [OVER, OVER]


async def test_losing_a_connection_ends_its_questions() -> None:
    mcp, left, _ = forgetful()
    async with run_wire(mcp, "asgi") as wire:
        talk = await Talk(wire).opened()
        talk.say(request("tools/call", {"name": "leaves"}, 1))
        assert [(await talk.hear())["method"] for _ in range(2)] == ["elicitation/create"] * 2
        await talk.pipe.close()
        assert [str(each) for each in await asyncio.gather(*left, return_exceptions=True)] == [OVER, OVER]
        assert len(wire.runtime.services.questions) == 0


async def test_questions_after_the_call_raise_an_error() -> None:
    mcp, left, go = forgetful()
    async with run_wire(mcp, "asgi") as wire:
        talk = await Talk(wire).opened()
        talk.say(request("tools/call", {"name": "asks_later"}, 1))
        assert (await talk.hear())["id"] == 1
        go.set()
        assert [str(each) for each in await asyncio.gather(*left, return_exceptions=True)] == [OVER]
        assert len(wire.runtime.services.questions) == 0


async def test_malformed_answers_do_not_make_the_call_invalid() -> None:
    mcp, _ = chatty()
    async with run_wire(mcp, "asgi") as wire:
        talk = await Talk(wire).opened()
        talk.say(request("tools/call", {"name": "asks"}, 1))
        asked = await talk.hear()
        talk.say({"jsonrpc": "2.0", "id": asked["id"], "result": {"action": "shrug"}})
        assert (await talk.hear())["result"]["isError"] is True


async def test_subscription_ended_by_the_server_is_canceled_after_its_result() -> None:
    """https://modelcontextprotocol.io/specification/2026-07-28"""
    mcp, _ = chatty()
    async with run_wire(mcp, "asgi") as wire:
        talk = Talk(wire)
        talk.say(per_request("subscriptions/listen", {"notifications": {"toolsListChanged": True}}, 7))
        assert (await talk.hear())["method"] == "notifications/subscriptions/acknowledged"
        for end in list(wire.runtime.services.endings):
            end()
        assert (await talk.hear())["id"] == 7
        last = await talk.hear()
        assert (last["method"], last["params"]["requestId"]) == ("notifications/cancelled", 7)


LISTENING = {"notifications": {"toolsListChanged": True}}


def grown_old(wire: Wire) -> None:
    """Let every open stream exceed its maximum age."""
    wire.runtime.streams.max_age = -1.0
    wire.runtime.streams.beat()


@for_each("way", ["asgi", "lane"])
async def test_subscription_on_an_expired_stream_ends_with_its_result(way: str) -> None:
    """MCP 2026-07-28, subscriptions."""
    mcp, _ = chatty()
    async with run_wire(mcp, way) as wire:
        message, headers = per_request("subscriptions/listen", LISTENING, 7), routing("subscriptions/listen")
        listening = asyncio.create_task(wire.post(message, headers))
        await wire.until(lambda: len(wire.runtime.services.endings) == 1)
        await wire.until(lambda: len(wire.runtime.streams) == 1)
        grown_old(wire)
        reply = await listening
        assert reply.message["id"] == 7
        assert reply.message["result"]["_meta"]["io.modelcontextprotocol/subscriptionId"] == 7
        assert b"retry: " in reply.body
        assert len(wire.runtime.streams) == 0


@for_each("way", ["asgi", "lane"])
async def test_stream_age_is_measured_from_the_start_of_the_call(way: str) -> None:
    go = asyncio.Event()
    mcp = Server("shop", settings=Settings(secret_key="a secret of the tests that is long enough"))

    @mcp.tool
    async def bind(ctx: Context) -> str:
        """Bind a book."""
        await ctx.report_progress(1)
        await go.wait()
        return "bound"

    async with run_wire(mcp, way) as wire:
        message = per_request("tools/call", {"name": "bind"}, 7)
        message["params"]["_meta"]["progressToken"] = "t"
        binding = asyncio.create_task(wire.post(message, routing("tools/call", "bind")))
        await wire.until(lambda: len(wire.runtime.streams) == 1)
        grown_old(wire)
        go.set()
        assert (await binding).message["result"]["content"][0]["text"] == "bound"


async def test_expired_streams_end_despite_an_open_subscription() -> None:
    hangs = asyncio.Event()

    class Hanging(Middleware):
        async def on_message(self, request: MessageRequest, call_next: Next) -> Any:
            done = await call_next(request)
            await hangs.wait()
            return done

    mcp = Server(
        "shop", settings=Settings(secret_key="a secret of the tests that is long enough"), middleware=[Hanging()]
    )
    stock(mcp)
    async with run_wire(mcp, "asgi") as wire:
        message, headers = per_request("subscriptions/listen", LISTENING, 7), routing("subscriptions/listen")
        listening = asyncio.create_task(wire.post(message, headers))
        await wire.until(lambda: len(wire.runtime.services.endings) == 1)
        await wire.until(lambda: len(wire.runtime.streams) == 1)
        grown_old(wire)
        await wire.until(lambda: len(wire.runtime.services.endings) == 0)
        assert len(wire.runtime.streams) == 1
        grown_old(wire)
        assert len(wire.runtime.streams) == 0
        hangs.set()
        await listening


async def test_subscriptions_on_an_expired_http_sse_stream_end_with_results() -> None:
    mcp, _ = chatty()
    async with run_wire(mcp, "asgi") as wire:
        path, stream = await open_sse(wire)
        for n in (7, 8):
            assert (await wire.post(per_request("subscriptions/listen", LISTENING, n), POST, path)).status == 202
        await wire.until(lambda: len(wire.runtime.services.endings) == 2)
        grown_old(wire)
        told = (await stream).messages[2:]
        assert {each["id"] for each in told if "result" in each} == {7, 8}
        cancelled = {each["params"]["requestId"] for each in told if each.get("method") == "notifications/cancelled"}
        assert cancelled == {7, 8}


async def test_event_ids_differ_between_streams_in_a_session() -> None:
    """Regression: both started at the same id. See https://modelcontextprotocol.io/specification/2025-11-25: event ids
    must be unique across the streams of a session.
    """
    mcp, _ = chatty()
    async with run_wire(mcp, "asgi") as wire:
        headers = {**await wire.initialize(), "accept": "text/event-stream"}
        ids: list[bytes] = []
        for last in (None, None, "resume"):
            fields = {**headers, "last-event-id": ids[-1].decode()} if last else headers
            task = asyncio.create_task(wire.ask("GET", "/mcp", fields))
            await wire.until(lambda: len(wire.runtime.streams) == 1)
            wire.runtime.streams.close()
            stream = (await task).body
            ids += [line[4:] for line in stream.split(b"\n") if line.startswith(b"id: ")]
            assert b"retry: " in stream
        assert len(ids) == len(set(ids)) >= 3
