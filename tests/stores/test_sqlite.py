import asyncio
import itertools
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from backend_stores import SqliteStore
from cases import for_each
from cpu import cpu_seconds_of
from millstream._stores.sqlite.file import locate
from millstream.extensions import LocalError
from millstream.stores import Gap, Index, StoreFull, StoreUnavailable, StreamSealed
from patience import WAIT, Clock
from store_parts import TTL, append, data_of, read_all


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@asynccontextmanager
async def open_sqlite(path: Path, query: str = "", **options: Any) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(locate(f"sqlite:///{path}{query}"), **options)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


# what survives


async def test_acknowledged_data_survives_a_restart(path: Path) -> None:
    index = Index("history:news", TTL, 100)
    async with open_sqlite(path) as store:
        epoch = store.epoch
        await store.kv.put("session:1", b"\0record", TTL)
        await store.kv.put("session:2", b"", TTL)
        await store.kv.delete("session:2")
        positions = await append(store, "hub:journal", b"a", b"", b"\xffc")
        indexed = await store.log.append("hub:journal", b"d", ttl=TTL, max_entries=1000, index=index)
        await store.log.append("call:1", b"end", ttl=TTL, max_entries=10, seal=True)
        before = await read_all(store, "hub:journal")
    async with open_sqlite(path) as store:
        assert store.epoch == epoch
        assert await store.kv.get_many(["session:1", "session:2"]) == [b"\0record", None]
        assert await store.kv.keys("") == ["session:1"]
        assert await read_all(store, "hub:journal") == before
        assert data_of(await store.log.read("hub:journal", positions[1])) == [b"\xffc", b"d"]
        assert [entry.position for entry in await store.log.read(index.stream, None)] == [indexed]
        with pytest.raises(StreamSealed):
            await append(store, "call:1", b"late")
        (more,) = await append(store, "hub:journal", b"e")
        assert more.offset == indexed.offset + 1


async def test_forgotten_streams_never_reuse_positions_after_a_restart(path: Path) -> None:
    async with open_sqlite(path) as store:
        old = await append(store, "call:1", b"a", b"b")
        await store.log.trim("call:1")
    async with open_sqlite(path) as store:
        new = await append(store, "call:1", b"c", b"d", b"e")
        assert new[0].offset > old[-1].offset + 1
        with pytest.raises(Gap):
            await store.log.read("call:1", old[0])


async def test_dropped_positions_are_reported_as_a_gap_after_a_restart(path: Path) -> None:
    async with open_sqlite(path) as store:
        positions = await append(store, "hub:journal", *(b"%d" % n for n in range(500)), max_entries=3)
    async with open_sqlite(path) as store:
        assert data_of(await read_all(store, "hub:journal")) == [b"497", b"498", b"499"]
        with pytest.raises(Gap) as gap:
            await store.log.read("hub:journal", positions[0])
        assert gap.value.newest == positions[-1]


async def test_time_to_live_continues_while_the_file_is_closed(path: Path) -> None:
    clock = Clock(1_000_000.0)
    async with open_sqlite(path, clock=clock) as store:
        await store.kv.put("short", b"", 10.0)
        await store.kv.put("long", b"", 100.0)
        await store.log.append("call:short", b"a", ttl=10.0, max_entries=9)
        await store.log.append("call:touched", b"b", ttl=10.0, max_entries=9)
        assert await store.log.touch("call:touched", 100.0)
    clock.now += 50.0
    async with open_sqlite(path, clock=clock) as store:
        assert await store.kv.keys("") == ["long"]
        assert await store.log.read("call:short", None) == []
        assert data_of(await store.log.read("call:touched", None)) == [b"b"]
    clock.now += 100.0
    async with open_sqlite(path, clock=clock) as store:
        assert await store.kv.get("long") is None
        await append(store, "hub:journal", b"")  # now and then, changes drop what has ended
        await store.kv.put("other", b"", TTL)
    assert rows(path, "SELECT name FROM streams") == [("hub:journal",)]
    assert rows(path, "SELECT key FROM items") == [("other",)]


async def test_eviction_order_survives_a_restart(path: Path) -> None:
    async with open_sqlite(path, max_value_bytes=10_000) as store:
        for name in ("a", "b", "c", "a"):
            await store.kv.put(f"debt:{name}", bytes(2_000), TTL, lossy=True)
    async with open_sqlite(path, max_value_bytes=10_000) as store:
        for name in ("d", "e"):
            await store.kv.put(f"debt:{name}", bytes(2_000), TTL, lossy=True)
        assert await store.kv.get("debt:b") is None
        assert await store.kv.get("debt:a") is not None
        with pytest.raises(StoreFull):
            await store.kv.put("debt:x", bytes(10_000), TTL, lossy=True)


async def test_sqlite_file_size_is_bounded(path: Path) -> None:
    async with open_sqlite(path, max_log_bytes=100_000) as store:
        for n in range(300):
            await append(store, f"call:{n % 7}", bytes(1_000), max_entries=50)
            await append(store, "hub:journal", bytes(2_000))
            await store.kv.put(f"s:{n % 5}", b"%d" % n, TTL)
            if n % 50 == 0:
                await store.log.trim(f"call:{n % 7}")
    assert rows(path, "SELECT stream, count(*) FROM entries GROUP BY stream") == rows(
        path, "SELECT id, entries FROM streams ORDER BY id"
    )
    kinds = rows(path, "SELECT kind, sum(size) FROM streams GROUP BY kind")
    assert {kind for kind, _ in kinds} == {"call", "hub"}
    assert all(size <= 100_000 for _, size in kinds)
    async with open_sqlite(path, max_log_bytes=50_000) as store:
        await append(store, "hub:journal", b"")
        assert 0 < len(await read_all(store, "hub:journal")) < 30, "a smaller bound holds from the next append on"


