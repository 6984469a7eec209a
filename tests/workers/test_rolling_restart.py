"""Restarting every worker under load: nobody's request fails, and nobody's connection is refused."""

import asyncio
import signal
from collections import Counter
from pathlib import Path

import pytest

from patience import WAIT
from workers_world import PROGRAM, Client, Load, call, pids_by_new_connections, until_async, workers

pytestmark = pytest.mark.server

REQUESTS = 10_000
EVENTS = 300
PUBLISH = """

@mcp.tool
async def publish(number: int) -> str:
    await mcp.hub.publish("news", str(number))
    return "published"
"""


class Subscriber:
    """An event stream that is opened again with the last id whenever it ends, as `EventSource` does."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._last = ""
        self.heard: list[str] = []
        self.streams = 0
        self.open = False

    async def listen(self) -> None:
        """Until the last event."""
        while not self.heard or self.heard[-1] != str(EVENTS - 1):
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            self.streams += 1
            last = f"last-event-id: {self._last}\r\n" if self._last else ""
            host = f"host: 127.0.0.1:{self._port}\r\n"
            writer.write(f"GET /events?channel=news HTTP/1.1\r\n{host}accept: text/event-stream\r\n{last}\r\n".encode())
            assert b" 200 " in await reader.readline()
            while line := await asyncio.wait_for(reader.readline(), WAIT):
                self._take(line.decode().strip())
                if self.heard and self.heard[-1] == str(EVENTS - 1):
                    break
            writer.close()

    def _take(self, line: str) -> None:
        name, _, value = line.partition(": ")
        if name == "id":
            self._last, self.open = value, True
        elif name in ("data", "event"):
            self.heard.append(value)


async def test_no_request_fails_while_every_worker_is_replaced(tmp_path: Path) -> None:
    """SIGHUP, again and again, under keep-alive calls, slow ones among them; `make chaos` has a million of them."""
    with workers(tmp_path, 4) as served:
        first = set(served.pids)
        load = Load(served.port, 12, [call("who"), call("slow", seconds=0.05), call("who"), call("who")])
        await until_async(lambda: load.replies > 100)
        for round_ in range(1, 4):
            served.process.send_signal(signal.SIGHUP)
            await until_async(lambda n=round_: served.said("Every worker is new") == n)  # type: ignore[misc]
        await until_async(lambda: load.replies >= REQUESTS)
        await load.stop()
        after = await pids_by_new_connections(served.port, 100)
        assert load.failures == Counter()
        assert all(client.announced for client in load.clients)
        assert not first & set(after)
        assert len(after) == 4


async def test_connections_are_spread_evenly_after_a_restart(tmp_path: Path) -> None:
    """The old workers go together: clients of one that went alone would come back to those that are still to go.

    Each of 90 connections falls to one of two: 20 or fewer on one side happen once in 20 million times. After restarts
    one by one, two thirds would be on one side.
    """
    with workers(tmp_path, 2) as served:
        clients = [Client(served.port) for _ in range(90)]
        old = {(await client.request(call("who"))).value for client in clients}
        served.process.send_signal(signal.SIGHUP)
        await until_async(lambda: served.said("Every worker is new") == 1)
        found = Counter[int]()
        for client in clients:
            while (pid := (await client.request(call("who"))).value) in old:
                pass
            found[pid] += 1
        assert len(found) == 2
        assert min(found.values()) > 20
        for client in clients:
            await client.close()


async def test_a_stream_that_ends_for_a_restart_goes_on_at_another_worker(tmp_path: Path) -> None:
    """The parent holds the events: a subscriber comes back with its last id, and has each event once, in order."""
    program = PROGRAM.replace('Server("shop", ', 'Server("shop", serve="hub", ') + PUBLISH
    with workers(tmp_path, 2, program=program) as served:
        subscribers = [Subscriber(served.port) for _ in range(8)]
        listening = [asyncio.create_task(each.listen()) for each in subscribers]
        await until_async(lambda: all(each.open for each in subscribers))
        publisher = Client(served.port)
        for number in range(EVENTS):
            if number == EVENTS // 3:
                served.process.send_signal(signal.SIGHUP)
            if number == EVENTS // 2:
                await until_async(lambda: all(each.streams >= 2 for each in subscribers))
            assert (await publisher.request(call("publish", number=number))).status == 200
        await asyncio.gather(*listening)
        for each in subscribers:
            assert each.heard == [str(number) for number in range(EVENTS)]
            assert each.streams >= 2
        await publisher.close()
