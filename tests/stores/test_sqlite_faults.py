import asyncio
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from backend_stores import SqliteStore
from cases import for_each
from millstream._protocol.errors import LocalError
from millstream._stores.base import Entry, StoreFull, StoreUnavailable
from millstream._stores.sqlite import file as sqlite_file
from millstream._stores.sqlite import store as sqlite_writer
from millstream._stores.sqlite.file import locate
from programs import require_program
from property_settings import NIGHTLY
from store_parts import TTL, append, data_of, read_all

CYCLES = int(os.environ.get("STORE_CYCLES", "30" if NIGHTLY else "2"))
"""Of kill -9 and of failing synchronization; `make chaos` does 200."""
OF_ONE_FILE = 20
"""Cycles that one file lives through: each failure reads all of it, so a file for all of them would take hours."""
WRITER = Path(__file__).with_name("sqlite_writer.py")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    store = SqliteStore(locate(f"sqlite:///{path}"))
    await store.open()
    yield store
    await store.close()


def database(store: SqliteStore) -> Any:
    return store.backend._file._database


async def fill(store: SqliteStore, kept: list[Entry]) -> None:
    """Append until it fails, and collect acknowledged entries in `kept`."""
    for n in range(1000):
        data = b"%d" % n + bytes(5000)
        kept.append(Entry((await append(store, "hub:journal", data))[0], data))


async def test_full_file_rejects_writes_and_recovers(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_writer, "PAUSE", 0.0)
    heard: list[bytes] = []
    store.log.listen("hub:journal", lambda entry: heard.append(entry.data))
    await store.kv.put("s:old", b"old", TTL)
    pages = database(store).execute("PRAGMA page_count").fetchone()[0]
    database(store).execute(f"PRAGMA max_page_count={pages + 20}")
    kept: list[Entry] = []
    with pytest.raises(StoreFull, match=r"store.db can't grow"):
        await fill(store, kept)
    with pytest.raises(StoreFull):
        await store.kv.put("s:old", bytes(200_000), TTL)
    with pytest.raises(StoreFull):
        await append(store, "hub:other", bytes(200_000))
    assert await read_all(store, "hub:journal") == kept
    assert heard == data_of(kept)
    assert await store.kv.get("s:old") == b"old"
    database(store).execute("PRAGMA max_page_count=1000000")
    (position,) = await append(store, "hub:journal", b"again")
    assert position.offset == kept[-1].position.offset + 1, "dense: nobody saw what failed"
    await store.close()
    await store.open()
    assert await read_all(store, "hub:journal") == [*kept, Entry(position, b"again")]


async def test_failures_are_logged_when_they_begin_and_when_they_end(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sqlite_writer, "PAUSE", 0.0)
    database(store).execute(f"PRAGMA max_page_count={database(store).execute('PRAGMA page_count').fetchone()[0] + 5}")
    for _ in range(3):
        with pytest.raises(StoreFull):
            await append(store, "hub:other", bytes(200_000))
        await store.kv.put("s:small", b"fits", TTL)
    (full,) = caplog.records
    assert "can't grow: the disk is full" in full.getMessage()
    database(store).execute("PRAGMA max_page_count=1000000")
    monkeypatch.setattr(sqlite_file, "_CALM_SECONDS", 0.0)
    for _ in range(2):
        await append(store, "hub:other", bytes(200_000))
    assert [each.getMessage() for each in caplog.records[1:]] == [f"{path} can be written again."]


async def test_unwritable_file_is_an_outage(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_writer, "PAUSE", 0.0)
    await append(store, "hub:journal", b"a")
    database(store).execute("PRAGMA query_only=1")
    with pytest.raises(StoreUnavailable, match="can't be written"):
        await append(store, "hub:journal", b"b")
    await append(store, "hub:journal", b"c")
    assert data_of(await store.log.read("hub:journal", None)) == [b"a", b"c"]


async def test_full_disk_is_not_retried_by_every_caller(store: SqliteStore) -> None:
    await append(store, "hub:journal", b"a")
    tries = 0

    def fails(work: object) -> None:
        nonlocal tries
        tries += 1
        raise StoreFull("It is full.")

    transact, store.backend._file.transact = store.backend._file.transact, fails  # type: ignore[method-assign]
    for _ in range(100):
        with pytest.raises(StoreFull):
            await append(store, "hub:journal", b"b")
        assert data_of(await store.log.read("hub:journal", None)) == [b"a"]
    assert tries < 100
    store.backend._file.transact = transact  # type: ignore[method-assign]


