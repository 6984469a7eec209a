import asyncio
import json
from typing import Any

from bad_input.shop import make_shop
from fleet import Worker, fleet, until
from millstream import Context, Server
from wire import per_request, routing

FORM = {"type": "object", "properties": {"n": {"type": "integer"}}}
ANSWER = {"sure": {"action": "accept", "content": {"n": 1}}}


def make_bank() -> Server:
    """A shop that charges behind a question, when it is let."""
    mcp = make_shop()
    mcp.charged, mcp.release = [], asyncio.Event()  # type: ignore[attr-defined]

    @mcp.tool(replay=True)
    async def buy(ctx: Context) -> str:
        """Charge once."""
        await ctx.elicit("Sure?", FORM, key="sure")

        async def charge() -> str:
            mcp.charged.append("card")  # type: ignore[attr-defined]
            await mcp.release.wait()  # type: ignore[attr-defined]
            return "paid"

        return str(await ctx.once("charge", charge, store=True))

    return mcp


async def send(worker: Worker, **params: Any) -> Any:
    """One round."""
    message = per_request("tools/call", {"name": "buy", "arguments": {}, **params}, elicitation={"form": {}})
    reply = await worker.post(message, routing("tools/call", "buy"))
    body = await reply.body()
    return body if b'"result"' not in body else json.loads(body)["result"]


async def second_round(worker: Worker) -> dict[str, Any]:
    """What the second round of a new call says, which any worker can be sent."""
    return {"requestState": (await send(worker))["requestState"], "inputResponses": ANSWER}


async def test_round_on_two_workers_runs_an_effect_once() -> None:
    async with fleet(make_bank) as (first, second):
        again = await second_round(first)
        rounds = [asyncio.create_task(send(each, **again)) for each in (first, second)]
        await until(lambda: first.server.charged + second.server.charged)  # type: ignore[attr-defined]
        for each in (first, second):
            each.server.release.set()  # type: ignore[attr-defined]
        for each in await asyncio.gather(*rounds):
            assert each["content"][0]["text"] == "paid"
        assert len(first.server.charged + second.server.charged) == 1  # type: ignore[attr-defined]


async def test_effect_from_a_dead_worker_is_run_by_another() -> None:
    async with fleet(make_bank) as (first, second):
        again = await second_round(first)
        lost = asyncio.create_task(send(first, **again))
        await until(lambda: first.server.charged)  # type: ignore[attr-defined]
        waiting = asyncio.create_task(send(second, **again))
        await until(lambda: second.runtime.services.parked.forwarded)
        assert not second.server.charged  # type: ignore[attr-defined]
        first.store.sleep()
        second.server.release.set()  # type: ignore[attr-defined]
        assert (await waiting)["content"][0]["text"] == "paid"
        assert second.server.charged  # type: ignore[attr-defined]
        first.server.release.set()  # type: ignore[attr-defined]
        first.store.wake()
        await lost
        key = (await second.store.core.kv.keys("once:"))[0]
        assert await second.store.core.kv.get(key) == b'"paid"'
