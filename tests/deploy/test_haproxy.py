import asyncio
import json
from collections.abc import Iterator

import pytest

from fronted import WAITS, Fronted, check_events, check_sessions_and_paths, check_websockets, two_servers
from patience import WAIT
from processes import ROOT
from proxies import NEEDS_HAPROXY, haproxy
from redis_parts import until

pytestmark = [pytest.mark.server, NEEDS_HAPROXY]


@pytest.fixture(scope="module")
def fronted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fronted]:
    """Two servers behind the example."""
    folder = tmp_path_factory.mktemp("haproxy")
    text = (ROOT / "examples" / "haproxy.cfg").read_text("utf-8")
    with two_servers(folder) as ports:
        for old, new in zip((8000, 8001), ports, strict=True):
            text = text.replace(f"127.0.0.1:{old} ", f"127.0.0.1:{new} ")
        with haproxy(folder, text) as port:
            yield Fronted(port, ports)


async def test_haproxy_shares_sessions_and_blocks_private_paths(fronted: Fronted) -> None:
    await check_sessions_and_paths(fronted)


async def test_haproxy_streams_events_immediately(fronted: Fronted) -> None:
    await check_events(fronted)


async def test_haproxy_passes_websockets(fronted: Fronted) -> None:
    await check_websockets(fronted)


async def test_half_closed_clients_are_noticed(fronted: Fronted) -> None:
    async def idle() -> bool:
        return await fronted.under_way() == [(0, 0), (0, 0)]

    await until(idle)  # what the tests before have left
    async with (
        fronted.request("GET /events?channel=news") as (stream, of_stream),
        fronted.request("POST /mcp", json.dumps(WAITS).encode()) as (call, of_call),
    ):
        await asyncio.wait_for(stream.readuntil(b"id: "), WAIT)
        await asyncio.wait_for(call.readuntil(b"notifications/progress"), WAIT)
        assert not await idle()
        for writer in (of_stream, of_call):
            writer.write_eof()
        await until(idle)


def test_example_passes_small_chunks_immediately() -> None:
    assert "    option http-no-delay\n" in (ROOT / "examples" / "haproxy.cfg").read_text("utf-8")
