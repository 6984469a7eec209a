"""Rolling restarts, one after the other, while callers call and subscribers listen. No request may fail."""

import asyncio
import math
import signal
import time
from collections import Counter
from pathlib import Path

from benches.chaos.calls import Caller
from benches.chaos.run import PATIENCE, Cluster, Harm, Report

CALLERS = 200
EVEN = 1.2
"""Maximum ratio between the largest and smallest number of connections per worker. Some difference is due to chance."""
ENOUGH = 2_000
PAUSE = 5.0
"""Seconds between the end of a restart and the next one, and for subscribers to reconnect before they're counted."""


class Restarts:
    """Callers, and the restarts of the workers."""

    def __init__(
        self, port: int, report: Report, *, requests: int, rate: float, end: float = math.inf, restarts: int = 0
    ) -> None:
        """Prepare a run. `harm` starts it.

        Args:
            port: of the server.
            report: where harm is counted.
            requests: how many calls there are to be, at least.
            rate: calls a second, as far as the server keeps up.
            end: when it's over, however many there were.
            restarts: so many, spread over the calls; otherwise one after the other.
        """
        self._report = report
        self._restarts = restarts
        self._requests = requests
        self._end = end
        self._callers = [Caller(port) for _ in range(CALLERS)]
        self._rate = rate / CALLERS
        self.done = False
        self.spread: list[int] = []
        """Connections per worker, some seconds after the last restart."""

    @property
    def calls(self) -> int:
        """Number of finished calls."""
        return sum(each.calls for each in self._callers)

    @property
    def failures(self) -> Counter[str]:
        """Number of failures by kind."""
        return sum((each.failures for each in self._callers), Counter[str]())

    def harm(self) -> Harm:
        """Send SIGHUP some time after the previous restart has finished."""

        async def harm(running: Cluster) -> None:
            calling = [asyncio.create_task(each.run(self._rate)) for each in self._callers]
            try:
                while not self.done:
                    await self._restart(running)
                    await self._pause()
                    self.spread = [_connections(pid) for pid in running.workers()]
                    enough = self.calls >= self._requests and self._report.harm >= self._restarts
                    self.done = enough or time.monotonic() >= self._end
            finally:
                for task in calling:
                    task.cancel()
                await asyncio.gather(*calling, return_exceptions=True)

        return harm

    async def _restart(self, running: Cluster) -> None:
        self._report.harm += 1
        running.process.send_signal(signal.SIGHUP)
        async with asyncio.timeout(PATIENCE):
            while running.log.read_text().count("The new version is serving") < self._report.harm:  # noqa: ASYNC110
                await asyncio.sleep(0.1)

    async def _pause(self) -> None:
        if not self._restarts:
            await asyncio.sleep(PAUSE)
            return
        while self.calls < self._requests * self._report.harm / self._restarts:  # noqa: ASYNC110  nobody tells
            await asyncio.sleep(0.1)

    def wrong(self) -> list[str]:
        """Return the problems, as sentences."""
        wrong = [f"{count} calls failed: {failure}" for failure, count in self.failures.most_common()]
        if sum(self.spread) >= ENOUGH and max(self.spread) > EVEN * min(self.spread):
            wrong.append(f"The workers have {self.spread} connections.")
        return wrong

    def __str__(self) -> str:
        calls = f"{self.calls} calls, {self.failures.total()} failed, connections of each worker {self.spread}"
        return f"{calls} (most of fewest {max(self.spread) / max(1, min(self.spread)):.2f})"


def _connections(pid: int) -> int:
    """Return the number of a process's sockets, nearly all of which are connections."""
    found = 0
    for each in Path(f"/proc/{pid}/fd").iterdir():
        try:
            found += str(each.readlink()).startswith("socket:")
        except OSError:
            continue
    return found
