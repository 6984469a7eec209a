"""A function starts and finishes once per call, in each revision, although questions end the client's requests."""

import asyncio
import json
import logging
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any

import pytest

from cases import for_each
from millstream import Context, Depends, Server, Settings, SyncContext, ToolError
from millstream.middleware import Middleware
from millstream.testing import connect
from patience import WAIT
from wire import Wire, open_pipe, per_request, routing, run_wire

REVISIONS = ["2025-06-18", "2025-11-25", "2026-07-28"]
KEY = "k" * 40
LOST = "what the call did may have taken effect"


@dataclass
class World:
    """What the functions of a server have done."""

    server: Server
    counts: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)


async def until(fact: Callable[[], bool]) -> None:
    """Run the event loop until a condition is true."""
    async with asyncio.timeout(WAIT):
        while not fact():  # noqa: ASYNC110  no event signals it
            await asyncio.sleep(0.001)


class Counting(Middleware):
    """Counts the calls that it wraps."""

    def __init__(self, counts: Counter[str]) -> None:
        self.counts = counts

    async def on_call(self, request: Any, next: Callable[[Any], Awaitable[Any]]) -> Any:
        """Count before and after."""
        self.counts["entered"] += 1
        result = await next(request)
        self.counts["left"] += 1
        return result


def make_world(*, middleware: bool = False, **settings: Any) -> World:
    """Return a server with tools that count, and then ask."""
    counts = Counter[str]()
    mcp = Server(
        "shop",
        settings=Settings(secret_key=KEY, **settings),
        middleware=[Counting(counts)] if middleware else [],
    )
    world = World(mcp, counts)

    @mcp.tool
    async def twice(ctx: Context) -> str:
        counts["started"] += 1
        try:
            one, two = await ctx.elicit("One?", str), await ctx.elicit("Two?", str)
        except Exception as exc:
            world.notes.append(str(exc))
            raise
        counts["finished"] += 1
        return one + two

    @mcp.tool
    def twice_in_thread(ctx: SyncContext) -> str:
        counts["started"] += 1
        try:
            one, two = ctx.elicit("One?", str), ctx.elicit("Two?", str)
        except Exception as exc:
            world.notes.append(str(exc))
            raise
        counts["finished"] += 1
        return one + two

    @mcp.tool(replay=True)
    async def repeatable(ctx: Context) -> str:
        counts["started"] += 1
        one, two = await ctx.elicit("One?", str), await ctx.elicit("Two?", str)
        counts["finished"] += 1
        return one + two

    @mcp.tool(annotations={"readOnlyHint": True})
    async def reads(ctx: Context) -> str:
        counts["started"] += 1
        return await ctx.elicit("One?", str) + await ctx.elicit("Two?", str)

    async def ask_first(ctx: Context) -> AsyncIterator[str]:
        counts["opened"] += 1
        yield await ctx.elicit("One?", str)
        counts["closed"] += 1

    async def ask_second(ctx: Context) -> str:
        return await ctx.elicit("Two?", str)

    @mcp.tool
    async def depends(one: Annotated[str, Depends(ask_first)], two: Annotated[str, Depends(ask_second)]) -> str:
        counts["started"] += 1
        counts["finished"] += 1
        return one + two

    return world


async def send(wire: Wire, tool: str, **members: Any) -> Any:
    """Send one request and return its result or error."""
    message = per_request("tools/call", {"name": tool, "arguments": {}, **members}, elicitation={"form": {}})
    reply = (await wire.post(message, routing("tools/call", tool))).message
    return reply.get("result", reply.get("error"))


def answer(asked: Any, value: object = "x") -> dict[str, Any]:
    """Return the members of a retry that answers all questions."""
    answers = {key: {"action": "accept", "content": {"value": value}} for key in asked["inputRequests"]}
    return {"requestState": asked["requestState"], "inputResponses": answers}


def text(result: Any) -> str:
    """Return the text of a result or error."""
    return str(result["content"][0]["text"] if "content" in result else result.get("message", result))


