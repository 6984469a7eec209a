import asyncio
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from backend_stores import LocalStore, MemoryStore, SqliteStore
from cases import for_each
from fleet import until
from millstream import _troubles
from millstream._protocol.errors import LocalError
from millstream._server.peers import Peers
from millstream._stores import backend_for
from millstream._stores.base import Entry, Gap, StoreFull, StoreUnavailable
from millstream._stores.health import StoreHealth
from millstream._stores.local.server import LocalServer
from millstream._stores.sqlite import store
from millstream._stores.sqlite.file import locate
from millstream._stores.store import Store
from millstream._stores.tail import Tail
from millstream._troubles import LogOnce, Trouble, Troubles, merge_troubles, run_on
from patience import WAIT, Clock
from store_parts import DictBacking, LocalBacking, append, data_of

STREAM = "hub:journal"


class Values:
    """Values that can fail or block."""

    def __init__(self) -> None:
        self.asked = 0
        self.failure: BaseException | None = None
        self.silent = False

    async def get(self, key: str) -> bytes | None:
        """See `Map.get`."""
        self.asked += 1
        if self.silent:
            await asyncio.Event().wait()
        if self.failure is not None:
            raise self.failure
        return None


def health_of(values: Values, **options: Any) -> StoreHealth:
    """Return the health of a store with these values."""
    store: Any = MemoryStore()
    store.kv = values
    return StoreHealth("memory", store, **options)


@pytest.mark.parametrize("failure", [LocalError("gone"), ConnectionRefusedError("refused"), TimeoutError()])
async def test_failing_store_is_down_until_it_responds(failure: Exception, caplog: pytest.LogCaptureFixture) -> None:
    values, clock = Values(), Clock()
    health = health_of(values, clock=clock)
    assert health.up
    for failing, up in ((None, True), (failure, False), (failure, False), (None, True)):
        values.failure = failing
        clock.now += 1
        assert await health.look() == health.up == up
    first, last = caplog.messages
    assert first.startswith("The store doesn't respond: ")
    assert last.startswith("The store responds again. It failed 2 times since ")


async def test_store_that_does_not_respond_is_down(caplog: pytest.LogCaptureFixture) -> None:
    values = Values()
    values.silent = True
    assert await health_of(values, bound=0.0).look() is False
    assert caplog.messages == ["The store doesn't respond: no answer within 0 s"]


async def test_health_checks_query_the_store_once_a_second() -> None:
    values, clock = Values(), Clock()
    health = health_of(values, clock=clock)
    assert await asyncio.gather(*(health.look() for _ in range(100))) == [True] * 100
    assert values.asked == 1
    clock.now += 1
    await health.look()
    assert values.asked == 2


async def test_repeated_work_ends_even_if_a_library_swallows_its_cancellation() -> None:
    requested, works = asyncio.Event(), asyncio.Event()
    requested.set()

    async def work() -> None:
        works.set()
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    repeated = asyncio.create_task(run_on(requested, work, LogOnce(None, "down", "up")))
    await works.wait()
    repeated.cancel()
    await asyncio.wait([repeated], timeout=WAIT)
    assert repeated.done()


async def test_full_file_degrades_the_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "PAUSE", 0.0)
    url = f"sqlite:///{tmp_path}/store.db"
    parent = LocalServer(backend_for)
    worker = LocalStore(await parent.start(), url)
    await worker.open()
    (peer,) = parent.peers
    backend: Any = peer.backend
    looks = [StoreHealth("sqlite", each, bound=WAIT, clock=count().__next__) for each in (backend, worker)]
    assert [await each.look() for each in looks] == [True, True]
    file = backend._file._database
    pages = file.execute("PRAGMA page_count").fetchone()[0]
    file.execute(f"PRAGMA max_page_count={pages + 20}")
    with pytest.raises(StoreFull):
        await append(worker, "hub:journal", bytes(500_000))
    assert [await each.look() for each in looks] == [False, False]
    assert "can't grow" in await worker.degraded_reason()
    file.execute("PRAGMA max_page_count=1000000")
    await append(worker, "hub:journal", b"fits")
    assert [await each.look() for each in looks] == [True, True]
    await worker.close()
    await parent.close()


async def test_repeated_work_survives_any_error_and_logs_each_cause_once(caplog: pytest.LogCaptureFixture) -> None:
    requested, done, calls = asyncio.Event(), asyncio.Event(), count()
    requested.set()
    failures = [ValueError("odd"), ValueError("odd"), StoreUnavailable("down"), KeyError("seq"), None, OSError(5, "x")]

    async def work() -> None:
        number = next(calls)
        if number >= len(failures):
            done.set()
        elif (failure := failures[number]) is not None:
            raise failure
        else:
            requested.set()

    outage = LogOnce(None, "It can't be read; retrying", "It can be read again.")
    repeated = asyncio.create_task(run_on(requested, work, outage, pause=0.0))
    async with asyncio.timeout(WAIT):
        await done.wait()
    repeated.cancel()
    await asyncio.wait([repeated], timeout=WAIT)
    assert [each.getMessage().partition(" It failed")[0] for each in caplog.records] == [
        "It can't be read; retrying: ValueError",
        "It can't be read; retrying: KeyError",
        "It can be read again.",
        "It can't be read; retrying: x",
        "It can be read again.",
    ]
    assert [each.exc_info is not None for each in caplog.records] == [True, True, False, False, False]