async def test_failed_commits_change_nothing(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_writer, "PAUSE", 0.0)
    await append(store, "hub:journal", b"a", b"b")
    await append(store, "call:1", b"trimmed")
    for key in ("s:kept", "s:deleted", "s:replaced"):
        await store.kv.put(key, b"old", TTL)
    before = await read_all(store, "hub:journal")
    transact = store.backend._file.transact

    def fails(work: object) -> None:
        store.backend._file.transact = transact  # type: ignore[method-assign]
        raise StoreUnavailable("The disk failed.")

    store.backend._file.transact = fails  # type: ignore[method-assign,assignment]
    done = await asyncio.gather(
        append(store, "hub:journal", b"c"),
        append(store, "call:new", b"x"),
        store.log.append("call:1", b"sealed", ttl=TTL, max_entries=10, seal=True),
        store.log.trim("call:1"),
        store.kv.put("s:replaced", b"new", TTL),
        store.kv.delete("s:deleted"),
        store.kv.compare_and_set("s:made", None, b"new", TTL),
        return_exceptions=True,
    )
    assert [type(each) for each in done] == [StoreUnavailable] * 7
    assert await read_all(store, "hub:journal") == before
    assert data_of(await read_all(store, "call:1")) == [b"trimmed"]
    assert await store.log.read("call:new", None) == []
    assert await store.kv.get_many(["s:kept", "s:deleted", "s:replaced", "s:made"]) == [b"old", b"old", b"old", None]
    (third,) = await append(store, "hub:journal", b"third")
    assert third.offset == before[-1].position.offset + 1
    await store.close()
    await store.open()
    assert data_of(await read_all(store, "hub:journal")) == [b"a", b"b", b"third"]


async def test_followers_find_data_from_a_failed_commit(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_writer, "PAUSE", 0.0)
    (first,) = await append(store, "hub:journal", b"a")
    transact = store.backend._file.transact

    def fails(work: Any) -> None:
        store.backend._file.transact = transact  # type: ignore[method-assign]
        transact(work)
        raise StoreUnavailable("Nobody knows.")

    store.backend._file.transact = fails  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await append(store, "hub:journal", b"b")
    assert data_of(await store.log.read("hub:journal", first)) == [b"b"]
    (third,) = await append(store, "hub:journal", b"c")
    assert third.offset == first.offset + 2


async def test_unopenable_file_fails_until_it_recovers(store: SqliteStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_writer, "PAUSE", 0.0)
    await append(store, "hub:journal", b"a")
    file, gone = store.backend._file, True
    connect = file._connect

    def fails() -> None:
        if gone:
            raise OSError(5, "Input/output error")
        connect()

    monkeypatch.setattr(file, "_connect", fails)
    file.drop()
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await append(store, "hub:journal", b"b")
        with pytest.raises(StoreUnavailable, match="Check the disk"):
            await store.log.read("hub:journal", None)
    gone = False
    assert data_of(await store.log.read("hub:journal", None)) == [b"a"]
    await append(store, "hub:journal", b"c")
    assert data_of(await store.log.read("hub:journal", None)) == [b"a", b"c"]


# processes


def writer(path: Path, *options: str, query: str = "") -> list[str]:
    """Return the command of a process that appends and prints acknowledged entries."""
    return [sys.executable, str(WRITER), f"sqlite:///{path}{query}", *options]


def acknowledged_entries(lines: bytes) -> list[tuple[int, bytes]]:
    """Return (offset, data) of each acknowledged entry that the writer printed."""
    whole = lines[: lines.rfind(b"\n") + 1]
    return [(at, data.encode()) for at, data in map(json.loads, whole.splitlines())]


def run_and_kill(command: list[str], after: int) -> bytes:
    """Run a process, kill it after a number of lines, and return its output."""
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        lines = b"".join(process.stdout.readline() for _ in range(after))
        process.send_signal(signal.SIGKILL)
        return lines + process.stdout.read()