@for_each("tool", ["twice", "twice_in_thread", "depends", "repeatable"])
@for_each("revision", REVISIONS)
async def test_function_starts_and_finishes_once_in_each_revision(revision: str, tool: str) -> None:
    world = make_world(middleware=True)
    async with connect(world.server, revision=revision, elicit=lambda _: {"value": "x"}) as client:
        assert (await client.call(tool)).text == "xx"
    opened = {"opened": 1, "closed": 1} if tool == "depends" else {}
    assert world.counts == {"started": 1, "finished": 1, "entered": 1, "left": 1, **opened}


@for_each("way", ["asgi", "lane"])
@for_each("tool", ["twice", "twice_in_thread", "depends"])
async def test_copies_of_a_retry_get_the_same_result(way: str, tool: str) -> None:
    world = make_world()
    async with run_wire(world.server, way) as wire, asyncio.timeout(WAIT):
        retry = answer(await send(wire, tool))
        asked = await asyncio.gather(*(send(wire, tool, **retry) for _ in range(4)))
        asked.append(await send(wire, tool, **retry))
        assert all("inputRequests" in each for each in asked)
        differs = {**retry, "inputResponses": {key: {"action": "decline"} for key in retry["inputResponses"]}}
        assert "has ended" in text(await send(wire, tool, **differs))
        last = answer(asked[0])
        done = await asyncio.gather(*(send(wire, tool, **last) for _ in range(4)))
        done.append(await send(wire, tool, **last))
        assert [text(each) for each in done] == ["xx"] * 5
        assert "has ended" in text(await send(wire, tool, **retry))
        other = {**last, "inputResponses": answer(asked[0], "y")["inputResponses"]}
        assert "has ended" in text(await send(wire, tool, **other))
    assert (world.counts["started"], world.counts["finished"]) == (1, 1)


@for_each("tool", ["twice", "twice_in_thread"])
async def test_wrong_and_missing_answers_do_not_use_up_the_round(tool: str) -> None:
    world = make_world(max_rounds=2)
    async with run_wire(world.server, "asgi") as wire, asyncio.timeout(WAIT):
        asked = await send(wire, tool)
        for _ in range(3):
            assert "'value' must be" in text(await send(wire, tool, **answer(asked, 7)))
            again = await send(wire, tool, requestState=asked["requestState"], inputResponses={})
            assert again["inputRequests"] == asked["inputRequests"]
        second = await send(wire, tool, **answer(again))
        assert text(await send(wire, tool, **answer(second))) == "xx"
    assert world.counts["started"] == 1


