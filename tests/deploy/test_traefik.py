"""The example for Traefik, read and served by Traefik itself."""

import asyncio
from collections.abc import Iterator

import pytest

from fronted import Fronted, check_events, check_sessions_and_paths, check_websockets, two_servers
from processes import ROOT
from proxies import traefik
from redis_parts import until

pytestmark = [pytest.mark.server, pytest.mark.nightly]


@pytest.fixture(scope="module")
def fronted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fronted]:
    """Two servers behind the example."""
    folder = tmp_path_factory.mktemp("traefik")
    routes = (ROOT / "examples" / "traefik" / "millstream.yaml").read_text("utf-8")
    with two_servers(folder) as ports:
        for old, new in zip((8000, 8001), ports, strict=True):
            routes = routes.replace(f"127.0.0.1:{old}\n", f"127.0.0.1:{new}\n")
        routes = routes.replace("Host(`mcp.example.com`)", "Host(`127.0.0.1`)")
        static = (ROOT / "examples" / "traefik" / "traefik.yaml").read_text("utf-8")
        with traefik(folder, static, routes) as port:
            proxy = Fronted(port, ports)
            asyncio.run(until(lambda: has_routes(proxy)))
            yield proxy


async def has_routes(fronted: Fronted) -> bool:
    """Return whether Traefik, which listens before it reads its routes, has them."""
    return await fronted.status("/readyz") == 200


async def test_traefik_shares_sessions_and_blocks_private_paths(fronted: Fronted) -> None:
    await check_sessions_and_paths(fronted)


async def test_traefik_streams_events_immediately(fronted: Fronted) -> None:
    await check_events(fronted)


async def test_traefik_passes_websockets(fronted: Fronted) -> None:
    await check_websockets(fronted)
