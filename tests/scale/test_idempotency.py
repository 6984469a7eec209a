"""A call with an idempotency rule runs once, whichever worker gets a repeat, and whatever fails."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from typing import Annotated, Any

import pytest

from cases import for_each
from fleet import Worker, fleet, real_fleet, settle, until
from millstream import Context, Depends, Server, Settings, ToolError, auth
from millstream.stores import StoreFull
from patience import WAIT
from shared_store import SharedStore
from store_parts import BACKINGS, Backing, LocalSqliteBacking, backings
from wire import Json, per_request, routing

KEY = "millstream/idempotencyKey"
ADA, BOB = "ada-has-a-key-of-some-length", "bob-has-another-of-some-length"
DAY = 86400
REPEATED = "It didn't run again.]"
YES: Json = {"sure": {"action": "accept", "content": {"value": True}}}
NO: Json = {"sure": {"action": "decline"}}


@pytest.fixture(name="backing", params=backings(("local", "local-sqlite", "redis", "nats")))
async def each_backing(request: pytest.FixtureRequest) -> AsyncIterator[Backing]:
    """Return each kind of store that two workers share."""
    backing = LocalSqliteBacking() if request.param == "local-sqlite" else BACKINGS[request.param]()
    yield backing
    await backing.close()


async def confirm(ctx: Context) -> bool:
    """Ask."""
    return await ctx.elicit("Sure?", bool, key="sure")


class Shop:
    """Makes servers whose tools record what they did, and wait until they're let."""

    def __init__(self, idempotency: bool | str = True, **settings: Any) -> None:
        self.did: list[Any] = []
        self.release = asyncio.Event()
        self.idempotency = idempotency
        self.settings = settings

    def make(self) -> Server:
        """Return the server of one worker."""
        once = self.idempotency
        mcp = Server(
            "shop",
            auth=auth.keys(named_keys={"ada": ADA, "bob": BOB}),
            settings=Settings(secret_key="k" * 40, **self.settings),
        )

        @mcp.tool(idempotency=once)
        async def pay(cents: int) -> int:
            """Pay."""
            self.did.append(cents)
            await self.release.wait()
            return cents

        @mcp.tool(idempotency=once)
        async def fail(how: str) -> str:
            """Fail."""
            self.did.append(how)
            if how == "tool":
                raise ToolError("The card was refused.")
            raise RuntimeError("a bug")

        @mcp.tool(idempotency=once)
        async def read(size: int) -> str:
            """Return a text."""
            self.did.append(size)
            return "x" * size

        @mcp.tool(idempotency=once)
        async def buy(ctx: Context) -> str:
            """Ask in the function."""
            self.did.append("asked")
            sure = await ctx.elicit("Sure?", bool, key="sure")
            self.did.append("bought")
            return f"bought {sure}"

        @mcp.tool(idempotency=once)
        async def refund(sure: Annotated[bool, Depends(confirm)]) -> str:
            """Ask before the function."""
            self.did.append("refunded")
            return f"refunded {sure}"

        return mcp


async def send(worker: Worker, tool: str, key: str = "", *, who: str = ADA, **members: Any) -> Any:
    """Call a tool in the per-request era, and return its result or error."""
    message = per_request("tools/call", {"name": tool, "arguments": {}, **members}, elicitation={"form": {}})
    if key:
        message["params"]["_meta"][KEY] = key
    reply = await worker.post(message, {**routing("tools/call", tool), "authorization": f"Bearer {who}"})
    body = json.loads(await reply.body())
    return body.get("result", body.get("error"))


def text(result: Json) -> str:
    """Return the texts of a result."""
    return "\n".join(each["text"] for each in result["content"])


async def pay(worker: Worker, key: str = "k1", cents: int = 5, **more: Any) -> Any:
    """Call `pay`."""
    return await send(worker, "pay", key, arguments={"cents": cents}, **more)


# At once


@pytest.mark.parametrize("idempotency", [True, "10m"])
async def test_identical_calls_at_once_run_once(backing: Backing, idempotency: bool | str) -> None:
    shop = Shop(idempotency)
    async with asyncio.timeout(WAIT), real_fleet(shop.make, backing, 2) as workers:
        key = "k1" if idempotency is True else ""
        calls = [asyncio.create_task(pay(workers[each % 2], key)) for each in range(12)]
        await until(lambda: shop.did)
        shop.release.set()
        results = await asyncio.gather(*calls)
        assert shop.did == [5]
        assert [each["structuredContent"] for each in results] == [5] * 12
        assert sum(REPEATED in text(each) for each in results) == 11
        assert len(await workers[0].store.real.kv.keys("idempotency:")) == 1


