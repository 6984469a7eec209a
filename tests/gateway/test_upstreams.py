"""Servers behind a server: what they offer is listed and works, however each is reached."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from millstream import Server
from millstream._protocol.revisions import BY_DATE
from millstream.client import Client
from patience import WAIT
from processes import Shared, millstream, shared

pytestmark = pytest.mark.server

SHOP = Path(__file__).parent.parent / "client" / "shop.py"
COMMAND = [sys.executable, "-m", "millstream", "run", str(SHOP), "--transport", "stdio"]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    with shared(lambda port: millstream(str(SHOP), port), tmp_path_factory.mktemp("shop")) as running:
        yield running


def small() -> Server:
    mcp = Server("small")

    @mcp.tool
    def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    return mcp


async def test_tools_of_upstreams_on_every_transport_stand_beside_local_ones(shop: Shared) -> None:
    mcp = Server("front")

    @mcp.tool
    def here() -> str:
        """A tool of the gateway itself."""
        return "here"

    mcp.upstream("web", f"http://127.0.0.1:{shop.port()}/mcp", start_timeout=WAIT)
    mcp.upstream("child", COMMAND, start_timeout=WAIT)
    mcp.upstream("inside", small(), start_timeout=WAIT)
    async with mcp.running():
        for revision in BY_DATE:
            async with Client(mcp, timeout=WAIT, revision=revision) as client:
                names = {tool.name for tool in await client.tools()}
                assert {"here", "web_order", "child_order", "inside_add"} <= names
                assert (await client.call("here")).text == "here"
                assert (await client.call("inside_add", a=1, b=2)).text == "3"
                for prefix in ("web", "child"):
                    assert (await client.call(f"{prefix}_count", a=2, b=3)).text == "5"
