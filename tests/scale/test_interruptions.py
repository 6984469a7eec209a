import asyncio
import json
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest

from bad_input.shop import make_shop
from fleet import Bind, Runtime, Worker, fleet, one_worker, settle, until
from millstream import Server, Settings
from millstream._server.calls.services import ServerChange
from millstream.stores import StoreUnavailable
from scale.test_changes import SIGN, listen, tools
from shared_store import SharedStore


def offers(worker: Worker, tool: str = "add") -> bool:
    """Whether it offers a tool."""
    return tool in worker.server.registry.tools


async def test_unsendable_uris_fail_only_their_caller() -> None:
    async with fleet(make_shop, 2) as (first, second):
        stream = await listen(second, resourceSubscriptions=[SIGN])
        with pytest.raises(UnicodeEncodeError):
            await first.server.resource_updated("file:///caf\udce9.txt")
        await first.server.resource_updated(SIGN)
        await stream.until(2)
        stream.close()


async def test_local_clients_do_not_wait_for_an_unreachable_store() -> None:
    async with fleet(make_shop, 2) as (first, _):
        stream = await listen(first, resourceSubscriptions=[SIGN])
        tries = 0

        async def publish(topic: str, data: bytes) -> None:
            nonlocal tries
            tries += 1
            await asyncio.sleep(0.01 if tries == 1 else 86_400)
            raise StoreUnavailable("It's away.")

        first.store.bus.publish = publish
        for number in range(100):
            await first.server.resource_updated(f"shop://other/{number}")
        for count in (2, 3):
            await first.server.resource_updated(SIGN)
            await stream.until(count)
        stream.close()


async def test_failed_announcements_are_sent_after_the_outage() -> None:
    async with fleet(make_shop, 2) as (first, second):
        stream = await listen(second, resourceSubscriptions=[SIGN])
        first.store.down = True
        first.server.disable("resource", SIGN)
        first.server.remove_tool("add")
        await first.server.resource_updated(SIGN)
        await settle()
        first.store.down = False
        await until(lambda: SIGN in second.server.registry.disabled["resources"] and not offers(second))
        await stream.until(2)
        stream.close()


async def test_update_bursts_drop_only_updates() -> None:
    async with fleet(make_shop, 2) as (first, second):
        first.server.disable("tool", "add")
        for number in range(10_100):
            first.server.definition.emit(ServerChange("updated", f"shop://{number}"))
        await until(lambda: not offers(second))


async def test_switches_apply_despite_clock_changes() -> None:
    async with fleet(make_shop, 2) as (first, second):
        real, ahead = first.store.core.time, 900.0
        for each in (first, second):
            each.store.time = lambda: real() + ahead
        first.server.disable("tool", "add")
        await until(lambda: not offers(second))
        ahead = 0.0
        first.server.enable("tool", "add")
        await until(lambda: offers(second))


def make_growing(go: asyncio.Event) -> Callable[[], Server]:
    """Makes a server that registers its only tool once more when it's told to, on each worker."""

    def add(a: int) -> int:
        return a

    @asynccontextmanager
    async def lifespan(server: Server) -> AsyncIterator[None]:
        async def again() -> None:
            await go.wait()
            server.tool(add)

        task = asyncio.create_task(again())
        yield
        task.cancel()

    def make() -> Server:
        server = Server(
            "growing", lifespan=lifespan, settings=Settings(secret_key="a secret of the tests that is long enough")
        )
        server.tool(add)
        return server

    return make


async def test_reregistered_disabled_items_are_not_removed() -> None:
    go = asyncio.Event()
    async with fleet(make_growing(go), 3) as workers:
        workers[0].server.remove_tool("add")
        await until(lambda: not any(map(offers, workers)))
        go.set()
        await until(lambda: all(map(offers, workers)))
        workers[0].server.disable("tool", "add")
        await until(lambda: not any(map(offers, workers)))
        workers[2].store.miss()
        await heard_of(workers[2], workers[1])
        workers[1].server.enable("tool", "add")
        await until(lambda: all(map(offers, workers)))


async def heard_of(worker: Worker, other: Worker) -> None:
    """Wait until a worker that was interrupted has asked what it missed, and the other has answered."""
    other.runtime.replicas._others.clear()
    await until(lambda: bool(other.runtime.replicas.others))
    await settle()


