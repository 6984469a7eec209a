import asyncio
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from zlib import crc32

import msgspec
import pytest

import hub_parts
from backend_stores import LocalStore
from cases import for_each
from fleet import until
from hub_parts import Clients, announced
from millstream._protocol.errors import LocalError
from millstream._stores import backend_for, open_store, workers
from millstream._stores.base import Entry, StoreUnavailable
from millstream._stores.local import calls
from millstream._stores.local import server as parent_side
from millstream._stores.local import store as worker_side
from millstream._stores.local.server import LocalServer, run_local_server
from millstream._stores.local.store import LocalBackend
from millstream._stores.memory.store import MemoryBackend, MemoryMap
from millstream._stores.workers import use_parent
from patience import WAIT
from store_parts import TTL, LocalBacking, MessageRecorder, append, read_all, until_workers

STREAM = "hub:journal"


@pytest.fixture
async def backing() -> AsyncIterator[LocalBacking]:
    backing = LocalBacking()
    yield backing
    await backing.close()


# where it is


async def test_local_socket_is_private_and_removed() -> None:
    server = LocalServer(backend_for)
    path = Path(await server.start())
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    await server.close()
    assert not path.parent.exists()


async def test_worker_processes_use_the_store_of_their_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers._ParentConfig, "address", None)
    assert isinstance(open_store("memory://").backend, MemoryBackend)
    async with run_local_server(lambda url: MemoryBackend()) as text:
        use_parent(text)
        one, two = open_store("memory://"), open_store("memory://")
        for store in (one, two):
            assert isinstance(store.backend, LocalBackend)
            await store.open()
        await one.kv.put("key", b"value", TTL)
        assert await two.kv.get("key") == b"value"
        for store in (one, two):
            await store.close()


def test_process_without_a_parent_has_no_parent_address() -> None:
    assert workers.parent_address() is None


async def test_open_errors_reach_the_worker_and_can_be_retried() -> None:
    broken = True

    def make(url: str) -> MemoryBackend:
        if broken:
            raise LocalError(f"{url} is broken.")
        return MemoryBackend()

    server = LocalServer(make)
    store = LocalStore(await server.start(), "memory://")
    with pytest.raises(LocalError, match="memory:// is broken"):
        await store.open()
    broken = False
    await store.open()
    assert await store.kv.get("key") is None
    await store.close()
    await server.close()


async def test_stores_with_different_urls_are_separate() -> None:
    server = LocalServer(lambda url: MemoryBackend())
    at = await server.start()
    one, two = LocalStore(at, "memory://"), LocalStore(at, "sqlite:////else.db")
    for store in (one, two):
        await store.open()
    await one.kv.put("key", b"value", TTL)
    assert await two.kv.get("key") is None
    assert not await two.workers.alive(one.workers.me)
    for store in (one, two):
        await store.close()
    await server.close()


# workers that stand still


async def stop_reading(store: LocalStore) -> None:
    """Stop reading a socket, like a stopped process."""
    transport = store.backend._transport
    assert transport is not None
    transport.pause_reading()


def go_on(store: LocalStore) -> None:
    transport = store.backend._transport
    assert transport is not None
    transport.resume_reading()


async def test_stalled_workers_lose_pushes_but_not_messages(backing: LocalBacking) -> None:
    slow, busy = await backing.worker(), await backing.worker()
    interrupted = asyncio.Event()
    heard, messages, inbox = MessageRecorder(), MessageRecorder(), MessageRecorder()
    slow.log.listen(STREAM, heard, interrupted=interrupted.set)
    slow.bus.subscribe("topic", messages)
    slow.bus.subscribe("inbox", inbox)
    await slow.log.wait_until_listening(STREAM)
    await stop_reading(slow)
    piece = bytes(2**18)
    for n in range(60):
        await append(busy, STREAM, piece)
        await busy.bus.publish("topic", b"%d" % n)
        assert await busy.bus.send(slow.workers.me, "inbox", b"%d" % n)
    (unread,) = [each.unread for each in backing.server.peers if each.worker == slow.workers.me]
    assert unread <= parent_side.PUSH_BYTES + 2 * len(piece)
    assert not interrupted.is_set()
    go_on(slow)
    async with asyncio.timeout(WAIT):
        await interrupted.wait()
    expected = [b"%d" % n for n in range(60)]
    assert await messages.until(b"59") == expected
    assert await inbox.until(b"59") == expected
    assert len(heard.items) < 60
    (last,) = await append(busy, STREAM, b"last")
    await heard.until(Entry(last, b"last"))
    assert len(await read_all(slow, STREAM)) == 61


