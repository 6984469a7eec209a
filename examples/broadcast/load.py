"""Opens many event streams of main.py, broadcasts by its tool, and counts what arrives.

Start main.py first: ``python load.py [URL] [LISTENERS] [BROADCASTS]``; by default http://127.0.0.1:8000, 100, and 50.
"""

import asyncio
import sys
from time import perf_counter
from urllib.parse import urlsplit

from millstream import Client
from millstream.client import ClientError


async def listen(host: str, port: int, ready: asyncio.Semaphore, broadcasts: int) -> None:
    """Open an event stream, and read until every broadcast has arrived."""
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(f"GET /events HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    await reader.readuntil(b"\r\n\r\n")
    ready.release()
    arrived = 0
    while arrived < broadcasts:
        arrived += b"Load test" in await reader.readline()
    writer.close()


async def main(url: str = "http://127.0.0.1:8000", listeners: str = "100", broadcasts: str = "50") -> None:
    """Broadcast to all listeners, and print how long the deliveries took."""
    host, port, ready = urlsplit(url).hostname or "127.0.0.1", urlsplit(url).port or 8000, asyncio.Semaphore(0)
    async with Client(f"{url}/mcp") as client, asyncio.TaskGroup() as group:
        for _ in range(int(listeners)):
            group.create_task(listen(host, port, ready, int(broadcasts)))
        for _ in range(int(listeners)):
            await ready.acquire()
        start = perf_counter()
        for number in range(int(broadcasts)):
            await client.call("send_sse_message", message=f"Load test {number}")
        called = perf_counter() - start
    seconds = perf_counter() - start
    count = int(listeners) * int(broadcasts)
    print(f"{broadcasts} calls in {called:.2f} s, and {count:,} deliveries in {seconds:.2f} s")


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except ClientError as exc:
        sys.exit(f"Error: {exc}\nTo start the server, in another terminal: python main.py")
