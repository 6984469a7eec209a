"""Redis for a run: its own, or one that's already running, and the faults in it."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benches.chaos.run import Cluster, Harm
from benches.processes import free_port

_TRIES = 500


@asynccontextmanager
async def own_redis(folder: Path) -> AsyncIterator[str]:
    """Run Redis without a file inside the block, and yield its URL."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    with (folder / "redis.log").open("wb") as sink:
        process = await asyncio.create_subprocess_exec(*command, stdout=sink, stderr=sink)
    url = f"redis://127.0.0.1:{port}"
    try:
        for _ in range(_TRIES):
            try:
                await ask(url, "PING")
                break
            except OSError:
                await asyncio.sleep(0.02)
        yield url
    finally:
        process.kill()
        await process.wait()


async def ask(url: str, command: str) -> str:
    """Return the reply to one command, which has one line or a length."""
    host, _, port = url.removeprefix("redis://").partition("/")[0].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port or 6379))
    try:
        writer.write(f"{command}\r\n".encode())
        first = (await reader.readline()).decode()
        return first if first[:1] != "$" else (await reader.readexactly(int(first[1:]))).decode()
    finally:
        writer.close()


async def reads(url: str) -> int:
    """Return how many scripts Redis received: one for each read and each heartbeat, about one per second and worker."""
    text = await ask(url, "INFO commandstats")
    return int(text.partition("cmdstat_evalsha:calls=")[2].partition(",")[0] or 0)


def flush(url: str, every: float) -> Harm:
    """Send FLUSHALL now and then, even while a worker is dead or starting. The interval is an average, in seconds."""

    async def harm(running: Cluster) -> None:
        while True:
            await asyncio.sleep(random.uniform(0.1, 2 * every))
            await ask(url, "FLUSHALL")

    return harm
