"""A client under measurement: `clients.py (ours|mcp) SECONDS (URL | COMMAND...)`. It prints one JSON object.

Both use uvloop, some warm-up calls, and then calls of `add` with sixteen in flight, whose sums are checked. The
processor time is the client's own.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import uvloop

IN_FLIGHT = 16
WARM = 200
Add = Callable[[int, int], Awaitable[int]]


@asynccontextmanager
async def ours(target: list[str]) -> AsyncIterator[Add]:
    """Call with our client, and check each value."""
    from millstream import Client  # noqa: PLC0415  each client has an environment of its own
    from millstream.client import Options  # noqa: PLC0415

    place = target[0] if len(target) == 1 else target
    async with Client(place, options=Options(env=dict(os.environ))) as client:

        async def add(a: int, b: int) -> int:
            return await client.call("add", a=a, b=b, result_type=int)

        yield add


@asynccontextmanager
async def mcp(target: list[str]) -> AsyncIterator[Add]:
    """Call with the official client."""
    from mcp import Client, StdioServerParameters  # noqa: PLC0415

    place = target[0] if len(target) == 1 else StdioServerParameters(
        command=target[0], args=target[1:], env=dict(os.environ)
    )  # fmt: skip
    async with Client(place) as client:

        async def add(a: int, b: int) -> int:
            result = await client.call_tool("add", {"a": a, "b": b})
            assert result.structured_content is not None
            return int(result.structured_content["result"] if isinstance(result.structured_content, dict)
                       else result.structured_content)  # fmt: skip

        yield add


async def drive(add: Add, seconds: float) -> int:
    """Call for some seconds, and return the number of calls."""
    until = time.perf_counter() + seconds
    done = 0

    async def worker(number: int) -> None:
        nonlocal done
        while time.perf_counter() < until:
            other = done
            assert await add(number, other) == number + other
            done += 1

    async with asyncio.TaskGroup() as group:
        for number in range(IN_FLIGHT):
            group.create_task(worker(number))
    return done


async def main(name: str, seconds: float, target: list[str]) -> None:
    async with {"ours": ours, "mcp": mcp}[name](target) as add:
        for number in range(WARM):
            assert await add(number, 1) == number + 1
        begun, cpu = time.perf_counter(), time.process_time()
        done = await drive(add, seconds)
        spent, cpu = time.perf_counter() - begun, time.process_time() - cpu
    print(json.dumps({"rate": done / spent, "cpu_us": cpu / done * 1e6, "busy": cpu / spent * 100}))


if __name__ == "__main__":
    uvloop.run(main(sys.argv[1], float(sys.argv[2]), sys.argv[3:]))
