"""NATS servers for tests: one, or a cluster of three."""

import atexit
import json
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from socket import create_server
from tempfile import TemporaryDirectory
from typing import Any, ClassVar

import nats

from millstream._stores.nats.link import NatsAddress, parse_address
from millstream._stores.nats.store import NatsBackend
from millstream._stores.store import Store
from millstream._stores.workers import LeasedWorker
from redis_parts import until, wait_until

SERVER = Path(sys.executable).with_name("nats-server")
LEASE = 2.0


class NatsStore(Store):
    """A store in NATS, for tests that reach into its backend."""

    backend: NatsBackend

    def __init__(self, address: NatsAddress, **options: Any) -> None:
        """Take the arguments of `NatsBackend`."""
        super().__init__(NatsBackend(address, **options))


class NatsServer:
    """One node in its own process, on free ports."""

    def __init__(
        self,
        folder: Path,
        name: str,
        cluster: tuple[int, list[int]] | None = None,
        setting: str | None = None,
    ) -> None:
        self.folder = folder / name
        self.folder.mkdir()
        self._name = name
        self._cluster = cluster
        self._setting = setting if setting is not None else f'jetstream {{ store_dir: "{self.folder}/data" }}'
        self.port = 0
        self.start()

    def start(self) -> None:
        """Start the node. After a kill, it has the same port and data."""
        config = self.folder / "nats.conf"
        routes = ""
        if self._cluster is not None:
            port, others = self._cluster
            urls = ", ".join(f'"nats://127.0.0.1:{other}"' for other in others)
            routes = f'cluster {{ name: test, listen: "127.0.0.1:{port}", routes: [{urls}] }}'
        config.write_text(
            f'server_name: {self._name}\nlisten: "127.0.0.1:{self.port or -1}"\nmax_payload: 8MB\n'
            f'ports_file_dir: "{self.folder}"\n{self._setting}\n{routes}\n'
        )
        for each in self.folder.glob("*.ports"):
            each.unlink()
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen([SERVER, "-c", config], stdout=log, stderr=log)

    async def wait(self) -> None:
        """Wait until the node listens."""
        await until(lambda: any(each.stat().st_size for each in self.folder.glob("*.ports")))
        self.read_port()

    def read_port(self) -> int:
        """Read the port of a node that listens."""
        (ports,) = self.folder.glob("*.ports")
        self.port = int(json.loads(ports.read_text())["nats"][0].rpartition(":")[2])
        return self.port

    def kill(self) -> None:
        """Kill the node with SIGKILL."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def close(self) -> None:
        """Stop the node."""
        self.process.kill()
        self.process.wait()


class NatsCluster:
    """A cluster of three nodes."""

    def __init__(self) -> None:
        self._temporary = TemporaryDirectory(prefix="millstream-")
        ports = free_ports(3)
        self.nodes = [
            NatsServer(Path(self._temporary.name), f"n{number}", (ports[number], ports)) for number in range(3)
        ]

    async def url(self) -> str:
        """Wait until the nodes listen, and return the URL of a store with three replicas."""
        for node in self.nodes:
            await node.wait()
        hosts = ",".join(f"127.0.0.1:{node.port}" for node in self.nodes)
        return f"nats://{hosts}?replicas=3&namespace={secrets.token_hex(4)}"

    def close(self) -> None:
        """Stop all nodes and delete their data."""
        for node in self.nodes:
            node.close()
        self._temporary.cleanup()


def free_ports(count: int) -> list[int]:
    """Return free ports, because nodes of a cluster need each other's."""
    sockets = [create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


_shared: tuple[TemporaryDirectory[str], NatsServer] | None = None


def shared_server() -> NatsServer:
    """Return one node for all tests of this process. Each test has its own namespace."""
    global _shared  # noqa: PLW0603
    if _shared is None:
        folder = TemporaryDirectory(prefix="millstream-")
        _shared = folder, NatsServer(Path(folder.name), "shared")
        atexit.register(folder.cleanup)
        atexit.register(_shared[1].close)
    return _shared[1]


def shared_url() -> str:
    """Wait until the shared node listens, and return the URL of a new namespace on it."""
    server = shared_server()
    wait_until(lambda: any(each.stat().st_size for each in server.folder.glob("*.ports")))
    return f"nats://127.0.0.1:{server.read_port()}?namespace=t{secrets.token_hex(6)}"


class NatsBacking:
    """A namespace on one node."""

    shared: ClassVar[bool] = True

    def __init__(self) -> None:
        self.server = shared_server()
        self.namespace = f"t{secrets.token_hex(6)}"
        self._workers: list[NatsStore] = []

    async def worker(self) -> NatsStore:
        await self.server.wait()
        address = parse_address(f"nats://127.0.0.1:{self.server.port}?namespace={self.namespace}")
        store = NatsStore(address, lease=LEASE)
        await store.open()
        self._workers.append(store)
        return store

    async def kill(self, store: object) -> None:
        """Close the worker's connection without releasing its lease."""
        assert isinstance(store, NatsStore)
        workers = store.workers
        assert isinstance(workers, LeasedWorker)
        assert workers._run_task is not None
        workers._run_task.cancel()
        workers._run_task = None
        await store.backend.close()

    async def close(self) -> None:
        for store in self._workers:
            await store.close()
        client = await nats.connect(f"nats://127.0.0.1:{self.server.port}")
        reply = json.loads((await client.request("$JS.API.STREAM.NAMES", b"")).data)
        for name in reply.get("streams") or []:
            if name.startswith(self.namespace):
                await client.request(f"$JS.API.STREAM.DELETE.{name}", b"")
        await client.close()
