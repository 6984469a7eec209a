import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from bad_input.shop import make_shop
from fleet import EventStream, Worker, fleet, one_worker, settle, until
from millstream import Server, Settings
from millstream.extensions import LocalError
from shared_store import SharedStore
from wire import POST, per_request, routing

SIGN = "shop://sign"


async def listen(worker: Worker, **wanted: object) -> EventStream:
    """An open `subscriptions/listen`."""
    message = per_request("subscriptions/listen", {"notifications": wanted})
    stream = EventStream(await worker.post(message, routing("subscriptions/listen")))
    await stream.until(1)
    return stream


async def tools(worker: Worker) -> set[str]:
    """The names of the tools that a worker lists."""
    reply = await worker.ask("tools/list", {}, POST)
    return {each["name"] for each in reply["result"]["tools"]}


async def test_every_worker_sends_an_update_once() -> None:
    async with fleet(make_shop, 3) as workers:
        streams = [await listen(each, resourceSubscriptions=[SIGN]) for each in workers]
        await workers[1].server.resource_updated(SIGN)
        await workers[1].server.resource_updated("shop://other")
        for stream in streams:
            assert (await stream.until(2))[1]["params"]["uri"] == SIGN
        await settle()
        assert [len(stream.messages) for stream in streams] == [2, 2, 2]
        for stream in streams:
            stream.close()


async def test_bursts_of_updates_are_coalesced() -> None:
    async with fleet(make_shop, turns=lambda: 5) as (first, second):
        stream = await listen(second, resourceSubscriptions=[SIGN])
        first.store.operations.clear()
        for _ in range(1_000):
            await first.server.resource_updated(SIGN)
        await stream.until(2)
        await settle()
        assert first.store.operations["publish"] <= 2
        stream.close()


async def test_removal_applies_to_every_worker() -> None:
    async with fleet(make_shop, 3) as workers:
        streams = [await listen(each, toolsListChanged=True) for each in workers]
        workers[0].server.remove_tool("add")
        for worker, stream in zip(workers, streams, strict=True):
            assert (await stream.until(2))[1]["method"] == "notifications/tools/list_changed"
            assert "add" not in await tools(worker)
        await settle()
        assert [len(stream.messages) for stream in streams] == [2, 2, 2], "each worker tells its own clients once"
        for stream in streams:
            stream.close()


async def test_later_workers_learn_of_removals() -> None:
    shared = SharedStore()
    async with fleet(make_shop, 2, store=shared) as (first, second):
        first.server.remove_tool("add")
        first.server.remove_resource(SIGN)
        await until(lambda: "add" not in second.server.registry.tools)
        async with one_worker(make_shop, shared) as late:
            await until(lambda: SIGN not in late.server.registry.resources)
            assert "add" not in await tools(late)


async def test_removals_from_mounted_servers_apply_to_every_worker() -> None:
    def make_street() -> Server:
        street = Server("street", settings=Settings(secret_key="a secret of the tests that is long enough"))
        street.mount(make_shop(), prefix="shop")
        street.mounted_shop = street.definition.mounted[0]  # type: ignore[attr-defined]
        return street

    async with fleet(make_street) as (first, second):
        first.server.mounted_shop.remove("tools", "add")  # type: ignore[attr-defined]
        await until(lambda: "shop_add" not in second.server.registry.tools)


async def test_adding_while_several_workers_run_is_rejected() -> None:
    async with fleet(make_shop) as (first, _):

        def late() -> str:
            return "late"

        for add in (first.server.tool, first.server.prompt, first.server.resource("shop://late")):
            with pytest.raises(LocalError, match="one worker only"):
                add(late)
        with pytest.raises(LocalError, match="one worker only"):
            first.server.mount(make_shop(), prefix="second")
        assert "late" not in first.server.registry.tools
    first.server.tool(late)


async def test_registration_on_one_of_several_workers_is_explained() -> None:

    def make() -> Server:
        server = Server("growing")

        @server.tool
        async def grow() -> str:
            @server.tool
            async def grown() -> str:
                return "grown"

            return "done"

        return server

    async with fleet(make) as (first, _):
        result = (await first.ask("tools/call", {"name": "grow", "arguments": {}}, POST))["result"]
        assert result["isError"]
        assert "'grown' would be registered on one worker only" in result["content"][0]["text"]


async def test_single_worker_may_add_items_and_later_workers_warn(
    caplog: pytest.LogCaptureFixture,
) -> None:
    shared = SharedStore()

    def late() -> str:
        return "late"

    async with fleet(make_shop, 1, store=shared) as (first,):
        first.server.tool(late)
        assert "late" in await tools(first)
        async with one_worker(make_shop, shared) as second:
            await until(lambda: first.runtime.shared and second.runtime.shared)
            assert "without the items that this one registered while running: late" in caplog.text
            with pytest.raises(LocalError, match="one worker only"):
                first.server.tool(late, name="later")  # type: ignore[call-overload]
            await second.die()
        await until(lambda: not first.runtime.shared)
        first.server.remove_tool("late")
        first.server.tool(late)


