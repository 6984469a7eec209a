"""Redis for tests: servers that a test run starts on free ports, and stores on them."""

import asyncio
import atexit
import inspect
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar
from unittest import mock

import hiredis
import pytest

from millstream._protocol.errors import LocalError
from millstream._stores.base import CoAppend, Store
from millstream._stores.redis.address import parse_address
from millstream._stores.redis.store import RedisStore
from millstream._stores.workers import Leases
from patience import WAIT
from processes import RunState, free_port, kill_with_parent

TTL = 300.0
LEASE = 2.0
"""Seconds: as short as a slow machine can renew it."""


def redis_server() -> str:
    """The program. Where it's missing the test is skipped, in CI it fails."""
    found = shutil.which("redis-server")
    if found is None:
        assert not os.environ.get("CI"), "redis-server is not installed; make test installs it where it may"
        pytest.skip("redis-server is not installed; make test installs it where it may")
    return found


def ask(port: int, *command: str) -> Any:
    """The reply of a server on this machine."""
    with socket.create_connection(("127.0.0.1", port), timeout=WAIT) as peer:
        peer.sendall(hiredis.pack_command(command))  # type: ignore[arg-type]
        reader = hiredis.Reader()
        while (reply := reader.gets()) is False:
            data = peer.recv(65536)
            if not data:
                raise ConnectionError("Redis closed the connection")
            reader.feed(data)
    return reply


def wait_until(true: Callable[[], bool]) -> None:
    """Return once something is true that nobody tells."""
    deadline = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class RedisServer:
    """One server, without a file on disk unless options say so."""

    def __init__(self, *options: str, port: int = 0, before: Sequence[str] = ()) -> None:
        """`before` is a command that runs the server's."""
        assert RunState.may_serve, "A test that starts a server carries the mark `server`."
        self.port = port or free_port()
        self._before = before
        self.options = options
        self._folder = tempfile.TemporaryDirectory(prefix="millstream-redis-")
        self.folder = Path(self._folder.name)
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, again on its port and with its files."""
        command = [
            *self._before, redis_server(), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder),
            "--save", "", "--daemonize", "no", "--loglevel", "warning", *self.options,
        ]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(kill_with_parent(command), stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + WAIT
        while not self.is_healthy():
            assert self.process.poll() is None, (self.folder / "log").read_text("utf-8", "replace")
            assert time.monotonic() < deadline, "Redis did not start"
            time.sleep(0.01)

    def is_healthy(self) -> bool:
        """Whether it answers anything."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=WAIT) as peer:
                peer.sendall(b"PING\r\n")
                return peer.recv(1) != b""
        except OSError:
            return False

    def stop(self) -> None:
        """As kill -9."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self) -> None:
        self.stop()
        self._folder.cleanup()

    def ask(self, *command: str) -> Any:
        """The reply to a command."""
        return ask(self.port, *command)

    def flush(self) -> None:
        self.ask("FLUSHALL")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"


@pytest.fixture(autouse=True)
def long_redis_timeouts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers in the process of a test wait for a Redis that stands still with the machine, for longer than they would.

    A test or file with the mark `impatient` has the wait that ships.
    """
    if request.node.get_closest_marker("impatient") is None:
        for name in ("PATIENCE", "CONNECT_SECONDS", "START_SECONDS"):
            monkeypatch.setattr(f"millstream._stores.redis.client.{name}", WAIT)


async def until(true: Callable[[], Any]) -> None:
    """Return once something is true, which a function says at once or when it's awaited."""
    async with asyncio.timeout(WAIT):
        while not (await found if inspect.isawaitable(found := true()) else found):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def open_with_retries(url: str, lease: float) -> RedisStore:
    """A worker, however often it tries: a server that stands still at this moment isn't one that can't be used."""
    deadline = time.monotonic() + WAIT
    while True:
        store = RedisStore(parse_address(url), lease=lease)
        try:
            await store.open()
        except LocalError:
            assert time.monotonic() < deadline
        else:
            return store


