"""NATS for a run: a cluster of three nodes, one of which is killed repeatedly."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benches.chaos.run import Cluster, Harm
from benches.processes import free_port

NODES = 3
_TRIES = 600


class NatsNodes:
    """Three nodes of one cluster, each a process with its own data."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = [free_port() for _ in range(NODES)]
        self._routes = [free_port() for _ in range(NODES)]
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self.killed = 0
        """Number of times that a node was killed."""

    @property
    def url(self) -> str:
        """The URL of the store."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._ports)
        return f"nats://{hosts}?replicas={NODES}"

    async def start(self, node: int) -> None:
        """Start a node, and return when it responds."""
        config, name = self._folder / f"n{node}.conf", f"n{node}"
        routes = ", ".join(f'"nats://127.0.0.1:{port}"' for port in self._routes)
        config.write_text(
            f'server_name: {name}\nlisten: "127.0.0.1:{self._ports[node]}"\nmax_payload: 8MB\n'
            f'jetstream {{ store_dir: "{self._folder}/{name}" }}\n'
            f'cluster {{ name: chaos, listen: "127.0.0.1:{self._routes[node]}", routes: [{routes}] }}\n'
        )
        server = Path(sys.executable).with_name("nats-server")
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[node] = await asyncio.create_subprocess_exec(server, "-c", config, stdout=log, stderr=log)
        for _ in range(_TRIES):
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._ports[node])
            except OSError:
                await asyncio.sleep(0.05)
            else:
                json.loads((await reader.readline()).partition(b" ")[2])
                writer.close()
                return
        raise RuntimeError(f"The NATS node {node} doesn't respond.")

    async def kill(self, node: int) -> None:
        """Kill a node with SIGKILL."""
        process = self._processes.pop(node)
        process.kill()
        await process.wait()

    def kill_every(self, seconds: float) -> Harm:
        """Kill one node after the other, and restart each after half of the interval."""

        async def harm(running: Cluster) -> None:
            while True:
                node = self.killed % NODES
                await asyncio.sleep(seconds / 2)
                await self.kill(node)
                self.killed += 1
                await asyncio.sleep(seconds / 2)
                await self.start(node)

        return harm

    async def close(self) -> None:
        """End all nodes."""
        for node in list(self._processes):
            await self.kill(node)


@asynccontextmanager
async def own_nats(folder: Path) -> AsyncIterator[NatsNodes]:
    """Run three nodes inside the block."""
    nodes = NatsNodes(folder)
    try:
        for node in range(NODES):
            await nodes.start(node)
        yield nodes
    finally:
        await nodes.close()