@for_each("kind", ["lossy", "refused", "log"])
async def test_writes_to_a_full_store_do_not_read_all_of_it(tmp_path: Path, kind: str) -> None:
    async def write(store: SqliteStore, owner: str, start: int, count: int) -> None:
        for number in range(start, start + count):
            name = f"{kind}:~{owner}.{number}"
            if kind == "log":
                await append(store, name, bytes(2_000))
                continue
            with suppress(StoreFull):
                await store.kv.put(name, bytes(2_000), TTL, lossy=kind == "lossy")

    async def cost(room: int) -> float:
        limits = {"max_value_bytes": room, "max_log_bytes": room}
        async with open_sqlite(tmp_path / f"{kind}{room}.db", **limits) as store:
            fits = room // 2_000
            await asyncio.gather(*(write(store, "ada", number * 10, 10) for number in range(fits // 20)))
            await asyncio.gather(*(write(store, "eve", number * 10, 10) for number in range(fits // 10)))
            numbers = itertools.count(fits, 30)
            return await cpu_seconds_of(lambda: write(store, "eve", next(numbers), 30))

    assert await cost(8 * 1024 * 1024) < 4 * await cost(512 * 1024)


def rows(path: Path, select: str) -> list[Any]:
    database = sqlite3.connect(path)
    try:
        return database.execute(select).fetchall()
    finally:
        database.close()


async def test_recreated_files_have_a_new_epoch(path: Path) -> None:
    async with open_sqlite(path) as store:
        epoch = store.epoch
    path.unlink()  # noqa: ASYNC240
    await store.open()  # a closed store may be opened again
    assert store.epoch != epoch
    assert len(store.epoch) <= 16
    await store.close()


# what nobody may see yet


async def test_uncommitted_data_is_not_visible(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_sqlite(path) as store:
        commits = HeldUp(store, monkeypatch)
        heard: list[bytes] = []
        store.log.listen("hub:journal", lambda entry: heard.append(entry.data))
        writes = asyncio.gather(append(store, "hub:journal", b"new"), store.kv.put("key", b"new", TTL))
        await commits.begun()
        reads = [
            asyncio.ensure_future(each)
            for each in (store.log.read("hub:journal", None), store.log.newest("hub:journal", 1), store.kv.get("key"))
        ]
        assert not any(each.done() for each in (*reads, writes))
        assert heard == []
        commits.go_on.set()
        await writes
        assert heard == [b"new"]
        assert [data_of(await reads[0]), data_of(await reads[1]), await reads[2]] == [[b"new"], [b"new"], b"new"]


class HeldUp:
    """A store whose commits block in the writer's thread."""

    def __init__(self, store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
        self._loop = asyncio.get_running_loop()
        self._began = asyncio.Event()
        self._transact = store.backend._file.transact
        self.go_on = threading.Event()
        monkeypatch.setattr(store.backend._file, "transact", self._hold)

    def _hold(self, work: Any) -> None:
        self._loop.call_soon_threadsafe(self._began.set)
        assert self.go_on.wait(WAIT)
        self._transact(work)

    async def begun(self) -> None:
        """Wait until a commit is blocked."""
        async with asyncio.timeout(WAIT):
            await self._began.wait()


async def test_waiting_writes_share_one_commit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_sqlite(path, "?durability=full") as store:
        commits: list[Any] = []
        transact = store.backend._file.transact
        monkeypatch.setattr(store.backend._file, "transact", lambda work: (commits.append(work), transact(work)))
        await asyncio.gather(*(append(store, "hub:journal", b"%d" % n) for n in range(1000)))
        assert len(commits) == 1
        assert len(await read_all(store, "hub:journal")) == 1000


async def test_closed_store_does_not_touch_the_file(path: Path) -> None:
    store = SqliteStore(locate(f"sqlite:///{path}"))
    await store.open()
    await store.close()
    async with open_sqlite(path) as another:
        with pytest.raises(StoreUnavailable, match="closed"):
            await append(store, "hub:journal", b"late")
        await append(another, "hub:journal", b"a")
        assert data_of(await read_all(another, "hub:journal")) == [b"a"]


# who may have it


async def test_file_is_readable_only_by_its_owner(path: Path) -> None:
    path.parent.chmod(0o755)
    before = os.umask(0)
    try:
        async with open_sqlite(path) as store:
            await append(store, "hub:journal", b"a")
            files = sorted(path.parent.iterdir())
            assert path in files
            assert {stat.S_IMODE(each.stat().st_mode) for each in files} == {0o600}
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o755


@pytest.mark.server
async def test_second_process_is_rejected_with_a_fix(path: Path) -> None:
    async with open_sqlite(path) as store:
        await append(store, "hub:journal", b"a")
        with pytest.raises(LocalError, match="in use") as error:
            await SqliteStore(locate(f"sqlite:///{path}")).open()
        assert "--workers" in str(error.value)
        assert "redis://" in str(error.value)
        program = (
            "import asyncio, sys\nfrom millstream._stores import open_store\n"
            "asyncio.run(open_store(sys.argv[1]).open())"
        )
        other = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", program, f"sqlite:///{path}"], capture_output=True, check=False
        )
        assert other.returncode == 1
        assert b"--workers" in other.stderr
        await append(store, "hub:journal", b"b")
    async with open_sqlite(path) as store:
        assert data_of(await read_all(store, "hub:journal")) == [b"a", b"b"]
