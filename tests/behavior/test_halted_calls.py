import asyncio
import json
from typing import Any

from bad_input.shop import make_shop
from behavior.test_after_the_answer import FORM, INITIALIZE, Talk
from cases import for_each
from millstream import Context, Server
from wire import POST, Reply, Wire, open_sse, per_request, request, routing, run_wire

STOPPED = "The server stopped before the call was complete. Try again."


def endless() -> Server:
    """Return a server whose tools don't end."""
    mcp = make_shop(input_timeout=600.0)

    @mcp.tool
    async def waits(ctx: Context) -> str:
        """Send a message if the caller wants it, and wait."""
        await ctx.progress(1)
        await asyncio.Event().wait()
        return "never"

    @mcp.tool
    async def asks(ctx: Context) -> str:
        """Ask."""
        return json.dumps(await ctx.elicit("How many?", FORM))

    @mcp.tool
    async def survives(ctx: Context) -> str:
        """Wait, and return a result when canceled."""
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "half of it"
        return "never"

    @mcp.tool
    async def asks_again(ctx: Context) -> str:
        """Wait, and ask when canceled."""
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await ctx.elicit("Really?", FORM)
        return "never"

    return mcp


def call(name: str, id: int = 1, **meta: Any) -> Any:
    """Return a tool call of the handshake era."""
    return request("tools/call", {"name": name, "_meta": meta} if meta else {"name": name}, id)


async def reply_at_shutdown(wire: Wire, asking: "asyncio.Task[Reply]") -> Reply:
    """Return the reply to a call when the server stops waiting."""
    await wire.until(lambda: len(wire.runtime.dispatcher.calls) == 1)
    await wire.runtime.drain(0)
    assert not wire.runtime.dispatcher.calls
    return await asking


@for_each("way", ["asgi", "lane"])
async def test_call_that_outlasts_shutdown_gets_an_error(way: str) -> None:
    async with run_wire(endless(), way) as wire:
        reply = await reply_at_shutdown(wire, asyncio.create_task(wire.post(call("waits"))))
        assert reply.error == (200, -32000, 1)
        assert reply.message["error"]["message"] == STOPPED


@for_each("way", ["asgi", "lane"])
async def test_per_request_call_that_outlasts_shutdown_gets_503(way: str) -> None:
    async with run_wire(endless(), way) as wire:
        message = per_request("tools/call", {"name": "waits"})
        reply = await reply_at_shutdown(wire, asyncio.create_task(wire.post(message, routing("tools/call", "waits"))))
        assert reply.error == (503, -31503, 1)


async def test_stream_ends_with_an_error_on_shutdown() -> None:
    async with run_wire(endless(), "asgi") as wire:
        headers = await wire.initialize()
        reply = await reply_at_shutdown(wire, asyncio.create_task(wire.post(call("waits", progressToken="p"), headers)))
        assert [each.get("method", each.get("id")) for each in reply.messages] == ["notifications/progress", 1]
        assert reply.message["error"]["message"] == STOPPED


async def test_question_is_withdrawn_before_the_response_on_shutdown() -> None:
    async with run_wire(endless(), "asgi") as wire:
        headers = await wire.initialize(capabilities={"elicitation": {}})
        reply = await reply_at_shutdown(wire, asyncio.create_task(wire.post(call("asks"), headers)))
        asked, cancelled, answer = reply.messages
        assert (cancelled["method"], cancelled["params"]["requestId"]) == ("notifications/cancelled", asked["id"])
        assert answer["error"]["message"] == STOPPED


async def test_result_returned_during_shutdown_is_sent() -> None:
    async with run_wire(endless(), "asgi") as wire:
        reply = await reply_at_shutdown(wire, asyncio.create_task(wire.post(call("survives"))))
        assert reply.message["result"]["content"][0]["text"] == "half of it"


async def test_question_during_shutdown_raises_an_error() -> None:
    async with run_wire(endless(), "asgi") as wire:
        headers = await wire.initialize(capabilities={"elicitation": {}})
        reply = await reply_at_shutdown(wire, asyncio.create_task(wire.post(call("asks_again"), headers)))
        assert not reply.messages  # it isn't a stream: nothing came before the answer
        assert "The server is stopping" in reply.message["result"]["content"][0]["text"]


async def test_canceled_calls_send_no_questions() -> None:
    async with run_wire(endless(), "asgi") as wire:
        talk = await Talk(wire).opened()
        talk.say(call("asks_again"))
        await wire.until(lambda: len(wire.runtime.dispatcher.calls) == 1)
        talk.say({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}})
        await wire.until(lambda: not wire.runtime.dispatcher.calls or len(wire.runtime.services.questions))
        talk.say(request("ping", id=2))
        assert (await talk.hear())["id"] == 2


async def test_canceled_call_gets_no_response_on_shutdown() -> None:
    """MCP 2025-11-25, cancellation."""
    mcp, stubborn = endless(), asyncio.Event()

    @mcp.tool
    async def goes_on() -> str:
        """Wait, and continue when canceled."""
        try:
            await asyncio.Event().wait()
        finally:
            await stubborn.wait()

    async with run_wire(mcp, "asgi") as wire:
        talk = await Talk(wire).opened()
        talk.say(call("goes_on"))
        await wire.until(lambda: len(wire.runtime.dispatcher.calls) == 1)
        (running,) = wire.runtime.dispatcher.calls
        talk.say({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}})
        await wire.until(lambda: running.cancelled)
        running.halt()
        assert not running.halted
        stubborn.set()
        await wire.until(lambda: not wire.runtime.dispatcher.calls)
        talk.say(request("ping", id=2))
        assert (await talk.hear())["id"] == 2


async def test_http_sse_calls_are_answered_before_the_stream_ends() -> None:
    async with run_wire(endless(), "asgi") as wire:
        path, stream = await open_sse(wire)
        for message in (request("initialize", INITIALIZE, 0), call("waits", 1), call("asks", 2)):
            assert (await wire.post(message, POST, path)).status == 202
        await wire.until(lambda: len(wire.runtime.dispatcher.calls) == 2)
        await wire.until(lambda: len(wire.runtime.services.questions) == 1)
        await wire.runtime.drain(0)
        messages = {each.get("id", each.get("method")): each for each in (await stream).messages}
        assert [messages[id]["error"]["message"] for id in (1, 2)] == [STOPPED, STOPPED]
        asked = next(each for each in messages.values() if each.get("method") == "elicitation/create")
        assert messages["notifications/cancelled"]["params"]["requestId"] == asked["id"]
        assert list(messages).index("notifications/cancelled") < list(messages).index(2)