@for_each("tool", ["twice", "twice_in_thread"])
async def test_call_fails_if_its_process_has_stopped(tool: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.clear()
    first, second = make_world(), make_world()
    async with run_wire(second.server, "asgi") as other, asyncio.timeout(WAIT):
        async with run_wire(first.server, "asgi") as wire:
            asked = await send(wire, tool)
        assert first.notes == ["The server is stopping, so it can't wait for the answer."]
        for _ in range(2):
            lost = await send(other, tool, **answer(asked))
            assert lost["isError"]
            assert LOST in text(lost)
    assert caplog.text.count("let them share a store") == 1
    assert (first.counts["started"], second.counts["started"]) == (1, 0)


async def test_question_in_a_dependency_is_answered_on_a_machine_that_shares_only_the_key() -> None:
    first, second, third = make_world(), make_world(), make_world()
    async with run_wire(third.server, "asgi") as last, asyncio.timeout(WAIT):
        async with run_wire(second.server, "asgi") as other:
            async with run_wire(first.server, "asgi") as wire:
                asked = await send(wire, "depends")
            asked = await send(other, "depends", **answer(asked))
        retry = answer(asked)
        done = await asyncio.gather(*(send(last, "depends", **retry) for _ in range(5)))
        assert [text(each) for each in done] == ["xx"] * 5
    assert first.counts["started"] == second.counts["started"] == 0
    assert third.counts == {"opened": 1, "closed": 1, "started": 1, "finished": 1}


@for_each("tool", ["repeatable", "reads"])
async def test_function_that_may_run_again_goes_on_elsewhere(tool: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "millstream")
    first, second = make_world(), make_world()
    async with run_wire(second.server, "asgi") as other, asyncio.timeout(WAIT):
        async with run_wire(first.server, "asgi") as wire:
            asked = await send(wire, tool)
        asked = await send(other, tool, **answer(asked))
        assert text(await send(other, tool, **answer(asked))) == "xx"
    assert (first.counts["started"], second.counts["started"]) == (1, 1)
    assert any("runs again" in each.message for each in caplog.records)


@for_each("tool", ["twice", "twice_in_thread"])
async def test_unanswered_question_raises_an_error_in_the_function(tool: str) -> None:
    world = make_world(input_timeout=0.05)
    async with run_wire(world.server, "asgi") as wire, asyncio.timeout(WAIT):
        await send(wire, tool)
        await until(lambda: bool(world.notes))
        assert "didn't respond within" in world.notes[0]
        await until(lambda: not len(wire.runtime.services.parked) and not wire.runtime.services.threads.full)


@for_each("tool", ["twice", "twice_in_thread"])
async def test_lost_rights_end_a_call_that_waits(tool: str) -> None:
    world = make_world()
    async with run_wire(world.server, "lane") as wire, asyncio.timeout(WAIT):
        asked = await send(wire, tool)
        parked = wire.runtime.services.parked
        parked.end_of(lambda owner: False)
        assert len(parked) == 1
        parked.end_of(lambda owner: True)
        await until(lambda: bool(world.notes))
        assert world.notes == ["Your rights have changed, so no answer counts. Call again."]
        assert "has ended" in text(await send(wire, tool, **answer(asked)))
    assert world.counts["started"] == 1


async def test_thinking_does_not_count_in_the_time_limit() -> None:
    mcp = Server("shop", settings=Settings(tool_timeout=0.2))

    @mcp.tool
    async def asks(ctx: Context) -> str:
        return await ctx.elicit("One?", str)

    async def think(_: object) -> Any:
        await asyncio.sleep(0.5)  # longer than the limit, which is the subject
        return {"value": "x"}

    for revision in REVISIONS:
        async with connect(mcp, revision=revision, elicit=think) as client:
            assert (await client.call("asks")).text == "x"


async def test_function_keeps_its_task_across_a_question() -> None:
    mcp, tasks = Server("shop", settings=Settings(secret_key=KEY)), list[object]()

    @mcp.tool
    async def groups(ctx: Context) -> str:
        tasks.append(asyncio.current_task())
        async with asyncio.timeout(WAIT), asyncio.TaskGroup() as group:
            one = group.create_task(ctx.elicit("One?", str, key="one"))
            two = group.create_task(ctx.elicit("Two?", str, key="two"))
        tasks.append(asyncio.current_task())
        return one.result() + two.result()

    @mcp.tool
    async def hurries(ctx: Context) -> str:
        try:
            async with asyncio.timeout(0.01):
                return await ctx.elicit("One?", str)
        except TimeoutError:
            return "too late"

    async with run_wire(mcp, "asgi") as wire, asyncio.timeout(WAIT):
        asked = await send(wire, "groups")
        assert list(asked["inputRequests"]) == ["one", "two"]
        assert text(await send(wire, "groups", **answer(asked))) == "xx"
        assert tasks[0] is tasks[1]
        asked = await send(wire, "hurries")
        if "inputRequests" in asked:
            await until(lambda: all(each.task.done() for each in wire.runtime.services.parked._calls.values()))
            asked = await send(wire, "hurries", **answer(asked))
        assert text(asked) == "too late"


async def test_progress_goes_to_the_request_that_is_open() -> None:
    mcp = Server("shop", settings=Settings(secret_key=KEY))

    @mcp.tool
    async def reports(ctx: Context) -> str:
        await ctx.progress(1)
        value = await ctx.elicit("One?", str)
        await ctx.progress(2)
        return f"{value} {ctx.request_id}"

    async with mcp.running() as runtime, asyncio.timeout(WAIT):
        pipe = open_pipe(runtime)
        members: dict[str, Any] = {}
        seen = []
        for number in (1, 2):
            message = per_request("tools/call", {"name": "reports", "arguments": {}, **members}, elicitation={})
            message["id"] = number
            message["params"]["_meta"]["progressToken"] = f"token {number}"
            pipe.send(json.dumps(message).encode())
            seen.append(json.loads(await pipe.receive())["params"])
            result = json.loads(await pipe.receive())["result"]
            members = answer(result) if number == 1 else {}
        await pipe.close()
    assert [(each["progressToken"], each["progress"]) for each in seen] == [("token 1", 1), ("token 2", 2)]
    assert text(result) == "x 2"


async def test_open_calls_are_bounded_and_make_room_for_repeatable_ones() -> None:
    world = make_world(max_pending_inputs=4)
    async with run_wire(world.server, "asgi") as wire, asyncio.timeout(WAIT):
        kept = [await send(wire, "twice") for _ in range(2)]
        full = await send(wire, "twice")
        assert (full["isError"], "Too many questions are open" in text(full)) == (True, True)
        free = [await send(wire, "repeatable") for _ in range(3)]  # they run again instead of waiting
        assert all("inputRequests" in each for each in (*kept, *free))
        asked = await send(wire, "repeatable", **answer(free[0]))
        assert text(await send(wire, "repeatable", **answer(asked))) == "xx"


async def test_client_that_leaves_cancels_the_function() -> None:
    mcp, ended = Server("shop", settings=Settings(secret_key=KEY)), list[str]()

    @mcp.tool
    async def stays(ctx: Context) -> str:
        await ctx.elicit("One?", str)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ended.append("canceled")
            raise
        return "never"

    async with mcp.running() as runtime, asyncio.timeout(WAIT):
        pipe = open_pipe(runtime)
        message = per_request("tools/call", {"name": "stays", "arguments": {}}, elicitation={})
        pipe.send(json.dumps(message).encode())
        asked = json.loads(await pipe.receive())["result"]
        message["id"], message["params"] = 2, {**message["params"], **answer(asked)}
        pipe.send(json.dumps(message).encode())
        await until(lambda: len(runtime.dispatcher.calls) == 1)
        canceled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 2}}
        pipe.send(json.dumps(canceled).encode())
        await until(lambda: ended == ["canceled"])
        await until(lambda: not len(runtime.services.parked))
        await pipe.close()


