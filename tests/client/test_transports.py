from collections.abc import Iterator

import pytest

from cases import for_each
from client.feature_walk import FILE, walk
from millstream.protocol import BY_DATE
from processes import SharedServer, run_command, share_server

pytestmark = pytest.mark.server

DATES = list(BY_DATE)
WAYS = [
    *[("http", "/mcp", "streamable-http", date) for date in (None, *DATES[1:])],
    *[("http", "/sse", "http+sse", date) for date in (None, *DATES[:-1])],
    *[("ws", "/ws", "websocket", date) for date in (None, *DATES)],
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SharedServer]:
    with share_server(
        lambda port: run_command(str(FILE), port, "--serve", "hub"), tmp_path_factory.mktemp("shop")
    ) as running:
        yield running


@for_each(("scheme", "path", "transport", "revision"), WAYS)
async def test_every_feature_works_over_every_transport(
    server: SharedServer, scheme: str, path: str, transport: str, revision: str | None
) -> None:
    await walk(f"{scheme}://127.0.0.1:{server.port()}{path}", revision, transport)
