"""``millstream info`` and ``millstream ping``: describe a server, and measure its response time."""

import asyncio
import time
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from millstream._cli.connect_options import (
    DEFAULTS,
    ConnectOptions,
    Target,
    version_of,
    with_client,
)
from millstream._cli.options import Json, finite
from millstream._cli.tables import one_line, print_json, print_rows, print_text
from millstream.client._client import Client

_PINGS = 5


async def latency_ms(client: Client) -> float:
    """Ping the server, and return the milliseconds until the response."""
    begun = time.perf_counter()
    await client.ping()
    return (time.perf_counter() - begun) * 1000


def info(
    target: Target,
    /,
    *,
    options: ConnectOptions = DEFAULTS,
    json: Json = False,
) -> None:
    """Show a server's identity, protocol, items, and response time (the median of five).

    **Example**

    - `millstream info "uvx mcp-server-time"`
    """

    async def work(client: Client) -> None:
        times = sorted([await latency_ms(client) for _ in range(_PINGS)])
        found = {
            "name": client.server.name,
            **({"version": version} if (version := version_of(client)) else {}),
            "revision": client.revision,
            "transport": client.transport,
            "capabilities": dict(client.capabilities),
            "instructions": client.instructions,
            "latencyMs": round(times[_PINGS // 2], 3),
        }
        if json:
            print_json(found)
            return
        shown = {
            **found,
            "capabilities": ", ".join(client.capabilities) or "none",
            "latencyMs": f"{found['latencyMs']} ms",
        }
        names = {"latencyMs": "latency"}
        print_rows([[names.get(name, name), str(value)] for name, value in shown.items() if value], ["WHAT", "VALUE"])

    with_client(target, options, work)


def ping(
    target: Target,
    /,
    *,
    count: Annotated[
        int,
        Parameter(
            name=("--count", "-c"),
            metavar="N",
            help="Number of pings.",
            validator=Number(gte=1),
        ),
    ] = 1,
    interval: Annotated[
        float,
        Parameter(
            metavar="SECONDS",
            help="Seconds between two pings.",
            validator=(finite, Number(gte=0)),
        ),
    ] = 1.0,
    options: ConnectOptions = DEFAULTS,
    json: Json = False,
) -> None:
    """Check whether a server responds, and how fast, not including the time to connect.

    **Example**

    - `millstream ping http://127.0.0.1:8000/mcp --count 5 --interval 0.2`
    """

    async def work(client: Client) -> None:
        times: list[float] = []
        for number in range(count):
            if number:
                await asyncio.sleep(interval)
            times.append(await latency_ms(client))
            if not json:
                print_text(f"{one_line(client.server.name) or target}: {times[-1]:.2f} ms")
        if json:
            print_json({"server": client.server.name, "revision": client.revision, "ms": [round(t, 3) for t in times]})

    with_client(target, options, work)
