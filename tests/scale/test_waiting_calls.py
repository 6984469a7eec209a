import asyncio
import json
from typing import Any

from cases import for_each
from fleet import Worker, fleet, until
from millstream import Context, Server, Settings, SyncContext
from wire import per_request, routing

LOST = "what the call did may have taken effect"


def make_shop() -> Server:
    """A shop whose tools count, and then ask twice."""
    mcp = Server("shop", settings=Settings(secret_key="k" * 40))
    mcp.started, mcp.finished, mcp.errors = [], [], []  # type: ignore[attr-defined]

    @mcp.tool
    async def twice(ctx: Context) -> str:
        mcp.started.append("twice")  # type: ignore[attr-defined]
        value = await ctx.elicit("One?", str) + await ctx.elicit("Two?", str)
        mcp.finished.append("twice")  # type: ignore[attr-defined]
        return value

    @mcp.tool
    def twice_in_thread(ctx: SyncContext) -> str:
        mcp.started.append("twice_in_thread")  # type: ignore[attr-defined]
        value = ctx.elicit("One?", str) + ctx.elicit("Two?", str)
        mcp.finished.append("twice_in_thread")  # type: ignore[attr-defined]
        return value

    return mcp


async def send(worker: Worker, tool: str, **members: Any) -> Any:
    """Send one request and return its result or error."""
    message = per_request("tools/call", {"name": tool, "arguments": {}, **members}, elicitation={"form": {}})
    body = await (await worker.post(message, routing("tools/call", tool))).body()
    reply = json.loads(body)
    return reply.get("result", reply.get("error"))


def answer(asked: Any, value: object = "x") -> dict[str, Any]:
    """Return the members of a retry that answers all questions."""
    answers = {key: {"action": "accept", "content": {"value": value}} for key in asked["inputRequests"]}
    return {"requestState": asked["requestState"], "inputResponses": answers}


def text(result: Any) -> str:
    """Return the text of a result or error."""
    return str(result["content"][0]["text"] if "content" in result else result.get("message", result))


def count(workers: tuple[Worker, ...], name: str) -> int:
    """Return how often functions started or finished on all workers."""
    return sum(len(getattr(each.server, name)) for each in workers)


@for_each("tool", ["twice", "twice_in_thread"])
async def test_call_goes_on_although_each_request_reaches_another_worker(tool: str) -> None:
    async with fleet(make_shop) as workers:
        first, second = workers
        asked = await send(first, tool)
        wrong = await send(second, tool, **answer(asked, 7))
        assert "'value' must be" in text(wrong)
        again = await send(second, tool, requestState=asked["requestState"], inputResponses={})
        assert again["inputRequests"] == asked["inputRequests"]
        retry = answer(again)
        copies = await asyncio.gather(*(send(each, tool, **retry) for each in (first, second, first, second)))
        last = answer(copies[1])
        done = await asyncio.gather(*(send(each, tool, **last) for each in (second, first, second, first)))
        done += [await send(each, tool, **last) for each in workers]
        assert [text(each) for each in done] == ["xx"] * 6
        assert "has ended" in text(await send(second, tool, **retry))
        assert (count(workers, "started"), count(workers, "finished")) == (1, 1)


@for_each("tool", ["twice", "twice_in_thread"])
async def test_call_of_a_dead_worker_fails_on_another(tool: str) -> None:
    async with fleet(make_shop) as workers:
        first, second = workers
        asked = await send(first, tool)
        await first.die()
        lost = await send(second, tool, **answer(asked))
        assert (lost["isError"], LOST in text(lost)) == (True, True)
        assert (count(workers, "started"), count(workers, "finished")) == (1, 0)


async def test_frozen_worker_that_wakes_does_not_finish_a_lost_call_twice() -> None:
    async with fleet(make_shop) as workers:
        first, second = workers
        asked = await send(first, "twice")
        first.store.sleep()
        lost = await send(second, "twice", **answer(asked))
        assert lost["isError"]
        first.store.wake()
        await until(lambda: not second.runtime.services.parked.forwarded)
        assert count(workers, "started") == 1
        assert count(workers, "finished") <= 1
