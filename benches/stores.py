"""The cost of a store alone: one call, concurrent calls, and appends by many publishers.

    python -m benches.stores local|memory|sqlite:normal|sqlite:full|redis [SECONDS]

Wall time is meaningful only on a quiet machine. The processor time of each side is the honest figure.
"""

import asyncio
import json
import multiprocessing
import os
import resource
import socket
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

import uvloop

from millstream._protocol.errors import LocalError
from millstream._stores import backend_for, open_store
from millstream._stores.base import Index
from millstream._stores.local.server import LocalServer
from millstream._stores.local.store import LocalBackend
from millstream._stores.store import Store

TTL = 300.0


def cpu() -> float:
    """Return the processor seconds of this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def percentile(values: list[float], part: float) -> float:
    return sorted(values)[int(len(values) * part)]


async def one_by_one(call: Callable[[], Awaitable[object]], seconds: float) -> dict[str, float]:
    """Return the latency of a single call, in µs."""
    took: list[float] = []
    until = time.perf_counter() + seconds
    while (now := time.perf_counter()) < until:
        await call()
        took.append((time.perf_counter() - now) * 1e6)
    return {"p50_us": percentile(took, 0.5), "p99_us": percentile(took, 0.99), "calls": len(took)}


async def at_once(
    call: Callable[[], Awaitable[object]], callers: int, seconds: float, parent: Callable[[], float]
) -> dict[str, float]:
    """Return the concurrent calls per second, and the cost of each on both sides, in µs."""
    done = 0
    until = time.perf_counter() + seconds

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() < until:
            await call()
            done += 1

    began, own, theirs = time.perf_counter(), cpu(), parent()
    await asyncio.gather(*(caller() for _ in range(callers)))
    wall, own, theirs = time.perf_counter() - began, cpu() - own, parent() - theirs
    return {
        "a_second": done / wall, "own_cpu_us": own / done * 1e6, "parent_cpu_us": theirs / done * 1e6,
        "a_second_of_the_busier_side": done / max(own, theirs),
    }  # fmt: skip


async def measure(store: Store, seconds: float, parent: Callable[[], float]) -> None:
    value = b"x" * 200
    log, kv = store.log, store.kv

    async def get() -> object:
        return await kv.get("key")

    async def append() -> object:
        return await log.append("hub:journal", value, ttl=TTL, max_entries=10_000)

    async def publish() -> object:
        nonlocal published
        published += 1
        index = Index(f"hub:channel:{published % 50}", TTL, 101)
        return await log.append("hub:events", value, ttl=TTL, max_entries=10_000, index=index)

    published = 0
    log.listen("hub:events", lambda _entry: None)
    await log.wait_until_listening("hub:events")
    await kv.put("key", value, TTL)
    for name, call in (("get", get), ("append", append), ("publish and hear", publish)):
        print(name, "alone", shown(await one_by_one(call, seconds)))
        for callers in (64, 1000):
            print(name, f"{callers} at once", shown(await at_once(call, callers, seconds, parent)))


def shown(figures: dict[str, float]) -> str:
    return json.dumps({name: round(figure, 2) for name, figure in figures.items()})


def hold(pipe: Connection, url: str) -> None:
    """Run the parent in a separate process."""

    async def serve() -> None:
        server = LocalServer(backend_for)
        pipe.send(str(await server.start()))
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def asked() -> None:
            if pipe.recv() == "cpu":
                pipe.send(cpu())
            else:
                done.set()

        loop.add_reader(pipe.fileno(), asked)
        await done.wait()
        await server.close()

    uvloop.run(serve())


async def local(url: str, seconds: float) -> None:
    here, there = multiprocessing.get_context("spawn").Pipe()
    process = multiprocessing.get_context("spawn").Process(target=hold, args=(there, url))
    process.start()
    store = Store(LocalBackend(here.recv(), url))
    await store.open()

    def parent() -> float:
        here.send("cpu")
        return float(here.recv())

    await measure(store, seconds, parent)
    await store.close()
    here.send("end")
    process.join()


async def here(url: str, seconds: float) -> None:
    store = open_store(url)
    await store.open()
    await measure(store, seconds, lambda: 0.0)
    await store.close()


async def redis(folder: str, seconds: float) -> None:
    """Run Redis on the same machine. Its processor time counts as the parent's."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = ["redis-server", "--port", str(port), "--save", "", "--dir", folder, "--logfile", "redis.log"]
    process = await asyncio.create_subprocess_exec(*command)
    store = open_store(f"redis://127.0.0.1:{port}")
    try:
        for _ in range(100):
            with suppress(LocalError):
                await store.open()
                break
            await asyncio.sleep(0.05)
        await measure(store, seconds, lambda: cpu_of(process.pid))
        await store.close()
    finally:
        process.terminate()
        await process.wait()


def cpu_of(pid: int) -> float:
    """Return the processor seconds of another process."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    what, _, how = sys.argv[1].partition(":")
    seconds = float(sys.argv[2]) if len(sys.argv) > 2 else 3.0
    print(sys.version.split()[0], os.cpu_count(), "cores, load", os.getloadavg()[0])
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'bench.db'}?durability={how}" if how else "memory://"
        if what == "redis":
            uvloop.run(redis(folder, seconds))
        else:
            uvloop.run(local(url, seconds) if what == "local" else here(url, seconds))


if __name__ == "__main__":
    main()