@asynccontextmanager
async def open_worker(url: str, lease: float = LEASE, *, insists: bool = False) -> AsyncIterator[RedisStore]:
    """A worker for the length of the block. Where the test is impatient with Redis, this one `insists`."""
    if insists:
        store = await open_with_retries(url, lease)
    else:
        store = RedisStore(parse_address(url), lease=lease)
        await store.open()
    try:
        yield store
    finally:
        await store.close()


async def warm_up(store: RedisStore) -> None:
    """All scripts are known, and nothing is under way."""
    assert isinstance(store.workers, Leases)
    await store.workers.renew()
    for stream in ("hub:journal", "call:warm:1"):
        await store.log.append(stream, b"warm", ttl=TTL, max_entries=1000)
    await store.members.join("warm", "warm", b"", CoAppend("hub:other", b"", TTL, 10))
    await store.bus.publish("warm", b"")


async def kill(store: Any) -> None:
    """End a worker as kill -9 would: its connections break, and nobody is told."""
    backend = store.backend
    tasks = [*store._tasks, *backend._tasks]
    store._tasks, backend._tasks = [], []
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await backend._client.close()


class Sentinels:
    """A primary, its replica and a Sentinel that watches them, and takes the primary for dead after some seconds."""

    def __init__(self, dead_after: float = 30.0) -> None:
        self.primary = RedisServer("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
        self.replica = RedisServer(
            "--repl-diskless-sync-delay", "0", "--replicaof", "127.0.0.1", str(self.primary.port)
        )
        self.port = free_port()
        conf = self.primary.folder / "sentinel.conf"
        conf.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.primary.folder}\n"
            f"sentinel monitor main 127.0.0.1 {self.primary.port} 1\n"
            f"sentinel down-after-milliseconds main {int(dead_after * 1000)}\nsentinel failover-timeout main 3000\n"
        )
        command = kill_with_parent([redis_server(), str(conf), "--sentinel"])
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(lambda: b"master_link_status:up" in self.replica.ask("INFO", "replication"))
        wait_until(lambda: knows_replica(self.port))
        # After a standstill of its own it decides nothing for 30 s, and `make busy` stops it more often than that.
        ask(self.port, "SENTINEL", "DEBUG", "tilt-period", "1000")

    def is_healthy(self) -> bool:
        return self.primary.is_healthy() and self.replica.is_healthy() and self._process.poll() is None

    def flush(self) -> None:
        self.primary.ask("FLUSHALL")

    def lose_primary(self) -> None:
        """Stop it for good. A Sentinel that stands still with the machine decides half a minute later, and would then
        take a replica that has long been without its primary for too old: this one counts as new.
        """
        self.primary.stop()
        self.replica.ask("REPLICAOF", "NO", "ONE")
        self.replica.ask("REPLICAOF", "127.0.0.1", str(self.primary.port))

    @property
    def url(self) -> str:
        return f"redis+sentinel://127.0.0.1:1,127.0.0.1:{self.port}/main/0"

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self.replica.close()
        self.primary.close()


def knows_replica(port: int) -> bool:
    """Whether a Sentinel could fail over."""
    try:
        return bool(ask(port, "SENTINEL", "REPLICAS", "main"))
    except OSError:
        return False