async def test_switches_apply_to_every_current_and_later_worker() -> None:
    shared = SharedStore()
    async with fleet(make_shop, 2, store=shared) as (first, second):
        first.server.disable("tool", "add")
        first.server.disable("resource", SIGN)
        await until(lambda: SIGN in second.server.registry.disabled["resources"])
        assert "add" not in await tools(second)
        second.server.enable("tool", "add")
        await until(lambda: "add" in first.server.registry.tools)
        async with one_worker(make_shop, shared) as late:
            await until(lambda: SIGN in late.server.registry.disabled["resources"])
            assert "add" in await tools(late)


async def test_workers_may_add_the_same_items() -> None:
    go = asyncio.Event()

    def make_growing() -> Server:
        @asynccontextmanager
        async def lifespan(server: Server) -> AsyncIterator[None]:
            def early() -> str:
                return "early"

            def late() -> str:
                return "late"

            async def grow() -> None:
                await go.wait()
                server.tool(late)

            server.tool(early)
            task = asyncio.create_task(grow())
            yield
            task.cancel()

        return Server(
            "growing", lifespan=lifespan, settings=Settings(secret_key="a secret of the tests that is long enough")
        )

    async with fleet(make_growing) as workers:
        streams = [await listen(each, toolsListChanged=True) for each in workers]
        go.set()
        for worker, stream in zip(workers, streams, strict=True):
            await stream.until(2)
            assert await tools(worker) == {"early", "late"}
        await settle()
        assert [len(stream.messages) for stream in streams] == [2, 2]
        for stream in streams:
            stream.close()


async def test_updates_right_after_a_remote_subscription_are_delivered() -> None:
    async with fleet(make_shop, 2, turns=lambda: 20) as (first, second):
        headers = await first.initialize()
        stream = await second.get(headers)
        await settle()
        await first.ask("resources/subscribe", {"uri": SIGN}, headers)
        await second.server.resource_updated(SIGN)
        assert (await stream.until(1))[0]["params"] == {"uri": SIGN}
        await settle()
        assert len(stream.messages) == 1
        stream.close()


async def test_unsendable_updates_are_delivered_locally() -> None:
    async with fleet(make_shop, 2) as (first, _):
        stream = await listen(first, resourceSubscriptions=[SIGN])
        first.store.down = True
        await first.server.resource_updated(SIGN)
        assert (await stream.until(2))[1]["params"]["uri"] == SIGN
        first.store.down = False
        stream.close()


async def test_watchers_are_notified_after_an_interruption() -> None:
    async with fleet(make_shop, 2) as (first, second):
        headers = await first.initialize()
        await first.ask("resources/subscribe", {"uri": SIGN}, headers)
        alone = await second.get(headers)
        listening = await listen(second, resourceSubscriptions=[SIGN, "shop://other"])
        await settle()
        second.store.drops_messages = True
        await first.server.resource_updated(SIGN)
        await settle()
        second.store.drops_messages = False
        second.store.miss()
        assert [each["params"]["uri"] for each in (await listening.until(3))[1:]] == ["shop://other", SIGN]
        assert [each["params"]["uri"] for each in await alone.until(1)] == [SIGN]
        await settle()
        assert (len(listening.messages), len(alone.messages)) == (3, 1)
        alone.close()
        listening.close()


async def test_changes_during_an_interruption_are_applied_later() -> None:
    async with fleet(make_shop, 3) as (first, second, third):
        third.store.drops_messages = True
        first.server.remove_tool("add")
        first.server.disable("resource", SIGN)
        await until(lambda: SIGN in second.server.registry.disabled["resources"])
        assert SIGN in third.server.registry.resources
        third.store.drops_messages = False
        third.store.miss()
        await until(lambda: SIGN in third.server.registry.disabled["resources"])
        assert "add" not in await tools(third)


async def test_switches_from_an_interrupted_worker_reach_the_others() -> None:
    async with fleet(make_shop, 2) as (first, second):
        first.store.down = True
        first.server.disable("resource", SIGN)
        await settle()
        first.store.down = False
        assert SIGN in second.server.registry.resources
        first.store.miss()
        await until(lambda: SIGN in second.server.registry.disabled["resources"])


async def test_last_switch_wins_over_late_messages() -> None:
    shared = SharedStore()
    async with fleet(make_shop, 3, store=shared) as (first, second, third):
        first.server.disable("tool", "add")
        await until(lambda: "add" not in third.server.registry.tools)
        third.store.drops_messages = True
        second.server.enable("tool", "add")
        await until(lambda: "add" in first.server.registry.tools)
        third.store.drops_messages = False
        async with one_worker(make_shop, shared) as late:  # told of both
            await settle()
            assert all("add" in each.server.registry.tools for each in (first, second, third, late))
        for _ in range(5):
            first.server.disable("tool", "add")
            second.server.enable("tool", "add")
            await settle()
            assert len({"add" in each.server.registry.tools for each in (first, second, third)}) == 1
