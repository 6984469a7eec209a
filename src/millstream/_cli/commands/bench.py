"""``millstream bench``: call a server over many connections, and show its response times.

The measurements are those of one client in Python, which shares the cores with a server on the same machine.
"""

import asyncio
import math
import shutil
import sys
import time
from collections import Counter
from typing import Annotated, Any

from cyclopts import Parameter
from cyclopts.validators import Number

from millstream._cli.connect_options import (
    FAILED,
    ConnectOptions,
    Json,
    connects,
    pairs,
    run_to_exit,
    unknown,
    value_of,
    with_client,
)
from millstream._cli.errors import UsageError
from millstream._cli.numbers import finite
from millstream._cli.tables import Progress, one_line, print_json, print_rows, print_text, safe, style
from millstream._http.client.url import parse
from millstream._protocol.json_schema import members
from millstream.client._client import Client
from millstream.client._errors import ClientError, Failure

_GROWTH = math.log(1.01)
"""Durations within 1% share a bucket, so that memory doesn't grow with the number of calls."""
_PAUSE = 0.1
"""Seconds before a connection retries after an error without a response."""
_SHOWN = (50, 90, 95, 99, 99.9)
_ROWS = 10


class LatencyTally:
    """The measurements."""

    def __init__(self) -> None:
        self.calls = 0
        self.errors: Counter[str] = Counter()
        self.slowest = 0.0
        self.total = 0.0
        self._buckets: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Record one response."""
        self.calls += 1
        self.total += seconds
        self.slowest = max(self.slowest, seconds)
        self._buckets[math.ceil(math.log(max(seconds, 1e-7)) / _GROWTH)] += 1

    def percentile(self, share: float) -> float:
        """Return the percentile of response times, in seconds."""
        wanted, seen = self.calls * share / 100, 0
        for bucket, count in sorted(self._buckets.items()):
            seen += count
            if seen >= wanted:
                return min(self.slowest, math.exp(bucket * _GROWTH))
        return self.slowest

    def spread(self, rows: int) -> list[tuple[float, int]]:
        """Return a histogram: the upper bound and the number of calls of each of up to `rows` ranges."""
        if not self._buckets:
            return []
        low, high = min(self._buckets), max(self._buckets)
        step = max(1, -(-(high - low + 1) // rows))
        counts: Counter[int] = Counter()
        for bucket, count in self._buckets.items():
            counts[(bucket - low) // step] += count
        last = (high - low) // step
        bounds = [math.exp((low + (number + 1) * step - 1) * _GROWTH) for number in range(last + 1)]
        return [(min(self.slowest, bound), counts[number]) for number, bound in enumerate(bounds)]


@connects()
def bench(
    options: ConnectOptions,
    /,
    *arguments: Annotated[str, Parameter(name="NAME=VALUE", help="Arguments of the tool.")],
    tool: Annotated[
        str, Parameter(name="--tool", metavar="NAME", help="Tool to call. By default, the server is pinged.")
    ] = "",
    connections: Annotated[
        int,
        Parameter(
            name=("--connections", "-c"),
            metavar="N",
            help="Number of concurrent calls.",
            validator=Number(gte=1, lte=1000),
        ),
    ] = 10,
    seconds: Annotated[
        float,
        Parameter(
            name=("--seconds", "-s"),
            metavar="SECONDS",
            help="Duration.",
            validator=(finite, Number(gte=0.1, lte=3600)),
        ),
    ] = 5,
    listeners: Annotated[
        int,
        Parameter(
            metavar="N",
            help="Open this many event streams of the hub, and broadcast to them.",
            validator=Number(gte=0, lte=20_000),
        ),
    ] = 0,
    json: Json = False,
) -> None:
    """Call a server over many connections, and show its response times.

    Only bench your own servers. Each connection sends its next call after the last response. The client is a single
    Python process that makes about 8,000 calls per second; a server may be many times faster. To find its limit, run
    several of these commands at once, or use a load generator such as wrk. The exit status is 1 if a call failed.

    With --listeners, it publishes 50 events per second to a new channel, and reports deliveries, latencies, and the
    memory used by the listeners on the server (with --serve hub,metrics).

    **Examples**

    - `millstream bench http://127.0.0.1:8000/mcp`

    - `millstream bench http://127.0.0.1:8000/mcp --tool add a=1 b=2 --connections 50 --seconds 10`

    - `millstream bench http://127.0.0.1:8000/mcp --listeners 100`
    """
    if listeners:
        run_to_exit(lambda: _broadcast(options, listeners, seconds, json=json))
        return
    if arguments and "=" not in arguments[0] and not tool:
        raise UsageError(f"Name the tool with an option: --tool {arguments[0]}")
    given = pairs(arguments, "=", "Arguments must be NAME=VALUE")
    if given and not tool:
        raise UsageError("Arguments require a tool. Name it with --tool.")

    async def work(client: Client) -> int:
        values = await _typed_arguments(client, tool, given)
        tally = LatencyTally()
        started = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            watching = group.create_task(_show_time(seconds, json=json))
            loads = [
                group.create_task(_load(client, tool, values, tally, started + seconds)) for _ in range(connections)
            ]
            await asyncio.wait(loads)
            watching.cancel()
        report(tally, time.perf_counter() - started, client, connections, json=json)
        return FAILED if tally.errors else 0

    with_client(lambda: options.client(max_connections=connections), work)


async def _broadcast(options: ConnectOptions, listeners: int, seconds: float, *, json: bool) -> int:
    from millstream._cli.broadcast_bench import Broadcasts, percentiles, summary  # noqa: PLC0415  rarely used

    if not options.target.startswith(("http://", "https://")):
        raise UsageError("--listeners requires the URL of a server with a hub: http://127.0.0.1:8000/mcp")
    found = Broadcasts(parse(options.target), options.headers, listeners)
    started = time.perf_counter()
    await found.run(seconds)
    measured = summary(found, time.perf_counter() - started)
    latency = percentiles(found.delays, _SHOWN)
    if json:
        print_json(
            {"listeners": listeners, **measured, "latencyMs": {name: _ms(each) for name, each in latency.items()}}
        )
    else:
        print_text(f"{listeners:,} listeners, {measured['broadcasts']:,} broadcasts in {seconds:g} s")
        rows = [
            ["delivered", f"{measured['delivered']:,} of {measured['expected']:,}"],
            ["deliveries/s", f"{measured['deliveriesPerSecond']:,.0f}"],
            ["streams cut", f"{measured['cut']:,}"],
            *([name, format_duration(each)] for name, each in latency.items()),
        ]
        if found.memory is not None:
            grown = (found.memory[1] - found.memory[0]) / 1024
            rows.append(
                ["server memory", f"{found.memory[1] / 2**20:,.0f} MiB, {grown / listeners:,.1f} KiB a listener"]
            )
        print_rows(rows, ["WHAT", "VALUE"])
    return FAILED if measured["delivered"] < measured["expected"] else 0


async def _typed_arguments(client: Client, tool: str, given: dict[str, str]) -> dict[str, Any]:
    if not tool:
        return {}
    tools = {each.name: each for each in await client.tools()}
    error = unknown("tool", tool, list(tools))
    if error is not None:
        raise error
    schemas: dict[str, Any] = members(tools[tool].input_schema.get("properties"))
    return {name: value_of(text, schemas.get(name)) for name, text in given.items()}


async def _load(client: Client, tool: str, values: dict[str, Any], tally: LatencyTally, until: float) -> None:
    """Make calls over one connection, at least one."""
    started = 0.0
    while started < until:
        started = time.perf_counter()
        try:
            if tool:
                result = await client.call(tool, values, raise_on_error=False)
                if result.is_error:
                    tally.errors[one_line(f"The tool reported an error: {result.text}")[:200]] += 1
            else:
                await client.ping()
        except ClientError as exc:
            tally.errors[one_line(str(exc))[:200]] += 1
            if not isinstance(exc, Failure):
                await asyncio.sleep(_PAUSE)
                continue
        tally.add(time.perf_counter() - started)


async def _show_time(seconds: float, *, json: bool) -> None:
    """Show a progress bar on a terminal."""
    if json or not sys.stderr.isatty():
        return
    progress, started = Progress(), time.perf_counter()
    try:
        while True:
            progress.step(round(min(seconds, time.perf_counter() - started), 1), seconds, "seconds")
            await asyncio.sleep(0.2)
    finally:
        progress.close()


def report(tally: LatencyTally, took: float, client: Client, connections: int, *, json: bool) -> None:
    """Print the results."""
    rate = tally.calls / took if took else 0.0
    mean = tally.total / tally.calls if tally.calls else 0.0
    percentiles = {f"p{share:g}": tally.percentile(share) for share in _SHOWN}
    if json:
        latency = {name: _ms(value) for name, value in {"mean": mean, **percentiles, "max": tally.slowest}.items()}
        print_json({
            "server": client.server.name, "revision": client.revision, "transport": client.transport,
            "connections": connections, "seconds": round(took, 3), "calls": tally.calls,
            "callsPerSecond": round(rate, 1), "errors": dict(tally.errors), "latencyMs": latency,
        })  # fmt: skip
        return
    failed = sum(tally.errors.values())
    about = f"{client.server.name or 'server'} ({client.revision}, {client.transport})"
    print_text(f"{about}: {connections} connections for {took:.1f} s, measured by one client process")
    rows = [["calls/s", f"{rate:,.0f}"], ["calls", f"{tally.calls:,}"], ["errors", f"{failed:,}"]]
    rows += [[name, format_duration(value)] for name, value in {**percentiles, "max": tally.slowest}.items()]
    print_rows(rows, ["WHAT", "VALUE"])
    if sys.stdout.isatty():
        draw(tally)
    for text, count in tally.errors.most_common(5):
        print_text(f"{count:,} × {text}", sys.stderr)


def draw(tally: LatencyTally) -> None:
    """Draw a histogram of the response times that fits the terminal."""
    spread = tally.spread(_ROWS)
    if not spread:
        return
    labels = [f"≤ {format_duration(bound)}" for bound, _ in spread]
    counts = [f"{count:,}" for _, count in spread]
    left, right = max(map(len, labels)), max(map(len, counts))
    room = max(10, shutil.get_terminal_size().columns - left - right - 4)
    most = max(count for _, count in spread)
    sys.stdout.write("\n")
    for label, text, (_, count) in zip(labels, counts, spread, strict=True):
        bar = "█" * max(1 if count else 0, round(room * count / most))
        sys.stdout.write(safe(f"{label.rjust(left)}  {text.rjust(right)}  ") + style(bar, "cyan") + "\n")


def format_duration(seconds: float) -> str:
    """Format a duration with three digits."""
    ms = seconds * 1000
    if ms >= 1000:
        return f"{seconds:.3g} s"
    return f"{ms:.3g} ms" if ms < 100 else f"{ms:.0f} ms"


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
