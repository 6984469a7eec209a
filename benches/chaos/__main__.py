"""`python -m benches.chaos MINUTES`: workers are killed and stopped while subscribers resume; nothing may be lost.

    python -m benches.chaos --store sqlite         the same with the store in a file
    python -m benches.chaos --store redis          the same with a Redis of its own, or the one at redis://...
    python -m benches.chaos --store redis --flush-every 7
                                                   which loses everything now and then: every subscriber is told
    python -m benches.chaos --store nats           the same with three NATS nodes, one of which is killed every 10 s
    python -m benches.chaos --calls 1000000        rolling restarts during so many calls: none may fail
    python -m benches.chaos --storm --store redis --subscribers 10000
                                                   they come back together: the store is read for all of them
    python -m benches.chaos --upstreams            a gateway whose upstreams are killed, hang, flood, lie, and change;
                                                   and one whose upstreams of every kind restart, change
                                                   their revision, stop, and forget the gateway
    python -m benches.chaos --changes --store redis
                                                   a gateway's file, its keys, and its sets change ten times a minute,
                                                   while clients call and workers are killed
    python -m benches.chaos --upstreams --clients 1000 --workers 4 --store redis
                                                   the same with many clients and several workers
    python -m benches.chaos --machines --store redis
                                                   two machines of a gateway behind a balancer; a command counts for
                                                   each person, and no count may start anew without a word

Clients of every revision and transport call meanwhile, and some connections lead through a proxy that cuts them, holds
them up and closes one side of them.

Exits 1 when an event was lost, repeated or out of order without a gap that was told, when a call of a rolling restart
failed, when a call failed although no worker was killed, or a worker showed an older version of a gateway's file than
before, when a call of a client ended in anything but its result or an error after which one may try again, or when a
call to an upstream that behaves failed because of another one, or when an upstream that's back isn't usable within ten
seconds and with at most one failed call.
"""

import argparse
import asyncio
import gc
import math
import os
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from benches.chaos.changes import ChangeReport, change_files
from benches.chaos.machines import MachinesReport, torment_machines
from benches.chaos.own_nats import NatsNodes, own_nats
from benches.chaos.own_redis import flush, own_redis
from benches.chaos.replacements import ReplacementReport, replace_upstreams
from benches.chaos.restarts import Restarts
from benches.chaos.returning import return_together
from benches.chaos.run import Cluster, Crowd, Report, cluster, kill_workers, stop_workers, storm, together
from benches.chaos.upstreams import UpstreamReport, growth, left_behind, torment
from benches.processes import raise_file_limit

EVENTS_BESIDE = 50.0
"""Publications per second in addition to the calls of `--calls`."""
WORKERS = 4
RATE = 2000.0
"""Publications per second, or calls with `--calls`."""
UPSTREAM_RATE = 100.0
"""Calls per second to upstreams that behave."""


def main() -> None:
    """Make one run and report the result."""
    parser = argparse.ArgumentParser(prog="python -m benches.chaos", description=__doc__)
    parser.add_argument("minutes", type=float, nargs="?", help="10; with --calls, as long as the calls take")
    parser.add_argument("--workers", type=int, help="4; with --upstreams 1, with --changes 2")
    parser.add_argument(
        "--store", default="memory://", help="a URL; sqlite, redis, or nats for one that goes afterwards"
    )
    parser.add_argument("--subscribers", type=int, default=2000)
    parser.add_argument(
        "--rate", type=float, help="publications a second; calls, with --calls (2000) or --upstreams (100)"
    )
    parser.add_argument("--channels", type=int, default=200)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two kills")
    parser.add_argument("--speakers", type=int, default=2, help="clients of each revision and transport")
    parser.add_argument("--proxied", type=int, default=200, help="subscribers behind the proxy")
    parser.add_argument("--stop-every", type=float, default=60.0, help="seconds between two stops of a worker")
    parser.add_argument("--stopped", type=float, default=30.0, help="seconds for which a worker is stopped")
    parser.add_argument("--flush-every", type=float, help="seconds between two losses of everything, about; redis")
    parser.add_argument("--node-every", type=float, default=10.0, help="seconds between two kills of a node; nats")
    parser.add_argument("--calls", type=int, help="restart all workers, one after the other, during so many calls")
    parser.add_argument("--storm", action="store_true", help="break all connections at once; --store is redis")
    parser.add_argument("--changes", action="store_true", help="change the file of a gateway")
    parser.add_argument("--machines", action="store_true", help="two machines of a gateway; --store is redis or nats")
    parser.add_argument("--upstreams", action="store_true", help="torment the upstreams of a gateway")
    parser.add_argument(
        "--clients", type=int, default=10, help="clients of upstreams that behave; a fifth as many of each other one"
    )
    given = parser.parse_args()
    raise_file_limit()
    gc.disable()  # millions of events are recorded, and a collection over all of them would delay the measured work
    chosen = (machines, given.machines), (upstreams, given.upstreams), (changes, given.changes), (run, True)
    scenario = next(each for each, wanted in chosen if wanted)
    sys.exit(asyncio.run(scenario(given)))


