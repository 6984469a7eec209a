"""`python -m benches.chaos MINUTES`: kill a worker every few seconds while subscribers resume; nothing may be lost.

Exits 1 when an event was lost, repeated or out of order without a gap that was told.
"""

import argparse
import asyncio
import gc
import os
import sys
import tempfile
import time
from pathlib import Path

from benches.chaos.run import Report, cluster, kill_workers, storm
from benches.processes import raise_file_limit


def main() -> None:
    """Make one run and say what came out."""
    parser = argparse.ArgumentParser(prog="python -m benches.chaos", description=__doc__)
    parser.add_argument("minutes", type=float, nargs="?", default=10.0)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--store", default="memory://")
    parser.add_argument("--subscribers", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=2000.0, help="publications a second")
    parser.add_argument("--channels", type=int, default=200)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two kills")
    given = parser.parse_args()
    raise_file_limit()
    gc.disable()  # millions of events are written down, and a walk over them all would delay what is timed
    sys.exit(asyncio.run(run(given)))


async def run(given: argparse.Namespace) -> int:
    """The exit code."""
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "server.log"
        async with cluster(log, workers=given.workers, store=given.store) as running:
            end = time.monotonic() + given.minutes * 60
            await storm(
                running,
                report,
                until=lambda: time.monotonic() >= end,
                subscribers=given.subscribers,
                rate=given.rate,
                channels=given.channels,
                harm=kill_workers(given.every, report),
            )
    print(report)
    load = ", ".join(f"{each:.1f}" for each in os.getloadavg())
    print(f"{report.rate:.0f} publications/s; {os.cpu_count()} cores with a load of {load} (1, 5, 15 minutes)")
    for line in report.wrong[:20]:
        print(" ", line)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    main()
