"""What is said once a call is answered or given up, on every way back."""

import asyncio
import json
from typing import Any

from bad_input.shop import make_shop
from millstream import Context, Server
from millstream._transports.memory import MemoryPipe
from wire import Wire, enveloped, request, wired

INITIALIZE = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"elicitation": {}},
    "clientInfo": {"name": "t", "version": "1"},
}
FORM = {"type": "object", "properties": {"n": {"type": "integer"}}}


class Talk:
    """A client in memory."""

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


def chatty() -> tuple[Server, list[asyncio.Task[None]]]:
    """A server whose tool leaves a task running, which reports and logs and asks."""
    mcp, left = make_shop(ask_timeout=60.0), list[asyncio.Task[None]]()

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


async def test_nothing_about_a_call_follows_its_answer() -> None:
    """A fixed defect: a task that a tool left running sent progress and logs behind the result."""
    mcp, left = chatty()
    async with wired(mcp, "asgi") as wire:
        talk = await Talk(wire).opened()
        talk.say(request("tools/call", {"name": "leaves", "_meta": {"progressToken": "p"}}, 1))
        assert (await talk.hear())["params"]["progress"] == 1
        assert (await talk.hear())["id"] == 1
        await asyncio.gather(*left)
        talk.say(request("ping", id=2))
        assert (await talk.hear())["id"] == 2


async def test_a_question_that_is_given_up_is_cancelled_at_the_client() -> None:
    """A fixed defect: the person went on looking at a form that nobody waited for."""
    mcp, _ = chatty()
    async with wired(mcp, "asgi") as wire:
        talk = await Talk(wire).opened()
        talk.say(request("tools/call", {"name": "asks"}, 1))
        asked = await talk.hear()
        assert asked["method"] == "elicitation/create"
        talk.say({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}})
        cancelled = await talk.hear()
        assert cancelled["method"] == "notifications/cancelled"
        assert cancelled["params"]["requestId"] == asked["id"]


async def test_a_question_that_takes_too_long_is_cancelled_at_the_client() -> None:
    """The same, when the time is over."""
    mcp, _ = chatty()
    async with wired(mcp, "asgi") as wire:
        wire.runtime.services.questions._timeout = 0.0
        talk = await Talk(wire).opened()
        talk.say(request("tools/call", {"name": "asks"}, 1))
        asked, cancelled, answer = [await talk.hear() for _ in range(3)]
        assert cancelled["params"]["requestId"] == asked["id"]
        assert answer["result"]["isError"] is True


async def test_a_malformed_answer_is_no_invalid_params_of_the_call() -> None:
    """A fixed defect: `tools/call` got -32602, as if its own arguments had been wrong."""
    mcp, _ = chatty()
    async with wired(mcp, "asgi") as wire:
        talk = await Talk(wire).opened()
        talk.say(request("tools/call", {"name": "asks"}, 1))
        asked = await talk.hear()
        talk.say({"jsonrpc": "2.0", "id": asked["id"], "result": {"action": "shrug"}})
        assert (await talk.hear())["result"]["isError"] is True


async def test_a_subscription_that_the_server_ends_is_cancelled_behind_its_result() -> None:
    """https://modelcontextprotocol.io/specification/2026-07-28: a server that tears it down says so on a connection."""
    mcp, _ = chatty()
    async with wired(mcp, "asgi") as wire:
        talk = Talk(wire)
        talk.say(enveloped("subscriptions/listen", {"notifications": {"toolsListChanged": True}}, 7))
        assert (await talk.hear())["method"] == "notifications/subscriptions/acknowledged"
        for end in list(wire.runtime.services.endings):
            end()
        assert (await talk.hear())["id"] == 7
        last = await talk.hear()
        assert (last["method"], last["params"]["requestId"]) == ("notifications/cancelled", 7)


async def test_event_ids_of_two_streams_of_a_session_differ() -> None:
    """A fixed defect: both began at the same id. https://modelcontextprotocol.io/specification/2025-11-25: they must
    be unique across the streams of a session.
    """
    mcp, _ = chatty()
    async with wired(mcp, "asgi") as wire:
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
