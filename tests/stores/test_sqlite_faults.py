"""The store in a file when the disk is full, fails or can't be written, and when the process is killed: what was
acknowledged is there, what wasn't has an error, and the store goes on.
"""

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from millstream._protocol.errors import LocalError
from millstream._stores.base import Entry, StoreFull, StoreUnavailable, Told
from millstream._stores.sqlite import commits
from millstream._stores.sqlite.location import locate
from millstream._stores.sqlite.store import SqliteStore
from millstream._stores.sqlite.wal import lost_commits
from store_parts import TTL, append, data_of, read_all

CYCLES = int(os.environ.get("STORE_CYCLES", "4"))
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
    return store._saved.file._database


async def fill(store: SqliteStore, kept: list[Entry]) -> None:
    """Append until it fails; `kept` gets what was acknowledged."""
    for n in range(1000):
        data = b"%d" % n + bytes(5000)
        kept.append(Entry((await append(store, "hub:journal", data))[0], data))


async def test_a_full_file_refuses_and_keeps_what_it_has_and_goes_on_when_there_is_room(
    store: SqliteStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The contract of `StoreFull`: nothing was changed."""
    monkeypatch.setattr(commits, "PAUSE", 0.0)
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
        await store.members.join("chat", "ann", b"", Told("hub:journal", bytes(200_000), TTL, 1000))
    assert await store.members.present("chat") == []
    assert await read_all(store, "hub:journal") == kept
    assert heard == data_of(kept)
    assert await store.kv.get("s:old") == b"old"
    database(store).execute("PRAGMA max_page_count=1000000")
    (position,) = await append(store, "hub:journal", b"again")
    assert position.offset == kept[-1].position.offset + 1, "dense: nobody saw what failed"
    await store.close()
    await store.open()
    assert await read_all(store, "hub:journal") == [*kept, Entry(position, b"again")]


async def test_a_file_that_cannot_be_written_anymore_is_a_store_that_is_away(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fixed defect: it was another error than any that a store may give, and callers made an internal error of it."""
    monkeypatch.setattr(commits, "PAUSE", 0.0)
    await append(store, "hub:journal", b"a")
    database(store).execute("PRAGMA query_only=1")
    with pytest.raises(StoreUnavailable, match="can't be written"):
        await append(store, "hub:journal", b"b")
    assert data_of(await store.log.read("hub:journal", None)) == [b"a"]
    await append(store, "hub:journal", b"c")
    assert data_of(await store.log.read("hub:journal", None)) == [b"a", b"c"]


async def test_a_full_disk_is_not_asked_again_by_every_caller(store: SqliteStore) -> None:
    """Our choice: for a second, changes fail at once; reads go on."""
    await append(store, "hub:journal", b"a")
    tries = 0

    def fails(changes: object) -> None:
        nonlocal tries
        tries += 1
        raise StoreFull("It is full.")

    write, store._saved.file.write = store._saved.file.write, fails  # type: ignore[method-assign]
    for _ in range(100):
        with pytest.raises(StoreFull):
            await append(store, "hub:journal", b"b")
        assert data_of(await store.log.read("hub:journal", None)) == [b"a"]
    assert tries < 100
    store._saved.file.write = write  # type: ignore[method-assign]


async def test_after_a_commit_that_failed_memory_is_what_is_in_the_file(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is in doubt is read again, all kinds of changes among it."""
    monkeypatch.setattr(commits, "PAUSE", 0.0)
    await append(store, "hub:journal", b"a", b"b")
    await append(store, "call:1", b"trimmed")
    for key in ("s:kept", "s:deleted", "s:replaced"):
        await store.kv.put(key, b"old", TTL)
    before = await read_all(store, "hub:journal")
    write = store._saved.file.write

    def fails(changes: object) -> None:
        store._saved.file.write = write  # type: ignore[method-assign]
        raise StoreUnavailable("The disk failed.")

    store._saved.file.write = fails  # type: ignore[method-assign,assignment]
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


async def test_what_a_failed_commit_left_in_the_file_is_found_by_those_who_follow(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The contract of `EventLog.append`: one that failed may have been added, and then it's an entry like any other."""
    monkeypatch.setattr(commits, "PAUSE", 0.0)
    (first,) = await append(store, "hub:journal", b"a")
    write = store._saved.file.write

    def fails(changes: Any) -> None:
        store._saved.file.write = write  # type: ignore[method-assign]
        write(changes)
        raise StoreUnavailable("Nobody knows.")

    store._saved.file.write = fails  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await append(store, "hub:journal", b"b")
    assert data_of(await store.log.read("hub:journal", first)) == [b"b"]
    (third,) = await append(store, "hub:journal", b"c")
    assert third.offset == first.offset + 2


async def test_a_file_that_cannot_be_opened_again_fails_all_until_it_can(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reads, too: what is in memory isn't what was acknowledged."""
    monkeypatch.setattr(commits, "PAUSE", 0.0)
    await append(store, "hub:journal", b"a")
    file, gone = store._saved.file, True
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
        with pytest.raises(StoreUnavailable, match="Look at the disk"):
            await store.log.read("hub:journal", None)
    gone = False
    assert data_of(await store.log.read("hub:journal", None)) == [b"a"]
    await append(store, "hub:journal", b"c")
    assert data_of(await store.log.read("hub:journal", None)) == [b"a", b"c"]


# processes


def writer(path: Path, *options: str, query: str = "") -> list[str]:
    """The command of a process that appends, and prints what was acknowledged."""
    return [sys.executable, str(WRITER), f"sqlite:///{path}{query}", *options]


def acknowledged(lines: bytes) -> list[tuple[int, bytes]]:
    """(offset, data) that the writer printed once it had the acknowledgement."""
    whole = lines[: lines.rfind(b"\n") + 1]
    return [(at, data.encode()) for at, data in map(json.loads, whole.splitlines())]


def killed(command: list[str], after: int) -> bytes:
    """What a process printed that was killed after so many lines."""
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


def held(sure: dict[int, bytes], found: dict[int, bytes]) -> dict[int, bytes]:
    """What must be there. After many cycles the stream has its largest size, and the oldest entries go."""
    oldest = min(found)
    assert oldest <= min(sure) or len(found) > 250_000
    return {at: data for at, data in sure.items() if at >= oldest}


@pytest.mark.server
@pytest.mark.parametrize("synchronous", ["normal", "full"])
async def test_nothing_that_was_acknowledged_is_lost_by_kill_9(path: Path, synchronous: str) -> None:
    """Our promise for both settings; one file lives through many deaths."""
    chance = random.Random(7)
    sure: dict[int, bytes] = {}
    for cycle in range(CYCLES):
        if not cycle % OF_ONE_FILE:
            path, sure = path.with_name(f"{cycle}.db"), {}
        command = writer(path, str(cycle), "1000000000", query=f"?synchronous={synchronous}")
        new = dict(acknowledged(await asyncio.to_thread(killed, command, chance.randrange(1, 2000))))
        assert new
        assert not new.keys() & sure.keys(), "no position twice"
        sure |= new
        found = await in_file(path)
        assert held(sure, found).items() <= found.items()


@pytest.mark.server
@pytest.mark.parametrize("call", ["fdatasync", "pwrite64"])
async def test_nothing_that_was_acknowledged_is_lost_when_the_disk_fails(path: Path, call: str) -> None:
    """Our promise for `full`: an error of the disk is an error for whoever waits, and the store goes on."""
    strace = shutil.which("strace")
    if strace is None:
        assert "CI" not in os.environ, "install strace"
        pytest.skip("strace isn't installed (make test installs it where it may)")
    chance = random.Random(7)
    failures = 0
    sure: dict[int, bytes] = {}
    for cycle in range(CYCLES):
        if not cycle % OF_ONE_FILE:
            path, sure = path.with_name(f"{cycle}.db"), {}
        first, every = chance.randrange(20, 60), chance.randrange(5, 40)
        inject = f"inject={call}:error=EIO:when={first}+{every}"
        wrapper = [strace, "-f", "-qq", "-e", f"trace={call}", "-e", inject, "-o", str(path.with_suffix(".trace"))]
        command = wrapper + writer(path, str(cycle), "150", query="?synchronous=full")
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()
        failures += int(done.stderr or b"0")
        new = dict(acknowledged(done.stdout))
        assert not new.keys() & sure.keys(), "no position twice"
        sure |= new
        found = await in_file(path)
        assert held(sure, found).items() <= found.items()
    assert failures


@pytest.mark.server
async def test_a_limit_on_the_size_of_files_is_an_error_and_no_end_of_the_process(path: Path) -> None:
    """As `ulimit -f` and some containers set it."""
    command = writer(path, "0", "300", "5000", "--file-size", "2000000")
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert int(done.stderr) > 0
    found = {at: data.rstrip(b".") for at, data in (await in_file(path)).items()}
    assert dict(acknowledged(done.stdout)).items() <= found.items()


@pytest.mark.server
@pytest.mark.skipif(os.name != "posix", reason="files of another user are a matter of POSIX")
@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_cannot_be_written_is_named(what: str) -> None:
    """Mostly a volume that is mounted read-only, or made by another user."""
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
        assert "the user of this process" in done.stderr.decode()
        assert path.read_bytes() == before


async def _make(path: Path) -> None:
    store = SqliteStore(locate(f"sqlite:///{path}"))
    await store.open()
    await append(store, "hub:journal", b"a")
    await store.close()


async def test_a_store_that_failed_to_open_can_be_opened_later(path: Path) -> None:
    """The contract of `Store.open`."""
    path.write_bytes(b"no database at all, and long enough to have a header, had it one: " * 20)  # noqa: ASYNC240
    store = SqliteStore(locate(f"sqlite:///{path}"))
    with pytest.raises(LocalError):
        await store.open()
    path.unlink()  # noqa: ASYNC240
    await store.open()
    await append(store, "hub:journal", b"a")
    await store.close()


@pytest.mark.server
@pytest.mark.parametrize("where", ["in a page", "in the head of a frame", "nowhere"])
async def test_what_a_damaged_log_has_lost_is_told_to_whoever_resumes(path: Path, where: str) -> None:
    """A fixed defect: SQLite forgets all that is behind the damage, and the places of it meant something else later."""
    sure = acknowledged(await asyncio.to_thread(killed, writer(path, "0", "1000000"), 1500))
    log = path.with_name("store.db-wal")
    content = bytearray(log.read_bytes())
    frame = 32 + (len(content) // (4096 + 24)) // 2 * (4096 + 24)
    if where != "nowhere":
        at = frame + (8 if where == "in the head of a frame" else 2000)
        content[at : at + 4] = bytes(each ^ 0xFF for each in content[at : at + 4])
        log.write_bytes(content)
    before = lost_commits(path)
    store = SqliteStore(locate(f"sqlite:///{path}"))
    await store.open()
    found = await read_all(store, "hub:journal")
    if where == "nowhere":
        assert not before
        assert len(found) >= len(sure)
        assert store.epoch.encode() in content
    else:
        assert before
        assert len(found) < len(sure)
        assert store.epoch.encode() not in content, "who reads on behind a place of the old one gets a gap"
    await store.close()
