"""Benchmark of broadcasts to listeners of a hub: deliveries, latency, and memory."""

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from millstream._http.client.body import Body
from millstream._http.client.connection import HttpReply, lines
from millstream._http.client.pool import ConnectionPool
from millstream._http.client.url import Url
from millstream._protocol.jsonrpc import encode
from millstream.client._errors import BadAnswer, ClientError

_RATE = 50
"""Maximum broadcasts per second."""
_AT_A_TIME = 50
"""Listeners that are opened concurrently."""
_SETTLE = 5.0
"""Seconds for the last broadcast to arrive."""
_MARK = b"bench "


class Broadcasts:
    """Opens listeners of one channel, publishes to it, and measures."""

    def __init__(self, url: Url, headers: Mapping[str, str], listeners: int) -> None:
        # Configuration
        self._url = url
        self._headers = {name.lower(): value for name, value in headers.items()}
        self._listeners = listeners
        self._channel = f"bench.{secrets.token_hex(4)}"
        self._pool = ConnectionPool(
            url, max_connections=listeners + 2, max_body=1 << 20, connect_timeout=10.0, tls=None
        )
        # State
        self._sent: dict[bytes, float] = {}
        self._arrived = asyncio.Event()
        self.delays: list[float] = []
        """Seconds from each publish request to each delivery."""
        self.broadcasts = 0
        self.cut = 0
        """Number of listeners whose stream ended."""
        self.memory: tuple[int, int] | None = None
        """Resident memory of the server before and with the listeners, if `/metrics` reports it."""

    async def run(self, seconds: float) -> None:
        """Measure for `seconds`.

        Raises:
            ClientError: the server has no hub, or refused a request.
        """
        try:
            before = await self._resident()
            gate = asyncio.Semaphore(_AT_A_TIME)
            streams = await asyncio.gather(*(self._open(gate) for _ in range(self._listeners)))
            after = await self._resident()
            self.memory = None if before is None or after is None else (before, after)
            async with asyncio.TaskGroup() as group:
                readers = [group.create_task(self._read(each)) for each in streams]
                await self._publish(seconds)
                await self._settle()
                for each in readers:
                    each.cancel()
        except ExceptionGroup as group:
            raise group.exceptions[0] from None
        finally:
            await self._pool.close()

    @property
    def expected(self) -> int:
        """Number of deliveries if nothing is lost."""
        return self.broadcasts * self._listeners

    async def _open(self, gate: asyncio.Semaphore) -> Body:
        async with gate:
            path = f"/events?channel={self._channel}"
            reply = await self._send("GET", path, {"accept": "text/event-stream"})
        if reply.stream is None:
            raise _refusal("open an event stream", reply, "Start it with --serve hub.")
        return reply.stream

    async def _read(self, stream: Body) -> None:
        rest = b""
        while data := await stream.read():
            now = time.perf_counter()
            *whole, rest = (rest + data).split(b"\n")
            for line in whole:
                if line.startswith(b"data: " + _MARK) and (sent := self._sent.get(line[6:].rstrip())) is not None:
                    self.delays.append(now - sent)
            if len(self.delays) >= self.expected:
                self._arrived.set()
        self.cut += 1

    async def _publish(self, seconds: float) -> None:
        started = time.perf_counter()
        while self.broadcasts == 0 or time.perf_counter() < started + seconds:
            text = _MARK + str(self.broadcasts).encode()
            self._sent[text] = time.perf_counter()
            self.broadcasts += 1
            self._arrived.clear()
            body = encode({"channel": self._channel, "data": text.decode()})
            reply = await self._send("POST", "/publish", {"content-type": "application/json"}, body)
            if reply.status != 200:
                raise _refusal(
                    "publish", reply, "POST /publish is for this machine, or for callers with a key: --auth."
                )
            await asyncio.sleep(max(0.0, started + self.broadcasts / _RATE - time.perf_counter()))

    async def _settle(self) -> None:
        try:
            async with asyncio.timeout(_SETTLE):
                while len(self.delays) < self.expected:
                    await self._arrived.wait()
        except TimeoutError:
            return

    async def _resident(self) -> int | None:
        try:
            reply = await self._send("GET", "/metrics", {})
        except ClientError:
            return None
        found = [line for line in reply.body.splitlines() if line.startswith(b"process_resident_memory_bytes ")]
        return int(float(found[0].split()[1])) if reply.status == 200 and found else None

    async def _send(self, method: str, path: str, headers: Mapping[str, str], body: bytes = b"") -> HttpReply:
        fields = {**self._headers, **headers} | ({"content-length": str(len(body))} if method == "POST" else {})
        head = f"{method} {path} HTTP/1.1\r\nhost: {self._url.authority}\r\n{lines(fields)}\r\n"
        return await self._pool.send(head.encode("latin-1") + body, repeatable=method == "GET")


def _refusal(what: str, reply: HttpReply, remedy: str) -> BadAnswer:
    return BadAnswer(f"The server refused to {what}: it responded with {reply.status}.", remedy=remedy)


def percentiles(delays: list[float], shares: tuple[float, ...]) -> dict[str, float]:
    """Return latency percentiles by name: ``p50``, ``p99``."""
    ordered = sorted(delays)
    return {
        f"p{share:g}": ordered[min(len(ordered) - 1, int(len(ordered) * share / 100))] for share in shares if ordered
    }


def summary(found: Broadcasts, took: float) -> dict[str, Any]:
    """Return the measurements for `--json`."""
    counts = Counter(delivered=len(found.delays))
    memory = found.memory
    return {
        "broadcasts": found.broadcasts,
        "delivered": counts["delivered"],
        "expected": found.expected,
        "deliveriesPerSecond": round(counts["delivered"] / took, 1) if took else 0.0,
        "cut": found.cut,
        "memoryBytes": None if memory is None else {"before": memory[0], "with": memory[1]},
    }