async def test_stalled_workers_are_notified_of_a_trimmed_stream(backing: LocalBacking) -> None:
    slow, busy = await backing.worker(), await backing.worker()
    interrupted = asyncio.Event()
    slow.log.listen(STREAM, MessageRecorder(), interrupted=interrupted.set)
    await slow.log.wait_until_listening(STREAM)
    await append(busy, "other", *[bytes(2**20)] * 8)
    await append(busy, STREAM, b"trimmed")
    await stop_reading(slow)
    page = asyncio.create_task(slow.log.read("other", None, max_bytes=2**23))
    (own,) = [each for each in backing.server.peers if each.worker == slow.workers.me]
    await until(lambda: own._paused)
    await busy.log.trim(STREAM)
    assert not interrupted.is_set()
    go_on(slow)
    assert len(await page) == 8
    assert await slow.kv.get("key") is None  # its reply follows the notice
    assert interrupted.is_set()


async def test_reconnected_workers_get_a_new_name(backing: LocalBacking) -> None:
    cut, other = await backing.worker(), await backing.worker()
    old = cut.workers.me
    changed, interrupted = asyncio.Event(), asyncio.Event()
    cut.workers.watch(changed.set)
    inbox = MessageRecorder()
    cut.bus.subscribe("inbox", inbox, interrupted=interrupted.set)
    await Clients(cut).join("chat", "ann")
    (peer,) = [each for each in backing.server.peers if each.worker == old]
    peer.abort()

    async def gone() -> bool:
        return not await other.workers.alive(old)

    await until_workers(other, gone)
    await Clients(other).presence.refresh()
    assert await announced(other) == ["join chat ann", "leave chat ann"]
    async with asyncio.timeout(WAIT):
        while cut.workers.me == old:
            await changed.wait()
            changed.clear()
        await interrupted.wait()
    assert not await other.bus.send(old, "inbox", b"void")
    assert await other.bus.send(cut.workers.me, "inbox", b"new")
    assert await inbox.until(b"new") == [b"new"]


@pytest.mark.many
async def test_requests_wait_while_replies_are_unread(backing: LocalBacking) -> None:
    worker = await backing.worker()
    await append(worker, STREAM, *[bytes(2**20)] * 8)
    await stop_reading(worker)
    asks = [asyncio.create_task(worker.log.read(STREAM, None, max_bytes=2**23)) for _ in range(50)]
    (own,) = backing.server.peers
    await until(lambda: own._paused)
    await worker_is_idle(own)
    assert own.unread < 3 * 2**23
    assert own._waiting
    go_on(worker)
    pages = await asyncio.gather(*asks)
    assert [len(page) for page in pages] == [8] * 50


@pytest.mark.many
async def test_busy_workers_do_not_starve_others(backing: LocalBacking, monkeypatch: pytest.MonkeyPatch) -> None:
    greedy, modest = await backing.worker(), await backing.worker()
    asked: list[str] = []
    others: list[asyncio.Future[bytes | None]] = []

    async def get(_values: object, key: str) -> None:
        if not asked:
            others.append(asyncio.ensure_future(modest.kv.get("modest")))
        asked.append(key)

    monkeypatch.setattr(MemoryMap, "get", get)
    await asyncio.gather(*(greedy.kv.get("greedy") for _ in range(50 * parent_side.AT_ONCE)))
    await others[0]
    assert asked.index("modest") < 10 * parent_side.AT_ONCE


async def worker_is_idle(own: parent_side.WorkerConnection) -> None:
    """Run the event loop for a while, in which an unbounded parent would continue."""
    for _ in range(20):
        await asyncio.sleep(0)


# a parent that is gone


async def test_calls_fail_immediately_without_the_parent(backing: LocalBacking) -> None:
    worker = await backing.worker()
    await backing.server.close()
    for _ in range(3):
        with pytest.raises(StoreUnavailable, match="parent"):
            await worker.kv.get("key")
    with pytest.raises(StoreUnavailable):
        await LocalStore(backing.server.address, "memory://").open()


async def test_calls_time_out_when_the_parent_stalls(backing: LocalBacking, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_side, "PATIENCE", 0.05)
    worker = await backing.worker()
    (own,) = backing.server.peers
    assert own._transport is not None
    own._transport.pause_reading()
    with pytest.raises(StoreUnavailable):
        await worker.kv.put("key", b"value", TTL)
    monkeypatch.setattr(worker_side, "PATIENCE", WAIT)
    own._transport.resume_reading()
    assert await worker.kv.get("key") == b"value", "what failed may have been done"


# processes

