"""Calls and streams have caps of their own: neither fills the other's."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from bad_input.shop import make_shop, stock
from millstream import Context, Server, Settings
from millstream.middleware import MessageRequest, Middleware, Next
from wire import POST, Reply, Wire, enveloped, request, routing, wired

LISTENING = {"notifications": {"toolsListChanged": True}}


@asynccontextmanager
async def listening(wire: Wire, count: int) -> AsyncIterator[None]:
    """Subscriptions that are open during the block."""
    headers = routing("subscriptions/listen")
    endings = wire.runtime.services.endings
    async with asyncio.TaskGroup() as group:
        for n in range(count):
            group.create_task(wire.post(enveloped("subscriptions/listen", LISTENING, n), headers))
        await wire.until(lambda: len(endings) == count)
        try:
            yield
        finally:
            for end in list(endings):
                end()


async def add(wire: Wire) -> int:
    """The status of a plain call."""
    message = enveloped("tools/call", {"name": "add", "arguments": {"a": 1, "b": 2}})
    return (await wire.post(message, routing("tools/call", "add"))).status


async def test_open_subscriptions_take_no_room_from_calls() -> None:
    """Fixed defect: as many subscriptions as calls may run, and every call was 503."""
    async with wired(make_shop(max_calls=2), "asgi") as wire, listening(wire, 3):
        assert await add(wire) == 200
        assert (await wire.post(request("tools/list"))).status == 200


async def test_one_subscription_too_many_is_503_with_retry_after_like_any_stream() -> None:
    """Our choice: what is refused for want of room says when to come back."""
    async with wired(make_shop(max_streams=2), "asgi") as wire:
        headers = {**await wire.initialize(), "accept": "text/event-stream"}
        async with listening(wire, 2):
            refused = await wire.post(enveloped("subscriptions/listen", LISTENING, 9), routing("subscriptions/listen"))
            assert (refused.status, refused.headers[b"retry-after"]) == (503, b"1")
            assert refused.message["error"]["code"] == -31503
            assert (await wire.ask("GET", "/mcp", headers)).status == 503
            assert await add(wire) == 200


class Slow(Middleware):
    """Lets subscriptions pass once it's told to."""

    def __init__(self) -> None:
        self.waiting = 0
        self.go = asyncio.Event()

    async def on_message(self, request: MessageRequest, next: Next) -> Any:
        if request.method == "subscriptions/listen":
            self.waiting += 1
            await self.go.wait()
        return await next(request)


async def test_subscriptions_that_wait_for_a_hook_keep_to_the_cap_of_all_streams() -> None:
    """Fixed defect: they were counted before they waited, so other streams could take their room twice."""
    slow = Slow()
    mcp = Server("shop", settings=Settings(max_streams=2), middleware=[slow])
    stock(mcp)
    async with wired(mcp, "asgi") as wire:
        headers = {**await wire.initialize(), "accept": "text/event-stream"}
        streams = wire.runtime.streams
        async with asyncio.TaskGroup() as group:
            asked = [
                group.create_task(
                    wire.post(enveloped("subscriptions/listen", LISTENING, n), routing("subscriptions/listen"))
                )
                for n in range(2)
            ]
            await wire.until(lambda: slow.waiting == 2)
            stream = group.create_task(wire.ask("GET", "/mcp", headers))
            await wire.until(lambda: len(streams) == 1)
            slow.go.set()
            await wire.until(lambda: sum(each.done() for each in asked) + len(streams) == 3)
            opened_here = len(streams)
            streams.close()
        assert (stream.result().status, opened_here) == (200, 2)
        refused, opened = sorted((each.result() for each in asked), key=lambda reply: -reply.status)
        assert (refused.status, refused.message["error"]["code"], opened.status) == (503, -31503, 200)


def reporting(release: asyncio.Event) -> Server:
    """A server with a call that streams until it is let go."""
    mcp = make_shop(max_streams=1)

    @mcp.tool
    async def reports(ctx: Context) -> str:
        """Opens its stream, and waits."""
        await ctx.progress(1)
        await release.wait()
        return "released"

    return mcp


async def test_streams_of_calls_take_no_room_from_other_streams() -> None:
    """Fixed defect: they had no part in the cap of streams, yet used it up."""
    release = asyncio.Event()
    async with wired(reporting(release), "asgi") as wire:
        headers = await wire.initialize()
        call: dict[str, Any] = {"name": "reports", "_meta": {"progressToken": 1}}
        streams = wire.runtime.streams
        async with asyncio.TaskGroup() as group:
            calls = [group.create_task(wire.post(request("tools/call", call, n), headers)) for n in range(3)]
            await wire.until(lambda: len(streams) == 3)
            stream = group.create_task(wire.ask("GET", "/mcp", {**headers, "accept": "text/event-stream"}))
            await wire.until(lambda: len(streams) == 4)
            assert (await wire.ask("GET", "/sse", {**POST, "accept": "text/event-stream"})).status == 503
            release.set()
            await asyncio.wait(calls)
            streams.close()
        replies: list[Reply] = [stream.result(), *(each.result() for each in calls)]
        assert [reply.status for reply in replies] == [200] * 4
        assert not streams.full("")