class Cluster:
    """Three primaries that share the slots, and take each other for dead after some seconds."""

    def __init__(self, dead_after: float = 30.0) -> None:
        self._options = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(int(dead_after * 1000)))
        self.nodes = [RedisServer(*self._options, "--cluster-port", str(free_port())) for _ in range(3)]
        bounds = [0, 5461, 10923, 16384]
        for number, node in enumerate(self.nodes):
            node.ask("CLUSTER", "ADDSLOTSRANGE", str(bounds[number]), str(bounds[number + 1] - 1))
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", str(number + 1))
            bus = node.options[node.options.index("--cluster-port") + 1]
            self.nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", str(node.port), bus)
        for node in self.nodes:
            wait_until(lambda: b"cluster_state:ok" in node.ask("CLUSTER", "INFO"))  # noqa: B023
            wait_until(lambda: len(node.ask("CLUSTER", "SLOTS")) == 3)  # noqa: B023

    def add_replica(self, primary: RedisServer) -> RedisServer:
        """One more node, which takes over when a primary dies."""
        bus = str(free_port())
        node = RedisServer(
            *self._options, "--cluster-port", bus, "--repl-diskless-sync-delay", "0",
            "--cluster-replica-validity-factor", "0",
        )  # fmt: skip
        self.nodes[0].ask("CLUSTER", "MEET", "127.0.0.1", str(node.port), bus)
        owner = primary.ask("CLUSTER", "MYID").decode()
        wait_until(lambda: owner.encode() in node.ask("CLUSTER", "NODES"))
        wait_until(lambda: node.ask("CLUSTER", "REPLICATE", owner) == b"OK")
        wait_until(lambda: b"master_link_status:up" in node.ask("INFO", "replication"))
        for each in self.nodes:
            wait_until(lambda: str(node.port).encode() in each.ask("CLUSTER", "NODES"))  # noqa: B023
        self.nodes.append(node)
        return node

    def is_healthy(self) -> bool:
        return all(node.is_healthy() for node in self.nodes)

    def flush(self) -> None:
        for node in self.nodes:
            node.ask("FLUSHALL")

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:2])

    def close(self) -> None:
        for node in self.nodes:
            node.close()


_SHARED: dict[type[Any], tuple[Any, int]] = {}


def shared_servers(kind: type[Any]) -> Any:
    """Servers for many tests: others after a test has failed, since what that left behind is unknown."""
    servers, failures = _SHARED.get(kind, (None, 0))
    if servers is not None and (failures != RunState.failures or not servers.is_healthy()):
        servers.close()
        servers = None
    if servers is None:
        servers = kind()
        if kind not in _SHARED:
            atexit.register(_close_shared, kind)
        _SHARED[kind] = (servers, RunState.failures)
    return servers


def _close_shared(kind: type[Any]) -> None:
    _SHARED[kind][0].close()


class RedisBacking:
    """One Redis that many tests share, one after the other.

    While it's in use, a server that stands still with the machine is no silent one, and a worker that does is no dead
    one: only one that is killed has a short lease.
    """

    shared: ClassVar[bool] = True
    servers: ClassVar[type[Any]] = RedisServer

    def __init__(self) -> None:
        self._server: Any = None
        self._workers: list[RedisStore] = []
        self._unhurried = mock.patch("millstream._stores.redis.client.SILENCE", WAIT)

    async def worker(self) -> Store:
        if self._server is None:
            self._unhurried.start()
            self._server = shared_servers(self.servers)
            self._server.flush()
        store = await open_with_retries(self._server.url, lease=10 * WAIT)
        self._refresh_workers()
        self._workers.append(store)
        return store

    async def kill(self, store: Any) -> None:
        """Its lease ends soon, as those of workers in production do."""
        store.workers.lease = LEASE
        await store.workers.renew()
        await kill(store)
        asyncio.get_running_loop().call_later(LEASE + 0.1, self._refresh_workers)

    def _refresh_workers(self) -> None:
        """All see who is there: by themselves they would after the part of a lease."""
        for each in self._workers:
            assert isinstance(each.workers, Leases)
            each.workers.hurry()

    async def close(self) -> None:
        for store in self._workers:
            await store.close()
        if self._server is not None:
            self._unhurried.stop()


class SentinelBacking(RedisBacking):
    """Redis as Sentinel names it."""

    servers: ClassVar[type[Any]] = Sentinels


class ClusterBacking(RedisBacking):
    """Redis as a Cluster."""

    servers: ClassVar[type[Any]] = Cluster