async def in_file(path: Path) -> dict[int, bytes]:
    store = SqliteStore(locate(f"sqlite:///{path}"))
    await store.open()
    entries = await read_all(store, "hub:journal")
    assert [each.position.offset for each in entries] == list(
        range(entries[0].position.offset, entries[0].position.offset + len(entries))
    )
    assert len({each.data for each in entries}) == len(entries), "nothing is there twice"
    await store.close()
    return {each.position.offset: each.data for each in entries}


def expected_entries(sure: dict[int, bytes], found: dict[int, bytes]) -> dict[int, bytes]:
    """Return the entries that must exist. After many cycles, the full stream has dropped the oldest ones."""
    oldest = min(found)
    assert oldest <= min(sure) or len(found) > 250_000
    return {at: data for at, data in sure.items() if at >= oldest}


@pytest.mark.server
@pytest.mark.parametrize("durability", ["normal", "full"])
async def test_kill_9_loses_no_acknowledged_data(path: Path, durability: str) -> None:
    chance = random.Random(7)
    sure: dict[int, bytes] = {}
    for cycle in range(CYCLES):
        if not cycle % OF_ONE_FILE:
            path, sure = path.with_name(f"{cycle}.db"), {}
        command = writer(path, str(cycle), "1000000000", query=f"?durability={durability}")
        new = dict(acknowledged_entries(await asyncio.to_thread(run_and_kill, command, chance.randrange(1, 2000))))
        assert new
        assert not new.keys() & sure.keys(), "no position twice"
        sure |= new
        found = await in_file(path)
        assert expected_entries(sure, found).items() <= found.items()


def fails_while_opening(trace: str, call: str) -> bool:
    """Return whether the first call after the file was opened again has failed."""
    opened = False
    for line in trace.splitlines():
        if '.db", O_RDWR' in line:
            opened = True
        elif call in line:
            if opened and "(INJECTED)" in line:
                return True
            opened = False
    return False


@pytest.mark.server
@pytest.mark.parametrize("call", ["fdatasync", "pwrite64"])
async def test_disk_failure_loses_no_acknowledged_data(path: Path, call: str) -> None:
    strace = require_program("strace")
    chance = random.Random(7)
    failures = while_opening = 0
    sure: dict[int, bytes] = {}
    for cycle in range(CYCLES):
        if not cycle % OF_ONE_FILE:
            path, sure = path.with_name(f"{cycle}.db"), {}
        first, every = chance.randrange(40, 80), chance.randrange(5, 40)  # the file exists by then
        # Each second time, several calls in a row fail, among them those that open the file again.
        when = f"{first}..{first + every % 8 + 5}" if cycle % 2 else f"{first}+{every}"
        inject, trace = f"inject={call}:error=EIO:when={when}", path.with_suffix(".trace")
        wrapper = [strace, "-f", "-qq", "-e", f"trace={call},openat", "-e", inject, "-o", str(trace)]
        command = wrapper + writer(path, str(cycle), "150", query="?durability=full")
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        failures += int(done.stderr or b"0")
        while_opening += fails_while_opening(trace.read_text(), call)
        new = dict(acknowledged_entries(done.stdout))
        assert not new.keys() & sure.keys(), "no position twice"
        sure |= new
        found = await in_file(path)
        assert expected_entries(sure, found).items() <= found.items()
    assert failures
    assert while_opening


class FullDisk(sqlite3.Connection):
    """A connection on a disk without space for the write-ahead log."""

    def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
        if "wal_checkpoint" in sql:
            full = sqlite3.OperationalError("database or disk is full")
            full.sqlite_errorname = "SQLITE_FULL"
            raise full
        return super().execute(sql, *args)


async def test_full_volume_with_a_large_wal_can_be_opened(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    await _make(path)
    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=FullDisk))
    store = SqliteStore(locate(f"sqlite:///{path}"))
    await store.open()
    assert data_of(await read_all(store, "hub:journal")) == [b"a"]
    await append(store, "hub:journal", b"b")
    await store.close()


@pytest.mark.server
async def test_full_volume_is_reported_as_an_error_until_it_recovers(path: Path) -> None:
    command = writer(path, "0", "300", "5000", "--file-size", "2000000", "--more-room")
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stderr) > 0
    found = {at: data.rstrip(b".") for at, data in (await in_file(path)).items()}
    assert dict(acknowledged_entries(done.stdout)).items() <= found.items()