# After the call


async def test_repeat_gets_the_first_result_after_all_workers_restarted(backing: Backing) -> None:
    shop = Shop()
    shop.release.set()
    async with asyncio.timeout(WAIT):
        async with real_fleet(shop.make, backing, 2) as workers:
            first = await pay(workers[0])
            again = await pay(workers[1])
        async with real_fleet(shop.make, backing, 1) as (later,):
            last = await pay(later)
    assert (first["structuredContent"], text(first)) == (5, "5")
    assert again == last
    assert again["structuredContent"] == 5
    assert again["content"][1:] == first["content"]
    assert text(again).endswith(f"{REPEATED}\n5")
    assert again["_meta"]["millstream/ranAt"] in text(again)
    assert shop.did == [5]


async def test_error_of_a_tool_is_a_result(backing: Backing) -> None:
    shop = Shop()
    async with asyncio.timeout(WAIT), real_fleet(shop.make, backing, 2) as workers:
        first, again = [await send(each, "fail", "k1", arguments={"how": "tool"}) for each in workers]
    assert (first["isError"], text(first)) == (True, "The card was refused.")
    assert (again["isError"], text(again).partition("\n")[2]) == (True, "The card was refused.")
    assert shop.did == ["tool"]


async def test_unexpected_failure_has_an_unknown_outcome(backing: Backing) -> None:
    shop = Shop()
    async with asyncio.timeout(WAIT), real_fleet(shop.make, backing, 2) as workers:
        first, again = [await send(each, "fail", "k1", arguments={"how": "bug"}) for each in workers]
    assert "Internal error" in text(first)
    assert "its outcome is unknown" in text(again)
    assert again["isError"]
    assert shop.did == ["bug"]


async def test_result_that_is_too_large_to_keep_is_not_produced_again() -> None:
    shop = Shop()
    async with asyncio.timeout(WAIT), fleet(shop.make) as workers:
        first, again = [await send(each, "read", "k1", arguments={"size": 300_000}) for each in workers]
    assert len(text(first)) == 300_000
    assert "Its result couldn't be kept. It didn't run again." in text(again)
    assert again["isError"]  # other results need the content that the output schema announces
    assert shop.did == [300_000]


# Failures


async def test_call_of_a_killed_worker_is_not_repeated(backing: Backing) -> None:
    shop = Shop()
    async with asyncio.timeout(WAIT), real_fleet(shop.make, backing, 2) as (one, two):
        lost = asyncio.create_task(pay(one))
        await until(lambda: shop.did)
        await backing.kill(one.store.real)
        again = await pay(two)
        assert "its outcome is unknown" in text(again)
        assert again["isError"]
        assert shop.did == [5]
        shop.release.set()
        lost.cancel()


async def test_call_of_a_stopped_worker_is_not_repeated(backing: Backing) -> None:
    shop = Shop(drain_timeout=0.0)
    async with asyncio.timeout(WAIT):
        async with real_fleet(shop.make, backing, 1) as (one,):
            lost = asyncio.create_task(pay(one))
            await until(lambda: shop.did)
        assert len(one.runtime.services.idempotent) == 0
        async with real_fleet(shop.make, backing, 1) as (two,):
            assert "its outcome is unknown" in text(await pay(two))
        lost.cancel()
    assert shop.did == [5]


async def test_caller_who_leaves_does_not_cancel_the_call(backing: Backing) -> None:
    shop = Shop()
    async with asyncio.timeout(WAIT), real_fleet(shop.make, backing, 2) as (one, two):
        message = per_request("tools/call", {"name": "pay", "arguments": {"cents": 5}})
        message["params"]["_meta"][KEY] = "k1"
        headers = {**routing("tools/call", "pay"), "authorization": f"Bearer {ADA}"}
        leaving = asyncio.create_task(one.post(message, headers))
        await until(lambda: shop.did)
        await one.http.close()
        await asyncio.gather(leaving, return_exceptions=True)
        await until(lambda: not one.runtime.dispatcher.calls)
        shop.release.set()
        assert text(await pay(two)).endswith(f"{REPEATED}\n5")
    assert shop.did == [5]


