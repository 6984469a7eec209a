"""Redis servers for tests, on free ports, and stores on them."""

import asyncio
import atexit
import inspect
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

from hub_parts import Clients
from millstream._protocol.errors import LocalError
from millstream._stores.redis.address import RedisAddress, parse_address
from millstream._stores.redis.store import RedisBackend
from millstream._stores.store import Store
from millstream._stores.workers import LeasedWorker
from patience import WAIT
from processes import RunState, free_port, kill_with_parent
from programs import require_program

TTL = 300.0
LEASE = 2.0
"""Seconds. As short as a slow machine allows."""


class RedisStore(Store):
    """A store in Redis, for tests that reach into its backend."""

    backend: RedisBackend

    def __init__(self, address: RedisAddress, **options: Any) -> None:
        """Take the arguments of `RedisBackend`."""
        super().__init__(RedisBackend(address, **options))


def redis_server() -> str:
    """Return the path of redis-server. If it's missing, skip the test."""
    return require_program("redis-server")


def ask(port: int, *command: str) -> Any:
    """Send a command to a local server and return its reply."""
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
    """Poll until a condition is true."""
    deadline = time.monotonic() + WAIT
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class RedisServer:
    """One Redis server, without persistence unless options enable it."""

    def __init__(self, *options: str, port: int = 0, prefix: Sequence[str] = ()) -> None:
        """`prefix` precedes the server's command."""
        self.port = port or free_port()
        self._command = [*prefix, redis_server()]  # skips the test before anything is open
        self.options = options
        self._folder = tempfile.TemporaryDirectory(prefix="millstream-redis-")
        self.folder = Path(self._folder.name)
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start the server. After `stop`, it has the same port and files."""
        command = [
            *self._command, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder),
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
        """Return whether the server answers."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=WAIT) as peer:
                peer.sendall(b"PING\r\n")
                return peer.recv(1) != b""
        except OSError:
            return False

    def stop(self) -> None:
        """Kill the server with SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def close(self) -> None:
        self.stop()
        self._folder.cleanup()

    def ask(self, *command: str) -> Any:
        """Send a command and return its reply."""
        return ask(self.port, *command)

    def flush(self) -> None:
        self.ask("FLUSHALL")

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}"


@pytest.fixture(autouse=True)
def long_redis_timeouts(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise the Redis timeouts of workers in the test process, in case the machine freezes.

    Tests with the mark `impatient` use the default timeouts.
    """
    if request.node.get_closest_marker("impatient") is None:
        for name in ("PATIENCE", "EXCHANGE_SECONDS", "CONNECT_SECONDS", "START_SECONDS"):
            monkeypatch.setattr(f"millstream._stores.redis.client.{name}", WAIT)


async def until(true: Callable[[], Any]) -> None:
    """Poll until a condition is true. It may be async."""
    async with asyncio.timeout(WAIT):
        while not (await found if inspect.isawaitable(found := true()) else found):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def open_with_retries(url: str, lease: float) -> RedisStore:
    """Open a store, retrying while Redis is unreachable, as on a frozen machine."""
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
async def open_worker(url: str, lease: float = LEASE) -> AsyncIterator[RedisStore]:
    """Open a store for the length of the block."""
    store = RedisStore(parse_address(url), lease=lease)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


async def warm_up(store: RedisStore) -> None:
    """Load all scripts, and wait until nothing is pending."""
    assert isinstance(store.workers, LeasedWorker)
    await store.workers.renew()
    for stream in ("hub:journal", "call:warm:1"):
        await store.log.append(stream, b"warm", ttl=TTL, max_entries=1000)
    await Clients(store).join("warm", "warm")
    await store.bus.publish("warm", b"")


async def kill(store: Any) -> None:
    """Break a worker's connections without cleanup, like kill -9."""
    backend = store.backend
    tasks = [store.workers._run_task, *backend._tasks]
    store.workers._run_task, backend._tasks = None, []
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await backend._client.close()


class Sentinels:
    """A primary, its replica, and a Sentinel. The primary counts as down after `dead_after` seconds."""

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
        # After a freeze, Sentinel stays in TILT mode for 30 s, and `make busy` freezes it more often than that.
        ask(self.port, "SENTINEL", "DEBUG", "tilt-period", "1000")

    def is_healthy(self) -> bool:
        return self.primary.is_healthy() and self.replica.is_healthy() and self._process.poll() is None

    def flush(self) -> None:
        self.primary.ask("FLUSHALL")

    def lose_primary(self) -> None:
        """Stop the primary for good, and reset the replica's disconnection time.

        On a slow machine, Sentinel may decide so late that it would reject the replica as outdated.
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
    """Return whether a Sentinel has found the replica, so it could fail over."""
    try:
        return bool(ask(port, "SENTINEL", "REPLICAS", "main"))
    except OSError:
        return False


class Cluster:
    """A cluster of three primaries. A node counts as down after `dead_after` seconds."""

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
        """Add a replica that takes over when its primary dies."""
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
    """Return servers that tests share. They're replaced after a failed test or if they're unhealthy."""
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
    """One Redis that tests share, one after the other.

    Timeouts are long, so a frozen machine doesn't look like a silent server or a dead worker. Only killed workers have
    a short lease.
    """

    shared: ClassVar[bool] = True
    servers: ClassVar[type[Any]] = RedisServer

    def __init__(self) -> None:
        self._server: Any = None
        self._workers: list[RedisStore] = []
        self._silence_patch = mock.patch("millstream._stores.redis.client.SILENCE", WAIT)

    async def worker(self) -> Store:
        if self._server is None:
            self._silence_patch.start()
            self._server = shared_servers(self.servers)
            self._server.flush()
        store = await open_with_retries(self._server.url, lease=10 * WAIT)
        self._refresh_workers()
        self._workers.append(store)
        return store

    async def kill(self, store: Any) -> None:
        """Kill a worker, with a short lease as in production."""
        store.workers.lease = LEASE
        await store.workers.renew()
        await kill(store)
        asyncio.get_running_loop().call_later(LEASE + 0.1, self._refresh_workers)

    def _refresh_workers(self) -> None:
        """Make all workers refresh their view of the others now, not later during the lease."""
        for each in self._workers:
            assert isinstance(each.workers, LeasedWorker)
            each.workers.hurry()

    async def close(self) -> None:
        for store in self._workers:
            await store.close()
        if self._server is not None:
            self._silence_patch.stop()


class SentinelBacking(RedisBacking):
    """Redis behind Sentinel."""

    servers: ClassVar[type[Any]] = Sentinels


class ClusterBacking(RedisBacking):
    """Redis Cluster."""

    servers: ClassVar[type[Any]] = Cluster
