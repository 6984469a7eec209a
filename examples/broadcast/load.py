"""Opens many event streams of main.py, broadcasts by its tool, and measures deliveries, response times, and memory.

Start main.py first: ``python load.py [URL] [LISTENERS] [BROADCASTS]``; by default http://127.0.0.1:8000, 100, and 50.
MCP_SERVER_AUTH_KEY has the server's key, if it has one.
"""

import asyncio
import json
import os
import sys
from http.client import HTTPConnection
from time import perf_counter
from urllib.parse import urlsplit

from millstream import Client
from millstream.client import AccessDenied, ClientError

KEY = os.environ.get("MCP_SERVER_AUTH_KEY")
HEADERS = {"Authorization": f"Bearer {KEY}"} if KEY else {}


async def listen(host: str, port: int, ready: asyncio.Semaphore, broadcasts: int) -> None:
    """Open an event stream, and read until every broadcast has arrived."""
    reader, writer = await asyncio.open_connection(host, port)
    lines = ("GET /events HTTP/1.1", f"Host: {host}:{port}", *(f"{name}: {each}" for name, each in HEADERS.items()))
    writer.write("\r\n".join([*lines, "", ""]).encode())
    await reader.readuntil(b"\r\n\r\n")
    ready.release()
    arrived = 0
    while arrived < broadcasts:
        arrived += b"Load test" in await reader.readline()
    writer.close()


def memory(host: str, port: int) -> float:
    """Return the memory of the server's process, in MB. Only callers on the same machine get it; others get 0."""
    connection = HTTPConnection(host, port)
    connection.request("GET", "/health", headers=HEADERS)
    return float(json.load(connection.getresponse()).get("memory_bytes", 0)) / 1e6


async def main(url: str = "http://127.0.0.1:8000", listeners: str = "100", broadcasts: str = "50") -> None:
    """Broadcast to all listeners, and print how long it took and what it cost."""
    host, port, ready = urlsplit(url).hostname or "127.0.0.1", urlsplit(url).port or 8000, asyncio.Semaphore(0)
    async with Client(f"{url}/mcp", headers=HEADERS) as client, asyncio.TaskGroup() as group:
        for _ in range(int(listeners)):
            group.create_task(listen(host, port, ready, int(broadcasts)))
        for _ in range(int(listeners)):
            await ready.acquire()
        before = await asyncio.to_thread(memory, host, port)
        start, times = perf_counter(), list[float]()
        for number in range(int(broadcasts)):
            begin = perf_counter()
            await client.call("send_sse_message", message=f"Load test {number}")
            times.append((perf_counter() - begin) * 1000)
        called = perf_counter() - start
    seconds = perf_counter() - start
    count = int(listeners) * int(broadcasts)
    print(f"{broadcasts} calls in {called:.2f} s, and {count:,} deliveries in {seconds:.2f} s")
    print(f"Response times: {sorted(times)[len(times) // 2]:.1f} ms in the middle, {max(times):.1f} ms at most")
    print(f"Memory of the server: {before:.1f} MB before, {await asyncio.to_thread(memory, host, port):.1f} MB after")


if __name__ == "__main__":
    try:
        asyncio.run(main(*sys.argv[1:]))
    except AccessDenied as exc:
        sys.exit(f"Error: {exc}\nSet MCP_SERVER_AUTH_KEY to the server's key.")
    except ClientError as exc:
        sys.exit(f"Error: {exc}\nTo start the server, in another terminal: python main.py")