async def run(given: argparse.Namespace) -> int:
    """Run one scenario, and return the exit code."""
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        async with (
            opened(given.store, Path(folder)) as (store, nodes),
            cluster(log, workers=given.workers or WORKERS, store=store) as running,
        ):
            if given.calls:
                await restart(running, report, given)
            elif given.storm:
                asked = await return_together(
                    running, report, subscribers=given.subscribers, channels=given.channels, redis=store
                )
                print(
                    f"{asked} reads of the store, heartbeats included; all had everything after {report.seconds:.1f} s"
                )
            else:
                await kill(running, report, given, store, nodes)
    print(report)
    if nodes is not None:
        print(f"{nodes.killed} NATS nodes killed")
        report.wrong += [f"{report.gaps} gaps, though no data were lost."] if report.gaps else []
    if report.results:
        print(f"{report.speakers()}\n  connections through the proxy: {dict(report.troubles) or 'none'}")
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    print(f"{report.rate:.0f} publications/s; {os.cpu_count()} cores with a load of {load} (1, 5, 15 minutes)")
    for line in report.wrong[:20]:
        print(" ", line)
    return 1 if report.wrong else 0


async def upstreams(given: argparse.Namespace) -> int:
    """Run with a gateway, and return the exit code."""
    report, replaced = UpstreamReport(), ReplacementReport()
    end = time.monotonic() + (given.minutes or 10.0) * 60
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        async with (
            opened(given.store, Path(folder)) as (store, _),
            cluster(log, workers=given.workers or 1, store=store, program="gateway.py") as running,
            asyncio.TaskGroup() as tasks,
        ):
            tasks.create_task(
                replace_upstreams(
                    Path(folder),
                    replaced,
                    store=store.replace("chaos.db", "replaced.db"),  # a SQLite store has one owner
                    workers=given.workers or 1,
                    until=lambda: time.monotonic() >= end,
                )
            )
            await torment(
                running,
                report,
                clients=given.clients,
                rate=(given.rate or UPSTREAM_RATE) / given.clients,
                every=given.every,
                until=lambda: time.monotonic() >= end,
            )
    left = left_behind(report)
    report.wrong += [f"process {pid} of an upstream is left" for pid in left]
    print(f"{report}\n{len(report.seen)} processes of upstreams, {len(left)} left")
    print(f"{growth(report):+.1f} MiB in ten minutes, by the second half of the run\n{replaced}")
    wrong = report.wrong[:20] + replaced.wrong[:20]
    for line in wrong:
        print(" ", line)
    return 1 if wrong else 0


async def machines(given: argparse.Namespace) -> int:
    """Run with two machines, and return the exit code."""
    report = MachinesReport()
    end = time.monotonic() + (given.minutes or 10.0) * 60
    with tempfile.TemporaryDirectory() as folder:
        async with opened(given.store, Path(folder)) as (store, _):
            await torment_machines(
                Path(folder),
                report,
                store=store,
                workers=given.workers or 2,
                until=lambda: time.monotonic() >= end,
                every=given.every,
            )
    print(report)
    for line in report.wrong[:20]:
        print(" ", line)
    return 1 if report.wrong else 0


async def changes(given: argparse.Namespace) -> int:
    """Run with a gateway whose file changes, and return the exit code."""
    report = ChangeReport()
    with tempfile.TemporaryDirectory() as folder:
        async with opened(given.store, Path(folder)) as (store, _):
            await change_files(
                Path(folder), report, store=store, workers=given.workers or 2, minutes=given.minutes or 10.0
            )
    print(report)
    for line in report.wrong[:20]:
        print(" ", line)
    return 1 if report.wrong else 0


@asynccontextmanager
async def opened(store: str, folder: Path) -> AsyncIterator[tuple[str, NatsNodes | None]]:
    """Yield the URL of the selected store, and the NATS nodes."""
    if store == "redis":
        async with own_redis(folder) as url:
            yield url, None
    elif store == "nats":
        async with own_nats(folder) as nodes:
            yield nodes.url, nodes
    else:
        yield f"sqlite:///{folder}/chaos.db" if store == "sqlite" else store, None


async def kill(
    running: Cluster, report: Report, given: argparse.Namespace, store: str, nodes: NatsNodes | None
) -> None:
    """Send SIGKILL to one worker after the other, and to one NATS node after the other, for some minutes."""
    end = time.monotonic() + (given.minutes or 10.0) * 60
    crowd = Crowd(
        subscribers=given.subscribers,
        rate=given.rate or RATE,
        channels=given.channels,
        proxied=given.proxied,
        speakers=given.speakers,
        proxied_speakers=given.speakers,
    )
    harms = [kill_workers(given.every, report), stop_workers(given.stop_every, given.stopped, report)]
    if nodes is not None:
        harms.append(nodes.kill_every(given.node_every))
    harm = together(*harms, *([flush(store, given.flush_every)] if given.flush_every else []))
    await storm(running, report, crowd, until=lambda: time.monotonic() >= end, harm=harm)


async def restart(running: Cluster, report: Report, given: argparse.Namespace) -> None:
    """Make rolling restarts until there were enough calls."""
    end = time.monotonic() + given.minutes * 60 if given.minutes else math.inf
    restarts = Restarts(running.port, report, requests=given.calls, rate=given.rate or RATE, end=end)
    crowd = Crowd(subscribers=given.subscribers, rate=EVENTS_BESIDE, channels=given.channels, speakers=given.speakers)
    await storm(running, report, crowd, until=lambda: restarts.done, harm=restarts.harm())
    print(restarts)
    report.wrong += restarts.wrong()


if __name__ == "__main__":
    main()