async def test_calls_without_a_caller_get_the_time_of_a_drain() -> None:
    shop = Shop()
    async with asyncio.timeout(WAIT), fleet(shop.make) as (one, two):
        leaving = asyncio.create_task(pay(one))
        await until(lambda: shop.did)
        await one.http.close()
        await asyncio.gather(leaving, return_exceptions=True)
        draining = asyncio.create_task(one.runtime.drain(WAIT))
        await until(lambda: one.runtime.draining)
        await settle()
        assert not draining.done()
        shop.release.set()
        await draining
        assert REPEATED in text(await pay(two))


async def test_lost_store_forgets_calls() -> None:
    shop, shared = Shop(), SharedStore()
    shop.release.set()
    async with asyncio.timeout(WAIT), fleet(shop.make, store=shared) as workers:
        await pay(workers[0])
        shared.lose_everything()
        assert text(await pay(workers[1])) == "5"
    assert shop.did == [5, 5]


async def test_caller_gets_the_result_if_it_cannot_be_stored() -> None:
    shop = Shop()
    async with asyncio.timeout(WAIT), fleet(shop.make) as (one, _):
        calling = asyncio.create_task(pay(one))
        await until(lambda: shop.did)
        one.store.down = True
        shop.release.set()
        assert text(await calling) == "5"
        one.store.down = False
        assert "its outcome is unknown" in text(await pay(one))
        assert shop.did == [5]


async def test_caller_gets_the_result_if_a_full_store_takes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(*_: Any) -> bool:
        raise StoreFull("no space is left")

    shop = Shop()
    async with asyncio.timeout(WAIT), fleet(shop.make) as (one, _):
        calling = asyncio.create_task(pay(one))
        await until(lambda: shop.did)
        monkeypatch.setattr(one.store.kv, "compare_and_set", refuse)
        shop.release.set()
        assert text(await calling) == "5"
        assert "its outcome is unknown" in text(await pay(one))
    assert shop.did == [5]


async def test_call_that_cannot_be_recorded_does_not_run() -> None:
    shop = Shop()
    async with asyncio.timeout(WAIT), fleet(shop.make) as (one, two):
        one.store.down = True
        assert "The store didn't respond in time." in text(await pay(one))
        shop.release.set()
        assert text(await pay(two)) == "5"


async def test_suspended_worker_stores_its_result() -> None:
    shop = Shop()
    async with asyncio.timeout(WAIT), fleet(shop.make) as (one, two):
        calling = asyncio.create_task(pay(one))
        await until(lambda: shop.did)
        one.store.sleep()
        assert "its outcome is unknown" in text(await pay(two))
        shop.release.set()
        one.store.wake()
        assert text(await calling) == "5"
        assert REPEATED in text(await pay(two))
        assert shop.did == [5]


# Keys and callers


async def test_key_with_other_arguments_is_refused(backing: Backing) -> None:
    shop = Shop()
    shop.release.set()
    async with asyncio.timeout(WAIT), real_fleet(shop.make, backing, 2) as (one, two):
        await pay(one)
        refused = await pay(two, cents=6)
        assert (refused["isError"], "was used with other arguments" in text(refused)) == (True, True)
        assert text(await pay(two, "k2", cents=6)) == "6"
        assert text(await send(two, "read", "k1", arguments={"size": 1})) == "x"
    assert shop.did == [5, 6, 1]


async def test_other_principal_neither_sees_nor_uses_a_record(backing: Backing) -> None:
    shop = Shop("10m")
    shop.release.set()
    async with asyncio.timeout(WAIT), real_fleet(shop.make, backing, 2) as (one, two):
        for key in ("order-1", ""):
            shop.did.clear()
            await pay(one, key)
            assert text(await pay(two, key, who=BOB)) == "5"
            assert shop.did == [5, 5]
            assert REPEATED in text(await pay(one, key, who=BOB))
        assert text(await pay(two, "order-1", cents=6, who=BOB)).startswith("The idempotency key was used")


async def test_spelling_of_arguments_does_not_matter() -> None:
    shop = Shop("10m")
    async with asyncio.timeout(WAIT), fleet(shop.make) as (one, _):
        for body in (b'{"size": 3}', b'{ "size":3 }'):
            message = json.dumps(per_request("tools/call", {"name": "read", "arguments": "ARGS"})).encode()
            headers = {**routing("tools/call", "read"), "authorization": f"Bearer {ADA}"}
            await (await one.http.fetch("POST", "/mcp", headers, message.replace(b'"ARGS"', body))).body()
    assert shop.did == [3]