async def test_workers_find_each_other_after_an_interruption() -> None:
    async with fleet(make_shop, 2) as (first, second):
        await until(lambda: first.runtime.shared and second.runtime.shared)
        second.store.sleep()
        await until(lambda: not first.runtime.shared)
        second.store.wake()
        second.store.miss()
        await until(lambda: first.runtime.shared)


async def test_workers_started_during_an_interruption_are_found() -> None:
    shared = SharedStore()
    async with fleet(make_shop, 1, store=shared) as (first,):
        first.store.drops_messages = True
        async with one_worker(make_shop, shared) as second:
            await settle()
            first.store.drops_messages = False
            first.store.miss()
            await until(lambda: first.runtime.shared and second.runtime.shared)


async def test_store_outage_is_reported_as_one_interruption() -> None:
    async with fleet(make_shop, 2) as (first, _):
        stream = await listen(first, resourceSubscriptions=[SIGN])
        first.store.miss()
        first.store.epochs.notify("", b"")
        await stream.until(2)
        await settle()
        assert len(stream.messages) == 2
        stream.close()


async def test_conflicting_switches_converge() -> None:
    async with fleet(make_shop, 2) as workers:
        first, second = workers
        for turns in range(12):
            second.server.disable("tool", "add")
            await until(lambda: not any(map(offers, workers)))
            second.server.enable("tool", "add")
            for _ in range(turns):
                await asyncio.sleep(0)
            thread = threading.Thread(target=first.server.disable, args=("tool", "add"))
            thread.start()
            thread.join()
            await settle()
            assert offers(first) == offers(second), turns
            second.server.enable("tool", "add")
            await until(lambda: all(map(offers, workers)))


async def test_updates_during_a_record_read_are_delivered() -> None:
    async with fleet(make_shop, 2) as (first, second):
        headers = await first.initialize()
        await first.ask("resources/subscribe", {"uri": SIGN}, headers)
        await settle()
        (key,) = await first.store.core.kv.keys("session:")
        watched = dict.fromkeys([SIGN, *(f"shop://{number:0100}" for number in range(100))], "")
        many = {"watched": watched, "changes": 2}
        await first.store.core.kv.put(key, json.dumps(many).encode(), 60)
        second.runtime.services.records.forget()
        real, go = second.store.kv, asyncio.Event()

        class Slow:
            def __getattr__(self, name: str) -> Any:
                async def operation(*given: Any, **named: Any) -> Any:
                    if name == "get" and len(second.runtime.streams):
                        await go.wait()
                    return await getattr(real, name)(*given, **named)

                return operation

        second.store.kv = Slow()
        stream = await second.get(headers)
        await first.server.resource_updated(SIGN)
        await settle()
        go.set()
        assert [each["params"]["uri"] for each in await stream.until(1)] == [SIGN]
        stream.close()


async def test_restarted_runtime_keeps_switches_and_removals() -> None:
    shared, server = SharedStore(), make_shop()
    for round in range(2):
        server.runtimes.record().store = shared.worker()  # type: ignore[assignment]
        async with server.running():
            if round == 0:
                server.disable("resource", SIGN)
                server.remove_tool("add")
            else:
                async with one_worker(make_shop, shared) as late:
                    await until(lambda: SIGN in late.server.registry.disabled["resources"])
                    assert "add" not in await tools(late)


async def test_server_running_in_two_loops_announces_a_switch_once() -> None:
    shared, server = SharedStore(), make_shop()
    async with AsyncExitStack() as stack:
        runtimes = [Runtime(server.definition, shared.worker(), bind=Bind()) for _ in range(2)]  # type: ignore[arg-type]
        for runtime in runtimes:
            await runtime.open()
            stack.push_async_callback(runtime.close)
            server.definition.listeners.add(runtime)
            stack.callback(server.definition.listeners.discard, runtime)
        await settle()
        stores: list[Any] = [runtime.store for runtime in runtimes]
        for store in stores:
            store.operations.clear()
        server.disable("tool", "add")
        await settle(2_000)
        assert [store.operations["publish"] for store in stores] == [1, 1]
