import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any

import pytest

from backend_stores import MemoryStore
from hub_parts import open_hub
from millstream import Server
from millstream._protocol.errors import LocalError
from millstream.hub import Event, Hub, InvalidName
from patience import WAIT
from redis_parts import until
from shared_store import SharedStore
from store_parts import BACKINGS, backings

SHARED = backings(name for name, kind in BACKINGS.items() if kind.shared)


class Program:
    """A program that listens on one worker."""

    def __init__(self, hub: Hub, pattern: str = "orders.*", *, name: str = "", most: int = 10**9) -> None:
        self.data: list[str] = []
        self._task = asyncio.create_task(self._run(hub, pattern, name, most))

    async def _run(self, hub: Hub, pattern: str, name: str, most: int) -> None:
        async with aclosing(hub.listen(pattern, name=name)) as events:
            async for event in events:
                self.data.append(data_of(event))
                if len(self.data) == most:
                    return  # before the event is done

    async def stop(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def ended(self) -> None:
        async with asyncio.timeout(WAIT):
            await self._task


def data_of(event: Event) -> str:
    return (event.data or b"").decode()


@asynccontextmanager
async def two_workers(name: str) -> AsyncIterator[tuple[Any, list[Hub]]]:
    """The hubs of two workers, and the backing that they share."""
    async with AsyncExitStack() as stack:
        backing = BACKINGS[name]()
        stack.push_async_callback(backing.close)
        hubs = []
        for _ in range(2):
            store = await backing.worker()
            hubs.append(await stack.enter_async_context(open_hub(store, clock=store.time)))
        yield backing, hubs


async def position_is_saved(hub: Hub, name: str) -> None:
    """Wait until a listener of this name has begun, so that it gets every later event."""
    from millstream.hub._mailbox import EventListener  # noqa: PLC0415

    key = EventListener(hub._store, "x", name, lambda: True)._position_key
    await until(lambda: _has(hub, key))


async def _has(hub: Hub, key: str) -> bool:
    return await hub._store.kv.get(key) is not None


@pytest.mark.parametrize("name", SHARED)
async def test_two_workers_share_a_named_listeners_events(name: str) -> None:
    async with two_workers(name) as (_, hubs):
        programs = [Program(hub, name="mailer") for hub in hubs]
        await position_is_saved(hubs[0], "mailer")
        for number in range(60):
            await hubs[number % 2].publish("other" if number % 3 else f"orders.{number}", str(number))
            if number == 30:
                await until(lambda: len(programs[0].data) + len(programs[1].data) == 11)
                active = programs[0] if programs[0].data else programs[1]
                await active.stop()
        expected = [str(number) for number in range(0, 60, 3)]
        await until(lambda: len(programs[0].data) + len(programs[1].data) >= len(expected))
        other = next(each for each in programs if each is not active)
        assert active.data + other.data == expected
        await other.stop()


async def test_another_worker_continues_reading_after_a_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.hub._mailbox._LEASE", 0.3)
    monkeypatch.setattr("millstream.hub._mailbox._RETRY", 0.0)
    shared = SharedStore()
    stores: list[Any] = [shared.worker(), shared.worker()]
    for each in stores:
        await each.open()
    async with open_hub(stores[0]) as killed, open_hub(stores[1]) as hub:
        first = Program(killed, name="mailer")
        await position_is_saved(hub, "mailer")
        for number in range(5):
            await hub.publish("orders.7", str(number))
        await until(lambda: len(first.data) == 5)
        stores[0].die()
        second = Program(hub, name="mailer")
        for number in range(5, 9):
            await hub.publish("orders.7", str(number))
        await until(lambda: second.data[-1:] == ["8"])
        assert [each for each in second.data if each != "4"] == ["5", "6", "7", "8"]  # only the last may come again
        await first.stop()
        await second.stop()
    for each in stores:
        await each.close()


async def test_an_unfinished_event_is_delivered_again() -> None:
    async with open_hub() as hub:
        first = Program(hub, name="mailer", most=2)
        await position_is_saved(hub, "mailer")
        for text in ("1", "2", "3"):
            await hub.publish("orders.7", text)
        await first.ended()
        second = Program(hub, name="mailer")
        await until(lambda: len(second.data) == 2)
        assert (first.data, second.data) == (["1", "2"], ["2", "3"])
        await second.stop()


@pytest.mark.parametrize("written", [False, True])
async def test_a_completed_event_is_not_delivered_again_after_a_cancellation(
    written: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = MemoryStore()
    save, saving = store.kv.compare_and_set, asyncio.Event()

    async def save_slowly(key: str, *args: Any) -> bool:
        """Save, but don't return from the first attempt after an event."""
        if not key.startswith("listener:position.") or not first.data or saving.is_set():
            return await save(key, *args)
        if written:
            await save(key, *args)
        saving.set()
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr(store.kv, "compare_and_set", save_slowly)
    async with open_hub(store) as hub:
        first = Program(hub, name="mailer")
        await position_is_saved(hub, "mailer")
        await hub.publish("orders.7", "1")
        async with asyncio.timeout(WAIT):
            await saving.wait()
        await first.stop()
        second = Program(hub, name="mailer")
        await hub.publish("orders.7", "2")
        await until(lambda: "2" in second.data)
        assert (first.data, second.data) == (["1"], ["2"])
        await second.stop()


async def test_events_published_while_no_one_listens_arrive_later() -> None:
    async with open_hub() as hub:
        await hub.publish("orders.7", "before")
        first = Program(hub, name="mailer")
        await position_is_saved(hub, "mailer")
        await first.stop()
        await hub.publish("orders.7", "between")
        second = Program(hub, name="mailer")
        await until(lambda: len(second.data) == 1)
        assert second.data == ["between"]
        await second.stop()


async def test_listeners_without_a_name_get_all_later_events() -> None:
    async with open_hub() as hub:
        await hub.publish("orders.7", "before")
        programs = [Program(hub), Program(hub, "orders.8")]
        marks = 0
        while not all(each.data for each in programs):  # until both have begun
            await hub.publish("orders.8", "mark")
            marks += 1
            await asyncio.sleep(0)
        for channel in ("orders.7", "orders.8", "news"):
            await hub.publish(channel, channel)
        await until(lambda: programs[0].data[-1] == programs[1].data[-1] == "orders.8")
        assert programs[0].data[-2:] == ["orders.7", "orders.8"]
        assert "before" not in programs[0].data
        assert set(programs[1].data) == {"mark", "orders.8"}
        for each in programs:
            await each.stop()


async def test_lost_events_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore()
    async with open_hub(store, journal=2) as hub:
        first = Program(hub, name="mailer")
        await position_is_saved(hub, "mailer")
        await first.stop()
        for number in range(2000):
            await hub.publish("orders.7", str(number))
        with caplog.at_level(logging.WARNING, "millstream.hub"):
            second = Program(hub, name="mailer")
            await until(lambda: second.data[-1:] == ["1999"])
        assert len(second.data) < 2000
        assert "may be missing" in caplog.text
        await second.stop()


async def test_listening_survives_a_store_outage(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("millstream.hub._mailbox._RETRY", 0.0)
    store = MemoryStore()
    read, failures = store.log.read, iter([True, True])

    async def fail_twice(*args: Any, **named: Any) -> Any:
        if next(failures, False):
            raise LocalError("The store didn't answer.")
        return await read(*args, **named)

    async with open_hub(store) as hub:
        program = Program(hub, name="mailer")
        await position_is_saved(hub, "mailer")
        monkeypatch.setattr(store.log, "read", fail_twice)
        await hub.publish("orders.7", "1")
        await until(lambda: program.data == ["1"])
        assert next(failures, False) is False
        await program.stop()


async def test_listening_ends_with_the_hub() -> None:
    async with open_hub() as hub:
        program = Program(hub)
        await asyncio.sleep(0)
    await program.ended()


async def test_reserved_and_invalid_patterns_are_rejected() -> None:
    server = Server("shop", serve="hub")
    async with server.running():
        for pattern in ("$client.>", "a..b", ""):
            with pytest.raises(InvalidName):
                await anext(server.hub.listen(pattern))