SUPPORT = Path(hub_parts.__file__).parent
WORKER = """
import asyncio, sys
from millstream._stores import open_store
from millstream._stores.base import StoreUnavailable
from millstream._stores.workers import use_parent

sys.path.append(sys.argv[3])
from hub_parts import Clients

async def main():
    use_parent(sys.argv[2])
    store = open_store("memory://")
    await store.open()
    await Clients(store).join("chat", sys.argv[1])
    store.bus.subscribe("stop", lambda data: print(data.decode(), flush=True))
    print(store.workers.me, flush=True)
    try:
        while True:
            await store.log.append("hub:other", b"x", ttl=300.0, max_entries=100)
            await asyncio.sleep(0.001)
    except StoreUnavailable:
        print("gone", flush=True)

asyncio.run(main())
"""


FORKS = """
import asyncio, os, sys
from millstream._stores.local.store import LocalBackend

async def main():
    backend = LocalBackend(sys.argv[1], "memory://")
    await backend.open()
    child = os.fork()
    if not child:
        os.read(0, 1)
    else:
        print(child, flush=True)
        sys.stdin.readline()
    os._exit(0)

asyncio.run(main())
"""


@pytest.mark.server
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which process has connected")
async def test_worker_is_gone_although_a_process_that_it_forked_still_runs() -> None:
    server = LocalServer(backend_for)
    await server.start()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", FORKS, server.address, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    forked = int(await process.stdout.readline())
    try:
        assert len(server.peers) == 1
        process.kill()
        await until(lambda: not server.peers)
        os.kill(forked, 0)  # it runs
    finally:
        os.kill(forked, signal.SIGKILL)
        await process.communicate()  # its pipes are closed
        await server.close()


async def start(backing: LocalBacking, name: str) -> tuple[asyncio.subprocess.Process, str]:
    """Start a worker process that joins and appends forever. Return its worker name."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, name, backing.server.address, str(SUPPORT), stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(WAIT):
        return process, (await process.stdout.readline()).decode().strip()


@pytest.mark.server
async def test_killed_workers_lose_their_members(backing: LocalBacking) -> None:
    here = await backing.worker()
    process, me = await start(backing, "ann")
    assert await here.workers.alive(me)
    assert await Clients(here).on("chat") == ["ann"]
    process.send_signal(signal.SIGKILL)
    await process.wait()

    async def gone() -> bool:
        return not await here.workers.alive(me)

    await until_workers(here, gone)
    assert not await here.bus.send(me, "stop", b"late")
    await Clients(here).presence.refresh()
    assert await announced(here) == ["join chat ann", "leave chat ann"]


@pytest.mark.server
async def test_paused_workers_keep_their_lease_and_messages(backing: LocalBacking) -> None:
    here = await backing.worker()
    process, me = await start(backing, "ann")
    process.send_signal(signal.SIGSTOP)
    for n in range(100):
        assert await here.bus.send(me, "stop", b"%d" % n)
    process.send_signal(signal.SIGCONT)
    assert process.stdout is not None
    async with asyncio.timeout(WAIT):
        got = [(await process.stdout.readline()).strip() for _ in range(100)]
    assert got == [b"%d" % n for n in range(100)]
    process.kill()
    await process.wait()


@pytest.mark.server
async def test_worker_processes_notice_a_dead_parent(backing: LocalBacking) -> None:
    await backing.worker()
    process, _ = await start(backing, "ann")
    await backing.server.close()
    assert process.stdout is not None
    async with asyncio.timeout(WAIT):
        assert await process.stdout.readline() == b"gone\n"
        await process.wait()


def frame(content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + content


async def test_version_mismatch_with_the_parent_is_explained(backing: LocalBacking) -> None:
    await backing.worker()
    reader, writer = await asyncio.open_unix_connection(backing.server.address)
    writer.write(frame(msgspec.msgpack.encode([[0, 1, calls.VERSION + 1, "memory://"]])))
    async with asyncio.timeout(WAIT):
        length = struct.unpack(">I", await reader.readexactly(4))[0]
        (said,) = calls.read_answers(await reader.readexactly(length))
    assert isinstance(said, calls.StoreFailure)
    assert "a different version" in said.text
    assert "start it again" in said.text
    writer.close()


NONSENSE = {
    "no MessagePack": frame(b"\xc1"),
    "no array": frame(msgspec.msgpack.encode({"a": 1})),
    "an unknown request": frame(msgspec.msgpack.encode([[99, 1]])),
    "a request before hello": frame(msgspec.msgpack.encode([[4, 1, "key"]])),
    "a field of the wrong type": frame(msgspec.msgpack.encode([[0, 1, 1, 7]])),
    "a frame that is too large": struct.pack(">I", calls.MAX_FRAME + 1),
}


@for_each("what", list(NONSENSE))
async def test_invalid_frames_end_only_their_connection(backing: LocalBacking, what: str) -> None:
    worker = await backing.worker()
    reader, writer = await asyncio.open_unix_connection(backing.server.address)
    writer.write(NONSENSE[what])
    async with asyncio.timeout(WAIT):
        assert await reader.read() == b""
    writer.close()
    await worker.kv.put("key", b"value", TTL)
    assert await worker.kv.get("key") == b"value"


async def test_unencodable_names_fail_only_their_caller(backing: LocalBacking) -> None:
    worker = await backing.worker()
    answers = await asyncio.gather(
        worker.kv.put("a", b"1", TTL), worker.kv.get("\ud800"), worker.kv.get("a"), return_exceptions=True
    )
    assert isinstance(answers[1], UnicodeEncodeError)
    assert answers[2] == b"1"


class Outgoing(list[bytes]):
    """A transport that records what is sent."""

    def write(self, data: bytes) -> None:
        self.append(bytes(data))


@for_each("size", [1, 2, 3, 5, 100])
async def test_frames_are_reassembled(size: int) -> None:
    put, connection, sent = calls.calls("kv")["put"], calls.FrameConnection(), Outgoing()
    connection.max_frame = 10_000
    connection.connection_made(sent)  # type: ignore[arg-type]
    for n in range(5):
        for each in range(n + 1):
            connection._write(put.request(each, f"{n}", b"x" * n * 10, 1.0))
        await asyncio.sleep(0)
    data, frames, got = b"".join(sent), calls.Frames(10_000), []
    for start in range(0, len(data), size):
        got.extend(calls.read_requests(content) for content in frames.feed(data[start : start + size]))
    assert [[each.id for each in one] for one in got] == [list(range(n + 1)) for n in range(5)]
    assert got[4][0] == put.request(0, "4", b"x" * 40, 1.0, lossy=False)


def test_version_changes_with_the_calls() -> None:
    shapes = crc32(repr([(each.part, each.name, each.request.__struct_fields__) for each in calls.CALLS]).encode())
    assert (calls.VERSION, shapes) == (8, 591931811), (
        "The calls between workers and their parent process have changed. Raise VERSION in _stores/local/calls.py, and "
        f"write both numbers here: {calls.VERSION + 1}, {shapes}."
    )


OLD = time.time() - 3600


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The parent directory of the folders."""
    place = tmp_path_factory.mktemp("f")
    monkeypatch.setattr("tempfile.tempdir", str(place))
    monkeypatch.setattr(calls, "ELSEWHERE", str(place))
    return place