def test_lasting_failure_is_logged_when_it_begins_each_hour_and_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    clock, table = Clock(), Troubles()
    clock.now = 1e9
    outage = LogOnce(table, "It can't be read", "It can be read.", remedy="Fix it.")
    outage.clock = clock
    for seconds in range(0, 7200, 60):
        clock.now = 1e9 + seconds
        with outage:
            raise StoreUnavailable(f"no answer, {seconds}")
    assert table.describe() == [Trouble("It can't be read", 1e9, 120, "no answer, 7140", "Fix it.")]
    assert [each.partition(" (")[0].partition(":")[0] for each in caplog.messages] == ["It can't be read"] * 2
    assert "(61 failures since " in caplog.messages[1]
    with outage:
        pass
    assert caplog.messages[2].startswith("It can be read. It failed 120 times since ")
    assert table.describe() == [] and len(caplog.messages) == 3  # noqa: PT018


def test_troubles_of_workers_are_merged() -> None:
    one, other = Trouble("a", 5, 2, "x", "y"), Trouble("a", 3, 4, "z", "y")
    assert merge_troubles([[one], [other, Trouble("b", 1, 1, "", "")]]) == [
        Trouble("b", 1, 1, "", ""),
        Trouble("a", 3, 6, "x", "y"),
    ]


async def test_callers_get_unexpected_errors() -> None:
    outage = LogOnce(None, "down", "up")
    with pytest.raises(ZeroDivisionError), outage:
        raise ZeroDivisionError
    assert not outage.lasts


def failing_once(work: Callable[..., Any], error: Exception) -> Callable[..., Any]:
    """Return an async function that raises an error the first time."""
    failures = [error]

    async def run(*args: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return await work(*args, **options)

    return run


@for_each("read", ["pushed", "read"])
async def test_entry_that_cannot_be_processed_is_a_loss_and_later_ones_arrive(read: str, tmp_path: Path) -> None:
    backing = DictBacking()
    stores: list[Store] = [
        MemoryStore(),
        SqliteStore(locate(f"sqlite:///{tmp_path}/{read}.db")),
        await backing.worker(),
    ]
    for each in stores[:2]:
        await each.open()
    for each in stores:
        taken: list[Entry] = []
        gaps: list[Gap] = []

        def take(entries: Any, taken: list[Entry] = taken) -> None:
            if any(entry.data == b"poison" for entry in entries):
                raise ZeroDivisionError("poison")
            taken.extend(entries)

        tail = Tail(each.log, Troubles(), STREAM, None, take, gaps.append)
        if read == "pushed":
            await append(each, STREAM, b"first")
            await tail.catch_up()
            tail.start()
        async with asyncio.timeout(WAIT):  # without this, the writers of SQLite waited forever
            await append(each, STREAM, b"poison")
        if read == "read":
            tail.start()
            await until(lambda gaps=gaps: gaps)
        await append(each, STREAM, b"last")
        await until(lambda taken=taken: b"last" in data_of(taken))
        assert len(gaps) == 1
        await tail.close()
    for each in stores[:2]:
        await each.close()
    await backing.close()


async def test_listener_that_fails_does_not_keep_writers_waiting(tmp_path: Path) -> None:
    file = SqliteStore(locate(f"sqlite:///{tmp_path}/store.db"))
    await file.open()

    def hear(entry: Entry) -> None:
        raise ZeroDivisionError

    file.log.listen(STREAM, hear)
    async with asyncio.timeout(WAIT):
        await asyncio.gather(*(append(file, STREAM, b"x") for _ in range(20)))
        await append(file, STREAM, b"y")
    await file.close()


async def test_checks_of_dead_workers_outlive_an_unexpected_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_troubles, "PAUSE", 0.0)
    backing = DictBacking()
    store = await backing.worker()
    peers, looks = Peers(store, [b"secret"]), list[None]()

    async def look() -> None:
        looks.append(None)
        if len(looks) == 1:
            raise ZeroDivisionError("a check")

    peers.on_workers(look)
    peers.open()
    await backing.worker()
    await until(lambda: len(looks) >= 2)
    await backing.worker()
    seen = len(looks)
    await until(lambda: len(looks) > seen)
    assert "a check" in caplog.text
    await peers.close()
    await backing.close()


async def test_lease_is_renewed_after_an_unexpected_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_troubles, "PAUSE", 0.0)
    backing = DictBacking()
    store, other = await backing.worker(), await backing.worker()
    workers: Any = store.workers
    renewed = asyncio.Event()
    renew = workers._backend.bind

    async def bind(name: str) -> None:
        await renew(name)
        renewed.set()

    monkeypatch.setattr(workers._backend, "bind", failing_once(bind, KeyError("leases")))
    workers.hurry()
    async with asyncio.timeout(WAIT):
        await renewed.wait()
    assert await other.workers.alive(workers.me)
    await backing.close()


async def test_workers_reconnect_to_their_parent_after_an_unexpected_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    backing = LocalBacking()
    store = await backing.worker()
    backend: Any = store.backend
    monkeypatch.setattr(backend, "_connect", failing_once(backend._connect, TypeError("odd reply")))
    backend._transport.abort()
    await until(lambda: "odd reply" in caplog.text and backend._transport is not None)
    async with asyncio.timeout(WAIT):
        await append(store, STREAM, b"x")
    await backing.close()
