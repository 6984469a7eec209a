"""The memory that the outbound HTTP client keeps for replies."""

import asyncio
import itertools
from typing import Any

import pytest

from client.misbehaving_servers import ReceivedRequest, misbehaving, with_handshake
from fleet import until
from growth import MIB, measured
from millstream import Client
from millstream._http.client import ArrivingBytes, Inflow, TooMuchArriving
from millstream._http.client.pool import ConnectionPool
from millstream._http.client.url import parse_url
from millstream.client import Options
from patience import WAIT


async def test_output_schemas_of_changing_lists_are_limited_to_max_bytes() -> None:
    numbers = itertools.count()

    async def behave(asked: ReceivedRequest) -> None:
        server.requests.clear()  # they are in this process, too
        schema = {"type": "object", "description": "x" * 200_000}
        tool = {"name": f"t{next(numbers)}", "inputSchema": {"type": "object"}, "outputSchema": schema}
        await asked.result({"tools": [tool]})

    async with (
        misbehaving(with_handshake(behave, "s1")) as server,
        Client(server.url, options=Options(max_bytes=MIB), timeout=WAIT) as client,
    ):
        await client.tools(fresh=True)
        with measured() as growth:
            for _ in range(20):
                await client.tools(fresh=True)
        assert growth.bytes < 1.5 * MIB


async def test_memory_for_upstream_replies_matches_the_counted_size() -> None:
    async def behave(asked: ReceivedRequest) -> None:
        await asked.write(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 1048576\r\n\r\n")
        await asked.write(b"x" * (MIB - 1))
        await asyncio.Event().wait()

    arriving = ArrivingBytes(16 * MIB, MIB)
    head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    async with asyncio.timeout(20), misbehaving(behave) as server:
        pool = ConnectionPool(
            parse_url(server.url),
            max_connections=50,
            max_body=2 * MIB,
            connect_timeout=WAIT,
            inflow=Inflow(arriving, "shop"),
        )
        waiting: list[asyncio.Task[Any]] = []
        with measured() as growth:
            while not any(each.done() for each in waiting):
                before = arriving.callers.count("eve")
                waiting.append(asyncio.create_task(pool.send(head, repeatable=False, owner="eve")))
                await until(lambda: waiting[-1].done() or arriving.callers.count("eve") >= before + MIB - 1)  # noqa: B023
        with pytest.raises(TooMuchArriving):
            await waiting[-1]
        counted = arriving.callers.count("eve")
        assert 3 * MIB < counted <= 4 * MIB
        assert growth.bytes == pytest.approx(counted, rel=0.25)
        for each in waiting:
            each.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await pool.close()