def left_behind(*, age: float = 3600, beside: Path | None = None) -> Path:
    """Create a socket without a listener, in a folder of its own or beside another one."""
    path = calls.private_socket() if beside is None else beside.with_name("0123456789ab")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    os.utime(path, (time.time() - age,) * 2)
    return path


def start_and_close() -> None:
    """Start a parent and close it properly."""

    async def run() -> None:
        server = LocalServer(backend_for)
        await server.start()
        await server.close()

    asyncio.run(run())


@pytest.mark.server
def test_leftovers_from_a_killed_parent_are_removed(place: Path) -> None:
    program = """
import asyncio, os, signal
from millstream._stores import backend_for
from millstream._stores.local.server import LocalServer

async def main():
    await LocalServer(backend_for).start()
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
    environment = {**os.environ, "TMPDIR": str(place)}
    killed = subprocess.run([sys.executable, "-c", program], env=environment, timeout=WAIT, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = place.iterdir()
    os.utime(left / "store", (OLD, OLD))
    start_and_close()
    assert not list(place.iterdir())


def test_worker_sockets_left_by_a_killed_parent_are_removed(place: Path) -> None:
    left_behind(beside=left_behind())
    new = left_behind(beside=left_behind(), age=0)
    start_and_close()
    assert list(place.iterdir()) == [new.parent]


def test_active_sockets_are_not_removed(place: Path) -> None:
    path = left_behind()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(str(path))
        listener.listen(0)
        os.utime(path, (OLD, OLD))
        first.connect(str(path))
        start_and_close()
        start_and_close()
        assert path.exists()


def test_unrelated_files_are_not_removed(place: Path) -> None:
    new = left_behind(age=0)
    more = left_behind()
    (more.parent / "notes").touch()
    plain = calls.private_socket()
    plain.touch()
    empty = calls.private_socket().parent
    other = left_behind()
    other = other.parent.rename(place / "millstream-other") / other.name
    (place / left_behind().parent.name).rename(moved := place / "elsewhere")
    (place / (other.parent.name.replace("other", "link"))).symlink_to(moved)
    (link := place / f"{calls._PREFIX}link").symlink_to(moved)
    start_and_close()
    assert all(each.exists() for each in (new, more, plain, empty, other, moved / "store", link))