@pytest.mark.server
@pytest.mark.skipif(os.name != "posix", reason="files of another user are a matter of POSIX")
@for_each("what", ["file", "folder"])
def test_unwritable_files_are_reported(what: str) -> None:
    with tempfile.TemporaryDirectory(prefix="millstream-") as folder:
        path = Path(folder) / "store.db"
        asyncio.run(_make(path))
        before = path.read_bytes()
        path.chmod(0o444 if what == "file" else 0o666)
        Path(folder).chmod(0o777 if what == "file" else 0o555)
        nobody = ["--nobody"] if os.getuid() == 0 else []
        done = subprocess.run(writer(path, "0", "1", *nobody), capture_output=True, check=False)
        Path(folder).chmod(0o700)
        assert done.returncode == 1
        assert f"{path} can't be " in done.stderr.decode()
        assert "this process's user" in done.stderr.decode()
        assert path.read_bytes() == before


async def _make(path: Path) -> None:
    store = SqliteStore(locate(f"sqlite:///{path}"))
    await store.open()
    await append(store, "hub:journal", b"a")
    await store.close()


async def test_failed_open_can_be_retried(path: Path) -> None:
    path.write_bytes(b"no database at all, and long enough to have a header, had it one: " * 20)  # noqa: ASYNC240
    store = SqliteStore(locate(f"sqlite:///{path}"))
    with pytest.raises(LocalError):
        await store.open()
    path.unlink()  # noqa: ASYNC240
    await store.open()
    await append(store, "hub:journal", b"a")
    await store.close()


# the file is deleted, moved, or replaced


def move_away(path: Path, *, copy: bool) -> Path:
    """Move the file and return its new path. A copy can stay in its place."""
    kept = path.with_name("kept")
    path.rename(kept)
    if copy:
        path.write_bytes(kept.read_bytes())
    return kept


def move_back(kept: Path, path: Path, *, there: bool) -> None:
    """Move the file back, over anything in its place."""
    assert path.exists() == there, "nobody has made an empty one meanwhile"
    kept.replace(path)


def copy_files(path: Path, to: Path) -> None:
    """Copy the database and its log."""
    for end in ("", "-wal"):
        to.with_name(to.name + end).write_bytes(path.with_name(path.name + end).read_bytes())


@pytest.mark.parametrize("how", ["deleted", "replaced"])
async def test_deleted_file_rejects_writes(
    store: SqliteStore, path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_writer, "PAUSE", 0.0)
    (before,) = await append(store, "hub:journal", b"before")
    await store.kv.put("s:a", b"a", TTL)
    kept = move_away(path, copy=how == "replaced")
    for _ in range(2):
        with pytest.raises(StoreUnavailable, match=r"store\.db was deleted, moved, or replaced while"):
            await append(store, "hub:journal", b"refused")
        with pytest.raises(StoreUnavailable):
            await store.kv.put("s:a", b"refused", TTL)
        assert data_of(await read_all(store, "hub:journal")) == [b"before"]
        assert await store.kv.get("s:a") == b"a"
    move_back(kept, path, there=how == "replaced")
    (after,) = await append(store, "hub:journal", b"after")
    assert after.offset == before.offset + 1
    await store.close()
    await store.open()
    assert data_of(await read_all(store, "hub:journal")) == [b"before", b"after"]
    assert store.epoch == before.epoch


async def test_deleted_wal_is_recreated(
    store: SqliteStore, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_writer, "PAUSE", 0.0)
    (before,) = await append(store, "hub:journal", b"before")
    path.with_name("store.db-wal").unlink()
    with pytest.raises(StoreUnavailable, match=r"store\.db-wal was deleted"):
        await append(store, "hub:journal", b"refused")
    assert data_of(await read_all(store, "hub:journal")) == [b"before"], "whoever reads waits until it's mended"
    (after,) = await append(store, "hub:journal", b"after")
    assert after.offset == before.offset + 1
    copy_files(path, tmp_path / "copy.db")  # as kill -9 leaves them
    copy = SqliteStore(locate(f"sqlite:///{tmp_path}/copy.db"))
    await copy.open()
    try:
        assert data_of(await read_all(copy, "hub:journal")) == [b"before", b"after"]
    finally:
        await copy.close()
