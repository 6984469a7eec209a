"""`python -m benches.unread`: the memory of a server while many readers resume without reading.

python -m benches.unread --store sqlite --readers 200 --events 1000 --size 32000
python -m benches.unread --store nats
"""

import argparse
import asyncio
import json
import tempfile
from pathlib import Path

from benches.chaos.__main__ import opened
from benches.chaos.run import cluster
from benches.processes import family, resident


async def publish(port: int, data: str) -> None:
    """Publish one event by POST /publish."""
    body = json.dumps({"channel": "news", "data": data}).encode()
    head = (
        f"POST /publish HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\nConnection: close\r\n"
    )
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"{head}Connection: close\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
    answer = await reader.read()
    writer.close()
    if b" 200 " not in answer[:16]:
        raise RuntimeError(answer.decode())


async def resume(port: int) -> asyncio.StreamWriter:
    """Resume at an id that isn't known, and read only the head of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=256)
    writer.write(b"GET /events?channel=news HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nLast-Event-ID: old\r\n\r\n" % port)
    answer = await reader.readline()
    if b" 200 " not in answer:
        raise RuntimeError(answer.decode())
    return writer


async def measure(given: argparse.Namespace) -> None:
    """Print the resident memory before and with the readers."""
    with tempfile.TemporaryDirectory() as folder:
        async with (
            opened(given.store, Path(folder)) as (store, _),
            cluster(Path(folder) / "server.log", workers=1, store=store) as running,
        ):
            for number in range(given.events):
                await publish(running.port, f"{number}".ljust(given.size))

            def memory() -> float:
                return sum(map(resident, family(running.process.pid))) / 2**20

            before = memory()
            writers = await asyncio.gather(*(resume(running.port) for _ in range(given.readers)))
            await asyncio.sleep(given.seconds)
            after = memory()
            print(
                f"{given.store}: {given.readers} readers of {given.events} events of {given.size} bytes: "
                f"{before:.0f} MiB before, {after:.0f} MiB with them"
            )
            for writer in writers:
                writer.transport.abort()


def main() -> None:
    """Make one run."""
    parser = argparse.ArgumentParser(prog="python -m benches.unread", description=__doc__)
    parser.add_argument("--store", default="memory://", help="a URL, sqlite, redis, or nats")
    parser.add_argument("--readers", type=int, default=200)
    parser.add_argument("--events", type=int, default=1000)
    parser.add_argument("--size", type=int, default=32_000, help="bytes of each event")
    parser.add_argument("--seconds", type=float, default=5.0, help="until memory is measured")
    asyncio.run(measure(parser.parse_args()))


if __name__ == "__main__":
    main()