@for_each("key", ["", 5, None, "x" * 256, ["k"]])
async def test_unusable_key_is_refused(key: Any) -> None:
    shop = Shop()
    shop.release.set()
    async with asyncio.timeout(WAIT), fleet(shop.make, 1) as (one,):
        message = per_request("tools/call", {"name": "pay", "arguments": {"cents": 5}})
        message["params"]["_meta"][KEY] = key
        headers = {**routing("tools/call", "pay"), "authorization": f"Bearer {ADA}"}
        reply = json.loads(await (await one.post(message, headers)).body())
        assert "the idempotency key must have 1 to 255 characters" in reply["error"]["message"]
    assert shop.did == []


async def test_bare_name_of_the_key_is_accepted() -> None:
    shop = Shop()
    shop.release.set()
    async with asyncio.timeout(WAIT), fleet(shop.make, 1) as (one,):
        for _ in range(2):
            message = per_request("tools/call", {"name": "pay", "arguments": {"cents": 5}})
            message["params"]["_meta"]["idempotencyKey"] = "k1"
            headers = {**routing("tools/call", "pay"), "authorization": f"Bearer {ADA}"}
            await (await one.post(message, headers)).body()
    assert shop.did == [5]


async def test_calls_without_a_key_run_each_time() -> None:
    shop = Shop()
    shop.release.set()
    async with asyncio.timeout(WAIT), fleet(shop.make, 1) as (one,):
        assert [text(await pay(one, "")) for _ in range(2)] == ["5", "5"]
    assert shop.did == [5, 5]


async def test_flood_of_keys_leaves_room_for_other_callers() -> None:
    shop, shared = Shop(), SharedStore()
    shared.core.kv.max_bytes = 64 * 1024
    async with asyncio.timeout(WAIT), fleet(shop.make, 1, store=shared) as (one,):
        floods = [await send(one, "read", f"k{each}", arguments={"size": 2_000}) for each in range(60)]
        assert "The store is full." in text(floods[-1])
        assert len(shop.did) < 60
        shop.did.clear()
        assert text(await send(one, "read", "k1", arguments={"size": 2_000}, who=BOB)) == "x" * 2_000


async def test_store_reveals_neither_keys_nor_arguments_nor_results() -> None:
    shop = Shop()
    async with asyncio.timeout(WAIT), fleet(shop.make, 1) as (one,):
        await send(one, "fail", "order-77", arguments={"how": "tool"})
        kv = one.store.core.kv
        (name,) = await kv.keys("idempotency:")
        record = await kv.get(name)
        for secret in (b"order-77", b"tool", b"refused", b"ada"):
            assert secret not in name.encode() + record


# Questions


@for_each("tool", ["buy", "refund"])
async def test_repeat_of_a_waiting_call_is_told_so_and_the_answer_continues_it(backing: Backing, tool: str) -> None:
    shop = Shop()
    async with asyncio.timeout(WAIT), real_fleet(shop.make, backing, 2) as (one, two):
        asked = await send(one, tool, "k1")
        assert asked["inputRequests"].keys() == {"sure"}
        for each in (one, two):
            assert "is waiting for an answer" in text(await send(each, tool, "k1"))
        state = {"requestState": asked["requestState"], "inputResponses": YES}
        done = await send(two, tool, **state)  # without the key
        assert text(done).endswith("ed True" if tool == "refund" else "bought True")
        assert REPEATED not in text(done)
        for each in (one, two):
            assert REPEATED in text(await send(each, tool, "k1"))
            assert REPEATED in text(await send(each, tool, "k1", **state))
    assert shop.did == (["refunded"] if tool == "refund" else ["asked", "bought"])


async def test_declined_question_before_the_function_leaves_no_record(backing: Backing) -> None:
    shop = Shop()
    async with asyncio.timeout(WAIT), real_fleet(shop.make, backing, 2) as (one, two):
        asked = await send(one, "refund", "k1")
        declined = await send(two, "refund", "k1", requestState=asked["requestState"], inputResponses=NO)
        assert declined["isError"]
        assert "inputRequests" in await send(two, "refund", "k1")
    assert shop.did == []