async def test_tool_can_undo_its_work_if_the_server_stops() -> None:
    mcp, undone = Server("shop", settings=Settings(secret_key=KEY)), list[str]()

    @mcp.tool
    async def pays(ctx: Context) -> str:
        try:
            return await ctx.elicit("Sure?", str)
        except ToolError:
            undone.append("refunded")
            raise

    async with run_wire(mcp, "asgi") as wire:
        await send(wire, "pays")
    assert undone == ["refunded"]


async def test_call_that_cannot_ask_gets_no_task() -> None:
    class Listing(Middleware):
        async def on_list(self, request: Any, next: Callable[[Any], Awaitable[Any]]) -> Any:
            return await next(request)

    async def inner() -> str:
        return "x"

    async def outer(value: Annotated[str, Depends(inner)]) -> AsyncIterator[str]:
        yield value

    mcp = Server("shop", middleware=[Listing()])

    @mcp.tool
    async def depends(value: Annotated[str, Depends(outer)]) -> str:
        return value

    @mcp.tool
    async def plain() -> str:
        return "x"

    @mcp.tool
    async def may_ask(ctx: Context) -> str:
        return "x"

    started = list[object]()
    loop = asyncio.get_running_loop()
    async with run_wire(mcp, "asgi") as wire, asyncio.timeout(WAIT):
        usual: Any = loop.get_task_factory()

        def create(loop: Any, work: Any, **options: Any) -> Any:
            started.append(work)
            return asyncio.Task(work, loop=loop, **options)

        loop.set_task_factory(create)
        try:
            tasks = {}
            for tool in ("plain", "depends", "may_ask"):
                started.clear()
                assert text(await send(wire, tool)) == "x"
                tasks[tool] = len(started)
        finally:
            loop.set_task_factory(usual)
        assert not len(wire.runtime.services.parked)
    assert tasks["depends"] == tasks["plain"]
    if sys.version_info < (3, 12):  # later, the factory isn't asked for the task, which starts at once
        assert tasks["may_ask"] > tasks["plain"]