async def test_question_of_a_dead_worker_is_answered_once_elsewhere(backing: Backing) -> None:
    shop = Shop()
    async with asyncio.timeout(WAIT), real_fleet(shop.make, backing, 3) as (one, two, three):
        asked = await send(one, "refund", "k1")
        await backing.kill(one.store.real)
        await until_dead(two, one)
        state = {"requestState": asked["requestState"], "inputResponses": YES}
        results = await asyncio.gather(*(send(each, "refund", "k1", **state) for each in (two, three)))
        assert [text(each).rpartition("\n")[2] for each in results] == ["refunded True"] * 2
    assert shop.did == ["refunded"]


async def until_dead(worker: Worker, other: Worker) -> None:
    """Wait until a worker sees that another one is gone."""
    workers = worker.store.real.workers
    while await workers.alive(other.store.real.workers.me):  # noqa: ASYNC110  no event signals it
        await asyncio.sleep(0.01)


async def test_malformed_answer_does_not_end_a_call() -> None:
    shop = Shop()
    async with asyncio.timeout(WAIT), fleet(shop.make) as workers:
        asked = await send(workers[0], "refund", "k1")
        state = asked["requestState"]
        for each in workers:
            wrong = await send(each, "refund", "k1", requestState=state, inputResponses={"sure": {"action": "maybe"}})
            assert "message" in wrong
            assert "is waiting for an answer" in text(await send(each, "refund", "k1"))
        right = await send(workers[1], "refund", "k1", requestState=state, inputResponses=YES)
        assert text(right) == "refunded True"


async def test_call_whose_worker_cannot_be_reached_still_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise OSError

    shop = Shop()
    async with asyncio.timeout(WAIT), fleet(shop.make) as (one, two):
        asked = await send(one, "buy", "k1")
        state = {"requestState": asked["requestState"], "inputResponses": YES}
        with monkeypatch.context() as broken:
            broken.setattr(two.runtime.services.peers, "deliver", fail)
            unreached = text(await send(two, "buy", "k1", **state))
        assert "can't be reached" in unreached
        assert "is waiting for an answer" in text(await send(one, "buy", "k1"))
        assert text(await send(two, "buy", "k1", **state)) == "bought True"

        def make() -> Server:
            mcp = shop.make()

            @mcp.tool(idempotency=True)
            async def quote(sure: Annotated[bool, Depends(confirm)]) -> None:
                """Fail with the same words."""
                raise ToolError(unreached)

            return mcp

    async with fleet(make) as (one, two):
        asked = await send(one, "quote", "k1")
        state = {"requestState": asked["requestState"], "inputResponses": YES}
        assert text(await send(two, "quote", "k1", **state)) == unreached
        assert REPEATED in text(await send(one, "quote", "k1"))


async def test_repeats_read_the_record_less_and_less_often(monkeypatch: pytest.MonkeyPatch) -> None:
    shop, pauses, sleep = Shop(), list[float](), asyncio.sleep

    async def skip(seconds: float) -> None:
        if is_pause := sys._getframe(1).f_globals["__name__"].endswith("calls.idempotency"):
            pauses.append(seconds)
        await sleep(0 if is_pause else seconds)

    async with asyncio.timeout(WAIT), fleet(shop.make) as workers:
        first = asyncio.create_task(pay(workers[0]))
        await until(lambda: shop.did)
        monkeypatch.setattr(asyncio, "sleep", skip)
        repeat = asyncio.create_task(pay(workers[1]))
        await until(lambda: len(pauses) > 9)
        assert pauses[9] > 4 * pauses[0]
        shop.release.set()
        await asyncio.gather(first, repeat)


async def test_copies_of_an_answer_at_once_get_one_result() -> None:
    shop = Shop()
    async with asyncio.timeout(WAIT), fleet(shop.make, turns=lambda: 5) as (one, two):
        for tool in ("refund", "buy"):
            asked = await send(one, tool, "k1")
            state = {"requestState": asked["requestState"], "inputResponses": YES}
            results = await asyncio.gather(*(send(each, tool, **state) for each in (one, two) * 4))
            assert {text(each).rpartition("\n")[2] for each in results} == {
                "refunded True" if tool == "refund" else "bought True"
            }
    assert shop.did == ["refunded", "asked", "bought"]


async def test_old_answer_does_not_start_the_call_again() -> None:
    shop = Shop()
    async with asyncio.timeout(WAIT), fleet(shop.make) as (one, two):
        asked = await send(one, "refund", "k1")
        state = {"requestState": asked["requestState"], "inputResponses": YES}
        await send(one, "refund", "k1", **state)
        for each in (one, two):
            assert REPEATED in text(await send(each, "refund", **state))
    assert shop.did == ["refunded"]
